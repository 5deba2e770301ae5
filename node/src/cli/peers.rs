//! `kai peers`.

use super::Context;
use crate::{
    errors::{Exit, Failure},
    text,
};
use serde_json::Value;

/// Every connection, direct or over a relay's circuit.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) async fn run(context: &Context, _: Args) -> Result<Exit, Failure> {
    let answer: Value = context.client.get("/v1/peers").await?;
    context.show(&answer, || {
        let row = |peer: &Value| {
            let link = &peer["link"];
            let shown = |value: &Value| text::clean(value.as_str().unwrap_or("-"));
            [
                peer["name"].as_str().map_or_else(|| "(stranger)".to_owned(), text::clean),
                shown(&link["path"]),
                shown(&link["transport"]),
                link["rtt_ms"].as_f64().map_or_else(|| "-".to_owned(), text::millis),
                link["streams"].to_string(),
                shown(&link["address"]),
            ]
        };
        let rows: Vec<_> = answer["peers"].as_array().into_iter().flatten().map(row).collect();
        text::table(["NAME", "PATH", "TRANSPORT", "RTT", "STREAMS", "ADDRESS"], &rows)
    });
    Ok(Exit::Ok)
}
