-- The batches of a tenant that wait, from either end of its list, without those that have ended.
CREATE INDEX batches_waiting ON batches (tenant, priority DESC, created_at, id)
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
