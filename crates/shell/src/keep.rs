//! What federations and requests with a key want kept for good, on its way into the ledger.
//!
//! One task writes, in the order in which the cores ordered it, whoever of the node's tasks happened to carry the
//! orders here. A row that could not be written waits for the ledger to come back and is written then, unless a newer
//! one has taken its place: what a node has in memory it has on disk, sooner or later.

use crate::{
    state::lock,
    tables::{COUNTERS, FEDERATIONS, LEDGER_ITEMS, OUTCOMES, RECORDS},
};
use kos_protocol::{id::FederationId, outcomes::Key};
use kos_store::{Batch, CommitError, Ledger};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Bytes that one batch takes, well below what the ledger allows.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How long a refused batch waits before it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A row of the ledger that is written here alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    /// The genesis of a federation.
    Genesis(FederationId),
    /// One of a federation's items.
    Item(FederationId, Vec<u8>),
    /// The greatest number any record of this node had, in big endian.
    Records,
    /// What became of a request with an idempotency key.
    Outcome(Key),
}

impl Row {
    fn write(&self, batch: &mut Batch, value: Option<&[u8]>) {
        match (self, value) {
            (Self::Genesis(id), Some(bytes)) => batch.put(FEDERATIONS, id.as_bytes(), bytes),
            (Self::Genesis(id), None) => batch.delete(FEDERATIONS, id.as_bytes()),
            (Self::Item(id, key), Some(bytes)) => {
                batch.put(LEDGER_ITEMS, &(*id.as_bytes(), key.clone()), bytes)
            }
            (Self::Item(id, key), None) => batch.delete(LEDGER_ITEMS, &(*id.as_bytes(), key.clone())),
            (Self::Records, value) => {
                let greatest = value.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
                batch.put(COUNTERS, RECORDS, &greatest.unwrap_or_default())
            }
            (Self::Outcome(key), Some(bytes)) => batch.put(OUTCOMES, &outcome_key(key), bytes),
            (Self::Outcome(key), None) => batch.delete(OUTCOMES, &outcome_key(key)),
        };
    }
}

/// The key of an outcome's row.
pub(crate) fn outcome_key(key: &Key) -> ([u8; 32], [u8; 32]) {
    (*key.caller.as_bytes(), key.request)
}

/// Rows with what they shall be, or none where they shall go.
type Rows = BTreeMap<Row, Option<Vec<u8>>>;

/// How far the writing has come.
#[derive(Clone, Debug, Default)]
struct Written {
    /// Every row put before this number was tried at least once.
    tried: u64,
    /// What became of the last try.
    failure: Option<CommitError>,
}

#[derive(Default)]
struct Waiting {
    /// How many rows were ever put.
    put: u64,
    rows: Rows,
    /// What is being written just now; what is in `rows` is newer.
    under_way: Arc<Rows>,
}

/// The way into the ledger. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keeper(Arc<Inner>);

struct Inner {
    waiting: Mutex<Waiting>,
    news: Notify,
    written: watch::Sender<Written>,
    stop: CancellationToken,
}

impl Keeper {
    /// Begins to write into `ledger`, until `stop`; what waits then is tried once more.
    pub fn start(ledger: Ledger, stop: CancellationToken) -> Self {
        let inner = Arc::new(Inner {
            waiting: Mutex::default(),
            news: Notify::new(),
            written: watch::Sender::default(),
            stop: stop.clone(),
        });
        let keeper = Self(inner.clone());
        tokio::spawn(async move {
            while stop.run_until_cancelled(inner.news.notified()).await.is_some() {
                while inner.write(&ledger).await == Wrote::Failed {
                    let _ = stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
                    if stop.is_cancelled() {
                        break;
                    }
                }
            }
            inner.write(&ledger).await;
        });
        keeper
    }

    /// Orders rows written (or deleted, where there is no value), after all that was ordered before.
    pub fn put(&self, rows: impl IntoIterator<Item = (Row, Option<Vec<u8>>)>) {
        let mut waiting = lock(&self.0.waiting);
        for (row, value) in rows {
            waiting.put += 1;
            waiting.rows.insert(row, value);
        }
        drop(waiting);
        self.0.news.notify_one();
    }

    /// What was ordered last for a row that is not written yet; none where the ledger knows it all.
    pub fn unwritten(&self, row: &Row) -> Option<Option<Vec<u8>>> {
        let waiting = lock(&self.0.waiting);
        waiting.rows.get(row).or_else(|| waiting.under_way.get(row)).cloned()
    }

    /// Waits until all that was ordered so far is durable.
    ///
    /// # Errors
    /// Why it is not. It is tried again, and becomes durable when the ledger can be written again.
    pub async fn settle(&self) -> Result<(), CommitError> {
        let wanted = lock(&self.0.waiting).put;
        let mut written = self.0.written.subscribe();
        let done = written.wait_for(|written| written.tried >= wanted);
        match self.0.stop.run_until_cancelled(done).await {
            Some(Ok(written)) => written.failure.clone().map_or(Ok(()), Err),
            // Nobody writes any more what comes after the end.
            Some(Err(_)) | None => Err(CommitError::Closed),
        }
    }
}

