use super::*;
use kos_protocol::{
    hello::{self, Versions},
    id::{FederationId, MemberId},
    key::SecretKey,
    message::{Head, ReplyHead, Status},
    preamble::Notice,
    session::{HandshakeError, Local},
};
use serde_bytes::ByteBuf;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

const FEDERATION: FederationId = FederationId::from_bytes([9; 32]);

fn secret(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn member(n: u8) -> MemberId {
    MemberId::from_bytes([n; 32])
}

struct TestGate {
    own: u8,
    versions: Versions,
    members: Mutex<Vec<u8>>,
    removed: Mutex<Vec<u8>>,
    counter: AtomicU64,
    greatest: Mutex<BTreeMap<PublicKey, u64>>,
    seeds: AtomicU64,
    /// Takes every intent for replay-safe, against the rules.
    careless: AtomicBool,
    /// Offers `idempotency`.
    idempotent: AtomicBool,
    streams_max: AtomicU64,
}

impl Gate for TestGate {
    fn local(&self, federation: &FederationId) -> Option<Local> {
        (*federation == FEDERATION).then(|| Local {
            secret: secret(self.own),
            member: member(self.own),
            federation: FEDERATION,
            versions: self.versions,
            offers: self
                .idempotent
                .load(Ordering::SeqCst)
                .then(|| (hello::IDEMPOTENCY.to_owned(), hello::IDEMPOTENCY_VERSION))
                .into_iter()
                .collect(),
            wants: BTreeMap::new(),
            streams_max: self.streams_max.load(Ordering::SeqCst) as u32,
            agent: "test/0".to_owned(),
        })
    }
    fn federation_by_tag(&self, tag: &[u8; 8]) -> Option<FederationId> {
        (*tag == FEDERATION.tag()).then_some(FEDERATION)
    }
    fn standing(&self, _: &FederationId, key: &PublicKey) -> Standing {
        let is = |n: &&u8| secret(**n).public() == *key;
        if self.removed.lock().unwrap().iter().any(|n| is(&n)) {
            return Standing::Removed;
        }
        self.members
            .lock()
            .unwrap()
            .iter()
            .find(is)
            .map_or(Standing::Stranger, |n| Standing::Member(member(*n)))
    }
    fn key_of(&self, _: &FederationId, wanted: &MemberId) -> Option<PublicKey> {
        let members = self.members.lock().unwrap();
        members.iter().find(|n| member(**n) == *wanted).map(|n| secret(*n).public())
    }
    fn next_counter(&self) -> Pending<'_, u64> {
        Box::pin(async { self.counter.fetch_add(1, Ordering::SeqCst) })
    }
    fn is_fresh(&self, _: FederationId, peer: PublicKey, counter: u64) -> Pending<'_, bool> {
        Box::pin(async move {
            let mut greatest = self.greatest.lock().unwrap();
            let fresh = greatest.get(&peer).is_none_or(|last| counter > *last);
            if fresh {
                greatest.insert(peer, counter);
            }
            fresh
        })
    }
    fn seed(&self) -> [u8; 32] {
        let n = self.seeds.fetch_add(1, Ordering::SeqCst);
        kos_protocol::id::sha256(&[&[self.own][..], &n.to_be_bytes()].concat())
    }
    fn is_replay_safe(&self, intent: &str) -> bool {
        intent == "echo" || self.careless.load(Ordering::SeqCst)
    }
}

/// Echoes the body; `fail` drops the halves, `who` tells the caller, `refuse` refuses without reading, `never` keeps
/// its caller waiting.
struct Echo;

impl Service for Echo {
    fn handle(&self, mut request: Request) -> Pending<'_, ()> {
        Box::pin(async move {
            match request.head.intent.as_str() {
                "echo" => {
                    request.send.head(&ReplyHead { params: ByteBuf::from(*b"params") }).unwrap();
                    loop {
                        match request.recv.next().await {
                            Ok(Some(part)) if request.send.data(&part).await.is_ok() => {}
                            Ok(None) => break,
                            _ => return,
                        }
                    }
                    let _ = request.send.end(&kos_protocol::message::End::ok()).await;
                }
                "who" => {
                    let text = format!("{:?}", request.caller.member);
                    let _ = request.send.reply(&ReplyHead::default(), text.as_bytes()).await;
                }
                "trace" => {
                    let text = request.head.trace.unwrap_or_default();
                    let _ = request.send.reply(&ReplyHead::default(), text.as_bytes()).await;
                }
                "refuse" => {
                    let _ = request.send.refuse(Status::Denied, "no").await;
                }
                "never" => std::future::pending().await,
                _ => {}
            }
        })
    }
}

/// Streams are pipes in memory; the far end is served by `peers`.
struct Pipes {
    own: u8,
    route: Route,
    peers: Mutex<BTreeMap<PublicKey, Links>>,
    opened: AtomicU64,
    tried: AtomicU64,
    broken: AtomicBool,
}

