//! Input, scripts and arithmetic that several suites use.

use std::fmt::Write;

use serde_json::{Value, json};

/// Partitions of the input stream.
pub const PARTITIONS: &str = "4";

/// `count` readings from number `from` on: ten sensors, a reading each 10 ms of event time, up to two seconds out of order.
pub fn readings(from: u64, count: u64) -> Vec<Value> {
    let reading = |i: u64| {
        let random = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let at_ms = i * 10 + 2_000 - random % 2_000;
        let (second, ms) = (at_ms / 1000, at_ms % 1000);
        let at = format!("2026-01-01T{:02}:{:02}:{:02}.{ms:03}Z", second / 3600, second / 60 % 60, second % 60);
        json!({"sensor": format!("s{}", random % 10), "reading": random % 100, "at": at})
    };
    (from..from + count).map(reading).collect()
}

/// One JSON text a line.
pub fn lines(rows: &[Value]) -> String {
    rows.iter().fold(String::new(), |mut text, row| {
        writeln!(text, "{row}").expect("a string");
        text
    })
}

/// Counts and sums readings per sensor and second, from stream `test/in` to stream `test/out`.
pub fn totals_script(checkpoint_interval: &str) -> String {
    format!(
        "CREATE TABLE readings (sensor STRING, reading BIGINT, `at` TIMESTAMP(3),
             WATERMARK FOR `at` AS `at` - INTERVAL '3' SECOND)
         WITH ('connector' = 'stream-store', 'stream' = 'test/in', 'format' = 'json');
         CREATE TABLE totals (sensor STRING, window_start TIMESTAMP(3), n BIGINT, total BIGINT)
         WITH ('connector' = 'stream-store', 'stream' = 'test/out', 'format' = 'json', 'sink.partitions' = '2');
         SET 'execution.checkpointing.interval' = '{checkpoint_interval}';
         INSERT INTO totals
         SELECT sensor, window_start, COUNT(*), SUM(reading)
         FROM TABLE(TUMBLE(TABLE readings, DESCRIPTOR(`at`), INTERVAL '1' SECOND))
         GROUP BY sensor, window_start, window_end;"
    )
}

/// Offsets of a snapshot's sources, added up.
pub fn rows_covered(snapshot: &Value) -> u64 {
    let sources = snapshot["sources"].as_array().expect("sources");
    sources.iter().map(|source| source["offset"].as_u64().expect("an offset")).sum()
}
