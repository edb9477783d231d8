//! One token that everybody awaits: it is cancelled by SIGTERM, SIGINT, or the parent's death, and nothing revives it.
//!
//! The first signal asks; a second one, or the end of the grace period, ends the process at once.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weir_types::{Error, Result};

use crate::config::ServiceArgs;

/// How long a process may take to end after it was asked to.
pub const GRACE_PERIOD: Duration = Duration::from_secs(30);

/// Whether the process, or a part of it, has been asked to end. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A token that only [`Shutdown::request`] cancels, for tests and for parts of a process.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that SIGTERM and SIGINT cancel and, with `--exit-with-parent`, the death of the parent. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// `IO` if the operating system refuses the handlers, `CANCELLED` if the parent is dead already.
    pub fn on_signals(args: &ServiceArgs) -> Result<Self> {
        let refused = |error: std::io::Error| Error::io("could not install the signal handlers", &error);
        let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
        if let Some(parent) = args.exit_with_parent {
            follow_parent(parent)?;
        }
        let shutdown = Self::new();
        let token = shutdown.clone();
        tokio::spawn(async move {
            let first = next(&mut terminate, &mut interrupt).await;
            tracing::info!(signal = first.name, "shutdown requested");
            token.request();
            tokio::select! {
                second = next(&mut terminate, &mut interrupt) => {
                    tracing::warn!(signal = second.name, "second signal, exiting at once");
                    std::process::exit(second.exit_code);
                }
                () = tokio::time::sleep(GRACE_PERIOD) => {
                    tracing::error!(grace_ms = GRACE_PERIOD.as_millis(), "shutdown took too long, exiting");
                    std::process::exit(first.exit_code);
                }
            }
        });
        Ok(shutdown)
    }

    /// Asks everybody who holds this token, or a child of it, to end.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Whether it has been requested.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns once it has been requested.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// A token for a part of the process: it ends with this one, and ending it ends nothing else.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// The token itself, for libraries that take one.
    pub fn token(&self) -> &CancellationToken {
        &self.0
    }
}

struct Received {
    name: &'static str,
    /// 128 plus the signal's number, as shells report it.
    exit_code: i32,
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> Received {
    tokio::select! {
        _ = terminate.recv() => Received { name: "SIGTERM", exit_code: 143 },
        _ = interrupt.recv() => Received { name: "SIGINT", exit_code: 130 },
    }
}

/// The kernel sends SIGTERM when the thread that started this process ends; a parent that died before this call would
/// be missed, hence the comparison.
fn follow_parent(parent: u32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .map_err(|error| Error::io("could not follow the parent process", &error.into()))?;
    if std::os::unix::process::parent_id() != parent {
        return Err(Error::new(weir_types::Code::Cancelled, format!("the parent process {parent} is gone")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_reaches_clones_and_children_but_not_parents() {
        let parent = Shutdown::new();
        let (clone, child) = (parent.clone(), parent.child());
        child.request();
        assert!(child.is_requested() && !parent.is_requested());
        let other = parent.child();
        clone.request();
        other.requested().await;
        assert!(parent.is_requested());
    }
}
