//! The intents every node answers, and what travels in them. SPEC §9.13.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Answers at once: liveness and round-trip time at KLP's level. Replay-safe.
pub const PING: &str = "kos.ping";
/// A member that chose the callee as a watcher is alive. Replay-safe: it only ever delays a suspicion.
pub const ALIVE: &str = "kos.alive";
/// A step of a set reconciliation: the body is a message of the caller, the answer's that of the callee. Replay-safe.
pub const RECONCILE: &str = "kos.reconcile";
/// Asks for items, by name or from a place on. Replay-safe.
pub const FETCH: &str = "kos.fetch";
/// Gives items and the newest secret to a member, unasked. Replay-safe.
pub const PUSH: &str = "kos.push";
/// A member asks a steward to be let go.
pub const LEAVE: &str = "kos.leave";
/// The name under which gossip topics are derived from the discovery secret.
pub const TOPIC: &str = "items";
/// A newcomer shows itself and gets the session its proof is bound to. A member whose new key the callee does not know
/// shows where it comes from: the body is its key log, as an item. For strangers.
pub const HELLO: &str = "kos.hello";
/// A newcomer asks to be admitted. For strangers.
pub const JOIN: &str = "kos.join";
/// A steward takes a relay for its federation. For strangers.
pub const CLAIM: &str = "kos.claim";

/// Intents that a stranger may use.
pub const FOR_STRANGERS: [&str; 3] = [HELLO, JOIN, CLAIM];

/// Whether executing a request of this intent twice does no harm.
pub fn is_replay_safe(intent: &str) -> bool {
    matches!(intent, PING | ALIVE | RECONCILE | FETCH | PUSH | HELLO)
}

/// The head of an [`ALIVE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// When the next one is due, in milliseconds; 0: the callee is to wait for no more.
    pub period_ms: u64,
}

/// The head of a [`PUSH`], and of an answer to [`FETCH`]: the body has items, see `kos_engine::item::pack`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Items {
    /// The kinds of the items, by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// Whether there are more than these. In a push: reconcile with the caller.
    #[serde(default)]
    pub more: bool,
    /// The newest discovery secret, as a signed object; for active members only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ByteBuf>,
    /// Whether the body of an answer to [`FETCH`] that allowed it is deflated (RFC 1951).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deflated: bool,
}

/// The head of an answer to [`PUSH`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// How many of the items the callee has now, those that it had before included.
    #[serde(default)]
    pub stored: u64,
}

/// The head of an answer to [`RECONCILE`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciled {
    /// How many items the callee has.
    #[serde(default)]
    pub count: u64,
    /// As in [`Items`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ByteBuf>,
}

/// The head of a [`FETCH`]. Without a body, which names items, it asks for everything behind a place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The last one the caller has; none from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Place>,
    /// Whether the answer's body may be deflated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deflate: bool,
}

/// Where an item stands among all, see `kos_engine::Federation::set`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The order.
    pub order: u64,
    /// The name.
    pub name: serde_bytes::ByteArray<32>,
}

/// The head of an answer to [`FETCH`] that asked for what is behind a place. The kinds and so on are those of [`Items`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// As in [`Items`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// The place of the last item; none where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Place>,
    /// As in [`Items`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deflated: bool,
}

/// The answer to [`JOIN`] and [`CLAIM`] when it is no: in the text of the end, as one word of
/// [`kos_governance::join::JoinError`].
pub fn join_error_word(error: kos_governance::join::JoinError) -> String {
    match serde_json::to_value(error) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "refused".to_owned(),
    }
}

/// The reverse of [`join_error_word`]; unknown words read as `refused`.
pub fn join_error_from(word: &str) -> kos_governance::join::JoinError {
    serde_json::from_value(serde_json::Value::String(word.to_owned()))
        .unwrap_or(kos_governance::join::JoinError::Refused)
}
