//! What this process said about each snapshot, so that it can be asked for it.
//!
//! Every event of the log that has a field `snapshot` is kept, down to level debug whatever `log.level` says, in one
//! ring of bounded length and size; the oldest go first. What is older than the ring, or was said before this process
//! was started, is looked up in the process's own log files. Like the log itself, the ring belongs to the process.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterFn, LevelFilter, filter_fn};
use tracing_subscriber::layer::Context;
use weir_types::event::{LogEvent, Recollection};
use weir_types::ids::SnapshotId;

use crate::recall;

/// The field that says which snapshot an event is about.
pub(crate) const SNAPSHOT: &str = "snapshot";

/// Events that are kept.
const EVENTS_MAX: usize = 16_384;
/// Bytes of text that are kept.
const BYTES_MAX: usize = 8 << 20;
/// Longer values are cut.
const VALUE_BYTES_MAX: usize = 2_048;

static RECORDED: OnceLock<Recorded> = OnceLock::new();

struct Recorded {
    ring: Mutex<Ring>,
    /// The process's log file, if it has one.
    log_file: Option<PathBuf>,
}

/// The layer that records; and its filter, which is decided once per place in the code.
pub(crate) fn layer<S>(log_file: Option<PathBuf>) -> impl Layer<S>
where
    S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let recorded = Recorded { ring: Mutex::new(Ring::new(EVENTS_MAX, BYTES_MAX, now_us())), log_file };
    // A second subscriber in one process, as tests make it, goes on with the first one's ring.
    let _first_stays = RECORDED.set(recorded);
    Recorder.with_filter(about_snapshots())
}

fn about_snapshots() -> FilterFn<fn(&Metadata<'_>) -> bool> {
    let wanted: fn(&Metadata<'_>) -> bool =
        |metadata| *metadata.level() <= Level::DEBUG && metadata.fields().field(SNAPSHOT).is_some();
    filter_fn(wanted).with_max_level_hint(LevelFilter::DEBUG)
}

/// What this process remembers of a snapshot. Reads log files if the ring does not go back far enough.
pub fn recall(snapshot: &SnapshotId) -> Recollection {
    let now_us = now_us();
    let Some(recorded) = RECORDED.get() else {
        return Recollection { now_us, complete_since_us: now_us, events: Vec::new() };
    };
    let (since_us, mut events) = {
        let ring = recorded.ring.lock().unwrap_or_else(PoisonError::into_inner);
        (ring.complete_since_us, ring.about(snapshot))
    };
    let mut older = Vec::new();
    if let Some(path) = &recorded.log_file {
        older = recall::from_files(path, snapshot);
        older.retain(|event| event.at_us < since_us);
    }
    older.append(&mut events);
    Recollection { now_us, complete_since_us: since_us, events: older }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

struct Recorder;

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let (Some(snapshot), Some(recorded)) = (said.snapshot, RECORDED.get()) else { return };
        let mut ring = recorded.ring.lock().unwrap_or_else(PoisonError::into_inner);
        // The time is taken under the lock, so that the ring is in order of time.
        ring.push(
            snapshot,
            LogEvent {
                at_us: now_us(),
                level: event.metadata().level().to_string(),
                message: said.message,
                fields: said.fields,
            },
        );
    }
}

#[derive(Default)]
struct Said {
    snapshot: Option<String>,
    message: String,
    fields: Vec<(String, String)>,
}

impl Said {
    fn note(&mut self, field: &Field, mut value: String) {
        if value.len() > VALUE_BYTES_MAX {
            let end = (0..=VALUE_BYTES_MAX).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
            value.truncate(end);
            value.push('…');
        }
        match field.name() {
            SNAPSHOT => self.snapshot = Some(value),
            "message" => self.message = value,
            name => self.fields.push((name.to_owned(), value)),
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.note(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value.to_owned());
    }
}

/// The newest events, in the order in which they were logged.
#[derive(Debug)]
struct Ring {
    events: VecDeque<(String, LogEvent)>,
    bytes: usize,
    events_max: usize,
    bytes_max: usize,
    complete_since_us: u64,
}

fn size(snapshot: &str, event: &LogEvent) -> usize {
    let fields: usize = event.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    snapshot.len() + event.message.len() + fields
}

impl Ring {
    fn new(events_max: usize, bytes_max: usize, now_us: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, events_max, bytes_max, complete_since_us: now_us }
    }

    fn push(&mut self, snapshot: String, event: LogEvent) {
        self.bytes += size(&snapshot, &event);
        self.events.push_back((snapshot, event));
        while self.events.len() > self.events_max || self.bytes > self.bytes_max {
            let Some((snapshot, event)) = self.events.pop_front() else { return };
            self.bytes -= size(&snapshot, &event);
            self.complete_since_us = event.at_us + 1;
        }
    }

    fn about(&self, snapshot: &SnapshotId) -> Vec<LogEvent> {
        let wanted = self.events.iter().filter(|(about, _)| about == snapshot.as_str());
        wanted.map(|(_, event)| event.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn id(text: &str) -> SnapshotId {
        SnapshotId::new(text).unwrap()
    }

    #[test]
    fn events_about_a_snapshot_are_kept_whatever_the_level_of_the_log() {
        let fmt = tracing_subscriber::fmt::layer().with_writer(std::io::sink);
        let subscriber = tracing_subscriber::registry().with(fmt.with_filter(LevelFilter::ERROR)).with(layer(None));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(snapshot = %"chk-events-1", subtask = %"a/1", bytes = 7_u64, text = "b c", "written");
            tracing::trace!(snapshot = %"chk-events-1", "too much");
            tracing::info!("about something else");
            tracing::info!(snapshot = Option::<&str>::None, "about no snapshot");
            tracing::warn!(snapshot = %"chk-events-2", error = %"x".repeat(VALUE_BYTES_MAX + 1), "failed");
        });
        let recalled = recall(&id("chk-events-1"));
        let [event] = recalled.events.as_slice() else { panic!("{recalled:?}") };
        assert_eq!((event.level.as_str(), event.message.as_str()), ("DEBUG", "written"));
        let fields = [("subtask", "a/1"), ("bytes", "7"), ("text", "b c")];
        assert_eq!(event.fields, fields.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(recalled.complete_since_us <= event.at_us && event.at_us <= recalled.now_us);
        let long = recall(&id("chk-events-2")).events;
        assert_eq!(long[0].field("error").map(str::len), Some(VALUE_BYTES_MAX + "…".len()));
        assert_eq!(recall(&id("chk-events-3")).events, []);
    }

    #[test]
    fn the_ring_is_bounded_in_events_and_in_bytes_and_says_how_far_back_it_goes() {
        let event = |at_us, message: &str| LogEvent {
            at_us,
            level: "INFO".to_owned(),
            message: message.to_owned(),
            fields: Vec::new(),
        };
        let mut ring = Ring::new(2, 100, 5);
        ring.push("a".to_owned(), event(10, "first"));
        ring.push("b".to_owned(), event(20, "second"));
        assert_eq!((ring.complete_since_us, ring.about(&id("a")).len()), (5, 1));
        ring.push("a".to_owned(), event(30, "third"));
        assert_eq!((ring.complete_since_us, ring.about(&id("a"))), (11, vec![event(30, "third")]));
        ring.push("c".to_owned(), event(40, &"x".repeat(98)));
        assert_eq!((ring.complete_since_us, ring.events.len(), ring.bytes), (31, 1, 99));
    }
}
