//! Agents as a member calls them: through real sessions over pipes in memory, in front of real services on loopback.

mod bridge;
mod host;
mod service;
mod terms;

use super::*;
use crate::config::Calls;
use kos_agents::{
    http::{HttpReply, HttpRequest, INTENT, Policy},
    manifest::{Bridge, Kind, Manifest},
    origin::Reach,
    registry::Registry,
};
use kos_directory::contract::Checked;
use kos_governance::act::Role;
use kos_mesh::link::{
    Body, BoxedStream, Exchange, Gate, Links, Request, Route, Service as Answers, Standing, StreamError, To,
    Unreachable, Wire,
};
use kos_protocol::{
    hello::Versions,
    id::{AgentId, FederationId, sha256},
    key::{PublicKey, SecretKey},
    message::{End, Status},
    session::Local,
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const FEDERATION: FederationId = FederationId::from_bytes([9; 32]);
/// The member that calls, and the one whose agents answer.
const CALLER: u8 = 1;
const CALLEE: u8 = 2;
/// A guard against hanging; shorter than any time of [`bridge`], so that none of those is waited for unnoticed.
const PATIENCE: Duration = Duration::from_secs(40);

fn secret(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn member(n: u8) -> MemberId {
    MemberId::from_bytes([n; 32])
}

fn notes() -> AgentId {
    "kBridge:notes".parse().unwrap()
}

/// A federation of two.
struct Two {
    own: u8,
    counter: AtomicU64,
}

impl Gate for Two {
    fn local(&self, federation: &FederationId) -> Option<Local> {
        (*federation == FEDERATION).then(|| Local {
            secret: secret(self.own),
            member: member(self.own),
            federation: FEDERATION,
            versions: Versions::OURS,
            offers: BTreeMap::new(),
            wants: BTreeMap::new(),
            streams_max: 400,
            agent: "test/0".to_owned(),
        })
    }
    fn federation_by_tag(&self, tag: &[u8; 8]) -> Option<FederationId> {
        (*tag == FEDERATION.tag()).then_some(FEDERATION)
    }
    fn standing(&self, _: &FederationId, key: &PublicKey) -> Standing {
        let found = [CALLER, CALLEE].into_iter().find(|n| secret(*n).public() == *key);
        found.map_or(Standing::Stranger, |n| Standing::Member(member(n)))
    }
    fn key_of(&self, _: &FederationId, wanted: &MemberId) -> Option<PublicKey> {
        [CALLER, CALLEE].into_iter().find(|n| member(*n) == *wanted).map(|n| secret(n).public())
    }
    fn next_counter(&self) -> Pending<'_, u64> {
        Box::pin(async { self.counter.fetch_add(1, Ordering::SeqCst) })
    }
    fn is_fresh(&self, _: FederationId, _: PublicKey, _: u64) -> Pending<'_, bool> {
        Box::pin(std::future::ready(true))
    }
    fn seed(&self) -> [u8; 32] {
        sha256(&[&[self.own][..], &self.counter.fetch_add(1, Ordering::SeqCst).to_be_bytes()].concat())
    }
    fn is_replay_safe(&self, _: &str) -> bool {
        false
    }
}

/// The contracts that the callee has published.
type Published = Arc<Mutex<Vec<Checked>>>;

/// The callee's host behind its sessions.
struct Hosted(Arc<Host>, Published);

impl Answers for Hosted {
    fn handle(&self, request: Request) -> Pending<'_, ()> {
        Box::pin(async move {
            let caller = request.caller.member.map(|member| (member, Role::Member));
            let contracts_of = |agent: &AgentId| {
                let published = self.1.lock().unwrap();
                published.iter().filter(|checked| checked.contract().agent == *agent).cloned().collect()
            };
            match self.0.admit(caller, &request.head, contracts_of) {
                Ok(admitted) => admitted.answer(request).await,
                Err(end) => drop(request.send.end(&end).await),
            }
        })
    }
}

/// The caller answers nothing.
struct Nobody;

impl Answers for Nobody {
    fn handle(&self, _: Request) -> Pending<'_, ()> {
        Box::pin(async {})
    }
}

/// Leads to the callee, if there is one.
struct Pipe(Option<Links>);

impl Wire for Pipe {
    fn open(&self, _: PublicKey) -> Pending<'_, Result<(BoxedStream, Route), Unreachable>> {
        Box::pin(async move {
            let peer = self.0.clone().ok_or_else(|| Unreachable("nobody".to_owned()))?;
            let (near, far) = tokio::io::duplex(256 * 1024);
            let back = Route::Direct { remote: None, key: secret(CALLER).public() };
            tokio::spawn(async move { peer.serve(Box::new(far), back).await });
            Ok((Box::new(near) as BoxedStream, Route::Direct { remote: None, key: secret(CALLEE).public() }))
        })
    }
}

/// A host, and a member that calls its agents.
struct Pair {
    host: Arc<Host>,
    caller: Links,
    denials: Arc<Mutex<Vec<Denial>>>,
    published: Published,
}

type Kept = Arc<Mutex<Option<Vec<u8>>>>;

