//! The ledger on a disk that fails and forgets in chosen ways.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redb::StorageBackend;

use super::{Batch, CommitError, Health, Ledger, Medium, ReadError, Schema};
use crate::FREE_RESERVE_BYTES;
use crate::folder::FileError;
use crate::table::Table;

const TABLES: [Table<u64, [u8]>; 3] = [Table::new("one"), Table::new("two"), Table::new("three")];
const LAST: Table<str, u64> = Table::new("last");
/// What a disk writes at once; a write of more may be torn between them.
const SECTOR_BYTES: usize = 512;

/// A disk with a cache above it. What is written is seen at once, and stays after a power cut only if it was synced.
#[derive(Debug, Default)]
struct Disk {
    state: Mutex<DiskState>,
}

#[derive(Debug, Default)]
struct DiskState {
    published: bool,
    cache: Vec<u8>,
    platter: Vec<u8>,
    /// What was on the platter when the ledger was published; the trace begins there.
    base: Vec<u8>,
    trace: Vec<Op>,
    /// Writing operations still to succeed, then how many are to fail.
    fault: Option<(u64, u64)>,
    reads_fail: bool,
    free_bytes: Option<u64>,
}

#[derive(Clone, Debug)]
enum Op {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    SetLen(usize),
    Sync,
    /// Not the disk's: the batch of this number was acknowledged here.
    Acknowledged(u64),
}

fn apply(bytes: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { offset, bytes: written } => {
            let end = offset + written.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(written);
        }
        Op::SetLen(len) => bytes.resize(*len, 0),
        Op::Sync | Op::Acknowledged(_) => {}
    }
}

