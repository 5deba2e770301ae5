//! The state of one federation and what follows from each piece of news.

use crate::item::{ACT, Item, ItemError, KEY_LOG};
use kos_directory::{Authors, Content, Directory, Entry, MergeError, Merged, Slot};
use kos_governance::{
    act::{Act, Action, Role},
    acts::{ActError, Acts, Inserted, LogError},
    genesis::{Genesis, GenesisError},
    join::JoinReply,
    roster::{Roster, Standing},
    secret::DiscoverySecret,
};
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId, ObjectId, sha256},
    key::PublicKey,
    key_log::{KeyEvent, KeyLog, KeyLogError},
    limits::{ITEM_BYTES_MAX, UNKNOWN_ITEMS_MAX},
    object::{ObjectError, Scope, Signed, Unverified},
    time::Timestamp,
};
use serde_bytes::{ByteArray, ByteBuf};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How long the next steward in line waits before it does a duty that an earlier one has not done, in milliseconds.
const DUTY_STEP_MS: u64 = 30_000;
/// Longest wait between two deadlines, so that a changed wall clock is noticed, in milliseconds.
const DEADLINE_MS_MAX: u64 = 10 * 60 * 1000;

/// Where the shell keeps something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// The genesis. Cannot be rebuilt.
    Genesis,
    /// Acts by `seq` and id, as items: in the order of their keys each follows those before it. Cannot be rebuilt.
    Acts,
    /// Key logs by member, as items. Cannot be rebuilt.
    KeyLogs,
    /// The discovery secret, one. Secret.
    Secret,
    /// Records by slot, as items. Peers can give them again.
    Records,
    /// Items of unknown kinds by hash. Peers can give them again.
    Unknown,
}

/// Who came and went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RosterChange {
    /// Members who may act now and could not before.
    pub admitted: Vec<MemberId>,
    /// Members who were expelled, left, lapsed, or whose admission turned out not to count.
    pub removed: Vec<MemberId>,
    /// Members who were suspended.
    pub suspended: Vec<MemberId>,
    /// Active members with a new current key: links and sessions with the old one must close.
    pub rotated: Vec<MemberId>,
}

impl RosterChange {
    /// Whether nobody came, went or changed keys.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An order to the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Keep these bytes; they replace what `key` had. Give them back with [`Federation::restore`].
    Persist {
        /// Where.
        table: Table,
        /// Under which key.
        key: Vec<u8>,
        /// What.
        bytes: Vec<u8>,
    },
    /// Keep it no longer.
    Forget {
        /// Where.
        table: Table,
        /// Which key.
        key: Vec<u8>,
    },
    /// Gossip an item. Items that came by gossip and were `New` are forwarded by gossip itself.
    Broadcast(Vec<u8>),
    /// Close sessions of those who left, let those in who came.
    RosterChanged(RosterChange),
    /// These slots have another record, or none.
    DirectoryChanged(Vec<Slot>),
    /// Move to the topics of the new secret, and give it to every active member in reach, inside sessions.
    SecretChanged,
    /// Draw 32 random bytes, sign [`Federation::draft_secret`], hand it to [`Federation::secret_drawn`].
    DrawSecret,
    /// Draft, sign and hand in this act: it records a member's new key. A draft that is refused was overtaken by
    /// other news: leave it.
    RecordRotation(Action),
    /// A record of this member newer than our own came in: another machine runs with our keys, or an old backup was
    /// restored. Stop publishing and say so.
    SeenMyself(Slot),
}

/// What became of an item. For gossip: `New` accept; `Known`, `Held` ignore; refused: reject where hostile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// News, taken.
    New,
    /// Had it, or something newer.
    Known,
    /// An act that waits for those before it.
    Held,
    /// Not taken.
    Refused(Refusal),
}

