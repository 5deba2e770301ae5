//! The hash table: a hint where members are, never the truth.
//!
//! A node is a server of it, keeping names for others, once strangers reach it. Who can be reached at all, directly or
//! over a relay, is named there under keys its caller gives, with addresses that strangers may know of. What a lookup
//! finds nobody has proven: the caller dials ids it knows by other means.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use libp2p::core::Endpoint;
use libp2p::kad::store::RecordStore;
use libp2p::swarm::{ConnectionId, NetworkBehaviour};
use libp2p::{Multiaddr, PeerId, kad};
use tokio::sync::{mpsc, oneshot};

use super::Driver;
use crate::limits::{
    KAD_ADDRESSES_PER_PEER_MAX, KAD_ANNOUNCE_INTERVAL, KAD_ANNOUNCE_MIN, KAD_ANNOUNCE_RETRY, KAD_FOUND_MAX,
    KAD_KEYS_OURS_MAX, KAD_PROVIDERS_PER_KEY_MAX, KAD_QUERIES_MAX,
};
use crate::swarm::addr::{self, Scope};
use crate::swarm::counters::{Deed, Refusal};
use crate::swarm::mesh::{HashTable, TableRole};
use crate::swarm::names::Names;

/// Longest key a name is kept under.
const KEY_BYTES_MAX: usize = 128;
/// Servers that a name is put to. Beyond so many, a new one is seldom among them.
const REPLICATION: u32 = 20;

/// Who asked hears where peers are, as the table says.
type Found = mpsc::Sender<(PeerId, Vec<Multiaddr>)>;

/// Who waits for an answer of the hash table.
enum Query {
    Peer { peer: PeerId, found: Vec<Multiaddr>, reply: oneshot::Sender<Vec<Multiaddr>> },
    Providers { key: kad::RecordKey, told: BTreeMap<PeerId, Vec<Multiaddr>>, found: Found },
}

/// A key we are named under.
#[derive(Debug)]
struct Announced {
    /// When to announce it next.
    due: Instant,
    last: Option<Instant>,
    /// Whether somebody keeps it.
    taken: bool,
}

/// What the driver remembers of the table.
pub(super) struct Table {
    queries: HashMap<kad::QueryId, Query>,
    ours: BTreeMap<Vec<u8>, Announced>,
    names: Names,
    role: TableRole,
    servers: u32,
    /// Whether somebody who hears of our addresses could reach us.
    findable: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            queries: HashMap::new(),
            ours: BTreeMap::new(),
            names: Names::default(),
            role: TableRole::Client,
            servers: 0,
            findable: false,
        }
    }
}

impl Driver {
    fn kad(&mut self) -> Option<&mut kad::Behaviour<kad::store::MemoryStore>> {
        self.swarm.behaviour_mut().kad.as_mut().map(|gate| gate.inner_mut().inner_mut())
    }

    /// Names the nodes to begin with. libp2p looks around by itself when the table has somebody new.
    pub(super) fn enter_table(&mut self) {
        let bootstrap = self.bootstrap.clone();
        let local = self.shared.local;
        let Some(kad) = self.kad() else { return };
        for (peer, addr) in bootstrap.into_iter().filter(|(peer, _)| *peer != local) {
            kad.add_address(&peer, addr);
        }
        self.count_servers();
    }

    fn count_servers(&mut self) {
        let count = self.kad().map_or(0, |kad| kad.kbuckets().map(|bucket| bucket.num_entries()).sum());
        self.table.servers = u32::try_from(count).unwrap_or(u32::MAX);
    }

    /// identify: the peer keeps names for others, or no longer.
    pub(super) fn is_server(&mut self, peer: PeerId, addrs: &[Multiaddr]) {
        let documentation = self.documentation;
        let Some(kad) = self.kad() else { return };
        let public =
            addrs.iter().filter(|addr| !addr::is_circuit(addr) && addr::is_findable(addr, documentation));
        for addr in public.take(KAD_ADDRESSES_PER_PEER_MAX) {
            kad.add_address(&peer, addr::without_peer(addr));
        }
    }

    /// See [`Driver::is_server`].
    pub(super) fn is_no_server(&mut self, peer: &PeerId) {
        if self.kad().is_some_and(|kad| kad.remove_peer(peer).is_some()) {
            self.count_servers();
        }
    }

    /// Our addresses changed: whether we serve, and whether we are worth a name, goes by them.
    pub(super) fn settle_table(&mut self, external: &[Multiaddr], now: Instant) {
        let documentation = self.documentation;
        let public = external
            .iter()
            .any(|addr| addr::transport(addr).is_some() && addr::scope(addr, documentation) == Scope::Global);
        let role = if public { TableRole::Server } else { TableRole::Client };
        self.table.findable = external.iter().any(|addr| addr::is_findable(addr, documentation));
        if std::mem::replace(&mut self.table.role, role) != role {
            tracing::info!(?role, "part in the hash table");
            let mode = if public { kad::Mode::Server } else { kad::Mode::Client };
            if let Some(kad) = self.kad() {
                kad.set_mode(Some(mode));
            }
        }
        self.announce_anew(now);
    }

