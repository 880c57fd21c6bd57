-- What a key opens: scopes with commas between them. A key that was an operator's keeps what it
-- opened: its tenant's files and batches, /metrics, and /admin. It does not come to open the batches
-- of other tenants, as keys of the scope `admin` do.
ALTER TABLE api_keys ADD COLUMN scopes TEXT NOT NULL DEFAULT 'api';
UPDATE api_keys SET scopes = 'api,operator' WHERE admin;
ALTER TABLE api_keys DROP COLUMN admin;
-- NULL: for good. The database's time.
ALTER TABLE api_keys ADD COLUMN expires_at BIGINT;
-- When it was used last, to a minute or so.
ALTER TABLE api_keys ADD COLUMN last_used_at BIGINT;

-- The key that the batch was created with; NULL where none was needed.
ALTER TABLE batches ADD COLUMN key_id TEXT;
