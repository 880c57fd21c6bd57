//! What the system says of this process in `/proc`. Nothing where there is no `/proc`.

use std::fs;

/// In which `/proc` counts processor time: the same on every Linux.
const TICKS_A_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    pub cpu_seconds: Option<f64>,
    pub resident_bytes: Option<u64>,
    pub open_fds: Option<u64>,
}

/// How this process is now.
pub(super) fn read() -> Process {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let open_fds = fs::read_dir("/proc/self/fd").map(|entries| entries.count() as u64);
    Process {
        cpu_seconds: cpu_seconds(&stat),
        resident_bytes: resident_bytes(&status),
        open_fds: open_fds.ok(),
    }
}

/// From `/proc/self/stat`: the 14th and 15th field. The second is the program's name in
/// parentheses, which may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_A_SECOND)
}

/// From `/proc/self/status`: `VmRSS:  1234 kB`.
fn resident_bytes(status: &str) -> Option<u64> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_tells_is_understood() {
        let stat = "71 (a (b) c) S 1 71 71 0 -1 4194560 5 0 0 0 250 50 0 0 20 0 1 0 9 8 7";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(
            resident_bytes("Name:\ta\nVmRSS:\t    2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!((cpu_seconds(""), resident_bytes("")), (None, None));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_seen() {
        let process = read();
        assert!(process.cpu_seconds.is_some());
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 1 << 20));
        assert!(process.open_fds.is_some_and(|open| open > 2));
    }
}
