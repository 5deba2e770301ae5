//! The index: rows that peers or the ledger can supply again, in sled.
//!
//! sled 0.34 is fast and small, but it does not reach the disk's cache when it flushes, and of a damaged file it keeps
//! what comes before the damage, often without a word. So nothing in the index is relied upon: every call is guarded
//! against panics, opening runs on a thread that may be left behind, an index is closed with a mark that is the last
//! thing sled would lose, and one that fails or lacks its mark is set aside and started empty.
//!
//! A row found in the index was once put there, though after damage it may be an older one; that a row is not found
//! proves nothing. Callers reconcile the index with its sources, which is what makes it an index.

use std::borrow::Borrow;
use std::fs;
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::FREE_RESERVE_BYTES;
use crate::fault::{Fault, guarded};
use crate::folder::{Access, FileError, Folder, check_folder, create_folder, free_bytes, open_private};
use crate::table::{
    Codec, Key, KeyRange, Malformed, Row, Table, decode_row, key_bytes, key_range, prefix_range,
};

/// sled's page cache, in bytes. Its default is 1 GiB.
pub const INDEX_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Damaged indexes kept for people to look at; the oldest beyond these is deleted.
pub const SET_ASIDE_MAX: usize = 2;

pub(crate) const INDEX_FOLDER: &str = "index";
pub(crate) const SET_ASIDE_PREFIX: &str = "index.damaged-";
/// Exists while an index is being opened, and from its first failure until it is replaced. Found at a start, it says
/// that the last opening brought the process down or never ended, so that index is not tried again.
pub(crate) const SUSPECT_FILE: &str = "index.suspect";
/// Written when the index has been closed, removed when it is opened: the number in [`CLOSED_KEY`] at that time.
pub(crate) const CLOSED_FILE: &str = "index.closed";
const CLOSED_FILE_BYTES_MAX: u64 = 20;
/// sled hangs on some damaged files; an opening that takes longer than this is given up.
const OPEN_MAX: Duration = Duration::from_secs(20);
/// How long to wait before asking again for sled's lock.
const LOCKED_RETRY: Duration = Duration::from_millis(2);
/// What sled says when its lock is held; it has no error of its own for it.
const SLED_LOCKED: &str = "could not acquire lock";
/// How often sled writes out what has changed. A crash loses no more than this, and nothing that cannot be rebuilt.
const FLUSH_EVERY_MS: u64 = 1_000;

const META_TREE: &str = "_meta";
const VERSION_KEY: &str = "schema_version";
/// Counts closings. It is the last row written before a closing, and sled recovers its log from the front up to the
/// first damage, so an index without it has lost rows. (Damage in the middle of a long log may pass; a checksum over
/// all files would find it, at the price of reading them all at each start.)
const CLOSED_KEY: &str = "closed";

/// Why an index was neither opened nor rebuilt. Damage is no reason: it leads to [`Origin::Rebuilt`].
#[derive(Debug, thiserror::Error)]
pub enum IndexOpenError {
    /// The folder is loose or not writable; the message says what would mend it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system refused, for a reason that an empty index would meet as well. Mend it and open again.
    #[error("cannot open the index {}: {fault}", path.display())]
    Storage {
        /// The index's folder.
        path: PathBuf,
        /// The system's answer.
        fault: Fault,
    },
}

/// Why an operation on the index failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The index is damaged. Call [`Index::rebuild`] and fill it again; at the next start it is rebuilt by itself.
    #[error("the index is damaged: {fault}")]
    Damaged {
        /// What happened.
        fault: Fault,
    },
    /// The system refused to read or write. The row is not stored; carry on without it.
    #[error("the index cannot be read or written: {fault}")]
    Storage {
        /// The system's answer.
        fault: Fault,
    },
    /// Nothing was written. Carry on without, or free some space.
    #[error("disk almost full: {free_bytes} bytes free, {needed_bytes} needed to write safely")]
    DiskFull {
        /// Free now.
        free_bytes: u64,
        /// Needed before anything is written.
        needed_bytes: u64,
    },
    /// A row's bytes are not of the table's type, or a value has no encoding. Delete the row, or clear the table.
    #[error("malformed row in table {table}: {source}")]
    Malformed {
        /// The table.
        table: &'static str,
        /// What is wrong.
        source: Malformed,
    },
}

