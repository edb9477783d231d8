-- Page views per page and ten seconds, from a stream into a stream; views that come behind the watermark are kept apart.
CREATE TABLE views (
    page STRING,
    visitor STRING,
    cents BIGINT,
    viewed_at TIMESTAMP(3),
    WATERMARK FOR viewed_at AS viewed_at - INTERVAL '5' SECOND
) WITH (
    'connector' = 'stream-store',
    'stream' = 'quickstart/input',
    'format' = 'json',
    'late-rows.table' = 'late_views'
);

CREATE TABLE late_views (
    page STRING,
    visitor STRING,
    cents BIGINT,
    viewed_at TIMESTAMP(3)
) WITH (
    'connector' = 'stream-store',
    'stream' = 'quickstart/late',
    'format' = 'json'
);

CREATE TABLE totals (
    page STRING,
    window_start TIMESTAMP(3),
    window_end TIMESTAMP(3),
    views BIGINT,
    visitors BIGINT,
    cents BIGINT,
    dearest BIGINT
) WITH (
    'connector' = 'stream-store',
    'stream' = 'quickstart/output',
    'format' = 'json',
    'sink.partitions' = '2',
    'key.fields' = 'page'
);

SET 'execution.checkpointing.interval' = '250 ms';

INSERT INTO totals
SELECT page, window_start, window_end, COUNT(*), COUNT(DISTINCT visitor), SUM(cents), MAX(cents)
FROM TABLE(TUMBLE(TABLE views, DESCRIPTOR(viewed_at), INTERVAL '10' SECOND))
GROUP BY page, window_start, window_end;
