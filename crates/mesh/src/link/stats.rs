//! What the links count. The node exports it; see `docs/metrics.md`.

use super::StreamError;
use kos_protocol::session::FrameError;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why something from a peer was refused: the label of `kos_refusals_total`. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Refusal {
    /// Bytes that are no preamble.
    Preamble,
    /// A handshake that does not decrypt.
    HandshakeCrypto,
    /// A hello that is malformed, or names a key or a member that is not its own.
    Hello,
    /// No common version.
    Version,
    /// A federation we are not in.
    Federation,
    /// Too many handshakes from one address.
    HandshakeRate,
    /// A suspended or expelled member.
    Removed,
    /// The session's key is not the connection's.
    LinkKey,
    /// A session we do not have.
    UnknownSession,
    /// A stream number seen before.
    Replay,
    /// A frame that does not decrypt, is malformed or out of order.
    Frame,
    /// A head above its limits.
    Head,
    /// A stranger that asked for more than joining, sent too much or took too long.
    Stranger,
    /// More streams than one peer may have.
    StreamLimit,
    /// Early data whose counter was not fresh.
    EarlyReplay,
    /// Early data over a carried stream whose intent is not replay-safe.
    EarlyUnsafe,
    /// A carried stream for or from somebody who is not a member, or with a header that is none.
    Carry,
    /// A handshake message above its limit.
    HandshakeSize,
    /// More sessions than one peer may have: the oldest went.
    Sessions,
    /// A body above what its intent takes, or one that took too long.
    Body,
    /// A request to join that was not granted.
    Join,
}

impl Refusal {
    /// Every reason with its label.
    pub const ALL: [(Self, &'static str); 21] = [
        (Self::Preamble, "preamble"),
        (Self::HandshakeCrypto, "handshake_crypto"),
        (Self::Hello, "hello"),
        (Self::Version, "version"),
        (Self::Federation, "federation"),
        (Self::HandshakeRate, "handshake_rate"),
        (Self::Removed, "removed"),
        (Self::LinkKey, "link_key"),
        (Self::UnknownSession, "unknown_session"),
        (Self::Replay, "replay"),
        (Self::Frame, "frame"),
        (Self::Head, "head"),
        (Self::Stranger, "stranger"),
        (Self::StreamLimit, "stream_limit"),
        (Self::EarlyReplay, "early_replay"),
        (Self::EarlyUnsafe, "early_unsafe"),
        (Self::Carry, "carry"),
        (Self::HandshakeSize, "handshake_size"),
        (Self::Sessions, "sessions"),
        (Self::Body, "body"),
        (Self::Join, "join"),
    ];
}

/// Counters since the start of the process.
#[derive(Debug, Default)]
pub struct Stats {
    /// Handshakes finished, begun by either side.
    pub handshakes: AtomicU64,
    /// Exchanges we began.
    pub exchanges_out: AtomicU64,
    /// Exchanges peers began.
    pub exchanges_in: AtomicU64,
    /// Streams opened to peers.
    pub streams_out: AtomicU64,
    /// Streams peers opened.
    pub streams_in: AtomicU64,
    /// Payload bytes sent.
    pub bytes_out: AtomicU64,
    /// Payload bytes received.
    pub bytes_in: AtomicU64,
    /// Bytes piped for others.
    pub bytes_carried: AtomicU64,
    refusals: [AtomicU64; Refusal::ALL.len()],
}

impl Stats {
    /// Counts one refusal.
    pub fn refuse(&self, reason: Refusal) {
        self.refusals[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what a peer's frames were refused for; a stream that only broke off was not refused.
    pub(super) fn refuse_stream(&self, error: &StreamError) {
        match error {
            StreamError::Frame(FrameError::Replayed) => self.refuse(Refusal::Replay),
            StreamError::Frame(_) | StreamError::Order(_) | StreamError::Message(_) => {
                self.refuse(Refusal::Frame);
            }
            StreamError::Io(_) | StreamError::CutShort | StreamError::Refused(_) => {}
        }
    }

    /// The refusals so far, each with its label.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Refusal::ALL
            .iter()
            .map(|(reason, label)| (*label, self.refusals[*reason as usize].load(Ordering::Relaxed)))
    }

    pub(super) fn add(counter: &AtomicU64, amount: usize) {
        counter.fetch_add(amount as u64, Ordering::Relaxed);
    }
}
