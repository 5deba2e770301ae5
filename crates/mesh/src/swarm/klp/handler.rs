//! The handler of one connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{Ready, ready};
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound, StreamUpgradeError,
};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamProtocol, SubstreamProtocol};
use tokio::sync::mpsc;

use crate::limits::{
    EVENTS_RESERVED, STREAM_NEGOTIATION_TIMEOUT, STREAMS_EARLY_MAX, STREAMS_INBOUND_MAX, STREAMS_STRANGER_MAX,
};
use crate::swarm::counters::{Deed, Refusal};
use crate::swarm::shared::{LinkState, OpenRequest, Shared};
use crate::swarm::stream::{Place, Stream};
use crate::swarm::types::{Event, OpenError, Protocol};

/// Who the peer is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Member,
    Stranger,
}

/// What the behaviour tells its handlers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    /// The connection has been announced: inbound streams may follow.
    Announced,
    /// The peer became, or ceased to be, a member.
    Access(Access),
}

/// Agrees on one of our protocols and nothing else; with one name offered, `V1Lazy` costs no round trip.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upgrade(&'static [Protocol]);

const BOTH: Upgrade = Upgrade(&[Protocol::Klp, Protocol::Carry]);
const KLP: Upgrade = Upgrade(&[Protocol::Klp]);
const CARRY: Upgrade = Upgrade(&[Protocol::Carry]);

/// A protocol as multistream-select wants it.
#[derive(Clone)]
pub(crate) struct Name(Protocol, StreamProtocol);

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        self.1.as_ref()
    }
}

fn name(protocol: &'static Protocol) -> Name {
    Name(*protocol, StreamProtocol::new(protocol.name()))
}

impl UpgradeInfo for Upgrade {
    type Info = Name;
    type InfoIter = std::iter::Map<std::slice::Iter<'static, Protocol>, fn(&'static Protocol) -> Name>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.iter().map(name)
    }
}

impl InboundUpgrade<libp2p::Stream> for Upgrade {
    type Output = (libp2p::Stream, Protocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, name: Name) -> Self::Future {
        ready(Ok((stream, name.0)))
    }
}

impl OutboundUpgrade<libp2p::Stream> for Upgrade {
    type Output = libp2p::Stream;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: libp2p::Stream, _: Name) -> Self::Future {
        ready(Ok(stream))
    }
}

/// Opens and accepts streams on one connection.
pub(crate) struct Handler {
    link: Arc<LinkState>,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    opens: mpsc::Receiver<OpenRequest>,
    access: Access,
    /// Inbound streams that came before [`Command::Announced`]; `None` after it.
    early: Option<VecDeque<(Stream, Protocol)>>,
}

impl Handler {
    pub(crate) fn new(
        link: Arc<LinkState>,
        shared: Arc<Shared>,
        events: mpsc::Sender<Event>,
        opens: mpsc::Receiver<OpenRequest>,
        access: Access,
    ) -> Self {
        Self { link, shared, events, opens, access, early: Some(VecDeque::new()) }
    }

    fn may_carry(&self) -> bool {
        self.access == Access::Member && self.link.path.is_direct()
    }

    fn accept(&mut self, stream: libp2p::Stream, protocol: Protocol) {
        let counters = &self.shared.counters;
        if protocol == Protocol::Carry && !self.may_carry() {
            return counters.refuse(Refusal::CarryNotAllowed);
        }
        let (limit, refusal) = match self.access {
            Access::Member => (STREAMS_INBOUND_MAX, Refusal::StreamsMember),
            Access::Stranger => (STREAMS_STRANGER_MAX, Refusal::StreamsStranger),
        };
        let Some(place) = Place::inbound(&self.link.inbound, limit) else {
            return counters.refuse(refusal);
        };
        let stream = Stream::new(stream, &self.link, place);
        match &mut self.early {
            Some(early) if early.len() < STREAMS_EARLY_MAX => early.push_back((stream, protocol)),
            Some(_) => counters.refuse(Refusal::AcceptQueueFull),
            None => self.deliver(stream, protocol),
        }
    }

    fn deliver(&self, stream: Stream, protocol: Protocol) {
        let event = Event::Inbound {
            peer: self.link.peer,
            connection: self.link.connection,
            path: self.link.path.clone(),
            protocol,
            stream,
        };
        if self.events.capacity() > EVENTS_RESERVED && self.events.try_send(event).is_ok() {
            self.shared.counters.count(Deed::StreamIn);
        } else {
            self.shared.counters.refuse(Refusal::AcceptQueueFull);
        }
    }

    fn answer(&self, request: OpenRequest, result: Result<libp2p::Stream, StreamUpgradeError<Infallible>>) {
        let OpenRequest { protocol, place, reply } = request;
        let peer = self.link.peer;
        let result = match result {
            Ok(stream) => {
                self.shared.counters.count(Deed::StreamOut);
                Ok(Stream::new(stream, &self.link, place))
            }
            Err(StreamUpgradeError::NegotiationFailed) => Err(OpenError::Unsupported { peer, protocol }),
            Err(StreamUpgradeError::Timeout) => {
                Err(OpenError::Failed { peer, reason: "no answer in time".into() })
            }
            Err(StreamUpgradeError::Io(error)) => Err(OpenError::Failed { peer, reason: error.to_string() }),
            Err(StreamUpgradeError::Apply(never)) => match never {},
        };
        // A caller that went away drops the stream, which resets it.
        let _ = reply.send(result);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Command;
    type ToBehaviour = Infallible;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenRequest;

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        let upgrade = if self.may_carry() { BOTH } else { KLP };
        SubstreamProtocol::new(upgrade, ()).with_timeout(STREAM_NEGOTIATION_TIMEOUT)
    }

    fn connection_keep_alive(&self) -> bool {
        self.may_carry() && !self.link.is_draining()
    }

    fn on_behaviour_event(&mut self, command: Command) {
        match command {
            Command::Announced => {
                for (stream, protocol) in self.early.take().into_iter().flatten() {
                    self.deliver(stream, protocol);
                }
            }
            Command::Access(access) => self.access = access,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Upgrade, OpenRequest, Infallible>> {
        while let Poll::Ready(Some(request)) = self.opens.poll_recv(cx) {
            if request.reply.is_closed() {
                continue;
            }
            let upgrade = match request.protocol {
                Protocol::Klp => KLP,
                Protocol::Carry => CARRY,
            };
            let protocol = SubstreamProtocol::new(upgrade, request).with_timeout(STREAM_NEGOTIATION_TIMEOUT);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Upgrade, Upgrade, (), OpenRequest>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                self.accept(protocol.0, protocol.1);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                self.answer(info, Ok(protocol));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.answer(info, Err(error))
            }
            _ => {}
        }
    }
}
