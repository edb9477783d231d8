//! Functions on texts. Positions count characters from 1, as in SQL.

use std::sync::Arc;

use arrow::array::{BooleanArray, Int32Array, StringBuilder};
use arrow::datatypes::{DataType, Int32Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ColumnarValue;
use regex::Regex;

use crate::definition::{Arguments, Definition, Eval, Nulls, Param, Returns, Signature, Text};

const STRING: Returns = Returns::Always(DataType::Utf8);
const INT: Returns = Returns::Always(DataType::Int32);
const BOOLEAN: Returns = Returns::Always(DataType::Boolean);

const fn function(
    name: &'static str,
    aliases: &'static [&'static str],
    params: &'static [Param],
    required: usize,
    returns: Returns,
    nulls: Nulls,
    eval: Eval,
) -> Definition {
    let signature = Signature { params, required, variadic: false, returns };
    Definition { name, aliases, signature, nulls, volatile: false, eval }
}

const fn all_texts(name: &'static str, required: usize, nulls: Nulls, eval: Eval) -> Definition {
    let signature = Signature { params: &[Param::Text], required, variadic: true, returns: STRING };
    Definition { name, aliases: &[], signature, nulls, volatile: false, eval }
}

const TEXT: &[Param] = &[Param::Text];
const TEXT_2: &[Param] = &[Param::Text, Param::Text];
const TEXT_3: &[Param] = &[Param::Text, Param::Text, Param::Text];
const TEXT_INT: &[Param] = &[Param::Text, Param::Int];

pub(super) const FUNCTIONS: &[Definition] = &[
    function("upper", &["ucase"], TEXT, 1, STRING, Nulls::Propagate, |a| {
        map(a, |text, out| out.push_str(&text.to_uppercase()))
    }),
    function("lower", &["lcase"], TEXT, 1, STRING, Nulls::Propagate, |a| {
        map(a, |text, out| out.push_str(&text.to_lowercase()))
    }),
    function("initcap", &[], TEXT, 1, STRING, Nulls::Propagate, |a| map(a, initcap)),
    function("reverse", &[], TEXT, 1, STRING, Nulls::Propagate, |a| map(a, |text, out| out.extend(text.chars().rev()))),
    function("char_length", &["character_length"], TEXT, 1, INT, Nulls::Propagate, char_length),
    function("ascii", &[], TEXT, 1, INT, Nulls::Propagate, |a| {
        numbers(a, |row| Some(a.text(0).ok()?.get(row)?.bytes().next().map_or(0, i32::from)))
    }),
    function("position", &[], TEXT_2, 2, INT, Nulls::Propagate, |a| {
        let (what, text) = (a.text(0)?, a.text(1)?);
        numbers(a, |row| Some(position(text.get(row)?, what.get(row)?, 1)))
    }),
    function("instr", &[], TEXT_2, 2, INT, Nulls::Propagate, |a| {
        let (text, what) = (a.text(0)?, a.text(1)?);
        numbers(a, |row| Some(position(text.get(row)?, what.get(row)?, 1)))
    }),
    function("locate", &[], &[Param::Text, Param::Text, Param::Int], 2, INT, Nulls::Propagate, locate),
    function("substring", &["substr"], &[Param::Text, Param::Int, Param::Int], 2, STRING, Nulls::Maybe, substring),
    function("left", &[], TEXT_INT, 2, STRING, Nulls::Propagate, |a| {
        let (text, count) = (a.text(0)?, a.numbers::<Int32Type>(1)?);
        texts(a, |row, out| {
            let (text, count) = (text.get(row)?, count.get(row)?);
            out.push_str(prefix(text, usize::try_from(count).unwrap_or(0)));
            Some(())
        })
    }),
    function("right", &[], TEXT_INT, 2, STRING, Nulls::Propagate, |a| {
        let (text, count) = (a.text(0)?, a.numbers::<Int32Type>(1)?);
        texts(a, |row, out| {
            let (text, count) = (text.get(row)?, usize::try_from(count.get(row)?).unwrap_or(0));
            let skipped = text.chars().count().saturating_sub(count);
            out.push_str(&text[prefix(text, skipped).len()..]);
            Some(())
        })
    }),
    function("repeat", &[], TEXT_INT, 2, STRING, Nulls::Propagate, repeat),
    function("replace", &[], TEXT_3, 3, STRING, Nulls::Propagate, replace),
    function("lpad", &[], &[Param::Text, Param::Int, Param::Text], 3, STRING, Nulls::Maybe, |a| pad(a, true)),
    function("rpad", &[], &[Param::Text, Param::Int, Param::Text], 3, STRING, Nulls::Maybe, |a| pad(a, false)),
    function("btrim", &["trim"], TEXT_2, 1, STRING, Nulls::Propagate, |a| trim(a, true, true)),
    function("ltrim", &[], TEXT_2, 1, STRING, Nulls::Propagate, |a| trim(a, true, false)),
    function("rtrim", &[], TEXT_2, 1, STRING, Nulls::Propagate, |a| trim(a, false, true)),
    function("overlay", &[], &[Param::Text, Param::Text, Param::Int, Param::Int], 3, STRING, Nulls::Propagate, overlay),
    function("split_index", &[], &[Param::Text, Param::Text, Param::Int], 3, STRING, Nulls::Maybe, split_index),
    function("regexp", &[], TEXT_2, 2, BOOLEAN, Nulls::Propagate, regexp),
    function("regexp_extract", &[], &[Param::Text, Param::Text, Param::Int], 2, STRING, Nulls::Maybe, regexp_extract),
    function("regexp_replace", &[], TEXT_3, 3, STRING, Nulls::Propagate, regexp_replace),
    function("startswith", &[], TEXT_2, 2, BOOLEAN, Nulls::Propagate, |a| {
        flags(a, |text, part| text.starts_with(part))
    }),
    function("endswith", &[], TEXT_2, 2, BOOLEAN, Nulls::Propagate, |a| flags(a, |text, part| text.ends_with(part))),
    function("chr", &[], &[Param::Long], 1, STRING, Nulls::Propagate, chr),
    all_texts("concat", 1, Nulls::Propagate, concat),
    all_texts("concat_ws", 1, Nulls::Maybe, concat_ws),
];

