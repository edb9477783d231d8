//! Events about a snapshot out of the process's own log files, in either format.
//!
//! Whatever does not look like a line that this build would write is passed over: log files are for people, and may have
//! been edited. How much is read is bounded.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Map, Value};
use weir_types::event::LogEvent;
use weir_types::ids::SnapshotId;

use crate::events::SNAPSHOT;
use crate::rotate::numbered;

/// Bytes of log that are read at most, the newest ones.
const BYTES_MAX: u64 = 64 << 20;
/// Events that are taken at most, the newest ones.
const EVENTS_MAX: usize = 4_096;

/// What the log file and its predecessors say, oldest first.
pub(crate) fn from_files(path: &Path, snapshot: &SnapshotId) -> Vec<LogEvent> {
    let mut budget = BYTES_MAX;
    let mut found = Vec::new();
    for age in 0.. {
        let file = if age == 0 { path.to_owned() } else { numbered(path, age) };
        // Predecessors are numbered without gaps: the first that is missing ends the log.
        let Ok(opened) = File::open(file) else { break };
        let len = opened.metadata().map_or(0, |metadata| metadata.len());
        let mut events = from_file(opened, len.saturating_sub(budget), snapshot);
        events.append(&mut found);
        found = events;
        budget = budget.saturating_sub(len);
        if budget == 0 {
            break;
        }
    }
    found.split_off(found.len().saturating_sub(EVENTS_MAX))
}

fn from_file(mut file: File, start: u64, snapshot: &SnapshotId) -> Vec<LogEvent> {
    if file.seek(SeekFrom::Start(start)).is_err() {
        return Vec::new();
    }
    let mut reader = BufReader::with_capacity(1 << 16, file.take(BYTES_MAX));
    let (mut found, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return found,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        if text.contains(snapshot.as_str()) {
            found.extend(parse(text.trim_end(), snapshot));
        }
    }
}

/// The event of a line, if it is about the snapshot.
fn parse(line: &str, snapshot: &SnapshotId) -> Option<LogEvent> {
    if line.starts_with('{') { parse_json(line, snapshot) } else { parse_human(line, snapshot) }
}

fn parse_json(line: &str, snapshot: &SnapshotId) -> Option<LogEvent> {
    let mut object: Map<String, Value> = serde_json::from_str(line).ok()?;
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    if object.remove(SNAPSHOT).map(text)? != snapshot.as_str() {
        return None;
    }
    let at_us = micros(&object.remove("timestamp").map(text)?)?;
    let level = object.remove("level").map(text)?;
    let message = object.remove("message").map(text).unwrap_or_default();
    object.remove("target");
    Some(LogEvent { at_us, level, message, fields: object.into_iter().map(|(name, v)| (name, text(v))).collect() })
}

/// `2026-01-02T03:04:05.678901Z  INFO target: message name=value name="value"`.
fn parse_human(line: &str, snapshot: &SnapshotId) -> Option<LogEvent> {
    let (time, rest) = line.split_once(' ')?;
    let (level, rest) = rest.trim_start().split_once(' ')?;
    let (_target, rest) = rest.split_once(": ")?;
    let first = field_starts(rest).next();
    let (message, mut rest) = rest.split_at(first.unwrap_or(rest.len()));
    let mut fields = Vec::new();
    while let Some((name, value)) = rest.trim_start().split_once('=') {
        let quoted = value.strip_prefix('"').and_then(|inner| {
            let end = unescaped_quote(inner)?;
            let text = serde_json::from_str(value.get(..end + 2)?).ok()?;
            Some((text, value.get(end + 2..)?))
        });
        let (value, behind): (String, &str) = quoted.unwrap_or_else(|| {
            let (value, behind) = value.split_at(field_starts(value).next().unwrap_or(value.len()));
            (value.trim_end().to_owned(), behind)
        });
        fields.push((name.to_owned(), value));
        rest = behind;
    }
    let of = fields.iter().position(|(name, value)| name == SNAPSHOT && value == snapshot.as_str())?;
    fields.remove(of);
    Some(LogEvent { at_us: micros(time)?, level: level.to_owned(), message: message.trim_end().to_owned(), fields })
}

