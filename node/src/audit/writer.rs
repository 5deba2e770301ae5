//! Writes entries one after another. The chain's end moves only when the ledger has the entry: an entry that could not
//! be written leaves no gap, and is written as soon as the ledger takes it.

use super::{Entry, chain::Head, denials::Denials};
use kos_mesh::link::Pending;
use kos_protocol::{id::sha256, key_log::KeyLog};
use serde_bytes::ByteArray;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longest text of an entry.
const TEXT_BYTES_MAX: usize = 512;
/// How often counted denials are looked at.
const DENIALS_EVERY: Duration = Duration::from_secs(60);

/// Envelopes, oldest first.
pub(super) type Envelopes = Box<dyn Iterator<Item = Result<(u64, Vec<u8>), String>>>;

/// Where a chain is kept and who signs it: the ledger and the member of a node.
pub(super) trait Shelf: Send + Sync + 'static {
    /// The newest envelope.
    fn newest(&self) -> Result<Option<(u64, Vec<u8>)>, String>;
    /// The envelopes from this number on.
    fn from(&self, seq: u64) -> Result<Envelopes, String>;
    /// Keeps an envelope; ready when it is durable or refused.
    fn keep(&self, seq: u64, envelope: &[u8]) -> Pending<'_, Result<(), String>>;
    /// Signs an entry with the member's present key, and puts the number of that key in.
    fn sign(&self, entry: Entry) -> Result<Vec<u8>, String>;
    /// The keys the member ever had.
    fn key_log(&self) -> Result<KeyLog, String>;
}

/// What is to be written.
pub(super) struct Note {
    pub kind: &'static str,
    pub text: String,
    pub time_ms: u64,
}

impl Note {
    pub fn now(kind: &'static str, mut text: String) -> Self {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        Self { kind, text, time_ms: now_ms() }
    }
}

/// The wall clock.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What the log and its writer share.
#[derive(Default)]
pub(super) struct Shared {
    denials: Mutex<Denials>,
    /// Notes that found the queue full since the last entry.
    pub lost: AtomicU64,
}

impl Shared {
    pub fn denials(&self) -> MutexGuard<'_, Denials> {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one task that appends.
pub(super) struct Writer {
    shelf: Arc<dyn Shelf>,
    shared: Arc<Shared>,
    notes: mpsc::Receiver<Note>,
    closing: CancellationToken,
    retry: Duration,
    /// The chain's end; none while it has to be read again.
    head: Option<Head>,
    /// The end as it is if the write whose outcome is unknown was made after all.
    tried: Option<Head>,
}

impl Writer {
    /// A writer that waits for `retry` when the shelf took no entry.
    pub fn new(
        shelf: Arc<dyn Shelf>,
        shared: Arc<Shared>,
        notes: mpsc::Receiver<Note>,
        closing: CancellationToken,
        retry: Duration,
    ) -> Self {
        Self { shelf, shared, notes, closing, retry, head: None, tried: None }
    }

    /// Writes what comes until the log is closed, then what is there.
    pub async fn run(mut self) {
        let mut minute = tokio::time::interval(DENIALS_EVERY);
        let closing = self.closing.clone();
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                note = self.notes.recv() => match note {
                    Some(note) => self.write(note).await,
                    None => break,
                },
                _ = minute.tick() => self.write_denials(now_ms()).await,
            }
        }
        self.notes.close();
        while let Some(note) = self.notes.recv().await {
            self.write(note).await;
        }
        self.write_denials(u64::MAX).await;
    }

    async fn write_denials(&mut self, now_ms: u64) {
        let due = self.shared.denials().due(now_ms);
        for text in due {
            self.write(Note::now("call-denied", text)).await;
        }
    }

    /// Writes a note, and before it how many were lost. Tries until it is written, or once when the log is closed.
    async fn write(&mut self, note: Note) {
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let text = format!("{lost} entries were not kept: the ledger took none for a while");
            self.insist(Note::now("lost", text)).await;
        }
        self.insist(note).await;
    }

    async fn insist(&mut self, note: Note) {
        while let Err(error) = self.append(&note).await {
            tracing::warn!(error, kind = note.kind, "an entry of the audit log waits");
            tokio::select! {
                () = tokio::time::sleep(self.retry) => {}
                () = self.closing.cancelled() => return,
            }
        }
    }

    async fn append(&mut self, note: &Note) -> Result<(), String> {
        let head = match self.head {
            Some(head) => head,
            None => self.read_head()?,
        };
        if self.tried.take() == Some(head) && head.seq > 0 {
            self.head = Some(head);
            return Ok(());
        }
        let envelope = self.shelf.sign(Entry {
            seq: head.seq + 1,
            prev: ByteArray::new(head.hash),
            key_seq: 0,
            time_ms: note.time_ms,
            kind: note.kind.to_owned(),
            text: note.text.clone(),
        })?;
        let next = Head { seq: head.seq + 1, hash: sha256(&envelope) };
        self.head = None;
        self.tried = Some(next);
        self.shelf.keep(next.seq, &envelope).await?;
        (self.head, self.tried) = (Some(next), None);
        Ok(())
    }

    fn read_head(&self) -> Result<Head, String> {
        let newest = self.shelf.newest()?;
        Ok(newest.map_or_else(Head::default, |(seq, envelope)| Head::of(seq, &envelope)))
    }
}
