-- What each process tells of the batches that it works on, for those who watch one: lines in flight,
-- lines and tokens in a thousand seconds at the pace of the last minute, and what lines wait for, in
-- words. A row is true for ten seconds after `told_at`, which is in milliseconds.
CREATE TABLE batch_progress (
    token     TEXT   NOT NULL REFERENCES replicas (token) ON DELETE CASCADE,
    batch_id  TEXT   NOT NULL,
    told_at   BIGINT NOT NULL,
    in_flight BIGINT NOT NULL,
    lines     BIGINT NOT NULL,
    tokens    BIGINT NOT NULL,
    waits_for TEXT,
    PRIMARY KEY (token, batch_id)
);
CREATE INDEX batch_progress_batch ON batch_progress (batch_id);
