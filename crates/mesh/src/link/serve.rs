//! The streams peers open: handshakes, and exchanges of sessions we have.

use super::{
    BoxedStream, Pending, Route, StreamError,
    call::{Parts, RecvHalf, SendHalf, Slot},
    frames::{FrameReader, FrameWriter},
    gate::Standing,
    pool::{Links, Live, lock, read_handshake},
    stats::{Refusal, Stats},
    streams::Kind,
};
use crate::limits::CARRIED_UNPROVEN_MAX;
use bytes::Bytes;
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId},
    key::PublicKey,
    limits::{
        HANDSHAKES_CARRIED_HALF_OPEN, HANDSHAKES_HALF_OPEN, HANDSHAKES_PER_CARRIER, HANDSHAKES_PER_MEMBER,
        HANDSHAKES_PER_MINUTE, RESETS_PER_SECOND, STRANGER_BYTES_MAX, STRANGER_MS_MAX, STREAM_SHORT_MS,
    },
    message::{End, FrameKind, Head, Phase, Status},
    preamble::{Notice, Preamble},
    session::{Early, HandshakeError, Offer, Received, Responder, parse_plain_frames},
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a finished stream may wait for its next exchange.
const IDLE_STREAM: Duration = Duration::from_secs(120);
/// How long, and how much, of an unread body is read away so that its stream can be used again.
const DRAIN: Duration = Duration::from_secs(5);
const DRAIN_BYTES: usize = 256 * 1024;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// In which federation.
    pub federation: FederationId,
    /// With which key; proved.
    pub key: PublicKey,
    /// The member that owns the key; none for a stranger, who may only join.
    pub member: Option<MemberId>,
    /// The hash of the session's handshake.
    pub handshake_hash: [u8; 32],
    /// How the stream came.
    pub route: Route,
}

/// A request, and the half that answers it.
pub struct Request {
    /// Who asks.
    pub caller: Caller,
    /// What for.
    pub head: Head,
    /// The request's body.
    pub recv: RecvHalf,
    /// Sends the answer.
    pub send: SendHalf,
}

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one. Halves that are dropped without an end are answered `internal`.
    fn handle(&self, request: Request) -> Pending<'_, ()>;
}

/// Whom a handshake is counted against.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// A stranger's address.
    Address(IpAddr),
    /// A member that proved its key.
    Member(PublicKey),
    /// Who brings streams whose opener it does not prove: a carrier, or a circuit's relay.
    Via(PublicKey),
}

impl Source {
    /// How many it may begin in a minute, and have under way at once.
    fn allowance(self) -> (u32, u32) {
        match self {
            Self::Address(_) => (HANDSHAKES_PER_MINUTE, HANDSHAKES_HALF_OPEN),
            Self::Member(_) => (HANDSHAKES_PER_MEMBER, HANDSHAKES_HALF_OPEN),
            Self::Via(_) => (HANDSHAKES_PER_CARRIER, HANDSHAKES_CARRIED_HALF_OPEN),
        }
    }
}

/// Handshakes, counted by their [`Source`].
#[derive(Default)]
pub(super) struct Limiter {
    sources: BTreeMap<Source, Seen>,
    /// Streams that a carrier brought, and of which nothing has opened yet.
    unproven: BTreeMap<PublicKey, u32>,
    /// The second that is counted, and the `reset` notices sent in it.
    resets: Option<(Instant, u32)>,
}

struct Seen {
    since: Instant,
    in_minute: u32,
    half_open: u32,
}

/// Sources remembered at once; when all are busy, further ones are refused.
const SOURCES_MAX: usize = 4096;

