//! What reading and verifying a record came to, kept beside it in this node's own store, so that a start does not do it
//! all again: a hundred thousand records would take ten seconds.
//!
//! Who can write into that store can read this node's keys, so nothing is gained by distrusting it.

use super::{AgentRecord, Content, Kind, Record, Slot, Verified, check_times, read_content};
use crate::{merge::MergeError, search::terms_of};
use kos_protocol::{
    cbor,
    id::{MemberId, ObjectId},
    limits::RECORD_BYTES_MAX,
    object::open_envelope,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use std::sync::Arc;

/// A record as this node keeps it. Its kind and its bytes are what travels; a reader of these passes over the rest.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    body: &'a Bytes,
    kind: &'a str,
    known: Known<'a>,
}

#[derive(Serialize, Deserialize)]
struct Known<'a> {
    #[serde(borrow)]
    author: &'a Bytes,
    name: &'a str,
    id: &'a Bytes,
    key_seq: u64,
    seq: u64,
    time_ms: u64,
    expires_ms: u64,
    agent_key: Option<&'a Bytes>,
    terms: &'a str,
}

impl Verified {
    /// The record with all that is known of it, in bytes.
    pub fn to_row(&self) -> Vec<u8> {
        let record = &self.record;
        let agent_key = match &record.content {
            Content::Agent(key) => key.as_ref().map(|key| Bytes::new(key)),
            _ => None,
        };
        cbor::encode(&Row {
            body: Bytes::new(&record.bytes),
            kind: record.slot.kind.as_str(),
            known: Known {
                author: Bytes::new(record.slot.author.as_bytes()),
                name: &record.slot.name,
                id: Bytes::new(record.id.as_bytes()),
                key_seq: record.key_seq,
                seq: record.seq,
                time_ms: record.time_ms,
                expires_ms: record.expires_ms,
                agent_key,
                terms: &self.terms,
            },
        })
    }

    /// The reverse of [`Verified::to_row`]: for what this node has kept, and for nothing else.
    ///
    /// # Errors
    /// [`MergeError`]: damaged, or its time has not come or is over.
    pub fn from_row(now: Timestamp, bytes: &[u8]) -> Result<Self, MergeError> {
        let Row { body, kind, known } = cbor::decode_again(bytes)?;
        let kind = Kind::parse(kind).ok_or(MergeError::Content("kind"))?;
        let author = MemberId::from_bytes(array(known.author)?);
        check_times(now, author, known.seq, known.time_ms, known.expires_ms)?;
        let content = match kind {
            Kind::Agent => Content::Agent(known.agent_key.map(array).transpose()?),
            _ => {
                let (payload, _) =
                    open_envelope(body, RECORD_BYTES_MAX).map_err(|_| MergeError::Content("header"))?;
                read_content(&kind, known.name, payload)?
            }
        };
        let record = Record {
            slot: Slot { author, kind, name: known.name.into() },
            id: ObjectId::from_bytes(array(known.id)?),
            key_seq: known.key_seq,
            seq: known.seq,
            time_ms: known.time_ms,
            expires_ms: known.expires_ms,
            bytes: (**body).into(),
            content,
        };
        Ok(Self { record: Arc::new(record), terms: known.terms.into() })
    }

    /// A record that was just read.
    pub(super) fn new(record: Record, agent: Option<&AgentRecord>) -> Self {
        let terms = terms_of(&record.content, agent);
        Self { record: Arc::new(record), terms: terms.into() }
    }
}

fn array(bytes: &Bytes) -> Result<[u8; 32], MergeError> {
    <[u8; 32]>::try_from(&**bytes).map_err(|_| MergeError::Content("known"))
}
