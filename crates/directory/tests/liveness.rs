//! A hundred liveness cores with virtual time. The network here stands in for gossip and links, with delays.
//! `CI_LONG=1` runs 200 seeds.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use kos_directory::{
    Health,
    liveness::{HEARTBEAT_MS, Input, Liveness, Output, Reached},
};
use kos_protocol::{
    id::{MemberId, sha256},
    time::Timestamp,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

const T0: u64 = 1_800_000_000_000;
const S: u64 = 1_000;

fn at(ms: u64) -> Timestamp {
    Timestamp { monotonic_ms: ms, wall_ms: T0 + ms }
}

fn member(n: usize) -> MemberId {
    MemberId::from_bytes(sha256(&(n as u64).to_be_bytes()))
}

fn suspicion(by: usize, subject: usize, subject_seq: u64, since_ms: Option<u64>) -> Input {
    Input::Suspicion { by: member(by), subject: member(subject), subject_seq, time_ms: T0, since_ms }
}

fn node(n: usize, seq: u64, time_ms: u64, left: bool) -> Input {
    Input::Node { member: member(n), seq, time_ms, left }
}

fn health(liveness: &Liveness, n: usize) -> Health {
    liveness.observed(&member(n)).health
}

const LINKS: usize = 16;
/// A link whose other end is silent is given up after this time: QUIC's idle timeout.
const IDLE_MS: u64 = 10 * S;
const PROBE_MS: u64 = 2 * S;

struct Network {
    nodes: Vec<Liveness>,
    records: Vec<u64>,
    up: Vec<bool>,
    links: Vec<BTreeSet<usize>>,
    events: BinaryHeap<Reverse<(u64, u64, usize, usize)>>,
    inputs: Vec<Option<Input>>,
    order: u64,
    now_ms: u64,
    random: u64,
    /// Whether what `from` sends reaches `to`.
    cut: fn(usize, usize) -> bool,
    /// Most milliseconds that a node's inputs wait.
    lag_ms: Vec<u64>,
    /// Nodes that were up and that some node took for down.
    wronged: BTreeSet<(usize, usize)>,
    /// Nodes that were up and in reach of the node that suspected them in public.
    suspected: BTreeSet<(usize, usize)>,
    downs: BTreeMap<usize, BTreeMap<usize, u64>>,
    numbers: BTreeMap<MemberId, usize>,
}

impl Network {
    fn new(count: usize, seed: u64) -> Self {
        let members: Arc<BTreeSet<MemberId>> = Arc::new((0..count).map(member).collect());
        let mut network = Self {
            nodes: (0..count).map(|n| Liveness::new(member(n))).collect(),
            records: vec![1; count],
            up: vec![true; count],
            links: vec![BTreeSet::new(); count],
            events: BinaryHeap::new(),
            inputs: Vec::new(),
            order: 0,
            now_ms: 0,
            random: seed,
            cut: |_, _| false,
            lag_ms: vec![0; count],
            wronged: BTreeSet::new(),
            suspected: BTreeSet::new(),
            downs: BTreeMap::new(),
            numbers: (0..count).map(|n| (member(n), n)).collect(),
        };
        for n in 0..count {
            network.nodes[n].handle(at(0), Input::Members(members.clone()));
            network.nodes[n].handle(at(0), node(n, 1, T0, false));
            for other in 0..count {
                network.nodes[n].handle(at(0), node(other, 1, T0, false));
            }
        }
        for n in 0..count {
            while network.links[n].len() < LINKS.min(count - 1) {
                let other = network.random(count as u64) as usize;
                if other != n {
                    network.links[n].insert(other);
                    network.links[other].insert(n);
                }
            }
        }
        for n in 0..count {
            for other in network.links[n].clone() {
                network.nodes[n].handle(at(0), Input::Linked(member(other)));
            }
            network.drain(n);
        }
        network
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn index(&self, id: &MemberId) -> usize {
        self.numbers[id]
    }

    /// Hands something in after a while; a slow node gets to it later still.
    fn after(&mut self, delay_ms: u64, to: usize, input: Input) {
        let lag_ms = self.lag_ms[to];
        let lag_ms = if lag_ms == 0 { 0 } else { self.random(lag_ms) };
        self.order += 1;
        self.inputs.push(Some(input));
        let place = self.inputs.len() - 1;
        self.events.push(Reverse((self.now_ms + delay_ms + lag_ms, self.order, to, place)));
    }

    fn deadline(&mut self, n: usize) {
        if let Some(due_ms) = self.nodes[n].next_deadline_ms() {
            let delay_ms = due_ms.saturating_sub(self.now_ms);
            self.after(delay_ms, n, Input::DeadlineReached);
        }
    }

    /// A record reaches everybody it can reach, over any way.
    fn gossip(&mut self, from: usize, input: &Input) {
        let count = self.nodes.len();
        let reached: Vec<usize> = (0..count).filter(|n| *n != from && self.up[*n]).collect();
        let heard = |network: &Self, to: usize| {
            !(network.cut)(from, to)
                || (0..count)
                    .any(|via| network.up[via] && !(network.cut)(from, via) && !(network.cut)(via, to))
        };
        for to in reached {
            if heard(self, to) {
                let delay_ms = 30 + self.random(400);
                self.after(delay_ms, to, input.clone());
            }
        }
    }

    fn drain(&mut self, n: usize) {
        while let Some(output) = self.nodes[n].poll_output() {
            match output {
                Output::Heartbeat { to } => {
                    let to = self.index(&to);
                    let there = self.up[to] && !(self.cut)(n, to);
                    let back = there && !(self.cut)(to, n);
                    let rtt_ms = 20 + self.random(150);
                    if there {
                        let from = member(n);
                        self.after(rtt_ms / 2, to, Input::Heartbeat { from, period_ms: HEARTBEAT_MS });
                    }
                    if back {
                        let after_ms = rtt_ms + self.lag_ms[to] / 2;
                        self.after(after_ms, n, Input::Acknowledged { after_ms });
                    } else {
                        self.after(HEARTBEAT_MS, n, Input::Unacknowledged);
                    }
                }
                Output::Release { to } => {
                    let (from, to) = (member(n), self.index(&to));
                    if self.up[to] && !(self.cut)(n, to) {
                        let delay_ms = 10 + self.random(75);
                        self.after(delay_ms, to, Input::Heartbeat { from, period_ms: 0 });
                    }
                }
                Output::Probe(subject) => {
                    let to = self.index(&subject);
                    let answers = self.up[to] && !(self.cut)(n, to) && !(self.cut)(to, n);
                    let outcome = if answers { Reached::Yes } else { Reached::No };
                    let delay_ms = if answers { 100 } else { PROBE_MS };
                    self.after(delay_ms, n, Input::Probed { member: subject, outcome });
                }
                Output::Suspect { subject, subject_seq, since_ms } => {
                    let to = self.index(&subject);
                    if since_ms.is_some() && self.up[to] && !(self.cut)(n, to) && !(self.cut)(to, n) {
                        self.suspected.insert((n, to));
                    }
                    self.gossip(
                        n,
                        &Input::Suspicion {
                            by: member(n),
                            subject,
                            subject_seq,
                            time_ms: T0 + self.now_ms,
                            since_ms,
                        },
                    );
                }
                Output::Refute => {
                    self.records[n] += 1;
                    let record = node(n, self.records[n], T0 + self.now_ms, false);
                    self.nodes[n].handle(at(self.now_ms), record.clone());
                    self.gossip(n, &record);
                }
                Output::Changed(subject, health) => {
                    let subject = self.index(&subject);
                    match health {
                        Health::Down => {
                            if self.up[subject] {
                                self.wronged.insert((n, subject));
                            }
                            self.downs.entry(subject).or_default().insert(n, self.now_ms);
                        }
                        _ => drop(self.downs.entry(subject).or_default().remove(&n)),
                    }
                }
            }
        }
        self.deadline(n);
    }

    fn run(&mut self, until_ms: u64) {
        while let Some(Reverse((due_ms, _, n, place))) = self.events.peek().copied()
            && due_ms <= until_ms
        {
            self.events.pop();
            self.now_ms = due_ms;
            let input = self.inputs[place].take().unwrap();
            // Deadlines that were overtaken are asked for again by whatever overtook them.
            let is_early = input == Input::DeadlineReached
                && self.nodes[n].next_deadline_ms().is_none_or(|due_ms| due_ms > self.now_ms);
            if self.up[n] && !is_early {
                self.nodes[n].handle(at(self.now_ms), input);
                self.drain(n);
            }
        }
        self.now_ms = until_ms;
    }

    fn kill(&mut self, n: usize) {
        self.up[n] = false;
        for other in std::mem::take(&mut self.links[n]) {
            self.links[other].remove(&n);
            let delay_ms = IDLE_MS - self.random(S);
            self.after(delay_ms, other, Input::Unlinked(member(n)));
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    if std::env::var("CI_LONG").is_ok_and(|value| value == "1") { 0..200 } else { 0..20 }
}

#[test]
fn a_dead_node_is_down_at_all_others_within_15_seconds_and_alive_again_when_it_returns() {
    let mut took_ms = Vec::new();
    for seed in seeds() {
        let mut network = Network::new(100, seed);
        network.run(60 * S + network.random % S);
        let (dead, begun_ms) = (seed as usize % 100, network.now_ms);
        network.kill(dead);
        network.run(begun_ms + 15 * S);
        let downs = network.downs.remove(&dead).unwrap_or_default();
        assert_eq!(downs.len(), 99, "seed {seed}: everybody");
        took_ms.extend(downs.values().map(|at_ms| at_ms - begun_ms));
        assert_eq!(network.wronged, BTreeSet::new(), "seed {seed}");
        network.up[dead] = true;
        network.records[dead] += 1;
        let back = node(dead, network.records[dead], T0 + network.now_ms, false);
        network.gossip(dead, &back);
        network.run(begun_ms + 20 * S);
        assert!(
            (0..100).all(|n| n == dead || health(&network.nodes[n], dead) == Health::Alive),
            "seed {seed}"
        );
    }
    took_ms.sort_unstable();
    println!("down after {} ms, p99 {} ms", took_ms[took_ms.len() / 2], took_ms[took_ms.len() * 99 / 100]);
}

#[test]
fn links_that_come_up_one_after_the_other_make_nobody_a_suspect() {
    for seed in seeds() {
        let mut network = Network::new(40, seed);
        for _ in 0..200 {
            let (a, b) = (network.random(40) as usize, network.random(40) as usize);
            if a != b && network.links[a].insert(b) {
                network.links[b].insert(a);
                let delay_ms = network.random(60 * S);
                network.after(delay_ms, a, Input::Linked(member(b)));
                network.after(delay_ms, b, Input::Linked(member(a)));
            }
        }
        network.run(90 * S);
        assert_eq!(network.suspected, BTreeSet::new(), "seed {seed}");
    }
}

#[test]
fn a_starved_and_a_half_cut_node_make_nobody_down_in_an_hour() {
    for seed in seeds().take(if cfg!(debug_assertions) { 2 } else { usize::MAX }) {
        let mut network = Network::new(60, seed);
        network.lag_ms[7] = 3 * S;
        // It hears from one half only.
        network.cut = |from, to| to == 11 && from >= 30;
        network.run(3600 * S);
        assert_eq!(network.wronged, BTreeSet::new(), "seed {seed}");
    }
}

#[test]
fn halves_that_were_apart_take_each_other_for_alive_again() {
    let mut network = Network::new(40, 1);
    network.run(30 * S);
    network.cut = |from, to| (from < 20) != (to < 20);
    for n in 0..40 {
        for other in network.links[n].clone().into_iter().filter(|other| (n < 20) != (*other < 20)) {
            network.after(IDLE_MS, n, Input::Unlinked(member(other)));
        }
    }
    network.run(120 * S);
    assert_eq!(health(&network.nodes[0], 39), Health::Down, "as far as this half can tell");
    network.cut = |_, _| false;
    for n in 0..40 {
        for other in network.links[n].clone().into_iter().filter(|other| (n < 20) != (*other < 20)) {
            network.after(S, n, Input::Linked(member(other)));
        }
        // Catch-up brings the suspicions of the other half.
        for other in (0..40).filter(|other| (n < 20) != (*other < 20)) {
            for by in (0..40).filter(|by| (*by < 20) != (other < 20)).take(5) {
                network.after(2 * S, n, suspicion(by, other, 1, Some(T0)));
                network.after(2 * S, other, suspicion(by, other, 1, Some(T0)));
            }
        }
    }
    network.run(150 * S);
    for n in 0..40 {
        let wrong: Vec<_> = (0..40)
            .filter(|other| *other != n && health(&network.nodes[n], *other) != Health::Alive)
            .collect();
        assert_eq!(wrong, Vec::<usize>::new(), "at {n}");
    }
}