impl Wire for Pipes {
    fn open(&self, key: PublicKey) -> Pending<'_, Result<(BoxedStream, Route), Unreachable>> {
        Box::pin(async move {
            self.tried.fetch_add(1, Ordering::SeqCst);
            // Whoever else calls comes now.
            tokio::task::yield_now().await;
            if self.broken.load(Ordering::SeqCst) {
                return Err(Unreachable("broken".to_owned()));
            }
            let peer =
                self.peers.lock().unwrap().get(&key).cloned().ok_or(Unreachable("nobody".to_owned()))?;
            self.opened.fetch_add(1, Ordering::SeqCst);
            let (near, far) = tokio::io::duplex(256 * 1024);
            let (out, back) = match &self.route {
                Route::Carried { via } => (Route::Carried { via: *via }, Route::Carried { via: *via }),
                _ => (
                    Route::Direct { remote: None, key },
                    Route::Direct { remote: Some([127, 0, 0, 1].into()), key: secret(self.own).public() },
                ),
            };
            tokio::spawn(async move { peer.serve(Box::new(far), back).await });
            Ok((Box::new(near) as BoxedStream, out))
        })
    }
}

struct Node {
    gate: Arc<TestGate>,
    wire: Arc<Pipes>,
    links: Links,
}

fn node(own: u8, route: Route, versions: Versions) -> Node {
    let gate = Arc::new(TestGate {
        own,
        versions,
        members: Mutex::new(vec![1, 2]),
        removed: Mutex::default(),
        counter: AtomicU64::new(1),
        greatest: Mutex::default(),
        seeds: AtomicU64::new(0),
        careless: AtomicBool::new(false),
        idempotent: AtomicBool::new(false),
        streams_max: AtomicU64::new(kos_protocol::limits::STREAMS_PER_MEMBER as u64),
    });
    let wire = Arc::new(Pipes {
        own,
        route,
        peers: Mutex::default(),
        opened: AtomicU64::new(0),
        tried: AtomicU64::new(0),
        broken: AtomicBool::new(false),
    });
    let links = Links::new(gate.clone(), wire.clone(), Arc::new(Echo));
    Node { gate, wire, links }
}

fn direct() -> Route {
    Route::Direct { remote: None, key: secret(1).public() }
}

fn pair(route: Route) -> (Node, Node) {
    let (a, b) = (node(1, route.clone(), Versions::OURS), node(2, route, Versions::OURS));
    introduce(&a, &b);
    (a, b)
}

fn introduce(a: &Node, b: &Node) {
    a.wire.peers.lock().unwrap().insert(secret(b.gate.own).public(), b.links.clone());
    b.wire.peers.lock().unwrap().insert(secret(a.gate.own).public(), a.links.clone());
}

fn to(n: u8) -> To {
    To { federation: FEDERATION, key: secret(n).public() }
}

fn head(intent: &str) -> Head {
    Head { intent: intent.to_owned(), ..Head::default() }
}

async fn echo(links: &Links, n: u8, body: &[u8]) -> Vec<u8> {
    let (mut exchange, reply) = links.request(to(n), &head("echo"), body).await.unwrap();
    assert_eq!(reply.unwrap().params.as_ref(), b"params");
    let body = exchange.recv.read_all(1 << 24).await.unwrap();
    assert_eq!(exchange.recv.ended().unwrap().status, Status::Ok);
    body
}

fn refusals(links: &Links) -> Vec<(&'static str, u64)> {
    links.stats().refusals().filter(|(_, count)| *count > 0).collect()
}

#[tokio::test]
async fn one_handshake_then_one_stream_serves_many_exchanges() {
    let (a, b) = pair(direct());
    for body in [&b""[..], b"hello", &[7; 15_000], &[8; 300_000]] {
        assert_eq!(echo(&a.links, 2, body).await, body);
    }
    assert_eq!(a.wire.opened.load(Ordering::SeqCst), 1, "finished streams are used again");
    assert_eq!(b.links.stats().handshakes.load(Ordering::SeqCst), 1);
    assert_eq!(echo(&b.links, 1, b"back").await, b"back");
    assert_eq!(b.links.stats().handshakes.load(Ordering::SeqCst), 1, "the session serves both directions");
}

#[tokio::test]
async fn both_directions_stream_at_once() {
    let (a, _b) = pair(direct());
    let mut exchange = a.links.open(to(2), &head("echo"), Body::Streaming).await.unwrap();
    for n in 0..100_u8 {
        exchange.send.data(&[n; 1000]).await.unwrap();
        if n == 0 {
            assert!(exchange.recv.head().await.unwrap().is_ok());
        }
        assert_eq!(exchange.recv.next().await.unwrap().unwrap(), vec![n; 1000]);
    }
    exchange.send.end(&kos_protocol::message::End::ok()).await.unwrap();
    assert_eq!(exchange.recv.next().await.unwrap(), None);
}

