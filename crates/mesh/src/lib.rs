//! The network of kOS: links between nodes, through any NAT, and streams on them.
//!
//! [`link`] keeps KLP sessions with peers and runs exchanges on them. [`swarm`] wraps libp2p: it knows peers, addresses, streams and topics, and nothing of what is said on them.
//! It finds ways to a peer (directly over QUIC or TCP, by punching through NATs, over a relay's circuit),
//! explains why a way failed, and keeps links alive within a budget that a home router bears.
//!
//! Sources: the libp2p specifications (circuit relay v2, DCUtR, AutoNAT v2, gossipsub 1.1), RFC 8305 (staggered
//! dialing), RFC 4787 and 5780 (how NATs behave).
//!
//! Not here: identity beyond the peer's key, authorisation beyond a set of members the caller gives, and files;
//! the address book is a value the caller keeps.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod limits;
pub mod link;
pub mod swarm;

pub use libp2p::multiaddr;
pub use swarm::addr::{Documentation, Transport};
pub use swarm::*;
