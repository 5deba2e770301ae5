//! The clear bytes in front of a stream, and the clear refusals that may answer them. SPEC §6.

use crate::{
    cbor::{self, DecodeError},
    hello::Versions,
    limits::NOTICE_BYTES_MAX,
};
use serde::{Deserialize, Serialize};

/// A session's name in the clear: 16 bytes derived from its handshake, known to its two ends alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

/// Which handshake a stream begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `Noise_IK_25519_ChaChaPoly_SHA256`: the responder's key is known.
    Ik,
    /// `Noise_XX_25519_ChaChaPoly_SHA256`: it is not.
    Xx,
}

/// What the opener of a stream writes first, in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preamble {
    /// A handshake follows; its stream is number 0 of the session it makes. These bytes are Noise's prologue.
    Handshake {
        /// The pattern of the messages that follow.
        pattern: Pattern,
        /// The versions the initiator speaks.
        versions: Versions,
        /// [`crate::id::FederationId::tag`].
        federation_tag: [u8; 8],
    },
    /// Frames of a session both ends have.
    Exchange {
        /// Which session.
        session: SessionId,
        /// Which of its streams: even from its initiator, odd from its responder.
        stream: u32,
    },
}

/// Bytes that are no preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a klp preamble")]
pub struct InvalidPreamble;

const HANDSHAKE: u8 = 1;
const EXCHANGE: u8 = 2;

impl Preamble {
    /// Longest preamble; a reader needs no more than this to know.
    pub const BYTES_MAX: usize = 21;

    /// How long the preamble with this first byte is, the byte included.
    ///
    /// # Errors
    /// [`InvalidPreamble`] for a byte no preamble begins with.
    pub fn length(first: u8) -> Result<usize, InvalidPreamble> {
        match first {
            HANDSHAKE => Ok(14),
            EXCHANGE => Ok(21),
            _ => Err(InvalidPreamble),
        }
    }

    /// The bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES_MAX);
        match self {
            Self::Handshake { pattern, versions, federation_tag } => {
                bytes.push(HANDSHAKE);
                bytes.push(match pattern {
                    Pattern::Ik => 1,
                    Pattern::Xx => 2,
                });
                bytes.extend_from_slice(&versions.min.to_be_bytes());
                bytes.extend_from_slice(&versions.max.to_be_bytes());
                bytes.extend_from_slice(federation_tag);
            }
            Self::Exchange { session, stream } => {
                bytes.push(EXCHANGE);
                bytes.extend_from_slice(&session.0);
                bytes.extend_from_slice(&stream.to_be_bytes());
            }
        }
        bytes
    }

    /// Reads a whole preamble.
    ///
    /// # Errors
    /// [`InvalidPreamble`].
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidPreamble> {
        match *bytes {
            [HANDSHAKE, pattern, a, b, c, d, ref tag @ ..] => {
                let pattern = match pattern {
                    1 => Pattern::Ik,
                    2 => Pattern::Xx,
                    _ => return Err(InvalidPreamble),
                };
                let versions = Versions { min: u16::from_be_bytes([a, b]), max: u16::from_be_bytes([c, d]) };
                let federation_tag = tag.try_into().map_err(|_| InvalidPreamble)?;
                if versions.min > versions.max {
                    Err(InvalidPreamble)
                } else {
                    Ok(Self::Handshake { pattern, versions, federation_tag })
                }
            }
            [EXCHANGE, ref rest @ ..] if rest.len() == 20 => {
                let session = SessionId(rest[..16].try_into().map_err(|_| InvalidPreamble)?);
                let stream = u32::from_be_bytes(rest[16..].try_into().map_err(|_| InvalidPreamble)?);
                Ok(Self::Exchange { session, stream })
            }
            _ => Err(InvalidPreamble),
        }
    }
}

/// A clear, unauthenticated refusal: it may start a new handshake, and never ends anything that works.
///
/// On the wire: two zero bytes (no frame has that length), the length in two bytes, DAG-CBOR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "kebab-case")]
pub enum Notice {
    /// The session is not known here, after a restart for instance: shake hands again.
    Reset,
    /// The first message did not decrypt: try once more with XX, without early data.
    RetryXx,
    /// No version in common.
    Versions {
        /// What the responder speaks.
        versions: Versions,
    },
    /// The federation is not known here.
    UnknownFederation,
    /// Too many handshakes or streams; try again later.
    Busy {
        /// When.
        retry_after_ms: u32,
    },
}

impl Notice {
    /// The bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = cbor::encode(self);
        let length = u16::try_from(body.len()).expect("a notice is below its limit of 256 bytes");
        let mut bytes = vec![0, 0];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads what follows the four length bytes.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        cbor::decode_message(body, NOTICE_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn preambles_read_back() {
        let versions = Versions { min: 1, max: 3 };
        for preamble in [
            Preamble::Handshake { pattern: Pattern::Ik, versions, federation_tag: [9; 8] },
            Preamble::Handshake { pattern: Pattern::Xx, versions, federation_tag: [0; 8] },
            Preamble::Exchange { session: SessionId([7; 16]), stream: 0x0102_0304 },
        ] {
            let bytes = preamble.to_bytes();
            assert_eq!(Preamble::length(bytes[0]), Ok(bytes.len()));
            assert_eq!(Preamble::parse(&bytes), Ok(preamble));
        }
    }

    #[test]
    fn notices_read_back() {
        for notice in [
            Notice::Reset,
            Notice::RetryXx,
            Notice::Versions { versions: Versions::OURS },
            Notice::Busy { retry_after_ms: 5 },
        ] {
            let bytes = notice.to_bytes();
            assert_eq!(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), bytes.len() - 4);
            assert_eq!(Notice::parse(&bytes[4..]), Ok(notice));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(preamble) = Preamble::parse(&bytes) {
                prop_assert_eq!(preamble.to_bytes(), bytes);
            }
        }
    }
}
