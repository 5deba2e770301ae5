//! The host: what is started, how it is kept running, and who may call it.

use super::{
    service::{Service, ok},
    *,
};
use crate::config::{AgentCalls, Party};
use kos_agents::{
    http::Upgrade,
    supervisor::{Config, State},
};
use kos_protocol::message::ReplyHead;
use std::sync::atomic::AtomicUsize;
use tokio_util::sync::CancellationToken;

fn start(origin: &str, allow_host: Option<&str>) -> StartBridge {
    StartBridge {
        origin: origin.to_owned(),
        allow_host: allow_host.map(str::to_owned),
        policy: Policy { allow: Vec::new(), upgrade: Upgrade::WebSocket },
        description: String::new(),
    }
}

fn kept_bridge(kept: &Kept) -> Bridge {
    let registry = Registry::decode(kept.lock().unwrap().as_ref().unwrap()).unwrap();
    match registry.entry(&notes()).unwrap().manifest.kind.clone() {
        Kind::Bridge(bridge) => bridge,
        Kind::Sentinel => panic!("not a bridge"),
    }
}

#[tokio::test]
async fn a_bridge_leads_to_this_machine_unless_its_owner_names_a_host() {
    let kept = Kept::default();
    let pair = Pair::on(&kept);
    for other in ["http://10.0.0.1:80", "http://8.8.8.8", "http://[fd12::1]:80"] {
        let refused = pair.host.start_bridge(notes(), start(other, None)).await.unwrap_err();
        assert!(refused.to_string().contains("--allow-host"), "{other}: {refused}");
        let refused = pair.host.start_bridge(notes(), start(other, Some("10.0.0.2"))).await.unwrap_err();
        assert!(matches!(refused, HostError::Pin(_)), "{other}: {refused}");
    }
    assert_eq!(*kept.lock().unwrap(), None, "nothing was kept");
    pair.host.start_bridge(notes(), start("http://10.0.0.1:80", Some("10.0.0.1"))).await.unwrap();
    assert_eq!(kept_bridge(&kept).reach, Reach::AllowedHost);
    for own in ["http://127.0.0.1:8123", "http://[::1]:8123", "http://localhost:8123"] {
        pair.host.start_bridge(notes(), start(own, None)).await.unwrap();
        assert!(kept_bridge(&kept).addresses.iter().all(|address| address.ip().is_loopback()), "{own}");
    }
}

#[tokio::test]
async fn link_local_and_metadata_addresses_are_refused_whatever_is_allowed() {
    let pair = Pair::on(&Kept::default());
    for never in
        ["169.254.169.254", "169.254.1.1", "100.100.100.200", "[fe80::1]", "[fd00:ec2::254]", "0.0.0.0"]
    {
        let origin = format!("http://{never}:80");
        for allow in [None, Some(never)] {
            let refused = pair.host.start_bridge(notes(), start(&origin, allow)).await.unwrap_err();
            assert!(refused.to_string().contains("no bridge leads there"), "{never}: {refused}");
        }
    }
}

#[tokio::test]
async fn an_origin_is_resolved_once_and_pinned() {
    let service = Service::new(|_| ok("page")).await;
    let port = service.address.port();
    let kept = Kept::default();
    Pair::on(&kept)
        .host
        .start_bridge(notes(), start(&format!("http://localhost:{port}"), None))
        .await
        .unwrap();
    assert!(kept_bridge(&kept).addresses.contains(&service.address));
    // A name that no resolver knows: what it was pinned to is all that counts.
    let pinned = Bridge {
        origin: format!("http://nowhere.invalid:{port}").parse().unwrap(),
        reach: Reach::AllowedHost,
        ..bridge(service.address)
    };
    assert_eq!(Pair::with(pinned).get("/").await.whole(), 200);
    assert_eq!(service.only().field("host"), Some(format!("nowhere.invalid:{port}").as_str()));
}

#[tokio::test]
async fn only_bridges_are_started_by_hand_and_the_sentinel_always_runs() {
    let pair = Pair::on(&Kept::default());
    let planner = "kPlanner:x".parse().unwrap();
    let refused = pair.host.start_bridge(planner, start("http://127.0.0.1", None)).await.unwrap_err();
    assert!(matches!(refused, HostError::NotABridge(_)));
    assert!(pair.host.stop(&Manifest::sentinel_id()).is_err());
    assert!(matches!(pair.host.start(&notes()), Err(HostError::Registry(_))));
}

#[tokio::test]
async fn the_sentinel_answers_status() {
    let pair = Pair::on(&Kept::default());
    let sentinel = Manifest::sentinel_id();
    let outcome = pair.call(&sentinel, &HttpRequest::new("GET", "/status"), b"").await;
    assert_eq!((outcome.whole(), outcome.body.as_slice()), (200, &b"{\"name\":\"attic\"}\n"[..]));
    assert_eq!(outcome.field("content-type").as_deref(), Some("application/json"));
    for (method, path) in [("GET", "/"), ("POST", "/status"), ("GET", "/status?x")] {
        let outcome = pair.call(&sentinel, &HttpRequest::new(method, path), b"").await;
        assert_eq!(outcome.refused(), Status::NotFound, "{method} {path}");
    }
}

