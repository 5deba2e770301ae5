//! The records themselves, and how one is read.

use crate::merge::{Authors, MergeError};
use kos_protocol::{
    cbor,
    id::{AgentId, FederationId, MemberId, ObjectId, check_name, sha256},
    key::PublicKey,
    limits::{
        ADDRESS_BYTES_MAX, ADDRESSES_MAX, CLOCK_SKEW_MS_MAX, DESCRIPTION_BYTES_MAX, NAME_BYTES_MAX,
        RECORD_BYTES_MAX, RECORD_CAPABILITIES_MAX, RECORD_LIFE_MS_MAX,
    },
    object::{Object, ObjectError, Scope, Signed, Unverified, open_envelope, sig_structure},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

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

/// Where a member's node can be reached and what it can do. One for each member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Whose node.
    pub author: MemberId,
    /// As in [`Header`].
    pub key_seq: u64,
    /// As in [`Header`].
    pub seq: u64,
    /// As in [`Header`].
    pub time_ms: u64,
    /// As in [`Header`].
    pub expires_ms: u64,
    /// What the node calls itself; the roster's name is the one that counts.
    pub name: String,
    /// Where it listens, multiaddr texts, best first.
    pub addresses: Vec<String>,
    /// Through whom it can be reached.
    pub relays: Vec<MemberId>,
    /// The version of its program.
    pub version: semver::Version,
    /// What it can do beyond the basics, names of up to `NAME_BYTES_MAX` bytes.
    pub features: Vec<String>,
}

impl Object for NodeRecord {
    const DOMAIN: &'static str = "kos/node-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

impl Entry for NodeRecord {
    const KIND: &'static str = "node-record";
    fn header(&self) -> Header {
        let Self { author, key_seq, seq, time_ms, expires_ms, .. } = *self;
        Header { author, key_seq, slot: String::new(), seq, time_ms, expires_ms }
    }
}

/// Something an agent can do, with the version of how it does it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capability {
    /// Its name, up to `NAME_BYTES_MAX` bytes.
    pub name: String,
    /// Its version.
    pub version: semver::Version,
}

/// A member's word that an agent is its own. Domain `kos/agent-cert/1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentCert {
    /// The agent's own key.
    pub agent_key: PublicKey,
    /// Class and name.
    pub agent: AgentId,
    /// What it may say it can do, names.
    pub capabilities: Vec<String>,
    /// From when, in wall milliseconds.
    pub not_before_ms: u64,
    /// Until when, in wall milliseconds.
    pub until_ms: u64,
    /// Whose agent.
    pub member: MemberId,
    /// The number of the member's key that signs. A certificate ends when that key is replaced.
    pub key_seq: u64,
}

impl Object for AgentCert {
    const DOMAIN: &'static str = "kos/agent-cert/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX / 2;
}

/// An agent that can be called. One for each agent of each member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Whose agent.
    pub author: MemberId,
    /// As in [`Header`].
    pub key_seq: u64,
    /// Class and name; the slot.
    #[serde(rename = "slot")]
    pub agent: AgentId,
    /// As in [`Header`].
    pub seq: u64,
    /// As in [`Header`].
    pub time_ms: u64,
    /// As in [`Header`].
    pub expires_ms: u64,
    /// The envelope of its [`AgentCert`]; none in a tombstone: the agent is gone.
    #[serde(deserialize_with = "Option::deserialize")]
    pub cert: Option<ByteBuf>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// For people.
    pub description: String,
    /// How it is spoken to, for instance `http`.
    pub protocol: String,
}

impl AgentRecord {
    /// Whether it only says that the agent is gone.
    pub fn is_tombstone(&self) -> bool {
        self.cert.is_none()
    }
}

