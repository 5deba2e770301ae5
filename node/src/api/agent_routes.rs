//! Routes about agents: those of this node, those of others, calls and forwards.

use super::{
    AgentRequest, CallHead, CallRequest, Done, ForwardRequest, Reply, SCHEMA_VERSION, ServiceRequest,
    TextRequest, node_routes::unresolved, reply,
};
use crate::{
    agents::{AgentView, HostError, StartBridge},
    daemon::Daemon,
    errors::{Code, Failure},
    forward::{
        Forward, Remote,
        body::{Inbound, Reply as Streamed},
    },
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
use http::HeaderValue;
use kos_agents::http::{HttpReply, INTENT, Policy, Rule, Upgrade, from_client, to_client};
use kos_mesh::link::CallError;
use kos_protocol::{
    id::AgentId,
    limits::NAME_BYTES_MAX,
    message::{End, Head, Status},
    trace::TraceContext,
};
use kos_shell::{AgentInfo, PublishFailed, Receipts};
use serde::Serialize;
use serde_bytes::ByteBuf;
use std::sync::Arc;

type Node = State<Arc<Daemon>>;

/// The header of an answer that tells a call's head.
pub const CALL_HEAD: &str = "x-kai-call";

pub(super) fn router() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/agents", get(list).post(start))
        .route("/v1/agents/all", get(list_all))
        .route("/v1/agents/stop", post(stop))
        .route("/v1/services", post(publish))
        .route("/v1/call", post(call))
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
    contract.check().map_err(|error| Code::BadContract.because(error))?;
    if !daemon.agents.offers().iter().any(|offer| offer.agent == contract.agent) {
        return Err(Code::NoSuchAgent.because(format!("{} does not run on this node", contract.agent)));
    }
    let told = format!("{} {} is published", contract.name, contract.version);
    let published = daemon.runtime.publish_service(&daemon.federation(), contract, receipts).await;
    let receipts = published.map_err(|error| match error {
        PublishFailed::NotInFederation => Code::NotInFederation.plain(),
        error => Code::Internal.because(error),
    })?;
    daemon.audit.note("config", &told);
    reply(receipts)
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

/// What a refused or failed call is reported as.
pub(super) fn ended(end: &End) -> Failure {
    let code = match end.status {
        Status::Unavailable if end.text.starts_with("outcome unknown") => Code::CallUnknown,
        Status::Denied => Code::CallDenied,
        Status::NotFound => Code::CallNotFound,
        Status::Invalid => Code::CallInvalid,
        Status::TooLarge => Code::CallTooLarge,
        Status::RateLimited => Code::CallRateLimited,
        Status::Timeout => Code::CallTimeout,
        Status::Unavailable => Code::CallUnavailable,
        Status::Cancelled => Code::CallCancelled,
        Status::Ok | Status::Internal => Code::CallInternal,
    };
    code.because(end)
}

fn not_called(error: &CallError) -> Failure {
    let code = match error {
        CallError::Stream(_) => Code::CallCutShort,
        CallError::OutcomeUnknown(_) => Code::CallUnknown,
        CallError::TooLarge(_) => Code::CallTooLarge,
        CallError::Busy { .. } => Code::CallRateLimited,
        CallError::NotInFederation => Code::NotInFederation,
        _ => Code::MemberUnreachable,
    };
    code.because(error)
}

/// Calls an agent and streams its answer. An answer cut short cuts this one, so that the command notices.
async fn call(State(daemon): Node, Json(request): Json<CallRequest>) -> Result<Response, Failure> {
    let Called { head, body } = open_call(&daemon, request).await?;
    let shown = serde_json::to_string(&head).map_err(|error| Code::Internal.because(error))?;
    // Header values are ASCII; whatever else a service put into its own is escaped.
    let shown: String = shown
        .chars()
        .flat_map(|c| if c.is_ascii() { vec![c] } else { c.escape_unicode().collect() })
        .collect();
    let mut response = Response::new(body);
    if let Ok(value) = HeaderValue::from_str(&shown) {
        response.headers_mut().insert(CALL_HEAD, value);
    }
    Ok(response)
}

/// A call that is being answered.
pub(super) struct Called {
    /// What was answered before the body.
    pub head: CallHead,
    /// Streams; fails where the answer is cut short.
    pub body: AxumBody,
}

/// Calls an agent and waits for the head of its answer.
pub(super) async fn open_call(daemon: &Daemon, request: CallRequest) -> Result<Called, Failure> {
    let target = daemon.runtime.resolve_agent(&daemon.federation(), &request.agent).map_err(unresolved)?;
    let body = data_encoding::BASE64
        .decode(request.body.as_bytes())
        .map_err(|error| Code::BadRequest.because(format!("the body is not base64: {error}")))?;
    let mut fields: Vec<(String, ByteBuf)> = request
        .headers
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), ByteBuf::from(value.into_bytes())))
        .collect();
    if !body.is_empty() {
        fields.push(("content-length".to_owned(), ByteBuf::from(body.len().to_string().into_bytes())));
    }
    let passed = from_client(&request.method, &request.path, fields)
        .map_err(|error| Code::CallInvalid.because(error))?;
    let params = passed.into_request().encode().map_err(|error| Code::CallTooLarge.because(error))?;
    let head = Head {
        intent: INTENT.to_owned(),
        target: Some(target.agent.to_string()),
        idempotency_key: request.idempotency_key.as_deref().map(idempotency_key).transpose()?,
        params,
        ..Head::default()
    };
    let head = daemon.runtime.links().traced(&head);
    let trace = head.trace.as_ref().and_then(|trace| trace.parse::<TraceContext>().ok());
    let asked = daemon.runtime.request(&target.to.federation, &target.member, &head, &body).await;
    let (exchange, answer) = asked.map_err(|error| not_called(&error))?;
    let route = exchange.route().to_string();
    let (_, recv) = exchange.into_halves();
    let answer = answer.map_err(|end| ended(&end))?;
    let answer =
        HttpReply::decode(&answer.params).map_err(|error| Code::CallInternal.because(error)).and_then(
            |answer| to_client(answer, Upgrade::None).map_err(|error| Code::CallInternal.because(error)),
        )?;
    let fields = answer.fields.into_iter();
    let head = CallHead {
        status: answer.status,
        headers: fields.map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned())).collect(),
        route,
        trace: trace.map(|trace| trace.id().to_string()).unwrap_or_default(),
    };
    Ok(Called { head, body: AxumBody::new(Streamed::Streamed(Inbound::new(recv))) })
}

/// A key as it travels.
///
/// # Errors
/// [`Code::BadRequest`].
pub(super) fn idempotency_key(text: &str) -> Result<ByteBuf, Failure> {
    if (1..=NAME_BYTES_MAX).contains(&text.len()) {
        return Ok(ByteBuf::from(text));
    }
    Err(Code::BadRequest
        .because(format!("an idempotency key has 1 to {NAME_BYTES_MAX} bytes, not {}", text.len())))
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