#[tokio::test]
async fn many_exchanges_at_once_share_one_handshake() {
    let (a, b) = pair(direct());
    let calls = (0..64_u8).map(|n| {
        let links = a.links.clone();
        async move { assert_eq!(echo(&links, 2, &[n; 256]).await, vec![n; 256]) }
    });
    futures::future::join_all(calls).await;
    assert_eq!(b.links.stats().handshakes.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_peer_that_lost_the_session_gets_a_new_one() {
    let (a, b) = pair(direct());
    echo(&a.links, 2, b"before").await;
    let restarted = node(2, direct(), Versions::OURS);
    introduce(&a, &restarted);
    a.links.drop_idle(&secret(2).public());
    drop(b);
    assert_eq!(echo(&a.links, 2, b"after").await, b"after");
    assert_eq!(refusals(&restarted.links), [("unknown_session", 1)]);
}

#[tokio::test]
async fn a_stream_whose_route_was_chosen_before_a_better_connection_came_is_not_used_again() {
    let (a, _b) = pair(direct());
    echo(&a.links, 2, b"a session").await;
    let better = || a.links.drop_idle(&secret(2).public());
    better();
    let opened = || a.wire.opened.load(Ordering::SeqCst);
    let before = opened();
    // While the stream is being opened, by the route that was best until then.
    tokio::join!(echo(&a.links, 2, b"over the old one"), async { better() });
    assert_eq!(opened(), before + 1);
    echo(&a.links, 2, b"over the new one").await;
    assert_eq!(opened(), before + 2, "not on the stream of before");
    echo(&a.links, 2, b"and again").await;
    assert_eq!(opened(), before + 2, "which is used again");
}

#[tokio::test]
async fn a_removed_member_can_do_nothing_more() {
    let (a, b) = pair(direct());
    let mut exchange = a.links.open(to(2), &head("echo"), Body::Streaming).await.unwrap();
    exchange.send.data(b"x").await.unwrap();
    assert!(exchange.recv.head().await.unwrap().is_ok());
    exchange.recv.next().await.unwrap();
    b.gate.removed.lock().unwrap().push(1);
    b.links.close(&secret(1).public());
    assert!(exchange.recv.next().await.is_err(), "a call under way is cut");
    assert!(a.links.request(to(2), &head("echo"), b"").await.is_err());
    assert!(refusals(&b.links).contains(&("removed", 1)));
}

#[tokio::test]
async fn a_stranger_is_told_apart() {
    let (a, b) = pair(direct());
    b.gate.members.lock().unwrap().retain(|n| *n != 1);
    let (mut exchange, _) = a.links.request(to(2), &head("who"), b"").await.unwrap();
    assert_eq!(exchange.recv.read_all(100).await.unwrap(), b"None");
    let too_much = vec![0; kos_protocol::limits::STRANGER_BYTES_MAX + 1];
    let mut exchange = a.links.open_beside(&exchange, &head("echo"), Body::Whole(&too_much)).await.unwrap();
    assert!(exchange.recv.head().await.unwrap().is_ok());
    exchange.recv.read_all(1 << 20).await.unwrap();
    assert_eq!(exchange.recv.ended().unwrap().status, Status::Internal);
}

#[tokio::test]
async fn a_member_cannot_speak_as_another() {
    let (mut a, b) = pair(direct());
    // The link proves key 1, the session shows key 3.
    let gate = node(3, direct(), Versions::OURS).gate;
    b.gate.members.lock().unwrap().push(3);
    a.links = Links::new(gate, a.wire.clone(), Arc::new(Echo));
    assert!(a.links.request(to(2), &head("who"), b"").await.is_err());
    assert_eq!(refusals(&b.links), [("link_key", 1)]);
}

#[tokio::test]
async fn over_carry_only_replay_safe_requests_count_early_whatever_the_caller_sends() {
    let (a, b) = pair(Route::Carried { via: secret(3).public() });
    for (careless, refused) in [(false, 0), (true, 1)] {
        a.gate.careless.store(careless, Ordering::SeqCst);
        for intent in ["echo", "who"] {
            a.links.close(&secret(2).public());
            let (mut exchange, reply) = a.links.request(to(2), &head(intent), b"x").await.unwrap();
            reply.unwrap();
            exchange.recv.read_all(100).await.unwrap();
        }
        let counted = refusals(&b.links).iter().find(|(label, _)| *label == "early_unsafe").map(|(_, n)| *n);
        assert_eq!(counted.unwrap_or(0), refused);
    }
}

#[tokio::test]
async fn a_worn_session_drains_and_new_exchanges_begin_in_a_fresh_one() {
    let (a, b) = pair(direct());
    let mut old = a.links.open(to(2), &head("echo"), Body::Streaming).await.unwrap();
    old.send.data(b"first").await.unwrap();
    old.send.flush().await.unwrap();
    old.recv.head().await.unwrap().unwrap();
    assert_eq!(old.recv.next().await.unwrap().as_deref(), Some(&b"first"[..]));
    a.links.retire_all(&secret(2).public());
    assert_eq!(echo(&a.links, 2, b"new").await, b"new");
    assert_eq!(b.links.stats().handshakes.load(Ordering::SeqCst), 2);
    old.send.data(b"old").await.unwrap();
    old.send.flush().await.unwrap();
    assert_eq!(old.recv.next().await.unwrap().as_deref(), Some(&b"old"[..]));
}

#[tokio::test]
async fn of_two_sessions_begun_at_once_both_ends_choose_the_same_and_serve_both() {
    let (a, b) = pair(direct());
    let (from_a, from_b) = tokio::join!(echo(&a.links, 2, b"from a"), echo(&b.links, 1, b"from b"));
    assert_eq!((from_a.as_slice(), from_b.as_slice()), (&b"from a"[..], &b"from b"[..]));
    let roles = [&a, &b]
        .map(|node| node.links.sessions().into_iter().map(|session| session.role).collect::<Vec<_>>());
    assert_eq!([roles[0].len(), roles[1].len()], [1, 1]);
    assert_ne!(roles[0], roles[1], "the two ends chose different sessions");
    assert_eq!(echo(&b.links, 1, b"again").await, b"again");
    assert_eq!(a.links.stats().handshakes.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn replayed_early_data_is_dropped_and_asked_for_again() {
    let (a, b) = pair(direct());
    b.gate.greatest.lock().unwrap().insert(secret(1).public(), 1_000);
    assert_eq!(echo(&a.links, 2, b"hello").await, b"hello");
    assert_eq!(refusals(&b.links), [("early_replay", 1)]);
}

#[tokio::test]
async fn versions_meet_or_both_are_named() {
    let shake = async |ours: Versions, theirs: Versions| {
        let (a, b) = (node(1, direct(), ours), node(2, direct(), theirs));
        introduce(&a, &b);
        a.links.request(to(2), &head("echo"), b"x").await.map(|_| ())
    };
    let range = |min, max| Versions { min, max };
    shake(range(1, 2), range(1, 1)).await.unwrap();
    shake(range(1, 1), range(1, 2)).await.unwrap();
    let Err(CallError::Handshake(HandshakeError::Versions { ours, theirs })) =
        shake(range(2, 2), range(1, 1)).await
    else {
        panic!("not refused")
    };
    assert_eq!((ours, theirs), (range(2, 2), range(1, 1)));
}

#[tokio::test]
async fn refusals_and_lost_handlers_have_a_status() {
    let (a, _b) = pair(direct());
    let (_, reply) = a.links.request(to(2), &head("refuse"), &[0; 100_000]).await.unwrap();
    assert_eq!(reply.unwrap_err().status, Status::Denied);
    let (_, reply) = a.links.request(to(2), &head("lost"), b"").await.unwrap();
    assert_eq!(reply.unwrap_err().status, Status::Internal);
    let long = Head { intent: "x".repeat(65), ..Head::default() };
    assert!(matches!(a.links.request(to(2), &long, b"").await, Err(CallError::TooLarge("intent"))));
}

#[tokio::test]
async fn handshakes_of_strangers_are_limited_by_address() {
    let (a, b) = pair(direct());
    b.gate.members.lock().unwrap().clear();
    for _ in 0..kos_protocol::limits::HANDSHAKES_PER_MINUTE {
        a.links.close(&secret(2).public());
        assert!(a.links.request(to(2), &head("who"), b"").await.is_ok());
    }
    a.links.close(&secret(2).public());
    let refused = a.links.request(to(2), &head("who"), b"").await.map(|_| ()).unwrap_err();
    assert!(
        matches!(refused, CallError::Handshake(HandshakeError::Refused(Notice::Busy { .. }))),
        "{refused:?}"
    );
    assert_eq!(refusals(&b.links), [("handshake_rate", 1)]);
}

#[tokio::test]
async fn a_members_handshakes_are_limited_and_its_sessions_few() {
    let (a, b) = pair(direct());
    let shake = async || {
        let mut exchange = a.links.open_with_xx(to(2), &head("echo"), Body::Whole(b"")).await?;
        exchange.recv.head().await.map(drop).map_err(CallError::from)
    };
    let most = kos_protocol::limits::HANDSHAKES_PER_MEMBER;
    for _ in 0..most {
        shake().await.unwrap();
    }
    let surplus = u64::from(most) - kos_protocol::limits::SESSIONS_PER_PEER_MAX as u64;
    assert_eq!(refusals(&b.links), [("sessions", surplus)]);
    let refused = shake().await.unwrap_err();
    assert!(
        matches!(refused, CallError::Handshake(HandshakeError::Refused(Notice::Busy { .. }))),
        "{refused:?}"
    );
    assert_eq!(refusals(&b.links), [("handshake_rate", 1), ("sessions", surplus)]);
}

#[tokio::test]
async fn a_members_streams_count_over_all_its_sessions() {
    let (a, b) = pair(direct());
    // The caller believes in more, so that the callee has to refuse.
    b.gate.streams_max.store(1_000, Ordering::SeqCst);
    let begin = async || a.links.open_with_xx(to(2), &head("echo"), Body::Streaming).await.unwrap();
    let sessions = [begin().await, begin().await];
    let mut held = Vec::new();
    for n in 0..kos_protocol::limits::STREAMS_PER_MEMBER - 2 {
        let mut exchange =
            a.links.open_beside(&sessions[n % 2], &head("echo"), Body::Streaming).await.unwrap();
        exchange.send.data(b"x").await.unwrap();
        exchange.recv.head().await.unwrap().unwrap();
        held.push(exchange);
    }
    let mut surplus = a.links.open_beside(&sessions[0], &head("echo"), Body::Streaming).await.unwrap();
    assert!(surplus.recv.head().await.is_err());
    assert_eq!(refusals(&b.links), [("stream_limit", 1)]);
    drop(held.pop());
    drop(surplus);
    until_echoes(&a.links, &sessions[1]).await;
}

async fn echoing(links: &Links) -> Exchange {
    let mut exchange = links.open(to(2), &head("echo"), Body::Streaming).await.unwrap();
    exchange.send.data(b"x").await.unwrap();
    exchange.recv.head().await.unwrap().unwrap();
    exchange
}

#[tokio::test]
async fn long_exchanges_leave_a_caller_streams_for_short_ones() {
    let (a, b) = pair(direct());
    let most = kos_protocol::limits::STREAMS_PER_MEMBER - kos_protocol::limits::STREAMS_RESERVED;
    let mut held = Vec::new();
    for _ in 0..most {
        held.push(echoing(&a.links).await);
    }
    let head = head("echo");
    let mut surplus = Box::pin(a.links.open(to(2), &head, Body::Streaming));
    assert!(futures::poll!(&mut surplus).is_pending(), "one more waits");
    for _ in 0..50 {
        assert_eq!(echo(&a.links, 2, b"short").await, b"short");
    }
    held.pop();
    surplus.await.unwrap();
    assert_eq!(refusals(&b.links), []);
}

#[tokio::test]
async fn a_peer_gets_no_more_streams_than_it_takes() {
    let (a, b) = pair(direct());
    b.gate.streams_max.store(3, Ordering::SeqCst);
    let _long = [echoing(&a.links).await, echoing(&a.links).await];
    let head = head("echo");
    let mut surplus = Box::pin(a.links.open(to(2), &head, Body::Streaming));
    assert!(futures::poll!(&mut surplus).is_pending());
    let calls = (0..32).map(|_| echo(&a.links, 2, b"short"));
    futures::future::join_all(calls).await;
    assert_eq!(a.wire.opened.load(Ordering::SeqCst), 3);
    // A new session to the same peer takes over what is idle in the old one.
    a.links.retire_all(&secret(2).public());
    assert_eq!(echo(&a.links, 2, b"short").await, b"short");
    assert_eq!(echo(&a.links, 2, b"short").await, b"short");
}

#[tokio::test]
async fn of_two_hundred_long_exchanges_some_are_ended_so_that_a_call_gets_through() {
    let (a, b) = pair(direct());
    b.gate.streams_max.store(1_000, Ordering::SeqCst);
    // An exchange that is short has ended by then, however busy the machine is.
    let short = std::time::Duration::from_secs(2);
    let strict = Links::with_short(b.gate.clone(), b.wire.clone(), Arc::new(Echo), short);
    a.wire.peers.lock().unwrap().insert(secret(2).public(), strict.clone());
    echo(&a.links, 2, b"warm").await;
    let mut held = Vec::new();
    for _ in 0..kos_protocol::limits::STREAMS_PER_MEMBER {
        held.push(a.links.open(to(2), &head("never"), Body::Whole(b"")).await.unwrap());
    }
    // As many as were one too many each; the others go on.
    let ended = held.iter_mut().map(|exchange| Box::pin(exchange.recv.head()));
    let mut ended: futures::stream::FuturesUnordered<_> = ended.collect();
    for _ in 0..kos_protocol::limits::STREAMS_RESERVED {
        let end = futures::StreamExt::next(&mut ended).await.unwrap().unwrap().unwrap_err();
        assert_eq!((end.status, end.text.as_str()), (Status::RateLimited, "too many long exchanges at once"));
    }
    assert_eq!(echo(&a.links, 2, b"short").await, b"short");
    assert_eq!(refusals(&strict), [("stream_limit", kos_protocol::limits::STREAMS_RESERVED as u64)]);
    assert!(futures::poll!(futures::StreamExt::next(&mut ended)).is_pending());
}

/// A place is free as soon as the other end has seen that its stream is gone.
async fn until_echoes(links: &Links, beside: &Exchange) {
    loop {
        let mut exchange = links.open_beside(beside, &head("echo"), Body::Whole(b"x")).await.unwrap();
        if exchange.recv.head().await.is_ok() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn replayed_handshakes_take_no_sessions_place() {
    let (a, b) = pair(direct());
    let local = a.gate.local(&FEDERATION).unwrap();
    let start = kos_protocol::session::Initiator::start(&local, Some(secret(2).public()), 5, b"", [7; 32]);
    let (_, first) = start.unwrap();
    let mut held = Vec::new();
    let replays = 3 * kos_protocol::limits::SESSIONS_UNPROVEN_MAX;
    for _ in 0..=replays {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let links = b.links.clone();
        let route = Route::Carried { via: secret(3).public() };
        tokio::spawn(async move { links.serve(Box::new(far), route).await });
        tokio::io::AsyncWriteExt::write_all(&mut near, &first).await.unwrap();
        // The answer shows that the session is there.
        tokio::io::AsyncReadExt::read_u16(&mut near).await.unwrap();
        held.push(near);
    }
    // The first was fresh, and stays; of its copies only a few do.
    let ended = (replays - kos_protocol::limits::SESSIONS_UNPROVEN_MAX) as u64;
    assert_eq!(refusals(&b.links), [("sessions", ended)]);
    assert_eq!(echo(&a.links, 2, b"still here").await, b"still here");
}

#[tokio::test]
async fn handshakes_through_a_carrier_are_limited_at_once() {
    let (_a, b) = pair(direct());
    let preamble = kos_protocol::preamble::Preamble::Handshake {
        pattern: kos_protocol::preamble::Pattern::Ik,
        versions: Versions::OURS,
        federation_tag: FEDERATION.tag(),
    };
    let mut held = Vec::new();
    let begin = async || {
        let (mut near, far) = tokio::io::duplex(1024);
        let links = b.links.clone();
        let route = Route::Carried { via: secret(3).public() };
        tokio::spawn(async move { links.serve(Box::new(far), route).await });
        tokio::io::AsyncWriteExt::write_all(&mut near, &preamble.to_bytes()).await.unwrap();
        near
    };
    for _ in 0..kos_protocol::limits::HANDSHAKES_CARRIED_HALF_OPEN {
        held.push(begin().await);
    }
    let mut surplus = begin().await;
    assert_eq!(tokio::io::AsyncReadExt::read_u16(&mut surplus).await.unwrap(), 0, "a notice: busy");
    assert_eq!(refusals(&b.links), [("handshake_rate", 1)]);
}

#[tokio::test]
async fn preambles_that_a_carrier_makes_up_take_no_place_of_the_member_they_name() {
    let (a, b) = pair(direct());
    assert_eq!(echo(&a.links, 2, b"hello").await, b"hello");
    let session = a.links.current(&to(2)).unwrap().id;
    let mut held = Vec::new();
    let begun = 2 * crate::limits::CARRIED_UNPROVEN_MAX;
    for number in 0..begun {
        let (mut near, far) = tokio::io::duplex(1024);
        let links = b.links.clone();
        let route = Route::Carried { via: secret(3).public() };
        tokio::spawn(async move { links.serve(Box::new(far), route).await });
        let preamble = kos_protocol::preamble::Preamble::Exchange { session, stream: 1_000 + 2 * number };
        tokio::io::AsyncWriteExt::write_all(&mut near, &preamble.to_bytes()).await.unwrap();
        held.push(near);
    }
    let surplus = u64::from(begun - crate::limits::CARRIED_UNPROVEN_MAX);
    while refusals(&b.links) != [("stream_limit", surplus)] {
        tokio::task::yield_now().await;
    }
    let inward = b.links.live(&session).unwrap().streams.inward.clone();
    let free = std::iter::from_fn(|| inward.accept(super::streams::Kind::Stream)).collect::<Vec<_>>().len();
    assert_eq!(free, kos_protocol::limits::STREAMS_PER_MEMBER - 1, "all but the stream that a has kept");
    assert_eq!(echo(&a.links, 2, b"still here").await, b"still here");
}

#[tokio::test]
async fn who_waited_for_a_try_that_reached_nobody_has_its_outcome() {
    let (a, _b) = pair(direct());
    a.wire.broken.store(true, Ordering::SeqCst);
    let head = head("echo");
    let calls = (0..8).map(|_| a.links.open(to(2), &head, Body::Whole(b"")));
    let outcomes = futures::future::join_all(calls).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(CallError::Unreachable(_)))));
    assert_eq!(a.wire.tried.load(Ordering::SeqCst), 1, "one try for all of them");
    a.wire.broken.store(false, Ordering::SeqCst);
    assert_eq!(echo(&a.links, 2, b"back").await, b"back", "a later call tries anew");
}

#[tokio::test]
async fn a_cut_stream_fails_its_exchange_and_nothing_else() {
    let (a, _b) = pair(direct());
    let first = a.links.open(to(2), &head("echo"), Body::Streaming).await.unwrap();
    drop(first);
    assert_eq!(echo(&a.links, 2, b"fine").await, b"fine");
}

struct CarryPipes(Links);

impl CarryWire for CarryPipes {
    fn open_carry(&self, _: PublicKey) -> Pending<'_, Result<BoxedStream, Unreachable>> {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let links = self.0.clone();
            tokio::spawn(async move {
                let mut far: BoxedStream = Box::new(far);
                let header = read_header(&mut far).await.unwrap();
                assert!(header.route.is_empty());
                accept_carried(&mut far).await.unwrap();
                links.serve(far, Route::Carried { via: secret(3).public() }).await;
            });
            Ok(Box::new(near) as BoxedStream)
        })
    }
}

