//! What the directory says of us: our node's record, our agents' records.

use crate::{
    keep::Row,
    nat::Nat,
    runtime::Runtime,
    state::{State, lock},
    tables::{AGENT_KEYS, SETTINGS},
    wire::peer_of,
};
use kos_directory::{
    AgentCert, AgentRecord, Capability, Entry, Kind, NodeRecord, ServiceRecord, Slot, contract::Contract,
};
use kos_engine::{Input, Item, Stamp};
use kos_governance::act::Role;
use kos_mesh::{Multiaddr, Snapshot, multiaddr::Protocol as Part};
use kos_protocol::{
    cbor,
    id::{AgentId, FederationId, MemberId, ObjectId, sha256},
    key::{PublicKey, SecretKey},
    limits::{ADDRESSES_MAX, CONTRACT_BYTES_MAX, NAME_BYTES_MAX, RECORD_LIFE_MS_MAX},
    object::{Scope, Signed},
};
use kos_store::{Batch, CommitError};
use semver::Version;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    ops::Bound,
    sync::atomic::Ordering,
    time::Duration,
};

/// How long a record counts: the longest there is, so that nothing expires merely because its author was away.
const LIFE_MS: u64 = RECORD_LIFE_MS_MAX;
/// A record is made anew at this age, changed or not.
const REFRESH: Duration = Duration::from_secs(24 * 60 * 60);
/// Changes of addresses come in bursts: the first is published at once, those within this time after it together.
const SETTLE: Duration = Duration::from_millis(250);

/// Who is told of a stop before it goes on,
const GOODBYES: usize = 3;
/// and how long it waits for them.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether the node goes on running.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Here,
    Leaving,
}

/// An agent of this node, as the directory shall show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOffer {
    /// Class and name.
    pub agent: AgentId,
    /// For people.
    pub description: String,
    /// How it is spoken to: `http`.
    pub protocol: String,
    /// What it can do.
    pub capabilities: Vec<Capability>,
}

/// Who has what was published.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Receipts {
    /// The record.
    pub record: ObjectId,
    /// Linked members that were given it.
    pub asked: usize,
    /// The names of those that said that they have it, first come first.
    pub stored_by: Vec<String>,
}