#[tokio::test]
async fn a_call_that_names_no_agent_of_this_node_is_told_why() {
    let pair = Pair::on(&Kept::default());
    assert_eq!(pair.get("/").await.refused(), Status::NotFound);
    pair.host.start_bridge(notes(), start("http://127.0.0.1:1", None)).await.unwrap();
    pair.host.stop(&notes()).unwrap();
    assert_eq!(pair.get("/").await.refused(), Status::Unavailable);
    let to = To { federation: FEDERATION, key: secret(CALLEE).public() };
    for (intent, target, status) in [
        ("agent.call", None, Status::Invalid),
        ("agent.call", Some("notes"), Status::Invalid),
        ("agent.other", Some("kBridge:notes"), Status::NotFound),
    ] {
        let target = target.map(str::to_owned);
        let head = Head { intent: intent.to_owned(), target, ..Head::default() };
        let (_, reply) = pair.caller.request(to, &head, b"").await.unwrap();
        assert_eq!(reply.unwrap_err().status, status, "{intent}");
    }
}

#[tokio::test]
async fn who_may_not_call_is_refused_and_told_of_from_the_moment_it_is_set() {
    let service = Service::new(|_| ok("page")).await;
    let pair = Pair::before(service.address);
    assert_eq!(pair.get("/").await.whole(), 200);
    let own = AgentCalls { allow: None, deny: vec![Party::Member(member(CALLER))] };
    pair.host.set_calls(Calls { agents: [(notes(), own)].into(), ..Calls::default() });
    assert_eq!(pair.get("/").await.refused(), Status::Denied);
    pair.host.set_calls(Calls { default: vec![Party::Stewards], ..Calls::default() });
    assert_eq!(pair.get("/").await.refused(), Status::Denied);
    let denial = |why: &str| Denial { caller: member(CALLER), agent: notes(), why: why.to_owned() };
    let told = pair.denials.lock().unwrap().clone();
    assert_eq!(told, [denial("listed among those denied"), denial("not among those allowed")]);
    assert_eq!(service.seen().len(), 1);
    pair.host.set_calls(Calls { default: vec![Party::Member(member(CALLER))], ..Calls::default() });
    assert_eq!(pair.get("/").await.whole(), 200);
}

/// What goes wrong with a [`Scripted`] agent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Its run panics at once, in so many runs.
    RunPanics(usize),
    /// Its run ends at once, in so many runs.
    RunEnds(usize),
    /// A call for `panic` panics, one for `hang` lasts until its caller gives up.
    Calls,
}

struct Scripted {
    fault: Fault,
    /// Runs so far.
    runs: Arc<AtomicUsize>,
}

impl Agent for Scripted {
    fn call(&self, mut call: Call) -> Pending<'_, ()> {
        Box::pin(async move {
            let request = HttpRequest::decode(&call.head.params).unwrap();
            assert_ne!(request.path, "/panic");
            if request.path == "/hang" {
                let _ = call.recv.read_all(0).await;
                return call.recv.gone().await;
            }
            let params = HttpReply::new(200).encode().unwrap();
            call.send.reply(&ReplyHead { params }, b"here").await.unwrap();
        })
    }

    fn run(&self) -> Pending<'_, String> {
        Box::pin(async move {
            let run = self.runs.fetch_add(1, Ordering::SeqCst);
            match self.fault {
                Fault::RunPanics(runs) if run < runs => panic!("as scripted"),
                Fault::RunEnds(runs) if run < runs => "worn out".to_owned(),
                _ => std::future::pending().await,
            }
        })
    }
}

/// Waits short enough for a test.
const SUPERVISION: Config =
    Config { backoff_first_ms: 5, backoff_most_ms: 40, healthy_ms: 60_000, start_most_ms: 30_000 };

/// A pair whose bridge is scripted, under supervision.
fn scripted(fault: Fault) -> (Pair, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let launcher = move |_: &Manifest| -> Result<Arc<dyn Agent>, String> {
        Ok(Arc::new(Scripted { fault, runs: counted.clone() }))
    };
    let mut registry = Registry::default();
    let address = "127.0.0.1:1".parse().unwrap();
    let kind = Kind::Bridge(bridge(address));
    let manifest = Manifest { agent: notes(), description: String::new(), federations: None, kind };
    registry.insert(manifest).unwrap();
    // The sentinel is scripted as well; it is stopped from failing by being refused.
    let launcher: Launcher = Box::new(move |manifest| match manifest.kind {
        Kind::Bridge(_) => launcher(manifest),
        Kind::Sentinel => Err("not in this test".to_owned()),
    });
    let denied = Arc::new(|_| {});
    let kept = registry.encode();
    let host = Host::with_launcher(Some(&kept), Calls::default(), launcher, SUPERVISION, |_| Ok(()), denied)
        .unwrap();
    tokio::spawn(host.clone().supervise(CancellationToken::new()));
    (Pair::of(host, Arc::default()), runs)
}

