//! The state of one federation and what follows from each piece of news.

mod alive;
mod catch_up;
mod records;

use crate::{
    input::{Input, Stored},
    item::{ACT, Item, ItemError, KEY_LOG},
    output::{Output, Refusal, RosterChange, Stats, Table, Verdict, WelcomeError},
};
use kos_directory::{Authors, Directory, Health, Kind, Slot, liveness, reconcile::Set};
use kos_governance::{
    act::{Act, Action, Role},
    acts::{ActError, Acts, Inserted},
    genesis::Genesis,
    join::JoinReply,
    roster::{Roster, Standing},
    secret::DiscoverySecret,
};
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId, ObjectId, sha256},
    key::PublicKey,
    key_log::KeyLog,
    limits::{ITEM_BYTES_MAX, UNKNOWN_ITEMS_MAX},
    object::{Scope, Signed, Unverified},
    time::Timestamp,
};
use serde_bytes::{ByteArray, ByteBuf};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// How long the next steward in line waits before it does a duty that an earlier one has not done, in milliseconds.
const DUTY_STEP_MS: u64 = 30_000;
/// Longest wait between two deadlines, so that a changed wall clock is noticed, in milliseconds.
const DEADLINE_MS_MAX: u64 = 10 * 60 * 1000;

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

    fn is_author(&self, member: &MemberId) -> bool {
        self.0.active_member(member).is_some()
    }
}

/// One federation as member `me` sees it.
#[derive(Clone, Debug)]
pub struct Federation {
    me: MemberId,
    /// Shared by copies until one of them hears of something: a simulation has thousands.
    acts: Arc<Acts>,
    roster: Arc<Roster>,
    directory: Directory,
    liveness: liveness::Liveness,
    secret: Option<Signed<DiscoverySecret>>,
    unknown: BTreeMap<[u8; 32], Vec<u8>>,
    /// What there is, for reconciliation, as long as it is still so.
    set: Option<(u64, Set)>,
    /// Counts what came and went beside records.
    changes: u64,
    /// What this node has published since it started, to notice another node with the same keys.
    published: BTreeMap<Slot, (u64, ObjectId)>,
    /// The greatest number of all that this member's node has signed, as far as it knows.
    signed_seq: u64,
    duties: BTreeMap<Duty, u64>,
    running: bool,
    /// When acts or keys came that the roster does not show yet: it is made anew once for many of them.
    outdated: Option<Timestamp>,
    /// More acts follow at once.
    more_follows: bool,
    outputs: VecDeque<Output>,
    stats: Stats,
}

impl Federation {
    /// The federation of a stored genesis. Then [`Self::restore`] everything else, then [`Self::start`].
    pub fn new(now: Timestamp, genesis: Genesis, me: MemberId) -> Self {
        let acts = Acts::new(genesis);
        let mut federation = Self {
            me,
            roster: Arc::new(acts.roster(now.wall_ms)),
            directory: Directory::new(acts.federation()),
            liveness: liveness::Liveness::new(me),
            acts: Arc::new(acts),
            secret: None,
            unknown: BTreeMap::new(),
            set: None,
            changes: 0,
            published: BTreeMap::new(),
            signed_seq: 0,
            duties: BTreeMap::new(),
            running: false,
            outdated: None,
            more_follows: false,
            outputs: VecDeque::new(),
            stats: Stats::default(),
        };
        federation.tell_members(now);
        federation.directory.set_health(me, Health::Alive);
        federation
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
        federation.refresh();
        if let Some(secret) = &reply.secret {
            federation.handle(now, Input::Secret(secret));
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
        if !matches!(table, Table::Genesis | Table::Acts | Table::KeyLogs) {
            self.refresh();
        }
        match table {
            Table::Genesis => {}
            Table::Secret => drop(self.take_secret(bytes, Origin::Store)?),
            Table::Records => drop(self.restore_record(now, Stored::read(now, bytes)?)?),
            Table::Acts | Table::KeyLogs | Table::Unknown => drop(self.take(now, bytes, Origin::Store)?),
        }
        Ok(())
    }

    /// Tells the greatest number that this node has given a record, before it started: a record of its own that is not
    /// above it is no other machine's.
    pub fn has_signed(&mut self, greatest: u64) {
        self.signed_seq = self.signed_seq.max(greatest);
    }

    /// Everything is restored: from here on duties are done.
    pub fn start(&mut self, now: Timestamp) {
        self.refresh();
        self.running = true;
        self.plan(now);
    }

    /// Takes what happened. Orders that follow wait in [`Self::poll_output`], and something may be wanted at
    /// [`Self::next_deadline_ms`].
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>) -> Verdict {
        if !self.more_follows {
            self.refresh();
        }
        let outcome = match input {
            Input::Heard { from, item } => {
                let outcome = self.take(now, item, Origin::Outside);
                return self.count(from, outcome);
            }
            Input::Gossiped { from, item } => {
                let outcome = self.take_gossiped(now, item);
                return self.count(from, outcome);
            }
            Input::Checked(checked) => {
                let from = checked.from;
                let outcome = self.take_checked(now, checked);
                return self.count(from, outcome);
            }
            Input::Secret(bytes) => {
                let outcome = self.take_secret(bytes, Origin::Outside);
                self.plan(now);
                return match outcome {
                    Err(refusal) => self.count(None, Err(refusal)),
                    taken => taken.unwrap_or(Verdict::Known),
                };
            }
            Input::Acted(act) => self.acted(now, act).map_err(Refusal::from),
            Input::Rotated(log) => self.rotated(now, log),
            Input::Published(published) => self.published(now, &published),
            Input::Liveness(input) => {
                self.feed(now, input);
                Ok(Verdict::Known)
            }
            Input::DeadlineReached => {
                self.deadline_reached(now);
                Ok(Verdict::Known)
            }
        };
        outcome.unwrap_or_else(Verdict::Refused)
    }

