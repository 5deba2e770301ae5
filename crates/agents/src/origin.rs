//! Where a bridge may lead: one HTTP origin, and the addresses no bridge ever connects to.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// Longest host name of an origin, RFC 1035.
pub const HOST_BYTES_MAX: usize = 253;
/// Most addresses a name is pinned to.
pub const ADDRESSES_MAX: usize = 8;

/// Why a text is not an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrigin {
    /// Not `http://`.
    #[error("`{0}` is not an HTTP origin: write it as http://host:port")]
    Scheme(String),
    /// A path, a query, a fragment or a user in it.
    #[error("`{0}` is more than an origin: only http://host:port, nothing behind it")]
    MoreThanOrigin(String),
    /// A host that is neither a name nor an address.
    #[error("`{0}` is not a host")]
    Host(String),
    /// Not a port.
    #[error("`{0}` is not a port between 1 and 65535")]
    Port(String),
}

/// The host of an [`Origin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address; an IPv4 address in an IPv6 coat is taken out of it.
    Address(IpAddr),
    /// A name, in lower case.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// An HTTP origin: `http://host:port`, without a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    host: Host,
    port: u16,
}

impl Origin {
    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its port, 80 when none was written.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What goes into `Host`: the host, and the port unless it is 80.
    pub fn authority(&self) -> String {
        if self.port == 80 { self.host.to_string() } else { format!("{}:{}", self.host, self.port) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let shown = || text.escape_default().take(200).collect::<String>();
        let scheme = text.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
        let Some(authority) = scheme.and_then(|_| text.get(7..)) else {
            return Err(InvalidOrigin::Scheme(shown()));
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains(['/', '?', '#', '@', '\\']) {
            return Err(InvalidOrigin::MoreThanOrigin(shown()));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(|| InvalidOrigin::Host(shown()))?;
                let address = host.parse::<Ipv6Addr>().map_err(|_| InvalidOrigin::Host(shown()))?;
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':').ok_or_else(|| InvalidOrigin::Host(shown()))?),
                };
                (Host::Address(IpAddr::V6(address).to_canonical()), port)
            }
            None => {
                let (host, port) = match authority.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (authority, None),
                };
                (name_or_v4(host).ok_or_else(|| InvalidOrigin::Host(shown()))?, port)
            }
        };
        let port = match port {
            None => 80,
            Some(port) => {
                // `u16::from_str` would take a sign.
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                port.parse::<u16>()
                    .ok()
                    .filter(|port| *port > 0 && digits)
                    .ok_or_else(|| InvalidOrigin::Port(port.escape_default().take(20).collect()))?
            }
        };
        Ok(Self { host, port })
    }
}

/// A dotted address, or a name whose last label is no number: `2130706433` and `0x7f.1` are addresses to a resolver.
fn name_or_v4(text: &str) -> Option<Host> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Some(Host::Address(address.into()));
    }
    let labels_fit = text.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    });
    let last = text.rsplit('.').next().unwrap_or(text);
    let last_is_a_number = last.starts_with(|first: char| first.is_ascii_digit());
    (text.len() <= HOST_BYTES_MAX && labels_fit && !last_is_a_number)
        .then(|| Host::Name(text.to_ascii_lowercase()))
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// How far a bridge reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Services of this machine only.
    #[default]
    Loopback,
    /// The origin's host, wherever it is, since its owner said so by name.
    AllowedHost,
}

/// Why a bridge does not connect to an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForbiddenAddress {
    /// Another machine, which nobody allowed.
    #[error("{0} is not this machine; a host beyond it must be named with --allow-host")]
    NotLoopback(IpAddr),
    /// Never allowed.
    #[error("{address} is {what}: no bridge leads there")]
    Never {
        /// The address.
        address: IpAddr,
        /// What it is.
        what: &'static str,
    },
}

