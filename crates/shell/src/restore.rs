//! Giving a federation back what was persisted, at the start.

use crate::{
    carry_out::{row_key, table_of},
    runtime::StartError,
    tables::{INDEX_ITEMS, LEDGER_ITEMS},
};
use kos_directory::MergeError;
use kos_engine::{Federation, Refusal, Stored, Table};
use kos_protocol::{id::FederationId, time::Timestamp};
use kos_store::{Index, IndexError, Ledger};
use std::{ops::Range, sync::mpsc, thread};

/// Records handed over at a time.
const BATCH: usize = 256;

/// Gives a federation back everything; what does not count any more is left out.
pub(crate) fn restore(
    federation: &mut Federation,
    now: Timestamp,
    ledger: &Ledger,
    index: &Index,
) -> Result<(), StartError> {
    for row in ledger.prefix(LEDGER_ITEMS, federation.id().as_bytes())? {
        let ((_, key), bytes) = row?;
        let Some(table) = table_of(&key) else { continue };
        match federation.restore(now, table, &bytes) {
            Ok(()) => {}
            // Who was removed by it would be a member again.
            Err(refusal) if table == Table::Acts => {
                tracing::error!(%refusal, "an act in the ledger counts no more: run `kai fsck`");
            }
            Err(refusal) => tracing::debug!(?table, %refusal, "not restored"),
        }
    }
    let outcome = records(federation, now, index).and_then(|()| unknown(federation, now, index));
    if let Err(error) = outcome {
        tracing::warn!(%error, "the index cannot be read; peers will give the records again");
    }
    Ok(())
}

/// Records are read on as many threads as there are cores, each those of some authors, and taken in on this one.
fn records(federation: &mut Federation, now: Timestamp, index: &Index) -> Result<(), IndexError> {
    let id = federation.id();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(256);
    let share =
        |n: usize| if n == threads { None } else { Some(u8::try_from(n * 256 / threads).unwrap_or(u8::MAX)) };
    thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel(4 * threads);
        let read = |n: usize| {
            let send = send.clone();
            scope.spawn(move || read_records(index, id, now, of_authors(share(n), share(n + 1)), &send))
        };
        let reading: Vec<_> = (0..threads).map(read).collect();
        drop(send);
        for stored in receive.into_iter().flatten() {
            if let Err(refusal) = federation.restore_record(now, stored) {
                tracing::debug!(%refusal, "a record was not restored");
            }
        }
        reading.into_iter().try_for_each(|thread| thread.join().expect("reading does not panic"))
    })
}

/// The keys of the records of the authors whose ids begin with these bytes; up to the last where there is no end.
fn of_authors(first: Option<u8>, end: Option<u8>) -> Range<Vec<u8>> {
    let key = |byte: Option<u8>| byte.map(|byte| row_key(Table::Records, &[byte]));
    let behind = || row_key(Table::Unknown, &[]);
    key(first).unwrap_or_else(behind)..key(end).unwrap_or_else(behind)
}

fn read_records(
    index: &Index,
    id: FederationId,
    now: Timestamp,
    keys: Range<Vec<u8>>,
    to: &mpsc::SyncSender<Vec<Stored>>,
) -> Result<(), IndexError> {
    let mut batch = Vec::with_capacity(BATCH);
    let (start, end) = ((*id.as_bytes(), keys.start), (*id.as_bytes(), keys.end));
    for row in index.range(INDEX_ITEMS, start..end)? {
        let (key, row) = row?;
        match Stored::read(now, &row) {
            Ok(stored) => batch.push(stored),
            // Nobody would order it forgotten: it was over before this node started.
            Err(Refusal::Record(MergeError::Expired { .. })) => index.delete(INDEX_ITEMS, &key)?,
            Err(refusal) => tracing::debug!(%refusal, "a record was not restored"),
        }
        if batch.len() == BATCH {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            // Whoever takes them in outlives this thread.
            let _ = to.send(full);
        }
    }
    let _ = to.send(batch);
    Ok(())
}

fn unknown(federation: &mut Federation, now: Timestamp, index: &Index) -> Result<(), IndexError> {
    let id = *federation.id().as_bytes();
    for row in index.range(INDEX_ITEMS, (id, row_key(Table::Unknown, &[]))..)? {
        let ((of, _), bytes) = row?;
        if of != id {
            break;
        }
        if let Err(refusal) = federation.restore(now, Table::Unknown, &bytes) {
            tracing::debug!(%refusal, "an item was not restored");
        }
    }
    Ok(())
}
