//! Answers from the directory: what commands and programs find in it. Plain values, made when asked for.

use crate::{runtime::Runtime, state::lock};
use kos_directory::{
    Completeness, Content, Freshness, Health, Kind, Query, QueryError, Record, liveness::Observed,
};
use kos_engine::Federation;
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId, ObjectId},
    limits::RECORD_BYTES_MAX,
    object::open_envelope,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Authors shown one by one in [`DirectoryStats`]; those with most refusals first.
const AUTHORS_SHOWN: usize = 20;

/// What a query found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// How many there are.
    pub total: usize,
    /// How true the answer is.
    pub completeness: Completeness,
    /// How long ago the last catch-up came to its end, in milliseconds.
    pub caught_up_ms: Option<u64>,
    /// Other members with a direct link.
    pub linked: usize,
    /// Other members.
    pub others: usize,
    /// Those of them that are suspected or down.
    pub lost: usize,
    /// This page, best first.
    pub hits: Vec<Hit>,
}

/// A record that a query matches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hit {
    /// `node`, `agent` or `service`.
    pub kind: String,
    /// The agent or service; for a node its own name.
    pub name: String,
    /// Whose.
    pub member: MemberId,
    /// The name the member goes by.
    pub member_name: String,
    /// For people.
    pub description: String,
    /// Names with versions, `http 1.1.0`.
    pub capabilities: Vec<String>,
    /// The member's health.
    pub health: Health,
    /// Since when, in wall milliseconds; none where nothing was observed.
    pub since_ms: Option<u64>,
    /// The names of those who observed it.
    pub observers: Vec<String>,
    /// How old the record is, in milliseconds.
    pub age_ms: u64,
    /// The record's id.
    pub record: ObjectId,
}

/// A record, taken apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// Its id.
    pub record: ObjectId,
    /// Its kind.
    pub kind: String,
    /// Who says it.
    pub author: MemberId,
    /// The name its author goes by.
    pub author_name: String,
    /// The number of the key that signed; the signature was verified when it came.
    pub key_seq: u64,
    /// Bytes, signature included.
    pub bytes: usize,
    /// Everything it says. Bytes are hex.
    pub content: Value,
}

/// Why a text names no one record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too short, or no hex.
    #[error("a record is named by at least {HASH_CHARS_MIN} hex digits of its id")]
    NoHash,
    /// None.
    #[error("no record here begins with `{0}`")]
    Unknown(String),
    /// Several.
    #[error("{count} records begin with `{text}`")]
    Ambiguous {
        /// What was given.
        text: String,
        /// How many.
        count: usize,
    },
}

/// Fewest digits that name a record.
const HASH_CHARS_MIN: usize = 6;

/// What the directory holds, and what was refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DirectoryStats {
    /// Records held.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Records by kind.
    pub kinds: BTreeMap<String, usize>,
    /// Records taken since the start.
    pub merged: u64,
    /// Records heard again or too late.
    pub known: u64,
    /// Records whose time was over.
    pub expired: u64,
    /// How true answers are.
    pub completeness: Completeness,
    /// How long ago the last catch-up came to its end, in milliseconds.
    pub caught_up_ms: Option<u64>,
    /// Members by health.
    pub health: BTreeMap<&'static str, usize>,
    /// How much this node doubts itself, 0 to 8.
    pub doubt: u64,
    /// Items refused since the start, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Of these, what each member passed on, by name.
    pub refused_from: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// Authors, those with refusals first, then those with most bytes.
    pub authors: Vec<AuthorStats>,
}

/// What one author has in the directory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuthorStats {
    /// Who.
    pub member: MemberId,
    /// The name it goes by.
    pub name: String,
    /// Records held.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Records taken since the start.
    pub taken: u64,
    /// Records refused since the start, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

fn name_of(federation: &Federation, member: &MemberId) -> String {
    federation.roster().member(member).map_or_else(|| member.short(), |member| member.name.clone())
}

