//! Examines a data folder without changing a byte of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableHandle};

use crate::fault::{Fault, guarded};
use crate::folder::{Access, FILE_MODE, FOLDER_MODE, FileError, LOCK_FILE, open_private, read_pid};
use crate::index::{
    INCOMPLETE_WHY, INDEX_FOLDER, SET_ASIDE_PREFIX, SUSPECT_FILE, SUSPECT_WHY, examine, open_sled,
    read_closed_mark, set_aside_numbers,
};
use crate::ledger::{
    Gate, Handle, LEDGER_FILE, Left, META_TABLE, Schema, open_database, open_raw, read_version,
};
use crate::table::{Codec, Key, Malformed, Table, decode_row};

/// An index larger than this is not examined: examining it takes a copy.
const INDEX_COPY_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Malformed rows reported one by one for each table; the rest are counted.
const ROWS_REPORTED_MAX: u64 = 10;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Note,
    /// Works, but somebody should look.
    Warning,
    /// The node will not start, or data is missing.
    Error,
}

/// One thing that fsck noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// There is no such folder, or it cannot be read.
    NoFolder {
        /// The system's answer.
        why: String,
    },
    /// A file or folder that others can reach, or something in place of it.
    Unfit {
        /// What is wrong and, where there is one, the command that mends it.
        why: String,
    },
    /// A process has the folder open, so ledger and index were not examined.
    InUse {
        /// Its process id, if it can be told.
        pid: Option<u32>,
    },
    /// There is no ledger: a new folder, or one that lost it.
    LedgerMissing,
    /// The ledger does not open, or what it holds does not agree with its checksums.
    LedgerDamaged {
        /// What is wrong.
        why: String,
    },
    /// The ledger was not closed. The next start repairs it; all that was acknowledged is there.
    LedgerNotClosed,
    /// The ledger was written by a newer version of the program; its rows were not examined.
    SchemaNewer {
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// The next start migrates the ledger; its rows were not examined.
    SchemaOlder {
        /// The version found.
        found: u32,
        /// The version it will have.
        known: u32,
    },
    /// A row is not of its table's type, or its check refused it.
    RowMalformed {
        /// The table.
        table: String,
        /// The key, in hex.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// More malformed rows than are reported one by one.
    RowsMalformed {
        /// The table.
        table: String,
        /// How many there are, with those reported.
        rows: u64,
    },
    /// A table that no check names; written by other code.
    TableUnknown {
        /// The table.
        table: String,
        /// Its rows.
        rows: u64,
    },
    /// The index does not open or cannot be read. The next start sets it aside and rebuilds it.
    IndexDamaged {
        /// What is wrong.
        why: String,
    },
    /// The index was not examined.
    IndexSkipped {
        /// Why not.
        why: String,
    },
    /// A damaged index was kept. Delete it when nobody wants to look at it any more.
    IndexSetAside {
        /// Where it lies.
        path: PathBuf,
    },
}

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::LedgerNotClosed | Self::InUse { .. } | Self::LedgerMissing | Self::SchemaOlder { .. } => {
                Severity::Note
            }
            Self::IndexDamaged { .. }
            | Self::IndexSkipped { .. }
            | Self::IndexSetAside { .. }
            | Self::TableUnknown { .. } => Severity::Warning,
            Self::NoFolder { .. }
            | Self::Unfit { .. }
            | Self::LedgerDamaged { .. }
            | Self::SchemaNewer { .. }
            | Self::RowMalformed { .. }
            | Self::RowsMalformed { .. } => Severity::Error,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFolder { why } => write!(f, "no data folder: {why}"),
            Self::Unfit { why } => f.write_str(why),
            Self::InUse { pid: Some(pid) } => {
                write!(f, "in use by process {pid}; stop it to examine the folder")
            }
            Self::InUse { pid: None } => {
                f.write_str("in use by another process; stop it to examine the folder")
            }
            Self::LedgerMissing => f.write_str("there is no ledger"),
            Self::LedgerDamaged { why } => {
                write!(f, "the ledger is damaged: {why}\nhint: restore it from a backup")
            }
            Self::LedgerNotClosed => f.write_str("the ledger was not closed; the next start repairs it"),
            Self::SchemaNewer { found, known } => {
                write!(
                    f,
                    "schema version {found}, this program knows up to {known}\nhint: use a newer version of it"
                )
            }
            Self::SchemaOlder { found, known } => {
                write!(f, "schema version {found}; the next start migrates to {known}")
            }
            Self::RowMalformed { table, key, why } => {
                write!(f, "malformed row {key} in table {table}: {why}")
            }
            Self::RowsMalformed { table, rows } => write!(f, "{rows} malformed rows in table {table} in all"),
            Self::TableUnknown { table, rows } => write!(f, "unknown table {table} with {rows} rows"),
            Self::IndexDamaged { why } => {
                write!(f, "the index is damaged, the next start rebuilds it: {why}")
            }
            Self::IndexSkipped { why } => write!(f, "the index was not examined: {why}"),
            Self::IndexSetAside { path } => write!(f, "a damaged index lies in {}", path.display()),
        }
    }
}