impl Limiter {
    fn begin(&mut self, source: Source, now: Instant) -> bool {
        let minute = Duration::from_secs(60);
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, seen| seen.half_open > 0 || now.duration_since(seen.since) < minute);
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        let seen = self.sources.entry(source).or_insert(Seen { since: now, in_minute: 0, half_open: 0 });
        if now.duration_since(seen.since) >= minute {
            seen.since = now;
            seen.in_minute = 0;
        }
        let (per_minute, half_open) = source.allowance();
        if seen.in_minute >= per_minute || seen.half_open >= half_open {
            return false;
        }
        seen.in_minute += 1;
        seen.half_open += 1;
        true
    }

    /// Whether another `reset` may be sent: it is clear and costs the peer a handshake.
    fn may_reset(&mut self, now: Instant) -> bool {
        let (since, sent) = self.resets.unwrap_or((now, 0));
        let (since, sent) =
            if now.duration_since(since) < Duration::from_secs(1) { (since, sent) } else { (now, 0) };
        self.resets = Some((since, sent + 1));
        sent < RESETS_PER_SECOND
    }

    fn finish(&mut self, source: Source) {
        if let Some(seen) = self.sources.get_mut(&source) {
            seen.half_open = seen.half_open.saturating_sub(1);
        }
    }
}

/// A carried stream of which nothing has opened yet, for as long as it lives.
struct Unproven<'a>(&'a Mutex<Limiter>, PublicKey);

impl<'a> Unproven<'a> {
    fn take(limiter: &'a Mutex<Limiter>, via: PublicKey) -> Option<Self> {
        let mut counts = lock(limiter);
        let count = counts.unproven.entry(via).or_default();
        (*count < CARRIED_UNPROVEN_MAX).then(|| {
            *count += 1;
            Self(limiter, via)
        })
    }
}

impl Drop for Unproven<'_> {
    fn drop(&mut self) {
        let mut counts = lock(self.0);
        if let Some(count) = counts.unproven.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.unproven.remove(&self.1);
            }
        }
    }
}

/// A handshake under way, for as long as it lives.
struct Turn<'a>(&'a Mutex<Limiter>, Source);

impl<'a> Turn<'a> {
    fn take(limiter: &'a Mutex<Limiter>, source: Source) -> Option<Self> {
        let may_begin = lock(limiter).begin(source, Instant::now());
        may_begin.then(|| Self(limiter, source))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(self.0).finish(self.1);
    }
}

/// Where a handshake comes from, as far as the route tells before it is done.
fn source(route: &Route, standing: Option<Standing>) -> Option<Source> {
    match (route, standing) {
        (Route::Direct { key, .. } | Route::Circuit { key, .. }, Some(Standing::Member(_))) => {
            Some(Source::Member(*key))
        }
        (Route::Direct { remote, .. }, _) => remote.map(subscriber).map(Source::Address),
        (Route::Circuit { via, .. } | Route::Carried { via }, _) => Some(Source::Via(*via)),
    }
}

/// One IPv4 address, or one IPv6 /64: what one subscriber has.
fn subscriber(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[8..].fill(0);
            IpAddr::from(octets)
        }
    }
}

/// Whether a handler was done; else it was stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handled {
    Done,
    /// Its deadline passed.
    TooLate,
    /// It took long, and its caller has as many long exchanges as it may.
    TooLong,
}

impl Handled {
    /// What an exchange without an end ends with.
    fn end(self) -> End {
        match self {
            Self::Done => End::because(Status::Internal, "the handler gave up"),
            Self::TooLate => End::because(Status::Timeout, "the deadline has passed"),
            Self::TooLong => {
                let end = End::because(Status::RateLimited, "too many long exchanges at once");
                let retry_after_ms = u32::try_from(STREAM_SHORT_MS).ok();
                End { retry_after_ms, ..end }
            }
        }
    }
}

impl Links {
    /// Serves a `/klp/1` stream that a peer opened, until it ends.
    pub async fn serve(&self, stream: BoxedStream, route: Route) {
        Stats::add(&self.0.stats.streams_in, 1);
        if let Err(error) = self.serve_stream(stream, route).await {
            tracing::debug!(%error, "stream ended");
        }
    }

