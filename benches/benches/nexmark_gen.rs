//! The Nexmark generator alone: events a second by what a scan reads. Throughput counts event numbers passed, whether or
//! not they became rows.

#![expect(clippy::expect_used, reason = "a benchmark that fails may panic")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use weir_connectors::{Connectors, nexmark};
use weir_dataflow::ConnectorFactory;
use weir_dataflow::source::{SourceContext, SourceEvent};
use weir_types::connector::ConnectorKind;
use weir_types::graph::{ConnectorSpec, PushedFilter, SourceSpec};
use weir_types::ids::Parallelism;
use weir_types::splits;

const EVENTS: u64 = 1_000_000;
const BATCH_ROWS: usize = 8192;

/// The standard schema with only these fields, `struct.field`, or whole columns.
fn scan(wanted: &[&str]) -> SchemaRef {
    let whole = nexmark::schema();
    let columns = whole.fields().iter().filter_map(|column| {
        if wanted.contains(&column.name().as_str()) {
            return Some(Field::clone(column));
        }
        let DataType::Struct(fields) = column.data_type() else { return None };
        let is_wanted = |field: &&Arc<Field>| wanted.contains(&format!("{}.{}", column.name(), field.name()).as_str());
        let kept: Fields = fields.iter().filter(is_wanted).map(Arc::clone).collect();
        (!kept.is_empty()).then(|| Field::clone(column).with_data_type(DataType::Struct(kept)))
    });
    Arc::new(Schema::new(columns.collect::<Vec<_>>()))
}

fn drain(runtime: &Runtime, spec: &SourceSpec) -> usize {
    let splits = splits::nexmark(&spec.connector, Parallelism::ONE).expect("options fit");
    let context = SourceContext {
        spec: spec.clone(),
        splits,
        batch_rows: BATCH_ROWS,
        io: runtime.handle().clone(),
        store_address: String::new(),
        name: "bench".to_owned(),
    };
    let mut source = Connectors.source(context).expect("the scan fits");
    runtime.block_on(async {
        let mut count = 0;
        loop {
            match source.next().await.expect("generating does not fail") {
                SourceEvent::Rows { rows, .. } => count += black_box(rows).num_rows(),
                SourceEvent::SplitFinished { .. } => {}
                SourceEvent::End => return count,
            }
        }
    })
}

fn generate(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let mut group = criterion.benchmark_group("nexmark");
    group.throughput(Throughput::Elements(EVENTS)).sample_size(10);
    let q0 = ["bid.auction", "bid.bidder", "bid.price", "bid.dateTime", "bid.extra"];
    let everything = ["event_type", "person", "auction", "bid"];
    let cases: [(&str, &[&str], Option<i64>, bool); 8] = [
        ("q0", &q0, Some(2), true),
        ("q0 without push-down", &everything, None, false),
        ("auction and dateTime of bids", &["bid.auction", "bid.dateTime"], Some(2), true),
        ("channel and url of bids", &["bid.channel", "bid.url"], Some(2), true),
        ("persons", &["person"], Some(0), true),
        ("auctions", &["auction"], Some(1), true),
        ("everything", &everything, None, true),
        ("count", &[], None, true),
    ];
    for (name, columns, kind, push_down) in cases {
        let options = [
            ("events.num".to_owned(), EVENTS.to_string()),
            ("first-event.rate".to_owned(), "100000".to_owned()),
            ("push-down".to_owned(), push_down.to_string()),
        ];
        let spec = SourceSpec {
            table: "nexmark".to_owned(),
            connector: ConnectorSpec { kind: ConnectorKind::Nexmark, options: BTreeMap::from(options) },
            scan_schema: scan(columns),
            metadata: BTreeMap::new(),
            pushed_filters: kind
                .map(|kind| PushedFilter { column: "event_type".to_owned(), values: vec![kind] })
                .into_iter()
                .collect(),
            calc: None,
            watermark: None,
        };
        group.bench_function(name, |bencher| bencher.iter(|| drain(&runtime, &spec)));
    }
    group.finish();
}

criterion_group!(benches, generate);
criterion_main!(benches);
