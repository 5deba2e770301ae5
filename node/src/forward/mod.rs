//! `kai forward`: an agent of a member as a web service on a port of this machine's loopback.
//!
//! Each HTTP request becomes one exchange. Bodies stream both ways with the backpressure of the sockets; nothing is
//! collected. A body that is cut short at the other end is aborted here, never ended cleanly. Only loopback names are
//! answered, and no request that a browser made for a page of another site.

pub mod body;

use crate::{local, pipe::pipe};
use body::{Inbound, Reply};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use kos_agents::http::{Answered, HttpReply, INTENT, Passed, Upgrade, from_client, to_client};
use kos_mesh::link::{Body, CallError, Exchange, Pending, RecvHalf, SendHalf};
use kos_protocol::{
    id::{AgentId, FederationId, MemberId},
    message::{End, Head, ReplyHead, Status},
    trace::TraceContext,
};
use kos_shell::Runtime;
use serde_bytes::ByteBuf;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Local connections served at once.
const CONNECTIONS_MAX: usize = 256;
/// How long a local client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What a request goes out with: the agent and the way to it. Asked for each request, so that a member that moved is
/// found again.
pub trait Dial: Send + Sync + 'static {
    /// Opens an exchange with this head.
    fn open<'a>(&'a self, head: &'a Head, body: Body<'a>) -> Pending<'a, Result<Exchange, CallError>>;
    /// Asks without a body, up to the head of the answer; once more where the peer certainly executed nothing.
    fn request<'a>(&'a self, head: &'a Head) -> Pending<'a, Result<Asked, CallError>>;
    /// The agent's name, for the head.
    fn agent(&self) -> String;
}

/// An exchange whose request is sent, and how its answer began.
pub type Asked = (Exchange, Result<ReplyHead, End>);

/// An agent of a member.
pub struct Remote {
    /// The node that calls.
    pub runtime: Runtime,
    /// In which federation.
    pub federation: FederationId,
    /// Whose agent.
    pub member: MemberId,
    /// Which.
    pub agent: AgentId,
}

impl Dial for Remote {
    fn open<'a>(&'a self, head: &'a Head, body: Body<'a>) -> Pending<'a, Result<Exchange, CallError>> {
        Box::pin(self.runtime.open(&self.federation, &self.member, head, body))
    }
    fn request<'a>(&'a self, head: &'a Head) -> Pending<'a, Result<Asked, CallError>> {
        Box::pin(self.runtime.request(&self.federation, &self.member, head, b""))
    }
    fn agent(&self) -> String {
        self.agent.to_string()
    }
}

