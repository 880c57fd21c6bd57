-- Ids are text, times are milliseconds since the Unix epoch (deadlines and ages by the process's
-- clock, leases by the database's), bodies are bytes. One text for SQLite and Postgres.

-- A file: uploaded, or one of the two that a batch makes. Never removed while its owner may still
-- page past it: a deleted file stays as a row without content.
CREATE TABLE files (
    id          TEXT    NOT NULL PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    purpose     TEXT    NOT NULL,
    filename    TEXT    NOT NULL,
    bytes       BIGINT  NOT NULL,
    created_at  BIGINT  NOT NULL,
    expires_at  BIGINT,
    state       TEXT    NOT NULL CHECK (state IN ('uploading', 'ready', 'deleted', 'purged')),
    -- uploading: the upload's last sign of life; deleted: when it was hidden
    touched_at  BIGINT  NOT NULL,
    -- how many requests a batch file holds, and what is wrong with them (JSON)
    requests    BIGINT  NOT NULL DEFAULT 0,
    findings    TEXT,
    -- a batch's output or error file: its content is the batch's segments, and this the
    -- number of its bytes that each chunk gave
    batch_id    TEXT,
    kind        TEXT CHECK (kind IN ('output', 'error')),
    chunk_sizes BYTEA
);
CREATE INDEX files_listed ON files (tenant, created_at, id) WHERE state = 'ready';
CREATE INDEX files_to_sweep ON files (touched_at) WHERE state IN ('uploading', 'deleted');
CREATE INDEX files_to_expire ON files (expires_at) WHERE state = 'ready';
CREATE INDEX files_of_batch ON files (batch_id) WHERE batch_id IS NOT NULL;

-- The models that a batch file names; '' stands for a line that names none.
CREATE TABLE file_models (
    file_id     TEXT    NOT NULL,
    model_no    BIGINT  NOT NULL,
    name        TEXT    NOT NULL,
    requests    BIGINT  NOT NULL,
    first_lines TEXT    NOT NULL,
    PRIMARY KEY (file_id, model_no)
);

-- A file's bytes, cut after line ends and compressed. A chunk of more than 1 MiB (one long line)
-- stands in several pieces.
CREATE TABLE chunks (
    file_id     TEXT    NOT NULL,
    chunk_no    BIGINT  NOT NULL,
    piece_no    BIGINT  NOT NULL,
    byte_offset BIGINT  NOT NULL,
    bytes       BIGINT  NOT NULL,
    first_line  BIGINT  NOT NULL,
    lines       BIGINT  NOT NULL,
    data        BYTEA   NOT NULL,
    PRIMARY KEY (file_id, chunk_no, piece_no)
);
CREATE INDEX chunks_by_offset ON chunks (file_id, byte_offset);

-- How many lines of each model a chunk has: what a batch's units are made from.
CREATE TABLE chunk_models (
    file_id     TEXT    NOT NULL,
    chunk_no    BIGINT  NOT NULL,
    model_no    BIGINT  NOT NULL,
    requests    BIGINT  NOT NULL,
    chunk_bytes BIGINT  NOT NULL,
    PRIMARY KEY (file_id, chunk_no, model_no)
);

CREATE TABLE batches (
    id                     TEXT    NOT NULL PRIMARY KEY,
    tenant                 TEXT    NOT NULL,
    endpoint               TEXT    NOT NULL,
    input_file_id          TEXT    NOT NULL,
    completion_window      TEXT    NOT NULL,
    output_expires_seconds BIGINT  NOT NULL,
    metadata               TEXT,
    priority               BIGINT  NOT NULL DEFAULT 0,
    status                 TEXT    NOT NULL CHECK (status IN
        ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired',
         'cancelling', 'cancelled')),
    -- why lines that have not run will not run
    ending                 TEXT CHECK (ending IN ('cancelled', 'expired')),
    model                  TEXT,
    errors                 TEXT,
    total                  BIGINT  NOT NULL DEFAULT 0,
    output_file_id         TEXT,
    error_file_id          TEXT,
    created_at             BIGINT  NOT NULL,
    -- NULL: no window (`nightshift run`)
    expires_at             BIGINT,
    in_progress_at         BIGINT,
    finalizing_at          BIGINT,
    completed_at           BIGINT,
    failed_at              BIGINT,
    expired_at             BIGINT,
    cancelling_at          BIGINT,
    cancelled_at           BIGINT
);
CREATE INDEX batches_by_age ON batches (tenant, created_at, id);
CREATE INDEX batches_live ON batches (status)
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
CREATE INDEX batches_by_input ON batches (input_file_id);

