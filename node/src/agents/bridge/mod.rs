//! `kBridge`: stands in front of an HTTP origin that was fixed when it was started.
//!
//! What may pass is decided by `kos_agents::http`; here it is moved. Both bodies stream, held back by the slower side;
//! one part at most waits in each direction. Redirects are answers like any other: nothing here follows them.

mod caller;
mod pool;
mod upload;

use super::{Agent, Call, Denial, Denied};
use crate::pipe::pipe;
use bytes::{Bytes, BytesMut};
use caller::Caller;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header, uri::PathAndQuery};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kos_agents::{
    http::{Answered, Fields, HttpRequest, Passed, Upgrade, from_origin, has_body, to_origin},
    manifest::Bridge as Manifest,
};
use kos_mesh::link::{Pending, RecvHalf, SendHalf, StreamError};
use kos_protocol::{
    id::{AgentId, MemberId},
    message::{End, ReplyHead, Status},
};
use pool::{Connection, Pool};
use serde_bytes::ByteBuf;
use std::time::Duration;
use upload::{Pump, Upload, UploadError, Uploaded, upload};

/// Parts smaller than this are gathered while more is there already.
const SMALL_BYTES: usize = 16 * 1024;
/// How many times the wait for a head an answer's body may be silent: by default five minutes, several times what event
/// streams and long polls leave between two signs of life.
const SILENCE_ANSWERS: u32 = 5;
/// How often idle connections are looked at.
const UPKEEP: Duration = Duration::from_secs(2);

/// A bridge that runs.
pub struct HttpBridge {
    agent: AgentId,
    manifest: Manifest,
    pool: Pool,
    /// How long the origin may take for the head of an answer, and either side to take or send a part of the request.
    answer: Duration,
    /// How long an answer's body may be silent.
    silence: Duration,
    denied: Denied,
}

impl HttpBridge {
    /// A bridge as a checked manifest says; `denied` hears of requests that its policy keeps out. Connects to nothing
    /// yet: a service may be started after its bridge.
    pub fn new(agent: AgentId, manifest: Manifest, denied: Denied) -> Self {
        let connect = Duration::from_millis(manifest.connect_ms.into());
        let answer = Duration::from_millis(manifest.answer_ms.into());
        let pool = Pool::new(manifest.addresses.clone(), connect);
        Self { agent, pool, manifest, answer, silence: answer * SILENCE_ANSWERS, denied }
    }

    /// The request as the origin gets it, or what it is refused with.
    fn pass(&self, caller: MemberId, params: &[u8]) -> Result<Passed, (Status, String)> {
        let request = HttpRequest::decode(params).map_err(|error| (Status::Invalid, error.to_string()))?;
        to_origin(request, &self.manifest.policy, &self.manifest.origin, &caller).map_err(|error| {
            let (status, why) = (error.status(), error.to_string());
            if status == Status::Denied {
                (self.denied)(Denial { caller, agent: self.agent.clone(), why: why.clone() });
            }
            (status, why)
        })
    }
}

impl Agent for HttpBridge {
    fn call(&self, call: Call) -> Pending<'_, ()> {
        Box::pin(async move {
            let Call { caller, head, recv, mut send } = call;
            let passed = match self.pass(caller, &head.params) {
                Ok(passed) if passed.upgrade() != Upgrade::None && head.idempotency_key.is_some() => {
                    let text = "a WebSocket takes no idempotency key: nothing of it could be kept";
                    return drop(send.refuse_unbegun(Status::Invalid, text).await);
                }
                Ok(passed) => passed,
                Err((status, text)) => return drop(send.refuse_unbegun(status, text).await),
            };
            let outcome = match passed.upgrade() {
                Upgrade::None => self.exchange(&passed, recv, &mut send).await,
                Upgrade::WebSocket => match self.upgrade(&passed, recv, &mut send).await {
                    Ok(Upgraded::Plain) => Ok(()),
                    Ok(Upgraded::Raw(raw)) => {
                        let (io, recv) = *raw;
                        return pipe(TokioIo::new(io), send, recv).await;
                    }
                    Err(failure) => Err(failure),
                },
            };
            match outcome {
                Ok(()) => drop(send.end(&End::ok()).await),
                Err(Failure::Refuse(status, text)) => drop(send.refuse(status, text).await),
                Err(Failure::Unasked(status, text)) => drop(send.refuse_unbegun(status, text).await),
                // Dropped without an end, the answer is cut where it is.
                Err(Failure::Gone) => {}
            }
        })
    }

    fn run(&self) -> Pending<'_, String> {
        Box::pin(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                self.pool.expire();
            }
        })
    }
}

/// Why an exchange ends without a whole answer.
enum Failure {
    /// The answer, begun or not, ends with this.
    Refuse(Status, String),
    /// The origin was not asked at all.
    Unasked(Status, String),
    /// Nobody listens any more.
    Gone,
}

