-- What was used, and what it cost. A row stands for lines and their calls: `requests` are lines that
-- were sent and have ended, `failed` those of them without a good answer, `retries` calls after
-- which their line was sent again, `lost` calls that may be billed and whose answers nobody has,
-- `reused` lines that got the answer of another, `unpriced` calls whose cost is not known. A cost is
-- in millionths of the currency, and `cost_rest` in parts of 10^9 of a millionth: sums of both are
-- exact. Where there is no key, model or task, the column is ''.

-- By the minute in which lines were written; in slots, so that replicas do not queue on one row.
-- After two days a row moves into its hour.
CREATE TABLE usage_minutes (
    start                BIGINT NOT NULL,
    tenant               TEXT   NOT NULL,
    key_id               TEXT   NOT NULL,
    model                TEXT   NOT NULL,
    upstream             TEXT   NOT NULL,
    task                 TEXT   NOT NULL,
    endpoint             TEXT   NOT NULL,
    slot                 BIGINT NOT NULL,
    requests             BIGINT NOT NULL,
    failed               BIGINT NOT NULL,
    retries              BIGINT NOT NULL,
    lost                 BIGINT NOT NULL,
    reused               BIGINT NOT NULL,
    unpriced             BIGINT NOT NULL,
    input_tokens         BIGINT NOT NULL,
    cached_tokens        BIGINT NOT NULL,
    cache_written_tokens BIGINT NOT NULL,
    output_tokens        BIGINT NOT NULL,
    reasoning_tokens     BIGINT NOT NULL,
    cost                 BIGINT NOT NULL,
    cost_rest            BIGINT NOT NULL,
    latency_ms           BIGINT NOT NULL,
    PRIMARY KEY (start, tenant, key_id, model, upstream, task, endpoint, slot)
);

-- By the hour.
CREATE TABLE usage_hours (
    start                BIGINT NOT NULL,
    tenant               TEXT   NOT NULL,
    key_id               TEXT   NOT NULL,
    model                TEXT   NOT NULL,
    upstream             TEXT   NOT NULL,
    task                 TEXT   NOT NULL,
    endpoint             TEXT   NOT NULL,
    requests             BIGINT NOT NULL,
    failed               BIGINT NOT NULL,
    retries              BIGINT NOT NULL,
    lost                 BIGINT NOT NULL,
    reused               BIGINT NOT NULL,
    unpriced             BIGINT NOT NULL,
    input_tokens         BIGINT NOT NULL,
    cached_tokens        BIGINT NOT NULL,
    cache_written_tokens BIGINT NOT NULL,
    output_tokens        BIGINT NOT NULL,
    reasoning_tokens     BIGINT NOT NULL,
    cost                 BIGINT NOT NULL,
    cost_rest            BIGINT NOT NULL,
    latency_ms           BIGINT NOT NULL,
    PRIMARY KEY (start, tenant, key_id, model, upstream, task, endpoint)
);

-- By batch.
CREATE TABLE usage_batches (
    batch_id             TEXT   NOT NULL,
    model                TEXT   NOT NULL,
    upstream             TEXT   NOT NULL,
    slot                 BIGINT NOT NULL,
    requests             BIGINT NOT NULL,
    failed               BIGINT NOT NULL,
    retries              BIGINT NOT NULL,
    lost                 BIGINT NOT NULL,
    reused               BIGINT NOT NULL,
    unpriced             BIGINT NOT NULL,
    input_tokens         BIGINT NOT NULL,
    cached_tokens        BIGINT NOT NULL,
    cache_written_tokens BIGINT NOT NULL,
    output_tokens        BIGINT NOT NULL,
    reasoning_tokens     BIGINT NOT NULL,
    cost                 BIGINT NOT NULL,
    cost_rest            BIGINT NOT NULL,
    latency_ms           BIGINT NOT NULL,
    PRIMARY KEY (batch_id, model, upstream, slot)
);
