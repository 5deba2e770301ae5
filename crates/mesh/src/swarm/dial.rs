//! One connect in progress: addresses in stages, what is being dialed, what failed.
//!
//! Plain state without IO; the driver asks what to dial next and tells what became of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::io;
use std::time::Instant;

use libp2p::core::transport::TransportError;
use libp2p::swarm::{ConnectionId, DialError};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

use super::addr::{self, Documentation, Scope, Transport};
use super::types::{ConnectError, Failure, Path, Step};
use crate::limits::{
    ADDRESSES_PER_PEER_MAX, CIRCUIT_HEAD_START, CONNECT_TIMEOUT, CONNECT_WAITERS_MAX, TCP_HEAD_START,
};

/// A caller that waits for a connect.
pub(crate) type Waiter = oneshot::Sender<Result<Path, ConnectError>>;

/// Why we connect, which decides the budget it is paid from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Somebody waits for it, or a relay is to be reached.
    Asked,
    /// A link is to be kept.
    Upkeep,
}

/// Addresses that are dialed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Direct { transport: Transport, addrs: Vec<Multiaddr> },
    Circuit { relay: PeerId, relay_addrs: Vec<Multiaddr> },
}

impl Stage {
    /// Flows a NAT sees when the stage is dialed.
    pub(crate) fn flows(&self) -> u32 {
        match self {
            Stage::Direct { addrs, .. } => addrs.len() as u32,
            Stage::Circuit { .. } => 0,
        }
    }

    fn addrs(&self) -> &[Multiaddr] {
        match self {
            Stage::Direct { addrs, .. } | Stage::Circuit { relay_addrs: addrs, .. } => addrs,
        }
    }

    /// The stage without some addresses; `None` when nothing is left. A circuit is as good over any address of its relay.
    fn without(mut self, known: impl Fn(&Multiaddr) -> bool) -> Option<Self> {
        match &mut self {
            Stage::Direct { addrs, .. } => addrs.retain(|addr| !known(addr)),
            Stage::Circuit { relay_addrs, .. } if relay_addrs.iter().any(&known) => relay_addrs.clear(),
            Stage::Circuit { .. } => {}
        }
        (!self.addrs().is_empty()).then_some(self)
    }

    fn head_start(&self) -> std::time::Duration {
        match self {
            Stage::Direct { transport: Transport::Quic, .. } => std::time::Duration::ZERO,
            Stage::Direct { transport: Transport::Tcp, .. } => TCP_HEAD_START,
            Stage::Circuit { .. } => CIRCUIT_HEAD_START,
        }
    }
}

/// One connect in progress.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub purpose: Purpose,
    pub deadline: Instant,
    /// When the next stage may begin.
    pub next_at: Instant,
    stages: VecDeque<Stage>,
    active: BTreeMap<ConnectionId, Vec<Multiaddr>>,
    /// Relays that have to be reached first, and the circuit that waits for each.
    relays: BTreeMap<PeerId, Multiaddr>,
    failures: Vec<Failure>,
    waiters: Vec<Waiter>,
    /// Stages added since the attempt began.
    widened: usize,
    /// Relays over which a circuit was tried again.
    retried: BTreeSet<PeerId>,
}

impl Attempt {
    pub(crate) fn new(stages: VecDeque<Stage>, purpose: Purpose, now: Instant) -> Self {
        Self {
            purpose,
            deadline: now + CONNECT_TIMEOUT,
            next_at: now,
            stages,
            active: BTreeMap::new(),
            relays: BTreeMap::new(),
            failures: Vec::new(),
            waiters: Vec::new(),
            widened: 0,
            retried: BTreeSet::new(),
        }
    }

    /// Adds stages, without the addresses that were tried or wait for their turn.
    pub(crate) fn widen(&mut self, stages: VecDeque<Stage>, now: Instant) {
        if self.stages.is_empty() {
            self.next_at = now;
        }
        for stage in stages {
            let Some(stage) = stage.without(|addr| self.knows(addr)) else { continue };
            if self.widened < ADDRESSES_PER_PEER_MAX {
                self.widened += 1;
                self.stages.push_back(stage);
            }
        }
    }

