use super::*;
use proptest::prelude::*;

fn local(n: u8) -> Local {
    local_speaking(n, Versions::OURS)
}

fn local_speaking(n: u8, versions: Versions) -> Local {
    let secret = SecretKey::from_seed(&[n; 32]);
    Local {
        member: MemberId::from_bytes([n; 32]),
        secret,
        federation: FederationId::from_bytes([9; 32]),
        versions,
        offers: BTreeMap::new(),
        wants: BTreeMap::new(),
        streams_max: 200,
        agent: "test/0".to_owned(),
    }
}

/// Splits what a handshake writes on its stream into preamble and first message.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (preamble, rest) = bytes.split_at(14);
    (preamble, &rest[2..])
}

fn ik(early: &[u8], take: Early) -> (Initiated, Accepted) {
    let (alice, bob) = (local(1), local(2));
    let (initiator, bytes) = Initiator::start(&alice, Some(bob.secret.public()), 5, early, [1; 32]).unwrap();
    let (preamble, message) = split(&bytes);
    let Ok(Received::Offer(offer)) = Responder::receive(&bob, preamble, message, 7, [2; 32]) else {
        panic!("no offer")
    };
    assert_eq!((offer.hello().key, offer.hello().counter), (alice.secret.public(), 5));
    let accepted = offer.accept(take).unwrap();
    let initiated = initiator.finish(&accepted.answer[2..]).unwrap();
    (initiated, accepted)
}

fn xx() -> (Session, Session) {
    xx_drawn(1)
}

/// A session of the same two nodes with its own keys: `draw` is the randomness of its handshake.
fn xx_drawn(draw: u8) -> (Session, Session) {
    let (alice, bob) = (local(1), local(2));
    let (initiator, bytes) = Initiator::start(&alice, None, 5, &[], [draw; 32]).unwrap();
    let (preamble, message) = split(&bytes);
    let Ok(Received::Answer(responder, answer)) =
        Responder::receive(&bob, preamble, message, 7, [draw + 100; 32])
    else {
        panic!("no answer")
    };
    let initiated = initiator.finish(&answer[2..]).unwrap();
    let accepted = responder.finish(&initiated.last_message[2..]).unwrap().accept(Early::Take).unwrap();
    assert!(accepted.answer.is_empty());
    (initiated.session, accepted.session)
}

fn pass(sealer: &mut Sealer, opener: &mut Opener, kind: FrameKind, payload: &[u8]) {
    let mut wire = Vec::new();
    sealer.seal(kind, payload, &mut wire).unwrap();
    assert_eq!(opener.open(&mut wire[2..]), Ok((kind, payload)));
}

#[test]
fn both_patterns_make_the_same_session_at_both_ends() {
    for (mut alice, mut bob) in [xx(), {
        let (a, b) = ik(&[], Early::Drop);
        (a.session, b.session)
    }] {
        assert_eq!(alice.id(), bob.id());
        assert_eq!(alice.handshake_hash(), bob.handshake_hash());
        assert_eq!(alice.peer().member, MemberId::from_bytes([2; 32]));
        let ((mut a_seal, mut a_open), (mut b_seal, mut b_open)) = (alice.first_stream(), bob.first_stream());
        pass(&mut a_seal, &mut b_open, FrameKind::Head, b"hello");
        pass(&mut b_seal, &mut a_open, FrameKind::Data, &[0; DATA_BYTES_MAX]);
        for _ in 0..3 {
            let (preamble, mut sealer, _) = bob.open_stream().unwrap();
            let Ok(Preamble::Exchange { session, stream }) = Preamble::parse(&preamble) else { panic!() };
            assert_eq!((session, stream % 2), (alice.id(), 1));
            let (_, mut opener) = alice.accept_stream(stream).unwrap();
            pass(&mut sealer, &mut opener, FrameKind::End, b"");
            assert!(alice.accept_stream(stream).is_err(), "a stream is accepted once");
        }
        assert!(alice.accept_stream(2).is_err(), "a stream of our own parity");
        assert!(bob.accept_stream(0).is_err(), "the handshake's stream is taken");
    }
}

