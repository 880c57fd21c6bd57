-- Answers that are kept to be given to equal requests. The key is a hash of what was asked, of whom,
-- and for which tenant.
CREATE TABLE answers (
    key          BYTEA  NOT NULL PRIMARY KEY,
    tenant       TEXT   NOT NULL,
    -- the input file of the line that was answered
    file_id      TEXT   NOT NULL,
    kept_at      BIGINT NOT NULL,
    status       BIGINT NOT NULL,
    -- the model server's own
    request_id   TEXT,
    -- JSON
    warnings     TEXT,
    -- of the answer, and of what is stored of it
    bytes        BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL,
    answer       BYTEA  NOT NULL
);
CREATE INDEX answers_by_age ON answers (kept_at);
CREATE INDEX answers_of_tenant ON answers (tenant, kept_at);
CREATE INDEX answers_of_file ON answers (file_id);

-- How many answers of each tenant are kept, and their stored bytes: so that nobody adds them up.
CREATE TABLE answer_totals (
    tenant  TEXT   NOT NULL PRIMARY KEY,
    answers BIGINT NOT NULL,
    bytes   BIGINT NOT NULL
);

-- What a batch asks for of reuse, NULL: as the server is configured; and whether its output lines say
-- how they were answered, 1 or 0.
ALTER TABLE batches ADD COLUMN reuse TEXT;
ALTER TABLE batches ADD COLUMN details BIGINT;
