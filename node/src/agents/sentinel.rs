//! `kSentinel:node`: answers for the node.

use super::{Agent, Call};
use kos_agents::http::{HttpReply, HttpRequest};
use kos_mesh::link::Pending;
use kos_protocol::message::{ReplyHead, Status};
use serde_bytes::ByteBuf;

type StatusSource = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Answers `GET /status` with what `status` says.
pub struct Sentinel {
    status: StatusSource,
}

impl Sentinel {
    /// A sentinel that tells this.
    pub fn new(status: impl Fn() -> serde_json::Value + Send + Sync + 'static) -> Self {
        Self { status: Box::new(status) }
    }

    async fn answer(&self, call: Call) -> Result<(), kos_mesh::link::StreamError> {
        let Ok(request) = HttpRequest::decode(&call.head.params) else {
            return call.send.refuse(Status::Invalid, "a malformed request").await;
        };
        if (request.method.as_str(), request.path.as_str()) != ("GET", "/status") {
            return call.send.refuse(Status::NotFound, "the sentinel answers GET /status").await;
        }
        let body = format!("{}\n", (self.status)());
        let headers =
            [("content-type", "application/json".to_owned()), ("content-length", body.len().to_string())];
        let headers = headers.map(|(name, value)| (name.to_owned(), ByteBuf::from(value.into_bytes())));
        let reply = HttpReply { status: 200, headers: headers.into() };
        match reply.encode() {
            Ok(params) => call.send.reply(&ReplyHead { params }, body.as_bytes()).await,
            Err(error) => call.send.refuse(Status::Internal, error.to_string()).await,
        }
    }
}

impl Agent for Sentinel {
    fn call(&self, call: Call) -> Pending<'_, ()> {
        Box::pin(async move {
            if let Err(error) = self.answer(call).await {
                tracing::debug!(%error, "an answer was not delivered");
            }
        })
    }
}
