//! The ledger: rows that cannot be rebuilt, in redb, written by one thread and durable when acknowledged.

mod ack;
mod batch;
mod gate;
mod medium;
mod schema;
mod writer;

#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::ops::RangeBounds;
use std::path::PathBuf;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{self, JoinHandle};

use redb::{ReadableDatabase, TableDefinition};

use crate::fault::{Fault, guarded};
use crate::folder::{FileError, Folder};
use crate::table::{
    Codec, Key, KeyRange, Malformed, Row, Table, decode_row, key_bytes, key_range, prefix_range,
};

pub use ack::Durable;
pub use batch::Batch;
pub(crate) use gate::Gate;
pub(crate) use medium::{LEDGER_FILE, Medium};
pub(crate) use schema::{Handle, Left, META_TABLE, open_database, read_version};
pub use schema::{Migrating, Migration, MigrationError, Schema};
pub use writer::{CommitError, QUEUE_BATCHES_MAX, QUEUE_BYTES_MAX};

/// Longest encoded key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Most bytes of keys and values in one batch, and so in one value. Half of [`crate::FREE_RESERVE_BYTES`], so that
/// what a batch costs beyond its own bytes still fits into the reserve.
pub const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// redb's page cache, in bytes. Its default is 1 GiB.
pub const LEDGER_CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Every table as redb sees it: bytes to bytes. Types are ours, so that one table type serves both engines.
type RawTable<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// Why a ledger was not opened. Nothing has been changed, except where a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is loose, missing or not writable; the message says what would mend it.
    #[error(transparent)]
    File(#[from] FileError),
    /// Written by a newer version of this program. Use that version; the folder has not been touched.
    #[error("{} has schema version {found}, this program knows up to {known}\nhint: use a newer version of the program", path.display())]
    Newer {
        /// The ledger's file.
        path: PathBuf,
        /// The version in it.
        found: u32,
        /// The newest version of this program.
        known: u32,
    },
    /// The file is not a whole ledger. Run fsck; restore it from a backup.
    #[error("{} is damaged: {fault}", path.display())]
    Damaged {
        /// The ledger's file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The system refused to read or write the file. Mend the disk and open again.
    #[error("{}: {fault}", path.display())]
    Storage {
        /// The ledger's file.
        path: PathBuf,
        /// The system's answer.
        fault: Fault,
    },
    /// Too little space to open or migrate safely. Free some.
    #[error("{} needs {needed_bytes} bytes free, {free_bytes} are", path.display())]
    DiskFull {
        /// The ledger's file.
        path: PathBuf,
        /// Free now.
        free_bytes: u64,
        /// Needed before anything is written.
        needed_bytes: u64,
    },
    /// A migration refused the rows it found. None of the migrations has been applied.
    #[error("migration to schema version {to} ({what}) failed: {source}")]
    Migration {
        /// The version it leads to.
        to: u32,
        /// The migration's own description.
        what: &'static str,
        /// Its error.
        source: MigrationError,
    },
}

/// Why rows were not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The disk or the file failed, or the ledger was reopened below a long scan. Try once more; if it stays, run fsck.
    #[error("cannot read table {table}: {fault}")]
    Storage {
        /// The table.
        table: &'static str,
        /// What happened.
        fault: Fault,
    },
    /// A row's bytes are not of the table's type. The table was written by other code, or is damaged: run fsck.
    #[error("malformed row in table {table}: {source}")]
    Malformed {
        /// The table.
        table: &'static str,
        /// What is wrong.
        source: Malformed,
    },
    /// After a failure the file could not even be opened for reading. It is tried again before the next commit.
    #[error("the ledger is not open: {fault}")]
    NotOpen {
        /// Why opening it failed.
        fault: Fault,
    },
}

/// Whether the ledger takes writes now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Writable,
    /// A write failed. Reads go on; the ledger reopens itself, before each commit and every few seconds, and is
    /// writable again when that succeeds.
    ReadOnly {
        /// The failure, or why the last reopening failed.
        fault: Fault,
    },
}

/// Rows that cannot be rebuilt. Clones share one ledger; when the last is dropped, what is queued is committed and
/// the file closed.
#[derive(Clone)]
pub struct Ledger {
    open: Arc<OpenLedger>,
}

