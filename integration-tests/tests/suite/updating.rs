//! Queries whose results change, across processes: what a changelog folds to equals a computation over all rows.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::{checkpoint_after, job_in_state, job_until};
use weir_proto::pb::client::v1::{JobState, Snapshot};

use crate::support::{append, drain, read, readings};

const ROWS: u64 = 20_000;

/// Totals per sensor, and how many sensors have equally many hundreds of readings.
const SCRIPT: &str = "
    CREATE TABLE readings (sensor STRING, reading BIGINT, `at` TIMESTAMP(3),
        WATERMARK FOR `at` AS `at` - INTERVAL '3' SECOND)
    WITH ('connector' = 'stream-store', 'stream' = 'test/in', 'format' = 'json');
    CREATE TABLE totals (sensor STRING, n BIGINT, total BIGINT, highest BIGINT, kinds BIGINT,
        PRIMARY KEY (sensor) NOT ENFORCED)
    WITH ('connector' = 'stream-store', 'stream' = 'test/out', 'format' = 'debezium-json', 'sink.partitions' = '2');
    CREATE TABLE hundreds (hundred BIGINT, sensors BIGINT, last STRING)
    WITH ('connector' = 'stream-store', 'stream' = 'test/hundreds', 'format' = 'debezium-json',
        'key.fields' = 'hundred', 'sink.partitions' = '2');
    SET 'execution.checkpointing.interval' = '100 ms';
    CREATE VIEW per_sensor AS
        SELECT sensor, COUNT(*) AS n, SUM(reading) AS total, MAX(reading) AS highest, COUNT(DISTINCT reading) AS kinds
        FROM readings GROUP BY sensor;
    INSERT INTO totals SELECT * FROM per_sensor;
    INSERT INTO hundreds SELECT n / 100, COUNT(*), MAX(sensor) FROM per_sensor GROUP BY n / 100;";

/// The rows that are left at the end of a changelog in which the changes of a key are in order; changes that a restart
/// has written twice do not matter.
fn fold(changes: &[Value], key: &str) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    for change in changes {
        match change["op"].as_str() {
            Some("c") => {
                rows.insert(change["after"][key].to_string(), change["after"].clone());
            }
            Some("d") => {
                rows.remove(&change["before"][key].to_string());
            }
            _ => panic!("{change} is no change"),
        }
    }
    rows
}

fn totals(rows: &[Value]) -> BTreeMap<String, Value> {
    let mut groups: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in rows {
        let sensor = row["sensor"].as_str().expect("a sensor").to_owned();
        groups.entry(sensor).or_default().push(row["reading"].as_i64().expect("a reading"));
    }
    let total = |(sensor, readings): (String, Vec<i64>)| {
        let kinds: std::collections::BTreeSet<&i64> = readings.iter().collect();
        let row = json!({"sensor": sensor, "n": readings.len(), "total": readings.iter().sum::<i64>(),
            "highest": readings.iter().max(), "kinds": kinds.len()});
        (row["sensor"].to_string(), row)
    };
    groups.into_iter().map(total).collect()
}

fn hundreds(totals: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let mut groups: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
    for row in totals.values() {
        let hundred = row["n"].as_i64().expect("a count") / 100;
        groups.entry(hundred).or_default().push(row["sensor"].as_str().expect("a sensor"));
    }
    let row = |(hundred, sensors): (i64, Vec<&str>)| {
        let row = json!({"hundred": hundred, "sensors": sensors.len(), "last": sensors.iter().max()});
        (hundred.to_string(), row)
    };
    groups.into_iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn changelogs_fold_to_the_totals_through_a_kill_and_a_restore_at_another_parallelism() {
    let mut cluster = Cluster::start(2, 2);
    let rows = readings(0, ROWS);
    let (first, rest) = rows.split_at(rows.len() / 2);
    append(&cluster, "test/in", &first[..first.len() / 2]);
    let file = cluster.write("job.sql", SCRIPT);
    let submit = |cluster: &Cluster, arguments: &[&str]| {
        let all: Vec<&str> = ["run", "-d"].iter().chain(arguments).copied().chain([file.as_str()]).collect();
        cluster.weir_json(&all)["id"].as_str().expect("a job id").to_owned()
    };
    let job = submit(&cluster, &["-p", "2"]);
    let before = checkpoint_after(&cluster, &job, 0).await;
    let newest = before.recent_snapshots.iter().map(|snapshot| snapshot.triggered_at_ms).max().unwrap_or_default();
    cluster.kill("tm-1");
    append(&cluster, "test/in", &first[first.len() / 2..]);
    checkpoint_after(&cluster, &job, newest).await;
    let savepoint = cluster.weir_json(&["stop", &job]);
    let savepoint = savepoint["id"].as_str().expect("a savepoint").to_owned();
    cluster.add_task_manager("tm-3", 2);
    let job = submit(&cluster, &["-p", "3", "-s", &savepoint]);
    append(&cluster, "test/in", rest);
    job_until(&cluster, &job, "a checkpoint at the end of the input", |detail| {
        let read = |snapshot: &Snapshot| snapshot.sources.iter().map(|source| source.offset).sum::<u64>();
        detail.recent_snapshots.iter().any(|snapshot| snapshot.state == "COMPLETED" && read(snapshot) == ROWS)
    })
    .await;
    drain(&cluster, &job).await;
    let expected = totals(&rows);
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), expected);
    assert_eq!(fold(&read(&cluster, "test/hundreds"), "hundred"), hundreds(&expected));
}