/// Reaches node 2 through a carrier, node 3.
struct ThroughCarrier {
    carrier: Arc<Carrier>,
    far: Links,
    from: u8,
}

impl Wire for ThroughCarrier {
    fn open(&self, _: PublicKey) -> Pending<'_, Result<(BoxedStream, Route), Unreachable>> {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let (carrier, next, key) =
                (self.carrier.clone(), CarryPipes(self.far.clone()), secret(self.from).public());
            tokio::spawn(async move {
                let mut far: BoxedStream = Box::new(far);
                let header = read_header(&mut far).await.unwrap();
                let _ = carrier.carry(far, header, &key, &next).await;
            });
            let header = CarryHeader {
                federation_tag: FEDERATION.tag(),
                from: member(self.from),
                route: vec![member(2)],
            };
            let stream =
                carried(Box::new(near), &header).await.map_err(|error| Unreachable(error.to_string()))?;
            Ok((stream, Route::Carried { via: secret(3).public() }))
        })
    }
}

#[tokio::test]
async fn a_carrier_pipes_for_members_and_refuses_strangers() {
    let callee = node(2, direct(), Versions::OURS);
    let relay = node(3, direct(), Versions::OURS);
    let rate = std::num::NonZeroU64::new(1 << 30).unwrap();
    let carrier = Arc::new(Carrier::new(relay.gate.clone(), relay.links.stats().clone(), rate, 16));
    let through = |from: u8| ThroughCarrier { carrier: carrier.clone(), far: callee.links.clone(), from };
    let caller = Links::new(node(1, direct(), Versions::OURS).gate, Arc::new(through(1)), Arc::new(Echo));
    assert_eq!(echo(&caller, 2, &[5; 200_000]).await, vec![5; 200_000]);
    assert!(relay.links.stats().bytes_carried.load(Ordering::SeqCst) > 400_000);
    let stranger = Links::new(node(7, direct(), Versions::OURS).gate, Arc::new(through(7)), Arc::new(Echo));
    let refused = stranger.request(to(2), &head("echo"), b"").await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("not carried: denied"), "{refused}");
    assert_eq!(refusals(&relay.links), [("carry", 1)]);
}

