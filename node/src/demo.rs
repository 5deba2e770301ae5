//! `kai demo`: a relay and three nodes on loopback, in temporary folders, walk the story of a federation.
//!
//! The nodes are what `kai up` runs, asked over their sockets as commands ask them; the relay is what `kai-relay` runs.
//! They know of nobody else: no mDNS, no UPnP, no hash table, no bootstrap, and no settings of this user.

use crate::{
    api::{
        AgentRequest, ForwardRequest, InviteRequest, PingRequest, SCHEMA_VERSION, TextRequest,
        client::{Client, failure},
    },
    config::Sources,
    daemon::{self, Daemon},
    log,
};
use anyhow::{Context, ensure};
use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures::stream;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use kos_agents::http::{HttpRequest, INTENT};
use kos_mesh::link::{CallError, Route};
use kos_protocol::message::Head;
use kos_shell::{NoApp, NodeRole, Options, Runtime};
use kos_store::{Folder, FolderError};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Longest wait for a step: a guard against hanging.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for a node to go down.
const GOODBYE: Duration = Duration::from_secs(10);
/// What is downloaded.
const DOWNLOAD_BYTES: usize = 16 * 1024 * 1024;
/// Events of the stream.
const EVENTS: usize = 3;
/// The relay and the three nodes.
const MEMBERS: usize = 4;
/// The agent as cellar calls it.
const NOTES: &str = "kBridge:notes@attic";

/// How a demo ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With the end of the story.
    Whole,
    /// In the middle: it was told to stop.
    Interrupted,
}

/// Walks the story in `folder`, which its caller removes afterwards; `say` gets each line. When `stop` is ready it ends in
/// the middle. Whatever way it ends, all nodes are down then.
///
/// # Errors
/// The first step that does not work.
pub async fn run(
    folder: &Path,
    stop: impl Future<Output = ()>,
    say: impl Fn(&str) + Send + 'static,
) -> anyhow::Result<Ended> {
    let cast = Cast::default();
    let mut steps = Steps { begun: Instant::now(), last: Instant::now(), say: Box::new(say) };
    let outcome = tokio::select! {
        walked = walk(folder, &cast, &mut steps) => walked.map(|()| Ended::Whole),
        () = stop => Ok(Ended::Interrupted),
    };
    cast.leave().await;
    for name in ["relay", "attic", "cellar", "garage"] {
        released(&folder.join(name)).await;
    }
    if matches!(outcome, Ok(Ended::Whole)) {
        steps.done("all are down; nothing stays behind");
    }
    outcome
}

/// Prints each step with its time.
struct Steps {
    begun: Instant,
    last: Instant,
    say: Box<dyn Fn(&str) + Send>,
}

impl Steps {
    fn done(&mut self, what: &str) {
        let (took, total) = (self.last.elapsed().as_millis(), self.begun.elapsed().as_millis());
        (self.say)(&format!("{total:>6} ms  {what} ({took} ms)\n"));
        self.last = Instant::now();
    }
}

/// Everybody who was started, from the moment on.
#[derive(Default)]
struct Cast {
    leaving: CancellationToken,
    nodes: Mutex<Vec<JoinHandle<()>>>,
    runtimes: Mutex<BTreeMap<String, Runtime>>,
    relay: Mutex<Option<Runtime>>,
}

