//! The route behind `kai logs tail`: the last lines, and those that follow.

use super::ndjson;
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
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::broadcast::{Receiver, error::RecvError};

pub(super) fn router() -> Router<Arc<Daemon>> {
    Router::new().route("/v1/logs", get(tail))
}

/// What of the log is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    lines: usize,
    #[serde(default)]
    follow: bool,
}

/// One JSON object a line, oldest first.
async fn tail(
    State(daemon): State<Arc<Daemon>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(wanted) = wanted.map_err(|error| Code::BadRequest.because(error))?;
    let (kept, follow) = daemon.logs.ring.tail(wanted.lines);
    let kept = stream::iter(kept);
    if !wanted.follow {
        return Ok(ndjson(kept));
    }
    let stop = daemon.stop.clone();
    Ok(ndjson(kept.chain(followed(follow)).take_until(async move { stop.cancelled().await })))
}

/// The lines from now on. A reader that is too slow is told how many it has missed.
fn followed(follow: Receiver<Arc<str>>) -> impl Stream<Item = Arc<str>> + Send {
    stream::unfold(follow, async |mut follow| {
        let line = match follow.recv().await {
            Ok(line) => line,
            Err(RecvError::Lagged(missed)) => Arc::from(missed_line(missed)),
            Err(RecvError::Closed) => return None,
        };
        Some((line, follow))
    })
}

fn missed_line(missed: u64) -> String {
    serde_json::json!({"level": "WARN", "message": "lines were missed by this reader", "missed": missed})
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed() {
        let (sender, follow) = tokio::sync::broadcast::channel::<Arc<str>>(2);
        for line in ["one", "two", "three"] {
            sender.send(Arc::from(line)).unwrap();
        }
        drop(sender);
        let lines: Vec<Arc<str>> = followed(follow).collect().await;
        assert_eq!(lines.iter().map(|line| &**line).collect::<Vec<_>>(), [&missed_line(1), "two", "three"]);
    }
}
