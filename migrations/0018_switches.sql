-- What operators have set for upstreams at run time. Times are the database's.
CREATE TABLE upstream_switches (
    upstream   TEXT    NOT NULL PRIMARY KEY,
    -- whether lines are sent there
    enabled    BOOLEAN NOT NULL,
    -- what the configuration said then: once it says something else, that counts
    configured BOOLEAN NOT NULL,
    changed_by TEXT    NOT NULL,
    -- later than the change before, also where a clock goes back
    changed_at BIGINT  NOT NULL
);

-- The processes that have nothing in flight at an upstream which was disabled at that time.
CREATE TABLE upstream_drains (
    upstream   TEXT   NOT NULL,
    token      TEXT   NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (upstream, token)
);
