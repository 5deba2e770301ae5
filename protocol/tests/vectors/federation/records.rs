//! Records and items (SPEC §9.11, §9.12).

use super::{
    acts::{History, admit},
    *,
};

fn common(author: &Person, seq: u64) -> Fields {
    fields([
        ("author", b(author.id().as_bytes())),
        ("key_seq", n(author.log.seq())),
        ("seq", n(seq)),
        ("time_ms", n(NOW_MS)),
        ("expires_ms", n(NOW_MS + HOUR_MS)),
    ])
}

fn node_record(author: &Person, seq: u64) -> Fields {
    let mut record = common(author, seq);
    record.extend(fields([
        ("name", t(author.name)),
        ("addresses", texts(&["/ip4/203.0.113.7/udp/4001/quic-v1"])),
        ("relays", blobs([bob().id().as_bytes()])),
        ("version", t("0.1.0")),
        ("features", texts(&["carry"])),
    ]));
    record
}

fn cert(author: &Person) -> Fields {
    fields([
        ("agent_key", b(key(50).public().as_bytes())),
        ("agent", t("kBridge:notes")),
        ("capabilities", texts(&["http"])),
        ("not_before_ms", n(NOW_MS)),
        ("until_ms", n(NOW_MS + 30 * 24 * HOUR_MS)),
        ("member", b(author.id().as_bytes())),
        ("key_seq", n(author.log.seq())),
    ])
}

fn agent_record(author: &Person, cert: Ipld) -> Fields {
    let mut record = common(author, NOW_MS);
    record.extend(fields([
        ("slot", t("kBridge:notes")),
        ("cert", cert),
        ("capabilities", Ipld::List(vec![m([("name", t("http")), ("version", t("1.1.0"))])])),
        ("description", t("shared notes")),
        ("protocol", t("http")),
    ]));
    record
}

/// The kinds of this version.
const KINDS: [&str; 5] = ["node-record", "agent-record", "link-record", "suspect-record", "service-record"];

/// Shows a record; the one known author is ann, under its first key.
fn record(name: &str, kind: &str, signer: &SecretKey, payload: &Fields, valid: bool) -> Value {
    let domain = format!("kos/{kind}/1");
    let envelope = sign(&domain, &federation(), signer, &ann().key(), &encoded(payload));
    let shown = json!({
        "name": name, "spec": "§9.11", "kind": kind, "author": ann().id().to_string(), "key_seq": 0,
        "now_ms": NOW_MS, "valid": valid, "cddl": {},
    });
    let mut vector = merged(envelope.shown, shown);
    if valid && KINDS.contains(&kind) {
        vector["cddl"]["payload"] = kind.into();
    }
    vector
}

fn node_records() -> Vec<Value> {
    let good = node_record(&ann(), NOW_MS);
    let taken = |name: &str, payload: &Fields| record(name, "node-record", &ann().key(), payload, true);
    let refused = |name: &str, field: &str, value: Option<Ipld>| {
        record(name, "node-record", &ann().key(), &but(&good, [(field, value)]), false)
    };
    vec![
        taken("a node record", &good),
        taken("with a field of a later version", &but(&good, [("motto", Some(t("later")))])),
        taken(
            "made a little ahead of the reader's clock",
            &but(
                &good,
                [("time_ms", Some(n(NOW_MS + SKEW_MS))), ("expires_ms", Some(n(NOW_MS + SKEW_MS + HOUR_MS)))],
            ),
        ),
        taken("with the longest life", &but(&good, [("expires_ms", Some(n(NOW_MS + RECORD_LIFE_MS_MAX)))])),
        refused("from the future", "seq", Some(n(NOW_MS + SKEW_MS + 1))),
        refused("made in the future", "time_ms", Some(n(NOW_MS + SKEW_MS + 1))),
        refused("expired", "expires_ms", Some(n(NOW_MS))),
        refused("expires before it was made", "expires_ms", Some(n(NOW_MS - 1))),
        refused("a life too long", "expires_ms", Some(n(NOW_MS + RECORD_LIFE_MS_MAX + 1))),
        refused("of nobody known", "author", Some(b(dan().id().as_bytes()))),
        refused("with a replaced or unknown key", "key_seq", Some(n(1))),
        refused("in a slot", "slot", Some(t("second"))),
        refused("a name that is none", "name", Some(t("Ann"))),
        refused("too many addresses", "addresses", Some(texts(&["/x"; ADDRESSES_MAX + 1]))),
        refused("an address with a control character", "addresses", Some(texts(&["/\u{1b}"]))),
        refused("too many relays", "relays", Some(blobs([[1; 32]; ADDRESSES_MAX + 1]))),
        refused("a version that is none", "version", Some(t("1.0"))),
        taken("of a node that was stopped on purpose", &but(&good, [("left", Some(Ipld::Bool(true)))])),
        refused("a `left` that is none", "left", Some(n(1))),
        refused("a feature with a space", "features", Some(texts(&["two words"]))),
        refused("no features", "features", None),
        record("signed by another key", "node-record", &key(99), &good, false),
        merged(record("signed as another kind", "node-record", &ann().key(), &good, false), {
            let envelope =
                sign("kos/agent-record/1", &federation(), &ann().key(), &ann().key(), &encoded(&good));
            json!({"envelope": hex(envelope.bytes), "genuine": false})
        }),
    ]
}