/// What fsck found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Everything worth saying, in the order of examination.
    pub findings: Vec<Finding>,
    /// Rows of each table of the ledger that was examined.
    pub ledger_rows: BTreeMap<String, u64>,
}

impl Report {
    /// The severity of the worst finding, if there is any.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }
}

type RowCheck = Box<dyn Fn(&[u8], &[u8]) -> Result<(), Malformed>>;

/// How fsck checks the rows of one table of the ledger.
pub struct TableCheck {
    name: &'static str,
    check: RowCheck,
}

impl<K, V, C> Table<K, V, C>
where
    K: Key + ?Sized + 'static,
    V: ?Sized + 'static,
    C: Codec<V> + 'static,
{
    /// For [`fsck`]: every row decodes, and `check` accepts it.
    pub fn check(self, check: impl Fn(K::Owned, C::Owned) -> Result<(), Malformed> + 'static) -> TableCheck {
        let check = move |key: &[u8], value: &[u8]| {
            let (key, value) = decode_row::<K, V, C>(key, value)?;
            check(key, value)
        };
        TableCheck { name: self.name(), check: Box::new(check) }
    }
}

/// Examines the folder at `path`: modes, lock, ledger (pages, schema version, rows) and index. Nothing is written to
/// it. While it runs, no process can open the folder.
///
/// Reads the whole ledger twice, and copies the index to the system's temporary folder, because sled writes when it
/// opens.
pub fn fsck(path: impl AsRef<Path>, schema: &Schema, tables: &[TableCheck]) -> Report {
    let path = path.as_ref();
    let mut report = Report::default();
    if let Err(error) = fs::read_dir(path) {
        report.findings.push(Finding::NoFolder { why: format!("{}: {error}", path.display()) });
        return report;
    }
    check_modes(path, &mut report);
    let _lock = match lock(path) {
        Ok(lock) => lock,
        Err(finding) => {
            report.findings.push(finding);
            return report;
        }
    };
    check_ledger(path, schema, tables, &mut report);
    check_index(path, &mut report);
    report
}

fn check_modes(path: &Path, report: &mut Report) {
    let mut unfit = |path: &Path, wanted: u32| match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.mode() & 0o777 & !wanted != 0 => {
            let error = FileError::Loose { path: path.to_owned(), mode: metadata.mode() & 0o777, wanted };
            report.findings.push(Finding::Unfit { why: error.to_string() });
        }
        Ok(_) => {}
        Err(error) => {
            report.findings.push(Finding::Unfit { why: FileError::io(path, error).to_string() });
        }
    };
    unfit(path, FOLDER_MODE);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        match entry.file_type() {
            // What lies within a private folder cannot be reached, so its own mode does not matter.
            Ok(kind) if kind.is_dir() => unfit(&entry.path(), FOLDER_MODE),
            Ok(kind) if kind.is_file() => unfit(&entry.path(), FILE_MODE),
            _ => {}
        }
    }
}

/// Takes the folder's lock without writing into it. A folder without a lock file is nobody's yet.
fn lock(path: &Path) -> Result<Option<File>, Finding> {
    let mut file = match File::open(path.join(LOCK_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Finding::Unfit { why: FileError::io(&path.join(LOCK_FILE), error).to_string() });
        }
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Finding::InUse { pid: read_pid(&mut file) }),
        Err(TryLockError::Error(error)) => {
            Err(Finding::Unfit { why: FileError::io(&path.join(LOCK_FILE), error).to_string() })
        }
    }
}

fn check_ledger(path: &Path, schema: &Schema, tables: &[TableCheck], report: &mut Report) {
    let ledger = path.join(LEDGER_FILE);
    match fs::symlink_metadata(&ledger) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.findings.push(Finding::LedgerMissing);
            return;
        }
        _ => {}
    }
    let mut database = match open_untouched(&ledger) {
        Ok((database, left)) => {
            if left == Left::Open {
                report.findings.push(Finding::LedgerNotClosed);
            }
            database
        }
        Err(finding) => {
            report.findings.push(finding);
            return;
        }
    };
    match guarded(|| database.check_integrity()) {
        Ok(true) => {}
        Ok(false) => {
            report
                .findings
                .push(Finding::LedgerDamaged { why: "pages do not agree with their checksums".to_owned() });
        }
        Err(fault) => {
            report.findings.push(Finding::LedgerDamaged { why: fault.to_string() });
            return;
        }
    }
    let known = schema.version();
    match read_version(&database) {
        Ok(Some(found)) if found == known => {}
        Ok(Some(found)) if found > known => {
            return report.findings.push(Finding::SchemaNewer { found, known });
        }
        Ok(Some(found)) => return report.findings.push(Finding::SchemaOlder { found, known }),
        Ok(None) => {
            return report
                .findings
                .push(Finding::LedgerDamaged { why: "it holds no schema version".to_owned() });
        }
        Err(fault) => return report.findings.push(Finding::LedgerDamaged { why: fault.to_string() }),
    }
    if let Err(fault) = check_rows(&database, tables, report) {
        report.findings.push(Finding::LedgerDamaged { why: fault.to_string() });
    }
}

