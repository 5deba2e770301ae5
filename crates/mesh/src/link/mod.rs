//! KLP over streams: sessions with peers, and the exchanges that run on them. SPEC §6 to §8.
//!
//! The protocol crate knows bytes; this module moves them. It holds no rule of its own: who is a member and which
//! counter is fresh it asks the [`Gate`], what to do with a request it leaves to the [`Service`], and how a stream
//! to a peer is had is the [`Wire`]'s business.

mod call;
mod carry;
mod frames;
mod gate;
mod pool;
mod serve;
mod stats;
mod streams;
#[cfg(test)]
mod tests;
mod trace;

pub use call::{Answer, Body, CallError, Deed, Exchange, OnSent, RecvHalf, SendHalf, Sent, To};
pub use carry::{Carrier, CarryError, CarryHeader, CarryWire, accept_carried, carried, read_header};
pub use frames::{BoxedStream, Duplex, FrameReader, FrameWriter, StreamError};
pub use gate::{Gate, Standing};
pub use pool::{Links, SessionSummary};
pub use serve::{Caller, Request, Service};
pub use stats::{Refusal, Stats};

use kos_protocol::key::PublicKey;
use std::{fmt, future::Future, net::IpAddr, pin::Pin};

/// How a stream reaches its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Over a connection whose libp2p handshake proved the peer's key.
    Direct {
        /// Where the peer's packets come from, when known.
        remote: Option<IpAddr>,
        /// The key of the connection: the session's must be the same.
        key: PublicKey,
    },
    /// Over a libp2p circuit: introductions and joining only.
    Circuit {
        /// The relay's key.
        via: PublicKey,
        /// The key at the far end, proved through the circuit.
        key: PublicKey,
    },
    /// Carried by a member.
    Carried {
        /// The carrier's key.
        via: PublicKey,
    },
}

impl Route {
    /// The key the connection itself proved; carried streams have none.
    pub fn proven_key(&self) -> Option<PublicKey> {
        match self {
            Self::Direct { key, .. } | Self::Circuit { key, .. } => Some(*key),
            Self::Carried { .. } => None,
        }
    }

    /// Whether early data may hold any intent. Elsewhere only replay-safe ones may travel in it.
    pub fn is_replay_proof(&self) -> bool {
        matches!(self, Self::Direct { .. })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct { .. } => f.write_str("direct"),
            Self::Circuit { .. } => f.write_str("circuit"),
            Self::Carried { .. } => f.write_str("carried"),
        }
    }
}

/// A peer to which no stream could be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// A future that a trait object returns.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens streams to peers: the mesh in a node, a pipe in tests.
pub trait Wire: Send + Sync + 'static {
    /// Opens a `/klp/1` stream to the holder of `key`, by the best route there is now.
    fn open(&self, key: PublicKey) -> Pending<'_, Result<(BoxedStream, Route), Unreachable>>;
}
