//! What the node counts, as Prometheus reads it: what every node tells (`kos_shell::metrics`), and what only one with
//! agents has. `docs/metrics.md` lists all of it.

use crate::{
    agents::AgentView,
    daemon::Daemon,
    errors::{Code, Failure},
    os,
};
use axum::{extract, http::header, response::IntoResponse};
use kos_agents::supervisor::State;
use kos_shell::metrics::{CONTENT_TYPE, Metric, gauge};
use std::sync::Arc;

const AGENTS: Metric = gauge("kos_agents", "", &["state"], "Agents of this node, by what they are doing.");
const RESIDENT: Metric = gauge("kos_resident_memory_bytes", "bytes", &[], "Memory the process has in use.");

/// What the node tells beside [`kos_shell::metrics::METRICS`].
pub const METRICS: &[Metric] = &[AGENTS, RESIDENT];

/// The states of `kos_agents`, with their labels.
pub const AGENT_STATES: [(State, &str); 5] = [
    (State::Stopped, "stopped"),
    (State::Starting, "starting"),
    (State::Running, "running"),
    (State::BackingOff, "backing_off"),
    (State::Failed, "failed"),
];

/// Everything this node counts.
///
/// # Errors
/// [`Code::MeshStopped`].
pub async fn render(daemon: &Daemon) -> Result<String, Failure> {
    let mut out = daemon.runtime.metrics().await.ok_or_else(|| Code::MeshStopped.plain())?;
    let agents = daemon.agents.list();
    // One that was never started has no condition.
    let state = |agent: &AgentView| agent.condition.as_ref().map_or(State::Stopped, |how| how.state);
    let count = |wanted: State| agents.iter().filter(|agent| state(agent) == wanted).count() as u64;
    out.family(&AGENTS, AGENT_STATES.map(|(state, label)| ([label], count(state))));
    // Where the system does not say, the family stays empty.
    out.family(&RESIDENT, os::resident_bytes().map(|bytes| ([] as [&str; 0], bytes)));
    Ok(out.finish())
}

/// `GET /v1/metrics`.
pub async fn metrics(
    extract::State(daemon): extract::State<Arc<Daemon>>,
) -> Result<impl IntoResponse, Failure> {
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], render(&daemon).await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kos_shell::metrics;
    use std::collections::BTreeSet;

    const DOCUMENT: &str = include_str!("../../docs/metrics.md");

    fn row(metric: &Metric) -> String {
        let Metric { name, kind, unit, labels, help } = metric;
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let row = format!("| `{name}` | {} | {unit} | {} | {help} |", kind.label(), labels.join(", "));
        row.replace("|  |", "| |").replace("|  |", "| |")
    }

    fn values((label, values): &(&str, Vec<&str>)) -> String {
        let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
        format!("| {label} | {} |", values.join(", "))
    }

    #[test]
    fn the_document_says_what_the_code_counts() {
        let mut sets = metrics::label_values();
        sets.push(("`state` of `kos_agents`", AGENT_STATES.map(|(_, label)| label).to_vec()));
        let rows = metrics::METRICS.iter().chain(METRICS).map(row).chain(sets.iter().map(values));
        let counted: BTreeSet<String> = rows.collect();
        let told: BTreeSet<String> =
            DOCUMENT.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect();
        let list = |lines: Vec<&String>| lines.into_iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        let (lacking, extra) =
            (list(counted.difference(&told).collect()), list(told.difference(&counted).collect()));
        assert!(lacking.is_empty() && extra.is_empty(), "add:\n{lacking}\nremove:\n{extra}");
    }
}
