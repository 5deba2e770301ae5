//! The ledger through its public face: rows, batches, order, limits, and its agreement with a plain map.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use common::Place;
use kos_store::{
    BATCH_BYTES_MAX, Batch, Codec, CommitError, KEY_BYTES_MAX, Ledger, Malformed, ReadError, Schema, Table,
};
use proptest::prelude::*;

const NAMES: Table<str, str> = Table::new("names");
const COUNTERS: Table<[u8; 4], u64> = Table::new("counters");
const EVENTS: Table<(u8, u64), [u8]> = Table::new("events");

/// A codec of the caller's, as the node brings its own.
struct Even;

impl Codec<u64> for Even {
    type Owned = u64;

    fn encode(value: &u64, out: &mut Vec<u8>) -> Result<(), Malformed> {
        if value % 2 == 1 {
            return Err(Malformed(format!("{value} is odd")));
        }
        out.extend((value / 2).to_be_bytes());
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<u64, Malformed> {
        let half = bytes.try_into().map_err(|_| Malformed("not eight bytes".to_owned()))?;
        Ok(u64::from_be_bytes(half) * 2)
    }
}

const EVENS: Table<u64, u64, Even> = Table::new("evens");

fn rows<K: Clone, V: Clone>(rows: impl Iterator<Item = Result<(K, V), ReadError>>) -> Vec<(K, V)> {
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_committed_batch_is_read_back_also_after_reopening() {
    let place = Place::new();
    let ledger = place.ledger();
    assert_eq!(ledger.read(NAMES, "attic").unwrap(), None);
    let mut batch = Batch::new();
    batch
        .put(NAMES, "attic", "first")
        .put(NAMES, "attic", "second")
        .put(COUNTERS, b"seqs", &7)
        .put(EVENS, &1, &8);
    batch.put(NAMES, "gone", "x").delete(NAMES, "gone").delete(NAMES, "never there");
    ledger.commit(batch).unwrap();
    let check = |ledger: &Ledger| {
        assert_eq!(ledger.read(NAMES, "attic").unwrap().as_deref(), Some("second"));
        assert_eq!(ledger.read(NAMES, "gone").unwrap(), None);
        assert_eq!(ledger.read(COUNTERS, b"seqs").unwrap(), Some(7));
        assert_eq!(ledger.read(EVENS, &1).unwrap(), Some(8));
    };
    check(&ledger);
    drop(ledger);
    check(&place.ledger());
}

#[test]
fn ranges_are_in_key_order_from_either_end() {
    let place = Place::new();
    let ledger = place.ledger();
    let mut batch = Batch::new();
    for n in [300, 2, 1, 256] {
        batch.put(EVENTS, &(1, n), &n.to_be_bytes()).put(EVENTS, &(2, n), b"");
    }
    ledger.commit(batch).unwrap();
    let keys =
        |range| rows(ledger.range(EVENTS, range).unwrap()).into_iter().map(|row| row.0).collect::<Vec<_>>();
    assert_eq!(keys((Bound::Included((1, 2)), Bound::Excluded((1, 300)))), [(1, 2), (1, 256)]);
    assert_eq!(keys((Bound::Excluded((1, 300)), Bound::Included((2, 1)))), [(2, 1)]);
    assert_eq!(keys((Bound::Included((2, 1)), Bound::Included((1, 1)))), []);
    assert_eq!(ledger.range(EVENTS, ..).unwrap().next_back().unwrap().unwrap().0, (2, 300));
    let of_one = rows(ledger.prefix(EVENTS, &1).unwrap());
    assert_eq!(of_one.iter().map(|row| row.0.1).collect::<Vec<_>>(), [1, 2, 256, 300]);
    assert_eq!(of_one[0].1, 1u64.to_be_bytes());
    assert!(rows(ledger.range(NAMES, ..).unwrap()).is_empty(), "a table without rows reads as empty");
}

#[test]
fn a_snapshot_does_not_see_later_commits() {
    let place = Place::new();
    let ledger = place.ledger();
    ledger.commit(put_name("a", "1")).unwrap();
    let snapshot = ledger.snapshot().unwrap();
    let mut scan = ledger.range(NAMES, ..).unwrap();
    ledger.commit(put_name("b", "2")).unwrap();
    assert_eq!(snapshot.read(NAMES, "b").unwrap(), None);
    assert_eq!(rows(&mut scan).len(), 1);
    assert_eq!(ledger.read(NAMES, "b").unwrap().as_deref(), Some("2"));
}

#[test]
fn batches_that_cannot_be_made_are_refused_whole() {
    let place = Place::new();
    let ledger = place.ledger();
    let refused = |change: &dyn Fn(&mut Batch) -> usize| {
        let mut batch = put_name("beside", "x");
        change(&mut batch);
        let error = ledger.commit(batch).unwrap_err();
        assert_eq!(ledger.read(NAMES, "beside").unwrap(), None);
        error
    };
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    assert!(matches!(
        refused(&|b| b.put(NAMES, &long, "").bytes()),
        CommitError::KeyTooLong { table: "names", .. }
    ));
    assert!(matches!(refused(&|b| b.put(EVENS, &1, &3).bytes()), CommitError::Encode { table: "evens", .. }));
    let large = vec![0; BATCH_BYTES_MAX];
    assert!(matches!(refused(&|b| b.put(EVENTS, &(1, 1), &large).bytes()), CommitError::TooLarge { .. }));
    ledger.commit(put_name("after", "y")).unwrap();
    ledger.commit(Batch::new()).unwrap();
}

#[test]
fn the_longest_key_and_the_largest_batch_are_taken() {
    let place = Place::new();
    let ledger = place.ledger();
    // Text ends with two bytes of its own.
    let key = "k".repeat(KEY_BYTES_MAX - 2);
    let mut batch = Batch::new();
    batch.put(NAMES, &key, &"v".repeat(BATCH_BYTES_MAX - KEY_BYTES_MAX));
    assert_eq!(batch.bytes(), BATCH_BYTES_MAX);
    ledger.commit(batch).unwrap();
    assert_eq!(ledger.read(NAMES, &key).unwrap().unwrap().len(), BATCH_BYTES_MAX - KEY_BYTES_MAX);
}

#[test]
fn rows_of_another_type_are_an_error_and_not_a_panic() {
    let place = Place::new();
    let ledger = place.ledger();
    ledger.commit(put_name("a", "not eight bytes")).unwrap();
    const WRONG: Table<str, u64> = Table::new("names");
    assert!(matches!(ledger.read(WRONG, "a"), Err(ReadError::Malformed { table: "names", .. })));
    assert!(matches!(ledger.range(WRONG, ..).unwrap().next(), Some(Err(ReadError::Malformed { .. }))));
}

struct CountWakes {
    wakes: AtomicUsize,
    thread: std::thread::Thread,
}

impl Wake for CountWakes {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

#[test]
fn the_future_of_a_commit_wakes_its_task_once_and_keeps_its_answer() {
    let place = Place::new();
    let ledger = place.ledger();
    let wakes = Arc::new(CountWakes { wakes: AtomicUsize::new(0), thread: std::thread::current() });
    let waker = Waker::from(wakes.clone());
    let mut context = Context::from_waker(&waker);
    let mut durable = Box::pin(ledger.commit_async(put_name("a", "1")));
    let mut polls = 0;
    while durable.as_mut().poll(&mut context).is_pending() {
        polls += 1;
        std::thread::park();
    }
    assert!(wakes.wakes.load(Ordering::SeqCst) <= 1 && polls <= 2, "woken once, apart from spurious unparks");
    assert_eq!(durable.as_mut().poll(&mut context), Poll::Ready(Ok(())));
    assert_eq!(ledger.read(NAMES, "a").unwrap().as_deref(), Some("1"));
}

#[test]
fn what_is_queued_when_the_ledger_is_dropped_is_still_committed() {
    let place = Place::new();
    let ledger = place.ledger();
    let queued: Vec<_> = (0..100).map(|n| ledger.commit_async(put_name(&format!("{n:03}"), "x"))).collect();
    drop(ledger);
    for durable in queued {
        durable.wait().unwrap();
    }
    assert_eq!(rows(place.ledger().range(NAMES, ..).unwrap()).len(), 100);
}

fn put_name(key: &str, value: &str) -> Batch {
    let mut batch = Batch::new();
    batch.put(NAMES, key, value);
    batch
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Change>),
    Reopen,
}

#[derive(Clone, Debug)]
struct Change {
    table: usize,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

const MODEL: [Table<[u8], [u8]>; 3] = [Table::new("one"), Table::new("two"), Table::new("three")];

fn step() -> impl Strategy<Value = Step> {
    let key = prop::collection::vec(0u8..3, 0..4);
    let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..3000));
    let change = (0..MODEL.len(), key, value).prop_map(|(table, key, value)| Change { table, key, value });
    prop_oneof![6 => prop::collection::vec(change, 1..12).prop_map(Step::Commit), 1 => Just(Step::Reopen)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_ledger_agrees_with_a_map(steps in prop::collection::vec(step(), 1..24)) {
        let place = Place::new();
        let mut ledger = place.ledger();
        let mut model: [BTreeMap<Vec<u8>, Vec<u8>>; 3] = Default::default();
        for step in steps {
            match step {
                Step::Commit(changes) => {
                    let mut batch = Batch::new();
                    for Change { table, key, value } in changes {
                        match value {
                            Some(value) => {
                                batch.put(MODEL[table], &key, &value);
                                model[table].insert(key, value);
                            }
                            None => {
                                batch.delete(MODEL[table], &key);
                                model[table].remove(&key);
                            }
                        }
                    }
                    ledger.commit(batch).unwrap();
                }
                Step::Reopen => {
                    drop(ledger);
                    ledger = place.ledger();
                }
            }
            for (table, model) in MODEL.iter().zip(&model) {
                let expected: Vec<_> = model.clone().into_iter().collect();
                prop_assert_eq!(rows(ledger.range(*table, ..).unwrap()), expected.clone());
                let backwards: Vec<_> = rows(ledger.range(*table, ..).unwrap().rev());
                prop_assert_eq!(backwards, expected.into_iter().rev().collect::<Vec<_>>());
                let (low, high) = ([1u8].as_slice(), [2u8, 1].as_slice());
                let bounds = (Bound::Excluded(low), Bound::Included(high));
                let part: Vec<_> = model.range::<[u8], _>(bounds).map(|(k, v)| (k.clone(), v.clone())).collect();
                prop_assert_eq!(rows(ledger.range(*table, bounds).unwrap()), part);
                for key in [&b""[..], &[0], &[1, 2]] {
                    prop_assert_eq!(ledger.read(*table, key).unwrap(), model.get(key).cloned());
                }
            }
        }
        drop(ledger);
        let reopened = place.ledger();
        for (table, model) in MODEL.iter().zip(&model) {
            prop_assert_eq!(rows(reopened.range(*table, ..).unwrap()).len(), model.len());
        }
        drop(reopened);
        prop_assert_eq!(kos_store::fsck(place.path(), &Schema::default(), &MODEL.map(|t| t.check(|_, _| Ok(())))).findings, vec![]);
    }
}
