//! The life of a batch, measured: upload, run, download.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::client::{Batch, LOOK_EVERY, content};
use crate::input::Input;
use crate::procfs;
use crate::results::{Figures, Point, System, quantile};
use crate::server::{Meter, Reading, Server, Serving, Store};
use crate::world::World;

/// How often an output is read for one figure.
const DOWNLOADS: u32 = 3;

/// A server and what it uses, at the beginning of a batch's life.
pub struct Life<'a> {
    pub server: &'a Server,
    pub meter: Meter<'a>,
    pub input: &'a Input,
    begun: Reading,
}

impl<'a> Life<'a> {
    pub fn begin(
        store: &'a Store,
        server: &'a Server,
        upstream: u32,
        input: &'a Input,
    ) -> Result<Self> {
        let servers = vec![server.process.pid];
        let meter = Meter {
            servers,
            upstream,
            store,
        };
        Ok(Self {
            server,
            begun: meter.begin()?,
            meter,
            input,
        })
    }

    /// Uploads the input; returns the file's id.
    pub async fn upload(&self, figures: &mut Figures) -> Result<String> {
        let before = self.meter.begin()?;
        let file_id = self.server.client.upload(self.input).await?;
        let after = self.meter.end(Instant::now())?;
        let bytes = self.input.bytes as f64;
        figures.set(
            "upload_mb_per_s",
            bytes / 1e6 / (after.at - before.at).as_secs_f64(),
        );
        let server = after.server_cpu - before.server_cpu;
        figures.set("upload_server_cpu_s_per_gb", server / (bytes / 1e9));
        let database = match (after.database_cpu, before.database_cpu) {
            (Some(after), Some(before)) => after - before,
            _ => 0.0,
        };
        figures.set("upload_cpu_s_per_gb", (server + database) / (bytes / 1e9));
        figures.set(
            "upload_written_per_byte",
            after.written_since(&before) / bytes,
        );
        Ok(file_id)
    }

    /// Runs one batch over an uploaded file, from its creation to its end.
    pub async fn run(&self, file_id: &str, figures: &mut Figures) -> Result<Batch> {
        let before = self.meter.begin()?;
        let batch = self.server.client.create(file_id).await?;
        let watched = self.server.client.watch(&batch.id, LOOK_EVERY).await?;
        let after = self.meter.end(watched.ended)?;
        let lines = self.input.lines;
        let seconds = (after.at - before.at).as_secs_f64();
        figures.set("run_seconds", seconds);
        figures.set("lines_per_s", lines as f64 / seconds);
        after.cpu_figures(&before, lines, figures);
        figures.set(
            "written_per_line",
            after.written_since(&before) / lines as f64,
        );
        if let (Some(after), Some(before)) = (after.written.wal, before.written.wal) {
            figures.set("wal_per_line", (after - before) / lines as f64);
        }
        look_figures(watched.looks_ms, figures)?;
        figures.set("peak_mib", procfs::peak_mib(self.server.process.pid)?);
        Ok(watched.batch)
    }

    /// Reads the output, and says how many bytes it has.
    pub async fn download(&self, batch: &Batch, figures: &mut Figures) -> Result<u64> {
        let file_id = batch
            .output_file_id
            .as_deref()
            .context("there is no output")?;
        let before = self.meter.begin()?;
        let mut bytes = 0;
        for _ in 0..DOWNLOADS {
            bytes += self.server.client.download(&content(file_id)).await?;
        }
        let after = self.meter.end(Instant::now())?;
        let seconds = (after.at - before.at).as_secs_f64();
        figures.set("download_mb_per_s", bytes as f64 / 1e6 / seconds);
        let cpu = after.server_cpu - before.server_cpu;
        figures.set("download_server_cpu_s_per_gb", cpu / (bytes as f64 / 1e9));
        Ok(bytes / u64::from(DOWNLOADS))
    }

    /// What all of it has left behind, for each byte of input and output.
    pub fn end(&self, output_bytes: u64, figures: &mut Figures) -> Result<()> {
        let now = self.meter.end(Instant::now())?;
        let bytes = (self.input.bytes + output_bytes) as f64;
        figures.set("written_per_byte", now.written_since(&self.begun) / bytes);
        figures.set("stored_per_byte", self.meter.store.bytes()? / bytes);
        self.whole(output_bytes, figures)
    }

    /// Upload, run and one download together, from what each of them took.
    fn whole(&self, output_bytes: u64, figures: &mut Figures) -> Result<()> {
        let of = |name| figures.get(name).with_context(|| format!("no {name}"));
        let lines = self.input.lines as f64;
        let (input_mb, output_mb) = (self.input.bytes as f64 / 1e6, output_bytes as f64 / 1e6);
        let seconds = input_mb / of("upload_mb_per_s")?
            + of("run_seconds")?
            + output_mb / of("download_mb_per_s")?;
        let transfer_cpu_s = input_mb / 1e3 * of("upload_server_cpu_s_per_gb")?
            + output_mb / 1e3 * of("download_server_cpu_s_per_gb")?;
        let cpu_ms_per_line = transfer_cpu_s * 1e3 / lines + of("server_cpu_ms_per_line")?;
        figures.set("whole_lines_per_s", lines / seconds);
        figures.set("whole_server_cpu_ms_per_line", cpu_ms_per_line);
        Ok(())
    }
}

/// How long looks at batches took.
pub fn look_figures(looks_ms: Vec<f64>, figures: &mut Figures) -> Result<()> {
    for (name, share) in [("get_p50_ms", 0.5), ("get_p99_ms", 0.99)] {
        let looks = quantile(looks_ms.clone(), share).context("no look")?;
        figures.set(name, looks);
    }
    Ok(())
}

/// A whole life in a store of its own, with a server of its own.
pub async fn live(world: &mut World, engine: System, point: Point) -> Result<Figures> {
    let input = world.input(point.lines)?;
    let (upstream, upstream_pid) = world.upstream(point.latency_ms).await?;
    let store = Store::create(world, engine)?;
    let mut serving = Serving::new(&upstream, point.in_flight);
    serving.general_transport = engine == System::SqliteGeneral;
    let server = store.serve(&serving).await?;
    let held = store.hold(point.held).await?;
    let mut figures = Figures::default();
    let life = Life::begin(&store, &server, upstream_pid, &input)?;
    let file_id = life.upload(&mut figures).await?;
    let batch = life.run(&file_id, &mut figures).await?;
    let output_bytes = life.download(&batch, &mut figures).await?;
    life.end(output_bytes, &mut figures)?;
    server.process.stop().await?;
    drop(held);
    store.remove()?;
    Ok(figures)
}
