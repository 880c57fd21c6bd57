-- How many calls a process has in flight at an upstream that was disabled at `changed_at`: none, in
-- the rows of the versions before, which told nothing else.
ALTER TABLE upstream_drains ADD COLUMN in_flight BIGINT NOT NULL DEFAULT 0;
