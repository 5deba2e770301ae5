//! `kai record`.

use super::Context;
use crate::{
    errors::{Exit, Failure},
    text,
};
use serde_json::Value;

/// Signed records of the directory.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Everything a record says, and who signed it.
    Show {
        /// The record's id, or its beginning, as `kai find` shows it.
        hash: String,
    },
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    let Command::Show { hash } = command;
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("hash", &hash).finish();
    let answer: Value = context.client.get(&format!("/v1/record?{query}")).await?;
    context.show(&answer, || {
        let shown = |key: &str| text::clean(answer[key].as_str().unwrap_or_default());
        let content = serde_json::to_string_pretty(&answer["content"]).unwrap_or_default();
        let facts = text::facts(&[
            ("record", shown("record")),
            ("kind", shown("kind")),
            ("author", format!("{} {}", shown("author_name"), shown("author"))),
            ("signed", format!("with key {}, verified", answer["key_seq"])),
            ("size", text::bytes(answer["bytes"].as_u64().unwrap_or_default())),
        ]);
        let content: Vec<_> = content.lines().map(text::clean).collect();
        format!("{facts}\n{}\n", content.join("\n"))
    });
    Ok(Exit::Ok)
}
