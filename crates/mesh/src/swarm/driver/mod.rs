//! The task that owns the swarm: takes orders, hears events, keeps links.

mod connects;
mod events;
mod observed;
mod relays;
mod table;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId, Swarm, gossipsub};
use tokio::sync::{mpsc, oneshot};

use super::addr::{Documentation, Transport};
use super::behaviour::{Behaviour, gossip_id, topic_score};
use super::book::AddressBook;
use super::config::{Config, Role};
use super::counters::{Deed, Refusal};
use super::dial::{Attempt, Purpose};
use super::mesh::{Command, Snapshot};
use super::pace::{Bucket, Buckets};
use super::reach::Reach;
use super::shared::{LinkState, Shared};
use super::types::{Event, GossipId, Path, PublishError, Verdict};
use super::upkeep::{Relay, Reservation, Upkeep};
use crate::limits::{
    ADDRESSES_PER_PEER_MAX, EVENTS_PENDING_MAX, GOSSIP_BYTES_MAX, GOSSIP_PER_PEER_PER_SECOND,
    GOSSIP_TOPICS_MAX, LINKS_ASKED_EIGHTHS,
};

/// How often the two clocks are compared, to notice that the machine slept.
const CLOCK_CHECK: Duration = Duration::from_secs(5);
/// How far they may drift apart in that time.
const CLOCK_DRIFT_MAX: Duration = Duration::from_secs(8);
/// How long after a change of members identify is sent once more. What a change of protocols makes identify send by
/// itself is lost while its first exchange is still under way.
const PUSH_AGAIN: Duration = Duration::from_millis(500);
/// How long connections get to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// A connection on its way out.
struct Drain {
    since: Instant,
    /// Closed at the latest bound even if streams are open.
    forced: bool,
}

/// See the module.
pub(crate) struct Driver {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    pending: VecDeque<Event>,
    role: Role,
    documentation: Documentation,
    links_max: u32,
    bootstrap: Vec<(PeerId, Multiaddr)>,
    book: AddressBook,
    reach: Reach,
    upkeep: Upkeep,
    asked: Bucket,
    kept: Bucket,
    attempts: BTreeMap<PeerId, Attempt>,
    reservations: BTreeMap<PeerId, Reservation>,
    relays: BTreeMap<PeerId, Relay>,
    drains: BTreeMap<ConnectionId, Drain>,
    /// Connections from before the network changed: perhaps dead without knowing it.
    suspects: BTreeSet<ConnectionId>,
    offered: BTreeMap<ConnectionId, Multiaddr>,
    lan: BTreeMap<PeerId, Vec<Multiaddr>>,
    /// libp2p's ids have no order; what is read from these maps as a whole is sorted.
    listeners: HashMap<ListenerId, BTreeSet<Multiaddr>>,
    announced: (Vec<Multiaddr>, Vec<Multiaddr>),
    addresses_dirty: bool,
    topics: BTreeSet<String>,
    gossip_rate: Buckets<PeerId>,
    /// New members, to be told what we speak with them.
    push_again: Option<(Instant, BTreeSet<PeerId>)>,
    table: table::Table,
    /// Given by the caller, so not withdrawn.
    configured: Vec<Multiaddr>,
    /// Addresses that were confirmed and then lost: AutoNAT tests none of them again.
    withdrawn: BTreeSet<Multiaddr>,
    clocks: (Instant, SystemTime),
    changed_at: Option<Instant>,
    started: Instant,
    goodbye: Option<oneshot::Sender<()>>,
}

