//! Making links, keeping them, and closing those that are no longer needed.

use std::sync::Arc;
use std::time::Instant;

use libp2p::core::multiaddr::Protocol as Part;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use libp2p::{Multiaddr, PeerId};

use super::{Drain, Driver};
use crate::limits::{CONNECTS_MAX, DRAIN_MAX, DRAIN_MIN};
use crate::swarm::addr::{self, Transport};
use crate::swarm::config::Role;
use crate::swarm::counters::Deed;
use crate::swarm::dial::{self, Attempt, Purpose, Stage, Waiter};
use crate::swarm::reach::Try;
use crate::swarm::shared::LinkState;
use crate::swarm::types::{ConnectError, Event, Path, Step};
use crate::swarm::upkeep::Round;

impl Driver {
    pub(super) fn connect(
        &mut self,
        peer: PeerId,
        addrs: &[Multiaddr],
        waiter: Option<Waiter>,
        purpose: Purpose,
        now: Instant,
    ) {
        let refuse = |waiter: Option<Waiter>, error| {
            if let Some(waiter) = waiter {
                let _ = waiter.send(Err(error));
            }
        };
        if peer == self.shared.local {
            return refuse(waiter, ConnectError::Ourselves { peer });
        }
        self.learn(peer, addrs);
        if let Some(link) = self.shared.of(&peer).first()
            && purpose == Purpose::Asked
        {
            if let Some(waiter) = waiter {
                let _ = waiter.send(Ok(link.path.clone()));
            }
            return;
        }
        if let Some(attempt) = self.attempts.get_mut(&peer) {
            if let Some(waiter) = waiter {
                attempt.join(waiter);
            }
            return self.widen(peer, addrs, now);
        }
        if self.attempts.len() >= CONNECTS_MAX {
            self.upkeep.ended(&peer, self.round_with(&peer), now);
            return refuse(waiter, ConnectError::Busy { limit: CONNECTS_MAX });
        }
        let known = self.book.addresses(&peer);
        let stages = dial::stages(self.shared.local, &known, self.documentation);
        if stages.is_empty() {
            self.upkeep.ended(&peer, Round::Failed, now);
            return refuse(waiter, ConnectError::NoAddresses { peer });
        }
        let mut attempt = Attempt::new(stages, purpose, now);
        if let Some(waiter) = waiter {
            attempt.join(waiter);
        }
        self.attempts.insert(peer, attempt);
        self.advance(peer, now);
    }

    /// Has an attempt under way try these addresses as well.
    pub(super) fn widen(&mut self, peer: PeerId, addrs: &[Multiaddr], now: Instant) {
        if let Some(attempt) = self.attempts.get_mut(&peer) {
            attempt.widen(dial::stages(self.shared.local, addrs, self.documentation), now);
            self.advance(peer, now);
        }
    }

    pub(super) fn advance_attempts(&mut self, now: Instant) {
        let peers: Vec<_> = self.attempts.keys().copied().collect();
        for peer in peers {
            self.advance(peer, now);
        }
    }

    /// Dials what is due; ends the attempt when nothing is left.
    pub(super) fn advance(&mut self, peer: PeerId, now: Instant) {
        while let Some(attempt) = self.attempts.get_mut(&peer) {
            let Some(flows) = attempt.due(now).map(Stage::flows) else { break };
            let bucket = match attempt.purpose {
                Purpose::Asked => &mut self.asked,
                Purpose::Upkeep => &mut self.kept,
            };
            if let Err(wait) = bucket.take(flows, now) {
                attempt.next_at = now + wait;
                break;
            }
            match attempt.take(now) {
                Some(Stage::Direct { transport, addrs }) => self.dial_direct(peer, transport, addrs),
                Some(Stage::Circuit { relay, relay_addrs }) => {
                    self.dial_circuit(peer, relay, relay_addrs, now)
                }
                None => break,
            }
        }
        if self.attempts.get(&peer).is_some_and(|attempt| attempt.is_over(now)) {
            self.give_up(peer, now);
        }
    }

    fn give_up(&mut self, peer: PeerId, now: Instant) {
        let Some(attempt) = self.attempts.remove(&peer) else { return };
        // What could not be replaced may be sound after all.
        for link in self.shared.of(&peer) {
            self.suspects.remove(&link.connection);
        }
        let failures = attempt.fail(peer);
        let first = failures.first().map(ToString::to_string).unwrap_or_default();
        tracing::debug!(%peer, addresses = failures.len(), first, "not reachable");
        self.upkeep.ended(&peer, self.round_with(&peer), now);
        self.relay_unreachable(peer, &first, now);
        self.settle_circuits(peer, now);
    }