/// Begins an answer, then says when nobody waits for the rest any more.
struct Waits(Arc<tokio::sync::Notify>);

impl Service for Waits {
    fn handle(&self, mut request: Request) -> Pending<'_, ()> {
        Box::pin(async move {
            while let Ok(Some(_)) = request.recv.next().await {}
            request.send.head(&ReplyHead::default()).unwrap();
            request.send.flush().await.unwrap();
            request.recv.gone().await;
            self.0.notify_one();
        })
    }
}

#[tokio::test]
async fn a_handler_learns_that_its_caller_gave_up() {
    let (a, b) = pair(direct());
    let gone = Arc::new(tokio::sync::Notify::new());
    let waiting = Links::new(b.gate.clone(), b.wire.clone(), Arc::new(Waits(gone.clone())));
    a.wire.peers.lock().unwrap().insert(secret(2).public(), waiting);
    let (exchange, reply) = a.links.request(to(2), &head("wait"), b"x").await.unwrap();
    assert!(reply.is_ok());
    assert!(futures::FutureExt::now_or_never(gone.notified()).is_none(), "still listening");
    drop(exchange);
    gone.notified().await;
}

#[tokio::test]
async fn a_request_that_outlives_its_deadline_is_answered_timeout() {
    let (a, b) = pair(direct());
    let within = |deadline_ms, intent| Head { deadline_ms: Some(deadline_ms), ..head(intent) };
    let (_, reply) = a.links.request(to(2), &within(20, "never"), b"").await.unwrap();
    assert_eq!(reply.unwrap_err().status, Status::Timeout);
    assert_eq!(echo(&a.links, 2, b"again").await, b"again", "the stream is as good as before");

    let waiting = Links::new(b.gate.clone(), b.wire.clone(), Arc::new(Waits(Arc::default())));
    a.wire.peers.lock().unwrap().insert(secret(2).public(), waiting);
    a.links.close(&secret(2).public());
    // Long enough for the answer to begin, however busy the machine is.
    let (mut exchange, reply) = a.links.request(to(2), &within(2_000, "wait"), b"").await.unwrap();
    assert!(reply.is_ok(), "the answer has begun");
    assert_eq!(exchange.recv.next().await.unwrap(), None);
    assert_eq!(exchange.recv.ended().map(|end| end.status), Some(Status::Timeout));
}