impl Cast {
    /// Starts a node; returns once it is up.
    async fn node(&self, folder: &Path, name: &str) -> anyhow::Result<Client> {
        let sources = sources(folder, name);
        let client = Client::new(sources.folder.clone());
        let logs = log::start("off", log::Style::Text).map_err(anyhow::Error::msg)?;
        let (tell, told) = tokio::sync::oneshot::channel();
        let (leaving, named) = (self.leaving.clone(), name.to_owned());
        let running = tokio::spawn(async move {
            let (ready, up) = tokio::sync::oneshot::channel();
            let up_now =
                move |daemon: &Daemon| drop(ready.send((daemon.stop.clone(), daemon.runtime.clone())));
            let running = daemon::run(sources, logs, up_now);
            // A node that is still starting when all shall leave is told as soon as it hears.
            let leave = async {
                let Ok((stop, runtime)) = up.await else { return Some(tell) };
                let _ = tell.send(Ok(runtime));
                leaving.cancelled().await;
                stop.cancel();
                None
            };
            match tokio::join!(running, leave) {
                (Err(failure), Some(tell)) => drop(tell.send(Err(failure))),
                (Err(failure), None) => tracing::warn!(%failure, name = named, "a node of the demo failed"),
                (Ok(_), _) => {}
            }
        });
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(running);
        let runtime = told.await.context("a node is gone")?.context("a node did not start")?;
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), runtime);
        Ok(client)
    }

    fn runtime(&self, name: &str) -> anyhow::Result<Runtime> {
        let runtimes = self.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        runtimes.get(name).cloned().with_context(|| format!("{name} is not up"))
    }

    /// What the relay has carried so far.
    async fn carried_bytes(&self) -> anyhow::Result<u64> {
        let relay = self.relay.lock().unwrap_or_else(PoisonError::into_inner).clone().context("a relay")?;
        let status = relay.status().await.context("the relay runs")?;
        Ok(status.stats.bytes_carried.load(Ordering::Relaxed))
    }

    /// Starts the relay; returns its line.
    async fn relay(&self, folder: &Path) -> anyhow::Result<String> {
        let mut options = Options::new(folder.join("relay"));
        options.name = Some("relay".to_owned());
        options.role = NodeRole::Relay;
        (options.mdns, options.upnp, options.kad) = (false, false, false);
        let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        options.external = vec![format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse()?];
        options.listen = Some(options.external.clone());
        let relay = Runtime::start(options, Arc::new(NoApp)).await.context("the relay did not start")?;
        let line = relay.relay_line()?;
        *self.relay.lock().unwrap_or_else(PoisonError::into_inner) = Some(relay);
        Ok(line)
    }

    /// Takes everybody down, and waits for it.
    async fn leave(&self) {
        self.leaving.cancel();
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let nodes = std::mem::take(&mut *self.nodes.lock().unwrap_or_else(PoisonError::into_inner));
        for node in nodes {
            if tokio::time::timeout(GOODBYE, node).await.is_err() {
                tracing::warn!("a node of the demo does not go down");
            }
        }
        let relay = self.relay.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(relay) = relay {
            relay.shutdown().await;
        }
    }
}