    fn round_with(&self, peer: &PeerId) -> Round {
        match self.shared.of(peer).first().map(|link| link.path.is_direct()) {
            Some(true) => Round::Direct,
            Some(false) => Round::Relayed,
            None => Round::Failed,
        }
    }

    /// TCP leaves from a port of its own unless the peer is a relay, whose view of our listening port is what a
    /// punch needs.
    fn dial_direct(&mut self, peer: PeerId, transport: Transport, addrs: Vec<Multiaddr>) {
        let for_punching = transport == Transport::Quic || self.is_relay(&peer);
        if let Some(id) = self.dial(peer, addrs.clone(), for_punching)
            && let Some(attempt) = self.attempts.get_mut(&peer)
        {
            attempt.dialing(id, addrs);
        }
    }

    /// Dials addresses together; `None` if the dial failed at once.
    pub(super) fn dial(
        &mut self,
        peer: PeerId,
        addrs: Vec<Multiaddr>,
        reuse_port: bool,
    ) -> Option<ConnectionId> {
        let options = DialOpts::peer_id(peer).addresses(addrs.clone()).condition(PeerCondition::Always);
        let options = if reuse_port { options } else { options.allocate_new_port() };
        let options = options.build();
        let id = options.connection_id();
        self.swarm.behaviour_mut().klp.paced(id);
        match self.swarm.dial(options) {
            Ok(()) => Some(id),
            Err(error) => {
                let failures = dial::failures(&error, addrs);
                if let Some(attempt) = self.attempts.get_mut(&peer) {
                    attempt.failed(failures);
                }
                None
            }
        }
    }

    fn dial_circuit(&mut self, peer: PeerId, relay: PeerId, relay_addrs: Vec<Multiaddr>, now: Instant) {
        let Some(first) = relay_addrs.first().cloned() else { return };
        let circuit = first.with(Part::P2p(relay)).with(Part::P2pCircuit);
        self.use_relay(relay);
        let Some(link) = self.sound(&relay) else {
            if let Some(attempt) = self.attempts.get_mut(&peer) {
                attempt.waits_for_relay(relay, circuit);
            }
            return self.connect(relay, &relay_addrs, None, Purpose::Asked, now);
        };
        self.learn(relay, &relay_addrs);
        self.plan_second_transport(relay, now);
        // Only a name: the circuit runs over the connection there is.
        let circuit = match &link.path {
            Path::Direct { addr, .. } => addr.clone().with(Part::P2p(relay)).with(Part::P2pCircuit),
            Path::Relayed { .. } => circuit,
        };
        let named = circuit.clone().with(Part::P2p(peer));
        if let Some(id) = self.dial(peer, vec![named], true)
            && let Some(attempt) = self.attempts.get_mut(&peer)
        {
            attempt.dialing(id, vec![circuit]);
        }
    }

    /// A relay was reached, or given up: circuits that waited for it go on.
    pub(super) fn settle_circuits(&mut self, relay: PeerId, now: Instant) {
        let reached = self.shared.of(&relay).iter().any(|link| link.path.is_direct());
        let peers: Vec<_> = self.attempts.keys().copied().collect();
        for peer in peers {
            let Some(circuit) =
                self.attempts.get_mut(&peer).and_then(|attempt| attempt.relay_settled(&relay))
            else {
                continue;
            };
            match addr::relay_of(&circuit) {
                Some((_, own)) if reached => self.dial_circuit(peer, relay, vec![own], now),
                _ => {
                    if let Some(attempt) = self.attempts.get_mut(&peer) {
                        attempt.failed([dial::failure(circuit, Step::Relay, "the relay is not reachable")]);
                    }
                }
            }
            self.advance(peer, now);
        }
    }

