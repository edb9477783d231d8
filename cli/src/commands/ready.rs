//! `weir ready`: whether servers can do their work. It is all that a container without a shell needs for its health check.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_service::units::TimeSpan;
use weir_types::{Error, Result};

use crate::args::Global;
use crate::connect::http_get;
use crate::output;

/// How often servers that are not ready are asked again.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// Asks each server in turn.
///
/// # Errors
/// `UNAVAILABLE` that names the first one that does not become ready within `wait`, with its reason.
pub(crate) async fn run(global: &Global, addresses: &[String], wait: TimeSpan) -> Result<()> {
    let deadline = Instant::now() + wait.0;
    for address in addresses {
        while let Err(error) = ready(address).await {
            if Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }
    if global.json { output::print_json(&json!({ "ready": addresses })) } else { output::print("ready\n") }
}

async fn ready(address: &str) -> Result<()> {
    let Some(answer) = http_get(address, "/ready").await else {
        return Err(Error::unavailable(format!("no server answers HTTP at {address}"))
            .with_hint("Name the address that the server's http.address says."));
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    let line = head.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let error = Error::unavailable(format!("the server at {address} is not ready"));
    let said: Option<Value> = serde_json::from_str(body).ok();
    Err(match said.as_ref().and_then(|said| said["reason"].as_str()) {
        Some(reason) => error.with_detail(reason.to_owned()),
        None => error.with_detail(line.to_owned()),
    })
}
