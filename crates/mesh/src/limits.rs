//! Every bound the swarm puts on what a peer can make it keep or do.
//!
//! What happens at a bound is said beside it; each refusal is counted under a label of
//! [`Refusal`](crate::swarm::Refusal), so that an attack is seen by its label.

use std::time::Duration;

/// Links a home node keeps at most. The next inbound link is refused unless it is a member's and a stranger's can go.
pub const LINKS_HOME_MAX: u32 = 32;
/// Of the links it may have a node asks for so many eighths itself, where there are more members than links: about as many
/// ask for one with it, and who finds no place is refused.
pub const LINKS_ASKED_EIGHTHS: usize = 3;
/// Links a relay keeps at most.
pub const LINKS_RELAY_MAX: u32 = 2_048;
/// Of those, connections with peers that are no members, at a home node. Each may hold a window of unread bytes.
pub const STRANGERS_HOME_MAX: u32 = 8;
/// Of those, connections with peers that are no members, at a relay.
pub const STRANGERS_RELAY_MAX: u32 = 512;
/// How long a stranger keeps its place when another one wants it: enough to join, not to keep all others out.
pub const STRANGER_STAYS: Duration = Duration::from_secs(10);
/// Connections with one peer: two transports, one relayed, and one each that is just being replaced.
pub const CONNECTIONS_PER_PEER_MAX: u32 = 6;
/// Connections with one peer that is no member: two transports tried at once.
pub const CONNECTIONS_PER_STRANGER_MAX: u32 = 2;
/// Inbound connections whose handshake is under way. More are closed before any cryptography.
pub const HALF_OPEN_MAX: u32 = 64;
/// Of those, from one IPv4 address or IPv6 /64, so that one subscriber alone cannot keep everybody out.
pub const HALF_OPEN_PER_PREFIX_MAX: u32 = 16;
/// Places of [`HALF_OPEN_MAX`] that only prefixes from which members came may take: packets with made-up senders
/// cannot keep members out.
pub const HALF_OPEN_RESERVED: u32 = 24;
/// Prefixes remembered from which members came. When full one of them is forgotten.
pub const FAMILIAR_PREFIXES_MAX: usize = 1_024;
/// Outbound connections whose handshake is under way. More wait.
pub const DIALING_MAX: u32 = 64;
/// New inbound connections a minute from one IPv4 address or IPv6 /64. More are closed before any cryptography.
pub const INBOUND_PER_PREFIX_PER_MINUTE: u32 = 60;
/// Address prefixes whose rate is remembered. When full the fullest (most patient) is forgotten.
pub const PREFIXES_MAX: usize = 4_096;
/// Share of the machine's memory, in bytes used by this process, above which new connections are refused.
pub const PROCESS_MEMORY_MAX_BYTES: usize = 1 << 30;

