//! The set of records and its rules.

use crate::{
    accounts::Accounts,
    contract::{Checked, ContractError},
    record::{AgentRecord, Claim, Content, Kind, NodeRecord, Record, Slot, Verified},
    search::{Health, Hits, Index, Query},
};
use kos_protocol::{
    cbor::DecodeError,
    id::{AgentClass, AgentId, FederationId, MemberId, ObjectId},
    key::PublicKey,
    limits::{RECORDS_BYTES_MAX, RECORDS_BYTES_PER_AUTHOR_MAX, RECORDS_PER_AUTHOR_MAX},
    time::Timestamp,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Who may write records; told by whoever knows the roster.
pub trait Authors {
    /// The key of an active member, if `key_seq` is the number of its current one.
    fn key_of(&self, member: &MemberId, key_seq: u64) -> Option<PublicKey>;
    /// Whether it is an active member.
    fn is_author(&self, member: &MemberId) -> bool;
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
    /// A service whose contract does not hold. A later version may know more.
    #[error("the contract of a service: {0}")]
    Contract(ContractError),
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
    #[error(
        "{author} has {RECORDS_PER_AUTHOR_MAX} records or {RECORDS_BYTES_PER_AUTHOR_MAX} bytes, the most one member may have"
    )]
    Quota {
        /// Whose.
        author: MemberId,
    },
    /// Its author gave one number to two records; this one has the greater id.
    #[error("{author} signed two records with one number")]
    Equivocation {
        /// Whose.
        author: MemberId,
    },
    /// Its author makes more of them than anybody needs; may be taken later.
    #[error("{author} publishes faster than records are taken")]
    Rate {
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
            Self::Contract(_) => "record_contract",
            Self::Expired { .. } => "record_expired",
            Self::Future { .. } => "record_future",
            Self::Quota { .. } => "record_quota",
            Self::Rate { .. } => "record_rate",
            Self::Equivocation { .. } => "record_equivocation",
            Self::Full => "record_full",
        }
    }

    /// The author it is held against. Others than the author cannot bring these about: the first needs its signature,
    /// and its room and its rate are used up by what it signed.
    pub(crate) fn author(&self) -> Option<MemberId> {
        match self {
            Self::BadCert { author }
            | Self::Quota { author }
            | Self::Rate { author }
            | Self::Equivocation { author } => Some(*author),
            _ => None,
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
    New(Verified),
    /// Here already, or a newer one is.
    Known,
}

/// What is left to do with a record before it can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screened {
    /// Nothing: it is here already, or a newer one is.
    Known,
    /// It would be news: its signature is to be checked with this key.
    Verify(PublicKey),
}

/// Where a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Somebody else: what its author publishes is counted against its rate.
    Heard,
    /// This node, or its store.
    Own,
}

/// A record that answers a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// What it says.
    pub entry: T,
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
    /// Authors of the records held.
    pub authors: usize,
    /// Records taken.
    pub merged: u64,
    /// Records heard again or too late.
    pub known: u64,
    /// Records dropped because their time was over.
    pub expired: u64,
}

/// What a record is worth to its author where there is no room for all of them: by kind, then the newest, then the
/// smallest id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Worth(u8, u64, Reverse<ObjectId>);

impl Worth {
    fn new(kind: &Kind, time_ms: u64, id: ObjectId) -> Self {
        let rank = match kind {
            Kind::Node => 4,
            Kind::Agent | Kind::Service => 3,
            Kind::Other(_) => 2,
            Kind::Link => 1,
            Kind::Suspect => 0,
        };
        Self(rank, time_ms, Reverse(id))
    }

    fn of(record: &Record) -> Self {
        Self::new(record.kind(), record.time_ms(), record.id())
    }
}

/// The records of one federation.
///
/// A record costs less than 900 bytes besides its own, the search index included (`tests/memory.rs`).
#[derive(Clone, Debug)]
pub struct Directory {
    federation: FederationId,
    slots: BTreeMap<Slot, u32>,
    ids: BTreeMap<ObjectId, u32>,
    expiries: BTreeSet<(u64, u32)>,
    index: Index,
    accounts: Accounts,
    evicted: Vec<Slot>,
    /// Grows with every change: whoever keeps something derived from the records compares it.
    version: u64,
    merged: u64,
    known: u64,
    expired: u64,
}

