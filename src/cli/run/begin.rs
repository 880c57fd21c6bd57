//! A batch is made of an input.

use anyhow::bail;

use super::generation::{Generation, TENANT};
use super::input::Input;
use super::input::feed::{Feed, Gathered, limits};
use super::input::lines::{self, Reader};
use super::input::reshape::{self, Reshape};
use super::journal::Journal;
use super::keep::Found;
use crate::app;
use crate::cli::exit::{NOT_VALID, OrExit as _};
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::domain::endpoint;
use crate::domain::file::Purpose;
use crate::domain::id;
use crate::domain::jsonl::NotJsonl;
use crate::intake::Contents;
use crate::store::{NewBatch, Store};
use crate::transfer::{self, Finish, Ingest, UploadBudget};

/// Reads the input into a store of its own and creates its batch. Where it was surveyed, the lines
/// whose answers are kept are blank in the store, so that all others keep their numbers.
pub(super) async fn begin(
    generation: &Generation,
    reshape: &Reshape,
    config: &mut Config,
    input: &Input,
    found: Option<Found>,
) -> anyhow::Result<Journal> {
    config.database.move_to(&generation.database());
    if let Some(found) = &found
        && found.sent == 0
    {
        let sha256 = found.sha256.clone();
        let mut journal = Journal::new(generation, sha256, None, found.kept, reshape.name());
        journal.note_upstream(config);
        return Ok(journal);
    }
    let store = app::open_store_alone(config, Clock::default()).await?;
    let begun = ingest(generation, reshape, config, input, found.as_ref(), &store).await;
    store.close().await;
    let (sha256, batch_id) = begun?;
    if let Some(found) = &found
        && found.sha256 != sha256
    {
        bail!("{} has changed while it was read", input.shown());
    }
    let kept = found.map_or(0, |found| found.kept);
    let mut journal = Journal::new(generation, sha256, Some(batch_id), kept, reshape.name());
    journal.note_upstream(config);
    Ok(journal)
}

async fn ingest(
    generation: &Generation,
    reshape: &Reshape,
    config: &Config,
    input: &Input,
    found: Option<&Found>,
    store: &Store,
) -> anyhow::Result<(String, String)> {
    let limits = limits(config);
    // One file alone never waits for others.
    let budget = UploadBudget::new(limits.max_line_bytes);
    let mut ingest = Ingest::begin(store, TENANT, limits, Contents::Requests, &budget);
    let mut writer = match found {
        None => Some(lines::Writer::create(&generation.lines())?),
        Some(_) => None,
    };
    let mut sources = match found {
        None => None,
        Some(_) => Some(Reader::open(&generation.lines())?),
    };
    let mut gathered = Gathered::default();
    let mut take = |gathered: &mut Gathered, line: &[u8]| -> anyhow::Result<()> {
        let record = match (&mut sources, &mut writer) {
            (Some(sources), _) => sources.next()?,
            (None, Some(writer)) => {
                let record = reshape::record(line, &config.models);
                writer.push(record)?;
                Some(record)
            }
            (None, None) => None,
        };
        let is_kept = record.is_some_and(|record| record.is_kept());
        gathered.line(if is_kept { b"" } else { line });
        Ok(())
    };
    let mut feed = Feed::open(input, reshape, limits).await?;
    while feed.read(|line, _| take(&mut gathered, &line)).await? {
        ingest.write(gathered.take()).await?;
    }
    let sha256 = feed.finish(|line, _| take(&mut gathered, &line))?;
    ingest.write(gathered.take()).await?;
    if let Some(writer) = writer {
        writer.finish()?;
    }
    let created_at = Clock::default().now_ms();
    let finish = Finish {
        purpose: Purpose::Batch,
        filename: input.filename(),
        created_at,
        expires_at: None,
    };
    let file = match ingest.finish(finish, None).await {
        Err(transfer::Error::NotJsonl(what)) => {
            Err(anyhow::anyhow!(not_jsonl(input, &what))).or_exit(NOT_VALID)?
        }
        file => file?,
    };
    let batch = NewBatch {
        id: id::batch(),
        tenant: TENANT.to_owned(),
        key_id: None,
        endpoint: endpoint::ANY.path.to_owned(),
        input_file_id: file.id,
        task: None,
        reuse: None,
        details: config.output.details,
        completion_window: "none".to_owned(),
        // They are copied out as soon as they are there; the state is kept as long as the user
        // keeps it.
        output_expires_seconds: NewBatch::KEPT_FOR_GOOD,
        metadata: None,
        created_at,
        expires_at: None,
        steering: crate::store::Steering::default(),
    };
    store.create_batch(&batch, None).await?;
    Ok((sha256, batch.id))
}

/// What an input is, where it is no JSON Lines.
pub(super) fn not_jsonl(input: &Input, what: &NotJsonl) -> String {
    let name = input.shown();
    if *what == NotJsonl::EMPTY {
        return format!("{name} is empty: write one request on each line");
    }
    format!("{name}: {}", what.hint())
}
