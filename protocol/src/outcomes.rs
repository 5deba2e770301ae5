//! At most once: what became of the requests that carry an idempotency key. SPEC §8.2.
//!
//! [`Outcomes`] decides, whoever calls it executes and stores. A request that may run is recorded first and run when that
//! record is durable; so after a crash a request is either not known, and never began, or known and never run again.
//!
//! Kept in memory is only what is needed to decide; the answers lie in the store, under the key of their request.

use crate::{
    cbor::{self, DecodeError},
    id::{FederationId, MemberId, sha256},
    limits::{
        OUTCOME_BYTES_MAX, OUTCOME_LIFE_MS, OUTCOME_REPLY_BYTES_MAX, OUTCOME_REPLY_BYTES_PER_CALLER_MAX,
        OUTCOMES_MAX, OUTCOMES_PER_CALLER_MAX,
    },
    message::{End, Head, ReplyHead, Status},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Which request: the key of its row in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Who asks.
    pub caller: MemberId,
    /// SHA-256 of the intent, with its length before it, and the idempotency key.
    pub request: [u8; 32],
}

/// A request that carries an idempotency key, as far as deciding needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    key: Key,
    /// SHA-256 of what the key was used for: federation, target and params. The body is not part of it, as it comes
    /// later.
    meaning: [u8; 32],
}

impl Asked {
    /// The part of a head that counts; none for a request without a key.
    pub fn by(caller: MemberId, federation: &FederationId, head: &Head) -> Option<Self> {
        let key = head.idempotency_key.as_ref()?;
        let request = sha256(&cbor::encode(&(&head.intent, key)));
        let meaning = sha256(&cbor::encode(&(federation, &head.target, &head.params)));
        Some(Self { key: Key { caller, request }, meaning })
    }

    /// Under which key its row lies.
    pub fn key(&self) -> Key {
        self.key
    }
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Make the ordered row durable, execute, then call [`Outcomes::finish`], or [`Outcomes::lost`] where it was
    /// stopped before its end. If the row cannot be stored, call [`Outcomes::not_begun`] and execute nothing.
    Run,
    /// It was executed: answer with [`Row::into_answer`] of the row under its key.
    Replay,
    /// It is being executed for an earlier copy of the request.
    Running,
    /// It began, and nobody knows how far it came: the node stopped, or the request was stopped.
    Unknown,
    /// The key was used for something else.
    Conflict,
    /// No room for another key of this caller, or of anybody.
    Full {
        /// When the oldest one makes room.
        retry_after_ms: u32,
    },
}

impl Decision {
    /// The refusal this decision is answered with; none where there is more to say, or to do.
    pub fn refusal(&self) -> Option<End> {
        match self {
            Self::Run | Self::Replay => None,
            Self::Running => Some(End::because(Status::Unavailable, "still being executed")),
            Self::Unknown => Some(outcome_unknown()),
            Self::Conflict => {
                Some(End::because(Status::Invalid, "the idempotency key was used for another request"))
            }
            Self::Full { retry_after_ms } => {
                let end = End::because(Status::RateLimited, "too many idempotency keys");
                Some(End { retry_after_ms: Some(*retry_after_ms), ..end })
            }
        }
    }
}

fn outcome_unknown() -> End {
    End::because(Status::Unavailable, "outcome unknown: it was begun, and stopped before its end")
}

/// An answer as it went to the caller: head and body, unless it was a lone end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Of its head.
    pub params: ByteBuf,
    /// All of its data.
    pub body: ByteBuf,
}

impl Reply {
    fn bytes(&self) -> usize {
        self.params.len() + self.body.len()
    }

    /// Its head.
    pub fn head(&self) -> ReplyHead {
        ReplyHead { params: self.params.clone() }
    }
}

/// What came before the end of an answer, as far as it can be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: it was a lone end.
    Refusal,
    /// Head and body. They are kept if they are within the limits.
    Whole(Reply),
    /// More than [`OUTCOME_REPLY_BYTES_MAX`].
    TooLong,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    Begun,
    Refused(End),
    Answered(Reply, End),
    /// Executed, with an answer that was too long to keep.
    NotKept(End),
}

/// What the store keeps of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    meaning: ByteArray<32>,
    expires_ms: u64,
    stage: Stage,
}

