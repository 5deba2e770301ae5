//! A wrapper that keeps a behaviour away from some connections.
//!
//! The wrapped behaviour sees only connections that pass: for all others it neither makes a handler nor hears an
//! event, so it cannot send to them, and what they send in its protocols is refused by negotiation. A gate by
//! membership opens and shuts while a connection lives: the handler is switched, the connection is not re-made.
//! Closing and redialing would cost a flow, drop every exchange on the connection, and fail where only the other
//! end can dial.
//!
//! The two ends learn of a membership at different times. A stream asked for while the other end is still shut
//! would be lost: gossipsub then never speaks on that connection again, and with lazy negotiation it would not even
//! notice. So a gate by membership keeps requests for streams back until the peer is known to speak the protocol,
//! because identify says so or because it opened a stream itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::Either as Output;
use futures::ready;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::DeniedUpgrade;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished, DialFailure, ListenFailure};
use libp2p::swarm::derive_prelude::Either;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound, ListenUpgradeError,
    ProtocolsChange, SendWrapper,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};

use super::addr;

/// Which connections pass.
#[derive(Debug)]
enum Pass {
    /// Every direct one.
    Direct,
    /// Direct ones of these peers.
    Members(Arc<BTreeSet<PeerId>>),
}

/// Protocols whose support by the peer is waited for.
type Awaited = Option<&'static StreamProtocol>;

impl Pass {
    fn lets(&self, peer: &PeerId, direct: bool) -> bool {
        direct
            && match self {
                Pass::Direct => true,
                Pass::Members(members) => members.contains(peer),
            }
    }
}

#[derive(Debug)]
struct Connection {
    peer: PeerId,
    endpoint: ConnectedPoint,
    /// The switching of the handler the inner behaviour knows, `None` while shut.
    open: Option<u64>,
}

/// See the module.
pub(crate) struct Gate<B: NetworkBehaviour> {
    inner: B,
    pass: Pass,
    awaited: Awaited,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Connections the inner behaviour made a handler for that are not yet established.
    made: BTreeSet<ConnectionId>,
    switchings: u64,
    queue: VecDeque<ToSwarm<B::ToSwarm, In<THandler<B>>>>,
}

impl<B: NetworkBehaviour> Gate<B> {
    /// Lets every direct connection pass.
    pub(crate) fn direct(inner: B) -> Self {
        Self::new(inner, Pass::Direct, None)
    }

    /// Lets direct connections of members pass, once they speak `awaited`. There are none yet.
    pub(crate) fn members(inner: B, awaited: &'static StreamProtocol) -> Self {
        Self::new(inner, Pass::Members(Arc::default()), Some(awaited))
    }

    fn new(inner: B, pass: Pass, awaited: Awaited) -> Self {
        Self {
            inner,
            pass,
            awaited,
            connections: BTreeMap::new(),
            made: BTreeSet::new(),
            switchings: 0,
            queue: VecDeque::new(),
        }
    }

