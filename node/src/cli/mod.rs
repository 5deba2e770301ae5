//! The `kai` command line: one file for each subcommand. Data goes to stdout, everything else to stderr.

mod agent;
mod audit;
mod bench;
mod call;
mod completions;
mod config;
mod demo;
mod directory;
mod down;
mod explain;
mod find;
mod forward;
mod fsck;
mod id;
mod invite;
mod join;
mod leave;
mod logs;
mod members;
mod peers;
mod ping;
mod record;
mod relay;
mod status;
mod up;

use crate::{
    api::{ErrorAnswer, client::Client},
    daemon,
    errors::{Code, Exit, Failure},
};
use clap::{Parser, Subcommand};
use std::{io::Write, path::PathBuf, process::ExitCode};

/// Makes a home server a member of a federation: finds the others through any NAT, offers and uses services.
#[derive(Debug, Parser)]
#[command(name = "kai", bin_name = "kai", version, propagate_version = true, disable_help_subcommand = true)]
struct Args {
    /// The data folder [default: $XDG_DATA_HOME/kai, else ~/.local/share/kai].
    #[arg(long, global = true, env = "KAI_FOLDER", value_name = "PATH", hide_env_values = true)]
    folder: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node until it is stopped. Makes everything it needs on the first start, and asks nothing.
    Up(up::Args),
    /// Stop the running node.
    Down(down::Args),
    /// How the node is, and what would make it better.
    Status(status::Args),
    /// Who this node is.
    #[command(subcommand)]
    Id(id::Command),
    /// Connections with other nodes.
    Peers(peers::Args),
    /// Who is in the federation; remove someone.
    Members(members::Args),
    /// Invite someone; list and revoke invitations.
    Invite(invite::Args),
    /// Join a federation with a code.
    Join(join::Args),
    /// Leave the federation.
    Leave(leave::Args),
    /// Relays: paths for members behind NATs.
    #[command(subcommand)]
    Relay(relay::Command),
    /// Agents: what this node offers, and what others do.
    #[command(subcommand)]
    Agent(agent::Command),
    /// What there is in the federation: nodes, agents and services.
    Find(find::Args),
    /// Signed records of the directory.
    #[command(subcommand)]
    Record(record::Command),
    /// The directory: what it holds, and what was refused.
    #[command(subcommand)]
    Directory(directory::Command),
    /// Call an agent.
    Call(call::Args),
    /// Open a port of this machine that leads to an agent.
    Forward(forward::Args),
    /// What the running node logged.
    #[command(subcommand)]
    Logs(logs::Command),
    /// What this node did: config edits, admissions, removals, key events, denied calls.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Settings: what they are, where they come from.
    #[command(subcommand)]
    Config(config::Command),
    /// What an error code means.
    Explain(explain::Args),
    /// Examine the data folder.
    Fsck(fsck::Args),
    /// Completion scripts for shells.
    Completions(completions::Args),
    /// Watch a federation of three nodes and a relay come about on this machine.
    Demo(demo::Args),
    /// Measure this machine.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Measure the way to a member, and show every way that was tried.
    Ping(ping::Args),
}

/// What a subcommand works with.
struct Context {
    folder: PathBuf,
    json: bool,
    client: Client,
}

impl Context {
    /// Prints an answer: as it is with `--json`, otherwise as `text` makes it.
    fn show(&self, answer: &serde_json::Value, text: impl FnOnce() -> String) {
        let text = if self.json { format!("{answer}\n") } else { text() };
        print(&text);
    }
}

/// Prints data. A reader that went away is no error of ours.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Tells a person something that is no data.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Reads a value out of an answer of the node.
fn read<T: serde::de::DeserializeOwned>(answer: &serde_json::Value) -> Result<T, Failure> {
    T::deserialize(answer).map_err(|error| Code::Protocol.because(error))
}

/// Runs the program.
pub fn main() -> ExitCode {
    crate::os::make_files_private();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let json = args.json;
    match run(args) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            report(&failure, json);
            ExitCode::from(failure.exit() as u8)
        }
    }
}

/// Help and version are data; a command line that makes no sense is not.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::from(Exit::Ok as u8);
    }
    // What clap says, with the code behind its first line and without the word that JSON has no use for.
    let text = error.to_string();
    let text = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    if std::env::args().any(|word| word == "--json") {
        report(&Code::Usage.because(first), true);
    } else {
        say(&format!("error: {}\n{rest}", Code::Usage.because(first)));
    }
    ExitCode::from(Exit::Usage as u8)
}

fn report(failure: &Failure, json: bool) {
    if json {
        print(&format!("{}\n", serde_json::json!(ErrorAnswer::new(failure))));
        return;
    }
    let mut text = format!("error: {failure}");
    for (label, part) in [("why", &failure.why), ("hint", &failure.hint)] {
        if let Some(part) = part {
            text += &format!("\n{label}: {}", crate::text::clean(part));
        }
    }
    say(&text);
}

fn run(args: Args) -> Result<Exit, Failure> {
    let folder = daemon::folder(args.folder)?;
    let context = Context { client: Client::new(folder.clone()), folder, json: args.json };
    let is_node = matches!(args.command, Command::Up(_) | Command::Demo(_) | Command::Bench(_));
    let mut builder = if is_node {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build().map_err(|error| Code::Internal.because(error))?;
    let outcome = runtime.block_on(async {
        match args.command {
            Command::Up(args) => up::run(&context, args).await,
            Command::Down(args) => down::run(&context, args).await,
            Command::Status(args) => status::run(&context, args).await,
            Command::Id(command) => id::run(&context, command).await,
            Command::Peers(args) => peers::run(&context, args).await,
            Command::Members(args) => members::run(&context, args).await,
            Command::Invite(args) => invite::run(&context, args).await,
            Command::Join(args) => join::run(&context, args).await,
            Command::Leave(args) => leave::run(&context, args).await,
            Command::Relay(command) => relay::run(&context, command).await,
            Command::Agent(command) => agent::run(&context, command).await,
            Command::Find(args) => find::run(&context, args).await,
            Command::Record(command) => record::run(&context, command).await,
            Command::Directory(command) => directory::run(&context, command).await,
            Command::Call(args) => call::run(&context, args).await,
            Command::Forward(args) => forward::run(&context, args).await,
            Command::Logs(command) => logs::run(&context, command).await,
            Command::Audit(command) => audit::run(&context, command).await,
            Command::Config(command) => config::run(&context, command).await,
            Command::Explain(args) => explain::run(&context, args).await,
            Command::Fsck(args) => fsck::run(&context, args).await,
            Command::Completions(args) => completions::run(&context, args).await,
            Command::Demo(args) => demo::run(&context, args).await,
            Command::Bench(command) => bench::run(&context, command).await,
            Command::Ping(args) => ping::run(&context, args).await,
        }
    });
    // Tasks that wait for a terminal or a peer must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    outcome
}
