//! What an exchange consists of: a head, data and an end, each way. SPEC §8.

use crate::{
    cbor::{self, DecodeError},
    limits::{HEAD_BYTES_MAX, NAME_BYTES_MAX, PARAMS_BYTES_MAX, STATUS_TEXT_BYTES_MAX},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::fmt;

/// The type byte in front of each frame's plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Opens a message: [`Head`] from the caller, [`ReplyHead`] from the callee.
    Head,
    /// Part of the body, any bytes.
    Data,
    /// Closes the message with its status: an [`End`].
    End,
}

impl FrameKind {
    /// Its byte on the wire.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Head => 1,
            Self::Data => 2,
            Self::End => 3,
        }
    }

    /// The kind with this byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Head),
            2 => Some(Self::Data),
            3 => Some(Self::End),
            _ => None,
        }
    }
}

/// What a caller asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// What is wanted, `agent.call` for instance: the name a policy speaks of.
    pub intent: String,
    /// The agent it is for, `kClass:name`; none for intents of the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Milliseconds from arrival within which an answer is of use; the callee gives up then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u32>,
    /// A capability token, in the form its issuer chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<ByteBuf>,
    /// W3C `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Makes the exchange run at most once for this caller and intent, however often it is sent; at most 64 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<ByteBuf>,
    /// 0 (background) to 7 (interactive); 4 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// What the intent defines.
    #[serde(default, skip_serializing_if = "<[u8]>::is_empty")]
    pub params: ByteBuf,
}

fn above_limit(part: &str) -> DecodeError {
    DecodeError::Malformed(format!("{part} is empty or above its limit"))
}

impl Head {
    /// Reads the payload of a head frame and checks it.
    ///
    /// # Errors
    /// [`DecodeError`], also for a part that [`Head::check`] refuses.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let head: Self = cbor::decode_message(bytes, HEAD_BYTES_MAX)?;
        head.check().map_err(above_limit)?;
        Ok(head)
    }

    /// Whether every part is within its limit; the reason if not.
    ///
    /// # Errors
    /// The name of the part that is too long.
    pub fn check(&self) -> Result<(), &'static str> {
        let checks = [
            ("intent", self.intent.len() <= NAME_BYTES_MAX && !self.intent.is_empty()),
            ("target", self.target.as_ref().is_none_or(|target| target.len() <= NAME_BYTES_MAX)),
            ("trace", self.trace.as_ref().is_none_or(|trace| trace.len() <= NAME_BYTES_MAX)),
            ("idempotency_key", self.idempotency_key.as_ref().is_none_or(|key| key.len() <= NAME_BYTES_MAX)),
            ("priority", self.priority.is_none_or(|priority| priority <= 7)),
            ("params", self.params.len() <= PARAMS_BYTES_MAX),
        ];
        match checks.into_iter().find(|(_, fits)| !fits) {
            Some((part, _)) => Err(part),
            None => Ok(()),
        }
    }
}

/// How a callee's answer begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyHead {
    /// What the intent defines.
    #[serde(default, skip_serializing_if = "<[u8]>::is_empty")]
    pub params: ByteBuf,
}

impl ReplyHead {
    /// Reads the payload of a callee's head frame and checks it.
    ///
    /// # Errors
    /// [`DecodeError`], also for params above [`PARAMS_BYTES_MAX`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let head: Self = cbor::decode_message(bytes, HEAD_BYTES_MAX)?;
        if head.params.len() > PARAMS_BYTES_MAX { Err(above_limit("params")) } else { Ok(head) }
    }
}

/// How an exchange went. A closed set with the field's meanings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Done.
    Ok,
    /// The caller may not do this.
    Denied,
    /// No such intent, agent or thing.
    NotFound,
    /// The request makes no sense.
    Invalid,
    /// A part of the request is above its limit.
    TooLarge,
    /// Too often; `retry_after_ms` says when.
    RateLimited,
    /// The deadline passed.
    Timeout,
    /// What stands behind the callee does not answer; trying again may help.
    Unavailable,
    /// One side gave up.
    Cancelled,
    /// The callee is at fault. Also what a status of a later version is read as.
    #[serde(other)]
    Internal,
}

impl Status {
    /// Every status with its written form.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Ok, "ok"),
        (Self::Denied, "denied"),
        (Self::NotFound, "not-found"),
        (Self::Invalid, "invalid"),
        (Self::TooLarge, "too-large"),
        (Self::RateLimited, "rate-limited"),
        (Self::Timeout, "timeout"),
        (Self::Unavailable, "unavailable"),
        (Self::Cancelled, "cancelled"),
        (Self::Internal, "internal"),
    ];

    /// Its written form.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(status, _)| *status == self).map_or("internal", |(_, text)| text)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a message closes. A stream that stops without one has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The final status.
    pub status: Status,
    /// For people; at most [`STATUS_TEXT_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// With [`Status::RateLimited`]: when to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
}

