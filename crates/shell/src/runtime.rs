//! Starting a node, and the loop that moves events to where they belong.

use crate::{
    app::{App, Change},
    bulk::Bulk,
    find::{Finder, Table as HashTable},
    identity::{Identity, IdentityError, random},
    keep::Keeper,
    key_files::Secrets,
    once::Once,
    options::{NodeRole, Options},
    publish::AgentOffer,
    restore::restore,
    serve::Intents,
    state::{State, lock},
    tables::{ADDRESS_BOOK, COUNTERS, FEDERATIONS, INDEX_VERSION, RECORDS, SETTINGS, WAYS, schema},
    wire::{CarriedWire, MeshWire, OwnWire, boxed, key_of, peer_of, route},
};
use kos_directory::liveness::Input as Liveness;
use kos_engine::{Federation, Input, Table};
use kos_governance::{act::Role, genesis::Genesis};
use kos_mesh::{
    BookSnapshot, Config, Event, Mesh, PeerId, Protocol, Verdict as GossipVerdict,
    link::{Answer, Body, CallError, Carrier, Exchange, Links, Refusal, To, accept_carried, read_header},
};
use kos_protocol::{
    id::{FederationId, MemberId, check_name},
    key::PublicKey,
    limits::{STREAMS_PER_MEMBER, STREAMS_RESERVED},
    message::{End, Head, ReplyHead},
};
use kos_store::{
    Batch, CommitError, Folder, FolderError, Index, IndexOpenError, Ledger, OpenError, Origin, ReadError,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

const NAME: &str = "name";
const PORT: &str = "port";
const DEFAULT_FEDERATION: &str = "default_federation";
/// Seconds between two catch-ups with some neighbour,
const SYNC_S: u64 = 300;
/// and in a federation with at most [`SMALL`] items, where one costs next to nothing.
const SYNC_SMALL_S: u64 = 60;
/// See [`SYNC_SMALL_S`].
const SMALL: usize = 1_000;
/// Streams one member may have carried at once: so many that its own exchanges with the carrier keep theirs.
const CARRIED_STREAMS_PER_MEMBER: usize = STREAMS_PER_MEMBER - STREAMS_RESERVED;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// The ledger, later.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The ledger, when written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The index, even a new one.
    #[error(transparent)]
    Index(#[from] IndexOpenError),
    /// The keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A genesis in the ledger that does not verify.
    #[error("federation {0} in the ledger is damaged: run `kai fsck`")]
    Federation(FederationId),
    /// The mesh.
    #[error("the mesh did not start: {0}")]
    Mesh(#[from] kos_mesh::StartError),
    /// A name nobody may have.
    #[error(transparent)]
    Name(#[from] kos_protocol::id::InvalidName),
    /// The key cannot be used by the mesh.
    #[error("the mesh does not take the key: {0}")]
    Key(String),
}

/// A running node. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub state: Arc<State>,
    pub options: Options,
    pub mesh: Mesh,
    pub wire: Arc<MeshWire>,
    pub links: Links,
    /// Sessions of this node with itself, so that its own agents are called like anybody else's.
    pub own_links: Links,
    pub carrier: Carrier,
    pub app: Arc<dyn App>,
    pub stop: CancellationToken,
    /// Said goodbye: our record says that we left, and no other is published any more.
    pub leaving: AtomicBool,
    /// The next deadline of a federation may be another.
    pub deadline: Notify,
    /// Our own record is out of date.
    pub republish: Notify,
    pub offers: Mutex<Vec<AgentOffer>>,
    /// The topics we listen to, with the federation each is of.
    pub topics: Mutex<BTreeMap<String, FederationId>>,
    /// Catch-ups under way, and whether another one is to follow.
    pub syncing: Mutex<BTreeMap<(FederationId, PublicKey), bool>>,
    /// When a catch-up last came to its end, in monotonic milliseconds.
    pub caught_up: Mutex<BTreeMap<FederationId, u64>>,
    /// Counts changes of records, health and rosters.
    pub changes: tokio::sync::watch::Sender<u64>,
    /// When members were last asked for acts we lacked, in monotonic milliseconds.
    pub asked_for_acts: Mutex<BTreeMap<(FederationId, PublicKey), u64>>,
    /// What federations want kept for good.
    pub keeper: Keeper,
    /// What became of requests with an idempotency key.
    pub once: Once,
    /// Held while a federation's orders are carried out.
    pub carrying: Mutex<()>,
    /// Held while the mesh is told who is a member, with the relays that were asked to keep a place for us.
    pub told: tokio::sync::Mutex<BTreeSet<PublicKey>>,
    /// Since when each member has been without a link, or linked.
    pub seen: Mutex<BTreeMap<PublicKey, u64>>,
    /// A relay's claim token.
    pub claim_token: Mutex<Option<[u8; 16]>>,
    /// What the directory says of us now, to publish only what is new.
    pub published: Mutex<BTreeMap<FederationId, Vec<u8>>>,
    /// Whole bodies that members are sending us.
    pub bulk: Bulk,
}

impl Runtime {
    /// Opens the folder, makes an identity and a federation of one if there is none, and starts the mesh.
    ///
    /// A rustls crypto provider must be installed before.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: Options, app: Arc<dyn App>) -> Result<Self, StartError> {
        let folder = Folder::open(&options.folder)?;
        let ledger = Ledger::open(&folder, &schema())?;
        let (index, origin) = Index::open(&folder, INDEX_VERSION)?;
        if let Origin::Rebuilt { .. } = origin {
            tracing::warn!(?origin, "the index was damaged and begins empty; peers will fill it again");
        }
        let identity = Identity::open_or_create(&folder, &ledger, &options.secrets)?;
        let name = settle_name(&ledger, options.name.as_deref())?;
        let mut options = options;
        if options.listen.is_none() {
            options.port = settle_port(&ledger, options.port)?;
        }
        let state = open_state(&options, folder, ledger, index, identity, name)?;
        let (mesh, events) = kos_mesh::spawn(mesh_config(&options, &state)?)?;
        let hints = Mutex::new(kept_ways(&state));
        let table = if options.kad { HashTable::On } else { HashTable::Off };
        let finder = Arc::new(Finder::new(mesh.clone(), state.clone(), table));
        let wire = Arc::new(MeshWire { mesh: mesh.clone(), state: state.clone(), hints, finder });
        let intents = Arc::new(Intents::new(app.clone()));
        let links = Links::new(state.clone(), wire.clone(), intents.clone());
        let own_wire = Arc::new(OwnWire { links: links.clone(), key: state.identity().key() });
        let own_links = links.beside(state.clone(), own_wire, intents.clone());
        let carrier = Carrier::new(
            state.clone(),
            links.stats().clone(),
            options.carry_bytes_per_second,
            CARRIED_STREAMS_PER_MEMBER,
        );
        let stop = CancellationToken::new();
        let keeper = Keeper::start(state.ledger.clone(), stop.clone());
        let once = Once::open(state.clone(), keeper.clone())?;
        let runtime = Self(Arc::new(Inner {
            state,
            options,
            mesh,
            wire,
            links,
            own_links,
            carrier,
            app,
            stop,
            leaving: AtomicBool::new(false),
            deadline: Notify::new(),
            republish: Notify::new(),
            offers: Mutex::default(),
            topics: Mutex::default(),
            syncing: Mutex::default(),
            caught_up: Mutex::default(),
            changes: tokio::sync::watch::Sender::new(0),
            asked_for_acts: Mutex::default(),
            keeper,
            once,
            carrying: Mutex::default(),
            told: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            claim_token: Mutex::default(),
            published: Mutex::default(),
            bulk: Bulk::default(),
        }));
        intents.serve(&runtime);
        if runtime.0.options.role == NodeRole::Relay {
            // A relay may be claimed for as long as it runs; the token decides by whom.
            runtime.0.state.begin_joining(crate::join::NOWHERE);
        }
        let ids: Vec<_> = runtime.0.state.federations().keys().copied().collect();
        for id in &ids {
            runtime.settle(id).await?;
        }
        runtime.refresh_members().await;
        tokio::spawn(runtime.clone().run(events));
        tokio::spawn(runtime.clone().publish_when_needed());
        for id in &ids {
            runtime.subscribe(id).await;
        }
        runtime.name_ourselves().await;
        Ok(runtime)
    }

    /// Ends links and tasks in order; the ledger is closed when the last handle is gone.
    pub async fn shutdown(&self) {
        self.say_goodbye().await;
        self.save_address_book().await;
        if let Err(error) = self.0.keeper.settle().await {
            tracing::warn!(%error, "not everything could be written before the end");
        }
        self.0.stop.cancel();
        self.0.mesh.shutdown().await;
    }

    /// The sessions: for calls to agents.
    pub fn links(&self) -> &Links {
        &self.0.links
    }

    /// Opens an exchange with a member, whatever its key is now; also with this very node.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::NotInFederation`] also when it is no active member.
    pub async fn open(
        &self,
        id: &FederationId,
        member: &MemberId,
        head: &Head,
        body: Body<'_>,
    ) -> Result<Exchange, CallError> {
        let (links, to) = self.way_to(id, member)?;
        links.open(to, head, body).await
    }

    /// As [`Runtime::open`], with a whole body, up to the head of the answer. A request with an idempotency key whose
    /// answer is lost is asked once more where that cannot execute it twice.
    ///
    /// # Errors
    /// As [`Runtime::open`]; [`CallError::OutcomeUnknown`] for a request with a key that was sent and not answered.
    pub async fn request(
        &self,
        id: &FederationId,
        member: &MemberId,
        head: &Head,
        body: &[u8],
    ) -> Result<(Exchange, Result<ReplyHead, End>), CallError> {
        let (links, to) = self.way_to(id, member)?;
        links.request(to, head, body).await
    }

    /// As [`Runtime::request`], carried by a relay even where there is a direct way; the session is there already. For
    /// whoever wants to see that the relays carry.
    ///
    /// # Errors
    /// As [`Runtime::open`]; [`CallError::Unreachable`] where no relay carries, or there is no session.
    pub async fn ask_carried(
        &self,
        id: &FederationId,
        member: &MemberId,
        head: &Head,
        body: &[u8],
        limit_bytes: usize,
    ) -> Result<Result<Answer, End>, CallError> {
        let (links, to) = self.way_to(id, member)?;
        links.ask_over(&CarriedWire(self.0.wire.clone()), to, head, body, limit_bytes).await
    }

    fn way_to(&self, id: &FederationId, member: &MemberId) -> Result<(&Links, To), CallError> {
        let key = self
            .0
            .state
            .with(id, |federation| federation.roster().active_member(member).map(|member| member.key()));
        let key = key.flatten().ok_or(CallError::NotInFederation)?;
        let links = if key == self.0.state.identity().key() { &self.0.own_links } else { &self.0.links };
        Ok((links, To { federation: *id, key }))
    }

    /// The data folder's ledger, for the application's own tables.
    pub fn ledger(&self) -> &Ledger {
        &self.0.state.ledger
    }

    /// The data folder.
    pub fn folder(&self) -> &Folder {
        &self.0.state.folder
    }

    async fn run(self, mut events: mpsc::Receiver<Event>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks: u64 = 0;
        loop {
            tokio::select! {
                () = self.0.stop.cancelled() => return,
                event = events.recv() => match event {
                    Some(event) => self.take(event),
                    None => return,
                },
                _ = tick.tick() => {
                    ticks += 1;
                    self.tick(ticks).await;
                }
                () = self.0.deadline.notified() => {}
                () = tokio::time::sleep(self.until_deadline()) => self.meet_deadlines(),
            }
        }
    }

    fn until_deadline(&self) -> Duration {
        let now = self.0.state.now();
        let federations = self.0.state.federations();
        let next_ms = federations.values().map(|federation| federation.next_deadline_ms(now)).min();
        let wait_ms = next_ms.map_or(u64::from(u32::MAX), |next_ms| next_ms.saturating_sub(now.monotonic_ms));
        Duration::from_millis(wait_ms)
    }

    fn meet_deadlines(&self) {
        let now = self.0.state.now();
        let ids: Vec<_> = self.0.state.federations().keys().copied().collect();
        for id in ids {
            let is_due = self.0.state.with(&id, |federation| {
                let due = federation.next_deadline_ms(now) <= now.monotonic_ms;
                if due {
                    federation.handle(now, Input::DeadlineReached);
                }
                due
            });
            if is_due == Some(true) {
                self.carry_out(&id);
            }
        }
    }

    async fn tick(&self, ticks: u64) {
        let ids: Vec<_> = self.0.state.federations().keys().copied().collect();
        for id in ids {
            if ticks.is_multiple_of(SYNC_SMALL_S) {
                self.subscribe(&id).await;
                let size = self.0.state.with(&id, |federation| federation.set().len());
                if size.unwrap_or_default() <= SMALL || ticks.is_multiple_of(SYNC_S) {
                    self.sync_with_somebody(&id, ticks / SYNC_SMALL_S);
                }
            }
        }
        self.0.wire.finder.look_around();
        if ticks.is_multiple_of(60) {
            // The keys of a new day.
            self.name_ourselves().await;
            self.0.once.expire();
            self.save_address_book().await;
        }
    }

    fn take(&self, event: Event) {
        match event {
            Event::Inbound { peer, path, protocol, stream, .. } => {
                let Some(key) = key_of(&peer) else { return };
                let runtime = self.clone();
                tokio::spawn(async move {
                    match protocol {
                        Protocol::Klp => runtime.0.links.serve(boxed(stream), route(&path, key)).await,
                        Protocol::Carry => runtime.take_carried(boxed(stream), key).await,
                    }
                });
            }
            Event::Gossip { topic, bytes, from, id } => {
                let verdict = self.take_gossip(&topic, &bytes, &from);
                let mesh = self.0.mesh.clone();
                tokio::spawn(async move { mesh.report(id, from, verdict).await });
            }
            Event::LinkUp { peer, path, .. } => {
                let Some(key) = key_of(&peer) else { return };
                self.0.links.drop_idle(&key);
                self.see(key);
                if path.is_direct() {
                    self.linked(&key);
                    self.tell_liveness(&key, Liveness::Linked);
                }
                self.0.app.changed(Change::Links);
            }
            Event::LinkDown { peer, .. } => {
                let Some(key) = key_of(&peer) else { return };
                self.0.links.drop_idle(&key);
                if self.0.mesh.links_with(&peer).is_empty() {
                    self.0.links.retire_all(&key);
                }
                if !self.0.mesh.is_direct(&peer) {
                    self.tell_liveness(&key, Liveness::Unlinked);
                }
                self.see(key);
                self.0.app.changed(Change::Links);
            }
            Event::PathUpgraded { peer } => {
                if let Some(key) = key_of(&peer) {
                    self.0.links.drop_idle(&key);
                    self.linked(&key);
                    self.tell_liveness(&key, Liveness::Linked);
                }
            }
            Event::AddressesChanged { .. } | Event::Reservation { .. } => self.0.republish.notify_one(),
            Event::OwnKeyAt { addr } => {
                // Whoever passes our own dial back to us looks the same, so this alone stops nothing.
                tracing::warn!(%addr, "our own key answers at an address that is none of ours: another machine may run with it");
            }
            // The mesh links with members on the LAN by itself.
            Event::Mdns { .. } | Event::Subscribed { .. } => {}
        }
    }

    /// Members only: whoever else comes by is not worth a place in memory.
    fn see(&self, key: PublicKey) {
        if !self.0.state.memberships(&key).is_empty() {
            lock(&self.0.seen).insert(key, self.0.state.now().wall_ms);
        }
    }

    /// A member came into direct reach: learn what it knows.
    fn linked(&self, key: &PublicKey) {
        for (federation, _) in self.0.state.memberships(key) {
            self.sync_twice(federation, *key);
        }
    }

    fn take_gossip(&self, topic: &str, bytes: &[u8], from: &PeerId) -> GossipVerdict {
        let Some(id) = lock(&self.0.topics).get(topic).copied() else { return GossipVerdict::Ignore };
        let now = self.0.state.now();
        let heard = |federation: &mut Federation| {
            let from = key_of(from).and_then(|key| Some(federation.roster().by_key(&key)?.0));
            federation.handle(now, Input::Gossiped { from, item: bytes })
        };
        let Some(verdict) = self.0.state.with(&id, heard) else {
            return GossipVerdict::Ignore;
        };
        self.carry_out(&id);
        let lacks_acts = match &verdict {
            kos_engine::Verdict::Held => true,
            kos_engine::Verdict::Refused(refusal) => refusal.lacks_acts(),
            _ => false,
        };
        if let Some(key) = key_of(from).filter(|_| lacks_acts) {
            self.sync_for_acts(id, key);
        }
        match verdict {
            kos_engine::Verdict::New => {
                self.pass_on(&id, bytes);
                GossipVerdict::Accept
            }
            kos_engine::Verdict::Refused(refusal) if refusal.is_hostile() => GossipVerdict::Reject,
            _ => GossipVerdict::Ignore,
        }
    }

    async fn take_carried(&self, mut stream: kos_mesh::link::BoxedStream, via: PublicKey) {
        let limit = Duration::from_millis(kos_protocol::limits::STRANGER_MS_MAX);
        let Ok(Ok(header)) = tokio::time::timeout(limit, read_header(&mut stream)).await else {
            return self.0.links.stats().refuse(Refusal::Carry);
        };
        if header.route.is_empty() {
            if accept_carried(&mut stream).await.is_ok() {
                self.0.links.serve(stream, kos_mesh::link::Route::Carried { via }).await;
            }
            return;
        }
        if self.0.options.role != NodeRole::Relay {
            return self.0.links.stats().refuse(Refusal::Carry);
        }
        if let Err(error) = self.0.carrier.carry(stream, header, &via, &*self.0.wire).await {
            tracing::debug!(%error, "not carried");
        }
    }

    /// Tells the mesh who is a member now and where: it keeps the links, paces the dials, and asks relays for a place.
    pub(crate) async fn refresh_members(&self) {
        // Held from the look at the rosters until the mesh knows: an older look must not come after a newer one.
        let mut reserved = self.0.told.lock().await;
        let members = self.active_keys(|_| true);
        self.0.mesh.set_members(members.iter().map(peer_of).collect()).await;
        for key in &members {
            self.0.mesh.learn(peer_of(key), self.0.wire.addresses(key)).await;
        }
        let relays = self.active_keys(|role| role == Role::Relay);
        for gone in reserved.difference(&relays) {
            self.0.mesh.drop_reservation(peer_of(gone)).await;
        }
        *reserved = relays;
        self.reserve_relays();
    }

    /// Asks every relay of ours to keep a place for us.
    pub(crate) fn reserve_relays(&self) {
        if self.0.options.role == NodeRole::Relay {
            return;
        }
        for key in self.active_keys(|role| role == Role::Relay) {
            let runtime = self.clone();
            tokio::spawn(async move {
                let addresses = runtime.0.wire.addresses(&key);
                if let Err(error) = runtime.0.mesh.request_reservation(peer_of(&key), addresses).await {
                    tracing::debug!(%error, "no reservation yet");
                }
            });
        }
    }

    /// Keeps for good where a node is that leads to all others.
    pub(crate) fn keep_way(&self, key: PublicKey, addresses: &[kos_mesh::Multiaddr]) {
        if addresses.is_empty() {
            return;
        }
        lock(&self.0.wire.hints).insert(key, addresses.to_vec());
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let row = kos_protocol::cbor::encode(&texts);
        if self.0.state.ledger.read(WAYS, key.as_bytes()).is_ok_and(|kept| kept.as_ref() == Some(&row)) {
            return;
        }
        let mut batch = Batch::new();
        batch.put(WAYS, key.as_bytes(), row.as_slice());
        let durable = self.0.state.ledger.commit_async(batch);
        tokio::spawn(async move {
            if let Err(error) = durable.await {
                tracing::warn!(%error, "the way to a relay or steward was not kept");
            }
        });
    }

    /// The current keys of the other active members of any of our federations, in these roles.
    pub(crate) fn active_keys(&self, wanted: impl Fn(Role) -> bool) -> BTreeSet<PublicKey> {
        let own = self.0.state.identity().key();
        let federations = self.0.state.federations();
        let active = federations.values().flat_map(|federation| federation.roster().active());
        active
            .filter(|member| wanted(member.role))
            .map(|member| member.key())
            .filter(|key| *key != own)
            .collect()
    }

    async fn save_address_book(&self) {
        let Some(snapshot) = self.0.mesh.snapshot().await else { return };
        let Ok(json) = serde_json::to_vec(&snapshot.book) else { return };
        let kept =
            self.0.state.index.put(ADDRESS_BOOK, "book", &json).and_then(|()| self.0.state.index.flush());
        if let Err(error) = kept {
            tracing::debug!(%error, "the address book was not saved");
        }
    }

    /// Makes `federation` the one commands mean when they name none.
    pub(crate) async fn make_default(&self, federation: FederationId) -> Result<(), CommitError> {
        let mut batch = Batch::new();
        batch.put(SETTINGS, DEFAULT_FEDERATION, federation.as_bytes().as_slice());
        self.0.state.ledger.commit_async(batch).await?;
        self.0.state.set_default_federation(federation);
        Ok(())
    }
}

/// Takes a member over on a new machine: into an empty folder, with its key log and its 24 words.
///
/// # Errors
/// [`StartError`].
pub fn restore_member(
    folder: &std::path::Path,
    secrets: &Secrets,
    log: &kos_protocol::key_log::KeyLog,
    words: &str,
) -> Result<kos_protocol::id::MemberId, StartError> {
    let folder = Folder::open(folder)?;
    let ledger = Ledger::open(&folder, &schema())?;
    Ok(Identity::restore(&folder, &ledger, secrets, log, words)?.member())
}

/// The name given, kept for next time; else the one kept; else the host's.
fn settle_name(ledger: &Ledger, given: Option<&str>) -> Result<String, StartError> {
    let kept = ledger.read(SETTINGS, NAME)?.and_then(|bytes| String::from_utf8(bytes).ok());
    let name = match (given, kept) {
        (Some(name), _) => {
            check_name(name)?;
            name.to_owned()
        }
        (None, Some(name)) => return Ok(name),
        (None, None) => host_name(),
    };
    let mut batch = Batch::new();
    batch.put(SETTINGS, NAME, name.as_bytes());
    ledger.commit(batch)?;
    Ok(name)
}

/// The port asked for; else the one of last time, so that peers find the node where it was and a router's rule holds;
/// else one that is free.
fn settle_port(ledger: &Ledger, wanted: u16) -> Result<u16, StartError> {
    if wanted != 0 {
        return Ok(wanted);
    }
    let kept = ledger.read(SETTINGS, PORT)?.and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
    if let Some(kept) = kept.map(u16::from_be_bytes).filter(|port| is_free(*port)) {
        return Ok(kept);
    }
    let any =
        std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).and_then(|any| any.local_addr());
    let Some(free) = any.ok().map(|any| any.port()).filter(|port| is_free(*port)) else { return Ok(0) };
    let mut batch = Batch::new();
    batch.put(SETTINGS, PORT, free.to_be_bytes().as_slice());
    ledger.commit(batch)?;
    Ok(free)
}