/// A text for each row, written into one buffer; null where `write` gives none.
fn texts(arguments: &Arguments<'_>, mut write: impl FnMut(usize, &mut String) -> Option<()>) -> Result<ColumnarValue> {
    let rows = arguments.rows_to_compute();
    let mut builder = StringBuilder::with_capacity(rows, rows * 16);
    let mut out = String::new();
    for row in 0..rows {
        out.clear();
        match write(row, &mut out) {
            Some(()) => builder.append_value(&out),
            None => builder.append_null(),
        }
    }
    arguments.finish(Arc::new(builder.finish()))
}

fn map(arguments: &Arguments<'_>, f: impl Fn(&str, &mut String)) -> Result<ColumnarValue> {
    let text = arguments.text(0)?;
    texts(arguments, |row, out| {
        f(text.get(row)?, out);
        Some(())
    })
}

fn numbers(arguments: &Arguments<'_>, f: impl Fn(usize) -> Option<i32>) -> Result<ColumnarValue> {
    let values: Int32Array = (0..arguments.rows_to_compute()).map(f).collect();
    arguments.finish(Arc::new(values))
}

fn flags(arguments: &Arguments<'_>, f: impl Fn(&str, &str) -> bool) -> Result<ColumnarValue> {
    let (left, right) = (arguments.text(0)?, arguments.text(1)?);
    let values: BooleanArray =
        (0..arguments.rows_to_compute()).map(|row| Some(f(left.get(row)?, right.get(row)?))).collect();
    arguments.finish(Arc::new(values))
}

