-- A model at an upstream may be closed for one of the upstream's keys alone. What the table had holds
-- for minutes at most, and is told anew.
DROP TABLE gates;

CREATE TABLE gates (
    upstream     TEXT   NOT NULL,
    -- what the key is called; empty where the upstream has not several
    key_name     TEXT   NOT NULL,
    -- as the upstream calls it
    model        TEXT   NOT NULL,
    closed_until BIGINT NOT NULL,
    PRIMARY KEY (upstream, key_name, model)
);
