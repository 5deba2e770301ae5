//! Exchanges as a caller or a handler sees them: two halves, each used up by its end.

use super::{
    Route, StreamError, Unreachable,
    frames::{FrameReader, FrameWriter},
    pool::Live,
    stats::{Refusal, Stats},
};
use bytes::Bytes;
use kos_protocol::{
    cbor,
    id::FederationId,
    key::PublicKey,
    limits::HEAD_BYTES_MAX,
    message::{End, FrameKind, Phase, ReplyHead, Status},
    preamble::Notice,
    session::{Exhausted, HandshakeError},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Whom to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct To {
    /// In which federation.
    pub federation: FederationId,
    /// Whose key the session must show.
    pub key: PublicKey,
}

/// The request's body, as far as it is there when the exchange opens.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// All of it; may travel inside the handshake.
    Whole(&'a [u8]),
    /// It follows through [`SendHalf`].
    Streaming,
}

/// Why no exchange came about. The request was not executed, unless the stream failed after it was sent.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// We are not in this federation.
    #[error("not in this federation")]
    NotInFederation,
    /// No route to the peer.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The stream failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The stream failed after a request with an idempotency key was sent, and it could not be asked again: the peer
    /// does not promise to execute it once only, or is not reached any more.
    #[error("outcome unknown: the request was sent, and no answer came: {0}")]
    OutcomeUnknown(StreamError),
    /// As many streams as the peer takes, or as many long exchanges, are under way, and none ended in time.
    #[error("{limit} streams to this peer are in use, and it takes no more at once")]
    Busy {
        /// How many there may be.
        limit: usize,
    },
    /// The session ran out of numbers just now; call again.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The head or the body is above its limit.
    #[error("the request's {0} is above its limit")]
    TooLarge(&'static str),
}

/// An exchange under way.
pub struct Exchange {
    /// Sends the body.
    pub send: SendHalf,
    /// Receives the answer.
    pub recv: RecvHalf,
    pub(super) route: Route,
    pub(super) live: Arc<Live>,
}

impl Exchange {
    /// How its stream reaches the peer.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Its two halves, for tasks of their own.
    pub fn into_halves(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }

    /// The hash of its session's handshake, which proofs for this peer alone are bound to.
    pub fn handshake_hash(&self) -> [u8; 32] {
        self.live.handshake_hash
    }

    /// What the peer said of itself in its hello.
    pub fn peer(&self) -> kos_protocol::hello::Hello {
        self.live.peer()
    }
}

/// A whole answer; its stream is free for the next exchange.
pub struct Answer {
    /// How it began.
    pub head: ReplyHead,
    /// Its body.
    pub body: Vec<u8>,
    /// How its stream reached the peer.
    pub route: Route,
    pub(super) live: Arc<Live>,
}

impl Answer {
    /// The hash of its session's handshake, which proofs for this peer alone are bound to.
    pub fn handshake_hash(&self) -> [u8; 32] {
        self.live.handshake_hash
    }
}

type Both = Box<dyn FnOnce(Parts) + Send>;

/// The two halves of a stream, back from an exchange.
pub(super) struct Parts {
    pub writer: FrameWriter,
    pub reader: FrameReader,
}

impl Parts {
    /// The stream waits for its next exchange, which may be long in coming.
    pub fn rest(&mut self) {
        self.writer.rest();
        self.reader.rest();
    }

    /// Whether both messages ended, so that the stream may carry another exchange.
    pub fn is_finished(&self) -> bool {
        // As many answers as requests: a stream given up before its answer would give it to the next caller.
        self.writer.phase() == Phase::BeforeHead
            && self.reader.phase() == Phase::BeforeHead
            && self.writer.ended() == self.reader.ended()
            && self.writer.is_written_out()
            && !self.reader.has_failed()
    }
}

/// Where the halves of a stream meet again.
pub(super) struct Slot(Mutex<SlotState>);

#[derive(Default)]
struct SlotState {
    writer: Option<FrameWriter>,
    reader: Option<FrameReader>,
    both: Option<Both>,
}

impl Slot {
    pub fn new(both: Both) -> Arc<Self> {
        Arc::new(Self(Mutex::new(SlotState { both: Some(both), ..SlotState::default() })))
    }

    fn take_reader(&self) -> Option<FrameReader> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).reader.take()
    }

    fn give(&self, fill: impl FnOnce(&mut SlotState)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fill(&mut state);
        if state.writer.is_some()
            && state.reader.is_some()
            && let (Some(writer), Some(reader), Some(both)) =
                (state.writer.take(), state.reader.take(), state.both.take())
        {
            drop(state);
            both(Parts { writer, reader });
        }
    }
}

