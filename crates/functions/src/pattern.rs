//! Java's date and time patterns (`yyyy-MM-dd HH:mm:ss.SSS`), compiled once per batch.

use datafusion::common::{Result, exec_err};

use crate::time::{Local, civil_from_days, days_from_civil};

/// A compiled pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// A letter, and how often it was repeated.
    Field(char, usize),
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// For letters that Weir does not know, and for an open quote.
    pub fn compile(text: &str) -> Result<Self> {
        let mut parts: Vec<Part> = Vec::new();
        let mut literal = String::new();
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == '\'' {
                if characters.next_if_eq(&'\'').is_some() {
                    literal.push('\'');
                    continue;
                }
                loop {
                    match characters.next() {
                        Some('\'') if characters.next_if_eq(&'\'').is_some() => literal.push('\''),
                        Some('\'') => break,
                        Some(quoted) => literal.push(quoted),
                        None => return exec_err!("the pattern '{text}' has an open quote"),
                    }
                }
            } else if character.is_ascii_alphabetic() {
                if !"yuMLdDHhkKmsSaEZXxnA".contains(character) {
                    return exec_err!("the pattern '{text}' has the unknown letter {character}");
                }
                let mut count = 1;
                while characters.next_if_eq(&character).is_some() {
                    count += 1;
                }
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Field(character, count));
            } else {
                literal.push(character);
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { parts })
    }

    /// Appends a time.
    pub fn format(&self, local: Local, out: &mut String) {
        let (year, month, day) = civil_from_days(local.days());
        let second = local.second_of_day();
        let hour = second / 3600;
        for part in &self.parts {
            let (letter, count) = match part {
                Part::Literal(text) => {
                    out.push_str(text);
                    continue;
                }
                Part::Field(letter, count) => (*letter, *count),
            };
            match letter {
                'y' | 'u' if count == 2 => pad(year.rem_euclid(100), 2, out),
                'y' | 'u' => pad(year, count, out),
                'M' | 'L' if count >= 4 => out.push_str(MONTHS[month as usize - 1]),
                'M' | 'L' if count == 3 => out.push_str(&MONTHS[month as usize - 1][..3]),
                'M' | 'L' => pad(i64::from(month), count, out),
                'd' => pad(i64::from(day), count, out),
                'D' => pad(local.days() - days_from_civil(year, 1, 1) + 1, count, out),
                'H' => pad(i64::from(hour), count, out),
                'k' => pad(i64::from(if hour == 0 { 24 } else { hour }), count, out),
                'K' => pad(i64::from(hour % 12), count, out),
                'h' => pad(i64::from((hour + 11) % 12 + 1), count, out),
                'm' => pad(i64::from(second / 60 % 60), count, out),
                's' => pad(i64::from(second % 60), count, out),
                'S' => {
                    let digits = format!("{:09}", local.nanos);
                    out.push_str(&digits[..count.min(9)]);
                    out.extend(std::iter::repeat_n('0', count.saturating_sub(9)));
                }
                'n' => pad(i64::from(local.nanos), count, out),
                'A' => pad(i64::from(second) * 1000 + i64::from(local.nanos / 1_000_000), count, out),
                'a' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
                'E' => {
                    let name = DAYS[(local.days() + 3).rem_euclid(7) as usize];
                    out.push_str(if count >= 4 { name } else { &name[..3] });
                }
                'X' => out.push('Z'),
                _ => out.push_str("+0000"),
            }
        }
    }

    /// Reads a time; parts that the pattern lacks are those of 1970-01-01 00:00:00. None if the text does not fit. An
    /// offset in the text moves the time to UTC.
    pub fn parse(&self, text: &str) -> Option<Local> {
        let mut fields = Fields { year: 1970, month: 1, day: 1, ..Fields::default() };
        let mut rest = text;
        for (index, part) in self.parts.iter().enumerate() {
            rest = match part {
                Part::Literal(literal) => rest.strip_prefix(literal.as_str())?,
                Part::Field(letter, count) => {
                    let next_is_field =
                        matches!(self.parts.get(index + 1), Some(Part::Field(letter, _)) if letter.is_alphabetic());
                    fields.read(*letter, *count, next_is_field, rest)?
                }
            };
        }
        if !rest.is_empty() {
            return None;
        }
        fields.finish()
    }
}

fn pad(value: i64, width: usize, out: &mut String) {
    if value < 0 {
        out.push('-');
    }
    let digits = value.unsigned_abs().to_string();
    out.extend(std::iter::repeat_n('0', width.saturating_sub(digits.len())));
    out.push_str(&digits);
}

