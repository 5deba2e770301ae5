//! The data folder: private to its owner, and open in one process at a time.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Mode of the folder and of the folders in it.
pub(crate) const FOLDER_MODE: u32 = 0o700;
/// Mode of every file in the folder.
pub(crate) const FILE_MODE: u32 = 0o600;
/// What group and others may not have.
const LOOSE_BITS: u32 = 0o077;
/// Permission bits, with set-user-id and the like left out.
const MODE_BITS: u32 = 0o777;

pub(crate) const LOCK_FILE: &str = "lock";
/// A process id in decimal; anything longer in a lock file was not written by us.
const PID_TEXT_BYTES_MAX: u64 = 20;

/// Why a data folder was not opened.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process, or this one, has it open. Stop that one, or use another folder.
    #[error("the data folder {} is in use by {}", path.display(), holder(*pid))]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The holder, as it wrote its process id into the lock file; another container's ids may differ.
        pid: Option<u32>,
    },
    /// The folder or a file in it is unfit; the cause says which and what would mend it.
    #[error(transparent)]
    File(#[from] FileError),
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Why a file or folder in the data folder was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Group or others may reach it. It may have been read or altered already, so we refuse instead of mending it.
    #[error("{} has mode {mode:03o}, others could reach it\nhint: chmod {wanted:03o} '{}'", path.display(), path.display())]
    Loose {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The mode it must have, or a stricter one.
        wanted: u32,
    },
    /// The file system is read-only, or this user may not write here.
    #[error("{} is not writable: {source}\nhint: mount it read-write, or run as the owner of the folder", path.display())]
    NotWritable {
        /// What could not be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something else lies where a file or folder of ours belongs.
    #[error("{} is not a {wanted}", path.display())]
    WrongKind {
        /// What lies there.
        path: PathBuf,
        /// What belongs there: "file" or "folder".
        wanted: &'static str,
    },
    /// The file is larger than the caller said it may be.
    #[error("{} is {size_bytes} bytes, limit {limit_bytes}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The caller's limit.
        limit_bytes: u64,
    },
    /// The system refused for another reason.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl FileError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Self::NotWritable { path, source }
            }
            _ => Self::Io { path, source },
        }
    }
}

/// An open data folder. Clones share it; the lock is given back when the last one, and every ledger and index opened
/// in it, is gone.
#[derive(Clone, Debug)]
pub struct Folder {
    open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    /// Held, not read: closing the file gives the lock back, also when the process is killed.
    _lock: File,
}