/// A whole message as it was sent, up to a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// How it began; none for a lone end.
    pub head: Option<ReplyHead>,
    /// Its body; none when it was above the bound.
    pub body: Option<Vec<u8>>,
    /// How it ended; none when it was given up.
    pub end: Option<End>,
    /// Whether the sender executed what it answers.
    pub deed: Deed,
}

/// Whether a request was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Partly, perhaps, or altogether.
    Begun,
    /// Certainly nothing of it.
    NotBegun,
}

/// Hears of a message once, just before its end goes out, or when it is given up.
pub type OnSent = Box<dyn FnOnce(Sent) + Send>;

/// Keeps what is sent, for whoever wants it at the end.
struct Record {
    sent: Sent,
    bytes_max: usize,
    on_sent: Option<OnSent>,
    /// Whether the stream has failed, and only the record goes on.
    is_alone: bool,
}

impl Record {
    fn note(&mut self, data: &[u8]) {
        let head_bytes = self.sent.head.as_ref().map_or(0, |head| head.params.len());
        let fits = |body: &Vec<u8>| head_bytes + body.len() + data.len() <= self.bytes_max;
        self.sent.body = self.sent.body.take().filter(fits);
        if let Some(body) = &mut self.sent.body {
            body.extend_from_slice(data);
        }
    }

    fn close(&mut self, end: Option<&End>) {
        if let Some(on_sent) = self.on_sent.take() {
            self.sent.end = end.cloned();
            on_sent(self.sent.clone());
        }
    }

    /// A failed stream is no reason to stop as long as all of the message is kept: whoever asks again gets it.
    fn outlives(&mut self, outcome: Result<(), StreamError>) -> Result<(), StreamError> {
        match outcome {
            Err(StreamError::Io(_) | StreamError::CutShort) if self.sent.body.is_some() => {
                self.is_alone = true;
                Ok(())
            }
            outcome => outcome,
        }
    }
}

/// Sends one message. Dropped before [`SendHalf::end`], it cancels the exchange.
pub struct SendHalf {
    writer: Option<FrameWriter>,
    record: Option<Box<Record>>,
    slot: Arc<Slot>,
    stats: Arc<Stats>,
    /// The end of the session: of exchanges we began, nobody else watches it.
    closed: CancellationToken,
}

impl SendHalf {
    pub(super) fn new(writer: FrameWriter, slot: Arc<Slot>, stats: Arc<Stats>) -> Self {
        Self { writer: Some(writer), record: None, slot, stats, closed: CancellationToken::new() }
    }

    /// Keeps the message while it is sent, up to so many bytes, and tells `on_sent` of it. While all of it is kept, a
    /// stream that fails is no error: the message goes on, into the record alone.
    pub fn record(&mut self, bytes_max: usize, on_sent: OnSent) {
        let sent = Sent { head: None, body: Some(Vec::new()), end: None, deed: Deed::Begun };
        self.record = Some(Box::new(Record { sent, bytes_max, on_sent: Some(on_sent), is_alone: false }));
    }

    pub(super) fn until(mut self, closed: CancellationToken) -> Self {
        self.closed = closed;
        self
    }

    fn writer(&mut self) -> &mut FrameWriter {
        self.writer
            .as_mut()
            .expect("the writer leaves only with `end`, which takes the half, or with the half itself")
    }

