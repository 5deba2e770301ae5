//! The HTTP API on loopback, for local programs: calls as tasks, how the node is, news over a WebSocket.
//!
//! Whoever asks must name this listener (`Host`), must be no page of another site, and must carry the token of the data
//! folder; then the route's own limit counts. There are no CORS headers: nothing here is for pages. What only the owner
//! at a terminal should do (recovery words, membership, settings) is on the socket alone.
//!
//! Everything a client can make the node keep has a bound: connections, tasks, results, subscribers, bodies.

mod limit;
pub mod news;
mod subscriber;
mod tasks;
mod token;

pub use token::TOKEN;

use super::{CallRequest, SCHEMA_VERSION, answer, call_routes, call_routes::Called, node_routes};
use crate::{
    config::Loopback,
    daemon::Daemon,
    errors::{Code, Failure},
    local,
};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use kos_mesh::link::Pending;
use kos_store::Folder;
use limit::{Bucket, Rate};
use news::News;
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use subscriber::Pace;
use tasks::{TaskRequest, Tasks};
use token::Token;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// The file in the data folder that tells where the API listens, while it does.
pub const ADDRESS: &str = "api.address";
/// Connections served at once; more wait.
const CONNECTIONS_MAX: usize = 64;
/// WebSocket subscribers at once; one more is told to come back.
const SUBSCRIBERS_MAX: usize = 16;
/// How long a client may take to send a head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest body of a request. `kai call` takes longer ones, `kai forward` any.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// When a client that found no place may come back.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// What each route allows: reading is cheap, the status asks the whole mesh.
const TASK_RATE: Rate = Rate { burst: 64, every: Duration::from_millis(50) };
const TASK_VIEW_RATE: Rate = Rate { burst: 256, every: Duration::from_millis(5) };
const STATUS_RATE: Rate = Rate { burst: 32, every: Duration::from_millis(100) };
const WS_RATE: Rate = Rate { burst: 16, every: Duration::from_millis(500) };
const HEALTH_RATE: Rate = Rate { burst: 64, every: Duration::from_millis(20) };

/// What the API asks of the node.
pub(super) trait Node: Send + Sync + 'static {
    /// How the node is.
    fn status(&self) -> Pending<'_, Result<serde_json::Value, Failure>>;
    /// What it counts, in Prometheus' text format.
    fn metrics(&self) -> Pending<'_, Result<String, Failure>>;
    /// Calls an agent.
    fn call(&self, request: CallRequest) -> Pending<'_, Result<Called, Failure>>;
}

impl Node for Daemon {
    fn status(&self) -> Pending<'_, Result<serde_json::Value, Failure>> {
        Box::pin(async move {
            let status = node_routes::status_of(self).await?;
            Ok(serde_json::json!({ "status": status, "agents": self.agents.list() }))
        })
    }

    fn metrics(&self) -> Pending<'_, Result<String, Failure>> {
        Box::pin(crate::metrics::render(self))
    }

    fn call(&self, request: CallRequest) -> Pending<'_, Result<Called, Failure>> {
        Box::pin(call_routes::open_call(self, request))
    }
}

/// The API's share of a node: its tasks, its news, and where it listens. There also where it is off.
#[derive(Debug)]
pub struct Hub {
    /// What subscribers are told.
    pub news: News,
    tasks: Arc<Tasks>,
    address: OnceLock<SocketAddr>,
}

impl Default for Hub {
    fn default() -> Self {
        let news = News::default();
        Self { tasks: Arc::new(Tasks::new(news.clone())), news, address: OnceLock::new() }
    }
}

impl Hub {
    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }
}

/// Serves the API where the settings say, until the node stops; nothing where they say nothing.
///
/// # Errors
/// [`Code::ApiListen`], [`Code::FolderUnfit`].
pub async fn start(
    daemon: &Arc<Daemon>,
    listen: Option<Loopback>,
) -> Result<Option<JoinHandle<()>>, Failure> {
    let folder = daemon.runtime.folder();
    forget_address(folder)?;
    let Some(listen) = listen else { return Ok(None) };
    let api = Api::bind(listen, folder, daemon.clone(), daemon.http.clone(), daemon.stop.clone()).await?;
    Ok(Some(tokio::spawn(api.serve(folder.clone()))))
}

/// A killed node leaves its address behind.
fn forget_address(folder: &Folder) -> Result<(), Failure> {
    if folder.path().join(ADDRESS).exists() {
        folder.remove_file(ADDRESS).map_err(|error| Code::FolderUnfit.because(error))?;
    }
    Ok(())
}

/// A bound listener with what its routes need.
struct Api {
    listener: TcpListener,
    served: Arc<Served>,
}

struct Served {
    node: Arc<dyn Node>,
    hub: Arc<Hub>,
    token: Token,
    port: u16,
    subscribers: Arc<Semaphore>,
    pace: Pace,
    stop: CancellationToken,
}

impl Api {
    async fn bind(
        listen: Loopback,
        folder: &Folder,
        node: Arc<dyn Node>,
        hub: Arc<Hub>,
        stop: CancellationToken,
    ) -> Result<Self, Failure> {
        let token = Token::open(folder)?;
        let refuse = |error| Code::ApiListen.because(format!("api.listen {}: {error}", listen.addr()));
        let listener = TcpListener::bind(listen.addr()).await.map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        folder
            .write_file(ADDRESS, format!("http://{address}\n").as_bytes())
            .map_err(|error| Code::FolderUnfit.because(error))?;
        let _ = hub.address.set(address);
        tracing::info!(%address, "the HTTP API listens");
        let subscribers = Arc::new(Semaphore::new(SUBSCRIBERS_MAX));
        let served =
            Served { node, hub, token, port: address.port(), subscribers, pace: Pace::default(), stop };
        Ok(Self { listener, served: Arc::new(served) })
    }

