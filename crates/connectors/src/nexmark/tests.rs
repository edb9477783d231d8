//! Exact properties of the generator; statistics only where a distribution is meant.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, Int32Array};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType};
use proptest::prelude::*;
use weir_types::connector::ConnectorKind;
use weir_types::graph::{ConnectorSpec, PushedFilter, SourceSpec};
use weir_types::ids::Parallelism;
use weir_types::snapshot::SplitPosition;
use weir_types::splits;

use super::*;

const BASE: i64 = 1_436_918_400_000;

fn connector(options: &[(&str, &str)]) -> ConnectorSpec {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ConnectorSpec { kind: ConnectorKind::Nexmark, options }
}

fn spec(options: &[(&str, &str)]) -> SourceSpec {
    SourceSpec {
        table: "nexmark".to_owned(),
        connector: connector(options),
        scan_schema: schema(),
        metadata: BTreeMap::new(),
        pushed_filters: Vec::new(),
        calc: None,
        watermark: None,
    }
}

fn bids_only() -> Vec<PushedFilter> {
    vec![PushedFilter { column: "event_type".to_owned(), values: vec![2] }]
}

fn source(spec: &SourceSpec, splits: Vec<SplitPosition>, batch_rows: usize) -> Result<NexmarkSource> {
    NexmarkSource::new(SourceContext {
        spec: spec.clone(),
        splits,
        batch_rows,
        io: tokio::runtime::Handle::current(),
        store_address: String::new(),
        name: "test".to_owned(),
    })
}

fn splits_of(spec: &SourceSpec, count: u32) -> Vec<SplitPosition> {
    splits::nexmark(&spec.connector, Parallelism::new(count).unwrap()).unwrap()
}

/// Everything until the end, and the number of events of every reported step.
async fn drain(source: &mut NexmarkSource) -> (Vec<RecordBatch>, Vec<(usize, u64)>) {
    let (mut batches, mut positions) = (Vec::new(), Vec::new());
    loop {
        match source.next().await.unwrap() {
            SourceEvent::Rows { split, rows, next_offset, .. } => {
                batches.push(rows);
                positions.push((split, next_offset));
            }
            SourceEvent::SplitFinished { .. } => {}
            SourceEvent::End => return (batches, positions),
        }
    }
}

async fn read(spec: &SourceSpec, split_count: u32, batch_rows: usize) -> RecordBatch {
    let mut source = source(spec, splits_of(spec, split_count), batch_rows).unwrap();
    concat_batches(&spec.scan_schema, &drain(&mut source).await.0).unwrap()
}

/// Rows in order of event time; event times are unique if the rate is 1,000 a second.
fn in_order(rows: &RecordBatch) -> RecordBatch {
    let time = |name: &str| rows[name].as_struct()["dateTime"].as_primitive::<TimestampMillisecondType>().clone();
    let (person, auction, bid) = (time("person"), time("auction"), time("bid"));
    let mut order: Vec<usize> = (0..rows.num_rows()).collect();
    order.sort_by_key(|&row| match rows["event_type"].as_primitive::<Int32Type>().value(row) {
        0 => person.value(row),
        1 => auction.value(row),
        _ => bid.value(row),
    });
    let order = Int32Array::from_iter_values(order.into_iter().map(|row| row as i32));
    arrow::compute::take_record_batch(rows, &order).unwrap()
}

fn bid<'a>(rows: &'a RecordBatch, field: &str) -> &'a arrow::array::ArrayRef {
    rows["bid"].as_struct().column_by_name(field).unwrap()
}

#[tokio::test]
async fn any_splits_and_batch_sizes_make_the_same_events() {
    let spec = spec(&[("events.num", "12345"), ("first-event.rate", "1000"), ("seed", "42")]);
    let whole = read(&spec, 1, 20_000).await;
    assert_eq!(whole.num_rows(), 12_345);
    assert_eq!(in_order(&whole), whole);
    for (split_count, batch_rows) in [(1, 1), (2, 100), (3, 8192), (7, 999)] {
        assert_eq!(in_order(&read(&spec, split_count, batch_rows).await), whole, "{split_count} splits, {batch_rows}");
    }
}

