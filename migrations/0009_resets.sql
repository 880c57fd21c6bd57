-- Upstreams that an operator says are mended: every process opens what it had closed there. The time
-- is the database's.
CREATE TABLE upstream_resets (
    upstream TEXT   NOT NULL PRIMARY KEY,
    reset_at BIGINT NOT NULL
);
