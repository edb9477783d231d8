//! What processes remember of snapshots.

use weir_types::event::{LogEvent, Recollection};

use crate::pb::diagnostics::v1 as pb;

impl From<LogEvent> for pb::Event {
    fn from(event: LogEvent) -> Self {
        let LogEvent { at_us, level, message, fields } = event;
        let fields = fields.into_iter().map(|(name, value)| pb::Field { name, value }).collect();
        Self { at_us, level, message, fields }
    }
}

impl From<pb::Event> for LogEvent {
    fn from(event: pb::Event) -> Self {
        let pb::Event { at_us, level, message, fields } = event;
        let fields = fields.into_iter().map(|pb::Field { name, value }| (name, value)).collect();
        Self { at_us, level, message, fields }
    }
}

impl From<Recollection> for pb::SnapshotEventsReply {
    fn from(recollection: Recollection) -> Self {
        let Recollection { now_us, complete_since_us, events } = recollection;
        Self { now_us, complete_since_us, events: events.into_iter().map(Into::into).collect() }
    }
}

impl From<pb::SnapshotEventsReply> for Recollection {
    fn from(reply: pb::SnapshotEventsReply) -> Self {
        let pb::SnapshotEventsReply { now_us, complete_since_us, events } = reply;
        Self { now_us, complete_since_us, events: events.into_iter().map(Into::into).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recollections_survive_the_wire() {
        let event = LogEvent {
            at_us: 7,
            level: "WARN".to_owned(),
            message: "snapshot failed".to_owned(),
            fields: vec![("code".to_owned(), "TIMEOUT".to_owned()), ("a".to_owned(), String::new())],
        };
        let recollection = Recollection { now_us: 9, complete_since_us: 3, events: vec![event] };
        assert_eq!(Recollection::from(pb::SnapshotEventsReply::from(recollection.clone())), recollection);
    }
}
