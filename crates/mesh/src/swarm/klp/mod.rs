//! Streams of `/klp/1` and `/klp/carry/1`: our own behaviour and connection handler.
//!
//! libp2p-stream picks a connection at random, drops inbound bursts without a word and never forgets a closed
//! connection. Here the caller chooses the connection, each inbound stream says on which it came, what does not
//! fit is refused and counted, and nothing outlives its connection.
//!
//! A stream does not pass through the swarm's task: the caller's request goes straight to the connection's
//! handler, and an inbound stream straight to the receiver of events.

mod admission;
mod behaviour;
mod handler;

pub(crate) use admission::Bounds;
pub(crate) use behaviour::{Behaviour, path_of};
