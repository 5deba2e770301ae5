//! Calls of agents, and of services by their name.

use super::{CallHead, CallRequest, ServiceAnswered, node_routes::unresolved};
use crate::{
    daemon::Daemon,
    errors::{Code, Failure},
    forward::body::{Inbound, Reply as Streamed},
    text,
};
use axum::{Json, Router, body::Body as AxumBody, extract::State, response::Response, routing::post};
use http::HeaderValue;
use kos_agents::http::{HttpReply, INTENT, Upgrade, from_client, to_client};
use kos_directory::contract::Route;
use kos_mesh::link::CallError;
use kos_protocol::{
    limits::{CONTRACT_FALLBACKS_MAX, NAME_BYTES_MAX},
    message::{End, Head, Status},
    text::shown,
    trace::TraceContext,
};
use kos_shell::{Failed, NoRoute, ServiceRoute, Target, Wanted};
use semver::VersionReq;
use serde_bytes::ByteBuf;
use std::{fmt, sync::Arc};

/// The header of an answer that tells a call's head.
pub const CALL_HEAD: &str = "x-kai-call";

/// What begins the name of a service where an agent's could be.
const SERVICE: &str = "service:";
/// Routes of a service that one call tries: the first choice and its fallbacks.
const ROUTES_TRIED_MAX: usize = 1 + CONTRACT_FALLBACKS_MAX;
/// Most of a reason that is told of a route that was not taken.
const WHY_BYTES_MAX: usize = 256;

pub(super) fn router() -> Router<Arc<Daemon>> {
    Router::new().route("/v1/call", post(call)).layer(axum::extract::DefaultBodyLimit::max(16 * 1024 * 1024))
}

