//! Wrappers that change what a behaviour hears from, or says to, the swarm.

use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use super::addr::{self, Documentation, Scope};

/// What is kept from whom.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// The behaviour does not name addresses: any peer could fill our candidates through it. identify also
    /// rewrites the port it was told, which hides what a NAT did. The driver offers what it was told instead.
    NamesNoAddresses,
    /// The behaviour hears only of private listen addresses, so that it announces no others.
    HearsPrivateAddresses,
    /// The behaviour hears only of confirmed addresses that strangers may know of, and dials nothing that is not global:
    /// what it dials strangers have named.
    KeepsToPublic(Documentation),
}

/// See [`Rule`].
pub(crate) struct Filter<B> {
    inner: B,
    rule: Rule,
}

impl<B> Filter<B> {
    pub(crate) fn new(inner: B, rule: Rule) -> Self {
        Self { inner, rule }
    }

    pub(crate) fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }
}

fn is_private(addr: &Multiaddr) -> bool {
    matches!(addr::scope(addr, Documentation::Unusable), Scope::Private | Scope::Loopback)
        && !addr::is_link_local_v6(addr)
}

impl<B: NetworkBehaviour> NetworkBehaviour for Filter<B> {
    type ConnectionHandler = B::ConnectionHandler;
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
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let mut named = self.inner.handle_pending_outbound_connection(id, peer, addresses, role)?;
        if let Rule::KeepsToPublic(documentation) = self.rule {
            named.retain(|addr| !addr::is_circuit(addr) && addr::is_findable(addr, documentation));
        }
        Ok(named)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(id, peer, remote, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        let heard = match (&self.rule, &event) {
            (Rule::HearsPrivateAddresses, FromSwarm::NewListenAddr(new)) => is_private(new.addr),
            (Rule::HearsPrivateAddresses, FromSwarm::ExpiredListenAddr(expired)) => is_private(expired.addr),
            (Rule::HearsPrivateAddresses, FromSwarm::ExternalAddrConfirmed(_)) => false,
            (Rule::KeepsToPublic(_), FromSwarm::NewListenAddr(_)) => false,
            (Rule::KeepsToPublic(documentation), FromSwarm::ExternalAddrConfirmed(confirmed)) => {
                addr::is_findable(confirmed.addr, *documentation)
            }
            _ => true,
        };
        if heard {
            self.inner.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            match (self.inner.poll(cx), self.rule) {
                (
                    Poll::Ready(ToSwarm::NewExternalAddrCandidate(_) | ToSwarm::NewExternalAddrOfPeer { .. }),
                    Rule::NamesNoAddresses,
                ) => {}
                (poll, _) => return poll,
            }
        }
    }
}
