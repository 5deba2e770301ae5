//! `kai leave`.

use super::{Context, say};
use crate::{
    errors::{Code, Exit, Failure},
    os,
};
use serde_json::Value;
use std::io::IsTerminal;

/// Asks a steward to be let go and forgets the federation. A new invitation brings the node back.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do it without being asked.
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    if !args.yes {
        if !std::io::stdin().is_terminal() {
            return Err(Code::NoTerminal.because("nobody is there to confirm").hint("kai leave --yes"));
        }
        eprint!("leave the federation? [y/N] ");
        let line = os::read_line().map_err(|error| Code::NoTerminal.because(error))?;
        if !matches!(line.trim(), "y" | "Y" | "yes") {
            return Err(Code::Declined.plain());
        }
    }
    let answer: Value = context.client.post("/v1/leave", &()).await?;
    if context.json {
        context.show(&answer, String::new);
    } else {
        say("left");
    }
    Ok(Exit::Ok)
}
