//! The one thread that writes: it joins queued batches into one transaction, and reopens the ledger after a failure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::Database;

use super::ack::{Answer, Durable, pair};
use super::batch::{Batch, Change};
use super::schema::open_gated;
use super::{BATCH_BYTES_MAX, Health, KEY_BYTES_MAX, Opened, RawTable, Shared};
use crate::FREE_RESERVE_BYTES;
use crate::fault::{Fault, guarded};
use crate::table::Malformed;

/// Batches waiting for the writer. One more is refused with [`CommitError::QueueFull`].
pub const QUEUE_BATCHES_MAX: usize = 4096;
/// Bytes of the batches waiting for the writer. A batch beyond them is refused with [`CommitError::QueueFull`].
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of batches joined into one transaction, unless a single one has more.
const GROUP_BYTES_MAX: usize = BATCH_BYTES_MAX;
/// How often a read-only ledger tries to reopen itself when nobody commits.
const REOPEN_EVERY: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(5) };

/// Why a batch is not known to be durable. After every variant but [`CommitError::Write`] nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A value has no encoding. A bug of the caller.
    #[error("cannot encode a value for table {table}: {source}")]
    Encode {
        /// The table.
        table: &'static str,
        /// What its codec said.
        source: Malformed,
    },
    /// Split the batch, or keep such values elsewhere.
    #[error("batch of {bytes} bytes, limit {BATCH_BYTES_MAX}")]
    TooLarge {
        /// Bytes of keys and values when the limit was passed.
        bytes: usize,
    },
    /// A key is too long. A bug of the caller.
    #[error("key of {bytes} bytes for table {table}, limit {KEY_BYTES_MAX}")]
    KeyTooLong {
        /// The table.
        table: &'static str,
        /// Bytes of the encoded key.
        bytes: usize,
    },
    /// The disk does not keep up. Wait for earlier commits, then try again.
    #[error("too many commits are waiting for the disk")]
    QueueFull,
    /// Free some space, then try again; the ledger needs no restart.
    #[error("disk almost full: {free_bytes} bytes free, {needed_bytes} needed to write safely")]
    DiskFull {
        /// Free now.
        free_bytes: u64,
        /// Needed before anything is written: the batches and [`crate::FREE_RESERVE_BYTES`].
        needed_bytes: u64,
    },
    /// An earlier write failed and reopening has not succeeded yet. Mend the disk; the ledger tries again by itself.
    #[error("the ledger is read-only after a failed write: {fault}")]
    ReadOnly {
        /// Why the last attempt to reopen failed.
        fault: Fault,
    },
    /// This write failed. The batch is in the ledger whole or not at all: read it back to learn which, and repeat it
    /// if it is not.
    #[error("write failed: {fault}")]
    Write {
        /// What happened.
        fault: Fault,
    },
    /// The ledger is being closed.
    #[error("the ledger is closed")]
    Closed,
}

/// Batches on their way to the writer.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<Job>,
    bytes: usize,
    closed: bool,
}

struct Job {
    batch: Batch,
    answer: Answer,
}

/// What the writer does next.
enum Work {
    Commit(Vec<Job>),
    Reopen,
    Stop,
}

impl Queue {
    pub fn push(&self, mut batch: Batch) -> Durable {
        if let Some(error) = batch.take_refusal() {
            return Durable::answered(Err(error));
        }
        if batch.is_empty() {
            return Durable::answered(Ok(()));
        }
        let mut state = self.state();
        if state.closed {
            return Durable::answered(Err(CommitError::Closed));
        }
        if state.jobs.len() >= QUEUE_BATCHES_MAX
            || state.bytes.saturating_add(batch.bytes()) > QUEUE_BYTES_MAX
        {
            return Durable::answered(Err(CommitError::QueueFull));
        }
        let (answer, durable) = pair();
        state.bytes += batch.bytes();
        state.jobs.push_back(Job { batch, answer });
        self.changed.notify_one();
        durable
    }

    /// No more batches; those queued are still committed.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Waits for batches; a read-only ledger waits no longer than [`REOPEN_EVERY`].
    fn next(&self, health: &Health) -> Work {
        let mut state = self.state();
        while state.jobs.is_empty() && !state.closed {
            if *health == Health::Writable {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (woken, timeout) =
                self.changed.wait_timeout(state, REOPEN_EVERY).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() && state.jobs.is_empty() && !state.closed {
                return Work::Reopen;
            }
        }
        let group = state.take_group();
        if group.is_empty() { Work::Stop } else { Work::Commit(group) }
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    fn take_group(&mut self) -> Vec<Job> {
        let mut group = Vec::new();
        let mut group_bytes = 0;
        while let Some(job) = self.jobs.front() {
            let bytes = job.batch.bytes();
            if !group.is_empty() && group_bytes + bytes > GROUP_BYTES_MAX {
                break;
            }
            group_bytes += bytes;
            self.bytes -= bytes;
            group.extend(self.jobs.pop_front());
        }
        group
    }
}

/// Closes the queue however the thread ends, so that nobody queues for a writer that is gone.
struct CloseOnExit<'a>(&'a Queue);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        self.0.close();
        let unanswered = std::mem::take(&mut self.0.state().jobs);
        // Each answers as it is dropped, which may run foreign code: not while the queue is locked.
        drop(unanswered);
    }
}

