-- A unit's tail: its finished lines that are not worth a segment yet, laid out as a segment is.
-- Each flush of the unit writes it again, with the number of that flush. NULL: there is none. A
-- server of an earlier version, which does not know of tails, cannot end a unit that has one.
ALTER TABLE units ADD COLUMN tail_entries BYTEA CHECK (state <> 'done' OR tail_entries IS NULL);
ALTER TABLE units ADD COLUMN tail_data BYTEA CHECK ((tail_data IS NULL) = (tail_entries IS NULL));
