//! What is counted, under closed sets of labels.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All of them, in the order of their counters.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// The label a metric carries.
            pub fn label(self) -> &'static str {
                match self { $($name::$variant => $label,)* }
            }
        }
    };
}

labels! {
    /// Why something a peer asked for was refused.
    Refusal {
        /// The receiver of events is behind; an inbound stream was reset.
        AcceptQueueFull = "accept_queue_full",
        /// A member had all its streams open.
        StreamsMember = "streams_member",
        /// A stranger wanted a second stream.
        StreamsStranger = "streams_stranger",
        /// A stranger, or a relayed peer, wanted to be carried.
        CarryNotAllowed = "carry_not_allowed",
        /// A connection above the number of links.
        LinksFull = "links_full",
        /// A stranger's connection above their number.
        StrangersFull = "strangers_full",
        /// Another connection of a peer that has enough.
        PeerConnectionsFull = "peer_connections_full",
        /// Too many handshakes under way.
        HalfOpenFull = "half_open_full",
        /// Too many new connections from one address prefix.
        PrefixRate = "prefix_rate",
        /// The process uses too much memory.
        Memory = "memory",
        /// A dial by a behaviour of libp2p above the pace.
        DialPace = "dial_pace",
        /// A member gossips faster than agreed.
        GossipRate = "gossip_rate",
        /// The receiver of events is behind; a gossip message was ignored.
        GossipQueueFull = "gossip_queue_full",
        /// A member is subscribed to as many topics as it may; further ones are ignored.
        GossipTopics = "gossip_topics",
        /// A gossip message that no honest member would have passed on.
        GossipInvalid = "gossip_invalid",
        /// A connection whose bytes are no Yamux.
        Multiplexer = "multiplexer",
        /// An identify message that is malformed or above its limit.
        Identify = "identify",
        /// A stranger asked for a reservation.
        ReservationStranger = "reservation_stranger",
        /// A member asked for too many reservations.
        ReservationRate = "reservation_rate",
        /// A circuit above the rate, to a peer without a reservation, or above their number.
        Circuit = "circuit",
        /// A peer gave more addresses than are kept.
        AddressesFull = "addresses_full",
        /// More peers on the LAN than are remembered.
        MdnsFull = "mdns_full",
        /// No place for a peer under a key of the hash table, or it named no address strangers could use.
        NamesFull = "names_full",
    }
}

labels! {
    /// What was done, and how it went.
    Deed {
        /// A connection was dialed and came up.
        DialOk = "dial_ok",
        /// A dial failed.
        DialFailed = "dial_failed",
        /// A punch made a direct connection.
        PunchOk = "punch_ok",
        /// A punch failed.
        PunchFailed = "punch_failed",
        /// A relayed connection was closed because a direct one is there.
        RelayedClosed = "relayed_closed",
        /// A second connection of a peer was closed.
        DuplicateClosed = "duplicate_closed",
        /// A link came in.
        Accepted = "accepted",
        /// A reservation was made with us.
        ReservationGranted = "reservation_granted",
        /// A circuit was opened through us.
        CircuitGranted = "circuit_granted",
        /// A stream was opened by us.
        StreamOut = "stream_out",
        /// A stream was opened by a peer and handed on.
        StreamIn = "stream_in",
        /// A gossip message came, again or for the first time, or was made here.
        GossipCopy = "gossip_copy",
        /// A gossip message was handed on.
        GossipIn = "gossip_in",
        /// A gossip message was published.
        GossipOut = "gossip_out",
        /// The network changed, or the machine slept.
        NetworkChanged = "network_changed",
        /// A key we are named under was announced, and a server took it.
        NameAnnounced = "name_announced",
        /// A lookup in the hash table ended.
        LookedUp = "looked_up",
    }
}

/// The counters of one swarm. They only grow.
#[derive(Debug)]
pub struct Counters {
    refusals: Vec<AtomicU64>,
    deeds: Vec<AtomicU64>,
}

impl Default for Counters {
    fn default() -> Self {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { refusals: zeros(Refusal::ALL.len()), deeds: zeros(Deed::ALL.len()) }
    }
}

impl Counters {
    /// Counts a refusal.
    pub fn refuse(&self, refusal: Refusal) {
        self.refusals[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a deed.
    pub fn count(&self, deed: Deed) {
        self.deeds[deed as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often this was refused.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refusals[refusal as usize].load(Ordering::Relaxed)
    }

    /// How often this was done.
    pub fn counted(&self, deed: Deed) -> u64 {
        self.deeds[deed as usize].load(Ordering::Relaxed)
    }

    /// All refusals, in the order of [`Refusal::ALL`].
    pub fn refusals(&self) -> Vec<(Refusal, u64)> {
        Refusal::ALL.iter().map(|refusal| (*refusal, self.refused(*refusal))).collect()
    }

    /// All deeds, in the order of [`Deed::ALL`].
    pub fn deeds(&self) -> Vec<(Deed, u64)> {
        Deed::ALL.iter().map(|deed| (*deed, self.counted(*deed))).collect()
    }
}