struct OpenLedger {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What readers and the writer thread share.
struct Shared {
    medium: Box<dyn Medium>,
    database: RwLock<Opened>,
    queue: writer::Queue,
}

/// The database and whether it may be written. Replaced as a whole when the ledger reopens.
struct Opened {
    database: Result<Handle, Fault>,
    health: Health,
}

impl Shared {
    // A panic while the lock was held leaves a value that was replaced as a whole, so poison means nothing here.
    fn opened(&self) -> RwLockReadGuard<'_, Opened> {
        self.database.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn opened_mut(&self) -> RwLockWriteGuard<'_, Opened> {
        self.database.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Ledger {
    /// Opens the ledger of a folder, creating it if there is none, and migrates it to the newest version of `schema`.
    ///
    /// After a crash this walks the whole file once to verify it.
    ///
    /// # Errors
    /// See [`OpenError`]. A ledger of a newer version is refused before a byte is written.
    pub fn open(folder: &Folder, schema: &Schema) -> Result<Self, OpenError> {
        Self::open_on(Box::new(medium::FileMedium::new(folder.clone())), schema)
    }

    pub(crate) fn open_on(medium: Box<dyn Medium>, schema: &Schema) -> Result<Self, OpenError> {
        let database = schema::open_and_migrate(&*medium, schema)?;
        let opened = Opened { database: Ok(database), health: Health::Writable };
        let shared =
            Arc::new(Shared { medium, database: RwLock::new(opened), queue: writer::Queue::default() });
        let writer = thread::Builder::new()
            .name("kos-ledger".to_owned())
            .spawn({
                let shared = shared.clone();
                move || writer::run(&shared)
            })
            .map_err(|error| OpenError::Storage { path: shared.medium.path(), fault: Fault::io(&error) })?;
        Ok(Self { open: Arc::new(OpenLedger { shared, writer: Some(writer) }) })
    }

    /// Commits a batch and waits until it is durable. Blocks; in async code use [`Ledger::commit_async`].
    ///
    /// # Errors
    /// See [`CommitError`]; after every one but [`CommitError::Write`] nothing has been written.
    pub fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        self.commit_async(batch).wait()
    }

    /// Queues a batch. The future is ready when the batch is durable or refused, on any runtime; dropping it does not
    /// take the batch back. Batches are applied in the order of these calls.
    ///
    /// Batches queued while a sync is under way share the next one.
    pub fn commit_async(&self, batch: Batch) -> Durable {
        self.open.shared.queue.push(batch)
    }

    /// Reads one row, as of the last commit.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read<K, V, C>(&self, table: Table<K, V, C>, key: &K) -> Result<Option<C::Owned>, ReadError>
    where
        K: Key + ?Sized,
        V: ?Sized,
        C: Codec<V>,
    {
        self.snapshot()?.read(table, key)
    }

    /// The rows whose keys lie in `range`, in key order, as of the last commit.
    ///
    /// # Errors
    /// See [`ReadError`]; also for each row.
    pub fn range<K, V, C>(
        &self,
        table: Table<K, V, C>,
        range: impl RangeBounds<K>,
    ) -> Result<Rows<K, V, C>, ReadError>
    where
        K: Key + ?Sized,
        V: ?Sized,
        C: Codec<V>,
    {
        self.snapshot()?.range(table, range)
    }

    /// The rows whose key begins with `first`, in key order, as of the last commit.
    ///
    /// # Errors
    /// See [`ReadError`]; also for each row.
    pub fn prefix<A, B, V, C>(
        &self,
        table: Table<(A, B), V, C>,
        first: &A,
    ) -> Result<Rows<(A, B), V, C>, ReadError>
    where
        A: Key,
        B: Key,
        V: ?Sized,
        C: Codec<V>,
    {
        self.snapshot()?.prefix(table, first)
    }

    /// The state after the last commit, for several reads that must agree. A snapshot kept for long makes the file
    /// grow, since the pages it sees cannot be used again.
    ///
    /// # Errors
    /// [`ReadError::NotOpen`] or [`ReadError::Storage`] (with the table named `*`).
    pub fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let opened = self.open.shared.opened();
        let database =
            opened.database.as_ref().map_err(|fault| ReadError::NotOpen { fault: fault.clone() })?;
        let transaction =
            guarded(|| database.begin_read()).map_err(|fault| ReadError::Storage { table: "*", fault })?;
        Ok(Snapshot { transaction })
    }

    /// Whether writes are taken now.
    pub fn health(&self) -> Health {
        self.open.shared.opened().health.clone()
    }
}

impl Drop for OpenLedger {
    fn drop(&mut self) {
        self.shared.queue.close();
        let Some(writer) = self.writer.take() else { return };
        // The writer wakes futures; one of those may own the last clone, and a thread cannot wait for itself.
        if writer.thread().id() != thread::current().id() && writer.join().is_err() {
            tracing::error!("the ledger's writer panicked");
        }
    }
}