/// Calls an agent and streams its answer. An answer cut short cuts this one, so that the command notices.
async fn call(
    State(daemon): State<Arc<Daemon>>,
    Json(request): Json<CallRequest>,
) -> Result<Response, Failure> {
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

/// Calls an agent, or a service by its name, and waits for the head of its answer.
pub(super) async fn open_call(daemon: &Daemon, request: CallRequest) -> Result<Called, Failure> {
    let (agent, range) = (request.agent.clone(), request.version.clone());
    let call = Prepared::of(request)?;
    match (agent.strip_prefix(SERVICE), range) {
        (Some(service), range) => {
            let range = range.as_deref().map_or(Ok(VersionReq::STAR), |range| {
                range.parse().map_err(|error| {
                    Code::Usage.because(format!("`{}` is no range of versions: {error}", text::clean(range)))
                })
            })?;
            let wanted = Wanted::parse(service, range).map_err(|error| Code::Usage.because(error))?;
            call_service(daemon, &wanted, &call).await
        }
        (None, Some(_)) => Err(Code::Usage
            .because("a range of versions is of services")
            .hint("kai call service:NAME --version RANGE")),
        (None, None) => {
            let target = daemon.runtime.resolve_agent(&daemon.federation(), &agent).map_err(unresolved)?;
            call.ask(daemon, &target).await.map_err(Into::into)
        }
    }
}

/// Calls a service over its best route; where that one does not answer and the call may be made elsewhere, over the next.
async fn call_service(daemon: &Daemon, wanted: &Wanted, call: &Prepared) -> Result<Called, Failure> {
    let mut failed = Failed::new();
    loop {
        let route = daemon.runtime.route_of_service(&daemon.federation(), wanted, &failed);
        let ServiceRoute { target, version, instead_of } = route.map_err(no_route)?;
        let error = match call.ask(daemon, &target).await {
            Ok(mut called) => {
                called.head.service = Some(ServiceAnswered {
                    name: wanted.name.clone(),
                    version: version.to_string(),
                    agent: target.agent,
                    member: target.member,
                    member_name: target.member_name,
                    instead_of,
                });
                return Ok(called);
            }
            Err(error) => error,
        };
        if !call.may_go_elsewhere(&error) || failed.len() + 1 >= ROUTES_TRIED_MAX {
            return Err(error.into());
        }
        tracing::debug!(agent = %target.agent, member = %target.member, %error, "the next route of a service is tried");
        failed.insert(
            Route { agent: target.agent, member: target.member },
            shown(&error.to_string(), WHY_BYTES_MAX),
        );
    }
}

fn no_route(error: NoRoute) -> Failure {
    match error {
        NoRoute::Member(error) => unresolved(error),
        NoRoute::Nobody(_) => Code::NoSuchService.because(error),
        NoRoute::NoneFits(_) => Code::NoServiceRoute.because(error),
    }
}

/// A call, whomever it is made to.
struct Prepared {
    method: String,
    params: ByteBuf,
    idempotency_key: Option<ByteBuf>,
    body: Vec<u8>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
enum NotAnswered {
    /// No exchange came about, or its stream failed.
    #[error("{0}")]
    NotCalled(#[from] CallError),
    /// It was refused.
    #[error("{0}")]
    Ended(End),
    /// What was answered is no answer.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
}

impl From<NotAnswered> for Failure {
    fn from(error: NotAnswered) -> Self {
        match error {
            NotAnswered::NotCalled(error) => not_called(&error),
            NotAnswered::Ended(end) => ended(&end),
            NotAnswered::Unreadable(error) => Code::CallInternal.because(error),
        }
    }
}

impl Prepared {
    fn of(request: CallRequest) -> Result<Self, Failure> {
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
        let idempotency_key = request.idempotency_key.as_deref().map(idempotency_key).transpose()?;
        Ok(Self { method: request.method, params, idempotency_key, body })
    }

    async fn ask(&self, daemon: &Daemon, target: &Target) -> Result<Called, NotAnswered> {
        let head = Head {
            intent: INTENT.to_owned(),
            target: Some(target.agent.to_string()),
            idempotency_key: self.idempotency_key.clone(),
            params: self.params.clone(),
            ..Head::default()
        };
        let head = daemon.runtime.links().traced(&head);
        let trace = head.trace.as_ref().and_then(|trace| trace.parse::<TraceContext>().ok());
        let asked = daemon.runtime.request(&target.to.federation, &target.member, &head, &self.body).await;
        let (exchange, answer) = asked?;
        let route = exchange.route().to_string();
        let (_, recv) = exchange.into_halves();
        let answer = answer.map_err(NotAnswered::Ended)?;
        let unreadable = |error: &dyn fmt::Display| NotAnswered::Unreadable(error.to_string());
        let answer = HttpReply::decode(&answer.params).map_err(|error| unreadable(&error))?;
        let answer = to_client(answer, Upgrade::None).map_err(|error| unreadable(&error))?;
        let fields = answer.fields.into_iter();
        let head = CallHead {
            status: answer.status,
            headers: fields
                .map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned()))
                .collect(),
            route,
            trace: trace.map(|trace| trace.id().to_string()).unwrap_or_default(),
            service: None,
        };
        Ok(Called { head, body: AxumBody::new(Streamed::Streamed(Inbound::new(recv))) })
    }

    /// Whether another member may be asked after this: nothing was sent; or it was not answered, and to execute it twice
    /// does no harm, because its method is safe (RFC 9110 §9.2.1). An idempotency key is not enough: it is kept by whom
    /// it was sent to, and another member would execute the call a second time.
    fn may_go_elsewhere(&self, error: &NotAnswered) -> bool {
        let is_safe = matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS");
        match error {
            NotAnswered::NotCalled(CallError::TooLarge(_)) | NotAnswered::Unreadable(_) => false,
            NotAnswered::NotCalled(CallError::Stream(_) | CallError::OutcomeUnknown(_)) => is_safe,
            NotAnswered::NotCalled(_) => true,
            NotAnswered::Ended(end) => is_safe && end.status == Status::Unavailable,
        }
    }
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

/// What a refused or failed call is reported as.
fn ended(end: &End) -> Failure {
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

#[cfg(test)]
mod tests {
    use super::*;
    use kos_mesh::link::{StreamError, Unreachable};

    #[test]
    fn only_what_was_not_sent_or_does_no_harm_twice_goes_elsewhere() {
        let call = |method: &str, key: Option<&str>| {
            let request = serde_json::json!({
                "agent": "service:notes", "method": method, "path": "/", "headers": [], "idempotency_key": key,
            });
            Prepared::of(serde_json::from_value(request).unwrap()).unwrap()
        };
        let unreachable = || NotAnswered::NotCalled(Unreachable("no way".to_owned()).into());
        let cut = || NotAnswered::NotCalled(StreamError::CutShort.into());
        let unknown = || NotAnswered::NotCalled(CallError::OutcomeUnknown(StreamError::CutShort));
        let ended = |status| NotAnswered::Ended(End::because(status, "so it is"));
        let goes = |call: &Prepared| {
            [
                unreachable(),
                cut(),
                unknown(),
                ended(Status::Unavailable),
                ended(Status::Invalid),
                ended(Status::Denied),
            ]
            .map(|error| call.may_go_elsewhere(&error))
        };
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert_eq!(goes(&call(method, None)), [true, true, true, true, false, false], "{method}");
        }
        for (method, key) in [("POST", None), ("PUT", None), ("POST", Some("a"))] {
            assert_eq!(goes(&call(method, key)), [true, false, false, false, false, false], "{method}");
        }
        let too_large = NotAnswered::NotCalled(CallError::TooLarge("body"));
        assert!(!call("GET", None).may_go_elsewhere(&too_large), "it is too large for everybody");
    }
}