    async fn serve_stream(&self, mut stream: BoxedStream, route: Route) -> Result<(), StreamError> {
        let stats = &self.0.stats;
        let preamble =
            tokio::time::timeout(Duration::from_millis(STRANGER_MS_MAX), read_preamble(&mut stream))
                .await
                .map_err(|_| {
                stats.refuse(Refusal::Stranger);
                StreamError::Io(std::io::ErrorKind::TimedOut.into())
            })??;
        let Some((bytes, preamble)) = preamble else {
            stats.refuse(Refusal::Preamble);
            return Ok(());
        };
        match preamble {
            Preamble::Handshake { federation_tag, .. } => {
                self.answer(stream, route, &bytes, &federation_tag).await
            }
            Preamble::Exchange { session, stream: number } => {
                let Some(live) = self.live(&session) else {
                    stats.refuse(Refusal::UnknownSession);
                    if !lock(&self.0.limiter).may_reset(Instant::now()) {
                        return Ok(());
                    }
                    return notify(&mut stream, &Notice::Reset).await;
                };
                if route.proven_key().is_some_and(|key| key != live.to.key) {
                    stats.refuse(Refusal::LinkKey);
                    return Ok(());
                }
                let accepted = lock(&live.session).accept_stream(number);
                let Ok((sealer, opener)) = accepted else {
                    stats.refuse(Refusal::Replay);
                    return Ok(());
                };
                let (read, write) = tokio::io::split(stream);
                let writer = FrameWriter::new(write, sealer, Vec::new());
                let reader = FrameReader::new(read, opener);
                let standing = self.0.gate.standing(&live.to.federation, &live.to.key);
                let serving = self.serve_exchanges(live, Parts { writer, reader }, VecDeque::new(), route);
                if matches!(standing, Standing::Member(_)) {
                    return serving.await;
                }
                let limit = Duration::from_millis(STRANGER_MS_MAX);
                tokio::time::timeout(limit, serving).await.unwrap_or(Ok(()))
            }
        }
    }

    /// Answers a handshake. The link's key is looked up before any Diffie-Hellman: a removed member costs nothing,
    /// and only strangers are counted against their address.
    async fn answer(
        &self,
        mut stream: BoxedStream,
        route: Route,
        preamble: &[u8],
        tag: &[u8; 8],
    ) -> Result<(), StreamError> {
        let (stats, gate) = (&self.0.stats, &self.0.gate);
        let Some((federation, local)) =
            gate.federation_by_tag(tag).and_then(|federation| Some((federation, gate.local(&federation)?)))
        else {
            stats.refuse(Refusal::Federation);
            return notify(&mut stream, &Notice::UnknownFederation).await;
        };
        let standing = route.proven_key().map(|key| gate.standing(&federation, &key));
        if standing == Some(Standing::Removed) {
            stats.refuse(Refusal::Removed);
            return Ok(());
        }
        let Ok(turn) =
            source(&route, standing).map(|source| Turn::take(&self.0.limiter, source).ok_or(())).transpose()
        else {
            return self.refuse_busy(&mut stream).await;
        };
        let shaken = tokio::time::timeout(
            Duration::from_millis(STRANGER_MS_MAX),
            self.shake_hands(&mut stream, &local, &federation, preamble),
        )
        .await;
        drop(turn);
        let offer = match shaken {
            Ok(offer) => offer?,
            Err(_) => {
                stats.refuse(Refusal::Stranger);
                return Ok(());
            }
        };
        let Some(offer) = offer else { return Ok(()) };
        let (key, counter) = (offer.hello().key, offer.hello().counter);
        if route.proven_key().is_some_and(|proven| proven != key) {
            stats.refuse(Refusal::LinkKey);
            return Ok(());
        }
        let standing = gate.standing(&federation, &key);
        match standing {
            Standing::Removed => {
                stats.refuse(Refusal::Removed);
                return Ok(());
            }
            Standing::Member(member) if member != offer.hello().member => {
                stats.refuse(Refusal::Hello);
                return Ok(());
            }
            // Who came by a carrier is known only now.
            Standing::Member(_) if route.proven_key().is_none() => {
                if Turn::take(&self.0.limiter, Source::Member(key)).is_none() {
                    return self.refuse_busy(&mut stream).await;
                }
            }
            Standing::Member(_) | Standing::Stranger => {}
        }
        let is_fresh = gate.is_fresh(federation, key, counter).await;
        let early_counts = if is_fresh && self.may_come_early(&route, offer.early()) {
            Early::Take
        } else if is_fresh {
            stats.refuse(Refusal::EarlyUnsafe);
            Early::Drop
        } else {
            // A stranger's never counts; that is nothing against it.
            if offer.has_early() && matches!(standing, Standing::Member(_)) {
                stats.refuse(Refusal::EarlyReplay);
            }
            Early::Drop
        };
        let Ok(accepted) = offer.accept(early_counts) else {
            stats.refuse(Refusal::HandshakeCrypto);
            return Ok(());
        };
        let Ok(frames) = parse_plain_frames(&accepted.early) else {
            stats.refuse(Refusal::Frame);
            return Ok(());
        };
        let Ok(phase) = frames.iter().try_fold(Phase::BeforeHead, |phase, (kind, _)| phase.after(*kind))
        else {
            stats.refuse(Refusal::Frame);
            return Ok(());
        };
        let (sealer, opener) = accepted.session.first_stream();
        let (read, write) = tokio::io::split(stream);
        let writer = FrameWriter::new(write, sealer, accepted.answer);
        let mut reader = FrameReader::new(read, opener);
        reader.note_early(phase);
        let early = frames.into_iter().map(|(kind, payload)| (kind, Bytes::from(payload))).collect();
        let live = self.keep(federation, local.member, accepted.session);
        if is_fresh {
            self.promote(&live);
        }
        let parts = Parts { writer, reader };
        if standing == Standing::Stranger {
            // A stranger's session serves this one stream and is gone with it.
            let serving = self.serve_exchanges(live.clone(), parts, early, route);
            let outcome = tokio::time::timeout(Duration::from_millis(STRANGER_MS_MAX), serving).await;
            self.forget(&live);
            outcome.unwrap_or_else(|_| {
                stats.refuse(Refusal::Stranger);
                Ok(())
            })
        } else {
            let outcome = self.serve_exchanges(live.clone(), parts, early, route).await;
            // Nothing showed that the peer has the keys: it may have been a replay.
            if !live.is_proven() {
                self.forget(&live);
            }
            outcome
        }
    }

