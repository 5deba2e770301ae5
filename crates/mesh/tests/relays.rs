//! A relay, and two nodes that meet through it.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::{LOOPBACK, Node, config, eventually, exchange, home, members, start};
use futures::{AsyncReadExt, AsyncWriteExt};
use kos_mesh::swarm::addr::Transport;
use kos_mesh::swarm::{
    Deed, Event, Multiaddr, OpenError, Path, Protocol, Refusal, ReservationState, Role, identity,
};

async fn relay() -> Node {
    relay_at(identity::Keypair::generate_ed25519(), &LOOPBACK).await
}

async fn relay_at(keypair: identity::Keypair, listen: &[&str]) -> Node {
    let mut config = config(Role::Relay, listen);
    config.keypair = keypair;
    let node = start(config).await;
    for addr in &node.listen {
        node.mesh.add_external_address(addr.clone()).await;
    }
    node
}

/// A node that nobody can dial: it stays relayed.
async fn hidden() -> Node {
    start(config(Role::Home, &[])).await
}

fn circuit(relay: &Node, transport: Transport) -> Vec<Multiaddr> {
    let own = |addr: &Multiaddr| format!("{addr}/p2p/{}/p2p-circuit", relay.id()).parse().unwrap();
    relay.addrs(transport).iter().map(own).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_keeps_places_for_members_only() {
    let (relay, alice) = (relay().await, hidden().await);
    let refused = alice.mesh.request_reservation(relay.id(), relay.listen.clone()).await;
    assert!(refused.is_err(), "{refused:?}");
    // It asks again by itself, so it may have been refused more than once by now.
    assert!(relay.mesh.counters().refused(Refusal::ReservationStranger) >= 1);
    relay.mesh.set_members(BTreeSet::from([alice.id()])).await;
    let mut alice = alice;
    let circuits = alice
        .until("it is asked for again", |event| match event {
            Event::Reservation { state: ReservationState::Held { circuits }, .. } => Some(circuits),
            _ => None,
        })
        .await;
    assert!(!circuits.is_empty());
    // The relay counts when it has answered; alice may hear first.
    eventually("it is counted", async || relay.mesh.counters().counted(Deed::ReservationGranted) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hidden_nodes_meet_on_a_circuit_where_only_klp_runs() {
    let (relay, alice, bob) = (relay().await, hidden().await, hidden().await);
    relay.mesh.set_members(BTreeSet::from([bob.id()])).await;
    bob.mesh.request_reservation(relay.id(), relay.listen.clone()).await.unwrap();
    let bob_id = bob.id();
    // A stranger to the relay and to Bob, as one who joins is.
    let path = alice.mesh.connect(bob_id, circuit(&relay, Transport::Tcp)).await.unwrap();
    assert_eq!(path, Path::Relayed { via: Some(relay.id()) });
    let bob = bob.echo();
    let (stream, _) = alice.mesh.open(bob_id, Protocol::Klp).await.unwrap();
    assert_eq!(exchange(stream, b"may I join?").await.unwrap(), b"may I join?");
    // Carry needs a direct connection, also for members; a hostile peer that asks all the same is refused.
    members(&[&alice.mesh, &bob]).await;
    let refused = alice.mesh.open(bob_id, Protocol::Carry).await.map(|_| ());
    assert_eq!(refused, Err(OpenError::Unsupported { peer: bob_id, protocol: Protocol::Carry }));
    let connection = alice.mesh.links_with(&bob_id)[0].connection;
    let mut forced = alice.mesh.open_on(connection, Protocol::Carry).await.unwrap();
    // The refusal may come before the write does.
    let _ = async {
        forced.write_all(b"carry me").await?;
        forced.flush().await
    }
    .await;
    assert!(forced.read(&mut [0]).await.is_err());
    // Gossip does not run there either.
    for mesh in [&alice.mesh, &bob] {
        mesh.subscribe("topic").await;
    }
    let (stream, _) = alice.mesh.open(bob_id, Protocol::Klp).await.unwrap();
    assert_eq!(exchange(stream, b"ping").await.unwrap(), b"ping");
    assert!(alice.mesh.publish("topic", b"x".to_vec()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_connection_is_preferred_and_the_circuit_closed() {
    let (relay, mut alice, bob) = (relay().await, home().await, home().await);
    members(&[&relay.mesh, &alice.mesh, &bob.mesh]).await;
    bob.mesh.request_reservation(relay.id(), relay.listen.clone()).await.unwrap();
    let (bob_id, bob) = (bob.id(), bob.echo());
    let path = alice.mesh.connect(bob_id, circuit(&relay, Transport::Quic)).await.unwrap();
    assert_eq!(path, Path::Relayed { via: Some(relay.id()) });
    let relayed = alice
        .until("the circuit is up", |event| match event {
            Event::LinkUp { peer, connection, .. } if peer == bob_id => Some(connection),
            _ => None,
        })
        .await;
    alice
        .until("the path is upgraded", |event| match event {
            Event::PathUpgraded { peer } if peer == bob_id => Some(()),
            _ => None,
        })
        .await;
    let (stream, path) = alice.mesh.open(bob_id, Protocol::Klp).await.unwrap();
    assert!(path.is_direct(), "{path}");
    assert_eq!(exchange(stream, b"direct").await.unwrap(), b"direct");
    alice
        .until("the circuit closes", |event| match event {
            Event::LinkDown { connection, .. } if connection == relayed => Some(()),
            _ => None,
        })
        .await;
    assert!(alice.mesh.is_direct(&bob_id));
    eventually("bob has only direct links", async || bob.links().iter().all(|link| link.path.is_direct()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_comes_back_is_asked_again() {
    let keypair = identity::Keypair::generate_ed25519();
    let first = relay_at(keypair.clone(), &LOOPBACK).await;
    let mut alice = home().await;
    members(&[&first.mesh, &alice.mesh]).await;
    alice.mesh.request_reservation(first.id(), first.listen.clone()).await.unwrap();
    let listen: Vec<_> = first.listen.iter().map(ToString::to_string).collect();
    let listen: Vec<_> = listen.iter().map(String::as_str).collect();
    first.mesh.shutdown().await;
    alice
        .until("the reservation is lost", |event| match event {
            Event::Reservation { state: ReservationState::Lost { .. }, .. } => Some(()),
            _ => None,
        })
        .await;
    // The old socket goes when quinn's own task has ended.
    let port = first.addrs(Transport::Quic).first().and_then(kos_mesh::swarm::addr::port).unwrap();
    eventually("the port is free", async || std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()).await;
    let second = relay_at(keypair, &listen).await;
    second.mesh.set_members(BTreeSet::from([alice.id()])).await;
    alice
        .until("it is made again", |event| match event {
            Event::Reservation { state: ReservationState::Held { .. }, .. } => Some(()),
            _ => None,
        })
        .await;
    eventually("it is counted", async || second.mesh.counters().counted(Deed::ReservationGranted) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_reached_over_both_transports() {
    let (relay, alice) = (relay().await, home().await);
    members(&[&relay.mesh, &alice.mesh]).await;
    alice.mesh.request_reservation(relay.id(), relay.listen.clone()).await.unwrap();
    let relay_id = relay.id();
    eventually("both transports", async || {
        let links = alice.mesh.links_with(&relay_id);
        [Transport::Quic, Transport::Tcp].iter().all(|transport| {
            links
                .iter()
                .any(|link| matches!(&link.path, Path::Direct { transport: used, .. } if used == transport))
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_ends_at_its_budget() {
    let (relay, mut alice, bob) = (relay().await, hidden().await, hidden().await);
    relay.mesh.set_members(BTreeSet::from([bob.id()])).await;
    bob.mesh.request_reservation(relay.id(), relay.listen.clone()).await.unwrap();
    let bob_id = bob.id();
    alice.mesh.connect(bob_id, circuit(&relay, Transport::Tcp)).await.unwrap();
    let circuit = alice.mesh.links_with(&bob_id)[0].connection;
    let _bob = bob.echo();
    // Enough for a join, there and back.
    let (stream, _) = alice.mesh.open(bob_id, Protocol::Klp).await.unwrap();
    let join = vec![7; 16 * 1_024];
    assert_eq!(exchange(stream, &join).await.unwrap(), join);
    // Not enough to be a transport.
    let (mut stream, _) = alice.mesh.open(bob_id, Protocol::Klp).await.unwrap();
    let bulk = vec![7; usize::try_from(kos_mesh::limits::CIRCUIT_BYTES_MAX).unwrap()];
    tokio::spawn(async move { drop(stream.write_all(&bulk).await) });
    alice
        .until("the circuit is cut", |event| match event {
            Event::LinkDown { connection, .. } if connection == circuit => Some(()),
            _ => None,
        })
        .await;
    assert!(!alice.mesh.links_with(&relay.id()).is_empty(), "the relay itself is still linked");
}
