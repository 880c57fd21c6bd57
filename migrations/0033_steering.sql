-- Since when nothing new of a batch is sent, and the key that has paused it. NULL: it is not paused.
-- The time before which none of its lines is sent. Times are in milliseconds.
ALTER TABLE batches ADD COLUMN paused_at BIGINT;
ALTER TABLE batches ADD COLUMN paused_by TEXT;
ALTER TABLE batches ADD COLUMN not_before BIGINT;
