//! The acts of a federation as a graph, and what they add up to.
//!
//! Two questions are kept apart:
//! - *May this act be here?* Answered once, from the act's own past alone (`check.rs`): was its author an active
//!   steward there, did the target exist, was the invitation good. Everybody finds the same answer, whenever it
//!   arrives, so a refused act stays refused.
//! - *Does it count?* Answered in `view.rs` over all acts held: an act loses its effect when a more senior steward
//!   removed its author without having seen it. So neither a thief nor an expelled steward can backdate.
//!
//! One thing is decided by who came first: two key events that fork one member's log. Only the holder of a
//! *replaced* key can make such a fork, so the log seen first stands and the other one is refused.

mod check;
#[cfg(test)]
mod tests;
mod view;

use crate::{
    act::{Act, Action, Role, STEWARD},
    genesis::Genesis,
    invite::InviteError,
    roster::Roster,
};
use check::Author;
use kos_protocol::{
    cbor::DecodeError,
    id::{FederationId, InvalidName, MemberId, ObjectId},
    key::PublicKey,
    key_log::{KeyLog, KeyLogError},
    limits::{
        ACT_PARENTS_MAX, ACTS_HELD_MAX, ACTS_HELD_MS_MAX, ACTS_HELD_PER_AUTHOR_MAX, ACTS_HELD_UNPROVEN_MAX,
        ACTS_MAX, ACTS_PER_AUTHOR_MAX, WHY_BYTES_MAX,
    },
    object::{ObjectError, Scope, Signed, Unverified},
    time::Timestamp,
};
use serde_bytes::ByteBuf;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};
use view::{Bits, Rank, View};

/// Why an act is refused. Except where a variant says otherwise it stays refused whenever it comes again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActError {
    /// Not an act, altered, of another federation, or signed by another key than it says.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Its action is not deterministic CBOR.
    #[error("the action does not decode: {0}")]
    Action(DecodeError),
    /// By a right this version does not know.
    #[error("an act by authority `{0}`, which this version does not know")]
    Authority(String),
    /// `prev` is not strictly ascending or too long, or `seq` is not one more than the greatest of them.
    #[error("the act is not where it says it is among the acts")]
    Place,
    /// Stamped later than now; may be accepted later.
    #[error("the act is dated {ahead_ms} ms ahead of this clock")]
    Future {
        /// How far.
        ahead_ms: u64,
    },
    /// No room for another act, of anybody or of this author.
    #[error("there is no room for another act")]
    Full,
    /// No room to hold an act whose predecessors are missing; comes again with the next catch-up.
    #[error("too many acts are waiting for their predecessors")]
    HeldFull,
    /// Its author was no active steward when it wrote it.
    #[error("{0} was not an active steward when it acted")]
    NotASteward(MemberId),
    /// Signed with another key than the author's current one.
    #[error("{0} acted with a key that is not its current one")]
    OldKey(MemberId),
    /// Its target is not in the roster.
    #[error("{0} is not a member")]
    NotAMember(MemberId),
    /// The newcomer is in already.
    #[error("{0} is a member already")]
    AlreadyMember(MemberId),
    /// The newcomer was expelled; only a reinstatement brings it back.
    #[error("{0} has been expelled; only `reinstate` brings it back")]
    Expelled(MemberId),
    /// Nothing to undo: the target is active.
    #[error("{0} is neither suspended nor expelled")]
    NotRemoved(MemberId),
    /// Aimed at a steward who has been here longer.
    #[error("{0} is a steward who has been here longer than the author")]
    Senior(MemberId),
    /// Would leave nobody who can act.
    #[error("{0} is the last active steward")]
    LastSteward(MemberId),
    /// The newcomer's name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A reason longer than `WHY_BYTES_MAX`.
    #[error("a reason of {0} bytes, limit {WHY_BYTES_MAX}")]
    WhyTooLong(usize),
    /// A key log that does not verify.
    #[error(transparent)]
    KeyLog(#[from] KeyLogError),
    /// The key log of another member.
    #[error("the key log is not of {0}")]
    OtherKeyLog(MemberId),
    /// Key events that contradict ones seen before: an old key of this member is in other hands.
    #[error("two key logs of {0} contradict each other; the one seen first stands")]
    Forked(MemberId),
    /// Key events that are all recorded already.
    #[error("the key events of {0} are recorded already")]
    NothingNew(MemberId),
    /// Another member signs with the same key.
    #[error("the key is already in use by {0}")]
    KeyInUse(MemberId),
    /// The invitation does not let the newcomer in.
    #[error(transparent)]
    Invite(#[from] InviteError),
}

impl ActError {
    /// A word from a closed set, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Object(ObjectError::Signature(_)) => "act_signature",
            Self::Object(_) | Self::Action(_) => "act_malformed",
            Self::Authority(_) => "act_authority",
            Self::Place => "act_place",
            Self::Future { .. } => "act_future",
            Self::Full | Self::HeldFull => "act_full",
            Self::NotASteward(_) => "act_not_a_steward",
            Self::OldKey(_) => "act_old_key",
            Self::NotAMember(_) => "act_not_a_member",
            Self::AlreadyMember(_) => "act_already_member",
            Self::Expelled(_) => "act_expelled",
            Self::NotRemoved(_) | Self::NothingNew(_) => "act_nothing_new",
            Self::Senior(_) => "act_senior",
            Self::LastSteward(_) => "act_last_steward",
            Self::Name(_) | Self::WhyTooLong(_) => "act_text",
            Self::KeyLog(_) | Self::OtherKeyLog(_) | Self::KeyInUse(_) => "act_key_log",
            Self::Forked(_) => "act_forked",
            Self::Invite(error) => error.label(),
        }
    }

    /// Whether an honest member would never have passed it on. The others may be a matter of time or of room.
    pub fn is_hostile(&self) -> bool {
        !matches!(
            self,
            Self::Future { .. } | Self::Full | Self::HeldFull | Self::Forked(_) | Self::Authority(_)
        )
    }
}

