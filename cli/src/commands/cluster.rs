//! `weir cluster start|stop|status`.

use serde_json::json;
use weir_proto::pb::client::v1::{
    AddMemberRequest, ClusterStatusReply, ClusterStatusRequest, ListMembersRequest, Member, RemoveMemberRequest,
};
use weir_types::{Error, Result};

use crate::args::{ClusterCommand, Global, MembersCommand};
use crate::cluster::file::{ClusterFile, Process};
use crate::cluster::{start, stop};
use crate::connect::JobManager;
use crate::{connect, output};

/// Runs a `cluster` command.
pub(crate) async fn run(global: &Global, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Start(args) => {
            let begun = std::time::Instant::now();
            let file = start::start(&global.dir, &args).await?;
            if global.json {
                return output::print_json(&json!(file));
            }
            output::print(&format!(
                "Cluster ready in {:.0?}: JobManager {}, {} TaskManagers, store {}.\nPages at http://{}, logs in {}.\n",
                begun.elapsed(),
                file.jobmanager,
                args.taskmanagers,
                file.store,
                file.jobmanager_http,
                global.dir.join("log").display(),
            ))
        }
        ClusterCommand::Stop => {
            let stopped = stop::stop(&global.dir).await?;
            if global.json {
                let processes: Vec<_> =
                    stopped.iter().map(|(name, how)| json!({"name": name, "outcome": how.as_str()})).collect();
                return output::print_json(&json!(processes));
            }
            let rows = stopped.into_iter().map(|(name, how)| vec![name, how.as_str().to_owned()]);
            output::print(&output::table(&["process", "outcome"], &[], rows))
        }
        ClusterCommand::Status => status(global).await,
        ClusterCommand::Members(command) => members(global, command).await,
    }
}

async fn members(global: &Global, command: MembersCommand) -> Result<()> {
    let reply = match command {
        MembersCommand::List => {
            let list = |mut jobmanager: JobManager, request| async move { jobmanager.list_members(request).await };
            connect::ask(global, ListMembersRequest {}, list).await?
        }
        MembersCommand::Add { member } => {
            let parsed = member.split_once('=').and_then(|(id, address)| Some((id.parse().ok()?, address.to_owned())));
            let (id, address) = parsed
                .ok_or_else(|| Error::invalid(format!("{member:?} is not a member")).with_hint("Write N=HOST:PORT."))?;
            let add = |mut jobmanager: JobManager, request| async move { jobmanager.add_member(request).await };
            connect::ask(global, AddMemberRequest { id, address }, add).await?
        }
        MembersCommand::Remove { member } => {
            let remove = |mut jobmanager: JobManager, request| async move { jobmanager.remove_member(request).await };
            connect::ask(global, RemoveMemberRequest { id: member }, remove).await?
        }
    };
    if global.json {
        let member = |member: &Member| {
            json!({
                "id": member.id, "address": member.address, "votes": member.votes, "leads": member.leads,
                "active": member.active, "lag": member.lag,
            })
        };
        return output::print_json(&json!(reply.members.iter().map(member).collect::<Vec<_>>()));
    }
    let rows = reply.members.iter().map(|member| {
        let role = match (member.leads, member.votes) {
            (true, _) => "leader",
            (false, true) => "follower",
            (false, false) => "learner",
        };
        let state = if member.active { "active" } else { "silent" };
        vec![member.id.to_string(), member.address.clone(), role.to_owned(), state.to_owned(), member.lag.to_string()]
    });
    output::print(&output::table(&["member", "address", "role", "state", "entries behind"], &[0, 4], rows))
}

async fn status(global: &Global) -> Result<()> {
    let local = ClusterFile::read(&global.dir)?;
    let ask = |mut jobmanager: JobManager, request| async move { jobmanager.cluster_status(request).await };
    let reply = match connect::ask(global, ClusterStatusRequest {}, ask).await {
        Ok(reply) => reply,
        Err(error) => {
            // Which process has ended is what somebody who looks at a broken cluster wants to know.
            if let Some(file) = local.as_ref().filter(|_| !global.json) {
                output::print(&processes_table(file))?;
            }
            return Err(error);
        }
    };
    if global.json {
        return output::print_json(&status_json(&reply, local.as_ref()));
    }
    let mut text = format!(
        "Cluster {} (version {}), checkpoints in {}\n\n",
        reply.cluster_id, reply.version, reply.checkpoint_root
    );
    if let Some(file) = &local {
        text += &processes_table(file);
        text.push('\n');
    }
    let rows = reply.task_managers.iter().map(|tm| {
        vec![
            tm.id.clone(),
            tm.data_address.clone(),
            format!("{}/{}", tm.slots_free, tm.slots),
            format!("{} ms ago", tm.last_heartbeat_ms_ago),
        ]
    });
    text += &output::table(&["taskmanager", "address", "free slots", "heartbeat"], &[2, 3], rows);
    output::print(&text)
}

fn processes_table(file: &ClusterFile) -> String {
    let rows = file.processes.iter().map(process_row);
    output::table(&["process", "state", "pid", "memory", "http"], &[2, 3], rows)
}

fn process_row(process: &Process) -> Vec<String> {
    let state = if process.id.is_running() { "running" } else { "ended" };
    vec![
        process.name.clone(),
        state.to_owned(),
        process.id.pid.to_string(),
        process.id.resident_bytes().map_or_else(|| "-".to_owned(), output::bytes),
        process.http.clone(),
    ]
}

fn status_json(reply: &ClusterStatusReply, local: Option<&ClusterFile>) -> serde_json::Value {
    let task_managers: Vec<_> = reply
        .task_managers
        .iter()
        .map(|tm| {
            json!({
                "id": tm.id, "data_address": tm.data_address, "http_address": tm.http_address, "pid": tm.process_id,
                "slots": tm.slots, "slots_free": tm.slots_free, "last_heartbeat_ms_ago": tm.last_heartbeat_ms_ago,
            })
        })
        .collect();
    let processes: Vec<_> = local
        .iter()
        .flat_map(|file| &file.processes)
        .map(|process| {
            json!({
                "name": process.name, "pid": process.id.pid, "running": process.id.is_running(),
                "resident_bytes": process.id.resident_bytes(), "http": process.http,
            })
        })
        .collect();
    json!({
        "cluster_id": reply.cluster_id, "version": reply.version, "term": reply.term, "store": reply.store_address,
        "checkpoint_root": reply.checkpoint_root, "task_managers": task_managers, "processes": processes,
    })
}
