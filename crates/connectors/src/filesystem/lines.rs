//! Cuts a stream of bytes into records: lines, or for CSV lines outside of quotes.
//!
//! Blank lines are no records. A record's number counts records before it in the file, so that it means the same however
//! the bytes arrive.

use std::io::Read;

use weir_types::{Code, Error, Result};

use crate::format::RECORD_BYTES_MAX;

/// Bytes of records in a chunk, about.
const CHUNK_BYTES: usize = 512 << 10;
const READ_BYTES: usize = 64 << 10;

/// Some records of a file, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
    /// Where each record starts and ends in `bytes`, and its line in the file, from 1.
    records: Vec<(usize, usize, u64)>,
}

impl Chunk {
    pub(super) fn records(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.records.iter().map(|(start, end, _)| &self.bytes[*start..*end])
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The line on which a record starts.
    pub(super) fn line(&self, index: usize) -> u64 {
        self.records.get(index).map_or(0, |(_, _, line)| *line)
    }
}

/// How records are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// A line each.
    Lines,
    /// CSV with this delimiter: line breaks within quotes belong to the record.
    Csv { delimiter: u8 },
}

/// Where a CSV reader is within a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    QuoteInQuoted,
}

/// Reads records from bytes.
pub(super) struct RecordReader<R> {
    input: R,
    framing: Framing,
    /// Read, not cut yet: `buffer[start..]`, of which `buffer[..seen]` was looked at.
    buffer: Vec<u8>,
    start: usize,
    seen: usize,
    state: State,
    /// The line at `start`, and at `seen`.
    start_line: u64,
    seen_line: u64,
    /// Records to pass over: the header and those before the position to read from.
    skip: u64,
    ended: bool,
}

impl<R: Read> RecordReader<R> {
    /// Reads on after the first `skip` records.
    pub(super) fn new(input: R, framing: Framing, skip: u64) -> Self {
        Self {
            input,
            framing,
            buffer: Vec::new(),
            start: 0,
            seen: 0,
            state: State::FieldStart,
            start_line: 1,
            seen_line: 1,
            skip,
            ended: false,
        }
    }

    /// The next records, at most `records_max`; none at the end.
    ///
    /// # Errors
    /// `IO` if the bytes cannot be read, `MALFORMED_RECORD` for a record of monstrous length.
    pub(super) fn next_chunk(&mut self, records_max: usize) -> Result<Option<Chunk>> {
        let mut chunk = Chunk::default();
        while chunk.len() < records_max && chunk.bytes.len() < CHUNK_BYTES {
            let line = self.start_line;
            if let Some((start, end)) = self.cut() {
                if start == end {
                    continue;
                }
                if self.skip > 0 {
                    self.skip -= 1;
                    continue;
                }
                let at = chunk.bytes.len();
                chunk.bytes.extend_from_slice(&self.buffer[start..end]);
                chunk.records.push((at, chunk.bytes.len(), line));
            } else if self.ended {
                break;
            } else {
                self.fill()?;
            }
        }
        Ok((chunk.len() > 0).then_some(chunk))
    }

    /// Cuts off the next line, or record, that is complete. Returns its place in the buffer without its line break.
    fn cut(&mut self) -> Option<(usize, usize)> {
        let unseen = &self.buffer[self.seen..];
        let end = match self.framing {
            Framing::Lines => unseen.iter().position(|byte| *byte == b'\n').inspect(|_| self.seen_line += 1),
            Framing::Csv { delimiter } => {
                let (state, line) = (&mut self.state, &mut self.seen_line);
                unseen.iter().position(|byte| {
                    *line += u64::from(*byte == b'\n');
                    *state = state.after(*byte, delimiter);
                    *byte == b'\n' && *state == State::FieldStart
                })
            }
        };
        let (end, next) = match end {
            Some(place) => (self.seen + place, self.seen + place + 1),
            // The last line may lack its line break.
            None if self.ended && self.start < self.buffer.len() => (self.buffer.len(), self.buffer.len()),
            None => {
                self.seen = self.buffer.len();
                return None;
            }
        };
        let start = self.start;
        (self.start, self.seen, self.start_line) = (next, next, self.seen_line);
        let has_return = end > start && self.buffer[end - 1] == b'\r';
        Some((start, if has_return { end - 1 } else { end }))
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..self.start);
        self.seen -= self.start;
        self.start = 0;
        let length = self.buffer.len();
        if length > RECORD_BYTES_MAX {
            return Err(Error::new(
                Code::MalformedRecord,
                format!("the record at line {} is too long", self.start_line),
            )
            .with_detail(format!("It has more than {RECORD_BYTES_MAX} bytes."))
            .with_hint("Look for a missing line break, or in CSV a missing quote."));
        }
        self.buffer.resize(length + READ_BYTES, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[length..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let read = read.map_err(|error| Error::io(format!("cannot read on at line {}", self.seen_line), &error));
        self.buffer.truncate(length + *read.as_ref().unwrap_or(&0));
        self.ended = read? == 0;
        Ok(())
    }
}

impl State {
    /// As every CSV reader goes: a quote opens only at the start of a field, and two within quotes stand for one.
    fn after(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (State::Quoted, b'"') => State::QuoteInQuoted,
            (State::Quoted, _) => State::Quoted,
            (State::QuoteInQuoted, b'"') => State::Quoted,
            (State::FieldStart, b'"') => State::Quoted,
            (_, b'\n') => State::FieldStart,
            (_, byte) if byte == delimiter => State::FieldStart,
            _ => State::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives bytes in pieces of the given lengths, over and over.
    struct Pieces<'a> {
        bytes: &'a [u8],
        lengths: std::iter::Cycle<std::vec::IntoIter<usize>>,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let length = self.lengths.next().unwrap().min(out.len()).min(self.bytes.len());
            let (now, later) = self.bytes.split_at(length);
            out[..length].copy_from_slice(now);
            self.bytes = later;
            Ok(length)
        }
    }