/// Streams we keep open on one connection to a peer; `open` waits when they are all in use.
pub const STREAMS_OUTBOUND_MAX: u32 = 200;
/// Streams a member may have open with us on one connection. More are reset.
/// Larger than [`STREAMS_OUTBOUND_MAX`]: the two ends do not see a stream end at the same moment.
pub const STREAMS_INBOUND_MAX: u32 = 216;
/// Streams of all protocols a member may have open with us, over all its connections. More are reset before they are
/// negotiated. Each can hold Yamux's 256 KiB of bytes nobody reads, 58 MiB together.
pub const STREAMS_INBOUND_PEER_MAX: u32 = 232;
/// The same for a stranger.
pub const STREAMS_INBOUND_STRANGER_MAX: u32 = 16;
/// Streams that one carrier brought and of which no frame has opened yet: anybody on the way can write a preamble, and
/// they must not take the places of the member it names. More are reset.
pub const CARRIED_UNPROVEN_MAX: u32 = 64;
/// Streams a stranger may have open with us on one connection. More are reset.
pub const STREAMS_STRANGER_MAX: u32 = 1;
/// Streams a multiplexer carries in both directions together (Yamux closes the connection above it).
pub const YAMUX_STREAMS_MAX: usize = 640;
/// Streams QUIC lets a peer open at once, all protocols together; it holds the peer back above it.
pub const QUIC_STREAMS_MAX: u32 = 256;
/// Bytes in flight on one QUIC stream: what a reader that stalls can make us hold.
pub const QUIC_STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes in flight on one QUIC connection, read or not: what any peer, stranger or not, can make us hold with one.
pub const QUIC_CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Streams of one connection that were closed unread and dropped, and are read to their end in the background. More
/// are dropped at once.
pub const LINGERING_MAX: usize = 16;
/// How long such a stream is read.
pub const LINGERING_TIME: Duration = Duration::from_secs(5);
/// Requests for a stream that wait in one connection. `open` fails as busy when they are all in use.
pub const OPENS_QUEUED_MAX: usize = 256;
/// Inbound streams kept while a connection is announced.
pub const STREAMS_EARLY_MAX: usize = 8;
/// How long a stream may take to be agreed on.
pub const STREAM_NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Events under way to the receiver of [`spawn`](crate::swarm::spawn).
pub const EVENTS_MAX: usize = 1_024;
/// Places of [`EVENTS_MAX`] that inbound streams and gossip leave to news about links. An inbound stream that
/// would take one is reset, a message ignored.
pub const EVENTS_RESERVED: usize = 256;
/// News about links that wait while [`EVENTS_MAX`] are under way. Above it the swarm pauses.
pub const EVENTS_PENDING_MAX: usize = 4_096;
/// Commands of [`Mesh`](crate::swarm::Mesh) under way. More wait.
pub const COMMANDS_MAX: usize = 256;

/// Addresses kept, dialed or announced for one peer.
pub const ADDRESSES_PER_PEER_MAX: usize = 16;
/// Peers in the address book. The one that was of use longest ago goes first.
pub const BOOK_PEERS_MAX: usize = 1_024;
/// Bytes of one address.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Peers found by mDNS that are remembered; members come before others.
pub const MDNS_PEERS_MAX: usize = 64;
/// Connects in progress at once. More are refused as busy.
pub const CONNECTS_MAX: usize = 128;
/// Callers that wait for one connect.
pub const CONNECT_WAITERS_MAX: usize = 64;
/// Attempts kept for the explanation of reachability.
pub const ATTEMPTS_KEPT_MAX: usize = 64;
/// Distinct observers of our addresses that are remembered.
pub const OBSERVERS_MAX: usize = 32;

/// Bytes of one gossip message.
pub const GOSSIP_BYTES_MAX: usize = 16 * 1_024;
/// Topics we or a peer may be subscribed to.
pub const GOSSIP_TOPICS_MAX: usize = 64;
/// Subscriptions and their ends in one gossip message. One with more is ignored.
pub const GOSSIP_TOPIC_CHANGES_MAX: usize = 2 * GOSSIP_TOPICS_MAX;
/// Gossip messages a second from one peer, beyond a burst of ten seconds' worth. More are ignored.
pub const GOSSIP_PER_PEER_PER_SECOND: u32 = 50;
/// Gossip mesh peers a node wants: each message comes about so often, less one. `docs/decisions.md` has the curve.
pub const GOSSIP_MESH_N: usize = 3;
/// Peers beside the mesh that are told of what is here at each heartbeat.
pub const GOSSIP_LAZY: usize = 1;
/// Heartbeats a message is told of.
pub const GOSSIP_HISTORY: usize = 3;
/// Messages a peer's queue holds.
pub const GOSSIP_QUEUE_MAX: usize = 512;

