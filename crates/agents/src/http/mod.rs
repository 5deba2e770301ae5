//! HTTP calls over KLP, intent `agent.call`: what travels, and what may.
//!
//! [`HttpRequest`] is the `params` of a head, [`HttpReply`] those of its answer; bodies are data frames. Nothing of
//! HTTP's framing travels: `content-length` alone does, as a promise that both ends hold the body to.
//!
//! Four pure functions are all the policy there is, one for each time a message changes hands:
//! [`from_client`] and [`to_client`] at a forward, [`to_origin`] and [`from_origin`] at a bridge. Each assumes that the
//! other side is hostile, so what one checks the next checks again.

mod fields;
mod request_line;
mod rules;
#[cfg(test)]
mod tests;

pub use fields::{FIELDS_MAX, FieldError};
pub use request_line::{METHOD_BYTES_MAX, RequestLine, RequestLineError, TARGET_BYTES_MAX};
pub use rules::{InvalidRule, Rule};

use crate::origin::Origin;
use fields::{Hop, clean};
use kos_protocol::{
    cbor::{self, DecodeError},
    id::MemberId,
    limits::PARAMS_BYTES_MAX,
    message::Status,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The intent of a call to an agent.
pub const INTENT: &str = "agent.call";
/// Room that an answer's head leaves for its `params`.
pub const REPLY_BYTES_MAX: usize = PARAMS_BYTES_MAX;
/// The field that tells an origin which member calls. Set by the bridge; never taken from a caller.
pub const CALLER_FIELD: &str = "x-kos-caller";

/// Header fields as they travel: names in lower case.
pub type Fields = Vec<(String, ByteBuf)>;

/// The `params` of an `agent.call`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRequest {
    /// `GET` and its like, upper case.
    pub method: String,
    /// Path and query in origin form, from the leading `/`, exactly as the origin shall read them.
    pub path: String,
    /// End-to-end fields, and `upgrade: websocket` when the two directions shall become raw streams.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Fields,
}

/// The `params` of the answer to an `agent.call`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpReply {
    /// 200 to 599; or 101, after which both directions are raw.
    pub status: u16,
    /// End-to-end fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Fields,
}

impl HttpRequest {
    /// A request without fields.
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), headers: Fields::new() }
    }

    /// As `params`.
    ///
    /// # Errors
    /// [`TooLarge`] above [`PARAMS_BYTES_MAX`].
    pub fn encode(&self) -> Result<ByteBuf, TooLarge> {
        bounded(cbor::encode(self), PARAMS_BYTES_MAX)
    }

    /// From `params`.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        cbor::decode_message(bytes, PARAMS_BYTES_MAX)
    }
}

impl HttpReply {
    /// An answer without fields.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Fields::new() }
    }

    /// As `params`.
    ///
    /// # Errors
    /// [`TooLarge`] above [`REPLY_BYTES_MAX`].
    pub fn encode(&self) -> Result<ByteBuf, TooLarge> {
        bounded(cbor::encode(self), REPLY_BYTES_MAX)
    }

    /// From `params`.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        cbor::decode_message(bytes, REPLY_BYTES_MAX)
    }
}

fn bounded(bytes: Vec<u8>, limit_bytes: usize) -> Result<ByteBuf, TooLarge> {
    if bytes.len() > limit_bytes {
        return Err(TooLarge { size_bytes: bytes.len(), limit_bytes });
    }
    Ok(ByteBuf::from(bytes))
}

/// A head whose fields do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path and header fields take {size_bytes} bytes, limit {limit_bytes}")]
pub struct TooLarge {
    /// What it takes.
    pub size_bytes: usize,
    /// What there is.
    pub limit_bytes: usize,
}

/// Whether a message asks for, or may become, a raw stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Upgrade {
    /// Plain HTTP.
    #[default]
    None,
    /// WebSocket, RFC 6455. No other: `h2c` would let a caller speak past every check here.
    WebSocket,
}

