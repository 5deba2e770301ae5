//! The Noise session: one handshake for each pair of nodes, then streams that share its keys. SPEC §6.
//!
//! Sans-IO: the caller moves bytes, keeps the clock and persists the counters. Early data (the first request inside
//! the first IK message) saves a round trip; it has no forward secrecy and falls to whoever stole the responder's
//! key, so over a carried link only replay-safe intents may travel in it.
//!
//! Sources: the Noise Protocol Framework, revision 34 (§7.5 IK and XX, §9 joint use of keys); RFC 6479.

use crate::{
    cbor,
    hello::{Hello, Versions},
    id::{FederationId, MemberId, sha256},
    key::{PublicKey, SecretKey},
    limits::{
        DATA_BYTES_MAX, EARLY_BYTES_MAX, FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX, SESSION_FRAMES_MAX,
        STREAM_FRAMES_MAX, TAG_BYTES,
    },
    message::FrameKind,
    noise::{CipherStates, Resolver},
    preamble::{Notice, Pattern, Preamble, SessionId},
    replay::{ReplayWindow, Replayed},
};
use semver::{Version, VersionReq};
use snow::HandshakeState;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// What a node brings to each of its handshakes in one federation.
#[derive(Clone, Debug)]
pub struct Local {
    /// The member's current key.
    pub secret: SecretKey,
    /// Who it is.
    pub member: MemberId,
    /// In which federation.
    pub federation: FederationId,
    /// Which wire versions it speaks.
    pub versions: Versions,
    /// What it can do.
    pub offers: BTreeMap<String, Version>,
    /// What it would like peers to be able to do.
    pub wants: BTreeMap<String, VersionReq>,
    /// How many streams it accepts at once from one peer.
    pub streams_max: u32,
    /// Its software.
    pub agent: String,
}

/// Why a handshake came to nothing. None of them ends a session that works.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A message that does not decrypt: another key than expected, or altered bytes.
    #[error("the handshake does not decrypt")]
    Crypto,
    /// A message that decrypts to something else than a hello.
    #[error("the hello is malformed: {0}")]
    Hello(String),
    /// The hello names a key that is not the one of the handshake.
    #[error("the hello names another key than the handshake used")]
    KeyMismatch,
    /// Nothing in common.
    #[error("no common version: we speak {ours}, the peer {theirs}")]
    Versions {
        /// Our range.
        ours: Versions,
        /// The peer's.
        theirs: Versions,
    },
    /// Somebody changed the version ranges on the way, or the peer chose one we did not offer.
    #[error("the peer did not choose the newest common version")]
    Downgrade,
    /// The peer refused in the clear.
    #[error("the peer refused: {0:?}")]
    Refused(Notice),
    /// More early data than a handshake message may carry.
    #[error("{size_bytes} bytes of early data, limit {EARLY_BYTES_MAX}")]
    EarlyTooLarge {
        /// What was to be sent.
        size_bytes: usize,
    },
}

impl Local {
    fn hello(&self, counter: u64, version: Option<u16>, early_taken: bool) -> Hello {
        Hello {
            versions: self.versions,
            version,
            member: self.member,
            key: self.secret.public(),
            counter,
            early_taken,
            offers: self.offers.clone(),
            wants: self.wants.clone(),
            streams_max: self.streams_max,
            agent: self.agent.clone(),
        }
    }

    fn noise(
        &self,
        pattern: Pattern,
        prologue: &[u8],
        seed: [u8; 32],
        peer: Peer,
    ) -> Result<HandshakeState, HandshakeError> {
        let name = match pattern {
            Pattern::Ik => "Noise_IK_25519_ChaChaPoly_SHA256",
            Pattern::Xx => "Noise_XX_25519_ChaChaPoly_SHA256",
        };
        let params = name.parse().expect("both names are well-formed");
        let secret = self.secret.to_x25519();
        let builder = snow::Builder::with_resolver(params, Box::new(Resolver::seeded(seed)))
            .prologue(prologue)
            .and_then(|builder| builder.local_private_key(&*secret))
            .map_err(|_| HandshakeError::Crypto)?;
        let state = match peer {
            Peer::Initiator => builder.build_responder(),
            Peer::Responder(Some(key)) => {
                builder.remote_public_key(&key.to_x25519()).and_then(snow::Builder::build_initiator)
            }
            Peer::Responder(None) => builder.build_initiator(),
        };
        state.map_err(|_| HandshakeError::Crypto)
    }
}