pub(super) fn run(shared: &Shared) {
    let _close = CloseOnExit(&shared.queue);
    loop {
        let health = shared.opened().health.clone();
        match shared.queue.next(&health) {
            Work::Commit(jobs) => {
                let (batches, answers): (Vec<Batch>, Vec<Answer>) =
                    jobs.into_iter().map(|job| (job.batch, job.answer)).unzip();
                let outcome = commit_group(shared, &batches);
                for answer in answers {
                    answer.give(outcome.clone());
                }
            }
            Work::Reopen => {
                let _ = reopen(shared);
            }
            Work::Stop => return,
        }
    }
}

fn commit_group(shared: &Shared, batches: &[Batch]) -> Result<(), CommitError> {
    if shared.opened().health != Health::Writable {
        reopen(shared).map_err(|fault| CommitError::ReadOnly { fault })?;
    }
    check_space(shared, batches)?;
    let written = match &shared.opened().database {
        Ok(database) => write(database, batches),
        Err(fault) => return Err(CommitError::ReadOnly { fault: fault.clone() }),
    };
    written.map_err(|fault| {
        tracing::error!(%fault, "a write to the ledger failed");
        // Before the callers hear of it, so that they can read back what became of their batch.
        let _ = reopen(shared);
        CommitError::Write { fault }
    })
}

fn check_space(shared: &Shared, batches: &[Batch]) -> Result<(), CommitError> {
    let bytes: usize = batches.iter().map(Batch::bytes).sum();
    let needed_bytes = FREE_RESERVE_BYTES.saturating_add(bytes as u64);
    let free_bytes =
        shared.medium.free_bytes().map_err(|error| CommitError::ReadOnly { fault: Fault::io(&error) })?;
    if free_bytes < needed_bytes {
        return Err(CommitError::DiskFull { free_bytes, needed_bytes });
    }
    Ok(())
}

/// One transaction, one sync. redb's one-phase commit: checksums tell a whole commit from a torn one.
fn write(database: &Database, batches: &[Batch]) -> Result<(), Fault> {
    guarded(|| {
        let transaction = database.begin_write()?;
        {
            let mut tables = BTreeMap::new();
            for Change { table, key, value } in batches.iter().flat_map(|batch| &batch.changes) {
                let table = match tables.entry(*table) {
                    std::collections::btree_map::Entry::Occupied(open) => open.into_mut(),
                    std::collections::btree_map::Entry::Vacant(slot) => {
                        slot.insert(transaction.open_table(RawTable::new(table))?)
                    }
                };
                match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice())?,
                    None => table.remove(key.as_slice())?,
                };
            }
        }
        transaction.commit()?;
        Ok::<_, redb::Error>(())
    })
}

/// Replaces the database by one opened afresh. It is readable as soon as it opens, and writable once redb's repair has
/// been written out; until then the old failure is replaced by the newest one.
fn reopen(shared: &Shared) -> Result<(), Fault> {
    let mut opened = shared.opened_mut();
    // The old database goes first: it holds buffers of the failed write, which must not reach the file any more.
    opened.database = Err(Fault::damage("it is being reopened"));
    let (database, outcome) = match open_gated(&*shared.medium) {
        Ok((database, gate)) => (Ok(database), gate.open().map_err(|error| Fault::io(&error))),
        Err(error) => {
            let fault = match error {
                super::schema::OpenGatedError::File(error) => Fault::refusal(error.to_string()),
                super::schema::OpenGatedError::Engine(fault) => fault,
            };
            (Err(fault.clone()), Err(fault))
        }
    };
    let health = match &outcome {
        Ok(()) => Health::Writable,
        Err(fault) => Health::ReadOnly { fault: fault.clone() },
    };
    match &health {
        Health::Writable => tracing::warn!("the ledger reopened after a failed write"),
        Health::ReadOnly { fault } => tracing::error!(%fault, "the ledger stays read-only"),
    }
    *opened = Opened { database, health };
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;

    const ROWS: Table<u64, [u8]> = Table::new("rows");

    fn batch(value_bytes: usize) -> Batch {
        let mut batch = Batch::new();
        batch.put(ROWS, &0, &vec![0; value_bytes]);
        batch
    }

    #[test]
    fn the_queue_refuses_what_is_beyond_its_bounds_and_takes_more_once_it_is_drained() {
        let queue = Queue::default();
        let key_bytes = batch(0).bytes();
        let quarter = || batch(QUEUE_BYTES_MAX / 4 - key_bytes);
        let waiting: Vec<_> = (0..4).map(|_| queue.push(quarter())).collect();
        assert_eq!(queue.push(batch(1)).wait(), Err(CommitError::QueueFull));
        let Work::Commit(group) = queue.next(&Health::Writable) else { panic!("four batches wait") };
        assert_eq!(group.len(), 1, "a group does not grow beyond its bytes");
        let refilled = queue.push(quarter());
        queue.close();
        assert_eq!(queue.push(batch(1)).wait(), Err(CommitError::Closed));
        drop((waiting, refilled));
    }

    #[test]
    fn the_queue_counts_its_batches() {
        let queue = Queue::default();
        let waiting: Vec<_> = (0..QUEUE_BATCHES_MAX).map(|_| queue.push(batch(0))).collect();
        assert_eq!(queue.push(batch(0)).wait(), Err(CommitError::QueueFull));
        let Work::Commit(group) = queue.next(&Health::Writable) else { panic!("batches wait") };
        assert_eq!(group.len(), QUEUE_BATCHES_MAX, "small batches all join one group");
        drop(group);
        for durable in waiting {
            assert_eq!(
                durable.wait(),
                Err(CommitError::Closed),
                "an answer is given even if the writer is gone"
            );
        }
    }
}