/// The first characters of a text.
fn prefix(text: &str, characters: usize) -> &str {
    if text.is_ascii() {
        return &text[..characters.min(text.len())];
    }
    text.char_indices().nth(characters).map_or(text, |(at, _)| &text[..at])
}

fn length(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}

/// The position of a part from a position on; 0 if it does not occur.
fn position(text: &str, what: &str, from: usize) -> i32 {
    let skipped = prefix(text, from.saturating_sub(1)).len();
    match text[skipped..].find(what) {
        Some(at) => (length(&text[..skipped + at]) + 1) as i32,
        None => 0,
    }
}

fn initcap(text: &str, out: &mut String) {
    let mut within = false;
    for character in text.chars() {
        if within {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        within = character.is_alphanumeric();
    }
}

fn char_length(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let text = arguments.text(0)?;
    numbers(arguments, |row| Some(length(text.get(row)?) as i32))
}

fn locate(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (what, text) = (arguments.text(0)?, arguments.text(1)?);
    if arguments.values.len() < 3 {
        return numbers(arguments, |row| Some(position(text.get(row)?, what.get(row)?, 1)));
    }
    let from = arguments.numbers::<Int32Type>(2)?;
    numbers(arguments, |row| {
        let from = usize::try_from(from.get(row)?).unwrap_or(0);
        Some(if from == 0 { 0 } else { position(text.get(row)?, what.get(row)?, from) })
    })
}

fn substring(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (text, from) = (arguments.text(0)?, arguments.numbers::<Int32Type>(1)?);
    let count = match arguments.values.len() {
        2 => None,
        _ => Some(arguments.numbers::<Int32Type>(2)?),
    };
    texts(arguments, |row, out| {
        let (text, from) = (text.get(row)?, from.get(row)?);
        let count = match &count {
            None => i32::MAX,
            Some(count) => count.get(row)?,
        };
        // A negative length is NULL; a negative start counts from the end.
        let count = usize::try_from(count).ok()?;
        let start = match from {
            1.. => from as usize - 1,
            0 => 0,
            _ => match length(text).checked_sub(from.unsigned_abs() as usize) {
                Some(start) => start,
                None => return Some(()),
            },
        };
        let rest = &text[prefix(text, start).len()..];
        out.push_str(prefix(rest, count));
        Some(())
    })
}

/// Texts of functions that multiply their input end here.
const LENGTH_MAX: usize = 64 << 20;

fn repeat(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (text, count) = (arguments.text(0)?, arguments.numbers::<Int32Type>(1)?);
    let mut too_long = false;
    let result = texts(arguments, |row, out| {
        let (text, count) = (text.get(row)?, usize::try_from(count.get(row)?).unwrap_or(0));
        if text.len().saturating_mul(count) > LENGTH_MAX {
            too_long = true;
            return None;
        }
        out.extend(std::iter::repeat_n(text, count));
        Some(())
    })?;
    if too_long { exec_err!("REPEAT makes a text of more than {LENGTH_MAX} bytes") } else { Ok(result) }
}

fn replace(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (text, from, to) = (arguments.text(0)?, arguments.text(1)?, arguments.text(2)?);
    texts(arguments, |row, out| {
        let (text, from, to) = (text.get(row)?, from.get(row)?, to.get(row)?);
        if from.is_empty() {
            out.push_str(text);
            return Some(());
        }
        let mut last = 0;
        for (at, found) in text.match_indices(from) {
            out.push_str(&text[last..at]);
            out.push_str(to);
            last = at + found.len();
        }
        out.push_str(&text[last..]);
        Some(())
    })
}

fn pad(arguments: &Arguments<'_>, left: bool) -> Result<ColumnarValue> {
    let (text, width, with) = (arguments.text(0)?, arguments.numbers::<Int32Type>(1)?, arguments.text(2)?);
    let mut too_long = false;
    let result = texts(arguments, |row, out| {
        let (text, with) = (text.get(row)?, with.get(row)?);
        let width = usize::try_from(width.get(row)?).ok()?;
        let present = length(text);
        if present >= width {
            out.push_str(prefix(text, width));
            return Some(());
        }
        if with.is_empty() {
            return None;
        }
        if width > LENGTH_MAX {
            too_long = true;
            return None;
        }
        if !left {
            out.push_str(text);
        }
        out.extend(with.chars().cycle().take(width - present));
        if left {
            out.push_str(text);
        }
        Some(())
    })?;
    if too_long { exec_err!("padding makes a text of more than {LENGTH_MAX} characters") } else { Ok(result) }
}

fn trim(arguments: &Arguments<'_>, start: bool, end: bool) -> Result<ColumnarValue> {
    let text = arguments.text(0)?;
    let what = if arguments.values.len() > 1 { arguments.text(1)? } else { Text::Constant(Some(" ")) };
    texts(arguments, |row, out| {
        let (mut text, what) = (text.get(row)?, what.get(row)?);
        let is_trimmed = |character: char| what.contains(character);
        if start {
            text = text.trim_start_matches(is_trimmed);
        }
        if end {
            text = text.trim_end_matches(is_trimmed);
        }
        out.push_str(text);
        Some(())
    })
}

fn overlay(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (text, with, from) = (arguments.text(0)?, arguments.text(1)?, arguments.numbers::<Int32Type>(2)?);
    let count = match arguments.values.len() {
        3 => None,
        _ => Some(arguments.numbers::<Int32Type>(3)?),
    };
    texts(arguments, |row, out| {
        let (text, with, from) = (text.get(row)?, with.get(row)?, from.get(row)?);
        let count = match &count {
            Some(count) => count.get(row)?,
            None => length(with) as i32,
        };
        let total = length(text) as i32;
        // Outside of the text nothing is replaced.
        if from <= 0 || from > total {
            out.push_str(text);
            return Some(());
        }
        let head = prefix(text, from as usize - 1);
        out.push_str(head);
        out.push_str(with);
        let kept = from.saturating_sub(1).saturating_add(count).clamp(0, total);
        out.push_str(&text[prefix(text, kept as usize).len()..]);
        Some(())
    })
}

fn split_index(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (text, separator, index) = (arguments.text(0)?, arguments.text(1)?, arguments.numbers::<Int32Type>(2)?);
    texts(arguments, |row, out| {
        let (text, separator) = (text.get(row)?, separator.get(row)?);
        let index = usize::try_from(index.get(row)?).ok()?;
        if separator.is_empty() {
            return None;
        }
        out.push_str(text.split(separator).nth(index)?);
        Some(())
    })
}

fn chr(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let codes = arguments.numbers::<arrow::datatypes::Int64Type>(0)?;
    texts(arguments, |row, out| {
        let code = codes.get(row)?;
        // Only the lowest byte counts, and negative codes give nothing.
        if code >= 0 {
            out.push(char::from((code & 0xff) as u8));
        }
        Some(())
    })
}

fn concat(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let parts = (0..arguments.values.len()).map(|index| arguments.text(index)).collect::<Result<Vec<_>>>()?;
    texts(arguments, |row, out| {
        for part in &parts {
            out.push_str(part.get(row)?);
        }
        Some(())
    })
}

/// NULLs are left out; a NULL separator gives NULL.
fn concat_ws(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let parts = (0..arguments.values.len()).map(|index| arguments.text(index)).collect::<Result<Vec<_>>>()?;
    let Some((separator, parts)) = parts.split_first() else { return exec_err!("CONCAT_WS without a separator") };
    texts(arguments, |row, out| {
        let separator = separator.get(row)?;
        for (index, part) in parts.iter().filter_map(|part| part.get(row)).enumerate() {
            if index > 0 {
                out.push_str(separator);
            }
            out.push_str(part);
        }
        Some(())
    })
}

fn compile(pattern: &str) -> Result<Regex> {
    match Regex::new(pattern) {
        Ok(regex) => Ok(regex),
        Err(error) => exec_err!("'{pattern}' is not a regular expression that Weir knows: {error}"),
    }
}

/// The regular expression of each row: compiled once if it is constant.
struct Patterns<'a> {
    texts: Text<'a>,
    constant: Option<Regex>,
}

