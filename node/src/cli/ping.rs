//! `kai ping`.

use super::Context;
use crate::{
    api::PingRequest,
    errors::{Exit, Failure},
    text,
};
use serde_json::Value;

/// Measures at the level of calls, over the way that calls take.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, id, or the beginning of an id.
    name: String,
    /// How often.
    #[arg(long, short, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    count: u32,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let request = PingRequest { name: args.name, count: args.count };
    let answer: Value = context.client.post("/v1/ping", &request).await?;
    context.show(&answer, || render(&answer));
    // Every way that was tried is the answer here, also when none works.
    Ok(if answer["chosen"] == "none" { Exit::Failed } else { Exit::Ok })
}

fn render(report: &Value) -> String {
    let shown = |value: &Value| text::clean(value.as_str().unwrap_or_default());
    let rtts: Vec<String> = report["rtts_ms"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_f64)
        .map(text::millis)
        .collect();
    let mut out = format!("{}: {}\n", shown(&report["name"]), rtts.join(", "));
    out += &format!("over: {} ({})\n", shown(&report["chosen"]), shown(&report["why"]));
    if let Some(fix) = report["fix"].as_str() {
        out += &format!("to change that: {}\n", text::clean(fix));
    }
    out.push('\n');
    let row = |path: &Value| {
        [
            if path["works"] == true { "works" } else { "failed" }.to_owned(),
            path["rtt_ms"].as_f64().map_or_else(|| "-".to_owned(), text::millis),
            shown(&path["path"]),
            shown(&path["why"]),
        ]
    };
    let rows: Vec<_> = report["paths"].as_array().into_iter().flatten().map(row).collect();
    out + &text::table(["STATE", "RTT", "PATH", "WHY"], &rows)
}