impl Directory {
    /// An empty one.
    pub fn new(federation: FederationId) -> Self {
        Self {
            federation,
            slots: BTreeMap::new(),
            ids: BTreeMap::new(),
            expiries: BTreeSet::new(),
            index: Index::default(),
            accounts: Accounts::default(),
            evicted: Vec::new(),
            version: 0,
            merged: 0,
            known: 0,
            expired: 0,
        }
    }

    /// Merges a record in one go; where there are many, [`Self::screen`], [`Claim::verify`] and [`Self::insert`] let
    /// the signatures be checked elsewhere.
    ///
    /// The higher sequence number wins; on a tie the smaller id, so every node picks the same one. Costs one
    /// signature check, two for an agent. Records are at most `RECORD_BYTES_MAX`.
    ///
    /// # Errors
    /// [`MergeError`]: drop it; where [`MergeError::is_hostile`], report who sent it.
    pub fn merge(
        &mut self,
        now: Timestamp,
        source: Source,
        kind: &str,
        bytes: &[u8],
        authors: &impl Authors,
    ) -> Result<Merged, MergeError> {
        let claim = Claim::parse(self.federation, kind, bytes)?;
        match self.screen(now, source, &claim, authors)? {
            Screened::Known => Ok(Merged::Known),
            Screened::Verify(key) => {
                let verified = claim.verify(&key).inspect_err(|error| self.blame(error))?;
                self.insert(now, source, verified, authors)
            }
        }
    }

    /// Looks at everything about a record that costs little: its times, its author, whether it is news, whether there
    /// is room.
    ///
    /// # Errors
    /// [`MergeError`].
    pub fn screen(
        &mut self,
        now: Timestamp,
        source: Source,
        claim: &Claim,
        authors: &impl Authors,
    ) -> Result<Screened, MergeError> {
        let screened = self.judge(now, source, claim, authors);
        screened.inspect_err(|error| self.blame(error))
    }

    /// Counts a refusal that came out of [`Claim::verify`].
    pub fn blame(&mut self, error: &MergeError) {
        self.accounts.blame(error);
    }

    fn judge(
        &mut self,
        now: Timestamp,
        source: Source,
        claim: &Claim,
        authors: &impl Authors,
    ) -> Result<Screened, MergeError> {
        let (slot, key_seq) = (claim.slot(), claim.key_seq());
        let author = slot.author;
        claim.check_times(now)?;
        let key = authors.key_of(&author, key_seq).ok_or(MergeError::NotAnAuthor { author, key_seq })?;
        // Which of two with one number wins, only their ids can tell, and those are known when they are verified.
        let old = self.contender(now, source, slot);
        if old.is_some_and(|old| old.seq() > claim.seq() || old.bytes() == claim.bytes()) {
            self.known += 1;
            return Ok(Screened::Known);
        }
        self.make_room(slot, claim.bytes().len(), || Worth::new(&slot.kind, claim.time_ms(), claim.id()))?;
        if source == Source::Heard && !self.accounts.may_spend(&author, now) {
            return Err(MergeError::Rate { author });
        }
        Ok(Screened::Verify(key))
    }

    /// Takes a verified record, if its author may still write it, and it is still news.
    ///
    /// # Errors
    /// [`MergeError::NotAnAuthor`], [`MergeError::Quota`], [`MergeError::Full`].
    pub fn insert(
        &mut self,
        now: Timestamp,
        source: Source,
        verified: Verified,
        authors: &impl Authors,
    ) -> Result<Merged, MergeError> {
        let record = verified.record.clone();
        let (author, key_seq) = (record.author(), record.key_seq());
        if authors.key_of(&author, key_seq).is_none() {
            return Err(MergeError::NotAnAuthor { author, key_seq });
        }
        if let Some(old) = self.contender(now, source, record.slot()).filter(|old| !record.replaces(old)) {
            if old.seq() == record.seq() && old.id() != record.id() {
                let error = MergeError::Equivocation { author };
                self.accounts.blame(&error);
                self.accounts.spend(author, now);
                return Err(error);
            }
            self.known += 1;
            return Ok(Merged::Known);
        }
        let going = self
            .make_room(record.slot(), record.bytes().len(), || Worth::of(&record))
            .inspect_err(|error| self.accounts.blame(error))?;
        for slot in going {
            self.remove(&slot);
            self.accounts.blame(&MergeError::Quota { author });
            self.evicted.push(slot);
        }
        if source == Source::Heard {
            self.accounts.spend(author, now);
        }
        self.remove(record.slot());
        let row = self.index.insert(verified.clone());
        self.ids.insert(record.id(), row);
        self.expiries.insert((record.expires_ms(), row));
        self.accounts.add(author, record.bytes().len());
        self.slots.insert(record.slot().clone(), row);
        self.merged += 1;
        self.version += 1;
        Ok(Merged::New(verified))
    }