    /// Whether a circuit over this relay may be tried again: once.
    pub(crate) fn may_retry(&mut self, relay: PeerId) -> bool {
        self.retried.insert(relay)
    }

    fn knows(&self, addr: &Multiaddr) -> bool {
        self.active.values().flatten().any(|active| active == addr)
            || self.failures.iter().any(|failure| failure.addr == *addr)
            || self.stages.iter().any(|stage| stage.addrs().contains(addr))
    }

    /// Adds a caller; a crowd beyond the bound is told that we are busy.
    pub(crate) fn join(&mut self, waiter: Waiter) {
        if self.waiters.len() < CONNECT_WAITERS_MAX {
            self.waiters.push(waiter);
        } else {
            let _ = waiter.send(Err(ConnectError::Busy { limit: CONNECT_WAITERS_MAX }));
        }
        self.purpose = Purpose::Asked;
    }

    /// The stage whose turn it is: its time has come, or nothing else is under way.
    pub(crate) fn due(&self, now: Instant) -> Option<&Stage> {
        let idle = self.active.is_empty() && self.relays.is_empty();
        self.stages.front().filter(|_| now >= self.next_at || idle)
    }

    /// Takes the stage that is due; the next one follows after its head start.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Stage> {
        let stage = self.stages.pop_front()?;
        self.next_at = now + self.stages.front().map_or(std::time::Duration::ZERO, Stage::head_start);
        Some(stage)
    }

    pub(crate) fn has_stages(&self) -> bool {
        !self.stages.is_empty()
    }

    pub(crate) fn dialing(&mut self, id: ConnectionId, addrs: Vec<Multiaddr>) {
        self.active.insert(id, addrs);
    }

    pub(crate) fn waits_for_relay(&mut self, relay: PeerId, circuit: Multiaddr) {
        self.relays.insert(relay, circuit);
    }

    /// The circuit that waited for this relay.
    pub(crate) fn relay_settled(&mut self, relay: &PeerId) -> Option<Multiaddr> {
        self.relays.remove(relay)
    }

    /// Ends a dial of ours; its addresses, if it was one.
    pub(crate) fn settled(&mut self, id: ConnectionId) -> Option<Vec<Multiaddr>> {
        self.active.remove(&id)
    }

    pub(crate) fn failed(&mut self, failures: impl IntoIterator<Item = Failure>) {
        self.failures.extend(failures);
        self.failures.truncate(2 * ADDRESSES_PER_PEER_MAX);
    }

    /// Whether nothing is left to try.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let idle = self.stages.is_empty() && self.active.is_empty() && self.relays.is_empty();
        idle || now >= self.deadline
    }

    /// Answers all callers.
    pub(crate) fn succeed(self, path: &Path) {
        for waiter in self.waiters {
            let _ = waiter.send(Ok(path.clone()));
        }
    }

    /// Answers all callers that nothing worked. What is still under way failed for want of an answer.
    pub(crate) fn fail(mut self, peer: PeerId) -> Vec<Failure> {
        let unanswered = std::mem::take(&mut self.active).into_values().flatten();
        let unanswered: Vec<_> =
            unanswered.map(|addr| failure(addr, Step::NoAnswer, "no answer in time")).collect();
        self.failed(unanswered);
        let unreached: Vec<_> = std::mem::take(&mut self.relays).into_values().collect();
        self.failed(unreached.into_iter().map(|addr| failure(addr, Step::Relay, "no answer in time")));
        for waiter in self.waiters {
            let error = ConnectError::Unreachable { peer, failures: self.failures.clone() };
            let _ = waiter.send(Err(error));
        }
        self.failures
    }
}

