//! The sessions we have, and how an exchange gets a stream of the right one.

use super::{
    BoxedStream, Gate, Route, Service, StreamError, Unreachable, Wire,
    call::{Answer, Body, CallError, Exchange, Parts, RecvHalf, SendHalf, Slot, To},
    frames::{FrameReader, FrameWriter},
    serve::Limiter,
    stats::{Refusal, Stats},
    streams::{Kind, Place, Streams},
    trace::{self, Traced},
};
use kos_protocol::{
    cbor,
    hello::Hello,
    id::{FederationId, MemberId},
    key::PublicKey,
    limits::{
        DATA_BYTES_MAX, EARLY_BYTES_MAX, HANDSHAKE_BYTES_MAX, HEAD_BYTES_MAX, NOTICE_BYTES_MAX,
        SESSION_AGE_MS_MAX, SESSIONS_PER_PEER_MAX, SESSIONS_UNPROVEN_MAX, STREAM_SHORT_MS,
    },
    message::{End, FrameKind, Head, Phase, ReplyHead, Status},
    preamble::{Notice, SessionId},
    session::{HandshakeError, Initiator, Role, Session, plain_frame},
};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// Finished streams kept for the next exchange, each session.
const IDLE_STREAMS_MAX: usize = 32;
/// How long a finished stream is kept: well below the time after which the peer closes it.
const KEEP_IDLE: Duration = Duration::from_secs(60);
/// How long a handshake may take, from its first byte to its last.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Two sessions with one peer begun within this time were begun at once.
const SIMULTANEOUS: Duration = Duration::from_secs(5);

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves these maps whole: every change to them is a single insert or remove.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session in use.
pub(super) struct Live {
    pub id: SessionId,
    pub to: To,
    pub handshake_hash: [u8; 32],
    pub session: Mutex<Session>,
    pub begun: Instant,
    pub closed: CancellationToken,
    /// Streams with the peer, in all its sessions in the federation.
    pub streams: Arc<Streams>,
    initiator: MemberId,
    /// Whether the peer showed that it has the keys.
    proven: AtomicBool,
    idle: Mutex<Vec<Idle>>,
    /// Counts the changes of connections with the peer: a stream from before the last one may lie on a connection
    /// that is being replaced, and is not used again.
    epoch: AtomicU64,
}

/// A finished stream, kept for the next exchange.
struct Idle {
    stream: Stream,
    since: Instant,
}

impl Live {
    fn is_worn(&self) -> bool {
        self.begun.elapsed() >= Duration::from_millis(SESSION_AGE_MS_MAX) || lock(&self.session).is_worn()
    }

    pub fn peer(&self) -> Hello {
        lock(&self.session).peer().clone()
    }

    fn take_idle(&self) -> Option<Stream> {
        let mut idle = lock(&self.idle);
        idle.retain(|idle| idle.since.elapsed() < KEEP_IDLE);
        idle.pop().map(|idle| idle.stream)
    }

    fn streams_max(&self) -> usize {
        usize::try_from(lock(&self.session).peer().streams_max).unwrap_or(usize::MAX).max(1)
    }

    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    fn keep(&self, mut parts: Parts, route: Route, place: Place, epoch: u64) {
        let mut idle = lock(&self.idle);
        let is_current = self.epoch.load(Ordering::Relaxed) == epoch;
        if is_current && parts.is_finished() && idle.len() < IDLE_STREAMS_MAX && !self.closed.is_cancelled() {
            parts.rest();
            idle.push(Idle { stream: Stream { parts, route, place, epoch }, since: Instant::now() });
            drop(idle);
            self.streams.outward.idle();
        }
    }
}

/// No session counts so many changes of connections: a stream of this epoch is not used again.
const OVERTAKEN: u64 = u64::MAX;

/// A stream of a session, between exchanges.
struct Stream {
    parts: Parts,
    route: Route,
    place: Place,
    /// The change of connections after which its route was chosen; see [`Live`].
    epoch: u64,
}

/// Where an exchange may run.
enum Found {
    Idle(Box<Stream>),
    Place(Place),
}

/// How long an exchange may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    /// As long as a request and its answer do.
    Short,
    /// Until somebody has enough of it.
    Long,
}

