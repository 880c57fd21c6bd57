//! The one door to the bytes of chunks and segments: each statement that writes, reads, measures
//! or removes them stands here. `tests/it/architecture.rs` keeps it so.
//!
//! Today the bytes are the column `data` of the tables `chunks` and `segments`. To keep them
//! elsewhere is to change this file: the writes take the transaction that makes the rows, the reads
//! say whether a row's bytes are wanted, and the removals go row by row.

use std::ops::{Range, RangeInclusive};

use sqlx::FromRow;

use super::removal::{Owned, remove_rows};
use crate::intake::Piece;
use crate::store::engine::{Rows, Tx, Value, bind_each, bind_rows, in_tx, list, on_pool, sql};
use crate::store::{Error, Result, Store};

/// Each piece has up to 1 MiB.
const CHUNKS: Owned = Owned {
    table: "chunks",
    owner: "file_id",
    key: "chunk_no, piece_no",
    at_once: 16,
};
/// What one flush wrote of one unit: seldom more than 1 MiB.
const SEGMENTS: Owned = Owned {
    table: "segments",
    owner: "batch_id",
    key: "chunk_no, model_no, flush_no",
    at_once: 64,
};

/// A piece of a file as it is stored: `data` is compressed, `bytes` is its size without.
#[derive(FromRow)]
pub(in crate::store) struct StoredPiece {
    pub chunk_no: i64,
    pub piece_no: i64,
    pub byte_offset: i64,
    pub bytes: i64,
    pub first_line: i64,
    pub data: Vec<u8>,
}

/// A segment's place in its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromRow)]
pub(in crate::store) struct SegmentKey {
    pub chunk_no: i64,
    pub model_no: i64,
    pub flush_no: i64,
}

/// A segment that is written.
pub(in crate::store) struct NewSegment<'a> {
    pub batch_id: &'a str,
    pub key: SegmentKey,
    pub entries: &'a [u8],
    pub data: &'a [u8],
}

/// A segment's table, and how many bytes its data has.
#[derive(FromRow)]
pub(in crate::store) struct SegmentTable {
    #[sqlx(flatten)]
    pub key: SegmentKey,
    pub entries: Vec<u8>,
    pub bytes: i64,
}

/// A segment's table, and its data where that was wanted.
#[derive(FromRow)]
pub(in crate::store) struct SegmentData {
    #[sqlx(flatten)]
    pub key: SegmentKey,
    pub entries: Vec<u8>,
    pub data: Option<Vec<u8>>,
}

/// Writes a group of pieces, by one statement.
pub(in crate::store) async fn write_pieces(
    tx: &mut Tx,
    file_id: &str,
    pieces: &[Piece],
) -> Result<()> {
    let rows = Rows::of(pieces.iter().map(|piece| {
        [
            ("file_id", Value::from(file_id)),
            ("chunk_no", piece.chunk_no.into()),
            ("piece_no", piece.piece_no.into()),
            ("byte_offset", (piece.offset as i64).into()),
            ("bytes", i64::from(piece.bytes).into()),
            ("first_line", (piece.first_line as i64).into()),
            ("lines", i64::from(piece.lines).into()),
            ("data", Value::from(&piece.data)),
        ]
    }));
    let sql = sql!(
        "-- insert_chunks\nINSERT INTO chunks ({columns}) VALUES {rows}",
        columns = rows.columns(),
        rows = rows.parameters(1)
    );
    in_tx!(tx, |c| {
        let insert = sqlx::query(sql).persistent(false);
        bind_rows!(insert, rows).execute(c).await?;
    });
    Ok(())
}

