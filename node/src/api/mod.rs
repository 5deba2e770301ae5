//! The local API: what commands and local programs ask of a running node.
//!
//! One router. Over the socket in the data folder it answers the folder's owner; the peer's user id is checked, so
//! there is no token. Bodies and answers are JSON; a failure is `{"schema_version":1,"error":{…}}`.

mod agent_routes;
mod call_routes;
pub mod client;
mod directory_routes;
pub mod http;
mod log_routes;
mod node_routes;
mod types;

pub use types::*;

use crate::{daemon::Daemon, errors::Failure, os};
use axum::{
    Json, Router,
    body::Body,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Commands served at once.
const COMMANDS_MAX: usize = 64;

/// Shortest time between two answers to a subscription.
const ANSWER_CHANGES_PAUSE: Duration = Duration::from_millis(100);

/// The version of every JSON object the node prints or answers with.
pub const SCHEMA_VERSION: u32 = 1;

/// An answer: the value's own fields and `schema_version`.
#[derive(Serialize)]
pub struct Answer<T: Serialize> {
    schema_version: u32,
    #[serde(flatten)]
    value: T,
}

/// Puts `schema_version` beside the fields of `value`.
pub fn answer<T: Serialize>(value: T) -> Answer<T> {
    Answer { schema_version: SCHEMA_VERSION, value }
}

/// A failure as `{"schema_version":1,"error":{…}}`.
#[derive(Serialize)]
pub struct ErrorAnswer<'a> {
    schema_version: u32,
    error: &'a Failure,
}

impl<'a> ErrorAnswer<'a> {
    /// Wraps a failure.
    pub fn new(error: &'a Failure) -> Self {
        Self { schema_version: SCHEMA_VERSION, error }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(serde_json::json!(ErrorAnswer::new(&self)))).into_response()
    }
}

/// What a route returns.
type Reply<T> = Result<Json<Answer<T>>, Failure>;

fn reply<T: Serialize>(value: T) -> Reply<T> {
    Ok(Json(answer(value)))
}

/// One JSON object a line, for as long as there are any.
fn ndjson(lines: impl Stream<Item = Arc<str>> + Send + 'static) -> Response {
    let lines = lines.map(|line| Ok::<_, Infallible>(Bytes::from(format!("{line}\n"))));
    let mut response = Response::new(Body::from_stream(lines));
    let kind = axum::http::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, kind);
    response
}

/// Every route commands use.
pub fn router(daemon: Arc<Daemon>) -> Router {
    node_routes::router()
        .merge(agent_routes::router())
        .merge(call_routes::router())
        .merge(directory_routes::router())
        .merge(log_routes::router())
        .with_state(daemon)
}

/// Answers commands on the socket until `stop`.
pub async fn serve_socket(listener: tokio::net::UnixListener, router: Router, stop: CancellationToken) {
    let places = Arc::new(tokio::sync::Semaphore::new(COMMANDS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let owner = stream.peer_cred().map(|peer| peer.uid());
        if !owner.is_ok_and(os::is_own_user) {
            tracing::warn!("a process of another user knocked on the socket");
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a command went away");
            }
            drop(place);
        });
    }
}
