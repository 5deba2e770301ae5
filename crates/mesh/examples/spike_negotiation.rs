//! Spike: how many round trips does a new stream cost, with `V1` and with `V1Lazy`?
//!
//!     cargo run --release -p kos-mesh --example spike_negotiation
//!
//! Two bare swarms over QUIC through a UDP proxy that delays each direction by 40 ms; a stream carries 4 bytes
//! there and back. The same through the mesh for comparison. Prints medians in round trips.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use kos_mesh::swarm::{Config, Event, Multiaddr, PeerId, Protocol, Role, identity, spawn};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{ReadyUpgrade, Version};
use libp2p::swarm::handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, SubstreamProtocol, SwarmEvent, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Stream, StreamProtocol, Swarm, SwarmBuilder};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

const ONE_WAY: Duration = Duration::from_millis(40);
const ROUNDS: usize = 21;
const ECHO: StreamProtocol = StreamProtocol::new("/spike/1");

/// Opens a stream for each order; hands streams on with who opened them.
struct Handler {
    orders: usize,
    streams: mpsc::UnboundedSender<(bool, Stream)>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = ();
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(ECHO), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn on_behaviour_event(&mut self, (): ()) {
        self.orders += 1;
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Infallible>> {
        if self.orders == 0 {
            return Poll::Pending;
        }
        self.orders -= 1;
        let protocol = SubstreamProtocol::new(ReadyUpgrade::new(ECHO), ());
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        let stream = match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                (false, protocol)
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) => {
                (true, protocol)
            }
            _ => return,
        };
        let _ = self.streams.send(stream);
    }
}

struct Behaviour {
    orders: mpsc::UnboundedReceiver<PeerId>,
    streams: mpsc::UnboundedSender<(bool, Stream)>,
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler { orders: 0, streams: self.streams.clone() })
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler { orders: 0, streams: self.streams.clone() })
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.orders.poll_recv(cx) {
            Poll::Ready(Some(peer_id)) => {
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::Any, event: () })
            }
            _ => Poll::Pending,
        }
    }
}

type Streams = mpsc::UnboundedReceiver<(bool, Stream)>;

fn swarm(version: Version) -> (Swarm<Behaviour>, mpsc::UnboundedSender<PeerId>, Streams) {
    let (order, orders) = mpsc::unbounded_channel();
    let (stream, streams) = mpsc::unbounded_channel();
    let behaviour = Behaviour { orders, streams: stream };
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_substream_upgrade_protocol_override(version))
        .build();
    (swarm, order, streams)
}

/// A proxy in front of `server` that delays both directions.
async fn delayed(server: SocketAddr) -> SocketAddr {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = front.local_addr().unwrap();
    let client = Arc::new(std::sync::Mutex::new(None));
    let (from, to, seen) = (front.clone(), back.clone(), client.clone());
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        while let Ok((length, peer)) = from.recv_from(&mut buffer).await {
            *seen.lock().unwrap() = Some(peer);
            let (packet, to) = (buffer[..length].to_vec(), to.clone());
            tokio::spawn(async move {
                tokio::time::sleep(ONE_WAY).await;
                let _ = to.send_to(&packet, server).await;
            });
        }
    });
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        while let Ok((length, _)) = back.recv_from(&mut buffer).await {
            let Some(client) = *client.lock().unwrap() else { continue };
            let (packet, front) = (buffer[..length].to_vec(), front.clone());
            tokio::spawn(async move {
                tokio::time::sleep(ONE_WAY).await;
                let _ = front.send_to(&packet, client).await;
            });
        }
    });
    address
}

fn socket(addr: &Multiaddr) -> SocketAddr {
    (kos_mesh::swarm::addr::ip(addr).unwrap(), kos_mesh::swarm::addr::port(addr).unwrap()).into()
}

fn quic(socket: SocketAddr) -> Multiaddr {
    format!("/ip4/{}/udp/{}/quic-v1", socket.ip(), socket.port()).parse().unwrap()
}

async fn echo(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> std::io::Result<()> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).await?;
    stream.write_all(&bytes).await?;
    stream.close().await
}

async fn ask(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
    stream.write_all(b"ping").await.unwrap();
    stream.flush().await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() / (2.0 * ONE_WAY.as_secs_f64())
}

async fn bare(version: Version) -> f64 {
    let (mut server, _server_orders, mut inbound) = swarm(version);
    server.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
    let id = *server.local_peer_id();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
            break address;
        }
    };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = server.select_next_some() => {}
                Some((_, stream)) = inbound.recv() => { tokio::spawn(echo(stream)); }
            }
        }
    });
    let (mut client, order, mut outbound) = swarm(version);
    client.dial(quic(delayed(socket(&address)).await)).unwrap();
    while !client.is_connected(&id) {
        client.select_next_some().await;
    }
    tokio::spawn(async move { while client.next().await.is_some() {} });
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        order.send(id).unwrap();
        let (_, stream) = outbound.recv().await.unwrap();
        ask(stream).await;
        times.push(began.elapsed());
    }
    median(times)
}

async fn mesh() -> f64 {
    let node = |role| {
        let mut config = Config::new(identity::Keypair::generate_ed25519(), role);
        config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
        (config.mdns, config.upnp, config.kad) = (false, false, false);
        spawn(config).unwrap()
    };
    let ((alice, _alice_events), (bob, mut events)) = (node(Role::Home), node(Role::Home));
    let both = [alice.local_peer(), bob.local_peer()];
    for node in [&alice, &bob] {
        node.set_members(both.into()).await;
    }
    let (announce, mut announced) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                Event::AddressesChanged { listen, .. } => drop(announce.send(listen)),
                Event::Inbound { stream, .. } => drop(tokio::spawn(echo(stream))),
                _ => {}
            }
        }
    });
    let address = announced.recv().await.unwrap()[0].clone();
    let address = quic(delayed(socket(&address)).await);
    alice.connect(bob.local_peer(), vec![address]).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        ask(alice.open(bob.local_peer(), Protocol::Klp).await.unwrap().0).await;
        times.push(began.elapsed());
    }
    median(times)
}

#[tokio::main]
async fn main() {
    println!("round trips until the first reply on a new stream, median of {ROUNDS}, 80 ms round trip");
    println!("V1          {:.2}", bare(Version::V1).await);
    println!("V1Lazy      {:.2}", bare(Version::V1Lazy).await);
    println!("mesh        {:.2}", mesh().await);
}
