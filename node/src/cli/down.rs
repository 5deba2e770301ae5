//! `kai down`.

use super::{Context, say};
use crate::{
    errors::{Code, Exit, Failure},
    os,
};
use std::time::Duration;

/// Returns once the node has ended.
#[derive(Debug, clap::Args)]
pub struct Args {}

const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn run(context: &Context, _: Args) -> Result<Exit, Failure> {
    let status: serde_json::Value = context.client.get("/v1/status").await?;
    let pid = status["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok())
        .ok_or_else(|| Code::Protocol.plain())?;
    let answer: serde_json::Value = context.client.post("/v1/down", &()).await?;
    let ended = os::wait_for_end(pid, PATIENCE).await.map_err(|error| Code::Internal.because(error))?;
    if !ended {
        return Err(Code::StillStopping.plain());
    }
    if context.json {
        context.show(&answer, String::new);
    } else {
        say("stopped");
    }
    Ok(Exit::Ok)
}
