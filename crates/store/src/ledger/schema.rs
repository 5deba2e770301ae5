//! The schema version in the ledger, and the way from older versions to this one.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};

use super::gate::Gate;
use super::medium::Medium;
use super::{LEDGER_CACHE_BYTES, OpenError, RawTable, open_raw};
use crate::FREE_RESERVE_BYTES;
use crate::fault::{Fault, guarded};
use crate::folder::FileError;
use crate::table::{Codec, Key, Malformed, Row, Table, decode_row, key_bytes};

/// This package's own rows. [`Table::new`] refuses the name to others.
pub(crate) const META_TABLE: &str = "_meta";
const VERSION_KEY: &[u8] = b"schema_version";

/// What versions of the ledger's rows this program knows.
///
/// A program's version is one more than the number of its migrations, so adding a migration is all there is to
/// do. A migration is never changed or removed once released.
#[derive(Clone, Copy, Debug, Default)]
pub struct Schema {
    /// The first leads from version 1 to 2, the next from 2 to 3, and so on.
    pub migrations: &'static [Migration],
}

impl Schema {
    /// The version written by this program.
    ///
    /// # Panics
    /// With 2^32 migrations.
    pub fn version(&self) -> u32 {
        u32::try_from(self.migrations.len()).expect("migrations are written by hand, one by one") + 1
    }
}

/// One step from a schema version to the next. All the steps a ledger needs are one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// What it changes, for logs and errors.
    pub what: &'static str,
    /// Makes the change.
    pub run: fn(&mut Migrating<'_>) -> Result<(), MigrationError>,
}

/// Why a migration was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrationError {
    /// The disk or the file failed.
    #[error("table {table}: {fault}")]
    Storage {
        /// The table.
        table: &'static str,
        /// What happened.
        fault: Fault,
    },
    /// A row is not what the migration expects, or what it writes has no encoding.
    #[error("table {table}: {source}")]
    Malformed {
        /// The table.
        table: &'static str,
        /// What is wrong.
        source: Malformed,
    },
    /// The migration's own reason.
    #[error("{0}")]
    Refused(String),
}

/// The ledger as seen by a migration. Tables may be named with the types of the old version and of the new.
pub struct Migrating<'a> {
    transaction: &'a WriteTransaction,
}

impl Migrating<'_> {
    /// All rows of a table, in key order. They are held in memory together.
    ///
    /// # Errors
    /// [`MigrationError::Malformed`] if a row is not of these types.
    pub fn rows<K, V, C>(&self, table: Table<K, V, C>) -> Result<Vec<Row<K, V, C>>, MigrationError>
    where
        K: Key + ?Sized,
        V: ?Sized,
        C: Codec<V>,
    {
        let name = table.name();
        let rows = guarded(|| {
            let raw = self.transaction.open_table(RawTable::new(name))?;
            let mut rows = Vec::new();
            for row in raw.iter()? {
                let (key, value) = row?;
                rows.push(decode_row::<K, V, C>(key.value(), value.value()));
            }
            Ok::<_, redb::Error>(rows)
        })
        .map_err(|fault| MigrationError::Storage { table: name, fault })?;
        rows.into_iter()
            .collect::<Result<_, _>>()
            .map_err(|source| MigrationError::Malformed { table: name, source })
    }

    /// Writes a row.
    ///
    /// # Errors
    /// [`MigrationError::Malformed`] if the value has no encoding.
    pub fn put<K, V, C>(&mut self, table: Table<K, V, C>, key: &K, value: &V) -> Result<(), MigrationError>
    where
        K: Key + ?Sized,
        V: ?Sized,
        C: Codec<V>,
    {
        let name = table.name();
        let mut bytes = Vec::new();
        C::encode(value, &mut bytes).map_err(|source| MigrationError::Malformed { table: name, source })?;
        guarded(|| {
            self.transaction
                .open_table(RawTable::new(name))?
                .insert(key_bytes(key).as_slice(), bytes.as_slice())?;
            Ok::<_, redb::Error>(())
        })
        .map_err(|fault| MigrationError::Storage { table: name, fault })
    }

    /// Removes a table with all its rows.
    ///
    /// # Errors
    /// [`MigrationError::Storage`].
    pub fn remove_table<K: ?Sized, V: ?Sized, C>(
        &mut self,
        table: Table<K, V, C>,
    ) -> Result<(), MigrationError> {
        let name = table.name();
        guarded(|| self.transaction.delete_table(RawTable::new(name)))
            .map(|_| ())
            .map_err(|fault| MigrationError::Storage { table: name, fault })
    }
}

/// A database whose closing is guarded as everything else: closing writes, and panics on some damaged files.
pub(crate) struct Handle {
    database: Option<Database>,
}

impl Deref for Handle {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.database.as_ref().expect("only dropping takes the database")
    }
}

impl DerefMut for Handle {
    fn deref_mut(&mut self) -> &mut Database {
        self.database.as_mut().expect("only dropping takes the database")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let closed = guarded(|| {
            drop(self.database.take());
            Ok::<_, redb::Error>(())
        });
        if let Err(fault) = closed {
            tracing::error!(%fault, "the ledger was not closed cleanly");
        }
    }
}