/// Sorts addresses into stages: QUIC, TCP, then circuits, one stage a relay. Addresses nobody can dial from here
/// are left out; within a stage the order is kept.
pub(crate) fn stages(local: PeerId, addrs: &[Multiaddr], documentation: Documentation) -> VecDeque<Stage> {
    let (mut quic, mut tcp) = (Vec::new(), Vec::new());
    let mut relays: Vec<(PeerId, Vec<Multiaddr>)> = Vec::new();
    for addr in addrs {
        if let Some((relay, own)) = addr::relay_of(addr) {
            if relay == local {
                continue;
            }
            match relays.iter_mut().find(|(known, _)| *known == relay) {
                Some((_, of_relay)) => push(of_relay, own),
                None => relays.push((relay, vec![own])),
            }
            continue;
        }
        let usable = addr::scope(addr, documentation) != Scope::Unusable && !addr::is_link_local_v6(addr);
        match addr::transport(addr).filter(|_| usable) {
            Some(Transport::Quic) => push(&mut quic, addr::without_peer(addr)),
            Some(Transport::Tcp) => push(&mut tcp, addr::without_peer(addr)),
            None => {}
        }
    }
    let direct = [(Transport::Quic, quic), (Transport::Tcp, tcp)];
    direct
        .into_iter()
        .filter(|(_, addrs)| !addrs.is_empty())
        .map(|(transport, addrs)| Stage::Direct { transport, addrs })
        .chain(relays.into_iter().take(3).map(|(relay, relay_addrs)| Stage::Circuit { relay, relay_addrs }))
        .collect()
}

fn push(addrs: &mut Vec<Multiaddr>, addr: Multiaddr) {
    if addrs.len() < ADDRESSES_PER_PEER_MAX && !addrs.contains(&addr) {
        addrs.push(addr);
    }
}

/// A failure with its words cut to 200 bytes.
pub(crate) fn failure(addr: Multiaddr, step: Step, reason: &str) -> Failure {
    let mut end = reason.len().min(200);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    Failure { addr, step, reason: reason[..end].to_owned() }
}

/// What a failed dial says about each of its addresses.
pub(crate) fn failures(error: &DialError, dialed: Vec<Multiaddr>) -> Vec<Failure> {
    let all =
        |step: Step, reason: &str| dialed.iter().map(|addr| failure(addr.clone(), step, reason)).collect();
    match error {
        DialError::Transport(errors) => {
            errors.iter().map(|(addr, error)| transport_failure(addr, error)).collect()
        }
        DialError::WrongPeerId { obtained, address } => {
            vec![failure(addr::without_peer(address), Step::WrongPeer, &format!("{obtained} answered"))]
        }
        DialError::LocalPeerId { address } => {
            vec![failure(addr::without_peer(address), Step::WrongPeer, "this node answered")]
        }
        DialError::Denied { cause } => all(Step::Limits, &chain(cause)),
        DialError::Aborted => all(Step::NoAnswer, "aborted"),
        DialError::NoAddresses => all(Step::Address, "no addresses"),
        DialError::DialPeerConditionFalse(_) => all(Step::Limits, "being dialed already"),
    }
}

fn transport_failure(addr: &Multiaddr, error: &TransportError<io::Error>) -> Failure {
    let circuit = addr::is_circuit(addr);
    let addr = addr::without_peer(addr);
    match error {
        TransportError::MultiaddrNotSupported(_) => {
            failure(addr, Step::Address, "not an address we can dial")
        }
        TransportError::Other(error) if circuit => {
            let words = chain(error);
            // The relay's answer, or that there is none because the connection with it has ended.
            let step = if words.contains("canceled") { Step::Relay } else { Step::Circuit };
            failure(addr, step, &words)
        }
        TransportError::Other(error) => {
            let words = chain(error);
            failure(addr, step_of(&words), &words)
        }
    }
}

