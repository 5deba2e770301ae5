//! The handle to a running swarm.

use std::collections::BTreeSet;
use std::sync::Arc;

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot};

use super::book::BookSnapshot;
use super::counters::{Counters, Deed, Refusal};
use super::reach::Reachability;
use super::shared::{LinkState, OpenRequest, Shared};
use super::stream::{Place, Stream};
use super::types::{ConnectError, GossipId, Link, OpenError, Path, Protocol, PublishError, Verdict};
use crate::limits::{KAD_FOUND_MAX, OPEN_TIMEOUT, STREAMS_OUTBOUND_MAX};

/// Orders to the swarm's task.
#[derive(Debug)]
pub(crate) enum Command {
    Connect { peer: PeerId, addrs: Vec<Multiaddr>, reply: oneshot::Sender<Result<Path, ConnectError>> },
    Disconnect { peer: PeerId },
    SetMembers { members: BTreeSet<PeerId>, reply: oneshot::Sender<()> },
    Subscribe { topic: String, reply: oneshot::Sender<bool> },
    Unsubscribe { topic: String },
    Publish { topic: String, bytes: Vec<u8>, reply: oneshot::Sender<Result<GossipId, PublishError>> },
    Report { id: GossipId, from: PeerId, verdict: Verdict },
    Reserve { relay: PeerId, addrs: Vec<Multiaddr>, reply: oneshot::Sender<Result<Vec<Multiaddr>, String>> },
    DropReservation { relay: PeerId },
    Learn { peer: PeerId, addrs: Vec<Multiaddr> },
    FindPeer { peer: PeerId, reply: oneshot::Sender<Vec<Multiaddr>> },
    Provide { key: Vec<u8> },
    StopProviding { key: Vec<u8> },
    FindProviders { key: Vec<u8>, found: mpsc::Sender<(PeerId, Vec<Multiaddr>)> },
    AddExternal { addr: Multiaddr },
    Snapshot { reply: oneshot::Sender<Snapshot> },
    Shutdown { reply: oneshot::Sender<()> },
}

/// What a swarm looks like at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// On our own interfaces.
    pub listen: Vec<Multiaddr>,
    /// Confirmed to reach us from outside; circuits included.
    pub external: Vec<Multiaddr>,
    /// Every connection, by peer.
    pub links: Vec<Link>,
    /// Why we can, or cannot, be reached.
    pub reachability: Reachability,
    /// Flows dials opened in the last minute.
    pub flows_last_minute: u32,
    /// Connects in progress.
    pub connecting: u32,
    /// Relays that keep a place for us.
    pub reservations: Vec<PeerId>,
    /// Our part in the hash table; `None` when it is off.
    pub table: Option<HashTable>,
    /// Peers seen on the LAN.
    pub lan: Vec<(PeerId, Vec<Multiaddr>)>,
    /// What the caller keeps for the next start.
    pub book: BookSnapshot,
    /// Refusals since the start, by label.
    pub refusals: Vec<(Refusal, u64)>,
    /// Deeds since the start, by label.
    pub deeds: Vec<(Deed, u64)>,
}

/// What a node is in the hash table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableRole {
    /// It asks, and is named by servers. Becomes a server when an address of its own is confirmed.
    Client,
    /// Strangers reach it, so it keeps names for others. Becomes a client when its addresses go.
    Server,
}

/// The hash table as one node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashTable {
    /// Our part in it.
    pub role: TableRole,
    /// Servers we know.
    pub servers: u32,
    /// Names we keep for others: a peer under a key is one.
    pub names_kept: u32,
    /// Keys we are named under, as far as somebody keeps that name.
    pub names_ours: u32,
}

/// Why there is no reservation yet. It is asked for again until [`Mesh::drop_reservation`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// The relay could not be reached, or refused.
    #[error("no reservation with {relay}: {reason}")]
    Failed {
        /// The relay.
        relay: PeerId,
        /// Its words, or the transport's.
        reason: String,
    },
    /// The swarm has ended.
    #[error("the mesh has stopped")]
    Stopped,
}

/// The handle to a running swarm. Clones are cheap; the swarm ends when the last one and the receiver of events
/// are gone, or with [`Mesh::shutdown`].
#[derive(Clone, Debug)]
pub struct Mesh {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Mesh {
    /// Our own id.
    pub fn local_peer(&self) -> PeerId {
        self.shared.local
    }

    async fn send(&self, command: Command) -> Option<()> {
        self.commands.send(command).await.ok()
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.ok()
    }

