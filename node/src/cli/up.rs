//! `kai up`.

use super::{Context, print, say};
use crate::{
    config::Sources,
    daemon::{self, Daemon, Ended},
    errors::{Code, Exit, Failure},
    log::{self, Style},
    text,
};
use std::io::IsTerminal;

/// Flags beat `KAI_*` variables, which beat the file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the node calls itself.
    #[arg(long)]
    name: Option<String>,
    /// UDP and TCP port.
    #[arg(long)]
    port: Option<u16>,
    /// Any setting, as KEY=VALUE. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

impl Args {
    fn flags(self) -> Result<Vec<(String, String)>, Failure> {
        let mut flags = Vec::new();
        for setting in self.settings {
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| Code::Usage.because(format!("`{setting}` is not KEY=VALUE")))?;
            flags.push((key.to_owned(), value.to_owned()));
        }
        flags.extend(self.name.map(|name| ("name".to_owned(), name)));
        flags.extend(self.port.map(|port| ("network.port".to_owned(), port.to_string())));
        Ok(flags)
    }
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    // A provider that is there already serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let sources = Sources::of_process(context.folder.clone(), args.flags()?);
    let config = sources.load()?.config;
    let style = if config.log.json { Style::Json } else { Style::Text };
    let logs =
        log::start(config.log.level.as_str(), style).map_err(|error| Code::ConfigBadValue.because(error))?;
    if std::io::stderr().is_terminal() {
        say(&format!("starting in {}", context.folder.display()));
    }
    let mut tries = 0;
    loop {
        match daemon::run(sources.clone(), logs.clone(), |daemon| show(context, daemon)).await {
            Ok(Ended::Ordered) => return Ok(Exit::Ok),
            // The folder is free when the last task of the run before has let go of it.
            Ok(Ended::Again) => tries = 100,
            Err(failure) if tries > 0 && failure.is(Code::AlreadyRunning) => {
                tries -= 1;
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn show(context: &Context, daemon: &Daemon) {
    let me = daemon.runtime.me();
    if context.json {
        print(&format!("{}\n", serde_json::json!(crate::api::answer(&me))));
        return;
    }
    let federation = daemon.runtime.federations().into_iter().find(|federation| federation.default);
    let federation = federation.map_or_else(String::new, |federation| {
        format!(" in federation {} ({})", federation.name, text::count(federation.members, "member"))
    });
    print(&format!("up: {} {}{federation}\n", me.name, me.member));
}
