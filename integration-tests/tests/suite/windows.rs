//! Windowed aggregates over streams, across processes.

use weir_integration_tests::cluster::Cluster;
use weir_integration_tests::jobs::{job_in_state, job_until};
use weir_integration_tests::oracle::{fold, millis, tumble};
use weir_proto::pb::client::v1::JobState;

use crate::support::{append, drain, has_read, read, readings, submit, totals_script};

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_job_has_written_every_window_exactly_once() {
    let cluster = Cluster::start(2, 1);
    let rows = readings(0, 20_000);
    append(&cluster, "test/in", &rows);
    let job = submit(&cluster, &totals_script("200 ms"), &["-p", "2"]);
    has_read(&cluster, &job, 20_000).await;
    drain(&cluster, &job).await;
    let written = read(&cluster, "test/out");
    let expected = tumble(&rows, "sensor", "at", "reading", 1000);
    assert_eq!(written.len(), expected.len(), "a window was written twice");
    assert_eq!(fold(&written, "sensor"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_job_finishes_by_itself_with_all_windows_fired() {
    let cluster = Cluster::start(2, 2);
    let rows = readings(0, 5_000);
    append(&cluster, "test/in", &rows);
    let script = totals_script("1 s").replace("'test/in',", "'test/in', 'scan.bounded.mode' = 'latest',");
    let job = submit(&cluster, &script, &["-p", "3"]);
    job_in_state(&cluster, &job, JobState::Finished).await;
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), tumble(&rows, "sensor", "at", "reading", 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn late_rows_go_to_their_own_stream_and_every_row_is_in_exactly_one_place() {
    let cluster = Cluster::start(2, 1);
    let mut rows = readings(0, 10_000);
    // Every hundredth of the last readings comes half a minute late.
    for row in rows.iter_mut().skip(8_000).step_by(100) {
        row["at"] = "2026-01-01T00:00:30.000Z".into();
    }
    let script = totals_script("1 s")
        .replace("'stream' = 'test/in',", "'stream' = 'test/in', 'late-rows.table' = 'late',")
        + "CREATE TABLE late (sensor STRING, reading BIGINT, `at` TIMESTAMP(3))
           WITH ('connector' = 'stream-store', 'stream' = 'test/late', 'format' = 'json');";
    let script = move_late_table_first(&script);
    append(&cluster, "test/in", &rows[..8_000]);
    let job = submit(&cluster, &script, &["-p", "2"]);
    // Event time of the windows has passed the first minute: half a minute is late from now on.
    let a_minute = millis("2026-01-01T00:01:00.000Z");
    job_until(&cluster, &job, "event time beyond the first minute", |detail| {
        let windows = detail.chains.last().expect("a chain of windows");
        windows.subtasks.iter().all(|subtask| subtask.watermark_ms > a_minute)
    })
    .await;
    append(&cluster, "test/in", &rows[8_000..]);
    has_read(&cluster, &job, 10_000).await;
    drain(&cluster, &job).await;
    let late = read(&cluster, "test/late");
    assert_eq!(late.len(), 20);
    let mut on_time = tumble(&rows, "sensor", "at", "reading", 1000);
    for ((sensor, start), (n, total)) in tumble(&late, "sensor", "at", "reading", 1000) {
        let entry = on_time.get_mut(&(sensor, start)).expect("late rows are input rows");
        *entry = (entry.0 - n, entry.1 - total);
    }
    on_time.retain(|_, (n, _)| *n > 0);
    assert_eq!(fold(&read(&cluster, "test/out"), "sensor"), on_time);
}

/// Tables are declared before they are used.
fn move_late_table_first(script: &str) -> String {
    let at = script.find("CREATE TABLE late").expect("the table of late rows");
    format!("{}\n{}", &script[at..], &script[..at])
}
