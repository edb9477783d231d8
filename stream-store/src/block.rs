//! Blocks of records: the unit that is appended, stored, and read.
//!
//! A block of the `bytes` format is columnar: fixed-width event times and end positions come first, then all keys, then
//! all values, each back to back. Reading a record is two loads and a slice, nothing is allocated per record, and all
//! values of a block are one contiguous slice. `docs/stream-store.md` gives the layout.
//!
//! A block in memory has been checked: its checksum, its counts and its positions. Only then does it exist.

use bytes::{BufMut, Bytes, BytesMut};
use weir_types::store::RecordFormat;
use weir_types::{Code, Error, Result};

const VERSION: u8 = 1;
const HEADER_LEN: usize = 8;
const FLAG_KEYS: u8 = 1;
const FLAG_SPARSE_KEYS: u8 = 2;
const FLAG_TIMES: u8 = 4;
const NO_TIME: i64 = i64::MIN;

/// The largest block that a store takes, in bytes of payload.
pub const MAX_BLOCK_BYTES: usize = 8 << 20;

/// A checked block of records; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBlock {
    format: RecordFormat,
    record_count: u32,
    max_event_time_ms: Option<i64>,
    crc: u32,
    payload: Bytes,
}

impl RecordBlock {
    /// Checks a block that came from a peer: checksum, record count, positions.
    ///
    /// # Errors
    /// `CORRUPT` if the checksum does not match, `MALFORMED_RECORD` if the payload is not such a block.
    pub fn check(
        format: RecordFormat,
        record_count: u32,
        max_event_time_ms: Option<i64>,
        crc: u32,
        payload: Bytes,
    ) -> Result<Self> {
        if payload.len() > MAX_BLOCK_BYTES {
            return Err(Error::invalid(format!("a block of {} bytes is too large", payload.len()))
                .with_hint(format!("Blocks hold at most {MAX_BLOCK_BYTES} bytes.")));
        }
        if crc32c::crc32c(&payload) != crc {
            return Err(Error::new(Code::Corrupt, "the block was damaged on its way: its checksum does not match"));
        }
        let counted = match format {
            RecordFormat::Bytes => Records::parse(&payload)?.len() as u32,
            RecordFormat::Arrow => crate::arrow_block::row_count(&payload)?,
        };
        if counted != record_count || counted == 0 {
            return Err(malformed(format!("the block holds {counted} records where {record_count} were announced")));
        }
        Ok(Self { format, record_count, max_event_time_ms, crc, payload })
    }

    /// A block whose bytes this process made or has checked already.
    pub(crate) fn from_checked_parts(
        format: RecordFormat,
        record_count: u32,
        max_event_time_ms: Option<i64>,
        crc: u32,
        payload: Bytes,
    ) -> Self {
        Self { format, record_count, max_event_time_ms, crc, payload }
    }

    /// How the payload is encoded.
    pub fn format(&self) -> RecordFormat {
        self.format
    }

    /// Number of records (rows), at least one.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// The greatest event time of its records, if any has one.
    pub fn max_event_time_ms(&self) -> Option<i64> {
        self.max_event_time_ms
    }

    /// CRC32C of the payload.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// The encoded records.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The records of a block of the `bytes` format, borrowed from it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a block of Arrow rows; `MALFORMED_RECORD` if the producer wrote nonsense.
    pub fn records(&self) -> Result<Records<'_>> {
        match self.format {
            RecordFormat::Bytes => Records::parse(&self.payload),
            RecordFormat::Arrow => Err(Error::invalid("the block holds Arrow rows, not bytes records")
                .with_hint("Read the stream with the 'arrow' format.")),
        }
    }
}

/// One record, borrowed from its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: &'a [u8],
    /// Its event time in milliseconds since the epoch.
    pub event_time_ms: Option<i64>,
}

/// The records of a block of the `bytes` format: random access without copying.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    times: Option<&'a [[u8; 8]]>,
    value_ends: &'a [[u8; 4]],
    key_ends: Option<&'a [[u8; 4]]>,
    key_bits: Option<&'a [u8]>,
    keys: &'a [u8],
    values: &'a [u8],
}