    /// Early data has no forward secrecy, and whoever stole our key can forge it: over a stream whose opener is not
    /// proven only what may be executed twice counts. The initiator keeps to that, too; this is for those that do not.
    fn may_come_early(&self, route: &Route, early: &[u8]) -> bool {
        if early.is_empty() || route.is_replay_proof() {
            return true;
        }
        let frames = parse_plain_frames(early).unwrap_or_default();
        let head = frames.first().filter(|(kind, _)| *kind == FrameKind::Head);
        let head = head.and_then(|(_, payload)| Head::parse(payload).ok());
        head.is_some_and(|head| self.0.gate.is_replay_safe(&head.intent))
    }

    async fn refuse_busy(&self, stream: &mut BoxedStream) -> Result<(), StreamError> {
        self.0.stats.refuse(Refusal::HandshakeRate);
        notify(stream, &Notice::Busy { retry_after_ms: 60_000 }).await
    }

    /// As [`read_handshake`]; what is above its limit is counted.
    async fn read_message(&self, stream: &mut BoxedStream) -> Result<Option<Vec<u8>>, StreamError> {
        match read_handshake(stream).await {
            Ok(Ok(message)) => Ok(Some(message)),
            // The opener of a stream has nothing to refuse.
            Ok(Err(_)) => {
                self.0.stats.refuse(Refusal::Preamble);
                Ok(None)
            }
            Err(error) => {
                if matches!(error, StreamError::Message(_)) {
                    self.0.stats.refuse(Refusal::HandshakeSize);
                }
                Err(error)
            }
        }
    }