    pub(crate) fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }

    /// Opens and shuts the gate for the connections there are.
    pub(crate) fn set_members(&mut self, members: Arc<BTreeSet<PeerId>>) {
        self.pass = Pass::Members(members);
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.settle(id);
        }
    }

    fn settle(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        let passes = self.pass.lets(&connection.peer, !connection.endpoint.is_relayed());
        match (passes, connection.open) {
            (true, None) => self.open(id),
            (false, Some(_)) => self.shut(id),
            _ => {}
        }
    }

    fn open(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (peer, endpoint) = (connection.peer, connection.endpoint.clone());
        let handler = match &endpoint {
            ConnectedPoint::Dialer { address, role_override, port_use } => self
                .inner
                .handle_established_outbound_connection(id, peer, address, *role_override, *port_use),
            ConnectedPoint::Listener { local_addr, send_back_addr } => {
                self.inner.handle_established_inbound_connection(id, peer, local_addr, send_back_addr)
            }
        };
        let Ok(handler) = handler else { return };
        self.switchings += 1;
        let switching = self.switchings;
        self.tell(peer, id, In::Open(Box::new(handler), switching));
        self.announce(id, peer, &endpoint, switching);
    }

    fn announce(&mut self, id: ConnectionId, peer: PeerId, endpoint: &ConnectedPoint, switching: u64) {
        let other_established = self.open_of(&peer);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.open = Some(switching);
        }
        self.inner.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: id,
            endpoint,
            failed_addresses: &[],
            other_established,
        }));
    }

    fn shut(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.open = None;
        let (peer, endpoint) = (connection.peer, connection.endpoint.clone());
        self.tell(peer, id, In::Shut);
        self.denounce(id, peer, &endpoint);
    }

    fn denounce(&mut self, id: ConnectionId, peer: PeerId, endpoint: &ConnectedPoint) {
        let remaining_established = self.open_of(&peer);
        self.inner.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
            peer_id: peer,
            connection_id: id,
            endpoint,
            cause: None,
            remaining_established,
        }));
    }

    fn open_of(&self, peer: &PeerId) -> usize {
        self.connections.values().filter(|known| known.peer == *peer && known.open.is_some()).count()
    }

    fn tell(&mut self, peer_id: PeerId, id: ConnectionId, event: In<THandler<B>>) {
        self.queue.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(id), event });
    }

    fn established(&mut self, event: ConnectionEstablished<'_>) {
        let ConnectionEstablished { peer_id: peer, connection_id: id, endpoint, .. } = event;
        self.connections.insert(id, Connection { peer, endpoint: endpoint.clone(), open: None });
        if self.made.remove(&id) {
            self.announce(id, peer, endpoint, 0);
        }
        self.settle(id);
    }

    fn closed(&mut self, event: ConnectionClosed<'_>) {
        let Some(connection) = self.connections.remove(&event.connection_id) else { return };
        if connection.open.is_some() {
            self.denounce(event.connection_id, connection.peer, event.endpoint);
        }
    }

    fn wrap(&mut self, id: ConnectionId, handler: Option<THandler<B>>) -> Handler<THandler<B>> {
        if handler.is_some() {
            self.made.insert(id);
        }
        Handler {
            inner: handler,
            switching: 0,
            awaited: self.awaited,
            speaks: self.awaited.is_none(),
            held: None,
        }
    }

    /// Turns an order of the inner behaviour into ours; `None` if it is for a connection that is shut.
    fn outward(
        &self,
        order: ToSwarm<B::ToSwarm, THandlerInEvent<B>>,
    ) -> Option<ToSwarm<B::ToSwarm, In<THandler<B>>>> {
        let ToSwarm::NotifyHandler { peer_id, handler, event } = order else {
            return Some(order.map_in(|event| In::Inner(event, 0)));
        };
        let (id, switching) = match handler {
            NotifyHandler::One(id) => (id, self.connections.get(&id)?.open?),
            NotifyHandler::Any => self
                .connections
                .iter()
                .filter(|(_, known)| known.peer == peer_id)
                .find_map(|(id, known)| known.open.map(|switching| (*id, switching)))?,
        };
        Some(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(id),
            event: In::Inner(event, switching),
        })
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Gate<B> {
    type ConnectionHandler = Handler<THandler<B>>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let passes = self.pass.lets(&peer, !addr::is_circuit(local));
        let handler = passes
            .then(|| self.inner.handle_established_inbound_connection(id, peer, local, remote))
            .transpose()?;
        Ok(self.wrap(id, handler))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let passes = self.pass.lets(&peer, !addr::is_circuit(remote));
        let handler = passes
            .then(|| self.inner.handle_established_outbound_connection(id, peer, remote, role, port_use))
            .transpose()?;
        Ok(self.wrap(id, handler))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.established(event),
            FromSwarm::ConnectionClosed(event) => self.closed(event),
            FromSwarm::AddressChange(change) => {
                let open = match self.connections.get_mut(&change.connection_id) {
                    Some(connection) => {
                        connection.endpoint = change.new.clone();
                        connection.open.is_some()
                    }
                    None => false,
                };
                if open {
                    self.inner.on_swarm_event(event);
                }
            }
            event => {
                if let FromSwarm::DialFailure(DialFailure { connection_id, .. })
                | FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) = event
                {
                    self.made.remove(&connection_id);
                }
                self.inner.on_swarm_event(event);
            }
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        let (event, switching) = event;
        // What an earlier handler still had to say went with it.
        if self.connections.get(&id).is_some_and(|known| known.open == Some(switching)) {
            self.inner.on_connection_handler_event(peer, id, event);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(order) = self.queue.pop_front() {
                return Poll::Ready(order);
            }
            match self.inner.poll(cx) {
                Poll::Ready(order) => {
                    if let Some(order) = self.outward(order) {
                        return Poll::Ready(order);
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// What the gate tells its handlers.
pub(crate) enum In<H: ConnectionHandler> {
    /// For the inner handler of this switching.
    Inner(H::FromBehaviour, u64),
    /// The connection passes from now on.
    Open(Box<H>, u64),
    /// It does not any more.
    Shut,
}

impl<H: ConnectionHandler> fmt::Debug for In<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            In::Inner(event, switching) => f.debug_tuple("Inner").field(event).field(switching).finish(),
            In::Open(_, switching) => f.debug_tuple("Open").field(switching).finish_non_exhaustive(),
            In::Shut => f.write_str("Shut"),
        }
    }
}

/// The inner handler while the gate is open. Streams carry the number of the switching they were asked for in:
/// those of an earlier one are dropped, which resets them.
pub(crate) struct Handler<H: ConnectionHandler> {
    inner: Option<H>,
    switching: u64,
    awaited: Awaited,
    /// Whether the peer speaks the awaited protocol on this connection.
    speaks: bool,
    /// The inner handler's request for a stream, until it does. gossipsub asks for one at a time.
    held: Option<SubstreamProtocol<H::OutboundProtocol, H::OutboundOpenInfo>>,
}

impl<H: ConnectionHandler> Handler<H> {
    fn at(&mut self, switching: u64) -> Option<&mut H> {
        self.inner.as_mut().filter(|_| self.switching == switching)
    }
}

impl<H: ConnectionHandler> ConnectionHandler for Handler<H> {
    type FromBehaviour = In<H>;
    type ToBehaviour = (H::ToBehaviour, u64);
    type InboundProtocol = Either<SendWrapper<H::InboundProtocol>, SendWrapper<DeniedUpgrade>>;
    type OutboundProtocol = H::OutboundProtocol;
    type InboundOpenInfo = Option<(H::InboundOpenInfo, u64)>;
    type OutboundOpenInfo = (H::OutboundOpenInfo, u64);

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, Self::InboundOpenInfo> {
        match &self.inner {
            Some(inner) => inner
                .listen_protocol()
                .map_upgrade(|upgrade| Either::Left(SendWrapper(upgrade)))
                .map_info(|info| Some((info, self.switching))),
            None => SubstreamProtocol::new(Either::Right(SendWrapper(DeniedUpgrade)), None),
        }
    }

    fn connection_keep_alive(&self) -> bool {
        self.inner.as_ref().is_some_and(H::connection_keep_alive)
    }

    fn on_behaviour_event(&mut self, event: In<H>) {
        match event {
            In::Inner(event, switching) => {
                if let Some(inner) = self.at(switching) {
                    inner.on_behaviour_event(event);
                }
            }
            In::Open(inner, switching) => {
                self.inner = Some(*inner);
                self.switching = switching;
                self.held = None;
            }
            In::Shut => {
                self.inner = None;
                self.held = None;
            }
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        let Some(inner) = &mut self.inner else { return Poll::Pending };
        let switching = self.switching;
        loop {
            let event = match self.held.take_if(|_| self.speaks) {
                Some(protocol) => ConnectionHandlerEvent::OutboundSubstreamRequest { protocol },
                None => ready!(inner.poll(cx)),
            };
            match event {
                ConnectionHandlerEvent::OutboundSubstreamRequest { protocol } if !self.speaks => {
                    self.held = Some(protocol);
                }
                event => {
                    let event = event.map_outbound_open_info(|info| (info, switching));
                    return Poll::Ready(event.map_custom(|event| (event, switching)));
                }
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let switching = self.switching;
        inner.poll_close(cx).map(|event| event.map(|event| (event, switching)))
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, info }) => {
                let (Output::Left(protocol), Some((info, switching))) = (protocol, info) else { return };
                self.speaks = true;
                let event = FullyNegotiatedInbound { protocol, info };
                self.pass(switching, ConnectionEvent::FullyNegotiatedInbound(event));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                let event = FullyNegotiatedOutbound { protocol, info: info.0 };
                self.pass(info.1, ConnectionEvent::FullyNegotiatedOutbound(event));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let event = DialUpgradeError { info: info.0, error };
                self.pass(info.1, ConnectionEvent::DialUpgradeError(event));
            }
            ConnectionEvent::ListenUpgradeError(ListenUpgradeError { info, error }) => {
                let (Either::Left(error), Some((info, switching))) = (error, info) else { return };
                let event = ListenUpgradeError { info, error };
                self.pass(switching, ConnectionEvent::ListenUpgradeError(event));
            }
            ConnectionEvent::AddressChange(change) => {
                self.pass(self.switching, ConnectionEvent::AddressChange(change));
            }
            ConnectionEvent::LocalProtocolsChange(change) => {
                self.pass(self.switching, ConnectionEvent::LocalProtocolsChange(change));
            }
            ConnectionEvent::RemoteProtocolsChange(change) => {
                match (&change, self.awaited) {
                    (ProtocolsChange::Added(added), Some(awaited)) => {
                        self.speaks |= added.clone().any(|name| name == awaited);
                    }
                    (ProtocolsChange::Removed(removed), Some(awaited)) => {
                        self.speaks &= !removed.clone().any(|name| name == awaited);
                    }
                    (_, None) => {}
                }
                self.pass(self.switching, ConnectionEvent::RemoteProtocolsChange(change));
            }
            _ => {}
        }
    }
}

impl<H: ConnectionHandler> Handler<H> {
    fn pass(
        &mut self,
        switching: u64,
        event: ConnectionEvent<
            H::InboundProtocol,
            H::OutboundProtocol,
            H::InboundOpenInfo,
            H::OutboundOpenInfo,
        >,
    ) {
        if let Some(inner) = self.at(switching) {
            inner.on_connection_event(event);
        }
    }
}