#[derive(Default)]
struct Fields {
    year: i64,
    month: u32,
    day: u32,
    day_of_year: Option<u32>,
    hour: u32,
    half: Option<bool>,
    minute: u32,
    second: u32,
    nanos: u32,
    offset: i64,
}

impl Fields {
    /// Reads one field; gives the rest of the text.
    fn read<'t>(&mut self, letter: char, count: usize, next_is_field: bool, text: &'t str) -> Option<&'t str> {
        // Fields without anything between them have exactly their letters' width; others may be wider.
        let widest = if next_is_field { count } else { count.max(if letter == 'y' { 9 } else { 2 }) };
        let number = |widest: usize| -> Option<(u32, &'t str)> {
            let digits = text.bytes().take(widest).take_while(u8::is_ascii_digit).count();
            (digits >= count.min(2) && digits > 0).then_some(())?;
            Some((text[..digits].parse().ok()?, &text[digits..]))
        };
        match letter {
            'y' | 'u' => {
                let (negative, digits_from) = if text.starts_with('-') { (true, 1) } else { (false, 0) };
                let digits = text[digits_from..].bytes().take(widest).take_while(u8::is_ascii_digit).count();
                if digits < count.min(4) || digits == 0 {
                    return None;
                }
                let end = digits_from + digits;
                let value: i64 = text[digits_from..end].parse().ok()?;
                self.year = match (count, negative) {
                    (2, false) => 2000 + value,
                    (_, true) => -value,
                    (_, false) => value,
                };
                Some(&text[end..])
            }
            'M' | 'L' if count >= 3 => {
                let names = MONTHS.iter().map(|name| if count == 3 { &name[..3] } else { *name });
                let (index, length) = name_at(text, names)?;
                self.month = index + 1;
                Some(&text[length..])
            }
            'E' => {
                let names = DAYS.iter().map(|name| if count <= 3 { &name[..3] } else { *name });
                let (_, length) = name_at(text, names)?;
                Some(&text[length..])
            }
            'S' => {
                let digits = text.bytes().take(count).take_while(u8::is_ascii_digit).count();
                if digits < count {
                    return None;
                }
                let padded = format!("{:0<9}", &text[..digits.min(9)]);
                self.nanos = padded.parse().ok()?;
                Some(&text[digits..])
            }
            'a' => {
                let half = text.get(..2)?.to_ascii_uppercase();
                self.half = Some(match half.as_str() {
                    "AM" => false,
                    "PM" => true,
                    _ => return None,
                });
                Some(&text[2..])
            }
            'Z' | 'X' | 'x' => self.read_offset(text),
            'D' => {
                let (value, rest) = number(widest.max(3))?;
                self.day_of_year = Some(value);
                Some(rest)
            }
            _ => {
                let (value, rest) = number(widest)?;
                match letter {
                    'M' | 'L' => self.month = value,
                    'd' => self.day = value,
                    'H' => self.hour = value,
                    'k' => self.hour = value % 24,
                    'K' | 'h' => {
                        self.hour = value % 12;
                        self.half = self.half.or(Some(false));
                    }
                    'm' => self.minute = value,
                    's' => self.second = value,
                    _ => return None,
                }
                Some(rest)
            }
        }
    }

    fn read_offset<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        if let Some(rest) = text.strip_prefix('Z') {
            return Some(rest);
        }
        let sign = match text.as_bytes().first()? {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        let hours: i64 = text.get(1..3)?.parse().ok()?;
        let after = text.get(3..)?;
        let minutes_at = after.strip_prefix(':').unwrap_or(after);
        let (minutes, rest) = match minutes_at.get(..2).and_then(|digits| digits.parse::<i64>().ok()) {
            Some(minutes) => (minutes, &minutes_at[2..]),
            None => (0, after),
        };
        self.offset = sign * (hours * 3600 + minutes * 60);
        Some(rest)
    }

    fn finish(self) -> Option<Local> {
        let hour = match self.half {
            Some(true) => self.hour % 12 + 12,
            _ => self.hour,
        };
        let (month, day) = match self.day_of_year {
            Some(day) => {
                let (year, month, day) = civil_from_days(days_from_civil(self.year, 1, 1) + i64::from(day) - 1);
                if year != self.year {
                    return None;
                }
                (month, day)
            }
            None => (self.month, self.day),
        };
        let local = Local::from_parts((self.year, month, day), (hour, self.minute, self.second), self.nanos)?;
        Some(Local { seconds: local.seconds - self.offset, ..local })
    }
}

/// Which of these names a text starts with, in any case, and how long it is.
fn name_at<'n>(text: &str, names: impl Iterator<Item = &'n str>) -> Option<(u32, usize)> {
    (0..).zip(names).find_map(|(index, name)| {
        text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)).then_some((index, name.len()))
    })
}
