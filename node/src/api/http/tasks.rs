//! Calls as tasks: taken at once, answered later, kept for a while.

use super::{
    Node,
    news::{Message, News, Type, now_ms},
};
use crate::{
    api::{CallHead, CallRequest, call_routes::idempotency_key},
    errors::{Code, Failure},
};
use axum::body::Body;
use data_encoding::{BASE64, HEXLOWER};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Tasks that run at once; one more is told to come back.
pub const RUNNING_MAX: usize = 32;
/// Finished tasks that are kept; the oldest goes first.
pub const KEPT_MAX: usize = 256;
/// Bytes of results that are kept; the oldest goes first.
pub const KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest answer of one task. `kai forward` is for more.
pub const RESULT_BYTES_MAX: usize = 512 * 1024;
/// Longest time of one task.
const TASK_TIME_MAX: Duration = Duration::from_secs(600);
/// Progress is told at most once for so many bytes.
const PROGRESS_BYTES: usize = 64 * 1024;
/// Longest correlation id.
const CORRELATION_BYTES_MAX: usize = 128;

/// `POST /agent/task`: a call.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskRequest {
    /// The agent, or `service:` and the name of a service; with or without `@member`.
    pub agent: String,
    /// Of a service: which versions will do.
    pub version: Option<String>,
    /// The HTTP method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Name and value.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The request's body.
    #[serde(default)]
    pub body: String,
    /// How `body` is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// Comes back with every message about the task.
    pub correlation_id: Option<String>,
    /// Has the call executed at most once, in however many tasks; the header `Idempotency-Key` says the same.
    pub idempotency_key: Option<String>,
}

/// How bytes are written in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// As the text they are.
    #[default]
    #[serde(rename = "utf-8")]
    Text,
    /// In base64.
    #[serde(rename = "base64")]
    Base64,
}

impl TaskRequest {
    /// The call it asks for.
    ///
    /// # Errors
    /// [`Code::BadRequest`].
    fn call(&self) -> Result<CallRequest, Failure> {
        if self.correlation_id.as_ref().is_some_and(|id| id.len() > CORRELATION_BYTES_MAX) {
            return Err(
                Code::BadRequest.because(format!("correlationId is above {CORRELATION_BYTES_MAX} bytes"))
            );
        }
        if let Some(key) = &self.idempotency_key {
            idempotency_key(key)?;
        }
        let body = match self.encoding {
            Encoding::Text => BASE64.encode(self.body.as_bytes()),
            Encoding::Base64 => self.body.clone(),
        };
        if BASE64.decode_len(body.len()).is_err() {
            return Err(Code::BadRequest.because("the body is not base64"));
        }
        Ok(CallRequest {
            agent: self.agent.clone(),
            version: self.version.clone(),
            method: self.method.clone(),
            path: self.path.clone(),
            headers: self.headers.clone(),
            body,
            idempotency_key: self.idempotency_key.clone(),
        })
    }
}

/// `GET /agent/task/:id`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskView {
    /// Its id.
    pub task_id: String,
    /// Which agent was called.
    pub agent: String,
    /// `running`, `done` or `failed`. A service that answers with an error has answered: that is `done`.
    pub state: &'static str,
    /// When it was taken, in wall milliseconds.
    pub started_at: u64,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<u64>,
    /// What the agent answered, once it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<TaskResult>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What the caller gave to find it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
}

/// What an agent answered.
#[derive(Clone, Debug, Serialize)]
pub struct TaskResult {
    /// Status, header fields and route.
    #[serde(flatten)]
    pub head: CallHead,
    /// The body.
    pub body: String,
    /// How `body` is written.
    pub encoding: Encoding,
}

