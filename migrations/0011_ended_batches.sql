-- When a batch ended: operators are shown the batches of the last hour, however many others there are.
CREATE INDEX batches_ended
    ON batches ((COALESCE(completed_at, failed_at, expired_at, cancelled_at)), id)
    WHERE status IN ('completed', 'failed', 'expired', 'cancelled');