pub(crate) fn names_of(federation: &Federation, members: &[MemberId]) -> Vec<String> {
    members.iter().map(|member| name_of(federation, member)).collect()
}

impl Runtime {
    /// What a query finds, from memory.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn find(
        &self,
        id: &FederationId,
        text: &str,
        offset: usize,
        limit: usize,
    ) -> Option<Result<Found, QueryError>> {
        let freshness = self.freshness(id);
        let now = self.0.state.now();
        self.0.state.with(id, |federation| {
            let member = |name: &str| federation.roster().resolve(name).ok().map(|member| member.id);
            let query = Query::parse(text, member)?.page(offset, limit);
            let hits = federation.directory().find(&query);
            let hit = |record: &std::sync::Arc<Record>| hit(federation, now.wall_ms, record);
            Ok(Found {
                total: hits.total,
                completeness: freshness.completeness(),
                caught_up_ms: freshness.caught_up_ms,
                linked: freshness.linked,
                others: freshness.others,
                lost: freshness.lost,
                hits: hits.page.iter().map(hit).collect(),
            })
        })
    }

    /// How true answers are now.
    pub fn freshness(&self, id: &FederationId) -> Freshness {
        let own = self.0.state.identity().member();
        let counts = self.0.state.with(id, |federation| {
            let others = federation.roster().active().filter(|member| member.id != own);
            let is_lost = |health| matches!(health, Health::Suspect | Health::Down);
            others.fold((0, 0), |(others, lost), member| {
                let health = federation.liveness().observed(&member.id).health;
                (others + 1, lost + usize::from(is_lost(health)))
            })
        });
        let (others, lost) = counts.unwrap_or_default();
        let now_ms = self.0.state.now().monotonic_ms;
        let caught_up = lock(&self.0.caught_up).get(id).copied();
        Freshness {
            others,
            lost,
            linked: self.linked_members(id).len(),
            caught_up_ms: caught_up.map(|at_ms| now_ms.saturating_sub(at_ms)),
        }
    }

    /// Hears of every change of records, health or roster from here on.
    pub fn directory_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// A record, by the beginning of its id in hex.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn record(&self, id: &FederationId, text: &str) -> Option<Result<Shown, RecordError>> {
        let text = text.to_lowercase();
        let is_hash = text.len() >= HASH_CHARS_MIN && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hash {
            return Some(Err(RecordError::NoHash));
        }
        self.0.state.with(id, |federation| {
            let records = federation.directory().records();
            let named: Vec<_> = records.filter(|record| record.id().to_string().starts_with(&text)).collect();
            match named.as_slice() {
                [] => Err(RecordError::Unknown(text.clone())),
                [record] => Ok(Shown {
                    record: record.id(),
                    kind: record.kind().to_string(),
                    author: record.author(),
                    author_name: name_of(federation, &record.author()),
                    key_seq: record.key_seq(),
                    bytes: record.bytes().len(),
                    content: content(record),
                }),
                several => Err(RecordError::Ambiguous { text: text.clone(), count: several.len() }),
            }
        })
    }

    /// What the directory holds, and what was refused.
    pub fn directory_stats(&self, id: &FederationId) -> Option<DirectoryStats> {
        let freshness = self.freshness(id);
        self.0.state.with(id, |federation| {
            let directory = federation.directory();
            let stats = directory.stats();
            let mut kinds = BTreeMap::new();
            for record in directory.records() {
                *kinds.entry(record.kind().to_string()).or_default() += 1;
            }
            let mut health = BTreeMap::new();
            for member in federation.roster().active().filter(|member| member.id != federation.me()) {
                *health.entry(federation.liveness().observed(&member.id).health.as_str()).or_default() += 1;
            }
            let author = |(member, account): (&MemberId, &kos_directory::Account)| AuthorStats {
                member: *member,
                name: name_of(federation, member),
                records: account.records,
                bytes: account.bytes,
                taken: account.taken,
                refused: account.refused.clone(),
            };
            let mut authors: Vec<_> = directory.accounts().iter().map(author).collect();
            let refused = |author: &AuthorStats| author.refused.values().sum::<u64>();
            authors.sort_by_key(|author| std::cmp::Reverse((refused(author), author.bytes)));
            authors.truncate(AUTHORS_SHOWN);
            let from = federation.stats().refused_from.iter();
            DirectoryStats {
                records: stats.records,
                bytes: stats.bytes,
                kinds,
                merged: stats.merged,
                known: stats.known,
                expired: stats.expired,
                completeness: freshness.completeness(),
                caught_up_ms: freshness.caught_up_ms,
                health,
                doubt: federation.liveness().doubt(),
                refused: federation.stats().refused.clone(),
                refused_from: from
                    .map(|(member, refused)| (name_of(federation, member), refused.clone()))
                    .collect(),
                authors,
            }
        })
    }
}

