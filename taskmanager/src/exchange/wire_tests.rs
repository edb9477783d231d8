//! Elements through encoder, chunks and assembler.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, StringViewArray};
use weir_types::ids::{BarrierId, SnapshotId};
use weir_types::snapshot::{Barrier, SnapshotKind, StopMode};

use super::*;

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn numbers(count: i64) -> RecordBatch {
    batch(vec![("n", Arc::new(Int64Array::from_iter_values(0..count)))])
}

fn chunks(element: &Element, schema: &SchemaRef) -> Vec<Vec<pb::Chunk>> {
    let mut encoder = ipc::Encoder::new(schema.clone()).unwrap();
    encode(&mut encoder, element).unwrap().into_iter().map(Iterator::collect).collect()
}

fn assemble(chunks: Vec<pb::Chunk>) -> Result<Incoming> {
    let mut assembler = Assembler::default();
    let mut last = None;
    for chunk in chunks {
        assert!(last.is_none(), "chunks follow a whole element");
        last = assembler.push(chunk, |_| Ok(()))?;
    }
    last.ok_or_else(|| Error::internal("incomplete"))
}

fn through(element: &Element, schema: &SchemaRef) -> Vec<Element> {
    chunks(element, schema).into_iter().map(|chunks| assemble(chunks).unwrap().decode(schema).unwrap()).collect()
}

#[test]
fn control_elements_survive_in_one_chunk_each() {
    let barrier = Barrier {
        id: BarrierId(9),
        snapshot: SnapshotId::new("chk-9").unwrap(),
        kind: SnapshotKind::Checkpoint,
        triggered_at_ms: 4,
        stop: StopMode::Suspend,
        directory: "file:///x".to_owned(),
        base: Some(SnapshotId::new("chk-1").unwrap()),
    };
    let schema = numbers(1).schema();
    for element in [
        Element::Watermark(Watermark(-5)),
        Element::Watermark(Watermark::MAX),
        Element::Idle,
        Element::Barrier(barrier),
        Element::EndOfInput,
    ] {
        let through = through(&element, &schema);
        assert_eq!(format!("{through:?}"), format!("{:?}", [element]));
    }
}

#[test]
fn a_changelog_batch_keeps_its_ops() {
    let ops = ScalarBuffer::from(vec![0_u8, 1, 2, 3]);
    let element = Element::Batch(Batch { rows: numbers(4), ops: Some(ops.clone()) });
    let through = through(&element, &numbers(1).schema());
    let [Element::Batch(batch)] = through.as_slice() else { panic!("{through:?}") };
    assert_eq!((batch.rows.clone(), batch.ops.clone()), (numbers(4), Some(ops)));
}

#[test]
fn a_large_batch_is_cut_into_chunks_of_at_most_a_mebibyte() {
    let rows = numbers(400_000);
    let sent = chunks(&Element::Batch(Batch::inserts(rows.clone())), &rows.schema());
    let [sent] = sent.as_slice() else { panic!("{} elements", sent.len()) };
    let sizes: Vec<usize> = sent.iter().map(|chunk| chunk.data.iter().map(Bytes::len).sum()).collect();
    let total: usize = sizes.iter().sum();
    assert_eq!(sizes.len(), 4);
    assert_eq!(sizes[..3], [CHUNK_BYTES; 3]);
    assert!((3_200_000..3_201_000).contains(&total), "{total}");
    let Element::Batch(received) = assemble(sent.clone()).unwrap().decode(&rows.schema()).unwrap() else { panic!() };
    assert_eq!(received.rows, rows);
}

#[test]
fn an_oversized_batch_is_split_by_rows_and_an_oversized_row_is_refused() {
    let long = "x".repeat(3 << 20);
    let strings = StringViewArray::from_iter_values(std::iter::repeat_n(long.as_str(), 7));
    let rows = batch(vec![("s", Arc::new(strings) as ArrayRef)]);
    let ops = ScalarBuffer::from(vec![0_u8, 1, 2, 3, 0, 1, 2]);
    let parts = through(&Element::Batch(Batch { rows: rows.clone(), ops: Some(ops.clone()) }), &rows.schema());
    assert!(parts.len() > 1);
    let mut seen = 0;
    for part in parts {
        let Element::Batch(part) = part else { panic!("{part:?}") };
        let length = part.rows.num_rows();
        assert_eq!(part.rows, rows.slice(seen, length));
        assert_eq!(part.ops, Some(ops.slice(seen, length)));
        seen += length;
    }
    assert_eq!(seen, 7);

    let huge = batch(vec![("s", Arc::new(StringArray::from(vec!["y".repeat(65 << 20)])) as ArrayRef)]);
    let mut encoder = ipc::Encoder::new(huge.schema()).unwrap();
    let error = encode(&mut encoder, &Element::Batch(Batch::inserts(huge))).unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
}

#[test]
fn chunks_that_do_not_add_up_are_refused() {
    let schema = numbers(1).schema();
    let sent = chunks(&Element::Batch(Batch::inserts(numbers(400_000))), &schema).remove(0);
    let header = |bytes, kind| pb::Chunk { element: Some(pb::Element { bytes, kind }), data: vec![] };
    let end = || Some(pb::element::Kind::EndOfInput(pb::Nothing {}));
    let watermark = pb::element::Kind::WatermarkMs(1);
    let mut longer = sent.clone();
    longer[3].data.push(Bytes::from_static(b"more"));
    for (what, chunks) in [
        ("a chunk without an element", vec![sent[1].clone()]),
        ("an element without a kind", vec![header(0, None)]),
        ("an element within another", vec![sent[0].clone(), sent[0].clone()]),
        ("an impossible size", vec![header(u64::MAX, end())]),
        ("an empty chunk", vec![sent[0].clone(), pb::Chunk { element: None, data: vec![] }]),
        ("more bytes than claimed", longer),
    ] {
        assert_eq!(assemble(chunks).unwrap_err().code, Code::InvalidArgument, "{what}");
    }
    let data = vec![Bytes::from_static(b"x")];
    let chunk = pb::Chunk { element: Some(pb::Element { bytes: 1, kind: Some(watermark) }), data };
    assert_eq!(assemble(vec![chunk]).unwrap().decode(&schema).unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn ops_that_do_not_fit_are_refused() {
    let schema = numbers(1).schema();
    for (ops, claimed) in [(vec![0_u8, 4], 2), (vec![0], 1), (vec![0, 1], 1), (vec![0, 1], u64::MAX)] {
        let batch = Batch { rows: numbers(2), ops: Some(ScalarBuffer::from(ops)) };
        let mut sent = chunks(&Element::Batch(batch), &schema).remove(0);
        sent[0].element.as_mut().unwrap().kind = Some(pb::element::Kind::Batch(pb::Batch { op_bytes: claimed }));
        assert_eq!(assemble(sent).unwrap().decode(&schema).unwrap_err().code, Code::InvalidArgument);
    }
}

#[test]
fn an_element_without_credit_takes_no_memory() {
    let chunk = chunks(&Element::Batch(Batch::inserts(numbers(10))), &numbers(1).schema()).remove(0).remove(0);
    let mut assembler = Assembler::default();
    let refused = assembler.push(chunk.clone(), |_| Err(Error::invalid("no credit"))).unwrap_err();
    assert_eq!(refused.message, "no credit");
    assert!(assembler.0.is_none());
}
