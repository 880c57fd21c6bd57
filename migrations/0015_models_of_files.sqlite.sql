-- The rows of `file_models` become the column `models` of their files.
UPDATE files SET models =
    (SELECT json_group_array(json_array(name, requests, json(first_lines)) ORDER BY model_no)
     FROM file_models WHERE file_models.file_id = files.id)
WHERE id IN (SELECT file_id FROM file_models);
DROP TABLE file_models;