    fn read(text: &str, framing: Framing, skip: u64, lengths: Vec<usize>, records_max: usize) -> Vec<(u64, String)> {
        let pieces = Pieces { bytes: text.as_bytes(), lengths: lengths.into_iter().cycle() };
        let mut reader = RecordReader::new(pieces, framing, skip);
        let mut found = Vec::new();
        while let Some(chunk) = reader.next_chunk(records_max).unwrap() {
            assert!(chunk.len() <= records_max);
            for (index, record) in chunk.records().enumerate() {
                found.push((chunk.line(index), String::from_utf8(record.to_vec()).unwrap()));
            }
        }
        found
    }

    fn check(text: &str, framing: Framing, expected: &[(u64, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(line, record)| (*line, (*record).to_owned())).collect();
        for lengths in [vec![1], vec![2, 3], vec![1000]] {
            for records_max in [1, 2, 100] {
                assert_eq!(read(text, framing, 0, lengths.clone(), records_max), expected);
                for skip in 0..=expected.len() {
                    assert_eq!(read(text, framing, skip as u64, lengths.clone(), records_max), expected[skip..]);
                }
            }
        }
    }

    #[test]
    fn lines_are_records_and_blank_lines_are_not() {
        check("a\nbb\r\n\n\r\nc", Framing::Lines, &[(1, "a"), (2, "bb"), (5, "c")]);
        check("a\n", Framing::Lines, &[(1, "a")]);
        check("", Framing::Lines, &[]);
        check("\n\n", Framing::Lines, &[]);
        check("\"a\nb\n", Framing::Lines, &[(1, "\"a"), (2, "b")]);
    }

    #[test]
    fn line_breaks_in_quotes_belong_to_the_record() {
        let csv = Framing::Csv { delimiter: b';' };
        check("a;\"b\nc\";d\ne;f", csv, &[(1, "a;\"b\nc\";d"), (3, "e;f")]);
        check("\"x\"\"\n\"\"y\"\nz\n", csv, &[(1, "\"x\"\"\n\"\"y\""), (3, "z")]);
        // A quote within a plain field is a character like any other.
        check("5\" disk;\"q\"\nnext\n", csv, &[(1, "5\" disk;\"q\""), (2, "next")]);
        check("\"never closed\nrest", csv, &[(1, "\"never closed\nrest")]);
    }

    #[test]
    fn a_monstrous_record_is_refused() {
        let mut reader = RecordReader::new(std::io::repeat(b'x'), Framing::Lines, 0);
        let error = reader.next_chunk(1).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::MalformedRecord, "the record at line 1 is too long"));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "[a\"\\n\\r,]{0,60}",
            lengths in prop::collection::vec(1_usize..9, 1..5),
            records_max in 1_usize..5,
        ) {
            for framing in [Framing::Lines, Framing::Csv { delimiter: b',' }] {
                let whole = read(&text, framing, 0, vec![1 << 20], 1 << 20);
                prop_assert_eq!(&read(&text, framing, 0, lengths.clone(), records_max), &whole);
                let skip = whole.len() / 2;
                prop_assert_eq!(&read(&text, framing, skip as u64, lengths.clone(), records_max), &whole[skip..]);
            }
        }
    }
}
