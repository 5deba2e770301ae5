//! What the swarm tells.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libp2p::core::ConnectedPoint;
use libp2p::identify::UpgradeError;
use libp2p::swarm::{ConnectionError, ConnectionId, StreamUpgradeError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, autonat, dcutr, gossipsub, identify, ping, relay, upnp, yamux};

use super::Driver;
use crate::limits::{EVENTS_RESERVED, GOSSIP_BYTES_MAX, GOSSIP_TOPICS_MAX};
use crate::swarm::addr::{self, Scope, Transport};
use crate::swarm::behaviour::BehaviourEvent;
use crate::swarm::counters::{Deed, Refusal};
use crate::swarm::dial;
use crate::swarm::klp::path_of;
use crate::swarm::reach::{PortMapping, Try};
use crate::swarm::types::{Event, GossipId, Path, Step, Verdict};
use crate::swarm::upkeep::Round;

/// How long after a change of addresses the network counts as changed: several come together.
const SETTLE: Duration = Duration::from_secs(1);

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether a connection ended because the peer sent what is no Yamux. QUIC knows no such end.
fn broke_the_multiplexer(cause: &ConnectionError) -> bool {
    let ConnectionError::IO(error) = cause else { return false };
    let of_yamux = error.get_ref().and_then(|inner| inner.downcast_ref::<yamux::Error>());
    // Its kinds are private; their words are not. A connection that breaks off in a frame is another matter.
    let words = of_yamux.map(ToString::to_string).unwrap_or_default();
    words.starts_with("decode error") && !words.starts_with("decode error: i/o error")
}

