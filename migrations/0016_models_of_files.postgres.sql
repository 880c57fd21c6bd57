-- The rows of `file_models` become the column `models` of their files.
UPDATE files SET models = listed.models
FROM (SELECT file_id, CAST(json_agg(
        json_build_array(name, requests, CAST(first_lines AS json)) ORDER BY model_no) AS TEXT)
        AS models
    FROM file_models GROUP BY file_id) listed
WHERE files.id = listed.file_id;
DROP TABLE file_models;
