//! Nodes on loopback, and waiting for what they report.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use kos_mesh::swarm::addr::{self, Transport};
use kos_mesh::swarm::{Config, Event, Mesh, Multiaddr, PeerId, Role, Stream, identity, spawn};
use tokio::sync::mpsc;

/// Long enough for a loaded machine; nothing waits for it when all goes well.
pub const PATIENCE: Duration = Duration::from_secs(40);

pub struct Node {
    pub mesh: Mesh,
    pub events: mpsc::Receiver<Event>,
    pub listen: Vec<Multiaddr>,
}

pub fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

pub fn config(role: Role, listen: &[&str]) -> Config {
    let mut config = Config::new(identity::Keypair::generate_ed25519(), role);
    config.listen = listen.iter().map(|addr| addr.parse().unwrap()).collect();
    config.mdns = false;
    config.upnp = false;
    config.kad = false;
    config.dials_per_minute = 6_000;
    config.inbound_per_prefix_per_minute = 6_000;
    config
}

pub const LOOPBACK: [&str; 2] = ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"];

pub async fn home() -> Node {
    start(config(Role::Home, &LOOPBACK)).await
}

pub async fn start(config: Config) -> Node {
    log();
    let wanted = config.listen.len();
    let (mesh, events) = spawn(config).unwrap();
    let mut node = Node { mesh, events, listen: Vec::new() };
    if wanted > 0 {
        node.listen = node
            .until("listening", |event| match event {
                Event::AddressesChanged { listen, .. } if listen.len() >= wanted => Some(listen),
                _ => None,
            })
            .await;
    }
    node
}

impl Node {
    pub fn id(&self) -> PeerId {
        self.mesh.local_peer()
    }

    pub fn addrs(&self, transport: Transport) -> Vec<Multiaddr> {
        self.listen.iter().filter(|addr| addr::transport(addr) == Some(transport)).cloned().collect()
    }

    /// Waits for an event; others are dropped, streams with them.
    pub async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the swarm runs");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, search).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for: {what}"),
        }
    }

    pub async fn inbound(&mut self) -> (PeerId, Stream) {
        self.until("a stream", |event| match event {
            Event::Inbound { peer, stream, .. } => Some((peer, stream)),
            _ => None,
        })
        .await
    }

    /// Answers every stream with what came on it, from now on.
    pub fn echo(mut self) -> Mesh {
        let mesh = self.mesh.clone();
        tokio::spawn(async move {
            while let Some(event) = self.events.recv().await {
                if let Event::Inbound { stream, .. } = event {
                    tokio::spawn(echo(stream));
                }
            }
        });
        mesh
    }

    /// Reads events and forgets them, from now on.
    pub fn unheard(mut self) -> Mesh {
        let mesh = self.mesh.clone();
        tokio::spawn(async move { while self.events.recv().await.is_some() {} });
        mesh
    }
}

async fn echo(stream: Stream) -> std::io::Result<()> {
    let (mut from, mut to) = stream.split();
    futures::io::copy(&mut from, &mut to).await?;
    to.close().await
}

pub async fn exchange(mut stream: Stream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    stream.close().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

pub async fn members(nodes: &[&Mesh]) {
    let ids: BTreeSet<_> = nodes.iter().map(|mesh| mesh.local_peer()).collect();
    for mesh in nodes {
        mesh.set_members(ids.clone()).await;
    }
}

/// Waits for a condition that no event tells of.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let search = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, search).await.is_err() {
        panic!("waited in vain for: {what}");
    }
}