/// Why an item is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No item.
    #[error(transparent)]
    Item(#[from] ItemError),
    /// An act.
    #[error(transparent)]
    Act(#[from] ActError),
    /// A key log that does not verify.
    #[error(transparent)]
    KeyLog(#[from] KeyLogError),
    /// A key log of a stranger, or a forked one.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A record.
    #[error(transparent)]
    Record(#[from] MergeError),
    /// A discovery secret not signed by an active steward, or numbered ahead of the removals known here.
    #[error("the discovery secret is not by an active steward or ahead of the acts known here")]
    Secret,
    /// An item of an unknown kind, and no room for it.
    #[error("no room for another item of an unknown kind")]
    UnknownFull,
}

impl Refusal {
    /// A word from a closed set, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Item(_) => "item_malformed",
            Self::Act(error) => error.label(),
            Self::KeyLog(_) => "key_log_malformed",
            Self::Log(LogError::NotAMember(_)) => "key_log_not_a_member",
            Self::Log(LogError::Forked(_)) => "key_log_forked",
            Self::Record(error) => error.label(),
            Self::Secret => "secret",
            Self::UnknownFull => "unknown_full",
        }
    }

    /// Whether it may count once acts are known that are missing here: whoever passed it on has them.
    pub fn lacks_acts(&self) -> bool {
        matches!(self, Self::Record(MergeError::NotAnAuthor { .. }) | Self::Log(LogError::NotAMember(_)))
    }

    /// Whether an honest member would never have passed it on. The others may be a matter of time or of room.
    pub fn is_hostile(&self) -> bool {
        match self {
            Self::Item(_) | Self::KeyLog(_) => true,
            Self::Act(error) => error.is_hostile(),
            Self::Record(error) => error.is_hostile(),
            Self::Log(_) | Self::Secret | Self::UnknownFull => false,
        }
    }
}

/// Why a record of our own is not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It is not taken here, so nobody else would take it.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A newer one of ours is here already: take the number from [`Federation::stamp`].
    #[error("a newer record of this node is known already")]
    Outdated,
}

/// Why a welcome does not make us a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WelcomeError {
    /// Its genesis.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// Another federation than the invitation's.
    #[error("the welcome is into {shown}, the invitation was into {expected}")]
    OtherFederation {
        /// What came.
        shown: FederationId,
        /// What was asked for.
        expected: FederationId,
    },
    /// An act in it that does not hold.
    #[error("an act in the welcome does not hold: {0}")]
    Act(#[from] ActError),
    /// We are not an active member in it.
    #[error("the welcome does not make this node a member")]
    NotAdmitted,
}

/// The fields that every record of ours begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// This member.
    pub author: MemberId,
    /// The number of its current key.
    pub key_seq: u64,
    /// Above every number used or seen in the slot.
    pub seq: u64,
    /// Now.
    pub time_ms: u64,
    /// When it stops counting.
    pub expires_ms: u64,
}

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Items taken.
    pub new: u64,
    /// Items heard again.
    pub known: u64,
    /// Acts that had to wait.
    pub held: u64,
    /// Items refused, by [`Refusal::label`].
    pub refused: BTreeMap<&'static str, u64>,
}

/// Whether a persisted row reads as what its table holds; signatures are checked when it is restored.
///
/// # Errors
/// What is wrong with it.
pub fn check_row(federation: FederationId, table: Table, bytes: &[u8]) -> Result<(), String> {
    let scope = Scope::Federation(federation);
    match table {
        Table::Acts => {
            let item = Item::parse(bytes).map_err(|error| error.to_string())?;
            Unverified::<Act>::parse(&item.body, scope).map_err(|error| error.to_string())?;
            if item.kind == ACT { Ok(()) } else { Err(format!("no act but {}", item.kind)) }
        }
        Table::KeyLogs => {
            let log = Item::parse(bytes).map_err(|error| error.to_string())?.as_key_log();
            log.map(drop).ok_or_else(|| "no key log, or one that does not verify".to_owned())
        }
        Table::Secret => {
            let secret = Unverified::<DiscoverySecret>::parse(bytes, scope);
            secret.map(drop).map_err(|error| error.to_string())
        }
        _ => Ok(()),
    }
}

/// Something a steward has to do, unless an earlier one in line does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Duty {
    /// Draw the secret with this number.
    Secret(u64),
    /// Record a member's key with this number.
    Rotation(MemberId, u64),
}

