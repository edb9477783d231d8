//! Quantities as people write them in configuration: `64MiB`, `10s`. The unit is part of the value, never assumed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weir_types::{Error, Result};

/// A number of bytes, written `512`, `64KiB`, `16MiB`, `2GiB` (powers of 1,024) or `1KB`, `1MB`, `1GB` (powers of 1,000).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "NumberOrText")]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `n` times 1,024 bytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` times 1,024² bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The number of bytes as a length in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Exact: the largest unit that divides the number, or plain bytes.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n != 0 && n.is_multiple_of(1 << 30) => write!(f, "{}GiB", n >> 30),
            n if n != 0 && n.is_multiple_of(1 << 20) => write!(f, "{}MiB", n >> 20),
            n if n != 0 && n.is_multiple_of(1 << 10) => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}B"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!("{text:?} is not a size in bytes")).with_hint("Write, for example, 512KiB or 64MiB.")
        };
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let scale = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" | "k" => 1 << 10,
            "mib" | "m" => 1 << 20,
            "gib" | "g" => 1 << 30,
            "tib" | "t" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(scale).map(Self).ok_or_else(wrong)
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> String {
        size.to_string()
    }
}

/// A span of time, written `250us`, `10ms`, `3s`, `5min`, `2h` or `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TimeSpan(pub Duration);

impl TimeSpan {
    /// `n` milliseconds.
    pub const fn ms(n: u64) -> Self {
        Self(Duration::from_millis(n))
    }

    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }
}

/// Exact to the microsecond: the largest unit that divides the span.
impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        let units = [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1_000, "ms")];
        match units.into_iter().find(|(scale, _)| us != 0 && us.is_multiple_of(*scale)) {
            Some((scale, unit)) => write!(f, "{}{unit}", us / scale),
            None => write!(f, "{us}us"),
        }
    }
}

impl FromStr for TimeSpan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!("{text:?} is not a span of time"))
                .with_hint("Write a number with its unit, for example 200ms, 10s, 5min, 2h or 7d.")
        };
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let us_per_unit: u64 = match unit.to_ascii_lowercase().as_str() {
            "us" => 1,
            "ms" => 1_000,
            "s" | "sec" => 1_000_000,
            "min" | "m" => 60_000_000,
            "h" => 3_600_000_000,
            "d" => 86_400_000_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(us_per_unit).map(|us| Self(Duration::from_micros(us))).ok_or_else(wrong)
    }
}

impl TryFrom<String> for TimeSpan {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<TimeSpan> for String {
    fn from(span: TimeSpan) -> String {
        span.to_string()
    }
}

/// A plain number counts bytes, as users of TOML expect.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl TryFrom<NumberOrText> for ByteSize {
    type Error = Error;

    fn try_from(value: NumberOrText) -> Result<Self> {
        match value {
            NumberOrText::Number(bytes) => Ok(Self(bytes)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

/// A leading whole number and the unit after it.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print_exactly() {
        for (text, bytes, printed) in [
            ("0", 0, "0B"),
            ("512", 512, "512B"),
            ("64 KiB", 65_536, "64KiB"),
            ("1kb", 1_000, "1000B"),
            ("1536m", 1_610_612_736, "1536MiB"),
            ("2GiB", 2_147_483_648, "2GiB"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.0, size.to_string()), (bytes, printed.to_owned()), "{text}");
            assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }
        for text in ["", "MiB", "-1", "1.5GiB", "3 apples", "99999999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_parse_and_print_exactly() {
        for (text, us, printed) in [
            ("250us", 250, "250us"),
            ("10 ms", 10_000, "10ms"),
            ("90s", 90_000_000, "90s"),
            ("120s", 120_000_000, "2min"),
            ("48h", 172_800_000_000, "2d"),
        ] {
            let span: TimeSpan = text.parse().unwrap();
            assert_eq!((span.0.as_micros(), span.to_string()), (us, printed.to_owned()), "{text}");
            assert_eq!(span.to_string().parse::<TimeSpan>().unwrap(), span);
        }
        for text in ["", "10", "s", "1 fortnight"] {
            assert!(text.parse::<TimeSpan>().is_err(), "{text}");
        }
    }
}
