//! One module per command; each asks a server and prints what it says.

mod cluster;
mod group;
mod jobs;
mod policy;
mod quota;
mod ready;
mod rescale;
mod restore_plan;
pub(crate) mod run;
pub(crate) mod show;
pub(crate) mod snapshots;
pub(crate) mod stream;
mod stream_read;
mod transactions;

use std::io::stdout;

use clap::CommandFactory;
use weir_proto::pb::client::v1 as pb;
use weir_types::Result;

use crate::args::{Args, Command};
use crate::identity::Identity;
use crate::{connect, quickstart};

/// Runs one command.
///
/// # Errors
/// Whatever keeps the command from being done; it becomes the exit code.
pub(crate) async fn run(args: Args) -> Result<()> {
    let global = &args.global;
    match args.command {
        Command::Cluster(command) => cluster::run(global, command).await,
        Command::Run(args) => run::run(global, args).await,
        Command::Explain { script, plan } => run::explain(global, &script, &plan).await,
        Command::List { running, scheduled, all, scope } => jobs::list(global, running, scheduled, all, &scope).await,
        Command::Job(command) => jobs::job(global, command).await,
        Command::Savepoint { dispose: Some(snapshot), force, wait, .. } => {
            snapshots::dispose(global, snapshot, force, &wait).await
        }
        Command::Savepoint { job, directory, annotations, wait, .. } => {
            snapshots::savepoint(global, job.unwrap_or_default(), directory, annotations, wait).await
        }
        Command::Checkpoint { job, wait } => snapshots::checkpoint(global, job, wait).await,
        Command::Stop { savepoint_path, drain, job, wait } => {
            snapshots::stop(global, job, savepoint_path, drain, wait).await
        }
        Command::Rescale { job, parallelism, detached, request_id, namespace } => {
            let namespace = Identity::load(global)?.namespace(&namespace)?;
            let request_id = request_id.unwrap_or_else(connect::request_id);
            let request = pb::RescaleJobRequest { request_id, job, namespace, parallelism };
            rescale::rescale(global, request, detached).await
        }
        Command::Cancel { job, namespace } => jobs::cancel(global, job, &namespace).await,
        Command::Snapshots(command) => snapshots::run(global, command).await,
        Command::Policy(command) => policy::run(global, command).await,
        Command::Quota(command) => quota::run(global, command).await,
        Command::Stream(command) => stream::run(global, command).await,
        Command::Group(command) => group::run(global, command).await,
        Command::Ready { addresses, wait } => ready::run(global, &addresses, wait).await,
        Command::Quickstart(args) => quickstart::run(global, args).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "weir", &mut stdout());
            Ok(())
        }
    }
}