impl TaskResult {
    /// Text only where JSON can write it in less than twice its size, so that the bounds on bytes bound memory.
    fn new(head: CallHead, body: Vec<u8>) -> Self {
        let is_plain =
            |text: &str| !text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
        match String::from_utf8(body) {
            Ok(body) if is_plain(&body) => Self { head, body, encoding: Encoding::Text },
            Ok(body) => Self { head, body: BASE64.encode(body.as_bytes()), encoding: Encoding::Base64 },
            Err(error) => Self { head, body: BASE64.encode(error.as_bytes()), encoding: Encoding::Base64 },
        }
    }
}

/// The tasks of this node since its start, within bounds.
#[derive(Debug)]
pub struct Tasks {
    kept: Mutex<Kept>,
    places: Arc<Semaphore>,
    news: News,
}

#[derive(Debug, Default)]
struct Kept {
    tasks: BTreeMap<String, TaskView>,
    /// Those that have ended, oldest first.
    ended: VecDeque<String>,
    bytes: usize,
}

impl Tasks {
    /// None yet.
    pub fn new(news: News) -> Self {
        Self { kept: Mutex::default(), places: Arc::new(Semaphore::new(RUNNING_MAX)), news }
    }

    /// Takes a task and runs it until `stop`; returns its id at once.
    ///
    /// # Errors
    /// [`Code::BadRequest`]; [`Code::RateLimited`]: as many run as may.
    pub fn take(
        self: &Arc<Self>,
        node: Arc<dyn Node>,
        request: TaskRequest,
        stop: CancellationToken,
    ) -> Result<String, Failure> {
        let call = request.call()?;
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Code::RateLimited.because(format!("{RUNNING_MAX} tasks are running, and no more may at once"))
        })?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| Code::Internal.because(error))?;
        let id = HEXLOWER.encode(&id);
        let task = TaskView {
            task_id: id.clone(),
            agent: request.agent,
            state: "running",
            started_at: now_ms(),
            finished_at: None,
            result: None,
            error: None,
            correlation_id: request.correlation_id,
        };
        self.kept().tasks.insert(id.clone(), task.clone());
        let span = tracing::info_span!("task", task_id = %id);
        tokio::spawn(self.clone().run(node, task, call, place, stop).instrument(span));
        Ok(id)
    }

    /// A task, while it is kept.
    pub fn view(&self, id: &str) -> Option<TaskView> {
        self.kept().tasks.get(id).cloned()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(
        self: Arc<Self>,
        node: Arc<dyn Node>,
        mut task: TaskView,
        call: CallRequest,
        place: OwnedSemaphorePermit,
        stop: CancellationToken,
    ) {
        tracing::info!(agent = %crate::text::clean(&task.agent), "a task was taken");
        self.tell(&task, Type::TaskProgress, json!({"state": "calling"}));
        let outcome = tokio::select! {
            // A task holds the node, and with it the data folder.
            () = stop.cancelled() => Err(Code::CallCancelled.because("the node stops")),
            () = tokio::time::sleep(TASK_TIME_MAX) => Err(Code::CallTimeout.because("the task ran for too long")),
            outcome = self.answer(&*node, &task, call) => outcome,
        };
        task.finished_at = Some(now_ms());
        match outcome {
            Ok(result) => (task.state, task.result) = ("done", Some(result)),
            Err(failure) => (task.state, task.error) = ("failed", Some(failure)),
        }
        tracing::info!(state = task.state, "a task has ended");
        self.kept().end(task.clone());
        drop(place);
        match &task.error {
            Some(error) => self.tell(&task, Type::AgentError, json!(error)),
            None => self.tell(&task, Type::AgentResult, json!(task.result)),
        }
    }

    async fn answer(
        &self,
        node: &dyn Node,
        task: &TaskView,
        call: CallRequest,
    ) -> Result<TaskResult, Failure> {
        let called = node.call(call).await?;
        let payload = json!({"state": "answering", "status": called.head.status, "route": called.head.route});
        self.tell(task, Type::TaskProgress, payload);
        let body = self.collect(task, called.body).await?;
        Ok(TaskResult::new(called.head, body))
    }

    async fn collect(&self, task: &TaskView, mut body: Body) -> Result<Vec<u8>, Failure> {
        let (mut bytes, mut told) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Code::CallCutShort.because(error))?;
            let Some(data) = frame.data_ref() else { continue };
            if bytes.len() + data.len() > RESULT_BYTES_MAX {
                let failure =
                    Code::ResultTooLarge.because(format!("the answer is above {RESULT_BYTES_MAX} bytes"));
                return Err(failure.hint(format!("kai forward 0 {}", crate::text::clean(&task.agent))));
            }
            bytes.extend_from_slice(data);
            if bytes.len() - told >= PROGRESS_BYTES {
                told = bytes.len();
                self.tell(task, Type::TaskProgress, json!({"state": "answering", "bytes": told}));
            }
        }
        Ok(bytes)
    }

    fn tell(&self, task: &TaskView, kind: Type, payload: serde_json::Value) {
        self.news.tell(|| Message {
            agent: Some(task.agent.clone()),
            task_id: Some(task.task_id.clone()),
            correlation_id: task.correlation_id.clone(),
            ..Message::new(kind, payload)
        });
    }
}