/// The ledger as it was after one commit.
pub struct Snapshot {
    transaction: redb::ReadTransaction,
}

impl Snapshot {
    /// Reads one row.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read<K, V, C>(&self, table: Table<K, V, C>, key: &K) -> Result<Option<C::Owned>, ReadError>
    where
        K: Key + ?Sized,
        V: ?Sized,
        C: Codec<V>,
    {
        let name = table.name();
        let value = guarded(|| {
            let Some(raw) = open_raw(&self.transaction, name)? else { return Ok(None) };
            Ok::<_, redb::Error>(raw.get(key_bytes(key).as_slice())?.map(|value| C::decode(value.value())))
        })
        .map_err(|fault| ReadError::Storage { table: name, fault })?;
        value.transpose().map_err(|source| ReadError::Malformed { table: name, source })
    }

    /// The rows whose keys lie in `range`, in key order.
    ///
    /// # Errors
    /// See [`ReadError`]; also for each row.
    pub fn range<K, V, C>(
        &self,
        table: Table<K, V, C>,
        range: impl RangeBounds<K>,
    ) -> Result<Rows<K, V, C>, ReadError>
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
    /// See [`ReadError`]; also for each row.
    pub fn prefix<A, B, V, C>(
        &self,
        table: Table<(A, B), V, C>,
        first: &A,
    ) -> Result<Rows<(A, B), V, C>, ReadError>
    where
        A: Key,
        B: Key,
        V: ?Sized,
        C: Codec<V>,
    {
        self.rows(table, Some(prefix_range(first)))
    }

    fn rows<K: ?Sized, V: ?Sized, C>(
        &self,
        table: Table<K, V, C>,
        range: Option<KeyRange>,
    ) -> Result<Rows<K, V, C>, ReadError> {
        let name = table.name();
        let rows = guarded(|| {
            let (Some(range), Some(raw)) = (range, open_raw(&self.transaction, name)?) else {
                return Ok(None);
            };
            Ok::<_, redb::Error>(Some(raw.range::<&[u8]>(as_slices(&range))?))
        })
        .map_err(|fault| ReadError::Storage { table: name, fault })?;
        Ok(Rows { table: name, rows, types: PhantomData })
    }
}

/// Redb's bounds over slices, for bounds over owned keys.
fn as_slices(range: &KeyRange) -> (std::ops::Bound<&[u8]>, std::ops::Bound<&[u8]>) {
    (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice))
}

type RawReadTable = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

/// A table that no batch has named yet does not exist in the file; for readers it is empty.
pub(crate) fn open_raw(
    transaction: &redb::ReadTransaction,
    name: &str,
) -> Result<Option<RawReadTable>, redb::Error> {
    match transaction.open_table(RawTable::new(name)) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

type RawRows = redb::Range<'static, &'static [u8], &'static [u8]>;
type RawBytes = redb::AccessGuard<'static, &'static [u8]>;
type RawRow = Result<(RawBytes, RawBytes), redb::StorageError>;

/// Rows of a scan, in key order from either end. It sees the ledger as it was when the scan began.
pub struct Rows<K: ?Sized, V: ?Sized, C> {
    table: &'static str,
    rows: Option<RawRows>,
    types: PhantomData<Table<K, V, C>>,
}

impl<K, V, C> Rows<K, V, C>
where
    K: Key + ?Sized,
    V: ?Sized,
    C: Codec<V>,
{
    fn step(
        &mut self,
        next: impl FnOnce(&mut RawRows) -> Option<RawRow>,
    ) -> Option<Result<Row<K, V, C>, ReadError>> {
        let rows = self.rows.as_mut()?;
        let row = guarded(|| {
            next(rows)
                .transpose()
                .map(|row| row.map(|(key, value)| decode_row::<K, V, C>(key.value(), value.value())))
        });
        match row {
            Ok(row) => {
                row.map(|row| row.map_err(|source| ReadError::Malformed { table: self.table, source }))
            }
            Err(fault) => {
                // Nothing said by a scan after its first failure can be relied on.
                self.rows = None;
                Some(Err(ReadError::Storage { table: self.table, fault }))
            }
        }
    }
}

impl<K, V, C> Iterator for Rows<K, V, C>
where
    K: Key + ?Sized,
    V: ?Sized,
    C: Codec<V>,
{
    type Item = Result<Row<K, V, C>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(Iterator::next)
    }
}

impl<K, V, C> DoubleEndedIterator for Rows<K, V, C>
where
    K: Key + ?Sized,
    V: ?Sized,
    C: Codec<V>,
{
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(DoubleEndedIterator::next_back)
    }
}
