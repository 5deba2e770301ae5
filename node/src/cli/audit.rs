//! `kai audit`.

use super::{Context, say};
use crate::{
    errors::{Exit, Failure},
    text,
};
use serde_json::Value;

/// The signed log of config edits, admissions, removals, key events and denied calls.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Entries, oldest first: the newest ones, or those behind a number.
    List {
        /// Entries behind this number; 0 begins with the first.
        #[arg(long, value_name = "N")]
        after: Option<u64>,
        /// How many at most, up to 1000.
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
    },
    /// Check every signature and every link of the chain.
    Verify,
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::List { after, limit } => {
            let after = after.map_or_else(String::new, |after| format!("&after={after}"));
            let answer: Value = context.client.get(&format!("/v1/audit?limit={limit}{after}")).await?;
            context.show(&answer, || list(&answer));
            if let (false, Some(next)) = (context.json, answer["next"].as_u64()) {
                say(&format!("there are more: kai audit list --after {next}"));
            }
        }
        Command::Verify => {
            let answer: Value = context.client.get("/v1/audit/verify").await?;
            context.show(&answer, || {
                format!("the log holds: {} signed entries in one chain\n", answer["entries"])
            });
        }
    }
    Ok(Exit::Ok)
}

fn list(answer: &Value) -> String {
    let row = |entry: &Value| {
        [
            entry["seq"].to_string(),
            text::when(entry["time_ms"].as_u64().unwrap_or_default()),
            text::clean(entry["kind"].as_str().unwrap_or_default()),
            text::clean(entry["text"].as_str().unwrap_or_default()),
        ]
    };
    let rows: Vec<_> = answer["entries"].as_array().into_iter().flatten().map(row).collect();
    text::table(["N", "WHEN", "KIND", "WHAT"], &rows)
}
