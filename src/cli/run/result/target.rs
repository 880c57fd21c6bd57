//! Where a result goes: into a regular file, which is replaced as a whole, or into something that
//! only takes bytes, such as a pipe.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind, IsTerminal as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::fs::{PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::OFlags;

/// As many symlinks as Linux follows.
const LINKS_MAX: usize = 40;
/// The directory of this process's descriptors.
const DESCRIPTORS: &str = "/dev/fd";
/// A FIFO without a reader is tried again this often.
const READER_POLL: Duration = Duration::from_millis(100);

/// Where a result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::run) struct Target {
    /// The path as the user gave it.
    given: PathBuf,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Standard output: `-`, or any name of what standard output is.
    Stdout,
    /// Any name of what standard error is.
    Stderr,
    /// A FIFO, a character device, or what another descriptor of this process leads to.
    Stream,
    /// A regular file or a free name, with all symlinks followed.
    File(PathBuf),
}

impl Target {
    /// Finds out what a path names, and changes nothing.
    pub(in crate::cli::run) fn of(given: &Path) -> anyhow::Result<Target> {
        let shown = given.display();
        let place = if given.as_os_str() == "-" {
            Place::Stdout
        } else {
            match std::fs::metadata(given) {
                Ok(found) if is_open_as(&std::io::stdout(), &found) => Place::Stdout,
                Ok(found) if is_open_as(&std::io::stderr(), &found) => Place::Stderr,
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
    pub(in crate::cli::run) fn within(file: &Path) -> Target {
        let whole = std::path::absolute(file);
        Target {
            given: file.to_owned(),
            place: Place::File(whole.unwrap_or_else(|_| file.to_owned())),
        }
    }

    /// The regular file, or the free name; `None` where the target only takes bytes.
    pub(in crate::cli::run) fn file(&self) -> Option<&Path> {
        match &self.place {
            Place::File(path) => Some(path),
            Place::Stdout | Place::Stderr | Place::Stream => None,
        }
    }

    /// Whether the user named a symlink to the file.
    pub(in crate::cli::run) fn is_symlink(&self) -> bool {
        self.given.is_symlink()
    }

    pub(in crate::cli::run) fn is_stdout(&self) -> bool {
        self.place == Place::Stdout
    }

    /// Whether what is written is shown on a terminal.
    pub(in crate::cli::run) fn is_terminal(&self) -> bool {
        match &self.place {
            Place::Stdout => std::io::stdout().is_terminal(),
            Place::Stderr => std::io::stderr().is_terminal(),
            Place::Stream => {
                is_character_device(&self.given)
                    && self.open_now().is_ok_and(|opened| opened.is_terminal())
            }
            Place::File(_) => false,
        }
    }

    /// Whether two targets are one. Two results may both go to a character device, such as
    /// `/dev/null`.
    pub(in crate::cli::run) fn is_same(&self, other: &Target) -> bool {
        match (&self.place, &other.place) {
            (Place::Stdout, Place::Stdout) | (Place::Stderr, Place::Stderr) => true,
            (Place::File(_) | Place::Stream, Place::File(_) | Place::Stream) => {
                is_same_file(self.path(), other.path()) && !is_character_device(self.path())
            }
            _ => false,
        }
    }

    /// Whether an input, of which `-` is standard input, is the same regular file.
    pub(in crate::cli::run) fn is_input(&self, input: &Path) -> bool {
        let input = if input.as_os_str() == "-" {
            metadata_of(&std::io::stdin())
        } else {
            input.metadata().ok()
        };
        let own = match &self.place {
            Place::Stdout => metadata_of(&std::io::stdout()),
            Place::Stderr => metadata_of(&std::io::stderr()),
            Place::File(_) | Place::Stream => self.path().metadata().ok(),
        };
        match (input, own) {
            (Some(input), Some(own)) => input.is_file() && is_same_inode(&input, &own),
            _ => false,
        }
    }

    fn path(&self) -> &Path {
        self.file().unwrap_or(&self.given)
    }

    /// Whether the target is a FIFO, whose reader waits until somebody has opened and closed it.
    pub(in crate::cli::run) fn is_fifo(&self) -> bool {
        let found = self.given.metadata();
        self.place == Place::Stream && found.is_ok_and(|found| found.file_type().is_fifo())
    }

    /// Tells whether a device can be opened, before anything is sent. A FIFO may get its reader
    /// later.
    pub(in crate::cli::run) fn try_device(&self) -> anyhow::Result<()> {
        if self.place == Place::Stream && !self.is_fifo() {
            let opened = self.open_now();
            opened.with_context(|| format!("cannot write {self}"))?;
        }
        Ok(())
    }

    /// Opens a stream without waiting for a reader. What a descriptor leads to may be a file with
    /// content, which stays.
    fn open_now(&self) -> std::io::Result<File> {
        // Without O_NONBLOCK the open waits for a reader, and cannot be interrupted.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        OpenOptions::new()
            .append(true)
            .custom_flags(flags.bits().cast_signed())
            .open(&self.given)
    }

    /// Opens a target that only takes bytes. A FIFO is opened once it has a reader.
    pub(in crate::cli::run) async fn open_stream(&self) -> anyhow::Result<tokio::fs::File> {
        let cannot = || format!("cannot write {self}");
        let standard = match self.place {
            Place::Stdout => Some(std::io::stdout().as_fd().try_clone_to_owned()),
            Place::Stderr => Some(std::io::stderr().as_fd().try_clone_to_owned()),
            Place::Stream | Place::File(_) => None,
        };
        if let Some(standard) = standard {
            let standard: File = standard.with_context(cannot)?.into();
            return Ok(tokio::fs::File::from_std(standard));
        }
        let mut is_told = false;
        loop {
            match self.open_now() {
                Ok(file) => {
                    let flags = rustix::fs::fcntl_getfl(&file).with_context(cannot)?;
                    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)
                        .with_context(cannot)?;
                    return Ok(tokio::fs::File::from_std(file));
                }
                Err(error) if self.is_fifo() && has_no_reader(&error) => {
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

/// A target takes no more.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {target}")]
pub(in crate::cli::run) struct Unwritable {
    pub(in crate::cli::run) target: String,
    #[source]
    cause: std::io::Error,
}

impl Unwritable {
    pub(in crate::cli::run) fn new(target: &Target, cause: std::io::Error) -> Unwritable {
        Unwritable {
            target: target.to_string(),
            cause,
        }
    }

    /// Whether whoever read the target has gone.
    pub(in crate::cli::run) fn has_no_reader(&self) -> bool {
        self.cause.kind() == ErrorKind::BrokenPipe
    }
}

/// As the user named it.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.place {
            Place::Stdout => f.write_str("standard output"),
            Place::Stderr => f.write_str("standard error"),
            Place::Stream | Place::File(_) => self.given.display().fmt(f),
        }
    }
}

fn place_of(given: &Path, found: &Metadata) -> anyhow::Result<Place> {
    let shown = given.display();
    let kind = found.file_type();
    let is_open = kind.is_file() && is_descriptor(given);
    if is_open || kind.is_fifo() || kind.is_char_device() {
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
        let directory = directory_of(&path);
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

/// Whether a file is what a standard stream is: `/dev/stdout` is one of the names of standard
/// output. A character device can be opened by any of its names.
fn is_open_as(standard: &impl AsFd, found: &Metadata) -> bool {
    if found.file_type().is_char_device() {
        return false;
    }
    metadata_of(standard).is_some_and(|standard| is_same_inode(found, &standard))
}

fn metadata_of(standard: &impl AsFd) -> Option<Metadata> {
    let standard = standard.as_fd().try_clone_to_owned().ok()?;
    File::from(standard).metadata().ok()
}

/// Whether a path, or a symlink on its way, is a descriptor of this process, such as `/dev/fd/3`.
/// Whoever opened the file behind it goes on with that very file, so nothing takes its place.
fn is_descriptor(given: &Path) -> bool {
    let Ok(descriptors) = Path::new(DESCRIPTORS).canonicalize() else {
        return false;
    };
    let mut path = given.to_owned();
    for _ in 0..LINKS_MAX {
        let directory = directory_of(&path);
        if directory.canonicalize().is_ok_and(|it| it == descriptors) {
            return true;
        }
        let Ok(link) = path.read_link() else {
            return false;
        };
        path = directory.join(link);
    }
    false
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
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
pub(in crate::cli::run) fn take_after(new: &File, old: &Metadata) -> std::io::Result<bool> {
    let made = new.metadata()?;
    if (made.uid(), made.gid()) != (old.uid(), old.gid())
        && fchown(new, Some(old.uid()), Some(old.gid())).is_err()
    {
        return Ok(false);
    }
    new.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    Ok(true)
}