fn agent_records() -> Vec<Value> {
    let certified = |signer: &SecretKey, payload: &Fields| {
        b(sign("kos/agent-cert/1", &federation(), signer, signer, &encoded(payload)).bytes)
    };
    let good = agent_record(&ann(), certified(&ann().key(), &cert(&ann())));
    let shown = |name: &str, payload: &Fields, valid: bool| {
        record(name, "agent-record", &ann().key(), payload, valid)
    };
    let refused =
        |name: &str, field: &str, value: Option<Ipld>| shown(name, &but(&good, [(field, value)]), false);
    let with_cert = |name: &str, field: &str, value: Ipld| {
        let payload = but(&cert(&ann()), [(field, Some(value))]);
        shown(name, &agent_record(&ann(), certified(&ann().key(), &payload)), false)
    };
    let cert_itself =
        sign("kos/agent-cert/1", &federation(), &ann().key(), &ann().key(), &encoded(&cert(&ann())));
    let capability = |name: &str| Some(Ipld::List(vec![m([("name", t(name)), ("version", t("1.1.0"))])]));
    vec![
        shown("an agent record", &good, true),
        shown("a tombstone", &but(&good, [("cert", Some(Ipld::Null))]), true),
        merged(
            cert_itself.shown,
            json!({
                "name": "an agent certificate by itself", "spec": "§9.11", "kind": "agent-cert", "valid": true,
                "cddl": {"payload": "agent-cert"},
            }),
        ),
        refused("`cert` left out instead of null", "cert", None),
        refused("a slot that is no agent id", "slot", Some(t("notes"))),
        refused("no slot", "slot", None),
        refused("a capability the certificate does not name", "capabilities", capability("admin")),
        refused("a capability that is no word", "capabilities", capability("two words")),
        refused("a description with an escape", "description", Some(t("\u{1b}[2J"))),
        refused("a protocol that is no word", "protocol", Some(t(""))),
        shown(
            "a certificate by another key",
            &agent_record(&ann(), certified(&key(99), &cert(&ann()))),
            false,
        ),
        shown("a certificate that is none", &agent_record(&ann(), b([0])), false),
        with_cert("the certificate of another agent", "agent", t("kBridge:other")),
        with_cert("the certificate of another member's agent", "member", b(bob().id().as_bytes())),
        with_cert("the certificate of another key", "key_seq", n(1)),
        with_cert("a certificate that ends before the record", "until_ms", n(NOW_MS + HOUR_MS - 1)),
        with_cert("a certificate that begins later", "not_before_ms", n(NOW_MS + SKEW_MS + 1)),
    ]
}

