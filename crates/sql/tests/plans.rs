//! Plans of the Nexmark queries and of each construct, as EXPLAIN shows them. One helper touches the API.
#![expect(clippy::unwrap_used, reason = "helpers under tests/ are tests too, but clippy does not see that")]

use weir_sql::{PlanContext, plan};

const NEXMARK: &str = include_str!("nexmark.sql");

fn explain(script: &str) -> String {
    plan(script, &PlanContext::default()).unwrap().explain
}

fn nexmark(query: &str) -> String {
    explain(&format!("{NEXMARK}\n{query}"))
}

#[test]
fn q0() {
    insta::assert_snapshot!(nexmark(r#"CREATE TABLE out (auction BIGINT, bidder BIGINT, price BIGINT, `dateTime` TIMESTAMP(3), extra VARCHAR)
    WITH ('connector' = 'blackhole');
INSERT INTO out SELECT auction, bidder, price, `dateTime`, extra FROM bid;"#), @r##"
[2] Sink(out) blackhole [auction, bidder, price, dateTime, extra] changelogMode=[I] parallelism=1
  [1] Calc [auction, bidder, price, dateTime, extra] parallelism=1 → chained
        select: bid.auction AS auction, bid.bidder AS bidder, bid.price AS price, dateTime, bid.extra AS extra
    [0] Source(nexmark) nexmark parallelism=1 → chained
          events.num: 1000
          first-event.rate: 100000
          scan: bid ROW<auction BIGINT, bidder BIGINT, price BIGINT, dateTime TIMESTAMP(3), extra STRING>
          pushed filter: event_type IN (2)
          select: bid.auction, bid.bidder, bid.price, bid.extra, bid.dateTime AS dateTime
          watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn q1() {
    insta::assert_snapshot!(nexmark(r#"CREATE TABLE out (auction BIGINT, bidder BIGINT, price DECIMAL(23, 3), `dateTime` TIMESTAMP(3), extra VARCHAR)
    WITH ('connector' = 'blackhole');
INSERT INTO out SELECT auction, bidder, 0.908 * price as price, `dateTime`, extra FROM bid;"#), @r##"
[2] Sink(out) blackhole [auction, bidder, price, dateTime, extra] changelogMode=[I] parallelism=1
  [1] Calc [auction, bidder, price, dateTime, extra] parallelism=1 → chained
        select: bid.auction AS auction, bid.bidder AS bidder, 0.908 * CAST(bid.price AS DECIMAL(19, 0)) AS price, dateTime, bid.extra AS extra
    [0] Source(nexmark) nexmark parallelism=1 → chained
          events.num: 1000
          first-event.rate: 100000
          scan: bid ROW<auction BIGINT, bidder BIGINT, price BIGINT, dateTime TIMESTAMP(3), extra STRING>
          pushed filter: event_type IN (2)
          select: bid.auction, bid.bidder, bid.price, bid.extra, bid.dateTime AS dateTime
          watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn q2() {
    insta::assert_snapshot!(nexmark(r#"CREATE TABLE out (auction BIGINT, price BIGINT) WITH ('connector' = 'blackhole');
INSERT INTO out SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0;"#), @r##"
[2] Sink(out) blackhole [auction, price] changelogMode=[I] parallelism=1
  [1] Calc [auction, price] parallelism=1 → chained
        where: (bid.auction % 123) = 0
        select: bid.auction AS auction, bid.price AS price
    [0] Source(nexmark) nexmark parallelism=1 → chained
          events.num: 1000
          first-event.rate: 100000
          scan: bid ROW<auction BIGINT, price BIGINT, dateTime TIMESTAMP(3)>
          pushed filter: event_type IN (2)
          select: bid.auction, bid.price, bid.dateTime AS dateTime
          watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn tumbling_count_per_auction() {
    insta::assert_snapshot!(nexmark(r#"CREATE TABLE out (auction BIGINT, n BIGINT, window_start TIMESTAMP(3), window_end TIMESTAMP(3))
    WITH ('connector' = 'blackhole');
INSERT INTO out SELECT auction, COUNT(*), window_start, window_end
FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))
GROUP BY window_start, window_end, auction;"#), @r##"
[4] Sink(out) blackhole [auction, n, window_start, window_end] changelogMode=[I] parallelism=1
  [3] Calc [auction, n, window_start, window_end] parallelism=1 → chained
        select: auction, count$0 AS n, window_start, window_end
    [2] WindowAggregate(TUMBLE 10 s, dateTime) by auction parallelism=1 → chained
          aggregates: COUNT(*)
          window columns: window_start, window_end
      [1] Calc [dateTime, auction] parallelism=1 → hash(auction)
            select: dateTime, bid.auction AS auction
        [0] Source(nexmark) nexmark parallelism=1 → chained
              events.num: 1000
              first-event.rate: 100000
              scan: bid ROW<auction BIGINT, dateTime TIMESTAMP(3)>
              pushed filter: event_type IN (2)
              select: bid.auction, bid.dateTime AS dateTime
              watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn q14_and_q21_and_q22_functions() {
    insta::assert_snapshot!(nexmark(r#"CREATE TABLE out (a BIGINT, kind STRING, channel_id STRING, dir1 STRING, hour_of_day BIGINT) WITH ('connector' = 'blackhole');
INSERT INTO out SELECT auction,
    CASE WHEN HOUR(`dateTime`) >= 8 AND HOUR(`dateTime`) <= 18 THEN 'dayTime' ELSE 'otherTime' END,
    CASE WHEN lower(channel) = 'apple' THEN '0' ELSE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) END,
    SPLIT_INDEX(url, '/', 3), EXTRACT(HOUR FROM `dateTime`)
FROM bid WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000;"#), @r##"
[2] Sink(out) blackhole [a, kind, channel_id, dir1, hour_of_day] changelogMode=[I] parallelism=1
  [1] Calc [a, kind, channel_id, dir1, hour_of_day] parallelism=1 → chained
        where: ((0.908 * CAST(bid.price AS DECIMAL(19, 0))) > 1000000.000) AND ((0.908 * CAST(bid.price AS DECIMAL(19, 0))) < 50000000.000)
        select: bid.auction AS a, CASE WHEN (EXTRACT(HOUR FROM dateTime) >= 8) AND (EXTRACT(HOUR FROM dateTime) <= 18) THEN 'dayTime' ELSE 'otherTime' END AS kind, CASE WHEN LOWER(bid.channel) = 'apple' THEN '0' ELSE REGEXP_EXTRACT(bid.url, '(&|^)channel_id=([^&]*)', 2) END AS channel_id, SPLIT_INDEX(bid.url, '/', 3) AS dir1, EXTRACT(HOUR FROM dateTime) AS hour_of_day
    [0] Source(nexmark) nexmark parallelism=1 → chained
          events.num: 1000
          first-event.rate: 100000
          scan: bid ROW<auction BIGINT, price BIGINT, channel STRING, url STRING, dateTime TIMESTAMP(3)>
          pushed filter: event_type IN (2)
          select: bid.auction, bid.price, bid.channel, bid.url, bid.dateTime AS dateTime
          watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn hop_with_filter_distinct_having_and_expressions() {
    insta::assert_snapshot!(nexmark(r#"SET 'parallelism.default' = '2';
CREATE TABLE out (bidder BIGINT, n BIGINT, m BIGINT, spread BIGINT, ends TIMESTAMP(3)) WITH ('connector' = 'print');
INSERT INTO out
SELECT bidder, COUNT(DISTINCT auction), COUNT(*) FILTER (WHERE price > 100), MAX(price) - MIN(price), w.window_end
FROM TABLE(HOP(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '2' SECOND, INTERVAL '10' SECOND)) AS w
GROUP BY w.window_start, w.window_end, w.bidder HAVING COUNT(*) > 1;"#), @r##"
[4] Sink(out) print [bidder, n, m, spread, ends] changelogMode=[I] parallelism=2
  [3] Calc [bidder, n, m, spread, ends] parallelism=2 → chained
        where: count$4 > 1
        select: bidder, count$0 AS n, count$1 AS m, max$2 - min$3 AS spread, window_end AS ends
    [2] WindowAggregate(HOP 10 s every 2 s, dateTime) by bidder parallelism=2 → chained
          aggregates: COUNT(DISTINCT auction), COUNT(*) FILTER (WHERE $f3), MAX(price), MIN(price), COUNT(*)
          window columns: window_end
      [1] Calc [dateTime, bidder, auction, $f3, price] parallelism=2 → hash(bidder)
            select: dateTime, bid.bidder AS bidder, bid.auction AS auction, bid.price > 100 AS $f3, bid.price AS price
        [0] Source(nexmark) nexmark parallelism=2 → chained
              events.num: 1000
              first-event.rate: 100000
              scan: bid ROW<auction BIGINT, bidder BIGINT, price BIGINT, dateTime TIMESTAMP(3)>
              pushed filter: event_type IN (2)
              select: bid.auction, bid.bidder, bid.price, bid.dateTime AS dateTime
              watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn an_aggregate_without_keys_runs_in_one_subtask() {
    insta::assert_snapshot!(nexmark(r#"SET 'parallelism.default' = '2';
CREATE TABLE out (n BIGINT, average BIGINT) WITH ('connector' = 'print');
INSERT INTO out SELECT COUNT(*), AVG(price)
FROM TABLE(TUMBLE(DATA => TABLE bid, TIMECOL => DESCRIPTOR(`dateTime`), SIZE => INTERVAL '1' MINUTE, `OFFSET` => INTERVAL '5' SECOND))
GROUP BY window_start, window_end;"#), @r##"
[4] Sink(out) print [n, average] changelogMode=[I] parallelism=2
  [3] Calc [n, average] parallelism=1 → rebalance
        select: count$0 AS n, avg$1 AS average
    [2] WindowAggregate(TUMBLE 1 min offset 5 s, dateTime) parallelism=1 → chained
          aggregates: COUNT(*), AVG(price)
      [1] Calc [dateTime, price] parallelism=2 → all to one
            select: dateTime, bid.price AS price
        [0] Source(nexmark) nexmark parallelism=2 → chained
              events.num: 1000
              first-event.rate: 100000
              scan: bid ROW<price BIGINT, dateTime TIMESTAMP(3)>
              pushed filter: event_type IN (2)
              select: bid.price, bid.dateTime AS dateTime
              watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn two_inserts_share_one_source_with_the_union_of_their_columns_and_filters() {
    insta::assert_snapshot!(nexmark(r#"CREATE TABLE bids (auction BIGINT) WITH ('connector' = 'blackhole');
CREATE TABLE people (name STRING) WITH ('connector' = 'blackhole');
EXECUTE STATEMENT SET BEGIN
INSERT INTO bids SELECT auction FROM bid WHERE price > 10;
INSERT INTO people SELECT name FROM person;
END;"#), @r##"
[2] Sink(bids) blackhole [auction] changelogMode=[I] parallelism=1
  [1] Calc [auction] parallelism=1 → chained
        where: (event_type = 2) AND (bid.price > 10)
        select: bid.auction AS auction
    [0] Source(nexmark) nexmark parallelism=1 → chained
          events.num: 1000
          first-event.rate: 100000
          scan: event_type INT, person ROW<name STRING, dateTime TIMESTAMP(3)>, bid ROW<auction BIGINT, price BIGINT, dateTime TIMESTAMP(3)>
          pushed filter: event_type IN (0, 2)
          select: event_type, person.name, bid.auction, bid.price, CASE WHEN event_type = 0 THEN person.dateTime ELSE bid.dateTime END AS dateTime
          watermark: dateTime AS dateTime - INTERVAL '4 s'
[4] Sink(people) blackhole [name] changelogMode=[I] parallelism=1
  [3] Calc [name] parallelism=1 → chained
        where: event_type = 0
        select: person.name AS name
    [0] Source(nexmark) nexmark → chained (see above)
"##);
}

#[test]
fn a_reader_without_a_filter_keeps_all_events() {
    insta::assert_snapshot!(nexmark(r#"CREATE TABLE bids (auction BIGINT) WITH ('connector' = 'blackhole');
CREATE TABLE kinds (kind INT) WITH ('connector' = 'blackhole');
INSERT INTO bids SELECT auction FROM bid;
INSERT INTO kinds SELECT event_type FROM nexmark;"#), @r##"
[2] Sink(bids) blackhole [auction] changelogMode=[I] parallelism=1
  [1] Calc [auction] parallelism=1 → chained
        where: event_type = 2
        select: bid.auction AS auction
    [0] Source(nexmark) nexmark parallelism=1 → chained
          events.num: 1000
          first-event.rate: 100000
          scan: event_type INT, person ROW<dateTime TIMESTAMP(3)>, auction ROW<dateTime TIMESTAMP(3)>, bid ROW<auction BIGINT, dateTime TIMESTAMP(3)>
          select: event_type, bid.auction, CASE WHEN event_type = 0 THEN person.dateTime WHEN event_type = 1 THEN auction.dateTime ELSE bid.dateTime END AS dateTime
          watermark: dateTime AS dateTime - INTERVAL '4 s'
[4] Sink(kinds) blackhole [kind] changelogMode=[I] parallelism=1
  [3] Calc [kind] parallelism=1 → chained
        select: event_type AS kind
    [0] Source(nexmark) nexmark → chained (see above)
"##);
}

#[test]
fn union_all_into_a_window_and_a_window_over_a_window() {
    insta::assert_snapshot!(nexmark(r#"CREATE TABLE out (ends TIMESTAMP(3), most BIGINT) WITH ('connector' = 'print');
CREATE VIEW everyone AS SELECT id, `dateTime` FROM person UNION ALL SELECT seller, `dateTime` FROM auction;
CREATE VIEW counts AS SELECT id, COUNT(*) AS n, window_start AS ws, window_end AS we
    FROM TABLE(HOP(TABLE everyone, DESCRIPTOR(`dateTime`), INTERVAL '5' SECOND, INTERVAL '10' SECOND))
    GROUP BY window_start, window_end, id;
INSERT INTO out SELECT we, MAX(n) FROM counts GROUP BY ws, we;"#), @r##"
[7] Sink(out) print [ends, most] changelogMode=[I] parallelism=1
  [6] Calc [ends, most] parallelism=1 → chained
        select: window_end AS ends, max$0 AS most
    [5] WindowAggregate(TUMBLE 5 s, window_time) parallelism=1 → chained
          aggregates: MAX(n)
          window columns: window_end
      [4] Calc [window_time, n] parallelism=1 → all to one
            select: window_time, n
        [3] WindowAggregate(HOP 10 s every 5 s, dateTime) by id parallelism=1 → chained
              aggregates: COUNT(*)
              window columns: window_time
          [1] Calc [dateTime, id] parallelism=1 → hash(id)
                where: event_type = 0
                select: dateTime, person.id AS id
            [0] Source(nexmark) nexmark parallelism=1 → chained
                  events.num: 1000
                  first-event.rate: 100000
                  scan: event_type INT, person ROW<id BIGINT, dateTime TIMESTAMP(3)>, auction ROW<dateTime TIMESTAMP(3), seller BIGINT>, bid ROW<dateTime TIMESTAMP(3)>
                  pushed filter: event_type IN (0, 1)
                  select: event_type, person.id, auction.seller, CASE WHEN event_type = 0 THEN person.dateTime WHEN event_type = 1 THEN auction.dateTime ELSE bid.dateTime END AS dateTime
                  watermark: dateTime AS dateTime - INTERVAL '4 s'
          [2] Calc [dateTime, id] parallelism=1 → hash(id)
                where: event_type = 1
                select: dateTime, auction.seller AS id
            [0] Source(nexmark) nexmark → chained (see above)
"##);
}

#[test]
fn windows_can_be_read_without_an_aggregate() {
    insta::assert_snapshot!(nexmark(r#"CREATE TABLE out (auction BIGINT, window_start TIMESTAMP(3), t TIMESTAMP(3)) WITH ('connector' = 'print');
INSERT INTO out SELECT auction, window_start, window_time FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND));"#), @r##"
[2] Sink(out) print [auction, window_start, t] changelogMode=[I] parallelism=1
  [1] Calc [auction, window_start, t] parallelism=1 → chained
        select: bid.auction AS auction, WINDOW_START(dateTime, 10000, 0) AS window_start, WINDOW_TIME(dateTime, 10000, 0) AS t
    [0] Source(nexmark) nexmark parallelism=1 → chained
          events.num: 1000
          first-event.rate: 100000
          scan: bid ROW<auction BIGINT, dateTime TIMESTAMP(3)>
          pushed filter: event_type IN (2)
          select: bid.auction, bid.dateTime AS dateTime
          watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn late_rows_go_to_the_table_that_the_source_names() {
    insta::assert_snapshot!(explain(r#"CREATE TABLE commits (
    repo STRING NOT NULL, `commit` STRING, author STRING, authored_at STRING, dir STRING, ext STRING, `date` DATE,
    tags ARRAY<STRING>, props MAP<STRING, INT>, place ROW<x DOUBLE, inner_row ROW<y INT, z STRING>>,
    origin STRING NOT NULL METADATA FROM 'file.name' VIRTUAL,
    ts AS TO_TIMESTAMP(authored_at),
    WATERMARK FOR ts AS ts - INTERVAL '30' DAY
) WITH ('connector' = 'filesystem', 'path' = '/data', 'format' = 'json', 'late-rows.table' = 'late');
CREATE TABLE late (repo STRING, authored_at STRING) WITH ('connector' = 'filesystem', 'path' = '/late', 'format' = 'json');
CREATE TABLE weekly (repo STRING, week TIMESTAMP(3), files BIGINT, PRIMARY KEY (repo, week) NOT ENFORCED)
    WITH ('connector' = 'print');
INSERT INTO weekly SELECT repo, window_start, COUNT(*)
FROM TABLE(TUMBLE(TABLE commits, DESCRIPTOR(ts), INTERVAL '7' DAY)) WHERE ext <> 'md' GROUP BY repo, window_start, window_end;"#), @r##"
[4] Sink(late) filesystem [repo, authored_at] changelogMode=[I] parallelism=1
      format: json
      path: /late
  [3] Calc [repo, authored_at] parallelism=1 → chained
        select: repo, authored_at
    [2] WindowAggregate(TUMBLE 7 d, ts) by repo parallelism=1 → chained, late rows
          aggregates: COUNT(*)
          window columns: window_start
          late rows: to a side output
      [1] Calc [ts, repo, authored_at] parallelism=1 → hash(repo)
            where: ext != 'md'
            select: ts, repo, authored_at
        [0] Source(commits) filesystem parallelism=1 → chained
              format: json
              late-rows.table: late
              path: /data
              scan: repo STRING NOT NULL, authored_at STRING, ext STRING
              select: repo, authored_at, ext, TO_TIMESTAMP(authored_at) AS ts
              watermark: ts AS ts - INTERVAL '30 d'
[6] Sink(weekly) print [repo, week, files] changelogMode=[I] parallelism=1
  [5] Calc [repo, week, files] parallelism=1 → chained
        select: repo, window_start AS week, count$0 AS files
    [2] WindowAggregate(TUMBLE 7 d, ts) by repo → chained (see above)
"##);
}

#[test]
fn nested_fields_metadata_arrays_and_maps() {
    insta::assert_snapshot!(explain(r#"CREATE TABLE commits (
    repo STRING NOT NULL, `commit` STRING, author STRING, authored_at STRING, dir STRING, ext STRING, `date` DATE,
    tags ARRAY<STRING>, props MAP<STRING, INT>, place ROW<x DOUBLE, inner_row ROW<y INT, z STRING>>,
    origin STRING NOT NULL METADATA FROM 'file.name' VIRTUAL,
    ts AS TO_TIMESTAMP(authored_at),
    WATERMARK FOR ts AS ts - INTERVAL '30' DAY
) WITH ('connector' = 'filesystem', 'path' = '/data', 'format' = 'json', 'late-rows.table' = 'late');
CREATE TABLE late (repo STRING, authored_at STRING) WITH ('connector' = 'filesystem', 'path' = '/late', 'format' = 'json');
CREATE TABLE weekly (repo STRING, week TIMESTAMP(3), files BIGINT, PRIMARY KEY (repo, week) NOT ENFORCED)
    WITH ('connector' = 'print');
CREATE TABLE out (z STRING, origin STRING, tag STRING, p INT) WITH ('connector' = 'print');
INSERT INTO out SELECT place.inner_row.z, origin, tags[1], props['a'] FROM commits WHERE place.x > 1;"#), @r##"
[2] Sink(out) print [z, origin, tag, p] changelogMode=[I] parallelism=1
  [1] Calc [z, origin, tag, p] parallelism=1 → chained
        where: place.x > 1
        select: place.inner_row.z AS z, origin, ELEMENT(tags, 1) AS tag, MAP_VALUE(props, 'a') AS p
    [0] Source(commits) filesystem parallelism=1 → chained
          format: json
          late-rows.table: late
          path: /data
          scan: authored_at STRING, tags ARRAY<STRING>, props MAP<STRING, INT>, place ROW<x DOUBLE, inner_row ROW<z STRING>>, origin STRING NOT NULL
          metadata: origin from 'file.name'
          select: tags, props, place.x, place.inner_row.z, origin, TO_TIMESTAMP(authored_at) AS ts
          watermark: ts AS ts - INTERVAL '30 d'
"##);
}

#[test]
fn explain_of_a_query() {
    insta::assert_snapshot!(explain(r#"CREATE TABLE t (a INT, b STRING) WITH ('connector' = 'filesystem', 'path' = '/x', 'format' = 'csv');
EXPLAIN PLAN FOR SELECT a + 1 AS a, b, 'x' || b FROM t WHERE a IN (1, 2) AND b LIKE 'a%';"#), @r##"
[2] Sink(result) print [a, b, EXPR$2] changelogMode=[I] parallelism=1
  [1] Calc [a, b, EXPR$2] parallelism=1 → chained
        where: ((a = 1) OR (a = 2)) AND (b LIKE 'a%')
        select: a + 1 AS a, b, 'x' || b AS EXPR$2
    [0] Source(t) filesystem parallelism=1 → chained
          format: csv
          path: /x
          scan: a INT, b STRING
"##);
}

#[test]
fn insert_with_columns_casts_and_checks() {
    insta::assert_snapshot!(explain(r#"CREATE TABLE t (a INT, b STRING) WITH ('connector' = 'filesystem', 'path' = '/x', 'format' = 'csv');
CREATE TABLE out (a BIGINT NOT NULL, b STRING, c DECIMAL(12, 2)) WITH ('connector' = 'print');
INSERT INTO out (c, a) SELECT a, a FROM t;"#), @r##"
[2] Sink(out) print [a, b, c] changelogMode=[I] parallelism=1
  [1] Calc [a, b, c] parallelism=1 → chained
        select: NOT_NULL(CAST(a AS BIGINT), 'a') AS a, NULL AS b, CAST(a AS DECIMAL(12, 2)) AS c
    [0] Source(t) filesystem parallelism=1 → chained
          format: csv
          path: /x
          scan: a INT, b STRING
          select: a
"##);
}

#[test]
fn the_right_side_of_and_is_guarded_but_the_plan_reads_as_written() {
    insta::assert_snapshot!(explain(r#"CREATE TABLE t (a INT, b INT) WITH ('connector' = 'filesystem', 'path' = '/x', 'format' = 'csv');
EXPLAIN SELECT a FROM t WHERE b <> 0 AND a / b > 1;"#), @r##"
[2] Sink(result) print [a] changelogMode=[I] parallelism=1
  [1] Calc [a] parallelism=1 → chained
        where: (b != 0) AND ((a / b) > 1)
        select: a
    [0] Source(t) filesystem parallelism=1 → chained
          format: csv
          path: /x
          scan: a INT, b INT
"##);
}

/// A table of a blackhole with these columns, and a query into it.
fn into(sink: &str, columns: &str, query: &str) -> String {
    nexmark(&format!("CREATE TABLE out ({columns}) WITH ('connector' = '{sink}');\nINSERT INTO out {query};"))
}

#[test]
fn q15_counts_distinct_values_under_filters_and_updates_by_key_alone() {
    insta::assert_snapshot!(into("blackhole", "`day` STRING, total BIGINT, rank1 BIGINT, bidders BIGINT, rank1_bidders BIGINT",
        "SELECT DATE_FORMAT(`dateTime`, 'yyyy-MM-dd') as `day`, count(*), count(*) filter (where price < 10000), \
         count(distinct bidder), count(distinct bidder) filter (where price < 10000) \
         FROM bid GROUP BY DATE_FORMAT(`dateTime`, 'yyyy-MM-dd')"), @r##"
[4] Sink(out) blackhole [day, total, rank1, bidders, rank1_bidders] changelogMode=[I,UA] parallelism=1
  [3] Calc [day, total, rank1, bidders, rank1_bidders] changelogMode=[I,UA] parallelism=1 → chained
        select: DATE_FORMAT(`dateTime`, 'yyyy-MM-dd') AS day, count$0 AS total, count$1 AS rank1, count$2 AS bidders, count$3 AS rank1_bidders
    [2] GroupAggregate by DATE_FORMAT(`dateTime`, 'yyyy-MM-dd') changelogMode=[I,UA] parallelism=1 → chained
          aggregates: COUNT(*), COUNT(*) FILTER (WHERE $f1), COUNT(DISTINCT bidder), COUNT(DISTINCT bidder) FILTER (WHERE $f1)
      [1] Calc [DATE_FORMAT(`dateTime`, 'yyyy-MM-dd'), $f1, bidder] parallelism=1 → hash(DATE_FORMAT(`dateTime`, 'yyyy-MM-dd'))
            select: DATE_FORMAT(dateTime, 'yyyy-MM-dd') AS DATE_FORMAT(`dateTime`, 'yyyy-MM-dd'), bid.price < 10000 AS $f1, bid.bidder AS bidder
        [0] Source(nexmark) nexmark parallelism=1 → chained
              events.num: 1000
              first-event.rate: 100000
              scan: bid ROW<bidder BIGINT, price BIGINT, dateTime TIMESTAMP(3)>
              pushed filter: event_type IN (2)
              select: bid.bidder, bid.price, bid.dateTime AS dateTime
              watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn an_aggregate_of_an_aggregate_takes_retractions_and_a_filter_needs_old_rows() {
    insta::assert_snapshot!(into("blackhole", "n BIGINT, auctions BIGINT, top BIGINT",
        "SELECT n, COUNT(*), MAX(auction) FROM (SELECT auction, COUNT(*) AS n FROM bid GROUP BY auction) \
         GROUP BY n HAVING COUNT(*) > 1"), @r##"
[6] Sink(out) blackhole [n, auctions, top] changelogMode=[I,UB,UA,D] parallelism=1
  [5] Calc [n, auctions, top] changelogMode=[I,UB,UA,D] parallelism=1 → chained
        where: count$0 > 1
        select: n, count$0 AS auctions, max$1 AS top
    [4] GroupAggregate by n changelogMode=[I,UB,UA,D] parallelism=1 → chained
          aggregates: COUNT(*), MAX(auction)
      [3] Calc [n, auction] changelogMode=[I,UB,UA] parallelism=1 → hash(n)
            select: n, auction
        [2] GroupAggregate by auction changelogMode=[I,UB,UA] parallelism=1 → chained
              aggregates: COUNT(*)
          [1] Calc [auction] parallelism=1 → hash(auction)
                select: bid.auction AS auction
            [0] Source(nexmark) nexmark parallelism=1 → chained
                  events.num: 1000
                  first-event.rate: 100000
                  scan: bid ROW<auction BIGINT, dateTime TIMESTAMP(3)>
                  pushed filter: event_type IN (2)
                  select: bid.auction, bid.dateTime AS dateTime
                  watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn a_filter_by_the_key_needs_no_old_rows_and_a_printed_table_shows_them() {
    let query = "SELECT * FROM (SELECT auction, MAX(price) FROM bid GROUP BY auction) WHERE auction > 5";
    insta::assert_snapshot!(into("blackhole", "auction BIGINT, top BIGINT", query), @r##"
[4] Sink(out) blackhole [auction, top] changelogMode=[I,UA] parallelism=1
  [3] Calc [auction, top] changelogMode=[I,UA] parallelism=1 → chained
        where: auction > 5
        select: auction, max$0 AS top
    [2] GroupAggregate by auction changelogMode=[I,UA] parallelism=1 → chained
          aggregates: MAX(price)
      [1] Calc [auction, price] parallelism=1 → hash(auction)
            select: bid.auction AS auction, bid.price AS price
        [0] Source(nexmark) nexmark parallelism=1 → chained
              events.num: 1000
              first-event.rate: 100000
              scan: bid ROW<auction BIGINT, price BIGINT, dateTime TIMESTAMP(3)>
              pushed filter: event_type IN (2)
              select: bid.auction, bid.price, bid.dateTime AS dateTime
              watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
    insta::assert_snapshot!(into("print", "auction BIGINT, top BIGINT", query), @r##"
[4] Sink(out) print [auction, top] changelogMode=[I,UB,UA] parallelism=1
  [3] Calc [auction, top] changelogMode=[I,UB,UA] parallelism=1 → chained
        where: auction > 5
        select: auction, max$0 AS top
    [2] GroupAggregate by auction changelogMode=[I,UB,UA] parallelism=1 → chained
          aggregates: MAX(price)
      [1] Calc [auction, price] parallelism=1 → hash(auction)
            select: bid.auction AS auction, bid.price AS price
        [0] Source(nexmark) nexmark parallelism=1 → chained
              events.num: 1000
              first-event.rate: 100000
              scan: bid ROW<auction BIGINT, price BIGINT, dateTime TIMESTAMP(3)>
              pushed filter: event_type IN (2)
              select: bid.auction, bid.price, bid.dateTime AS dateTime
              watermark: dateTime AS dateTime - INTERVAL '4 s'
"##);
}

#[test]
fn distinct_rows_and_unions_are_groups_without_aggregates() {
    insta::assert_snapshot!(into("print", "a BIGINT, b BIGINT",
        "SELECT DISTINCT auction, bidder FROM bid UNION SELECT bidder, auction FROM bid WHERE price > 5"), @r##"
[6] Sink(out) print [a, b] changelogMode=[I] parallelism=1
  [5] Calc [a, b] parallelism=1 → chained
        select: auction AS a, bidder AS b
    [4] GroupAggregate by auction, bidder parallelism=1 → chained
      [2] GroupAggregate by auction, bidder parallelism=1 → hash(auction, bidder)
        [1] Calc [auction, bidder] parallelism=1 → hash(auction, bidder)
              select: bid.auction AS auction, bid.bidder AS bidder
          [0] Source(nexmark) nexmark parallelism=1 → chained
                events.num: 1000
                first-event.rate: 100000
                scan: bid ROW<auction BIGINT, bidder BIGINT, price BIGINT, dateTime TIMESTAMP(3)>
                pushed filter: event_type IN (2)
                select: bid.auction, bid.bidder, bid.price, bid.dateTime AS dateTime
                watermark: dateTime AS dateTime - INTERVAL '4 s'
      [3] Calc [auction, bidder] parallelism=1 → hash(auction, bidder)
            where: bid.price > 5
            select: bid.bidder AS auction, bid.auction AS bidder
        [0] Source(nexmark) nexmark → chained (see above)
"##);
}

#[test]
fn an_aggregate_without_keys_is_written_by_one_subtask_in_order() {
    insta::assert_snapshot!(nexmark("SET 'parallelism.default' = '2';
CREATE TABLE out (n BIGINT) WITH ('connector' = 'print');
INSERT INTO out SELECT COUNT(*) FROM bid UNION ALL SELECT SUM(price) FROM bid;"), @r##"
[7] Sink(out) print [n] changelogMode=[I,UB,UA] parallelism=2
  [5] Calc [n] changelogMode=[I,UB,UA] parallelism=1 → all to one
        select: count$0 AS n
    [2] GroupAggregate changelogMode=[I,UB,UA] parallelism=1 → chained
          aggregates: COUNT(*)
      [1] Calc [$f0] parallelism=2 → all to one
            select: TRUE AS $f0
        [0] Source(nexmark) nexmark parallelism=2 → chained
              events.num: 1000
              first-event.rate: 100000
              scan: bid ROW<price BIGINT, dateTime TIMESTAMP(3)>
              pushed filter: event_type IN (2)
              select: bid.price, bid.dateTime AS dateTime
              watermark: dateTime AS dateTime - INTERVAL '4 s'
  [6] Calc [n] changelogMode=[I,UB,UA] parallelism=1 → all to one
        select: sum$0 AS n
    [4] GroupAggregate changelogMode=[I,UB,UA] parallelism=1 → chained
          aggregates: SUM(price)
      [3] Calc [price] parallelism=2 → all to one
            select: bid.price AS price
        [0] Source(nexmark) nexmark → chained (see above)
"##);
}
