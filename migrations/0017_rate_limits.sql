-- Limits on requests and tokens in a time hold over all processes. Times are the database's.

-- What is booked against a limit: `upstream:NAME:TYPE:MS`, `model:…` or `route:…`.
CREATE TABLE rate_books (
    resource TEXT NOT NULL PRIMARY KEY,
    -- what was sent in each part of the window, and what is owed, as JSON
    book     TEXT NOT NULL
);

-- What a process may spend of a limit.
CREATE TABLE rate_grants (
    resource    TEXT   NOT NULL,
    token       TEXT   NOT NULL,
    -- granted, and not spent, as far as the process has told
    amount      BIGINT NOT NULL,
    -- what it asked for beyond that
    wants       BIGINT NOT NULL,
    -- after this time it counts as spent
    valid_until BIGINT NOT NULL,
    -- the number of what the process told last
    seq         BIGINT NOT NULL,
    PRIMARY KEY (resource, token)
);