fn unavailable(what: impl std::fmt::Display) -> Failure {
    Failure::Refuse(Status::Unavailable, format!("the service behind the bridge {what}"))
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::CallerGone => Self::Gone,
            UploadError::Length => Self::Refuse(Status::Invalid, error.to_string()),
            UploadError::Stalled | UploadError::Silent => Self::Refuse(Status::Timeout, error.to_string()),
        }
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        tracing::debug!(%error, "a caller does not take its answer");
        Self::Gone
    }
}

enum Upgraded {
    /// The origin answered as to any request.
    Plain,
    Raw(Box<(hyper::upgrade::Upgraded, RecvHalf)>),
}

impl HttpBridge {
    async fn exchange(
        &self,
        passed: &Passed,
        mut recv: RecvHalf,
        send: &mut SendHalf,
    ) -> Result<(), Failure> {
        let (body, pump) = self.body(passed.length(), &mut recv).await?;
        let mut caller = Caller::new(pump, recv);
        let (connection, response) = self.ask(passed, body, &mut caller).await?;
        let (answered, body) = self.judge(passed, response)?;
        tell(send, answered)?;
        let outcome = {
            let downloading = std::pin::pin!(self.download(body, send));
            let lost = std::pin::pin!(caller.lost());
            match futures::future::select(downloading, lost).await {
                futures::future::Either::Left((outcome, _)) => outcome,
                futures::future::Either::Right((error, _)) => Err(error.into()),
            }
        };
        // Only where both messages are over may another begin.
        if outcome.is_ok() && caller.uploaded() == Some(Uploaded::Whole) {
            self.pool.give_back(connection);
        }
        outcome
    }

    async fn upgrade(
        &self,
        passed: &Passed,
        recv: RecvHalf,
        send: &mut SendHalf,
    ) -> Result<Upgraded, Failure> {
        let mut caller = Caller::new(None, recv);
        let (_connection, mut response) = self.ask(passed, Upload::none(), &mut caller).await?;
        let upgrading = hyper::upgrade::on(&mut response);
        let (answered, body) = self.judge(passed, response)?;
        let is_raw = answered.upgrade == Upgrade::WebSocket;
        tell(send, answered)?;
        if !is_raw {
            self.download(body, send).await?;
            return Ok(Upgraded::Plain);
        }
        send.flush().await?;
        let io = upgrading.await.map_err(|_| unavailable("broke off"))?;
        match caller.into_recv() {
            Some(recv) => Ok(Upgraded::Raw(Box::new((io, recv)))),
            None => Err(Failure::Gone),
        }
    }

    /// What there is of a body, and what moves it. Without a promised length the first part tells whether there is one
    /// at all.
    async fn body(
        &self,
        length: Option<u64>,
        recv: &mut RecvHalf,
    ) -> Result<(Upload, Option<(Pump, Option<Bytes>)>), Failure> {
        let first = match length {
            Some(1..) => None,
            Some(0) | None => match self.first_part(recv).await? {
                Some(_) if length.is_some() => return Err(UploadError::Length.into()),
                Some(first) => Some(first),
                None if recv.ended().is_some_and(|end| end.status == Status::Ok) => {
                    return Ok((Upload::none(), None));
                }
                None => return Err(Failure::Gone),
            },
        };
        let (body, pump) = upload(length, self.answer);
        Ok((body, Some((pump, first))))
    }

    async fn first_part(&self, recv: &mut RecvHalf) -> Result<Option<Bytes>, Failure> {
        let part = tokio::time::timeout(self.answer, recv.next()).await;
        Ok(part.map_err(|_| UploadError::Silent)??)
    }

    /// Sends a request and waits for the head of its answer. The wait is bounded from when the origin has all of the
    /// request; while it is sent, the origin may keep no part waiting for longer.
    async fn ask(
        &self,
        passed: &Passed,
        body: Upload,
        caller: &mut Caller,
    ) -> Result<(Connection, Response<Incoming>), Failure> {
        let may_ask_twice =
            body.is_end_stream() && matches!(passed.line().method(), "GET" | "HEAD" | "OPTIONS");
        let mut connection = self.pool.take().await.map_err(refused)?;
        let mut request = request(passed, body)?;
        loop {
            let outcome = {
                let asking = std::pin::pin!(connection.sender.try_send_request(request));
                let waiting = std::pin::pin!(self.wait(caller));
                match futures::future::select(asking, waiting).await {
                    futures::future::Either::Left((outcome, _)) => outcome,
                    futures::future::Either::Right((failure, _)) => return Err(failure),
                }
            };
            match outcome {
                Ok(response) => return Ok((connection, response)),
                // An idle connection may have been closed just now. What was not sent may be sent again, and so may
                // what does no harm twice.
                Err(mut error) if connection.reused => {
                    let unsent = error.take_message();
                    tracing::debug!(error = %error.error(), "a kept connection was of no use");
                    connection =
                        self.pool.connect().await.map_err(|error| match (refused(error), &unsent) {
                            // It may have been taken by the connection that broke.
                            (Failure::Unasked(status, text), None) => Failure::Refuse(status, text),
                            (failure, _) => failure,
                        })?;
                    request = match unsent {
                        Some(unsent) => unsent,
                        None if may_ask_twice => self::request(passed, Upload::none())?,
                        None => return Err(unavailable("broke off")),
                    };
                }
                Err(error) => {
                    tracing::debug!(error = %error.error(), "an origin gave no answer");
                    return Err(unavailable("broke off"));
                }
            }
        }
    }