impl Object for AgentRecord {
    const DOMAIN: &'static str = "kos/agent-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

impl Entry for AgentRecord {
    const KIND: &'static str = "agent-record";
    fn header(&self) -> Header {
        let Self { author, key_seq, seq, time_ms, expires_ms, .. } = *self;
        Header { author, key_seq, slot: self.agent.to_string(), seq, time_ms, expires_ms }
    }
}

/// Where a record belongs: the newest one in a slot replaces the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// Whose.
    pub author: MemberId,
    /// Of which kind.
    pub kind: String,
    /// Which one of that kind.
    pub name: String,
}

/// What a record says, as far as this version can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A node.
    Node(NodeRecord),
    /// An agent with its checked certificate; none in a tombstone.
    Agent(Box<AgentRecord>, Option<Box<AgentCert>>),
    /// A kind of a later version.
    Unknown,
}

/// A verified record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    kind: String,
    header: Header,
    id: ObjectId,
    bytes: Vec<u8>,
    content: Content,
}

impl Record {
    /// Reads a record and checks it, the author before the signature.
    ///
    /// # Errors
    /// [`MergeError`], except those about room.
    pub fn verify(
        now: Timestamp,
        federation: FederationId,
        kind: &str,
        bytes: &[u8],
        authors: &impl Authors,
    ) -> Result<Self, MergeError> {
        let raw = Raw::parse(federation, kind, bytes)?;
        check_times(now, &raw.header)?;
        let Header { author, key_seq, .. } = raw.header;
        let key = authors.key_of(&author, key_seq).ok_or(MergeError::NotAnAuthor { author, key_seq })?;
        key.verify(&raw.signed, &raw.signature).map_err(|_| MergeError::BadSignature { author })?;
        let content = read_content(federation, kind, &raw, &key)?;
        let id = ObjectId::from_bytes(sha256(&raw.signed));
        Ok(Self { kind: kind.to_owned(), header: raw.header, id, bytes: bytes.to_vec(), content })
    }