    /// Makes a link with `peer`, or finds the one there is.
    ///
    /// Addresses of the book that worked before are tried first, then `addrs`: all QUIC ones together, TCP after a
    /// head start, circuits last. Dials are paced. A link over a circuit counts; punching goes on by itself and
    /// shows as [`Event::PathUpgraded`](super::Event::PathUpgraded). Takes at most
    /// [`CONNECT_TIMEOUT`](crate::limits::CONNECT_TIMEOUT).
    ///
    /// # Errors
    /// [`ConnectError::Unreachable`] lists every address with the step at which it failed.
    pub async fn connect(&self, peer: PeerId, addrs: Vec<Multiaddr>) -> Result<Path, ConnectError> {
        self.ask(|reply| Command::Connect { peer, addrs, reply }).await.unwrap_or(Err(ConnectError::Stopped))
    }

    /// Opens a stream on the best connection with `peer`: direct before relayed, QUIC before TCP, newest first.
    ///
    /// Costs no round trip: the stream's protocol travels with its first bytes, so that a peer that refuses the
    /// protocol shows as an error of the first read. Waits while all
    /// [`STREAMS_OUTBOUND_MAX`](crate::limits::STREAMS_OUTBOUND_MAX) streams are in use.
    ///
    /// # Errors
    /// [`OpenError::NotConnected`]: connect first.
    pub async fn open(&self, peer: PeerId, protocol: Protocol) -> Result<(Stream, Path), OpenError> {
        for link in self.shared.of(&peer) {
            if protocol == Protocol::Carry && !link.path.is_direct() {
                return Err(OpenError::Unsupported { peer, protocol });
            }
            match open(&link, protocol).await {
                Err(OpenError::ConnectionGone { .. }) => {}
                Ok(stream) => return Ok((stream, link.path.clone())),
                Err(error) => return Err(error),
            }
        }
        Err(OpenError::NotConnected { peer })
    }

    /// Opens a stream on this very connection.
    ///
    /// # Errors
    /// [`OpenError::ConnectionGone`] if it has ended.
    pub async fn open_on(&self, connection: ConnectionId, protocol: Protocol) -> Result<Stream, OpenError> {
        let link = self.shared.find(connection).ok_or(OpenError::ConnectionGone { connection })?;
        open(&link, protocol).await
    }

    /// The connections with `peer`, best first. Does not ask the swarm's task.
    pub fn links_with(&self, peer: &PeerId) -> Vec<Link> {
        self.shared.of(peer).iter().map(|link| link.link()).collect()
    }

    /// All connections. Does not ask the swarm's task.
    pub fn links(&self) -> Vec<Link> {
        self.shared.all().iter().map(|link| link.link()).collect()
    }

    /// Whether there is a direct connection with `peer`. Does not ask the swarm's task.
    pub fn is_direct(&self, peer: &PeerId) -> bool {
        self.shared.of(peer).iter().any(|link| link.path.is_direct())
    }

    /// Closes every connection with `peer` and stops keeping the link.
    pub async fn disconnect(&self, peer: PeerId) {
        self.send(Command::Disconnect { peer }).await;
    }

    /// Says who is a member, and returns once that holds for new streams and connections.
    ///
    /// Members gossip, may be carried, get reservations (at a relay), and their links are kept. A peer that is no
    /// member any more is disconnected.
    pub async fn set_members(&self, members: BTreeSet<PeerId>) {
        self.ask(|reply| Command::SetMembers { members, reply }).await;
    }

    /// Listens to a topic; `false` if there are already
    /// [`GOSSIP_TOPICS_MAX`](crate::limits::GOSSIP_TOPICS_MAX).
    pub async fn subscribe(&self, topic: impl Into<String>) -> bool {
        let topic = topic.into();
        self.ask(|reply| Command::Subscribe { topic, reply }).await.unwrap_or(false)
    }

    /// Listens to a topic no longer.
    pub async fn unsubscribe(&self, topic: impl Into<String>) {
        self.send(Command::Unsubscribe { topic: topic.into() }).await;
    }

    /// Passes a message to the members that listen to the topic. It says nothing of who wrote it: sign it.
    ///
    /// # Errors
    /// [`PublishError::NobodyListens`]: publish again when [`Event::Subscribed`](super::Event::Subscribed) comes.
    pub async fn publish(&self, topic: impl Into<String>, bytes: Vec<u8>) -> Result<GossipId, PublishError> {
        let topic = topic.into();
        self.ask(|reply| Command::Publish { topic, bytes, reply }).await.unwrap_or(Err(PublishError::Stopped))
    }