#[tokio::test]
async fn an_answer_nobody_waited_for_is_not_given_to_the_next_caller() {
    let (a, _b) = pair(direct());
    echo(&a.links, 2, b"warm").await;
    for _ in 0..20 {
        let given_up = a.links.open(to(2), &head("echo"), Body::Whole(b"mine")).await.unwrap();
        drop(given_up);
        assert_eq!(echo(&a.links, 2, b"yours").await, b"yours");
    }
}

#[tokio::test]
async fn closing_a_peer_ends_the_exchanges_we_began() {
    let (a, _b) = pair(direct());
    let mut exchange = a.links.open(to(2), &head("echo"), Body::Streaming).await.unwrap();
    exchange.send.data(b"x").await.unwrap();
    assert!(exchange.recv.head().await.unwrap().is_ok());
    exchange.recv.next().await.unwrap();
    a.links.close(&secret(2).public());
    assert!(exchange.recv.next().await.is_err());
    assert!(exchange.send.data(b"y").await.is_err());
}

/// Log lines, one JSON object each.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn every_exchange_carries_a_trace_that_both_ends_log() {
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().json().with_max_level(tracing::Level::DEBUG);
    // For all threads: where other tests log without a subscriber meanwhile, one of this thread alone may be forgotten.
    tracing::subscriber::set_global_default(log.with_writer(move || writer.clone()).finish()).unwrap();
    let (a, _b) = pair(direct());
    let asked = async |head: &Head| {
        let answer = a.links.ask(to(2), head, b"", 1000).await.unwrap().unwrap();
        String::from_utf8(answer.body).unwrap()
    };
    let made: kos_protocol::trace::TraceContext = asked(&head("trace")).await.parse().unwrap();
    let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned();
    assert_eq!(asked(&Head { trace: Some(given.clone()), ..head("trace") }).await, given);
    let nonsense = Head { trace: Some("nonsense\n".to_owned()), ..head("trace") };
    assert!(asked(&nonsense).await.parse::<kos_protocol::trace::TraceContext>().is_ok());
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for id in [made.id().to_string(), given[3..35].to_owned()] {
        for message in ["asked", "asked by a peer"] {
            let (message, id) = (format!("\"message\":\"{message}\""), format!("\"trace\":\"{id}\""));
            assert!(text.lines().any(|line| line.contains(&message) && line.contains(&id)), "{text}");
        }
    }
}

