//! `kai completions`.

use super::{Args as Kai, Context, print};
use crate::errors::{Exit, Failure};
use clap::CommandFactory;

/// Print a completion script: `kai completions bash > ~/.local/share/bash-completion/completions/kai`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// For which shell.
    shell: clap_complete::Shell,
}

#[expect(clippy::unused_async, reason = "every subcommand is called alike")]
pub(super) async fn run(_: &Context, args: Args) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Kai::command(), "kai", &mut script);
    print(&String::from_utf8_lossy(&script));
    Ok(Exit::Ok)
}
