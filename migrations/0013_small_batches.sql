-- What a batch of few lines leaves behind beside them: few rows.

-- The models that a batch file names (JSON): a list with the name of each ('' stands for lines that
-- name none), how many lines name the model, and the first of these lines.
ALTER TABLE files ADD COLUMN models TEXT;
-- 1: the file is one chunk, and has no rows in `chunk_models`. The list of its models says the same.
ALTER TABLE files ADD COLUMN is_one_chunk BIGINT NOT NULL DEFAULT 0;

-- The counts of a batch that has ended: none of its rows stays in `batch_counts`. Zero until then.
ALTER TABLE batches ADD COLUMN completed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN failed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN cancelled BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN input_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN cached_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN output_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN reasoning_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN total_tokens BIGINT NOT NULL DEFAULT 0;
UPDATE batches SET
    completed = counted.completed,
    failed = counted.failed,
    cancelled = counted.cancelled,
    input_tokens = counted.input_tokens,
    cached_tokens = counted.cached_tokens,
    output_tokens = counted.output_tokens,
    reasoning_tokens = counted.reasoning_tokens,
    total_tokens = counted.total_tokens
FROM (SELECT batch_id,
        CAST(SUM(completed) AS BIGINT) AS completed,
        CAST(SUM(failed) AS BIGINT) AS failed,
        CAST(SUM(cancelled) AS BIGINT) AS cancelled,
        CAST(SUM(input_tokens) AS BIGINT) AS input_tokens,
        CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens,
        CAST(SUM(output_tokens) AS BIGINT) AS output_tokens,
        CAST(SUM(reasoning_tokens) AS BIGINT) AS reasoning_tokens,
        CAST(SUM(total_tokens) AS BIGINT) AS total_tokens
    FROM batch_counts GROUP BY batch_id) counted
WHERE batches.id = counted.batch_id
    AND batches.status IN ('completed', 'failed', 'expired', 'cancelled');
DELETE FROM batch_counts WHERE batch_id IN
    (SELECT id FROM batches WHERE status IN ('completed', 'failed', 'expired', 'cancelled'));
