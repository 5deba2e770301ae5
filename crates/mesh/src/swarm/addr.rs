//! What an address is: its transport, its scope, the relay in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::core::multiaddr::Protocol as Part;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

use crate::limits::ADDRESS_BYTES_MAX;

/// How a direct connection travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC version 1 over UDP: preferred.
    Quic,
    /// TCP with Noise and Yamux.
    Tcp,
}

/// Who can reach an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// This machine.
    Loopback,
    /// This LAN: RFC 1918, link-local and unique local addresses.
    Private,
    /// The internet. A name counts as global.
    Global,
    /// Nobody: unspecified, multicast, shared (RFC 6598), or documentation ranges unless accepted.
    Unusable,
}

/// Whether the ranges reserved for documentation count as global. Tests in a laboratory do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Documentation {
    /// They are nobody's: the default.
    #[default]
    Unusable,
    /// They are the laboratory's internet.
    Global,
    /// They and the loopback of this machine are: for tests that need no laboratory.
    Machine,
}

/// The transport of a direct address; `None` for circuits and anything we do not speak.
pub fn transport(addr: &Multiaddr) -> Option<Transport> {
    let mut parts = addr.iter();
    match (parts.next()?, parts.next()?, parts.next()) {
        _ if is_circuit(addr) => None,
        (
            Part::Ip4(_) | Part::Ip6(_) | Part::Dns(_) | Part::Dns4(_) | Part::Dns6(_),
            Part::Udp(_),
            Some(Part::QuicV1),
        ) => Some(Transport::Quic),
        (
            Part::Ip4(_) | Part::Ip6(_) | Part::Dns(_) | Part::Dns4(_) | Part::Dns6(_),
            Part::Tcp(_),
            None | Some(Part::P2p(_)),
        ) => Some(Transport::Tcp),
        _ => None,
    }
}

/// Whether the address goes through a relay.
pub fn is_circuit(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Part::P2pCircuit)
}

/// Splits a circuit into the relay's id and the relay's own address.
pub fn relay_of(addr: &Multiaddr) -> Option<(PeerId, Multiaddr)> {
    let mut own = Multiaddr::empty();
    let mut relay = None;
    for part in addr.iter() {
        match part {
            Part::P2pCircuit => return relay.map(|relay| (relay, own)),
            Part::P2p(id) => relay = Some(id),
            part => own.push(part),
        }
    }
    None
}

/// The address without a closing `/p2p/…`; circuits keep the relay's.
pub fn without_peer(addr: &Multiaddr) -> Multiaddr {
    let mut addr = addr.clone();
    if matches!(addr.iter().last(), Some(Part::P2p(_))) {
        addr.pop();
    }
    addr
}

/// The id the address closes with, if it does.
pub fn peer_of(addr: &Multiaddr) -> Option<PeerId> {
    match addr.iter().last() {
        Some(Part::P2p(id)) => Some(id),
        _ => None,
    }
}

/// The IP address an address begins with.
pub fn ip(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next()? {
        Part::Ip4(ip) => Some(IpAddr::V4(ip)),
        Part::Ip6(ip) => Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)),
        _ => None,
    }
}

/// The UDP or TCP port.
pub fn port(addr: &Multiaddr) -> Option<u16> {
    addr.iter().find_map(|part| match part {
        Part::Tcp(port) | Part::Udp(port) => Some(port),
        _ => None,
    })
}

/// The scope of a direct address.
pub fn scope(addr: &Multiaddr, documentation: Documentation) -> Scope {
    match (ip(addr), addr.iter().next()) {
        (Some(ip), _) => ip_scope(ip, documentation),
        (None, Some(Part::Dns(_) | Part::Dns4(_) | Part::Dns6(_))) => Scope::Global,
        _ => Scope::Unusable,
    }
}

fn ip_scope(ip: IpAddr, documentation: Documentation) -> Scope {
    match ip {
        IpAddr::V4(ip) => v4_scope(ip, documentation),
        IpAddr::V6(ip) => v6_scope(ip, documentation),
    }
}

fn v4_scope(ip: Ipv4Addr, documentation: Documentation) -> Scope {
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (127, ..) if documentation == Documentation::Machine => Scope::Global,
        (127, ..) => Scope::Loopback,
        _ if ip.is_private() || ip.is_link_local() => Scope::Private,
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => documented(documentation),
        (0, ..) | (100, 64..=127, _) | (198, 18 | 19, _) | (192, 0, 0) | (224.., ..) => Scope::Unusable,
        _ => Scope::Global,
    }
}

