//! QUIC, TCP with Noise and Yamux, names, and relayed circuits: one transport.

use std::sync::Arc;

use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox};
use libp2p::core::transport::Boxed;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::upgrade::Version;
use libp2p::core::{ConnectedPoint, Transport};
use libp2p::{PeerId, dns, identity, noise, quic, relay, tcp, yamux};

use super::bounded::Bounded;
use super::linger::Linger;
use super::shared::Shared;
use super::types::StartError;
use crate::limits;

fn multiplexer() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(limits::YAMUX_STREAMS_MAX);
    config
}

fn quic(keypair: &identity::Keypair) -> quic::Config {
    let mut quic = quic::Config::new(keypair);
    quic.max_idle_timeout = limits::QUIC_IDLE.as_millis() as u32;
    quic.keep_alive_interval = limits::QUIC_KEEP_ALIVE;
    quic.max_concurrent_stream_limit = limits::QUIC_STREAMS_MAX;
    quic.max_stream_data = limits::QUIC_STREAM_WINDOW_BYTES;
    quic.max_connection_data = limits::QUIC_CONNECTION_WINDOW_BYTES;
    quic
}

type Connections = Boxed<(PeerId, StreamMuxerBox)>;

fn noise(keypair: &identity::Keypair) -> Result<noise::Config, StartError> {
    noise::Config::new(keypair).map_err(|error| StartError::Transport(error.to_string()))
}

/// The transport, and the behaviour that serves its circuits.
pub(crate) fn build(
    keypair: &identity::Keypair,
    shared: &Arc<Shared>,
) -> Result<(Connections, relay::client::Behaviour), StartError> {
    let (circuits, behaviour) = relay::client::new(keypair.public().to_peer_id());
    let circuits = circuits
        .upgrade(Version::V1Lazy)
        .authenticate(noise(keypair)?)
        .multiplex(multiplexer())
        .map(muxed(shared));
    let all = circuits.or_transport(named(keypair, shared)?).map(|either, _| either.into_inner());
    Ok((TransportTimeout::new(all, limits::DIAL_TIMEOUT).boxed(), behaviour))
}

/// What wraps the streams of every connection.
fn muxed<M>(
    shared: &Arc<Shared>,
) -> impl Fn((PeerId, M), ConnectedPoint) -> (PeerId, StreamMuxerBox) + Clone + Send + 'static
where
    M: StreamMuxer + Send + Unpin + 'static,
    M::Substream: Send + Unpin + 'static,
    M::Error: Send + Sync + 'static,
{
    let shared = shared.clone();
    move |(peer, muxer), _| {
        (peer, StreamMuxerBox::new(Bounded::new(Linger::new(muxer), peer, shared.clone())))
    }
}

fn direct(keypair: &identity::Keypair, shared: &Arc<Shared>) -> Result<Connections, StartError> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise(keypair)?)
        .multiplex(multiplexer())
        .map(muxed(shared));
    let quic = quic::tokio::Transport::new(quic(keypair)).map(muxed(shared));
    Ok(quic.or_transport(tcp).map(|either, _| either.into_inner()).boxed())
}

/// Adds names. Without the system's resolver they are not found, and addresses work.
fn named(keypair: &identity::Keypair, shared: &Arc<Shared>) -> Result<Connections, StartError> {
    match dns::tokio::Transport::system(direct(keypair, shared)?) {
        Ok(named) => Ok(named.boxed()),
        Err(error) => {
            tracing::warn!(%error, "no system resolver: names in addresses will not be found");
            let (resolver, options) = (dns::ResolverConfig::default(), dns::ResolverOpts::default());
            Ok(dns::tokio::Transport::custom(direct(keypair, shared)?, resolver, options).boxed())
        }
    }
}
