//! The set of records and its rules.

use crate::record::{AgentCert, AgentRecord, Content, NodeRecord, Record, Slot};
use kos_protocol::{
    cbor::DecodeError,
    id::{AgentClass, AgentId, FederationId, MemberId, ObjectId},
    key::PublicKey,
    limits::{RECORDS_BYTES_MAX, RECORDS_PER_AUTHOR_MAX},
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// Who may write records; told by whoever knows the roster.
pub trait Authors {
    /// The key of an active member, if `key_seq` is the number of its current one.
    fn key_of(&self, member: &MemberId, key_seq: u64) -> Option<PublicKey>;
}

/// Why a record is not taken. Costs no signature check before [`MergeError::BadSignature`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// Not a signed record.
    #[error("not a record: {0}")]
    Decode(#[from] DecodeError),
    /// A field out of its bounds.
    #[error("a record's `{0}` is out of bounds")]
    Content(&'static str),
    /// By somebody who is no active member, or with a key that is not its current one. May be a matter of time.
    #[error("{author} is not a member, or key {key_seq} is not its current one")]
    NotAnAuthor {
        /// Who it says.
        author: MemberId,
        /// Which key it says.
        key_seq: u64,
    },
    /// Signed by another key, for another federation, as another kind, or altered.
    #[error("the signature on a record of {author} does not verify")]
    BadSignature {
        /// Whose record it claims to be.
        author: MemberId,
    },
    /// An agent whose certificate does not cover it.
    #[error("an agent's certificate by {author} does not cover its record")]
    BadCert {
        /// Whose agent.
        author: MemberId,
    },
    /// Over before it came.
    #[error("a record of {author} expired {age_ms} ms ago")]
    Expired {
        /// Whose.
        author: MemberId,
        /// How long ago.
        age_ms: u64,
    },
    /// Stamped later than now; may be taken later.
    #[error("a record of {author} is dated {ahead_ms} ms ahead of this clock")]
    Future {
        /// Whose.
        author: MemberId,
        /// How far.
        ahead_ms: u64,
    },
    /// Its author has as many as it may.
    #[error("{author} has {RECORDS_PER_AUTHOR_MAX} records, the most one member may have")]
    Quota {
        /// Whose.
        author: MemberId,
    },
    /// The directory is full.
    #[error("the directory holds {RECORDS_BYTES_MAX} bytes, its limit")]
    Full,
}

impl MergeError {
    /// A word from a closed set, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Decode(DecodeError::TooLarge { .. }) => "record_too_large",
            Self::Decode(_) | Self::Content(_) => "record_malformed",
            Self::NotAnAuthor { .. } => "record_not_an_author",
            Self::BadSignature { .. } => "record_signature",
            Self::BadCert { .. } => "record_cert",
            Self::Expired { .. } => "record_expired",
            Self::Future { .. } => "record_future",
            Self::Quota { .. } => "record_quota",
            Self::Full => "record_full",
        }
    }

    /// Whether an honest member would never have passed it on. The others may be a matter of time or of room.
    pub fn is_hostile(&self) -> bool {
        matches!(self, Self::Decode(_) | Self::Content(_) | Self::BadSignature { .. } | Self::BadCert { .. })
    }
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The newest of its slot.
    New(Slot),
    /// Here already, or a newer one is.
    Known,
}

/// A record that answers a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a, T> {
    /// What it says.
    pub entry: &'a T,
    /// Its id.
    pub id: ObjectId,
    /// How old it is by this node's clock.
    pub age_ms: u64,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records held.
    pub records: usize,
    /// Bytes of the records held.
    pub bytes: usize,
    /// Records taken.
    pub merged: u64,
    /// Records heard again or too late.
    pub known: u64,
    /// Records dropped because their time was over.
    pub expired: u64,
}

/// The records of one federation.
#[derive(Clone, Debug)]
pub struct Directory {
    federation: FederationId,
    records: BTreeMap<Slot, Record>,
    ids: BTreeSet<ObjectId>,
    expiries: BTreeSet<(u64, Slot)>,
    by_author: BTreeMap<MemberId, usize>,
    stats: Stats,
}

impl Directory {
    /// An empty one.
    pub fn new(federation: FederationId) -> Self {
        Self {
            federation,
            records: BTreeMap::new(),
            ids: BTreeSet::new(),
            expiries: BTreeSet::new(),
            by_author: BTreeMap::new(),
            stats: Stats::default(),
        }
    }

    /// Merges a record heard from anybody.
    ///
    /// The higher sequence number wins; on a tie the smaller id, so every node picks the same one. Costs one
    /// signature check, two for an agent. Records are at most `RECORD_BYTES_MAX`.
    ///
    /// # Errors
    /// [`MergeError`]: drop it; where [`MergeError::is_hostile`], report who sent it.
    pub fn merge(
        &mut self,
        now: Timestamp,
        kind: &str,
        bytes: &[u8],
        authors: &impl Authors,
    ) -> Result<Merged, MergeError> {
        let record = Record::verify(now, self.federation, kind, bytes, authors)?;
        let (slot, author) = (record.slot(), record.header().author);
        let old_bytes = match self.records.get(&slot) {
            Some(old) if !record.replaces(old) => {
                self.stats.known += 1;
                return Ok(Merged::Known);
            }
            Some(old) => old.bytes().len(),
            None if self.by_author.get(&author).is_some_and(|count| *count >= RECORDS_PER_AUTHOR_MAX) => {
                return Err(MergeError::Quota { author });
            }
            None => 0,
        };
        if self.stats.bytes - old_bytes + record.bytes().len() > RECORDS_BYTES_MAX {
            return Err(MergeError::Full);
        }
        self.remove(&slot);
        self.insert(slot.clone(), record);
        self.stats.merged += 1;
        Ok(Merged::New(slot))
    }