/// Names a server of the hash table keeps for others: a peer under a key is one. More are refused.
pub const KAD_NAMES_MAX: usize = 4_096;
/// Of those, names of peers that are no members.
pub const KAD_NAMES_STRANGERS_MAX: usize = 3_072;
/// Keys that one peer may be named under. More are refused.
pub const KAD_NAMES_PER_PEER_MAX: usize = 32;
/// Peers named under one key. A member takes the place of a stranger; others are refused.
pub const KAD_PROVIDERS_PER_KEY_MAX: usize = 20;
/// How long a name is kept. Longer than a day, so that a key of yesterday still leads to somebody.
pub const KAD_NAME_LIFE: Duration = Duration::from_secs(48 * 60 * 60);
/// Lookups at once. More find nothing.
pub const KAD_QUERIES_MAX: usize = 16;
/// How long one lookup may take.
pub const KAD_QUERY_TIMEOUT: Duration = Duration::from_secs(20);
/// Peers taken from one lookup.
pub const KAD_FOUND_MAX: usize = 64;
/// Addresses taken for one peer from one lookup.
pub const KAD_ADDRESSES_PER_PEER_MAX: usize = 8;
/// Keys we name ourselves under. More are not announced.
pub const KAD_KEYS_OURS_MAX: usize = 32;
/// A name of ours is announced again after so long,
pub const KAD_ANNOUNCE_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// after so long where no server took it,
pub const KAD_ANNOUNCE_RETRY: Duration = Duration::from_secs(30);
/// and never sooner than this, whatever changes.
pub const KAD_ANNOUNCE_MIN: Duration = Duration::from_secs(5);
/// How long members must be out of reach before they are looked for; doubles up to [`KAD_SEARCH_MAX`].
pub const KAD_SEARCH_MIN: Duration = Duration::from_secs(5);
/// Longest wait between two searches for members.
pub const KAD_SEARCH_MAX: Duration = Duration::from_secs(15 * 60);
/// Members that are looked for by name in one search. Others have their turn in the next ones.
pub const KAD_SEARCH_MEMBERS_MAX: usize = 4;
/// How long a call waits for the hash table when its member is at none of the known addresses,
pub const KAD_CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// and how long after it the next call does.
pub const KAD_CALL_PAUSE: Duration = Duration::from_secs(30);

/// Reservations a relay grants.
pub const RESERVATIONS_MAX: usize = 1_024;
/// Circuits a relay carries at once.
pub const CIRCUITS_MAX: usize = 128;
/// Circuits with one peer at once.
pub const CIRCUITS_PER_PEER_MAX: usize = 8;
/// Life of a circuit.
pub const CIRCUIT_DURATION: Duration = Duration::from_secs(120);
/// Bytes a circuit carries in both directions together.
pub const CIRCUIT_BYTES_MAX: u64 = 128 * 1_024;
/// Relays we keep a reservation with.
pub const RESERVATIONS_OURS_MAX: usize = 8;
/// Relays whose circuits we use. Those beyond are used, but only over one transport.
pub const RELAYS_MAX: usize = 64;

/// QUIC closes a connection it has heard nothing on for so long.
pub const QUIC_IDLE: Duration = Duration::from_secs(10);
/// QUIC keeps a connection, and a NAT's mapping, alive by a packet so often.
pub const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection that nobody wants is closed after so long.
pub const IDLE_CONNECTION: Duration = Duration::from_secs(30);
/// How long dialing one address may take.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(8);
/// How long one connect may take, all addresses together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long `open` waits for a place and an answer.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP addresses are dialed so long after QUIC ones, unless those failed sooner.
pub const TCP_HEAD_START: Duration = Duration::from_millis(250);
/// Circuits are dialed so long after TCP addresses, unless those failed sooner.
pub const CIRCUIT_HEAD_START: Duration = Duration::from_millis(250);
/// A connection that has been replaced is closed once unused, at least after this
pub const DRAIN_MIN: Duration = Duration::from_secs(1);
/// and at last after this.
pub const DRAIN_MAX: Duration = Duration::from_secs(30);
/// First wait before a lost link is dialed again; doubles up to [`REDIAL_MAX`].
pub const REDIAL_MIN: Duration = Duration::from_millis(500);
/// Longest wait between two tries to reach a member.
pub const REDIAL_MAX: Duration = Duration::from_secs(15 * 60);
/// Longest wait between two tries to reach a relay we have a reservation with.
pub const REDIAL_RELAY_MAX: Duration = Duration::from_secs(30);
/// First wait before a punch is tried again, which then knows candidates the first may have come too early for;
/// quadruples up to [`PUNCH_RETRY_MAX`].
pub const PUNCH_RETRY_MIN: Duration = Duration::from_secs(5);
/// Longest wait between two punches with a peer. Each try opens up to a dozen flows.
pub const PUNCH_RETRY_MAX: Duration = Duration::from_secs(60 * 60);
/// Liveness is measured so often on direct connections.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A TCP connection that does not answer for so long is closed.
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);
