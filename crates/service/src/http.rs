//! The HTTP side of a process: `/health`, `/ready`, `/metrics`, and whatever routes the binary adds.
//!
//! `/health` answers as long as the process lives; `/ready` only while it can do its work.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use weir_types::{Code, Error, Result};

use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How long open requests may take after shutdown was requested.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How often histogram samples are folded into their buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Whether the process can do its work; clones share one state, which starts as not ready.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<Option<String>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(watch::Sender::new(Some("starting".to_owned())))
    }
}

impl Readiness {
    /// Not ready yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on ready.
    pub fn set_ready(&self) {
        self.0.send_replace(None);
    }

    /// From now on not ready, for a reason that `/ready` shows, such as `no leader`.
    pub fn set_waiting(&self, reason: impl Into<String>) {
        self.0.send_replace(Some(reason.into()));
    }

    /// Returns once the process is ready.
    pub async fn ready(&self) {
        let mut state = self.0.subscribe();
        // The sender is this very value, so waiting cannot end early.
        let _ready = state.wait_for(Option::is_none).await;
    }
}

#[derive(Clone)]
struct Common {
    metrics: Metrics,
    readiness: Readiness,
}

/// Serves the common routes and the binary's `own` until shutdown is requested, then lets open requests finish.
///
/// # Errors
/// `IO` if the listener fails, `INTERNAL` if metrics cannot be recorded.
pub async fn serve(listener: TcpListener, own: Router, readiness: Readiness, shutdown: Shutdown) -> Result<()> {
    let metrics = Metrics::install()?;
    let app = router(own, metrics.clone(), readiness);
    let requested = shutdown.clone();
    let server = axum::serve(listener, app).with_graceful_shutdown(async move { requested.requested().await });
    let mut upkeep = tokio::time::interval(UPKEEP_INTERVAL);
    let server = std::future::IntoFuture::into_future(server);
    tokio::pin!(server);
    loop {
        tokio::select! {
            served = &mut server => {
                return served.map_err(|error| Error::io("the HTTP server failed", &error));
            }
            () = shutdown.requested() => break,
            _ = upkeep.tick() => metrics.upkeep(),
        }
    }
    match tokio::time::timeout(DRAIN_TIMEOUT, server).await {
        Ok(served) => served.map_err(|error| Error::io("the HTTP server failed", &error)),
        Err(_) => {
            tracing::debug!("open http requests were cut off");
            Ok(())
        }
    }
}

fn router(own: Router, metrics: Metrics, readiness: Readiness) -> Router {
    let common = Router::new()
        .route("/health", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/ready", get(ready))
        .route("/metrics", get(scrape))
        .with_state(Common { metrics, readiness });
    common.merge(own)
}

async fn ready(State(common): State<Common>) -> Response {
    match &*common.readiness.0.borrow() {
        None => Json(json!({ "ready": true })).into_response(),
        Some(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reason": reason }))).into_response()
        }
    }
}

async fn scrape(State(common): State<Common>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], common.metrics.render()).into_response()
}

/// An [`Error`] as the answer to a request: its code's status, and the whole error as JSON under `error`.
#[derive(Debug)]
pub struct HttpError(pub Error);

impl From<Error> for HttpError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        (status(self.0.code), Json(json!({ "error": self.0 }))).into_response()
    }
}

/// The HTTP status for a code, as listed in `docs/errors.md`.
pub fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument | Code::InvalidSql | Code::MalformedRecord => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Fenced
        | Code::SequenceGap
        | Code::GroupInUse
        | Code::DuplicateOutput => StatusCode::CONFLICT,
        Code::OffsetTruncated | Code::Unrestorable => StatusCode::GONE,
        Code::QuotaExceeded | Code::GroupLimitExceeded => StatusCode::TOO_MANY_REQUESTS,
        Code::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Code::ResourceExhausted | Code::Unavailable | Code::NotLeader | Code::Cancelled => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Code::Timeout => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn serves_common_and_own_routes_until_shutdown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let own = Router::new()
            .route("/jobs/x", get(|| async { Err::<(), _>(HttpError(Error::not_found("job \"x\" does not exist"))) }));
        let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
        let server = tokio::spawn(serve(listener, own, readiness.clone(), shutdown.clone()));

        assert!(fetch(address, "/health").await.ends_with("{\"status\":\"ok\"}"));
        let waiting = fetch(address, "/ready").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("\"reason\":\"starting\""), "{waiting}");
        readiness.set_ready();
        readiness.ready().await;
        assert!(fetch(address, "/ready").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(address, "/metrics").await.contains("process_cpu_seconds_total"));
        let missing = fetch(address, "/jobs/x").await;
        assert!(missing.starts_with("HTTP/1.1 404") && missing.contains("\"code\":\"NOT_FOUND\""), "{missing}");

        shutdown.request();
        server.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