/// What became of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// News: this act, and those that had waited for it, in the order they follow each other.
    New(Vec<ObjectId>),
    /// Here before.
    Known,
    /// Waits for acts before it.
    Held,
}

/// Why a key log is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Of somebody who is not in the roster.
    #[error("{0} is not a member")]
    NotAMember(MemberId),
    /// Contradicts the log seen first.
    #[error("two key logs of {0} contradict each other; the one seen first stands")]
    Forked(MemberId),
}

/// The offer an admission was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offer {
    invite: ObjectId,
    uses: u32,
}

/// An act that may be here.
#[derive(Clone, Debug)]
struct Placed {
    signed: Signed<Act>,
    action: Action,
    /// All acts its author knew.
    past: Bits,
    /// The author's seniority in that past.
    rank: Rank,
    /// The act that made the author a member; none for founders.
    admission: Option<usize>,
    offer: Option<Offer>,
}

/// Whose room an act takes while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Voucher {
    /// Signed by this steward, past or present, with a key that acts have recorded.
    Steward(MemberId),
    /// Nobody: the admission or the key it needs is not here either. Anybody can make such acts up.
    Nobody,
}

#[derive(Clone, Debug)]
struct Held {
    read: Unverified<Act>,
    voucher: Voucher,
    since_ms: u64,
}

/// The acts of one federation.
#[derive(Clone, Debug)]
pub struct Acts {
    genesis: Genesis,
    placed: Vec<Placed>,
    /// Indices into `placed`, most senior author first: the order in which `View` decides.
    order: Vec<usize>,
    index: BTreeMap<ObjectId, usize>,
    heads: BTreeSet<ObjectId>,
    held: BTreeMap<ObjectId, Held>,
    by_author: BTreeMap<MemberId, usize>,
    removals: u64,
    /// The longest log of each member that acts have recorded.
    recorded: BTreeMap<MemberId, KeyLog>,
    /// The longest log known, which may be ahead of what acts have recorded.
    logs: BTreeMap<MemberId, KeyLog>,
    /// Whose logs have a key.
    holders: BTreeMap<PublicKey, BTreeSet<MemberId>>,
    view: View,
}

impl Acts {
    /// A federation in which nothing has happened yet.
    pub fn new(genesis: Genesis) -> Self {
        let logs: BTreeMap<_, _> =
            genesis.founders().map(|(founder, log)| (founder.member, log.clone())).collect();
        let view = View::of_genesis(&genesis);
        let mut acts = Self {
            genesis,
            placed: Vec::new(),
            order: Vec::new(),
            index: BTreeMap::new(),
            heads: BTreeSet::new(),
            held: BTreeMap::new(),
            by_author: BTreeMap::new(),
            removals: 0,
            recorded: logs.clone(),
            holders: BTreeMap::new(),
            logs: BTreeMap::new(),
            view,
        };
        logs.into_values().for_each(|log| acts.know(log));
        acts
    }