    /// A dial, ours or a behaviour's, failed.
    pub(super) fn dial_failed(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        error: &DialError,
        now: Instant,
    ) {
        let Some(peer) = peer else { return };
        self.shared.counters.count(Deed::DialFailed);
        match error {
            DialError::LocalPeerId { address } => self.met_own_key(address),
            DialError::WrongPeerId { obtained, address } if *obtained == self.shared.local => {
                self.met_own_key(address);
            }
            _ => {}
        }
        let dialed = self.attempts.get_mut(&peer).and_then(|attempt| attempt.settled(id));
        let failures = dial::failures(error, dialed.clone().unwrap_or_default());
        for failure in &failures {
            self.book.failed(&peer, &failure.addr);
            self.reach.tried(peer, Try::Dial, Err(failure.clone()));
        }
        if let Some(dialed) = dialed {
            let lost: Vec<_> = failures
                .iter()
                .filter(|failure| failure.step == Step::Relay)
                .filter_map(|failure| addr::relay_of(&failure.addr))
                .collect();
            // Somebody else's answer ends the whole dial, also for the addresses that had yet to answer.
            let failed: Vec<_> = failures.iter().map(|failure| &failure.addr).collect();
            let unanswered: Vec<_> = dialed.into_iter().filter(|addr| !failed.contains(&addr)).collect();
            if let Some(attempt) = self.attempts.get_mut(&peer) {
                attempt.failed(failures);
            }
            let wrong_peer = matches!(error, DialError::WrongPeerId { .. } | DialError::LocalPeerId { .. });
            if let Some(first) = unanswered.first().filter(|_| wrong_peer).and_then(addr::transport) {
                self.dial_direct(peer, first, unanswered);
            }
            self.retry_circuits(peer, lost, now);
            self.advance(peer, now);
        }
        self.second_transport_failed(peer, now);
    }

    /// The connection with a relay went while a circuit over it was asked for; over another one it may come about.
    fn retry_circuits(&mut self, peer: PeerId, lost: Vec<(PeerId, Multiaddr)>, now: Instant) {
        for (relay, own) in lost {
            let again = self.attempts.get_mut(&peer).is_some_and(|attempt| attempt.may_retry(relay));
            if again && self.sound(&relay).is_some() {
                self.dial_circuit(peer, relay, vec![own], now);
            }
        }
    }

    /// A stale address may have become ours; at any other one our key is somebody else's, too.
    fn met_own_key(&mut self, address: &Multiaddr) {
        let met = addr::without_peer(address);
        let observed = self.reach.explain(&[]).observed;
        let is_ours = self
            .listeners
            .values()
            .flatten()
            .chain(self.swarm.external_addresses())
            .chain(observed.iter().map(|observed| &observed.addr))
            .any(|own| addr::without_peer(own) == met);
        if !is_ours {
            self.tell(Event::OwnKeyAt { addr: met });
        }
    }

    /// A connection is up: whoever waited for it goes on, and what it replaces goes.
    pub(super) fn link_made(&mut self, link: &LinkState, now: Instant) {
        let peer = link.peer;
        if let Some(mut attempt) = self.attempts.remove(&peer) {
            attempt.settled(link.connection);
            attempt.succeed(&link.path);
        }
        self.replace_suspects(link, now);
        if self.shared.is_member(&peer) {
            self.learn_from(link);
            self.upkeep.want(peer, self.links_asked());
        }
        match link.path.is_direct() {
            true => {
                self.upkeep.reached(&peer, now);
                self.settle_circuits(peer, now);
                self.relay_reached(peer, now);
                self.plan_second_transport(peer, now);
            }
            // Punching begins by itself; if it comes to nothing, try again later.
            false if !self.has_direct(&peer) => self.upkeep.ended(&peer, Round::Relayed, now),
            false => {}
        }
        self.replace(peer, now);
    }

    pub(super) fn has_direct(&self, peer: &PeerId) -> bool {
        self.shared.of(peer).iter().any(|link| link.path.is_direct())
    }

    /// Without a direct connection a wanted peer is tried again, unless a try is planned or under way.
    pub(super) fn link_lost(&mut self, peer: PeerId, path: &Path, now: Instant) {
        self.revive(&peer);
        let tried_anyway = self.attempts.contains_key(&peer) || self.upkeep.is_planned(&peer);
        if !self.has_direct(&peer) && !tried_anyway {
            let round = if path.is_direct() { Round::Direct } else { Round::Relayed };
            self.upkeep.ended(&peer, round, now);
        }
        self.relay_lost(peer, now);
    }

    /// Closes, once unused, what a better connection replaced.
    ///
    /// Both ends close a circuit beside a direct connection. Of two direct connections only the end with the
    /// smaller id closes one, or both might go. With a relay neither end does: circuits run over its connections, and a
    /// home node wants both transports.
    fn replace(&mut self, peer: PeerId, now: Instant) {
        let links = self.shared.of(&peer);
        let Some(best) = links.iter().find(|link| link.path.is_direct()) else {
            return self.replace_circuits(&links, now);
        };
        let decides = self.shared.local < peer && self.role == Role::Home && !self.is_relay(&peer);
        for link in links.iter().filter(|link| link.connection != best.connection) {
            match link.path.is_direct() {
                false => self.drain_link(link, true, now),
                true if decides => self.drain_link(link, false, now),
                true => {}
            }
        }
    }

