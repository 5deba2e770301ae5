//! The intents every node answers, and what travels in them. SPEC §9.13.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Answers at once: liveness and round-trip time at KLP's level. Replay-safe.
pub const PING: &str = "kos.ping";
/// Catch-up: the request's body is the hashes of what the caller has, the answer's the items it lacks. Replay-safe.
pub const SYNC: &str = "kos.sync";
/// Gives items and the newest secret to a member, unasked: its body is like an answer to [`SYNC`]. Replay-safe.
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
    matches!(intent, PING | SYNC | PUSH | HELLO)
}

/// Bytes of one hash in a `kos.sync` request.
pub const HASH_BYTES: usize = 32;

/// The head of an answer to [`SYNC`], and of a [`PUSH`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReply {
    /// The newest discovery secret, as a signed object; for active members only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ByteBuf>,
    /// Items follow in the body, each after its length in two bytes; when `more`, not all of them.
    #[serde(default)]
    pub more: bool,
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