enum Peer {
    Initiator,
    Responder(Option<PublicKey>),
}

/// Payload of a handshake message: the hello's length, the hello, early frames.
fn payload(hello: &Hello, early: &[u8]) -> Vec<u8> {
    let hello = cbor::encode(hello);
    let mut payload = Vec::with_capacity(2 + hello.len() + early.len());
    let length = u16::try_from(hello.len()).expect("our own hello is below 16 KiB");
    payload.extend_from_slice(&length.to_be_bytes());
    payload.extend_from_slice(&hello);
    payload.extend_from_slice(early);
    payload
}

fn parse_payload(payload: &[u8]) -> Result<(Hello, &[u8]), HandshakeError> {
    let malformed = |why: &str| HandshakeError::Hello(why.to_owned());
    let (length, rest) = payload.split_first_chunk().ok_or_else(|| malformed("too short"))?;
    let (hello, early) = rest
        .split_at_checked(usize::from(u16::from_be_bytes(*length)))
        .ok_or_else(|| malformed("too short"))?;
    let hello = Hello::parse(hello).map_err(|error| malformed(&error.to_string()))?;
    if early.len() > EARLY_BYTES_MAX {
        return Err(HandshakeError::EarlyTooLarge { size_bytes: early.len() });
    }
    Ok((hello, early))
}

fn write(state: &mut HandshakeState, payload: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    let mut message = vec![0; payload.len() + 256];
    let length = state.write_message(payload, &mut message).map_err(|_| HandshakeError::Crypto)?;
    message.truncate(length);
    Ok(with_length(&message))
}

fn read(state: &mut HandshakeState, message: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    if message.len() > HANDSHAKE_BYTES_MAX {
        return Err(HandshakeError::Crypto);
    }
    let mut payload = vec![0; message.len()];
    let length = state.read_message(message, &mut payload).map_err(|_| HandshakeError::Crypto)?;
    payload.truncate(length);
    Ok(payload)
}