#[test]
fn early_data_arrives_or_is_asked_for_again() {
    let mut early = Vec::new();
    plain_frame(FrameKind::Head, b"head", &mut early);
    plain_frame(FrameKind::End, b"", &mut early);
    let (initiated, accepted) = ik(&early, Early::Take);
    assert!(initiated.early_taken);
    let frames = parse_plain_frames(&accepted.early).unwrap();
    assert_eq!(frames, [(FrameKind::Head, b"head".to_vec()), (FrameKind::End, vec![])]);
    let (initiated, accepted) = ik(&early, Early::Drop);
    assert!(!initiated.early_taken && accepted.early.is_empty());
}

#[test]
fn the_wrong_key_is_told_to_try_xx() {
    let (alice, bob, carol) = (local(1), local(2), local(3));
    let (_, bytes) = Initiator::start(&alice, Some(carol.secret.public()), 5, &[], [1; 32]).unwrap();
    let (preamble, message) = split(&bytes);
    let Err((error, notice)) = Responder::receive(&bob, preamble, message, 7, [2; 32]) else { panic!() };
    assert_eq!((error, notice), (HandshakeError::Crypto, Some(Notice::RetryXx)));
}

#[test]
fn a_hello_that_names_another_key_is_refused() {
    let (mut alice, bob) = (local(1), local(2));
    let honest = alice.secret.clone();
    let (initiator, _) = Initiator::start(&alice, Some(bob.secret.public()), 5, &[], [1; 32]).unwrap();
    drop(initiator);
    // The hello is built from `secret.public()`, so forge it by hand: carol's key in alice's handshake.
    alice.secret = SecretKey::from_seed(&[3; 32]);
    let forged = alice.hello(5, None, false);
    alice.secret = honest;
    let preamble = Preamble::Handshake {
        pattern: Pattern::Ik,
        versions: alice.versions,
        federation_tag: alice.federation.tag(),
    };
    let preamble = preamble.to_bytes();
    let mut state =
        alice.noise(Pattern::Ik, &preamble, [1; 32], Peer::Responder(Some(bob.secret.public()))).unwrap();
    let message = write(&mut state, &payload(&forged, &[])).unwrap();
    let Err((error, _)) = Responder::receive(&bob, &preamble, &message[2..], 7, [2; 32]) else { panic!() };
    assert_eq!(error, HandshakeError::KeyMismatch);
}

#[test]
fn version_ranges_meet_or_both_are_named() {
    let range = |min, max| Versions { min, max };
    let shake = |a: Versions, b: Versions| {
        let (alice, bob) = (local_speaking(1, a), local_speaking(2, b));
        let (initiator, bytes) =
            Initiator::start(&alice, Some(bob.secret.public()), 5, &[], [1; 32]).unwrap();
        let (preamble, message) = split(&bytes);
        match Responder::receive(&bob, preamble, message, 7, [2; 32]) {
            Ok(Received::Offer(offer)) => {
                let accepted = offer.accept(Early::Drop).unwrap();
                initiator.finish(&accepted.answer[2..]).map(|initiated| {
                    assert_eq!(initiated.session.version(), accepted.session.version());
                    initiated.session.version()
                })
            }
            Err((_, Some(notice))) => Err(initiator.refused(notice)),
            _ => panic!(),
        }
    };
    assert_eq!(shake(range(1, 2), range(1, 1)), Ok(1));
    assert_eq!(shake(range(1, 1), range(1, 2)), Ok(1));
    assert_eq!(shake(range(1, 2), range(1, 2)), Ok(2));
    let refused = shake(range(2, 2), range(1, 1)).unwrap_err();
    assert_eq!(refused, HandshakeError::Versions { ours: range(2, 2), theirs: range(1, 1) });
    assert!(refused.to_string().contains("[2,2]") && refused.to_string().contains("[1,1]"));
}