fn link_records() -> Vec<Value> {
    let link = |peer: &Person, rtt_ms: u64, loss_permille: u64| {
        m([("peer", b(peer.id().as_bytes())), ("rtt_ms", n(rtt_ms)), ("loss_permille", n(loss_permille))])
    };
    let of = |links: Vec<Ipld>| but(&common(&ann(), NOW_MS), [("links", Some(Ipld::List(links)))]);
    let mut in_order = [(bob().id(), link(&bob(), 12, 0)), (dan().id(), link(&dan(), 180, 5))];
    in_order.sort_by_key(|(id, _)| *id);
    let [first, second] = in_order.map(|(_, link)| link);
    let shown =
        |name: &str, payload: &Fields, valid: bool| record(name, "link-record", &ann().key(), payload, valid);
    let good = of(vec![first.clone(), second.clone()]);
    let many = |count: u64| {
        let mut peers: Vec<_> = (0..count).map(|peer| sha256(&peer.to_be_bytes())).collect();
        peers.sort_unstable();
        let link = |peer| m([("peer", b(peer)), ("rtt_ms", n(1)), ("loss_permille", n(0))]);
        of(peers.into_iter().map(link).collect())
    };
    vec![
        shown("the links of a node", &good, true),
        shown("a node without links", &of(vec![]), true),
        shown("as many links as there may be", &many(32), true),
        shown("too many links", &many(33), false),
        shown("links out of order", &of(vec![second, first.clone()]), false),
        shown("a link twice", &of(vec![first.clone(), first]), false),
        shown("a link with itself", &of(vec![link(&ann(), 1, 0)]), false),
        shown("more lost than sent", &of(vec![link(&bob(), 1, 1001)]), false),
        shown("links in a slot", &but(&good, [("slot", Some(t("one")))]), false),
        shown("no links", &but(&good, [("links", None)]), false),
    ]
}

fn suspect_records() -> Vec<Value> {
    let good = but(
        &common(&ann(), NOW_MS),
        [
            ("slot", Some(t(&bob().id().to_string()))),
            ("subject_seq", Some(n(NOW_MS - 1))),
            ("since_ms", Some(n(NOW_MS - 5_000))),
        ],
    );
    let shown = |name: &str, field: &str, value: Option<Ipld>, valid: bool| {
        record(name, "suspect-record", &ann().key(), &but(&good, [(field, value)]), valid)
    };
    vec![
        shown("a suspicion", "since_ms", Some(n(NOW_MS - 5_000)), true),
        shown("a suspicion withdrawn", "since_ms", Some(Ipld::Null), true),
        shown("neither here nor there", "since_ms", None, false),
        shown("since later than it was said", "since_ms", Some(n(NOW_MS + 1)), false),
        shown("of itself", "slot", Some(t(&ann().id().to_string())), false),
        shown("of nobody", "slot", Some(t("bob")), false),
        shown("without the number it is about", "subject_seq", None, false),
    ]
}

