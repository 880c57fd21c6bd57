//! What the kernel says of a process.

use std::fs;

use anyhow::{Context as _, Result};

/// CPU seconds, user and system, that a process has used by itself.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(Stat::read(pid)?.own)
}

/// CPU seconds of a process, of its children that live, and of those that ended.
pub fn family_cpu_seconds(pid: u32) -> Result<f64> {
    let parent = Stat::read(pid)?;
    // A child that ends meanwhile is counted by its parent next time.
    let children = children(pid)?
        .into_iter()
        .filter_map(|pid| Stat::read(pid).ok());
    Ok(parent.own + parent.ended_children + children.map(|child| child.own).sum::<f64>())
}

/// Bytes that a process has caused to be written to storage.
pub fn written_bytes(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let value = field(&text, "write_bytes:").context("/proc/PID/io has no write_bytes")?;
    Ok(value.parse()?)
}

/// The most memory that a process has had resident, in MiB, since its start or the last
/// [`reset_peak`].
pub fn peak_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = field(&text, "VmHWM:").context("/proc/PID/status has no VmHWM")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// Lets [`peak_mib`] begin anew.
pub fn reset_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// The parent of a process, and its name.
pub fn parent(pid: u32) -> Result<(u32, String)> {
    let parent = Stat::read(pid)?.parent;
    let name = fs::read_to_string(format!("/proc/{parent}/comm"))?;
    Ok((parent, name.trim().to_owned()))
}

struct Stat {
    parent: u32,
    own: f64,
    ended_children: f64,
}

impl Stat {
    fn read(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold anything.
        let (_, rest) = text
            .rsplit_once(')')
            .context("/proc/PID/stat has no name")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Numbered as in proc(5), where the name is 2.
        let field = |number: usize| fields.get(number - 3).context("/proc/PID/stat is short");
        let ticks = |number| -> Result<f64> { Ok(field(number)?.parse()?) };
        let second = rustix::param::clock_ticks_per_second() as f64;
        Ok(Self {
            parent: field(4)?.parse()?,
            own: (ticks(14)? + ticks(15)?) / second,
            ended_children: (ticks(16)? + ticks(17)?) / second,
        })
    }
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if Stat::read(child).is_ok_and(|stat| stat.parent == pid) {
            children.push(child);
        }
    }
    Ok(children)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()
}