#[test]
fn a_changed_preamble_breaks_the_handshake() {
    let (alice, bob) =
        (local_speaking(1, Versions { min: 1, max: 2 }), local_speaking(2, Versions { min: 1, max: 2 }));
    let (_, mut bytes) = Initiator::start(&alice, Some(bob.secret.public()), 5, &[], [1; 32]).unwrap();
    bytes[5] = 1; // a man in the middle lowers the newest version to 1
    let (preamble, message) = split(&bytes);
    assert!(Responder::receive(&bob, preamble, message, 7, [2; 32]).is_err());
}

#[test]
fn another_federation_is_refused_in_the_clear() {
    let (mut alice, bob) = (local(1), local(2));
    alice.federation = FederationId::from_bytes([8; 32]);
    let (_, bytes) = Initiator::start(&alice, Some(bob.secret.public()), 5, &[], [1; 32]).unwrap();
    let (preamble, message) = split(&bytes);
    let Err((_, notice)) = Responder::receive(&bob, preamble, message, 7, [2; 32]) else { panic!() };
    assert_eq!(notice, Some(Notice::UnknownFederation));
}

#[test]
fn a_preamble_that_nobody_sealed_for_moves_no_window() {
    let (mut alice, mut bob) = xx();
    let (_, mut forged) = bob.accept_stream(u32::MAX - 1).unwrap();
    assert_eq!(forged.open(&mut [7; 40]), Err(FrameError::Crypto));
    let (_, mut sealer, _) = alice.open_stream().unwrap();
    let (_, mut opener) = bob.accept_stream(2).expect("the window is where it was");
    pass(&mut sealer, &mut opener, FrameKind::Head, b"");
}

#[test]
fn of_two_copies_of_a_stream_one_counts() {
    let (mut alice, mut bob) = xx();
    let (_, mut sealer, _) = alice.open_stream().unwrap();
    let (mut answer, mut first) = bob.accept_stream(2).unwrap();
    let (mut answer_to_copy, mut copy) = bob.accept_stream(2).expect("nothing has opened yet");
    let mut wire = Vec::new();
    sealer.seal(FrameKind::Head, b"once", &mut wire).unwrap();
    assert_eq!(answer.seal(FrameKind::End, b"", &mut Vec::new()), Err(FrameError::Unproven));
    assert_eq!(first.open(&mut wire.clone()[2..]), Ok((FrameKind::Head, &b"once"[..])));
    assert_eq!(answer.seal(FrameKind::End, b"", &mut Vec::new()), Ok(()));
    for _ in 0..2 {
        assert_eq!(copy.open(&mut wire.clone()[2..]), Err(FrameError::Replayed));
    }
    assert_eq!(answer_to_copy.seal(FrameKind::End, b"", &mut Vec::new()), Err(FrameError::Unproven));
}

#[test]
fn a_worn_session_opens_no_streams_and_those_it_has_run_to_their_end() {
    let (mut alice, mut bob) = xx();
    let (_, mut sealer, _) = alice.open_stream().unwrap();
    let (_, mut opener) = bob.accept_stream(2).unwrap();
    alice.keys.sealed.store(SESSION_FRAMES_MAX - 1, Ordering::Relaxed);
    assert!(!alice.is_worn());
    pass(&mut sealer, &mut opener, FrameKind::Head, b"the last that counts");
    assert!(alice.is_worn());
    assert!(matches!(alice.open_stream(), Err(Exhausted)));
    pass(&mut sealer, &mut opener, FrameKind::End, b"");
    assert!(!bob.is_worn() && bob.open_stream().is_ok(), "each side counts what it seals");
}

