//! What a service promises: its calls, who may make them, and who answers when it does not. SPEC §9.16.
//!
//! A contract is checked by [`Contract::check_by`], the same where it is published and where it comes from a peer; the
//! check costs time in proportion to the contract, whatever its schemas stand for. [`Checked`] then holds calls against it,
//! [`choose`] finds the route of a call, and [`parse_file`] reads what people write.
//!
//! Sources: JSON Schema draft 2020-12, Semantic Versioning 2.0.0, JSON Pointer (RFC 6901).
//!
//! Not here: the record that carries a contract, whether a caller has a role, and moving bodies.

mod choose;
mod file;
mod json;
mod path;
mod route;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod validator;

pub use choose::{Candidate, Chosen, NoneFit, Place, Unfit, choose};
pub use file::{FileError, FileFault, parse_file};
pub use json::JsonError;
pub use path::InvalidPath;
pub use route::{InvalidRoute, Route};
pub use schema::SchemaFault;
pub use validator::{Checked, Violation};

use kos_protocol::{
    cbor,
    id::{AgentId, InvalidName, MemberId, check_name},
    limits::{
        CONTRACT_BYTES_MAX, CONTRACT_FALLBACKS_MAX, CONTRACT_METHODS_MAX, CONTRACT_TAGS_MAX,
        DESCRIPTION_BYTES_MAX, NAME_BYTES_MAX,
    },
    text::{is_display_safe, shown},
};
use path::PathPattern;
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU32,
};
use validator::{CheckedMethod, Schema};

/// A service, as its owner describes it. Encoded it has at most `CONTRACT_BYTES_MAX` bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contract {
    /// The name of the service, as names of agents are; the slot of its record.
    pub name: String,
    /// The version of what it promises.
    pub version: Version,
    /// Which agent of the author answers.
    pub agent: AgentId,
    /// The calls there are: 1 to `CONTRACT_METHODS_MAX`, no two for the same method and path.
    pub methods: Vec<Method>,
    /// Who answers when the agent does not, best first: at most `CONTRACT_FALLBACKS_MAX`, each once.
    pub fallbacks: Vec<Route>,
    /// Who may call, and how.
    pub security: Security,
    /// Words to find it by, as names of agents are: at most `CONTRACT_TAGS_MAX`, each once.
    pub tags: Vec<String>,
    /// For people; at most `DESCRIPTION_BYTES_MAX` bytes that are safe to show.
    pub description: String,
    /// What a call costs and how many there may be.
    pub hints: Hints,
}

/// Calls with one method to one path, or to paths of one pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Method {
    /// Of HTTP, upper case.
    pub method: String,
    /// Like `/notes/{id}` or `/files/*`; at most `PATH_PATTERN_BYTES_MAX` bytes.
    pub path: String,
    /// The JSON Schema of what a request's body holds, as text; none where it is not checked. Kept byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The same of the body of an answer that is a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
}

/// Who may call, and how. The set is closed: what a reader does not know, it does not take, because to pass over a
/// condition would be to lift it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// Roles whose holders may call: at least one, in ascending order, each once.
    pub callers: Vec<Caller>,
    /// Whether a call may be early data, which a carrier can replay: only where every method is `GET` or `HEAD`.
    pub early_data: bool,
    /// What becomes of a call with or without an idempotency key.
    pub idempotency: Idempotency,
}

/// A role that may call. The roles are those of governance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Caller {
    /// Members without another role.
    Member,
    /// Relays.
    Relay,
    /// Stewards.
    Steward,
}

impl Caller {
    /// Every role with its written form.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Member, "member"), (Self::Relay, "relay"), (Self::Steward, "steward")];
}

/// What becomes of idempotency keys. SPEC §8.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Idempotency {
    /// A call with a key is refused.
    Refused,
    /// A call may have a key.
    Accepted,
    /// A call without a key is refused.
    Required,
}

impl Idempotency {
    /// Every case with its written form.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Refused, "refused"), (Self::Accepted, "accepted"), (Self::Required, "required")];
}

/// What a caller may expect of prices and quotas. Nobody enforces them; they are for choosing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// Of one call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// Calls that one caller may make in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<NonZeroU32>,
}

/// A price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Of the unit; amounts are whole.
    pub amount: u64,
    /// For people: 1 to `NAME_BYTES_MAX` bytes that are safe to show.
    pub unit: String,
}

/// Why a contract is refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {fault}")]
pub struct ContractError {
    /// Where.
    pub at: At,
    /// Why.
    pub fault: Fault,
}