/// A listening port. Ends with the value.
pub struct Forward {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Forward {
    /// Listens on 127.0.0.1; port 0 takes any that is free.
    ///
    /// # Errors
    /// The system's: the port is taken or not allowed.
    pub async fn listen(port: u16, dial: Arc<dyn Dial>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let port = address.port();
        tokio::spawn(local::accept(listener, CONNECTIONS_MAX, stop.clone(), move |stream| {
            serve(stream, port, dial.clone())
        }));
        Ok(Self { address, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(stream: TcpStream, port: u16, dial: Arc<dyn Dial>) {
    let service = service_fn(move |request| {
        let dial = dial.clone();
        async move { answer(request, port, dial).await }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a forwarded connection ended");
    }
}

/// An answer that breaks off is an error of the service: hyper then cuts the connection instead of ending the body.
async fn answer(
    request: Request<Incoming>,
    port: u16,
    dial: Arc<dyn Dial>,
) -> Result<Response<Reply>, StreamCut> {
    if let Err(why) = local::check(request.headers(), port) {
        return Ok(plain(StatusCode::FORBIDDEN, &why.to_string()));
    }
    match forward(request, &*dial).await {
        Ok(response) => Ok(response),
        Err(Refused(status, text)) => Ok(plain(status, &text)),
    }
}

/// A body that cannot be completed.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut short: {0}")]
pub struct StreamCut(String);

struct Refused(StatusCode, String);

fn plain(status: StatusCode, text: &str) -> Response<Reply> {
    let body = Full::new(Bytes::from(format!("{text}\n"))).map_err(|never| match never {});
    let mut response = Response::new(Reply::Whole(body.boxed()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn forward(mut request: Request<Incoming>, dial: &dyn Dial) -> Result<Response<Reply>, Refused> {
    let passed = pass(&request)?;
    let asked = passed.upgrade();
    let head = Head { trace: trace(request.headers()), ..head(dial, passed)? };
    let upgrade = (asked == Upgrade::WebSocket).then(|| hyper::upgrade::on(&mut request));
    let mut incoming = request.into_body();
    if upgrade.is_none() && hyper::body::Body::is_end_stream(&incoming) {
        let (exchange, reply) = dial.request(&head).await.map_err(|error| unreachable(&error))?;
        let answered = parse_reply(reply, asked)?;
        return Ok(response(answered, Reply::Streamed(Inbound::new(exchange.into_halves().1))));
    }
    let exchange = dial.open(&head, Body::Streaming).await.map_err(|error| unreachable(&error))?;
    let (send, mut recv) = exchange.into_halves();
    if let Some(upgrade) = upgrade {
        return upgraded(upgrade, send, recv).await;
    }
    // The body goes up while the answer may already come down.
    tokio::spawn(async move { drop(upload(&mut incoming, send).await) });
    let reply = recv.head().await.map_err(|error| unreachable(&error.into()))?;
    let answered = parse_reply(reply, asked)?;
    Ok(response(answered, Reply::Streamed(Inbound::new(recv))))
}

/// What a local client's request may hold. The callee's bridge checks it again.
fn pass(request: &Request<Incoming>) -> Result<Passed, Refused> {
    let target = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.as_str().to_owned(), ByteBuf::from(value.as_bytes()))
    };
    let fields = request.headers().iter().map(field).collect();
    from_client(request.method().as_str(), target, fields)
        .map_err(|error| Refused(status_of(error.status()), error.to_string()))
}

/// The trace a local client's request belongs to (W3C Trace Context), where it names one that is valid. Otherwise the
/// exchange begins a trace of its own.
fn trace(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let trace: TraceContext = value.to_str().ok()?.parse().ok()?;
    Some(trace.to_string())
}

/// The head of the exchange that carries a request.
fn head(dial: &dyn Dial, passed: Passed) -> Result<Head, Refused> {
    let params = passed
        .into_request()
        .encode()
        .map_err(|error| Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, error.to_string()))?;
    Ok(Head { intent: INTENT.to_owned(), target: Some(dial.agent()), params, ..Head::default() })
}

async fn upload(incoming: &mut Incoming, mut send: SendHalf) -> Result<(), kos_mesh::link::StreamError> {
    while let Some(frame) = incoming.frame().await {
        // A client that breaks off drops the half, and the exchange with it.
        let Ok(frame) = frame else { return Ok(()) };
        if let Ok(data) = frame.into_data() {
            send.data(&data).await?;
        }
    }
    send.end(&End::ok()).await
}

fn parse_reply(reply: Result<ReplyHead, End>, asked: Upgrade) -> Result<Answered, Refused> {
    let reply = reply.map_err(|end| Refused(status_of(end.status), end.to_string()))?;
    let senseless = |error: &dyn std::fmt::Display| {
        Refused(StatusCode::BAD_GATEWAY, format!("the agent's answer makes no sense: {error}"))
    };
    let reply = HttpReply::decode(&reply.params).map_err(|error| senseless(&error))?;
    to_client(reply, asked).map_err(|error| senseless(&error))
}

fn unreachable(error: &CallError) -> Refused {
    let status = match error {
        CallError::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    };
    Refused(status, format!("the agent's node cannot be reached: {error}"))
}

/// The HTTP status that says what a KLP status says.
pub fn status_of(status: Status) -> StatusCode {
    match status {
        Status::Ok => StatusCode::OK,
        Status::Denied => StatusCode::FORBIDDEN,
        Status::NotFound => StatusCode::NOT_FOUND,
        Status::Invalid => StatusCode::BAD_REQUEST,
        Status::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Status::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Status::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Status::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Status::Cancelled | Status::Internal => StatusCode::BAD_GATEWAY,
    }
}

fn response(answered: Answered, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answered.status).unwrap_or(StatusCode::BAD_GATEWAY);
    if let Some(length) = answered.length {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    for (name, value) in answered.fields {
        // Names and values were checked; what http does not take all the same is left out.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value))
        {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// After 101 both sides speak what they agreed on; we only move bytes.
async fn upgraded(
    upgrade: OnUpgrade,
    mut send: SendHalf,
    mut recv: RecvHalf,
) -> Result<Response<Reply>, Refused> {
    send.flush().await.map_err(|error| unreachable(&error.into()))?;
    let reply = recv.head().await.map_err(|error| unreachable(&error.into()))?;
    let answered = parse_reply(reply, Upgrade::WebSocket)?;
    if answered.upgrade != Upgrade::WebSocket {
        drop(send.end(&End::ok()).await);
        return Ok(response(answered, Reply::Streamed(Inbound::new(recv))));
    }
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        pipe(TokioIo::new(upgraded), send, recv).await;
    });
    let empty = Full::new(Bytes::new()).map_err(|never| match never {});
    Ok(response(answered, Reply::Whole(empty.boxed())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_trace_of_a_request_goes_on_and_no_other() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let taken = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("traceparent", value.parse().unwrap());
            }
            trace(&headers)
        };
        assert_eq!(taken(&[valid]).as_deref(), Some(valid));
        for none in [&[][..], &["nonsense"], &[valid, valid], &["00-0-0-01"], &[&valid.to_uppercase()]] {
            assert_eq!(taken(none), None, "{none:?}");
        }
    }
}
