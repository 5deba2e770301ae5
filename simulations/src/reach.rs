//! How long a record takes to reach everybody, and how many bytes it costs: directories behind the gossip model.
//!
//! Each node has a directory of its own and takes what reaches it by the directory's rules. Signatures are verified once
//! and their outcome shared, as they do not depend on the node.

use crate::{
    gossip::{Params, Router, Rpc, Send, wire_bytes},
    latency::Latency,
    people::{Everybody, Person, T0_MS, node_record},
    queue::Queue,
    random::Random,
};
use kos_directory::{Claim, Directory, Screened, Source, Verified};
use kos_protocol::{id::FederationId, time::Timestamp};
use serde::Serialize;

const FEDERATION: FederationId = FederationId::from_bytes([9; 32]);
/// Bytes a second a home's line sends: 20 Mbit/s.
const UPLINK_BYTES_PER_S: u64 = 2_500_000;
/// A lost packet comes again after a round trip and a half, at the least after this time (RFC 9002).
const RETRANSMIT_US_MIN: u64 = 50_000;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Nodes.
    pub nodes: usize,
    /// Links of each, about.
    pub links: usize,
    /// Records, published one after the other by nodes drawn at random.
    pub records: u32,
    /// Bytes of each, about.
    pub record_bytes: usize,
    /// Time between two, in milliseconds.
    pub every_ms: u64,
    /// Gossip.
    pub params: Params,
    /// The network.
    pub latency: Latency,
    /// Packets lost, in thousandths.
    pub loss_permille: u32,
    /// What a node needs before it forwards: one signature and the way through the event loop, in microseconds.
    pub validation_us: u64,
    /// What everything drawn comes from.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 1_000,
            links: 32,
            records: 20,
            record_bytes: 1_024,
            every_ms: 500,
            params: Params::default(),
            latency: Latency::Internet { percent: 100 },
            loss_permille: 5,
            validation_us: 1_000,
            seed: 1,
        }
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Nodes.
    pub nodes: usize,
    /// Mesh peers wanted.
    pub degree: usize,
    /// Records published.
    pub records: u32,
    /// Bytes of one, signed.
    pub record_bytes: u64,
    /// Mean time to reach a node, in milliseconds.
    pub reach_mean_ms: f64,
    /// 99th percentile of the same.
    pub reach_p99_ms: f64,
    /// Time until 99 % of the nodes had a record, the mean over the records.
    pub reach_99_ms: f64,
    /// Nodes that never had one, together.
    pub missed: u64,
    /// Bytes received for each byte of a record received the first time, control messages and packets included.
    pub bytes_per_useful_byte: f64,
    /// Times a record was received, for each node that received it.
    pub copies: f64,
    /// The seed.
    pub seed: u64,
}

enum Event {
    Publish(u32),
    Arrive { to: usize, from: usize, rpc: Rpc },
    Validated { at: usize, message: u32 },
    Heartbeat(usize),
}

struct Message {
    claim: Claim,
    record: Verified,
    bytes: u64,
    published_us: u64,
    reached_us: Vec<u64>,
    copies: u64,
}

struct Node {
    router: Router,
    directory: Directory,
    uplink_free_us: u64,
    received_bytes: u64,
}

struct World<'a> {
    setup: &'a Setup,
    random: Random,
    queue: Queue<Event>,
    nodes: Vec<Node>,
    people: Vec<Person>,
    everybody: Everybody,
    messages: Vec<Message>,
    counting: bool,
}

/// Runs a setup.
pub fn run(setup: &Setup) -> Figures {
    let people: Vec<Person> = (0..setup.nodes).map(Person::numbered).collect();
    let everybody = people.iter().map(|person| (person.id(), person.key.public())).collect();
    let node = |_| Node {
        router: Router::default(),
        directory: Directory::new(FEDERATION),
        uplink_free_us: 0,
        received_bytes: 0,
    };
    let mut world = World {
        setup,
        random: Random::seeded(setup.seed),
        queue: Queue::default(),
        nodes: (0..setup.nodes).map(node).collect(),
        people,
        everybody,
        messages: Vec::new(),
        counting: false,
    };
    world.link_all();
    world.warm_up();
    let begun_us = world.queue.now_us();
    for number in 0..setup.records {
        world.queue.after(u64::from(number) * setup.every_ms * 1_000, Event::Publish(number));
    }
    let last_us = begun_us + u64::from(setup.records) * setup.every_ms * 1_000;
    // What is lost is told of again at heartbeats, a few seconds later at the most.
    world.run_until(last_us + 15_000_000);
    world.figures()
}