impl<'a> Records<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self> {
        let [VERSION, flags, 0, 0, c0, c1, c2, c3, ..] = *payload else {
            return Err(malformed("the block's header is of a version unknown to this build"));
        };
        if flags & !(FLAG_KEYS | FLAG_SPARSE_KEYS | FLAG_TIMES) != 0 {
            return Err(malformed("the block's header has flags unknown to this build"));
        }
        let count = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
        let mut rest = &payload[HEADER_LEN..];
        let times = section::<8>(&mut rest, count, flags & FLAG_TIMES != 0)?;
        let value_ends = section::<4>(&mut rest, count, true)?.unwrap_or_default();
        let key_ends = section::<4>(&mut rest, count, flags & FLAG_KEYS != 0)?;
        let bits = section::<1>(&mut rest, count.div_ceil(8), flags & FLAG_SPARSE_KEYS != 0)?;
        let keys_len = match key_ends {
            Some(ends) => last_of_ascending(ends)?,
            None => 0,
        };
        let values_len = last_of_ascending(value_ends)?;
        if rest.len() != keys_len + values_len {
            return Err(malformed("the block's length does not match its records"));
        }
        let (keys, values) = rest.split_at(keys_len);
        Ok(Self { times, value_ends, key_ends, key_bits: bits.map(|bits| bits.as_flattened()), keys, values })
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.value_ends.len()
    }

    /// Whether there are none, which a checked block never has.
    pub fn is_empty(&self) -> bool {
        self.value_ends.is_empty()
    }

    /// The record at `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<Record<'a>> {
        let value = self.value_range(index)?;
        Some(Record { key: self.key(index), value: &self.values[value], event_time_ms: self.event_time_ms(index) })
    }

    /// The key of the record at `index`.
    pub fn key(&self, index: usize) -> Option<&'a [u8]> {
        let ends = self.key_ends?;
        if self.key_bits.is_some_and(|bits| bits[index / 8] & (1 << (index % 8)) == 0) {
            return None;
        }
        let end = u32::from_le_bytes(*ends.get(index)?) as usize;
        let start = index.checked_sub(1).map_or(0, |before| u32::from_le_bytes(ends[before]) as usize);
        Some(&self.keys[start..end])
    }

    /// The event time of the record at `index`.
    pub fn event_time_ms(&self, index: usize) -> Option<i64> {
        let time = i64::from_le_bytes(*self.times?.get(index)?);
        (time != NO_TIME).then_some(time)
    }

    /// Where the value of the record at `index` lies in [`Records::values`].
    pub fn value_range(&self, index: usize) -> Option<std::ops::Range<usize>> {
        let end = u32::from_le_bytes(*self.value_ends.get(index)?) as usize;
        let start = index.checked_sub(1).map_or(0, |before| u32::from_le_bytes(self.value_ends[before]) as usize);
        Some(start..end)
    }

    /// All values, back to back.
    pub fn values(&self) -> &'a [u8] {
        self.values
    }

    /// The records of `range`, in order.
    pub fn iter_range(self, range: std::ops::Range<usize>) -> impl ExactSizeIterator<Item = Record<'a>> + use<'a> {
        let range = range.start.min(self.len())..range.end.min(self.len());
        range.map(move |index| {
            let value = self.value_range(index).unwrap_or_default();
            Record { key: self.key(index), value: &self.values[value], event_time_ms: self.event_time_ms(index) }
        })
    }

    /// All records, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = Record<'a>> + use<'a> {
        self.iter_range(0..self.len())
    }
}

fn malformed(message: impl Into<String>) -> Error {
    Error::new(Code::MalformedRecord, message)
}

fn section<'a, const N: usize>(rest: &mut &'a [u8], count: usize, present: bool) -> Result<Option<&'a [[u8; N]]>> {
    if !present {
        return Ok(None);
    }
    let taken = count.checked_mul(N).and_then(|len| rest.split_at_checked(len));
    let Some((bytes, behind)) = taken else { return Err(malformed("the block ends within its positions")) };
    *rest = behind;
    Ok(Some(bytes.as_chunks::<N>().0))
}

fn last_of_ascending(ends: &[[u8; 4]]) -> Result<usize> {
    let mut last = 0;
    let mut ascending = true;
    for end in ends {
        let end = u32::from_le_bytes(*end);
        ascending &= end >= last;
        last = end;
    }
    if !ascending {
        return Err(malformed("the block's positions are not ascending"));
    }
    Ok(last as usize)
}

/// Builds blocks of the `bytes` format; reusable, so that its buffers are allocated once.
#[derive(Debug, Default)]
pub struct RecordBlockBuilder {
    times: Vec<i64>,
    any_time: bool,
    value_ends: Vec<u32>,
    key_ends: Vec<u32>,
    key_bits: Vec<u8>,
    keyed: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl RecordBlockBuilder {
    /// Adds a record.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the block would exceed [`MAX_BLOCK_BYTES`]; the block is unchanged then, so that a caller
    /// may finish it and try again. A record that fails with an empty block is too large.
    pub fn push(&mut self, key: Option<&[u8]>, value: &[u8], event_time_ms: Option<i64>) -> Result<()> {
        let key_bytes = key.unwrap_or_default();
        if self.encoded_len() + key_bytes.len() + value.len() + 17 > MAX_BLOCK_BYTES {
            return Err(Error::invalid(format!("the record does not fit: a block holds {MAX_BLOCK_BYTES} bytes"))
                .with_detail(format!("key of {} bytes, value of {} bytes", key_bytes.len(), value.len())));
        }
        let index = self.value_ends.len();
        if index.is_multiple_of(8) {
            self.key_bits.push(0);
        }
        if key.is_some() {
            self.key_bits[index / 8] |= 1 << (index % 8);
            self.keyed += 1;
        }
        self.keys.extend_from_slice(key_bytes);
        self.key_ends.push(self.keys.len() as u32);
        self.values.extend_from_slice(value);
        self.value_ends.push(self.values.len() as u32);
        self.times.push(event_time_ms.unwrap_or(NO_TIME));
        self.any_time |= event_time_ms.is_some();
        Ok(())
    }

    /// Number of records so far.
    pub fn len(&self) -> usize {
        self.value_ends.len()
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.value_ends.is_empty()
    }

    /// An upper bound of the encoded length so far.
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN + self.keys.len() + self.values.len() + self.value_ends.len() * 16 + self.key_bits.len()
    }