/// When a request may go out with a handshake.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    /// As early as it can.
    AtOnce,
    /// Once the peer has offered `idempotency`.
    AfterItsOffer,
}

/// Whether it is certain that a request was not executed, or does no harm when it is executed twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    Yes,
    No,
}

/// Why a request has no answer.
enum Unasked {
    /// It was not sent.
    Unsent(CallError),
    /// It was sent, perhaps, in this session or while it was made; a `reset` then proves so much.
    NoAnswer { error: StreamError, session: Option<Arc<Live>>, proof: Proof },
}

/// What [`Links::sessions`] tells of one session.
#[derive(Clone, Debug)]
pub struct SessionSummary {
    /// With whom.
    pub to: To,
    /// The peer's name for itself.
    pub peer: Hello,
    /// How old it is.
    pub age: Duration,
    /// Which end we are.
    pub role: Role,
}

/// The sessions of a node: opens exchanges to peers, serves theirs. Cheap to clone.
#[derive(Clone)]
pub struct Links(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub gate: Arc<dyn Gate>,
    pub wire: Arc<dyn Wire>,
    pub service: Arc<dyn Service>,
    pub stats: Arc<Stats>,
    pub limiter: Mutex<Limiter>,
    /// How long an exchange that peers began may last without being a long one.
    pub short: Duration,
    sessions: Mutex<Sessions>,
}

/// When the last try to shake hands reached nobody, and why.
type Tried = Option<(Instant, Unreachable)>;

#[derive(Default)]
struct Sessions {
    by_id: BTreeMap<SessionId, Arc<Live>>,
    /// The session that new streams to a peer use; older ones drain.
    current: BTreeMap<To, Arc<Live>>,
    /// One handshake at a time with each peer.
    underway: BTreeMap<To, Arc<tokio::sync::Mutex<Tried>>>,
    /// The streams with each peer.
    streams: BTreeMap<To, Arc<Streams>>,
}

impl Sessions {
    fn streams_of(&mut self, to: To) -> Arc<Streams> {
        self.streams.retain(|_, streams| !streams.is_unused());
        self.streams.entry(to).or_default().clone()
    }

    /// Ends the oldest of a peer's sessions, proven or not, above `most`; returns whether there was one.
    fn end_surplus(&mut self, to: &To, proven: bool, most: usize) -> bool {
        let alike: Vec<_> = self
            .by_id
            .values()
            .filter(|live| live.to == *to && live.is_proven() == proven)
            .cloned()
            .collect();
        let Some(oldest) = alike.iter().min_by_key(|live| live.begun).filter(|_| alike.len() > most) else {
            return false;
        };
        self.remove(oldest);
        true
    }

    fn remove(&mut self, live: &Arc<Live>) {
        live.closed.cancel();
        if self.current.get(&live.to).is_some_and(|current| current.id == live.id) {
            self.current.remove(&live.to);
        }
        self.by_id.remove(&live.id);
    }
}

impl Links {
    /// Links that ask `gate`, open streams by `wire` and hand requests to `service`.
    pub fn new(gate: Arc<dyn Gate>, wire: Arc<dyn Wire>, service: Arc<dyn Service>) -> Self {
        Self::with_short(gate, wire, service, Duration::from_millis(STREAM_SHORT_MS))
    }

    /// Links of their own that count what they do together with these.
    #[must_use]
    pub fn beside(&self, gate: Arc<dyn Gate>, wire: Arc<dyn Wire>, service: Arc<dyn Service>) -> Self {
        Self::counting(gate, wire, service, self.0.short, self.0.stats.clone())
    }

    /// As [`Links::new`], with exchanges that count as long after another time.
    pub(super) fn with_short(
        gate: Arc<dyn Gate>,
        wire: Arc<dyn Wire>,
        service: Arc<dyn Service>,
        short: Duration,
    ) -> Self {
        Self::counting(gate, wire, service, short, Arc::default())
    }

    fn counting(
        gate: Arc<dyn Gate>,
        wire: Arc<dyn Wire>,
        service: Arc<dyn Service>,
        short: Duration,
        stats: Arc<Stats>,
    ) -> Self {
        let service = Arc::new(Traced { gate: gate.clone(), service });
        Self(Arc::new(Inner {
            gate,
            wire,
            service,
            stats,
            limiter: Mutex::default(),
            short,
            sessions: Mutex::default(),
        }))
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.0.stats
    }

