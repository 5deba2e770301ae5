//! Bodies of calls against the schemas of a contract.

use super::{
    Caller, Contract, Idempotency, Security,
    json::{self, JsonError},
    path::PathPattern,
    schema::Weighed,
};
use jsonschema::{PatternOptions, ValidationOptions, Validator};
use kos_protocol::{
    limits::{
        CHECKED_BODY_BYTES_MAX, CHECKED_BODY_DEPTH_MAX, CHECKED_BODY_ITEMS_MAX, CHECKED_BODY_STEPS_MAX,
        SCHEMA_DEPTH_MAX, SCHEMA_PATTERN_PROGRAM_BYTES_MAX, STATUS_TEXT_BYTES_MAX,
    },
    message::Status,
    text::shown,
};
use serde_json::Value;
use std::{
    fmt,
    sync::{Arc, OnceLock},
};

/// Most of a pointer into a body that is quoted.
const POINTER_BYTES_MAX: usize = 256;
/// Most steps, as in `CHECKED_BODY_STEPS_MAX`, of a body of which it is said why no alternative fits. The reason is made of
/// those of each alternative at each value, so it takes far more time and memory than the verdict.
const EXPLAINED_STEPS_MAX: usize = 512 * 1024;

/// A contract that was checked, ready to hold calls against it. Cheap to clone.
///
/// A schema is compiled when the first body is held against it and kept from then on. So a directory may check records
/// by the hundred thousand; who calls or answers a service keeps its `Checked`.
#[derive(Clone, Debug)]
pub struct Checked(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    contract: Contract,
    methods: Vec<CheckedMethod>,
}

/// What was found of one method, in the contract's order.
#[derive(Debug)]
pub(super) struct CheckedMethod {
    pub(super) path: PathPattern,
    pub(super) request: Option<Schema>,
    pub(super) reply: Option<Schema>,
}

/// A call or an answer that is not what the contract says.
///
/// Its text is at most `STATUS_TEXT_BYTES_MAX` bytes, safe to show, and quotes no value of the body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Its callers have other roles. Status `denied`.
    #[error("the contract of `{service}` lets no {role} call")]
    NotForRole {
        /// The service.
        service: String,
        /// The caller's role.
        role: &'static str,
    },
    /// It takes no idempotency key. Status `invalid`.
    #[error("the contract of `{service}` takes no call with an idempotency key")]
    KeyRefused {
        /// The service.
        service: String,
    },
    /// It takes no call without an idempotency key. Status `invalid`.
    #[error("the contract of `{service}` takes no call without an idempotency key")]
    KeyRequired {
        /// The service.
        service: String,
    },
    /// The contract has no such call. Status `not-found`.
    #[error("the contract of `{service}` has no {method} for this path")]
    NotOffered {
        /// The service.
        service: String,
        /// The method, cut where it is long.
        method: String,
    },
    /// Too large, or too large for the weight of the schema. Status `too-large`.
    #[error("the body is {size_bytes} bytes, limit {limit_bytes} for what its contract checks")]
    TooLarge {
        /// What it takes.
        size_bytes: usize,
        /// What this schema allows.
        limit_bytes: usize,
    },
    /// An array too long to compare its items with each other. Status `too-large`.
    #[error(
        "the body has an array of {items} items, limit {CHECKED_BODY_ITEMS_MAX} where they have to be different"
    )]
    TooManyItems {
        /// How many it has.
        items: usize,
    },
    /// Not JSON, or JSON with a key twice. Status `invalid`.
    #[error("the body is {0}")]
    NotJson(JsonError),
    /// Not what the schema describes. Status `invalid`.
    #[error("at `{pointer}`: {why}")]
    Mismatch {
        /// Where in the body: a JSON pointer (RFC 6901), cut where it is long; empty for all of it.
        pointer: String,
        /// What is wrong there.
        why: String,
    },
    /// The schema passed its check and cannot be compiled nevertheless. Status `internal`.
    #[error("the schema of this call cannot be used")]
    Unusable,
}