/// A database over the medium behind a closed gate: readable, nothing written yet.
pub(super) fn open_gated(medium: &dyn Medium) -> Result<(Handle, Gate), OpenGatedError> {
    let gate = Gate::closed(medium.open()?);
    let (database, left) = open_database(gate.clone())?;
    if left == Left::Open {
        tracing::info!("the ledger was not closed and has been repaired");
    }
    Ok((database, gate))
}

/// Why the medium could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenGatedError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Engine(#[from] Fault),
}

/// How the last process left a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Closed,
    /// Not closed, so the whole file was walked and repaired.
    Open,
}

/// A redb database over a backend. An empty backend would become an empty ledger, which would hide that the ledger is
/// gone, so it is damage.
pub(crate) fn open_database(gate: Gate) -> Result<(Handle, Left), Fault> {
    let left = Rc::new(Cell::new(Left::Closed));
    let database = guarded(|| {
        if redb::StorageBackend::len(&gate).map_err(redb::Error::Io)? == 0 {
            return Err(redb::Error::Corrupted("the file is empty".to_owned()));
        }
        let mut builder = builder();
        let seen = left.clone();
        builder.set_repair_callback(move |_| seen.set(Left::Open));
        builder.create_with_backend(gate).map_err(redb::Error::from)
    })?;
    Ok((Handle { database: Some(database) }, left.get()))
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(LEDGER_CACHE_BYTES);
    builder
}

/// The ledger's schema version; none in a redb file that is not a ledger.
pub(crate) fn read_version(database: &Database) -> Result<Option<u32>, Fault> {
    guarded(|| {
        let transaction = database.begin_read()?;
        let Some(meta) = open_raw(&transaction, META_TABLE)? else { return Ok(None) };
        let version = meta.get(VERSION_KEY)?;
        Ok::<_, redb::Error>(version.and_then(|bytes| bytes.value().try_into().ok().map(u32::from_be_bytes)))
    })
}

fn write_version(transaction: &WriteTransaction, version: u32) -> Result<(), redb::Error> {
    transaction
        .open_table(RawTable::new(META_TABLE))?
        .insert(VERSION_KEY, version.to_be_bytes().as_slice())?;
    Ok(())
}

pub(super) fn open_and_migrate(medium: &dyn Medium, schema: &Schema) -> Result<Handle, OpenError> {
    if !medium.exists()? {
        create(medium, schema)?;
    }
    let failed = |fault: Fault| failed(medium, fault);
    let (database, gate) = open_gated(medium).map_err(|error| match error {
        OpenGatedError::File(error) => OpenError::File(error),
        OpenGatedError::Engine(fault) => failed(fault),
    })?;
    let found = read_version(&database)
        .and_then(|version| version.ok_or_else(|| Fault::damage("it holds no schema version")))
        .map_err(failed)?;
    let known = schema.version();
    if found == 0 || found > known {
        return Err(OpenError::Newer { path: medium.path(), found, known });
    }
    gate.open().map_err(|error| failed(Fault::io(&error)))?;
    if found < known {
        migrate(medium, &database, schema, found)?;
    }
    Ok(database)
}

fn failed(medium: &dyn Medium, fault: Fault) -> OpenError {
    let path = medium.path();
    if fault.is_damage() { OpenError::Damaged { path, fault } } else { OpenError::Storage { path, fault } }
}

fn check_space(medium: &dyn Medium) -> Result<(), OpenError> {
    let free_bytes = medium.free_bytes().map_err(|error| failed(medium, Fault::io(&error)))?;
    if free_bytes < FREE_RESERVE_BYTES {
        return Err(OpenError::DiskFull {
            path: medium.path(),
            free_bytes,
            needed_bytes: FREE_RESERVE_BYTES,
        });
    }
    Ok(())
}

fn create(medium: &dyn Medium, schema: &Schema) -> Result<(), OpenError> {
    check_space(medium)?;
    let gate = Gate::closed(medium.open_new()?);
    gate.open().map_err(|error| failed(medium, Fault::io(&error)))?;
    guarded(|| {
        let database = builder().create_with_backend(gate)?;
        let transaction = database.begin_write()?;
        write_version(&transaction, schema.version())?;
        transaction.commit()?;
        Ok::<_, redb::Error>(())
    })
    .map_err(|fault| failed(medium, fault))?;
    Ok(medium.publish_new()?)
}

fn migrate(medium: &dyn Medium, database: &Database, schema: &Schema, found: u32) -> Result<(), OpenError> {
    check_space(medium)?;
    let transaction = guarded(|| database.begin_write()).map_err(|fault| failed(medium, fault))?;
    for (to, migration) in (2..).zip(schema.migrations).filter(|(to, _)| *to > found) {
        tracing::info!(to, what = migration.what, "migrating the ledger");
        if let Err(source) = (migration.run)(&mut Migrating { transaction: &transaction }) {
            if let Err(fault) = guarded(|| transaction.abort()) {
                tracing::error!(%fault, "a failed migration was not rolled back; the next opening does it");
            }
            return Err(OpenError::Migration { to, what: migration.what, source });
        }
    }
    guarded(|| {
        write_version(&transaction, schema.version())?;
        transaction.commit()?;
        Ok::<_, redb::Error>(())
    })
    .map_err(|fault| failed(medium, fault))
}
