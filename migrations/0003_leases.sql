-- What a unit's dead owners leave behind, so that a line that kills its process is found.

-- Whether lines may have been sent under the present lease: only then does an owner's death count
-- against the unit. Taken for granted until the unit has been taken over once; after that it is
-- noted before the first line is sent.
ALTER TABLE units ADD COLUMN begun BIGINT NOT NULL DEFAULT 1;
-- Of a unit that runs alone: the line that was noted last before it was sent, and how many
-- processes have died since.
ALTER TABLE units ADD COLUMN noted_line BIGINT;
ALTER TABLE units ADD COLUMN crashes BIGINT NOT NULL DEFAULT 0;

-- How often the replica renews its lease: how long to watch it to see whether it lives.
ALTER TABLE replicas ADD COLUMN beat_ms BIGINT NOT NULL DEFAULT 5000;
CREATE UNIQUE INDEX replicas_by_name ON replicas (name);
