//! Gossip reaches members and nobody else.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::{Node, eventually, home, members};
use kos_mesh::limits::GOSSIP_BYTES_MAX;
use kos_mesh::swarm::addr::Transport;
use kos_mesh::swarm::{Deed, Event, Mesh, PeerId, PublishError, Verdict};

const TOPIC: &str = "5f2c";

async fn subscribed(node: &mut Node, all: &[PeerId]) {
    let mut missing = all.to_vec();
    node.until("subscriptions", |event| {
        if let Event::Subscribed { peer, .. } = event {
            missing.retain(|other| *other != peer);
        }
        missing.is_empty().then_some(())
    })
    .await;
}

async fn heard(node: &mut Node) -> Vec<u8> {
    let (id, from, bytes) = node
        .until("a message", |event| match event {
            Event::Gossip { topic, id, from, bytes } => {
                assert_eq!(topic, TOPIC);
                Some((id, from, bytes))
            }
            _ => None,
        })
        .await;
    node.mesh.report(id, from, Verdict::Accept).await;
    bytes
}

async fn connect(from: &Mesh, to: &Node) {
    from.connect(to.id(), to.addrs(Transport::Quic)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_passes_along_members_once_it_was_accepted() {
    let (alice, mut bob, mut carol) = (home().await, home().await, home().await);
    members(&[&alice.mesh, &bob.mesh, &carol.mesh]).await;
    for node in [&alice, &bob, &carol] {
        assert!(node.mesh.subscribe(TOPIC).await);
    }
    connect(&alice.mesh, &bob).await;
    connect(&carol.mesh, &bob).await;
    subscribed(&mut bob, &[alice.id(), carol.id()]).await;
    eventually("somebody listens", async || alice.mesh.publish(TOPIC, b"news".to_vec()).await.is_ok()).await;
    assert_eq!(heard(&mut bob).await, b"news");
    assert_eq!(heard(&mut carol).await, b"news");
    assert_eq!(alice.mesh.publish(TOPIC, b"news".to_vec()).await, Err(PublishError::Duplicate));
    let bytes = GOSSIP_BYTES_MAX + 1;
    assert_eq!(
        alice.mesh.publish(TOPIC, vec![0; bytes]).await,
        Err(PublishError::TooLarge { bytes, limit: GOSSIP_BYTES_MAX })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_neither_hears_nor_speaks() {
    let (alice, mut bob, mallory) = (home().await, home().await, home().await);
    members(&[&alice.mesh, &bob.mesh]).await;
    // Mallory believes everybody to be a member, and speaks gossipsub with all.
    mallory.mesh.set_members(BTreeSet::from([alice.id(), bob.id()])).await;
    for node in [&alice, &bob, &mallory] {
        assert!(node.mesh.subscribe(TOPIC).await);
    }
    connect(&mallory.mesh, &bob).await;
    connect(&mallory.mesh, &alice).await;
    connect(&alice.mesh, &bob).await;
    subscribed(&mut bob, &[alice.id()]).await;
    eventually("somebody listens", async || alice.mesh.publish(TOPIC, b"among us".to_vec()).await.is_ok())
        .await;
    assert_eq!(heard(&mut bob).await, b"among us");
    // Alice and Bob are linked to Mallory; she has nobody to publish to, and heard nothing.
    assert!(mallory.mesh.is_direct(&alice.id()) && mallory.mesh.is_direct(&bob.id()));
    assert_eq!(mallory.mesh.publish(TOPIC, b"lies".to_vec()).await, Err(PublishError::NobodyListens));
    assert_eq!(mallory.mesh.counters().counted(Deed::GossipIn), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_opens_and_shuts_with_membership_on_the_same_connection() {
    let (mut alice, mut bob) = (home().await, home().await);
    for node in [&alice, &bob] {
        assert!(node.mesh.subscribe(TOPIC).await);
    }
    connect(&alice.mesh, &bob).await;
    let before = alice.mesh.links_with(&bob.id())[0].connection;
    assert_eq!(alice.mesh.publish(TOPIC, b"early".to_vec()).await, Err(PublishError::NobodyListens));
    members(&[&alice.mesh, &bob.mesh]).await;
    subscribed(&mut alice, &[bob.id()]).await;
    subscribed(&mut bob, &[alice.id()]).await;
    eventually("somebody listens", async || alice.mesh.publish(TOPIC, b"now".to_vec()).await.is_ok()).await;
    assert_eq!(heard(&mut bob).await, b"now");
    let after = alice.mesh.links_with(&bob.id());
    assert!(after.iter().any(|link| link.connection == before), "the connection was not re-made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_made_later_is_heard_of_at_once() {
    let (mut alice, bob) = (home().await, home().await);
    members(&[&alice.mesh, &bob.mesh]).await;
    connect(&alice.mesh, &bob).await;
    assert!(alice.mesh.subscribe(TOPIC).await);
    let began = std::time::Instant::now();
    assert!(bob.mesh.subscribe(TOPIC).await);
    subscribed(&mut alice, &[bob.id()]).await;
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}
