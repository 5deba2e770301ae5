//! A model of gossipsub 1.1 as our mesh runs it (`kos-mesh` `swarm/behaviour.rs`; Vyzovitis and others 2020): eager push
//! to a few mesh peers, hashes to some others at each heartbeat, everything of one's own to all peers. What it gives for
//! duplicates and delays is compared with real swarms in `tests/calibration.rs`.

use crate::random::Random;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The degree `kos-mesh` runs with (its `limits::GOSSIP_MESH_N`, compared in `tests/calibration.rs`).
pub const MESH_N: usize = 3;
/// Likewise `limits::GOSSIP_LAZY`.
pub const GOSSIP_LAZY: usize = 1;
/// Likewise `limits::GOSSIP_HISTORY`.
pub const HISTORY_GOSSIP: u64 = 3;

/// Settings, those of libp2p's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Mesh peers wanted.
    pub mesh_n: usize,
    /// Fewer are added to.
    pub mesh_n_low: usize,
    /// More are pruned.
    pub mesh_n_high: usize,
    /// Peers told of hashes at each heartbeat.
    pub gossip_lazy: usize,
    /// Heartbeats a message is told of.
    pub history_gossip: u64,
    /// Time between heartbeats, in microseconds.
    pub heartbeat_us: u64,
}

impl Params {
    /// The settings for a mesh of so many peers, in the proportions of `kos-mesh`.
    pub fn of_degree(mesh_n: usize) -> Self {
        Self {
            mesh_n,
            mesh_n_low: mesh_n - mesh_n.div_ceil(4),
            mesh_n_high: mesh_n + mesh_n.div_ceil(4),
            gossip_lazy: GOSSIP_LAZY,
            history_gossip: HISTORY_GOSSIP,
            heartbeat_us: 1_000_000,
        }
    }
}

/// The settings of `kos-mesh`.
impl Default for Params {
    fn default() -> Self {
        Self::of_degree(MESH_N)
    }
}

/// Bytes of an id in control messages, and of what stands around ids.
const ID_BYTES: u64 = 36;
const CONTROL_BYTES: u64 = 12;
/// What stands around a message: topic, lengths.
const MESSAGE_BYTES: u64 = 76;
/// Bytes of frames, encryption and IP around up to [`PACKET_BYTES`].
const PACKET_OVERHEAD_BYTES: u64 = 70;
const PACKET_BYTES: u64 = 1_200;

/// A message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rpc {
    /// A message itself, by number.
    Message(u32),
    /// These are here.
    IHave(Vec<u32>),
    /// These are wanted.
    IWant(Vec<u32>),
    /// Be my mesh peer.
    Graft,
    /// Do not.
    Prune,
}

/// What a node of the model does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// To whom.
    pub to: usize,
    /// What.
    pub rpc: Rpc,
}

/// One node.
#[derive(Clone, Debug, Default)]
pub struct Router {
    peers: Vec<usize>,
    mesh: BTreeSet<usize>,
    seen: BTreeMap<u32, u64>,
    recent: VecDeque<(u64, u32)>,
    /// Who sent what is still being validated: they need no copy back.
    senders: BTreeMap<u32, BTreeSet<usize>>,
    asked: BTreeSet<u32>,
    heartbeats: u64,
}

impl Router {
    /// The peers it has links with.
    pub fn peers(&self) -> &[usize] {
        &self.peers
    }

    /// The mesh.
    pub fn mesh(&self) -> &BTreeSet<usize> {
        &self.mesh
    }

    /// A link came.
    pub fn link(&mut self, peer: usize) {
        if !self.peers.contains(&peer) {
            self.peers.push(peer);
        }
    }

    /// A link went.
    pub fn unlink(&mut self, peer: usize) {
        self.peers.retain(|other| *other != peer);
        self.mesh.remove(&peer);
    }

    /// Publishes a message of its own: flood publishing, to all peers.
    pub fn publish(&mut self, message: u32) -> Vec<Send> {
        self.note(message);
        self.peers.iter().map(|to| Send { to: *to, rpc: Rpc::Message(message) }).collect()
    }

    fn note(&mut self, message: u32) {
        self.seen.insert(message, self.heartbeats);
        self.recent.push_back((self.heartbeats, message));
    }