impl Driver {
    pub(super) fn heard(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::Behaviour(event) => self.behaved(event, now),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.link_up(peer_id, connection_id, &endpoint, now);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, endpoint, num_established, cause } => {
                if cause.as_ref().is_some_and(broke_the_multiplexer) {
                    self.shared.counters.refuse(Refusal::Multiplexer);
                }
                let reason = cause.map(|cause| dial::chain(&cause));
                self.offered.remove(&connection_id);
                self.drains.remove(&connection_id);
                self.suspects.remove(&connection_id);
                let path = path_of(&endpoint);
                tracing::debug!(peer = %peer_id, %path, reason, "link down");
                self.tell(Event::LinkDown {
                    peer: peer_id,
                    connection: connection_id,
                    remaining: num_established,
                    reason,
                });
                self.link_lost(peer_id, &path, now);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.dial_failed(connection_id, peer_id, &error, now);
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                let circuit = addr::is_circuit(&address);
                if addr::scope(&address, self.documentation) == Scope::Global && !circuit {
                    // Whatever filters it, nothing translates it: a candidate that nobody has to see first. A relay is
                    // reached over one family only, and would show that one.
                    self.swarm.behaviour_mut().klp.offer_candidate(address.clone());
                }
                self.listeners.entry(listener_id).or_default().insert(address);
                self.addresses_dirty = true;
                if circuit {
                    self.reservation_made(listener_id);
                } else if now.saturating_duration_since(self.started) > SETTLE {
                    // A new interface: those we had no way to may be near now.
                    self.upkeep.hurry(now);
                    self.hurry_reservations(now);
                }
            }
            SwarmEvent::ExpiredListenAddr { listener_id, address } => {
                if let Some(addrs) = self.listeners.get_mut(&listener_id) {
                    addrs.remove(&address);
                }
                self.addresses_dirty = true;
                if !addr::is_circuit(&address) {
                    self.withdraw(|confirmed| addr::ip(confirmed) == addr::ip(&address));
                    self.changed_at.get_or_insert(now + SETTLE);
                }
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                let words = match &reason {
                    Ok(()) => "closed".to_owned(),
                    Err(error) => dial::chain(error),
                };
                self.listener_closed(listener_id, &words, now);
                self.listeners.remove(&listener_id);
                self.addresses_dirty = true;
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listening"),
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.addresses_dirty = true;
            }
            _ => {}
        }
    }

    fn link_up(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, now: Instant) {
        let Some(link) = self.shared.find(id) else { return };
        let relayed_before =
            !self.shared.of(&peer).iter().any(|other| other.path.is_direct() && other.connection != id)
                && self.shared.of(&peer).iter().any(|other| !other.path.is_direct());
        tracing::debug!(%peer, path = %link.path, "link up");
        self.tell(Event::LinkUp { peer, connection: id, path: link.path.clone() });
        match endpoint {
            ConnectedPoint::Dialer { address, role_override, .. } => {
                self.shared.counters.count(Deed::DialOk);
                if role_override.is_dialer() {
                    self.book.succeeded(peer, address, now_s());
                }
                self.reach.tried(peer, Try::Dial, Ok(addr::without_peer(address)));
            }
            ConnectedPoint::Listener { .. } => self.shared.counters.count(Deed::Accepted),
        }
        if link.path.is_direct() && relayed_before {
            self.tell(Event::PathUpgraded { peer });
        }
        self.link_made(&link, now);
    }

    fn behaved(&mut self, event: BehaviourEvent, now: Instant) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.identified(connection_id, peer_id, &info);
            }
            BehaviourEvent::Identify(identify::Event::Error { error, .. }) => self.not_identified(error),
            BehaviourEvent::Ping(ping::Event { peer, connection, result }) => {
                self.pinged(peer, connection, result)
            }
            BehaviourEvent::Gossip(event) => self.gossiped(event, now),
            BehaviourEvent::Dcutr(event) => self.punched(event, now),
            BehaviourEvent::Autonat(event) => self.probed(event),
            BehaviourEvent::Kad(event) => self.looked_up(event, now),
            BehaviourEvent::Relay(event) => self.relayed(&event),
            BehaviourEvent::Mdns(event) => self.seen_on_lan(event, now),
            BehaviourEvent::Upnp(event) => self.port_mapped(event),
            _ => {}
        }
    }

    fn not_identified(&self, error: StreamUpgradeError<UpgradeError>) {
        let StreamUpgradeError::Apply(UpgradeError::Codec(error)) = error else { return };
        // Of other kinds are streams that break off.
        if io::Error::from(error).kind() == io::ErrorKind::InvalidData {
            self.shared.counters.refuse(Refusal::Identify);
        }
    }

    /// A TCP connection that does not answer is dead; QUIC finds that out by itself.
    fn pinged(&mut self, peer: PeerId, id: ConnectionId, result: Result<Duration, ping::Failure>) {
        let Some(link) = self.shared.find(id) else { return };
        match result {
            Ok(rtt) => link.measured(rtt),
            Err(ping::Failure::Timeout)
                if matches!(link.path, Path::Direct { transport: Transport::Tcp, .. }) =>
            {
                tracing::debug!(%peer, path = %link.path, "no answer to ping: closing");
                self.swarm.close_connection(id);
            }
            Err(_) => {}
        }
    }

    fn gossiped(&mut self, event: gossipsub::Event, now: Instant) {
        match event {
            gossipsub::Event::Message { propagation_source: from, message_id, message } => {
                let Ok(id) = <[u8; 32]>::try_from(message_id.0.as_slice()) else { return };
                let id = GossipId(id);
                if message.data.len() > GOSSIP_BYTES_MAX {
                    return self.report(id, from, Verdict::Reject);
                }
                if !self.gossip_rate.take(from, now) {
                    self.shared.counters.refuse(Refusal::GossipRate);
                    return self.report(id, from, Verdict::Ignore);
                }
                let topic = message.topic.into_string();
                let event = Event::Gossip { topic, bytes: message.data, from, id };
                if self.events.capacity() > EVENTS_RESERVED && self.events.try_send(event).is_ok() {
                    self.shared.counters.count(Deed::GossipIn);
                } else {
                    self.shared.counters.refuse(Refusal::GossipQueueFull);
                    self.report(id, from, Verdict::Ignore);
                }
            }
            gossipsub::Event::Subscribed { peer_id, topic } => {
                if self.topics_of(&peer_id) >= GOSSIP_TOPICS_MAX {
                    self.shared.counters.refuse(Refusal::GossipTopics);
                }
                let topic = topic.into_string();
                if self.topics.contains(&topic) {
                    self.tell(Event::Subscribed { peer: peer_id, topic });
                }
            }
            _ => {}
        }
    }

    fn topics_of(&mut self, peer: &PeerId) -> usize {
        let gossip = self.swarm.behaviour_mut().gossip.inner_mut();
        gossip.all_peers().find(|(known, _)| *known == peer).map_or(0, |(_, topics)| topics.len())
    }

    fn punched(&mut self, event: dcutr::Event, now: Instant) {
        let peer = event.remote_peer_id;
        match event.result {
            Ok(_) => {
                self.shared.counters.count(Deed::PunchOk);
                let direct = self.shared.of(&peer).into_iter().find_map(|link| match &link.path {
                    Path::Direct { addr, .. } => Some(addr.clone()),
                    Path::Relayed { .. } => None,
                });
                if let Some(addr) = direct {
                    self.reach.tried(peer, Try::Punch, Ok(addr));
                }
            }
            Err(error) => {
                self.shared.counters.count(Deed::PunchFailed);
                let words = error.to_string();
                let step = if words.contains("Giving up") { Step::Punch } else { Step::Coordination };
                tracing::info!(%peer, reason = words, "no direct connection yet");
                self.reach.tried(peer, Try::Punch, Err(dial::failure(Multiaddr::empty(), step, &words)));
                if !self.has_direct(&peer) {
                    self.upkeep.ended(&peer, Round::Relayed, now);
                }
            }
        }
    }

    fn probed(&mut self, event: autonat::v2::client::Event) {
        let autonat::v2::client::Event { tested_addr, server, result, .. } = event;
        let outcome = match result {
            Ok(()) => Ok(tested_addr),
            Err(error) => Err(dial::failure(tested_addr, Step::NoAnswer, &error.to_string())),
        };
        tracing::debug!(%server, ?outcome, "probed");
        self.reach.probed(server, outcome);
        self.addresses_dirty = true;
    }

    fn relayed(&mut self, event: &relay::Event) {
        match event {
            relay::Event::ReservationReqAccepted { renewed: false, .. } => {
                self.shared.counters.count(Deed::ReservationGranted);
            }
            relay::Event::CircuitReqAccepted { .. } => self.shared.counters.count(Deed::CircuitGranted),
            relay::Event::CircuitReqDenied { .. } => self.shared.counters.refuse(Refusal::Circuit),
            _ => {}
        }
    }

    fn port_mapped(&mut self, event: upnp::Event) {
        self.reach.port_mapping = match event {
            upnp::Event::NewExternalAddr { external_addr, .. } => PortMapping::Mapped(external_addr),
            upnp::Event::ExpiredExternalAddr { .. } => PortMapping::None,
            upnp::Event::GatewayNotFound => PortMapping::NoGateway,
            upnp::Event::NonRoutableGateway => PortMapping::GatewayNotPublic,
        };
    }

    /// External and listening addresses, each sorted. Circuits are external.
    pub(super) fn addresses(&self) -> (Vec<Multiaddr>, Vec<Multiaddr>) {
        let all = self.listeners.values().flatten().cloned();
        let (circuits, mut listen): (Vec<_>, Vec<_>) = all.partition(addr::is_circuit);
        let usable = |addr: &&Multiaddr| {
            addr::is_circuit(addr) || addr::scope(addr, self.documentation) != Scope::Unusable
        };
        let mut external: Vec<_> = self
            .swarm
            .external_addresses()
            .filter(usable)
            .map(addr::without_peer)
            .chain(circuits.iter().map(addr::without_peer))
            .collect();
        for addrs in [&mut external, &mut listen] {
            addrs.sort();
            addrs.dedup();
        }
        (external, listen)
    }

    pub(super) fn announce_addresses(&mut self, now: Instant) {
        if !std::mem::take(&mut self.addresses_dirty) {
            return;
        }
        let now_known = self.addresses();
        if now_known == self.announced {
            return;
        }
        self.announced = now_known.clone();
        let (external, listen) = now_known;
        self.settle_table(&external, now);
        self.tell(Event::AddressesChanged { external, listen });
    }
}
