//! The records themselves, and how one is read.
//!
//! Reading goes in steps, so that each costs something only where the one before it held: [`Claim::parse`] (form),
//! [`crate::Directory::screen`] (times, author, news), [`Claim::verify`] (signature; anywhere, on any thread),
//! [`crate::Directory::insert`].

mod agent;
mod kind;
mod known;
mod link;
mod node;
mod service;
mod suspect;

pub use agent::{AgentCert, AgentRecord, Capability};
pub use kind::{KIND_BYTES_MAX, Kind, Slot};
pub use link::{LINK_RECORD_EVERY_MS, LinkRecord, MeasuredLink};
pub use node::NodeRecord;
pub use service::ServiceRecord;
pub use suspect::SuspectRecord;

use crate::{
    contract::Checked,
    merge::{Authors, MergeError},
};
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId, ObjectId, sha256},
    key::PublicKey,
    limits::{NAME_BYTES_MAX, RECORD_BYTES_MAX, RECORD_LIFE_MS_MAX},
    object::{Object, ObjectError, open_envelope, sig_structure},
    text::is_display_safe,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What every record says in the same fields, so that a node can judge a kind it does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Who says it.
    pub author: MemberId,
    /// The number of the author's key that signs.
    pub key_seq: u64,
    /// Which of the author's records of this kind; empty where there is only one.
    #[serde(default)]
    pub slot: String,
    /// The higher one wins: at least the wall milliseconds of the author's clock.
    pub seq: u64,
    /// When it was made, in wall milliseconds.
    pub time_ms: u64,
    /// When it stops counting, in wall milliseconds; at most `RECORD_LIFE_MS_MAX` after `time_ms`.
    pub expires_ms: u64,
}

/// A kind of record this version knows. `DOMAIN` is `kos/` ‖ `KIND` ‖ `/1`.
pub trait Entry: Object {
    /// The kind's name: lower case letters and `-`, at most 32.
    const KIND: &'static str;
    /// The fields every record has.
    fn header(&self) -> Header;
}

/// What a record says, as far as this version can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A node.
    Node(Box<NodeRecord>),
    /// An agent: the key that its certificate names, which was checked; none in a tombstone. What else it says is read
    /// from its bytes when it is asked for ([`Record::agent`]): most of a directory are agents that nobody asks for.
    Agent(Option<[u8; 32]>),
    /// A service with its contract, which was checked; none in a tombstone.
    Service(Option<Checked>),
    /// The links of a node.
    Link(Box<LinkRecord>),
    /// A suspicion.
    Suspect(Box<SuspectRecord>),
    /// A kind of a later version.
    Unknown,
}

/// A record that was read and that nobody has verified yet: enough to look its author up.
#[derive(Clone, Debug)]
pub struct Claim {
    federation: FederationId,
    slot: Slot,
    key_seq: u64,
    seq: u64,
    time_ms: u64,
    expires_ms: u64,
    bytes: Box<[u8]>,
    /// What the signature covers; the payload is its end.
    signed: Vec<u8>,
    payload_bytes: usize,
    signature: [u8; 64],
}

impl Claim {
    /// Reads an envelope of any kind. Costs no signature check.
    ///
    /// # Errors
    /// [`MergeError::Decode`] and [`MergeError::Content`].
    pub fn parse(
        federation: FederationId,
        kind: &str,
        bytes: impl AsRef<[u8]> + Into<Box<[u8]>>,
    ) -> Result<Self, MergeError> {
        let kind = Kind::parse(kind).ok_or(MergeError::Content("kind"))?;
        let (payload, signature) =
            open_envelope(bytes.as_ref(), RECORD_BYTES_MAX).map_err(|error| match error {
                ObjectError::Decode(error) => MergeError::Decode(error),
                _ => MergeError::Content("header"),
            })?;
        let header: Header = cbor::decode_canonical(payload, RECORD_BYTES_MAX)?;
        check(header.slot.len() <= NAME_BYTES_MAX && is_display_safe(&header.slot), "slot")?;
        let mut aad = format!("kos/{kind}/1").into_bytes();
        aad.extend_from_slice(federation.as_bytes());
        Ok(Self {
            federation,
            slot: Slot { author: header.author, kind, name: header.slot.into() },
            key_seq: header.key_seq,
            seq: header.seq,
            time_ms: header.time_ms,
            expires_ms: header.expires_ms,
            signed: sig_structure(&aad, payload),
            payload_bytes: payload.len(),
            signature,
            bytes: bytes.into(),
        })
    }

    fn payload(&self) -> &[u8] {
        &self.signed[self.signed.len() - self.payload_bytes..]
    }

    /// Where it belongs.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }
    /// The number of the key that signs.
    pub fn key_seq(&self) -> u64 {
        self.key_seq
    }
    /// The higher one wins.
    pub fn seq(&self) -> u64 {
        self.seq
    }
    /// When it was made, in wall milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }
    /// Its id, which does not depend on the signature.
    pub fn id(&self) -> ObjectId {
        ObjectId::from_bytes(sha256(&self.signed))
    }
    /// The envelope.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether its time has come and is not over.
    pub(crate) fn check_times(&self, now: Timestamp) -> Result<(), MergeError> {
        check_times(now, self.slot.author, self.seq, self.time_ms, self.expires_ms)
    }

