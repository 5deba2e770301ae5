//! How a swarm is set up.

use libp2p::{Multiaddr, PeerId, identity};

use super::addr::Documentation;
use super::book::BookSnapshot;
use crate::limits;

/// What the node is to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A member's own node, usually behind a NAT.
    #[default]
    Home,
    /// A public node that keeps reservations, opens circuits and answers AutoNAT.
    Relay,
}

/// How a swarm is set up. The defaults, from [`Config::new`], suit a node on a home connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's key. Its public half is the [`PeerId`]; Ed25519 only.
    pub keypair: identity::Keypair,
    /// Where to listen. An address that cannot be listened on is skipped with a warning; if none can, the
    /// start fails.
    pub listen: Vec<Multiaddr>,
    /// Addresses known to reach us from outside, e.g. a relay's public ones, each of them.
    pub external: Vec<Multiaddr>,
    /// What the node is to others.
    pub role: Role,
    /// Find, and be found by, nodes on the LAN.
    pub mdns: bool,
    /// Ask the router to forward our ports.
    pub upnp: bool,
    /// Take part in the distributed hash table `/kos/kad/1`: as a server once an external address is confirmed.
    pub kad: bool,
    /// Nodes to begin with in the hash table.
    pub bootstrap: Vec<(PeerId, Multiaddr)>,
    /// Whether 198.51.100.0/24, 203.0.113.0/24 and 2001:db8::/32 count as global. For laboratories.
    pub documentation: Documentation,
    /// Links kept at most.
    pub links_max: u32,
    /// Flows a minute that dials may open, on top of a burst of the same number.
    pub dials_per_minute: u32,
    /// Flows a minute that upkeep (redialing, later punches) may open, on top of a burst of three times as many.
    pub upkeep_dials_per_minute: u32,
    /// New inbound connections a minute from one IPv4 address or IPv6 /64.
    pub inbound_per_prefix_per_minute: u32,
    /// What an earlier run knew, tried first.
    pub known: BookSnapshot,
}

impl Config {
    /// The defaults for a role: QUIC and TCP on a port the system chooses, IPv4 and IPv6.
    pub fn new(keypair: identity::Keypair, role: Role) -> Self {
        let (links_max, dials_per_minute) = match role {
            Role::Home => (limits::LINKS_HOME_MAX, 60),
            Role::Relay => (limits::LINKS_RELAY_MAX, 600),
        };
        Self {
            keypair,
            listen: listen_on(0),
            external: Vec::new(),
            role,
            mdns: role == Role::Home,
            upnp: role == Role::Home,
            kad: true,
            bootstrap: Vec::new(),
            documentation: Documentation::default(),
            links_max,
            dials_per_minute,
            upkeep_dials_per_minute: 6,
            inbound_per_prefix_per_minute: limits::INBOUND_PER_PREFIX_PER_MINUTE,
            known: BookSnapshot::default(),
        }
    }
}

/// All interfaces on one port: QUIC before TCP, IPv4 before IPv6. Port 0 lets the system choose.
pub fn listen_on(port: u16) -> Vec<Multiaddr> {
    use libp2p::core::multiaddr::Protocol as Part;
    let any = |ip: Part<'static>| Multiaddr::empty().with(ip);
    let v4 = Part::Ip4(std::net::Ipv4Addr::UNSPECIFIED);
    let v6 = Part::Ip6(std::net::Ipv6Addr::UNSPECIFIED);
    vec![
        any(v4.clone()).with(Part::Udp(port)).with(Part::QuicV1),
        any(v6.clone()).with(Part::Udp(port)).with(Part::QuicV1),
        any(v4).with(Part::Tcp(port)),
        any(v6).with(Part::Tcp(port)),
    ]
}