    /// Whether a message is news; then, once it is found valid, [`Self::forward`] it.
    pub fn is_news(&mut self, message: u32, from: usize) -> bool {
        let is_news = !self.seen.contains_key(&message);
        if is_news {
            self.seen.insert(message, self.heartbeats);
            self.senders.insert(message, BTreeSet::from([from]));
        } else if let Some(senders) = self.senders.get_mut(&message) {
            senders.insert(from);
        }
        is_news
    }

    /// A message was found valid: whoever sent it meanwhile has it.
    pub fn forward(&mut self, message: u32) -> Vec<Send> {
        self.recent.push_back((self.heartbeats, message));
        let senders = self.senders.remove(&message).unwrap_or_default();
        let others = self.mesh.iter().filter(|peer| !senders.contains(*peer));
        others.map(|to| Send { to: *to, rpc: Rpc::Message(message) }).collect()
    }

    /// Everything but messages.
    pub fn control(&mut self, params: &Params, from: usize, rpc: Rpc) -> Vec<Send> {
        let answer = match rpc {
            Rpc::Message(_) => None,
            Rpc::IHave(messages) => {
                let wanted: Vec<u32> = messages
                    .into_iter()
                    .filter(|message| !self.seen.contains_key(message) && self.asked.insert(*message))
                    .collect();
                (!wanted.is_empty()).then_some(Rpc::IWant(wanted))
            }
            Rpc::IWant(messages) => {
                let held = messages.into_iter().filter(|message| self.seen.contains_key(message));
                return held.map(|message| Send { to: from, rpc: Rpc::Message(message) }).collect();
            }
            Rpc::Graft if self.mesh.len() >= params.mesh_n_high => Some(Rpc::Prune),
            Rpc::Graft => {
                self.mesh.insert(from);
                None
            }
            Rpc::Prune => {
                self.mesh.remove(&from);
                None
            }
        };
        answer.map(|rpc| Send { to: from, rpc }).into_iter().collect()
    }

    /// A heartbeat: keeps the mesh in its bounds and tells some of the others what is here.
    pub fn heartbeat(&mut self, params: &Params, random: &mut Random) -> Vec<Send> {
        self.heartbeats += 1;
        self.asked.clear();
        let mut sends = Vec::new();
        if self.mesh.len() < params.mesh_n_low {
            let mut others: Vec<usize> =
                self.peers.iter().filter(|peer| !self.mesh.contains(*peer)).copied().collect();
            while self.mesh.len() < params.mesh_n && !others.is_empty() {
                let peer = others.swap_remove(random.index(others.len()));
                self.mesh.insert(peer);
                sends.push(Send { to: peer, rpc: Rpc::Graft });
            }
        }
        while self.mesh.len() > params.mesh_n_high {
            let place = random.index(self.mesh.len());
            let peer = *self.mesh.iter().nth(place).expect("an index into it");
            self.mesh.remove(&peer);
            sends.push(Send { to: peer, rpc: Rpc::Prune });
        }
        while self.recent.front().is_some_and(|(at, _)| self.heartbeats - at > params.history_gossip) {
            self.recent.pop_front();
        }
        // A message is forgotten after two minutes.
        let old = self.heartbeats.saturating_sub(120);
        self.seen.retain(|_, at| *at >= old);
        if !self.recent.is_empty() {
            let mut others: Vec<usize> =
                self.peers.iter().filter(|peer| !self.mesh.contains(*peer)).copied().collect();
            let told = params.gossip_lazy.min(others.len());
            let messages: Vec<u32> = self.recent.iter().map(|(_, message)| *message).collect();
            for _ in 0..told {
                let to = others.swap_remove(random.index(others.len()));
                sends.push(Send { to, rpc: Rpc::IHave(messages.clone()) });
            }
        }
        sends
    }
}

/// Bytes on the wire of something of the protocol. `message_bytes` tells those of a message.
pub fn wire_bytes(rpc: &Rpc, message_bytes: impl Fn(u32) -> u64) -> u64 {
    let inner = match rpc {
        Rpc::Message(message) => MESSAGE_BYTES + message_bytes(*message),
        Rpc::IHave(ids) | Rpc::IWant(ids) => MESSAGE_BYTES + ID_BYTES * ids.len() as u64,
        Rpc::Graft | Rpc::Prune => MESSAGE_BYTES + CONTROL_BYTES,
    };
    inner + PACKET_OVERHEAD_BYTES * inner.div_ceil(PACKET_BYTES)
}
