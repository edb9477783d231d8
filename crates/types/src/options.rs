//! Option values of connectors, typed. The planner checks them with [`OptionSpec::check`] when it plans, connectors read
//! them with the methods of [`ConnectorSpec`]; both parse here, so that what was accepted can be read.

use crate::connector::{OptionKind, OptionSpec};
use crate::error::{Error, Result};
use crate::graph::ConnectorSpec;

/// Number and unit of `10 s` or `64mb`; the unit may be missing.
fn number_and_unit(text: &str) -> Option<(u64, String)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

/// A duration in milliseconds, in Flink's spelling: `10 s`, `500ms`, `1 min`; without a unit, milliseconds.
pub fn parse_duration_ms(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let factor = match unit.as_str() {
        "" | "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1,
        "s" | "sec" | "secs" | "second" | "seconds" => 1000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// A size in bytes, in Flink's spelling (powers of 1024): `64 mb`, `1g`; without a unit, bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let shift = match unit.as_str() {
        "" | "b" | "bytes" => 0,
        "k" | "kb" | "kibibytes" => 10,
        "m" | "mb" | "mebibytes" => 20,
        "g" | "gb" | "gibibytes" => 30,
        "t" | "tb" | "tebibytes" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

impl OptionSpec {
    /// Whether the option takes this value. Whether a table of that name exists is for the planner to say.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` that names the option, the value and what it takes.
    pub fn check(&self, value: &str) -> Result<()> {
        let (fits, takes) = match self.kind {
            OptionKind::Text | OptionKind::Table => (true, String::new()),
            OptionKind::Choice(words) => (words.contains(&value), format!("one of '{}'", words.join("', '"))),
            OptionKind::Integer => (value.trim().parse::<u64>().is_ok(), "an integer, zero or more".to_owned()),
            OptionKind::Boolean => (parse_boolean(value).is_some(), "'true' or 'false'".to_owned()),
            OptionKind::Duration => (parse_duration_ms(value).is_some(), "a duration such as '10 s'".to_owned()),
            OptionKind::Size => (parse_size(value).is_some(), "a size such as '64 mb'".to_owned()),
        };
        if fits {
            return Ok(());
        }
        Err(Error::invalid(format!("option '{}' does not take the value '{value}'", self.key))
            .with_detail(format!("It takes {takes}.")))
    }
}

fn parse_boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

impl ConnectorSpec {
    /// The value of an option, if it is given.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// The value of an option that must be given.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it is not.
    pub fn required(&self, key: &str) -> Result<&str> {
        self.text(key).ok_or_else(|| Error::invalid(format!("connector '{}' needs the option '{key}'", self.kind)))
    }

    /// Whether the planner may prune the scan's columns to those that are read. Columns of CSV are known by their place
    /// only, so that a CSV scan's schema is the table's physical columns, all of them and in their order.
    pub fn prunes_columns(&self) -> bool {
        self.kind.descriptor().projection_push_down && self.text("format") != Some("csv")
    }

    fn typed<T>(&self, key: &str, default: T, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let Some(value) = self.text(key) else { return Ok(default) };
        parse(value).ok_or_else(|| {
            match self.kind.descriptor().options.iter().find(|spec| spec.key == key).map(|spec| spec.check(value)) {
                Some(Err(error)) => error,
                _ => Error::invalid(format!("option '{key}' does not take the value '{value}'")),
            }
        })
    }

    /// An integer option.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the value is none.
    pub fn integer(&self, key: &str, default: u64) -> Result<u64> {
        self.typed(key, default, |text| text.trim().parse().ok())
    }

    /// A boolean option.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the value is none.
    pub fn boolean(&self, key: &str, default: bool) -> Result<bool> {
        self.typed(key, default, parse_boolean)
    }

    /// A duration option, in milliseconds.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the value is none.
    pub fn duration_ms(&self, key: &str, default: u64) -> Result<u64> {
        self.typed(key, default, parse_duration_ms)
    }

    /// A size option, in bytes.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the value is none.
    pub fn size(&self, key: &str, default: u64) -> Result<u64> {
        self.typed(key, default, parse_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::ConnectorKind;

    #[test]
    fn durations_and_sizes_are_read_as_flink_writes_them() {
        assert_eq!(parse_duration_ms("10 s"), Some(10_000));
        assert_eq!(parse_duration_ms("500ms"), Some(500));
        assert_eq!(parse_duration_ms("2 Min"), Some(120_000));
        assert_eq!(parse_duration_ms("7"), Some(7));
        assert_eq!(parse_size("64 mb"), Some(64 << 20));
        assert_eq!(parse_size("3"), Some(3));
        for bad in ["", "s", "-1 s", "1 fortnight", "99999999999999999999"] {
            assert_eq!((parse_duration_ms(bad), parse_size(bad)), (None, None), "{bad}");
        }
        assert_eq!(parse_size("99999999 tb"), None);
    }

    #[test]
    fn bad_values_are_refused_with_what_fits() {
        let spec = |key| *ConnectorKind::Filesystem.descriptor().options.iter().find(|spec| spec.key == key).unwrap();
        assert!(spec("format").check("json").is_ok());
        let error = spec("format").check("xml").unwrap_err();
        assert_eq!(
            error.to_string(),
            "INVALID_ARGUMENT: option 'format' does not take the value 'xml' (It takes one of 'json', 'csv', \
             'debezium-json'.)"
        );
        assert!(spec("json.ignore-parse-errors").check("yes").is_err());
        let connector = ConnectorSpec {
            kind: ConnectorKind::Filesystem,
            options: [("json.ignore-parse-errors".to_owned(), "maybe".to_owned())].into(),
        };
        assert!(connector.boolean("json.ignore-parse-errors", false).unwrap_err().detail.unwrap().contains("'true'"));
        assert!(connector.boolean("csv.ignore-parse-errors", true).unwrap());
    }
}