/// Where the rows of a newly opened index come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There was none; it is empty. Fill it.
    Created,
    /// All that was there when it was closed.
    Kept,
    /// It was not closed. What was written in the last second may be missing; reconcile it with its source.
    Recovered,
    /// It could not be used; it is empty. Fill it.
    Rebuilt {
        /// Why the old one could not be used.
        why: String,
        /// Where the old one lies now; none if it was merely of another version and has been deleted.
        set_aside: Option<PathBuf>,
    },
}

/// Rows that can be rebuilt. Clones share one index.
#[derive(Clone)]
pub struct Index {
    open: Arc<OpenIndex>,
}

struct OpenIndex {
    folder: Folder,
    version: u32,
    /// None after a failed rebuild.
    db: RwLock<Option<sled::Db>>,
}

impl Index {
    /// Opens the index of a folder, creating it if there is none and replacing it if it cannot be used.
    ///
    /// `version` is that of the rows' layout: an index of any other version is deleted and started empty. Open the
    /// ledger first; it refuses a folder of a newer version untouched.
    ///
    /// # Errors
    /// See [`IndexOpenError`]. A damaged index is not an error.
    pub fn open(folder: &Folder, version: u32) -> Result<(Self, Origin), IndexOpenError> {
        let (db, origin) = open_or_rebuild(folder, version)?;
        if let Origin::Rebuilt { why, set_aside } = &origin {
            tracing::warn!(why, ?set_aside, "the index could not be used and starts empty");
        }
        let open = OpenIndex { folder: folder.clone(), version, db: RwLock::new(Some(db)) };
        Ok((Self { open: Arc::new(open) }, origin))
    }

    /// Sets the index aside and starts an empty one. For use after [`IndexError::Damaged`]; the caller fills it again.
    ///
    /// # Errors
    /// See [`IndexOpenError`]; the index then answers every call with an error until this succeeds.
    pub fn rebuild(&self) -> Result<Origin, IndexOpenError> {
        let mut open = self.db_mut();
        let why = "rebuilt on request".to_owned();
        if let Some(db) = open.take() {
            leave_behind(db);
        }
        let (db, set_aside) = replace(&self.open.folder, self.open.version)?;
        *open = Some(db);
        Ok(Origin::Rebuilt { why, set_aside })
    }

    /// Reads one row.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn get<K, V, C>(&self, table: Table<K, V, C>, key: &K) -> Result<Option<C::Owned>, IndexError>
    where
        K: Key + ?Sized,
        V: ?Sized,
        C: Codec<V>,
    {
        self.run(|db| db.open_tree(table.name())?.get(key_bytes(key)))?
            .map(|bytes| C::decode(&bytes))
            .transpose()
            .map_err(|source| IndexError::Malformed { table: table.name(), source })
    }

    /// Writes a row, in place of the one with that key if there is one. It outlives a crash after the next flush.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn put<K, V, C>(&self, table: Table<K, V, C>, key: &K, value: &V) -> Result<(), IndexError>
    where
        K: Key + ?Sized,
        V: ?Sized,
        C: Codec<V>,
    {
        let mut bytes = Vec::new();
        C::encode(value, &mut bytes)
            .map_err(|source| IndexError::Malformed { table: table.name(), source })?;
        self.check_space(bytes.len())?;
        self.run(|db| db.open_tree(table.name())?.insert(key_bytes(key), bytes)).map(drop)
    }

