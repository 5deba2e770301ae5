//! What peers tell us about addresses: theirs and ours.

use std::collections::BTreeSet;
use std::time::Instant;

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId, identify, mdns};

use super::Driver;
use crate::limits::{ADDRESSES_PER_PEER_MAX, MDNS_PEERS_MAX, OBSERVERS_MAX};
use crate::swarm::addr::{self, Documentation, Scope, Transport};
use crate::swarm::behaviour::KAD_PROTOCOL;
use crate::swarm::counters::Refusal;
use crate::swarm::shared::LinkState;
use crate::swarm::types::{Dialed, Event, Path};

impl Driver {
    /// identify: where the peer says it is, and how it sees us.
    pub(super) fn identified(&mut self, id: ConnectionId, peer: PeerId, info: &identify::Info) {
        let Some(link) = self.shared.find(id) else { return };
        let trusted = self.shared.is_member(&peer) || self.reservations.contains_key(&peer);
        if trusted {
            self.learn(peer, &info.listen_addrs);
        }
        match info.protocols.contains(&KAD_PROTOCOL) {
            true if link.path.is_direct() => self.is_server(peer, &info.listen_addrs),
            false if link.path.is_direct() => self.is_no_server(&peer),
            _ => {}
        }
        // A stranger that came to us could fill our candidates with anything.
        if trusted || link.dialed == Dialed::ByUs {
            self.observed_by(&link, &info.observed_addr);
        }
    }

    /// The peer sees us at `seen`: a candidate for probing and punching, as it is. identify would replace the
    /// port by the one we listen on, which is wrong behind every NAT that changes ports.
    fn observed_by(&mut self, link: &LinkState, seen: &Multiaddr) {
        let Path::Direct { addr: remote, transport } = &link.path else { return };
        let seen = addr::without_peer(seen);
        if addr::transport(&seen) != Some(*transport) || self.offered.get(&link.connection) == Some(&seen) {
            return;
        }
        if addr::scope(&seen, self.documentation) < addr::scope(remote, self.documentation)
            || addr::scope(&seen, self.documentation) == Scope::Unusable
        {
            return;
        }
        self.offered.insert(link.connection, seen.clone());
        if let (Some(from), Dialed::ByUs) = (addr::ip(remote), link.dialed) {
            self.reach.observed(link.peer, from, seen.clone());
        }
        let mut candidates = BTreeSet::new();
        // A TCP flow to anybody but a relay left from a port of its own, which nobody can dial.
        let from_our_port = *transport == Transport::Quic || self.is_relay(&link.peer);
        if from_our_port || link.dialed == Dialed::ByPeer {
            candidates.insert(seen.clone());
        }
        // The router may forward the port we listen on without using it for what we send.
        candidates.extend(self.listening_port(&seen).and_then(|port| with_port(&seen, port)));
        for candidate in candidates {
            tracing::debug!(%candidate, by = %link.peer, "seen as");
            if self.withdrawn.remove(&candidate) {
                self.swarm.add_external_address(candidate.clone());
                self.addresses_dirty = true;
            }
            self.swarm.behaviour_mut().klp.offer_candidate(candidate);
        }
        self.withdraw_unseen(&seen);
    }

    /// Somebody sees us elsewhere, and nobody any more where we were: the provider gave us another address.
    fn withdraw_unseen(&mut self, seen: &Multiaddr) {
        let family = |addr: &Multiaddr| addr::ip(addr).map(|ip| ip.is_ipv4());
        let places: BTreeSet<_> = self.offered.values().filter_map(addr::ip).collect();
        self.withdraw(|confirmed| {
            family(confirmed) == family(seen) && addr::ip(confirmed).is_some_and(|ip| !places.contains(&ip))
        });
    }

    /// Takes back what was confirmed and leads nowhere now, which AutoNAT never does; not what the caller gave. What
    /// was right once is right again when somebody sees us there.
    pub(super) fn withdraw(&mut self, is_lost: impl Fn(&Multiaddr) -> bool) {
        let confirmed = self.swarm.external_addresses().filter(|addr| !addr::is_circuit(addr));
        let confirmed = confirmed.filter(|addr| !self.configured.contains(&addr::without_peer(addr)));
        let lost: Vec<_> = confirmed.filter(|addr| is_lost(addr)).cloned().collect();
        for addr in lost {
            tracing::info!(%addr, "not reached there any more");
            self.swarm.remove_external_address(&addr);
            if self.withdrawn.len() >= OBSERVERS_MAX {
                self.withdrawn.pop_first();
            }
            self.withdrawn.insert(addr::without_peer(&addr));
            self.addresses_dirty = true;
        }
    }

    fn listening_port(&self, like: &Multiaddr) -> Option<u16> {
        let same_kind = |addr: &&Multiaddr| {
            addr::transport(addr) == addr::transport(like)
                && addr::ip(addr).map(|ip| ip.is_ipv4()) == addr::ip(like).map(|ip| ip.is_ipv4())
        };
        self.listeners.values().flatten().filter(same_kind).min().and_then(addr::port)
    }

    /// mDNS: who says to be on the LAN.
    pub(super) fn seen_on_lan(&mut self, event: mdns::Event, now: Instant) {
        match event {
            mdns::Event::Discovered(found) => {
                let peers: BTreeSet<_> = found.iter().map(|(peer, _)| *peer).collect();
                for peer in peers {
                    let addrs = found.iter().filter(|(of, _)| *of == peer).map(|(_, addr)| addr);
                    self.found_on_lan(peer, addrs.cloned().collect(), now);
                }
            }
            mdns::Event::Expired(gone) => {
                for (peer, addr) in gone {
                    let addr = addr::without_peer(&addr);
                    if let Some(addrs) = self.lan.get_mut(&peer) {
                        addrs.retain(|known| *known != addr);
                        if addrs.is_empty() {
                            self.lan.remove(&peer);
                        }
                    }
                }
            }
        }
    }

    fn found_on_lan(&mut self, peer: PeerId, addrs: Vec<Multiaddr>, now: Instant) {
        let member = self.shared.is_member(&peer);
        if self.lan.len() >= MDNS_PEERS_MAX && !self.lan.contains_key(&peer) {
            let members = self.shared.members();
            let stranger = self.lan.keys().find(|known| !members.contains(known)).copied();
            match stranger.filter(|_| member) {
                Some(stranger) => self.lan.remove(&stranger),
                None => return self.shared.counters.refuse(Refusal::MdnsFull),
            };
        }
        let mut addrs: Vec<_> = addrs
            .iter()
            .map(addr::without_peer)
            .filter(|addr| addr::scope(addr, Documentation::Unusable) == Scope::Private)
            .filter(|addr| addr::transport(addr).is_some() && !addr::is_link_local_v6(addr))
            .collect();
        addrs.truncate(ADDRESSES_PER_PEER_MAX);
        if addrs.is_empty() || self.lan.get(&peer) == Some(&addrs) {
            return;
        }
        self.lan.insert(peer, addrs.clone());
        if member {
            self.learn(peer, &addrs);
            self.keep_link(peer, now);
        }
        self.tell(Event::Mdns { peer, addrs });
    }
}

fn with_port(addr: &Multiaddr, port: u16) -> Option<Multiaddr> {
    use libp2p::core::multiaddr::Protocol as Part;
    addr.replace(1, |part| match part {
        Part::Udp(_) => Some(Part::Udp(port)),
        Part::Tcp(_) => Some(Part::Tcp(port)),
        _ => None,
    })
}