#[test]
fn a_session_ends_with_its_stream_numbers_and_a_stream_with_its_frames() {
    let (mut alice, mut bob) = xx();
    (alice.next_stream, bob.next_stream) = (Some(u32::MAX - 1), Some(u32::MAX));
    for session in [&mut alice, &mut bob] {
        assert!(session.open_stream().is_ok());
        assert!(matches!(session.open_stream(), Err(Exhausted)));
    }
    let (mut sealer, mut opener) = alice.first_stream();
    (sealer.nonces.next_frame, opener.nonces.next_frame) = (STREAM_FRAMES_MAX, STREAM_FRAMES_MAX);
    assert_eq!(sealer.seal(FrameKind::Data, b"", &mut Vec::new()), Err(FrameError::Exhausted));
    assert_eq!(opener.open(&mut [0; 40]), Err(FrameError::Exhausted));
}

#[test]
#[should_panic(expected = "stream 0 is handed out once")]
fn stream_0_has_one_sealer() {
    let (alice, _) = xx();
    drop((alice.first_stream(), alice.first_stream()));
}

#[test]
fn early_data_after_xx_is_refused() {
    let (alice, bob) = (local(1), local(2));
    let (mut initiator, bytes) = Initiator::start(&alice, None, 5, &[], [1; 32]).unwrap();
    let (preamble, message) = split(&bytes);
    let Ok(Received::Answer(responder, answer)) = Responder::receive(&bob, preamble, message, 7, [2; 32])
    else {
        panic!("no answer")
    };
    read(&mut initiator.state, &answer[2..]).unwrap();
    let third = write(&mut initiator.state, &payload(&alice.hello(5, None, false), &[0, 1, 3])).unwrap();
    assert!(matches!(responder.finish(&third[2..]), Err(HandshakeError::Hello(_))));
}

#[test]
fn the_negative_of_the_expected_key_is_another_key() {
    let (alice, bob) = (local(1), local(2));
    let key = bob.secret.public();
    let mut negative = *key.as_bytes();
    negative[31] ^= 0x80;
    let negative = PublicKey::from_bytes(&negative).unwrap();
    assert_eq!(negative.to_x25519(), key.to_x25519());
    let (initiator, bytes) = Initiator::start(&alice, Some(negative), 5, &[], [1; 32]).unwrap();
    let (preamble, message) = split(&bytes);
    let Ok(Received::Offer(offer)) = Responder::receive(&bob, preamble, message, 7, [2; 32]) else {
        panic!("the x25519 forms are the same")
    };
    let answer = offer.accept(Early::Drop).unwrap().answer;
    assert!(matches!(initiator.finish(&answer[2..]), Err(HandshakeError::KeyMismatch)));
}

/// What a hostile or broken path does with the frames of one stream.
#[derive(Clone, Debug)]
enum Fault {
    Keep,
    Drop,
    Twice,
    Swap,
    Flip(usize),
    Cut(usize),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::Keep),
        1 => Just(Fault::Drop),
        1 => Just(Fault::Twice),
        1 => Just(Fault::Swap),
        1 => any::<usize>().prop_map(Fault::Flip),
        1 => any::<usize>().prop_map(Fault::Cut),
    ]
}

const SESSIONS: usize = 3;
const STREAMS: usize = 4;
const FRAMES: usize = 4;

/// What whoever moves the bytes does: of all frames and stream numbers it has seen, to any end of any stream.
#[derive(Clone, Debug)]
enum Move {
    /// Gives a frame, whole or damaged, to one of the ends that read; the honest delivery is one of these.
    Give { frame: prop::sample::Index, to: prop::sample::Index, damage: Fault },
    /// Gives the next frame that an end waits for.
    Pass { to: prop::sample::Index },
    /// Writes the preamble of a stream once more, in its own session or in another one.
    Copy { stream: usize, session: usize },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let give = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), fault());
    let step = prop_oneof![
        3 => give.prop_map(|(frame, to, damage)| Move::Give { frame, to, damage }),
        4 => any::<prop::sample::Index>().prop_map(|to| Move::Pass { to }),
        1 => (0..STREAMS, 0..SESSIONS).prop_map(|(stream, session)| Move::Copy { stream, session }),
    ];
    proptest::collection::vec(step, 1..120)
}