    /// Writes rows and removes those whose value is none, all at once: after a crash they are all there or none is.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn apply<K, V, C>(
        &self,
        table: Table<K, V, C>,
        rows: &[(K, Option<V::Owned>)],
    ) -> Result<(), IndexError>
    where
        K: Key,
        V: ToOwned + ?Sized,
        C: Codec<V>,
    {
        let (mut batch, mut size_bytes) = (sled::Batch::default(), 0);
        for (key, value) in rows {
            match value {
                Some(value) => {
                    let mut bytes = Vec::new();
                    C::encode(value.borrow(), &mut bytes)
                        .map_err(|source| IndexError::Malformed { table: table.name(), source })?;
                    size_bytes += bytes.len();
                    batch.insert(key_bytes(key), bytes);
                }
                None => batch.remove(key_bytes(key)),
            }
        }
        self.check_space(size_bytes)?;
        self.run(|db| db.open_tree(table.name())?.apply_batch(batch))
    }

    /// Removes a row, if there is one.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn delete<K, V, C>(&self, table: Table<K, V, C>, key: &K) -> Result<(), IndexError>
    where
        K: Key + ?Sized,
        V: ?Sized,
    {
        self.run(|db| db.open_tree(table.name())?.remove(key_bytes(key))).map(drop)
    }

    /// Removes all rows of a table.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn clear<K: ?Sized, V: ?Sized, C>(&self, table: Table<K, V, C>) -> Result<(), IndexError> {
        self.run(|db| db.open_tree(table.name())?.clear())
    }

    /// The rows whose keys lie in `range`, in key order. Rows written meanwhile may or may not be among them.
    ///
    /// # Errors
    /// See [`IndexError`]; also for each row.
    pub fn range<K, V, C>(
        &self,
        table: Table<K, V, C>,
        range: impl RangeBounds<K>,
    ) -> Result<IndexRows<K, V, C>, IndexError>
    where
        K: Key + ?Sized,
        V: ?Sized,
        C: Codec<V>,
    {
        self.rows(table, key_range(&range))
    }

    /// The rows whose key begins with `first`, in key order.
    ///
    /// # Errors
    /// See [`IndexError`]; also for each row.
    pub fn prefix<A, B, V, C>(
        &self,
        table: Table<(A, B), V, C>,
        first: &A,
    ) -> Result<IndexRows<(A, B), V, C>, IndexError>
    where
        A: Key,
        B: Key,
        V: ?Sized,
        C: Codec<V>,
    {
        self.rows(table, Some(prefix_range(first)))
    }

    /// Hands everything written so far to the operating system. It outlives a crash of the process, not always one of
    /// the machine.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn flush(&self) -> Result<(), IndexError> {
        self.run(|db| db.flush()).map(drop)
    }

    fn rows<K: ?Sized, V: ?Sized, C>(
        &self,
        table: Table<K, V, C>,
        range: Option<KeyRange>,
    ) -> Result<IndexRows<K, V, C>, IndexError> {
        let rows = match range {
            Some(range) => Some(self.run(|db| Ok(db.open_tree(table.name())?.range(range)))?),
            None => None,
        };
        Ok(IndexRows { rows, index: self.clone(), table: table.name(), types: PhantomData })
    }

    fn run<T>(&self, work: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, IndexError> {
        match &*self.db() {
            Some(db) => guarded(|| work(db)).map_err(|fault| self.failed(fault)),
            None => Err(IndexError::Damaged { fault: Fault::damage("the last rebuild failed") }),
        }
    }

    fn failed(&self, fault: Fault) -> IndexError {
        if !fault.is_damage() {
            return IndexError::Storage { fault };
        }
        // Only a note for the next start, and the error says enough by itself.
        if let Err(error) = mark_suspect(&self.open.folder) {
            tracing::warn!(%error, "cannot mark the damaged index");
        }
        IndexError::Damaged { fault }
    }

    fn check_space(&self, bytes: usize) -> Result<(), IndexError> {
        let needed_bytes = FREE_RESERVE_BYTES.saturating_add(bytes as u64);
        let free_bytes = free_bytes(self.open.folder.path())
            .map_err(|error| IndexError::Storage { fault: Fault::io(&error) })?;
        if free_bytes < needed_bytes {
            return Err(IndexError::DiskFull { free_bytes, needed_bytes });
        }
        Ok(())
    }

    fn db(&self) -> RwLockReadGuard<'_, Option<sled::Db>> {
        self.open.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn db_mut(&self) -> RwLockWriteGuard<'_, Option<sled::Db>> {
        self.open.db.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenIndex {
    fn drop(&mut self) {
        let db = self.db.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(db) = db.filter(|_| !self.folder.path().join(SUSPECT_FILE).exists()) else { return };
        if let Err(error) = close(&self.folder, db) {
            tracing::warn!(%error, "the index was not closed cleanly");
        }
    }
}

/// Rows of a scan, in key order from either end.
pub struct IndexRows<K: ?Sized, V: ?Sized, C> {
    // Before the index: sled closes when its last part is gone, and the index must be that part.
    rows: Option<sled::Iter>,
    index: Index,
    table: &'static str,
    types: PhantomData<Table<K, V, C>>,
}

impl<K, V, C> IndexRows<K, V, C>
where
    K: Key + ?Sized,
    V: ?Sized,
    C: Codec<V>,
{
    fn step(
        &mut self,
        next: impl FnOnce(&mut sled::Iter) -> Option<sled::Result<(sled::IVec, sled::IVec)>>,
    ) -> Option<Result<Row<K, V, C>, IndexError>> {
        let rows = self.rows.as_mut()?;
        match guarded(|| next(rows).transpose()) {
            Ok(row) => row.map(|(key, value)| {
                decode_row::<K, V, C>(&key, &value)
                    .map_err(|source| IndexError::Malformed { table: self.table, source })
            }),
            Err(fault) => {
                self.rows = None;
                Some(Err(self.index.failed(fault)))
            }
        }
    }
}

impl<K, V, C> Iterator for IndexRows<K, V, C>
where
    K: Key + ?Sized,
    V: ?Sized,
    C: Codec<V>,
{
    type Item = Result<Row<K, V, C>, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(Iterator::next)
    }
}

