-- What a batch of few lines leaves behind beside them: few rows.

-- The models that a batch file names (JSON): a list with the name of each ('' stands for lines that
-- name none), how many lines name the model, and the first of these lines.
ALTER TABLE files ADD COLUMN models TEXT;
-- 1: the file is one chunk, and has no rows in `chunk_models`. The list of its models says the same.
ALTER TABLE files ADD COLUMN is_one_chunk BIGINT NOT NULL DEFAULT 0;

-- The counts of a batch that has ended. Zero until then. Rows in `batch_counts` are added to them:
-- those of a live batch, and of one that ended before this. Servers move the latter by and by.
ALTER TABLE batches ADD COLUMN completed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN failed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN cancelled BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN input_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN cached_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN output_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN reasoning_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN total_tokens BIGINT NOT NULL DEFAULT 0;
