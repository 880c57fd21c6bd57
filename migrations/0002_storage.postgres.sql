-- These bytes are compressed already: no second attempt at it.
ALTER TABLE chunks ALTER COLUMN data SET STORAGE EXTERNAL;
ALTER TABLE segments ALTER COLUMN data SET STORAGE EXTERNAL;
ALTER TABLE segments ALTER COLUMN entries SET STORAGE EXTERNAL;
-- Rows that every flush updates: room for the new version beside the old one.
ALTER TABLE units SET (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE batch_counts SET (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE backlog SET (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.02);