impl<K, V, C> DoubleEndedIterator for IndexRows<K, V, C>
where
    K: Key + ?Sized,
    V: ?Sized,
    C: Codec<V>,
{
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(DoubleEndedIterator::next_back)
    }
}

fn open_or_rebuild(folder: &Folder, version: u32) -> Result<(sled::Db, Origin), IndexOpenError> {
    let path = folder.path().join(INDEX_FOLDER);
    let why = if !path.exists() {
        None
    } else if folder.path().join(SUSPECT_FILE).exists() {
        Some(SUSPECT_WHY.to_owned())
    } else {
        match open_marked(folder, version)? {
            Ok((db, Found { version: Some(found), closed })) if found == version => {
                let mark = take_closed_mark(folder)?;
                if mark.is_none() {
                    return Ok((db, Origin::Recovered));
                }
                if closed == mark {
                    return Ok((db, Origin::Kept));
                }
                leave_behind(db);
                Some(INCOMPLETE_WHY.to_owned())
            }
            Ok((db, Found { version: found, .. })) => {
                drop(db);
                remove_folder(&path)?;
                let found = found.map_or_else(|| "none".to_owned(), |found| found.to_string());
                let why = format!("it has schema version {found}, this program writes {version}");
                return Ok((open_empty(folder, version)?, Origin::Rebuilt { why, set_aside: None }));
            }
            Err(fault) => Some(fault.to_string()),
        }
    };
    let (db, set_aside) = replace(folder, version)?;
    Ok((db, why.map_or(Origin::Created, |why| Origin::Rebuilt { why, set_aside })))
}

/// Sets aside what lies at the index's place, if anything, and opens an empty index there.
fn replace(folder: &Folder, version: u32) -> Result<(sled::Db, Option<PathBuf>), IndexOpenError> {
    let set_aside = set_aside(folder.path())?;
    Ok((open_empty(folder, version)?, set_aside))
}