-- A batch's counts, in slots, so that replicas do not queue on one row. Summed when read.
CREATE TABLE batch_counts (
    batch_id         TEXT   NOT NULL,
    slot             BIGINT NOT NULL,
    completed        BIGINT NOT NULL,
    failed           BIGINT NOT NULL,
    cancelled        BIGINT NOT NULL,
    input_tokens     BIGINT NOT NULL,
    cached_tokens    BIGINT NOT NULL,
    output_tokens    BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    total_tokens     BIGINT NOT NULL,
    PRIMARY KEY (batch_id, slot)
);

-- One row for each live batch and model: what a replica ranks before it leases.
CREATE TABLE backlog (
    batch_id TEXT   NOT NULL,
    model_no BIGINT NOT NULL,
    model    TEXT   NOT NULL,
    -- units that nobody holds
    waiting  BIGINT NOT NULL,
    PRIMARY KEY (batch_id, model_no)
);

-- The piece of work that is leased: the lines of one model in one chunk of a batch.
CREATE TABLE units (
    batch_id     TEXT   NOT NULL,
    chunk_no     BIGINT NOT NULL,
    model_no     BIGINT NOT NULL,
    state        TEXT   NOT NULL CHECK (state IN ('waiting', 'leased', 'done')),
    -- the fence: who may write, under which lease of this unit, after how many flushes
    owner        TEXT,
    epoch        BIGINT NOT NULL,
    flush_no     BIGINT NOT NULL,
    takeovers    BIGINT NOT NULL,
    requests     BIGINT NOT NULL,
    chunk_bytes  BIGINT NOT NULL,
    -- one bit a line of the chunk
    done         BYTEA  NOT NULL,
    output_bytes BIGINT NOT NULL,
    error_bytes  BIGINT NOT NULL,
    PRIMARY KEY (batch_id, chunk_no, model_no)
);
CREATE INDEX units_waiting ON units (batch_id, model_no, chunk_no) WHERE state = 'waiting';
CREATE INDEX units_leased ON units (owner) WHERE state = 'leased';
CREATE INDEX units_open ON units (batch_id) WHERE state <> 'done';

-- A group of finished lines of one unit in their final form. Written once.
CREATE TABLE segments (
    batch_id  TEXT   NOT NULL,
    chunk_no  BIGINT NOT NULL,
    model_no  BIGINT NOT NULL,
    flush_no  BIGINT NOT NULL,
    entries   BYTEA  NOT NULL,
    data      BYTEA  NOT NULL,
    PRIMARY KEY (batch_id, chunk_no, model_no, flush_no)
);

-- The incarnations of processes that work, each with one lease. `lease_until` is the database's time.
CREATE TABLE replicas (
    token       TEXT   NOT NULL PRIMARY KEY,
    name        TEXT   NOT NULL,
    started_at  BIGINT NOT NULL,
    lease_until BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id         TEXT    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    hash       TEXT    NOT NULL UNIQUE,
    hint       TEXT    NOT NULL,
    admin      BOOLEAN NOT NULL,
    created_at BIGINT  NOT NULL,
    revoked_at BIGINT
);

-- What a request with an Idempotency-Key was answered.
CREATE TABLE idempotency (
    tenant      TEXT   NOT NULL,
    route       TEXT   NOT NULL,
    key         TEXT   NOT NULL,
    -- who is working on the first request, until there is an answer
    claim       TEXT   NOT NULL,
    touched_at  BIGINT NOT NULL,
    fingerprint TEXT,
    status      BIGINT,
    body        TEXT,
    PRIMARY KEY (tenant, route, key)
);
CREATE INDEX idempotency_by_age ON idempotency (touched_at);