/// Why a request does not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Its method or its path.
    #[error(transparent)]
    Line(#[from] RequestLineError),
    /// Its header fields.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// No rule allows it.
    #[error("{method} {path} is not allowed here")]
    NotAllowed {
        /// The method.
        method: String,
        /// The path, without its query.
        path: String,
    },
    /// It asks for a WebSocket where none is allowed.
    #[error("WebSockets are not allowed here")]
    Upgrade,
}

impl RequestError {
    /// What to answer.
    pub fn status(&self) -> Status {
        match self {
            Self::Line(RequestLineError::TargetTooLong { .. }) | Self::Field(FieldError::TooMany { .. }) => {
                Status::TooLarge
            }
            Self::Line(RequestLineError::ForbiddenMethod(_)) | Self::NotAllowed { .. } | Self::Upgrade => {
                Status::Denied
            }
            Self::Line(_) | Self::Field(_) => Status::Invalid,
        }
    }
}

/// What passes through a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Methods and paths; empty allows everything that is well-formed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Rule>,
    /// Whether WebSockets pass, where their path does.
    pub upgrade: Upgrade,
}

/// A request as the origin gets it: only [`to_origin`] and [`from_client`] make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    line: RequestLine,
    fields: Fields,
    length: Option<u64>,
    upgrade: Upgrade,
}

impl Passed {
    /// Method and target: send exactly these bytes.
    pub fn line(&self) -> &RequestLine {
        &self.line
    }
    /// All fields but `content-length`.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }
    /// The length the body was promised to have; it must be held to that.
    pub fn length(&self) -> Option<u64> {
        self.length
    }
    /// Whether it asks for a raw stream.
    pub fn upgrade(&self) -> Upgrade {
        self.upgrade
    }

    /// As it travels.
    pub fn into_request(self) -> HttpRequest {
        let mut headers = self.fields;
        if let Some(length) = self.length {
            headers.push(("content-length".to_owned(), text(&length.to_string())));
        }
        HttpRequest { method: self.line.method().to_owned(), path: self.line.target().to_owned(), headers }
    }
}

fn text(text: &str) -> ByteBuf {
    ByteBuf::from(text.as_bytes())
}

/// At a forward: what a local client sent, stripped of all that concerns its own connection.
///
/// # Errors
/// [`RequestError`].
pub fn from_client(method: &str, target: &str, fields: Fields) -> Result<Passed, RequestError> {
    let line = RequestLine::parse(method, target)?;
    let mut clean = clean(fields, Hop::Http)?;
    if clean.upgrade == Upgrade::WebSocket {
        clean.fields.push(("upgrade".to_owned(), text("websocket")));
    }
    Ok(Passed { line, fields: clean.fields, length: clean.length, upgrade: clean.upgrade })
}

/// At a bridge: what a member sent, checked against the bridge's policy, with the fields that are ours rebuilt:
/// `host` is the origin's, `x-kos-caller` and `forwarded` name the calling member, `connection` and `upgrade` are there
/// for a WebSocket and else not at all.
///
/// # Errors
/// [`RequestError`].
pub fn to_origin(
    request: HttpRequest,
    policy: &Policy,
    origin: &Origin,
    caller: &MemberId,
) -> Result<Passed, RequestError> {
    let line = RequestLine::parse(&request.method, &request.path)?;
    if !policy.allow.is_empty() && !policy.allow.iter().any(|rule| rule.allows(&line)) {
        let (method, path) = (line.method().to_owned(), line.path().to_owned());
        return Err(RequestError::NotAllowed { method, path });
    }
    let mut clean = clean(request.headers, Hop::Link)?;
    let fields = &mut clean.fields;
    fields.insert(0, ("host".to_owned(), text(&origin.authority())));
    fields.push((CALLER_FIELD.to_owned(), text(&caller.to_string())));
    // RFC 7239 §6.3: an identifier that is no address begins with `_`.
    fields.push(("forwarded".to_owned(), text(&format!("for=_{caller}"))));
    if clean.upgrade == Upgrade::WebSocket {
        if policy.upgrade != Upgrade::WebSocket {
            return Err(RequestError::Upgrade);
        }
        if line.method() != "GET" || clean.length.is_some_and(|length| length > 0) {
            return Err(FieldError::Upgrade.into());
        }
        fields.push(("connection".to_owned(), text("upgrade")));
        fields.push(("upgrade".to_owned(), text("websocket")));
    }
    Ok(Passed { line, fields: clean.fields, length: clean.length, upgrade: clean.upgrade })
}