fn open_empty(folder: &Folder, version: u32) -> Result<sled::Db, IndexOpenError> {
    remove_if_there(&folder.path().join(CLOSED_FILE))?;
    // If not even an empty one opens, it is not the index that is damaged.
    let (db, _) = open_marked(folder, version)?.map_err(|fault| storage(folder, fault))?;
    Ok(db)
}

/// Opens sled with the suspect mark set meanwhile. The inner error is damage, the outer one a refusal of the system.
fn open_marked(folder: &Folder, version: u32) -> Result<Result<(sled::Db, Found), Fault>, IndexOpenError> {
    let path = folder.path().join(INDEX_FOLDER);
    create_folder(&path)?;
    check_folder(&path)?;
    mark_suspect(folder)?;
    let opened = open_sled(&path).and_then(|db| {
        let found = examine(&db, Some(version))?;
        Ok((db, found))
    });
    match opened {
        Err(fault) if !fault.is_damage() => {
            unmark_suspect(folder)?;
            Err(storage(folder, fault))
        }
        Err(fault) => Ok(Err(fault)),
        Ok(opened) => {
            unmark_suspect(folder)?;
            Ok(Ok(opened))
        }
    }
}

fn storage(folder: &Folder, fault: Fault) -> IndexOpenError {
    IndexOpenError::Storage { path: folder.path().join(INDEX_FOLDER), fault }
}

/// Opens sled on a thread of its own, so that one that hangs can be left behind.
pub(crate) fn open_sled(path: &Path) -> Result<sled::Db, Fault> {
    let (to, from) = mpsc::sync_channel(1);
    let config =
        sled::Config::new().path(path).cache_capacity(INDEX_CACHE_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS));
    thread::Builder::new()
        .name("kos-index-open".to_owned())
        .spawn(move || {
            // Nobody listens any more once the opening was given up; the database is then simply closed.
            let _ = to.send(open_unlocked(&config));
        })
        .map_err(|error| Fault::io(&error))?;
    match from.recv_timeout(OPEN_MAX) {
        Ok(opened) => opened,
        Err(RecvTimeoutError::Timeout) => {
            Err(Fault::damage(format!("it did not open within {} s", OPEN_MAX.as_secs())))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(Fault::damage("the opening thread ended without an answer"))
        }
    }
}

/// Opens sled once nobody holds its lock. The folder's lock keeps other processes out, so the holder can only be an
/// index that this process has closed before, some thread of which has not quite ended.
fn open_unlocked(config: &sled::Config) -> Result<sled::Db, Fault> {
    let begun = Instant::now();
    loop {
        match guarded(|| config.open()) {
            Err(fault) if fault.to_string().contains(SLED_LOCKED) && begun.elapsed() < OPEN_MAX => {
                thread::sleep(LOCKED_RETRY);
            }
            opened => return opened,
        }
    }
}

pub(crate) const SUSPECT_WHY: &str = "it failed before, or its last opening did not end";
pub(crate) const INCOMPLETE_WHY: &str = "it has lost rows since it was closed";

/// What an index says of itself.
pub(crate) struct Found {
    pub version: Option<u32>,
    /// How often it has been closed.
    pub closed: Option<u64>,
}

/// Reads what the index says of itself; a new one is given `version_if_new`.
pub(crate) fn examine(db: &sled::Db, version_if_new: Option<u32>) -> Result<Found, Fault> {
    guarded(|| {
        let meta = db.open_tree(META_TREE)?;
        if let (false, Some(version)) = (db.was_recovered(), version_if_new) {
            meta.insert(VERSION_KEY, &version.to_be_bytes())?;
            db.flush()?;
        }
        let version =
            meta.get(VERSION_KEY)?.and_then(|bytes| bytes.as_ref().try_into().ok().map(u32::from_be_bytes));
        Ok::<_, sled::Error>(Found { version, closed: closed_count(&meta)? })
    })
}

fn closed_count(meta: &sled::Tree) -> sled::Result<Option<u64>> {
    Ok(meta.get(CLOSED_KEY)?.and_then(|bytes| bytes.as_ref().try_into().ok().map(u64::from_be_bytes)))
}