impl Stage {
    fn kept_bytes(&self) -> usize {
        match self {
            Self::Answered(reply, _) => reply.bytes(),
            _ => 0,
        }
    }
}

impl Row {
    /// Reads a row.
    ///
    /// # Errors
    /// [`DecodeError`]: the store is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        cbor::decode_message(bytes, OUTCOME_BYTES_MAX)
    }

    /// What to tell a caller that asks again.
    pub fn into_answer(self) -> (Option<Reply>, End) {
        match self.stage {
            Stage::Begun => (None, outcome_unknown()),
            Stage::Refused(end) => (None, end),
            Stage::Answered(reply, end) => (Some(reply), end),
            Stage::NotKept(end) => {
                let text = format!("executed before, with `{}`; its answer was too long to keep", end.status);
                (None, End::because(Status::Unavailable, text))
            }
        }
    }
}

/// An order to whoever has the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Keep this row; it replaces what `key` had. Give it back with [`Outcomes::restore`].
    Persist {
        /// Whose.
        key: Key,
        /// A [`Row`].
        bytes: Vec<u8>,
    },
    /// Keep it no longer.
    Forget {
        /// Which.
        key: Key,
    },
}

/// How far a request is, by what this node knows since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Becomes `Done` or `Lost`, or goes with [`Outcomes::not_begun`]. Does not expire.
    Running,
    /// Was stopped before its end, by itself or with the node. Stays until it expires.
    Lost,
    /// Stays until it expires.
    Done,
}

#[derive(Clone, Debug)]
struct Entry {
    /// None where the row is damaged.
    meaning: Option<[u8; 32]>,
    expires_ms: u64,
    known: Known,
    kept_bytes: usize,
}

/// What one caller takes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    keys: usize,
    kept_bytes: usize,
}

/// When a key that is first used now names nothing any more.
fn expiry_ms(now: Timestamp) -> u64 {
    now.wall_ms.saturating_add(OUTCOME_LIFE_MS)
}

/// Every idempotency key in use.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    entries: BTreeMap<Key, Entry>,
    callers: BTreeMap<MemberId, Usage>,
    expiries: BTreeSet<(u64, Key)>,
    outputs: VecDeque<Output>,
}

impl Outcomes {
    /// Nothing asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a stored row back, before the first request.
    ///
    /// # Errors
    /// [`DecodeError`]: damaged. Its request is not run again: its outcome is unknown for as long as a key lives.
    pub fn restore(&mut self, now: Timestamp, key: Key, bytes: &[u8]) -> Result<(), DecodeError> {
        let row = Row::decode(bytes);
        let entry = match &row {
            Ok(row) => Entry {
                meaning: Some(*row.meaning),
                expires_ms: row.expires_ms,
                known: if row.stage == Stage::Begun { Known::Lost } else { Known::Done },
                kept_bytes: row.stage.kept_bytes(),
            },
            Err(_) => Entry { meaning: None, expires_ms: expiry_ms(now), known: Known::Lost, kept_bytes: 0 },
        };
        self.insert(key, entry);
        row.map(drop)
    }

    /// Decides about a request. [`Decision::Run`] is given once for a key, until it expires.
    pub fn ask(&mut self, now: Timestamp, asked: &Asked) -> Decision {
        self.expire(now);
        if let Some(entry) = self.entries.get(&asked.key) {
            return match entry.known {
                _ if entry.meaning.is_some_and(|meaning| meaning != asked.meaning) => Decision::Conflict,
                Known::Running => Decision::Running,
                Known::Lost => Decision::Unknown,
                Known::Done => Decision::Replay,
            };
        }
        if let Some(retry_after_ms) = self.room_in_ms(now, asked.key.caller) {
            return Decision::Full { retry_after_ms };
        }
        let (meaning, expires_ms) = (Some(asked.meaning), expiry_ms(now));
        let entry = Entry { meaning, expires_ms, known: Known::Running, kept_bytes: 0 };
        self.persist(asked.key, asked.meaning, expires_ms, Stage::Begun);
        self.insert(asked.key, entry);
        Decision::Run
    }