    /// Runs the messages of a handshake up to the peer's proof of its key.
    async fn shake_hands(
        &self,
        stream: &mut BoxedStream,
        local: &kos_protocol::session::Local,
        _federation: &FederationId,
        preamble: &[u8],
    ) -> Result<Option<Box<Offer>>, StreamError> {
        let gate = &self.0.gate;
        let Some(message) = self.read_message(stream).await? else { return Ok(None) };
        let counter = gate.next_counter().await;
        match Responder::receive(local, preamble, &message, counter, gate.seed()) {
            Ok(Received::Offer(offer)) => Ok(Some(offer)),
            Ok(Received::Answer(responder, answer)) => {
                stream.write_all(&answer).await?;
                stream.flush().await?;
                let Some(message) = self.read_message(stream).await? else { return Ok(None) };
                Ok(responder.finish(&message).map(Box::new).map_err(|error| self.count(&error)).ok())
            }
            Err((error, notice)) => {
                self.count(&error);
                if let Some(notice) = notice {
                    notify(stream, &notice).await?;
                }
                Ok(None)
            }
        }
    }

    fn count(&self, error: &HandshakeError) {
        self.0.stats.refuse(match error {
            HandshakeError::Versions { .. } | HandshakeError::Downgrade => Refusal::Version,
            HandshakeError::Hello(_) | HandshakeError::KeyMismatch | HandshakeError::EarlyTooLarge { .. } => {
                Refusal::Hello
            }
            HandshakeError::Refused(_) => Refusal::Federation,
            HandshakeError::Crypto => Refusal::HandshakeCrypto,
        });
    }

    /// One exchange after another on one stream.
    async fn serve_exchanges(
        &self,
        live: Arc<Live>,
        mut parts: Parts,
        mut early: VecDeque<(FrameKind, Bytes)>,
        route: Route,
    ) -> Result<(), StreamError> {
        if let (Route::Carried { via }, true) = (&route, early.is_empty()) {
            let Some(_place) = Unproven::take(&self.0.limiter, *via) else {
                self.0.stats.refuse(Refusal::StreamLimit);
                return Ok(());
            };
            parts.writer.flush().await?;
            let first = tokio::time::timeout(Duration::from_millis(STRANGER_MS_MAX), parts.reader.next());
            let Ok(first) = first.await else {
                self.0.stats.refuse(Refusal::Stranger);
                return Ok(());
            };
            match first.inspect_err(|error| self.0.stats.refuse_stream(error))? {
                Some(frame) => early.push_back(frame),
                None => return parts.writer.close().await,
            }
        }
        let Some(_place) = live.streams.inward.accept(Kind::Stream) else {
            self.0.stats.refuse(Refusal::StreamLimit);
            return Ok(());
        };
        let closed = live.closed.clone();
        tokio::select! {
            outcome = self.exchanges(&live, parts, early, route) => outcome,
            () = closed.cancelled() => Ok(()),
        }
    }

    async fn exchanges(
        &self,
        live: &Arc<Live>,
        mut parts: Parts,
        mut early: VecDeque<(FrameKind, Bytes)>,
        route: Route,
    ) -> Result<(), StreamError> {
        let stats = &self.0.stats;
        // The handshake's answer goes out even when no request came with it.
        parts.writer.flush().await?;
        loop {
            let frame = match early.pop_front() {
                Some(frame) => Some(frame),
                None => match tokio::time::timeout(IDLE_STREAM, parts.reader.next()).await {
                    Err(_) => None,
                    Ok(frame) => frame.inspect_err(|error| stats.refuse_stream(error))?,
                },
            };
            if frame.is_some() {
                self.promote(live);
            }
            let Some((kind, bytes)) = frame else { return parts.writer.close().await };
            if kind != FrameKind::Head {
                stats.refuse(Refusal::Frame);
                return Ok(());
            }
            let head = Head::parse(&bytes).map_err(|error| error.to_string());
            let head = head.and_then(|head| {
                head.check().map(|()| head).map_err(|part| format!("{part} is above its limit"))
            });
            let caller = self.caller(live, &route);
            let answered = parts.writer.ended();
            let mut handled = Handled::Done;
            let (home, back) = tokio::sync::oneshot::channel();
            let slot = Slot::new(Box::new(move |parts| drop(home.send(parts))));
            let allowance =
                caller.as_ref().is_some_and(|caller| caller.member.is_none()).then_some(STRANGER_BYTES_MAX);
            let send = SendHalf::new(parts.writer, slot.clone(), stats.clone());
            let recv = RecvHalf::new(parts.reader, slot, stats.clone())
                .with_early(std::mem::take(&mut early), allowance);
            Stats::add(&stats.exchanges_in, 1);
            match (head, caller) {
                (_, None) => {
                    stats.refuse(Refusal::Removed);
                    return Ok(());
                }
                (Err(why), _) => {
                    stats.refuse(Refusal::Head);
                    drop(recv);
                    send.refuse(Status::Invalid, why).await?;
                }
                (Ok(head), Some(caller)) => {
                    handled = self.handle(live, Request { caller, head, recv, send }).await;
                }
            }
            let Ok(returned) = back.await else { return Ok(()) };
            parts = returned;
            parts.rest();
            if parts.writer.ended() == answered {
                parts.writer.push(FrameKind::End, &cbor::encode(&handled.end()))?;
                parts.writer.flush().await?;
            }
            if handled == Handled::TooLong {
                // The place is for others now.
                return parts.writer.close().await;
            }
            if parts.reader.phase() == Phase::InBody
                && !drain(&mut parts.reader, allowance.unwrap_or(DRAIN_BYTES)).await
            {
                return parts.writer.close().await;
            }
        }
    }

