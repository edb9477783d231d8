//! What the stream store costs on this machine: building and walking blocks in memory; appending to an embedded store,
//! fsynced; reading back. `stream-store/examples/throughput.rs` puts the same beside the disk's own rate, over gRPC too.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use weir_stream_store::{RecordBlock, RecordBlockBuilder, Store, StoreConfig};
use weir_types::ids::PartitionId;
use weir_types::store::{Isolation, StreamOptions};
use weir_types::stream::{Offset, StreamName};

const RECORDS: usize = 4096;
const VALUE: [u8; 200] = [b'v'; 200];
/// Appends under way at once, over four partitions.
const UNDER_WAY: u32 = 16;

fn push_all(builder: &mut RecordBlockBuilder) {
    for i in 0..RECORDS {
        builder.push(Some(&i.to_le_bytes()), &VALUE, Some(i as i64)).unwrap();
    }
}

fn block() -> RecordBlock {
    let mut builder = RecordBlockBuilder::default();
    push_all(&mut builder);
    builder.finish()
}

fn blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("store/block");
    group.throughput(Throughput::Elements(RECORDS as u64));
    let mut builder = RecordBlockBuilder::default();
    group.bench_function("build", |b| {
        b.iter(|| {
            push_all(&mut builder);
            black_box(builder.finish())
        });
    });
    let built = block();
    group.bench_function("walk", |b| {
        b.iter(|| {
            let records = built.records().unwrap().iter();
            records.map(|record| record.value.len() + record.key.map_or(0, <[u8]>::len)).sum::<usize>()
        });
    });
    let check = || {
        let (count, time) = (built.record_count(), built.max_event_time_ms());
        RecordBlock::check(built.format(), count, time, built.crc(), built.payload().clone()).unwrap()
    };
    group.bench_function("check", |b| b.iter(check));
    group.finish();
}

fn log(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir_in(".").unwrap();
    let name: StreamName = "bench/log".parse().unwrap();
    let store = runtime.block_on(async {
        let store = Store::open(StoreConfig::at(dir.path())).unwrap();
        store.create_stream(&name, StreamOptions::new(4), false).await.unwrap();
        store
    });
    let block = block();
    let mut group = c.benchmark_group("store/log");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(u64::from(UNDER_WAY) * block.payload().len() as u64));
    group.bench_function("append, fsynced", |b| {
        let append = async || {
            let mut answers = Vec::with_capacity(UNDER_WAY as usize);
            for i in 0..UNDER_WAY {
                answers.push(store.submit(&name, PartitionId(i % 4), block.clone(), None).await.unwrap());
            }
            for answer in answers {
                black_box(answer.await.unwrap().unwrap());
            }
        };
        b.iter(|| runtime.block_on(append()));
    });
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("read a mebibyte", |b| {
        b.iter(|| {
            runtime
                .block_on(store.read(&name, PartitionId(0), Offset(0), 1 << 20, Isolation::Uncommitted, None))
                .unwrap()
        });
    });
    group.finish();
    runtime.block_on(store.close()).unwrap();
}

criterion_group!(benches, blocks, log);
criterion_main!(benches);