fn with_length(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("handshake messages are below 48 KiB");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

fn check_key(state: &HandshakeState, hello: &Hello) -> Result<(), HandshakeError> {
    if state.get_remote_static() == Some(&hello.key.to_x25519()[..]) {
        Ok(())
    } else {
        Err(HandshakeError::KeyMismatch)
    }
}

/// The side that opened the stream, waiting for the other's answer.
pub struct Initiator {
    local: Local,
    state: HandshakeState,
    pattern: Pattern,
    expected: Option<PublicKey>,
    has_early: bool,
    counter: u64,
}

/// A finished handshake, seen from the initiator.
pub struct Initiated {
    /// The session; the handshake's stream is its stream 0.
    pub session: Session,
    /// XX: the third message, to be sent before any frame. IK: nothing.
    pub last_message: Vec<u8>,
    /// Whether the responder took the early data; if not, send it again as frames of stream 0.
    pub early_taken: bool,
}

impl Initiator {
    /// Begins a handshake: IK when `peer` is known, XX when not. Returns what to write on the new stream.
    ///
    /// `early` is the first request as [`plain_frame`]s; with XX it must be empty, since its frames can follow the
    /// third message at once. `counter` must be above every counter this member used before; `seed` is 32 fresh
    /// random bytes.
    ///
    /// # Errors
    /// [`HandshakeError::EarlyTooLarge`], and [`HandshakeError::Crypto`] when `peer` is not a usable key.
    pub fn start(
        local: &Local,
        peer: Option<PublicKey>,
        counter: u64,
        early: &[u8],
        seed: [u8; 32],
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let pattern = if peer.is_some() { Pattern::Ik } else { Pattern::Xx };
        if early.len() > EARLY_BYTES_MAX || (pattern == Pattern::Xx && !early.is_empty()) {
            return Err(HandshakeError::EarlyTooLarge { size_bytes: early.len() });
        }
        let preamble =
            Preamble::Handshake { pattern, versions: local.versions, federation_tag: local.federation.tag() };
        let mut bytes = preamble.to_bytes();
        let mut state = local.noise(pattern, &bytes, seed, Peer::Responder(peer))?;
        let first = match pattern {
            Pattern::Ik => payload(&local.hello(counter, None, false), early),
            Pattern::Xx => Vec::new(),
        };
        bytes.extend_from_slice(&write(&mut state, &first)?);
        let (local, has_early) = (local.clone(), !early.is_empty());
        Ok((Self { local, state, pattern, expected: peer, has_early, counter }, bytes))
    }

    /// Takes the responder's message, without its length bytes, and makes the session.
    ///
    /// # Errors
    /// [`HandshakeError`]; the stream is of no more use then.
    pub fn finish(mut self, message: &[u8]) -> Result<Initiated, HandshakeError> {
        let answer = read(&mut self.state, message)?;
        let (hello, _) = parse_payload(&answer)?;
        check_key(&self.state, &hello)?;
        // Two Ed25519 keys, a point and its negative, share one X25519 form; the one that was asked for must answer.
        if self.expected.is_some_and(|expected| expected != hello.key) {
            return Err(HandshakeError::KeyMismatch);
        }
        let version = self.local.versions.common(hello.versions);
        if version.is_none() || hello.version != version {
            return Err(HandshakeError::Downgrade);
        }
        let last_message = match self.pattern {
            Pattern::Ik => Vec::new(),
            Pattern::Xx => {
                write(&mut self.state, &payload(&self.local.hello(self.counter, None, false), &[]))?
            }
        };
        // A peer that says it took what was never sent must not make us keep the request back.
        let early_taken = self.has_early && hello.early_taken;
        let session = Session::new(self.state, hello, version.unwrap_or_default())?;
        Ok(Initiated { session, last_message, early_taken })
    }

    /// What a clear refusal means for this handshake.
    pub fn refused(&self, notice: Notice) -> HandshakeError {
        match notice {
            Notice::Versions { versions } => {
                HandshakeError::Versions { ours: self.local.versions, theirs: versions }
            }
            other => HandshakeError::Refused(other),
        }
    }
}

/// The side that a stream was opened to, before it knows who did.
pub struct Responder {
    local: Local,
    state: HandshakeState,
    preamble: Versions,
    version: u16,
    counter: u64,
}

/// What the responder's side of a handshake needs next.
pub enum Received {
    /// IK: the initiator is known; look it up, then [`Offer::accept`].
    Offer(Box<Offer>),
    /// XX: write these bytes, then give the initiator's next message to [`Responder::finish`].
    Answer(Box<Responder>, Vec<u8>),
}

impl Responder {
    /// Takes the preamble as received and the first message without its length bytes.
    ///
    /// `counter` and `seed` as in [`Initiator::start`].
    ///
    /// # Errors
    /// A failure comes with the notice that answers it, when there is one.
    pub fn receive(
        local: &Local,
        preamble: &[u8],
        message: &[u8],
        counter: u64,
        seed: [u8; 32],
    ) -> Result<Received, (HandshakeError, Option<Notice>)> {
        let Ok(Preamble::Handshake { pattern, versions, federation_tag }) = Preamble::parse(preamble) else {
            return Err((HandshakeError::Crypto, None));
        };
        let Some(version) = local.versions.common(versions) else {
            let error = HandshakeError::Versions { ours: local.versions, theirs: versions };
            return Err((error, Some(Notice::Versions { versions: local.versions })));
        };
        if federation_tag != local.federation.tag() {
            let notice = Notice::UnknownFederation;
            return Err((HandshakeError::Refused(notice.clone()), Some(notice)));
        }
        let mut state =
            local.noise(pattern, preamble, seed, Peer::Initiator).map_err(|error| (error, None))?;
        match pattern {
            Pattern::Ik => {
                let opened = read(&mut state, message).map_err(|error| (error, Some(Notice::RetryXx)))?;
                let responder = Self { local: local.clone(), state, preamble: versions, version, counter };
                responder
                    .offer(&opened)
                    .map(|offer| Received::Offer(Box::new(offer)))
                    .map_err(|error| (error, None))
            }
            Pattern::Xx => {
                read(&mut state, message).map_err(|error| (error, None))?;
                let hello = local.hello(counter, Some(version), false);
                let answer = write(&mut state, &payload(&hello, &[])).map_err(|error| (error, None))?;
                let responder = Self { local: local.clone(), state, preamble: versions, version, counter };
                Ok(Received::Answer(Box::new(responder), answer))
            }
        }
    }

    /// XX: takes the third message.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn finish(mut self, message: &[u8]) -> Result<Offer, HandshakeError> {
        let opened = read(&mut self.state, message)?;
        let offer = self.offer(&opened)?;
        // No hello follows that could say whether it was taken.
        if offer.has_early() {
            return Err(HandshakeError::Hello("early data in the third message".to_owned()));
        }
        Ok(offer)
    }

    fn offer(self, opened: &[u8]) -> Result<Offer, HandshakeError> {
        let (hello, early) = parse_payload(opened)?;
        check_key(&self.state, &hello)?;
        if hello.versions != self.preamble {
            return Err(HandshakeError::Downgrade);
        }
        let early = early.to_vec();
        Ok(Offer { responder: self, hello, early })
    }
}