    /// Says what a gossip message was worth; only accepted ones are forwarded. Report each once, within a minute.
    pub async fn report(&self, id: GossipId, from: PeerId, verdict: Verdict) {
        self.send(Command::Report { id, from, verdict }).await;
    }

    /// Asks a relay to keep a place for us, and keeps asking: the reservation is renewed, and made again when the
    /// relay or the network comes back. Returns the first outcome.
    ///
    /// # Errors
    /// What was in the way of the first try. [`Event::Reservation`](super::Event::Reservation) tells of later ones.
    pub async fn request_reservation(
        &self,
        relay: PeerId,
        addrs: Vec<Multiaddr>,
    ) -> Result<Vec<Multiaddr>, ReserveError> {
        let answer = self.ask(|reply| Command::Reserve { relay, addrs, reply }).await;
        answer.ok_or(ReserveError::Stopped)?.map_err(|reason| ReserveError::Failed { relay, reason })
    }

    /// Gives a reservation up.
    pub async fn drop_reservation(&self, relay: PeerId) {
        self.send(Command::DropReservation { relay }).await;
    }

    /// Puts addresses of a peer, from a record or an invitation, into the address book.
    pub async fn learn(&self, peer: PeerId, addrs: Vec<Multiaddr>) {
        self.send(Command::Learn { peer, addrs }).await;
    }

    /// Asks the hash table for a peer's addresses. A hint, never the truth; empty when the table is off.
    pub async fn find_peer(&self, peer: PeerId) -> Vec<Multiaddr> {
        self.ask(|reply| Command::FindPeer { peer, reply }).await.unwrap_or_default()
    }

    /// From now on names us under a key of the hash table, with addresses that strangers may know of, for as long as
    /// there are any: confirmed public ones, and circuits. Announced again hourly and when they change. Keys beyond
    /// [`KAD_KEYS_OURS_MAX`](crate::limits::KAD_KEYS_OURS_MAX) are not.
    pub async fn provide(&self, key: Vec<u8>) {
        self.send(Command::Provide { key }).await;
    }

    /// Does so no longer. Servers forget it after [`KAD_NAME_LIFE`](crate::limits::KAD_NAME_LIFE).
    pub async fn stop_providing(&self, key: Vec<u8>) {
        self.send(Command::StopProviding { key }).await;
    }

    /// Peers named under a key of the hash table, with the addresses they named: a hint, never the truth. Dial those
    /// that are known by other means.
    ///
    /// Comes as servers answer, a peer again with what is new; ends with the lookup, which servers that do not answer
    /// make as long as [`KAD_QUERY_TIMEOUT`](crate::limits::KAD_QUERY_TIMEOUT). Empty when the table is off.
    pub async fn find_providers(&self, key: Vec<u8>) -> mpsc::Receiver<(PeerId, Vec<Multiaddr>)> {
        let (found, receiver) = mpsc::channel(KAD_FOUND_MAX);
        self.send(Command::FindProviders { key, found }).await;
        receiver
    }

    /// Adds an address known to reach us from outside.
    pub async fn add_external_address(&self, addr: Multiaddr) {
        self.send(Command::AddExternal { addr }).await;
    }

    /// What the swarm looks like now; `None` once it has ended.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        self.ask(|reply| Command::Snapshot { reply }).await
    }

    /// The counters. Does not ask the swarm's task.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Closes all connections and ends the swarm; returns when it has ended.
    pub async fn shutdown(&self) {
        self.ask(|reply| Command::Shutdown { reply }).await;
    }
}

async fn open(link: &LinkState, protocol: Protocol) -> Result<Stream, OpenError> {
    tokio::time::timeout(OPEN_TIMEOUT, open_at_leisure(link, protocol))
        .await
        .unwrap_or(Err(OpenError::Busy { peer: link.peer, limit: STREAMS_OUTBOUND_MAX }))
}

async fn open_at_leisure(link: &LinkState, protocol: Protocol) -> Result<Stream, OpenError> {
    let gone = OpenError::ConnectionGone { connection: link.connection };
    let Ok(permit) = link.places.clone().acquire_owned().await else { return Err(gone) };
    let place = Place::outbound(link.outbound.clone(), permit);
    let (reply, answer) = oneshot::channel();
    let request = OpenRequest { protocol, place, reply };
    if link.opens.send(request).await.is_err() {
        return Err(gone);
    }
    answer.await.unwrap_or(Err(gone))
}