    fn announce_anew(&mut self, now: Instant) {
        for ours in self.table.ours.values_mut() {
            let earliest = ours.last.map_or(now, |last| (last + KAD_ANNOUNCE_MIN).max(now));
            ours.due = ours.due.min(earliest);
        }
    }

    pub(super) fn provide(&mut self, key: Vec<u8>, now: Instant) {
        if self.table.ours.len() < KAD_KEYS_OURS_MAX && self.kad().is_some() {
            let new = || Announced { due: now, last: None, taken: false };
            self.table.ours.entry(key).or_insert_with(new);
        }
    }

    pub(super) fn stop_providing(&mut self, key: Vec<u8>) {
        self.table.ours.remove(&key);
        if let Some(kad) = self.kad() {
            kad.stop_providing(&key.into());
        }
    }

    /// A server keeps its own names also while it knows no other.
    fn may_announce(&self) -> bool {
        self.table.findable && (self.table.servers > 0 || self.table.role == TableRole::Server)
    }

    /// Announces the keys that are due.
    pub(super) fn keep_announced(&mut self, now: Instant) {
        if !self.may_announce() {
            return;
        }
        let due = |(_, ours): &(&Vec<u8>, &Announced)| ours.due <= now;
        let keys: Vec<_> = self.table.ours.iter().filter(due).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let started = self.kad().is_some_and(|kad| kad.start_providing(key.clone().into()).is_ok());
            if let Some(ours) = self.table.ours.get_mut(&key) {
                ours.last = Some(now);
                ours.due = now + if started { KAD_ANNOUNCE_INTERVAL } else { KAD_ANNOUNCE_RETRY };
            }
        }
    }

    pub(super) fn announce_deadline(&self) -> Option<Instant> {
        self.table.ours.values().map(|ours| ours.due).min().filter(|_| self.may_announce())
    }

    fn announced(&mut self, key: &kad::RecordKey, by_servers: u32, now: Instant) {
        let keeps_itself = self.table.role == TableRole::Server;
        let Some(ours) = self.table.ours.get_mut(key.as_ref()) else { return };
        ours.taken = by_servers > 0 || keeps_itself;
        if by_servers > 0 {
            self.shared.counters.count(Deed::NameAnnounced);
        } else if self.table.servers > 0 {
            ours.due = ours.due.min(now + KAD_ANNOUNCE_RETRY);
        }
    }

    pub(super) fn find_peer(&mut self, peer: PeerId, reply: oneshot::Sender<Vec<Multiaddr>>) {
        if self.table.queries.len() >= KAD_QUERIES_MAX {
            return;
        }
        self.enter_table();
        if let Some(kad) = self.kad() {
            let id = kad.get_closest_peers(peer);
            self.table.queries.insert(id, Query::Peer { peer, found: Vec::new(), reply });
        }
    }

    pub(super) fn find_providers(&mut self, key: Vec<u8>, found: Found) {
        if self.table.queries.len() >= KAD_QUERIES_MAX {
            return;
        }
        self.enter_table();
        let key = kad::RecordKey::from(key);
        if let Some(kad) = self.kad() {
            let id = kad.get_providers(key.clone());
            self.table.queries.insert(id, Query::Providers { key, told: BTreeMap::new(), found });
        }
    }

    pub(super) fn looked_up(&mut self, event: kad::Event, now: Instant) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, step, stats } => match result {
                kad::QueryResult::StartProviding(
                    Ok(kad::AddProviderOk { key }) | Err(kad::AddProviderError::Timeout { key }),
                ) => self.announced(&key, stats.num_successes(), now),
                result => {
                    self.take_found(id, result);
                    if step.last {
                        self.lookup_ended(id);
                    }
                }
            },
            kad::Event::InboundRequest {
                request: kad::InboundRequest::AddProvider { record: Some(record) },
            } => {
                self.take_name(record, now);
            }
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => {
                self.count_servers();
                if self.table.servers <= REPLICATION {
                    self.announce_anew(now);
                }
            }
            _ => {}
        }
    }

    fn take_found(&mut self, id: kad::QueryId, result: kad::QueryResult) {
        let documentation = self.documentation;
        match (self.table.queries.get_mut(&id), result) {
            (Some(Query::Peer { peer, found, .. }), kad::QueryResult::GetClosestPeers(result)) => {
                let peers = match result {
                    Ok(kad::GetClosestPeersOk { peers, .. }) => peers,
                    Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                let of_peer = peers.into_iter().filter(|info| info.peer_id == *peer);
                add(found, of_peer.flat_map(|info| info.addrs), documentation);
            }
            (
                Some(Query::Providers { key, .. }),
                kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })),
            ) => {
                let key = key.clone();
                let providers: BTreeSet<_> = providers.into_iter().take(KAD_FOUND_MAX).collect();
                for peer in providers {
                    let addrs = self.named_addresses(&key, peer);
                    let Some(Query::Providers { told, found, .. }) = self.table.queries.get_mut(&id) else {
                        return;
                    };
                    if told.len() >= KAD_FOUND_MAX && !told.contains_key(&peer) {
                        return;
                    }
                    let of_peer = told.entry(peer).or_default();
                    let before = of_peer.len();
                    add(of_peer, addrs, documentation);
                    if of_peer.len() > before {
                        // Fails when who asked has heard enough, or does not keep up.
                        let _ = found.try_send((peer, of_peer[before..].to_vec()));
                    }
                }
            }
            _ => {}
        }
    }

    /// Where a provider was said to be. libp2p's event names its id alone; the addresses that came with it are what
    /// its behaviour would add to a dial while the lookup runs, and in the store if we keep the name ourselves.
    fn named_addresses(&mut self, key: &kad::RecordKey, peer: PeerId) -> Vec<Multiaddr> {
        if peer == self.shared.local {
            return Vec::new();
        }
        let Some(kad) = self.kad() else { return Vec::new() };
        let kept = kad.store_mut().providers(key).into_iter().filter(|kept| kept.provider == peer);
        let mut addrs: Vec<_> = kept.flat_map(|kept| kept.addresses).collect();
        let no_dial = ConnectionId::new_unchecked(0);
        let heard = kad.handle_pending_outbound_connection(no_dial, Some(peer), &[], Endpoint::Dialer);
        addrs.extend(heard.unwrap_or_default());
        addrs
    }

    fn lookup_ended(&mut self, id: kad::QueryId) {
        let Some(query) = self.table.queries.remove(&id) else { return };
        self.shared.counters.count(Deed::LookedUp);
        // Who asked may have given up.
        if let Query::Peer { found, reply, .. } = query {
            let _ = reply.send(found);
        }
    }

    /// A peer, whom its connection proves, wants to be found under a key.
    fn take_name(&mut self, mut record: kad::ProviderRecord, now: Instant) {
        let mut addrs = Vec::new();
        add(&mut addrs, std::mem::take(&mut record.addresses), self.documentation);
        record.addresses = addrs;
        let (peer, key) = (record.provider, record.key.to_vec());
        let members = self.shared.members();
        let expired = self.table.names.expired(now);
        let fits = !record.addresses.is_empty()
            && key.len() <= KEY_BYTES_MAX
            && self.table.names.take(peer, &key, |peer| members.contains(peer), now);
        let Some(kad) = self.kad() else { return };
        let store = kad.store_mut();
        for (peer, key) in expired {
            store.remove_provider(&key.into(), &peer);
        }
        if !fits {
            return self.shared.counters.refuse(Refusal::NamesFull);
        }
        let there = store.providers(&record.key);
        let known = there.iter().any(|other| other.provider == peer);
        if !known && there.len() >= KAD_PROVIDERS_PER_KEY_MAX {
            let stranger = there.iter().find(|other| !members.contains(&other.provider));
            let Some(stranger) = stranger.filter(|_| members.contains(&peer)).map(|other| other.provider)
            else {
                self.table.names.forget(&peer, &key);
                return self.shared.counters.refuse(Refusal::NamesFull);
            };
            store.remove_provider(&record.key, &stranger);
            self.table.names.forget(&stranger, &key);
        }
        if let Some(kad) = self.kad()
            && kad.store_mut().add_provider(record).is_err()
        {
            self.table.names.forget(&peer, &key);
            self.shared.counters.refuse(Refusal::NamesFull);
        }
    }

    /// What a snapshot tells; `None` when the table is off.
    pub(super) fn hash_table(&mut self) -> Option<HashTable> {
        self.kad()?;
        self.count_servers();
        Some(HashTable {
            role: self.table.role,
            servers: self.table.servers,
            names_kept: u32::try_from(self.table.names.count()).unwrap_or(u32::MAX),
            names_ours: self.table.ours.values().filter(|ours| ours.taken).count() as u32,
        })
    }
}

/// Adds what may be dialed, up to the bound.
fn add(
    found: &mut Vec<Multiaddr>,
    named: impl IntoIterator<Item = Multiaddr>,
    documentation: addr::Documentation,
) {
    for addr in named.into_iter().filter(|addr| addr::is_findable(addr, documentation)) {
        let addr = addr::without_peer(&addr);
        if found.len() < KAD_ADDRESSES_PER_PEER_MAX && !found.contains(&addr) {
            found.push(addr);
        }
    }
}