impl<'a> Patterns<'a> {
    fn new(texts: Text<'a>) -> Result<Self> {
        let constant = match texts {
            Text::Constant(Some(pattern)) => Some(compile(pattern)?),
            Text::Constant(None) | Text::Column(_) => None,
        };
        Ok(Self { texts, constant })
    }

    fn with<T>(&self, row: usize, f: impl FnOnce(&Regex) -> T) -> Result<Option<T>> {
        match (&self.constant, self.texts.get(row)) {
            (Some(regex), _) => Ok(Some(f(regex))),
            (None, Some(pattern)) => Ok(Some(f(&compile(pattern)?))),
            (None, None) => Ok(None),
        }
    }
}

fn regexp(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (text, patterns) = (arguments.text(0)?, Patterns::new(arguments.text(1)?)?);
    let mut found = Vec::with_capacity(arguments.rows_to_compute());
    for row in 0..arguments.rows_to_compute() {
        found.push(match text.get(row) {
            Some(text) => patterns.with(row, |regex| regex.is_match(text))?,
            None => None,
        });
    }
    arguments.finish(Arc::new(BooleanArray::from(found)))
}

fn regexp_extract(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (text, patterns) = (arguments.text(0)?, Patterns::new(arguments.text(1)?)?);
    let group = match arguments.values.len() {
        2 => None,
        _ => Some(arguments.numbers::<Int32Type>(2)?),
    };
    let rows = arguments.rows_to_compute();
    let mut builder = StringBuilder::with_capacity(rows, rows * 16);
    for row in 0..rows {
        let group = match &group {
            None => Some(0),
            Some(group) => group.get(row).and_then(|group| usize::try_from(group).ok()),
        };
        let extracted = match (text.get(row), group) {
            (Some(text), Some(group)) => patterns
                .with(row, |regex| {
                    // The whole match needs no groups, which is much faster.
                    if group == 0 { regex.find(text) } else { regex.captures(text)?.get(group) }
                        .map(|found| found.as_str())
                })?
                .flatten(),
            _ => None,
        };
        builder.append_option(extracted);
    }
    arguments.finish(Arc::new(builder.finish()))
}

