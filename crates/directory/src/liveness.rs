//! Who is alive, as far as anybody can tell, and who says so. SPEC §9.15.
//!
//! A member has watchers: a few of those it has a link with, chosen by itself, to whom it sends heartbeats. A watcher
//! that misses them, or anybody who loses its link, says `suspect` in a signed record; the suspect refutes with a newer
//! record of its node; a quorum of accusers that is not refuted in time makes it `down`. So far SWIM (Das, Gupta,
//! Motivala 2002). Who notices that it is itself slow or cut off doubts itself before others (Lifeguard: Dadgar,
//! Phillips, Currey 2018), and how late is late is learned from each subject (RFC 6298).
//!
//! Nothing is claimed that nobody observed: of whom nothing is known the state is `unknown`. Who left is never `down`.

mod watch;

use crate::search::Health;
use kos_protocol::{
    id::{MemberId, sha256},
    limits::{CLOCK_SKEW_MS_MAX, SUSPICIONS_OF_MEMBER_MAX, SUSPICIONS_PER_MINUTE},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};
use watch::Watch;

/// Time between two heartbeats, in milliseconds.
pub const HEARTBEAT_MS: u64 = 2_000;
/// Watchers a member chooses.
pub const WATCHERS: usize = 4;
/// How long a suspicion counts, in milliseconds.
pub const SUSPICION_LIFE_MS: u64 = 24 * 60 * 60 * 1000;
/// How long a quorum of suspicions stands before it counts: the suspect may refute until then.
const REFUTE_MS: u64 = 4_000;
/// How much shorter that is for every accuser above the quorum, down to half.
const REFUTE_LESS_MS: u64 = 500;
/// Shortest time between two refutations, in milliseconds: shorter than any suspicion takes to count, and longer than
/// others take to let the author of a record write the next.
const REFUTE_EVERY_MS: u64 = 1_500;
/// How long after the last link to a member is gone it may come back.
const GRACE_MS: u64 = 2_000;
/// Members who did not watch a suspect and try to reach it.
const PROBERS: usize = 4;
/// An acknowledgement, or a timer, that is later says something about ourselves.
const LATE_MS: u64 = 1_000;
/// Greatest doubt in ourselves: timeouts are multiplied by one more.
const DOUBT_MAX: u64 = 8;
/// Who loses half of at least [`LINKS_LOST_MIN`] links within this time has lost its own network, rather than them.
const LINKS_LOST_WITHIN_MS: u64 = 3_000;
const LINKS_LOST_MIN: usize = 4;
/// What a node, or somebody who is in touch with it, said within this time shows that it is alive. Clocks may differ.
const FRESH_MS: u64 = CLOCK_SKEW_MS_MAX + 2 * 60 * 1000;
/// The time in which `SUSPICIONS_PER_MINUTE` are counted.
const MINUTE_MS: u64 = 60_000;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// These are the active members, this one included.
    Members(Arc<BTreeSet<MemberId>>),
    /// There is a direct link with a member.
    Linked(MemberId),
    /// The last direct link with a member is gone.
    Unlinked(MemberId),
    /// A member chose us as a watcher and is alive.
    Heartbeat {
        /// Who.
        from: MemberId,
        /// When the next one is due, in milliseconds; 0: it chose another watcher.
        period_ms: u64,
    },
    /// A watcher of ours acknowledged a heartbeat.
    Acknowledged {
        /// Milliseconds since it was sent.
        after_ms: u64,
    },
    /// A watcher of ours did not.
    Unacknowledged,
    /// The newest record of a member's node, this one's included.
    Node {
        /// Whose.
        member: MemberId,
        /// Its number.
        seq: u64,
        /// When it was made, in wall milliseconds.
        time_ms: u64,
        /// Whether it says that the node was stopped on purpose.
        left: bool,
    },
    /// A suspicion, verified; the newest one of that accuser.
    Suspicion {
        /// The accuser.
        by: MemberId,
        /// The suspect.
        subject: MemberId,
        /// The number of the node record it is about.
        subject_seq: u64,
        /// When it was said, in wall milliseconds.
        time_ms: u64,
        /// Since when nothing was heard, in wall milliseconds; none: withdrawn, its author is in touch with it again.
        since_ms: Option<u64>,
    },
    /// What came of a probe.
    Probed {
        /// Of whom.
        member: MemberId,
        /// Whether it answered.
        outcome: Reached,
    },
    /// The time of [`Liveness::next_deadline_ms`] has come.
    DeadlineReached,
}

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// It answered.
    Yes,
    /// It did not.
    No,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a heartbeat; say what became of it.
    Heartbeat {
        /// To whom.
        to: MemberId,
    },
    /// Tell a member that it is no watcher of ours any more.
    Release {
        /// Whom.
        to: MemberId,
    },
    /// Try to reach a member; say what came of it.
    Probe(MemberId),
    /// Sign and publish a suspicion of ours; with none in `since_ms` its withdrawal.
    Suspect {
        /// The suspect.
        subject: MemberId,
        /// The number of its newest node record.
        subject_seq: u64,
        /// Since when nothing was heard, in wall milliseconds.
        since_ms: Option<u64>,
    },
    /// We are suspected: publish a newer record of our node, above [`Liveness::accused_seq`].
    Refute,
    /// A member's state changed.
    Changed(MemberId, Health),
}