/// Where in a text fields begin: at a blank before `name=`.
fn field_starts(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.match_indices(' ').map(|(at, _)| at).filter(|at| {
        let name = text.get(at + 1..).unwrap_or_default();
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.');
        let end = name.find(|c| !legal(c)).unwrap_or(name.len());
        end > 0 && name[end..].starts_with('=')
    })
}

fn unescaped_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| match c {
        _ if escaped => {
            escaped = false;
            None
        }
        '\\' => {
            escaped = true;
            None
        }
        '"' => Some(at),
        _ => None,
    })
}

/// Microseconds since the epoch of `2026-01-02T03:04:05.678901Z`.
fn micros(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let fraction: String =
        text.get(19..)?.strip_prefix('.')?.chars().take_while(char::is_ascii_digit).take(6).collect();
    let micros = format!("{fraction:0<6}").parse::<u64>().ok()?;
    let seconds = ((days(year, month, day)? * 24 + number(11..13)?) * 60 + number(14..16)?) * 60 + number(17..19)?;
    Some(seconds * 1_000_000 + micros)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years are counted from March, so that the leap day is the last one.
    let shifted = if month <= 2 { year.checked_sub(1)? } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    (shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + day_of_year).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SnapshotId {
        SnapshotId::new("sp-1-2").unwrap()
    }

    #[test]
    fn lines_for_people_are_taken_apart() {
        let line = "2026-01-02T03:04:05.678901Z  WARN weir_jobmanager::leader: snapshot failed job=ab snapshot=sp-1-2 \
                    directory=\"/a \\\"b\\\"/c\" code=TIMEOUT error=TIMEOUT: savepoint sp-1-2 took 3 ms (1 of 2)";
        let event = parse(line, &id()).unwrap();
        assert_eq!(event.at_us, 1_767_323_045_678_901);
        assert_eq!((event.level.as_str(), event.message.as_str()), ("WARN", "snapshot failed"));
        let fields = [
            ("job", "ab"),
            ("directory", "/a \"b\"/c"),
            ("code", "TIMEOUT"),
            ("error", "TIMEOUT: savepoint sp-1-2 took 3 ms (1 of 2)"),
        ];
        assert_eq!(event.fields, fields.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn json_lines_are_taken_apart_and_foreign_ones_passed_over() {
        let line = r#"{"timestamp":"1970-01-01T00:00:01.5Z","level":"INFO","message":"m","snapshot":"sp-1-2","bytes":3,"target":"t"}"#;
        let event = parse(line, &id()).unwrap();
        assert_eq!((event.at_us, event.message.as_str()), (1_500_000, "m"));
        assert_eq!(event.fields, [("bytes".to_owned(), "3".to_owned())]);
        for line in [
            "",
            "{",
            "sp-1-2",
            "{\"snapshot\":\"sp-1-2\"}",
            "2026-01-02T03:04:05.6Z INFO t: message snapshot=sp-1-23",
            "2026-01-02T03:04:05.6Z INFO t: another's error=snapshot sp-1-2 failed",
            "0000-00-00T03:04:05.6Z INFO t: m snapshot=sp-1-2",
            "2026-01-02T03:04:05.6Z INFO t: m snapshot=\"sp-1-2",
        ] {
            assert_eq!(parse(line, &id()), None, "{line}");
        }
    }

    #[test]
    fn rotated_files_are_read_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let line = |second: u32, message: &str| {
            format!("2026-01-02T03:04:{second:02}.000000Z  INFO t: {message} snapshot=sp-1-2\n")
        };
        std::fs::write(&path, line(3, "third") + &line(4, "fourth")).unwrap();
        std::fs::write(numbered(&path, 1), line(2, "second") + "noise\n").unwrap();
        std::fs::write(numbered(&path, 2), line(1, "first")).unwrap();
        let messages: Vec<String> = from_files(&path, &id()).into_iter().map(|event| event.message).collect();
        assert_eq!(messages, ["first", "second", "third", "fourth"]);
        assert_eq!(from_files(&dir.path().join("none.log"), &id()), []);
    }
}