impl DiskState {
    fn write(&mut self, op: Op) -> io::Result<()> {
        if let Some((to_succeed, to_fail)) = &mut self.fault {
            match (to_succeed, to_fail) {
                (0, 0) => self.fault = None,
                (0, left) => {
                    *left -= 1;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                (left, _) => *left -= 1,
            }
        }
        apply(&mut self.cache, &op);
        if matches!(op, Op::Sync) {
            self.platter.clone_from(&self.cache);
        }
        self.trace.push(op);
        Ok(())
    }
}

impl Disk {
    fn of(bytes: Vec<u8>) -> Arc<Self> {
        let state =
            DiskState { published: true, cache: bytes.clone(), platter: bytes, ..DiskState::default() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn set<T>(&self, change: impl FnOnce(&mut DiskState) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    fn fail(&self, after: u64, times: u64) {
        self.set(|state| state.fault = Some((after, times)));
    }

    fn heal(&self) {
        self.set(|state| {
            state.fault = None;
            state.reads_fail = false;
            state.free_bytes = None;
        });
    }
}

#[derive(Debug)]
struct Attached(Arc<Disk>);

impl Medium for Attached {
    fn path(&self) -> PathBuf {
        "memory".into()
    }

    fn exists(&self) -> Result<bool, FileError> {
        Ok(self.0.set(|state| state.published))
    }

    fn open(&self) -> Result<Box<dyn StorageBackend>, FileError> {
        // As on Linux: a failed sync leaves pages clean that were never written, and opening drops them.
        self.0.set(|state| state.cache = state.platter.clone());
        Ok(Box::new(Attached(self.0.clone())))
    }

    fn open_new(&self) -> Result<Box<dyn StorageBackend>, FileError> {
        self.open()
    }

    fn publish_new(&self) -> Result<(), FileError> {
        self.0.set(|state| {
            state.published = true;
            state.base = state.platter.clone();
            state.trace.clear();
        });
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.0.set(|state| state.free_bytes.unwrap_or(u64::MAX)))
    }
}

impl StorageBackend for Attached {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.set(|state| state.cache.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.set(|state| {
            if state.reads_fail {
                return Err(io::Error::other("the disk is gone"));
            }
            let start = usize::try_from(offset).unwrap();
            let read = state.cache.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(read);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set(|state| state.write(Op::SetLen(usize::try_from(len).unwrap())))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.set(|state| state.write(Op::Sync))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.0.set(|state| state.write(Op::Write { offset, bytes: data.to_vec() }))
    }
}

fn open(disk: &Arc<Disk>) -> Ledger {
    Ledger::open_on(Box::new(Attached(disk.clone())), &Schema::default()).unwrap()
}

/// Batch `n` writes a row in every table, and its number over that of the batch before, in a row of each table's.
fn batch(n: u64) -> Batch {
    let mut batch = Batch::new();
    for table in TABLES {
        batch.put(table, &n, &vec![n as u8; 40 + usize::try_from(n % 7).unwrap() * 300]);
        batch.put(LAST, table.name(), &n);
    }
    if n >= 10 {
        for table in TABLES {
            batch.delete(table, &(n - 10));
        }
    }
    batch
}

/// The number of the last batch in the ledger. Panics if any batch is there in part, or one before it is missing.
fn whole_batches(ledger: &Ledger) -> Option<u64> {
    let lasts: BTreeSet<_> = TABLES.iter().map(|table| ledger.read(LAST, table.name()).unwrap()).collect();
    assert_eq!(lasts.len(), 1, "a torn batch: {lasts:?}");
    let last = lasts.into_iter().next().flatten();
    let expected: Vec<u64> = last.map_or_else(Vec::new, |last| (last.saturating_sub(9)..=last).collect());
    for table in TABLES {
        let rows: Vec<_> = ledger.range(table, ..).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), expected);
        assert!(rows.iter().all(|(n, value)| value.iter().all(|byte| *byte == *n as u8)));
    }
    last
}

/// A new ledger's bytes, and a trace of commits, alone and in groups, with their acknowledgements, and of the closing.
fn recorded() -> (Vec<u8>, Vec<Op>) {
    let disk = Arc::new(Disk::default());
    let ledger = open(&disk);
    let acknowledge = |n| disk.set(|state| state.trace.push(Op::Acknowledged(n)));
    let mut n = 0;
    for group in [1, 1, 5, 1, 3, 8, 1, 1, 2, 6, 1, 4] {
        let queued: Vec<_> = (n..n + group).map(|n| (n, ledger.commit_async(batch(n)))).collect();
        for (n, durable) in queued {
            durable.wait().unwrap();
            acknowledge(n);
        }
        n += group;
    }
    drop(ledger);
    disk.set(|state| (std::mem::take(&mut state.base), std::mem::take(&mut state.trace)))
}

/// A small generator, so that a failure names its seed and nothing else.
struct Random(u64);

impl Random {
    fn flip(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 & 0x100 != 0
    }

    /// What a power cut leaves of an operation that was not synced: all, nothing, or some sectors of it.
    fn survivor(&mut self, op: &Op, disk: &mut Vec<u8>) {
        match op {
            Op::Write { offset, bytes } => {
                for (sector, written) in bytes.chunks(SECTOR_BYTES).enumerate() {
                    if self.flip() {
                        let offset = offset + sector * SECTOR_BYTES;
                        apply(disk, &Op::Write { offset, bytes: written.to_vec() });
                    }
                }
            }
            op if self.flip() => apply(disk, op),
            _ => {}
        }
    }
}

#[test]
fn a_power_cut_at_any_point_loses_no_acknowledged_batch_and_tears_none() {
    let (mut synced, trace) = recorded();
    assert_eq!(
        whole_batches(&open(&Disk::of(synced.clone()))),
        None,
        "all that is found below comes from the trace"
    );
    let subsets = if std::env::var("CI_LONG").as_deref() == Ok("1") { 10 } else { 1 };
    let (mut pending, mut acknowledged) = (Vec::new(), None);
    let (mut cuts, mut later) = (0, 0);
    for (at, op) in trace.iter().enumerate() {
        match op {
            Op::Acknowledged(n) => acknowledged = Some(*n),
            Op::Sync => pending.drain(..).for_each(|op: Op| apply(&mut synced, &op)),
            op => pending.push(op.clone()),
        }
        for seed in 0..=subsets {
            let mut left = synced.clone();
            if seed > 0 {
                let mut random = Random((at as u64 + 1) * 1_000 + seed);
                pending.iter().for_each(|op| random.survivor(op, &mut left));
            }
            let found = whole_batches(&open(&Disk::of(left)));
            assert!(
                found >= acknowledged,
                "cut at {at}, seed {seed}: {found:?} where {acknowledged:?} was acknowledged"
            );
            cuts += 1;
            later += u64::from(found > acknowledged);
        }
    }
    assert_eq!(acknowledged, Some(33));
    println!(
        "{cuts} cuts in {} operations; in {later} a batch was there that had not been acknowledged",
        trace.len()
    );
    assert!(later > 0, "if unsynced writes never survive, the test does not test");
}

#[test]
fn a_commit_is_one_sync_and_one_more_only_when_the_file_grows() {
    let disk = Arc::new(Disk::default());
    let ledger = open(&disk);
    let mut growths = 0;
    for n in 0..150 {
        let mut length = disk.set(|state| {
            state.trace.clear();
            state.cache.len()
        });
        ledger.commit(batch(n)).unwrap();
        let trace = disk.set(|state| state.trace.clone());
        let mut expected = 1;
        for op in &trace {
            if let Op::SetLen(next) = op {
                expected += usize::from(*next > length);
                length = *next;
            }
        }
        let syncs = trace.iter().filter(|op| matches!(op, Op::Sync)).count();
        assert_eq!(syncs, expected, "batch {n}");
        let unsynced = trace.iter().rev().take_while(|op| !matches!(op, Op::Sync));
        assert!(
            unsynced.clone().all(|op| matches!(op, Op::SetLen(_))),
            "only a cut of unused pages may be left unsynced"
        );
        growths += syncs - 1;
    }
    assert!(growths < 10, "{growths} growths");
}

#[test]
fn after_a_failed_write_the_ledger_reads_refuses_and_comes_back() {
    let mut failures = 0;
    for after in 0.. {
        let disk = Arc::new(Disk::default());
        let ledger = open(&disk);
        for n in 0..3 {
            ledger.commit(batch(n)).unwrap();
        }
        disk.fail(after, u64::MAX);
        let outcome = ledger.commit(batch(3));
        let Err(error) = outcome else {
            assert!(failures > 3, "a commit is more than that many operations");
            break;
        };
        failures += 1;
        assert!(
            matches!(&error, CommitError::Write { fault } if fault.io_kind() == Some(io::ErrorKind::StorageFull))
        );
        assert!(
            matches!(ledger.health(), Health::ReadOnly { .. }),
            "the disk takes no writes, so it cannot be well"
        );
        assert!(whole_batches(&ledger) >= Some(2), "reads go on");
        assert!(matches!(ledger.commit(batch(3)), Err(CommitError::ReadOnly { .. })));
        disk.heal();
        // Read back, as the error says, and repeat it if it is not there.
        let next = whole_batches(&ledger).unwrap() + 1;
        for n in next..next + 3 {
            ledger.commit(batch(n)).unwrap();
        }
        assert_eq!(ledger.health(), Health::Writable);
        assert_eq!(whole_batches(&ledger), Some(next + 2));
        let left = disk.set(|state| state.platter.clone());
        assert_eq!(
            whole_batches(&open(&Disk::of(left))),
            Some(next + 2),
            "it is on the disk, not in the cache"
        );
    }
    println!("{failures} places to fail");
}

#[test]
fn a_disk_that_fails_once_costs_one_batch() {
    for after in 0..4 {
        let disk = Arc::new(Disk::default());
        let ledger = open(&disk);
        ledger.commit(batch(0)).unwrap();
        disk.fail(after, 1);
        assert!(matches!(ledger.commit(batch(1)), Err(CommitError::Write { .. })));
        assert_eq!(ledger.health(), Health::Writable, "it has reopened itself before it answered");
        let next = whole_batches(&ledger).unwrap() + 1;
        ledger.commit(batch(next)).unwrap();
        drop(ledger);
        assert_eq!(whole_batches(&open(&disk)), Some(next));
    }
}

#[test]
fn a_ledger_comes_back_without_anybody_committing() {
    let disk = Arc::new(Disk::default());
    let ledger = open(&disk);
    disk.fail(0, u64::MAX);
    ledger.commit(batch(0)).unwrap_err();
    disk.heal();
    let begun = Instant::now();
    while ledger.health() != Health::Writable {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", ledger.health());
        std::thread::yield_now();
    }
}

#[test]
fn a_commit_may_be_awaited_and_a_scan_moved_on_any_thread() {
    fn shared<T: Send + Sync + 'static>() {}
    fn moved<T: Send + 'static>() {}
    shared::<Ledger>();
    shared::<super::Durable>();
    moved::<super::Snapshot>();
    moved::<super::Rows<u64, [u8], crate::Plain>>();
    moved::<super::CommitError>();
    shared::<crate::Index>();
    moved::<crate::IndexRows<u64, [u8], crate::Plain>>();
}

#[test]
fn a_disk_that_cannot_be_read_either_is_an_error_until_it_is_back() {
    let disk = Arc::new(Disk::default());
    let ledger = open(&disk);
    ledger.commit(batch(0)).unwrap();
    disk.fail(0, u64::MAX);
    disk.set(|state| state.reads_fail = true);
    assert!(matches!(ledger.commit(batch(1)), Err(CommitError::Write { .. })));
    assert!(matches!(ledger.read(LAST, "one"), Err(ReadError::NotOpen { .. })));
    assert!(matches!(ledger.commit(batch(1)), Err(CommitError::ReadOnly { .. })));
    disk.heal();
    ledger.commit(batch(1)).unwrap();
    assert_eq!(whole_batches(&ledger), Some(1));
}

#[test]
fn a_failure_fails_every_batch_of_its_group_and_tears_none() {
    let disk = Arc::new(Disk::default());
    let ledger = open(&disk);
    disk.fail(2, 1);
    let outcomes: Vec<_> = (0..6).map(|n| (n, ledger.commit_async(batch(n)))).collect();
    let acknowledged = outcomes.into_iter().filter_map(|(n, durable)| durable.wait().is_ok().then_some(n));
    let acknowledged: Vec<_> = acknowledged.collect();
    let present: Vec<_> = ledger.range(TABLES[0], ..).unwrap().map(|row| row.unwrap().0).collect();
    for table in TABLES {
        assert_eq!(ledger.range(table, ..).unwrap().map(|row| row.unwrap().0).collect::<Vec<_>>(), present);
    }
    assert!(acknowledged.iter().all(|n| present.contains(n)), "{acknowledged:?} of {present:?}");
}

#[test]
fn a_scan_across_a_reopening_ends_with_an_error_and_not_with_silence() {
    let disk = Arc::new(Disk::default());
    let ledger = open(&disk);
    for n in 0..9 {
        ledger.commit(batch(n)).unwrap();
    }
    let mut scan = ledger.range(TABLES[0], ..).unwrap();
    scan.next().unwrap().unwrap();
    disk.fail(0, 1);
    ledger.commit(batch(9)).unwrap_err();
    let rest: Vec<_> = scan.collect();
    assert!(rest.len() == 8 || matches!(rest.last(), Some(Err(ReadError::Storage { .. }))), "{rest:?}");
}

#[test]
fn nothing_is_written_when_space_is_short() {
    let disk = Arc::new(Disk::default());
    let ledger = open(&disk);
    ledger.commit(batch(0)).unwrap();
    let writes = disk.set(|state| state.trace.len());
    let bytes = batch(1).bytes() as u64;
    disk.set(|state| state.free_bytes = Some(FREE_RESERVE_BYTES + bytes - 1));
    let refused = CommitError::DiskFull {
        free_bytes: FREE_RESERVE_BYTES + bytes - 1,
        needed_bytes: FREE_RESERVE_BYTES + bytes,
    };
    assert_eq!(ledger.commit(batch(1)), Err(refused));
    assert_eq!(disk.set(|state| state.trace.len()), writes);
    assert_eq!(ledger.health(), Health::Writable, "a refusal is not a failure");
    disk.set(|state| state.free_bytes = Some(FREE_RESERVE_BYTES + bytes));
    ledger.commit(batch(1)).unwrap();
}