/// What is known of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its state.
    pub health: Health,
    /// Since when, in wall milliseconds by our clock.
    pub since_ms: u64,
    /// Who observed it: those who are in touch with it, or those who accuse it.
    pub observers: Vec<MemberId>,
}

#[derive(Clone, Debug, Default)]
struct Subject {
    seq: u64,
    left: bool,
    health: Health,
    since_ms: u64,
    is_linked: bool,
    /// It has a link and did not answer on it.
    is_silent: bool,
    watch: Option<Watch>,
    /// When it chose another watcher, by the monotonic clock.
    released_ms: Option<u64>,
    /// Accusers, with the number of the record they accuse and since when they heard nothing.
    suspicions: BTreeMap<MemberId, (u64, u64)>,
    /// The number of the record we probed it for.
    probed_seq: Option<u64>,
    /// When we last heard of it ourselves, in wall milliseconds.
    heard_ms: Option<u64>,
    /// When somebody who had lost it was last in touch with it again, in wall milliseconds.
    seen_ms: Option<u64>,
}

impl Subject {
    /// Whether we have it from itself that it is there.
    fn in_touch(&self) -> bool {
        self.is_linked && !self.is_silent
    }

    /// Those who accuse its newest record.
    fn accusers(&self) -> impl Iterator<Item = &MemberId> {
        self.suspicions.iter().filter(|(_, (seq, _))| *seq >= self.seq).map(|(by, _)| by)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Beat,
    /// Its heartbeat is due.
    Late(MemberId),
    /// Its link did not come back.
    Gone(MemberId),
    /// It had its time to refute.
    Decide(MemberId),
    /// Another refutation of ours may go out.
    Refute,
}

/// The liveness of one federation's members as member `me` sees it.
#[derive(Clone, Debug)]
pub struct Liveness {
    me: MemberId,
    seq: u64,
    /// The greatest number that a suspicion of us was about.
    accused_seq: u64,
    /// When we last refuted, by the monotonic clock.
    refuted_ms: Option<u64>,
    members: Arc<BTreeSet<MemberId>>,
    /// Those of the members of whom something is known.
    subjects: BTreeMap<MemberId, Subject>,
    watchers: BTreeSet<MemberId>,
    linked: usize,
    due: BTreeSet<(u64, Timer)>,
    timers: BTreeMap<Timer, u64>,
    doubt: u64,
    /// Of the heartbeats since the last beat: those acknowledged in time, and the others.
    acknowledged: (u32, u32),
    lost: VecDeque<u64>,
    accused: VecDeque<u64>,
    outputs: VecDeque<Output>,
}

impl Liveness {
    /// A node that knows nobody yet.
    pub fn new(me: MemberId) -> Self {
        Self {
            me,
            seq: 0,
            accused_seq: 0,
            refuted_ms: None,
            members: Arc::default(),
            subjects: BTreeMap::new(),
            watchers: BTreeSet::new(),
            linked: 0,
            due: BTreeSet::new(),
            timers: BTreeMap::new(),
            doubt: 0,
            acknowledged: (0, 0),
            lost: VecDeque::new(),
            accused: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Members(members) => self.set_members(now, members),
            Input::Linked(member) => self.linked(now, member),
            Input::Unlinked(member) => self.unlinked(now, member),
            Input::Heartbeat { from, period_ms } => self.heartbeat(now, from, period_ms),
            Input::Acknowledged { after_ms } if after_ms <= LATE_MS => self.acknowledged.0 += 1,
            Input::Acknowledged { .. } | Input::Unacknowledged => self.acknowledged.1 += 1,
            Input::Node { member, seq, time_ms, left } => self.node(now, member, seq, time_ms, left),
            Input::Suspicion { by, subject, subject_seq, time_ms, since_ms } => {
                self.suspicion(now, by, (subject, subject_seq), time_ms, since_ms);
            }
            Input::Probed { member, outcome: Reached::Yes } => self.alive(now, member),
            Input::Probed { member, outcome: Reached::No } => {
                // Who refuted meanwhile is not to be accused for what was asked before.
                let subject = self.subjects.get(&member);
                let asked_seq = subject.and_then(|subject| subject.probed_seq);
                if asked_seq.is_none_or(|asked_seq| subject.is_some_and(|of| of.seq == asked_seq)) {
                    self.accuse(now, member);
                }
            }
            Input::DeadlineReached => self.deadline_reached(now),
        }
    }

