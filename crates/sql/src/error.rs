//! Errors of the planner. Every one names line and column of the script, in its text and as [`Facts::Position`].

use sqlparser::parser::ParserError;
use sqlparser::tokenizer::{Location, Span};
use weir_types::error::Facts;
use weir_types::{Code, Error, Result};

fn at(code: Code, location: Location, message: &str) -> Error {
    let Location { line, column } = location;
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Error::new(code, format!("line {line}, column {column}: {message}"))
        .with_facts(Facts::Position { line: number(line), column: number(column) })
}

/// `INVALID_SQL` at a place.
pub(crate) fn invalid(location: Location, message: impl AsRef<str>) -> Error {
    at(Code::InvalidSql, location, message.as_ref())
}

/// `UNSUPPORTED` at a place: valid in Flink's dialect, or in SQL, but not here.
pub(crate) fn unsupported(location: Location, what: impl AsRef<str>, hint: impl Into<String>) -> Error {
    at(Code::Unsupported, location, &format!("{} is not supported", what.as_ref())).with_hint(hint)
}

/// An error of another layer, now with its place.
pub(crate) fn placed(location: Location, error: Error) -> Error {
    let mut placed = at(error.code, location, &error.message);
    placed.detail = error.detail;
    placed.hint = error.hint;
    placed
}

/// The start of a span, or `outer` where sqlparser does not know it.
pub(crate) fn start(span: Span, outer: Location) -> Location {
    if span.start.line == 0 { outer } else { span.start }
}

/// Refuses a part of the syntax tree that the planner does not consume.
pub(crate) fn refuse_if(present: bool, location: Location, what: &str, hint: &str) -> Result<()> {
    if present { Err(unsupported(location, what, hint)) } else { Ok(()) }
}

/// What sqlparser said, with its ` at Line: …, Column: …` turned into our position.
pub(crate) fn syntax(error: ParserError, fallback: Location) -> Error {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
        ParserError::RecursionLimitExceeded => {
            return invalid(fallback, "the statement is nested too deeply").with_hint("Split it with a view.");
        }
    };
    let (message, location) = split_position(&text).unwrap_or((text.as_str(), fallback));
    let mut message = message.to_owned();
    if let Some(first) = message.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    invalid(location, message)
}

fn split_position(text: &str) -> Option<(&str, Location)> {
    let (message, position) = text.rsplit_once(" at Line: ")?;
    let (line, column) = position.split_once(", Column: ")?;
    Some((message, Location { line: line.trim().parse().ok()?, column: column.trim().parse().ok()? }))
}

/// The candidate nearest to a misspelt name, if one is near.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(2);
    candidates
        .map(|candidate| (distance(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
