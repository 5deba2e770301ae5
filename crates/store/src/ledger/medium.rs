//! Where a ledger's bytes lie: a file in the data folder, or in tests anything that can fail in chosen ways.

use std::fs;
use std::io;
use std::path::PathBuf;

use redb::StorageBackend;
use redb::backends::FileBackend;
use rustix::fs::Advice;

use crate::folder::{Access, FileError, Folder, free_bytes, open_private, sync_folder};

pub(crate) const LEDGER_FILE: &str = "ledger.redb";
/// A ledger being created. It gets its name when it is whole, so that an empty or short file under that name is
/// always damage and never a ledger whose creation was cut off.
const NEW_LEDGER_FILE: &str = "ledger.redb.new";

/// See the module.
pub(crate) trait Medium: Send + Sync + 'static {
    /// For messages.
    fn path(&self) -> PathBuf;
    fn exists(&self) -> Result<bool, FileError>;
    /// Opens the ledger afresh, seeing what is on the disk and not what a failed write left in memory.
    fn open(&self) -> Result<Box<dyn StorageBackend>, FileError>;
    /// Opens an empty backend for a ledger to be created in.
    fn open_new(&self) -> Result<Box<dyn StorageBackend>, FileError>;
    /// Makes what was written to the backend of `open_new` the ledger, durably.
    fn publish_new(&self) -> Result<(), FileError>;
    fn free_bytes(&self) -> io::Result<u64>;
}

pub(super) struct FileMedium {
    /// Keeps the folder locked for as long as the ledger is open.
    folder: Folder,
}

impl FileMedium {
    pub fn new(folder: Folder) -> Self {
        Self { folder }
    }

    fn new_path(&self) -> PathBuf {
        self.folder.path().join(NEW_LEDGER_FILE)
    }
}

impl Medium for FileMedium {
    fn path(&self) -> PathBuf {
        self.folder.path().join(LEDGER_FILE)
    }

    fn exists(&self) -> Result<bool, FileError> {
        match fs::symlink_metadata(self.path()) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FileError::io(&self.path(), error)),
        }
    }

    fn open(&self) -> Result<Box<dyn StorageBackend>, FileError> {
        let path = self.path();
        let file = open_private(&path, Access::ReadWrite)?;
        // A failed sync leaves pages in memory marked clean that never reached the disk (Rebello et al.). Reading them
        // back would make a commit look durable that is not, so they are dropped. A file system that ignores the
        // advice is no worse off than without it.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        backend(file, path)
    }

    fn open_new(&self) -> Result<Box<dyn StorageBackend>, FileError> {
        let path = self.new_path();
        let file = open_private(&path, Access::ReadWriteOrCreate)?;
        file.set_len(0).map_err(|source| FileError::io(&path, source))?;
        backend(file, path)
    }

    fn publish_new(&self) -> Result<(), FileError> {
        fs::rename(self.new_path(), self.path())
            .and_then(|()| sync_folder(self.folder.path()))
            .map_err(|source| FileError::io(&self.path(), source))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(self.folder.path())
    }
}

fn backend(file: fs::File, path: PathBuf) -> Result<Box<dyn StorageBackend>, FileError> {
    let backend = FileBackend::new(file)
        .map_err(|error| FileError::Io { path, source: io::Error::other(error.to_string()) })?;
    Ok(Box::new(backend))
}