/// Whether nobody has this UDP or TCP port.
fn is_free(port: u16) -> bool {
    let address = (std::net::Ipv4Addr::UNSPECIFIED, port);
    std::net::UdpSocket::bind(address).is_ok() && std::net::TcpListener::bind(address).is_ok()
}

/// The host's name, cut to what names may be.
fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().to_ascii_lowercase();
    let first = host.trim().split('.').next().unwrap_or_default();
    let kept: String =
        first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(32).collect();
    let name = kept.trim_matches('-');
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

fn open_state(
    options: &Options,
    folder: Folder,
    ledger: Ledger,
    index: Index,
    identity: Identity,
    name: String,
) -> Result<Arc<State>, StartError> {
    let wall_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64);
    let now = kos_protocol::time::Timestamp { monotonic_ms: 0, wall_ms };
    let mut federations = BTreeMap::new();
    for row in ledger.range(FEDERATIONS, ..)? {
        let (id, genesis) = row?;
        let id = FederationId::from_bytes(id);
        let genesis = Genesis::parse(&genesis).map_err(|_| StartError::Federation(id))?;
        let mut federation = Federation::new(now, genesis, identity.member());
        restore(&mut federation, now, &ledger, &index)?;
        // A rotation that a crash interrupted may be in the key log and not yet in the federation.
        if let Err(refusal) = federation.handle(now, Input::Rotated(identity.log())).taken() {
            tracing::warn!(%refusal, "the own key log does not fit this federation");
        }
        federation.has_signed(ledger.read(COUNTERS, RECORDS)?.unwrap_or(0));
        federation.start(now);
        federations.insert(id, federation);
    }
    if federations.is_empty() && options.role == NodeRole::Home {
        let genesis = Genesis::household(random()?, &name, &name, identity.log())
            .map_err(|error| StartError::Key(error.to_string()))?;
        let federation = Federation::found(now, genesis, identity.member());
        federations.insert(federation.id(), federation);
    }
    let kept = ledger.read(SETTINGS, DEFAULT_FEDERATION)?.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let default = kept
        .map(FederationId::from_bytes)
        .filter(|id| federations.contains_key(id))
        .or_else(|| federations.keys().next().copied())
        .unwrap_or(FederationId::from_bytes([0; 32]));
    Ok(Arc::new(State::new(
        folder,
        ledger,
        index,
        options.versions,
        options.agent.clone(),
        identity,
        name,
        federations,
        default,
    )))
}

