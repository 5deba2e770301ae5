//! A relay and two nodes on loopback: invite, join, call, remove.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_governance::act::Role;
use kos_mesh::link::Caller;
use kos_protocol::{
    hello::Versions,
    id::AgentId,
    message::{End, Head, ReplyHead},
};
use kos_shell::{
    AgentOffer, Answering, App, AuditEvent, Change, InviteOptions, NoApp, NodeRole, Options, Runtime,
};
use std::{
    future::Future,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// Echoes every call.
struct Echo;

impl App for Echo {
    fn admit(&self, _: &Caller, _: &Head) -> Result<Answering, End> {
        Ok(Box::new(|mut request| {
            Box::pin(async move {
                let body = request.recv.read_all(1 << 20).await.unwrap();
                request.send.reply(&ReplyHead::default(), &body).await.unwrap();
            })
        }))
    }
    fn audit(&self, _: AuditEvent) {}
    fn changed(&self, _: Change) {}
}

async fn node(folder: &Path, name: &str) -> Runtime {
    let mut options = Options::new(folder.join(name));
    options.name = Some(name.to_owned());
    options.listen =
        Some(vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap(), "/ip4/127.0.0.1/tcp/0".parse().unwrap()]);
    options.mdns = false;
    options.upnp = false;
    options.kad = false;
    Runtime::start(options, Arc::new(Echo)).await.unwrap()
}

/// Waits for a condition; a time only guards against hanging.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn lan_invite() -> InviteOptions {
    InviteOptions { role: Role::Member, uses: 1, ttl_ms: 60_000, until_ms: None, lan: true, note: None }
}

