//! Whole engines under faults, and rules checked at every step. SPEC §9.11 to §9.15.
//!
//! Each node has an engine, a store that a crash may leave unsynced, links with some others and a clock of its own.
//! Gossip goes through the model of [`crate::gossip`], heartbeats and probes as messages, catch-up as one exchange.

use crate::{
    check,
    gossip::{Params, Router, Rpc, Send, wire_bytes},
    latency::Latency,
    people::{Person, T0_MS, node_record},
    queue::Queue,
    random::Random,
    scenario::{Fault, Misdeed, Scenario},
};
use kos_directory::{
    Health, Kind, NodeRecord, Slot,
    liveness::{HEARTBEAT_MS, Input as Liveness, Reached},
    reconcile::{Initiator, respond},
};
use kos_engine::{
    Federation, Input, Item, Output, Stamp, Table, Verdict,
    item::{Packed, unpack},
};
use kos_governance::{
    act::Role,
    genesis::{Charter, Constitution, Founder, Genesis, HOUSEHOLD, VERSION},
};
use kos_protocol::{
    id::{MemberId, sha256},
    limits::FETCH_BYTES_MAX,
    object::{Scope, Signed},
    time::Timestamp,
};
use serde::Serialize;
use serde_bytes::ByteArray;
use std::collections::{BTreeMap, BTreeSet};

const S_US: u64 = 1_000_000;
/// A link whose other end is silent is given up after this time: QUIC's idle timeout.
const IDLE_US: u64 = 10 * S_US;
/// A redial that can succeed does within this time.
const REDIAL_US: u64 = 2 * S_US;
/// Between two catch-ups with some neighbour.
const CATCH_UP_US: u64 = 60 * S_US;
/// Gossip flows over a new link after this time; then it is caught up over once more.
const GOSSIP_FLOWS_US: u64 = 4 * S_US;
/// A probe that is not answered.
const PROBE_US: u64 = 2 * S_US;
/// Bytes of a heartbeat and its answer on the wire, packets and acknowledgements included.
const HEARTBEAT_BYTES: u64 = 310;
/// Rows a crash may lose are those written in this time before it.
const UNSYNCED_US: u64 = S_US / 2;

/// What came out of a scenario.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// Events that happened.
    pub events: u64,
    /// Records published by those who keep to the rules.
    pub published: usize,
    /// Longest time from a crash until all others took the node for down, in milliseconds.
    pub down_ms: Option<u64>,
    /// Time from the end of faults until all nodes agreed, in milliseconds.
    pub settled_ms: u64,
    /// Bytes a node received in gossip, catch-up and heartbeats, a second, on average.
    pub received_bytes_per_s: u64,
}

/// A rule that did not hold, and when.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{rule}: {what} (node {node}, {at_ms} ms; replay: cargo run --release -p kos-simulations -- scenario {scenario} --seed {seed})"
)]
pub struct Violation {
    /// The rule.
    pub rule: &'static str,
    /// How.
    pub what: String,
    /// At which node.
    pub node: usize,
    /// When, in milliseconds.
    pub at_ms: u64,
    /// In which scenario.
    pub scenario: String,
    /// With which seed.
    pub seed: u64,
}

#[derive(Clone, Debug)]
enum Payload {
    Gossip(Rpc),
    Alive { period_ms: u64 },
    Acknowledged { sent_us: u64 },
}