impl Violation {
    /// What a request is answered with that violates its contract so.
    pub fn status(&self) -> Status {
        match self {
            Self::NotForRole { .. } => Status::Denied,
            Self::NotOffered { .. } => Status::NotFound,
            Self::TooLarge { .. } | Self::TooManyItems { .. } => Status::TooLarge,
            Self::KeyRefused { .. } | Self::KeyRequired { .. } | Self::NotJson(_) | Self::Mismatch { .. } => {
                Status::Invalid
            }
            Self::Unusable => Status::Internal,
        }
    }
}

/// Two are the same when their contracts are: everything else follows from these.
impl PartialEq for Checked {
    fn eq(&self, other: &Self) -> bool {
        self.contract() == other.contract()
    }
}

impl Eq for Checked {}

impl Checked {
    pub(super) fn new(contract: Contract, methods: Vec<CheckedMethod>) -> Self {
        Self(Arc::new(Inner { contract, methods }))
    }

    /// What was checked.
    pub fn contract(&self) -> &Contract {
        &self.0.contract
    }

    /// Whether there is such a call.
    pub fn offers(&self, method: &str, path: &str) -> bool {
        self.method(method, path).is_ok()
    }

    /// Holds the head of a call against the security declaration: the caller's role, and whether it has an idempotency
    /// key.
    ///
    /// # Errors
    /// [`Violation::NotForRole`], [`Violation::KeyRefused`], [`Violation::KeyRequired`].
    pub fn admit(&self, role: Caller, idempotency_key: Option<&[u8]>) -> Result<(), Violation> {
        let Security { callers, idempotency, .. } = &self.contract().security;
        let service = || self.contract().name.clone();
        if !callers.contains(&role) {
            let role = Caller::ALL.iter().find(|(caller, _)| *caller == role).map_or("", |(_, name)| *name);
            return Err(Violation::NotForRole { service: service(), role });
        }
        match (idempotency, idempotency_key) {
            (Idempotency::Refused, Some(_)) => Err(Violation::KeyRefused { service: service() }),
            (Idempotency::Required, None) => Err(Violation::KeyRequired { service: service() }),
            _ => Ok(()),
        }
    }

    /// The longest body of a request that can be held against the contract; none where its body is not checked, or where
    /// there is no such call.
    pub fn request_bytes_max(&self, method: &str, path: &str) -> Option<usize> {
        Some(self.method(method, path).ok()?.request.as_ref()?.bytes_max())
    }

    /// The longest body of an answer that can be held against the contract; none as above.
    pub fn reply_bytes_max(&self, method: &str, path: &str) -> Option<usize> {
        Some(self.method(method, path).ok()?.reply.as_ref()?.bytes_max())
    }

    /// Holds a request against the contract: there is such a call, and its body is what its schema describes. `path` is
    /// that of the call, with or without its query. A method without a request schema takes any body.
    ///
    /// Costs at most `CHECKED_BODY_STEPS_MAX` steps, each some nanoseconds: no work for a thread that serves others.
    ///
    /// # Errors
    /// [`Violation`]; each says which status it is to be answered with.
    pub fn validate_request(&self, method: &str, path: &str, body: &[u8]) -> Result<(), Violation> {
        match &self.method(method, path)?.request {
            Some(schema) => schema.validate(body),
            None => Ok(()),
        }
    }

    /// Holds an answer with `status` against the contract. A reply schema describes what a success says: other statuses
    /// than 200 to 299, those without a body (204, 205) and answers to `HEAD` are not held against it.
    ///
    /// # Errors
    /// [`Violation`]; the service is at fault, not the caller.
    pub fn validate_reply(
        &self,
        method: &str,
        path: &str,
        status: u16,
        body: &[u8],
    ) -> Result<(), Violation> {
        let says_something = (200..300).contains(&status) && !matches!(status, 204 | 205) && method != "HEAD";
        match &self.method(method, path)?.reply {
            Some(schema) if says_something => schema.validate(body),
            _ => Ok(()),
        }
    }