/// A place in a contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// A path of keys like `methods[1].request`; empty for the whole.
    pub key: String,
    /// Within a schema, a JSON pointer; empty for all of it, and outside of schemas.
    pub pointer: String,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.key.is_empty() { "contract" } else { &self.key })?;
        if self.pointer.is_empty() { Ok(()) } else { write!(f, ", {}", shown(&self.pointer, 256)) }
    }
}

/// What is wrong with a contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A text above its limit, or empty where it may not be.
    #[error("{size_bytes} bytes, must be {bytes_min} to {bytes_max}")]
    Size {
        /// What it takes.
        size_bytes: usize,
        /// The shortest there may be.
        bytes_min: usize,
        /// The longest there may be.
        bytes_max: usize,
    },
    /// A text that changes how the text around it reads.
    #[error("holds a control, an invisible or a direction-changing character")]
    Text,
    /// Too many or too few of something.
    #[error("{count} entries, must be {count_min} to {count_max}")]
    Count {
        /// How many there are.
        count: usize,
        /// The fewest there may be.
        count_min: usize,
        /// The most there may be.
        count_max: usize,
    },
    /// Something that is there already.
    #[error("`{0}` is there twice")]
    Twice(String),
    /// A fallback that is the contract's own route.
    #[error("`{0}` is the route of the contract itself")]
    OwnRoute(Route),
    /// Not in the order that makes its encoding the only one.
    #[error("not in ascending order, or one of them is there twice")]
    Order,
    /// No method that a call may have.
    #[error("`{0}` is no method of a call: upper case letters, never CONNECT, TRACE or TRACK")]
    Method(String),
    /// No path pattern.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// Such a request has no body.
    #[error("a {0} has no body to describe")]
    NoBody(String),
    /// Early data may be replayed, and this method may not.
    #[error("early data may be replayed, so every method must be GET or HEAD; {0} is not")]
    Replayable(String),
    /// A key counts only where early data may not be.
    #[error("a call that may be early data has no idempotency key that counts, so none can be required")]
    KeyOfEarlyData,
    /// A schema that may not be compiled.
    #[error(transparent)]
    Schema(#[from] SchemaFault),
    /// Above its limit as a whole.
    #[error("{size_bytes} bytes when encoded, limit {CONTRACT_BYTES_MAX}; shorten its schemas")]
    TooLarge {
        /// What it takes.
        size_bytes: usize,
    },
}

impl Contract {
    /// Checks everything, where it is published and where it is received.
    ///
    /// Costs time in proportion to the contract's size, and the compilation of its patterns, of which it may have
    /// `SCHEMA_PATTERNS_MAX` (up to half a millisecond each, tens of microseconds as people write them).
    ///
    /// # Errors
    /// [`ContractError`]: the first fault, with its place.
    pub fn check(&self) -> Result<Checked, ContractError> {
        check_name(&self.name).map_err(|error| fault("name", error))?;
        let version_bytes = self.version.to_string().len();
        check_size("version", version_bytes, 5, NAME_BYTES_MAX)?;
        check_text("description", &self.description, 0, DESCRIPTION_BYTES_MAX)?;
        check_count("tags", self.tags.len(), 0, CONTRACT_TAGS_MAX)?;
        each_once("tags", &self.tags)?;
        for (at, tag) in self.tags.iter().enumerate() {
            check_name(tag).map_err(|error| fault(&format!("tags[{at}]"), error))?;
        }
        check_count("fallbacks", self.fallbacks.len(), 0, CONTRACT_FALLBACKS_MAX)?;
        each_once("fallbacks", &self.fallbacks)?;
        if let Some(price) = &self.hints.price {
            check_text("hints.price.unit", &price.unit, 1, NAME_BYTES_MAX)?;
        }
        let methods = self.check_methods()?;
        self.check_security()?;
        let size_bytes = cbor::encode(self).len();
        if size_bytes > CONTRACT_BYTES_MAX {
            return Err(fault("", Fault::TooLarge { size_bytes }));
        }
        Ok(Checked::new(self.clone(), methods))
    }

    /// As [`Contract::check`], of a contract that this member publishes: no fallback is its own route.
    ///
    /// # Errors
    /// [`ContractError`]: the first fault, with its place.
    pub fn check_by(&self, author: MemberId) -> Result<Checked, ContractError> {
        let checked = self.check()?;
        let own = Route { agent: self.agent.clone(), member: author };
        match self.fallbacks.iter().position(|route| *route == own) {
            Some(at) => Err(fault(&format!("fallbacks[{at}]"), Fault::OwnRoute(own))),
            None => Ok(checked),
        }
    }