/// Why a record was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishFailed {
    /// Not ours.
    #[error("this node is not in that federation")]
    NotInFederation,
    /// A part of it is above its limit.
    #[error(transparent)]
    Size(#[from] kos_protocol::cbor::DecodeError),
    /// The directory does not take it.
    #[error(transparent)]
    Directory(#[from] kos_engine::PublishError),
    /// It could not be kept for the next start.
    #[error("the contract could not be kept: {0}")]
    Keep(#[from] kos_store::CommitError),
    /// There is none to be withdrawn.
    #[error("this node has published no service `{0}`")]
    NoService(String),
    /// An agent's key could not be made or kept.
    #[error("no key for the agent: {0}")]
    Key(String),
}

impl Runtime {
    /// Publishes our node's record whenever it says something new, and once a day.
    pub(crate) async fn publish_when_needed(self) {
        let mut last_refresh = tokio::time::Instant::now();
        loop {
            let refresh = last_refresh.elapsed() >= REFRESH;
            if refresh {
                lock(&self.0.published).clear();
                last_refresh = tokio::time::Instant::now();
            }
            if let Some(snapshot) = self.0.mesh.snapshot().await {
                let ids: Vec<_> = self.0.state.federations().keys().copied().collect();
                for id in ids {
                    match self.publish_node(&id, &snapshot, Presence::Here) {
                        Ok(items) if items.is_empty() => {}
                        Ok(items) => {
                            let runtime = self.clone();
                            tokio::spawn(async move { runtime.push_to_all(&id, items).await });
                        }
                        Err(error) => tracing::warn!(%error, "the node's record was not published"),
                    }
                    if refresh && let Err(error) = self.publish_offers(&id) {
                        tracing::warn!(%error, "the agents' records were not published");
                    }
                    match self.refresh_services(&id) {
                        Ok(items) if items.is_empty() => {}
                        Ok(items) => {
                            let runtime = self.clone();
                            tokio::spawn(async move { runtime.push_to_all(&id, items).await });
                        }
                        Err(error) => tracing::warn!(%error, "the services' records were not published"),
                    }
                }
            }
            let published_at = tokio::time::Instant::now();
            tokio::select! {
                () = self.0.stop.cancelled() => return,
                () = self.0.republish.notified() => tokio::time::sleep_until(published_at + SETTLE).await,
                () = tokio::time::sleep(Duration::from_secs(3600)) => {}
            }
        }
    }

    /// Tells the others that this node stops on purpose, before its links go.
    pub(crate) async fn say_goodbye(&self) {
        let Some(snapshot) = self.0.mesh.snapshot().await else { return };
        self.0.leaving.store(true, Ordering::Relaxed);
        let ids: Vec<_> = self.0.state.federations().keys().copied().collect();
        for id in ids {
            match self.publish_node(&id, &snapshot, Presence::Leaving) {
                Ok(items) => {
                    let told = self.store_at(&id, items, GOODBYES);
                    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, told).await;
                }
                Err(error) => tracing::debug!(%error, "nobody is told that this node stops"),
            }
        }
    }

    /// Publishes our node's record if it says something new; returns it as an item, to be pushed.
    fn publish_node(
        &self,
        id: &FederationId,
        snapshot: &Snapshot,
        presence: Presence,
    ) -> Result<Vec<Vec<u8>>, PublishFailed> {
        let addresses = self.own_addresses(snapshot);
        let (state, now) = (&self.0.state, self.0.state.now());
        let (identity, name) = (state.identity(), state.name());
        let relays: Vec<MemberId> = self.reserved_relays(id, snapshot);
        let nat = Nat::seen(&snapshot.reachability).map(Nat::feature);
        let features: Vec<String> = nat.map(str::to_owned).into_iter().collect();
        let left = presence == Presence::Leaving;
        if !left && self.0.leaving.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let says = kos_protocol::cbor::encode(&(&addresses, &relays, &features, left));
        if lock(&self.0.published).get(id) == Some(&says) {
            return Ok(Vec::new());
        }
        let published = state.with(id, |federation| {
            if federation.roster().active_member(&identity.member()).is_none() {
                return Ok(None);
            }
            let Stamp { author, key_seq, seq, time_ms, expires_ms } =
                federation.stamp::<NodeRecord>(now, "", LIFE_MS, state.greatest_record());
            let record = NodeRecord {
                author,
                key_seq,
                seq,
                time_ms,
                expires_ms,
                name,
                addresses,
                relays,
                version: own_version(),
                features,
                left,
            };
            let record = Signed::sign(record, Scope::Federation(*id), identity.secret())?;
            federation.handle(now, Input::Published((&record).into())).published()?;
            self.keep_greatest_record(seq);
            Ok::<_, PublishFailed>(Some(Item::new(NodeRecord::KIND, record.bytes()).to_bytes()))
        });
        let item = published.ok_or(PublishFailed::NotInFederation)??;
        lock(&self.0.published).insert(*id, says);
        self.carry_out(id);
        Ok(item.into_iter().collect())
    }

    /// Numbers never go back, even where the clock does and the index is lost.
    pub(crate) fn keep_greatest_record(&self, seq: u64) {
        let greatest = self.0.state.records.fetch_max(seq, Ordering::Relaxed).max(seq);
        self.0.keeper.put([(Row::Records, Some(greatest.to_be_bytes().to_vec()))]);
    }

    /// Where others may find us, best first: confirmed ones, circuits, then those of our own interfaces.
    pub(crate) fn own_addresses(&self, snapshot: &Snapshot) -> Vec<String> {
        let own = peer_of(&self.0.state.identity().key());
        let mut seen = BTreeSet::new();
        let external = self.0.options.external.iter().chain(&snapshot.external);
        external
            .cloned()
            .chain(self.inner_addresses(snapshot))
            .map(|address| without_peer(&address, &own))
            .filter(|address| seen.insert(address.clone()))
            .map(|address| address.to_string())
            .take(ADDRESSES_MAX)
            .collect()
    }

    /// Those of our interfaces, best first: a list may have to be cut, and of ten bridges of containers none leads to us.
    pub(crate) fn inner_addresses(&self, snapshot: &Snapshot) -> Vec<Multiaddr> {
        let only_loopback =
            self.0.options.listen.as_ref().is_some_and(|listen| listen.iter().all(is_loopback));
        let usable = snapshot.listen.iter().filter(|address| only_loopback || !is_loopback(address));
        let mut inner: Vec<Multiaddr> = usable.cloned().collect();
        let outward = outward_ips();
        inner.sort_by_key(|address| !ip_of(address).is_some_and(|ip| outward.contains(&ip)));
        inner
    }

    fn reserved_relays(&self, id: &FederationId, snapshot: &Snapshot) -> Vec<MemberId> {
        let relays = |federation: &mut kos_engine::Federation| {
            let active = federation.roster().active().filter(|member| member.role == Role::Relay);
            let held = active.filter(|member| snapshot.reservations.contains(&peer_of(&member.key())));
            held.map(|member| member.id).collect()
        };
        self.0.state.with(id, relays).unwrap_or_default()
    }

    /// Says which agents run here: publishes those, withdraws all others.
    ///
    /// # Errors
    /// [`PublishFailed`].
    pub async fn publish_agents(
        &self,
        id: &FederationId,
        offers: Vec<AgentOffer>,
    ) -> Result<(), PublishFailed> {
        *lock(&self.0.offers) = offers;
        let items = self.publish_offers(id)?;
        self.push_to_all(id, items).await;
        Ok(())
    }

    /// Publishes a service of an agent of ours, and waits until `enough` linked members have it, or all there are.
    ///
    /// # Errors
    /// [`PublishFailed`].
    pub async fn publish_service(
        &self,
        id: &FederationId,
        contract: Contract,
        enough: usize,
    ) -> Result<Receipts, PublishFailed> {
        let signed = self.sign_service(id, contract.name.clone(), Some(contract.clone()))?;
        self.keep_service(id, &contract.name, Some(&contract)).await?;
        Ok(self.store_service(id, signed, enough).await)
    }

    /// Withdraws a service of ours: publishes a tombstone in its place, and waits as [`Runtime::publish_service`] does.
    ///
    /// # Errors
    /// [`PublishFailed`].
    pub async fn withdraw_service(
        &self,
        id: &FederationId,
        name: &str,
        enough: usize,
    ) -> Result<Receipts, PublishFailed> {
        let own = self.0.state.identity().member();
        let is_there =
            |federation: &mut kos_engine::Federation| federation.directory().service(own, name).is_some();
        if !self.0.state.with(id, is_there).ok_or(PublishFailed::NotInFederation)? {
            return Err(PublishFailed::NoService(kos_protocol::text::shown(name, NAME_BYTES_MAX)));
        }
        // Kept no longer first: what is kept is published at each start.
        self.keep_service(id, name, None).await?;
        let signed = self.sign_service(id, name.to_owned(), None)?;
        Ok(self.store_service(id, signed, enough).await)
    }

    async fn store_service(
        &self,
        id: &FederationId,
        (record, item): (ObjectId, Vec<u8>),
        enough: usize,
    ) -> Receipts {
        let asked = self.linked_members(id).len();
        let keys = self.store_at(id, vec![item], enough).await;
        let stored_by = self.0.state.with(id, |federation| {
            let name = |key: &PublicKey| {
                Some(federation.roster().member(&federation.roster().by_key(key)?.0)?.name.clone())
            };
            keys.iter().filter_map(name).collect()
        });
        Receipts { record, asked, stored_by: stored_by.unwrap_or_default() }
    }

    /// Signs a service's record, without a contract a tombstone, and takes it in; returns its id, and the item to be
    /// pushed.
    fn sign_service(
        &self,
        id: &FederationId,
        name: String,
        contract: Option<Contract>,
    ) -> Result<(ObjectId, Vec<u8>), PublishFailed> {
        let (state, now, identity) = (&self.0.state, self.0.state.now(), self.0.state.identity());
        let signed = state.with(id, |federation| {
            let Stamp { author, key_seq, seq, time_ms, expires_ms } =
                federation.stamp::<ServiceRecord>(now, &name, LIFE_MS, state.greatest_record());
            let record = ServiceRecord { author, key_seq, name, seq, time_ms, expires_ms, contract };
            let record = Signed::sign(record, Scope::Federation(*id), identity.secret())?;
            federation.handle(now, Input::Published((&record).into())).published()?;
            self.keep_greatest_record(seq);
            Ok::<_, PublishFailed>((record.id(), Item::new(ServiceRecord::KIND, record.bytes()).to_bytes()))
        });
        let signed = signed.ok_or(PublishFailed::NotInFederation)??;
        self.carry_out(id);
        Ok(signed)
    }

    /// Keeps the contract of a service for the next start, or no longer.
    async fn keep_service(
        &self,
        id: &FederationId,
        name: &str,
        contract: Option<&Contract>,
    ) -> Result<(), CommitError> {
        let (key, mut batch) = (format!("{}{name}", kept_under(id)), Batch::new());
        match contract {
            Some(contract) => batch.put(SETTINGS, &key, &cbor::encode(contract)),
            None => batch.delete(SETTINGS, &key),
        };
        self.0.state.ledger.commit_async(batch).await
    }

    /// Signs those of our services that the directory does not have, or has for a day: it may have lost them with the index,
    /// with our last key, or while we were away. Returns the items to be pushed.
    fn refresh_services(&self, id: &FederationId) -> Result<Vec<Vec<u8>>, PublishFailed> {
        let (own, now, prefix) = (self.0.state.identity().member(), self.0.state.now(), kept_under(id));
        let rows = self
            .0
            .state
            .ledger
            .range(SETTINGS, (Bound::Included(prefix.as_str()), Bound::Unbounded))
            .into_iter()
            .flatten()
            .flatten();
        let rows = rows.take_while(|(key, _)| key.starts_with(&prefix));
        let mut items = Vec::new();
        for (key, bytes) in rows {
            let Ok(contract) = cbor::decode_message::<Contract>(&bytes, CONTRACT_BYTES_MAX) else {
                tracing::warn!(key, "a kept contract does not decode");
                continue;
            };
            let is_fresh = |federation: &mut kos_engine::Federation| {
                let kind = Kind::Service;
                let slot = Slot { author: own, kind, name: contract.name.as_str().into() };
                federation.directory().get(&slot).is_some_and(|record| {
                    let age_ms = now.wall_ms.saturating_sub(record.time_ms());
                    Duration::from_millis(age_ms) < REFRESH
                })
            };
            if self.0.state.with(id, is_fresh) == Some(false) {
                items.push(self.sign_service(id, contract.name.clone(), Some(contract))?.1);
            }
        }
        Ok(items)
    }

    pub(crate) fn publish_offers(&self, id: &FederationId) -> Result<Vec<Vec<u8>>, PublishFailed> {
        let offers = lock(&self.0.offers).clone();
        let (state, now, identity) = (&self.0.state, self.0.state.now(), self.0.state.identity());
        let keys: Vec<_> =
            offers.iter().map(|offer| agent_key(state, &offer.agent)).collect::<Result<_, _>>()?;
        let items = state.with(id, |federation| {
            let gone: Vec<AgentId> = federation
                .own_agents()
                .map(|agent| agent.agent.clone())
                .filter(|agent| !offers.iter().any(|offer| offer.agent == *agent))
                .collect();
            let mut items = Vec::new();
            let mut publish = |agent: &AgentId, offer: Option<(&AgentOffer, &SecretKey)>| {
                let greatest = state.greatest_record();
                let stamp = federation.stamp::<AgentRecord>(now, &agent.to_string(), LIFE_MS, greatest);
                let record = agent_record(&stamp, id, &identity, agent, offer)?;
                let record = Signed::sign(record, Scope::Federation(*id), identity.secret())?;
                federation.handle(now, Input::Published((&record).into())).published()?;
                self.keep_greatest_record(stamp.seq);
                items.push(Item::new(AgentRecord::KIND, record.bytes()).to_bytes());
                Ok::<_, PublishFailed>(())
            };
            for agent in &gone {
                publish(agent, None)?;
            }
            for (offer, key) in offers.iter().zip(&keys) {
                publish(&offer.agent, Some((offer, key)))?;
            }
            Ok(items)
        });
        let items = items.ok_or(PublishFailed::NotInFederation)?;
        self.carry_out(id);
        items
    }
}

/// How the keys of our kept contracts begin in [`SETTINGS`].
fn kept_under(id: &FederationId) -> String {
    format!("service/{id}/")
}

/// The addresses that packets to the outside would have. Asking the system sends none.
fn outward_ips() -> Vec<IpAddr> {
    let anywhere: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    let outward = |(from, to)| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    anywhere.into_iter().filter_map(outward).collect()
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Part::Ip4(ip) => Some(ip.into()),
        Part::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// The version of this program; the binaries and their libraries have one.
fn own_version() -> Version {
    env!("CARGO_PKG_VERSION").parse().expect("cargo takes semantic versions only")
}

/// A record of an agent, with its certificate; without an offer a tombstone.
fn agent_record(
    stamp: &Stamp,
    federation: &FederationId,
    identity: &crate::identity::Identity,
    agent: &AgentId,
    offer: Option<(&AgentOffer, &SecretKey)>,
) -> Result<AgentRecord, PublishFailed> {
    let cert = match offer {
        None => None,
        Some((offer, key)) => {
            let cert = AgentCert {
                agent_key: key.public(),
                agent: agent.clone(),
                capabilities: offer.capabilities.iter().map(|capability| capability.name.clone()).collect(),
                not_before_ms: stamp.time_ms,
                until_ms: stamp.expires_ms,
                member: stamp.author,
                key_seq: stamp.key_seq,
            };
            Some(
                Signed::sign(cert, Scope::Federation(*federation), identity.secret())?
                    .bytes()
                    .to_vec()
                    .into(),
            )
        }
    };
    Ok(AgentRecord {
        author: stamp.author,
        key_seq: stamp.key_seq,
        agent: agent.clone(),
        seq: stamp.seq,
        time_ms: stamp.time_ms,
        expires_ms: stamp.expires_ms,
        cert,
        capabilities: offer.map(|(offer, _)| offer.capabilities.clone()).unwrap_or_default(),
        description: offer.map(|(offer, _)| offer.description.clone()).unwrap_or_default(),
        // A record names a protocol even where it only says that the agent is gone.
        protocol: offer.map_or_else(|| "none".to_owned(), |(offer, _)| offer.protocol.clone()),
    })
}

/// The key of an agent, made when it is first published.
fn agent_key(state: &State, agent: &AgentId) -> Result<SecretKey, PublishFailed> {
    let name = sha256(agent.to_string().as_bytes());
    let failed = |error: &dyn std::fmt::Display| PublishFailed::Key(error.to_string());
    if let Some(seed) = state.ledger.read(AGENT_KEYS, &name).map_err(|error| failed(&error))? {
        return Ok(SecretKey::from_seed(&seed));
    }
    let seed = crate::identity::random().map_err(|error| failed(&error))?;
    let mut batch = Batch::new();
    batch.put(AGENT_KEYS, &name, &seed);
    state.ledger.commit(batch).map_err(|error| failed(&error))?;
    Ok(SecretKey::from_seed(&seed))
}

fn is_loopback(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        Part::Ip4(ip) => ip.is_loopback(),
        Part::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}

/// The address without our own id at its end, which the record's author says already.
fn without_peer(address: &Multiaddr, own: &kos_mesh::PeerId) -> Multiaddr {
    let mut short = address.clone();
    match short.pop() {
        Some(Part::P2p(peer)) if peer == *own && !matches!(short.iter().last(), Some(Part::P2pCircuit)) => {
            short
        }
        _ => address.clone(),
    }
}
