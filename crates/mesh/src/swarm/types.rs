//! The plain values of the swarm's interface.

use std::fmt;
use std::time::{Duration, SystemTime};

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};

use super::addr::Transport;
use super::stream::Stream;

/// A protocol whose streams the caller speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `/klp/1`: a session's exchange. The only one that strangers and relayed circuits may open.
    Klp,
    /// `/klp/carry/1`: an exchange carried for somebody else. Members on direct connections only.
    Carry,
}

impl Protocol {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Klp => "/klp/1",
            Protocol::Carry => "/klp/carry/1",
        }
    }
}

/// How a connection reaches its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// Without help.
    Direct {
        /// The peer's address as this connection uses it.
        addr: Multiaddr,
        /// QUIC or TCP.
        transport: Transport,
    },
    /// Over a libp2p circuit: enough to join and to be introduced, not for calls.
    Relayed {
        /// The relay, where the address named it.
        via: Option<PeerId>,
    },
}

impl Path {
    /// Whether no relay is in the path.
    pub fn is_direct(&self) -> bool {
        matches!(self, Path::Direct { .. })
    }

    /// Preference: direct before relayed, QUIC before TCP. Smaller is better.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Path::Direct { transport: Transport::Quic, .. } => 0,
            Path::Direct { transport: Transport::Tcp, .. } => 1,
            Path::Relayed { .. } => 2,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Direct { addr, .. } => write!(f, "direct {addr}"),
            Path::Relayed { via: Some(relay) } => write!(f, "relayed by {relay}"),
            Path::Relayed { via: None } => write!(f, "relayed"),
        }
    }
}

/// A gossip message's id: SHA-256 over its topic and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GossipId(pub [u8; 32]);

/// What to do with a gossip message once it has been looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Forward it.
    Accept,
    /// Drop it, nobody's fault.
    Ignore,
    /// Drop it and hold it against who sent it.
    Reject,
}

/// What became of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReservationState {
    /// The relay keeps a place for us; we are reachable at these circuits.
    Held {
        /// Circuit addresses that end in us.
        circuits: Vec<Multiaddr>,
    },
    /// It ended or was refused; it is asked for again after a while.
    Lost {
        /// The relay's or the transport's words.
        reason: String,
    },
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A connection is up. The first of a peer makes the link; there may be more.
    LinkUp {
        /// Who.
        peer: PeerId,
        /// The connection, for [`Mesh::open_on`](super::Mesh::open_on).
        connection: ConnectionId,
        /// How.
        path: Path,
    },
    /// A connection is gone.
    LinkDown {
        /// Who.
        peer: PeerId,
        /// Which connection.
        connection: ConnectionId,
        /// Connections that remain; 0 means the peer cannot be reached now.
        remaining: u32,
        /// Why, where known.
        reason: Option<String>,
    },
    /// The peer opened a stream.
    Inbound {
        /// Who; proven by the connection's handshake.
        peer: PeerId,
        /// On which connection.
        connection: ConnectionId,
        /// How that connection travels.
        path: Path,
        /// Which protocol.
        protocol: Protocol,
        /// The stream. Dropping it breaks it off.
        stream: Stream,
    },
    /// A member passed a message on. It is forwarded only after [`Mesh::report`](super::Mesh::report).
    Gossip {
        /// The topic.
        topic: String,
        /// At most [`GOSSIP_BYTES_MAX`](crate::limits::GOSSIP_BYTES_MAX).
        bytes: Vec<u8>,
        /// Who passed it on, not who wrote it.
        from: PeerId,
        /// For the report.
        id: GossipId,
    },
    /// A peer subscribed to one of our topics: what we publish can reach it now.
    Subscribed {
        /// Who.
        peer: PeerId,
        /// The topic.
        topic: String,
    },
    /// Where we listen or can be reached changed.
    AddressesChanged {
        /// Confirmed to be reachable from outside, circuits included.
        external: Vec<Multiaddr>,
        /// On our own interfaces.
        listen: Vec<Multiaddr>,
    },
    /// A peer that had been relayed has a direct connection now.
    PathUpgraded {
        /// Who.
        peer: PeerId,
    },
    /// Seen on the LAN. Not yet proven to be who it says; the connection will.
    Mdns {
        /// Who it says it is.
        peer: PeerId,
        /// Private addresses.
        addrs: Vec<Multiaddr>,
    },
    /// At an address that is none of ours a node answered with our own key: another machine runs with it, or somebody
    /// passes what we send there back to us.
    OwnKeyAt {
        /// Where.
        addr: Multiaddr,
    },
    /// A reservation with a relay was made or lost.
    Reservation {
        /// The relay.
        relay: PeerId,
        /// What became of it.
        state: ReservationState,
    },
}

