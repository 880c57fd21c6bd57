-- A unit's tail: its finished lines that are not worth a segment yet, laid out as a segment is.
-- Each flush of the unit writes it again, with the number of that flush. NULL: there is none. A
-- server of an earlier version, which does not know of tails, cannot end a unit that has one.
-- NOT VALID: no row has a tail yet, so the table need not be read while it is locked.
ALTER TABLE units ADD COLUMN tail_entries BYTEA;
ALTER TABLE units ADD COLUMN tail_data BYTEA;
ALTER TABLE units ADD CONSTRAINT units_done_has_no_tail
    CHECK (state <> 'done' OR tail_entries IS NULL) NOT VALID;
ALTER TABLE units ADD CONSTRAINT units_tail_is_whole
    CHECK ((tail_data IS NULL) = (tail_entries IS NULL)) NOT VALID;
-- A tail stands in its unit's row, and is compressed already. Elsewhere it would be several rows,
-- which each flush would write and delete.
ALTER TABLE units SET (toast_tuple_target = 8160);
ALTER TABLE units ALTER COLUMN tail_entries SET STORAGE EXTERNAL;
ALTER TABLE units ALTER COLUMN tail_data SET STORAGE EXTERNAL;
