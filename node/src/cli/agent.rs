//! `kai agent`.

use super::{Context, say};
use crate::{
    api::{AgentRequest, ServiceRequest, TextRequest, WithdrawRequest},
    errors::{Code, Exit, Failure},
    text,
};
use kos_directory::contract::{Contract, parse_file};
use serde_json::Value;
use std::{
    path::{Component, Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Agents: what this node offers, and what others do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The agents of this node; with --all those of every member.
    List {
        /// Those of every member.
        #[arg(long)]
        all: bool,
    },
    /// Start an agent, and keep it running from now on.
    Start {
        /// kClass:name
        name: String,
        /// For a kBridge: the web service it stands in front of, http://host:port.
        #[arg(long, value_name = "URL")]
        http: Option<String>,
        /// The one host other than this machine that the URL may name.
        #[arg(long, value_name = "HOST", requires = "http")]
        allow_host: Option<String>,
        /// Let this pass and nothing that no rule names: methods and a path, for instance 'GET,HEAD /public/*'. May be
        /// given several times; without it every well-formed request passes.
        #[arg(long, value_name = "RULE", requires = "http")]
        allow: Vec<String>,
        /// Whether WebSockets pass, where their path does [default: true].
        #[arg(long, value_name = "true|false", requires = "http")]
        websocket: Option<bool>,
        /// For people.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Publish a service of an agent of this node, so that others find it and know what it takes and gives. From then on
    /// the agent answers the calls that its contracts list, and no others.
    Publish {
        /// A contract in TOML; schemas may lie in files beside it.
        file: PathBuf,
        /// How many linked members are to have it before the command returns; all, where there are fewer.
        #[arg(long, value_name = "N", default_value_t = 3)]
        receipts: usize,
    },
    /// Withdraw a service of this node: nobody finds it any more, and calls of its agent are no longer held against its
    /// contract.
    Unpublish {
        /// The name in the contract.
        name: String,
        /// How many linked members are to know it before the command returns; all, where there are fewer.
        #[arg(long, value_name = "N", default_value_t = 3)]
        receipts: usize,
    },
    /// Stop an agent, and what it is doing.
    Stop {
        /// kClass:name
        name: String,
    },
    /// Everything about one agent: of this node, or with @member of another.
    Show {
        /// kClass:name, or kClass:name@member
        name: String,
    },
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::List { all: false } => {
            let answer: Value = context.client.get("/v1/agents").await?;
            context.show(&answer, || own(&answer));
        }
        Command::List { all: true } => {
            let answer: Value = context.client.get("/v1/agents/all").await?;
            context.show(&answer, || everybody(&answer));
        }
        Command::Start { name, http, allow_host, allow, websocket, description } => {
            let request =
                AgentRequest { agent: name.clone(), http, allow_host, allow, websocket, description };
            let answer: Value = context.client.post("/v1/agents", &request).await?;
            done(context, &answer, &format!("{name} runs"));
        }
        Command::Publish { file, receipts } => {
            let contract = read_contract(&file)?;
            let what = format!("{} {}", contract.name, contract.version);
            let request = ServiceRequest { contract, receipts };
            let answer: Value = context.client.post("/v1/services", &request).await?;
            done(context, &answer, &format!("{what} is published, {}", stored(&answer)));
        }
        Command::Unpublish { name, receipts } => {
            let request = WithdrawRequest { name: name.clone(), receipts };
            let answer: Value = context.client.post("/v1/services/withdraw", &request).await?;
            done(context, &answer, &format!("{name} is withdrawn, {}", stored(&answer)));
        }
        Command::Stop { name } => {
            let request = TextRequest { text: name.clone(), why: String::new(), yes: true };
            let answer: Value = context.client.post("/v1/agents/stop", &request).await?;
            done(context, &answer, &format!("{name} is stopped"));
        }
        Command::Show { name } => match name.split_once('@') {
            None => {
                let found = find(context, "/v1/agents", |agent| agent["agent"] == name.as_str()).await?;
                let found = found.ok_or_else(|| missing(&name, "on this node"))?;
                context.show(&serde_json::json!({"schema_version": 1, "agent": found}), || show(&found));
            }
            Some((agent, member)) => {
                let is_it = |found: &Value| {
                    found["agent"] == agent && (found["member_name"] == member || found["member"] == member)
                };
                let found = find(context, "/v1/agents/all", is_it).await?;
                let found = found.ok_or_else(|| missing(agent, &format!("of {member}")))?;
                context
                    .show(&serde_json::json!({"schema_version": 1, "agent": found}), || show_remote(&found));
            }
        },
    }
    Ok(Exit::Ok)
}

/// Who has what was published.
fn stored(answer: &Value) -> String {
    let names: Vec<_> =
        answer["stored_by"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match names.as_slice() {
        [] => "nobody else is linked".to_owned(),
        names => format!("stored by {} ({} of {} asked)", names.join(", "), names.len(), answer["asked"]),
    }
}

/// A contract in a file, whose schemas may lie beside it.
fn read_contract(file: &Path) -> Result<Contract, Failure> {
    let at =
        |error: &dyn std::fmt::Display| Code::BadContract.because(format!("{}: {error}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| at(&error))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let resolve =
        |name: &str| match Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            true => std::fs::read_to_string(folder.join(name)).map_err(|error| error.to_string()),
            false => Err("a file below the contract's folder is meant".to_owned()),
        };
    parse_file(&text, resolve).map_err(|error| at(&error))
}

async fn find(
    context: &Context,
    path: &str,
    is_it: impl Fn(&Value) -> bool,
) -> Result<Option<Value>, Failure> {
    let answer: Value = context.client.get(path).await?;
    Ok(answer["agents"].as_array().into_iter().flatten().find(|agent| is_it(agent)).cloned())
}

fn missing(agent: &str, whose: &str) -> Failure {
    Code::NoSuchAgent.because(format!("there is no {} {}", text::clean(agent), text::clean(whose)))
}

fn done(context: &Context, answer: &Value, what: &str) {
    if context.json {
        context.show(answer, String::new);
    } else {
        say(&text::clean(what));
    }
}

fn own(answer: &Value) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let shown = |value: &Value| text::clean(value.as_str().unwrap_or("-"));
    let row = |agent: &Value| {
        let condition = &agent["condition"];
        [
            shown(&agent["agent"]),
            state(condition),
            condition["since_ms"]
                .as_u64()
                .map_or_else(|| "-".to_owned(), |since_ms| text::ago(since_ms, now_ms)),
            shown(&agent["origin"]),
            shown(&agent["description"]),
        ]
    };
    let rows: Vec<_> = answer["agents"].as_array().into_iter().flatten().map(row).collect();
    text::table(["AGENT", "STATE", "SINCE", "ORIGIN", "DESCRIPTION"], &rows)
}

fn everybody(answer: &Value) -> String {
    let shown = |value: &Value| text::clean(value.as_str().unwrap_or("-"));
    let row = |agent: &Value| {
        [
            format!("{}@{}", shown(&agent["agent"]), shown(&agent["member_name"])),
            if agent["reachable"] == true { "reachable" } else { "away" }.to_owned(),
            shown(&agent["protocol"]),
            agent["age_ms"].as_u64().map_or_else(|| "-".to_owned(), text::span),
            shown(&agent["description"]),
        ]
    };
    let rows: Vec<_> = answer["agents"].as_array().into_iter().flatten().map(row).collect();
    text::table(["AGENT", "NODE", "PROTOCOL", "AGE", "DESCRIPTION"], &rows)
}

/// What an agent is doing. One without a condition has not run since the node started.
fn state(condition: &Value) -> String {
    text::clean(condition["state"].as_str().unwrap_or("stopped"))
}

fn show_remote(agent: &Value) -> String {
    let shown = |value: &Value| text::clean(value.as_str().unwrap_or("-"));
    let capabilities: Vec<String> =
        agent["capabilities"].as_array().into_iter().flatten().map(shown).collect();
    text::facts(&[
        ("agent", shown(&agent["agent"])),
        ("member", format!("{} {}", shown(&agent["member_name"]), shown(&agent["member"]))),
        ("node", if agent["reachable"] == true { "reachable" } else { "away" }.to_owned()),
        ("protocol", shown(&agent["protocol"])),
        ("can", capabilities.join(", ")),
        (
            "heard",
            agent["age_ms"].as_u64().map_or_else(|| "-".to_owned(), |ms| format!("{} ago", text::span(ms))),
        ),
        ("description", shown(&agent["description"])),
    ])
}

fn show(agent: &Value) -> String {
    let shown = |value: &Value| text::clean(value.as_str().unwrap_or("-"));
    let condition = &agent["condition"];
    text::facts(&[
        ("agent", shown(&agent["agent"])),
        ("state", state(condition)),
        ("reason", shown(&condition["reason"])),
        ("restarts", condition["restarts"].as_u64().unwrap_or_default().to_string()),
        ("origin", shown(&agent["origin"])),
        ("allows", allows(&agent["policy"])),
        ("websockets", websockets(&agent["policy"]).to_owned()),
        ("description", shown(&agent["description"])),
    ])
}

/// The rules of a bridge.
fn allows(policy: &Value) -> String {
    let rules = policy["allow"].as_array().into_iter().flatten();
    let rules: Vec<String> = rules.map(|rule| text::clean(rule.as_str().unwrap_or("-"))).collect();
    match (policy.is_null(), rules.as_slice()) {
        (true, _) => "-".to_owned(),
        (false, []) => "every well-formed request".to_owned(),
        (false, rules) => rules.join(", "),
    }
}

fn websockets(policy: &Value) -> &'static str {
    match policy["upgrade"].as_str() {
        None => "-",
        Some("web-socket") => "pass",
        Some(_) => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_has_not_run_is_shown_as_stopped() {
        let agent =
            serde_json::json!({"agent": "kBridge:notes", "condition": null, "origin": "http://127.0.0.1:1"});
        let shown = show(&agent);
        assert!(shown.contains("state        stopped\n") && shown.contains("restarts     0\n"), "{shown}");
    }
}