    /// What replaced a connection is gone before it was closed: it is used again.
    ///
    /// Two ends that dial each other at once may see one more connection than the other end keeps; it would take those
    /// it replaced along, and the link with them.
    fn revive(&mut self, peer: &PeerId) {
        if let Some(best) = self.shared.of(peer).first().filter(|best| best.is_draining()) {
            best.revive();
            self.drains.remove(&best.connection);
        }
    }

    fn replace_circuits(&mut self, links: &[Arc<LinkState>], now: Instant) {
        let local = self.shared.local;
        for link in links.iter().skip(1).filter(|link| local < link.peer) {
            self.drain_link(link, true, now);
        }
    }

    fn drain_link(&mut self, link: &LinkState, forced: bool, now: Instant) {
        link.drain();
        self.drains.entry(link.connection).or_insert(Drain { since: now, forced });
    }

    pub(super) fn drain(&mut self, now: Instant) {
        let due: Vec<_> = self.drains.iter().map(|(id, drain)| (*id, drain.since, drain.forced)).collect();
        for (id, since, forced) in due {
            let Some(link) = self.shared.find(id) else {
                self.drains.remove(&id);
                continue;
            };
            let age = now.saturating_duration_since(since);
            let unused = link.streams() == 0 && age >= DRAIN_MIN;
            if unused || (forced && age >= DRAIN_MAX) {
                let deed = if link.path.is_direct() { Deed::DuplicateClosed } else { Deed::RelayedClosed };
                self.shared.counters.count(deed);
                self.swarm.close_connection(id);
                self.drains.remove(&id);
            }
        }
    }

    pub(super) fn disconnect(&mut self, peer: PeerId) {
        self.upkeep.drop_want(&peer);
        if let Some(attempt) = self.attempts.remove(&peer) {
            attempt.fail(peer);
        }
        // Fails only if there is no connection.
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    pub(super) fn keep_links(&mut self, now: Instant) {
        while let Some(peer) = self.upkeep.due(now) {
            if self.has_direct(&peer) {
                self.upkeep.reached(&peer, now);
                continue;
            }
            self.connect(peer, &[], None, Purpose::Upkeep, now);
        }
    }

    /// Closes unused connections with strangers: over a new network they may be dead without knowing it, and servers of
    /// the hash table are dialed again when they are asked.
    pub(super) fn drop_strangers(&mut self) {
        let is_stranger = |link: &Arc<LinkState>| {
            link.streams() == 0
                && !self.shared.is_member(&link.peer)
                && !self.is_relay(&link.peer)
                && !self.attempts.contains_key(&link.peer)
        };
        let strangers: Vec<_> = self.shared.all().into_iter().filter(is_stranger).collect();
        for link in strangers {
            self.swarm.close_connection(link.connection);
        }
    }

    /// Dials the peers we are linked with once more, over circuits too: over a new network the old connections may be
    /// dead without knowing it, and where nobody can be dialed from outside only a punch makes new ones.
    pub(super) fn refresh_links(&mut self, now: Instant) {
        let direct = |link: &Arc<LinkState>| link.path.is_direct();
        self.suspects =
            self.shared.all().iter().filter(|link| direct(link)).map(|link| link.connection).collect();
        for peer in self.upkeep.wanted() {
            if self.has_direct(&peer) {
                let known = self.book.addresses(&peer);
                let stages = dial::stages(self.shared.local, &known, self.documentation);
                if !stages.is_empty() && self.attempts.len() < CONNECTS_MAX {
                    self.attempts.entry(peer).or_insert_with(|| Attempt::new(stages, Purpose::Upkeep, now));
                }
            }
        }
    }

    /// A connection came up after the network changed: those with the peer from before it go. At once where nothing is
    /// under way on them, or circuits and reservations would still go the old way.
    fn replace_suspects(&mut self, by: &LinkState, now: Instant) {
        if self.suspects.is_empty() || self.suspects.contains(&by.connection) || !by.path.is_direct() {
            return;
        }
        for link in self.shared.of(&by.peer) {
            if self.suspects.remove(&link.connection) {
                link.drain();
                if link.streams() == 0 {
                    self.swarm.close_connection(link.connection);
                } else {
                    self.drains.entry(link.connection).or_insert(Drain { since: now, forced: true });
                }
            }
        }
    }

    /// A direct connection that is not suspect.
    fn sound(&self, peer: &PeerId) -> Option<Arc<LinkState>> {
        let sound =
            |link: &Arc<LinkState>| link.path.is_direct() && !self.suspects.contains(&link.connection);
        self.shared.of(peer).into_iter().find(sound)
    }
}