/// Whether news come from outside, or from our own store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Outside,
    Store,
}

/// Who may write records, according to a roster.
struct RosterAuthors<'a>(&'a Roster);

impl Authors for RosterAuthors<'_> {
    fn key_of(&self, member: &MemberId, key_seq: u64) -> Option<PublicKey> {
        let member = self.0.active_member(member)?;
        (member.key_log.seq() == key_seq).then(|| member.key())
    }
}

/// Something that can be given to others.
enum Listed<'a> {
    /// Of a kind we know: the item around it says nothing more.
    Made(Item),
    /// Of another kind, named by its bytes: they stay as they came, with what a later version put in.
    Kept(&'a [u8]),
}

impl Listed<'_> {
    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Made(item) => item.to_bytes(),
            Self::Kept(bytes) => bytes.to_vec(),
        }
    }
}

/// One federation as member `me` sees it.
#[derive(Clone, Debug)]
pub struct Federation {
    me: MemberId,
    acts: Acts,
    roster: Roster,
    directory: Directory,
    secret: Option<Signed<DiscoverySecret>>,
    unknown: BTreeMap<[u8; 32], Vec<u8>>,
    /// What this node has published since it started, to notice another node with the same keys.
    published: BTreeMap<Slot, (u64, ObjectId)>,
    duties: BTreeMap<Duty, u64>,
    running: bool,
    outputs: VecDeque<Output>,
    stats: Stats,
}

