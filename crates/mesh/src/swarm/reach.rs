//! Reachability as an explanation: what the NAT does, what was tried, and at which step it failed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::SystemTime;

use libp2p::{Multiaddr, PeerId};

use super::addr::{self, Transport};
use super::types::Failure;
use crate::limits::{ATTEMPTS_KEPT_MAX, OBSERVERS_MAX};

/// How a NAT gives out external ports, in the terms of RFC 4787 section 4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Too few peers have told us what they see; two are needed.
    Unknown,
    /// Our own address is the one others see.
    NotTranslated,
    /// The same external port for every peer: punching works.
    EndpointIndependent,
    /// Another external port for each peer ("symmetric"): punching works only with a peer that is not so.
    EndpointDependent,
}

/// What a NAT or firewall lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Nobody has tried yet.
    Unknown,
    /// A stranger reached us: we are public, or a port is forwarded.
    Open,
    /// A stranger could not reach us.
    Restricted,
}

/// What became of asking the router for a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortMapping {
    /// Not asked, or no answer yet.
    None,
    /// The router forwards this address.
    Mapped(Multiaddr),
    /// No router that can be asked.
    NoGateway,
    /// The router is itself behind a NAT.
    GatewayNotPublic,
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Try {
    /// We dialed the peer.
    Dial,
    /// We and the peer dialed each other at once.
    Punch,
    /// A relay dialed us to find out whether it can (AutoNAT v2).
    Probe,
}

/// One try and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// With whom.
    pub peer: PeerId,
    /// When.
    pub at: SystemTime,
    /// What.
    pub what: Try,
    /// Why not, or the address that worked.
    pub outcome: Result<Multiaddr, Failure>,
}

/// An address of ours as a peer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The peer.
    pub by: PeerId,
    /// The peer's own IP address; a NAT may map differently for each.
    pub from: IpAddr,
    /// What it sees.
    pub addr: Multiaddr,
}

/// Why we can, or cannot, be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachability {
    /// How our UDP flows are translated.
    pub mapping: Mapping,
    /// What is let in.
    pub filtering: Filtering,
    /// What the router did for us.
    pub port_mapping: PortMapping,
    /// What peers see over UDP.
    pub observed: Vec<Observed>,
    /// The last tries, oldest first.
    pub tried: Vec<Tried>,
}

/// Collects what [`Reachability`] says.
#[derive(Debug)]
pub(crate) struct Reach {
    observed: BTreeMap<(PeerId, bool), Observed>,
    filtering: Filtering,
    pub(crate) port_mapping: PortMapping,
    tried: VecDeque<Tried>,
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            observed: BTreeMap::new(),
            filtering: Filtering::Unknown,
            port_mapping: PortMapping::None,
            tried: VecDeque::new(),
        }
    }
}

impl Reach {
    /// A peer told us how it sees a flow that left from our listening UDP port.
    pub(crate) fn observed(&mut self, by: PeerId, from: IpAddr, seen: Multiaddr) {
        if addr::transport(&seen) != Some(Transport::Quic) {
            return;
        }
        let key = (by, from.is_ipv4());
        if self.observed.len() >= OBSERVERS_MAX && !self.observed.contains_key(&key) {
            self.observed.pop_first();
        }
        self.observed.insert(key, Observed { by, from, addr: seen });
    }

    pub(crate) fn probed(&mut self, server: PeerId, outcome: Result<Multiaddr, Failure>) {
        self.filtering = match (&outcome, self.filtering) {
            (Ok(_), _) | (Err(_), Filtering::Open) => Filtering::Open,
            (Err(_), _) => Filtering::Restricted,
        };
        self.tried(server, Try::Probe, outcome);
    }

    pub(crate) fn tried(&mut self, peer: PeerId, what: Try, outcome: Result<Multiaddr, Failure>) {
        if self.tried.len() >= ATTEMPTS_KEPT_MAX {
            self.tried.pop_front();
        }
        self.tried.push_back(Tried { peer, at: SystemTime::now(), what, outcome });
    }

    /// The network changed: what was seen of the old one says nothing about the new one.
    pub(crate) fn network_changed(&mut self) {
        self.observed.clear();
        self.filtering = Filtering::Unknown;
    }

    pub(crate) fn explain(&self, listen: &[Multiaddr]) -> Reachability {
        Reachability {
            mapping: self.mapping(listen),
            filtering: self.filtering,
            port_mapping: self.port_mapping.clone(),
            observed: self.observed.values().cloned().collect(),
            tried: self.tried.iter().cloned().collect(),
        }
    }

    fn mapping(&self, listen: &[Multiaddr]) -> Mapping {
        let ours: BTreeSet<_> = listen.iter().filter_map(addr::ip).collect();
        let translated: Vec<_> = self
            .observed
            .values()
            .filter(|seen| seen.from.is_ipv4() && !seen.from.is_loopback())
            .filter(|seen| addr::ip(&seen.addr).is_some_and(|ip| ip.is_ipv4()))
            .collect();
        if translated.iter().any(|seen| addr::ip(&seen.addr).is_some_and(|ip| ours.contains(&ip))) {
            return Mapping::NotTranslated;
        }
        let places: BTreeSet<_> = translated.iter().map(|seen| seen.from).collect();
        let seen: BTreeSet<_> = translated.iter().map(|seen| &seen.addr).collect();
        match (places.len(), seen.len()) {
            (_, 2..) => Mapping::EndpointDependent,
            (2.., 1) => Mapping::EndpointIndependent,
            _ => Mapping::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(observations: &[(&str, &str)]) -> Mapping {
        let mut reach = Reach::default();
        for (from, seen) in observations {
            reach.observed(PeerId::random(), from.parse().unwrap(), seen.parse().unwrap());
        }
        reach.explain(&["/ip4/192.168.1.2/udp/4/quic-v1".parse().unwrap()]).mapping
    }

    #[test]
    fn two_observers_tell_how_a_nat_maps() {
        assert_eq!(mapping(&[]), Mapping::Unknown);
        assert_eq!(mapping(&[("9.0.0.1", "/ip4/8.0.0.1/udp/4/quic-v1")]), Mapping::Unknown);
        assert_eq!(
            mapping(&[("9.0.0.1", "/ip4/8.0.0.1/udp/4/quic-v1"), ("9.0.0.2", "/ip4/8.0.0.1/udp/4/quic-v1")]),
            Mapping::EndpointIndependent
        );
        assert_eq!(
            mapping(&[("9.0.0.1", "/ip4/8.0.0.1/udp/4/quic-v1"), ("9.0.0.2", "/ip4/8.0.0.1/udp/5/quic-v1")]),
            Mapping::EndpointDependent
        );
        assert_eq!(mapping(&[("9.0.0.1", "/ip4/192.168.1.2/udp/4/quic-v1")]), Mapping::NotTranslated);
    }

    #[test]
    fn only_the_last_tries_are_kept() {
        let mut reach = Reach::default();
        for _ in 0..2 * ATTEMPTS_KEPT_MAX {
            reach.tried(PeerId::random(), Try::Dial, Ok("/ip4/1.1.1.1/tcp/1".parse().unwrap()));
        }
        for _ in 0..2 * OBSERVERS_MAX {
            reach.observed(
                PeerId::random(),
                IpAddr::from([9, 9, 9, 9]),
                "/ip4/8.0.0.1/udp/4/quic-v1".parse().unwrap(),
            );
        }
        let explained = reach.explain(&[]);
        assert_eq!((explained.tried.len(), explained.observed.len()), (ATTEMPTS_KEPT_MAX, OBSERVERS_MAX));
    }
}