fn condition(pair: &Pair, agent: &AgentId) -> kos_agents::supervisor::Condition {
    let listed = pair.host.list();
    listed.into_iter().find(|view| view.agent == *agent).unwrap().condition.unwrap()
}

#[tokio::test]
async fn an_agent_whose_run_panics_or_ends_is_started_again_until_it_holds() {
    for (fault, why) in [(Fault::RunPanics(3), "it panicked"), (Fault::RunEnds(3), "worn out")] {
        let (pair, runs) = scripted(fault);
        until("the fourth run", || runs.load(Ordering::SeqCst) == 4).await;
        until("it runs", || condition(&pair, &notes()).state == State::Running).await;
        let condition = condition(&pair, &notes());
        assert_eq!((condition.restarts, condition.reason.as_str()), (3, why));
        assert_eq!(pair.get("/").await.body, b"here");
    }
}

#[tokio::test]
async fn a_call_that_panics_ends_as_internal_and_the_agent_is_started_again() {
    let (pair, runs) = scripted(Fault::Calls);
    until("the first run", || runs.load(Ordering::SeqCst) == 1).await;
    assert_eq!(pair.get("/panic").await.refused(), Status::Internal);
    until("the second run", || runs.load(Ordering::SeqCst) == 2).await;
    assert_eq!(pair.get("/").await.body, b"here");
    assert_eq!(condition(&pair, &notes()).reason, "a call made it panic");
}

#[tokio::test]
async fn what_can_never_run_is_failed_and_not_offered() {
    let (pair, _) = scripted(Fault::Calls);
    let sentinel = Manifest::sentinel_id();
    let condition = condition(&pair, &sentinel);
    assert_eq!((condition.state, condition.reason.as_str()), (State::Failed, "not in this test"));
    let offered: Vec<AgentId> = pair.host.offers().into_iter().map(|offer| offer.agent).collect();
    assert_eq!(offered, [notes()]);
}

#[tokio::test]
async fn stopping_an_agent_ends_its_calls() {
    let (pair, _) = scripted(Fault::Calls);
    let exchange = pair.open(&notes(), &HttpRequest::new("GET", "/hang"), Body::Whole(b"")).await;
    let hanging = tokio::spawn(Outcome::of(exchange));
    // The call after it on the same session is answered, so the first one is under way.
    assert_eq!(pair.get("/").await.whole(), 200);
    pair.host.stop(&notes()).unwrap();
    assert_eq!(hanging.await.unwrap().refused(), Status::Internal);
    assert_eq!(condition(&pair, &notes()).state, State::Stopped);
    assert_eq!(pair.get("/").await.refused(), Status::Unavailable);
}

#[tokio::test]
async fn which_agents_run_outlives_the_node() {
    let service = Service::new(|_| ok("page")).await;
    let (kept, origin) = (Kept::default(), format!("http://{}", service.address));
    Pair::on(&kept).host.start_bridge(notes(), start(&origin, None)).await.unwrap();

    let again = Pair::on(&kept);
    assert_eq!(again.get("/").await.whole(), 200);
    again.host.stop(&notes()).unwrap();

    let once_more = Pair::on(&kept);
    assert_eq!(once_more.get("/").await.refused(), Status::Unavailable);
    assert_eq!(once_more.host.offers().len(), 1, "only the sentinel is offered");
    once_more.host.start(&notes()).unwrap();
    assert_eq!(once_more.get("/").await.whole(), 200);
    assert_eq!(Pair::on(&kept).get("/").await.whole(), 200);
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_started() {
    let unkept = |_| Err("disk full".to_owned());
    let sentinel = Sentinel::new(|| serde_json::json!({}));
    let host = Host::new(None, Calls::default(), sentinel, unkept, |_| {}).unwrap();
    let refused = host.start_bridge(notes(), start("http://127.0.0.1:1", None)).await.unwrap_err();
    assert!(matches!(refused, HostError::Save(_)));
    assert_eq!(host.list().len(), 1);
}

#[tokio::test]
async fn one_member_fills_a_quarter_of_an_agent_at_most() {
    let (pair, _) = scripted(Fault::Calls);
    let mut held = Vec::new();
    for _ in 0..CALLS_PER_MEMBER_MAX {
        let exchange = pair.open(&notes(), &HttpRequest::new("GET", "/hang"), Body::Whole(b"")).await;
        held.push(exchange);
    }
    let mut outcome = pair.get("/").await;
    // The places are taken when the calls arrive, not when they are sent.
    for _ in 0..100 {
        if outcome.reply.is_err() {
            break;
        }
        outcome = pair.get("/").await;
    }
    assert_eq!(outcome.refused(), Status::RateLimited);
    assert!(outcome.reply.unwrap_err().retry_after_ms.is_some());
    drop(held.pop());
    let free = async {
        while pair.get("/").await.reply.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("a place is free again");
}