#[derive(Clone, Debug)]
enum Event {
    Arrive { to: usize, from: usize, payload: Payload },
    Unacknowledged(usize),
    Probed { node: usize, subject: usize },
    GossipHeartbeat(usize),
    Deadline(usize),
    LinkUp { node: usize, peer: usize },
    LinkLost { node: usize, peer: usize },
    CatchUp { node: usize, peer: usize },
    CatchUpRound(usize),
    Publish,
    Down(usize),
    Back(usize),
    Stop(usize),
    ChurnOne { away_us: u64 },
    Cut(Option<Cut>),
    Slow { node: usize, lag_us: u64 },
    Misdeed { node: usize, how: Misdeed, until_us: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Halves { first: usize },
    HearsHalf { node: usize },
}

impl Cut {
    fn stops(self, from: usize, to: usize, nodes: usize) -> bool {
        match self {
            Self::Halves { first } => (from < first) != (to < first),
            Self::HearsHalf { node } => to == node && from >= nodes / 2 && from != node,
        }
    }
}

struct Node {
    person: Person,
    engine: Option<Federation>,
    store: BTreeMap<(Table, Vec<u8>), (u64, Vec<u8>)>,
    router: Router,
    linked: BTreeSet<usize>,
    /// The greatest number any of its records had: the one counter that a crash does not lose.
    greatest: u64,
    ahead_ms: i64,
    lag_us: u64,
    misdeed: Option<Misdeed>,
    seqs: BTreeMap<Slot, u64>,
    received_bytes: u64,
    started_us: u64,
    crashed_us: Option<u64>,
    stopped: bool,
}

/// A network of engines.
pub struct World<'a> {
    scenario: &'a Scenario,
    seed: u64,
    random: Random,
    queue: Queue<Event>,
    genesis: Genesis,
    nodes: Vec<Node>,
    /// Who is to be linked with whom.
    topology: Vec<BTreeSet<usize>>,
    messages: Vec<Vec<u8>>,
    numbers: BTreeMap<[u8; 32], u32>,
    by_member: BTreeMap<MemberId, usize>,
    params: Params,
    latency: Latency,
    cut: Option<Cut>,
    published: BTreeMap<Slot, u64>,
    downs: BTreeMap<usize, BTreeSet<usize>>,
    down_us: Option<u64>,
    /// Crashes that everybody noticed.
    noticed: BTreeSet<(usize, u64)>,
    events: u64,
}

