//! A client of the JobManagers' API that finds the leader by itself and asks again when it is lost, as every client should.

use std::future::Future;
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use weir_proto::from_status;
use weir_proto::pb::client::v1::client_client::ClientClient;
use weir_types::{Code, Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait before the next JobManager is asked; far below what is measured by asking.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);
const REPLY_BYTES_MAX: usize = 64 << 20;

/// One call's view of a JobManager.
pub type Leader = ClientClient<Channel>;

/// A client of a group of JobManagers; clones have connections in common.
#[derive(Clone, Debug)]
pub struct Api {
    members: Vec<(String, Leader)>,
    /// Who is asked first: the one that answered last.
    turn: usize,
}

impl Api {
    /// A client of the JobManagers at these addresses; nothing is connected before it is used.
    pub fn new(addresses: &[String]) -> Self {
        Self { members: addresses.iter().map(|address| (address.clone(), connection(address))).collect(), turn: 0 }
    }

    /// Asks until a JobManager has answered, for `patience` at most. What is asked bears a request id, changes nothing, or
    /// says how things shall be, so that it may be asked twice.
    ///
    /// # Errors
    /// What the leader answers; `UNAVAILABLE` or `NOT_LEADER` if none has answered, `TIMEOUT` if one takes too long.
    pub async fn ask<T, F>(&mut self, patience: Duration, mut call: impl FnMut(Leader) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (_, member) = &self.members[self.turn];
            let status = match tokio::time::timeout(left, call(member.clone())).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(Error::new(Code::Timeout, "the JobManagers do not answer in time")),
            };
            let error = from_status(&status);
            // Without details it was no JobManager that answered: the connection broke.
            let lost = status.details().is_empty() && error.code != Code::Unsupported;
            if !(lost || error.code == Code::NotLeader) || Instant::now() >= deadline {
                return Err(error);
            }
            let leader = error.detail.filter(|_| error.code == Code::NotLeader);
            self.turn =
                self.place_of(leader).filter(|at| *at != self.turn).unwrap_or(self.turn + 1) % self.members.len();
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// The place of the JobManager at this address, which may have been added since this client was made.
    fn place_of(&mut self, address: Option<String>) -> Option<usize> {
        let address = address?;
        let known = self.members.iter().position(|(known, _)| *known == address);
        Some(known.unwrap_or_else(|| {
            let connection = connection(&address);
            self.members.push((address, connection));
            self.members.len() - 1
        }))
    }
}

fn connection(address: &str) -> Leader {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
    ClientClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX)
}