impl End {
    /// Reads the payload of an end frame and checks it.
    ///
    /// # Errors
    /// [`DecodeError`], also for a text above [`STATUS_TEXT_BYTES_MAX`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let end: Self = cbor::decode_message(bytes, HEAD_BYTES_MAX)?;
        if end.text.len() > STATUS_TEXT_BYTES_MAX { Err(above_limit("text")) } else { Ok(end) }
    }

    /// Done, nothing to add.
    pub fn ok() -> Self {
        Self { status: Status::Ok, text: String::new(), retry_after_ms: None }
    }

    /// Another status, with a text for people, cut to its limit.
    pub fn because(status: Status, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.len() > STATUS_TEXT_BYTES_MAX {
            text.truncate(text.floor_char_boundary(STATUS_TEXT_BYTES_MAX));
        }
        Self { status, text, retry_after_ms: None }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() {
            write!(f, "{}", self.status)
        } else {
            write!(f, "{}: {}", self.status, self.text)
        }
    }
}

/// What may come next in one direction of a stream.
///
/// `Head → (Data → Data …) → End`, and after an end either nothing or the head of the next exchange on the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Only a head may come, or the end of the stream.
    #[default]
    BeforeHead,
    /// Data or the end of the message may come; the stream must not stop here.
    InBody,
}

/// A frame out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {kind:?} frame may not come {phase:?}")]
pub struct OutOfOrder {
    /// What came.
    pub kind: FrameKind,
    /// When.
    pub phase: Phase,
}

impl Phase {
    /// The phase after a frame of `kind`.
    ///
    /// An end may come without a head: a refusal says all there is in its status.
    ///
    /// # Errors
    /// [`OutOfOrder`].
    pub fn after(self, kind: FrameKind) -> Result<Self, OutOfOrder> {
        match (self, kind) {
            (Self::BeforeHead, FrameKind::Head) | (Self::InBody, FrameKind::Data) => Ok(Self::InBody),
            (Self::InBody | Self::BeforeHead, FrameKind::End) => Ok(Self::BeforeHead),
            (phase, kind) => Err(OutOfOrder { kind, phase }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor;

    #[test]
    fn a_status_of_a_later_version_reads_as_internal() {
        let bytes = cbor::encode(&serde_json::json!({"status": "tired", "mood": 1}));
        assert_eq!(cbor::decode_message::<End>(&bytes, 100).unwrap().status, Status::Internal);
        for (status, text) in Status::ALL {
            let end = End::because(status, "why");
            let bytes = cbor::encode(&end);
            assert_eq!(cbor::decode_message::<End>(&bytes, 100).unwrap(), end);
            assert!(String::from_utf8_lossy(&bytes).contains(text));
        }
    }

    #[test]
    fn parts_above_their_limits_are_refused() {
        let head = |intent: &str, params| Head {
            intent: intent.to_owned(),
            params: ByteBuf::from(vec![0; params]),
            ..Head::default()
        };
        assert!(Head::parse(&cbor::encode(&head("a.b", PARAMS_BYTES_MAX))).is_ok());
        assert!(Head::parse(&cbor::encode(&head("a.b", PARAMS_BYTES_MAX + 1))).is_err());
        assert!(Head::parse(&cbor::encode(&head("", 0))).is_err());
        let reply = ReplyHead { params: ByteBuf::from(vec![0; PARAMS_BYTES_MAX + 1]) };
        assert!(ReplyHead::parse(&cbor::encode(&reply)).is_err());
        let mut end = End::because(Status::Denied, "x".repeat(STATUS_TEXT_BYTES_MAX + 1));
        assert_eq!(End::parse(&cbor::encode(&end)), Ok(end.clone()), "cut to its limit");
        end.text.push('x');
        assert!(End::parse(&cbor::encode(&end)).is_err());
    }

    #[test]
    fn frames_come_in_order() {
        use FrameKind::{Data, End, Head};
        let run =
            |kinds: &[FrameKind]| kinds.iter().try_fold(Phase::default(), |phase, kind| phase.after(*kind));
        assert_eq!(run(&[Head, Data, Data, End, Head, End]), Ok(Phase::BeforeHead));
        assert!(run(&[Data]).is_err());
        assert!(run(&[Head, Head]).is_err());
    }
}