/// Runs a scenario.
///
/// # Errors
/// The first rule that does not hold.
pub fn run(scenario: &Scenario, seed: u64) -> Result<Outcome, Violation> {
    let mut world = World::new(scenario, seed);
    world.begin()?;
    let end_us = scenario.run_s * S_US;
    world.run_until(end_us)?;
    let limit_us = end_us + scenario.settle_s * S_US;
    let mut unsettled = world.unsettled();
    while let Some((node, (rule, what))) = unsettled {
        let now_us = world.queue.now_us();
        if now_us >= limit_us {
            return Err(world.violation(node, (rule, what)));
        }
        world.run_until((now_us + S_US).min(limit_us))?;
        unsettled = world.unsettled();
    }
    Ok(world.outcome(end_us))
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> Self {
        let people: Vec<Person> = (0..scenario.nodes).map(Person::numbered).collect();
        let founder = |(number, person): (usize, &Person)| Founder {
            member: person.id(),
            role: if number == 0 { Role::Steward } else { Role::Member },
            weight: 1,
            name: format!("node-{number}"),
            key_log: person.log.to_list(),
        };
        let genesis = Genesis::new(Charter {
            v: VERSION,
            nonce: ByteArray::new([7; 32]),
            name: "simulated".to_owned(),
            profile: HOUSEHOLD.to_owned(),
            constitution: Constitution::household(),
            roster: people.iter().enumerate().map(founder).collect(),
            council: Vec::new(),
            witnesses: Vec::new(),
        });
        let genesis = genesis.expect("founders with key logs and a steward among them");
        let by_member = people.iter().enumerate().map(|(number, person)| (person.id(), number)).collect();
        let now = Timestamp { monotonic_ms: 0, wall_ms: T0_MS };
        let node = |person: Person| Node {
            engine: Some(Federation::found(now, genesis.clone(), person.id())),
            person,
            store: BTreeMap::new(),
            router: Router::default(),
            linked: BTreeSet::new(),
            greatest: 0,
            ahead_ms: 0,
            lag_us: 0,
            misdeed: None,
            seqs: BTreeMap::new(),
            received_bytes: 0,
            started_us: 0,
            crashed_us: None,
            stopped: false,
        };
        Self {
            scenario,
            seed,
            random: Random::seeded(seed),
            queue: Queue::default(),
            nodes: people.into_iter().map(node).collect(),
            genesis,
            topology: vec![BTreeSet::new(); scenario.nodes],
            messages: Vec::new(),
            numbers: BTreeMap::new(),
            by_member,
            params: Params::default(),
            latency: Latency::Internet { percent: 100 },
            cut: None,
            published: BTreeMap::new(),
            downs: BTreeMap::new(),
            down_us: None,
            noticed: BTreeSet::new(),
            events: 0,
        }
    }

    /// Links, first records, and the faults to come.
    fn begin(&mut self) -> Result<(), Violation> {
        let count = self.nodes.len();
        for node in 0..count {
            // A ring, so that the network is one, and some others.
            self.topology[node].insert((node + 1) % count);
            self.topology[(node + 1) % count].insert(node);
            while self.topology[node].len() < self.scenario.links.min(count - 1) {
                let other = self.random.index(count);
                if other != node {
                    self.topology[node].insert(other);
                    self.topology[other].insert(node);
                }
            }
        }
        for fault in &self.scenario.fault {
            self.plan(fault);
        }
        for node in 0..count {
            self.start(node)?;
            let phase_us = self.random.below(CATCH_UP_US);
            self.queue.after(phase_us, Event::CatchUpRound(node));
        }
        if self.scenario.publish_every_s.is_some() {
            self.queue.after(5 * S_US, Event::Publish);
        }
        Ok(())
    }

    fn plan(&mut self, fault: &Fault) {
        let cut = |world: &mut Self, from_s: u64, until_s: u64, cut| {
            world.queue.at(from_s * S_US, Event::Cut(Some(cut)));
            world.queue.at(until_s * S_US, Event::Cut(None));
        };
        match *fault {
            Fault::Partition { from_s, until_s, first } => cut(self, from_s, until_s, Cut::Halves { first }),
            Fault::HalfCut { from_s, until_s, node } => cut(self, from_s, until_s, Cut::HearsHalf { node }),
            Fault::Crash { at_s, until_s, node } => {
                self.queue.at(at_s * S_US, Event::Down(node));
                self.queue.at(until_s * S_US, Event::Back(node));
            }
            Fault::Stop { at_s, until_s, node } => {
                self.queue.at(at_s * S_US, Event::Stop(node));
                self.queue.at(until_s * S_US, Event::Back(node));
            }
            Fault::Churn { from_s, until_s, every_s, away_s } => {
                for at_s in (from_s..until_s).step_by(every_s.max(1) as usize) {
                    self.queue.at(at_s * S_US, Event::ChurnOne { away_us: away_s * S_US });
                }
            }
            Fault::Slow { from_s, until_s, node, lag_ms } => {
                self.queue.at(from_s * S_US, Event::Slow { node, lag_us: lag_ms * 1_000 });
                self.queue.at(until_s * S_US, Event::Slow { node, lag_us: 0 });
            }
            Fault::Skew { node, ahead_ms } => self.nodes[node].ahead_ms = ahead_ms,
            Fault::Byzantine { from_s, until_s, node, how } => {
                self.queue.at(from_s * S_US, Event::Misdeed { node, how, until_us: until_s * S_US });
            }
        }
    }

    fn now(&self, node: usize) -> Timestamp {
        let ms = self.queue.now_us() / 1_000;
        let wall_ms = (T0_MS + ms).saturating_add_signed(self.nodes[node].ahead_ms);
        Timestamp { monotonic_ms: ms, wall_ms }
    }

    fn violation(&self, node: usize, (rule, what): check::Broken) -> Violation {
        let at_ms = self.queue.now_us() / 1_000;
        Violation { rule, what, node, at_ms, scenario: self.scenario.name.clone(), seed: self.seed }
    }

    fn is_honest(&self, node: usize) -> bool {
        !self.scenario.byzantine().any(|other| other == node)
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        let is_up = |node: usize| self.nodes[node].engine.is_some();
        is_up(from) && is_up(to) && !self.cut.is_some_and(|cut| cut.stops(from, to, self.nodes.len()))
    }

    fn run_until(&mut self, until_us: u64) -> Result<(), Violation> {
        while let Some(event) = self.queue.next(until_us) {
            self.events += 1;
            self.happen(event)?;
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Arrive { to, from, payload } => return self.arrive(to, from, payload),
            Event::Unacknowledged(node) => return self.live(node, Liveness::Unacknowledged),
            Event::Probed { node, subject } => {
                let answers = self.reaches(node, subject) && self.reaches(subject, node);
                let outcome = if answers { Reached::Yes } else { Reached::No };
                let member = self.nodes[subject].person.id();
                return self.live(node, Liveness::Probed { member, outcome });
            }
            Event::GossipHeartbeat(node) => {
                if self.nodes[node].engine.is_some() {
                    let sends = self.nodes[node].router.heartbeat(&self.params, &mut self.random);
                    self.send(node, sends);
                    self.queue.after(self.params.heartbeat_us, Event::GossipHeartbeat(node));
                }
            }
            Event::Deadline(node) => return self.deadline(node),
            Event::LinkUp { node, peer } => return self.link_up(node, peer),
            Event::LinkLost { node, peer } => return self.link_lost(node, peer),
            Event::CatchUp { node, peer } => return self.catch_up(node, peer),
            Event::CatchUpRound(node) => {
                let linked: Vec<usize> = self.nodes[node].linked.iter().copied().collect();
                if !linked.is_empty() {
                    let peer = linked[self.random.index(linked.len())];
                    self.catch_up(node, peer)?;
                }
                self.queue.after(CATCH_UP_US, Event::CatchUpRound(node));
            }
            Event::Publish => {
                let node = self.random.index(self.nodes.len());
                if self.is_honest(node) && self.nodes[node].engine.is_some() && !self.nodes[node].stopped {
                    self.publish_node(node, Presence::Here)?;
                }
                let every_us = self.scenario.publish_every_s.unwrap_or(u64::MAX / S_US) * S_US;
                if self.queue.now_us() + every_us < self.scenario.run_s * S_US {
                    self.queue.after(every_us, Event::Publish);
                }
            }
            Event::Down(node) => self.crash(node),
            Event::Back(node) => return self.come_back(node),
            Event::Stop(node) => {
                self.publish_node(node, Presence::Leaving)?;
                self.nodes[node].stopped = true;
                // What was sent is on its way; links are closed, not timed out.
                self.go(node, S_US / 5);
            }
            Event::ChurnOne { away_us } => {
                let node = self.random.index(self.nodes.len());
                if self.is_honest(node) && self.nodes[node].engine.is_some() {
                    self.crash(node);
                    self.queue.after(away_us, Event::Back(node));
                }
            }
            Event::Cut(cut) => self.set_cut(cut),
            Event::Slow { node, lag_us } => self.nodes[node].lag_us = lag_us,
            Event::Misdeed { node, how, until_us } => return self.do_wrong(node, how, until_us),
        }
        Ok(())
    }

    /// A process comes up: its engine runs, it publishes its node, and links are made.
    fn start(&mut self, node: usize) -> Result<(), Violation> {
        self.nodes[node].stopped = false;
        self.settle(node)?;
        self.publish_node(node, Presence::Here)?;
        let phase_us = self.random.below(self.params.heartbeat_us);
        self.queue.after(phase_us, Event::GossipHeartbeat(node));
        for peer in self.topology[node].clone() {
            self.relink(node, peer);
        }
        Ok(())
    }

    fn relink(&mut self, node: usize, peer: usize) {
        let delay_us = 200_000 + self.random.below(REDIAL_US);
        self.queue.after(delay_us, Event::LinkUp { node, peer });
        self.queue.after(delay_us, Event::LinkUp { node: peer, peer: node });
    }

    fn link_up(&mut self, node: usize, peer: usize) -> Result<(), Violation> {
        if !self.reaches(node, peer) || !self.reaches(peer, node) || !self.nodes[node].linked.insert(peer) {
            return Ok(());
        }
        self.nodes[node].router.link(peer);
        for delay_us in [100_000, GOSSIP_FLOWS_US] {
            self.queue.after(delay_us, Event::CatchUp { node, peer });
        }
        let member = self.nodes[peer].person.id();
        self.live(node, Liveness::Linked(member))
    }

    fn link_lost(&mut self, node: usize, peer: usize) -> Result<(), Violation> {
        // The link may be a new one by now.
        let is_back = self.reaches(node, peer) && self.reaches(peer, node);
        if is_back || !self.nodes[node].linked.remove(&peer) {
            return Ok(());
        }
        self.nodes[node].router.unlink(peer);
        let member = self.nodes[peer].person.id();
        self.live(node, Liveness::Unlinked(member))
    }

    fn set_cut(&mut self, cut: Option<Cut>) {
        self.cut = cut;
        for node in 0..self.nodes.len() {
            for peer in self.topology[node].clone() {
                let there = self.reaches(node, peer) && self.reaches(peer, node);
                if there && !self.nodes[node].linked.contains(&peer) {
                    self.relink(node, peer);
                } else if !there {
                    let delay_us = IDLE_US - self.random.below(S_US);
                    self.queue.after(delay_us, Event::LinkLost { node, peer });
                }
            }
        }
    }

    fn crash(&mut self, node: usize) {
        let now_us = self.queue.now_us();
        self.nodes[node].crashed_us = Some(now_us);
        // What can be rebuilt is written without waiting; the rest was synced.
        let lost = |(table, _): &(Table, Vec<u8>), at_us: u64| {
            matches!(table, Table::Records | Table::Unknown) && now_us - at_us < UNSYNCED_US
        };
        self.nodes[node].store.retain(|key, (at_us, _)| !lost(key, *at_us));
        self.go(node, IDLE_US);
    }

    fn go(&mut self, node: usize, noticed_us: u64) {
        self.nodes[node].engine = None;
        self.nodes[node].router = Router::default();
        self.nodes[node].linked.clear();
        for peer in self.topology[node].clone() {
            let delay_us = noticed_us - self.random.below(noticed_us / 10);
            self.queue.after(delay_us, Event::LinkLost { node: peer, peer: node });
        }
    }

    fn come_back(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].engine.is_some() {
            return Ok(());
        }
        if let (Some(crashed_us), Some(limit_s)) = (self.nodes[node].crashed_us, self.scenario.down_within_s)
        {
            let away_us = self.queue.now_us() - crashed_us;
            if away_us > limit_s * S_US && !self.noticed.contains(&(node, crashed_us)) {
                let what = format!("node {node} was away for {} ms", away_us / 1_000);
                return Err(self.violation(node, ("§9.15 the dead are noticed", what)));
            }
        }
        let now = self.now(node);
        let mut engine = Federation::new(now, self.genesis.clone(), self.nodes[node].person.id());
        for ((table, _), (_, bytes)) in &self.nodes[node].store {
            // Records that are over by now are refused.
            let _ = engine.restore(now, *table, bytes);
        }
        engine.start(now);
        self.nodes[node].engine = Some(engine);
        self.nodes[node].crashed_us = None;
        self.nodes[node].started_us = self.queue.now_us();
        self.nodes[node].seqs.clear();
        self.downs.remove(&node);
        self.start(node)
    }

    /// Hands something in and does what is ordered.
    fn handle(&mut self, node: usize, input: Input<'_>) -> Result<Option<Verdict>, Violation> {
        let now = self.now(node);
        let Some(engine) = &mut self.nodes[node].engine else { return Ok(None) };
        let verdict = engine.handle(now, input);
        self.settle(node)?;
        Ok(Some(verdict))
    }

    fn live(&mut self, node: usize, input: Liveness) -> Result<(), Violation> {
        self.handle(node, Input::Liveness(input)).map(drop)
    }

    fn deadline(&mut self, node: usize) -> Result<(), Violation> {
        let now = self.now(node);
        let due = self.nodes[node].engine.as_ref().map(|engine| engine.next_deadline_ms(now));
        if due.is_some_and(|due_ms| due_ms <= now.monotonic_ms) {
            self.handle(node, Input::DeadlineReached)?;
        }
        Ok(())
    }

    fn settle(&mut self, node: usize) -> Result<(), Violation> {
        while let Some(output) = self.nodes[node].engine.as_mut().and_then(Federation::poll_output) {
            self.carry_out(node, output)?;
        }
        let now = self.now(node);
        if let Some(engine) = &self.nodes[node].engine {
            let wait_ms = engine.next_deadline_ms(now).saturating_sub(now.monotonic_ms);
            let lag_us = self.lag(node);
            // To the millisecond above, or it would come too early by a part of one.
            self.queue.after((wait_ms + 1) * 1_000 + lag_us, Event::Deadline(node));
        }
        Ok(())
    }

    fn lag(&mut self, node: usize) -> u64 {
        let lag_us = self.nodes[node].lag_us;
        if lag_us == 0 { 0 } else { self.random.below(lag_us) }
    }

    fn carry_out(&mut self, node: usize, output: Output) -> Result<(), Violation> {
        let now_us = self.queue.now_us();
        match output {
            Output::Persist { table, key, bytes } => {
                self.nodes[node].store.insert((table, key), (now_us, bytes));
            }
            Output::Forget { table, key } => drop(self.nodes[node].store.remove(&(table, key))),
            Output::Broadcast(item) => self.gossip(node, item),
            Output::DirectoryChanged(slots) if self.is_honest(node) => {
                let now = self.now(node);
                let Node { engine, seqs, .. } = &mut self.nodes[node];
                let checked = engine.as_ref().map(|engine| check::records(engine, now, &slots, seqs));
                checked.unwrap_or(Ok(())).map_err(|broken| self.violation(node, broken))?;
            }
            Output::HealthChanged(member) => self.health_changed(node, &member)?,
            Output::Heartbeat(to) => {
                let to = self.by_member[&to];
                if self.reaches(node, to) {
                    self.transmit(node, to, HEARTBEAT_BYTES / 2, Payload::Alive { period_ms: HEARTBEAT_MS });
                }
                if !self.reaches(node, to) || !self.reaches(to, node) {
                    self.queue.after(HEARTBEAT_MS * 1_000, Event::Unacknowledged(node));
                }
            }
            Output::Release(to) => {
                let to = self.by_member[&to];
                if self.reaches(node, to) {
                    self.transmit(node, to, HEARTBEAT_BYTES / 2, Payload::Alive { period_ms: 0 });
                }
            }
            Output::Probe(member) => {
                let subject = self.by_member[&member];
                self.queue.after(PROBE_US, Event::Probed { node, subject });
            }
            Output::Suspect { subject, subject_seq, since_ms } => {
                return self.publish_suspicion(node, subject, subject_seq, since_ms);
            }
            Output::Refute => return self.publish_node(node, Presence::Here),
            Output::DrawSecret => {
                let engine = self.nodes[node].engine.as_ref().expect("it has just ordered something");
                let draft = engine.draft_secret([3; 32]);
                let scope = Scope::Federation(engine.id());
                let secret = Signed::sign(draft, scope, &self.nodes[node].person.key);
                let secret = secret.expect("a secret is below the limit of an object");
                self.handle(node, Input::Secret(secret.bytes()))?;
            }
            Output::SeenMyself(slot) if self.is_honest(node) => {
                let what = format!("{slot:?}, and there is no other node with these keys");
                return Err(self.violation(node, ("§9.11 numbers are not used twice", what)));
            }
            Output::SeenMyself(_)
            | Output::DirectoryChanged(_)
            | Output::RosterChanged(_)
            | Output::SecretChanged
            | Output::RecordRotation(_) => {}
        }
        Ok(())
    }

    fn health_changed(&mut self, node: usize, member: &MemberId) -> Result<(), Violation> {
        let Some(engine) = &self.nodes[node].engine else { return Ok(()) };
        check::health(engine, member).map_err(|broken| self.violation(node, broken))?;
        let is_down = engine.liveness().observed(member).health == Health::Down;
        let subject = self.by_member[member];
        let seen = self.downs.entry(subject).or_default();
        if !is_down {
            seen.remove(&node);
            return Ok(());
        }
        seen.insert(node);
        let is_up = self.nodes[subject].engine.is_some() && self.nodes[node].engine.is_some();
        if self.scenario.nobody_wronged && is_up {
            let what = format!("node {subject} is up");
            return Err(self.violation(node, ("§9.15 nobody is down who answers", what)));
        }
        let Some(crashed_us) = self.nodes[subject].crashed_us else { return Ok(()) };
        // Who came up since has seen nothing of it itself.
        let saw_it = |(_, other): &(usize, &Node)| other.engine.is_some() && other.started_us <= crashed_us;
        let all_know = self.nodes.iter().enumerate().filter(saw_it).all(|(other, _)| seen.contains(&other));
        if all_know && self.noticed.insert((subject, crashed_us)) {
            let took_us = self.queue.now_us() - crashed_us;
            self.down_us = self.down_us.max(Some(took_us));
            if self.scenario.down_within_s.is_some_and(|limit_s| took_us > limit_s * S_US) {
                let what = format!("node {subject} was down at all others after {} ms", took_us / 1_000);
                return Err(self.violation(node, ("§9.15 the dead are noticed", what)));
            }
        }
        Ok(())
    }

    fn publish_node(&mut self, node: usize, presence: Presence) -> Result<(), Violation> {
        let now = self.now(node);
        let greatest = self.nodes[node].greatest;
        let Some(engine) = &self.nodes[node].engine else { return Ok(()) };
        let Stamp { seq, time_ms, .. } = engine.stamp::<NodeRecord>(now, "", 0, greatest);
        let left = presence == Presence::Leaving;
        let record = node_record(&self.nodes[node].person, engine.id(), seq, time_ms, 400, left);
        self.nodes[node].greatest = seq;
        let slot = Slot::only(self.nodes[node].person.id(), Kind::Node);
        self.handle(node, Input::Published((&record).into()))?;
        if self.is_honest(node) {
            self.published.insert(slot, seq);
        }
        Ok(())
    }

    fn publish_suspicion(
        &mut self,
        node: usize,
        subject: MemberId,
        subject_seq: u64,
        since_ms: Option<u64>,
    ) -> Result<(), Violation> {
        let now = self.now(node);
        let greatest = self.nodes[node].greatest;
        let Some(engine) = &self.nodes[node].engine else { return Ok(()) };
        let record = engine.draft_suspicion(now, (subject, subject_seq), since_ms, greatest);
        let seq = record.seq;
        let scope = Scope::Federation(engine.id());
        let record = Signed::sign(record, scope, &self.nodes[node].person.key);
        let record = record.expect("a suspicion is below the limit of a record");
        self.nodes[node].greatest = seq;
        self.handle(node, Input::Published((&record).into())).map(drop)
    }

    fn number(&mut self, item: Vec<u8>) -> u32 {
        let next = self.messages.len() as u32;
        let number = *self.numbers.entry(sha256(&item)).or_insert(next);
        if number == next {
            self.messages.push(item);
        }
        number
    }

    fn gossip(&mut self, node: usize, item: Vec<u8>) {
        let number = self.number(item);
        let sends = self.nodes[node].router.publish(number);
        self.send(node, sends);
    }

    fn send(&mut self, from: usize, sends: Vec<Send>) {
        for Send { to, rpc } in sends {
            let is_withheld = self.nodes[from].misdeed == Some(Misdeed::Withhold);
            if !self.reaches(from, to) || is_withheld && matches!(rpc, Rpc::Message(_) | Rpc::IHave(_)) {
                continue;
            }
            let messages = &self.messages;
            let bytes = wire_bytes(&rpc, |message| messages[message as usize].len() as u64);
            self.transmit(from, to, bytes, Payload::Gossip(rpc));
        }
    }

    fn transmit(&mut self, from: usize, to: usize, bytes: u64, payload: Payload) {
        let way_us = self.latency.one_way_us(self.seed, from, to, &mut self.random);
        let mut delay_us = way_us + self.lag(to);
        while self.random.happens(self.scenario.loss_permille) {
            delay_us += 3 * way_us;
        }
        self.nodes[to].received_bytes += bytes;
        self.queue.after(delay_us, Event::Arrive { to, from, payload });
    }

    fn arrive(&mut self, to: usize, from: usize, payload: Payload) -> Result<(), Violation> {
        if self.nodes[to].engine.is_none()
            || self.cut.is_some_and(|cut| cut.stops(from, to, self.nodes.len()))
        {
            return Ok(());
        }
        match payload {
            Payload::Alive { period_ms } => {
                let member = self.nodes[from].person.id();
                self.live(to, Liveness::Heartbeat { from: member, period_ms })?;
                if self.reaches(to, from) {
                    let sent_us = self.queue.now_us();
                    self.transmit(to, from, HEARTBEAT_BYTES / 2, Payload::Acknowledged { sent_us });
                }
                Ok(())
            }
            Payload::Acknowledged { sent_us } => {
                let after_ms = (self.queue.now_us() - sent_us) / 500;
                self.live(to, Liveness::Acknowledged { after_ms })
            }
            Payload::Gossip(Rpc::Message(message)) => {
                if !self.nodes[to].router.is_news(message, from) {
                    return Ok(());
                }
                let item = self.messages[message as usize].clone();
                let member = Some(self.nodes[from].person.id());
                let verdict = self.handle(to, Input::Heard { from: member, item: &item })?;
                if verdict == Some(Verdict::New) {
                    let sends = self.nodes[to].router.forward(message);
                    self.send(to, sends);
                }
                Ok(())
            }
            Payload::Gossip(rpc) => {
                let sends = self.nodes[to].router.control(&self.params, from, rpc);
                self.send(to, sends);
                Ok(())
            }
        }
    }

    /// Reconciles and fetches what is missing, as one step.
    fn catch_up(&mut self, node: usize, peer: usize) -> Result<(), Violation> {
        let is_linked = self.nodes[node].linked.contains(&peer);
        if !is_linked || !self.reaches(node, peer) || !self.reaches(peer, node) {
            return Ok(());
        }
        if self.nodes[peer].misdeed == Some(Misdeed::Withhold) {
            return Ok(());
        }
        let [Some(ours), Some(theirs)] =
            [node, peer].map(|n| self.nodes[n].engine.as_mut().map(Federation::set))
        else {
            return Ok(());
        };
        let (mut initiator, first) = Initiator::new(ours);
        let (mut message, mut needed) = (Some(first), Vec::new());
        while let Some(asked) = message {
            let answered = respond(&theirs, &asked).map_err(|error| error.to_string());
            let step = answered.and_then(|answer| {
                self.nodes[node].received_bytes += answer.len() as u64 + 100;
                initiator.step(&answer).map_err(|error| error.to_string())
            });
            let step = step.map_err(|error| self.violation(node, ("§9.14 reconciliation ends", error)))?;
            needed.extend(step.need);
            message = step.message;
        }
        let items = self.nodes[peer].engine.as_ref().map(|engine| engine.items(&needed, FETCH_BYTES_MAX));
        let (Packed { kinds, body }, _) = items.unwrap_or_default();
        self.nodes[node].received_bytes += body.len() as u64;
        let mut news = 0;
        for piece in unpack(&kinds, &body) {
            let item = piece.to_bytes();
            let from = Some(self.nodes[peer].person.id());
            news += usize::from(self.handle(node, Input::Heard { from, item: &item })? == Some(Verdict::New));
        }
        if news > 0 {
            for other in self.nodes[node].linked.clone().into_iter().filter(|other| *other != peer) {
                self.queue.after(500_000, Event::CatchUp { node: other, peer: node });
            }
        }
        Ok(())
    }

    fn do_wrong(&mut self, node: usize, how: Misdeed, until_us: u64) -> Result<(), Violation> {
        let now_us = self.queue.now_us();
        if now_us >= until_us {
            self.nodes[node].misdeed = None;
            return Ok(());
        }
        self.nodes[node].misdeed = Some(how);
        let Some(federation) = self.nodes[node].engine.as_ref().map(Federation::id) else { return Ok(()) };
        let (now, person) = (self.now(node), self.nodes[node].person.clone());
        let record = |seq, time_ms| {
            let record = node_record(&person, federation, seq, time_ms, 400, false);
            Item::new("node-record", record.bytes()).to_bytes()
        };
        match how {
            Misdeed::Flood => {
                for n in 0..100 {
                    self.gossip(node, record(now.wall_ms + n, now.wall_ms));
                }
            }
            Misdeed::Equivocate => {
                // Two records under one number, each shown to half of its peers.
                let numbers =
                    [now.wall_ms, now.wall_ms - 1].map(|time_ms| self.number(record(now.wall_ms, time_ms)));
                for (place, to) in self.nodes[node].router.peers().to_vec().into_iter().enumerate() {
                    let rpc = Rpc::Message(numbers[place % 2]);
                    self.send(node, vec![Send { to, rpc }]);
                }
            }
            Misdeed::Replay => {
                for _ in 0..10 {
                    if self.messages.is_empty() {
                        break;
                    }
                    let old = self.random.index(self.messages.len());
                    let mut altered = self.messages[old].clone();
                    let place = self.random.index(altered.len());
                    altered[place] ^= 1;
                    let altered = self.number(altered);
                    for to in self.nodes[node].router.peers().to_vec() {
                        for message in [old as u32, altered] {
                            self.send(node, vec![Send { to, rpc: Rpc::Message(message) }]);
                        }
                    }
                }
            }
            Misdeed::Future => {
                let ahead_ms = now.wall_ms + 60 * 60 * 1000;
                self.gossip(node, record(ahead_ms, ahead_ms));
                self.gossip(node, record(u64::MAX, now.wall_ms));
            }
            Misdeed::Withhold => {}
        }
        self.queue.after(S_US, Event::Misdeed { node, how, until_us });
        Ok(())
    }

    /// What is not as it has to be in the end, and where.
    fn unsettled(&self) -> Option<(usize, check::Broken)> {
        let running = || self.nodes.iter().enumerate().filter(|(_, node)| node.engine.is_some());
        let honest = || running().filter(|(number, _)| self.is_honest(*number));
        let (_, first) = honest().next()?;
        let first = first.engine.clone()?.set();
        for (number, node) in honest() {
            let engine = node.engine.as_ref()?;
            if let Err(broken) = check::nothing_lost(engine, &self.published) {
                return Some((number, broken));
            }
            if engine.clone().set() != first {
                return Some((number, ("§9.14 all have the same", "its set is another".to_owned())));
            }
            let wrong = running().find(|(other, subject)| {
                let health = engine.liveness().observed(&subject.person.id()).health;
                // Who started anew knows only those it is in touch with, and what was said lately.
                let may_not_know = node.started_us > 0 && !node.linked.contains(other);
                let is_right = health == Health::Alive || health == Health::Unknown && may_not_know;
                *other != number && !is_right
            });
            if let Some((other, subject)) = wrong {
                let observed = engine.liveness().observed(&subject.person.id());
                return Some((number, ("§9.15 who is up is alive", format!("node {other}: {observed:?}"))));
            }
        }
        None
    }

    fn outcome(&self, end_us: u64) -> Outcome {
        let seconds = (self.queue.now_us() / S_US).max(1);
        let received: u64 = self.nodes.iter().map(|node| node.received_bytes).sum();
        Outcome {
            scenario: self.scenario.name.clone(),
            seed: self.seed,
            events: self.events,
            published: self.published.len(),
            down_ms: self.down_us.map(|took_us| took_us / 1_000),
            settled_ms: (self.queue.now_us() - end_us) / 1_000,
            received_bytes_per_s: received / seconds / self.nodes.len() as u64,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Here,
    Leaving,
}
