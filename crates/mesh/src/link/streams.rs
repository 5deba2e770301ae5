//! How many streams there are with a peer, and how many of them are long. SPEC §6.9.
//!
//! Long exchanges (downloads, event streams, WebSockets) may take all places but a few, so that a short one always
//! finds one. Whoever opens streams keeps to what the peer announced; whoever accepts them holds it to that.

use super::CallError;
use crate::limits::OPEN_TIMEOUT;
use kos_protocol::limits::{STREAMS_PER_MEMBER, STREAMS_RESERVED};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Streams with one peer, in all sessions of a federation: those it opened, and those we did.
#[derive(Default)]
pub(super) struct Streams {
    pub inward: Arc<Places>,
    pub outward: Arc<Places>,
}

impl Streams {
    /// Whether nobody but its map has it, so that it may go.
    pub fn is_unused(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
            && Arc::strong_count(&self.inward) == 1
            && Arc::strong_count(&self.outward) == 1
    }
}

/// Places of streams in one direction.
#[derive(Default)]
pub(super) struct Places {
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Clone, Copy, Default)]
struct Taken {
    streams: usize,
    long: usize,
}

/// What a place is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A stream, from its first byte to its last.
    Stream,
    /// An exchange that may take long, on some stream.
    Long,
}

impl Kind {
    /// How many of this kind there may be where a peer takes `streams_max` streams.
    fn most(self, streams_max: usize) -> usize {
        match self {
            Self::Stream => streams_max,
            Self::Long => streams_max - STREAMS_RESERVED.min(streams_max / 2),
        }
    }
}

impl Taken {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Stream => &mut self.streams,
            Kind::Long => &mut self.long,
        }
    }
}

/// A place, until it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    kind: Kind,
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.places.taken().of(self.kind) -= 1;
        self.places.freed.notify_waiters();
    }
}

impl Places {
    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place of a member with us, if there is one.
    pub fn accept(self: &Arc<Self>, kind: Kind) -> Option<Place> {
        self.take(kind, STREAMS_PER_MEMBER)
    }

    /// A place with a handshake: what the peer takes is not known yet.
    pub fn anyway(self: &Arc<Self>, kind: Kind) -> Place {
        *self.taken().of(kind) += 1;
        Place { places: self.clone(), kind }
    }

    pub fn take(self: &Arc<Self>, kind: Kind, streams_max: usize) -> Option<Place> {
        let mut taken = self.taken();
        let count = taken.of(kind);
        if *count >= kind.most(streams_max) {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), kind })
    }

    /// Tells whoever waits that a stream is free for another exchange.
    pub fn idle(&self) {
        self.freed.notify_waiters();
    }

    /// Waits for a place with a peer that takes `streams_max` streams.
    pub async fn wait(self: &Arc<Self>, kind: Kind, streams_max: usize) -> Result<Place, CallError> {
        self.wait_for(kind, streams_max, || self.take(kind, streams_max)).await
    }

    /// Waits until `find` finds something; it is asked again whenever a place or a stream is free.
    pub async fn wait_for<T>(
        &self,
        kind: Kind,
        streams_max: usize,
        mut find: impl FnMut() -> Option<T>,
    ) -> Result<T, CallError> {
        let waiting = async {
            loop {
                let mut freed = std::pin::pin!(self.freed.notified());
                freed.as_mut().enable();
                if let Some(found) = find() {
                    return found;
                }
                freed.await;
            }
        };
        let limit = kind.most(streams_max);
        tokio::time::timeout(OPEN_TIMEOUT, waiting).await.map_err(|_| CallError::Busy { limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_takes_few_streams_still_gets_some_of_each_kind() {
        let most = |max| (Kind::Stream.most(max), Kind::Long.most(max));
        assert_eq!(
            [0, 1, 2, 3, 40, 200].map(most),
            [(0, 0), (1, 1), (2, 1), (3, 2), (40, 20), (200, 200 - STREAMS_RESERVED)]
        );
    }
}
