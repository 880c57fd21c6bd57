-- Nobody writes a file between the sum and the triggers: such a file would never be counted.
LOCK TABLE files IN SHARE ROW EXCLUSIVE MODE;

-- How many bytes the files of each tenant have. Kept by the statements that show files and hide them,
-- so that nobody need add up all files of a tenant. In slots, so that servers do not queue on one
-- row; the sum counts.
CREATE TABLE tenant_storage (
    tenant TEXT   NOT NULL,
    slot   BIGINT NOT NULL,
    bytes  BIGINT NOT NULL,
    PRIMARY KEY (tenant, slot)
) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.02);
INSERT INTO tenant_storage (tenant, slot, bytes)
    SELECT tenant, 0, SUM(bytes) FROM files WHERE state = 'ready' GROUP BY tenant;

-- Once a statement, with all rows that it changed. The rows of one statement are locked in the order
-- of the tenants' names.
CREATE FUNCTION count_storage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO tenant_storage AS s (tenant, slot, bytes)
        SELECT tenant, pg_backend_pid() % 8, SUM(bytes) FROM shown WHERE state = 'ready'
        GROUP BY tenant ORDER BY tenant
        ON CONFLICT (tenant, slot) DO UPDATE SET bytes = s.bytes + excluded.bytes;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO tenant_storage AS s (tenant, slot, bytes)
        SELECT tenant, pg_backend_pid() % 8, SUM(change) FROM
            (SELECT tenant, bytes AS change FROM shown WHERE state = 'ready'
             UNION ALL
             SELECT tenant, -bytes FROM hidden WHERE state = 'ready') AS changed
        GROUP BY tenant HAVING SUM(change) <> 0 ORDER BY tenant
        ON CONFLICT (tenant, slot) DO UPDATE SET bytes = s.bytes + excluded.bytes;
    ELSE
        INSERT INTO tenant_storage AS s (tenant, slot, bytes)
        SELECT tenant, pg_backend_pid() % 8, -SUM(bytes) FROM hidden WHERE state = 'ready'
        GROUP BY tenant ORDER BY tenant
        ON CONFLICT (tenant, slot) DO UPDATE SET bytes = s.bytes + excluded.bytes;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER files_shown AFTER INSERT ON files REFERENCING NEW TABLE AS shown
    FOR EACH STATEMENT EXECUTE FUNCTION count_storage();
CREATE TRIGGER files_changed AFTER UPDATE ON files
    REFERENCING OLD TABLE AS hidden NEW TABLE AS shown
    FOR EACH STATEMENT EXECUTE FUNCTION count_storage();
CREATE TRIGGER files_removed AFTER DELETE ON files REFERENCING OLD TABLE AS hidden
    FOR EACH STATEMENT EXECUTE FUNCTION count_storage();