    /// Hands a request to the service, within its deadline and its caller's places.
    async fn handle(&self, live: &Live, request: Request) -> Handled {
        let deadline = request.head.deadline_ms.map(|ms| Duration::from_millis(ms.into()));
        let mut handling = std::pin::pin!(self.0.service.handle(request));
        let short = deadline.map_or(self.0.short, |deadline| deadline.min(self.0.short));
        if tokio::time::timeout(short, &mut handling).await.is_ok() {
            return Handled::Done;
        }
        if deadline.is_some_and(|deadline| deadline <= short) {
            return Handled::TooLate;
        }
        let Some(_long) = live.streams.inward.accept(Kind::Long) else {
            self.0.stats.refuse(Refusal::StreamLimit);
            return Handled::TooLong;
        };
        let Some(deadline) = deadline else {
            handling.await;
            return Handled::Done;
        };
        match tokio::time::timeout(deadline - short, handling).await {
            Ok(()) => Handled::Done,
            Err(_) => Handled::TooLate,
        }
    }

    /// Who is at the other end now: asked for each exchange, so that a removal counts at once.
    fn caller(&self, live: &Arc<Live>, route: &Route) -> Option<Caller> {
        let member = match self.0.gate.standing(&live.to.federation, &live.to.key) {
            Standing::Member(member) => Some(member),
            Standing::Stranger => None,
            Standing::Removed => return None,
        };
        Some(Caller {
            federation: live.to.federation,
            key: live.to.key,
            member,
            handshake_hash: live.handshake_hash,
            route: route.clone(),
        })
    }
}

async fn read_preamble(stream: &mut BoxedStream) -> Result<Option<(Vec<u8>, Preamble)>, StreamError> {
    let first = stream.read_u8().await?;
    let Ok(length) = Preamble::length(first) else { return Ok(None) };
    let mut bytes = vec![first; length];
    stream.read_exact(&mut bytes[1..]).await?;
    Ok(Preamble::parse(&bytes).ok().map(|preamble| (bytes, preamble)))
}

async fn notify(stream: &mut BoxedStream, notice: &Notice) -> Result<(), StreamError> {
    stream.write_all(&notice.to_bytes()).await?;
    Ok(stream.shutdown().await?)
}

async fn drain(reader: &mut FrameReader, bytes_max: usize) -> bool {
    let drained = async {
        let mut bytes = 0;
        while reader.phase() == Phase::InBody && bytes < bytes_max {
            match reader.next().await {
                Ok(Some((_, payload))) => bytes += payload.len(),
                _ => return false,
            }
        }
        reader.phase() == Phase::BeforeHead
    };
    tokio::time::timeout(DRAIN, drained).await.unwrap_or(false)
}
