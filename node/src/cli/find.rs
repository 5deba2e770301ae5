//! `kai find`.

use super::{Context, print};
use crate::{
    errors::{Exit, Failure},
    text,
};
use serde_json::Value;
use std::time::{SystemTime, UNIX_EPOCH};

/// What there is in the federation: nodes, agents and services, from local memory.
///
/// Words are looked for in names and texts, and may be beginnings of words. Pairs narrow it down:
/// kind:agent, class:kBridge, cap:http@^1.2, tag:photos, health:alive, member:attic. What is found has all of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Words and pairs; nothing finds everything.
    query: Vec<String>,
    /// Go on with every change, until Ctrl-C or the node stops; with --json one object a line.
    #[arg(long)]
    watch: bool,
    /// Hits to leave out: those of the pages before.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: usize,
    /// Hits on a page.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    limit: usize,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("query", &args.query.join(" "))
        .append_pair("offset", &args.offset.to_string())
        .append_pair("limit", &args.limit.to_string())
        .finish();
    if args.watch {
        let mut is_first = true;
        let show = |line: &str| {
            if context.json {
                return print(&format!("{line}\n"));
            }
            let answer: Value = serde_json::from_str(line).unwrap_or_default();
            let space = if std::mem::replace(&mut is_first, false) { "" } else { "\n" };
            print(&format!("{space}{}", render(&answer, now_ms())));
        };
        context.client.follow(&format!("/v1/find/watch?{query}"), show).await?;
        return Ok(Exit::Ok);
    }
    let answer: Value = context.client.get(&format!("/v1/find?{query}")).await?;
    context.show(&answer, || render(&answer, now_ms()));
    Ok(Exit::Ok)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn render(answer: &Value, now_ms: u64) -> String {
    let shown = |value: &Value| text::clean(value.as_str().unwrap_or_default());
    let row = |hit: &Value| {
        let capabilities: Vec<_> = hit["capabilities"].as_array().into_iter().flatten().map(shown).collect();
        let member = shown(&hit["member_name"]);
        let name = match hit["kind"].as_str() {
            Some("node") => shown(&hit["name"]),
            _ => format!("{}@{member}", shown(&hit["name"])),
        };
        [
            name,
            shown(&hit["kind"]),
            shown(&hit["health"]),
            hit["since_ms"].as_u64().map_or_else(|| "-".to_owned(), |since_ms| text::ago(since_ms, now_ms)),
            observers(&hit["observers"]),
            hit["age_ms"].as_u64().map_or_else(|| "-".to_owned(), text::span),
            capabilities.join(", "),
            shown(&hit["record"]).chars().take(12).collect(),
            shown(&hit["description"]),
        ]
    };
    let rows: Vec<_> = answer["hits"].as_array().into_iter().flatten().map(row).collect();
    let heading =
        ["NAME", "KIND", "STATUS", "SINCE", "OBSERVERS", "AGE", "CAPABILITIES", "RECORD", "DESCRIPTION"];
    format!("{}{}\n", text::table(heading, &rows), truth(answer, rows.len()))
}

/// Names, as long as they are few.
pub(super) fn observers(names: &Value) -> String {
    let names: Vec<_> =
        names.as_array().into_iter().flatten().filter_map(Value::as_str).map(text::clean).collect();
    match names.len() {
        0 => "-".to_owned(),
        1..=3 => names.join(", "),
        count => format!("{} and {} more", names[..2].join(", "), count - 2),
    }
}

/// How many there are, and how true that is.
fn truth(answer: &Value, shown: usize) -> String {
    let total = answer["total"].as_u64().unwrap_or_default();
    let caught_up = match answer["caught_up_ms"].as_u64() {
        Some(ms) => format!("last caught up {} ago", text::span(ms)),
        None => "not caught up since the start".to_owned(),
    };
    let why = match (answer["completeness"].as_str(), answer["others"].as_u64()) {
        (_, Some(0)) => "complete: there is nobody else".to_owned(),
        (Some("complete"), _) => format!("complete: {caught_up}"),
        (Some("partial"), Some(others)) if answer["caught_up_ms"].is_u64() => {
            format!("partial: {} of {others} members are out of reach, {caught_up}", answer["lost"])
        }
        (Some("partial"), _) => format!("partial: {caught_up}"),
        _ => format!("stale: linked with nobody or for long without news, {caught_up}"),
    };
    format!("{shown} of {total}, {why}")
}
