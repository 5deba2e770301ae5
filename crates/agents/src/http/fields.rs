//! Header fields: what concerns one connection stays there, what is ours to say nobody else says.

use super::{Fields, Upgrade};
use serde_bytes::ByteBuf;
use std::collections::BTreeSet;

/// Most fields in one message.
pub const FIELDS_MAX: usize = 100;
/// Longest name of a field.
const NAME_BYTES_MAX: usize = 128;

/// Why fields are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// More than [`FIELDS_MAX`].
    #[error("{count} header fields, limit {FIELDS_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// Not a token.
    #[error("a header field's name is not a name")]
    Name,
    /// A line break or another control character: the start of a second request.
    #[error("header field `{0}` holds a control character")]
    Value(String),
    /// Two lengths, or none that is a number.
    #[error("content-length is not one number")]
    Length,
    /// A WebSocket is asked for with a method other than GET, or with a body.
    #[error("a WebSocket is asked for with GET and without a body")]
    Upgrade,
}

/// Where fields were last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// In an HTTP message: `connection` says what concerns the connection, `upgrade` among it.
    Http,
    /// In a KLP head, where there is no connection and `upgrade` speaks for itself.
    Link,
}

/// What is left of a message's fields.
#[derive(Debug)]
pub(super) struct Clean {
    /// End-to-end fields, without `content-length`.
    pub fields: Fields,
    /// `content-length`.
    pub length: Option<u64>,
    /// Whether a WebSocket is asked for or agreed to.
    pub upgrade: Upgrade,
}

/// Checks the fields of a message and strips what must not pass.
pub(super) fn clean(fields: Fields, hop: Hop) -> Result<Clean, FieldError> {
    if fields.len() > FIELDS_MAX {
        return Err(FieldError::TooMany { count: fields.len() });
    }
    let mut checked = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        checked.push(check(name, value)?);
    }
    let nominated = nominated(&checked);
    let is_asked = hop == Hop::Link || nominated.contains("upgrade");
    let upgrade = match lists(&checked, "upgrade").as_slice() {
        [only] if is_asked && only == "websocket" => Upgrade::WebSocket,
        _ => Upgrade::None,
    };
    let length = length(&checked)?;
    let fields = checked.into_iter().filter(|(name, _)| passes(name, &nominated)).collect();
    Ok(Clean { fields, length, upgrade })
}

/// A field with its name in lower case and no blanks around its value.
fn check(mut name: String, value: ByteBuf) -> Result<(String, ByteBuf), FieldError> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_token) {
        return Err(FieldError::Name);
    }
    name.make_ascii_lowercase();
    if value.iter().any(|byte| (byte.is_ascii_control() && *byte != b'\t') || *byte == 0) {
        return Err(FieldError::Value(name));
    }
    let trimmed = value.trim_ascii();
    let value = if trimmed.len() == value.len() { value } else { ByteBuf::from(trimmed) };
    Ok((name, value))
}

/// The members of all fields of this name, as lower case lists.
fn lists(fields: &Fields, wanted: &str) -> Vec<String> {
    let values = fields.iter().filter(|(name, _)| name == wanted);
    let members = values.flat_map(|(_, value)| value.split(|byte| *byte == b','));
    members
        .map(|member| String::from_utf8_lossy(member.trim_ascii()).to_ascii_lowercase())
        .filter(|member| !member.is_empty())
        .collect()
}

/// What `connection` names, in every spelling of that name.
fn nominated(fields: &Fields) -> BTreeSet<String> {
    let named = fields.iter().filter(|(name, _)| plain(name) == "connection");
    let members = named.flat_map(|(_, value)| value.split(|byte| *byte == b','));
    members.map(|member| plain(&String::from_utf8_lossy(member.trim_ascii()))).collect()
}

/// Names are compared as CGI, WSGI and PHP do, to which `X_Kos_Caller` is `X-Kos-Caller`.
fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// Fields that concern one connection (RFC 9110 §7.6.1), that say who came how, which only we say, or that make an
/// origin read another method or path than the one that was checked.
const STRIPPED: [&str; 31] = [
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
    "content-length",
    "host",
    "via",
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-host",
    "x-remote-user",
    "remote-user",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "client-ip",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-original-host",
    "x-rewrite-url",
    "x-accel-redirect",
    "alt-svc",
];
const STRIPPED_PREFIXES: [&str; 4] = ["proxy-", "x-proxy-", "x-forwarded", "x-kos-"];

fn passes(name: &str, nominated: &BTreeSet<String>) -> bool {
    let name = plain(name);
    !STRIPPED.contains(&name.as_str())
        && !STRIPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        && !nominated.contains(&name)
}

/// The one number that all `content-length` fields agree on.
fn length(fields: &Fields) -> Result<Option<u64>, FieldError> {
    let mut agreed = None;
    for (name, value) in fields {
        if plain(name) != "content-length" {
            continue;
        }
        for member in value.split(|byte| *byte == b',') {
            let member = std::str::from_utf8(member.trim_ascii()).map_err(|_| FieldError::Length)?;
            let digits = member.bytes().all(|byte| byte.is_ascii_digit());
            let number = member.parse::<u64>().ok().filter(|_| digits).ok_or(FieldError::Length)?;
            if agreed.is_some_and(|agreed| agreed != number) {
                return Err(FieldError::Length);
            }
            agreed = Some(number);
        }
    }
    Ok(agreed)
}