impl Pair {
    /// With the agents of `kept`, where changes are kept, too.
    fn on(kept: &Kept) -> Self {
        let (denials, saved) = (Arc::new(Mutex::new(Vec::new())), kept.clone());
        let told = denials.clone();
        let before = kept.lock().unwrap().clone();
        let host = Host::new(
            before.as_deref(),
            Calls::default(),
            Sentinel::new(|| serde_json::json!({"name": "attic"})),
            move |bytes| {
                *saved.lock().unwrap() = Some(bytes);
                Ok(())
            },
            move |denial| told.lock().unwrap().push(denial),
        )
        .unwrap();
        Self::of(host, denials)
    }

    fn of(host: Arc<Host>, denials: Arc<Mutex<Vec<Denial>>>) -> Self {
        let gate = |own| Arc::new(Two { own, counter: AtomicU64::new(1) });
        let published = Published::default();
        let hosted = Hosted(host.clone(), published.clone());
        let callee = Links::new(gate(CALLEE), Arc::new(Pipe(None)), Arc::new(hosted));
        let caller = Links::new(gate(CALLER), Arc::new(Pipe(Some(callee))), Arc::new(Nobody));
        Self { host, caller, denials, published }
    }

    /// With `kBridge:notes` in front of this address.
    fn before(address: SocketAddr) -> Self {
        Self::with(bridge(address))
    }

    fn with(bridge: Bridge) -> Self {
        let mut registry = Registry::default();
        let manifest = Manifest {
            agent: notes(),
            description: String::new(),
            federations: None,
            kind: Kind::Bridge(bridge),
        };
        registry.insert(manifest).unwrap();
        Self::on(&Arc::new(Mutex::new(Some(registry.encode()))))
    }

    /// Opens a call of an agent.
    async fn open(&self, agent: &AgentId, request: &HttpRequest, body: Body<'_>) -> Exchange {
        let head = Head {
            intent: INTENT.to_owned(),
            target: Some(agent.to_string()),
            params: request.encode().unwrap(),
            ..Head::default()
        };
        let to = To { federation: FEDERATION, key: secret(CALLEE).public() };
        self.caller.open(to, &head, body).await.unwrap()
    }

    /// Calls an agent with a whole body.
    async fn call(&self, agent: &AgentId, request: &HttpRequest, body: &[u8]) -> Outcome {
        let exchange = self.open(agent, request, Body::Whole(body)).await;
        Outcome::of(exchange).await
    }

    /// `GET` of the bridge.
    async fn get(&self, path: &str) -> Outcome {
        self.call(&notes(), &HttpRequest::new("GET", path), b"").await
    }
}

/// A bridge whose times only guard against hanging.
fn bridge(address: SocketAddr) -> Bridge {
    Bridge {
        origin: format!("http://{address}").parse().unwrap(),
        reach: Reach::Loopback,
        addresses: vec![address],
        policy: Policy { allow: Vec::new(), upgrade: kos_agents::http::Upgrade::WebSocket },
        connect_ms: 60_000,
        answer_ms: 60_000,
    }
}

/// A bridge that soon gives up waiting, yet not before a service on a busy machine has sent what it has.
fn impatient(address: SocketAddr) -> Bridge {
    Bridge { answer_ms: 2_000, ..bridge(address) }
}

/// What became of a call.
#[derive(Debug)]
struct Outcome {
    /// The head of the answer, or the end of a refused call.
    reply: Result<HttpReply, End>,
    body: Vec<u8>,
    /// How the body ended; an error where it was cut.
    end: Result<Status, StreamError>,
}

impl Outcome {
    async fn of(exchange: Exchange) -> Self {
        let (send, recv) = exchange.into_halves();
        drop(send);
        let reading = Self::read(recv);
        tokio::time::timeout(PATIENCE, reading).await.expect("a call never hangs")
    }

    async fn read(mut recv: RecvHalf) -> Self {
        let reply = match recv.head().await {
            Ok(Ok(head)) => HttpReply::decode(&head.params).unwrap(),
            Ok(Err(end)) => return Self { end: Ok(end.status), reply: Err(end), body: Vec::new() },
            Err(error) => return Self { reply: Err(End::ok()), body: Vec::new(), end: Err(error) },
        };
        let mut body = Vec::new();
        let end = loop {
            match recv.next().await {
                Ok(Some(part)) => body.extend_from_slice(&part),
                Ok(None) => break Ok(recv.ended().unwrap().status),
                Err(error) => break Err(error),
            }
        };
        Self { reply: Ok(reply), body, end }
    }

    /// The service's status, where the answer is whole.
    fn whole(&self) -> u16 {
        assert_eq!(self.end.as_ref().ok(), Some(&Status::Ok), "{self:?}");
        self.reply.as_ref().unwrap().status
    }

    /// What the call was refused with.
    fn refused(&self) -> Status {
        self.reply.as_ref().expect_err("refused").status
    }

    /// How an answer that had begun was broken off.
    fn broken(&self) -> Status {
        assert!(self.reply.is_ok(), "{self:?}");
        *self.end.as_ref().unwrap()
    }

    fn field(&self, wanted: &str) -> Option<String> {
        let headers = &self.reply.as_ref().unwrap().headers;
        let found = headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }
}

/// Waits for a condition; a time only guards against hanging.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
