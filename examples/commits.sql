-- Changed files per repository and 7-day window of the time at which each change was written. Such times are far out of
-- order, by months for some: the watermark waits for 30 days, and what comes later still is kept apart, not lost.
--
--     cargo xtask quickstart --input commits.jsonl.gz --script examples/commits.sql
CREATE TABLE changes (
    repo STRING,
    `commit` STRING,
    author STRING,
    authored_at TIMESTAMP(3),
    committed_at TIMESTAMP(3),
    dir STRING,
    ext STRING,
    WATERMARK FOR authored_at AS authored_at - INTERVAL '30' DAY
) WITH (
    'connector' = 'stream-store',
    'stream' = 'quickstart/input',
    'format' = 'json',
    'late-rows.table' = 'late_changes'
);

CREATE TABLE late_changes (
    repo STRING,
    `commit` STRING,
    author STRING,
    authored_at TIMESTAMP(3),
    committed_at TIMESTAMP(3),
    dir STRING,
    ext STRING
) WITH (
    'connector' = 'stream-store',
    'stream' = 'quickstart/late',
    'format' = 'json'
);

CREATE TABLE changed_files (
    repo STRING,
    window_start TIMESTAMP(3),
    window_end TIMESTAMP(3),
    files BIGINT,
    authors BIGINT
) WITH (
    'connector' = 'stream-store',
    'stream' = 'quickstart/output',
    'format' = 'json',
    'sink.partitions' = '2',
    'key.fields' = 'repo'
);

SET 'execution.checkpointing.interval' = '500 ms';

INSERT INTO changed_files
SELECT repo, window_start, window_end, COUNT(*), COUNT(DISTINCT author)
FROM TABLE(TUMBLE(TABLE changes, DESCRIPTOR(authored_at), INTERVAL '7' DAY))
GROUP BY repo, window_start, window_end;