    /// Every session new streams may use.
    pub fn sessions(&self) -> Vec<SessionSummary> {
        let sessions = lock(&self.0.sessions);
        let summary = |live: &Arc<Live>| {
            let session = lock(&live.session);
            SessionSummary {
                to: live.to,
                peer: session.peer().clone(),
                age: live.begun.elapsed(),
                role: session.role(),
            }
        };
        sessions.current.values().map(summary).collect()
    }

    /// Opens an exchange: on an idle stream of the session there is, on a new one, or with a handshake.
    ///
    /// A whole body of up to 16 KiB travels in the handshake's first message where that is allowed, so that a first
    /// reply takes one round trip after the connection. A head without a trace gets a new one.
    ///
    /// It may last: of the streams the peer takes, [`STREAMS_RESERVED`](kos_protocol::limits::STREAMS_RESERVED) are left
    /// to [`Links::request`] and what is built on it. Where no stream is free it waits for one, ten seconds at most.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn open(&self, to: To, head: &Head, body: Body<'_>) -> Result<Exchange, CallError> {
        self.open_for(Span::Long, to, head, body).await
    }

    async fn open_for(&self, span: Span, to: To, head: &Head, body: Body<'_>) -> Result<Exchange, CallError> {
        let head = self.traced(head);
        trace::asking(&head, self.open_traced(span, to, &head, body)).await
    }

    /// The head with a trace: its own, or a new one. For whoever wants to name the trace in log lines of its own.
    pub fn traced<'a>(&self, head: &'a Head) -> Cow<'a, Head> {
        trace::traced(&*self.0.gate, head)
    }

    async fn open_traced(
        &self,
        span: Span,
        to: To,
        head: &Head,
        body: Body<'_>,
    ) -> Result<Exchange, CallError> {
        head.check().map_err(CallError::TooLarge)?;
        Stats::add(&self.0.stats.exchanges_out, 1);
        if let Some(live) = self.current(&to) {
            return self.open_in(span, &live, head, body).await;
        }
        let turn = lock(&self.0.sessions).underway.entry(to).or_default().clone();
        let waits_since = Instant::now();
        let mut failed = turn.lock().await;
        if let Some(live) = self.current(&to) {
            drop(failed);
            return self.open_in(span, &live, head, body).await;
        }
        // Whoever waited for a try that failed has its outcome: one after another, each would wait out its own.
        if let Some((at, why)) = failed.as_ref().filter(|(at, _)| *at >= waits_since) {
            tracing::debug!(ago = ?at.elapsed(), "nobody was reached for another call just now");
            return Err(why.clone().into());
        }
        // Boxed, since a handshake's state would be carried about with every exchange that needs none.
        let outcome = Box::pin(self.begin(span, to, head, body, Request::AtOnce)).await;
        if let Err(CallError::Unreachable(why)) = &outcome {
            *failed = Some((Instant::now(), why.clone()));
        }
        lock(&self.0.sessions).underway.remove(&to);
        Ok(outcome?.expect("only a request that waits for an offer may go unsent"))
    }

    /// Opens a further exchange in the same session as `exchange`, whatever others there are.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn open_beside(
        &self,
        exchange: &Exchange,
        head: &Head,
        body: Body<'_>,
    ) -> Result<Exchange, CallError> {
        let (live, head) = (exchange.live.clone(), self.traced(head));
        trace::asking(&head, self.open_in(Span::Long, &live, &head, body)).await
    }

    /// Sends a whole request and waits for the head of its answer.
    ///
    /// Tries once more if that cannot execute the request twice: when the peer turns out to have lost the session, and
    /// said so over an authenticated connection or the request is replay-safe; and when the stream failed after a
    /// request with an idempotency key was sent, if the peer offers `idempotency` in another session.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::OutcomeUnknown`] for a request with a key that was sent and not answered.
    pub async fn request(
        &self,
        to: To,
        head: &Head,
        body: &[u8],
    ) -> Result<(Exchange, Result<ReplyHead, End>), CallError> {
        let head = &*self.traced(head);
        let mut asked = self.ask_once(to, head, body).await;
        if let Err(Unasked::NoAnswer {
            error: StreamError::Refused(Notice::Reset), proof: Proof::Yes, ..
        }) = &asked
        {
            asked = self.ask_once(to, head, body).await;
        }
        match asked {
            Ok(answered) => Ok(answered),
            Err(Unasked::NoAnswer { error, session, .. }) if head.idempotency_key.is_some() => {
                tracing::debug!(%error, "a request with a key was not answered; it is asked again");
                let again = trace::asking(head, self.ask_again(to, head, body, session.as_ref())).await;
                again.ok().flatten().ok_or(CallError::OutcomeUnknown(error))
            }
            Err(Unasked::NoAnswer { error, .. }) => Err(error.into()),
            Err(Unasked::Unsent(error)) => Err(error),
        }
    }

    async fn ask_once(
        &self,
        to: To,
        head: &Head,
        body: &[u8],
    ) -> Result<(Exchange, Result<ReplyHead, End>), Unasked> {
        let before = self.current(&to);
        let mut exchange = match self.open_for(Span::Short, to, head, Body::Whole(body)).await {
            Ok(exchange) => exchange,
            Err(CallError::Stream(error)) => {
                return Err(Unasked::NoAnswer { error, session: before, proof: Proof::No });
            }
            Err(error) => return Err(Unasked::Unsent(error)),
        };
        match exchange.recv.head().await {
            Ok(reply) => Ok((exchange, reply)),
            Err(error) => {
                let proof = if self.may_retry(&exchange, head) { Proof::Yes } else { Proof::No };
                Err(Unasked::NoAnswer { error, session: Some(exchange.live), proof })
            }
        }
    }

    /// Asks a request with an idempotency key a second time: on a new stream, in another session than the one that
    /// `failed`, and only if the peer has offered `idempotency` in it. None if it has not.
    async fn ask_again(
        &self,
        to: To,
        head: &Head,
        body: &[u8],
        failed: Option<&Arc<Live>>,
    ) -> Result<Option<(Exchange, Result<ReplyHead, End>)>, CallError> {
        Stats::add(&self.0.stats.exchanges_out, 1);
        let turn = lock(&self.0.sessions).underway.entry(to).or_default().clone();
        let guard = turn.lock().await;
        if let Some(failed) = failed {
            self.retire(failed);
        }
        let exchange = match self.current(&to) {
            Some(live) => {
                drop(guard);
                if !live.peer().is_idempotent() {
                    return Ok(None);
                }
                let place = live.streams.outward.wait(Kind::Stream, live.streams_max()).await?;
                let stream = self.new_stream(&live, place, &*self.0.wire).await?;
                Some(self.send_on(&live, stream, None, head, Body::Whole(body)).await?)
            }
            None => {
                let begun =
                    self.begin(Span::Short, to, head, Body::Whole(body), Request::AfterItsOffer).await;
                lock(&self.0.sessions).underway.remove(&to);
                begun?
            }
        };
        let Some(mut exchange) = exchange else { return Ok(None) };
        let reply = exchange.recv.head().await?;
        Ok(Some((exchange, reply)))
    }

    /// Sends a whole request and waits for the whole of its answer, at most `limit_bytes` of body.
    ///
    /// An answer that ends otherwise than with `ok` is the inner error.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn ask(
        &self,
        to: To,
        head: &Head,
        body: &[u8],
        limit_bytes: usize,
    ) -> Result<Result<Answer, End>, CallError> {
        let (exchange, reply) = self.request(to, head, body).await?;
        whole(exchange, reply, limit_bytes).await
    }

    /// As [`Links::ask`], over a stream that `wire` opens in the session there is, whatever better ways there are. The
    /// stream serves this exchange alone.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Unreachable`] also where there is no session.
    pub async fn ask_over(
        &self,
        wire: &dyn Wire,
        to: To,
        head: &Head,
        body: &[u8],
        limit_bytes: usize,
    ) -> Result<Result<Answer, End>, CallError> {
        let live = self.current(&to).ok_or_else(|| Unreachable("there is no session yet".to_owned()))?;
        let head = self.traced(head);
        Stats::add(&self.0.stats.exchanges_out, 1);
        let opening = async {
            let place = live.streams.outward.wait(Kind::Stream, live.streams_max()).await?;
            let stream = self.new_stream(&live, place, wire).await?;
            self.send_on(&live, stream, None, &head, Body::Whole(body)).await
        };
        let mut exchange = trace::asking(&head, opening).await?;
        // What is idle from before a change of epoch is not used again.
        live.epoch.fetch_add(1, Ordering::Relaxed);
        let reply = exchange.recv.head().await?;
        whole(exchange, reply, limit_bytes).await
    }

    /// As [`Links::ask`], in the very session of an earlier answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn ask_beside(
        &self,
        earlier: &Answer,
        head: &Head,
        body: &[u8],
        limit_bytes: usize,
    ) -> Result<Result<Answer, End>, CallError> {
        let head = self.traced(head);
        let opening = self.open_in(Span::Short, &earlier.live, &head, Body::Whole(body));
        let mut exchange = trace::asking(&head, opening).await?;
        let reply = exchange.recv.head().await?;
        whole(exchange, reply, limit_bytes).await
    }

    /// Over a carried stream a `reset` proves nothing: a carrier can write it behind a request that arrived.
    fn may_retry(&self, exchange: &Exchange, head: &Head) -> bool {
        exchange.route.is_replay_proof() || self.0.gate.is_replay_safe(&head.intent)
    }

    /// Ends every session with the holder of `key`, in all federations, and its streams with it.
    pub fn close(&self, key: &PublicKey) {
        let mut sessions = lock(&self.0.sessions);
        sessions.current.retain(|to, _| to.key != *key);
        sessions.by_id.retain(|_, live| {
            let gone = live.to.key == *key;
            if gone {
                live.closed.cancel();
            }
            !gone
        });
    }

    /// Ends every session with `to`, and its streams with it.
    pub fn close_in(&self, to: &To) {
        let mut sessions = lock(&self.0.sessions);
        sessions.current.remove(to);
        sessions.by_id.retain(|_, live| {
            if live.to == *to {
                live.closed.cancel();
            }
            live.to != *to
        });
    }

    /// Lets exchanges with the holder of `key` begin in new sessions: its last connection has ended, and it may have
    /// started anew. Streams that are carried go on.
    pub fn retire_all(&self, key: &PublicKey) {
        lock(&self.0.sessions).current.retain(|to, _| to.key != *key);
    }

    /// Drops the finished streams kept for the holder of `key`: its connections changed, and better ones may exist.
    pub fn drop_idle(&self, key: &PublicKey) {
        let sessions = lock(&self.0.sessions);
        for live in sessions.by_id.values().filter(|live| live.to.key == *key) {
            live.epoch.fetch_add(1, Ordering::Relaxed);
            lock(&live.idle).clear();
        }
    }

    pub(super) fn live(&self, id: &SessionId) -> Option<Arc<Live>> {
        lock(&self.0.sessions).by_id.get(id).cloned()
    }

    pub(super) fn current(&self, to: &To) -> Option<Arc<Live>> {
        let mut sessions = lock(&self.0.sessions);
        let live = sessions.current.get(to)?.clone();
        if live.is_worn() {
            sessions.current.remove(to);
            return None;
        }
        Some(live)
    }

    /// New streams use another session from now on; those that run are left alone.
    pub(super) fn retire(&self, live: &Arc<Live>) {
        let mut sessions = lock(&self.0.sessions);
        if sessions.current.get(&live.to).is_some_and(|current| current.id == live.id) {
            sessions.current.remove(&live.to);
        }
    }

    pub(super) fn forget(&self, live: &Arc<Live>) {
        lock(&self.0.sessions).remove(live);
    }

    /// Takes a finished handshake's session in.
    pub(super) fn keep(&self, federation: FederationId, own: MemberId, session: Session) -> Arc<Live> {
        let to = To { federation, key: session.peer().key };
        let initiator = match session.role() {
            Role::Initiator => own,
            Role::Responder => session.peer().member,
        };
        let mut sessions = lock(&self.0.sessions);
        let live = Arc::new(Live {
            id: session.id(),
            to,
            handshake_hash: *session.handshake_hash(),
            session: Mutex::new(session),
            begun: Instant::now(),
            closed: CancellationToken::new(),
            streams: sessions.streams_of(to),
            initiator,
            proven: AtomicBool::new(false),
            idle: Mutex::default(),
            epoch: AtomicU64::new(0),
        });
        Stats::add(&self.0.stats.handshakes, 1);
        sessions.by_id.insert(live.id, live.clone());
        if sessions.end_surplus(&to, false, SESSIONS_UNPROVEN_MAX) {
            self.0.stats.refuse(Refusal::Sessions);
        }
        // A drained session goes when it is old and nobody but this map holds it.
        sessions.by_id.retain(|_, other| Arc::strong_count(other) > 1 || !other.is_worn());
        drop(sessions);
        live
    }

    /// Lets new streams use the session. A responder's is proven by the first frame that opens, or by a fresh counter:
    /// until then it may come from a replayed first message, and must not take the place of one that works.
    pub(super) fn promote(&self, live: &Arc<Live>) {
        let mut sessions = lock(&self.0.sessions);
        if !live.proven.swap(true, Ordering::Relaxed)
            && sessions.end_surplus(&live.to, true, SESSIONS_PER_PEER_MAX)
        {
            self.0.stats.refuse(Refusal::Sessions);
        }
        let is_current = sessions.current.get(&live.to).is_some_and(|current| current.id == live.id);
        if is_current || live.closed.is_cancelled() || !sessions.by_id.contains_key(&live.id) {
            return;
        }
        let older_wins = sessions
            .current
            .get(&live.to)
            .is_some_and(|older| older.begun.elapsed() < SIMULTANEOUS && older.initiator < live.initiator);
        if !older_wins {
            sessions.current.insert(live.to, live.clone());
        }
    }

    pub(super) async fn open_in(
        &self,
        span: Span,
        live: &Arc<Live>,
        head: &Head,
        body: Body<'_>,
    ) -> Result<Exchange, CallError> {
        let long = match span {
            Span::Short => None,
            Span::Long => Some(live.streams.outward.wait(Kind::Long, live.streams_max()).await?),
        };
        let found = match live.take_idle() {
            Some(stream) => Found::Idle(Box::new(stream)),
            None => self.find(live, live.streams_max()).await?,
        };
        let stream = match found {
            Found::Idle(stream) => *stream,
            Found::Place(place) => self.new_stream(live, place, &*self.0.wire).await?,
        };
        self.send_on(live, stream, long, head, body).await
    }

    async fn send_on(
        &self,
        live: &Arc<Live>,
        stream: Stream,
        long: Option<Place>,
        head: &Head,
        body: Body<'_>,
    ) -> Result<Exchange, CallError> {
        let Stream { parts: Parts { mut writer, reader }, route, place, epoch } = stream;
        writer.push(FrameKind::Head, &head_bytes(head)?)?;
        if let Body::Whole(body) = body {
            push_body(&mut writer, body).await?;
        }
        writer.flush().await?;
        let way = (route, epoch);
        Ok(self.exchange(live.clone(), Parts { writer, reader }, way, place, long))
    }

    async fn new_stream(&self, live: &Arc<Live>, place: Place, wire: &dyn Wire) -> Result<Stream, CallError> {
        // Before the route is chosen: a better connection that comes up meanwhile makes this stream one of before.
        let epoch = live.epoch.load(Ordering::Relaxed);
        let (stream, route) = wire.open(live.to.key).await?;
        Stats::add(&self.0.stats.streams_out, 1);
        let (preamble, sealer, opener) = lock(&live.session).open_stream()?;
        let (read, write) = tokio::io::split(stream);
        let parts = Parts {
            writer: FrameWriter::new(write, sealer, preamble),
            reader: FrameReader::new(read, opener),
        };
        Ok(Stream { parts, route, place, epoch })
    }

    /// A place among the streams the peer takes, or a stream that is free meanwhile.
    async fn find(&self, live: &Arc<Live>, streams_max: usize) -> Result<Found, CallError> {
        let places = &live.streams.outward;
        let look = || {
            if let Some(place) = places.take(Kind::Stream, streams_max) {
                return Some(Found::Place(place));
            }
            live.take_idle().map(|stream| Found::Idle(Box::new(stream))).or_else(|| {
                self.drop_idle_beside(live);
                places.take(Kind::Stream, streams_max).map(Found::Place)
            })
        };
        places.wait_for(Kind::Stream, streams_max, look).await
    }

    /// Drops the idle streams of other sessions with the peer, which count like those in use.
    fn drop_idle_beside(&self, live: &Live) {
        let sessions = lock(&self.0.sessions);
        let others = sessions.by_id.values().filter(|other| other.to == live.to && other.id != live.id);
        let idle: Vec<Idle> = others.flat_map(|other| std::mem::take(&mut *lock(&other.idle))).collect();
        drop(sessions);
        drop(idle);
    }

    fn exchange(
        &self,
        live: Arc<Live>,
        parts: Parts,
        (route, epoch): (Route, u64),
        place: Place,
        long: Option<Place>,
    ) -> Exchange {
        let Parts { writer, reader } = parts;
        let (home, kept_route) = (live.clone(), route.clone());
        let slot = Slot::new(Box::new(move |parts| {
            drop(long);
            home.keep(parts, kept_route, place, epoch);
        }));
        let send = SendHalf::new(writer, slot.clone(), self.0.stats.clone()).until(live.closed.clone());
        let mut recv = RecvHalf::new(reader, slot, self.0.stats.clone()).until(live.closed.clone());
        let (links, session) = (self.clone(), Arc::downgrade(&live));
        recv.on_reset = Some(Box::new(move || {
            if let Some(live) = session.upgrade() {
                links.retire(&live);
            }
        }));

        Exchange { send, recv, route, live }
    }

    /// A cold start: handshake and request at once; with XX, when the responder asks for it, one after the other.
    async fn begin(
        &self,
        span: Span,
        to: To,
        head: &Head,
        body: Body<'_>,
        request: Request,
    ) -> Result<Option<Exchange>, CallError> {
        match self.shake(span, to, Some(to.key), head, body, request).await {
            Err(CallError::Handshake(HandshakeError::Refused(Notice::RetryXx))) => {
                self.shake(span, to, None, head, body, request).await
            }
            outcome => outcome,
        }
    }

    /// As [`Links::open`], with an XX handshake, as if the peer's key had not been known. For measurements.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn open_with_xx(&self, to: To, head: &Head, body: Body<'_>) -> Result<Exchange, CallError> {
        let head = self.traced(head);
        let begun =
            trace::asking(&head, self.shake(Span::Long, to, None, &head, body, Request::AtOnce)).await;
        Ok(begun?.expect("only a request that waits for an offer may go unsent"))
    }

    async fn shake(
        &self,
        span: Span,
        to: To,
        known: Option<PublicKey>,
        head: &Head,
        body: Body<'_>,
        request: Request,
    ) -> Result<Option<Exchange>, CallError> {
        let local = self.0.gate.local(&to.federation).ok_or(CallError::NotInFederation)?;
        let streams = lock(&self.0.sessions).streams_of(to);
        let place = streams.outward.anyway(Kind::Stream);
        let long = (span == Span::Long).then(|| streams.outward.anyway(Kind::Long));
        let (mut stream, route) = self.0.wire.open(to.key).await?;
        Stats::add(&self.0.stats.streams_out, 1);
        let may_be_early = request == Request::AtOnce
            && known.is_some()
            && (route.is_replay_proof() || self.0.gate.is_replay_safe(&head.intent));
        let (early, phase) =
            if may_be_early { early_frames(head, body)? } else { (Vec::new(), Phase::BeforeHead) };
        let (initiator, first) =
            Initiator::start(&local, known, self.0.gate.next_counter().await, &early, self.0.gate.seed())?;
        let answer = async {
            stream.write_all(&first).await?;
            stream.flush().await?;
            read_handshake(&mut stream).await
        };
        let answer = tokio::time::timeout(HANDSHAKE_TIMEOUT, answer)
            .await
            .map_err(|_| StreamError::Io(std::io::ErrorKind::TimedOut.into()))??;
        let initiated = match answer {
            Ok(message) => initiator.finish(&message)?,
            Err(notice) => return Err(initiator.refused(notice).into()),
        };
        if initiated.session.peer().key != to.key {
            return Err(HandshakeError::KeyMismatch.into());
        }
        let (sealer, opener) = initiated.session.first_stream();
        let is_idempotent = initiated.session.peer().is_idempotent();
        let live = self.keep(to.federation, local.member, initiated.session);
        self.promote(&live);
        if request == Request::AfterItsOffer && !is_idempotent {
            return Ok(None);
        }
        let (read, write) = tokio::io::split(stream);
        let mut writer = FrameWriter::new(write, sealer, initiated.last_message);
        let reader = FrameReader::new(read, opener);
        if initiated.early_taken {
            writer.note_early(phase);
            if phase == Phase::InBody
                && let Body::Whole(body) = body
            {
                push_body(&mut writer, body).await?;
            }
        } else {
            writer.push(FrameKind::Head, &head_bytes(head)?)?;
            if let Body::Whole(body) = body {
                push_body(&mut writer, body).await?;
            }
        }
        writer.flush().await?;
        // It was opened before the session counted changes of connections: a carried one may have been overtaken. One over a
        // circuit is kept: a stranger that joins has no other.
        let epoch = if matches!(route, Route::Carried { .. }) { OVERTAKEN } else { 0 };
        Ok(Some(self.exchange(live, Parts { writer, reader }, (route, epoch), place, long)))
    }
}