fn provider() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_join_call_and_part() {
    provider();
    let place = tempfile::tempdir().unwrap();
    let attic = node(place.path(), "attic").await;
    let cellar = node(place.path(), "cellar").await;
    let id = attic.me().federation;
    until("attic has drawn a secret and can invite", async || attic.invite(&id, lan_invite()).await.is_ok())
        .await;
    let invitation = attic.invite(&id, lan_invite()).await.unwrap();
    let preview = cellar.preview(&invitation.code).unwrap();
    assert_eq!((preview.federation, preview.role, preview.current_has_content), (id, Role::Member, false));
    let joined = cellar.join(&invitation.code, false).await.unwrap();
    assert_eq!((joined.federation, joined.members), (id, 2));
    assert_eq!(cellar.federations().len(), 1, "the federation of one without content is gone");
    assert!(cellar.join(&invitation.code, false).await.is_err(), "a member already");

    let agent: AgentId = "kBridge:notes".parse().unwrap();
    let offer = AgentOffer {
        agent: agent.clone(),
        description: "notes".into(),
        protocol: "http".into(),
        capabilities: vec![],
    };
    attic.publish_agents(&id, vec![offer]).await.unwrap();
    until("cellar sees the agent", async || cellar.agents(&id).iter().any(|info| info.agent == agent)).await;
    let target = cellar.resolve_agent(&id, "kBridge:notes@attic").unwrap();
    let head = Head { intent: "agent.call".into(), target: Some(agent.to_string()), ..Head::default() };
    let (mut exchange, reply) = cellar.links().request(target.to, &head, b"hello").await.unwrap();
    reply.unwrap();
    assert_eq!(exchange.recv.read_all(100).await.unwrap(), b"hello");
    assert_eq!(exchange.route().to_string(), "direct");
    let report = cellar.ping(&id, target.member, 3).await.unwrap();
    assert_eq!((report.rtts_ms.len(), report.chosen.as_str()), (3, "direct"));

    let other = node(place.path(), "other").await;
    let late = other.join(&invitation.code, false).await.unwrap_err();
    assert!(late.to_string().contains("used already"), "{late}");

    let member = attic.resolve_member(&id, "cellar").unwrap();
    attic.remove_member(&id, member, "moved out".into()).await.unwrap();
    until("cellar can do nothing any more", async || {
        cellar.links().request(target.to, &head, b"x").await.is_err()
    })
    .await;
    for node in [&attic, &cellar, &other] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_claimed_and_federations_survive_a_restart() {
    provider();
    let place = tempfile::tempdir().unwrap();
    let attic = node(place.path(), "attic").await;
    let relay = {
        let mut options = Options::new(place.path().join("relay"));
        options.name = Some("relay".into());
        options.role = NodeRole::Relay;
        let port = free_port();
        let address: kos_mesh::Multiaddr = format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap();
        options.listen = Some(vec![address.clone()]);
        options.external = vec![address];
        options.kad = false;
        Runtime::start(options, Arc::new(NoApp)).await.unwrap()
    };
    let id = attic.me().federation;
    let line = relay.relay_line().unwrap();
    let member = attic.relay_add(&id, &line).await.unwrap();
    assert_eq!(member, relay.me().member);
    assert_eq!(relay.federations().first().map(|info| info.id), Some(id));
    let again = attic.relay_add(&id, &line).await.unwrap_err();
    assert!(again.to_string().contains("token"), "{again}");
    until("attic has a reservation", async || attic.relays(&id).await.iter().any(|relay| relay.reserved))
        .await;

    // The session of the claim ends with it; the next one is made when there is something to ask.
    let mut sessions = Vec::new();
    until("attic has a session with its relay", || {
        sessions = attic.links().sessions();
        std::future::ready(!sessions.is_empty())
    })
    .await;
    let peers: Vec<_> = sessions.into_iter().map(|session| session.peer).collect();
    assert!(peers.iter().all(|peer| peer.is_idempotent()), "{peers:?}");

    attic.shutdown().await;
    drop(attic);
    let folder = place.path().join("attic");
    until("the folder is free", async || kos_store::Folder::open(&folder).is_ok()).await;
    let attic = node(place.path(), "attic").await;
    assert_eq!(attic.me().federation, id);
    assert_eq!(attic.members(&id).len(), 2);
    until("the relay is linked again", async || attic.relays(&id).await.iter().any(|relay| relay.reserved))
        .await;

    attic.let_go(&id, member).await.unwrap();
    assert!(attic.relays(&id).await.is_empty());
    attic.relay_add(&id, &relay.relay_line().unwrap()).await.unwrap();
    until("it is a relay again", async || attic.relays(&id).await.iter().any(|relay| relay.reserved)).await;
    attic.shutdown().await;
    relay.shutdown().await;
}

/// A UDP port of loopback that is free, handed out once. None of those that the system gives to whoever binds to any: the
/// other tests of this process do.
fn free_port() -> u16 {
    static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(97) + HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + u16::try_from(number % 22_000).unwrap();
        if std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A node in the hash table: public at a port of loopback, or without a listener, so that nobody can dial it.
async fn in_table(folder: &Path, name: &str, port: Option<u16>, servers: &[kos_mesh::Multiaddr]) -> Runtime {
    let mut options = Options::new(folder.join(name));
    options.name = Some(name.to_owned());
    options.mdns = false;
    options.upnp = false;
    options.documentation = kos_shell::Documentation::Machine;
    options.bootstrap = servers.to_vec();
    let address = |port| format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap();
    let listen: Vec<kos_mesh::Multiaddr> = port.map(address).into_iter().collect();
    options.external = listen.clone();
    options.listen = Some(listen);
    if name == "server" {
        options.role = NodeRole::Relay;
    }
    Runtime::start(options, Arc::new(Echo)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_is_found_through_the_hash_table() {
    provider();
    let place = tempfile::tempdir().unwrap();
    let port = free_port();
    // A stranger to the federation: it keeps names without knowing whose.
    let server = in_table(place.path(), "server", Some(port), &[]).await;
    let servers: Vec<kos_mesh::Multiaddr> =
        vec![format!("/ip4/127.0.0.1/udp/{port}/quic-v1/p2p/{}", server.me().peer_id).parse().unwrap()];
    let attic = in_table(place.path(), "attic", Some(free_port()), &servers).await;
    let cellar = in_table(place.path(), "cellar", None, &servers).await;
    let id = attic.me().federation;
    until("attic can invite", async || attic.invite(&id, lan_invite()).await.is_ok()).await;
    let invitation = attic.invite(&id, lan_invite()).await.unwrap();
    cellar.join(&invitation.code, false).await.unwrap();
    let member = attic.me().member;
    until("cellar reaches attic", async || {
        cellar.ping(&id, member, 1).await.is_ok_and(|report| report.chosen == "direct")
    })
    .await;

    attic.shutdown().await;
    drop(attic);
    let folder = place.path().join("attic");
    until("the folder is free", async || kos_store::Folder::open(&folder).is_ok()).await;
    let attic = in_table(place.path(), "attic", Some(free_port()), &servers).await;
    until("cellar finds attic where it is now", async || {
        cellar.members(&id).iter().any(|info| info.member == member && info.link.is_some())
    })
    .await;
    assert_eq!(cellar.ping(&id, member, 1).await.unwrap().chosen, "direct");
    let table = server.status().await.unwrap().mesh.table.unwrap();
    assert!(table.names_kept >= 2, "{table:?}");
    for node in [&attic, &cellar, &server] {
        node.shutdown().await;
    }
}

/// A node that speaks these versions of the wire.
async fn speaking(folder: &Path, name: &str, versions: Versions) -> Runtime {
    let mut options = Options::new(folder.join(name));
    options.name = Some(name.to_owned());
    options.listen = Some(vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()]);
    (options.mdns, options.upnp, options.kad) = (false, false, false);
    options.versions = versions;
    Runtime::start(options, Arc::new(Echo)).await.unwrap()
}

/// An invitation of a node for others on this machine, once it can invite.
async fn code_of(node: &Runtime) -> String {
    let id = node.me().federation;
    until("it can invite", async || node.invite(&id, lan_invite()).await.is_ok()).await;
    node.invite(&id, lan_invite()).await.unwrap().code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_a_version_in_common_work_together_and_others_name_both_ranges() {
    provider();
    let place = tempfile::tempdir().unwrap();
    let (now, both) = (Versions { min: 1, max: 1 }, Versions { min: 1, max: 2 });
    for (attic, cellar) in [(now, both), (both, now)] {
        let place = place.path().join(format!("{}{}", attic.max, cellar.max));
        std::fs::create_dir(&place).unwrap();
        let attic = speaking(&place, "attic", attic).await;
        let cellar = speaking(&place, "cellar", cellar).await;
        cellar.join(&code_of(&attic).await, false).await.unwrap();
        let (id, member) = (attic.me().federation, attic.me().member);
        assert_eq!(cellar.ping(&id, member, 1).await.unwrap().chosen, "direct");
        assert_eq!(attic.ping(&id, cellar.me().member, 1).await.unwrap().chosen, "direct");
        for node in [&attic, &cellar] {
            node.shutdown().await;
        }
    }

    let attic = speaking(place.path(), "attic", now).await;
    let later = speaking(place.path(), "later", Versions { min: 2, max: 2 }).await;
    let error = later.join(&code_of(&attic).await, false).await.unwrap_err().to_string();
    assert!(error.contains("[1,1]") && error.contains("[2,2]"), "{error}");
    let error = attic.join(&code_of(&later).await, false).await.unwrap_err().to_string();
    assert!(error.contains("[1,1]") && error.contains("[2,2]"), "{error}");

    // A member whose program was replaced by one that is too new.
    let cellar = speaking(place.path(), "cellar", now).await;
    cellar.join(&code_of(&attic).await, false).await.unwrap();
    cellar.shutdown().await;
    drop(cellar);
    let folder = place.path().join("cellar");
    until("the folder is free", async || kos_store::Folder::open(&folder).is_ok()).await;
    let cellar = speaking(place.path(), "cellar", Versions { min: 2, max: 2 }).await;
    let (id, member) = (attic.me().federation, attic.me().member);
    until("both ranges are named", async || {
        let why = cellar.ping(&id, member, 1).await.unwrap().why;
        why.contains("[1,1]") && why.contains("[2,2]")
    })
    .await;
    for node in [&attic, &later, &cellar] {
        node.shutdown().await;
    }
}

/// A member whose folder is put back to a time before its removal knows nothing of it, and nobody tells it anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_refuses_a_removed_one_that_ignores_it() {
    provider();
    let place = tempfile::tempdir().unwrap();
    let (attic, porch) = (node(place.path(), "attic").await, node(place.path(), "porch").await);
    let cellar = node(place.path(), "cellar").await;
    let id = attic.me().federation;
    for newcomer in [&porch, &cellar] {
        newcomer.join(&code_of(&attic).await, false).await.unwrap();
    }
    for member in [attic.me().member, porch.me().member] {
        until("cellar reaches everybody", async || {
            cellar.ping(&id, member, 1).await.is_ok_and(|report| report.chosen == "direct")
        })
        .await;
    }
    let removed = cellar.me().member;
    cellar.shutdown().await;
    drop(cellar);
    let folder = place.path().join("cellar");
    until("the folder is free", async || kos_store::Folder::open(&folder).is_ok()).await;

    attic.remove_member(&id, removed, "moved out".into()).await.unwrap();
    until("porch knows of it", async || {
        !porch.members(&id).iter().any(|info| info.member == removed && info.standing == "active")
    })
    .await;
    let cellar = node(place.path(), "cellar").await;
    for member in [attic.me().member, porch.me().member] {
        let report = cellar.ping(&id, member, 1).await.unwrap();
        assert_eq!(report.chosen, "none", "{report:?}");
        let mine = cellar.members(&id).into_iter().find(|info| info.me).unwrap();
        assert_eq!(mine.standing, "active", "cellar knows of nothing");
    }
    for member in [&attic, &porch] {
        let metrics = member.metrics().await.unwrap().finish();
        let refused = metrics
            .lines()
            .find_map(|line| line.strip_prefix("kos_refusals_total{layer=\"link\",reason=\"removed\"} "));
        assert!(refused.unwrap().parse::<u64>().unwrap() > 0, "{metrics}");
    }
    for node in [&attic, &porch, &cellar] {
        node.shutdown().await;
    }
}