/// A peer that has proved its key and asks for a session.
pub struct Offer {
    responder: Responder,
    hello: Hello,
    early: Vec<u8>,
}

/// What becomes of early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// It counts: the counter was fresh, and the caller may use early data.
    Take,
    /// It is dropped; the initiator will send it again inside the session.
    Drop,
}

/// A finished handshake, seen from the responder.
pub struct Accepted {
    /// The session; the handshake's stream is its stream 0.
    pub session: Session,
    /// What to write before any frame; empty after XX.
    pub answer: Vec<u8>,
    /// The early frames that were taken, for [`parse_plain_frames`].
    pub early: Vec<u8>,
}

impl Offer {
    /// The peer's proven key and what it says of itself. That `member` owns `key` is for the caller to check.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The frames that the first message carried, as [`parse_plain_frames`] reads them. Nothing shows yet that they are
    /// no replay.
    pub fn early(&self) -> &[u8] {
        &self.early
    }

    /// Whether the first message carried a request.
    pub fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// Makes the session.
    ///
    /// # Errors
    /// [`HandshakeError::Crypto`].
    pub fn accept(self, early: Early) -> Result<Accepted, HandshakeError> {
        let Self { mut responder, hello, early: data } = self;
        let take = early == Early::Take && !data.is_empty();
        let answer = if responder.state.is_handshake_finished() {
            Vec::new()
        } else {
            let hello = responder.local.hello(responder.counter, Some(responder.version), take);
            write(&mut responder.state, &payload(&hello, &[]))?
        };
        let session = Session::new(responder.state, hello, responder.version)?;
        Ok(Accepted { session, answer, early: if take { data } else { Vec::new() } })
    }
}

/// A frame before sealing, as early data holds it: length, kind, payload.
///
/// # Panics
/// When `payload` is above [`DATA_BYTES_MAX`]; the caller cuts it before.
pub fn plain_frame(kind: FrameKind, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= DATA_BYTES_MAX, "the caller cuts payloads to frames");
    let length = u16::try_from(payload.len() + 1).expect("checked above");
    out.extend_from_slice(&length.to_be_bytes());
    out.push(kind.to_byte());
    out.extend_from_slice(payload);
}

/// Reads early data back into frames.
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn parse_plain_frames(mut early: &[u8]) -> Result<Vec<(FrameKind, Vec<u8>)>, FrameError> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = early.split_first_chunk() {
        let (frame, rest) =
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(FrameError::Malformed)?;
        let (kind, payload) = frame.split_first().ok_or(FrameError::Malformed)?;
        frames.push((FrameKind::from_byte(*kind).ok_or(FrameError::Malformed)?, payload.to_vec()));
        early = rest;
    }
    if early.is_empty() { Ok(frames) } else { Err(FrameError::Malformed) }
}

/// Which end of a session we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We began it; our streams have even numbers.
    Initiator,
    /// The peer began it; our streams have odd numbers.
    Responder,
}

struct Keys {
    ciphers: CipherStates,
    sealed: AtomicU64,
    window: Mutex<ReplayWindow>,
}

impl Keys {
    fn window(&self) -> MutexGuard<'_, ReplayWindow> {
        // Nothing in the window can panic halfway, so a poisoned lock holds a whole one.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session: two keys, the numbers of our streams, a replay window over the peer's.
pub struct Session {
    id: SessionId,
    role: Role,
    peer: Hello,
    version: u16,
    handshake_hash: [u8; 32],
    keys: Arc<Keys>,
    first_stream_taken: AtomicBool,
    next_stream: Option<u32>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:02x?}, {:?}, {:?})", &self.id.0[..4], self.role, self.peer.member)
    }
}

