//! Spike: a new stream for each 256-byte exchange, through the mesh and through raw quinn.
//!
//!     cargo run --release -p kos-mesh --example spike_streams
//!
//! Loopback, one process, alternating runs; prints medians of 7 and their ratio, one at a time and 64 at once.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use kos_mesh::swarm::{Config, Event, Mesh, PeerId, Protocol, Role, identity, spawn};
use tokio::sync::mpsc;

const BYTES: usize = 256;
const EXCHANGES: usize = 4_000;
const RUNS: usize = 7;

async fn mesh_pair() -> (Mesh, PeerId, Mesh) {
    let node = || {
        let mut config = Config::new(identity::Keypair::generate_ed25519(), Role::Home);
        config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
        (config.mdns, config.upnp, config.kad) = (false, false, false);
        spawn(config).unwrap()
    };
    let ((alice, _), (bob, mut events)) = (node(), node());
    for node in [&alice, &bob] {
        node.set_members([alice.local_peer(), bob.local_peer()].into()).await;
    }
    let (announce, mut announced) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                Event::AddressesChanged { listen, .. } => drop(announce.send(listen)),
                Event::Inbound { mut stream, .. } => {
                    tokio::spawn(async move {
                        let mut bytes = [0; BYTES];
                        stream.read_exact(&mut bytes).await?;
                        stream.write_all(&bytes).await?;
                        stream.close().await
                    });
                }
                _ => {}
            }
        }
    });
    let addrs = announced.recv().await.unwrap();
    alice.connect(bob.local_peer(), addrs).await.unwrap();
    (alice, bob.local_peer(), bob)
}

async fn mesh_exchange(mesh: Mesh, peer: PeerId) {
    let (mut stream, _) = mesh.open(peer, Protocol::Klp).await.unwrap();
    stream.write_all(&[7; BYTES]).await.unwrap();
    stream.close().await.unwrap();
    stream.read_exact(&mut [0; BYTES]).await.unwrap();
}

async fn quinn_pair() -> (quinn::Endpoint, quinn::Connection) {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let cert = certified.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let server = quinn::ServerConfig::with_single_cert(vec![cert.clone()], key).unwrap();
    let server = quinn::Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.local_addr().unwrap();
    let accepting = server.clone();
    tokio::spawn(async move {
        let connection = accepting.accept().await.unwrap().await.unwrap();
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            tokio::spawn(async move {
                let mut bytes = [0; BYTES];
                receive.read_exact(&mut bytes).await.unwrap();
                send.write_all(&bytes).await.unwrap();
                let _ = send.finish();
            });
        }
    });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let client = quinn::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = endpoint.connect_with(client, address, "localhost").unwrap().await.unwrap();
    (server, connection)
}

async fn quinn_exchange(connection: quinn::Connection) {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&[7; BYTES]).await.unwrap();
    send.finish().unwrap();
    receive.read_exact(&mut [0; BYTES]).await.unwrap();
}

async fn rate<F: Future<Output = ()>>(at_once: usize, exchange: impl Fn() -> F) -> f64 {
    let began = Instant::now();
    futures::stream::iter(0..EXCHANGES).map(|_| exchange()).buffer_unordered(at_once).count().await;
    EXCHANGES as f64 / began.elapsed().max(Duration::from_micros(1)).as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (alice, bob, _keep) = mesh_pair().await;
    let (_server, connection) = quinn_pair().await;
    println!("| streams at once | mesh /s | quinn /s | ratio |\n|---|---|---|---|");
    for at_once in [1, 64] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            ours.push(rate(at_once, || mesh_exchange(alice.clone(), bob)).await);
            theirs.push(rate(at_once, || quinn_exchange(connection.clone())).await);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!("| {at_once} | {ours:.0} | {theirs:.0} | {:.2} |", ours / theirs);
    }
}
