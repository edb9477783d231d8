//! Where the cluster is, and connections to it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::{Channel, Endpoint};
use weir_proto::from_status;
use weir_proto::pb::client::v1 as pb;
use weir_proto::pb::client::v1::client_client::ClientClient;
use weir_service::units::TimeSpan;
use weir_stream_store::client::StoreClient;
use weir_types::{Code, Error, Result};

use crate::args::Global;
use crate::cluster::file::ClusterFile;

/// How long a server may take to say what it is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to look for a JobManager that leads, and how often.
const LEADER_TIMEOUT: Duration = Duration::from_secs(20);
const LEADER_INTERVAL: Duration = Duration::from_millis(100);
/// So much of an HTTP answer is read, in bytes.
const HTTP_ANSWER_MAX: u64 = 4096;
/// The JobManager's default address, as in Flink.
const JOBMANAGER_DEFAULT: &str = "127.0.0.1:6123";
/// The store's default address.
const STORE_DEFAULT: &str = "127.0.0.1:6124";
/// Catalogue listings of large clusters are longer than tonic's 4 MiB.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// The JobManager's API.
pub(crate) type JobManager = ClientClient<Channel>;

/// Address of the JobManager: flag or environment, else the local cluster's, else the default.
pub(crate) fn jobmanager_address(global: &Global) -> Result<String> {
    address(global, global.jobmanager.as_ref(), |file| file.jobmanager.clone(), JOBMANAGER_DEFAULT)
}

/// Address of the stream store, found in the same way.
pub(crate) fn store_address(global: &Global) -> Result<String> {
    address(global, global.store.as_ref(), |file| file.store.clone(), STORE_DEFAULT)
}

fn address(
    global: &Global,
    given: Option<&String>,
    local: fn(&ClusterFile) -> String,
    default: &str,
) -> Result<String> {
    match given {
        Some(address) => Ok(address.clone()),
        None => Ok(ClusterFile::read(&global.dir)?.as_ref().map_or_else(|| default.to_owned(), local)),
    }
}

/// Connects to the JobManager.
///
/// # Errors
/// `UNAVAILABLE` with a hint on how to start or name one.
pub(crate) async fn jobmanager(global: &Global) -> Result<JobManager> {
    let address = jobmanager_address(global)?;
    jobmanager_at(&address).await
}

/// Connects to the JobManager that leads, of those at `addresses`, which commas separate. Any one of a cluster's will do.
///
/// # Errors
/// `UNAVAILABLE` with a hint on how to start or name one; `NOT_LEADER` if none leads for long.
pub(crate) async fn jobmanager_at(addresses: &str) -> Result<JobManager> {
    let mut known: VecDeque<String> = addresses.split(',').map(|address| address.trim().to_owned()).collect();
    let one = known.len() == 1;
    let deadline = Instant::now() + LEADER_TIMEOUT;
    let mut tried = 0;
    loop {
        let Some(address) = known.front().cloned() else {
            return Err(Error::invalid("no address of a JobManager").with_hint("Write HOST:PORT."));
        };
        let error = match leader_at(&address, !one).await {
            Ok(jobmanager) => return Ok(jobmanager),
            Err(error) if Instant::now() < deadline => error,
            Err(error) => return Err(error),
        };
        match error.detail.clone().filter(|_| error.code == Code::NotLeader) {
            // Each is asked in turn anyway; the one that is said to lead comes first.
            Some(leader) if leader != address => {
                known.retain(|other| *other != leader);
                known.push_front(leader);
            }
            _ if one && known.len() == 1 && error.code != Code::NotLeader => return Err(error),
            _ => known.rotate_left(1),
        }
        tried += 1;
        if tried >= known.len() {
            tokio::time::sleep(LEADER_INTERVAL).await;
        }
    }
}