#[tokio::test]
async fn reading_on_from_any_position_gives_the_rest() {
    let spec = spec(&[("events.num", "3000"), ("seed", "1")]);
    let all = drain(&mut source(&spec, splits_of(&spec, 2), 70).unwrap()).await;
    for (taken, (split, offset)) in all.1.iter().enumerate() {
        let mut position = splits_of(&spec, 2).remove(*split);
        position.offset = *offset;
        let rest = drain(&mut source(&spec, vec![position], 70).unwrap()).await.0;
        let later = (taken + 1..all.0.len()).filter(|&step| all.1[step].0 == *split).map(|step| &all.0[step]);
        let (rest, later) = (concat_batches(&spec.scan_schema, &rest), concat_batches(&spec.scan_schema, later));
        assert_eq!(rest.unwrap(), later.unwrap(), "after {offset} of split {split}");
    }
}

#[tokio::test]
async fn seeds_make_different_events() {
    let one = read(&spec(&[("events.num", "200"), ("seed", "1")]), 1, 200).await;
    let other = read(&spec(&[("events.num", "200"), ("seed", "2")]), 1, 200).await;
    assert_eq!(&one["event_type"], &other["event_type"]);
    assert_ne!(bid(&one, "price"), bid(&other, "price"));
    assert_ne!(bid(&one, "extra"), bid(&other, "extra"));
}

#[tokio::test]
async fn kinds_follow_the_proportions() {
    let count = |rows: &RecordBatch, kind| {
        rows["event_type"].as_primitive::<Int32Type>().values().iter().filter(|value| **value == kind).count()
    };
    let rows = read(&spec(&[("events.num", "100000")]), 4, 8192).await;
    assert_eq!([0, 1, 2].map(|kind| count(&rows, kind)), [2000, 6000, 92_000]);
    let odd = [("events.num", "700"), ("person.proportion", "2"), ("auction.proportion", "0"), ("bid.proportion", "5")];
    let rows = read(&spec(&odd), 1, 64).await;
    assert_eq!([0, 1, 2].map(|kind| count(&rows, kind)), [200, 0, 500]);
    assert_eq!(&rows["event_type"].as_primitive::<Int32Type>().values()[..8], [0, 0, 2, 2, 2, 2, 2, 0]);
}

#[tokio::test]
async fn event_times_follow_the_rate_exactly() {
    for rate in [1, 7, 999, 1000, 10_000, 3_000_000] {
        let options = [("events.num", "5000"), ("first-event.rate", &rate.to_string()), ("base-time", "77")];
        let rows = read(&spec(&options), 3, 512).await;
        let rows = in_order(&rows);
        let times = bid(&rows, "dateTime").as_primitive::<TimestampMillisecondType>().clone();
        for event in (0..5000).filter(|event| event % 50 >= 4) {
            if rate <= 1000 {
                assert_eq!(times.value(event as usize), 77 + event * 1000 / rate, "event {event} at {rate}");
            }
        }
        let mut seen: Vec<i64> = times.iter().flatten().collect();
        seen.sort_unstable();
        let expected: Vec<i64> =
            (0..5000).filter(|event| event % 50 >= 4).map(|event| 77 + event * 1000 / rate).collect();
        assert_eq!(seen, expected, "at {rate}");
    }
}

#[tokio::test]
async fn positions_and_event_time_advance_over_filtered_events() {
    let mut spec = spec(&[("events.num", "100"), ("first-event.rate", "1000")]);
    spec.pushed_filters = vec![PushedFilter { column: "event_type".to_owned(), values: vec![0] }];
    let mut source = source(&spec, splits_of(&spec, 1), 8192).unwrap();
    let SourceEvent::Rows { split: 0, rows, next_offset: 100, event_time_max_ms } = source.next().await.unwrap() else {
        panic!("expected all events at once");
    };
    assert_eq!((rows.num_rows(), event_time_max_ms), (2, Some(BASE + 99)));
    assert!(matches!(source.next().await.unwrap(), SourceEvent::SplitFinished { split: 0 }));
    assert!(matches!(source.next().await.unwrap(), SourceEvent::End));
    assert!(matches!(source.next().await.unwrap(), SourceEvent::End));
}

