-- Segments and tails may need the dictionary of segments, which earlier versions do not have: they
-- are not to open the database any more. Nothing else changes.
SELECT 1;