    fn is_alone(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.is_alone)
    }

    /// What a failed stream means for the message.
    fn judge(&mut self, outcome: Result<(), StreamError>) -> Result<(), StreamError> {
        match &mut self.record {
            Some(record) => record.outlives(outcome),
            None => outcome,
        }
    }

    /// Begins an answer. It goes out with what follows, or with [`SendHalf::flush`].
    ///
    /// # Errors
    /// [`StreamError`]: the exchange is over.
    pub fn head(&mut self, reply: &ReplyHead) -> Result<(), StreamError> {
        let bytes = cbor::encode(reply);
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(StreamError::Message("a reply head above its limit".to_owned()));
        }
        if let Some(record) = &mut self.record {
            record.sent.head = Some(reply.clone());
        }
        self.writer().push(FrameKind::Head, &bytes)
    }

    /// Sends part of the body; returns when the transport has taken it. Cancel-safe up to whole frames.
    ///
    /// # Errors
    /// [`StreamError`]: the exchange is over.
    pub async fn data(&mut self, data: &[u8]) -> Result<(), StreamError> {
        if let Some(record) = &mut self.record {
            record.note(data);
        }
        if self.is_alone() {
            return self.judge(Err(StreamError::CutShort));
        }
        Stats::add(&self.stats.bytes_out, data.len());
        let closed = self.closed.clone();
        if closed.is_cancelled() {
            return self.judge(Err(StreamError::CutShort));
        }
        let outcome = tokio::select! {
            biased;
            sent = self.writer().data(data) => sent,
            () = closed.cancelled() => Err(StreamError::CutShort),
        };
        self.judge(outcome)
    }

    /// Hands what is buffered to the network.
    ///
    /// # Errors
    /// [`StreamError`]: the exchange is over.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        if self.is_alone() {
            return self.judge(Err(StreamError::CutShort));
        }
        let outcome = self.writer().flush().await;
        self.judge(outcome)
    }

    /// Closes the message.
    ///
    /// # Errors
    /// [`StreamError`]: whether the peer has it is not known.
    pub async fn end(mut self, end: &End) -> Result<(), StreamError> {
        if let Some(record) = &mut self.record {
            record.close(Some(end));
            if record.is_alone {
                return Err(StreamError::CutShort);
            }
        }
        let writer = self.writer();
        writer.push(FrameKind::End, &cbor::encode(end))?;
        writer.flush().await
    }

    /// A whole answer at once: head, body, `ok`.
    ///
    /// # Errors
    /// As [`SendHalf::end`].
    pub async fn reply(mut self, reply: &ReplyHead, body: &[u8]) -> Result<(), StreamError> {
        self.head(reply)?;
        if let Some(record) = &mut self.record {
            record.note(body);
        }
        let pushed = self.push_body(body).await;
        self.judge(pushed)?;
        self.end(&End::ok()).await
    }

    /// Seals a body that goes out with the end, what is more than a frame before.
    async fn push_body(&mut self, body: &[u8]) -> Result<(), StreamError> {
        for chunk in body.chunks(kos_protocol::limits::DATA_BYTES_MAX) {
            self.writer().push(FrameKind::Data, chunk)?;
            if chunk.len() == kos_protocol::limits::DATA_BYTES_MAX {
                self.writer().write_out().await?;
            }
        }
        Stats::add(&self.stats.bytes_out, body.len());
        Ok(())
    }

    /// Refuses: an end without a head.
    ///
    /// # Errors
    /// As [`SendHalf::end`].
    pub async fn refuse(self, status: Status, text: impl Into<String> + Send) -> Result<(), StreamError> {
        self.end(&End::because(status, text)).await
    }

    /// Refuses a request of which certainly nothing was executed: its idempotency key may be used again.
    ///
    /// # Errors
    /// As [`SendHalf::end`].
    pub async fn refuse_unbegun(
        self,
        status: Status,
        text: impl Into<String> + Send,
    ) -> Result<(), StreamError> {
        self.end_unbegun(&End::because(status, text)).await
    }

    /// As [`SendHalf::refuse_unbegun`], with this end.
    ///
    /// # Errors
    /// As [`SendHalf::end`].
    pub async fn end_unbegun(mut self, end: &End) -> Result<(), StreamError> {
        if let Some(record) = &mut self.record {
            record.sent.deed = Deed::NotBegun;
        }
        self.end(end).await
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if let Some(record) = &mut self.record {
            record.close(None);
        }
        if let Some(writer) = self.writer.take() {
            self.slot.give(|state| state.writer = Some(writer));
        }
    }
}

/// Receives one message.
pub struct RecvHalf {
    reader: Option<FrameReader>,
    slot: Arc<Slot>,
    stats: Arc<Stats>,
    early: VecDeque<(FrameKind, Bytes)>,
    /// What was read and given back.
    unread: Option<Bytes>,
    end: Option<End>,
    /// What the sender may still send; strangers get a small allowance.
    allowance: Option<usize>,
    closed: CancellationToken,
    /// How long a handler goes on after its caller gave up, and since when that is.
    grace: Duration,
    gone_at: Option<Instant>,
    /// The session to forget when the peer says it does not know it.
    pub(super) on_reset: Option<Box<dyn FnOnce() + Send>>,
}

impl RecvHalf {
    pub(super) fn new(reader: FrameReader, slot: Arc<Slot>, stats: Arc<Stats>) -> Self {
        let early = VecDeque::new();
        Self {
            reader: Some(reader),
            slot,
            stats,
            early,
            unread: None,
            end: None,
            allowance: None,
            closed: CancellationToken::new(),
            grace: Duration::ZERO,
            gone_at: None,
            on_reset: None,
        }
    }

    pub(super) fn until(mut self, closed: CancellationToken) -> Self {
        self.closed = closed;
        self
    }

    pub(super) fn with_early(
        mut self,
        early: VecDeque<(FrameKind, Bytes)>,
        allowance: Option<usize>,
    ) -> Self {
        self.early = early;
        self.allowance = allowance;
        self
    }

    /// Lets a stranger send `bytes` more: it showed that it may.
    pub fn allow(&mut self, bytes: usize) {
        if let Some(allowance) = &mut self.allowance {
            *allowance = allowance.saturating_add(bytes);
        }
    }

