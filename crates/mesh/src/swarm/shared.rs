//! What the swarm's task, the connections' tasks and the callers' handles share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::counters::Counters;
use super::stream::{Place, Stream};
use super::types::{Dialed, Link, OpenError, Path, Protocol};
use crate::limits::STREAMS_OUTBOUND_MAX;

/// A caller's wish for a stream, on its way to a connection.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub protocol: Protocol,
    pub place: Place,
    pub reply: oneshot::Sender<Result<Stream, OpenError>>,
}

/// One connection, as its handler, the swarm and the callers see it.
#[derive(Debug)]
pub(crate) struct LinkState {
    pub peer: PeerId,
    pub connection: ConnectionId,
    pub path: Path,
    pub dialed: Dialed,
    pub since: SystemTime,
    /// Microseconds; 0 is not yet measured.
    rtt_us: AtomicU64,
    pub inbound: Arc<AtomicU32>,
    pub outbound: Arc<AtomicU32>,
    pub places: Arc<Semaphore>,
    pub opens: mpsc::Sender<OpenRequest>,
    /// Replaced by a better connection: no new streams.
    draining: AtomicBool,
    /// Cancelled when the connection has ended.
    pub ended: CancellationToken,
}

impl LinkState {
    pub(crate) fn new(
        peer: PeerId,
        connection: ConnectionId,
        path: Path,
        dialed: Dialed,
        opens: mpsc::Sender<OpenRequest>,
    ) -> Self {
        Self {
            peer,
            connection,
            path,
            dialed,
            since: SystemTime::now(),
            rtt_us: AtomicU64::new(0),
            inbound: Arc::default(),
            outbound: Arc::default(),
            places: Arc::new(Semaphore::new(STREAMS_OUTBOUND_MAX as usize)),
            opens,
            draining: AtomicBool::new(false),
            ended: CancellationToken::new(),
        }
    }

    pub(crate) fn streams(&self) -> u32 {
        self.inbound.load(Ordering::Relaxed) + self.outbound.load(Ordering::Relaxed)
    }

    pub(crate) fn measured(&self, rtt: Duration) {
        self.rtt_us.store(rtt.as_micros().clamp(1, u128::from(u64::MAX)) as u64, Ordering::Relaxed);
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn revive(&self) {
        self.draining.store(false, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn link(&self) -> Link {
        let rtt_us = self.rtt_us.load(Ordering::Relaxed);
        Link {
            peer: self.peer,
            connection: self.connection,
            path: self.path.clone(),
            dialed: self.dialed,
            since: self.since,
            rtt: (rtt_us > 0).then(|| Duration::from_micros(rtt_us)),
            streams: self.streams(),
        }
    }
}

/// Shared state. Locks are held for a look-up, never across an await.
#[derive(Debug)]
pub(crate) struct Shared {
    pub local: PeerId,
    pub counters: Counters,
    links: Mutex<BTreeMap<PeerId, Vec<Arc<LinkState>>>>,
    members: RwLock<Arc<BTreeSet<PeerId>>>,
    /// Streams of all protocols that each connected peer has open with us.
    inbound: Mutex<BTreeMap<PeerId, Weak<AtomicU32>>>,
}

impl Shared {
    pub(crate) fn new(local: PeerId) -> Self {
        Self {
            local,
            counters: Counters::default(),
            links: Mutex::default(),
            members: RwLock::default(),
            inbound: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerId, Vec<Arc<LinkState>>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn members(&self) -> Arc<BTreeSet<PeerId>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_members(&self, members: BTreeSet<PeerId>) -> Arc<BTreeSet<PeerId>> {
        let mut current = self.members.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, Arc::new(members))
    }

    pub(crate) fn is_member(&self, peer: &PeerId) -> bool {
        self.members().contains(peer)
    }

    /// The count of a peer's open streams, shared by its connections.
    pub(crate) fn inbound_of(&self, peer: &PeerId) -> Arc<AtomicU32> {
        let mut inbound = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
        inbound.retain(|_, count| count.strong_count() > 0);
        let known = inbound.get(peer).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let count = Arc::default();
            inbound.insert(*peer, Arc::downgrade(&count));
            count
        })
    }

    pub(crate) fn add(&self, link: Arc<LinkState>) {
        self.lock().entry(link.peer).or_default().push(link);
    }

    pub(crate) fn remove(&self, peer: &PeerId, connection: ConnectionId) -> Option<Arc<LinkState>> {
        let mut links = self.lock();
        let of_peer = links.get_mut(peer)?;
        let at = of_peer.iter().position(|link| link.connection == connection)?;
        let link = of_peer.swap_remove(at);
        if of_peer.is_empty() {
            links.remove(peer);
        }
        Some(link)
    }

    /// The connections of one peer, best first: not draining, direct, QUIC, newest.
    pub(crate) fn of(&self, peer: &PeerId) -> Vec<Arc<LinkState>> {
        let mut links = self.lock().get(peer).cloned().unwrap_or_default();
        links.sort_by_key(|link| (link.is_draining(), link.path.rank(), std::cmp::Reverse(link.connection)));
        links
    }

    pub(crate) fn find(&self, connection: ConnectionId) -> Option<Arc<LinkState>> {
        self.lock().values().flatten().find(|link| link.connection == connection).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<LinkState>> {
        self.lock().values().flatten().cloned().collect()
    }
}