impl Folder {
    /// Opens the folder at `path` and locks it, creating it with mode 0700 if there is none.
    ///
    /// Of the files in it only those that this package opens or reads are checked for loose modes; [`crate::fsck`]
    /// checks all.
    ///
    /// # Errors
    /// [`FolderError::InUse`]: somebody has it open. [`FileError::Loose`]: run the command in the message.
    /// [`FileError::NotWritable`]: a read-only file system or another user's folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FolderError> {
        let path = path.as_ref();
        create_folder(path)?;
        check_folder(path)?;
        let lock_path = path.join(LOCK_FILE);
        let mut lock = open_private(&lock_path, Access::ReadWriteOrCreate)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(FolderError::InUse { path: path.to_owned(), pid: read_pid(&mut lock) });
            }
            Err(TryLockError::Error(source)) => return Err(FileError::io(&lock_path, source).into()),
        }
        if let Err(error) = write_pid(&mut lock) {
            // It only makes others' messages more helpful, and a full disk is no reason not to start.
            tracing::debug!(%error, "cannot write the process id into the lock file");
        }
        Ok(Self { open: Arc::new(Open { path: path.to_owned(), _lock: lock }) })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.open.path
    }

    /// The bytes of the file of this plain name, or nothing if there is no such file.
    ///
    /// # Errors
    /// [`FileError::Loose`]: refused, since others could have read or replaced it. [`FileError::TooLarge`]: more than
    /// `limit_bytes`; not ours.
    pub fn read_file(&self, name: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.path().join(name);
        let file = match open_private(&path, Access::Read) {
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let size_bytes = file.metadata().map_err(|source| FileError::io(&path, source))?.len();
        if size_bytes > limit_bytes {
            return Err(FileError::TooLarge { path, size_bytes, limit_bytes });
        }
        let mut bytes = Vec::new();
        file.take(limit_bytes).read_to_end(&mut bytes).map_err(|source| FileError::io(&path, source))?;
        Ok(Some(bytes))
    }

    /// Replaces the file of this plain name by these bytes, whole or not at all, mode 0600; durable when it returns.
    ///
    /// Two syncs, so for keys and the like, not for data that changes often. One writer for each name at a time.
    ///
    /// # Errors
    /// The old file is still there, unless the last sync failed: then either may be.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let (path, new_path) = (self.path().join(name), self.path().join(format!("{name}.new")));
        let write = || {
            remove_if_there(&new_path)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&new_path)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new_path, &path)?;
            sync_folder(self.path())
        };
        write().map_err(|source| FileError::io(&path, source))
    }

    /// Removes the file of this plain name, if it is there; durable when it returns.
    ///
    /// # Errors
    /// The file is still there, unless the sync failed: then it may be.
    pub fn remove_file(&self, name: &str) -> Result<(), FileError> {
        let path = self.path().join(name);
        let remove = || remove_if_there(&path).and_then(|()| sync_folder(self.path()));
        remove().map_err(|source| FileError::io(&path, source))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes names created, renamed or removed in this folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Bytes that this user may still write on the file system that holds `path`.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Creates a folder, and those above it, with mode 0700, durably. An existing one is left as it is.
pub(crate) fn create_folder(path: &Path) -> Result<(), FileError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path).map_err(|source| {
        match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                FileError::WrongKind { path: path.to_owned(), wanted: "folder" }
            }
            _ => FileError::io(path, source),
        }
    })?;
    // What is synced in a folder is lost with the folder, if the folder's own name is not on the disk.
    for parent in missing.iter().filter_map(|created| created.parent()) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        sync_folder(parent).map_err(|source| FileError::io(parent, source))?;
    }
    Ok(())
}

/// Refuses what is not a folder, or one that others can reach.
pub(crate) fn check_folder(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(|source| FileError::io(path, source))?;
    if !metadata.is_dir() {
        return Err(FileError::WrongKind { path: path.to_owned(), wanted: "folder" });
    }
    check_mode(path, &metadata, FOLDER_MODE)
}

fn check_mode(path: &Path, metadata: &fs::Metadata, wanted: u32) -> Result<(), FileError> {
    let mode = metadata.mode() & MODE_BITS;
    if mode & LOOSE_BITS != 0 {
        return Err(FileError::Loose { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

/// How [`open_private`] opens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
    ReadWriteOrCreate,
}

/// Opens a regular file of mode 0600 or stricter. What was opened is checked, not what the path names later; a
/// symbolic link is refused, since it may lead out of the private folder.
pub(crate) fn open_private(path: &Path, how: Access) -> Result<File, FileError> {
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).expect("open flags are C ints");
    let file = OpenOptions::new()
        .read(true)
        .write(how != Access::Read)
        .create(how == Access::ReadWriteOrCreate)
        .mode(FILE_MODE)
        .custom_flags(nofollow)
        .open(path)
        .map_err(|source| match rustix::io::Errno::from_io_error(&source) {
            Some(rustix::io::Errno::LOOP | rustix::io::Errno::ISDIR) => {
                FileError::WrongKind { path: path.to_owned(), wanted: "file" }
            }
            _ => FileError::io(path, source),
        })?;
    let metadata = file.metadata().map_err(|source| FileError::io(path, source))?;
    if !metadata.is_file() {
        return Err(FileError::WrongKind { path: path.to_owned(), wanted: "file" });
    }
    check_mode(path, &metadata, FILE_MODE)?;
    Ok(file)
}

/// The process id in a lock file. Unreadable is not worth an error: it only makes a message more helpful.
pub(crate) fn read_pid(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(PID_TEXT_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())
}
