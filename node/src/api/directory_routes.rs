//! Routes about the directory: what is in it, and how true that is.

use super::{ANSWER_CHANGES_PAUSE, Reply, answer, ndjson, reply};
use crate::{
    daemon::Daemon,
    errors::{Code, Failure},
};
use axum::{
    Router,
    extract::{Query, State, rejection::QueryRejection},
    response::Response,
    routing::get,
};
use futures::stream;
use kos_directory::QueryError;
use kos_shell::{DirectoryStats, Found, RecordError, Shown};
use serde::Deserialize;
use std::sync::Arc;

type Node = State<Arc<Daemon>>;

pub(super) fn router() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/find", get(find))
        .route("/v1/find/watch", get(watch))
        .route("/v1/record", get(record))
        .route("/v1/directory", get(stats))
}

/// What is looked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    query: String,
    #[serde(default)]
    offset: usize,
    #[serde(default = "page")]
    limit: usize,
}

fn page() -> usize {
    20
}

fn wanted(wanted: Result<Query<Wanted>, QueryRejection>) -> Result<Wanted, Failure> {
    Ok(wanted.map_err(|error| Code::BadRequest.because(error))?.0)
}

fn look(daemon: &Daemon, wanted: &Wanted) -> Result<Found, Failure> {
    let found = daemon.runtime.find(&daemon.federation(), &wanted.query, wanted.offset, wanted.limit);
    found.ok_or_else(|| Code::NotInFederation.plain())?.map_err(|error| match error {
        QueryError::Member(_) => Code::NoSuchMember.because(error),
        _ => Code::BadQuery.because(error),
    })
}

async fn find(State(daemon): Node, query: Result<Query<Wanted>, QueryRejection>) -> Reply<Found> {
    reply(look(&daemon, &wanted(query)?)?)
}

/// One answer a line: at once, and whenever another one is due.
async fn watch(
    State(daemon): Node,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Failure> {
    let wanted = wanted(query)?;
    look(&daemon, &wanted)?;
    let changes = daemon.runtime.directory_changes();
    let stop = daemon.stop.clone();
    let lines = stream::unfold((changes, None), move |(mut changes, mut last)| {
        let (daemon, wanted) = (daemon.clone(), wanted.clone());
        async move {
            loop {
                changes.borrow_and_update();
                let found = look(&daemon, &wanted).ok()?;
                // Records age; that alone is no news.
                let news: Vec<_> =
                    found.hits.iter().map(|hit| (hit.record, hit.health, hit.observers.clone())).collect();
                if last.as_ref() != Some(&news) {
                    last = Some(news);
                    let line = serde_json::to_string(&answer(found)).ok()?;
                    return Some((Arc::<str>::from(line), (changes, last)));
                }
                changes.changed().await.ok()?;
                // Changes come in bursts.
                tokio::time::sleep(ANSWER_CHANGES_PAUSE).await;
            }
        }
    });
    Ok(ndjson(futures::StreamExt::take_until(lines, async move { stop.cancelled().await })))
}

/// Which record.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    hash: String,
}

async fn record(State(daemon): Node, named: Result<Query<Named>, QueryRejection>) -> Reply<Shown> {
    let Query(Named { hash }) = named.map_err(|error| Code::BadRequest.because(error))?;
    let shown = daemon.runtime.record(&daemon.federation(), &hash);
    let shown = shown.ok_or_else(|| Code::NotInFederation.plain())?;
    reply(shown.map_err(|error| match error {
        RecordError::Unknown(_) => Code::NoSuchRecord.because(error),
        RecordError::NoHash | RecordError::Ambiguous { .. } => Code::BadRecordId.because(error),
    })?)
}

async fn stats(State(daemon): Node) -> Reply<DirectoryStats> {
    let stats = daemon.runtime.directory_stats(&daemon.federation());
    reply(stats.ok_or_else(|| Code::NotInFederation.plain())?)
}