    /// How long until there is room for another key of `caller`; none if there is.
    fn room_in_ms(&self, now: Timestamp, caller: MemberId) -> Option<u32> {
        let mut in_the_way: Box<dyn Iterator<Item = &(u64, Key)>> = Box::new(self.expiries.iter());
        if self.usage(caller).keys >= OUTCOMES_PER_CALLER_MAX {
            in_the_way = Box::new(in_the_way.filter(move |(_, key)| key.caller == caller));
        } else if self.entries.len() < OUTCOMES_MAX {
            return None;
        }
        let oldest_ms = in_the_way.next().map(|(expires_ms, _)| *expires_ms);
        let wait_ms = oldest_ms.unwrap_or(0).saturating_sub(now.wall_ms).max(1);
        Some(u32::try_from(wait_ms).unwrap_or(u32::MAX))
    }

    fn usage(&self, caller: MemberId) -> Usage {
        self.callers.get(&caller).copied().unwrap_or_default()
    }

    /// The request ran: this was its answer. An answer above the limits is not kept, only that it was given.
    pub fn finish(&mut self, key: Key, answer: Answer, end: End) {
        let mut entry = self.take_running(&key);
        let kept_before = self.usage(key.caller).kept_bytes;
        let fits = |reply: &Reply| {
            let bytes = reply.bytes();
            bytes <= OUTCOME_REPLY_BYTES_MAX && kept_before + bytes <= OUTCOME_REPLY_BYTES_PER_CALLER_MAX
        };
        let stage = match answer {
            Answer::Refusal => Stage::Refused(end),
            Answer::Whole(reply) if fits(&reply) => Stage::Answered(reply, end),
            Answer::Whole(_) | Answer::TooLong => Stage::NotKept(end),
        };
        entry.known = Known::Done;
        entry.kept_bytes = stage.kept_bytes();
        let meaning = entry.meaning.expect("what runs was asked for, with its meaning");
        self.persist(key, meaning, entry.expires_ms, stage);
        self.insert(key, entry);
    }

    /// The request was stopped before its end, and nobody knows how far it came. Its row says so already.
    pub fn lost(&mut self, key: Key) {
        let entry = self.take_running(&key);
        self.insert(key, Entry { known: Known::Lost, ..entry });
    }

    /// Nothing of the request was executed after all: its row could not be stored, or its handler refused it first. It
    /// may be asked again.
    pub fn not_begun(&mut self, key: Key) {
        self.take_running(&key);
        self.outputs.push_back(Output::Forget { key });
    }

    fn take_running(&mut self, key: &Key) -> Entry {
        let entry = self.remove(key).filter(|entry| entry.known == Known::Running);
        entry.expect("what ends was told to run and has not ended")
    }

    /// Forgets what is over by the wall clock.
    pub fn expire(&mut self, now: Timestamp) {
        let over = self.expiries.iter().take_while(|(expires_ms, _)| *expires_ms <= now.wall_ms);
        let is_idle = |key: &Key| self.entries[key].known != Known::Running;
        let gone: Vec<Key> = over.map(|(_, key)| *key).filter(is_idle).collect();
        for key in gone {
            self.remove(&key);
            self.outputs.push_back(Output::Forget { key });
        }
    }

    /// When [`Self::expire`] is wanted next, by the wall clock, in milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.first().map(|(expires_ms, _)| *expires_ms)
    }

    /// The next order for whoever has the store. Drain after every call that takes `&mut self`, and store in this order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// How many keys are in use.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key is in use.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn persist(&mut self, key: Key, meaning: [u8; 32], expires_ms: u64, stage: Stage) {
        let row = Row { meaning: ByteArray::new(meaning), expires_ms, stage };
        self.outputs.push_back(Output::Persist { key, bytes: cbor::encode(&row) });
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        let usage = self.callers.entry(key.caller).or_default();
        usage.keys += 1;
        usage.kept_bytes += entry.kept_bytes;
        self.expiries.insert((entry.expires_ms, key));
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.expiries.remove(&(entry.expires_ms, *key));
        let usage = self.callers.entry(key.caller).or_default();
        usage.keys -= 1;
        usage.kept_bytes -= entry.kept_bytes;
        if usage.keys == 0 {
            self.callers.remove(&key.caller);
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests;
