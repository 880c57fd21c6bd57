//! What a file was when a run wrote it. A later run compares, and overwrites no work of others.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const READ_BYTES: usize = 256 << 10;

/// Size, time and hash of a file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli::run) struct Fingerprint {
    bytes: u64,
    /// When the file was modified last: seconds, and nanoseconds.
    modified: (i64, i64),
    sha256: String,
}

impl Fingerprint {
    /// Of a file whose content was hashed while it was written.
    pub(in crate::cli::run) fn written(file: &Metadata, content: Hashing) -> Fingerprint {
        Fingerprint {
            bytes: file.len(),
            modified: modified(file),
            sha256: content.finish(),
        }
    }

    /// Of a file that is empty or not there.
    pub(in crate::cli::run) fn empty() -> Fingerprint {
        Fingerprint {
            bytes: 0,
            modified: (0, 0),
            sha256: Hashing::default().finish(),
        }
    }

    pub(in crate::cli::run) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Of a file as it is now.
    pub(in crate::cli::run) fn of(path: &Path) -> std::io::Result<Fingerprint> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Fingerprint::written(&metadata, hash(file)?))
    }

    /// Whether a file still has the content. The content is read only where the file's time has
    /// changed: a file that was touched or copied is still the same.
    pub(in crate::cli::run) fn fits(&self, path: &Path) -> std::io::Result<bool> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.len() != self.bytes {
            return Ok(false);
        }
        Ok(modified(&metadata) == self.modified || hash(file)?.finish() == self.sha256)
    }
}

fn modified(file: &Metadata) -> (i64, i64) {
    (file.mtime(), file.mtime_nsec())
}

fn hash(mut file: File) -> std::io::Result<Hashing> {
    let mut hashing = Hashing::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hashing);
        }
        hashing.update(&buffer[..read]);
    }
}

/// The hash of a content, as it is read or written.
#[derive(Clone, Default)]
pub(in crate::cli::run) struct Hashing(Sha256);

impl Hashing {
    pub(in crate::cli::run) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(in crate::cli::run) fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_file_fits_until_its_content_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let was = Fingerprint::of(&path).unwrap();
        assert!(was.fits(&path).unwrap());
        let touch = |later: u64| {
            let file = File::options().write(true).open(&path).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + later);
            file.set_modified(time).unwrap();
        };
        touch(1);
        assert!(was.fits(&path).unwrap(), "it was only touched");
        std::fs::write(&path, "CONTENT").unwrap();
        touch(2);
        assert!(!was.fits(&path).unwrap(), "as long, but another");
        std::fs::write(&path, "content and more").unwrap();
        assert!(!was.fits(&path).unwrap());
    }
}
