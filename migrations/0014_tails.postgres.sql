-- A tail stands in its unit's row, and is compressed already. Elsewhere it would be several rows,
-- which each flush would write and delete.
ALTER TABLE units SET (toast_tuple_target = 8160);
ALTER TABLE units ALTER COLUMN tail_entries SET STORAGE EXTERNAL;
ALTER TABLE units ALTER COLUMN tail_data SET STORAGE EXTERNAL;
