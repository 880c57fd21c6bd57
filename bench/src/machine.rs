//! Where and with what the figures were taken.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub date: String,
    pub processor: String,
    pub cores: usize,
    pub memory: String,
    pub kernel: String,
    /// What the databases and the files stood on: device, file system, and how long one write of
    /// 4 KiB with fdatasync takes there.
    pub disk: String,
    pub revision: String,
    pub nightshift: String,
    pub rust: String,
    pub postgres: String,
    /// Whether it was a short run, whose figures are for looking at only.
    pub quick: bool,
}

impl Machine {
    pub fn describe(data: &Path, binary: &Path) -> Result<Self> {
        Ok(Self {
            date: said(Command::new("date").args(["-u", "+%Y-%m-%d"])),
            processor: first_value("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism()?.get(),
            memory: memory(),
            kernel: said(Command::new("uname").args(["-sr"])),
            disk: disk(data)?,
            revision: said(Command::new("git").args(["describe", "--always", "--dirty"])),
            nightshift: said(Command::new(binary).arg("--version")),
            rust: said(Command::new("rustc").arg("--version")),
            postgres: String::new(),
            quick: false,
        })
    }
}

/// What a command prints, or a dash.
fn said(command: &mut Command) -> String {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.filter(|text| !text.is_empty())
        .unwrap_or_else(|| "–".to_owned())
}

fn first_value(path: &str, name: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut values = text.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    });
    values.next().unwrap_or_else(|| "–".to_owned())
}

fn memory() -> String {
    let text = first_value("/proc/meminfo", "MemTotal");
    match text.trim_end_matches(" kB").parse::<f64>() {
        Ok(kib) => format!("{:.0} GiB", kib / 1024.0 / 1024.0),
        Err(_) => text,
    }
}

fn disk(data: &Path) -> Result<String> {
    let line = said(
        Command::new("df")
            .args(["--output=source,fstype"])
            .arg(data),
    );
    let place = line.lines().last().unwrap_or("–");
    let place = place.split_whitespace().collect::<Vec<_>>().join(", ");
    Ok(format!(
        "{place}; fdatasync of 4 KiB {:.2} ms",
        sync_ms(data)?
    ))
}

/// The median of 100 appends, each on disk before the next.
fn sync_ms(data: &Path) -> Result<f64> {
    use std::io::Write as _;
    let mut file = tempfile::tempfile_in(data)?;
    let mut taken = Vec::new();
    for _ in 0..100 {
        let begun = std::time::Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        taken.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(crate::results::quantile(taken, 0.5).unwrap_or_default())
}
