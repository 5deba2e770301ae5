//! `kai demo`.

use super::{Context, print, say};
use crate::{
    demo::{self, Ended},
    errors::{Code, Exit, Failure},
};
use tokio::signal::unix::{SignalKind, signal};

/// A relay and three nodes on this machine's loopback walk the story of a federation. Needs no running node.
///
/// Ctrl-C ends it early. It leaves nothing behind either way.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) async fn run(context: &Context, _: Args) -> Result<Exit, Failure> {
    // A provider that is there already serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let internal = |error: &dyn std::fmt::Display| Code::Internal.because(error);
    let stop = order().map_err(|error| internal(&error))?;
    let place = tempfile::tempdir().map_err(|error| internal(&error))?;
    let json = context.json;
    let begun = std::time::Instant::now();
    let show = move |line: &str| {
        if !json {
            print(line);
        }
    };
    let outcome = demo::run(place.path(), stop, show).await;
    // Before anything else, so that no failure leaves it behind.
    place.close().map_err(|error| internal(&error))?;
    match outcome.map_err(|error| internal(&format!("{error:#}")))? {
        Ended::Interrupted => {
            say("interrupted; nothing stays behind");
            return Ok(Exit::Failed);
        }
        Ended::Whole if json => {
            let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            print(&format!("{}\n", serde_json::json!({"schema_version": 1, "took_ms": took_ms})));
        }
        Ended::Whole => {}
    }
    Ok(Exit::Ok)
}

/// Ready when somebody wants the demo to end: Ctrl-C, a service manager, or a terminal that is closed. Listens from the
/// moment it is made, so that no order finds a process that simply dies.
fn order() -> std::io::Result<impl Future<Output = ()>> {
    let [mut interrupt, mut terminate, mut hangup] =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}