async fn whole(
    mut exchange: Exchange,
    reply: Result<ReplyHead, End>,
    limit_bytes: usize,
) -> Result<Result<Answer, End>, CallError> {
    let head = match reply {
        Ok(head) => head,
        Err(end) => return Ok(Err(end)),
    };
    let body = exchange.recv.read_all(limit_bytes).await?;
    match exchange.recv.ended() {
        Some(end) if end.status != Status::Ok => Ok(Err(end.clone())),
        _ => Ok(Ok(Answer { head, body, route: exchange.route, live: exchange.live })),
    }
}

fn head_bytes(head: &Head) -> Result<Vec<u8>, CallError> {
    let bytes = cbor::encode(head);
    if bytes.len() > HEAD_BYTES_MAX { Err(CallError::TooLarge("head")) } else { Ok(bytes) }
}

async fn push_body(writer: &mut FrameWriter, body: &[u8]) -> Result<(), CallError> {
    for chunk in body.chunks(DATA_BYTES_MAX) {
        writer.push(FrameKind::Data, chunk)?;
        if chunk.len() == DATA_BYTES_MAX {
            writer.write_out().await?;
        }
    }
    Ok(writer.push(FrameKind::End, &cbor::encode(&End::ok()))?)
}

/// The request as early frames, with what phase they leave the caller's direction in.
fn early_frames(head: &Head, body: Body<'_>) -> Result<(Vec<u8>, Phase), CallError> {
    let mut early = Vec::new();
    let head = head_bytes(head)?;
    if head.len() + 3 > EARLY_BYTES_MAX {
        return Ok((early, Phase::BeforeHead));
    }
    plain_frame(FrameKind::Head, &head, &mut early);
    if let Body::Whole(body) = body
        && early.len() + body.len() + 64 <= EARLY_BYTES_MAX
    {
        if !body.is_empty() {
            plain_frame(FrameKind::Data, body, &mut early);
        }
        plain_frame(FrameKind::End, &cbor::encode(&End::ok()), &mut early);
        return Ok((early, Phase::BeforeHead));
    }
    Ok((early, Phase::InBody))
}

/// Reads one handshake message, or the notice that stands in its place.
pub(super) async fn read_handshake(stream: &mut BoxedStream) -> Result<Result<Vec<u8>, Notice>, StreamError> {
    let length = usize::from(stream.read_u16().await?);
    if length > HANDSHAKE_BYTES_MAX {
        return Err(StreamError::Message("a handshake message above its limit".to_owned()));
    }
    let (length, is_notice) = match length {
        0 => (usize::from(stream.read_u16().await?), true),
        length => (length, false),
    };
    if is_notice && length > NOTICE_BYTES_MAX {
        return Err(StreamError::Message("a notice above its limit".to_owned()));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    if !is_notice {
        return Ok(Ok(message));
    }
    let notice = Notice::parse(&message).map_err(|error| StreamError::Message(error.to_string()))?;
    Ok(Err(notice))
}