    /// Encodes what was added and begins anew. An empty block may not be appended.
    pub fn finish(&mut self) -> RecordBlock {
        let count = self.value_ends.len();
        let mut flags = 0;
        if self.keyed > 0 {
            flags |= FLAG_KEYS;
            if self.keyed < count {
                flags |= FLAG_SPARSE_KEYS;
            }
        }
        if self.any_time {
            flags |= FLAG_TIMES;
        }
        let mut out = BytesMut::with_capacity(self.encoded_len());
        out.put_slice(&[VERSION, flags, 0, 0]);
        out.put_u32_le(count as u32);
        if self.any_time {
            self.times.iter().for_each(|time| out.put_i64_le(*time));
        }
        self.value_ends.iter().for_each(|end| out.put_u32_le(*end));
        if flags & FLAG_KEYS != 0 {
            self.key_ends.iter().for_each(|end| out.put_u32_le(*end));
        }
        if flags & FLAG_SPARSE_KEYS != 0 {
            out.put_slice(&self.key_bits);
        }
        out.put_slice(&self.keys);
        out.put_slice(&self.values);
        let max_event_time_ms = self.times.iter().copied().max().filter(|time| *time != NO_TIME);
        self.clear();
        let payload = out.freeze();
        RecordBlock {
            format: RecordFormat::Bytes,
            record_count: count as u32,
            max_event_time_ms,
            crc: crc32c::crc32c(&payload),
            payload,
        }
    }

    fn clear(&mut self) {
        self.times.clear();
        self.any_time = false;
        self.value_ends.clear();
        self.key_ends.clear();
        self.key_bits.clear();
        self.keyed = 0;
        self.keys.clear();
        self.values.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (Option<Vec<u8>>, Vec<u8>, Option<i64>);

    fn build(records: &[Owned]) -> RecordBlock {
        let mut builder = RecordBlockBuilder::default();
        for (key, value, time) in records {
            builder.push(key.as_deref(), value, *time).unwrap();
        }
        assert!(builder.encoded_len() >= builder.finish().payload().len());
        for (key, value, time) in records {
            builder.push(key.as_deref(), value, *time).unwrap();
        }
        builder.finish()
    }

    fn owned() -> impl Strategy<Value = Owned> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..9);
        (proptest::option::of(bytes()), bytes(), proptest::option::of(-3i64..1000))
    }

    proptest! {
        #[test]
        fn records_read_back_as_they_were_pushed(records in proptest::collection::vec(owned(), 1..40)) {
            let block = build(&records);
            let read: Vec<Owned> = block
                .records()
                .unwrap()
                .iter()
                .map(|record| (record.key.map(<[u8]>::to_vec), record.value.to_vec(), record.event_time_ms))
                .collect();
            prop_assert_eq!(&read, &records);
            prop_assert_eq!(block.max_event_time_ms(), records.iter().filter_map(|record| record.2).max());
            let checked = RecordBlock::check(
                RecordFormat::Bytes,
                block.record_count(),
                block.max_event_time_ms(),
                block.crc(),
                block.payload().clone(),
            );
            prop_assert_eq!(checked.unwrap(), block);
        }

        #[test]
        fn foreign_payloads_are_refused_without_panic(
            records in proptest::collection::vec(owned(), 1..9),
            at in any::<proptest::sample::Index>(),
            byte: u8,
        ) {
            let block = build(&records);
            let mut payload = block.payload().to_vec();
            let at = at.index(payload.len());
            payload[at] = byte;
            let crc = crc32c::crc32c(&payload);
            let checked = RecordBlock::check(RecordFormat::Bytes, block.record_count(), None, crc, payload.into());
            if let Ok(block) = checked {
                prop_assert_eq!(block.records().unwrap().iter().count(), records.len());
            }
        }
    }

    #[test]
    fn a_record_that_does_not_fit_leaves_the_block_as_it_was() {
        let mut builder = RecordBlockBuilder::default();
        builder.push(None, b"small", None).unwrap();
        let error = builder.push(None, &vec![0; MAX_BLOCK_BYTES], None).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        assert_eq!(builder.finish().records().unwrap().values(), b"small");
    }

    #[test]
    fn a_wrong_count_or_checksum_is_refused() {
        let block = build(&[(None, b"v".to_vec(), None)]);
        let check = |count, crc| RecordBlock::check(RecordFormat::Bytes, count, None, crc, block.payload().clone());
        assert_eq!(check(2, block.crc()).unwrap_err().code, Code::MalformedRecord);
        assert_eq!(check(1, block.crc() ^ 1).unwrap_err().code, Code::Corrupt);
    }
}