/// Which way the frames of a stream run. Answers are sealed as requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Request,
    Answer,
}

type Direction = (usize, u32, Way);

/// A frame as it was sealed: where, which one, and its bytes without the length.
struct Sealed {
    of: Direction,
    place: usize,
    bytes: Vec<u8>,
}

/// An end that reads: its direction, how many frames it took, and, for a request, what answers it.
struct End {
    of: Direction,
    taken: usize,
    opener: Opener,
    answers: Option<Sealer>,
}

fn payload_of((session, stream, way): Direction, place: usize) -> Vec<u8> {
    format!("{session} {stream} {way:?} {place}").into_bytes()
}

/// Several sessions of two nodes with several streams each, opened by either node, and all that was ever sealed.
struct World {
    sessions: Vec<(Session, Session)>,
    numbers: Vec<u32>,
    wire: Vec<Sealed>,
    ends: Vec<End>,
}

impl World {
    fn new() -> Self {
        let sessions = (0..SESSIONS).map(|n| xx_drawn(u8::try_from(n).unwrap() + 1)).collect();
        let mut world = Self { sessions, numbers: Vec::new(), wire: Vec::new(), ends: Vec::new() };
        for session in 0..SESSIONS {
            for n in 0..STREAMS {
                let (alice, bob) = &mut world.sessions[session];
                let opener = if n % 2 == 0 { alice } else { bob };
                let (preamble, mut sealer, reader) = opener.open_stream().unwrap();
                let Ok(Preamble::Exchange { stream, .. }) = Preamble::parse(&preamble) else { panic!() };
                (0..FRAMES).for_each(|place| world.seal(&mut sealer, (session, stream, Way::Request), place));
                let of = (session, stream, Way::Answer);
                world.ends.push(End { of, taken: 0, opener: reader, answers: None });
                world.copy(session, stream);
                world.numbers.push(stream);
            }
        }
        world
    }

    fn seal(&mut self, sealer: &mut Sealer, of: Direction, place: usize) {
        let mut bytes = Vec::new();
        sealer.seal(FrameKind::Data, &payload_of(of, place), &mut bytes).unwrap();
        self.wire.push(Sealed { of, place, bytes: bytes.split_off(2) });
    }

    /// A preamble arrives: one more end that may read the stream, unless the number was seen.
    fn copy(&mut self, session: usize, stream: u32) {
        let (alice, bob) = &mut self.sessions[session];
        let receiver = if stream.is_multiple_of(2) { bob } else { alice };
        if let Ok((answers, opener)) = receiver.accept_stream(stream) {
            let of = (session, stream, Way::Request);
            self.ends.push(End { of, taken: 0, opener, answers: Some(answers) });
        }
    }

    /// A frame arrives at an end. Whatever opens is exactly the next one that was sealed for this end.
    fn give(&mut self, bytes: &[u8], to: usize) {
        let end = &mut self.ends[to];
        if let Ok(opened) = end.opener.open(&mut bytes.to_vec()) {
            assert_eq!(opened, (FrameKind::Data, &payload_of(end.of, end.taken)[..]));
            end.taken += 1;
            let (of, place) = ((end.of.0, end.of.1, Way::Answer), end.taken - 1);
            if let Some(mut answers) = end.answers.take() {
                self.seal(&mut answers, of, place);
                self.ends[to].answers = Some(answers);
            }
        }
    }

    fn run(&mut self, step: &Move) {
        match step {
            Move::Give { frame, to, damage } => {
                let mut bytes = self.wire[frame.index(self.wire.len())].bytes.clone();
                match damage {
                    Fault::Flip(at) => {
                        let at = at % bytes.len();
                        bytes[at] ^= 1
                    }
                    Fault::Cut(at) => bytes.truncate(at % bytes.len()),
                    _ => {}
                }
                let to = to.index(self.ends.len());
                self.give(&bytes, to);
            }
            Move::Pass { to } => {
                let to = to.index(self.ends.len());
                let (of, place) = (self.ends[to].of, self.ends[to].taken);
                let next = self.wire.iter().find(|sealed| (sealed.of, sealed.place) == (of, place));
                if let Some(bytes) = next.map(|sealed| sealed.bytes.clone()) {
                    self.give(&bytes, to);
                }
            }
            Move::Copy { stream, session } => self.copy(*session, self.numbers[*stream]),
        }
    }

