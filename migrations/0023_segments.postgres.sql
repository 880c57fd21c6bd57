-- The segment that a full tail becomes has its place in the row, two on a page. Elsewhere it would be
-- two rows, each with its entry in an index. Segments and tails may need the dictionary of segments
-- from here on, which earlier versions do not have: they are not to open the database any more.
ALTER TABLE segments SET (toast_tuple_target = 4080);
