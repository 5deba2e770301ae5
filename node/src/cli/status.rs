//! `kai status`.

use super::{Context, read};
use crate::{
    api::Finding,
    errors::{Exit, Failure},
    text,
};
use serde_json::Value;

/// Exits with 7 when something could be better.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) async fn run(context: &Context, _: Args) -> Result<Exit, Failure> {
    let answer: Value = context.client.get("/v1/status").await?;
    let findings: Vec<Finding> = read(&answer["findings"])?;
    context.show(&answer, || render(&answer, &findings));
    Ok(if findings.is_empty() { Exit::Ok } else { Exit::Warnings })
}

/// One verdict line, what to do about what is wrong, then the facts.
fn render(status: &Value, findings: &[Finding]) -> String {
    let shown = |value: &Value| text::clean(value.as_str().unwrap_or_default());
    let (name, up_ms) = (shown(&status["me"]["name"]), status["up_ms"].as_u64().unwrap_or_default());
    let mut out = match findings {
        [] => format!("{name} is healthy, up for {}\n", text::span(up_ms)),
        some => format!("{name} is up for {}, {}:\n", text::span(up_ms), text::count(some.len(), "warning")),
    };
    for finding in findings {
        out += &format!("  {} ({})\n", finding.message, finding.code);
        if let Some(fix) = &finding.fix {
            out += &format!("    run: {fix}\n");
        }
    }
    out += "\n";
    let reach = &status["reachability"];
    let federations: Vec<String> = status["federations"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|federation| {
            let members = federation["members"].as_u64().unwrap_or_default();
            let role =
                federation["role"].as_str().map_or_else(|| "removed".to_owned(), |role| role.to_lowercase());
            format!("{} ({role}, {})", shown(&federation["name"]), text::count(members as usize, "member"))
        })
        .collect();
    let mut facts = vec![
        ("member", shown(&status["me"]["member"])),
        ("federation", federations.join(", ")),
        ("reachable", format!("{}: {}", shown(&reach["class"]), shown(&reach["explanation"]))),
        ("nat", format!("ports: {}; lets in: {}", shown(&reach["mapping"]), shown(&reach["filtering"]))),
        ("router", shown(&reach["port_mapping"])),
        ("hash table", hash_table(&status["hash_table"])),
        ("links", format!("{} links, {} sessions", status["links"], status["sessions"])),
        ("flows", format!("{} opened in the last minute", status["flows_per_minute"])),
        ("folder", shown(&status["folder"])),
    ];
    if let Some(api) = status["api"].as_str() {
        facts.push(("api", text::clean(api)));
    }
    if let Some(resident) = status["resident_bytes"].as_u64() {
        facts.push(("memory", text::bytes(resident)));
    }
    out + &text::facts(&facts)
}

fn hash_table(table: &Value) -> String {
    let count = |name: &str, what| text::count(table[name].as_u64().unwrap_or_default() as usize, what);
    match table["role"].as_str() {
        None => "off".to_owned(),
        Some("server") => {
            format!("keeps {} for others, knows {}", count("names_kept", "name"), count("servers", "server"))
        }
        Some(_) => format!("asks {}", count("servers", "server")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_comes_first_and_names_the_command() {
        let status = serde_json::json!({
            "me": {"name": "attic", "member": "kos1x"}, "up_ms": 1000, "federations": [],
            "reachability": {"class": "lan", "explanation": "x", "mapping": "", "filtering": "", "port_mapping": ""},
            "links": 1, "sessions": 0, "flows_per_minute": 2, "folder": "/f",
        });
        assert!(render(&status, &[]).starts_with("attic is healthy, up for 1 s\n"));
        let finding = Finding {
            code: "KAI-ID-0008".into(),
            message: "the recovery key is not written down".into(),
            fix: Some("kai id backup".into()),
        };
        let shown = render(&status, &[finding]);
        assert!(shown.starts_with("attic is up for 1 s, 1 warning:\n"), "{shown}");
        assert!(shown.contains("    run: kai id backup\n"), "{shown}");
    }
}