/// Closes sled, and says so in a file once it is closed.
fn close(folder: &Folder, db: sled::Db) -> Result<(), IndexOpenError> {
    let count = guarded(|| {
        db.flush()?;
        let meta = db.open_tree(META_TREE)?;
        let count = closed_count(&meta)?.unwrap_or(0).wrapping_add(1);
        meta.insert(CLOSED_KEY, &count.to_be_bytes())?;
        db.flush()?;
        drop((meta, db));
        Ok::<_, sled::Error>(count)
    })
    .map_err(|fault| storage(folder, fault))?;
    let path = folder.path().join(CLOSED_FILE);
    open_private(&path, Access::ReadWriteOrCreate)?
        .write_all(count.to_string().as_bytes())
        .map_err(|source| FileError::io(&path, source))?;
    Ok(())
}

/// The count in the mark of the last closing, which is removed: from now on the index is open.
fn take_closed_mark(folder: &Folder) -> Result<Option<u64>, FileError> {
    let mark = read_closed_mark(folder.path())?;
    remove_if_there(&folder.path().join(CLOSED_FILE))?;
    Ok(mark)
}

/// A mark that is there but unreadable is 0, which no closing writes.
pub(crate) fn read_closed_mark(folder: &Path) -> Result<Option<u64>, FileError> {
    let path = folder.join(CLOSED_FILE);
    let mark = match open_private(&path, Access::Read) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        mark => mark?,
    };
    let mut text = String::new();
    let read = mark.take(CLOSED_FILE_BYTES_MAX).read_to_string(&mut text);
    Ok(Some(read.ok().and_then(|_| text.parse().ok()).unwrap_or(0)))
}

fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FileError::io(path, source)),
        _ => Ok(()),
    }
}

fn mark_suspect(folder: &Folder) -> Result<(), FileError> {
    open_private(&folder.path().join(SUSPECT_FILE), Access::ReadWriteOrCreate).map(drop)
}

fn unmark_suspect(folder: &Folder) -> Result<(), FileError> {
    remove_if_there(&folder.path().join(SUSPECT_FILE))
}

/// Renames the index to `index.damaged-N` and deletes the oldest of these beyond [`SET_ASIDE_MAX`].
fn set_aside(folder: &Path) -> Result<Option<PathBuf>, FileError> {
    let path = folder.join(INDEX_FOLDER);
    if !path.exists() {
        return Ok(None);
    }
    let mut numbers = set_aside_numbers(folder)?;
    let next = numbers.last().map_or(1, |last| last.saturating_add(1));
    let target = folder.join(format!("{SET_ASIDE_PREFIX}{next}"));
    fs::rename(&path, &target).map_err(|source| FileError::io(&path, source))?;
    numbers.push(next);
    for oldest in &numbers[..numbers.len().saturating_sub(SET_ASIDE_MAX)] {
        remove_folder(&folder.join(format!("{SET_ASIDE_PREFIX}{oldest}")))?;
    }
    Ok(Some(target))
}

/// The numbers of the indexes set aside, oldest first.
pub(crate) fn set_aside_numbers(folder: &Path) -> Result<Vec<u32>, FileError> {
    let failed = |source| FileError::io(folder, source);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        numbers.extend(
            name.to_str()
                .and_then(|name| name.strip_prefix(SET_ASIDE_PREFIX))
                .and_then(|n| n.parse::<u32>().ok()),
        );
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn remove_folder(path: &Path) -> Result<(), FileError> {
    fs::remove_dir_all(path).map_err(|source| FileError::io(path, source))
}

/// Closes a damaged database without waiting for it: closing may panic or hang as well.
fn leave_behind(db: sled::Db) {
    let close = move || {
        let _ = guarded(|| {
            drop(db);
            Ok::<_, sled::Error>(())
        });
    };
    // Without a thread to close it on, `close` is dropped here and closes it after all.
    if let Err(error) = thread::Builder::new().name("kos-index-close".to_owned()).spawn(close) {
        tracing::warn!(%error, "no thread to close the damaged index on");
    }
}
