-- Limits on calls at once hold over all processes: each has a share. Times are the database's.

-- The processes that share, each with a lease of its own on what it holds.
CREATE TABLE share_holders (
    token      TEXT   NOT NULL PRIMARY KEY,
    joined_at  BIGINT NOT NULL,
    held_until BIGINT NOT NULL
);

-- A process's part of one limit: `model:NAME` or `upstream:NAME`.
CREATE TABLE shares (
    resource TEXT   NOT NULL,
    token    TEXT   NOT NULL,
    -- the whole limit, as this process was told
    allowed  BIGINT NOT NULL,
    -- what it could use
    wants    BIGINT NOT NULL,
    -- what nobody else may have
    held     BIGINT NOT NULL,
    PRIMARY KEY (resource, token)
);

-- Models at upstreams that asked to be left alone: closed for every process.
CREATE TABLE gates (
    upstream     TEXT   NOT NULL,
    -- as the upstream calls it
    model        TEXT   NOT NULL,
    closed_until BIGINT NOT NULL,
    PRIMARY KEY (upstream, model)
);
