//! `kai directory`.

use super::Context;
use crate::{
    errors::{Exit, Failure},
    text,
};
use serde_json::Value;

/// The directory as a whole.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// What it holds, how true that is, and what was refused, of whom and from whom.
    Stats,
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    let Command::Stats = command;
    let answer: Value = context.client.get("/v1/directory").await?;
    context.show(&answer, || render(&answer));
    Ok(Exit::Ok)
}

fn render(answer: &Value) -> String {
    let number = |key: &str| answer[key].as_u64().unwrap_or_default();
    let caught_up = answer["caught_up_ms"].as_u64();
    let caught_up =
        caught_up.map_or_else(|| "never since the start".to_owned(), |ms| format!("{} ago", text::span(ms)));
    let mut shown = text::facts(&[
        ("records", format!("{} in {}", number("records"), text::bytes(number("bytes")))),
        ("kinds", counts(&answer["kinds"])),
        (
            "since start",
            format!("{} taken, {} known, {} expired", number("merged"), number("known"), number("expired")),
        ),
        ("answers", text::clean(answer["completeness"].as_str().unwrap_or_default())),
        ("caught up", caught_up),
        ("members", counts(&answer["health"])),
        ("self-doubt", format!("{} of 8", number("doubt"))),
        ("refused", counts(&answer["refused"])),
    ]);
    let from = answer["refused_from"].as_object().into_iter().flatten();
    let rows: Vec<_> = from.map(|(name, refused)| [text::clean(name), counts(refused)]).collect();
    if !rows.is_empty() {
        shown += &format!("\n{}", text::table(["PASSED ON BY", "REFUSED"], &rows));
    }
    let row = |author: &Value| {
        let count = |key: &str| author[key].as_u64().unwrap_or_default();
        [
            text::clean(author["name"].as_str().unwrap_or_default()),
            count("records").to_string(),
            text::bytes(count("bytes")),
            count("taken").to_string(),
            counts(&author["refused"]),
        ]
    };
    let rows: Vec<_> = answer["authors"].as_array().into_iter().flatten().map(row).collect();
    if !rows.is_empty() {
        shown += &format!("\n{}", text::table(["AUTHOR", "RECORDS", "BYTES", "TAKEN", "REFUSED"], &rows));
    }
    shown
}

/// `3 node-record, 1 agent-record`.
fn counts(of: &Value) -> String {
    let counts = of.as_object().into_iter().flatten();
    let counts: Vec<_> = counts.map(|(name, count)| format!("{count} {}", text::clean(name))).collect();
    if counts.is_empty() { "-".to_owned() } else { counts.join(", ") }
}