/// Checks an address a bridge is about to be pinned to, and gives the form to connect to: an IPv4 address in an IPv6
/// coat (`::ffff:169.254.169.254`) is judged and used as the IPv4 address it is.
///
/// # Errors
/// [`ForbiddenAddress`].
pub fn check_address(address: IpAddr, reach: Reach) -> Result<IpAddr, ForbiddenAddress> {
    let address = address.to_canonical();
    let never = match address {
        IpAddr::V4(v4) => never_v4(v4),
        IpAddr::V6(v6) => never_v6(v6),
    };
    if let Some(what) = never {
        return Err(ForbiddenAddress::Never { address, what });
    }
    match reach {
        Reach::Loopback if !address.is_loopback() => Err(ForbiddenAddress::NotLoopback(address)),
        _ => Ok(address),
    }
}

fn never_v4(address: Ipv4Addr) -> Option<&'static str> {
    // Metadata services outside the link-local range: Alibaba, Oracle, Azure.
    const METADATA: [Ipv4Addr; 3] =
        [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
    match address {
        _ if address.octets()[0] == 0 => Some("unspecified"),
        _ if address.is_link_local() => Some("link-local"),
        _ if METADATA.contains(&address) => Some("a cloud's metadata service"),
        _ if address.is_multicast() => Some("multicast"),
        _ if address.octets()[0] >= 240 => Some("broadcast or reserved"),
        _ => None,
    }
}

fn never_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    // Metadata services in unique local ranges: Amazon, Google, Scaleway.
    let is_metadata = matches!(
        segments,
        [0xfd00, 0x0ec2, ..]
            | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254]
            | [0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x0042]
    );
    // Prefixes behind which a translator finds an IPv4 address, perhaps one of those above: `::/96`, NAT64, 6to4,
    // Teredo. No service at home is reached by them.
    let is_translated = (segments[..6] == [0; 6] && !address.is_loopback() && !address.is_unspecified())
        || segments[..2] == [0x0064, 0xff9b]
        || segments[0] == 0x2002
        || segments[..2] == [0x2001, 0];
    match address {
        _ if address.is_unspecified() => Some("unspecified"),
        _ if address.is_unicast_link_local() => Some("link-local"),
        _ if is_metadata => Some("a cloud's metadata service"),
        _ if address.is_multicast() => Some("multicast"),
        _ if is_translated => Some("an IPv4 address in disguise"),
        _ if segments[0] & 0xffc0 == 0xfec0 => Some("site-local, which is long withdrawn"),
        _ => None,
    }
}

/// Why an origin could not be pinned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// The name has no address.
    #[error("`{0}` has no address")]
    NoAddress(String),
    /// One of its addresses is forbidden, so the name is not to be trusted with the others either.
    #[error("`{host}` leads to a forbidden address: {why}")]
    Forbidden {
        /// The host.
        host: String,
        /// Which, and why.
        why: ForbiddenAddress,
    },
    /// `--allow-host` names another host than the origin.
    #[error("--allow-host names `{allowed}`, but the origin's host is `{host}`")]
    OtherHost {
        /// What was allowed.
        allowed: String,
        /// What the origin says.
        host: String,
    },
}

/// How far the bridge to `origin` reaches, given what `--allow-host` said.
///
/// # Errors
/// [`PinError::OtherHost`]: the permission is for one host by name, not for any.
pub fn reach(origin: &Origin, allow_host: Option<&str>) -> Result<Reach, PinError> {
    match allow_host {
        None => Ok(Reach::Loopback),
        Some(allowed) => {
            let host = origin.host().to_string();
            let bare = host.trim_matches(['[', ']']);
            if allowed.trim_matches(['[', ']']).eq_ignore_ascii_case(bare) {
                Ok(Reach::AllowedHost)
            } else {
                Err(PinError::OtherHost { allowed: allowed.escape_default().take(100).collect(), host })
            }
        }
    }
}