    /// Whether its version is in a range, as Cargo reads ranges: `^1.2`, `>=1, <3`; a pre-release only where the range
    /// names one of the same version.
    pub fn satisfies(&self, range: &VersionReq) -> bool {
        range.matches(&self.version)
    }

    fn check_methods(&self) -> Result<Vec<CheckedMethod>, ContractError> {
        check_count("methods", self.methods.len(), 1, CONTRACT_METHODS_MAX)?;
        let (mut calls, mut patterns) = (BTreeMap::new(), BTreeSet::new());
        let mut checked = Vec::new();
        for (at, method) in self.methods.iter().enumerate() {
            let key = format!("methods[{at}]");
            if !path::is_http_method(&method.method) {
                let shown = shown(&method.method, NAME_BYTES_MAX);
                return Err(fault(&format!("{key}.method"), Fault::Method(shown)));
            }
            let path =
                PathPattern::parse(&method.path).map_err(|error| fault(&format!("{key}.path"), error))?;
            if let Some(other) = calls.insert((&method.method, path.clone()), &method.path) {
                let twice = Fault::Twice(format!("{} {other}", method.method));
                return Err(fault(&format!("{key}.path"), twice));
            }
            if method.request.is_some() && matches!(method.method.as_str(), "GET" | "HEAD") {
                return Err(fault(&format!("{key}.request"), Fault::NoBody(method.method.clone())));
            }
            if method.reply.is_some() && method.method == "HEAD" {
                return Err(fault(&format!("{key}.reply"), Fault::NoBody("reply to HEAD".to_owned())));
            }
            let mut weigh = |text: &Option<String>, name: &str| {
                text.as_ref().map(|text| weigh(text, format!("{key}.{name}"), &mut patterns)).transpose()
            };
            let (request, reply) = (weigh(&method.request, "request")?, weigh(&method.reply, "reply")?);
            checked.push(CheckedMethod { path, request, reply });
        }
        Ok(checked)
    }

    fn check_security(&self) -> Result<(), ContractError> {
        let Security { callers, early_data, idempotency } = &self.security;
        check_count("security.callers", callers.len(), 1, Caller::ALL.len())?;
        if !callers.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(fault("security.callers", Fault::Order));
        }
        if !early_data {
            return Ok(());
        }
        let unsafe_one = self.methods.iter().find(|method| !matches!(method.method.as_str(), "GET" | "HEAD"));
        match unsafe_one {
            Some(method) => Err(fault("security.early_data", Fault::Replayable(method.method.clone()))),
            None if *idempotency == Idempotency::Required => {
                Err(fault("security.idempotency", Fault::KeyOfEarlyData))
            }
            None => Ok(()),
        }
    }
}

fn weigh(text: &str, key: String, patterns: &mut BTreeSet<String>) -> Result<Schema, ContractError> {
    match schema::weigh(text, patterns) {
        Ok(weighed) => Ok(Schema::new(text, weighed)),
        Err(schema::Located { pointer, fault }) => {
            Err(ContractError { at: At { key, pointer }, fault: fault.into() })
        }
    }
}

fn fault(key: &str, fault: impl Into<Fault>) -> ContractError {
    ContractError { at: At { key: key.to_owned(), pointer: String::new() }, fault: fault.into() }
}

fn check_size(key: &str, size_bytes: usize, bytes_min: usize, bytes_max: usize) -> Result<(), ContractError> {
    let fits = (bytes_min..=bytes_max).contains(&size_bytes);
    if fits { Ok(()) } else { Err(fault(key, Fault::Size { size_bytes, bytes_min, bytes_max })) }
}

fn check_text(key: &str, text: &str, bytes_min: usize, bytes_max: usize) -> Result<(), ContractError> {
    check_size(key, text.len(), bytes_min, bytes_max)?;
    if is_display_safe(text) { Ok(()) } else { Err(fault(key, Fault::Text)) }
}

fn check_count(key: &str, count: usize, count_min: usize, count_max: usize) -> Result<(), ContractError> {
    let fits = (count_min..=count_max).contains(&count);
    if fits { Ok(()) } else { Err(fault(key, Fault::Count { count, count_min, count_max })) }
}

fn each_once<T: Ord + fmt::Display>(key: &str, list: &[T]) -> Result<(), ContractError> {
    let mut seen = BTreeSet::new();
    match list.iter().enumerate().find(|(_, entry)| !seen.insert(*entry)) {
        Some((at, entry)) => {
            let twice = Fault::Twice(shown(&entry.to_string(), NAME_BYTES_MAX * 2));
            Err(fault(&format!("{key}[{at}]"), twice))
        }
        None => Ok(()),
    }
}
