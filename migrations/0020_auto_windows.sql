-- How many calls at once a model at an upstream takes, where that is found out: for all processes,
-- and across restarts.
CREATE TABLE auto_windows (
    -- `UPSTREAM > MODEL`
    name  TEXT NOT NULL PRIMARY KEY,
    -- the window, where its search stands, and what was measured, as JSON
    state TEXT NOT NULL
);