/// Where the nodes are that lead to all others; those of keys that are no member's any more are forgotten.
fn kept_ways(state: &State) -> BTreeMap<PublicKey, Vec<kos_mesh::Multiaddr>> {
    let (mut ways, mut gone) = (BTreeMap::new(), Batch::new());
    for (bytes, list) in state.ledger.range(WAYS, ..).into_iter().flatten().flatten() {
        let key = PublicKey::from_bytes(&bytes).ok().filter(|key| !state.memberships(key).is_empty());
        let texts = kos_protocol::cbor::decode_canonical::<Vec<String>>(&list, list.len());
        match (key, texts) {
            (Some(key), Ok(texts)) => {
                ways.insert(key, texts.iter().filter_map(|text| text.parse().ok()).collect());
            }
            _ => drop(gone.delete(WAYS, &bytes)),
        }
    }
    if !gone.is_empty()
        && let Err(error) = state.ledger.commit(gone)
    {
        tracing::debug!(%error, "ways that lead nowhere were not forgotten");
    }
    ways
}

fn mesh_config(options: &Options, state: &State) -> Result<Config, StartError> {
    let mut seed = *state.identity().secret().to_seed();
    let secret = kos_mesh::identity::ed25519::SecretKey::try_from_bytes(&mut seed)
        .map_err(|error| StartError::Key(error.to_string()))?;
    let keypair = kos_mesh::identity::Keypair::from(kos_mesh::identity::ed25519::Keypair::from(secret));
    let role = match options.role {
        NodeRole::Home => kos_mesh::Role::Home,
        NodeRole::Relay => kos_mesh::Role::Relay,
    };
    let mut config = Config::new(keypair, role);
    config.listen = options.listen.clone().unwrap_or_else(|| kos_mesh::listen_on(options.port));
    config.external.clone_from(&options.external);
    config.mdns = options.mdns;
    config.upnp = options.upnp;
    config.kad = options.kad;
    config.bootstrap = options.bootstrap.iter().filter_map(split_peer).collect();
    config.documentation = options.documentation;
    let book = state.index.get(ADDRESS_BOOK, "book").ok().flatten();
    config.known =
        book.and_then(|json| serde_json::from_slice::<BookSnapshot>(&json).ok()).unwrap_or_default();
    Ok(config)
}

fn split_peer(address: &kos_mesh::Multiaddr) -> Option<(PeerId, kos_mesh::Multiaddr)> {
    let mut address = address.clone();
    match address.pop()? {
        kos_mesh::multiaddr::Protocol::P2p(peer) => Some((peer, address)),
        _ => None,
    }
}

/// Which federation rows of the ledger a table of the engine has.
pub(crate) fn is_rebuildable(table: Table) -> bool {
    matches!(table, Table::Records | Table::Unknown)
}