fn hit(federation: &Federation, wall_ms: u64, record: &Record) -> Hit {
    let member = record.author();
    let observed = observed(federation, &member);
    let (name, description, capabilities) = match record.content() {
        Content::Node(node) => (node.name.clone(), String::new(), node.features.clone()),
        Content::Agent(_) => {
            let agent = record.agent();
            let capabilities = agent.iter().flat_map(|agent| &agent.capabilities);
            let capability = |of: &kos_directory::Capability| format!("{} {}", of.name, of.version);
            let capabilities = capabilities.map(capability).collect();
            let description = agent.as_ref().map(|agent| agent.description.clone());
            (record.slot().name.to_string(), description.unwrap_or_default(), capabilities)
        }
        Content::Service(Some(checked)) => {
            let contract = checked.contract();
            let promised = format!("{} {}", contract.name, contract.version);
            (contract.name.clone(), contract.description.clone(), vec![promised])
        }
        _ => (record.slot().name.to_string(), String::new(), Vec::new()),
    };
    let kind = record.kind().as_str();
    Hit {
        kind: kind.strip_suffix("-record").unwrap_or(kind).to_owned(),
        name,
        member,
        member_name: name_of(federation, &member),
        description,
        capabilities,
        health: observed.health,
        since_ms: (observed.health != Health::Unknown).then_some(observed.since_ms),
        observers: names_of(federation, &observed.observers),
        age_ms: wall_ms.saturating_sub(record.time_ms()),
        record: record.id(),
    }
}

/// What is known of a member's health; of this node itself, that it is here.
pub(crate) fn observed(federation: &Federation, member: &MemberId) -> Observed {
    if *member == federation.me() {
        let watchers = federation.liveness().watchers().iter().copied().collect();
        let started = federation.directory().get(&kos_directory::Slot::only(*member, Kind::Node));
        let since_ms = started.map_or(0, |record| record.time_ms());
        return Observed { health: Health::Alive, since_ms, observers: watchers };
    }
    federation.liveness().observed(member)
}

/// What a record says, as JSON. The payload was read when the record came.
fn content(record: &Record) -> Value {
    let payload =
        open_envelope(record.bytes(), RECORD_BYTES_MAX).map(|(payload, _)| payload).unwrap_or_default();
    cbor::decode_canonical::<ipld_core::ipld::Ipld>(payload, RECORD_BYTES_MAX).map_or(Value::Null, to_json)
}

fn to_json(value: ipld_core::ipld::Ipld) -> Value {
    use ipld_core::ipld::Ipld;
    match value {
        Ipld::Null => Value::Null,
        Ipld::Bool(value) => json!(value),
        Ipld::Integer(value) => {
            i64::try_from(value).map_or_else(|_| json!(value.to_string()), |value| json!(value))
        }
        Ipld::Float(value) => json!(value),
        Ipld::String(value) => json!(value),
        Ipld::Bytes(bytes) => json!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        Ipld::List(values) => values.into_iter().map(to_json).collect(),
        Ipld::Map(values) => values.into_iter().map(|(key, value)| (key, to_json(value))).collect(),
        Ipld::Link(link) => json!(link.to_string()),
    }
}