fn v6_scope(ip: Ipv6Addr, documentation: Documentation) -> Scope {
    let [a, b, ..] = ip.segments();
    match (a, b) {
        _ if ip.is_loopback() => Scope::Loopback,
        (0xfe80..=0xfebf | 0xfc00..=0xfdff, _) => Scope::Private,
        (0x2001, 0xdb8) => documented(documentation),
        (0x2000..=0x3fff, _) => Scope::Global,
        _ => Scope::Unusable,
    }
}

fn documented(documentation: Documentation) -> Scope {
    match documentation {
        Documentation::Global | Documentation::Machine => Scope::Global,
        Documentation::Unusable => Scope::Unusable,
    }
}

/// Whether strangers may be told of the address, and whoever hears it from them may dial it: it is global, or a circuit
/// over a relay that is.
pub(crate) fn is_findable(addr: &Multiaddr, documentation: Documentation) -> bool {
    let global = |addr: &Multiaddr| {
        transport(addr).is_some() && port(addr) != Some(0) && scope(addr, documentation) == Scope::Global
    };
    addr.len() <= ADDRESS_BYTES_MAX
        && match is_circuit(addr) {
            true => relay_of(addr).is_some_and(|(_, relay)| global(&relay)),
            false => global(addr),
        }
}

/// An IPv6 link-local address, which means nothing without an interface.
pub fn is_link_local_v6(addr: &Multiaddr) -> bool {
    matches!(ip(addr), Some(IpAddr::V6(ip)) if (0xfe80..=0xfebf).contains(&ip.segments()[0]))
}

/// What a rate is counted under: an IPv4 address, or the /64 of an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// One IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 /64.
    V6([u16; 4]),
}

/// The prefix of an address that begins with an IP address.
pub fn prefix(addr: &Multiaddr) -> Option<Prefix> {
    Some(match ip(addr)? {
        IpAddr::V4(ip) => Prefix::V4(ip),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Prefix::V6([a, b, c, d])
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope_of(addr: &str, documentation: Documentation) -> Scope {
        scope(&addr.parse().unwrap(), documentation)
    }

    #[test]
    fn scopes_follow_the_registries() {
        use Documentation::{Global as Lab, Unusable as Real};
        for (addr, lab, expected) in [
            ("/ip4/127.0.0.1/udp/1/quic-v1", Real, Scope::Loopback),
            ("/ip4/192.168.1.2/tcp/1", Real, Scope::Private),
            ("/ip4/100.64.0.1/tcp/1", Real, Scope::Unusable),
            ("/ip4/198.51.100.7/tcp/1", Real, Scope::Unusable),
            ("/ip4/198.51.100.7/tcp/1", Lab, Scope::Global),
            ("/ip4/203.0.113.7/tcp/1", Lab, Scope::Global),
            ("/ip4/8.8.8.8/tcp/1", Real, Scope::Global),
            ("/ip6/::1/tcp/1", Real, Scope::Loopback),
            ("/ip6/fe80::1/tcp/1", Real, Scope::Private),
            ("/ip6/fd00::1/tcp/1", Real, Scope::Private),
            ("/ip6/2001:db8::1/tcp/1", Real, Scope::Unusable),
            ("/ip6/2001:db8::1/tcp/1", Lab, Scope::Global),
            ("/ip6/2a00::1/tcp/1", Real, Scope::Global),
            ("/dns4/relay.example/tcp/1", Real, Scope::Global),
        ] {
            assert_eq!(scope_of(addr, lab), expected, "{addr}");
        }
    }

    #[test]
    fn a_circuit_names_its_relay_and_the_relays_address() {
        let relay = PeerId::random();
        let addr: Multiaddr = format!("/ip4/10.0.0.1/udp/9/quic-v1/p2p/{relay}/p2p-circuit").parse().unwrap();
        assert_eq!(relay_of(&addr), Some((relay, "/ip4/10.0.0.1/udp/9/quic-v1".parse().unwrap())));
        assert_eq!(transport(&addr), None);
        assert_eq!(transport(&"/ip4/10.0.0.1/udp/9/quic-v1".parse().unwrap()), Some(Transport::Quic));
        assert_eq!(transport(&"/ip4/10.0.0.1/tcp/9".parse().unwrap()), Some(Transport::Tcp));
        assert_eq!(transport(&"/ip4/10.0.0.1/tcp/9/ws".parse().unwrap()), None);
    }
}