/// Nexmark's generator, and q15 to q17 beside all bids.
const NEXMARK: &str = include_str!("../../../crates/sql/tests/nexmark.sql");
const QUERIES: &str = "
    CREATE TABLE bids (auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, `dateTime` TIMESTAMP(3))
    WITH ('connector' = 'stream-store', 'stream' = 'test/bids');
    CREATE TABLE q15 (`day` VARCHAR, total_bids BIGINT, rank1_bids BIGINT, rank2_bids BIGINT, total_bidders BIGINT,
        rank1_bidders BIGINT, total_auctions BIGINT, rank2_auctions BIGINT)
    WITH ('connector' = 'stream-store', 'stream' = 'test/q15', 'format' = 'debezium-json', 'key.fields' = 'day');
    CREATE TABLE q16 (channel VARCHAR, `day` VARCHAR, `minute` VARCHAR, total_bids BIGINT, rank3_bids BIGINT,
        total_bidders BIGINT, rank3_auctions BIGINT)
    WITH ('connector' = 'stream-store', 'stream' = 'test/q16', 'format' = 'debezium-json', 'key.fields' = 'channel');
    CREATE TABLE q17 (auction BIGINT, `day` VARCHAR, total_bids BIGINT, rank1_bids BIGINT, min_price BIGINT,
        max_price BIGINT, avg_price BIGINT, sum_price BIGINT)
    WITH ('connector' = 'stream-store', 'stream' = 'test/q17', 'format' = 'debezium-json', 'key.fields' = 'auction');
    INSERT INTO bids SELECT auction, bidder, price, channel, `dateTime` FROM bid;
    INSERT INTO q15 SELECT DATE_FORMAT(`dateTime`, 'yyyy-MM-dd') as `day`, count(*) AS total_bids,
        count(*) filter (where price < 10000) AS rank1_bids,
        count(*) filter (where price >= 10000 and price < 1000000) AS rank2_bids,
        count(distinct bidder) AS total_bidders, count(distinct bidder) filter (where price < 10000) AS rank1_bidders,
        count(distinct auction) AS total_auctions,
        count(distinct auction) filter (where price >= 10000 and price < 1000000) AS rank2_auctions
        FROM bid GROUP BY DATE_FORMAT(`dateTime`, 'yyyy-MM-dd');
    INSERT INTO q16 SELECT channel, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd') as `day`,
        max(DATE_FORMAT(`dateTime`, 'HH:mm')) as `minute`, count(*) AS total_bids,
        count(*) filter (where price >= 1000000) AS rank3_bids, count(distinct bidder) AS total_bidders,
        count(distinct auction) filter (where price >= 1000000) AS rank3_auctions
        FROM bid GROUP BY channel, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd');
    INSERT INTO q17 SELECT auction, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd') as `day`, count(*) AS total_bids,
        count(*) filter (where price < 10000) AS rank1_bids, min(price) AS min_price, max(price) AS max_price,
        avg(price) AS avg_price, sum(price) AS sum_price
        FROM bid GROUP BY auction, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd');";

/// A bid as a row of the stream of bids.
struct Bid<'a>(&'a Value);

impl Bid<'_> {
    fn number(&self, column: &str) -> i64 {
        self.0[column].as_i64().expect("a number")
    }

    fn price(&self) -> i64 {
        self.number("price")
    }

    fn day(&self) -> &str {
        &self.0["dateTime"].as_str().expect("a timestamp")[..10]
    }

    fn minute(&self) -> &str {
        &self.0["dateTime"].as_str().expect("a timestamp")[11..16]
    }

    fn channel(&self) -> &str {
        self.0["channel"].as_str().expect("a channel")
    }
}