    async fn serve(self, folder: Folder) {
        let (router, stop) = (router(self.served.clone()), self.served.stop.clone());
        local::accept(self.listener, CONNECTIONS_MAX, stop, move |stream| connection(stream, router.clone()))
            .await;
        if let Err(failure) = forget_address(&folder) {
            tracing::warn!(%failure, "the address of the HTTP API stays behind");
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a client of the HTTP API went away");
    }
}

/// Host and site, then the token, then the route's limit.
fn router(served: Arc<Served>) -> Router {
    let with_token = Router::new()
        .route("/agent/status", limited(get(status), STATUS_RATE))
        .route("/metrics", limited(get(metrics), STATUS_RATE))
        .route("/agent/task", limited(post(take), TASK_RATE))
        .route("/agent/task/{id}", limited(get(view), TASK_VIEW_RATE))
        .route("/ws", limited(get(subscriber::subscribe), WS_RATE))
        .route_layer(from_fn_with_state(served.clone(), authorize));
    Router::new()
        .route("/health", limited(get(async || "ok\n"), HEALTH_RATE))
        .merge(with_token)
        .fallback(no_route)
        .method_not_allowed_fallback(no_route)
        .layer(from_fn_with_state(served.clone(), only_local))
        .with_state(served)
}

fn limited(route: MethodRouter<Arc<Served>>, rate: Rate) -> MethodRouter<Arc<Served>> {
    route.route_layer(from_fn_with_state(Arc::new(Bucket::new(rate, Instant::now())), within_rate))
}

async fn only_local(State(served): State<Arc<Served>>, request: Request, next: Next) -> Response {
    match local::check(request.headers(), served.port) {
        Ok(()) => next.run(request).await,
        Err(why) => Failure::from(why).into_response(),
    }
}

async fn authorize(State(served): State<Arc<Served>>, request: Request, next: Next) -> Response {
    match served.token.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(failure) => {
            let mut response = failure.into_response();
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            response
        }
    }
}

async fn within_rate(State(bucket): State<Arc<Bucket>>, request: Request, next: Next) -> Response {
    match bucket.take(Instant::now()) {
        Ok(()) => next.run(request).await,
        Err(wait) => come_back(Code::RateLimited.plain(), wait),
    }
}

/// A refusal that says when to try again, in whole seconds (RFC 9110 §10.2.3).
fn come_back(failure: Failure, wait: Duration) -> Response {
    let mut response = failure.into_response();
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    response
}

async fn no_route(request: Request) -> Failure {
    let path = crate::text::clean(request.uri().path());
    Code::NoRoute.because(format!("there is no {} {path}", request.method()))
}

/// As `docs/metrics.md` lists them, in Prometheus' text format.
async fn metrics(State(served): State<Arc<Served>>) -> Result<Response, Failure> {
    let text = served.node.metrics().await?;
    Ok(([(axum::http::header::CONTENT_TYPE, kos_shell::metrics::CONTENT_TYPE)], text).into_response())
}

async fn status(State(served): State<Arc<Served>>) -> Result<Response, Failure> {
    Ok(Json(answer(served.node.status().await?)).into_response())
}

async fn take(State(served): State<Arc<Served>>, request: Request) -> Result<Response, Failure> {
    let header = key_in(request.headers())?;
    let body = read_body(request.into_body()).await?;
    let mut request: TaskRequest =
        serde_json::from_slice(&body).map_err(|error| Code::BadRequest.because(error))?;
    if header.is_some() && request.idempotency_key.is_some() && header != request.idempotency_key {
        return Err(Code::BadRequest.because("idempotencyKey and the header Idempotency-Key differ"));
    }
    request.idempotency_key = header.or(request.idempotency_key);
    match served.hub.tasks.take(served.node.clone(), request, served.stop.clone()) {
        Ok(id) => {
            let taken = serde_json::json!({"schema_version": SCHEMA_VERSION, "taskId": id});
            let place = [(header::LOCATION, format!("/agent/task/{id}"))];
            Ok((StatusCode::ACCEPTED, place, Json(taken)).into_response())
        }
        Err(failure) if failure.is(Code::RateLimited) => Ok(come_back(failure, FULL_RETRY)),
        Err(failure) => Err(failure),
    }
}

/// What the header `Idempotency-Key` says, as it stands there.
fn key_in(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(key) = values.next() else { return Ok(None) };
    match (key.to_str(), values.next()) {
        (Ok(key), None) => Ok(Some(key.to_owned())),
        _ => Err(Code::BadRequest.because("Idempotency-Key is one value of visible ASCII")),
    }
}

async fn read_body(body: Body) -> Result<bytes::Bytes, Failure> {
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
    let read = read.map_err(|_| Code::BadRequest.because("the body does not come"))?;
    read.map_err(|error| {
        let is_too_long = std::error::Error::source(&error)
            .is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
        if is_too_long {
            Code::RequestTooLarge.because(format!("the body is above {BODY_BYTES_MAX} bytes"))
        } else {
            Code::BadRequest.because("the body broke off")
        }
    })
}

async fn view(State(served): State<Arc<Served>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let task =
        served.hub.tasks.view(&id).ok_or_else(|| {
            Code::NoSuchTask.because(format!("there is no task `{}`", crate::text::clean(&id)))
        })?;
    Ok(Json(answer(task)).into_response())
}

#[cfg(test)]
mod tests;
