//! The audit log: what this node did that its owner may be asked about later.
//!
//! Each entry is signed by the member and holds the hash of the one before, so that none can be altered, removed or
//! moved without the others showing it. What a chain alone cannot show is a cut at its end: whoever can replace the
//! whole ledger can also take its newest entries away.
//!
//! What others can cause is bounded: denied calls are counted, see `denials`.

mod chain;
mod denials;
#[cfg(test)]
mod tests;
mod writer;

pub use chain::Broken;

use crate::agents::Denial;
use chain::{Head, Verifier};
use kos_mesh::link::Pending;
use kos_protocol::{
    id::FederationId,
    key_log::KeyLog,
    limits::OBJECT_BYTES_MAX,
    object::{Object, Scope},
};
use kos_shell::{Runtime, tables::AUDIT};
use kos_store::Batch;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;
use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use writer::{Envelopes, Note, Shared, Shelf, Writer, now_ms};

/// Entries that wait for the ledger; of what comes beyond only the number is kept.
const WAITING_MAX: usize = 1024;
/// Most entries in one page.
pub const PAGE_ENTRIES_MAX: usize = 1000;
/// How long to wait after the ledger took no entry. It reopens itself within seconds once it can.
const RETRY: Duration = Duration::from_secs(2);
/// How long closing the log may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// One entry. Domain `kos/audit/1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// One more than the one before; 1 for the first.
    pub seq: u64,
    /// SHA-256 of the envelope before; zeros for the first.
    pub prev: ByteArray<32>,
    /// The number of the member's key that signs.
    pub key_seq: u64,
    /// When, in wall milliseconds.
    pub time_ms: u64,
    /// What kind of thing: `admitted`, `removed`, `rotated`, `call-denied`, `config`, `start`; `lost` where entries are
    /// missing because the ledger took none.
    pub kind: String,
    /// What, for people.
    pub text: String,
}

impl Object for Entry {
    const DOMAIN: &'static str = "kos/audit/1";
    const BYTES_MAX: usize = OBJECT_BYTES_MAX;
}

/// A part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// Behind which entry to go on; none when the newest is among these.
    pub next: Option<u64>,
}

/// The log of one node.
pub struct Audit {
    shelf: Arc<dyn Shelf>,
    shared: Arc<Shared>,
    notes: mpsc::Sender<Note>,
    closing: CancellationToken,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// The log in the runtime's ledger. Call it within a runtime of tasks.
    pub fn open(runtime: Runtime) -> Self {
        Self::on(Arc::new(Ledger(runtime)), RETRY)
    }

    fn on(shelf: Arc<dyn Shelf>, retry: Duration) -> Self {
        let (notes, received) = mpsc::channel(WAITING_MAX);
        let (shared, closing) = (Arc::new(Shared::default()), CancellationToken::new());
        let writer = Writer::new(shelf.clone(), shared.clone(), received, closing.clone(), retry);
        let writer = Mutex::new(Some(tokio::spawn(writer.run())));
        Self { shelf, shared, notes, closing, writer }
    }

    /// Adds an entry, in the order of these calls. While the ledger cannot be written, entries wait; the deed stands
    /// all the same.
    pub fn note(&self, kind: &'static str, text: &str) {
        if self.notes.try_send(Note::now(kind, text.to_owned())).is_err() {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds a denied call: as an entry, or to a count that becomes one.
    pub fn denied(&self, denial: Denial) {
        let told = self.shared.denials().add(now_ms(), denial);
        if let Some(text) = told {
            self.note("call-denied", &text);
        }
    }

    /// Writes what waits, and takes nothing more.
    pub async fn close(&self) {
        self.closing.cancel();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && tokio::time::timeout(CLOSE_TIMEOUT, writer).await.is_err()
        {
            tracing::warn!("the audit log was not written to its end");
        }
    }

    /// At most `limit` entries behind number `after`, or the newest ones; verified from there on. Reads the ledger, and
    /// blocks meanwhile.
    ///
    /// # Errors
    /// [`Broken`]: the first entry that does not hold.
    pub fn page(&self, after: Option<u64>, limit: usize) -> Result<Page, Broken> {
        let limit = limit.clamp(1, PAGE_ENTRIES_MAX);
        let newest = self.shelf.newest().map_err(Broken::Ledger)?.map_or(0, |(seq, _)| seq);
        let after = after.unwrap_or_else(|| newest.saturating_sub(limit as u64));
        let mut entries = Vec::new();
        self.walk(after, |entry| {
            entries.push(entry);
            entries.len() < limit
        })?;
        let next = entries.last().map(|last| last.seq).filter(|last| *last < newest);
        Ok(Page { entries, next })
    }

    /// Verifies the whole log; returns how many entries it has. Reads the ledger, and blocks meanwhile.
    ///
    /// # Errors
    /// [`Broken`]: the first entry that does not hold.
    pub fn verify(&self) -> Result<u64, Broken> {
        let mut count = 0;
        self.walk(0, |_| {
            count += 1;
            true
        })?;
        Ok(count)
    }

    /// Verifies entries behind number `after` for as long as `take` wants more.
    fn walk(&self, after: u64, mut take: impl FnMut(Entry) -> bool) -> Result<(), Broken> {
        let log = self.shelf.key_log().map_err(Broken::Ledger)?;
        let mut envelopes = self.shelf.from(after).map_err(Broken::Ledger)?;
        let mut head = Head::default();
        if after > 0 {
            let Some(before) = envelopes.next() else { return Ok(()) };
            let (seq, envelope) = before.map_err(Broken::Ledger)?;
            if seq != after {
                return Err(Broken::Chain { seq });
            }
            head = Head::of(seq, &envelope);
        }
        let mut verifier = Verifier::after(head, &log);
        for row in envelopes {
            let (seq, envelope) = row.map_err(Broken::Ledger)?;
            if !take(verifier.step(seq, &envelope)?) {
                break;
            }
        }
        Ok(())
    }
}

/// How a federation is named in the log.
pub fn named(federation: &FederationId) -> String {
    federation.to_string().chars().take(17).collect()
}

/// The chain in a node's ledger.
struct Ledger(Runtime);

impl Shelf for Ledger {
    fn newest(&self) -> Result<Option<(u64, Vec<u8>)>, String> {
        let mut rows = self.0.ledger().range(AUDIT, ..).map_err(|error| error.to_string())?;
        rows.next_back().transpose().map_err(|error| error.to_string())
    }

    fn from(&self, seq: u64) -> Result<Envelopes, String> {
        let rows = self.0.ledger().range(AUDIT, seq..).map_err(|error| error.to_string())?;
        Ok(Box::new(rows.map(|row| row.map_err(|error| error.to_string()))))
    }

    fn keep(&self, seq: u64, envelope: &[u8]) -> Pending<'_, Result<(), String>> {
        let mut batch = Batch::new();
        batch.put(AUDIT, &seq, envelope);
        let kept = self.0.ledger().commit_async(batch);
        Box::pin(async move { kept.await.map_err(|error| error.to_string()) })
    }

    fn sign(&self, mut entry: Entry) -> Result<Vec<u8>, String> {
        loop {
            entry.key_seq = self.0.me().rotations;
            let signed = self.0.sign(entry.clone(), Scope::Global).map_err(|error| error.to_string())?;
            // A rotation in between would leave a number that is not the signing key's.
            if self.0.me().rotations == entry.key_seq {
                return Ok(signed.bytes().to_vec());
            }
        }
    }

    fn key_log(&self) -> Result<KeyLog, String> {
        KeyLog::parse(&self.0.key_log()).map_err(|error| error.to_string())
    }
}