    /// How many ends read something of each direction: at most one, whatever was copied.
    fn readers(&self) -> BTreeMap<Direction, usize> {
        let mut readers = BTreeMap::new();
        for end in self.ends.iter().filter(|end| end.taken > 0) {
            *readers.entry(end.of).or_default() += 1;
        }
        readers
    }
}

#[test]
fn an_honest_path_brings_every_message_of_every_stream() {
    let mut world = World::new();
    for _ in 0..2 * FRAMES {
        (0..world.ends.len()).for_each(|to| {
            let (of, place) = (world.ends[to].of, world.ends[to].taken);
            let next = world.wire.iter().find(|sealed| (sealed.of, sealed.place) == (of, place));
            if let Some(bytes) = next.map(|sealed| sealed.bytes.clone()) {
                world.give(&bytes, to);
            }
        });
    }
    assert!(world.ends.iter().all(|end| end.taken == FRAMES), "requests and their answers");
    assert_eq!(world.readers().len(), 2 * SESSIONS * STREAMS);
}

proptest! {
    #[test]
    fn a_broken_path_never_yields_a_wrong_message(faults in proptest::collection::vec(fault(), 1..20)) {
        let (alice, bob) = xx();
        let ((mut sealer, _), (_, mut opener)) = (alice.first_stream(), bob.first_stream());
        let frames: Vec<Vec<u8>> = (0..faults.len()).map(|n| {
            let mut wire = Vec::new();
            sealer.seal(FrameKind::Data, &vec![n as u8; n + 1], &mut wire).unwrap();
            wire.split_off(2)
        }).collect();
        let mut sent = Vec::new();
        for (frame, fault) in frames.iter().zip(&faults) {
            match fault {
                Fault::Keep => sent.push(frame.clone()),
                Fault::Drop => {}
                Fault::Twice => sent.extend([frame.clone(), frame.clone()]),
                Fault::Swap => { sent.push(frame.clone()); let end = sent.len(); if end > 1 { sent.swap(end - 1, end - 2) } }
                Fault::Flip(at) => { let mut frame = frame.clone(); let at = at % frame.len(); frame[at] ^= 1; sent.push(frame) }
                Fault::Cut(at) => sent.push(frame[..at % frame.len()].to_vec()),
            }
        }
        for (n, frame) in sent.iter_mut().enumerate() {
            // Whatever opens is exactly the next frame that was sealed.
            let Ok(opened) = opener.open(frame) else { break };
            prop_assert_eq!(opened, (FrameKind::Data, &vec![n as u8; n + 1][..]));
        }
    }

    #[test]
    fn no_path_mixes_streams_or_sessions_up(moves in moves()) {
        let mut world = World::new();
        for step in &moves {
            world.run(step);
            let readers = world.readers();
            prop_assert!(readers.values().all(|count| *count == 1), "{:?}", readers);
        }
    }

    #[test]
    fn no_bytes_make_a_responder_panic(message in proptest::collection::vec(any::<u8>(), 0..300), pattern in 1u8..3) {
        let bob = local(2);
        let pattern = if pattern == 1 { Pattern::Ik } else { Pattern::Xx };
        let preamble = Preamble::Handshake { pattern, versions: bob.versions, federation_tag: bob.federation.tag() };
        let outcome = Responder::receive(&bob, &preamble.to_bytes(), &message, 1, [2; 32]);
        prop_assert!(!matches!(outcome, Ok(Received::Offer(_))));
        let _ = parse_plain_frames(&message);
        let _ = parse_payload(&message);
    }
}