    /// Lets the handler go on for so long after its caller gave up: its answer is of use to whoever asks again.
    pub fn outlive(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Gives back a body that was read, so that it is read again, before what may follow: for whoever has to see it
    /// before the handler does. What was given back before and not read is replaced.
    pub fn unread(&mut self, body: Bytes) {
        self.unread = (!body.is_empty()).then_some(body);
    }

    /// How the message closed, once it has.
    pub fn ended(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The head of an answer, or the end of a refused request.
    ///
    /// # Errors
    /// [`StreamError`]: the exchange is over and its outcome unknown.
    pub async fn head(&mut self) -> Result<Result<ReplyHead, End>, StreamError> {
        match self.frame().await? {
            (FrameKind::Head, bytes) => {
                Ok(Ok(ReplyHead::parse(&bytes).map_err(|error| StreamError::Message(error.to_string()))?))
            }
            (FrameKind::End, _) => Ok(Err(self.end.clone().unwrap_or_else(End::ok))),
            (kind, _) => Err(kos_protocol::message::OutOfOrder { kind, phase: Phase::BeforeHead }.into()),
        }
    }

    /// The next part of the body; `None` when it is complete, and [`RecvHalf::ended`] says how. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError`]: the body is cut short.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        if let Some(unread) = self.unread.take() {
            return Ok(Some(unread));
        }
        if self.end.is_some() {
            return Ok(None);
        }
        let (kind, payload) = self.frame().await?;
        if kind == FrameKind::End {
            return Ok(None);
        }
        Stats::add(&self.stats.bytes_in, payload.len());
        if let Some(allowance) = &mut self.allowance {
            *allowance = allowance.checked_sub(payload.len()).ok_or_else(|| {
                self.stats.refuse(Refusal::Stranger);
                StreamError::Message("a stranger sent more than it may".to_owned())
            })?;
        }
        Ok(Some(payload))
    }

    /// All of the body, up to `limit_bytes`.
    ///
    /// # Errors
    /// [`StreamError::Message`] above the limit, [`StreamError`] otherwise.
    pub async fn read_all(&mut self, limit_bytes: usize) -> Result<Vec<u8>, StreamError> {
        let mut body = Vec::new();
        while let Some(part) = self.next().await? {
            if body.len() + part.len() > limit_bytes {
                self.stats.refuse(Refusal::Body);
                return Err(StreamError::Message(format!("a body above {limit_bytes} bytes")));
            }
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    /// Waits until the peer gives up the exchange, once its message has ended: for a handler whose answer may be silent
    /// for long, and who should not go on when nobody listens ([`RecvHalf::outlive`] apart). Cancel-safe. Without an ended message it waits for ever.
    pub async fn gone(&mut self) {
        if self.end.is_some() && self.reader.is_none() {
            self.reader = self.slot.take_reader();
        }
        let gone_at = match (self.gone_at, &self.end, &mut self.reader) {
            (Some(gone_at), ..) => gone_at,
            // The next exchange on the stream begins after our answer, so whatever comes now is no good.
            (None, Some(_), Some(reader)) => {
                drop(reader.next().await);
                *self.gone_at.insert(Instant::now())
            }
            _ => std::future::pending().await,
        };
        tokio::time::sleep_until(gone_at + self.grace).await;
    }

    async fn frame(&mut self) -> Result<(FrameKind, Bytes), StreamError> {
        let frame = match (self.early.pop_front(), &mut self.reader) {
            (Some(frame), _) => frame,
            (None, Some(reader)) => match next_unless(&self.closed, reader).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Err(StreamError::CutShort),
                Err(error) => {
                    // Only a reset, and only where the first frame would be, says that the session is unknown.
                    if matches!(error, StreamError::Refused(Notice::Reset))
                        && reader.received() == 0
                        && let Some(forget) = self.on_reset.take()
                    {
                        forget();
                    }
                    self.stats.refuse_stream(&error);
                    return Err(error);
                }
            },
            (None, None) => return Err(StreamError::CutShort),
        };
        if frame.0 == FrameKind::End {
            let end = End::parse(&frame.1).map_err(|error| {
                self.stats.refuse(Refusal::Frame);
                StreamError::Message(error.to_string())
            })?;
            self.end = Some(end);
            // The reader goes home at once, so that the stream is free as soon as the other half is done, too.
            self.go_home();
        }
        Ok(frame)
    }

    fn go_home(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.slot.give(|state| state.reader = Some(reader));
        }
    }
}

async fn next_unless(
    closed: &CancellationToken,
    reader: &mut FrameReader,
) -> Result<Option<(FrameKind, Bytes)>, StreamError> {
    if closed.is_cancelled() {
        return Err(StreamError::CutShort);
    }
    tokio::select! {
        biased;
        frame = reader.next() => frame,
        () = closed.cancelled() => Err(StreamError::CutShort),
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        self.go_home();
    }
}
