//! `kai relay`.

use super::{Context, say};
use crate::{
    api::TextRequest,
    errors::{Exit, Failure},
    text,
};
use serde_json::Value;

/// Relays give members behind NATs a path to each other, and read nothing.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Admit a relay by the line it prints.
    Add {
        /// `kai:relay/…`
        line: String,
    },
    /// The relays of the federation.
    List,
    /// End a relay's membership.
    Remove {
        /// Name, id, or the beginning of an id.
        name: String,
    },
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    let request = |text: String| TextRequest { text, why: String::new(), yes: true };
    match command {
        Command::Add { line } => {
            let answer: Value = context.client.post("/v1/relays/add", &request(line)).await?;
            context.show(&answer, || {
                format!("relay {} is in\n", text::clean(answer["name"].as_str().unwrap_or_default()))
            });
        }
        Command::List => {
            let answer: Value = context.client.get("/v1/relays").await?;
            context.show(&answer, || {
                let row = |relay: &Value| {
                    let link = &relay["link"];
                    [
                        text::clean(relay["name"].as_str().unwrap_or_default()),
                        link["path"].as_str().unwrap_or("-").to_owned(),
                        link["transport"].as_str().unwrap_or("-").to_owned(),
                        link["rtt_ms"].as_f64().map_or_else(|| "-".to_owned(), text::millis),
                        if relay["reserved"] == true { "yes" } else { "no" }.to_owned(),
                        relay["member"].as_str().map(|id| text::short_id(&id)).unwrap_or_default(),
                    ]
                };
                let rows: Vec<_> = answer["relays"].as_array().into_iter().flatten().map(row).collect();
                text::table(["NAME", "PATH", "TRANSPORT", "RTT", "PLACE", "MEMBER"], &rows)
            });
        }
        Command::Remove { name } => {
            let answer: Value = context.client.post("/v1/relays/remove", &request(name)).await?;
            if context.json {
                context.show(&answer, String::new);
            } else {
                say("removed");
            }
        }
    }
    Ok(Exit::Ok)
}