    fn count(&mut self, from: Option<MemberId>, outcome: Result<Verdict, Refusal>) -> Verdict {
        let verdict = outcome.unwrap_or_else(Verdict::Refused);
        match &verdict {
            Verdict::New => self.stats.new += 1,
            Verdict::Known => self.stats.known += 1,
            Verdict::Held => self.stats.held += 1,
            Verdict::Refused(refusal) => {
                *self.stats.refused.entry(refusal.label()).or_default() += 1;
                // Only members are heard, so there are no more of these than of them.
                if let Some(from) = from {
                    *self.stats.refused_from.entry(from).or_default().entry(refusal.label()).or_default() +=
                        1;
                }
            }
        }
        verdict
    }

    fn take(&mut self, now: Timestamp, bytes: &[u8], origin: Origin) -> Result<Verdict, Refusal> {
        self.take_item(now, &Item::parse(bytes)?, bytes, origin)
    }

    fn take_item(
        &mut self,
        now: Timestamp,
        item: &Item,
        bytes: &[u8],
        origin: Origin,
    ) -> Result<Verdict, Refusal> {
        match item.kind.as_str() {
            ACT => Ok(self.take_act(now, &item.body, origin)?),
            KEY_LOG => {
                let list: Vec<ByteBuf> =
                    cbor::decode_canonical(&item.body, ITEM_BYTES_MAX).map_err(ItemError::from)?;
                self.take_key_log(now, &KeyLog::parse(&list)?, origin)
            }
            _ if item.is_record() => self.take_record(now, item),
            _ => self.take_unknown(bytes, origin),
        }
    }

    fn take_gossiped(&mut self, now: Timestamp, bytes: &[u8]) -> Result<Verdict, Refusal> {
        let item = Item::parse(bytes)?;
        if Kind::parse(&item.kind).is_some_and(|kind| !kind.is_global()) {
            return Err(Refusal::NotGossip);
        }
        self.take_item(now, &item, bytes, Origin::Outside)
    }