fn regexp_replace(arguments: &Arguments<'_>) -> Result<ColumnarValue> {
    let (text, patterns, with) = (arguments.text(0)?, Patterns::new(arguments.text(1)?)?, arguments.text(2)?);
    let rows = arguments.rows_to_compute();
    let mut builder = StringBuilder::with_capacity(rows, rows * 16);
    let constant = match with {
        Text::Constant(Some(with)) => Some(replacement(with)),
        Text::Constant(None) | Text::Column(_) => None,
    };
    for row in 0..rows {
        match (text.get(row), with.get(row)) {
            (Some(text), Some(with)) => {
                let template = match &constant {
                    Some(template) => template.as_str(),
                    None => &replacement(with),
                };
                let replaced = patterns.with(row, |regex| regex.replace_all(text, template).into_owned())?;
                builder.append_option(replaced);
            }
            _ => builder.append_null(),
        }
    }
    arguments.finish(Arc::new(builder.finish()))
}

/// Java's replacement text as the regex crate writes it: `$1` names the group 1 whatever follows, `\` quotes.
fn replacement(java: &str) -> String {
    let mut out = String::with_capacity(java.len());
    let mut characters = java.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('$') => out.push_str("$$"),
                Some(quoted) => out.push(quoted),
                None => {}
            },
            '$' if characters.peek().is_some_and(char::is_ascii_digit) => {
                out.push_str("${");
                out.extend(characters.next_if(char::is_ascii_digit));
                out.push('}');
            }
            '$' if characters.peek() == Some(&'{') => out.push('$'),
            '$' => out.push_str("$$"),
            other => out.push(other),
        }
    }
    out
}