impl Driver {
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        config: &Config,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let now = Instant::now();
        let seed = getrandom::u64().unwrap_or(0);
        let upkeep_burst = config.upkeep_dials_per_minute.saturating_mul(3);
        Self {
            upkeep: Upkeep::new(shared.local, seed),
            swarm,
            shared,
            commands,
            events,
            pending: VecDeque::new(),
            role: config.role,
            documentation: config.documentation,
            links_max: config.links_max,
            bootstrap: config.bootstrap.clone(),
            book: AddressBook::restore(&config.known),
            reach: Reach::default(),
            asked: Bucket::new(config.dials_per_minute, config.dials_per_minute, now),
            kept: Bucket::new(upkeep_burst, config.upkeep_dials_per_minute, now),
            attempts: BTreeMap::new(),
            reservations: BTreeMap::new(),
            relays: BTreeMap::new(),
            drains: BTreeMap::new(),
            suspects: BTreeSet::new(),
            offered: BTreeMap::new(),
            lan: BTreeMap::new(),
            listeners: HashMap::new(),
            announced: (Vec::new(), Vec::new()),
            addresses_dirty: false,
            topics: BTreeSet::new(),
            gossip_rate: Buckets::new(
                GOSSIP_PER_PEER_PER_SECOND * 10,
                GOSSIP_PER_PEER_PER_SECOND * 60,
                config.links_max as usize,
            ),
            push_again: None,
            table: table::Table::default(),
            configured: config.external.clone(),
            withdrawn: BTreeSet::new(),
            clocks: (now, SystemTime::now()),
            changed_at: None,
            started: now,
            goodbye: None,
        }
    }

    pub(crate) async fn run(mut self) {
        self.enter_table();
        loop {
            self.turn();
            let deadline = self.next_deadline();
            let paused = self.pending.len() >= EVENTS_PENDING_MAX;
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None if self.events.is_closed() => break,
                    // Nobody can give orders any more, but somebody still listens.
                    None => { self.events.closed().await; break }
                },
                event = self.swarm.select_next_some(), if !paused => self.heard(event),
                permit = self.events.clone().reserve_owned(), if !self.pending.is_empty() => match (permit, self.pending.pop_front()) {
                    (Ok(permit), Some(event)) => { permit.send(event); }
                    _ => self.pending.clear(),
                },
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
            if self.goodbye.is_some() {
                break;
            }
        }
        self.leave().await;
    }

    async fn leave(mut self) {
        let peers: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let swarm = &mut self.swarm;
        let quiet = async {
            while swarm.connected_peers().next().is_some() {
                swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE, quiet).await;
        drop(self.swarm);
        if let Some(goodbye) = self.goodbye {
            let _ = goodbye.send(());
        }
    }

    /// Everything whose time has come.
    fn turn(&mut self) {
        let now = Instant::now();
        self.check_clocks(now);
        if self.changed_at.is_some_and(|at| at <= now) {
            self.changed_at = None;
            self.network_changed(now);
        }
        if let Some((_, peers)) = self.push_again.take_if(|(at, _)| *at <= now) {
            self.swarm.behaviour_mut().identify.inner_mut().push(peers);
        }
        self.keep_links(now);
        self.keep_reservations(now);
        self.keep_second_transports(now);
        self.advance_attempts(now);
        self.drain(now);
        self.announce_addresses(now);
        self.keep_announced(now);
    }

    fn next_deadline(&self) -> Instant {
        let drains = (!self.drains.is_empty()).then(|| Instant::now() + Duration::from_millis(250));
        let attempts = self.attempts.values().map(|attempt| match attempt.has_stages() {
            true => attempt.next_at.min(attempt.deadline),
            false => attempt.deadline,
        });
        let reservations = self.reservations.values().filter_map(Reservation::next_deadline);
        let second = self.relays.values().filter_map(|relay| relay.second_at);
        let push = self.push_again.as_ref().map(|(at, _)| *at);
        [Some(self.clocks.0 + CLOCK_CHECK), self.changed_at, self.upkeep.next_deadline(), drains, push]
            .into_iter()
            .flatten()
            .chain(attempts)
            .chain(reservations)
            .chain(second)
            .chain(self.announce_deadline())
            .min()
            // A deadline that has passed was dealt with as far as possible; do not spin on it.
            .map_or(self.clocks.0 + CLOCK_CHECK, |at| at.max(Instant::now() + Duration::from_millis(5)))
    }

    fn check_clocks(&mut self, now: Instant) {
        let (then, wall_then) = self.clocks;
        let elapsed = now.saturating_duration_since(then);
        if elapsed < CLOCK_CHECK {
            return;
        }
        let wall = SystemTime::now();
        let slept = wall.duration_since(wall_then).is_ok_and(|wall| wall > elapsed + CLOCK_DRIFT_MAX);
        self.clocks = (now, wall);
        if slept {
            tracing::info!("the machine slept, or its clock was set: looking for everybody again");
            self.network_changed(now);
        }
    }

    fn network_changed(&mut self, now: Instant) {
        self.shared.counters.count(Deed::NetworkChanged);
        self.reach.network_changed();
        self.upkeep.hurry(now);
        self.hurry_reservations(now);
        self.drop_strangers();
        self.refresh_links(now);
    }

    /// News for the caller that must not be lost.
    fn tell(&mut self, event: Event) {
        if self.events.is_closed() {
            return;
        }
        match self.pending.is_empty() {
            true => {
                if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
                    self.pending.push_back(event);
                }
            }
            false => self.pending.push_back(event),
        }
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Connect { peer, addrs, reply } => {
                self.connect(peer, &addrs, Some(reply), Purpose::Asked, now);
            }
            Command::Disconnect { peer } => self.disconnect(peer),
            Command::SetMembers { members, reply } => {
                self.set_members(members, now);
                let _ = reply.send(());
            }
            Command::Subscribe { topic, reply } => {
                let _ = reply.send(self.subscribe(topic));
            }
            Command::Unsubscribe { topic } => {
                self.topics.remove(&topic);
                self.swarm.behaviour_mut().gossip.inner_mut().unsubscribe(&gossipsub::IdentTopic::new(topic));
            }
            Command::Publish { topic, bytes, reply } => {
                let _ = reply.send(self.publish(topic, bytes));
            }
            Command::Report { id, from, verdict } => self.report(id, from, verdict),
            Command::Reserve { relay, addrs, reply } => self.reserve(relay, addrs, reply, now),
            Command::DropReservation { relay } => self.drop_reservation(relay),
            Command::Learn { peer, addrs } => {
                // Only what is new is worth another try before its time.
                if self.learn(peer, &addrs) {
                    self.widen(peer, &addrs, now);
                    self.keep_link(peer, now);
                }
            }
            Command::FindPeer { peer, reply } => self.find_peer(peer, reply),
            Command::Provide { key } => self.provide(key, now),
            Command::StopProviding { key } => self.stop_providing(key),
            Command::FindProviders { key, found } => self.find_providers(key, found),
            Command::AddExternal { addr } => {
                self.configured.push(addr.clone());
                self.swarm.add_external_address(addr);
                self.addresses_dirty = true;
            }
            Command::Snapshot { reply } => {
                let _ = reply.send(self.snapshot());
            }
            Command::Shutdown { reply } => self.goodbye = Some(reply),
        }
    }

    fn set_members(&mut self, members: BTreeSet<PeerId>, now: Instant) {
        let former = self.shared.set_members(members);
        let members = self.shared.members();
        let gone: Vec<_> = former.difference(&members).copied().collect();
        let come: Vec<_> = members.difference(&former).copied().collect();
        let behaviour = self.swarm.behaviour_mut();
        behaviour.gossip.set_members(members);
        behaviour.klp.access_changed(come.iter().chain(&gone).copied());
        for peer in gone {
            self.upkeep.drop_want(&peer);
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let (_, push) = self.push_again.get_or_insert((now + PUSH_AGAIN, BTreeSet::new()));
        push.extend(come.iter().copied());
        for peer in come {
            if let Some(addrs) = self.lan.get(&peer).cloned() {
                self.learn(peer, &addrs);
            }
            for link in self.shared.of(&peer) {
                self.learn_from(&link);
            }
            self.keep_link(peer, now);
        }
    }

    /// QUIC comes from the socket a node listens on, so where a member's packets come from it may be found again.
    fn learn_from(&mut self, link: &LinkState) {
        if let Path::Direct { addr, transport: Transport::Quic } = &link.path {
            self.learn(link.peer, std::slice::from_ref(addr));
        }
    }

    /// How many links this node asks for. Where there are more members than links it may have, not for all of them: the
    /// others are for those who ask for one with it.
    fn links_asked(&self) -> usize {
        let links_max = self.links_max as usize;
        let is_crowded = self.shared.members().len() > links_max;
        if is_crowded { links_max * LINKS_ASKED_EIGHTHS / 8 } else { links_max }
    }

    /// A member's addresses are known: its link is kept from now on, up to the number of links.
    fn keep_link(&mut self, peer: PeerId, now: Instant) {
        if !self.shared.is_member(&peer) || self.book.addresses(&peer).is_empty() {
            return;
        }
        self.upkeep.want(peer, self.links_asked());
        if !self.has_direct(&peer) && !self.attempts.contains_key(&peer) {
            self.upkeep.seen(&peer, now);
        }
    }

    /// Puts addresses into the book; whether one of them is new.
    fn learn(&mut self, peer: PeerId, addrs: &[Multiaddr]) -> bool {
        if addrs.len() > ADDRESSES_PER_PEER_MAX {
            self.shared.counters.refuse(Refusal::AddressesFull);
        }
        let known = self.book.addresses(&peer);
        for addr in addrs.iter().take(ADDRESSES_PER_PEER_MAX) {
            self.book.learn(peer, addr);
        }
        self.book.addresses(&peer).iter().any(|addr| !known.contains(addr))
    }

    fn subscribe(&mut self, topic: String) -> bool {
        if !self.topics.contains(&topic) && self.topics.len() >= GOSSIP_TOPICS_MAX {
            return false;
        }
        let gossip = self.swarm.behaviour_mut().gossip.inner_mut();
        let named = gossipsub::IdentTopic::new(topic.clone());
        let _ = gossip.set_topic_params(named.clone(), topic_score());
        let subscribed = gossip.subscribe(&named).is_ok();
        self.topics.insert(topic);
        subscribed
    }

    fn publish(&mut self, topic: String, bytes: Vec<u8>) -> Result<GossipId, PublishError> {
        if bytes.len() > GOSSIP_BYTES_MAX {
            return Err(PublishError::TooLarge { bytes: bytes.len(), limit: GOSSIP_BYTES_MAX });
        }
        let id = GossipId(gossip_id(&topic, &bytes));
        let gossip = self.swarm.behaviour_mut().gossip.inner_mut();
        gossip.publish(gossipsub::IdentTopic::new(topic), bytes).map_err(|error| match error {
            gossipsub::PublishError::NoPeersSubscribedToTopic => PublishError::NobodyListens,
            gossipsub::PublishError::Duplicate => PublishError::Duplicate,
            gossipsub::PublishError::MessageTooLarge => {
                PublishError::TooLarge { bytes: 0, limit: GOSSIP_BYTES_MAX }
            }
            _ => PublishError::Busy,
        })?;
        self.shared.counters.count(Deed::GossipOut);
        Ok(id)
    }

    fn report(&mut self, id: GossipId, from: PeerId, verdict: Verdict) {
        if verdict == Verdict::Reject {
            self.shared.counters.refuse(Refusal::GossipInvalid);
        }
        let acceptance = match verdict {
            Verdict::Accept => gossipsub::MessageAcceptance::Accept,
            Verdict::Ignore => gossipsub::MessageAcceptance::Ignore,
            Verdict::Reject => gossipsub::MessageAcceptance::Reject,
        };
        let gossip = self.swarm.behaviour_mut().gossip.inner_mut();
        gossip.report_message_validation_result(&id.0.to_vec().into(), &from, acceptance);
    }

    fn snapshot(&mut self) -> Snapshot {
        let (external, listen) = self.addresses();
        let held =
            |reservation: &Reservation| matches!(reservation.standing, super::upkeep::Standing::Held { .. });
        let table = self.hash_table();
        Snapshot {
            table,
            links: self.shared.all().iter().map(|link| link.link()).collect(),
            reachability: self.reach.explain(&listen),
            flows_last_minute: self.swarm.behaviour_mut().klp.flows_last_minute(),
            connecting: self.attempts.len() as u32,
            reservations: self
                .reservations
                .iter()
                .filter(|(_, one)| held(one))
                .map(|(relay, _)| *relay)
                .collect(),
            lan: self.lan.iter().map(|(peer, addrs)| (*peer, addrs.clone())).collect(),
            book: self.book.snapshot(),
            refusals: self.shared.counters.refusals(),
            deeds: self.shared.counters.deeds(),
            listen,
            external,
        }
    }
}