/// Why an answer does not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Not a final status.
    #[error("status {0} is no final answer")]
    Status(u16),
    /// 101 without a WebSocket having been asked for, or without naming it.
    #[error("the connection was switched to another protocol, which nobody asked for")]
    Upgrade,
    /// Its header fields.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// An answer that passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// 200 to 599, or 101 with [`Upgrade::WebSocket`].
    pub status: u16,
    /// All fields but `content-length`; with 101 `connection` and `upgrade` among them at a forward, `upgrade` at a
    /// bridge.
    pub fields: Fields,
    /// The promised length of the body, or for `HEAD` and 304 of the body that there would be.
    pub length: Option<u64>,
    /// Whether both directions are raw from here.
    pub upgrade: Upgrade,
}

impl Answered {
    /// As it travels.
    pub fn into_reply(self) -> HttpReply {
        let mut headers = self.fields;
        if let Some(length) = self.length {
            headers.push(("content-length".to_owned(), text(&length.to_string())));
        }
        HttpReply { status: self.status, headers }
    }
}

/// Whether an answer with this status to this method has a body. RFC 9112 §6.3.
pub fn has_body(method: &str, status: u16) -> bool {
    method != "HEAD" && status >= 200 && status != 204 && status != 304
}

/// At a bridge: what the origin answered to a request that asked for `asked`, stripped of what concerns the origin's
/// own connection. A redirect to the origin itself is made relative: its absolute form names a port of this machine,
/// which at the caller's is another service.
///
/// # Errors
/// [`ReplyError`]: answer `unavailable`.
pub fn from_origin(
    status: u16,
    fields: Fields,
    asked: Upgrade,
    origin: &Origin,
) -> Result<Answered, ReplyError> {
    let mut answered = answer(status, fields, asked, Hop::Http)?;
    for (name, value) in &mut answered.fields {
        if (name == "location" || name == "content-location")
            && let Some(relative) = relative(value, origin)
        {
            *value = relative;
        }
    }
    if answered.upgrade == Upgrade::WebSocket {
        answered.fields.push(("upgrade".to_owned(), text("websocket")));
    }
    Ok(answered)
}

/// At a forward: what a member answered, made fit for the local client.
///
/// # Errors
/// [`ReplyError`]: answer 502.
pub fn to_client(reply: HttpReply, asked: Upgrade) -> Result<Answered, ReplyError> {
    let mut answered = answer(reply.status, reply.headers, asked, Hop::Link)?;
    if answered.upgrade == Upgrade::WebSocket {
        answered.fields.push(("connection".to_owned(), text("upgrade")));
        answered.fields.push(("upgrade".to_owned(), text("websocket")));
    }
    Ok(answered)
}

fn answer(status: u16, fields: Fields, asked: Upgrade, hop: Hop) -> Result<Answered, ReplyError> {
    let clean = clean(fields, hop)?;
    let upgrade = match (status, asked, clean.upgrade) {
        (101, Upgrade::WebSocket, Upgrade::WebSocket) => Upgrade::WebSocket,
        (101, _, _) => return Err(ReplyError::Upgrade),
        (200..=599, _, _) => Upgrade::None,
        _ => return Err(ReplyError::Status(status)),
    };
    let length = if upgrade == Upgrade::WebSocket || status == 204 { None } else { clean.length };
    Ok(Answered { status, fields: clean.fields, length, upgrade })
}

fn relative(location: &[u8], origin: &Origin) -> Option<ByteBuf> {
    let rest = location.strip_prefix(origin.to_string().as_bytes())?;
    match rest.first() {
        None => Some(text("/")),
        // `//` at the front would name another host.
        Some(b'/') if !rest.starts_with(b"//") && !rest.starts_with(b"/\\") => Some(ByteBuf::from(rest)),
        Some(b'?' | b'#') => Some(ByteBuf::from([b"/", rest].concat())),
        _ => None,
    }
}