/// libp2p's wrappers keep the words of the system's error and drop its kind.
fn step_of(words: &str) -> Step {
    let says = |any: &[&str]| any.iter().any(|part| words.contains(part));
    match () {
        () if says(&["Connection refused"]) => Step::Refused,
        () if says(&["unreachable", "No route to host", "Cannot assign requested address"]) => Step::NoRoute,
        () if says(&["timed out", "Timeout", "timeout"]) => Step::NoAnswer,
        () if says(&["resolve", "no record found", "proto error"]) => Step::Resolve,
        () if says(&["reset by peer", "Connection aborted", "unexpected end of file", "UnexpectedEof"]) => {
            Step::Closed
        }
        () => Step::Handshake,
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_words = inner.to_string();
        if !words.contains(&inner_words) {
            words = format!("{words}: {inner_words}");
        }
        source = inner.source();
    }
    words
        .replace("Multiple dial errors occurred:", "")
        .replace(['\n', '\r'], " ")
        .trim_start_matches([' ', '-'])
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn quic_comes_before_tcp_and_circuits_last_one_stage_a_relay() {
        let (local, relay) = (PeerId::random(), PeerId::random());
        let circuit = |base: &str| addr(&format!("{base}/p2p/{relay}/p2p-circuit"));
        let addrs = [
            circuit("/ip4/9.9.9.9/tcp/1"),
            addr("/ip4/10.0.0.1/tcp/1"),
            circuit("/ip4/9.9.9.9/udp/1/quic-v1"),
            addr("/ip4/10.0.0.1/udp/1/quic-v1"),
            addr("/ip4/198.51.100.1/udp/1/quic-v1"),
            addr("/memory/1"),
        ];
        let expected = [
            Stage::Direct { transport: Transport::Quic, addrs: vec![addr("/ip4/10.0.0.1/udp/1/quic-v1")] },
            Stage::Direct { transport: Transport::Tcp, addrs: vec![addr("/ip4/10.0.0.1/tcp/1")] },
            Stage::Circuit {
                relay,
                relay_addrs: vec![addr("/ip4/9.9.9.9/tcp/1"), addr("/ip4/9.9.9.9/udp/1/quic-v1")],
            },
        ];
        assert_eq!(stages(local, &addrs, Documentation::Unusable), expected);
    }

    #[test]
    fn the_next_stage_waits_for_its_head_start_unless_nothing_is_under_way() {
        let now = Instant::now();
        let addrs = [addr("/ip4/10.0.0.1/udp/1/quic-v1"), addr("/ip4/10.0.0.1/tcp/1")];
        let stages = stages(PeerId::random(), &addrs, Documentation::Unusable);
        let mut attempt = Attempt::new(stages, Purpose::Asked, now);
        let id = ConnectionId::new_unchecked(1);
        assert!(attempt.due(now).is_some());
        attempt.take(now);
        attempt.dialing(id, vec![addrs[0].clone()]);
        assert_eq!(attempt.due(now), None);
        assert!(attempt.due(now + TCP_HEAD_START).is_some());
        attempt.settled(id);
        assert!(attempt.due(now).is_some());
    }

    #[test]
    fn what_is_learned_meanwhile_is_tried_at_once_and_nothing_twice() {
        let (now, local, relay) = (Instant::now(), PeerId::random(), PeerId::random());
        let (old, new) = (addr("/ip4/10.0.0.1/udp/1/quic-v1"), addr("/ip4/10.0.0.2/udp/1/quic-v1"));
        let circuit = addr(&format!("/ip4/9.9.9.9/tcp/1/p2p/{relay}/p2p-circuit"));
        let stages = |addrs: &[Multiaddr]| stages(local, addrs, Documentation::Unusable);
        let mut attempt = Attempt::new(stages(std::slice::from_ref(&old)), Purpose::Asked, now);
        attempt.take(now);
        attempt.dialing(ConnectionId::new_unchecked(1), vec![old.clone()]);
        attempt.widen(stages(&[old, new.clone(), circuit.clone()]), now);
        attempt.widen(stages(&[new.clone(), circuit]), now);
        assert!(attempt.due(now).is_some());
        assert_eq!(attempt.take(now), Some(Stage::Direct { transport: Transport::Quic, addrs: vec![new] }));
        assert!(matches!(attempt.take(now), Some(Stage::Circuit { .. })));
        assert!(!attempt.has_stages());
    }

    #[test]
    fn every_address_is_in_the_answer_with_its_step() {
        let (now, peer) = (Instant::now(), PeerId::random());
        let mut attempt = Attempt::new(VecDeque::new(), Purpose::Asked, now);
        let (waiter, mut answer) = oneshot::channel();
        attempt.join(waiter);
        attempt.dialing(ConnectionId::new_unchecked(1), vec![addr("/ip4/10.0.0.1/udp/1/quic-v1")]);
        attempt.failed([failure(addr("/ip4/10.0.0.1/tcp/1"), Step::Refused, "refused")]);
        attempt.fail(peer);
        let Ok(Err(ConnectError::Unreachable { failures, .. })) = answer.try_recv() else {
            panic!("no answer")
        };
        assert_eq!(
            failures.iter().map(|failure| failure.step).collect::<Vec<_>>(),
            [Step::Refused, Step::NoAnswer]
        );
    }
}
