//! What a decoder may allocate: a fixed multiple of what arrived, however great the lengths are that the bytes announce.
#![allow(missing_docs, unsafe_code, clippy::unwrap_used)]

use kos_protocol::{
    carry,
    hello::{Hello, Versions},
    id::{AgentId, FederationId, MemberId},
    key::SecretKey,
    key_log::{KeyEvent, KeyLog},
    limits::{
        CARRY_HEADER_BYTES_MAX, FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX, HEAD_BYTES_MAX, KEY_EVENT_BYTES_MAX,
        NOTICE_BYTES_MAX, OUTCOME_BYTES_MAX,
    },
    message::{End, Head, ReplyHead},
    object::{Scope, Unverified},
    outcomes::Row,
    preamble::{Notice, Preamble},
    session::{Local, Responder, parse_plain_frames},
};
use memory::peak;
use proptest::prelude::*;

#[path = "hostile/memory.rs"]
mod memory;

/// Strings are copied once, and an error may quote them.
const COPY: usize = 6;
/// The shortest early frame has three bytes and becomes a kind and an empty vector.
const SMALL_FRAMES: usize = 40;
/// And for an empty input: an error's text, a Noise state.
const BYTES_AT_LEAST: usize = 8 * 1024;

struct Decoder {
    name: &'static str,
    limit: usize,
    /// What it may hold for each byte it was given.
    factor: usize,
    run: fn(&[u8]),
}

fn responder() -> Local {
    Local {
        secret: SecretKey::from_seed(&[2; 32]),
        member: MemberId::from_bytes([2; 32]),
        federation: FederationId::from_bytes([9; 32]),
        versions: Versions::OURS,
        offers: Default::default(),
        wants: Default::default(),
        streams_max: 200,
        agent: "test/0".to_owned(),
    }
}

/// Every way in for bytes of a peer, with its limit. Longer inputs are refused before anything is allocated for them.
const DECODERS: [Decoder; 14] = [
    Decoder { name: "head", limit: HEAD_BYTES_MAX, factor: COPY, run: |bytes| drop(Head::parse(bytes)) },
    Decoder {
        name: "reply head",
        limit: HEAD_BYTES_MAX,
        factor: COPY,
        run: |bytes| drop(ReplyHead::parse(bytes)),
    },
    Decoder { name: "end", limit: HEAD_BYTES_MAX, factor: COPY, run: |bytes| drop(End::parse(bytes)) },
    Decoder { name: "hello", limit: HEAD_BYTES_MAX, factor: COPY, run: |bytes| drop(Hello::parse(bytes)) },
    Decoder {
        name: "notice",
        limit: NOTICE_BYTES_MAX,
        factor: COPY,
        run: |bytes| drop(Notice::parse(bytes)),
    },
    Decoder {
        name: "carry header",
        limit: CARRY_HEADER_BYTES_MAX,
        factor: COPY,
        run: |bytes| drop(carry::Header::parse(bytes)),
    },
    Decoder {
        name: "carry reply",
        limit: HEAD_BYTES_MAX,
        factor: COPY,
        run: |bytes| drop(carry::parse_reply(bytes)),
    },
    Decoder {
        name: "signed object",
        limit: KEY_EVENT_BYTES_MAX,
        factor: COPY,
        run: |bytes| drop(Unverified::<KeyEvent>::parse(bytes, Scope::Global)),
    },
    Decoder {
        name: "key log",
        limit: KEY_EVENT_BYTES_MAX,
        factor: COPY,
        run: |bytes| drop(KeyLog::parse(&[bytes])),
    },
    Decoder {
        name: "early frames",
        limit: FRAME_BYTES_MAX,
        factor: SMALL_FRAMES,
        run: |bytes| drop(parse_plain_frames(bytes)),
    },
    Decoder {
        name: "stored outcome",
        limit: OUTCOME_BYTES_MAX,
        factor: COPY,
        run: |bytes| drop(Row::decode(bytes)),
    },
    Decoder {
        name: "preamble",
        limit: FRAME_BYTES_MAX,
        factor: COPY,
        run: |bytes| assert!(Preamble::parse(bytes).is_err() || bytes.len() < 22),
    },
    Decoder {
        name: "ids",
        limit: FRAME_BYTES_MAX,
        factor: COPY,
        run: |bytes| {
            if let Ok(text) = str::from_utf8(bytes) {
                let _ = (text.parse::<MemberId>(), text.parse::<AgentId>());
            }
        },
    },
    Decoder {
        name: "first handshake message",
        limit: HANDSHAKE_BYTES_MAX,
        factor: COPY,
        run: |bytes| {
            let tag = FederationId::from_bytes([9; 32]).tag();
            for pattern in [1, 2] {
                let preamble = [&[1, pattern, 0, 1, 0, 1][..], &tag].concat();
                let _ = Responder::receive(&responder(), &preamble, bytes, 1, [1; 32]);
            }
        },
    },
];

fn check(bytes: &[u8]) {
    for Decoder { name, limit, factor, run } in DECODERS {
        let held = peak(|| run(bytes));
        let allowed = BYTES_AT_LEAST + factor * bytes.len().min(limit);
        assert!(held <= allowed, "{name}: held {held} bytes for {} of input, allowed {allowed}", bytes.len());
    }
}

#[test]
fn the_counter_counts() {
    let held = peak(|| vec![0_u8; 1_000_000]);
    assert!((1_000_000..1_100_000).contains(&held), "{held}");
}

#[test]
fn announced_lengths_cost_nothing() {
    for major in [2_u8, 3, 4, 5] {
        for (info, width) in [(24_u8, 1), (25, 2), (26, 4), (27, 8)] {
            let announced = [&[major << 5 | info][..], &vec![0xff; width]].concat();
            check(&announced);
            // Nested as deep as a decoder may be led, each level announcing all there could be.
            check(&announced.repeat(1000));
            check(&[&[0xa1, 0x66][..], b"params", &announced].concat());
        }
    }
}

#[test]
fn full_inputs_cost_a_multiple_of_their_length() {
    for limit in [NOTICE_BYTES_MAX, KEY_EVENT_BYTES_MAX, HEAD_BYTES_MAX, FRAME_BYTES_MAX] {
        // A list of zeros that are there; empty lists; empty maps; short keys; one-byte frames.
        let list = |item: u8| {
            let count = u16::try_from(limit - 3).unwrap();
            [&[0x99][..], &count.to_be_bytes(), &vec![item; usize::from(count)]].concat()
        };
        [0x00, 0x60, 0x80, 0xa0, 0xf6].into_iter().for_each(|item| check(&list(item)));
        let keys: Vec<u8> = (0..u16::try_from(limit / 5).unwrap())
            .flat_map(|n| [&[0x63][..], format!("{:03}", n % 1000).as_bytes(), &[0xf6]].concat())
            .collect();
        check(&[&[0xb9][..], &u16::try_from((limit / 5).min(1000)).unwrap().to_be_bytes(), &keys].concat());
        check(&[0, 1, 2].repeat(limit / 3));
        check(&vec![b'q'; limit]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_cost_more_than_their_length_allows(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        check(&bytes);
    }

    #[test]
    fn no_bytes_that_begin_like_cbor_do_either(
        heads in proptest::collection::vec((0_u8..8, 0_u8..28, any::<u64>()), 0..200),
    ) {
        let bytes: Vec<u8> = heads
            .into_iter()
            .flat_map(|(major, info, argument)| {
                let width = if info < 24 { 0 } else { 1 << (info - 24) };
                [&[major << 5 | info][..], &argument.to_be_bytes()[8 - width..]].concat()
            })
            .collect();
        check(&bytes);
    }
}