    fn insert(&mut self, slot: Slot, record: Record) {
        self.ids.insert(record.id());
        self.expiries.insert((record.header().expires_ms, slot.clone()));
        *self.by_author.entry(slot.author).or_default() += 1;
        self.stats.bytes += record.bytes().len();
        self.records.insert(slot, record);
        self.stats.records = self.records.len();
    }

    fn remove(&mut self, slot: &Slot) {
        let Some(record) = self.records.remove(slot) else { return };
        self.ids.remove(&record.id());
        self.expiries.remove(&(record.header().expires_ms, slot.clone()));
        self.stats.bytes -= record.bytes().len();
        self.stats.records = self.records.len();
        let count = self.by_author.entry(slot.author).or_default();
        *count -= 1;
        if *count == 0 {
            self.by_author.remove(&slot.author);
        }
    }

    /// Drops records whose authors left or signed them with a key that was replaced; returns their slots.
    pub fn retain(&mut self, authors: &impl Authors) -> Vec<Slot> {
        let may_stay =
            |record: &Record| authors.key_of(&record.header().author, record.header().key_seq).is_some();
        let gone: Vec<_> = self
            .records
            .iter()
            .filter(|(_, record)| !may_stay(record))
            .map(|(slot, _)| slot.clone())
            .collect();
        gone.iter().for_each(|slot| self.remove(slot));
        gone
    }

    /// Drops records whose time is over; returns their slots.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Slot> {
        let over = self.expiries.iter().take_while(|(expires_ms, _)| *expires_ms <= now.wall_ms);
        let gone: Vec<_> = over.map(|(_, slot)| slot.clone()).collect();
        gone.iter().for_each(|slot| self.remove(slot));
        self.stats.expired += gone.len() as u64;
        gone
    }

    /// When the next record expires, in wall milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.first().map(|(expires_ms, _)| *expires_ms)
    }

    /// The sequence number for a new record in `slot`: above the clock and above every one seen.
    pub fn next_seq(&self, now: Timestamp, slot: &Slot) -> u64 {
        let seen = self.records.get(slot).map_or(0, |record| record.header().seq.saturating_add(1));
        seen.max(now.wall_ms)
    }

    /// Every node.
    pub fn nodes(&self, now: Timestamp) -> impl Iterator<Item = Found<'_, NodeRecord>> {
        self.records.values().filter_map(move |record| match record.content() {
            Content::Node(node) => Some(found(now, record, node)),
            _ => None,
        })
    }

    /// The node of one member.
    pub fn node(&self, now: Timestamp, member: MemberId) -> Option<Found<'_, NodeRecord>> {
        let slot = Slot { author: member, kind: "node-record".to_owned(), name: String::new() };
        let record = self.records.get(&slot)?;
        match record.content() {
            Content::Node(node) => Some(found(now, record, node)),
            _ => None,
        }
    }

    /// Every agent that is there, of all classes or of one.
    pub fn agents(
        &self,
        now: Timestamp,
        class: Option<AgentClass>,
    ) -> impl Iterator<Item = Found<'_, AgentRecord>> {
        let wanted = move |agent: &AgentId| class.is_none_or(|class| class == agent.class());
        self.records.values().filter_map(move |record| match record.content() {
            Content::Agent(agent, Some(_)) if wanted(&agent.agent) => Some(found(now, record, &**agent)),
            _ => None,
        })
    }

    /// One agent of one member, with its certificate.
    pub fn agent(
        &self,
        now: Timestamp,
        member: MemberId,
        agent: &AgentId,
    ) -> Option<(Found<'_, AgentRecord>, &AgentCert)> {
        let slot = Slot { author: member, kind: "agent-record".to_owned(), name: agent.to_string() };
        let record = self.records.get(&slot)?;
        match record.content() {
            Content::Agent(agent, Some(cert)) => Some((found(now, record, &**agent), &**cert)),
            _ => None,
        }
    }

    /// Every record, of unknown kinds too, by slot.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// The record in a slot.
    pub fn get(&self, slot: &Slot) -> Option<&Record> {
        self.records.get(slot)
    }

    /// The ids of all records.
    pub fn ids(&self) -> &BTreeSet<ObjectId> {
        &self.ids
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}

fn found<'a, T>(now: Timestamp, record: &Record, entry: &'a T) -> Found<'a, T> {
    let age_ms = now.wall_ms.saturating_sub(record.header().time_ms);
    Found { entry, id: record.id(), age_ms }
}

#[cfg(test)]
mod tests;