fn contract() -> Fields {
    let security = [
        ("callers", texts(&["member", "steward"])),
        ("early_data", Ipld::Bool(false)),
        ("idempotency", t("accepted")),
    ];
    let schema = r#"{"type":"object","required":["title"],"properties":{"title":{"type":"string"}}}"#;
    let read = m([("method", t("GET")), ("path", t("/notes/{id}")), ("reply", t(r#"{"type":"object"}"#))]);
    let write = m([("method", t("POST")), ("path", t("/notes")), ("request", t(schema))]);
    fields([
        ("name", t("notes")),
        ("version", t("1.2.0")),
        ("agent", t("kBridge:notes")),
        ("methods", Ipld::List(vec![read, write])),
        ("fallbacks", texts(&[&format!("kBridge:notes@{}", bob().id())])),
        ("security", m(security)),
        ("tags", texts(&["text"])),
        ("description", t("shared notes")),
        ("hints", m([("price", m([("amount", n(2)), ("unit", t("cent"))])), ("calls_per_minute", n(60))])),
    ])
}

fn service_record(contract: Ipld) -> Fields {
    let mut record = common(&ann(), NOW_MS);
    record.extend(fields([("slot", t("notes")), ("contract", contract)]));
    record
}

fn service_records() -> Vec<Value> {
    let good = contract();
    let shown = |name: &str, payload: &Fields, valid: bool| {
        record(name, "service-record", &ann().key(), payload, valid)
    };
    let of = |fields: &Fields| service_record(Ipld::Map(fields.clone()));
    let with = |name: &str, field: &str, value: Option<Ipld>, valid: bool| {
        let mut vector = shown(name, &of(&but(&good, [(field, value)])), valid);
        vector["spec"] = "§9.16".into();
        vector
    };
    let refused = |name: &str, field: &str, value: Option<Ipld>| with(name, field, value, false);
    let method = |method: &str, path: &str| m([("method", t(method)), ("path", t(path))]);
    let methods = |list: Vec<Ipld>| Some(Ipld::List(list));
    let request =
        |schema: &str| methods(vec![m([("method", t("POST")), ("path", t("/")), ("request", t(schema))])]);
    let security = |callers: &[&str], early_data: bool, idempotency: &str| {
        fields([
            ("callers", texts(callers)),
            ("early_data", Ipld::Bool(early_data)),
            ("idempotency", t(idempotency)),
        ])
    };
    let secured = |fields: Fields| Some(Ipld::Map(fields));
    let one_more = but(&security(&["member"], false, "accepted"), [("motto", Some(t("later")))]);
    let route = |agent: &str, member: &Person| format!("{agent}@{}", member.id());
    vec![
        shown("a service", &of(&good), true),
        shown("a tombstone of a service", &service_record(Ipld::Null), true),
        shown("no contract", &but(&of(&good), [("contract", None)]), false),
        shown("a slot that is not the service's name", &but(&of(&good), [("slot", Some(t("other")))]), false),
        with("a contract with a field of a later version", "motto", Some(t("later")), true),
        with(
            "the same agent id at another member",
            "fallbacks",
            Some(texts(&[&route("kBridge:notes", &dan())])),
            true,
        ),
        with(
            "another agent of its author",
            "fallbacks",
            Some(texts(&[&route("kBridge:second", &ann())])),
            true,
        ),
        refused("its own route as a fallback", "fallbacks", Some(texts(&[&route("kBridge:notes", &ann())]))),
        refused("a fallback twice", "fallbacks", Some(texts(&[route("kBridge:notes", &bob()).as_str(); 2]))),
        refused("a fallback without a member", "fallbacks", Some(texts(&["kBridge:notes"]))),
        refused("a version that is none", "version", Some(t("1.2"))),
        refused("an agent that is none", "agent", Some(t("notes"))),
        refused("no methods", "methods", methods(vec![])),
        refused("a method in lower case", "methods", methods(vec![method("get", "/")])),
        refused("a method that is never passed on", "methods", methods(vec![method("TRACE", "/")])),
        refused("a path that is no pattern", "methods", methods(vec![method("GET", "notes")])),
        refused(
            "two patterns that differ in names alone",
            "methods",
            methods(vec![method("GET", "/{a}"), method("GET", "/{b}")]),
        ),
        refused(
            "a schema of a body that is none",
            "methods",
            methods(vec![m([("method", t("GET")), ("path", t("/")), ("request", t("true"))])]),
        ),
        with("a schema that takes everything", "methods", request("true"), true),
        refused("a schema that is no JSON", "methods", request("{")),
        refused("a keyword that is not of the part", "methods", request(r#"{"tipe":"string"}"#)),
        refused("a schema that has to be fetched", "methods", request(r#"{"$ref":"https://example.com/"}"#)),
        with(
            "for all roles, with a key",
            "security",
            secured(security(&["member", "relay", "steward"], false, "required")),
            true,
        ),
        refused("for nobody", "security", secured(security(&[], false, "accepted"))),
        refused(
            "roles out of order",
            "security",
            secured(security(&["steward", "member"], false, "accepted")),
        ),
        refused("a role that is none", "security", secured(security(&["citizen"], false, "accepted"))),
        refused(
            "early data of a method that may not be replayed",
            "security",
            secured(security(&["member"], true, "accepted")),
        ),
        refused("a case that is none", "security", secured(security(&["member"], false, "perhaps"))),
        refused("a condition of a later version", "security", secured(one_more)),
        refused("a tag twice", "tags", Some(texts(&["text"; 2]))),
        refused("a description with a control character", "description", Some(t("\u{7}"))),
        refused("no calls in a minute", "hints", Some(m([("calls_per_minute", n(0))]))),
        with("no hints", "hints", Some(m([])), true),
    ]
}

fn unknown_records() -> Vec<Value> {
    let later = but(&common(&ann(), NOW_MS), [("slot", Some(t("one"))), ("height_m", Some(n(3)))]);
    let shown = |name: &str, kind: &str, payload: &Fields, valid: bool| {
        record(name, kind, &ann().key(), payload, valid)
    };
    let without = |field: &str| but(&later, [(field, None)]);
    let mut vectors = vec![
        shown("a kind of a later version is kept", "tower-record", &later, true),
        shown("a kind that is no word", "Tower-record", &later, false),
        shown(
            "a slot with a control character",
            "tower-record",
            &but(&later, [("slot", Some(t("\n")))]),
            false,
        ),
        shown("a slot too long", "tower-record", &but(&later, [("slot", Some(t(&"s".repeat(65))))]), false),
        shown("no author", "tower-record", &without("author"), false),
        shown("no time", "tower-record", &without("time_ms"), false),
        merged(
            shown("above its limit", "tower-record", &but(&later, [("height_m", Some(b([0; 4096])))]), false),
            json!({"genuine": false}),
        ),
    ];
    vectors[0]["cddl"]["payload"] = "record".into();
    vectors
}

/// Two records of one slot: which one stays, whichever came first.
fn merges() -> Vec<Value> {
    let signed = |payload: &Fields| {
        let envelope =
            sign("kos/node-record/1", &federation(), &ann().key(), &ann().key(), &encoded(payload));
        (envelope.id, hex(envelope.bytes))
    };
    let (old, new) = (node_record(&ann(), NOW_MS - 1), node_record(&ann(), NOW_MS));
    let tied = but(&new, [("name", Some(t("annex")))]);
    let by_id = |a: &Fields, b: &Fields| if signed(a).0 < signed(b).0 { signed(a).0 } else { signed(b).0 };
    let vector = |name: &str, a: &Fields, b: &Fields, stays: ObjectId| {
        json!({
            "name": name, "spec": "§9.11", "kind": "merge", "record_kind": "node-record", "now_ms": NOW_MS,
            "federation": hex(federation().as_bytes()), "author": ann().id().to_string(), "key_seq": 0,
            "author_key": hex(ann().key().public().as_bytes()),
            "records": [signed(a).1, signed(b).1], "stays": hex(stays.as_bytes()),
        })
    };
    vec![
        vector("the higher number wins", &old, &new, signed(&new).0),
        vector("on a tie the smaller id", &new, &tied, by_id(&new, &tied)),
    ]
}

pub fn records() -> Vec<Value> {
    let known =
        [node_records(), agent_records(), link_records(), suspect_records(), service_records()].concat();
    [known, unknown_records(), merges()].concat()
}

pub fn items() -> Vec<Value> {
    let item = |kind: Ipld, body: Ipld| encoded(&fields([("kind", kind), ("body", body)]));
    let taken = |name: &str, kind: &str, body: &[u8], called: [u8; 32]| {
        json!({
            "name": name, "spec": "§9.12", "item": hex(item(t(kind), b(body))), "kind": kind, "body": hex(body),
            "called": hex(called), "genesis": hex(encoded(&charter())), "now_ms": NOW_MS, "valid": true,
            "cddl": {"item": "item"},
        })
    };
    let refused = |name: &str, bytes: Vec<u8>| json!({"name": name, "spec": "§9.12", "item": hex(bytes), "valid": false});
    let mut h = History::new("", "§9.12");
    let act = h.by(&ann(), admit(&bob(), "steward"));
    let envelope = unhex(&h.acts[0]["envelope"]);
    let log = ann().rotated();
    let events = log.log.to_list();
    let last = sha256(&sig_structure(&aad("kos/key-event/1", None), &event_payload(&events[1])));
    let record = sign(
        "kos/node-record/1",
        &federation(),
        &ann().key(),
        &ann().key(),
        &encoded(&node_record(&ann(), NOW_MS)),
    );
    let later = item(t("poem"), b([1, 2, 3]));
    let act_item = item(t("act"), b(&envelope));
    let with_more = encoded(&fields([("kind", t("poem")), ("body", b([])), ("more", n(1))]));
    vec![
        spread("an act as a gossip message", &act_item),
        answered(
            "items of several kinds",
            false,
            &[("act", &envelope), ("poem", &[1, 2, 3]), ("act", &[])],
            Some(&envelope),
        ),
        answered("items with more to come", true, &[("poem", &[1, 2, 3])], None),
        answered("no items", false, &[], None),
        answered("an item with a field of a later version", false, &[("", &with_more)], None),
        params("asking by name", "fetch", fields([])),
        params("asking for what is behind a place", "fetch", fields([("after", place(&later))])),
        params(
            "what is behind a place",
            "fetched",
            fields([("kinds", texts(&["poem"])), ("last", place(&later))]),
        ),
        params("nothing behind it", "fetched", fields([])),
        params("what was stored", "stored", fields([("stored", n(2))])),
        params(
            "a step of a reconciliation",
            "reconciled",
            fields([("count", n(100_000)), ("secret", b(&envelope))]),
        ),
        taken("an act", "act", &envelope, *act.as_bytes()),
        taken("a node record", "node-record", &record.bytes, *record.id.as_bytes()),
        taken("a key log", "key-log", &cbor::encode(&log.events()), last),
        taken("a kind of a later version", "poem", &[1, 2, 3], sha256(&later)),
        merged(
            taken("with a field of a later version", "poem", &[], sha256(&with_more)),
            json!({"item": hex(&with_more)}),
        ),
        refused("no kind", item(t(""), b([]))),
        refused("a kind that is no word", item(t("Poem"), b([]))),
        refused("a kind too long", item(t(&"p".repeat(33)), b([]))),
        refused("a body that is text", item(t("poem"), t(""))),
        refused("no body", encoded(&fields([("kind", t("poem"))]))),
        refused("bytes behind", [&later[..], &[0]].concat()),
        refused("above its limit", item(t("poem"), b([0; 63_488]))),
    ]
}

/// A message of gossip and its id, on a topic.
fn spread(name: &str, item: &[u8]) -> Value {
    let topic = "00".repeat(32);
    let length = u64::try_from(topic.len()).unwrap().to_be_bytes();
    let id = sha256(&[&length[..], topic.as_bytes(), item].concat());
    json!({
        "name": name, "spec": "§9.12", "kind": "gossip", "topic": topic, "message": hex(item), "message_id": hex(id),
    })
}

/// An answer to `kos.fetch`, or what `kos.push` gives. An item of no kind is whole.
fn answered(name: &str, more: bool, items: &[(&str, &[u8])], secret: Option<&[u8]>) -> Value {
    let mut kinds: Vec<&str> = Vec::new();
    let (mut body, mut whole) = (Vec::new(), Vec::new());
    for (kind, bytes) in items {
        let number = match kinds.iter().position(|other| other == kind) {
            _ if kind.is_empty() => 255,
            Some(number) => number,
            None => {
                kinds.push(kind);
                kinds.len() - 1
            }
        };
        body.push(u8::try_from(number).unwrap());
        body.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        body.extend_from_slice(bytes);
        let item = || encoded(&fields([("kind", t(kind)), ("body", b(bytes))]));
        whole.push(if kind.is_empty() { bytes.to_vec() } else { item() });
    }
    let mut params = fields([("more", Ipld::Bool(more))]);
    params.extend(secret.map(|secret| ("secret".to_owned(), b(secret))));
    if !kinds.is_empty() {
        params.insert("kinds".to_owned(), texts(&kinds));
    }
    json!({
        "name": name, "spec": "§9.13", "kind": "items", "params": hex(encoded(&params)), "more": more,
        "kinds": kinds, "items": whole.iter().map(hex).collect::<Vec<_>>(), "body": hex(body),
        "cddl": {"params": "items", "items": "item"},
    })
}

/// `params` by themselves.
fn params(name: &str, rule: &str, params: Fields) -> Value {
    json!({"name": name, "spec": "§9.13", "kind": rule, "params": hex(encoded(&params)), "cddl": {"params": rule}})
}

fn place(item: &[u8]) -> Ipld {
    m([("name", b(sha256(item))), ("order", n(4_294_967_297))])
}

fn event_payload(envelope: &[u8]) -> Vec<u8> {
    let Ipld::List(parts) = cbor::decode_message::<Ipld>(envelope, 1024).unwrap() else { unreachable!() };
    let Ipld::Bytes(payload) = &parts[2] else { unreachable!() };
    payload.clone()
}