/// Waits until the last task of a run has let go of its folder: one that still writes could bring a file of it back.
async fn released(folder: &Path) {
    let begun = Instant::now();
    while folder.exists() && matches!(Folder::open(folder), Err(FolderError::InUse { .. })) {
        if begun.elapsed() > GOODBYE {
            return tracing::warn!(folder = %folder.display(), "a node of the demo does not let go of its folder");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Settings of a node that knows nobody.
fn sources(folder: &Path, name: &str) -> Sources {
    let flags = [
        ("name", name),
        ("log.level", "off"),
        ("network.mdns", "false"),
        ("network.upnp", "false"),
        ("network.kad", "false"),
        ("network.listen_addresses", "/ip4/127.0.0.1/udp/0/quic-v1,/ip4/127.0.0.1/tcp/0"),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Sources { folder: folder.join(name), variables: Vec::new(), flags }
}

async fn walk(folder: &Path, cast: &Cast, steps: &mut Steps) -> anyhow::Result<()> {
    let line = cast.relay(folder).await?;
    steps.done("a relay is up");
    let attic = cast.node(folder, "attic").await?;
    let cellar = cast.node(folder, "cellar").await?;
    let garage = cast.node(folder, "garage").await?;
    steps.done("attic, cellar and garage are up, each in a federation of one");

    tell(&attic, "/v1/relays/add", &text(&line)).await?;
    steps.done("attic admits the relay by the line it printed");
    let events = Arc::new(Semaphore::new(0));
    tell(&attic, "/v1/agents", &bridge(origin(events.clone()).await?)).await?;
    steps.done("attic puts kBridge:notes in front of a web service");

    for (name, newcomer) in [("cellar", &cellar), ("garage", &garage)] {
        let code = invite(&attic).await?;
        let joining = TextRequest { yes: true, ..text(&code) };
        tell(newcomer, "/v1/join", &joining).await?;
        steps.done(&format!("{name} joins with an invitation"));
    }
    for node in [&attic, &cellar, &garage] {
        until("everybody lists everybody", async || count(node, "/v1/members", "members").await == MEMBERS)
            .await?;
    }
    steps.done("everybody lists everybody");
    until("cellar sees the agent", async || has_notes(&cellar).await).await?;
    steps.done("cellar sees kBridge:notes@attic");

    use_service(&cellar, &events, steps).await?;
    call_over_relay(cast, steps).await?;
    part(&attic, &cellar, steps).await
}

/// What cellar does with the service of attic.
async fn use_service(cellar: &Client, events: &Semaphore, steps: &mut Steps) -> anyhow::Result<()> {
    let forward = Forward::open(cellar).await?;
    ensure!(forward.get("/").await?.ends_with(b"hello from the attic\n"), "another page than the attic's");
    steps.done("cellar opens it on a port of its own and fetches the page");

    let answer = forward.get("/download").await?;
    let body = answer.windows(4).position(|part| part == b"\r\n\r\n").map_or(0, |at| at + 4);
    ensure!(answer.len() - body == DOWNLOAD_BYTES, "{} bytes instead of all", answer.len() - body);
    ensure!(answer[body..].iter().enumerate().all(|(at, byte)| *byte == pattern(at)), "a byte is wrong");
    steps.done(&format!("cellar downloads {} MiB, each byte in its place", DOWNLOAD_BYTES >> 20));

    forward.follow(events).await?;
    steps.done(&format!("cellar follows a stream of {EVENTS} events, each as it happens"));

    let ping = PingRequest { name: "attic".to_owned(), count: 3 };
    let report = tell(cellar, "/v1/ping", &ping).await?;
    let rtts = report["rtts_ms"].as_array().into_iter().flatten().filter_map(Value::as_f64);
    let best = rtts.fold(f64::INFINITY, f64::min);
    let chosen = report["chosen"].as_str().unwrap_or("some way").to_owned();
    steps.done(&format!("cellar pings attic: {best:.1} ms, {chosen}"));
    Ok(())
}

/// One call that goes over the relay, although there is a direct way on one machine.
async fn call_over_relay(cast: &Cast, steps: &mut Steps) -> anyhow::Result<()> {
    let cellar = cast.runtime("cellar")?;
    let target = cellar.resolve_agent(&cellar.me().federation, NOTES)?;
    let head = Head {
        intent: INTENT.to_owned(),
        target: Some(target.agent.to_string()),
        params: HttpRequest::new("GET", "/").encode()?,
        ..Head::default()
    };
    let begun = Instant::now();
    let answer = loop {
        match cellar.ask_carried(&target.to.federation, &target.member, &head, b"", 1024).await {
            Ok(answered) => break answered.map_err(|end| anyhow::anyhow!("refused: {end}"))?,
            // The link with the relay comes a moment after the admission.
            Err(CallError::Unreachable(_)) if begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => return Err(error).context("a call over the relay"),
        }
    };
    ensure!(answer.body == b"hello from the attic\n", "another page than the attic's");
    ensure!(matches!(answer.route, Route::Carried { .. }), "it went another way: {}", answer.route);
    let bytes = cast.carried_bytes().await?;
    ensure!(bytes > 0, "the relay carried nothing");
    steps.done(&format!("cellar fetches the page over the relay, which carries {bytes} sealed bytes"));
    Ok(())
}

/// The end of cellar's membership.
async fn part(attic: &Client, cellar: &Client, steps: &mut Steps) -> anyhow::Result<()> {
    let forward = Forward::open(cellar).await?;
    ensure!(forward.get("/").await?.starts_with(b"HTTP/1.1 200"), "the page is there until then");
    let removal = TextRequest { why: "the demo is over".to_owned(), ..text("cellar") };
    tell(attic, "/v1/members/remove", &removal).await?;
    until("cellar is out", async || {
        forward.get("/").await.is_ok_and(|answer| !answer.starts_with(b"HTTP/1.1 200"))
    })
    .await?;
    steps.done("attic removes cellar: its calls are refused");
    // Entries are written behind what they tell of.
    until("attic's audit log tells of both", async || {
        let Ok(log) = attic.get::<Value>("/v1/audit").await else { return false };
        let entries = || log["entries"].as_array().into_iter().flatten();
        ["admitted", "removed"].iter().all(|kind| entries().any(|entry| entry["kind"] == *kind))
    })
    .await?;
    let verified: Value = attic.get("/v1/audit/verify").await?;
    steps.done(&format!("attic's audit log holds: {} signed entries in one chain", verified["entries"]));
    Ok(())
}

fn text(text: &str) -> TextRequest {
    TextRequest { text: text.to_owned(), why: String::new(), yes: false }
}

fn bridge(origin: SocketAddr) -> AgentRequest {
    AgentRequest {
        agent: "kBridge:notes".to_owned(),
        http: Some(format!("http://{origin}")),
        allow_host: None,
        allow: vec!["GET /*".to_owned()],
        websocket: Some(false),
        description: "a demo".to_owned(),
    }
}

async fn tell(node: &Client, path: &str, request: &(impl serde::Serialize + Sync)) -> anyhow::Result<Value> {
    node.post(path, request).await.with_context(|| format!("POST {path}"))
}

async fn invite(steward: &Client) -> anyhow::Result<String> {
    let (role, note) = ("member".to_owned(), None);
    let request = InviteRequest { role, uses: 1, ttl_ms: 600_000, for_ms: None, lan: true, note };
    let begun = Instant::now();
    loop {
        match steward.post::<Value>("/v1/invite", &request).await {
            Ok(issued) => return Ok(issued["code"].as_str().context("a code")?.to_owned()),
            // Listening addresses come a moment after the start.
            Err(_) if begun.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// How many there are in a list of a node.
async fn count(node: &Client, path: &str, list: &str) -> usize {
    let answer = node.get::<Value>(path).await.unwrap_or_default();
    answer[list].as_array().map_or(0, Vec::len)
}

async fn has_notes(node: &Client) -> bool {
    let answer = node.get::<Value>("/v1/agents/all").await.unwrap_or_default();
    let mut agents = answer["agents"].as_array().into_iter().flatten();
    agents.any(|info| info["agent"] == "kBridge:notes")
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !holds().await {
        ensure!(begun.elapsed() < PATIENCE, "this did not come about: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// A port of a node that leads to the agent, for as long as the value lives.
struct Forward {
    address: SocketAddr,
    _open: Incoming,
}

impl Forward {
    async fn open(node: &Client) -> anyhow::Result<Self> {
        let request = ForwardRequest { port: 0, agent: NOTES.to_owned() };
        let (head, mut body) = node.send(Method::POST, "/v1/forward", &request).await?.into_parts();
        let line = body.frame().await.context("an answer")??.into_data().unwrap_or_default();
        if !head.status.is_success() {
            return Err(failure(head.status, &line).into());
        }
        let opened: Value = serde_json::from_slice(&line)?;
        ensure!(opened["schema_version"] == SCHEMA_VERSION, "an answer of another version");
        Ok(Self { address: opened["address"].as_str().context("an address")?.parse()?, _open: body })
    }

    async fn ask(&self, path: &str) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).await?;
        Ok(stream)
    }

    /// One plain request; the whole answer.
    async fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut answer = Vec::new();
        self.ask(path).await?.read_to_end(&mut answer).await?;
        Ok(answer)
    }

    /// Reads one event after another; the service makes the next one when the one before has been read.
    async fn follow(&self, events: &Semaphore) -> anyhow::Result<()> {
        let mut stream = self.ask("/events").await?;
        let mut seen = Vec::new();
        for event in 0..EVENTS {
            events.add_permits(1);
            let wanted = format!("data: {event}\n\n");
            while !seen.windows(wanted.len()).any(|part| part == wanted.as_bytes()) {
                ensure!(stream.read_buf(&mut seen).await? > 0, "the stream ended before event {event}");
            }
        }
        Ok(())
    }
}

/// A web service: a page, a download, and events, each made when `events` lets it.
async fn origin(events: Arc<Semaphore>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = Router::new()
        .route("/", get(async || "hello from the attic\n"))
        .route("/download", get(async || (0..DOWNLOAD_BYTES).map(pattern).collect::<Vec<u8>>()))
        .route("/events", get(async move || Body::from_stream(happenings(events))));
    tokio::spawn(async move { drop(axum::serve(listener, service).await) });
    Ok(address)
}

fn happenings(events: Arc<Semaphore>) -> impl stream::Stream<Item = Result<Bytes, std::io::Error>> {
    stream::unfold(0, move |event| {
        let events = events.clone();
        async move {
            if event == EVENTS {
                return None;
            }
            events.acquire().await.ok()?.forget();
            Some((Ok(Bytes::from(format!("data: {event}\n\n"))), event + 1))
        }
    })
}

/// The byte at this place of the download: a hole or a swap shows.
fn pattern(at: usize) -> u8 {
    u8::try_from(at * 31 / 7 % 251).expect("less than 251")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_demo_walks_to_its_end_and_leaves_nothing_behind() {
        provider();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().to_owned();
        let ended = run(&path, std::future::pending(), |line| print!("{line}")).await.unwrap();
        assert_eq!(ended, Ended::Whole);
        place.close().unwrap();
        assert!(!path.exists());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_demo_that_is_stopped_in_the_middle_takes_its_nodes_down() {
        provider();
        let place = tempfile::tempdir().unwrap();
        let (stop, lines) = (CancellationToken::new(), Mutex::new(0));
        let told = stop.clone();
        let say = move |_: &str| {
            let mut lines = lines.lock().unwrap();
            *lines += 1;
            if *lines == 2 {
                told.cancel();
            }
        };
        let ended = run(place.path(), stop.cancelled_owned(), say).await.unwrap();
        assert_eq!(ended, Ended::Interrupted);
        // Whoever still ran would hold the lock of its folder.
        let again = run(place.path(), std::future::pending(), |_| {}).await.unwrap();
        assert_eq!(again, Ended::Whole);
    }
}
