//! `kai logs`.

use super::{Context, print};
use crate::{
    errors::{Exit, Failure},
    log::{self, LINES_MAX},
};

/// What the running node logged.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The last lines; with --json one JSON object each.
    Tail {
        /// How many; the node keeps the last 1000.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
        lines: usize,
        /// Go on with those that follow, until Ctrl-C or the node stops.
        #[arg(short, long)]
        follow: bool,
    },
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    let Command::Tail { lines, follow } = command;
    let path = format!("/v1/logs?lines={}&follow={follow}", lines.min(LINES_MAX));
    context.client.follow(&path, |line| show(context, line)).await?;
    Ok(Exit::Ok)
}

fn show(context: &Context, line: &str) {
    let line = if context.json { line.to_owned() } else { log::render(line) };
    print(&format!("{line}\n"));
}