    /// Takes the longest log of its member.
    fn know(&mut self, log: KeyLog) {
        for key in (0..=log.seq()).filter_map(|seq| log.key_at(seq)) {
            self.holders.entry(key).or_default().insert(log.member());
        }
        self.logs.insert(log.member(), log);
    }

    /// Takes an act in, from anywhere and in any order.
    ///
    /// Looks the author up before it checks a signature. An act whose predecessors are missing waits for them,
    /// at most `ACTS_HELD_MS_MAX`; how many wait is bounded for each author, and for those nobody can vouch for.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn insert(&mut self, now: Timestamp, bytes: &[u8]) -> Result<Inserted, ActError> {
        let read = Unverified::<Act>::parse(bytes, self.scope())?;
        if self.index.contains_key(&read.id()) {
            return Ok(Inserted::Known);
        }
        let act = read.claim();
        if act.authority != STEWARD {
            return Err(ActError::Authority(act.authority.escape_default().take(64).collect()));
        }
        if act.prev.len() > ACT_PARENTS_MAX || !act.prev.is_sorted_by(|a, b| a < b) {
            return Err(ActError::Place);
        }
        if !now.allows(act.time_ms) {
            return Err(ActError::Future { ahead_ms: act.time_ms.saturating_sub(now.wall_ms) });
        }
        if !act.prev.iter().all(|prev| self.index.contains_key(prev)) {
            return self.hold(now, read);
        }
        let first = self.place(read)?;
        Ok(Inserted::New(self.release(first)))
    }

    fn hold(&mut self, now: Timestamp, read: Unverified<Act>) -> Result<Inserted, ActError> {
        if self.held.contains_key(&read.id()) {
            return Ok(Inserted::Held);
        }
        let voucher = self.voucher(&read)?;
        let room = match voucher {
            Voucher::Steward(_) => ACTS_HELD_PER_AUTHOR_MAX,
            Voucher::Nobody => ACTS_HELD_UNPROVEN_MAX,
        };
        let waiting = self.held.values().filter(|held| held.voucher == voucher).count();
        if waiting >= room || self.held.len() >= ACTS_HELD_MAX {
            return Err(ActError::HeldFull);
        }
        self.held.insert(read.id(), Held { read, voucher, since_ms: now.monotonic_ms });
        Ok(Inserted::Held)
    }

    /// Who answers for an act whose past is not all here. Without this any member could fill the room with junk in
    /// anybody's name. A key that acts have recorded stays what it is, so a signature that fails now always will.
    fn voucher(&self, read: &Unverified<Act>) -> Result<Voucher, ActError> {
        let act = read.claim();
        let is_steward = self.view.seats.get(&act.author).is_some_and(|seat| seat.role == Role::Steward);
        let recorded = self.recorded.get(&act.author).filter(|_| is_steward);
        let Some(key) = recorded.and_then(|log| log.key_at(act.key_seq)) else {
            return Ok(Voucher::Nobody);
        };
        read.check(&key).map_err(ObjectError::from)?;
        Ok(Voucher::Steward(act.author))
    }

    /// Places what had waited for `first`, and for what that releases.
    fn release(&mut self, first: ObjectId) -> Vec<ObjectId> {
        let mut placed = vec![first];
        loop {
            let ready = |held: &Held| held.read.claim().prev.iter().all(|prev| self.index.contains_key(prev));
            let Some(id) = self.held.iter().find(|(_, held)| ready(held)).map(|(id, _)| *id) else {
                return placed;
            };
            let held = self.held.remove(&id).expect("just found");
            if self.place(held.read).is_ok() {
                placed.push(id);
            }
        }
    }

    fn place(&mut self, read: Unverified<Act>) -> Result<ObjectId, ActError> {
        let (id, act) = (read.id(), read.claim());
        let (past, seq) = self.past_of(&act.prev);
        if act.seq != seq {
            return Err(ActError::Place);
        }
        let written = self.by_author.get(&act.author).copied().unwrap_or(0);
        let limit = if act.author == self.first_founder() { ACTS_MAX } else { ACTS_PER_AUTHOR_MAX };
        if self.placed.len() >= ACTS_MAX || written >= limit {
            return Err(ActError::Full);
        }
        let action = Action::from_bytes(&act.action).map_err(ActError::Action)?;
        let is_on_top = past.count() == self.placed.len();
        let subset = self.view_of(&past);
        let Author { rank, admission, key } = self.check_author(&subset, act, &action)?;
        let act = act.clone();
        let signed = read.verify(&key).map_err(ObjectError::from)?;
        let checked = self.check_action(&subset, &act, &action)?;
        drop(subset);

        for prev in &act.prev {
            self.heads.remove(prev);
        }
        self.heads.insert(id);
        *self.by_author.entry(act.author).or_default() += 1;
        self.removals += u64::from(action.removes().is_some());
        let index = self.placed.len();
        self.index.insert(id, index);
        self.placed.push(Placed { signed, action, past, rank, admission, offer: checked.offer });
        let at = self.order.partition_point(|other| self.deciding(*other) < self.deciding(index));
        self.order.insert(at, index);
        if let Some(log) = checked.log {
            self.record(log);
        }
        if is_on_top {
            self.view.decide_on_top(&self.placed);
        } else {
            self.view = View::decide(&self.genesis, &self.placed, &self.order, None);
        }
        #[cfg(test)]
        assert_eq!(self.view, View::decide(&self.genesis, &self.placed, &self.order, None));
        Ok(id)
    }

    /// By whom and when, as far as it matters to whether an act counts: seniors first; of one author the newest
    /// key first, because only the owner can have it; removals of oneself before what one did meanwhile.
    fn deciding(&self, index: usize) -> impl Ord + use<> {
        let Placed { signed, action, rank, .. } = &self.placed[index];
        let others_first = action.removes() != Some(signed.author);
        (*rank, std::cmp::Reverse(signed.key_seq), others_first, signed.seq, signed.id())
    }

    fn past_of(&self, prev: &[ObjectId]) -> (Bits, u64) {
        let mut past = Bits::default();
        let mut seq = 0;
        for index in prev.iter().filter_map(|id| self.index.get(id)) {
            let placed = &self.placed[*index];
            past.unite(&placed.past);
            past.set(*index);
            seq = seq.max(placed.signed.seq);
        }
        (past, seq.saturating_add(1))
    }

    fn view_of(&self, past: &Bits) -> Cow<'_, View> {
        if past.count() == self.placed.len() {
            Cow::Borrowed(&self.view)
        } else {
            Cow::Owned(View::decide(&self.genesis, &self.placed, &self.order, Some(past)))
        }
    }

    fn record(&mut self, log: KeyLog) {
        let member = log.member();
        let recorded = self.recorded.entry(member).or_insert_with(|| log.clone());
        if log.extends(recorded) {
            *recorded = log;
        }
        if !self.logs.get(&member).is_some_and(|known| known.extends(recorded)) {
            let recorded = recorded.clone();
            self.know(recorded);
        }
    }

    /// Takes a key log heard from anybody; returns whether it was news.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn learn_key_log(&mut self, log: &KeyLog) -> Result<bool, LogError> {
        let member = log.member();
        let known = self.logs.get(&member).filter(|_| self.view.seats.contains_key(&member));
        let known = known.ok_or(LogError::NotAMember(member))?;
        if known.extends(log) {
            return Ok(false);
        }
        if !log.extends(known) {
            return Err(LogError::Forked(member));
        }
        self.know(log.clone());
        Ok(true)
    }

    /// An act by `author` that follows everything known here, ready to be signed with its current key.
    ///
    /// Checked as every member will check it, so what comes back will be accepted.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn draft(&self, now: Timestamp, author: MemberId, action: &Action) -> Result<Act, ActError> {
        let mut newest: Vec<_> =
            self.heads.iter().map(|id| (self.placed[self.index[id]].signed.seq, *id)).collect();
        newest.sort_by_key(|(seq, id)| (std::cmp::Reverse(*seq), *id));
        newest.truncate(ACT_PARENTS_MAX);
        let mut prev: Vec<_> = newest.into_iter().map(|(_, id)| id).collect();
        prev.sort();
        let (past, seq) = self.past_of(&prev);
        let act = Act {
            seq,
            prev,
            authority: STEWARD.to_owned(),
            author,
            key_seq: self.logs.get(&author).map_or(0, KeyLog::seq),
            time_ms: now.wall_ms,
            action: ByteBuf::from(action.to_bytes()),
        };
        let view = self.view_of(&past);
        self.check_author(&view, &act, action)?;
        self.check_action(&view, &act, action)?;
        Ok(act)
    }

    /// Drops acts that waited too long; returns whether some still wait.
    pub fn expire_held(&mut self, now: Timestamp) -> bool {
        self.held.retain(|_, held| now.monotonic_ms.saturating_sub(held.since_ms) < ACTS_HELD_MS_MAX);
        !self.held.is_empty()
    }

    /// How many acts wait for others.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The roster these acts add up to, at a wall time (memberships may end by date).
    pub fn roster(&self, wall_ms: u64) -> Roster {
        Roster::new(self.view.seats.iter().filter_map(|(member, seat)| {
            let log = self.logs.get(member)?;
            let admission = seat.admission.map(|index| &self.placed[index].signed);
            Some(crate::roster::Member {
                id: *member,
                role: seat.role,
                given_name: seat.name.clone(),
                name: seat.name.clone(),
                key_log: log.clone(),
                standing: seat.standing_at(wall_ms),
                until_ms: seat.until_ms,
                admitted_ms: admission.map(|act| act.time_ms),
                admitted_by: admission.map(|act| act.author),
                seniority: seat.rank,
            })
        }))
    }

    /// Members whose newest keys no act has recorded yet. A steward records its own with [`Action::Rotate`], signed
    /// with the new key, and those of members who cannot act.
    pub fn unrecorded(&self) -> impl Iterator<Item = (&KeyLog, Action)> {
        self.logs.iter().filter_map(|(member, log)| {
            let recorded = *self.view.keys.get(member)?;
            if log.seq() <= recorded {
                return None;
            }
            let recorded = usize::try_from(recorded).ok()?;
            let events: Vec<_> = log.to_list().into_iter().skip(recorded + 1).collect();
            (!events.is_empty()).then_some((log, Action::Rotate { member: *member, events }))
        })
    }

    /// How many removals have been ordered, whether they count or not. Never falls, so it numbers the secrets.
    pub fn removals(&self) -> u64 {
        self.removals
    }

    /// The author of the newest removal.
    pub fn last_remover(&self) -> Option<MemberId> {
        self.placed
            .iter()
            .rev()
            .find(|placed| placed.action.removes().is_some())
            .map(|placed| placed.signed.author)
    }

    /// How many members an invitation has let in.
    pub fn invite_uses(&self, invite: &ObjectId) -> usize {
        self.view.used.get(invite).map_or(0, BTreeSet::len)
    }

    /// Whether an invitation was withdrawn.
    pub fn invite_revoked(&self, invite: &ObjectId) -> bool {
        self.view.revoked.contains(invite)
    }

    /// Every act, each after those it follows.
    pub fn in_order(&self) -> Vec<(&Signed<Act>, &Action)> {
        let mut acts: Vec<_> = self.placed.iter().map(|placed| (&placed.signed, &placed.action)).collect();
        acts.sort_by_key(|(act, _)| (act.seq, act.id()));
        acts
    }

    /// One act.
    pub fn get(&self, id: &ObjectId) -> Option<(&Signed<Act>, &Action)> {
        let placed = &self.placed[*self.index.get(id)?];
        Some((&placed.signed, &placed.action))
    }

    /// Whether an act counts: it is here, and no senior steward removed its author without knowing of it.
    pub fn counts(&self, id: &ObjectId) -> bool {
        self.index.get(id).is_some_and(|index| self.view.effective.has(*index))
    }

    /// How many acts there are.
    pub fn len(&self) -> usize {
        self.placed.len()
    }

    /// Whether nothing happened since the genesis.
    pub fn is_empty(&self) -> bool {
        self.placed.is_empty()
    }

    /// The genesis.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The federation.
    pub fn federation(&self) -> FederationId {
        self.genesis.id()
    }

    /// The longest known key log of a member, past or present.
    pub fn key_log(&self, member: &MemberId) -> Option<&KeyLog> {
        self.logs.get(member)
    }

    /// Every known key log.
    pub fn key_logs(&self) -> impl Iterator<Item = &KeyLog> {
        self.logs.values()
    }

    fn scope(&self) -> Scope {
        Scope::Federation(self.federation())
    }

    fn first_founder(&self) -> MemberId {
        self.genesis.charter().roster[0].member
    }

    /// The key with number `seq` of a member.
    fn key_at(&self, member: &MemberId, seq: u64) -> Option<PublicKey> {
        self.logs.get(member)?.key_at(seq)
    }
}
