//! `weir stream transactions …`: what is not decided yet, and ending it by hand.

use serde_json::json;
use weir_stream_store::client::StoreClient;
use weir_types::ids::TransactionId;
use weir_types::store::{TransactionInfo, TransactionState};
use weir_types::stream::StreamName;
use weir_types::{Code, Error, Result};

use crate::args::{Global, TransactionCommand};
use crate::{output, time};

/// Runs a `stream transactions` command.
///
/// # Errors
/// `NOT_FOUND` for a stream or a transaction; `FAILED_PRECONDITION` for a committed one, and for a prepared one without
/// `--force`.
pub(crate) async fn run(global: &Global, store: &StoreClient, command: TransactionCommand) -> Result<()> {
    match command {
        TransactionCommand::List { stream } => list(global, &store.transactions(&stream.parse()?).await?),
        TransactionCommand::Abort { stream, transactions, force } => {
            let stream: StreamName = stream.parse()?;
            let ids = transactions.into_iter().map(TransactionId::new).collect::<Result<Vec<_>>>()?;
            let known = store.transactions(&stream).await?;
            for id in &ids {
                check(&known, id, force)?;
            }
            store.abort_transactions(&stream, &ids, "by hand").await?;
            if global.json {
                return output::print_json(&json!({"stream": stream, "aborted": ids}));
            }
            let lines = ids.iter().map(|id| format!("transaction {id} aborted\n"));
            output::print(&lines.collect::<String>())
        }
    }
}

fn check(known: &[TransactionInfo], id: &TransactionId, force: bool) -> Result<()> {
    let Some(info) = known.iter().find(|info| info.spec.id == *id) else {
        return Err(Error::not_found(format!("transaction {id} is not known"))
            .with_hint("`weir stream transactions list` shows all of them."));
    };
    if info.state == TransactionState::Prepared && !force {
        let what = format!("transaction {id} is prepared, and somebody may be about to commit it");
        return Err(Error::new(Code::FailedPrecondition, what)
            .with_hint("A job commits or aborts its own. If it is gone for good, abort with --force."));
    }
    Ok(())
}

fn list(global: &Global, transactions: &[TransactionInfo]) -> Result<()> {
    if global.json {
        return output::print_json(&json!(transactions));
    }
    let rows = transactions.iter().map(|info| {
        let why = match &info.state {
            TransactionState::Aborted { reason } => reason.clone(),
            _ => String::new(),
        };
        vec![
            info.spec.id.to_string(),
            info.state.to_string(),
            info.spec.producer.to_string(),
            info.spec.epoch.to_string(),
            time::moment(info.began_at_ms),
            match info.begins.0.is_empty() {
                true => "-".to_owned(),
                false => info.begins.to_string(),
            },
            why,
        ]
    });
    let header = ["transaction", "state", "producer", "epoch", "begun", "holds back from", "why"];
    output::print(&output::table(&header, &[3], rows))
}