/// Writes segments, by one statement.
pub(in crate::store) async fn write_segments(
    tx: &mut Tx,
    segments: &[NewSegment<'_>],
) -> Result<()> {
    let rows = Rows::of(segments.iter().map(|segment| {
        [
            ("batch_id", Value::from(segment.batch_id)),
            ("chunk_no", segment.key.chunk_no.into()),
            ("model_no", segment.key.model_no.into()),
            ("flush_no", segment.key.flush_no.into()),
            ("entries", segment.entries.into()),
            ("data", segment.data.into()),
        ]
    }));
    let sql = sql!(
        "-- insert_segments\nINSERT INTO segments ({columns}) VALUES {rows}",
        columns = rows.columns(),
        rows = rows.parameters(1)
    );
    in_tx!(tx, |c| {
        let insert = sqlx::query(sql).persistent(false);
        bind_rows!(insert, rows).execute(c).await?;
    });
    Ok(())
}

/// Whether a segment is there, the same byte for byte.
pub(in crate::store) async fn has_segment(tx: &mut Tx, segment: &NewSegment<'_>) -> Result<bool> {
    let found: Option<(i64,)> = in_tx!(tx, |c| {
        sqlx::query_as(
            "-- has_segment
             SELECT CAST(1 AS BIGINT) FROM segments
             WHERE batch_id = $1 AND chunk_no = $2 AND model_no = $3 AND flush_no = $4
                AND data = $5",
        )
        .bind(segment.batch_id)
        .bind(segment.key.chunk_no)
        .bind(segment.key.model_no)
        .bind(segment.key.flush_no)
        .bind(segment.data)
        .fetch_optional(c)
        .await?
    });
    Ok(found.is_some())
}

/// The first piece of a file at a place or behind it; `None` at the end of the file.
pub(in crate::store) async fn read_piece(
    store: &Store,
    file_id: &str,
    (chunk_no, piece_no): (i64, i64),
) -> Result<Option<StoredPiece>> {
    Ok(on_pool!(store.reader(), |c| {
        sqlx::query_as(
            "-- piece
             SELECT chunk_no, piece_no, byte_offset, bytes, first_line, data FROM chunks
             WHERE file_id = $1 AND (chunk_no, piece_no) >= ($2, $3)
             ORDER BY chunk_no, piece_no LIMIT 1",
        )
        .bind(file_id)
        .bind(chunk_no)
        .bind(piece_no)
        .fetch_optional(c)
        .await?
    }))
}

/// All pieces of a chunk in their order.
pub(in crate::store) async fn read_chunk(
    store: &Store,
    file_id: &str,
    chunk_no: i64,
) -> Result<Vec<StoredPiece>> {
    Ok(on_pool!(store.reader(), |c| {
        sqlx::query_as(
            "-- chunk
             SELECT chunk_no, piece_no, byte_offset, bytes, first_line, data FROM chunks
             WHERE file_id = $1 AND chunk_no = $2 ORDER BY piece_no",
        )
        .bind(file_id)
        .bind(chunk_no)
        .fetch_all(c)
        .await?
    }))
}

/// The next pieces of a file behind a place, as a snapshot has them.
pub(in crate::store) async fn read_pieces_in(
    tx: &mut Tx,
    file_id: &str,
    (chunk_no, piece_no): (i64, i64),
    limit: i64,
) -> Result<Vec<StoredPiece>> {
    Ok(in_tx!(tx, |c| {
        sqlx::query_as(
            "-- audit_pieces
             SELECT chunk_no, piece_no, byte_offset, bytes, first_line, data FROM chunks
             WHERE file_id = $1 AND (chunk_no, piece_no) > ($2, $3)
             ORDER BY chunk_no, piece_no LIMIT $4",
        )
        .bind(file_id)
        .bind(chunk_no)
        .bind(piece_no)
        .bind(limit)
        .fetch_all(c)
        .await?
    }))
}

/// The segments of a row of chunks, and the tails of units there, each of which has the number of
/// its unit's last flush; the segments with their data if that has at most `data_max` bytes in all.
/// One statement, because a flush may make a segment of a tail at any moment.
pub(in crate::store) async fn read_segments(
    store: &Store,
    batch_id: &str,
    chunks: RangeInclusive<i64>,
    data_max: usize,
) -> Result<Vec<SegmentData>> {
    Ok(on_pool!(store.reader(), |c| {
        sqlx::query_as(
            "-- segments
             SELECT chunk_no, model_no, flush_no, entries,
                 CASE WHEN (SELECT sum(length(data)) FROM segments
                     WHERE batch_id = $1 AND chunk_no BETWEEN $2 AND $3) <= $4 THEN data END AS data
             FROM segments WHERE batch_id = $1 AND chunk_no BETWEEN $2 AND $3
             UNION ALL
             SELECT chunk_no, model_no, flush_no, tail_entries, tail_data FROM units
             WHERE batch_id = $1 AND chunk_no BETWEEN $2 AND $3 AND tail_entries IS NOT NULL",
        )
        .bind(batch_id)
        .bind(*chunks.start())
        .bind(*chunks.end())
        .bind(i64::try_from(data_max).unwrap_or(i64::MAX))
        .fetch_all(c)
        .await?
    }))
}

/// The data of one segment.
pub(in crate::store) async fn read_segment(
    store: &Store,
    batch_id: &str,
    key: SegmentKey,
) -> Result<Vec<u8>> {
    let row: Option<(Vec<u8>,)> = on_pool!(store.reader(), |c| {
        sqlx::query_as(
            "-- segment_data
             SELECT data FROM segments
             WHERE batch_id = $1 AND chunk_no = $2 AND model_no = $3 AND flush_no = $4",
        )
        .bind(batch_id)
        .bind(key.chunk_no)
        .bind(key.model_no)
        .bind(key.flush_no)
        .fetch_optional(c)
        .await?
    });
    row.map(|(data,)| data).ok_or(Error::Stale("the segment"))
}

/// The tables of the segments of some chunks, as a snapshot has them.
pub(in crate::store) async fn read_tables_in(
    tx: &mut Tx,
    batch_id: &str,
    chunks: Range<i64>,
) -> Result<Vec<SegmentTable>> {
    Ok(in_tx!(tx, |c| {
        sqlx::query_as(
            "-- audit_tables
             SELECT chunk_no, model_no, flush_no, entries, CAST(length(data) AS BIGINT) AS bytes
             FROM segments WHERE batch_id = $1 AND chunk_no >= $2 AND chunk_no < $3
             ORDER BY chunk_no, model_no, flush_no",
        )
        .bind(batch_id)
        .bind(chunks.start)
        .bind(chunks.end)
        .fetch_all(c)
        .await?
    }))
}

/// The data of all segments from the first key to the last, as a snapshot has it.
pub(in crate::store) async fn read_data_in(
    tx: &mut Tx,
    batch_id: &str,
    keys: RangeInclusive<SegmentKey>,
) -> Result<Vec<Vec<u8>>> {
    let (first, last) = (keys.start(), keys.end());
    let data: Vec<(Vec<u8>,)> = in_tx!(tx, |c| {
        sqlx::query_as(
            "-- audit_data
             SELECT data FROM segments WHERE batch_id = $1
                AND (chunk_no, model_no, flush_no) >= ($2, $3, $4)
                AND (chunk_no, model_no, flush_no) <= ($5, $6, $7)
             ORDER BY chunk_no, model_no, flush_no",
        )
        .bind(batch_id)
        .bind(first.chunk_no)
        .bind(first.model_no)
        .bind(first.flush_no)
        .bind(last.chunk_no)
        .bind(last.model_no)
        .bind(last.flush_no)
        .fetch_all(c)
        .await?
    });
    Ok(data.into_iter().map(|(data,)| data).collect())
}

/// Removes all chunks of a file.
pub(super) async fn remove_chunks(store: &Store, file_id: &str) -> Result<()> {
    remove_rows(store, &CHUNKS, file_id).await
}

/// Removes all chunks of some files, which have few. Locks their rows in the order of the keys.
pub(super) async fn remove_chunks_of(tx: &mut Tx, files: &[&str]) -> Result<()> {
    let sql = sql!(
        "-- remove_chunks_of
         WITH chosen AS MATERIALIZED
            (SELECT file_id, {key} FROM chunks WHERE file_id IN {ids}
             ORDER BY file_id, {key} {lock})
         DELETE FROM chunks WHERE (file_id, {key}) IN (SELECT * FROM chosen)",
        key = CHUNKS.key,
        ids = list(1, files.len()),
        lock = tx.engine().for_update()
    );
    in_tx!(tx, |c| {
        let remove = sqlx::query(sql).persistent(false);
        bind_each!(remove, files.iter().copied()).execute(c).await?;
    });
    Ok(())
}

/// Removes all segments of a batch.
pub(super) async fn remove_all_segments(store: &Store, batch_id: &str) -> Result<()> {
    remove_rows(store, &SEGMENTS, batch_id).await
}

/// Removes some segments of a batch.
pub(super) async fn remove_segments(
    store: &Store,
    batch_id: &str,
    keys: &[SegmentKey],
) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let rows = Rows::of(keys.iter().map(|key| {
        [
            ("chunk_no", Value::from(key.chunk_no)),
            ("model_no", key.model_no.into()),
            ("flush_no", key.flush_no.into()),
        ]
    }));
    let sql = sql!(
        "-- remove_segments
         WITH chosen AS MATERIALIZED
            (SELECT {key} FROM segments
             WHERE batch_id = $1 AND ({key}) IN (VALUES {rows})
             ORDER BY {key} {lock})
         DELETE FROM segments WHERE batch_id = $1 AND ({key}) IN (SELECT * FROM chosen)",
        key = SEGMENTS.key,
        rows = rows.typed(2, store.engine()),
        lock = store.engine().for_update()
    );
    on_pool!(store.writer(), |c| {
        let remove = sqlx::query(sql).persistent(false).bind(batch_id);
        bind_rows!(remove, rows).execute(c).await?;
    });
    Ok(())
}
