//! `weir group list|describe`.

use serde_json::json;
use weir_types::Result;
use weir_types::group::GroupInfo;

use crate::args::{Global, GroupCommand};
use crate::{connect, output, time};

/// Runs a `group` command.
pub(crate) async fn run(global: &Global, command: GroupCommand) -> Result<()> {
    let store = connect::store(global).await?;
    match command {
        GroupCommand::List => {
            let groups = store.list_groups(None).await?;
            if global.json {
                return output::print_json(&json!(groups));
            }
            let rows = groups.iter().map(|group| {
                let outstanding = group.checkpoints.iter().filter(|checkpoint| !checkpoint.missing.is_empty()).count();
                vec![
                    group.name.to_string(),
                    group.stream.to_string(),
                    group.mode.to_string(),
                    group.members.len().to_string(),
                    format!("{outstanding}/{}", group.limits.max_outstanding_checkpoints),
                ]
            });
            output::print(&output::table(&["group", "stream", "mode", "readers", "outstanding"], &[3, 4], rows))
        }
        GroupCommand::Describe { group } => {
            let group = store.describe_group(&group.parse()?).await?;
            if global.json { output::print_json(&json!(group)) } else { output::print(&text(&group)) }
        }
    }
}

fn text(group: &GroupInfo) -> String {
    let mut text = format!("{} reads {} ({})\n\n", group.name, group.stream, group.mode);
    let owner = |partition| {
        let member = group.members.iter().find(|member| member.partitions.contains(partition));
        member.map_or_else(|| "-".to_owned(), |member| member.reader.to_string())
    };
    let rows = group
        .positions
        .0
        .iter()
        .map(|(partition, offset)| vec![partition.to_string(), offset.to_string(), owner(partition)]);
    text += &output::table(&["partition", "position", "reader"], &[0, 1], rows);
    if !group.checkpoints.is_empty() {
        let rows = group.checkpoints.iter().map(|checkpoint| {
            vec![
                checkpoint.id.to_string(),
                checkpoint.owner.to_string(),
                checkpoint.state.to_string(),
                time::moment(checkpoint.started_at_ms),
                checkpoint.missing.len().to_string(),
            ]
        });
        text += "\n";
        text += &output::table(&["checkpoint", "owner", "state", "started", "missing"], &[4], rows);
    }
    text
}
