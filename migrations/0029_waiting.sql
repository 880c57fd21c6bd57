-- The batches of a tenant of which lines may wait, without those that have ended: those of the highest
-- priority, and the oldest or the newest.
CREATE INDEX batches_by_priority ON batches (tenant, priority DESC, created_at, id)
    WHERE status IN ('in_progress', 'finalizing', 'cancelling');
CREATE INDEX batches_in_progress ON batches (tenant, created_at, id)
    WHERE status IN ('in_progress', 'finalizing', 'cancelling');