impl Federation {
    /// The federation of a stored genesis. Then [`Self::restore`] everything else, then [`Self::start`].
    pub fn new(now: Timestamp, genesis: Genesis, me: MemberId) -> Self {
        let acts = Acts::new(genesis);
        Self {
            me,
            roster: acts.roster(now.wall_ms),
            directory: Directory::new(acts.federation()),
            acts,
            secret: None,
            unknown: BTreeMap::new(),
            published: BTreeMap::new(),
            duties: BTreeMap::new(),
            running: false,
            outputs: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// A federation that begins now. Orders its genesis persisted and, soon, a secret drawn.
    pub fn found(now: Timestamp, genesis: Genesis, me: MemberId) -> Self {
        let mut federation = Self::new(now, genesis, me);
        federation.persist_genesis();
        federation.start(now);
        federation
    }

    /// A federation we were welcomed into. `expected` is the one in the invitation; a relay being claimed has none.
    ///
    /// # Errors
    /// [`WelcomeError`].
    pub fn welcomed(
        now: Timestamp,
        me: MemberId,
        expected: Option<FederationId>,
        reply: &JoinReply,
    ) -> Result<Self, WelcomeError> {
        let genesis = Genesis::parse(&reply.genesis)?;
        let shown = genesis.id();
        if let Some(expected) = expected.filter(|expected| *expected != shown) {
            return Err(WelcomeError::OtherFederation { shown, expected });
        }
        let mut federation = Self::new(now, genesis, me);
        federation.persist_genesis();
        for act in &reply.acts {
            federation.take_act(now, act, Origin::Outside)?;
        }
        for log in reply.key_logs.iter().filter_map(|list| KeyLog::parse(list).ok()) {
            // One that does not fit is left out: catch-up brings the right one.
            let _ = federation.take_key_log(now, &log, Origin::Outside);
        }
        if let Some(secret) = &reply.secret {
            federation.heard_secret(now, secret);
        }
        federation.outputs.retain(|output| matches!(output, Output::Persist { .. }));
        if federation.roster.active_member(&me).is_none() {
            return Err(WelcomeError::NotAdmitted);
        }
        federation.start(now);
        Ok(federation)
    }

    /// Takes back what was persisted: the acts in the order of their keys, key logs, the secret, then the
    /// rest.
    ///
    /// # Errors
    /// [`Refusal`]: damaged, or, for records and key logs, out of date. Those may be forgotten; an act is kept for a
    /// person to look at.
    pub fn restore(&mut self, now: Timestamp, table: Table, bytes: &[u8]) -> Result<(), Refusal> {
        if table == Table::Secret {
            return self.take_secret(bytes, Origin::Store).map(|_| ());
        }
        if table != Table::Genesis {
            self.take(now, bytes, Origin::Store)?;
        }
        Ok(())
    }

    /// Everything is restored: from here on duties are done.
    pub fn start(&mut self, now: Timestamp) {
        self.running = true;
        let orphaned = self.directory.retain(&RosterAuthors(&self.roster));
        self.drop_records(orphaned);
        self.plan(now);
    }

    /// Takes an item heard from a member, by gossip or catch-up.
    pub fn heard(&mut self, now: Timestamp, bytes: &[u8]) -> Verdict {
        let verdict = self.take(now, bytes, Origin::Outside).unwrap_or_else(Verdict::Refused);
        match &verdict {
            Verdict::New => self.stats.new += 1,
            Verdict::Known => self.stats.known += 1,
            Verdict::Held => self.stats.held += 1,
            Verdict::Refused(refusal) => *self.stats.refused.entry(refusal.label()).or_default() += 1,
        }
        verdict
    }

    fn take(&mut self, now: Timestamp, bytes: &[u8], origin: Origin) -> Result<Verdict, Refusal> {
        let item = Item::parse(bytes)?;
        match item.kind.as_str() {
            ACT => Ok(self.take_act(now, &item.body, origin)?),
            KEY_LOG => {
                let list: Vec<ByteBuf> =
                    cbor::decode_canonical(&item.body, ITEM_BYTES_MAX).map_err(ItemError::from)?;
                self.take_key_log(now, &KeyLog::parse(&list)?, origin)
            }
            _ if item.is_record() => self.take_record(now, &item, origin),
            _ => self.take_unknown(bytes, origin),
        }
    }

    fn take_act(&mut self, now: Timestamp, bytes: &[u8], origin: Origin) -> Result<Verdict, ActError> {
        // What was taken once is not refused because the clock was set back since.
        let judged_at = match origin {
            Origin::Outside => now,
            Origin::Store => Timestamp { wall_ms: u64::MAX, ..now },
        };
        let placed = match self.acts.insert(judged_at, bytes)? {
            Inserted::Known => return Ok(Verdict::Known),
            Inserted::Held => return Ok(Verdict::Held),
            Inserted::New(placed) => placed,
        };
        for (place, id) in placed.iter().enumerate() {
            let (act, _) = self.acts.get(id).expect("just placed");
            let item = Item::new(ACT, act.bytes()).to_bytes();
            if origin == Origin::Outside {
                let key = [act.seq.to_be_bytes().as_slice(), id.as_bytes()].concat();
                self.persist(Table::Acts, &key, item.clone());
                if place > 0 {
                    self.outputs.push_back(Output::Broadcast(item));
                }
            }
        }
        self.refresh(now, origin);
        Ok(Verdict::New)
    }

    fn take_key_log(&mut self, now: Timestamp, log: &KeyLog, origin: Origin) -> Result<Verdict, Refusal> {
        if !self.acts.learn_key_log(log)? {
            return Ok(Verdict::Known);
        }
        if origin == Origin::Outside {
            self.persist(Table::KeyLogs, log.member().as_bytes(), Item::key_log(log).to_bytes());
        }
        self.refresh(now, origin);
        Ok(Verdict::New)
    }

    fn take_record(&mut self, now: Timestamp, item: &Item, origin: Origin) -> Result<Verdict, Refusal> {
        let slot = match self.directory.merge(now, &item.kind, &item.body, &RosterAuthors(&self.roster))? {
            Merged::Known => return Ok(Verdict::Known),
            Merged::New(slot) => slot,
        };
        if origin == Origin::Outside {
            self.persist(Table::Records, &slot_key(&slot), item.to_bytes());
            self.outputs.push_back(Output::DirectoryChanged(vec![slot.clone()]));
            if slot.author == self.me && self.published.contains_key(&slot) {
                self.outputs.push_back(Output::SeenMyself(slot));
            }
        }
        Ok(Verdict::New)
    }

    /// Everybody keeps the same ones: those with the smallest hashes.
    fn take_unknown(&mut self, bytes: &[u8], origin: Origin) -> Result<Verdict, Refusal> {
        let hash = sha256(bytes);
        if self.unknown.contains_key(&hash) {
            return Ok(Verdict::Known);
        }
        if self.unknown.len() >= UNKNOWN_ITEMS_MAX {
            let (last, _) = self.unknown.last_key_value().expect("it is full");
            let last = *last;
            if hash > last {
                return Err(Refusal::UnknownFull);
            }
            self.unknown.remove(&last);
            self.outputs.push_back(Output::Forget { table: Table::Unknown, key: last.to_vec() });
        }
        self.unknown.insert(hash, bytes.to_vec());
        if origin == Origin::Outside {
            self.persist(Table::Unknown, &hash, bytes.to_vec());
        }
        Ok(Verdict::New)
    }

    /// Takes a discovery secret that a member gave us inside a session.
    pub fn heard_secret(&mut self, now: Timestamp, bytes: &[u8]) -> Verdict {
        let verdict = self.take_secret(bytes, Origin::Outside);
        self.plan(now);
        verdict.unwrap_or_else(|refusal| {
            *self.stats.refused.entry(refusal.label()).or_default() += 1;
            Verdict::Refused(refusal)
        })
    }

    fn take_secret(&mut self, bytes: &[u8], origin: Origin) -> Result<Verdict, Refusal> {
        if self.secret.as_ref().is_some_and(|held| held.bytes() == bytes) {
            return Ok(Verdict::Known);
        }
        let scope = Scope::Federation(self.id());
        let read = Unverified::<DiscoverySecret>::parse(bytes, scope).map_err(|_| Refusal::Secret)?;
        let claim = read.claim();
        if origin == Origin::Outside && !self.may_draw(claim) {
            return Err(Refusal::Secret);
        }
        let log = self.acts.key_log(&claim.author).ok_or(Refusal::Secret)?;
        let key = log.key_at(claim.key_seq).ok_or(Refusal::Secret)?;
        let secret = read.verify(&key).map_err(|_| Refusal::Secret)?;
        if self.secret.as_ref().is_some_and(|held| !secret.wins_over(held)) {
            return Ok(Verdict::Known);
        }
        if origin == Origin::Outside {
            self.persist(Table::Secret, b"", secret.bytes().to_vec());
            self.outputs.push_back(Output::SecretChanged);
        }
        self.secret = Some(secret);
        Ok(Verdict::New)
    }

    /// A secret by a steward who left is no news any more, but one that we hold stays until the next is drawn:
    /// without it the node would not find the others. Numbers ahead of the removals known here would let one
    /// steward lock all others out for ever.
    fn may_draw(&self, secret: &DiscoverySecret) -> bool {
        let author = self.roster.member(&secret.author);
        let in_office = author.is_some_and(|author| {
            author.role == Role::Steward && matches!(author.standing, Standing::Active | Standing::Lapsed)
        });
        in_office && secret.epoch <= self.acts.removals()
    }

    /// An act this node signed; drafted by [`Self::draft_act`].
    ///
    /// # Errors
    /// [`ActError`].
    pub fn acted(&mut self, now: Timestamp, act: &Signed<Act>) -> Result<(), ActError> {
        if self.take_act(now, act.bytes(), Origin::Outside)? == Verdict::New {
            self.outputs.push_back(Output::Broadcast(Item::new(ACT, act.bytes()).to_bytes()));
        }
        Ok(())
    }

    /// A key was rotated: this node's own, or that of a member that we know under an older one and that shows us so.
    /// Everybody is told.
    ///
    /// # Errors
    /// [`Refusal::Log`].
    pub fn rotated(&mut self, now: Timestamp, log: &KeyLog) -> Result<(), Refusal> {
        if self.take_key_log(now, log, Origin::Outside)? == Verdict::New {
            self.outputs.push_back(Output::Broadcast(Item::key_log(log).to_bytes()));
        }
        Ok(())
    }

    /// A record this node signed; begun with [`Self::stamp`].
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish<T: Entry>(&mut self, now: Timestamp, record: &Signed<T>) -> Result<(), PublishError> {
        let item = Item::new(T::KIND, record.bytes());
        let authors = RosterAuthors(&self.roster);
        let Merged::New(slot) = self.directory.merge(now, T::KIND, record.bytes(), &authors)? else {
            return Err(PublishError::Outdated);
        };
        self.published.insert(slot.clone(), (record.header().seq, record.id()));
        self.persist(Table::Records, &slot_key(&slot), item.to_bytes());
        self.outputs.push_back(Output::Broadcast(item.to_bytes()));
        self.outputs.push_back(Output::DirectoryChanged(vec![slot]));
        Ok(())
    }

    /// A secret this node drew and signed after [`Output::DrawSecret`].
    pub fn secret_drawn(&mut self, now: Timestamp, secret: &Signed<DiscoverySecret>) -> Verdict {
        self.heard_secret(now, secret.bytes())
    }

    /// The time asked for by [`Self::next_deadline_ms`] has come.
    pub fn deadline_reached(&mut self, now: Timestamp) {
        self.acts.expire_held(now);
        let expired = self.directory.expire(now);
        self.drop_records(expired);
        self.refresh(now, Origin::Outside);
        let due: Vec<Duty> = self
            .duties
            .iter()
            .filter(|(_, due_ms)| **due_ms <= now.monotonic_ms)
            .map(|(duty, _)| *duty)
            .collect();
        for duty in due {
            // Once more in a while, should the shell not have managed.
            self.duties.insert(duty, now.monotonic_ms + DUTY_STEP_MS);
            self.order(duty);
        }
    }

    /// When [`Self::deadline_reached`] is wanted, by the monotonic clock, in milliseconds.
    pub fn next_deadline_ms(&self, now: Timestamp) -> u64 {
        let latest_ms = now.monotonic_ms + DEADLINE_MS_MAX;
        let on_wall = [self.directory.next_expiry_ms(), self.roster.next_lapse_ms()];
        let by_wall = on_wall
            .into_iter()
            .flatten()
            .map(|wall_ms| now.monotonic_ms.saturating_add(wall_ms.saturating_sub(now.wall_ms)));
        by_wall.chain(self.duties.values().copied()).fold(latest_ms, u64::min)
    }

    /// The next order for the shell. Drain after every call that takes `&mut self`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The roster may have changed: tell who came and went, and drop what they wrote.
    fn refresh(&mut self, now: Timestamp, origin: Origin) {
        let roster = self.acts.roster(now.wall_ms);
        let change = difference(&self.roster, &roster);
        self.roster = roster;
        if origin == Origin::Store {
            return;
        }
        if !change.is_empty() {
            self.outputs.push_back(Output::RosterChanged(change));
            let orphaned = self.directory.retain(&RosterAuthors(&self.roster));
            self.drop_records(orphaned);
        }
        self.plan(now);
    }

    fn drop_records(&mut self, slots: Vec<Slot>) {
        if slots.is_empty() {
            return;
        }
        let forget = |slot: &Slot| Output::Forget { table: Table::Records, key: slot_key(slot) };
        self.outputs.extend(slots.iter().map(forget));
        self.outputs.push_back(Output::DirectoryChanged(slots));
    }

    /// Keeps what is planned, drops what is done, orders what is due and plans the rest.
    fn plan(&mut self, now: Timestamp) {
        let planned = std::mem::take(&mut self.duties);
        for (duty, wait_ms) in self.waits() {
            match planned.get(&duty) {
                Some(due_ms) => {
                    self.duties.insert(duty, *due_ms);
                }
                None if wait_ms == 0 => {
                    self.duties.insert(duty, now.monotonic_ms + DUTY_STEP_MS);
                    self.order(duty);
                }
                None => {
                    self.duties.insert(duty, now.monotonic_ms + wait_ms);
                }
            }
        }
    }

    /// Which duties there are, and how long we wait before we do them. The steward who caused one does it at once;
    /// the others wait, the most senior the shortest, so that one of them does it even if the first one fails.
    fn waits(&self) -> BTreeMap<Duty, u64> {
        let stewards = self.roster.stewards();
        let mut waits = BTreeMap::new();
        let Some(place) = stewards.iter().position(|steward| steward.id == self.me).filter(|_| self.running)
        else {
            return waits;
        };
        let turn_ms = DUTY_STEP_MS * (place as u64 + 1);
        let removals = self.acts.removals();
        if self.secret.as_ref().is_none_or(|secret| secret.epoch < removals) {
            let first = self.acts.last_remover().unwrap_or(stewards[0].id);
            waits.insert(Duty::Secret(removals), if first == self.me { 0 } else { turn_ms });
        }
        // Until our own new key is recorded no other act of ours counts, and stewards record their own.
        let unrecorded: Vec<&KeyLog> = self.acts.unrecorded().map(|(log, _)| log).collect();
        if let Some(log) = unrecorded.iter().find(|log| log.member() == self.me) {
            waits.insert(Duty::Rotation(self.me, log.seq()), 0);
            return waits;
        }
        for log in unrecorded {
            let owner = self.roster.member(&log.member());
            if !owner.is_some_and(|owner| owner.is_active_steward()) {
                let wait_ms = DUTY_STEP_MS * place as u64;
                waits.insert(Duty::Rotation(log.member(), log.seq()), wait_ms);
            }
        }
        waits
    }

    fn order(&mut self, duty: Duty) {
        match duty {
            Duty::Secret(_) => self.outputs.push_back(Output::DrawSecret),
            Duty::Rotation(member, _) => {
                let action = self.acts.unrecorded().find(|(log, _)| log.member() == member);
                self.outputs.extend(action.map(|(_, action)| Output::RecordRotation(action)));
            }
        }
    }

    fn persist(&mut self, table: Table, key: &[u8], bytes: Vec<u8>) {
        self.outputs.push_back(Output::Persist { table, key: key.to_vec(), bytes });
    }

    fn persist_genesis(&mut self) {
        let bytes = self.acts.genesis().bytes().to_vec();
        self.persist(Table::Genesis, b"", bytes);
    }

    /// An act by this member, checked, to be signed and handed to [`Self::acted`].
    ///
    /// # Errors
    /// [`ActError`].
    pub fn draft_act(&self, now: Timestamp, action: &Action) -> Result<Act, ActError> {
        self.acts.draft(now, self.me, action)
    }

    /// A discovery secret of 32 random bytes, to be signed and handed to [`Self::secret_drawn`].
    pub fn draft_secret(&self, random: [u8; 32]) -> DiscoverySecret {
        DiscoverySecret {
            epoch: self.acts.removals(),
            secret: ByteArray::new(random),
            author: self.me,
            key_seq: self.key_seq(),
        }
    }

    /// What a new record of ours begins with. `name` as in [`Slot`]; empty for the node record. `greatest` is the
    /// greatest number any of our records ever had, as far as the caller remembers: a clock that is behind must not
    /// make a record older than one that only others still have.
    pub fn stamp<T: Entry>(&self, now: Timestamp, name: &str, life_ms: u64, greatest: u64) -> Stamp {
        let slot = Slot { author: self.me, kind: T::KIND.to_owned(), name: name.to_owned() };
        let last = self.published.get(&slot).map_or(0, |(seq, _)| seq.saturating_add(1));
        Stamp {
            author: self.me,
            key_seq: self.key_seq(),
            seq: self.directory.next_seq(now, &slot).max(last).max(greatest.saturating_add(1)),
            time_ms: now.wall_ms,
            expires_ms: now.wall_ms.saturating_add(life_ms),
        }
    }

    fn key_seq(&self) -> u64 {
        self.acts.key_log(&self.me).map_or(0, KeyLog::seq)
    }

    /// The welcome for a new member that was just admitted.
    pub fn welcome(&self) -> JoinReply {
        JoinReply::new(&self.acts, self.secret.as_ref().map(Signed::bytes))
    }

    /// Names everything held, ascending: the id of each act and record, of the last event of each key log that acts
    /// have not recorded, and the hash of each unknown item. Not hashes of bytes, because one object can be signed
    /// twice in different bytes.
    pub fn inventory(&self) -> Vec<[u8; 32]> {
        let mut names: Vec<[u8; 32]> = self.listed().map(|(name, _)| name).collect();
        names.sort_unstable();
        names
    }

    /// What is not in `known`, in an order in which it can be taken, up to `bytes_max` (at least one longest item).
    /// Ask again for the rest.
    pub fn missing(&self, known: &BTreeSet<[u8; 32]>, bytes_max: usize) -> Vec<Vec<u8>> {
        let mut room = bytes_max.max(ITEM_BYTES_MAX);
        let wanted =
            self.listed().filter(|(name, _)| !known.contains(name)).map(|(_, item)| item.into_bytes());
        let fits = |item: &Vec<u8>| {
            let enough = room.checked_sub(item.len());
            room = enough.unwrap_or(0);
            enough.is_some()
        };
        wanted.take_while(fits).collect()
    }

    fn listed(&self) -> impl Iterator<Item = ([u8; 32], Listed<'_>)> {
        let made = |name: [u8; 32], item: Item| (name, Listed::Made(item));
        let acts = self.acts.in_order().into_iter();
        let acts = acts.map(move |(act, _)| made(*act.id().as_bytes(), Item::new(ACT, act.bytes())));
        let logs = self.acts.unrecorded();
        let logs = logs.filter_map(move |(log, _)| Some(made(last_event(log)?, Item::key_log(log))));
        let records = self.directory.records();
        let records = records
            .map(move |record| made(*record.id().as_bytes(), Item::new(record.kind(), record.bytes())));
        let unknown = self.unknown.iter().map(|(hash, bytes)| (*hash, Listed::Kept(bytes)));
        acts.chain(logs).chain(records).chain(unknown)
    }

    /// The federation.
    pub fn id(&self) -> FederationId {
        self.acts.federation()
    }
    /// This member.
    pub fn me(&self) -> MemberId {
        self.me
    }
    /// The acts.
    pub fn acts(&self) -> &Acts {
        &self.acts
    }
    /// Who is in, as of the last input.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }
    /// What nodes and agents there are.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }
    /// The discovery secret; give its bytes to active members only.
    pub fn secret(&self) -> Option<&Signed<DiscoverySecret>> {
        self.secret.as_ref()
    }
    /// Counts.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Records of this member that its own node has published before, as restored from the store.
    pub fn own_agents(&self) -> impl Iterator<Item = &kos_directory::AgentRecord> {
        self.directory.records().filter(|record| record.header().author == self.me).filter_map(|record| {
            match record.content() {
                Content::Agent(agent, Some(_)) => Some(&**agent),
                _ => None,
            }
        })
    }
}

/// The key of a record in [`Table::Records`].
fn slot_key(slot: &Slot) -> Vec<u8> {
    [slot.author.as_bytes().as_slice(), slot.kind.as_bytes(), &[0], slot.name.as_bytes()].concat()
}

fn last_event(log: &KeyLog) -> Option<[u8; 32]> {
    let last = log.to_list().pop()?;
    let event = Unverified::<KeyEvent>::parse(&last, Scope::Global).map_err(|_: ObjectError| ()).ok()?;
    Some(*event.id().as_bytes())
}

fn difference(old: &Roster, new: &Roster) -> RosterChange {
    let mut change = RosterChange::default();
    for member in new.members() {
        let before = old.member(&member.id);
        let was_active = before.is_some_and(|before| before.is_active());
        match (was_active, member.standing) {
            (false, Standing::Active) => change.admitted.push(member.id),
            (true, Standing::Active) => {
                if before.is_some_and(|before| before.key() != member.key()) {
                    change.rotated.push(member.id);
                }
            }
            (true, Standing::Suspended) => change.suspended.push(member.id),
            (true, Standing::Lapsed | Standing::Left | Standing::Expelled) => change.removed.push(member.id),
            (false, _) => {}
        }
    }
    let vanished = old.active().filter(|member| new.member(&member.id).is_none());
    change.removed.extend(vanished.map(|member| member.id));
    change
}
