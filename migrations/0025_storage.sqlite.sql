-- How many bytes the files of each tenant have. Kept by the statements that show files and hide them,
-- so that nobody need add up all files of a tenant. On Postgres in slots, so that servers do not
-- queue on one row; the sum counts.
CREATE TABLE tenant_storage (
    tenant TEXT   NOT NULL,
    slot   BIGINT NOT NULL,
    bytes  BIGINT NOT NULL,
    PRIMARY KEY (tenant, slot)
);
INSERT INTO tenant_storage (tenant, slot, bytes)
    SELECT tenant, 0, SUM(bytes) FROM files WHERE state = 'ready' GROUP BY tenant;

CREATE TRIGGER files_shown AFTER INSERT ON files WHEN NEW.state = 'ready' BEGIN
    INSERT INTO tenant_storage (tenant, slot, bytes) VALUES (NEW.tenant, 0, NEW.bytes)
    ON CONFLICT (tenant, slot) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER files_changed AFTER UPDATE OF state, bytes ON files
WHEN (OLD.state = 'ready') <> (NEW.state = 'ready') OR (NEW.state = 'ready' AND OLD.bytes <> NEW.bytes)
BEGIN
    INSERT INTO tenant_storage (tenant, slot, bytes) VALUES (NEW.tenant, 0,
        (CASE WHEN NEW.state = 'ready' THEN NEW.bytes ELSE 0 END)
        - (CASE WHEN OLD.state = 'ready' THEN OLD.bytes ELSE 0 END))
    ON CONFLICT (tenant, slot) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER files_removed AFTER DELETE ON files WHEN OLD.state = 'ready' BEGIN
    INSERT INTO tenant_storage (tenant, slot, bytes) VALUES (OLD.tenant, 0, -OLD.bytes)
    ON CONFLICT (tenant, slot) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
