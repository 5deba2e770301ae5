//! Routes about agents: those of this node, those of others, their services, and forwards.

use super::{
    AgentRequest, Done, ForwardRequest, Reply, SCHEMA_VERSION, ServiceRequest, TextRequest, WithdrawRequest,
    node_routes::unresolved, reply,
};
use crate::{
    agents::{AgentView, HostError, StartBridge},
    daemon::Daemon,
    errors::{Code, Failure},
    forward::{Forward, Remote},
    text,
};
use axum::{
    Json, Router,
    body::Body as AxumBody,
    extract::State,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use futures::stream;
use kos_agents::http::{Policy, Rule, Upgrade};
use kos_protocol::id::AgentId;
use kos_shell::{AgentInfo, PublishFailed, Receipts};
use serde::Serialize;
use std::sync::Arc;

type Node = State<Arc<Daemon>>;

pub(super) fn router() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/agents", get(list).post(start))
        .route("/v1/agents/all", get(list_all))
        .route("/v1/agents/stop", post(stop))
        .route("/v1/services", post(publish))
        .route("/v1/services/withdraw", post(withdraw))
        .route("/v1/forward", post(forward))
        .layer(axum::extract::DefaultBodyLimit::max(16 * 1024 * 1024))
}

#[derive(Serialize)]
struct Own {
    agents: Vec<AgentView>,
}

async fn list(State(daemon): Node) -> Reply<Own> {
    reply(Own { agents: daemon.agents.list() })
}

#[derive(Serialize)]
struct All {
    agents: Vec<AgentInfo>,
}

async fn list_all(State(daemon): Node) -> Reply<All> {
    reply(All { agents: daemon.runtime.agents(&daemon.federation()) })
}

fn not_hosted(error: &HostError) -> Failure {
    use kos_agents::registry::RegistryError;
    let code = match error {
        HostError::Origin(_) | HostError::Pin(_) => Code::AgentOrigin,
        HostError::Registry(RegistryError::Unknown(_)) => Code::NoSuchAgent,
        HostError::Registry(RegistryError::AlwaysRuns(_)) => Code::AgentFixed,
        HostError::NotABridge(_) => Code::AgentFixed,
        HostError::Save(_) => Code::LedgerReadOnly,
        _ => Code::AgentFailed,
    };
    code.because(error)
}

fn agent_id(text: &str) -> Result<AgentId, Failure> {
    text.parse().map_err(|error| Code::BadAgentName.because(error))
}

/// Publishes a service of an agent of this node.
async fn publish(State(daemon): Node, Json(request): Json<ServiceRequest>) -> Reply<Receipts> {
    let ServiceRequest { contract, receipts } = request;
    let own = daemon.runtime.me().member;
    contract.check_by(own).map_err(|error| Code::BadContract.because(error))?;
    if !daemon.agents.offers().iter().any(|offer| offer.agent == contract.agent) {
        return Err(Code::NoSuchAgent.because(format!("{} does not run on this node", contract.agent)));
    }
    let told = format!("{} {} is published", contract.name, contract.version);
    let published = daemon.runtime.publish_service(&daemon.federation(), contract, receipts).await;
    let receipts = published.map_err(not_published)?;
    daemon.audit.note("config", &told);
    reply(receipts)
}

/// Withdraws a service of this node.
async fn withdraw(State(daemon): Node, Json(request): Json<WithdrawRequest>) -> Reply<Receipts> {
    let WithdrawRequest { name, receipts } = request;
    let withdrawn = daemon.runtime.withdraw_service(&daemon.federation(), &name, receipts).await;
    let receipts = withdrawn.map_err(not_published)?;
    daemon.audit.note("config", &format!("{name} is withdrawn"));
    reply(receipts)
}

fn not_published(error: PublishFailed) -> Failure {
    match error {
        PublishFailed::NotInFederation => Code::NotInFederation.plain(),
        PublishFailed::NoService(_) => Code::NoSuchService.because(error),
        error => Code::Internal.because(error),
    }
}

async fn start(State(daemon): Node, Json(request): Json<AgentRequest>) -> Reply<Done> {
    let agent = agent_id(&request.agent)?;
    match request.http {
        Some(origin) => {
            let upgrade = if request.websocket.unwrap_or(true) { Upgrade::WebSocket } else { Upgrade::None };
            let allow = request.allow.iter().map(|text| text.parse::<Rule>()).collect::<Result<_, _>>();
            let allow = allow.map_err(|error| Code::BadRule.because(error))?;
            let start = StartBridge {
                origin,
                allow_host: request.allow_host,
                policy: Policy { allow, upgrade },
                description: request.description,
            };
            let told = format!("{agent} stands in front of {}", text::clean(&start.origin));
            daemon.agents.start_bridge(agent, start).await.map_err(|error| not_hosted(&error))?;
            daemon.audit.note("config", &told);
        }
        None => {
            daemon.agents.start(&agent).map_err(|error| not_hosted(&error))?;
            daemon.audit.note("config", &format!("{agent} is started"));
        }
    }
    daemon.offer_agents().await;
    reply(Done { done: true })
}

async fn stop(State(daemon): Node, Json(request): Json<TextRequest>) -> Reply<Done> {
    let agent = agent_id(&request.text)?;
    daemon.agents.stop(&agent).map_err(|error| not_hosted(&error))?;
    daemon.audit.note("config", &format!("{agent} is stopped"));
    daemon.offer_agents().await;
    reply(Done { done: true })
}

/// Opens a port and keeps it open for as long as the command reads: one JSON object, then nothing until it goes away.
async fn forward(State(daemon): Node, Json(request): Json<ForwardRequest>) -> Result<Response, Failure> {
    let target = daemon.runtime.resolve_agent(&daemon.federation(), &request.agent).map_err(unresolved)?;
    let remote = Remote {
        runtime: daemon.runtime.clone(),
        federation: target.to.federation,
        member: target.member,
        agent: target.agent.clone(),
    };
    let forward = Forward::listen(request.port, Arc::new(remote))
        .await
        .map_err(|error| Code::Forward.because(format!("port {}: {error}", request.port)))?;
    let line = serde_json::json!({
        "schema_version": SCHEMA_VERSION,
        "address": forward.address(),
        "agent": target.agent,
        "member": target.member_name,
    });
    let stop = daemon.stop.clone();
    let lines = stream::unfold((Some(format!("{line}\n")), forward), move |(line, forward)| {
        let stop = stop.clone();
        async move {
            if let Some(line) = line {
                return Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), (None, forward)));
            }
            // The port closes with the stream: when the command goes away, or the node stops.
            stop.cancelled().await;
            None
        }
    });
    Ok(Response::new(AxumBody::from_stream(lines)))
}
