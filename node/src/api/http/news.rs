//! What subscribers of `GET /ws` are told.

use crate::config::Setting;
use axum::extract::ws::Utf8Bytes;
use serde::Serialize;
use serde_json::Value;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// Messages a subscriber may be behind; one that is further behind is dropped.
const BEHIND_MAX: usize = 32;

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Type {
    /// What an agent answered.
    AgentResult,
    /// Why there is no answer.
    AgentError,
    /// How far a task is.
    TaskProgress,
    /// How the node is; the first message.
    SystemStatus,
    /// Settings have changed.
    ConfigUpdate,
    /// The node is there.
    Heartbeat,
}

/// One message.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: Type,
    /// Which agent it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Which task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// What there is to say.
    pub payload: Value,
    /// When, in wall milliseconds.
    pub timestamp: u64,
    /// What the task was given to find it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
}

impl Message {
    /// A message that is about no task.
    pub fn new(kind: Type, payload: Value) -> Self {
        Self { kind, agent: None, task_id: None, payload, timestamp: now_ms(), correlation_id: None }
    }

    /// As it is sent.
    pub fn text(&self) -> Utf8Bytes {
        serde_json::json!(self).to_string().into()
    }
}

/// Wall time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Tells every subscriber. Nothing is kept for those that come later.
#[derive(Clone, Debug)]
pub struct News(broadcast::Sender<Utf8Bytes>);

impl Default for News {
    fn default() -> Self {
        Self(broadcast::channel(BEHIND_MAX).0)
    }
}

impl News {
    /// Tells it; costs nothing where nobody listens.
    pub fn tell(&self, message: impl FnOnce() -> Message) {
        if self.0.receiver_count() > 0 {
            // The last one may have gone meanwhile.
            let _ = self.0.send(message().text());
        }
    }

    /// What is told from now on.
    pub fn listen(&self) -> broadcast::Receiver<Utf8Bytes> {
        self.0.subscribe()
    }

    /// Tells that settings have changed.
    pub fn settings_changed(&self, changes: &[Setting]) {
        if !changes.is_empty() {
            self.tell(|| Message::new(Type::ConfigUpdate, serde_json::json!({ "changes": changes })));
        }
    }
}
