//! The gossip model against fifty real swarms in this process, on loopback, in the same topology.
#![allow(missing_docs, clippy::unwrap_used)]

use kos_mesh::swarm::{Config, Deed, Event, Mesh, Multiaddr, Role, Verdict, identity, spawn};
use kos_simulations::{
    gossip::{GOSSIP_LAZY, HISTORY_GOSSIP, MESH_N, Params},
    latency::Latency,
    random::Random,
    reach::{Setup, run},
};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

const NODES: usize = 50;
const LINKS: usize = 16;
const RECORDS: u32 = 20;
const RECORD_BYTES: usize = 1_015;
const TOPIC: &str = "5f2c";
/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long bytes are under way on loopback, in microseconds.
const LOOPBACK_US: u64 = 100;
/// How far model and swarms may be apart in the copies of a message that a node receives.
const COPIES_APART_MAX: f64 = 0.35;

struct Node {
    mesh: Mesh,
    listen: Vec<Multiaddr>,
}

/// A swarm whose gossip is accepted at once and told of with its time.
async fn start(number: usize, heard: mpsc::UnboundedSender<(usize, u32, Instant)>) -> Node {
    let mut config = Config::new(identity::Keypair::generate_ed25519(), Role::Home);
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    (config.mdns, config.upnp, config.kad) = (false, false, false);
    (config.dials_per_minute, config.inbound_per_prefix_per_minute) = (60_000, 60_000);
    let (mesh, mut events) = spawn(config).unwrap();
    let (listens, mut listening) = mpsc::channel(1);
    let own = mesh.clone();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                Event::AddressesChanged { listen, .. } if !listen.is_empty() => {
                    drop(listens.try_send(listen))
                }
                Event::Gossip { id, from, bytes, .. } => {
                    let record = u32::from_be_bytes(*bytes.first_chunk().unwrap());
                    let _ = heard.send((number, record, Instant::now()));
                    own.report(id, from, Verdict::Accept).await;
                }
                _ => {}
            }
        }
    });
    Node { mesh, listen: listening.recv().await.unwrap() }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Dials as [`kos_simulations::reach`] draws its graph.
async fn link_all(nodes: &[Node]) {
    let mut random = Random::seeded(1);
    let mut pairs = BTreeSet::new();
    for node in 0..nodes.len() {
        for _ in 0..LINKS / 2 {
            let other = random.index(nodes.len());
            if other != node {
                pairs.insert((node.min(other), node.max(other)));
            }
        }
    }
    for (from, to) in pairs {
        let (from, to) = (&nodes[from], &nodes[to]);
        eventually("a link", async || {
            from.mesh.connect(to.mesh.local_peer(), to.listen.clone()).await.is_ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_says_what_fifty_real_swarms_do() {
    use kos_mesh::limits;
    assert_eq!(MESH_N, limits::GOSSIP_MESH_N);
    assert_eq!(GOSSIP_LAZY, limits::GOSSIP_LAZY);
    assert_eq!(HISTORY_GOSSIP, limits::GOSSIP_HISTORY as u64);

    let (heard, mut hearing) = mpsc::unbounded_channel();
    let mut nodes = Vec::new();
    for number in 0..NODES {
        nodes.push(start(number, heard.clone()).await);
    }
    let nodes = Arc::new(nodes);
    let members: BTreeSet<_> = nodes.iter().map(|node| node.mesh.local_peer()).collect();
    for node in nodes.iter() {
        node.mesh.set_members(members.clone()).await;
        assert!(node.mesh.subscribe(TOPIC).await);
    }
    link_all(&nodes).await;

    // The mesh has formed when a message reaches everybody; the first ones may not.
    let mut warm = 1_000_000;
    eventually("a message reaches everybody", async || {
        warm += 1;
        let message = [&u32::to_be_bytes(warm)[..], &[0; 60]].concat();
        if nodes[0].mesh.publish(TOPIC, message).await.is_err() {
            return false;
        }
        let mut reached = BTreeSet::new();
        while reached.len() < NODES - 1 {
            match tokio::time::timeout(Duration::from_secs(2), hearing.recv()).await {
                Ok(Some((node, record, _))) if record == warm => drop(reached.insert(node)),
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        true
    })
    .await;
    // Grafts and prunes of the start are over after a few heartbeats.
    tokio::time::sleep(Duration::from_secs(5)).await;

    let copies = |nodes: &[Node]| -> u64 {
        nodes.iter().map(|node| node.mesh.counters().counted(Deed::GossipCopy)).sum()
    };
    let before = copies(&nodes);
    let mut random = Random::seeded(2);
    let (mut took, mut to_99) = (Vec::new(), Vec::new());
    for record in 0..RECORDS {
        let author = random.index(NODES);
        let message = [&record.to_be_bytes()[..], &vec![record as u8; RECORD_BYTES - 4]].concat();
        let begun = Instant::now();
        nodes[author].mesh.publish(TOPIC, message).await.unwrap();
        let mut each = Vec::new();
        while each.len() < NODES - 1 {
            let (_, of, at) = tokio::time::timeout(PATIENCE, hearing.recv()).await.unwrap().unwrap();
            if of == record {
                each.push(at.saturating_duration_since(begun));
            }
        }
        each.sort_unstable();
        to_99.push(each[NODES * 99 / 100 - 1]);
        took.extend(each);
        // Copies still under way, and heartbeats, belong to this record.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // What nodes published themselves is counted, too, and is no copy that came.
    let came = copies(&nodes) - before - u64::from(RECORDS);
    let real_copies = came as f64 / (f64::from(RECORDS) * (NODES - 1) as f64);
    let mean_ms = took.iter().map(Duration::as_secs_f64).sum::<f64>() * 1_000.0 / took.len() as f64;
    let modelled = |validation_us| {
        run(&Setup {
            nodes: NODES,
            links: LINKS,
            records: RECORDS,
            record_bytes: RECORD_BYTES,
            params: Params::default(),
            latency: Latency::Fixed(LOOPBACK_US),
            loss_permille: 0,
            validation_us,
            ..Setup::default()
        })
    };
    // Fifty nodes share this machine's cores: what a node needs for a message is what makes the mean time agree.
    let (mut low_us, mut high_us) = (0, 1_000_000);
    while high_us - low_us > 100 {
        let middle_us = u64::midpoint(low_us, high_us);
        if modelled(middle_us).reach_mean_ms < mean_ms { low_us = middle_us } else { high_us = middle_us }
    }
    let model = modelled(high_us);
    to_99.sort_unstable();
    let slowest = to_99[to_99.len() - 1];
    println!("copies: {real_copies:.2} real, {:.2} model", model.copies);
    println!(
        "mean time to reach a node: {mean_ms:.1} ms real, {:.1} ms model with {high_us} us for a message",
        model.reach_mean_ms
    );
    println!("99 % of {NODES} nodes after {slowest:?} at the latest");
    assert!(
        (real_copies - model.copies).abs() < COPIES_APART_MAX,
        "{real_copies} real, {} model",
        model.copies
    );
    // The bar is 1 s; this guards against hanging only.
    assert!(slowest < Duration::from_secs(10));
    for node in nodes.iter() {
        node.mesh.shutdown().await;
    }
}