/// Connects to the JobManager at `address`, if it leads. Where there are `others`, one that does not answer is passed over.
async fn leader_at(address: &str, others: bool) -> Result<JobManager> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Error::invalid(format!("{address:?} is not an address")).with_hint("Write HOST:PORT."))?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true);
    let channel = endpoint.connect().await.map_err(|error| {
        Error::unavailable(format!("no JobManager answers at {address}"))
            .with_detail(root_cause(&error))
            .with_hint("Start a local cluster with `weir cluster start`, or name another with --jobmanager HOST:PORT.")
    })?;
    let mut jobmanager = ClientClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
    let greeting = tokio::time::timeout(PROBE_TIMEOUT, jobmanager.cluster_status(pb::ClusterStatusRequest {})).await;
    if others && greeting.is_err() {
        return Err(Error::unavailable(format!("the JobManager at {address} does not answer"))
            .with_detail(format!("nothing came within {} ms", PROBE_TIMEOUT.as_millis()))
            .with_hint("`weir cluster members list` shows which JobManagers are active."));
    }
    if let Ok(Err(status)) = greeting {
        let error = from_status(&status);
        if error.code == Code::NotLeader {
            return Err(error);
        }
        if status.details().is_empty()
            && let Some(other) = who_answers(address).await
        {
            return Err(Error::unavailable(format!("what answers at {address} is no JobManager but {other}"))
                .with_hint(
                    "Give the address of the JobManager's API with --jobmanager; `weir cluster status` shows it.",
                ));
        }
    }
    // A JobManager that cannot answer now says why when it is asked for something.
    Ok(jobmanager)
}

/// Asks the JobManager that leads, and the one after it if it goes meanwhile. What is asked bears a request id, or changes
/// nothing, or says how things shall be, so that it may be asked twice.
///
/// # Errors
/// What the leader answers; `UNAVAILABLE` or `NOT_LEADER` if none answers for long.
pub(crate) async fn ask<R, T, F>(global: &Global, request: R, mut call: impl FnMut(JobManager, R) -> F) -> Result<T>
where
    R: Clone,
    F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
{
    let addresses = jobmanager_address(global)?;
    let several = addresses.contains(',');
    let deadline = Instant::now() + LEADER_TIMEOUT;
    loop {
        let status = match call(jobmanager_at(&addresses).await?, request.clone()).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) => status,
        };
        let error = from_status(&status);
        // Without details it was no JobManager that answered: the connection broke.
        let lost = several && status.details().is_empty() && error.code == Code::Unavailable;
        if !(lost || error.code == Code::NotLeader) || Instant::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(LEADER_INTERVAL).await;
    }
}

/// What kind of server it is that answers otherwise than a JobManager; none, if it may be one after all.
async fn who_answers(address: &str) -> Option<String> {
    if let Some(answer) = http_get(address, "/health").await {
        return Some(format!("an HTTP server ({})", answer.lines().next().unwrap_or_default().trim()));
    }
    let store = StoreClient::connect(address).ok()?;
    match tokio::time::timeout(PROBE_TIMEOUT, store.list_streams(None)).await.ok()? {
        Ok(_) => Some("a stream store".to_owned()),
        Err(error) if error.code == Code::Unsupported => Some("another gRPC server".to_owned()),
        Err(_) => None,
    }
}

/// What a server answers to an HTTP/1.1 request, head and body, or the beginning of it; none, if it does not.
pub(crate) async fn http_get(address: &str, path: &str) -> Option<String> {
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        // Whatever a gRPC server answers to this is short; other servers may send as much as they like.
        stream.take(HTTP_ANSWER_MAX).read_to_end(&mut answer).await.ok()?;
        Some(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(PROBE_TIMEOUT, exchange).await.ok().flatten()?;
    answer.starts_with("HTTP/1").then_some(answer)
}

/// Connects to the stream store.
///
/// # Errors
/// `UNAVAILABLE` with a hint on how to start or name one.
pub(crate) async fn store(global: &Global) -> Result<StoreClient> {
    let address = store_address(global)?;
    let store = StoreClient::connect(&address)?;
    store.wait_ready(Duration::from_secs(5)).await.map_err(|error| {
        Error::unavailable(format!("no stream store answers at {address}"))
            .with_detail(error.detail.unwrap_or(error.message))
            .with_hint("Start a local cluster with `weir cluster start`, or name another with --store HOST:PORT.")
    })?;
    Ok(store)
}

/// A new request id: a retry within this command bears the same one.
pub(crate) fn request_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A duration flag as the API takes it.
pub(crate) fn timeout_ms(span: Option<TimeSpan>) -> Option<u64> {
    span.map(|span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
