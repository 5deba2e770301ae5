//! What the tasks of a node share: who we are, the federations we are in, and the ways to peers.

use crate::{
    identity::{Identity, random},
    tables::{COUNTERS, HANDSHAKES, PEER_COUNTERS, RECORDS},
};
use kos_engine::Federation;
use kos_governance::roster::Standing as RosterStanding;
use kos_mesh::link::{Gate, Pending, Standing};
use kos_protocol::{
    hello::{IDEMPOTENCY, IDEMPOTENCY_VERSION, Versions},
    id::{FederationId, MemberId},
    key::PublicKey,
    session::Local,
    time::Timestamp,
};
use kos_store::{Batch, Folder, Index, Ledger};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Handshake counters reserved in the ledger at a time, so that one commit serves many handshakes.
const COUNTERS_RESERVED: u64 = 4096;

/// Everything below one lock each; none is held across an await.
pub(crate) struct State {
    pub folder: Folder,
    pub ledger: Ledger,
    pub index: Index,
    pub versions: Versions,
    pub agent: String,
    clock: Instant,
    identity: RwLock<Identity>,
    name: RwLock<String>,
    federations: Mutex<BTreeMap<FederationId, Federation>>,
    /// Federations we ask to join: their issuers are known only by key, and we are strangers there.
    joining: Mutex<BTreeMap<FederationId, u32>>,
    default: RwLock<FederationId>,
    counters: Mutex<Counters>,
    greatest: Mutex<BTreeMap<(FederationId, PublicKey), u64>>,
    /// The greatest number any record of this node had; [`State::greatest_record`].
    pub records: AtomicU64,
}

struct Counters {
    next: u64,
    reserved: u64,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl State {
    #[expect(clippy::too_many_arguments, reason = "each is opened by the start in its own way")]
    pub fn new(
        folder: Folder,
        ledger: Ledger,
        index: Index,
        versions: Versions,
        agent: String,
        identity: Identity,
        name: String,
        federations: BTreeMap<FederationId, Federation>,
        default: FederationId,
    ) -> Self {
        let reserved = ledger.read(COUNTERS, HANDSHAKES).ok().flatten().unwrap_or(0);
        let records = ledger.read(COUNTERS, RECORDS).ok().flatten().unwrap_or(0);
        let greatest = ledger
            .range(PEER_COUNTERS, ..)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|((federation, key), counter)| {
                Some(((FederationId::from_bytes(federation), PublicKey::from_bytes(&key).ok()?), counter))
            })
            .collect();
        Self {
            folder,
            ledger,
            index,
            versions,
            agent,
            clock: Instant::now(),
            identity: RwLock::new(identity),
            name: RwLock::new(name),
            federations: Mutex::new(federations),
            joining: Mutex::default(),
            default: RwLock::new(default),
            counters: Mutex::new(Counters { next: reserved.max(wall_ms()), reserved }),
            greatest: Mutex::new(greatest),
            records: AtomicU64::new(records),
        }
    }