#[tokio::test]
async fn a_filter_that_nothing_passes_still_makes_progress() {
    let mut spec = spec(&[]);
    spec.pushed_filters = vec![PushedFilter { column: "event_type".to_owned(), values: vec![9] }];
    let mut source = source(&spec, splits_of(&spec, 1), 8192).unwrap();
    for step in 1..4 {
        let SourceEvent::Rows { rows, next_offset, .. } = source.next().await.unwrap() else { panic!("unbounded") };
        assert_eq!((rows.num_rows(), next_offset), (0, step << 22));
    }
}

/// A schema with some of the standard columns and fields, in any order.
fn pruned() -> impl Strategy<Value = SchemaRef> {
    let columns = schema().fields().iter().map(|field| pruned_field(field.as_ref().clone())).collect::<Vec<_>>();
    (columns, any::<prop::sample::Index>()).prop_map(|(columns, rotation)| {
        let mut columns: Vec<ArrowField> = columns.into_iter().flatten().collect();
        if !columns.is_empty() {
            let middle = rotation.index(columns.len());
            columns.rotate_left(middle);
        }
        Arc::new(Schema::new(columns))
    })
}

fn pruned_field(field: ArrowField) -> impl Strategy<Value = Option<ArrowField>> {
    let nested = match field.data_type() {
        DataType::Struct(fields) => fields.len(),
        _ => 0,
    };
    (any::<bool>(), prop::collection::vec(any::<bool>(), nested)).prop_map(move |(keep, kept)| {
        let field = field.clone();
        let pruned = match field.data_type() {
            DataType::Struct(fields) => {
                let kept: Fields =
                    fields.iter().zip(kept).filter(|(_, keep)| *keep).map(|(field, _)| Arc::clone(field)).collect();
                field.clone().with_data_type(DataType::Struct(kept))
            }
            _ => field.clone(),
        };
        keep.then_some(pruned)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The oracle makes everything and cuts it with Arrow's kernels.
    #[test]
    fn push_down_gives_what_making_everything_gives(
        scan_schema in pruned(),
        values in prop::collection::vec(-1_i64..4, 0..4),
        filtered in any::<bool>(),
        split_count in 1_u32..4,
        batch_rows in 1_usize..700,
        seed in 0_u64..5,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let seed = seed.to_string();
            let options = [("events.num", "2345"), ("seed", &seed)];
            let mut pushed = spec(&options);
            pushed.scan_schema = scan_schema;
            if filtered {
                pushed.pushed_filters.push(PushedFilter { column: "event_type".to_owned(), values: values.clone() });
            }
            let mut whole = pushed.clone();
            whole.connector.options.insert("push-down".to_owned(), "false".to_owned());
            let whole = read(&whole, split_count, 1 << 20).await;
            let found = read(&pushed, split_count, batch_rows).await;
            // Batch cuts change how splits interleave, so that order is compared within one split only.
            if split_count == 1 {
                prop_assert_eq!(found, whole);
            } else {
                prop_assert_eq!(found.num_rows(), whole.num_rows());
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn filters_equal_filtering_afterwards() {
    let all = read(&spec(&[("events.num", "5000")]), 1, 1000).await;
    let mut filtered = spec(&[("events.num", "5000")]);
    filtered.pushed_filters = bids_only();
    let mask = all["event_type"].as_primitive::<Int32Type>().iter().map(|kind| Some(kind == Some(2))).collect();
    let expected = filter_record_batch(&all, &mask).unwrap();
    assert_eq!(read(&filtered, 1, 333).await, expected);
}

#[tokio::test]
async fn references_point_to_hot_and_to_recent_ids() {
    let rows = read(&spec(&[("events.num", "300000")]), 1, 8192).await;
    let (mut hot_auctions, mut hot_bidders, mut hot_sellers, mut bids, mut auctions) = (0, 0, 0, 0, 0);
    for event in 0..300_000_i64 {
        let (epoch, row) = (event / 50, event as usize);
        let (last_auction, last_person) = (epoch * 3 + 2, epoch);
        let number = |name: &str, field: &str| rows[name].as_struct()[field].as_primitive::<Int64Type>().value(row);
        match event % 50 {
            0 => assert_eq!(number("person", "id"), 1000 + epoch),
            place @ 1..4 => {
                auctions += 1;
                assert_eq!(number("auction", "id"), 1000 + epoch * 3 + place - 1);
                let seller = number("auction", "seller") - 1000;
                hot_sellers += i32::from(seller == last_person / 100 * 100);
                assert!(((last_person - 999).max(0)..=last_person + 10).contains(&seller));
                assert!((10..15).contains(&number("auction", "category")));
                assert!(number("auction", "reserve") >= number("auction", "initialBid") + 100);
            }
            _ => {
                bids += 1;
                let (auction, bidder) = (number("bid", "auction") - 1000, number("bid", "bidder") - 1000);
                hot_auctions += i32::from(auction == last_auction / 100 * 100);
                hot_bidders += i32::from(bidder == last_person / 100 * 100 + 1);
                assert!(((last_auction - 100).max(0)..=last_auction + 10).contains(&auction));
                assert!(((last_person - 999).max(0)..=(last_person + 10).max(1)).contains(&bidder));
                assert!((100..=100_000_000).contains(&number("bid", "price")));
            }
        }
    }
    let share = |hot: i32, of: i32| f64::from(hot) / f64::from(of);
    assert!((0.50..0.52).contains(&share(hot_auctions, bids)), "{}", share(hot_auctions, bids));
    assert!((0.745..0.76).contains(&share(hot_bidders, bids)), "{}", share(hot_bidders, bids));
    assert!((0.745..0.76).contains(&share(hot_sellers, auctions)), "{}", share(hot_sellers, auctions));
}

#[tokio::test]
async fn auctions_live_as_long_as_the_suite_says() {
    let rows = read(&spec(&[("events.num", "100000"), ("first-event.rate", "10000")]), 1, 8192).await;
    let auctions = rows["auction"].as_struct();
    let time =
        |field: &str| auctions[field].as_primitive::<TimestampMillisecondType>().iter().flatten().collect::<Vec<_>>();
    let spans: Vec<i64> = time("expires").iter().zip(time("dateTime")).map(|(end, start)| end - start).collect();
    // 100 auctions begin within 1,666 events, which take 166 or 167 ms; spans are uniform up to twice that.
    assert!(spans.iter().all(|span| (1..=334).contains(span)));
    let mean = spans.iter().sum::<i64>() as f64 / spans.len() as f64;
    assert!((163.0..170.0).contains(&mean), "{mean}");
}

#[tokio::test]
async fn texts_have_the_forms_of_the_suite() {
    let rows = read(&spec(&[("events.num", "50000")]), 1, 8192).await;
    let texts = |kind: &str, field: &str| -> Vec<String> {
        rows[kind].as_struct()[field].as_string::<i32>().iter().flatten().map(str::to_owned).collect()
    };
    for card in texts("person", "creditCard").iter().filter(|card| !card.is_empty()) {
        let groups: Vec<&str> = card.split(' ').collect();
        assert!(
            groups.len() == 4 && groups.iter().all(|group| group.len() == 4 && group.parse::<u32>().is_ok()),
            "{card}"
        );
    }
    let hot = ["Google", "Facebook", "Baidu", "Apple"];
    let (channels, urls) = (texts("bid", "channel"), texts("bid", "url"));
    let hot_share =
        channels.iter().filter(|channel| hot.contains(&channel.as_str())).count() as f64 / channels.len() as f64;
    assert!((0.49..0.51).contains(&hot_share), "{hot_share}");
    let mut of_channel = BTreeMap::new();
    for (channel, url) in channels.iter().zip(&urls) {
        assert_eq!(of_channel.entry(channel).or_insert(url), &url, "one URL per channel");
        assert!(url.starts_with("https://www.nexmark.com/") && url.contains("/item.htm?query=1"), "{url}");
        if let (Some(number), Some((_, id))) = (channel.strip_prefix("channel-"), url.split_once("&channel_id=")) {
            assert_eq!(
                id.parse::<u32>().unwrap(),
                (number.parse::<u32>().unwrap().reverse_bits() as i32).unsigned_abs()
            );
        }
    }
    let told = of_channel.values().filter(|url| url.contains("&channel_id=")).count() as f64 / of_channel.len() as f64;
    assert!((0.88..0.92).contains(&told), "{told}");
}

#[tokio::test]
async fn emission_is_held_to_its_rate() {
    let spec = spec(&[("events.num", "400"), ("emit.rate", "2000")]);
    let mut source = source(&spec, splits_of(&spec, 2), 8192).unwrap();
    let started = Instant::now();
    let (batches, _) = drain(&mut source).await;
    assert!(started.elapsed() >= Duration::from_millis(190), "{:?}", started.elapsed());
    assert!(batches.len() > 2, "events come in portions");
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 400);
}

#[tokio::test]
async fn what_nexmark_does_not_have_is_refused_by_name() {
    let with_columns =
        |columns: Vec<ArrowField>| SourceSpec { scan_schema: Arc::new(Schema::new(columns)), ..spec(&[]) };
    let refused = |spec: &SourceSpec| source(spec, splits_of(spec, 1), 10).err().unwrap().to_string();
    let unknown = with_columns(vec![ArrowField::new("offer", DataType::Int64, true)]);
    assert_eq!(refused(&unknown), "INVALID_ARGUMENT: nexmark has no column 'offer' of type Int64");
    let fields = Fields::from(vec![ArrowField::new("price", DataType::Int32, true)]);
    let wrong = with_columns(vec![ArrowField::new("bid", DataType::Struct(fields), true)]);
    assert_eq!(refused(&wrong), "INVALID_ARGUMENT: nexmark's field 'price' is of type Int64, not Int32");
    let rates = spec(&[("first-event.rate", "10"), ("next-event.rate", "20")]);
    assert_eq!(refused(&rates), "INVALID_ARGUMENT: options 'first-event.rate' and 'next-event.rate' differ");
    let none = spec(&[("person.proportion", "0"), ("auction.proportion", "0"), ("bid.proportion", "0")]);
    assert!(refused(&none).contains("all zero"));
}

/// Lengths of every text column over the first 200,000 events of seed 0: smallest, mean, greatest, and the number of
/// values in each eighth of the range. `docs/nexmark.md` publishes the same table.
#[tokio::test]
async fn length_histograms_are_as_published() {
    let rows = read(&spec(&[("events.num", "200000")]), 1, 8192).await;
    let mut table = String::new();
    for kind in Kind::ALL {
        let events = rows.column(kind as usize + 1).as_struct();
        for (name, _) in Field::of(kind).iter().filter(|(_, field)| field.data_type() == DataType::Utf8) {
            let valid = |row: &usize| events.is_valid(*row);
            let texts = events.column_by_name(name).unwrap().as_string::<i32>();
            let lengths: Vec<i32> = (0..events.len()).filter(valid).map(|row| texts.value_length(row)).collect();
            let kind = format!("{kind:?}").to_lowercase();
            table.push_str(&histogram_row(&format!("{kind}.{name}"), &lengths));
        }
    }
    let published = include_str!("../../../../docs/nexmark.md");
    assert!(published.contains(&table), "docs/nexmark.md should hold\n{table}");
}

fn histogram_row(name: &str, lengths: &[i32]) -> String {
    let (least, greatest) = (*lengths.iter().min().unwrap(), *lengths.iter().max().unwrap());
    let mean = lengths.iter().map(|length| i64::from(*length)).sum::<i64>() as f64 / lengths.len() as f64;
    let mut buckets = [0_usize; 8];
    for length in lengths {
        buckets[((length - least) * 8 / (greatest - least + 1)) as usize] += 1;
    }
    let buckets: Vec<String> =
        buckets.iter().map(|count| format!("{:.3}", *count as f64 / lengths.len() as f64)).collect();
    format!("| `{name}` | {least} | {mean:.2} | {greatest} | {} |\n", buckets.join(" "))
}