/// Groups of bids, as objects made by `row`, by the column `key` of these.
fn grouped<'a, K: Ord>(
    bids: &'a [Value],
    key: &str,
    by: impl Fn(&Bid<'a>) -> K,
    row: impl Fn(&[Bid<'a>]) -> Value,
) -> BTreeMap<String, Value> {
    let mut groups: BTreeMap<K, Vec<Bid<'a>>> = BTreeMap::new();
    bids.iter().map(Bid).for_each(|bid| groups.entry(by(&bid)).or_default().push(bid));
    groups.values().map(|bids| row(bids)).map(|row| (row[key].to_string(), row)).collect()
}

fn distinct(bids: &[Bid<'_>], column: &str, counts: impl Fn(i64) -> bool) -> usize {
    let values = bids.iter().filter(|bid| counts(bid.price())).map(|bid| bid.number(column));
    values.collect::<std::collections::BTreeSet<i64>>().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn nexmark_q15_to_q17_fold_to_what_the_bids_amount_to() {
    let cluster = Cluster::start(2, 2);
    // A day has few bids here, so that there are several.
    let generator = NEXMARK
        .replace("'first-event.rate' = '100000'", "'first-event.rate' = '1', 'splits' = '2'")
        .replace("'events.num' = '1000'", "'events.num' = '200000'");
    let file = cluster.write("job.sql", &format!("{generator}{QUERIES}"));
    let job = cluster.weir_json(&["run", "-d", "-p", "2", &file])["id"].as_str().expect("a job id").to_owned();
    job_in_state(&cluster, &job, JobState::Finished).await;
    let bids = read(&cluster, "test/bids");
    assert_eq!(bids.len(), 184_000);
    let (low, middle, high) = (|p: i64| p < 10_000, |p: i64| (10_000..1_000_000).contains(&p), |p: i64| p >= 1_000_000);
    let count = |bids: &[Bid<'_>], counts: &dyn Fn(i64) -> bool| bids.iter().filter(|bid| counts(bid.price())).count();
    let q15 = grouped(
        &bids,
        "day",
        |bid| bid.day().to_owned(),
        |bids| {
            json!({"day": bids[0].day(), "total_bids": bids.len(), "rank1_bids": count(bids, &low),
            "rank2_bids": count(bids, &middle), "total_bidders": distinct(bids, "bidder", |_| true),
            "rank1_bidders": distinct(bids, "bidder", low), "total_auctions": distinct(bids, "auction", |_| true),
            "rank2_auctions": distinct(bids, "auction", middle)})
        },
    );
    assert_eq!(q15.len(), 3, "three days");
    assert_eq!(fold(&read(&cluster, "test/q15"), "day"), q15);
    // Channels are folded by day.
    let (q16, q17) = (read(&cluster, "test/q16"), read(&cluster, "test/q17"));
    for day in q15.values().map(|row| row["day"].as_str().expect("a day")) {
        let of_day: Vec<Value> = bids.iter().filter(|bid| Bid(bid).day() == day).cloned().collect();
        let expected = grouped(
            &of_day,
            "channel",
            |bid| bid.channel().to_owned(),
            |bids| {
                json!({"channel": bids[0].channel(), "day": day, "minute": bids.iter().map(Bid::minute).max(),
                "total_bids": bids.len(), "rank3_bids": count(bids, &high),
                "total_bidders": distinct(bids, "bidder", |_| true), "rank3_auctions": distinct(bids, "auction", high)})
            },
        );
        let is_of_day = |change: &&Value| change["after"]["day"] == *day || change["before"]["day"] == *day;
        let changes: Vec<Value> = q16.iter().filter(is_of_day).cloned().collect();
        assert_eq!(fold(&changes, "channel"), expected);
        let expected = grouped(
            &of_day,
            "auction",
            |bid| bid.number("auction"),
            |bids| {
                let prices: Vec<i64> = bids.iter().map(Bid::price).collect();
                let sum: i64 = prices.iter().sum();
                json!({"auction": bids[0].number("auction"), "day": day, "total_bids": bids.len(),
                "rank1_bids": count(bids, &low), "min_price": prices.iter().min(), "max_price": prices.iter().max(),
                "avg_price": sum / prices.len() as i64, "sum_price": sum})
            },
        );
        let changes: Vec<Value> = q17.iter().filter(is_of_day).cloned().collect();
        assert_eq!(fold(&changes, "auction"), expected);
    }
}