    /// The record that a new one has to replace. One of this node's own from the future is none: its clock was ahead once,
    /// and everybody else refused it.
    fn contender(&self, now: Timestamp, source: Source, slot: &Slot) -> Option<&Arc<Record>> {
        self.get(slot).filter(|old| source == Source::Heard || now.allows(old.seq()))
    }

    /// The records of its author that have to go for a new one: those worth least, and none that is worth as much as the
    /// new one. So whoever hears of more records than fit keeps the same ones, whichever came first.
    fn make_room(
        &self,
        slot: &Slot,
        bytes: usize,
        worth: impl FnOnce() -> Worth,
    ) -> Result<Vec<Slot>, MergeError> {
        let author = slot.author;
        let old_bytes = self.get(slot).map(|old| old.bytes().len());
        let (count, held_bytes) = self.accounts.held(&author);
        let mut count = count + usize::from(old_bytes.is_none());
        let mut held_bytes = held_bytes - old_bytes.unwrap_or(0) + bytes;
        if self.accounts.bytes() - old_bytes.unwrap_or(0) + bytes > RECORDS_BYTES_MAX {
            return Err(MergeError::Full);
        }
        let is_over = |count: usize, held_bytes: usize| {
            count > RECORDS_PER_AUTHOR_MAX || held_bytes > RECORDS_BYTES_PER_AUTHOR_MAX
        };
        if !is_over(count, held_bytes) {
            return Ok(Vec::new());
        }
        let worth = worth();
        let others = self.records_of(author).filter(|record| record.slot() != slot);
        let mut others: Vec<_> = others.map(|record| (Worth::of(record), record)).collect();
        others.sort_unstable_by_key(|(worth, _)| *worth);
        let mut going = Vec::new();
        for (_, record) in others.into_iter().take_while(|(other, _)| *other < worth) {
            count -= 1;
            held_bytes -= record.bytes().len();
            going.push(record.slot().clone());
            if !is_over(count, held_bytes) {
                return Ok(going);
            }
        }
        Err(MergeError::Quota { author })
    }

