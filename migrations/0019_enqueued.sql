-- What a batch adds to what its tenant has enqueued, beside its requests: an estimate of its input.
ALTER TABLE batches ADD COLUMN estimated_tokens BIGINT NOT NULL DEFAULT 0;
UPDATE batches SET estimated_tokens = COALESCE(
    (SELECT (bytes + 3) / 4 FROM files WHERE files.id = batches.input_file_id), 0)
WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');

-- The live batches of a tenant are found without those of others.
DROP INDEX batches_live;
CREATE INDEX batches_live ON batches (status, tenant)
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
