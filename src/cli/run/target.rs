//! Where a result goes: into a regular file, which is replaced as a whole, or into something that
//! only takes bytes, such as a pipe.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::fs::{PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::OFlags;

/// As many symlinks as Linux follows.
const LINKS_MAX: usize = 40;
/// A FIFO without a reader is tried again this often.
const READER_POLL: Duration = Duration::from_millis(100);

/// Where a result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The path as the user gave it.
    given: PathBuf,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Standard output: `-`, or any name of what standard output is.
    Stdout,
    /// A FIFO or a character device.
    Stream,
    /// A regular file or a free name, with all symlinks followed.
    File(PathBuf),
}

impl Target {
    /// Finds out what a path names, and changes nothing.
    pub(super) fn of(given: &Path) -> anyhow::Result<Target> {
        let shown = given.display();
        let place = if given.as_os_str() == "-" {
            Place::Stdout
        } else {
            match std::fs::metadata(given) {
                Ok(found) if is_stdout(&found) => Place::Stdout,
                Ok(found) => place_of(given, &found)?,
                Err(error) if error.kind() == ErrorKind::NotFound => Place::File(free_name(given)?),
                Err(error) => return Err(error).with_context(|| format!("cannot use {shown}")),
            }
        };
        Ok(Target {
            given: given.to_owned(),
            place,
        })
    }

    /// A file in a directory of this program's own, which need not be there yet.
    pub(super) fn within(file: &Path) -> Target {
        let whole = std::path::absolute(file);
        Target {
            given: file.to_owned(),
            place: Place::File(whole.unwrap_or_else(|_| file.to_owned())),
        }
    }

    /// The regular file, or the free name; `None` where the target only takes bytes.
    pub(super) fn file(&self) -> Option<&Path> {
        match &self.place {
            Place::File(path) => Some(path),
            Place::Stdout | Place::Stream => None,
        }
    }

    /// Whether the user named a symlink to the file.
    pub(super) fn is_symlink(&self) -> bool {
        self.given.is_symlink()
    }

    pub(super) fn is_stdout(&self) -> bool {
        self.place == Place::Stdout
    }

    /// Whether two targets are one. Two results may both go to a character device, such as
    /// `/dev/null`.
    pub(super) fn is_same(&self, other: &Target) -> bool {
        match (&self.place, &other.place) {
            (Place::Stdout, Place::Stdout) => true,
            (Place::File(_) | Place::Stream, Place::File(_) | Place::Stream) => {
                is_same_file(self.path(), other.path()) && !is_character_device(self.path())
            }
            _ => false,
        }
    }

    /// Whether a path that is only read names the same file.
    pub(super) fn is_input(&self, input: &Path) -> bool {
        match &self.place {
            Place::File(path) => is_same_file(path, input),
            Place::Stdout | Place::Stream => false,
        }
    }

    fn path(&self) -> &Path {
        self.file().unwrap_or(&self.given)
    }

    /// Opens a target that only takes bytes. A FIFO is opened once it has a reader.
    pub(super) async fn open_stream(&self) -> anyhow::Result<tokio::fs::File> {
        let cannot = || format!("cannot write {self}");
        if self.is_stdout() {
            let stdout = std::io::stdout().as_fd().try_clone_to_owned();
            return Ok(tokio::fs::File::from_std(
                stdout.with_context(cannot)?.into(),
            ));
        }
        let mut is_told = false;
        loop {
            // Without O_NONBLOCK the open waits for a reader, and cannot be interrupted.
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(&self.given);
            match file {
                Ok(file) => {
                    let flags = rustix::fs::fcntl_getfl(&file).with_context(cannot)?;
                    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)
                        .with_context(cannot)?;
                    return Ok(tokio::fs::File::from_std(file));
                }
                Err(error) if has_no_reader(&error) => {
                    if !is_told {
                        is_told = true;
                        tell!("Waiting until something reads {self}.");
                    }
                    tokio::time::sleep(READER_POLL).await;
                }
                Err(error) => return Err(error).with_context(cannot),
            }
        }
    }
}

/// As the user named it.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.place {
            Place::Stdout => f.write_str("standard output"),
            _ => self.given.display().fmt(f),
        }
    }
}

fn place_of(given: &Path, found: &Metadata) -> anyhow::Result<Place> {
    let shown = given.display();
    let kind = found.file_type();
    if kind.is_fifo() || kind.is_char_device() {
        return Ok(Place::Stream);
    }
    if kind.is_file() {
        let whole = given.canonicalize();
        return Ok(Place::File(
            whole.with_context(|| format!("cannot use {shown}"))?,
        ));
    }
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "a socket"
    };
    bail!("{shown} is {what}: name a file")
}

/// The name that a file gets when it is made through `given`, which may be a symlink that leads
/// to a free name.
fn free_name(given: &Path) -> anyhow::Result<PathBuf> {
    let shown = given.display();
    let mut path = given.to_owned();
    for _ in 0..LINKS_MAX {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        if let Ok(link) = path.read_link() {
            path = directory.join(link);
            continue;
        }
        let Ok(whole) = directory.canonicalize() else {
            bail!(
                "cannot write {shown}: there is no directory {}",
                directory.display()
            );
        };
        let Some(name) = path.file_name() else {
            bail!("{shown} names no file");
        };
        return Ok(whole.join(name));
    }
    bail!("cannot write {shown}: its symlinks lead nowhere")
}

/// Whether a file is what standard output is: `/dev/stdout` is one of its names. A character
/// device can be opened by any of its names.
fn is_stdout(found: &Metadata) -> bool {
    if found.file_type().is_char_device() {
        return false;
    }
    let stdout = std::io::stdout().as_fd().try_clone_to_owned();
    let stdout = stdout.ok().and_then(|fd| File::from(fd).metadata().ok());
    stdout.is_some_and(|stdout| is_same_inode(found, &stdout))
}

fn is_same_inode(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Whether two paths name one file, be it by symlinks or by hard links. Neither need be there.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => is_same_inode(&one, &other),
        (Err(_), Err(_)) => match (free_name(one), free_name(other)) {
            (Ok(one), Ok(other)) => one == other,
            _ => one == other,
        },
        _ => false,
    }
}

fn is_character_device(path: &Path) -> bool {
    let found = path.metadata();
    found.is_ok_and(|found| found.file_type().is_char_device())
}

fn has_no_reader(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error())
}

/// Gives a new file the owner and the mode of the file whose place it takes. `false`: this
/// process may not.
pub(super) fn take_after(new: &File, old: &Metadata) -> std::io::Result<bool> {
    let made = new.metadata()?;
    if (made.uid(), made.gid()) != (old.uid(), old.gid())
        && fchown(new, Some(old.uid()), Some(old.gid())).is_err()
    {
        return Ok(false);
    }
    new.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    Ok(true)
}