    fn take_act(&mut self, now: Timestamp, bytes: &[u8], origin: Origin) -> Result<Verdict, ActError> {
        // What was taken once is not refused because the clock was set back since.
        let judged_at = match origin {
            Origin::Outside => now,
            Origin::Store => Timestamp { wall_ms: u64::MAX, ..now },
        };
        let placed = match Arc::make_mut(&mut self.acts).insert(judged_at, bytes)? {
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
        self.changes += 1;
        self.outdate(now);
        Ok(Verdict::New)
    }

    fn take_key_log(&mut self, now: Timestamp, log: &KeyLog, origin: Origin) -> Result<Verdict, Refusal> {
        if !Arc::make_mut(&mut self.acts).learn_key_log(log)? {
            return Ok(Verdict::Known);
        }
        if origin == Origin::Outside {
            self.persist(Table::KeyLogs, log.member().as_bytes(), Item::key_log(log).to_bytes());
        }
        self.changes += 1;
        self.outdate(now);
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
        self.changes += 1;
        if origin == Origin::Outside {
            self.persist(Table::Unknown, &hash, bytes.to_vec());
        }
        Ok(Verdict::New)
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

    fn acted(&mut self, now: Timestamp, act: &Signed<Act>) -> Result<Verdict, ActError> {
        let verdict = self.take_act(now, act.bytes(), Origin::Outside)?;
        if verdict == Verdict::New {
            self.outputs.push_back(Output::Broadcast(Item::new(ACT, act.bytes()).to_bytes()));
        }
        Ok(verdict)
    }

    fn rotated(&mut self, now: Timestamp, log: &KeyLog) -> Result<Verdict, Refusal> {
        let verdict = self.take_key_log(now, log, Origin::Outside)?;
        if verdict == Verdict::New {
            self.outputs.push_back(Output::Broadcast(Item::key_log(log).to_bytes()));
        }
        Ok(verdict)
    }

    fn deadline_reached(&mut self, now: Timestamp) {
        Arc::make_mut(&mut self.acts).expire_held(now);
        let expired = self.directory.expire(now);
        self.drop_records(now, expired);
        if self.roster.next_lapse_ms().is_some_and(|lapse_ms| lapse_ms <= now.wall_ms) {
            self.outdate(now);
        } else {
            self.plan(now);
        }
        self.feed(now, liveness::Input::DeadlineReached);
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

    /// When [`Input::DeadlineReached`] is wanted, by the monotonic clock, in milliseconds.
    pub fn next_deadline_ms(&self, now: Timestamp) -> u64 {
        let latest_ms = now.monotonic_ms + DEADLINE_MS_MAX;
        let on_wall = [self.directory.next_expiry_ms(), self.roster.next_lapse_ms()];
        let by_wall = on_wall
            .into_iter()
            .flatten()
            .map(|wall_ms| now.monotonic_ms.saturating_add(wall_ms.saturating_sub(now.wall_ms)));
        by_wall
            .chain(self.duties.values().copied())
            .chain(self.liveness.next_deadline_ms())
            .fold(latest_ms, u64::min)
    }

    /// The next order for the shell. Drain after every call that takes `&mut self`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.refresh();
        self.outputs.pop_front()
    }

    /// The roster may have changed.
    fn outdate(&mut self, now: Timestamp) {
        self.outdated = Some(now);
        if self.running && !self.more_follows {
            self.refresh();
        }
    }

    /// Makes the roster anew if it may have changed; tells who came and went, and drops what they wrote.
    fn refresh(&mut self) {
        let Some(now) = self.outdated.take() else { return };
        let roster = self.acts.roster(now.wall_ms);
        let change = difference(&self.roster, &roster);
        self.roster = Arc::new(roster);
        if !change.is_empty() {
            self.tell_members(now);
            let gone: Vec<MemberId> =
                change.removed.iter().chain(&change.suspended).chain(&change.rotated).copied().collect();
            if self.running {
                self.outputs.push_back(Output::RosterChanged(change));
            }
            let orphaned = self.directory.retain(&RosterAuthors(&self.roster), &gone);
            self.drop_records(now, orphaned);
        }
        if self.running {
            self.plan(now);
        }
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

    /// An act by this member, checked, to be signed and handed in as [`Input::Acted`].
    ///
    /// # Errors
    /// [`ActError`].
    pub fn draft_act(&self, now: Timestamp, action: &Action) -> Result<Act, ActError> {
        self.acts.draft(now, self.me, action)
    }

    /// A discovery secret of 32 random bytes, to be signed and handed in as [`Input::Secret`].
    pub fn draft_secret(&self, random: [u8; 32]) -> DiscoverySecret {
        DiscoverySecret {
            epoch: self.acts.removals(),
            secret: ByteArray::new(random),
            author: self.me,
            key_seq: self.key_seq(),
        }
    }

    fn key_seq(&self) -> u64 {
        self.acts.key_log(&self.me).map_or(0, KeyLog::seq)
    }

    /// The welcome for a new member that was just admitted.
    pub fn welcome(&self) -> JoinReply {
        JoinReply::new(&self.acts, self.secret.as_ref().map(Signed::bytes))
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
    /// The discovery secret; give its bytes to active members only.
    pub fn secret(&self) -> Option<&Signed<DiscoverySecret>> {
        self.secret.as_ref()
    }
    /// Counts.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
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
