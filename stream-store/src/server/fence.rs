//! Commands of leaders: one of a term that is over is refused before it reaches the store.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Wakeup, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::server::NamedService;
use weir_proto::to_status;
use weir_types::ids::{ClusterId, Term};
use weir_types::{Error, Result};

use crate::store::Store;

/// The cluster whose leader gives a command, as metadata of the call.
pub(crate) const CLUSTER_HEADER: &str = "weir-cluster";
/// The leader's term.
pub(crate) const TERM_HEADER: &str = "weir-term";

/// A service that admits commands by their terms.
#[derive(Clone)]
pub(crate) struct Fenced<S> {
    inner: S,
    store: Store,
}

impl<S> Fenced<S> {
    pub(crate) fn new(inner: S, store: Store) -> Self {
        Self { inner, store }
    }
}

impl<S: NamedService> NamedService for Fenced<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Fenced<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, wakeup: &mut Wakeup<'_>) -> Poll<std::result::Result<(), Infallible>> {
        self.inner.poll_ready(wakeup)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let leader = match leader(request.headers()) {
            // Whoever leads nothing is let through as it always was.
            Ok(None) => return Box::pin(self.inner.call(request)),
            Ok(Some(leader)) => leader,
            Err(error) => return Box::pin(std::future::ready(Ok(refusal(&error)))),
        };
        let (store, other) = (self.store.clone(), self.inner.clone());
        // The one that was polled is the one that is ready.
        let mut inner = std::mem::replace(&mut self.inner, other);
        Box::pin(async move {
            match store.terms().admit(&leader.0, leader.1).await {
                Ok(_admitted) => inner.call(request).await,
                Err(error) => Ok(refusal(&error)),
            }
        })
    }
}

/// Who gives the command, if it is a leader.
fn leader(headers: &HeaderMap) -> Result<Option<(ClusterId, Term)>> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (text(CLUSTER_HEADER), text(TERM_HEADER)) {
        (None, None) => Ok(None),
        (Some(cluster), Some(term)) => {
            let term = term.parse().map_err(|_| Error::invalid(format!("{term:?} is no term")))?;
            Ok(Some((ClusterId::new(cluster)?, Term(term))))
        }
        _ => Err(Error::invalid("a leader names its cluster and its term")),
    }
}

fn refusal(error: &Error) -> Response<Body> {
    let status: Status = to_status(error);
    status.into_http()
}