    /// The method that says most about a call. `HEAD` asks for what `GET` would say (RFC 9110 §9.3.2) where nothing else
    /// is said of it.
    fn method(&self, method: &str, path: &str) -> Result<&CheckedMethod, Violation> {
        let path = path.split('?').next().unwrap_or_default();
        let find = |method: &str| {
            let named = self.0.contract.methods.iter().zip(&self.0.methods);
            let matching =
                named.filter(|(named, checked)| named.method == method && checked.path.matches(path));
            matching.map(|(_, checked)| checked).min_by_key(|checked| &checked.path)
        };
        let found = find(method).or_else(|| if method == "HEAD" { find("GET") } else { None });
        found.ok_or_else(|| Violation::NotOffered {
            service: self.0.contract.name.clone(),
            method: shown(method, 32),
        })
    }
}

/// A schema that was weighed.
pub(super) struct Schema {
    text: String,
    weighed: Weighed,
    /// None where it could not be compiled.
    compiled: OnceLock<Option<Validator>>,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, weighed, compiled } = self;
        let is_compiled = compiled.get().is_some();
        f.debug_struct("Schema")
            .field("text", text)
            .field("weighed", weighed)
            .field("is_compiled", &is_compiled)
            .finish()
    }
}

impl Schema {
    pub(super) fn new(text: &str, weighed: Weighed) -> Self {
        Self { text: text.to_owned(), weighed, compiled: OnceLock::new() }
    }

    fn weight(&self) -> usize {
        usize::try_from(self.weighed.weight).unwrap_or(usize::MAX).max(1)
    }

    fn bytes_max(&self) -> usize {
        CHECKED_BODY_BYTES_MAX.min(CHECKED_BODY_STEPS_MAX / self.weight())
    }

    fn validate(&self, body: &[u8]) -> Result<(), Violation> {
        let (size_bytes, limit_bytes) = (body.len(), self.bytes_max());
        if size_bytes > limit_bytes {
            return Err(Violation::TooLarge { size_bytes, limit_bytes });
        }
        let read = json::read(body, CHECKED_BODY_DEPTH_MAX).map_err(Violation::NotJson)?;
        if self.weighed.compares_items && read.longest > CHECKED_BODY_ITEMS_MAX {
            return Err(Violation::TooManyItems { items: read.longest });
        }
        let validator = self.compiled.get_or_init(|| compile(&self.text)).as_ref();
        self.hold(validator.ok_or(Violation::Unusable)?, &read.value, size_bytes)
    }

    fn hold(&self, validator: &Validator, value: &Value, size_bytes: usize) -> Result<(), Violation> {
        if self.weighed.has_alternatives {
            if validator.is_valid(value) {
                return Ok(());
            }
            if size_bytes.saturating_mul(self.weight()) > EXPLAINED_STEPS_MAX {
                let why = "the body is not what its schema describes, and too large to say where".to_owned();
                return Err(Violation::Mismatch { pointer: String::new(), why });
            }
        }
        validator.validate(value).map_err(|error| {
            let pointer = shown(error.instance_path().as_str(), POINTER_BYTES_MAX);
            let why_bytes_max = STATUS_TEXT_BYTES_MAX - POINTER_BYTES_MAX - "at ``: ".len();
            Violation::Mismatch { pointer, why: shown(&error.masked().to_string(), why_bytes_max) }
        })
    }
}

pub(super) fn compile(text: &str) -> Option<Validator> {
    let schema = json::read(text.as_bytes(), SCHEMA_DEPTH_MAX).ok()?.value;
    options().build(&schema).ok()
}

/// Whether a pattern compiles, the way it will when a body is held against it.
pub(super) fn is_pattern(pattern: &str) -> bool {
    options().build(&serde_json::json!({ "pattern": pattern })).is_ok()
}

/// Draft 2020-12, nothing fetched from anywhere, patterns matched in linear time, `format` for people only.
fn options() -> ValidationOptions<'static> {
    let patterns = PatternOptions::regex()
        .size_limit(SCHEMA_PATTERN_PROGRAM_BYTES_MAX)
        .dfa_size_limit(SCHEMA_PATTERN_PROGRAM_BYTES_MAX);
    jsonschema::draft202012::options().offline().should_validate_formats(false).with_pattern_options(patterns)
}

#[cfg(test)]
mod tests;