#[derive(PartialEq, Eq)]
enum Wrote {
    All,
    Failed,
}

impl Inner {
    /// Writes what waits, in as many batches as it takes.
    async fn write(&self, ledger: &Ledger) -> Wrote {
        loop {
            let (put, rows, is_rest) = {
                let mut waiting = lock(&self.waiting);
                let rows = Arc::new(take_some(&mut waiting.rows));
                waiting.under_way = rows.clone();
                (waiting.put, rows, waiting.rows.is_empty())
            };
            if rows.is_empty() {
                return Wrote::All;
            }
            let mut batch = Batch::new();
            for (row, value) in &*rows {
                row.write(&mut batch, value.as_deref());
            }
            let failure = ledger.commit_async(batch).await.err();
            let mut waiting = lock(&self.waiting);
            waiting.under_way = Arc::default();
            if let Some(error) = &failure {
                tracing::warn!(%error, rows = rows.len(), "not written yet; it is tried again");
                for (row, value) in &*rows {
                    waiting.rows.entry(row.clone()).or_insert_with(|| value.clone());
                }
            }
            drop(waiting);
            let failed = failure.is_some();
            if failed || is_rest {
                self.written.send_replace(Written { tried: put, failure });
            }
            if failed {
                return Wrote::Failed;
            }
        }
    }
}

/// Takes as many rows as one batch holds.
fn take_some(rows: &mut Rows) -> Rows {
    let (mut taken, mut bytes) = (Rows::new(), 0);
    while bytes < BATCH_BYTES
        && let Some((row, value)) = rows.pop_first()
    {
        bytes += value.as_ref().map_or(0, Vec::len);
        taken.insert(row, value);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::schema;
    use kos_store::Folder;

    fn row(number: u8) -> Row {
        Row::Item(FederationId::from_bytes([7; 32]), vec![number])
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn rows_from_many_tasks_end_with_the_last_value_ordered_and_settle_waits_for_all() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path().join("node")).unwrap();
        let ledger = Ledger::open(&folder, &schema()).unwrap();
        let keeper = Keeper::start(ledger.clone(), CancellationToken::new());
        let order = Arc::new(Mutex::new(0_u64));
        let tasks = (0..8).map(|_| {
            let (keeper, order) = (keeper.clone(), order.clone());
            tokio::spawn(async move {
                for _ in 0..50 {
                    {
                        // As with a federation's outputs: drawn and put under one lock.
                        let mut next = lock(&order);
                        *next += 1;
                        keeper.put([(row(1), Some(next.to_be_bytes().to_vec()))]);
                    }
                    keeper.settle().await.unwrap();
                }
            })
        });
        futures::future::join_all(tasks).await;
        let kept = ledger.read(LEDGER_ITEMS, &([7; 32], vec![1])).unwrap().unwrap();
        assert_eq!(kept, 400_u64.to_be_bytes());
    }

    #[tokio::test]
    async fn more_than_a_batch_holds_is_written_in_several() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path().join("node")).unwrap();
        let ledger = Ledger::open(&folder, &schema()).unwrap();
        let keeper = Keeper::start(ledger.clone(), CancellationToken::new());
        keeper.put((0..20).map(|number| (row(number), Some(vec![number; 1024 * 1024]))));
        keeper.settle().await.unwrap();
        assert_eq!(ledger.prefix(LEDGER_ITEMS, &[7; 32]).unwrap().count(), 20);
        keeper.put((0..20).map(|number| (row(number), None)));
        keeper.settle().await.unwrap();
        assert_eq!(ledger.prefix(LEDGER_ITEMS, &[7; 32]).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_not_written_yet_can_be_read() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path().join("node")).unwrap();
        let ledger = Ledger::open(&folder, &schema()).unwrap();
        let keeper = Keeper::start(ledger.clone(), CancellationToken::new());
        for number in 0..100 {
            keeper.put([(row(1), Some(vec![number]))]);
            let seen = match keeper.unwritten(&row(1)) {
                Some(unwritten) => unwritten,
                None => ledger.read(LEDGER_ITEMS, &([7; 32], vec![1])).unwrap(),
            };
            assert_eq!(seen, Some(vec![number]));
            tokio::task::yield_now().await;
        }
        keeper.put([(row(1), None)]);
        assert_eq!(keeper.unwritten(&row(1)), Some(None));
        keeper.settle().await.unwrap();
        assert_eq!(keeper.unwritten(&row(1)), None);
    }

    #[tokio::test]
    async fn what_is_ordered_after_the_end_is_refused_and_nobody_waits_for_it() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path().join("node")).unwrap();
        let ledger = Ledger::open(&folder, &schema()).unwrap();
        let stop = CancellationToken::new();
        let keeper = Keeper::start(ledger, stop.clone());
        stop.cancel();
        keeper.put([(row(1), Some(vec![1]))]);
        assert_eq!(keeper.settle().await, Err(CommitError::Closed));
    }
}
