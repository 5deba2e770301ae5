//! The behaviour: admits connections, makes their handlers, keeps the table of links.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished, DialFailure, ListenFailure};
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;

use super::admission::{Admission, Bounds, Refused};
use super::handler::{Access, Command, Handler};
use crate::limits::{OPENS_QUEUED_MAX, STRANGER_STAYS};
use crate::swarm::addr;
use crate::swarm::shared::{LinkState, Shared};
use crate::swarm::types::{Dialed, Event, Path};

/// See the module.
pub(crate) struct Behaviour {
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    admission: Admission,
    /// Links whose handler exists but whose connection is not yet announced.
    made: BTreeMap<ConnectionId, Arc<LinkState>>,
    queue: VecDeque<ToSwarm<Infallible, Command>>,
}

impl Behaviour {
    pub(crate) fn new(shared: Arc<Shared>, events: mpsc::Sender<Event>, bounds: Bounds) -> Self {
        Self {
            shared,
            events,
            admission: Admission::new(bounds, Instant::now()),
            made: BTreeMap::new(),
            queue: VecDeque::new(),
        }
    }

    /// Tells handlers of `peers` whether they serve members.
    pub(crate) fn access_changed(&mut self, peers: impl IntoIterator<Item = PeerId>) {
        for peer in peers {
            let access = self.access(&peer);
            for link in self.shared.of(&peer) {
                self.notify(peer, link.connection, Command::Access(access));
            }
        }
    }

    /// Offers an address at which others may see us, for probing and punching.
    pub(crate) fn offer_candidate(&mut self, addr: Multiaddr) {
        self.queue.push_back(ToSwarm::NewExternalAddrCandidate(addr));
    }

    /// The dial has been paced by its maker.
    pub(crate) fn paced(&mut self, id: ConnectionId) {
        self.admission.paced(id);
    }

    pub(crate) fn flows_last_minute(&mut self) -> u32 {
        self.admission.flows_last_minute(Instant::now())
    }

    fn access(&self, peer: &PeerId) -> Access {
        if self.shared.is_member(peer) { Access::Member } else { Access::Stranger }
    }

    fn notify(&mut self, peer_id: PeerId, connection: ConnectionId, event: Command) {
        self.queue.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(connection),
            event,
        });
    }

    /// Connections with peers that are no members, oldest first.
    fn strangers(&self) -> Vec<Arc<LinkState>> {
        let members = self.shared.members();
        let mut strangers: Vec<_> =
            self.shared.all().into_iter().filter(|link| !members.contains(&link.peer)).collect();
        strangers.sort_by_key(|link| link.connection);
        strangers
    }

    fn refused(&self, refused: Refused) -> ConnectionDenied {
        self.shared.counters.refuse(refused.0);
        ConnectionDenied::new(refused)
    }

    fn make(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        path: Path,
        dialed: Dialed,
    ) -> Result<Handler, ConnectionDenied> {
        let access = self.access(&peer);
        let member = access == Access::Member;
        // What we dialed we chose to dial.
        if dialed == Dialed::ByPeer {
            let strangers = self.strangers();
            let mut taken = strangers.len();
            // Who came first does not keep everybody else out for as long as it likes.
            let outstays = |link: &Arc<LinkState>| link.since.elapsed().is_ok_and(|age| age > STRANGER_STAYS);
            if !member
                && taken >= self.admission.strangers_max()
                && let Some(oldest) = strangers.first().filter(|link| outstays(link))
            {
                self.close(oldest.peer);
                taken -= 1;
            }
            self.admission.admit(&peer, member, taken).map_err(|refused| self.refused(refused))?;
        }
        let (opens, requests) = mpsc::channel(OPENS_QUEUED_MAX);
        let link = Arc::new(LinkState::new(peer, id, path, dialed, opens));
        self.made.insert(id, link.clone());
        Ok(Handler::new(link, self.shared.clone(), self.events.clone(), requests, access))
    }

    fn announced(&mut self, peer: PeerId, id: ConnectionId) {
        self.admission.settled(id);
        self.admission.up(peer, id);
        // The membership may have changed between the handler's making and now.
        let access = self.access(&peer);
        if let Some(link) = self.made.remove(&id) {
            if let (Access::Member, Path::Direct { addr, .. }) = (access, &link.path) {
                self.admission.familiar(addr);
            }
            self.shared.add(link);
        }
        self.notify(peer, id, Command::Announced);
        self.notify(peer, id, Command::Access(access));
        if self.admission.is_crowded() && access == Access::Member {
            self.evict_a_stranger();
        }
    }

    fn evict_a_stranger(&mut self) {
        let idle_first = |link: &Arc<LinkState>| (link.streams(), link.connection);
        if let Some(link) = self.strangers().into_iter().min_by_key(idle_first) {
            self.close(link.peer);
        }
    }

    fn close(&mut self, peer_id: PeerId) {
        self.queue.push_back(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::All });
    }

    fn failed(&mut self, id: ConnectionId) {
        self.admission.settled(id);
        self.made.remove(&id);
    }
}

/// How a connection with this endpoint travels.
pub(crate) fn path_of(endpoint: &ConnectedPoint) -> Path {
    match endpoint {
        ConnectedPoint::Dialer { address, .. } => path(address, address),
        ConnectedPoint::Listener { local_addr, send_back_addr } => path(local_addr, send_back_addr),
    }
}

fn path(route: &Multiaddr, remote: &Multiaddr) -> Path {
    if addr::is_circuit(route) {
        return Path::Relayed { via: addr::relay_of(route).map(|(relay, _)| relay) };
    }
    let addr = addr::without_peer(remote);
    // Only QUIC and TCP are built in.
    let transport = addr::transport(&addr).unwrap_or(addr::Transport::Tcp);
    Path::Direct { addr, transport }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if addr::is_circuit(local) {
            return Ok(());
        }
        self.admission.knock(id, remote, Instant::now()).map_err(|refused| self.refused(refused))
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.make(id, peer, path(local, remote), Dialed::ByPeer)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let punching =
            peer.is_some_and(|peer| self.shared.of(&peer).iter().any(|link| !link.path.is_direct()));
        let flows = addresses.iter().filter(|addr| !addr::is_circuit(addr)).count() as u32;
        self.admission.dial(id, flows, punching, Instant::now()).map_err(|refused| self.refused(refused))?;
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.make(id, peer, path(remote, remote), Dialed::ByUs)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, .. }) => {
                self.announced(peer_id, connection_id);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                self.admission.down(&peer_id, connection_id);
                if let Some(link) = self.shared.remove(&peer_id, connection_id) {
                    link.ended.cancel();
                }
            }
            FromSwarm::DialFailure(DialFailure { connection_id, .. })
            | FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => self.failed(connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        self.queue.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}
