-- Clicks per page and minute, from the stream demo/clicks into the stream demo/totals.
CREATE TABLE clicks (
    page STRING,
    `user` STRING,
    ts TIMESTAMP(3),
    WATERMARK FOR ts AS ts - INTERVAL '10' SECOND
) WITH (
    'connector' = 'stream-store',
    'stream' = 'demo/clicks',
    'format' = 'json'
);

CREATE TABLE totals (
    page STRING,
    window_start TIMESTAMP(3),
    clicks BIGINT,
    users BIGINT
) WITH (
    'connector' = 'stream-store',
    'stream' = 'demo/totals',
    'format' = 'json'
);

INSERT INTO totals
SELECT page, window_start, COUNT(*), COUNT(DISTINCT `user`)
FROM TABLE(TUMBLE(TABLE clicks, DESCRIPTOR(ts), INTERVAL '1' MINUTE))
GROUP BY page, window_start, window_end;
