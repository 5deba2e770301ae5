//! The hash table: a server, and nodes that find each other there.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{LOOPBACK, Node, config, eventually, members, start};
use kos_mesh::swarm::addr::{self, Documentation};
use kos_mesh::swarm::{Config, Deed, Multiaddr, PeerId, Refusal, Role, TableRole};

fn with_table(role: Role, servers: &[&Node]) -> Config {
    let mut config = config(role, &LOOPBACK);
    config.kad = true;
    config.documentation = Documentation::Machine;
    let known = servers.iter().flat_map(|node| node.listen.iter().map(|addr| (node.id(), addr.clone())));
    config.bootstrap = known.collect();
    config
}

async fn public(role: Role, servers: &[&Node]) -> Node {
    let node = start(with_table(role, servers)).await;
    for addr in &node.listen {
        node.mesh.add_external_address(addr.clone()).await;
    }
    node
}

async fn role(node: &Node) -> TableRole {
    node.mesh.snapshot().await.unwrap().table.unwrap().role
}

async fn providers(node: &Node, key: &[u8]) -> BTreeMap<PeerId, Vec<Multiaddr>> {
    let mut lookup = node.mesh.find_providers(key.to_vec()).await;
    let mut found = BTreeMap::<_, Vec<_>>::new();
    while let Some((peer, addrs)) = lookup.recv().await {
        found.entry(peer).or_default().extend(addrs);
    }
    found
}

const KEY: &[u8] = b"a federation's key of today";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_once_it_is_public_and_is_found_with_its_addresses() {
    let server = public(Role::Relay, &[]).await;
    let alice = start(with_table(Role::Home, &[&server])).await;
    let bob = start(with_table(Role::Home, &[&server])).await;
    eventually("the relay serves", async || role(&server).await == TableRole::Server).await;
    // Nobody reaches alice as far as she knows, so nothing is announced.
    alice.mesh.provide(KEY.to_vec()).await;
    eventually("alice knows the server", async || {
        alice.mesh.snapshot().await.unwrap().table.unwrap().servers == 1
    })
    .await;
    assert!(providers(&bob, KEY).await.is_empty());
    assert_eq!(role(&alice).await, TableRole::Client);

    for addr in &alice.listen {
        alice.mesh.add_external_address(addr.clone()).await;
    }
    eventually("alice is found", async || providers(&bob, KEY).await.contains_key(&alice.id())).await;
    let found = providers(&bob, KEY).await;
    let mut addrs = found[&alice.id()].clone();
    addrs.sort();
    let mut own = alice.listen.clone();
    own.sort();
    assert_eq!((found.len(), addrs), (1, own));
    assert_eq!(role(&alice).await, TableRole::Server);
    eventually("alice is found by her id", async || !bob.mesh.find_peer(alice.id()).await.is_empty()).await;
    assert!(providers(&bob, b"another key").await.is_empty());
    assert!(alice.mesh.counters().counted(Deed::NameAnnounced) >= 1);
    assert!(server.mesh.snapshot().await.unwrap().table.unwrap().names_kept >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_behind_a_relay_is_found_at_its_circuits_and_stays_a_client() {
    let (relay, server) = (public(Role::Relay, &[]).await, public(Role::Relay, &[]).await);
    let hidden = start(with_table(Role::Home, &[&server])).await;
    let bob = start(with_table(Role::Home, &[&server])).await;
    members(&[&relay.mesh, &hidden.mesh]).await;
    hidden.mesh.request_reservation(relay.id(), relay.listen.clone()).await.unwrap();
    hidden.mesh.provide(KEY.to_vec()).await;
    eventually("it is found", async || providers(&bob, KEY).await.contains_key(&hidden.id())).await;
    let found = providers(&bob, KEY).await;
    assert!(found[&hidden.id()].iter().all(addr::is_circuit), "{found:?}");
    assert_eq!(role(&hidden).await, TableRole::Client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_addresses_stay_out() {
    let server = public(Role::Relay, &[]).await;
    let mut config = with_table(Role::Home, &[&server]);
    // To this node loopback is what it is; the server it knows by a connection of its own.
    config.documentation = Documentation::Unusable;
    let alice = start(config).await;
    alice.mesh.connect(server.id(), server.listen.clone()).await.unwrap();
    for addr in &alice.listen {
        alice.mesh.add_external_address(addr.clone()).await;
    }
    alice.mesh.provide(KEY.to_vec()).await;
    let bob = start(with_table(Role::Home, &[&server])).await;
    assert!(providers(&bob, KEY).await.is_empty());
    assert_eq!(role(&alice).await, TableRole::Client);
    assert_eq!(server.mesh.counters().refused(Refusal::NamesFull), 0);
}