/// A session that has used up its numbers or frames; shake hands again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session is used up")]
pub struct Exhausted;

impl Session {
    fn new(state: HandshakeState, peer: Hello, version: u16) -> Result<Self, HandshakeError> {
        let role = if state.is_initiator() { Role::Initiator } else { Role::Responder };
        let handshake_hash: [u8; 32] =
            state.get_handshake_hash().try_into().map_err(|_| HandshakeError::Crypto)?;
        let ciphers = CipherStates::split(state).map_err(|_| HandshakeError::Crypto)?;
        let mut input = b"klp/1 session id".to_vec();
        input.extend_from_slice(&handshake_hash);
        let mut id = [0; 16];
        id.copy_from_slice(&sha256(&input)[..16]);
        let mut window = ReplayWindow::default();
        if role == Role::Responder {
            // Stream 0 is the handshake's own; nobody may open it again.
            window.accept(0).expect("an empty window accepts");
        }
        Ok(Self {
            id: SessionId(id),
            role,
            peer,
            version,
            handshake_hash,
            keys: Arc::new(Keys { ciphers, sealed: AtomicU64::new(0), window: Mutex::new(window) }),
            first_stream_taken: AtomicBool::new(false),
            next_stream: Some(if role == Role::Initiator { 2 } else { 1 }),
        })
    }

    /// Its clear name.
    pub fn id(&self) -> SessionId {
        self.id
    }
    /// Which end we are.
    pub fn role(&self) -> Role {
        self.role
    }
    /// What the peer said of itself.
    pub fn peer(&self) -> &Hello {
        &self.peer
    }
    /// The wire version in use.
    pub fn version(&self) -> u16 {
        self.version
    }
    /// The handshake's hash: what a proof is bound to that shall count in this session alone.
    pub fn handshake_hash(&self) -> &[u8; 32] {
        &self.handshake_hash
    }
    /// Whether it has sealed so many frames that a fresh one should take its place.
    pub fn is_worn(&self) -> bool {
        self.keys.sealed.load(Ordering::Relaxed) >= SESSION_FRAMES_MAX
    }

    /// The two halves of stream 0, which the handshake ran on.
    ///
    /// # Panics
    /// When it is called again: a second sealer would use the nonces of the first.
    pub fn first_stream(&self) -> (Sealer, Opener) {
        let taken = self.first_stream_taken.swap(true, Ordering::Relaxed);
        assert!(!taken, "stream 0 is handed out once: a second sealer would use the nonces of the first");
        self.halves(0, None)
    }

    /// Opens a stream of ours: the preamble to write, and its two halves.
    ///
    /// # Errors
    /// [`Exhausted`] after 2^31 streams or [`SESSION_FRAMES_MAX`] frames.
    pub fn open_stream(&mut self) -> Result<(Vec<u8>, Sealer, Opener), Exhausted> {
        if self.is_worn() {
            return Err(Exhausted);
        }
        let stream = self.next_stream.ok_or(Exhausted)?;
        self.next_stream = stream.checked_add(2);
        let (sealer, opener) = self.halves(stream, None);
        Ok((Preamble::Exchange { session: self.id, stream }.to_bytes(), sealer, opener))
    }

    /// Takes a stream the peer opened, as far as its clear preamble can be believed.
    ///
    /// The number counts as seen once the first frame has opened, not before: whoever can write preambles on the way
    /// could otherwise move the window past all that the peer will open. Until then the sealer refuses to seal, since
    /// the same number could be handed out a second time.
    ///
    /// # Errors
    /// [`Replayed`] for a number seen before, too old, or of our own parity.
    pub fn accept_stream(&mut self, stream: u32) -> Result<(Sealer, Opener), Replayed> {
        let ours = match self.role {
            Role::Initiator => 0,
            Role::Responder => 1,
        };
        if stream % 2 == ours {
            return Err(Replayed(stream));
        }
        self.keys.window().check(stream)?;
        Ok(self.halves(stream, Some(Arc::new(AtomicBool::new(false)))))
    }

    fn halves(&self, stream: u32, proven: Option<Arc<AtomicBool>>) -> (Sealer, Opener) {
        let nonces = Nonces { stream, next_frame: 0 };
        let sealer = Sealer { keys: self.keys.clone(), nonces, proven: proven.clone() };
        (sealer, Opener { keys: self.keys.clone(), nonces, unproven: proven })
    }
}