/// The step at which reaching an address failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The address is not of a kind we speak, or not usable here.
    Address,
    /// The name could not be looked up.
    Resolve,
    /// Nothing answered.
    NoAnswer,
    /// The machine is there; nobody listens.
    Refused,
    /// No route there.
    NoRoute,
    /// The transport's handshake failed.
    Handshake,
    /// Somebody else lives there.
    WrongPeer,
    /// The relay of a circuit could not be reached.
    Relay,
    /// The relay of a circuit refused, or the peer has no reservation with it.
    Circuit,
    /// Our own limits were in the way.
    Limits,
    /// The other end refused the finished connection or closed it at once.
    Closed,
    /// The two ends could not agree on a moment to punch.
    Coordination,
    /// Both ends sent at once and nothing came through.
    Punch,
}

/// One address that did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub addr: Multiaddr,
    /// At which step.
    pub step: Step,
    /// The operating system's, transport's or relay's words, at most 200 bytes.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}: {}", self.addr, self.step, self.reason)
    }
}

/// Why there is no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// We know no address: get one from the directory or an invitation.
    #[error("no address is known for {peer}")]
    NoAddresses {
        /// Who.
        peer: PeerId,
    },
    /// Every address failed. Each is listed with the step at which it did.
    #[error("{peer} is not reachable: {}", list(.failures))]
    Unreachable {
        /// Who.
        peer: PeerId,
        /// In the order in which they failed.
        failures: Vec<Failure>,
    },
    /// It is ourselves.
    #[error("{peer} is this node")]
    Ourselves {
        /// Who.
        peer: PeerId,
    },
    /// Too many connects are in progress; try again later.
    #[error("too many connects are in progress, limit {limit}")]
    Busy {
        /// How many may be.
        limit: usize,
    },
    /// The swarm has ended.
    #[error("the mesh has stopped")]
    Stopped,
}

fn list(failures: &[Failure]) -> String {
    failures.iter().map(Failure::to_string).collect::<Vec<_>>().join("; ")
}

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no connection; connect first.
    #[error("not connected with {peer}")]
    NotConnected {
        /// Who.
        peer: PeerId,
    },
    /// The connection is gone.
    #[error("connection {connection} is gone")]
    ConnectionGone {
        /// Which.
        connection: ConnectionId,
    },
    /// All streams of the connection stayed in use for [`OPEN_TIMEOUT`](crate::limits::OPEN_TIMEOUT).
    #[error("all {limit} streams with {peer} are in use")]
    Busy {
        /// Who.
        peer: PeerId,
        /// How many there are.
        limit: u32,
    },
    /// The peer does not speak the protocol with us: on this path, or as long as we are strangers.
    #[error("{peer} does not accept {}", .protocol.name())]
    Unsupported {
        /// Who.
        peer: PeerId,
        /// What.
        protocol: Protocol,
    },
    /// The peer did not answer in time, or the connection broke meanwhile.
    #[error("a stream with {peer} failed: {reason}")]
    Failed {
        /// Who.
        peer: PeerId,
        /// The transport's words.
        reason: String,
    },
    /// The swarm has ended.
    #[error("the mesh has stopped")]
    Stopped,
}

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No member we are linked with listens to the topic. Publish again when one does.
    #[error("nobody listens to the topic")]
    NobodyListens,
    /// These very bytes went out on this topic a short while ago.
    #[error("published before")]
    Duplicate,
    /// Longer than [`GOSSIP_BYTES_MAX`](crate::limits::GOSSIP_BYTES_MAX).
    #[error("{bytes} bytes, limit {limit}")]
    TooLarge {
        /// How long.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The queues of all neighbours are full.
    #[error("all neighbours are busy")]
    Busy,
    /// The swarm has ended.
    #[error("the mesh has stopped")]
    Stopped,
}

/// Why the swarm did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The transports could not be set up.
    #[error("transport: {0}")]
    Transport(String),
    /// A behaviour could not be set up.
    #[error("{what}: {reason}")]
    Behaviour {
        /// Which.
        what: &'static str,
        /// Its words.
        reason: String,
    },
    /// None of the addresses can be listened on.
    #[error("cannot listen on {addr}: {reason}")]
    Listen {
        /// The address.
        addr: Multiaddr,
        /// The operating system's words.
        reason: String,
    },
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Who.
    pub peer: PeerId,
    /// Which.
    pub connection: ConnectionId,
    /// How.
    pub path: Path,
    /// Which end dialed; after a punch both did.
    pub dialed: Dialed,
    /// Since when.
    pub since: SystemTime,
    /// The last measured round trip; `None` before the first and on relayed connections.
    pub rtt: Option<Duration>,
    /// Streams open, both directions, this crate's protocols only.
    pub streams: u32,
}

/// Which end dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialed {
    /// We did.
    ByUs,
    /// The peer did.
    ByPeer,
}