    /// Takes the slots of records that had to go for others since the last call.
    pub fn take_evicted(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.evicted)
    }

    fn remove(&mut self, slot: &Slot) {
        let Some(row) = self.slots.remove(slot) else { return };
        let record = self.index.remove(row);
        self.ids.remove(&record.id());
        self.expiries.remove(&(record.expires_ms(), row));
        self.accounts.subtract(&slot.author, record.bytes().len());
        self.version += 1;
    }

    /// Drops those records of `members` that they may not have written, because they left or signed them with a key that
    /// was replaced; returns their slots.
    pub fn retain(&mut self, authors: &impl Authors, members: &[MemberId]) -> Vec<Slot> {
        let may_stay = |record: &Arc<Record>| authors.key_of(&record.author(), record.key_seq()).is_some();
        let of_members = members.iter().flat_map(|member| self.records_of(*member));
        let gone: Vec<_> =
            of_members.filter(|record| !may_stay(record)).map(|record| record.slot().clone()).collect();
        gone.iter().for_each(|slot| self.remove(slot));
        self.accounts.retain_authors_with_records_or(|author| authors.is_author(author));
        gone
    }

    /// Drops records whose time is over; returns their slots.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Slot> {
        let over = self.expiries.iter().take_while(|(expires_ms, _)| *expires_ms <= now.wall_ms);
        let gone: Vec<_> = over.map(|(_, row)| self.index.record(*row).slot().clone()).collect();
        gone.iter().for_each(|slot| self.remove(slot));
        self.expired += gone.len() as u64;
        gone
    }

    /// When the next record expires, in wall milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.first().map(|(expires_ms, _)| *expires_ms)
    }

    /// The sequence number for a new record in `slot`: above the clock and above every one seen.
    pub fn next_seq(&self, now: Timestamp, slot: &Slot) -> u64 {
        let seen = self.contender(now, Source::Own, slot).map_or(0, |record| record.seq().saturating_add(1));
        seen.max(now.wall_ms)
    }

    /// Every node.
    pub fn nodes(&self, now: Timestamp) -> impl Iterator<Item = Found<&NodeRecord>> {
        self.records().filter_map(move |record| match record.content() {
            Content::Node(node) => Some(found(now, record, &**node)),
            _ => None,
        })
    }

    /// The node of one member.
    pub fn node(&self, now: Timestamp, member: MemberId) -> Option<Found<&NodeRecord>> {
        let record = self.get(&Slot::only(member, Kind::Node))?;
        match record.content() {
            Content::Node(node) => Some(found(now, record, &**node)),
            _ => None,
        }
    }

    /// Every agent that is there, of all classes or of one.
    pub fn agents(
        &self,
        now: Timestamp,
        class: Option<AgentClass>,
    ) -> impl Iterator<Item = Found<AgentRecord>> {
        let agents = self.records().filter_map(move |record| Some(found(now, record, record.agent()?)));
        agents.filter(move |found| class.is_none_or(|class| class == found.entry.agent.class()))
    }

    /// One agent of one member, with its key.
    pub fn agent(
        &self,
        now: Timestamp,
        member: MemberId,
        agent: &AgentId,
    ) -> Option<(Found<AgentRecord>, PublicKey)> {
        let slot = Slot { author: member, kind: Kind::Agent, name: agent.to_string().into() };
        let record = self.get(&slot)?;
        match record.content() {
            Content::Agent(Some(key)) => {
                Some((found(now, record, record.agent()?), PublicKey::from_bytes(key).ok()?))
            }
            _ => None,
        }
    }

    /// Whether an agent of a member is known to be gone: its record is a tombstone. One that was never heard of is not.
    pub fn is_withdrawn(&self, member: MemberId, agent: &AgentId) -> bool {
        let slot = Slot { author: member, kind: Kind::Agent, name: agent.to_string().into() };
        self.get(&slot).is_some_and(|record| matches!(record.content(), Content::Agent(None)))
    }

    /// The contract of one service of one member.
    pub fn service(&self, member: MemberId, name: &str) -> Option<&Checked> {
        match self.get(&Slot { author: member, kind: Kind::Service, name: name.into() })?.content() {
            Content::Service(contract) => contract.as_ref(),
            _ => None,
        }
    }

    /// The contracts of the services of one member, by name; tombstones left out.
    pub fn services_of(&self, member: MemberId) -> impl Iterator<Item = &Checked> {
        self.records_of(member).filter_map(|record| match record.content() {
            Content::Service(contract) => contract.as_ref(),
            _ => None,
        })
    }

    /// The best matches of a query, one page of them. Costs no more than a few milliseconds with 100,000 records.
    pub fn find(&self, query: &Query) -> Hits {
        self.index.find(query)
    }

    /// What is known of a member's health: it ranks what queries find.
    pub fn set_health(&mut self, member: MemberId, health: Health) {
        self.index.set_health(member, health);
    }

    /// Every record, of unknown kinds too, by slot.
    pub fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.slots.values().map(|row| self.index.record(*row))
    }

    /// The records of one author, by slot.
    pub fn records_of(&self, author: MemberId) -> impl Iterator<Item = &Arc<Record>> {
        let rows = self.slots.range(Slot::only(author, Kind::Node)..);
        rows.take_while(move |(slot, _)| slot.author == author).map(|(_, row)| self.index.record(*row))
    }

    /// The record in a slot.
    pub fn get(&self, slot: &Slot) -> Option<&Arc<Record>> {
        self.slots.get(slot).map(|row| self.index.record(*row))
    }

    /// The record with an id.
    pub fn get_by_id(&self, id: &ObjectId) -> Option<&Arc<Record>> {
        self.ids.get(id).map(|row| self.index.record(*row))
    }

    /// The ids of all records, in order.
    pub fn ids(&self) -> impl Iterator<Item = &ObjectId> {
        self.ids.keys()
    }

    /// Another number after every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What each author has here, and what of it was refused.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        Stats {
            records: self.slots.len(),
            bytes: self.accounts.bytes(),
            authors: self.accounts.authors(),
            merged: self.merged,
            known: self.known,
            expired: self.expired,
        }
    }
}

fn found<T>(now: Timestamp, record: &Record, entry: T) -> Found<T> {
    let age_ms = now.wall_ms.saturating_sub(record.time_ms());
    Found { entry, id: record.id(), age_ms }
}

#[cfg(test)]
mod tests;
