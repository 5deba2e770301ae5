//! `kai id`.

use super::{Context, print, say};
use crate::{
    api::TextRequest,
    errors::{Code, Exit, Failure},
    os, text,
};
use serde_json::Value;
use std::io::IsTerminal;

/// Who this node is.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show the member id, the current key and the libp2p id. No secrets.
    Show,
    /// Show the 24 recovery words on this terminal, ask three of them back, and take the recovery key off the node.
    Backup,
    /// Replace the key by the recovery key; afterwards there is a new one to back up.
    Rotate,
    /// Take a member over on this machine, into an empty data folder, with its recovery words.
    Restore {
        /// The member's identity line, as `kai id backup` and `kai id show` print it.
        line: String,
    },
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Show => {
            let me: Value = context.client.get("/v1/me").await?;
            let fact = |name: &str| text::clean(me[name].as_str().unwrap_or_default());
            let backed_up =
                if me["backed_up"] == true { "written down" } else { "on this node: kai id backup" };
            context.show(&me, || {
                text::facts(&[
                    ("member", fact("member")),
                    ("name", fact("name")),
                    ("key", fact("key")),
                    ("rotations", me["rotations"].to_string()),
                    ("peer id", fact("peer_id")),
                    ("recovery", backed_up.to_owned()),
                    ("line", fact("line")),
                ])
            });
            Ok(Exit::Ok)
        }
        Command::Backup => backup(context).await,
        Command::Rotate => rotate(context).await,
        Command::Restore { line } => restore(context, &line),
    }
}

/// Secrets are shown to a person at a terminal, and nowhere else.
async fn backup(context: &Context) -> Result<Exit, Failure> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Code::NoTerminal.because("recovery words are shown on a terminal only"));
    }
    let answer: Value = context.client.get("/v1/id/words").await?;
    let words = answer["words"].as_str().ok_or_else(|| Code::Protocol.plain())?;
    let words: Vec<&str> = words.split(' ').collect();
    for (row, four) in words.chunks(4).enumerate() {
        let numbered: Vec<String> = four
            .iter()
            .enumerate()
            .map(|(place, word)| format!("{:>2} {word:<10}", row * 4 + place + 1))
            .collect();
        print(&format!("{}\n", numbered.join(" ")));
    }
    say("write them down on paper, in this order, and keep the identity line of `kai id show` with them");
    // Which three are asked differs from time to time; it is no secret.
    let start = std::process::id() as usize;
    for turn in 0..3 {
        let place = (start + turn * 7) % words.len();
        let given = os::read_hidden(&format!("word {}: ", place + 1))
            .map_err(|error| Code::NoTerminal.because(error))?;
        if given.trim() != words[place] {
            return Err(Code::WordsMismatch.plain());
        }
    }
    let _: Value = context.client.post("/v1/id/words/kept", &()).await?;
    say("the recovery key is off this node now");
    Ok(Exit::Ok)
}

/// The words are asked for where the recovery key is not on the node any more.
async fn rotate(context: &Context) -> Result<Exit, Failure> {
    let me: Value = context.client.get("/v1/me").await?;
    let words = if me["backed_up"] == true { read_words()? } else { String::new() };
    let request = TextRequest { text: words, why: String::new(), yes: true };
    let answer: Value = context.client.post("/v1/id/rotate", &request).await?;
    context.show(&answer, || {
        format!("the key is {} now\n", text::clean(answer["key"].as_str().unwrap_or_default()))
    });
    Ok(Exit::Ok)
}

fn read_words() -> Result<String, Failure> {
    let words =
        if std::io::stdin().is_terminal() { os::read_hidden("recovery words: ") } else { os::read_line() };
    Ok(words.map_err(|error| Code::NoTerminal.because(error))?.trim().to_owned())
}

fn restore(context: &Context, line: &str) -> Result<Exit, Failure> {
    let log = crate::identity_line::parse(line).map_err(|why| Code::IdentityLine.because(why))?;
    let words = read_words()?;
    let secrets = kos_shell::Secrets::of_system().map_err(|error| Code::KeysSealed.because(error))?;
    let identity = kos_shell::restore(&context.folder, &secrets, &log, &words)
        .map_err(|error| crate::daemon::not_restored(&error))?;
    context.show(&serde_json::json!({"schema_version": 1, "member": identity}), || {
        format!(
            "this folder is {identity} now; `kai up` starts it, `kai join` brings it back to its federation\n"
        )
    });
    Ok(Exit::Ok)
}
