-- What one process does for all of them: which one, and until when the others need not look. Times
-- are the database's.
CREATE TABLE tasks (
    name       TEXT   NOT NULL PRIMARY KEY,
    holder     TEXT   NOT NULL,
    held_until BIGINT NOT NULL
);