    /// The next order. Drain after every [`Self::handle`].
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::DeadlineReached`] is wanted, by the monotonic clock, in milliseconds.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// What is known of a member; nothing of ourselves and of strangers.
    pub fn observed(&self, member: &MemberId) -> Observed {
        let Some(subject) = self.subjects.get(member) else { return Observed::default() };
        let observers = match subject.health {
            Health::Suspect | Health::Down => subject.accusers().copied().collect(),
            Health::Alive if subject.in_touch() => vec![self.me],
            Health::Alive | Health::Left => vec![*member],
            Health::Unknown => Vec::new(),
        };
        Observed { health: subject.health, since_ms: subject.since_ms, observers }
    }

    /// How much we doubt ourselves, 0 to 8.
    pub fn doubt(&self) -> u64 {
        self.doubt
    }

    /// The greatest number that a suspicion of this member was about: a refutation has a greater one.
    pub fn accused_seq(&self) -> u64 {
        self.accused_seq
    }

    /// The members we send heartbeats to.
    pub fn watchers(&self) -> &BTreeSet<MemberId> {
        &self.watchers
    }

    fn set_members(&mut self, now: Timestamp, members: Arc<BTreeSet<MemberId>>) {
        let gone: Vec<MemberId> =
            self.subjects.keys().filter(|member| !members.contains(*member)).copied().collect();
        for member in gone {
            if self.subjects.remove(&member).is_some_and(|subject| subject.health != Health::Unknown) {
                self.outputs.push_back(Output::Changed(member, Health::Unknown));
            }
            for timer in [Timer::Late(member), Timer::Gone(member), Timer::Decide(member)] {
                self.disarm(timer);
            }
        }
        let accused = self.subjects.iter().filter(|(_, subject)| !subject.suspicions.is_empty());
        let accused: Vec<MemberId> = accused.map(|(member, _)| *member).collect();
        for subject in self.subjects.values_mut() {
            subject.suspicions.retain(|by, _| members.contains(by));
        }
        self.members = members;
        self.choose_watchers(now);
        // What was a quorum may be none any more, and the other way about.
        accused.into_iter().for_each(|member| self.weigh(now, member));
    }

    /// What is known of another member, to be changed.
    fn subject(&mut self, member: MemberId) -> Option<&mut Subject> {
        let is_other = member != self.me && self.members.contains(&member);
        is_other.then(|| self.subjects.entry(member).or_default())
    }

    fn linked(&mut self, now: Timestamp, member: MemberId) {
        let Some(subject) = self.subject(member) else { return };
        subject.is_linked = true;
        subject.is_silent = false;
        self.disarm(Timer::Gone(member));
        self.alive(now, member);
        self.choose_watchers(now);
    }

    fn unlinked(&mut self, now: Timestamp, member: MemberId) {
        let Some(subject) = self.subjects.get_mut(&member).filter(|subject| subject.is_linked) else {
            return;
        };
        subject.is_linked = false;
        subject.watch = None;
        self.disarm(Timer::Late(member));
        self.lost.push_back(now.monotonic_ms);
        self.lost.retain(|at_ms| now.monotonic_ms.saturating_sub(*at_ms) <= LINKS_LOST_WITHIN_MS);
        if self.lost.len() >= LINKS_LOST_MIN && self.lost.len() >= self.linked.div_ceil(2) {
            self.doubt = DOUBT_MAX;
        }
        self.choose_watchers(now);
        self.arm(Timer::Gone(member), now.monotonic_ms + GRACE_MS * (1 + self.doubt));
    }

    /// Heartbeats go to those of our linked members that rank first for us, whoever they are.
    fn choose_watchers(&mut self, now: Timestamp) {
        let linked = self.subjects.iter().filter(|(_, subject)| subject.is_linked);
        let mut ranked: Vec<_> = linked.map(|(member, _)| (rank(&self.me, 0, member), *member)).collect();
        self.linked = ranked.len();
        ranked.sort_unstable();
        let chosen: BTreeSet<MemberId> =
            ranked.into_iter().take(WATCHERS).map(|(_, member)| member).collect();
        let before = std::mem::replace(&mut self.watchers, chosen);
        // Who is not told waits for heartbeats that do not come, and suspects us.
        let still_linked = |member: &&MemberId| self.subjects.get(*member).is_some_and(|of| of.is_linked);
        let released = before.difference(&self.watchers).filter(still_linked);
        self.outputs.extend(released.map(|to| Output::Release { to: *to }));
        if self.watchers.is_empty() {
            self.disarm(Timer::Beat);
        } else if !self.timers.contains_key(&Timer::Beat) {
            // Nodes that start together do not beat together.
            let phase_ms = rank(&self.me, 1, &self.me) % HEARTBEAT_MS;
            self.arm(Timer::Beat, now.monotonic_ms + phase_ms);
        }
    }

    fn heartbeat(&mut self, now: Timestamp, from: MemberId, period_ms: u64) {
        let Some(subject) = self.subject(from) else { return };
        if period_ms == 0 {
            subject.watch = None;
            subject.released_ms = Some(now.monotonic_ms);
            self.disarm(Timer::Late(from));
        } else if subject
            .released_ms
            .is_none_or(|at_ms| now.monotonic_ms.saturating_sub(at_ms) >= HEARTBEAT_MS)
        {
            // One that comes sooner was sent before and overtaken on the way.
            let watch = Watch::heard(subject.watch, now.monotonic_ms, period_ms);
            subject.watch = Some(watch);
            self.arm(Timer::Late(from), now.monotonic_ms + watch.timeout_ms() * (1 + self.doubt));
        }
        self.alive(now, from);
    }

    /// We heard of it ourselves.
    fn alive(&mut self, now: Timestamp, member: MemberId) {
        let me = self.me;
        let Some(subject) = self.subject(member) else { return };
        subject.heard_ms = Some(now.wall_ms);
        subject.is_silent = false;
        let seq = subject.seq;
        if subject.suspicions.remove(&me).is_some() {
            self.outputs.push_back(Output::Suspect { subject: member, subject_seq: seq, since_ms: None });
        }
        // A node on its way out still answers.
        if !self.subjects[&member].left {
            self.set(now, member, Health::Alive);
        }
    }

    fn node(&mut self, now: Timestamp, member: MemberId, seq: u64, time_ms: u64, left: bool) {
        if member == self.me {
            self.seq = self.seq.max(seq);
            return;
        }
        let Some(subject) = self.subject(member).filter(|subject| seq > subject.seq) else {
            return;
        };
        subject.seq = seq;
        subject.left = left;
        subject.suspicions.retain(|_, (of, _)| *of >= seq);
        let is_fresh = now.wall_ms.saturating_sub(time_ms) <= FRESH_MS;
        let is_accused = !subject.suspicions.is_empty();
        let in_touch = subject.in_touch();
        self.disarm(Timer::Decide(member));
        match (left, is_accused) {
            (true, _) => self.set(now, member, Health::Left),
            (false, true) => self.weigh(now, member),
            (false, false) if is_fresh || in_touch => self.set(now, member, Health::Alive),
            (false, false) => self.set(now, member, Health::Unknown),
        }
    }

    fn suspicion(
        &mut self,
        now: Timestamp,
        by: MemberId,
        (subject, subject_seq): (MemberId, u64),
        time_ms: u64,
        since_ms: Option<u64>,
    ) {
        if subject == self.me {
            if since_ms.is_some() && subject_seq >= self.seq {
                self.accused_seq = self.accused_seq.max(subject_seq);
                self.refute(now);
            }
            return;
        }
        if by == subject || by == self.me || !self.members.contains(&by) {
            return;
        }
        let Some(of) = self.subject(subject) else { return };
        match since_ms {
            None => {
                of.suspicions.remove(&by);
                of.seen_ms = of.seen_ms.max(Some(time_ms));
            }
            Some(_) if subject_seq < of.seq => return,
            Some(_)
                if of.suspicions.len() >= SUSPICIONS_OF_MEMBER_MAX && !of.suspicions.contains_key(&by) =>
            {
                return;
            }
            Some(since_ms) => drop(of.suspicions.insert(by, (subject_seq, since_ms))),
        }
        self.probe_if_asked(subject);
        self.weigh(now, subject);
    }

    /// Refutes at once, or as soon as it may: who accuses us without end does not make us talk without end.
    fn refute(&mut self, now: Timestamp) {
        let may_at_ms = self.refuted_ms.map_or(0, |at_ms| at_ms + REFUTE_EVERY_MS);
        if now.monotonic_ms < may_at_ms {
            return self.arm(Timer::Refute, may_at_ms);
        }
        self.refuted_ms = Some(now.monotonic_ms);
        self.outputs.push_back(Output::Refute);
    }

    /// Who has a link with a suspect tries it. So do those without one who rank first for the suspicion, so that a member
    /// with few links finds its quorum too.
    fn probe_if_asked(&mut self, member: MemberId) {
        let subject = &self.subjects[&member];
        let seq = subject.seq;
        let is_watched = subject.watch.is_some();
        if is_watched || subject.left || subject.suspicions.is_empty() || subject.probed_seq == Some(seq) {
            return;
        }
        let is_asked = subject.is_linked || {
            let mine = rank(&member, seq, &self.me);
            let others = self.subjects.iter().filter(|(other, subject)| {
                **other != member && subject.health == Health::Alive && rank(&member, seq, other) < mine
            });
            others.take(PROBERS).count() < PROBERS
        };
        if is_asked && let Some(subject) = self.subjects.get_mut(&member) {
            subject.probed_seq = Some(seq);
            self.outputs.push_back(Output::Probe(member));
        }
    }

    /// What the suspicions of a member amount to.
    fn weigh(&mut self, now: Timestamp, member: MemberId) {
        let quorum = self.quorum();
        let Some(subject) = self.subjects.get(&member) else { return };
        let (health, accusers) = (subject.health, subject.accusers().count());
        let last_ms = subject.heard_ms.max(subject.seen_ms);
        let heard = last_ms.is_some_and(|at_ms| now.wall_ms.saturating_sub(at_ms) <= FRESH_MS);
        // Who is in touch with it knows better, and so does who read that it left.
        if subject.in_touch() || subject.left {
            return self.disarm(Timer::Decide(member));
        }
        if accusers == 0 {
            self.disarm(Timer::Decide(member));
            if matches!(health, Health::Suspect | Health::Down) {
                self.set(now, member, if heard { Health::Alive } else { Health::Unknown });
            }
        } else if accusers < quorum {
            self.disarm(Timer::Decide(member));
            self.set(now, member, Health::Suspect);
        } else if health != Health::Down {
            self.set(now, member, Health::Suspect);
            let less_ms = REFUTE_LESS_MS * (accusers - quorum) as u64;
            let due_ms = now.monotonic_ms + REFUTE_MS.saturating_sub(less_ms).max(REFUTE_MS / 2);
            let armed_ms = self.timers.get(&Timer::Decide(member)).copied();
            self.arm(Timer::Decide(member), armed_ms.map_or(due_ms, |armed_ms| armed_ms.min(due_ms)));
        }
    }

    /// How many accusers it takes. One is enough where nobody else could know.
    fn quorum(&self) -> usize {
        match self.members.len() {
            0..=3 => 1,
            4..=5 => 2,
            _ => 3,
        }
    }

    /// Suspects a member that we lost, unless it left, or it is more likely that we lost everybody.
    fn accuse(&mut self, now: Timestamp, member: MemberId) {
        let may_tell = self.may_accuse(now);
        let alone = !self.subjects.iter().any(|(other, subject)| *other != member && subject.in_touch());
        let me = self.me;
        let Some(subject) = self.subject(member) else { return };
        let is_standing = subject.suspicions.get(&me).is_some_and(|(seq, _)| *seq >= subject.seq);
        if subject.left || is_standing {
            return;
        }
        subject.is_silent = subject.is_linked;
        if alone {
            // It may be us: a suspicion that nobody else hears, and that never becomes more.
            return self.set(now, member, Health::Suspect);
        }
        if !may_tell {
            return;
        }
        let since_ms = subject.heard_ms.unwrap_or(now.wall_ms).min(now.wall_ms);
        let subject_seq = subject.seq;
        subject.suspicions.insert(me, (subject_seq, since_ms));
        self.accused.push_back(now.monotonic_ms);
        self.outputs.push_back(Output::Suspect { subject: member, subject_seq, since_ms: Some(since_ms) });
        self.weigh(now, member);
    }

    fn may_accuse(&mut self, now: Timestamp) -> bool {
        self.accused.retain(|at_ms| now.monotonic_ms.saturating_sub(*at_ms) < MINUTE_MS);
        self.accused.len() < SUSPICIONS_PER_MINUTE
    }

    fn deadline_reached(&mut self, now: Timestamp) {
        while let Some((due_ms, timer)) = self.due.first().copied()
            && due_ms <= now.monotonic_ms
        {
            self.disarm(timer);
            // A timer that is handled late was late for the others, too: what they sent may wait behind it.
            let is_late = now.monotonic_ms - due_ms > LATE_MS;
            if is_late {
                self.doubt = (self.doubt + 1).min(DOUBT_MAX);
            }
            match timer {
                Timer::Beat => self.beat(now),
                Timer::Late(member) | Timer::Gone(member) if is_late => {
                    self.arm(
                        match timer {
                            Timer::Late(_) => Timer::Late(member),
                            _ => Timer::Gone(member),
                        },
                        now.monotonic_ms + GRACE_MS * (1 + self.doubt),
                    );
                }
                Timer::Late(member) => {
                    self.accuse(now, member);
                }
                Timer::Gone(member) => self.accuse(now, member),
                Timer::Decide(member) => self.decide(now, member),
                Timer::Refute if self.accused_seq >= self.seq => self.refute(now),
                Timer::Refute => {}
            }
        }
    }

    fn beat(&mut self, now: Timestamp) {
        match std::mem::take(&mut self.acknowledged) {
            (_, 0) => self.doubt = self.doubt.saturating_sub(1),
            (in_time, late) if late > in_time => self.doubt = (self.doubt + 1).min(DOUBT_MAX),
            _ => {}
        }
        self.outputs.extend(self.watchers.iter().map(|to| Output::Heartbeat { to: *to }));
        self.arm(Timer::Beat, now.monotonic_ms + HEARTBEAT_MS);
    }

    fn decide(&mut self, now: Timestamp, member: MemberId) {
        let quorum = self.quorum();
        let Some(subject) = self.subjects.get(&member) else { return };
        if subject.accusers().count() >= quorum && !subject.in_touch() && !subject.left {
            self.set(now, member, Health::Down);
        }
    }

    fn set(&mut self, now: Timestamp, member: MemberId, health: Health) {
        let Some(subject) = self.subjects.get_mut(&member).filter(|subject| subject.health != health) else {
            return;
        };
        subject.health = health;
        subject.since_ms = now.wall_ms;
        self.outputs.push_back(Output::Changed(member, health));
    }

    fn arm(&mut self, timer: Timer, due_ms: u64) {
        self.disarm(timer);
        self.timers.insert(timer, due_ms);
        self.due.insert((due_ms, timer));
    }

    fn disarm(&mut self, timer: Timer) {
        if let Some(due_ms) = self.timers.remove(&timer) {
            self.due.remove(&(due_ms, timer));
        }
    }
}

/// Rendezvous hashing: the rank of `member` for a purpose of `of`, the same at every node.
fn rank(of: &MemberId, purpose: u64, member: &MemberId) -> u64 {
    let hash = sha256(&[of.as_bytes().as_slice(), &purpose.to_be_bytes(), member.as_bytes()].concat());
    u64::from_be_bytes(*hash.first_chunk().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests;