    /// Moves the request's body; returns when there is no use in waiting for an answer any longer.
    async fn wait(&self, caller: &mut Caller) -> Failure {
        if let Err(error) = caller.sent().await {
            return error.into();
        }
        match tokio::time::timeout(self.answer, caller.lost()).await {
            Ok(error) => error.into(),
            Err(_) => {
                let text = format!("the service behind the bridge did not answer within {:?}", self.answer);
                Failure::Refuse(Status::Timeout, text)
            }
        }
    }

    fn judge(&self, passed: &Passed, response: Response<Incoming>) -> Result<(Answered, Incoming), Failure> {
        let (parts, body) = response.into_parts();
        let status = parts.status.as_u16();
        let mut answered =
            from_origin(status, fields(&parts.headers), passed.upgrade(), &self.manifest.origin)
                .map_err(|error| unavailable(format!("gave an answer that does not pass: {error}")))?;
        // The length is what hyper holds the body to. Where there is no body, it is what the origin says, unless it
        // says two things.
        if has_body(passed.line().method(), status) {
            answered.length = body.size_hint().exact();
        } else if parts.headers.contains_key(header::TRANSFER_ENCODING) {
            answered.length = None;
        }
        Ok((answered, body))
    }
}

fn refused(error: std::io::Error) -> Failure {
    tracing::debug!(%error, "an origin cannot be reached");
    // The kind only: the whole text may name an address that is nobody's business.
    let text = format!("the service behind the bridge cannot be reached: {}", error.kind());
    Failure::Unasked(Status::Unavailable, text)
}

/// Begins the answer.
fn tell(send: &mut SendHalf, answered: Answered) -> Result<(), Failure> {
    let params = answered
        .into_reply()
        .encode()
        .map_err(|error| unavailable(format!("gave an answer that does not fit: {error}")))?;
    Ok(send.head(&ReplyHead { params })?)
}

/// The request that passed, byte for byte.
fn request(passed: &Passed, body: Upload) -> Result<Request<Upload>, Failure> {
    let odd = || Failure::Refuse(Status::Invalid, "the request cannot be written as HTTP".to_owned());
    let target = passed.line().target();
    let path: PathAndQuery = target.parse().map_err(|_| odd())?;
    // What was checked is what is sent, or nothing is.
    if path.as_str() != target {
        return Err(odd());
    }
    let mut request = Request::new(body);
    *request.uri_mut() = Uri::from(path);
    *request.method_mut() = Method::from_bytes(passed.line().method().as_bytes()).map_err(|_| odd())?;
    for (name, value) in passed.fields() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| odd())?;
        request.headers_mut().append(name, HeaderValue::from_bytes(value).map_err(|_| odd())?);
    }
    Ok(request)
}

fn fields(headers: &HeaderMap) -> Fields {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), ByteBuf::from(value.as_bytes()))).collect()
}

impl HttpBridge {
    /// Moves an answer's body. Small parts that are there at once go out as one; what is there goes out before more is
    /// waited for, so that an event of a stream is never held back.
    async fn download(&self, mut body: Incoming, send: &mut SendHalf) -> Result<(), Failure> {
        let mut gathered = BytesMut::new();
        loop {
            let frame = match body.frame().now_or_never() {
                Some(frame) => frame,
                None => {
                    if !gathered.is_empty() {
                        send.data(&gathered.split()).await?;
                    }
                    send.flush().await?;
                    self.next_frame(&mut body).await?
                }
            };
            let part = match frame {
                None => break,
                Some(Err(error)) => {
                    tracing::debug!(%error, "an origin broke off its answer");
                    return Err(unavailable("broke off its answer"));
                }
                // Trailers end here: no client of ours asked for them.
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            if gathered.is_empty() && part.len() >= SMALL_BYTES {
                send.data(&part).await?;
            } else {
                gathered.extend_from_slice(&part);
                if gathered.len() >= SMALL_BYTES {
                    send.data(&gathered.split()).await?;
                }
            }
        }
        if !gathered.is_empty() {
            send.data(&gathered).await?;
        }
        Ok(())
    }

    async fn next_frame(
        &self,
        body: &mut Incoming,
    ) -> Result<Option<Result<Frame<Bytes>, hyper::Error>>, Failure> {
        tokio::time::timeout(self.silence, body.frame()).await.map_err(|_| {
            let text = format!("the service behind the bridge sent nothing for {:?}", self.silence);
            Failure::Refuse(Status::Timeout, text)
        })
    }
}