/// The nonces of one direction of one stream: stream number, then frame number, 32 bits each.
#[derive(Clone, Copy)]
struct Nonces {
    stream: u32,
    next_frame: u32,
}

impl Nonces {
    fn peek(&self) -> Result<u64, FrameError> {
        if self.next_frame == STREAM_FRAMES_MAX {
            return Err(FrameError::Exhausted);
        }
        Ok(u64::from(self.stream) << 32 | u64::from(self.next_frame))
    }
}

/// Why a frame could not be sealed or opened. The stream is of no more use then; its session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Altered, out of order, of another stream or of another session.
    #[error("a frame does not decrypt")]
    Crypto,
    /// Shorter than a tag and a type, or of no known type.
    #[error("a frame is malformed")]
    Malformed,
    /// The stream has used up its frame numbers.
    #[error("the stream is used up")]
    Exhausted,
    /// The stream's number was seen before: this one is a copy.
    #[error("a stream was opened a second time")]
    Replayed,
    /// Sealing on a stream of the peer's of which no frame has opened yet.
    #[error("nothing of the stream has been received yet")]
    Unproven,
}

/// The sending half of a stream.
pub struct Sealer {
    keys: Arc<Keys>,
    nonces: Nonces,
    /// For a stream of the peer's: whether its first frame has opened.
    proven: Option<Arc<AtomicBool>>,
}

impl Sealer {
    /// Appends one sealed frame to `out`, its two length bytes included.
    ///
    /// # Errors
    /// [`FrameError::Exhausted`], [`FrameError::Malformed`] when `payload` is above [`DATA_BYTES_MAX`],
    /// [`FrameError::Unproven`] before the first frame of the peer's stream has opened.
    pub fn seal(&mut self, kind: FrameKind, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        if payload.len() > DATA_BYTES_MAX {
            return Err(FrameError::Malformed);
        }
        if self.proven.as_ref().is_some_and(|proven| !proven.load(Ordering::Acquire)) {
            return Err(FrameError::Unproven);
        }
        let nonce = self.nonces.peek()?;
        let length = u16::try_from(1 + payload.len() + TAG_BYTES).map_err(|_| FrameError::Malformed)?;
        let begun = out.len();
        out.reserve(2 + usize::from(length));
        out.extend_from_slice(&length.to_be_bytes());
        out.push(kind.to_byte());
        out.extend_from_slice(payload);
        let Ok(tag) = self.keys.ciphers.seal(nonce, &mut out[begun + 2..]) else {
            out.truncate(begun);
            return Err(FrameError::Crypto);
        };
        out.extend_from_slice(tag.as_ref());
        self.nonces.next_frame += 1;
        self.keys.sealed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The receiving half of a stream.
pub struct Opener {
    keys: Arc<Keys>,
    nonces: Nonces,
    /// For a stream of the peer's until its first frame has opened: where to say so.
    unproven: Option<Arc<AtomicBool>>,
}

impl Opener {
    /// Opens one frame where it lies, given without its length bytes: its kind and its payload.
    ///
    /// # Errors
    /// [`FrameError`]; a frame that fails is overwritten.
    pub fn open<'a>(&mut self, frame: &'a mut [u8]) -> Result<(FrameKind, &'a [u8]), FrameError> {
        if frame.len() <= TAG_BYTES || frame.len() > FRAME_BYTES_MAX {
            return Err(FrameError::Malformed);
        }
        let nonce = self.nonces.peek()?;
        let plain = self.keys.ciphers.open(nonce, frame).map_err(|_| FrameError::Crypto)?;
        self.prove()?;
        self.nonces.next_frame += 1;
        let (kind, payload) = plain.split_first().ok_or(FrameError::Malformed)?;
        Ok((FrameKind::from_byte(*kind).ok_or(FrameError::Malformed)?, payload))
    }

    /// The peer sealed this frame, so it opened this stream: from here on its number counts as seen.
    fn prove(&mut self) -> Result<(), FrameError> {
        if let Some(proven) = &self.unproven {
            // A copy stays one, however often it tries.
            self.keys.window().accept(self.nonces.stream).map_err(|_| FrameError::Replayed)?;
            proven.store(true, Ordering::Release);
            self.unproven = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