/// Cuts every stream of its caller at one request, and answers the others with their number.
struct CutsOnce {
    at: u64,
    runs: AtomicU64,
    own: std::sync::OnceLock<Links>,
}

impl Service for CutsOnce {
    fn handle(&self, request: Request) -> Pending<'_, ()> {
        Box::pin(async move {
            let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
            if run == self.at {
                self.own.get().unwrap().close(&request.caller.key);
                return std::future::pending().await;
            }
            let _ = request.send.reply(&ReplyHead::default(), run.to_string().as_bytes()).await;
        })
    }
}

#[tokio::test]
async fn a_request_with_a_key_is_asked_again_only_where_it_cannot_run_twice() {
    let keyed = Head { idempotency_key: Some(ByteBuf::from(*b"key")), ..head("who") };
    // Cold, the request travels in the handshake and the offer is not known yet.
    for (at, offers, head, runs) in [
        (1, true, &keyed, 2),
        (2, true, &keyed, 3),
        (1, false, &keyed, 1),
        (2, false, &keyed, 2),
        (2, true, &self::head("who"), 2),
    ] {
        let (a, b) = pair(direct());
        b.gate.idempotent.store(offers, Ordering::SeqCst);
        let service = Arc::new(CutsOnce { at, runs: AtomicU64::new(0), own: std::sync::OnceLock::new() });
        let cutting = Links::new(b.gate.clone(), b.wire.clone(), service.clone());
        assert!(service.own.set(cutting.clone()).is_ok());
        a.wire.peers.lock().unwrap().insert(secret(2).public(), cutting);
        for _ in 1..at {
            a.links.ask(to(2), &self::head("who"), b"", 10).await.unwrap().unwrap();
        }
        let asked = a.links.ask(to(2), head, b"x", 10).await;
        assert_eq!(service.runs.load(Ordering::SeqCst), runs, "at {at}, offers {offers}");
        match asked {
            Ok(answer) => assert_eq!(answer.unwrap().body, runs.to_string().as_bytes()),
            Err(CallError::OutcomeUnknown(_)) => assert!(!offers),
            Err(error) => assert!(head.idempotency_key.is_none(), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_lost_session_is_no_reason_to_ask_for_an_offer() {
    let keyed = Head { idempotency_key: Some(ByteBuf::from(*b"key")), ..head("who") };
    let (a, b) = pair(direct());
    echo(&a.links, 2, b"before").await;
    let restarted = node(2, direct(), Versions::OURS);
    introduce(&a, &restarted);
    a.links.drop_idle(&secret(2).public());
    drop(b);
    let (_, reply) = a.links.request(to(2), &keyed, b"").await.unwrap();
    assert!(reply.is_ok(), "the peer said that it executed nothing");
}

#[tokio::test]
async fn a_recorded_answer_outlives_its_stream_as_long_as_it_is_kept_whole() {
    struct Records(tokio::sync::mpsc::UnboundedSender<Sent>, Arc<tokio::sync::Notify>);
    impl Service for Records {
        fn handle(&self, mut request: Request) -> Pending<'_, ()> {
            let told = self.0.clone();
            Box::pin(async move {
                request.send.record(1000, Box::new(move |sent| drop(told.send(sent))));
                request.recv.outlive(std::time::Duration::from_secs(60));
                request.recv.read_all(10).await.unwrap();
                self.1.notified().await;
                request.send.head(&ReplyHead::default()).unwrap();
                for _ in 0..request.head.params.len() {
                    // The first parts may still go into the pipe.
                    if request.send.data(&[7; 100]).await.is_err() {
                        return;
                    }
                    request.send.flush().await.unwrap();
                }
                let _ = request.send.end(&kos_protocol::message::End::ok()).await;
            })
        }
    }
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    let go_on = Arc::new(tokio::sync::Notify::new());
    let (a, b) = pair(direct());
    let recording = Links::new(b.gate.clone(), b.wire.clone(), Arc::new(Records(told, go_on.clone())));
    a.wire.peers.lock().unwrap().insert(secret(2).public(), recording);
    for (parts, body) in [(10, Some(vec![7; 1000])), (200, None)] {
        let head = Head { params: ByteBuf::from(vec![0; parts]), ..head("any") };
        drop(a.links.open(to(2), &head, Body::Whole(b"x")).await.unwrap());
        go_on.notify_one();
        let sent = tells.recv().await.unwrap();
        assert_eq!(sent.body, body);
        assert_eq!(sent.end.is_some(), body.is_some(), "what nobody reads and nobody keeps is not sent on");
    }
}