impl Kept {
    fn end(&mut self, task: TaskView) {
        self.bytes += size(&task);
        self.ended.push_back(task.task_id.clone());
        self.tasks.insert(task.task_id.clone(), task);
        while self.ended.len() > KEPT_MAX || self.bytes > KEPT_BYTES_MAX {
            let Some(oldest) = self.ended.pop_front().and_then(|id| self.tasks.remove(&id)) else { break };
            self.bytes -= size(&oldest);
        }
    }
}

fn size(task: &TaskView) -> usize {
    task.result.as_ref().map_or(0, |result| {
        let fields = result.head.headers.iter();
        result.body.len() + fields.map(|(name, value)| name.len() + value.len()).sum::<usize>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(id: usize, bytes: usize) -> TaskView {
        let head = CallHead {
            status: 200,
            headers: Vec::new(),
            route: "direct".to_owned(),
            trace: String::new(),
            service: None,
        };
        TaskView {
            task_id: format!("{id:08}"),
            agent: "kBridge:notes".to_owned(),
            state: "done",
            started_at: 0,
            finished_at: Some(0),
            result: Some(TaskResult::new(head, vec![b'x'; bytes])),
            error: None,
            correlation_id: None,
        }
    }

    #[test]
    fn the_oldest_results_go_first_by_number_and_by_bytes() {
        let mut kept = Kept::default();
        for id in 0..KEPT_MAX + 3 {
            kept.end(ended(id, 1));
        }
        assert_eq!((kept.tasks.len(), kept.ended.len(), kept.bytes), (KEPT_MAX, KEPT_MAX, KEPT_MAX));
        assert_eq!(kept.ended.front().unwrap(), "00000003");
        for id in 1000..1100 {
            kept.end(ended(id, RESULT_BYTES_MAX));
            assert!(kept.bytes <= KEPT_BYTES_MAX);
        }
        assert_eq!(kept.tasks.len(), KEPT_BYTES_MAX / RESULT_BYTES_MAX);
        assert!(kept.tasks.contains_key("00001099"));
    }

    #[test]
    fn bodies_are_text_where_that_is_cheap() {
        let head = || CallHead {
            status: 200,
            headers: Vec::new(),
            route: "direct".to_owned(),
            trace: String::new(),
            service: None,
        };
        let written = |body: &[u8]| {
            let result = TaskResult::new(head(), body.to_vec());
            (result.body, result.encoding)
        };
        assert_eq!(written("grün\n".as_bytes()), ("grün\n".to_owned(), Encoding::Text));
        assert_eq!(written(&[0, 1]), ("AAE=".to_owned(), Encoding::Base64));
        assert_eq!(written(&[0xff]), ("/w==".to_owned(), Encoding::Base64));
    }
}