    /// Checks the signature, strictly, then what the record says. The expensive part, and a pure one: records are
    /// verified on as many threads as there are. Costs one signature check, two for an agent.
    ///
    /// # Errors
    /// [`MergeError::BadSignature`], [`MergeError::BadCert`], [`MergeError::Content`], [`MergeError::Decode`].
    pub fn verify(self, key: &PublicKey) -> Result<Verified, MergeError> {
        let author = self.slot.author;
        key.verify(&self.signed, &self.signature).map_err(|_| MergeError::BadSignature { author })?;
        let (content, agent) = match self.slot.kind {
            Kind::Agent => {
                let agent: AgentRecord = cbor::decode_again(self.payload())?;
                agent.check()?;
                (Content::Agent(agent.certified_key(self.federation, key)?), Some(agent))
            }
            _ => (read_content(&self.slot.kind, &self.slot.name, self.payload())?, None),
        };
        let record = Record {
            id: ObjectId::from_bytes(sha256(&self.signed)),
            slot: self.slot,
            key_seq: self.key_seq,
            seq: self.seq,
            time_ms: self.time_ms,
            expires_ms: self.expires_ms,
            bytes: self.bytes,
            content,
        };
        Ok(Verified::new(record, agent.as_ref()))
    }
}

fn check_times(
    now: Timestamp,
    author: MemberId,
    seq: u64,
    time_ms: u64,
    expires_ms: u64,
) -> Result<(), MergeError> {
    let newest_ms = seq.max(time_ms);
    if !now.allows(newest_ms) {
        return Err(MergeError::Future { author, ahead_ms: newest_ms - now.wall_ms });
    }
    let life_ms = expires_ms.checked_sub(time_ms).ok_or(MergeError::Content("expires_ms"))?;
    check(life_ms <= RECORD_LIFE_MS_MAX, "expires_ms")?;
    if expires_ms <= now.wall_ms {
        return Err(MergeError::Expired { author, age_ms: now.wall_ms - expires_ms });
    }
    Ok(())
}

/// What a record of any kind but an agent's says. `name` is that of its slot.
fn read_content(kind: &Kind, name: &str, payload: &[u8]) -> Result<Content, MergeError> {
    fn read<T: Object>(payload: &[u8]) -> Result<Box<T>, MergeError> {
        Ok(Box::new(cbor::decode_again(payload)?))
    }
    Ok(match kind {
        Kind::Node => {
            let node = read::<NodeRecord>(payload)?;
            check(name.is_empty(), "slot")?;
            node.check()?;
            Content::Node(node)
        }
        Kind::Link => {
            let link = read::<LinkRecord>(payload)?;
            check(name.is_empty(), "slot")?;
            link.check()?;
            Content::Link(link)
        }
        Kind::Suspect => {
            let suspicion = read::<SuspectRecord>(payload)?;
            suspicion.check()?;
            Content::Suspect(suspicion)
        }
        Kind::Service => Content::Service(read::<ServiceRecord>(payload)?.check()?),
        Kind::Agent | Kind::Other(_) => Content::Unknown,
    })
}

/// A verified record and what it can be found by: all that can be made of it on any thread. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub(crate) record: Arc<Record>,
    /// One a line.
    pub(crate) terms: Arc<str>,
}

impl Verified {
    /// The record.
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }
}

/// A record whose signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    slot: Slot,
    id: ObjectId,
    key_seq: u64,
    seq: u64,
    time_ms: u64,
    expires_ms: u64,
    bytes: Box<[u8]>,
    content: Content,
}

impl Record {
    /// Reads a record and checks it, the author before the signature: all steps at once, for one record.
    ///
    /// # Errors
    /// [`MergeError`], except those about room.
    pub fn verify(
        now: Timestamp,
        federation: FederationId,
        kind: &str,
        bytes: &[u8],
        authors: &impl Authors,
    ) -> Result<Arc<Self>, MergeError> {
        let claim = Claim::parse(federation, kind, bytes)?;
        claim.check_times(now)?;
        let (author, key_seq) = (claim.slot.author, claim.key_seq);
        let key = authors.key_of(&author, key_seq).ok_or(MergeError::NotAnAuthor { author, key_seq })?;
        Ok(claim.verify(&key)?.record)
    }

    /// Where it belongs.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }
    /// Its kind.
    pub fn kind(&self) -> &Kind {
        &self.slot.kind
    }
    /// Who says it.
    pub fn author(&self) -> MemberId {
        self.slot.author
    }
    /// The number of the author's key that signed.
    pub fn key_seq(&self) -> u64 {
        self.key_seq
    }
    /// The higher one wins.
    pub fn seq(&self) -> u64 {
        self.seq
    }
    /// When it was made, in wall milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }
    /// When it stops counting, in wall milliseconds.
    pub fn expires_ms(&self) -> u64 {
        self.expires_ms
    }
    /// Its id.
    pub fn id(&self) -> ObjectId {
        self.id
    }
    /// The envelope, as it was signed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// What it says.
    pub fn content(&self) -> &Content {
        &self.content
    }
    /// The agent it tells of, its certificate included, read from its bytes; none for other kinds and for tombstones.
    pub fn agent(&self) -> Option<AgentRecord> {
        let Content::Agent(Some(_)) = self.content else { return None };
        let (payload, _) = open_envelope(&self.bytes, RECORD_BYTES_MAX).ok()?;
        cbor::decode_again(payload).ok()
    }
    /// Whether it replaces `other` in their slot.
    pub(crate) fn replaces(&self, other: &Self) -> bool {
        let order = |record: &Self| (std::cmp::Reverse(record.seq), record.id);
        order(self) < order(other)
    }
}

fn check(fits: bool, field: &'static str) -> Result<(), MergeError> {
    if fits { Ok(()) } else { Err(MergeError::Content(field)) }
}

/// One word for machines: printable ASCII, not empty.
fn is_word(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// An id as text, where it names a slot.
mod as_text {
    use kos_protocol::id::MemberId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &MemberId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MemberId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