    /// The greatest number any record of this node had.
    pub fn greatest_record(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    pub fn now(&self) -> Timestamp {
        Timestamp { monotonic_ms: self.clock.elapsed().as_millis() as u64, wall_ms: wall_ms() }
    }

    pub fn identity(&self) -> Identity {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_identity(&self, identity: Identity) {
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    pub fn name(&self) -> String {
        self.name.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn default_federation(&self) -> FederationId {
        *self.default.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_default_federation(&self, federation: FederationId) {
        *self.default.write().unwrap_or_else(PoisonError::into_inner) = federation;
    }

    pub fn federations(&self) -> MutexGuard<'_, BTreeMap<FederationId, Federation>> {
        lock(&self.federations)
    }

    pub fn with<T>(&self, id: &FederationId, look: impl FnOnce(&mut Federation) -> T) -> Option<T> {
        self.federations().get_mut(id).map(look)
    }

    /// While the guard lives we show ourselves to the federation as strangers that want in.
    pub fn begin_joining(&self, federation: FederationId) {
        *lock(&self.joining).entry(federation).or_default() += 1;
    }

    pub fn end_joining(&self, federation: &FederationId) {
        let mut joining = lock(&self.joining);
        if let Some(count) = joining.get_mut(federation) {
            *count -= 1;
            if *count == 0 {
                joining.remove(federation);
            }
        }
    }

    fn is_ours(&self, federation: &FederationId) -> bool {
        self.federations().contains_key(federation) || lock(&self.joining).contains_key(federation)
    }

    /// Which member of which of our federations holds `key`.
    pub fn memberships(&self, key: &PublicKey) -> Vec<(FederationId, MemberId)> {
        let active = |federation: &Federation| match federation.roster().by_key(key) {
            Some((member, _, RosterStanding::Active)) => Some(member),
            _ => None,
        };
        self.federations().iter().filter_map(|(id, federation)| Some((*id, active(federation)?))).collect()
    }
}

impl Gate for State {
    fn local(&self, federation: &FederationId) -> Option<Local> {
        let identity = self.identity();
        self.is_ours(federation).then(|| Local {
            secret: identity.secret().clone(),
            member: identity.member(),
            federation: *federation,
            versions: self.versions,
            // Both binaries answer through `once.rs`.
            offers: BTreeMap::from([(IDEMPOTENCY.to_owned(), IDEMPOTENCY_VERSION)]),
            wants: BTreeMap::new(),
            streams_max: kos_protocol::limits::STREAMS_PER_MEMBER as u32,
            agent: self.agent.clone(),
        })
    }

    fn federation_by_tag(&self, tag: &[u8; 8]) -> Option<FederationId> {
        let federations = self.federations();
        let joining = lock(&self.joining);
        federations.keys().chain(joining.keys()).find(|id| id.tag() == *tag).copied()
    }

    fn standing(&self, federation: &FederationId, key: &PublicKey) -> Standing {
        self.with(federation, |federation| match federation.roster().by_key(key) {
            Some((member, _, RosterStanding::Active)) => Standing::Member(member),
            // Whose membership ran out, or who left, may come back with a new invitation.
            Some((_, _, RosterStanding::Lapsed | RosterStanding::Left)) | None => Standing::Stranger,
            Some(_) => Standing::Removed,
        })
        .unwrap_or(Standing::Stranger)
    }

    fn key_of(&self, federation: &FederationId, member: &MemberId) -> Option<PublicKey> {
        self.with(federation, |federation| {
            federation.roster().active_member(member).map(|member| member.key())
        })
        .flatten()
    }

    fn next_counter(&self) -> Pending<'_, u64> {
        let mut counters = lock(&self.counters);
        counters.next += 1;
        let next = counters.next;
        if next <= counters.reserved {
            return Box::pin(std::future::ready(next));
        }
        let reserved = next + COUNTERS_RESERVED;
        let mut batch = Batch::new();
        batch.put(COUNTERS, HANDSHAKES, &reserved);
        // Queued under the lock: the ledger ends with the greatest.
        let durable = self.ledger.commit_async(batch);
        Box::pin(async move {
            match durable.await {
                Ok(()) => {
                    let mut counters = lock(&self.counters);
                    counters.reserved = counters.reserved.max(reserved);
                }
                // Peers would only refuse early data of a counter used twice; the handshake itself stands.
                Err(error) => tracing::warn!(%error, "handshake counters could not be reserved"),
            }
            next
        })
    }

    fn is_fresh(&self, federation: FederationId, peer: PublicKey, counter: u64) -> Pending<'_, bool> {
        let stale = || Box::pin(std::future::ready(false));
        // A stranger gets no early data: its counter would be one more thing to remember for whoever asks.
        if !matches!(self.standing(&federation, &peer), Standing::Member(_)) {
            return stale();
        }
        let mut greatest = lock(&self.greatest);
        let last = greatest.entry((federation, peer)).or_insert(0);
        if counter <= *last {
            return stale();
        }
        *last = counter;
        let mut batch = Batch::new();
        batch.put(PEER_COUNTERS, &(*federation.as_bytes(), *peer.as_bytes()), &counter);
        // Queued under the lock: the ledger ends with the greatest.
        let durable = self.ledger.commit_async(batch);
        Box::pin(async move {
            // Early data counts only once the counter is durable, or a crash would let it be replayed.
            let outcome = durable.await;
            if let Err(error) = &outcome {
                tracing::warn!(%error, "early data is refused: its counter could not be stored");
            }
            outcome.is_ok()
        })
    }

    fn seed(&self) -> [u8; 32] {
        random().expect("the operating system gave random bytes when this process started")
    }

    fn is_replay_safe(&self, intent: &str) -> bool {
        crate::intents::is_replay_safe(intent)
    }
}
