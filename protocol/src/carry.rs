//! The clear header of a carried stream and the reply to it. SPEC §6.7.

use crate::{
    cbor::{self, DecodeError},
    id::MemberId,
    limits::{CARRY_HEADER_BYTES_MAX, CARRY_HOPS_MAX, CARRY_REPLY_BYTES_MAX},
    message::End,
};
use serde::{Deserialize, Serialize};

/// What the opener of a `/klp/carry/1` stream writes first, after its length in two bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`crate::id::FederationId::tag`].
    #[serde(with = "serde_bytes")]
    pub federation_tag: [u8; 8],
    /// Who began it. The first carrier checks it; the others have only its word, and sealed frames need no more.
    pub from: MemberId,
    /// Who is to come, the next hop first. Empty at the last one, where a KLP stream begins behind the header.
    pub route: Vec<MemberId>,
}

impl Header {
    /// The bytes on the wire, the two length bytes included.
    ///
    /// # Panics
    /// When the route is so long that no peer would accept it: more than [`CARRY_HOPS_MAX`] hops.
    pub fn to_bytes(&self) -> Vec<u8> {
        assert!(self.route.len() <= CARRY_HOPS_MAX, "a route is checked before it is used");
        with_length(&cbor::encode(self))
    }

    /// Reads what follows the two length bytes.
    ///
    /// # Errors
    /// [`DecodeError`], also for a route of more than [`CARRY_HOPS_MAX`] hops.
    pub fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        let header: Self = cbor::decode_message(body, CARRY_HEADER_BYTES_MAX)?;
        if header.route.len() > CARRY_HOPS_MAX {
            return Err(DecodeError::Malformed(format!("a route of {} hops", header.route.len())));
        }
        Ok(header)
    }
}

/// What comes back before any byte of the far end, with its two length bytes: `ok`, or why the way is not open.
pub fn reply_to_bytes(reply: &End) -> Vec<u8> {
    with_length(&cbor::encode(reply))
}

/// Reads a reply, given without its two length bytes.
///
/// # Errors
/// [`DecodeError`].
pub fn parse_reply(body: &[u8]) -> Result<End, DecodeError> {
    if body.len() > CARRY_REPLY_BYTES_MAX {
        return Err(DecodeError::TooLarge { size_bytes: body.len(), limit_bytes: CARRY_REPLY_BYTES_MAX });
    }
    End::parse(body)
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("headers and replies are below 2 KiB");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Status;

    #[test]
    fn headers_and_replies_read_back() {
        let header = Header {
            federation_tag: [1; 8],
            from: MemberId::from_bytes([2; 32]),
            route: vec![MemberId::from_bytes([3; 32]); CARRY_HOPS_MAX],
        };
        let bytes = header.to_bytes();
        assert_eq!(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])), bytes.len() - 2);
        assert_eq!(Header::parse(&bytes[2..]), Ok(header.clone()));
        let too_long = Header { route: vec![header.from; CARRY_HOPS_MAX + 1], ..header };
        assert!(Header::parse(&cbor::encode(&too_long)).is_err());
        let reply = End::because(Status::RateLimited, "x".repeat(5_000));
        assert_eq!(parse_reply(&reply_to_bytes(&reply)[2..]), Ok(reply));
    }
}
