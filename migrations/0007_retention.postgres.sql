-- Rows that are deleted by the thousand: their space is used again before a fifth of the table is
-- dead.
ALTER TABLE chunks SET (autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE segments SET (autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_scale_factor = 0.05);