/// A database over the file behind a gate that is never opened: repairs happen in memory only.
fn open_untouched(ledger: &Path) -> Result<(Handle, Left), Finding> {
    let file = open_private(ledger, Access::Read)
        .map_err(|error| Finding::LedgerDamaged { why: error.to_string() })?;
    FileBackend::new(file)
        .map_err(Fault::from)
        .and_then(|backend| open_database(Gate::closed(Box::new(backend))))
        .map_err(|fault| Finding::LedgerDamaged { why: fault.to_string() })
}

fn check_rows(database: &Database, tables: &[TableCheck], report: &mut Report) -> Result<(), Fault> {
    guarded(|| {
        let transaction = database.begin_read()?;
        let names: Vec<String> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
        for name in names.into_iter().filter(|name| name != META_TABLE) {
            let Some(raw) = open_raw(&transaction, &name)? else { continue };
            report.ledger_rows.insert(name.clone(), raw.len()?);
            let Some(table) = tables.iter().find(|table| table.name == name) else {
                report.findings.push(Finding::TableUnknown { table: name, rows: raw.len()? });
                continue;
            };
            let mut malformed = 0;
            for row in raw.iter()? {
                let (key, value) = row?;
                let Err(Malformed(why)) = (table.check)(key.value(), value.value()) else { continue };
                malformed += 1;
                if malformed <= ROWS_REPORTED_MAX {
                    let key = hex(key.value());
                    report.findings.push(Finding::RowMalformed { table: name.clone(), key, why });
                }
            }
            if malformed > ROWS_REPORTED_MAX {
                report.findings.push(Finding::RowsMalformed { table: name, rows: malformed });
            }
        }
        Ok::<_, redb::Error>(())
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_index(path: &Path, report: &mut Report) {
    for number in set_aside_numbers(path).unwrap_or_default() {
        report
            .findings
            .push(Finding::IndexSetAside { path: path.join(format!("{SET_ASIDE_PREFIX}{number}")) });
    }
    let index = path.join(INDEX_FOLDER);
    if !index.exists() {
        return;
    }
    if path.join(SUSPECT_FILE).exists() {
        return report.findings.push(Finding::IndexDamaged { why: SUSPECT_WHY.to_owned() });
    }
    match folder_bytes(&index) {
        Ok(bytes) if bytes <= INDEX_COPY_BYTES_MAX => {}
        Ok(bytes) => {
            let why = format!("{bytes} bytes, more than {INDEX_COPY_BYTES_MAX}");
            return report.findings.push(Finding::IndexSkipped { why });
        }
        Err(error) => return report.findings.push(Finding::IndexSkipped { why: error.to_string() }),
    }
    let copy = match Copy::of(&index) {
        Ok(copy) => copy,
        Err(error) => {
            return report.findings.push(Finding::IndexSkipped { why: format!("copying it: {error}") });
        }
    };
    let read_all = || {
        let db = open_sled(&copy.path)?;
        let mark = read_closed_mark(path).map_err(|error| Fault::damage(error.to_string()))?;
        if mark.is_some() && examine(&db, None)?.closed != mark {
            return Err(Fault::damage(INCOMPLETE_WHY));
        }
        guarded(|| {
            for name in db.tree_names() {
                for row in &db.open_tree(name)? {
                    row?;
                }
            }
            Ok::<_, sled::Error>(())
        })
    };
    if let Err(fault) = read_all() {
        report.findings.push(Finding::IndexDamaged { why: fault.to_string() });
    }
}

fn folder_bytes(path: &Path) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let below =
            if entry.file_type()?.is_dir() { folder_bytes(&entry.path())? } else { entry.metadata()?.len() };
        bytes = bytes.saturating_add(below);
    }
    Ok(bytes)
}

/// A private copy of a folder in the system's temporary folder, deleted when dropped.
struct Copy {
    path: PathBuf,
}

impl Copy {
    fn of(folder: &Path) -> io::Result<Self> {
        static COPIES: AtomicU32 = AtomicU32::new(0);
        let number = COPIES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kos-fsck-{}-{number}", std::process::id()));
        // Fails if the name is taken, so nobody can have prepared it for us.
        fs::DirBuilder::new().mode(FOLDER_MODE).create(&path)?;
        let copy = Self { path };
        copy_into(folder, &copy.path)?;
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary copy");
        }
    }
}

fn copy_into(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::DirBuilder::new().mode(FOLDER_MODE).create(&target)?;
            copy_into(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
