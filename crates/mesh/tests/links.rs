//! Two nodes on loopback: links and streams.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::{LOOPBACK, PATIENCE, config, eventually, exchange, home, members, start};
use futures::stream::FuturesUnordered;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt};
use kos_mesh::limits::STREAMS_OUTBOUND_MAX;
use kos_mesh::swarm::addr::Transport;
use kos_mesh::swarm::{
    ConnectError, Deed, Event, Multiaddr, OpenError, Path, PeerId, Protocol, Refusal, Role, Step, Stream,
    identity,
};

/// Whether the peer gave no answer and will not.
async fn broken_off(stream: &mut Stream) -> bool {
    matches!(stream.read(&mut [0]).await, Err(_) | Ok(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_transports_carry_streams_both_ways() {
    for transport in [Transport::Quic, Transport::Tcp] {
        let (alice, bob) = (home().await, home().await);
        let (bob_id, bob_addrs) = (bob.id(), bob.addrs(transport));
        let alice_id = alice.id();
        let (alice, bob) = (alice.echo(), bob.echo());
        members(&[&alice, &bob]).await;
        let path = alice.connect(bob_id, bob_addrs).await.unwrap();
        assert!(matches!(path, Path::Direct { transport: used, .. } if used == transport), "{path}");
        for protocol in [Protocol::Klp, Protocol::Carry] {
            let (stream, used) = alice.open(bob_id, protocol).await.unwrap();
            assert_eq!(used, path);
            assert_eq!(exchange(stream, b"to and fro").await.unwrap(), b"to and fro");
        }
        eventually("bob sees the link", async || bob.is_direct(&alice_id)).await;
        let (stream, _) = bob.open(alice_id, Protocol::Klp).await.unwrap();
        assert_eq!(exchange(stream, b"fro and to").await.unwrap(), b"fro and to");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inbound_stream_names_its_peer_connection_and_protocol() {
    let (alice, mut bob) = (home().await, home().await);
    members(&[&alice.mesh, &bob.mesh]).await;
    alice.mesh.connect(bob.id(), bob.addrs(Transport::Quic)).await.unwrap();
    let up = bob
        .until("the link", |event| match event {
            Event::LinkUp { peer, connection, .. } => Some((peer, connection)),
            _ => None,
        })
        .await;
    let (mut stream, _) = alice.mesh.open(bob.id(), Protocol::Carry).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let inbound = bob
        .until("the stream", |event| match event {
            Event::Inbound { peer, connection, protocol, .. } => Some(((peer, connection), protocol)),
            _ => None,
        })
        .await;
    assert_eq!(inbound, (up, Protocol::Carry));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_leave_nothing_behind() {
    for transport in [Transport::Quic, Transport::Tcp] {
        let (alice, bob) = (home().await, home().await);
        let (bob_id, addrs) = (bob.id(), bob.addrs(transport));
        let (alice, bob) = (alice.echo(), bob.echo());
        members(&[&alice, &bob]).await;
        alice.connect(bob_id, addrs).await.unwrap();
        let failed = futures::stream::iter(0..10_000u32)
            .map(|number| {
                let alice = alice.clone();
                async move {
                    let (stream, _) =
                        alice.open(bob_id, Protocol::Klp).await.map_err(|error| error.to_string())?;
                    let answer =
                        exchange(stream, &number.to_be_bytes()).await.map_err(|error| error.to_string())?;
                    if answer == number.to_be_bytes() { Ok(()) } else { Err(format!("{number}: {answer:?}")) }
                }
            })
            .buffer_unordered(64)
            .filter_map(|result| async { result.err() })
            .collect::<Vec<_>>()
            .await;
        assert_eq!(failed, Vec::<String>::new());
        for mesh in [&alice, &bob] {
            eventually("all places are free", async || mesh.links().iter().all(|link| link.streams == 0))
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inbound_streams_nobody_takes_are_refused_and_counted() {
    let bob = home().await;
    let mut dialers = Vec::new();
    for _ in 0..5 {
        dialers.push(home().await.unheard());
    }
    let everybody: Vec<_> = dialers.iter().chain([&bob.mesh]).collect();
    members(&everybody).await;
    let mut streams = Vec::new();
    for dialer in &dialers {
        dialer.connect(bob.id(), bob.addrs(Transport::Quic)).await.unwrap();
        for _ in 0..STREAMS_OUTBOUND_MAX {
            let (mut stream, _) = dialer.open(bob.id(), Protocol::Klp).await.unwrap();
            // A refusal may come before the write does.
            let _ = async {
                stream.write_all(b"anybody there?").await?;
                stream.flush().await
            }
            .await;
            streams.push(stream);
        }
    }
    let refused = || bob.mesh.counters().refused(Refusal::AcceptQueueFull);
    let came = || refused() + bob.mesh.counters().counted(Deed::StreamIn);
    eventually("all have come", async || came() == streams.len() as u64).await;
    let refused = usize::try_from(refused()).unwrap();
    assert!(refused >= 100, "{refused} met a full queue");
    // Which ones did hangs on whose connection was served first.
    let mut ends: FuturesUnordered<_> = streams.iter_mut().map(broken_off).collect();
    let broken = ends.by_ref().take(refused).all(async |is_broken| is_broken);
    assert!(tokio::time::timeout(PATIENCE, broken).await.expect("each that was refused is broken off"));
    assert!(ends.next().now_or_never().is_none(), "the others are not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_has_one_stream_and_is_not_carried() {
    let (alice, mut bob) = (home().await, home().await);
    alice.mesh.connect(bob.id(), bob.addrs(Transport::Quic)).await.unwrap();
    let (mut first, _) = alice.mesh.open(bob.id(), Protocol::Klp).await.unwrap();
    first.write_all(b"1").await.unwrap();
    first.flush().await.unwrap();
    let (_, taken) = bob.inbound().await;
    let (mut second, _) = alice.mesh.open(bob.id(), Protocol::Klp).await.unwrap();
    let _ = async {
        second.write_all(b"2").await?;
        second.flush().await
    }
    .await;
    assert!(broken_off(&mut second).await, "a second stream is broken off");
    assert_eq!(bob.mesh.counters().refused(Refusal::StreamsStranger), 1);
    let (mut carried, _) = alice.mesh.open(bob.id(), Protocol::Carry).await.unwrap();
    let _ = async {
        carried.write_all(b"3").await?;
        carried.flush().await
    }
    .await;
    assert!(broken_off(&mut carried).await, "carry is not agreed to");
    drop(taken);
    let (mut third, _) = alice.mesh.open(bob.id(), Protocol::Klp).await.unwrap();
    third.write_all(b"4").await.unwrap();
    third.flush().await.unwrap();
    bob.inbound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_said_of_every_address() {
    let alice = home().await;
    let nobody = PeerId::random();
    let bob = home().await;
    let closed: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let addrs = vec![closed.clone(), bob.addrs(Transport::Tcp)[0].clone()];
    let Err(ConnectError::Unreachable { failures, .. }) = alice.mesh.connect(nobody, addrs.clone()).await
    else {
        panic!("nobody answered");
    };
    let mut said: Vec<_> = failures.into_iter().map(|failure| (failure.addr, failure.step)).collect();
    said.sort();
    let mut expected = vec![(closed, Step::Refused), (addrs[1].clone(), Step::WrongPeer)];
    expected.sort();
    assert_eq!(said, expected);
    assert_eq!(
        alice
            .mesh
            .connect(PeerId::random(), Vec::new())
            .await
            .map_err(|error| matches!(error, ConnectError::NoAddresses { .. })),
        Err(true)
    );
    let own = alice.id();
    assert_eq!(alice.mesh.connect(own, Vec::new()).await, Err(ConnectError::Ourselves { peer: own }));
    assert!(matches!(alice.mesh.open(nobody, Protocol::Klp).await, Err(OpenError::NotConnected { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_machine_with_our_key_is_noticed_and_an_address_that_became_ours_is_not() {
    let keypair = identity::Keypair::generate_ed25519();
    let with_that_key = || {
        let mut config = config(Role::Home, &LOOPBACK);
        config.keypair = keypair.clone();
        config
    };
    let (mut one, twin) = (start(with_that_key()).await, start(with_that_key()).await);
    let own = one.addrs(Transport::Quic)[0].clone();
    assert!(one.mesh.connect(PeerId::random(), vec![own]).await.is_err());
    let other = twin.addrs(Transport::Quic)[0].clone();
    assert!(one.mesh.connect(PeerId::random(), vec![other.clone()]).await.is_err());
    let met = one
        .until("the twin", |event| match event {
            Event::OwnKeyAt { addr } => Some(addr),
            _ => None,
        })
        .await;
    assert_eq!(met, other, "only the twin's address counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_disconnected_on_both_ends() {
    let (mut alice, bob) = (home().await, home().await);
    members(&[&alice.mesh, &bob.mesh]).await;
    alice.mesh.connect(bob.id(), bob.listen.clone()).await.unwrap();
    bob.mesh.set_members(BTreeSet::new()).await;
    alice
        .until("the last link goes", |event| match event {
            Event::LinkDown { remaining: 0, .. } => Some(()),
            _ => None,
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_address_book_finds_a_member_again() {
    let keypair = kos_mesh::swarm::identity::Keypair::generate_ed25519();
    let mut first = config(Role::Home, &LOOPBACK);
    first.keypair = keypair.clone();
    let (alice, bob) = (start(first).await, home().await);
    members(&[&alice.mesh, &bob.mesh]).await;
    alice.mesh.connect(bob.id(), bob.listen.clone()).await.unwrap();
    let book = alice.mesh.snapshot().await.unwrap().book;
    alice.mesh.shutdown().await;
    assert!(alice.mesh.snapshot().await.is_none());

    let mut second = config(Role::Home, &LOOPBACK);
    second.keypair = keypair;
    second.known = book;
    let mut alice = start(second).await;
    alice.mesh.set_members(BTreeSet::from([bob.id()])).await;
    let found = alice
        .until("the link is made again", |event| match event {
            Event::LinkUp { peer, .. } => Some(peer),
            _ => None,
        })
        .await;
    assert_eq!(found, bob.id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_made_at_once_from_both_ends_become_one() {
    let (alice, bob) = (home().await, home().await);
    members(&[&alice.mesh, &bob.mesh]).await;
    let (one, other) = tokio::join!(
        alice.mesh.connect(bob.id(), bob.addrs(Transport::Quic)),
        bob.mesh.connect(alice.id(), alice.addrs(Transport::Quic)),
    );
    assert!(one.unwrap().is_direct() && other.unwrap().is_direct());
    let (alice_id, bob_id) = (alice.id(), bob.id());
    let (alice, bob) = (alice.unheard(), bob.echo());
    eventually("one link on both ends", async || {
        alice.links_with(&bob_id).len() == 1 && bob.links_with(&alice_id).len() == 1
    })
    .await;
    let (stream, _) = alice.open(bob_id, Protocol::Klp).await.unwrap();
    assert_eq!(exchange(stream, b"still here").await.unwrap(), b"still here");
}
