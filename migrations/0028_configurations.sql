-- Which configuration a process runs by, for its operators: a hash without secrets, and when the
-- process read it, by the process's clock. NULL until the process has said so.
ALTER TABLE replicas ADD COLUMN config_hash TEXT;
ALTER TABLE replicas ADD COLUMN config_read_at BIGINT;