impl World<'_> {
    /// A random graph: each node opens half of its links.
    fn link_all(&mut self) {
        let count = self.nodes.len();
        let opened = (self.setup.links / 2).min(count.saturating_sub(1));
        for node in 0..count {
            for _ in 0..opened {
                let other = self.random.index(count);
                if other != node {
                    self.nodes[node].router.link(other);
                    self.nodes[other].router.link(node);
                }
            }
        }
        for node in 0..count {
            let phase_us = self.random.below(self.setup.params.heartbeat_us);
            self.queue.after(phase_us, Event::Heartbeat(node));
        }
    }

    /// The mesh forms before anything is counted.
    fn warm_up(&mut self) {
        self.run_until(10_000_000);
        self.counting = true;
    }

    fn now(&self) -> Timestamp {
        let ms = self.queue.now_us() / 1_000;
        Timestamp { monotonic_ms: ms, wall_ms: T0_MS + ms }
    }

    fn run_until(&mut self, until_us: u64) {
        while let Some(event) = self.queue.next(until_us) {
            match event {
                Event::Publish(number) => self.publish(number),
                Event::Arrive { to, from, rpc } => self.arrive(to, from, rpc),
                Event::Validated { at, message } => self.validated(at, message),
                Event::Heartbeat(node) => {
                    let sends = self.nodes[node].router.heartbeat(&self.setup.params, &mut self.random);
                    self.send(node, sends);
                    self.queue.after(self.setup.params.heartbeat_us, Event::Heartbeat(node));
                }
            }
        }
    }

    fn publish(&mut self, number: u32) {
        let author = self.random.index(self.nodes.len());
        let now = self.now();
        let seq = now.wall_ms + u64::from(number);
        let signed =
            node_record(&self.people[author], FEDERATION, seq, now.wall_ms, self.setup.record_bytes, false);
        let claim = Claim::parse(FEDERATION, "node-record", signed.bytes()).expect("we signed it");
        let record = claim.clone().verify(&self.people[author].key.public()).expect("we signed it");
        let mut reached_us = vec![u64::MAX; self.nodes.len()];
        reached_us[author] = self.queue.now_us();
        let own = self.nodes[author].directory.insert(now, Source::Own, record.clone(), &self.everybody);
        own.expect("a member publishes");
        self.messages.push(Message {
            claim,
            record,
            bytes: signed.bytes().len() as u64,
            published_us: self.queue.now_us(),
            reached_us,
            copies: 0,
        });
        let sends = self.nodes[author].router.publish(number);
        self.send(author, sends);
    }

    fn arrive(&mut self, to: usize, from: usize, rpc: Rpc) {
        if self.counting {
            let messages = &self.messages;
            let bytes = wire_bytes(&rpc, |message| messages[message as usize].bytes);
            self.nodes[to].received_bytes += bytes;
        }
        let node = &mut self.nodes[to];
        if let Rpc::Message(message) = rpc {
            self.messages[message as usize].copies += 1;
            if node.router.is_news(message, from) {
                self.queue.after(self.setup.validation_us, Event::Validated { at: to, message });
            }
            return;
        }
        let sends = node.router.control(&self.setup.params, from, rpc);
        self.send(to, sends);
    }

    fn validated(&mut self, at: usize, message: u32) {
        let (now, now_us) = (self.now(), self.queue.now_us());
        let held = &mut self.messages[message as usize];
        let directory = &mut self.nodes[at].directory;
        let Ok(Screened::Verify(_)) = directory.screen(now, Source::Heard, &held.claim, &self.everybody)
        else {
            return;
        };
        if directory.insert(now, Source::Heard, held.record.clone(), &self.everybody).is_err() {
            return;
        }
        held.reached_us[at] = now_us;
        let sends = self.nodes[at].router.forward(message);
        self.send(at, sends);
    }

    fn send(&mut self, from: usize, sends: Vec<Send>) {
        for Send { to, rpc } in sends {
            let messages = &self.messages;
            let bytes = wire_bytes(&rpc, |message| messages[message as usize].bytes);
            let free_us = self.nodes[from].uplink_free_us.max(self.queue.now_us());
            let sent_us = free_us + bytes * 1_000_000 / UPLINK_BYTES_PER_S;
            self.nodes[from].uplink_free_us = sent_us;
            let way_us = self.setup.latency.one_way_us(self.setup.seed, from, to, &mut self.random);
            let mut arrives_us = sent_us + way_us;
            while self.random.happens(self.setup.loss_permille) {
                arrives_us += (3 * way_us).max(RETRANSMIT_US_MIN);
            }
            self.queue.at(arrives_us, Event::Arrive { to, from, rpc });
        }
    }

    fn figures(self) -> Figures {
        let (mut took_us, mut to_99_us, mut missed, mut useful_bytes) = (Vec::new(), Vec::new(), 0, 0);
        for message in &self.messages {
            let mut reached: Vec<u64> = message
                .reached_us
                .iter()
                .filter(|at_us| **at_us != u64::MAX && **at_us != message.published_us)
                .map(|at_us| at_us - message.published_us)
                .collect();
            reached.sort_unstable();
            missed += (self.nodes.len() - 1 - reached.len()) as u64;
            useful_bytes += message.bytes * reached.len() as u64;
            let place = (self.nodes.len() * 99).div_ceil(100).saturating_sub(2);
            to_99_us.push(reached.get(place).copied().unwrap_or(u64::MAX / 1_000));
            took_us.extend(reached);
        }
        took_us.sort_unstable();
        let count = took_us.len().max(1);
        let ms = |us: f64| us / 1_000.0;
        let received: u64 = self.nodes.iter().map(|node| node.received_bytes).sum();
        let copies: u64 = self.messages.iter().map(|message| message.copies).sum();
        Figures {
            nodes: self.nodes.len(),
            degree: self.setup.params.mesh_n,
            records: self.setup.records,
            record_bytes: self.messages.first().map_or(0, |message| message.bytes),
            reach_mean_ms: ms(took_us.iter().sum::<u64>() as f64 / count as f64),
            reach_p99_ms: ms(took_us.get(count * 99 / 100).copied().unwrap_or_default() as f64),
            reach_99_ms: ms(to_99_us.iter().sum::<u64>() as f64 / to_99_us.len().max(1) as f64),
            missed,
            bytes_per_useful_byte: received as f64 / useful_bytes.max(1) as f64,
            copies: copies as f64 / count as f64,
            seed: self.setup.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_figures_and_everybody_is_reached() {
        let setup = Setup { nodes: 100, records: 5, ..Setup::default() };
        let figures = run(&setup);
        assert_eq!(figures, run(&setup));
        assert_eq!(figures.missed, 0);
        assert!(figures.reach_mean_ms < 1_000.0 && figures.copies >= 1.0, "{figures:?}");
        assert_ne!(figures.reach_mean_ms, run(&Setup { seed: 2, ..setup }).reach_mean_ms);
    }
}
