-- What is to be done with all lines of the batch, as the client has named it. NULL: the lines say.
ALTER TABLE batches ADD COLUMN task TEXT;
