//! The contract's own rules; those of schemas, bodies and files are tested beside them.

use super::*;
use kos_protocol::{cbor, id::MemberId, limits::RECORD_BYTES_MAX};
use proptest::prelude::*;

pub(crate) fn contract() -> Contract {
    Contract {
        name: "notes".to_owned(),
        version: Version::new(1, 2, 0),
        agent: "kBridge:notes".parse().unwrap(),
        methods: vec![
            method("GET", "/notes/{id}", None, Some(r#"{"type":"object"}"#)),
            method("POST", "/notes", Some(r#"{"required":["title"],"type":"object"}"#), None),
        ],
        fallbacks: vec![route(7)],
        security: Security {
            callers: vec![Caller::Member, Caller::Steward],
            early_data: false,
            idempotency: Idempotency::Accepted,
        },
        tags: vec!["notes".to_owned(), "text".to_owned()],
        description: "Notes of the household".to_owned(),
        hints: Hints {
            price: Some(Price { amount: 2, unit: "cent".to_owned() }),
            calls_per_minute: NonZeroU32::new(60),
        },
    }
}

pub(crate) fn method(method: &str, path: &str, request: Option<&str>, reply: Option<&str>) -> Method {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Method { method: method.to_owned(), path: path.to_owned(), request: owned(request), reply: owned(reply) }
}

fn route(n: u8) -> Route {
    Route { agent: "kBridge:notes".parse().unwrap(), member: MemberId::from_bytes([n; 32]) }
}

/// What the check says of a contract that was altered.
fn refusal(alter: impl FnOnce(&mut Contract)) -> String {
    let mut contract = contract();
    alter(&mut contract);
    contract.check().unwrap_err().to_string()
}

#[test]
fn a_contract_passes_and_comes_back_as_it_was() {
    let contract = contract();
    assert_eq!(*contract.check().unwrap().contract(), contract);
    let bytes = cbor::encode(&contract);
    assert_eq!(cbor::decode_canonical::<Contract>(&bytes, CONTRACT_BYTES_MAX).unwrap(), contract);
    let least = Contract {
        methods: vec![method("GET", "/", None, None)],
        fallbacks: Vec::new(),
        tags: Vec::new(),
        description: String::new(),
        hints: Hints::default(),
        ..contract
    };
    assert!(least.check().is_ok());
}

#[test]
fn the_longest_contract_leaves_room_for_the_rest_of_a_record() {
    // Envelope: a list head, the protected header, an empty map, the payload's head, a signature with its head. Header:
    // seven names with their heads, the author, five numbers, the longest slot.
    let envelope = 1 + 4 + 1 + 3 + 66;
    let names = ["author", "key_seq", "slot", "seq", "time_ms", "expires_ms", "contract"];
    let header = 1 + names.map(|name| 1 + name.len()).iter().sum::<usize>() + 34 + 4 * 9 + 2 + 32;
    assert!(CONTRACT_BYTES_MAX + envelope + header <= RECORD_BYTES_MAX);
}

#[test]
fn each_part_has_its_bound_and_its_place() {
    let name = |name: &str| refusal(|c| c.name = name.to_owned());
    let bad = "is not a name: 1 to 32 of a-z, 0-9 and `-`, starting and ending with a letter or digit";
    assert_eq!(name("Notes"), format!("name: `Notes` {bad}"));
    assert_eq!(name("n\u{43e}tes"), format!("name: `n\\u{{43e}}tes` {bad}"), "a Cyrillic o");
    assert_eq!(name("no\u{200b}tes"), format!("name: `no\\u{{200b}}tes` {bad}"));
    assert_eq!(refusal(|c| c.tags[1] = "a b".to_owned()), format!("tags[1]: `a b` {bad}"));
    assert_eq!(refusal(|c| c.tags[1] = "notes".to_owned()), "tags[1]: `notes` is there twice");
    assert_eq!(
        refusal(|c| c.tags = (0..17).map(|n| format!("tag-{n}")).collect()),
        "tags: 17 entries, must be 0 to 16"
    );
    let long = format!("1.0.0-{}", "a".repeat(59));
    assert_eq!(refusal(|c| c.version = long.parse().unwrap()), "version: 65 bytes, must be 5 to 64");
    assert_eq!(refusal(|c| c.description = "a".repeat(513)), "description: 513 bytes, must be 0 to 512");
    let text = "holds a control, an invisible or a direction-changing character";
    for unsafe_one in ["\u{1b}[2J", "\u{202e}", "\u{200b}", "a\nb"] {
        assert_eq!(refusal(|c| c.description = unsafe_one.to_owned()), format!("description: {text}"));
    }
    let unit = |unit: &str| refusal(|c| c.hints.price = Some(Price { amount: 1, unit: unit.to_owned() }));
    assert_eq!(unit("c\u{2066}"), format!("hints.price.unit: {text}"));
    assert_eq!(unit(""), "hints.price.unit: 0 bytes, must be 1 to 64");
    assert_eq!(
        refusal(|c| c.fallbacks = (0..5).map(route).collect()),
        "fallbacks: 5 entries, must be 0 to 4"
    );
    assert_eq!(
        refusal(|c| c.fallbacks = vec![route(1), route(1)]),
        format!("fallbacks[1]: `{}` is there twice", route(1))
    );
}

#[test]
fn calls_are_told_apart() {
    assert_eq!(refusal(|c| c.methods.clear()), "methods: 0 entries, must be 1 to 16");
    assert_eq!(
        refusal(|c| c.methods = (0..17).map(|n| method("GET", &format!("/{n}"), None, None)).collect()),
        "methods: 17 entries, must be 1 to 16"
    );
    assert_eq!(
        refusal(|c| c.methods[0].method = "get".to_owned()),
        "methods[0].method: `get` is no method of a call: upper case letters, never CONNECT, TRACE or TRACK"
    );
    assert_eq!(
        refusal(|c| c.methods[1].path = "notes".to_owned()),
        "methods[1].path: `notes` is not a path like `/notes/{id}` or `/files/*`: it does not begin with `/`"
    );
    assert_eq!(
        refusal(|c| c.methods[1] = method("GET", "/notes/{name}", None, None)),
        "methods[1].path: `GET /notes/{id}` is there twice"
    );
    assert_eq!(
        refusal(|c| c.methods[0].request = Some("true".to_owned())),
        "methods[0].request: a GET has no body to describe"
    );
    assert_eq!(
        refusal(|c| c.methods[0].method = "HEAD".to_owned()),
        "methods[0].reply: a reply to HEAD has no body to describe"
    );
    assert_eq!(
        refusal(|c| c.methods[1].request = Some(r#"{"properties":{"a":{"tipe":"string"}}}"#.to_owned())),
        "methods[1].request, /properties/a/tipe: `tipe` is no keyword that a contract may use"
    );
}

#[test]
fn a_contract_does_not_stand_in_for_itself() {
    let own = contract();
    assert!(own.check_by(MemberId::from_bytes([1; 32])).is_ok());
    // The same agent id at another member is another agent; at the author it is the contract's own.
    let refused = Contract { fallbacks: vec![route(8), route(7)], ..own }.check_by(route(7).member);
    assert_eq!(
        refused.unwrap_err().to_string(),
        format!("fallbacks[1]: `{}` is the route of the contract itself", route(7))
    );
}

#[test]
fn the_security_declaration_does_not_contradict_itself() {
    assert_eq!(refusal(|c| c.security.callers.clear()), "security.callers: 0 entries, must be 1 to 3");
    let order = "security.callers: not in ascending order, or one of them is there twice";
    assert_eq!(refusal(|c| c.security.callers.reverse()), order);
    assert_eq!(refusal(|c| c.security.callers = vec![Caller::Member; 2]), order);
    assert_eq!(
        refusal(|c| c.security.early_data = true),
        "security.early_data: early data may be replayed, so every method must be GET or HEAD; POST is not"
    );
    let read_only = |idempotency| Contract {
        methods: vec![method("GET", "/", None, None), method("HEAD", "/a", None, None)],
        security: Security { callers: vec![Caller::Relay], early_data: true, idempotency },
        ..contract()
    };
    assert!(read_only(Idempotency::Accepted).check().is_ok());
    assert_eq!(
        read_only(Idempotency::Required).check().unwrap_err().to_string(),
        "security.idempotency: a call that may be early data has no idempotency key that counts, so none can be \
         required"
    );
}

#[test]
fn a_condition_that_is_not_known_is_not_passed_over() {
    let bytes = cbor::encode(&contract());
    let replaced = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        let bytes = [&bytes[..at], to, &bytes[at + from.len()..]].concat();
        cbor::decode_canonical::<Contract>(&bytes, CONTRACT_BYTES_MAX)
    };
    assert!(replaced(b"steward", b"steward").is_ok());
    assert!(replaced(b"steward", b"citizen").is_err(), "a role");
    assert!(replaced(b"accepted", b"rejected").is_err(), "a case");
    // One more field in the declaration, and one more in the contract, which is of a later version and no condition.
    assert!(replaced(b"\xa3\x67callers", b"\xa4\x61a\xf5\x67callers").is_err(), "a condition");
    assert!(replaced(b"\xa9\x64name", b"\xaa\x61a\xf5\x64name").is_ok(), "a field");
}

#[test]
fn all_of_it_together_has_a_bound() {
    let long = format!(r#"{{"description":"{}"}}"#, "a".repeat(1800));
    let contract = Contract {
        methods: vec![method("POST", "/a", Some(&long), None), method("POST", "/b", Some(&long), None)],
        ..contract()
    };
    let size_bytes = cbor::encode(&contract).len();
    assert_eq!(
        contract.check().unwrap_err().to_string(),
        format!("contract: {size_bytes} bytes when encoded, limit 3712; shorten its schemas")
    );
}

#[test]
fn a_range_is_read_as_cargo_reads_it() {
    let satisfies = |range: &str| contract().satisfies(&range.parse().unwrap());
    assert!(["^1", "1.2", ">=1.1, <2", "=1.2.0", "*"].into_iter().all(satisfies));
    assert!(!["^2", "=1.2.1", ">1.2.0", "<1.2.0"].into_iter().any(satisfies));
}

proptest! {
    #[test]
    fn no_bytes_make_the_check_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..256),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut altered = cbor::encode(&contract());
        for (at, byte) in changes {
            let at = at.index(altered.len());
            altered[at] = byte;
        }
        for bytes in [bytes, altered] {
            let Ok(contract) = cbor::decode_message::<Contract>(&bytes, CONTRACT_BYTES_MAX) else { continue };
            match contract.check() {
                Ok(checked) => {
                    for Method { method, path, .. } in &contract.methods {
                        let _ = checked.validate_request(method, path, &bytes);
                        let _ = checked.validate_reply(method, path, 200, b"{\"title\":[1]}");
                    }
                }
                Err(error) => prop_assert!(is_display_safe(&error.to_string())),
            }
        }
    }
}
