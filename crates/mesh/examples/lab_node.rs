//! A bare node for the NAT laboratory, driven by `tests/lab.py`-like scripts; see the options at `main`.
//!
//! Without a target a home node reserves with the relays it is given (`reserve=ADDR/p2p/ID`) and answers every
//! stream with its bytes. With `dial=ID` it connects, measures one exchange over each path it gets, and prints a
//! line of JSON for each step. Keys come from `seed=N`, so that addresses can be known beforehand.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};
use kos_mesh::swarm::addr::Documentation;
use kos_mesh::swarm::{
    Config, Event, Mesh, Multiaddr, Path, PeerId, Protocol, Role, Stream, identity, listen_on, spawn,
};

fn key(seed: u8) -> identity::Keypair {
    identity::Keypair::ed25519_from_bytes([seed; 32]).unwrap()
}

fn id(seed: u8) -> PeerId {
    key(seed).public().to_peer_id()
}

async fn echo(stream: Stream) -> std::io::Result<()> {
    let (mut from, mut to) = stream.split();
    futures::io::copy(&mut from, &mut to).await?;
    to.close().await
}

async fn ask(mesh: &Mesh, peer: PeerId) -> Result<(Path, Duration), String> {
    let began = Instant::now();
    let (mut stream, path) = mesh.open(peer, Protocol::Klp).await.map_err(|error| error.to_string())?;
    stream.write_all(b"ping").await.map_err(|error| error.to_string())?;
    stream.close().await.map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
    if answer == b"ping" { Ok((path, began.elapsed())) } else { Err("no answer".into()) }
}

fn say(what: &str, began: Instant, detail: impl std::fmt::Display) {
    println!(
        "{}",
        serde_json::json!({"what": what, "ms": began.elapsed().as_millis() as u64, "detail": detail.to_string()})
    );
}

/// Options: `seed=N port=N role=relay|home external=ADDR reserve=N@ADDR member=N dial=N via=N@ADDR
/// direct=ADDR keep=SECONDS no_listen`.
#[tokio::main]
async fn main() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let options: Vec<(String, String)> = std::env::args()
        .skip(1)
        .map(|option| {
            option.split_once('=').map_or((option.clone(), String::new()), |(k, v)| (k.into(), v.into()))
        })
        .collect();
    let all = |name: &str| {
        options.iter().filter(|(key, _)| key == name).map(|(_, v)| v.clone()).collect::<Vec<_>>()
    };
    let one = |name: &str| all(name).pop();
    let seed: u8 = one("seed").unwrap().parse().unwrap();
    let role = if one("role").as_deref() == Some("relay") { Role::Relay } else { Role::Home };
    let mut config = Config::new(key(seed), role);
    config.documentation = Documentation::Global;
    config.mdns = one("mdns").is_some();
    config.upnp = false;
    config.kad = false;
    config.listen = listen_on(one("port").map_or(0, |port| port.parse().unwrap()));
    config.external = all("external").iter().map(|addr| addr.parse().unwrap()).collect();
    let (mesh, mut events) = spawn(config).unwrap();
    let members: BTreeSet<_> = all("member").iter().map(|seed| id(seed.parse().unwrap())).collect();
    mesh.set_members(members).await;
    let began = Instant::now();

    let (upgraded, mut upgrades) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                Event::Inbound { stream, .. } => drop(tokio::spawn(echo(stream))),
                Event::PathUpgraded { peer } => drop(upgraded.send(peer)),
                Event::LinkUp { path, .. } => say("link up", began, path),
                Event::LinkDown { remaining, .. } => say("link down", began, format!("{remaining} remain")),
                Event::AddressesChanged { external, .. } => say("external", began, format!("{external:?}")),
                _ => {}
            }
        }
    });
    let parse = |text: &str| -> (PeerId, Multiaddr) {
        let (seed, addr) = text.split_once('@').unwrap();
        (id(seed.parse().unwrap()), addr.parse().unwrap())
    };
    let mut relays = std::collections::BTreeMap::<PeerId, Vec<Multiaddr>>::new();
    for reserve in all("reserve") {
        let (relay, addr) = parse(&reserve);
        relays.entry(relay).or_default().push(addr);
    }
    for (relay, addrs) in relays {
        let outcome = mesh.request_reservation(relay, addrs).await;
        say("reserved", began, format!("{outcome:?}"));
    }
    if let Some(target) = one("dial") {
        let peer = id(target.parse().unwrap());
        let mut addrs: Vec<Multiaddr> = all("direct").iter().map(|addr| addr.parse().unwrap()).collect();
        for via in all("via") {
            let (relay, addr) = parse(&via);
            addrs.push(format!("{addr}/p2p/{relay}/p2p-circuit").parse().unwrap());
        }
        let began = Instant::now();
        match mesh.connect(peer, addrs).await {
            Ok(path) => say("connected", began, path),
            Err(error) => say("failed", began, error),
        }
        match ask(&mesh, peer).await {
            Ok((path, took)) => {
                say("first reply", began, format!("{path}, exchange {} ms", took.as_millis()))
            }
            Err(error) => say("no reply", began, error),
        }
        let wait: u64 = one("wait").map_or(15, |wait| wait.parse().unwrap());
        if !mesh.is_direct(&peer) {
            match tokio::time::timeout(Duration::from_secs(wait), upgrades.recv()).await {
                Ok(_) => say("upgraded", began, ""),
                Err(_) => say("not upgraded", began, ""),
            }
        }
        match ask(&mesh, peer).await {
            Ok((path, took)) => say("last reply", began, format!("{path}, exchange {} ms", took.as_millis())),
            Err(error) => say("no reply", began, error),
        }
        if let Some(snapshot) = mesh.snapshot().await {
            say(
                "mapping",
                began,
                format!("{:?} {:?}", snapshot.reachability.mapping, snapshot.reachability.filtering),
            );
            for tried in snapshot.reachability.tried {
                say("tried", began, format!("{:?} {:?}", tried.what, tried.outcome));
            }
            say("flows", began, snapshot.flows_last_minute);
        }
    }
    tokio::time::sleep(Duration::from_secs(one("keep").map_or(0, |keep| keep.parse().unwrap()))).await;
    mesh.shutdown().await;
}