    /// The name of its kind.
    pub fn kind(&self) -> &str {
        &self.kind
    }
    /// What every record says.
    pub fn header(&self) -> &Header {
        &self.header
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
    /// Where it belongs.
    pub fn slot(&self) -> Slot {
        Slot { author: self.header.author, kind: self.kind.clone(), name: self.header.slot.clone() }
    }
    /// Whether it replaces `other` in their slot.
    pub(crate) fn replaces(&self, other: &Self) -> bool {
        let order = |record: &Self| (std::cmp::Reverse(record.header.seq), record.id);
        order(self) < order(other)
    }
}

/// An envelope of any kind. Like `Unverified`, but the kind is known only at run time.
struct Raw {
    header: Header,
    payload: Vec<u8>,
    signed: Vec<u8>,
    signature: [u8; 64],
}

impl Raw {
    fn parse(federation: FederationId, kind: &str, bytes: &[u8]) -> Result<Self, MergeError> {
        let is_kind = (1..=32).contains(&kind.len()) && kind.bytes().all(|b| matches!(b, b'a'..=b'z' | b'-'));
        if !is_kind {
            return Err(MergeError::Content("kind"));
        }
        let (payload, signature) = open_envelope(bytes, RECORD_BYTES_MAX).map_err(|error| match error {
            ObjectError::Decode(error) => MergeError::Decode(error),
            _ => MergeError::Content("header"),
        })?;
        let header: Header = cbor::decode_canonical(&payload, RECORD_BYTES_MAX)?;
        if header.slot.len() > NAME_BYTES_MAX || !is_printable(&header.slot) {
            return Err(MergeError::Content("slot"));
        }
        let mut aad = format!("kos/{kind}/1").into_bytes();
        aad.extend_from_slice(federation.as_bytes());
        let signed = sig_structure(&aad, &payload);
        Ok(Self { header, payload, signed, signature })
    }
}

fn check_times(now: Timestamp, header: &Header) -> Result<(), MergeError> {
    let author = header.author;
    let newest_ms = header.seq.max(header.time_ms);
    if !now.allows(newest_ms) {
        return Err(MergeError::Future { author, ahead_ms: newest_ms - now.wall_ms });
    }
    let life_ms = header.expires_ms.checked_sub(header.time_ms).ok_or(MergeError::Content("expires_ms"))?;
    if life_ms > RECORD_LIFE_MS_MAX {
        return Err(MergeError::Content("expires_ms"));
    }
    if header.expires_ms <= now.wall_ms {
        return Err(MergeError::Expired { author, age_ms: now.wall_ms - header.expires_ms });
    }
    Ok(())
}

fn read_content(
    federation: FederationId,
    kind: &str,
    raw: &Raw,
    key: &PublicKey,
) -> Result<Content, MergeError> {
    match kind {
        NodeRecord::KIND => {
            let node: NodeRecord = cbor::decode_message(&raw.payload, RECORD_BYTES_MAX)?;
            check_node(&raw.header, &node)?;
            Ok(Content::Node(node))
        }
        AgentRecord::KIND => {
            let agent: AgentRecord = cbor::decode_message(&raw.payload, RECORD_BYTES_MAX)?;
            check_agent(&agent)?;
            let verify = |bytes: &ByteBuf| check_cert(federation, &agent, bytes, key);
            let cert = agent.cert.as_ref().map(verify).transpose()?;
            Ok(Content::Agent(Box::new(agent), cert.map(Box::new)))
        }
        _ => Ok(Content::Unknown),
    }
}

fn check_node(header: &Header, node: &NodeRecord) -> Result<(), MergeError> {
    let is_address = |text: &String| {
        (1..=ADDRESS_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    check(header.slot.is_empty(), "slot")?;
    check(check_name(&node.name).is_ok(), "name")?;
    check(node.addresses.len() <= ADDRESSES_MAX && node.addresses.iter().all(is_address), "addresses")?;
    check(node.relays.len() <= ADDRESSES_MAX, "relays")?;
    check(
        node.features.len() <= RECORD_CAPABILITIES_MAX
            && node.features.iter().all(|feature| is_word(feature)),
        "features",
    )
}

fn check_agent(agent: &AgentRecord) -> Result<(), MergeError> {
    let names_fit = agent.capabilities.iter().all(|capability| is_word(&capability.name));
    check(agent.capabilities.len() <= RECORD_CAPABILITIES_MAX && names_fit, "capabilities")?;
    let is_text = agent.description.len() <= DESCRIPTION_BYTES_MAX && is_printable(&agent.description);
    check(is_text, "description")?;
    check(is_word(&agent.protocol), "protocol")
}

fn check_cert(
    federation: FederationId,
    agent: &AgentRecord,
    bytes: &[u8],
    key: &PublicKey,
) -> Result<AgentCert, MergeError> {
    let fault = |_| MergeError::BadCert { author: agent.author };
    let cert = Unverified::<AgentCert>::parse(bytes, Scope::Federation(federation)).map_err(fault)?;
    let claim = cert.claim();
    let covers = (claim.member, claim.key_seq, &claim.agent) == (agent.author, agent.key_seq, &agent.agent)
        && claim.not_before_ms <= agent.time_ms.saturating_add(CLOCK_SKEW_MS_MAX)
        && claim.until_ms >= agent.expires_ms
        && agent.capabilities.iter().all(|capability| claim.capabilities.contains(&capability.name));
    if !covers {
        return Err(MergeError::BadCert { author: agent.author });
    }
    let cert: Signed<AgentCert> =
        cert.verify(key).map_err(|_| MergeError::BadCert { author: agent.author })?;
    Ok((*cert).clone())
}

fn check(fits: bool, field: &'static str) -> Result<(), MergeError> {
    if fits { Ok(()) } else { Err(MergeError::Content(field)) }
}

/// One word for machines: printable ASCII, not empty.
fn is_word(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Text that can be shown in a terminal: no control characters, which also rules out escape sequences.
fn is_printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