/// Pins `origin` to what its host resolved to, once and for all: later answers of the resolver change nothing.
/// At most [`ADDRESSES_MAX`] are kept, in the resolver's order.
///
/// # Errors
/// [`PinError`].
pub fn pin(origin: &Origin, reach: Reach, resolved: &[IpAddr]) -> Result<Vec<SocketAddr>, PinError> {
    let host = origin.host().to_string();
    let mut pinned = Vec::new();
    for address in resolved {
        let address =
            check_address(*address, reach).map_err(|why| PinError::Forbidden { host: host.clone(), why })?;
        let address = SocketAddr::new(address, origin.port());
        if !pinned.contains(&address) && pinned.len() < ADDRESSES_MAX {
            pinned.push(address);
        }
    }
    if pinned.is_empty() { Err(PinError::NoAddress(host)) } else { Ok(pinned) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port() {
        for (text, shown) in [
            ("http://127.0.0.1:8123", "http://127.0.0.1:8123"),
            ("HTTP://LocalHost:80/", "http://localhost"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://nas.lan", "http://nas.lan"),
            ("http://[::ffff:10.0.0.1]:1", "http://10.0.0.1:1"),
        ] {
            let origin: Origin = text.parse().unwrap();
            assert_eq!(origin.to_string(), shown);
            assert_eq!(origin.to_string().parse::<Origin>(), Ok(origin));
        }
        for bad in [
            "127.0.0.1:80",
            "https://127.0.0.1",
            "ftp://x",
            "http://",
            "http://a/b",
            "http://a?b",
            "http://a#b",
            "http://user@a",
            "http://a\\b",
            "http://a:0",
            "http://a:65536",
            "http://a:+80",
            "http://a:80:80",
            "http://[::1",
            "http://[::1]80",
            "http://2130706433",
            "http://0x7f.1",
            "http://127.1",
            "http://a b",
            "http://-a",
            "http://a..b",
            "http://é",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }

    fn check(address: &str, reach: Reach) -> Result<IpAddr, ForbiddenAddress> {
        check_address(address.parse().unwrap(), reach)
    }

    #[test]
    fn only_this_machine_without_permission() {
        for own in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert!(check(own, Reach::Loopback).unwrap().is_loopback(), "{own}");
        }
        for other in ["10.0.0.1", "192.168.1.2", "8.8.8.8", "2001:db8::1", "fd12::1", "::ffff:10.0.0.1"] {
            assert!(
                matches!(check(other, Reach::Loopback), Err(ForbiddenAddress::NotLoopback(_))),
                "{other}"
            );
            assert!(check(other, Reach::AllowedHost).is_ok(), "{other}");
        }
    }

    #[test]
    fn an_ipv4_address_in_an_ipv6_coat_is_used_as_what_it_is() {
        assert_eq!(check("::ffff:127.0.0.1", Reach::Loopback), Ok("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn some_addresses_are_never_allowed() {
        for never in [
            "169.254.169.254",
            "169.254.0.1",
            "::ffff:169.254.169.254",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:42::42",
            "100.100.100.200",
            "::ffff:100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::ffff:0.0.0.0",
            "224.0.0.1",
            "239.1.1.1",
            "ff02::1",
            "::ffff:224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2001:0:1::1",
            "fec0::1",
        ] {
            for reach in [Reach::Loopback, Reach::AllowedHost] {
                assert!(matches!(check(never, reach), Err(ForbiddenAddress::Never { .. })), "{never}");
            }
        }
    }

    #[test]
    fn permission_is_for_one_host_by_name() {
        let origin: Origin = "http://nas.lan:5000".parse().unwrap();
        assert_eq!(reach(&origin, None), Ok(Reach::Loopback));
        assert_eq!(reach(&origin, Some("NAS.lan")), Ok(Reach::AllowedHost));
        assert!(matches!(reach(&origin, Some("lan")), Err(PinError::OtherHost { .. })));
        let v6: Origin = "http://[fd12::1]".parse().unwrap();
        assert_eq!(reach(&v6, Some("fd12::1")), Ok(Reach::AllowedHost));
    }

    #[test]
    fn a_name_with_one_forbidden_address_is_not_pinned_at_all() {
        let origin: Origin = "http://nas.lan:5000".parse().unwrap();
        let (fine, link_local) = ("10.0.0.1".parse().unwrap(), "169.254.169.254".parse().unwrap());
        assert_eq!(
            pin(&origin, Reach::AllowedHost, &[fine, fine]),
            Ok(vec!["10.0.0.1:5000".parse().unwrap()])
        );
        assert!(matches!(
            pin(&origin, Reach::AllowedHost, &[fine, link_local]),
            Err(PinError::Forbidden { .. })
        ));
        assert_eq!(pin(&origin, Reach::AllowedHost, &[]), Err(PinError::NoAddress("nas.lan".to_owned())));
    }
}
