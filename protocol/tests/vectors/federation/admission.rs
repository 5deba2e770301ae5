//! Invitations, codes, join requests, welcomes and discovery secrets (SPEC §9.7 to §9.10).

use super::{
    acts::{History, admit, removal},
    *,
};

pub(super) fn invitation(steward: &Person) -> Fields {
    fields([
        ("federation", b(federation().as_bytes())),
        ("federation_name", t("home")),
        ("invite_key", b(invite_key().public().as_bytes())),
        ("role", t("member")),
        ("uses", n(1)),
        ("expires_ms", n(NOW_MS + HOUR_MS)),
        ("until_ms", Ipld::Null),
        ("author", b(steward.id().as_bytes())),
        ("key_seq", n(steward.log.seq())),
        ("note", Ipld::Null),
    ])
}

pub(super) fn sign_invite(steward: &Person, payload: &Fields) -> Envelope {
    sign("kos/invite/1", &federation(), &steward.key(), &steward.key(), &encoded(payload))
}

pub(super) fn proof(key: &SecretKey, federation: &FederationId, person: &Person) -> Ipld {
    let signed = [b"kos/join/1".as_slice(), federation.as_bytes(), &HASH, person.id().as_bytes()].concat();
    m([("handshake_hash", b(HASH)), ("signature", b(key.sign(&signed)))])
}

pub fn invitations() -> Vec<Value> {
    let good = invitation(&ann());
    let vector = |name: &str, payload: &Fields, valid: bool| {
        let shown = json!({"name": name, "spec": "§9.7", "valid": valid});
        merged(sign_invite(&ann(), payload).shown, shown)
    };
    let taken = |name: &str, payload: &Fields| {
        merged(vector(name, payload, true), json!({"cddl": {"payload": "invite"}}))
    };
    let refused =
        |name: &str, field: &str, value: Option<Ipld>| vector(name, &but(&good, [(field, value)]), false);
    let stray = |name: &str, signer: &SecretKey, federation: &FederationId| {
        let envelope = sign("kos/invite/1", federation, signer, &ann().key(), &encoded(&good));
        let id = sign_invite(&ann(), &good).id;
        let shown = json!({
            "name": name, "spec": "§9.7", "valid": false, "genuine": false,
            "federation": hex(self::federation().as_bytes()), "id": hex(id.as_bytes()),
        });
        merged(envelope.shown, shown)
    };
    let long = "n".repeat(WHY_BYTES_MAX);
    vec![
        taken("an invitation", &good),
        taken(
            "with an end and a note",
            &but(&good, [("until_ms", Some(n(NOW_MS))), ("note", Some(t(&long)))]),
        ),
        taken("with a field of a later version", &but(&good, [("motto", Some(t("later")))])),
        taken("as often as possible", &but(&good, [("uses", Some(n(INVITE_USES_MAX.into())))])),
        refused("no uses", "uses", Some(n(0))),
        refused("too many uses", "uses", Some(n(u64::from(INVITE_USES_MAX) + 1))),
        refused("a note too long", "note", Some(t(&format!("{long}n")))),
        refused("a role that there is not", "role", Some(t("king"))),
        refused("for another federation inside", "federation", Some(b([1; 32]))),
        refused("`until_ms` left out instead of null", "until_ms", None),
        refused("`note` left out instead of null", "note", None),
        refused("a one-time key that is no key", "invite_key", Some(b([2; 32]))),
        merged(
            refused("above its limit", "federation_name", Some(t(&"h".repeat(1024)))),
            json!({"genuine": false}),
        ),
        stray("signed by another key", &key(99), &federation()),
        stray("signed for another federation", &ann().key(), &FederationId::from_bytes([1; 32])),
    ]
}

fn code(prefix: &str, version: u8, parts: &[u8]) -> String {
    let mut payload = [&[version], parts].concat();
    let sum = sha256(&[prefix.as_bytes(), &payload].concat());
    payload.extend(&sum[..4]);
    format!("{prefix}{}", data_encoding::BASE32_NOPAD.encode(&payload).to_lowercase())
}

pub fn codes() -> Vec<Value> {
    const JOIN: &str = "kai:join/";
    const RELAY: &str = "kai:relay/";
    let addresses = ["/ip4/203.0.113.7/udp/4001/quic-v1", "/ip6/2001:db8::7/tcp/4001"];
    let invite = sign_invite(&ann(), &invitation(&ann()));
    let joining = |seed: &SecretKey, issuer: &SecretKey, invite: &[u8], addresses: &[&str]| {
        let parts = [b(*seed.to_seed()), b(issuer.public().as_bytes()), b(invite), texts(addresses)];
        cbor::encode(&Ipld::List(parts.to_vec()))
    };
    let good = joining(&invite_key(), &ann().key(), &invite.bytes, &addresses);
    let relay = |name: &str, log: Ipld, token: &[u8], addresses: &[&str]| {
        cbor::encode(&Ipld::List(vec![t(name), log, texts(addresses), b(token)]))
    };
    let line = relay("harbour", dan().rotated().events(), &[6; 16], &addresses);
    let taken = |name: &str, text: String, parts: &[u8], rule: &str| json!({"name": name, "spec": "§9.8", "text": text, "cbor": hex(parts), "valid": true, "cddl": {"cbor": rule}});
    let refused =
        |name: &str, text: String| json!({"name": name, "spec": "§9.8", "text": text, "valid": false});
    let join = |name: &str, parts: Vec<u8>| refused(name, code(JOIN, 1, &parts));
    let text = code(JOIN, 1, &good);
    let wrapped = format!(" {}\r\n{}\n", &text[..40], &text[40..]);
    let mut typo = text.clone();
    typo.replace_range(text.len() - 1.., if text.ends_with('a') { "b" } else { "a" });
    let mut forged = invite.bytes.clone();
    *forged.last_mut().unwrap() ^= 1;
    vec![
        taken("an invitation code", text.clone(), &good, "join-code"),
        taken("in upper case", text.to_uppercase(), &good, "join-code"),
        taken("wrapped", wrapped, &good, "join-code"),
        taken("a relay line", code(RELAY, 1, &line), &line, "relay-line"),
        refused("a typing error", typo),
        refused("cut off", text[..text.len() - 5].to_owned()),
        refused("nothing behind the prefix", JOIN.to_owned()),
        refused("a letter outside base32", format!("{JOIN}1")),
        refused("the checksum of the other prefix", code(RELAY, 1, &good).replace(RELAY, JOIN)),
        refused("a later version", code(JOIN, 2, &good)),
        refused("another prefix", code("kai:other/", 1, &good)),
        refused("too long", format!("{JOIN}{}", "a".repeat(4096))),
        join("a seed that does not fit", joining(&key(78), &ann().key(), &invite.bytes, &addresses)),
        join(
            "an issuer's key that did not sign",
            joining(&invite_key(), &bob().key(), &invite.bytes, &addresses),
        ),
        join("a forged invitation", joining(&invite_key(), &ann().key(), &forged, &addresses)),
        join("too many addresses", joining(&invite_key(), &ann().key(), &invite.bytes, &["/x"; 7])),
        join("an empty address", joining(&invite_key(), &ann().key(), &invite.bytes, &[""])),
        join("an address with a space", joining(&invite_key(), &ann().key(), &invite.bytes, &["/ip4/ 1"])),
        join("a part missing", cbor::encode(&Ipld::List(vec![b([1; 32])]))),
        refused("a relay line with a token of 15 bytes", {
            code(RELAY, 1, &relay("harbour", dan().events(), &[6; 15], &addresses))
        }),
        refused("a relay line with a name that is none", {
            code(RELAY, 1, &relay("No", dan().events(), &[6; 16], &addresses))
        }),
        refused("a relay line without a key log", {
            code(RELAY, 1, &relay("harbour", blobs::<[u8; 0]>([]), &[6; 16], &addresses))
        }),
    ]
}

fn requests() -> Vec<Value> {
    let invite = sign_invite(&ann(), &invitation(&ann()));
    let good = fields([
        ("federation", b(federation().as_bytes())),
        ("name", t("dan")),
        ("key_log", dan().events()),
        ("invite", b(&invite.bytes)),
        ("proof", proof(&invite_key(), &federation(), &dan())),
    ]);
    let vector = |name: &str, request: &Fields, refusal: Option<&str>| {
        json!({
            "name": name, "spec": "§9.9", "kind": "join-request", "genesis": hex(encoded(&charter())),
            "now_ms": NOW_MS, "handshake_hash": hex(HASH), "session_key": hex(dan().key().public().as_bytes()),
            "cbor": hex(encoded(request)), "refusal": refusal, "valid": refusal.is_none(),
            "cddl": {"cbor": "join-request"},
        })
    };
    let refused = |name: &str, field: &str, value: Ipld, word: &str| {
        vector(name, &but(&good, [(field, Some(value))]), Some(word))
    };
    let invited = |name: &str, field: &str, value: Ipld, word: &str| {
        let payload = but(&invitation(&ann()), [(field, Some(value))]);
        refused(name, "invite", b(sign_invite(&ann(), &payload).bytes), word)
    };
    let mut forged = invite.bytes.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut broken = dan().rotated().log.to_list();
    *broken[1].last_mut().unwrap() ^= 1;
    let elsewhere = [1; 32];
    let by_stranger = sign_invite(&bob(), &invitation(&bob()));
    let shapeless = |name: &str, field: &str, value: Option<Ipld>| {
        let bytes = encoded(&but(&good, [(field, value)]));
        json!({
            "name": name, "spec": "§9.9", "kind": "malformed-request", "cbor": hex(bytes), "valid": false,
            "cddl_refuses": {"cbor": "join-request"},
        })
    };
    vec![
        vector("a join request", &good, None),
        refused("for another federation", "federation", b(elsewhere), "other-federation"),
        refused("a name that is none", "name", t("Dan"), "name"),
        refused(
            "the proof of another session",
            "proof",
            {
                let signed =
                    [b"kos/join/1".as_slice(), federation().as_bytes(), &[6; 32], dan().id().as_bytes()]
                        .concat();
                m([("handshake_hash", b([6; 32])), ("signature", b(invite_key().sign(&signed)))])
            },
            "forged",
        ),
        refused(
            "the proof of another newcomer",
            "proof",
            proof(&invite_key(), &federation(), &eve()),
            "forged",
        ),
        refused("a proof by another key", "proof", proof(&key(78), &federation(), &dan()), "forged"),
        refused("an altered invitation", "invite", b(forged), "forged"),
        refused("no invitation", "invite", b([]), "forged"),
        refused("an invitation by nobody known", "invite", b(by_stranger.bytes), "issuer-gone"),
        refused("a key log that does not verify", "key_log", blobs(broken), "key-log"),
        refused("no key log", "key_log", blobs::<[u8; 0]>([]), "key-log"),
        refused(
            "a key log whose last key is not the session's",
            "key_log",
            dan().rotated().events(),
            "key-log",
        ),
        invited("an invitation that is over", "expires_ms", n(NOW_MS), "expired"),
        invited(
            "an invitation with a key of the steward's that nobody knows",
            "key_seq",
            n(1),
            "issuer-gone",
        ),
        shapeless("no proof", "proof", None),
        shapeless("a proof of another shape", "proof", Some(n(1))),
        shapeless("a key log that is no list", "key_log", Some(n(1))),
    ]
}

fn welcomes() -> Vec<Value> {
    let mut h = History::household("", "§9.9");
    h.by(&ann(), admit(&dan(), "member"));
    let acts: Vec<Vec<u8>> = h.acts.iter().map(|act| unhex(&act["envelope"])).collect();
    let secret = sign_secret(&ann(), &secret(0, [9; 32], &ann()));
    let good = fields([
        ("genesis", b(encoded(&charter()))),
        ("acts", blobs(&acts)),
        ("key_logs", Ipld::List(vec![cem().rotated().events()])),
        ("secret", b(&secret.bytes)),
    ]);
    let vector = |name: &str, welcome: &Fields, me: &Person, valid: bool| {
        json!({
            "name": name, "spec": "§9.9", "kind": "welcome", "now_ms": NOW_MS, "invited_to": hex(federation().as_bytes()),
            "me": me.id().to_string(), "cbor": hex(encoded(welcome)), "valid": valid, "cddl": {"cbor": "welcome"},
        })
    };
    let changed = |name: &str, field: &str, value: Ipld, valid: bool| {
        vector(name, &but(&good, [(field, Some(value))]), &dan(), valid)
    };
    let mut altered = acts.clone();
    *altered[2].last_mut().unwrap() ^= 1;
    let other = but(&charter(), [("nonce", Some(b([8; 32])))]);
    let mut forged = secret.bytes.clone();
    *forged.last_mut().unwrap() ^= 1;
    vec![
        vector("a welcome", &good, &dan(), true),
        changed("no secret yet", "secret", Ipld::Null, true),
        changed("a secret that does not hold is left out", "secret", b(forged), true),
        changed(
            "a key log that does not hold is left out",
            "key_logs",
            Ipld::List(vec![eve().events()]),
            true,
        ),
        vector("one that does not admit", &good, &eve(), false),
        changed("without the admission", "acts", blobs(&acts[..2]), false),
        changed("with an act that is refused", "acts", blobs(altered), false),
        changed("into another federation", "genesis", b(encoded(&other)), false),
        changed("without a genesis", "genesis", b([]), false),
        json!({
            "name": "`secret` left out instead of null", "spec": "§9.9", "kind": "malformed-welcome", "valid": false,
            "cbor": hex(encoded(&but(&good, [("secret", None)]))), "cddl_refuses": {"cbor": "welcome"},
        }),
    ]
}

pub fn joining() -> Vec<Value> {
    [requests(), welcomes()].concat()
}

fn secret(epoch: u64, content: [u8; 32], author: &Person) -> Fields {
    fields([
        ("epoch", n(epoch)),
        ("secret", b(content)),
        ("author", b(author.id().as_bytes())),
        ("key_seq", n(author.log.seq())),
    ])
}

fn sign_secret(author: &Person, payload: &Fields) -> Envelope {
    sign("kos/discovery-secret/1", &federation(), &author.key(), &author.key(), &encoded(payload))
}

fn topic(secret: &[u8; 32], name: &str, day: u64) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret).unwrap();
    mac.update(&[name.as_bytes(), &[0], &day.to_be_bytes()].concat());
    hex(mac.finalize().into_bytes())
}

/// Secrets as they arrive at a member of a household in which one removal is known; `used` is the one in use afterwards.
pub fn secrets() -> Vec<Value> {
    let mut h = History::household("", "§9.10");
    h.by(&ann(), removal("expel", &cem()));
    let acts: Vec<Value> = h.acts.iter().map(|act| act["envelope"].clone()).collect();
    let mut order = [[9; 32], [10; 32]];
    order.sort_by_key(|content| sha256(content));
    let [small, great] = order;
    let steps = [
        ("a secret", ann(), secret(0, great, &ann()), None, true),
        ("of one epoch the smaller hash wins", bob(), secret(0, small, &bob()), None, true),
        ("the greater hash does not", ann(), secret(0, great, &ann()), None, false),
        ("signed by another key", ann(), secret(1, great, &ann()), Some(key(99)), false),
        ("by a member that is no steward", cem(), secret(1, great, &cem()), None, false),
        ("ahead of the removals known", ann(), secret(2, great, &ann()), None, false),
        (
            "with another key number",
            ann(),
            but(&secret(1, great, &ann()), [("key_seq", Some(n(1)))]),
            None,
            false,
        ),
        ("of 31 bytes", ann(), but(&secret(1, great, &ann()), [("secret", Some(b([9; 31])))]), None, false),
        ("the higher epoch wins", ann(), secret(1, great, &ann()), None, true),
    ];
    let mut used = None;
    let mut vectors: Vec<Value> = Vec::new();
    for (name, author, payload, signer, taken) in steps {
        let domain = "kos/discovery-secret/1";
        let signer = signer.unwrap_or_else(|| author.key());
        let envelope = sign(domain, &federation(), &signer, &author.key(), &encoded(&payload));
        if taken {
            used = Some(envelope.shown["id"].clone());
        }
        let shape = if name == "of 31 bytes" { "cddl_refuses" } else { "cddl" };
        let shown = json!({
            "name": name, "spec": "§9.10", "kind": "secret", "genesis": hex(encoded(&charter())), "before": acts,
            "now_ms": NOW_MS, "valid": taken, "used": used, shape: {"payload": "discovery-secret"},
        });
        vectors.push(merged(envelope.shown, shown));
    }
    for (name, day) in [("items", 20_833), ("items", 0), ("", u64::MAX)] {
        vectors.push(json!({
            "name": format!("the topic `{name}` on day {day}"), "spec": "§9.10", "kind": "topic", "secret": hex([9; 32]),
            "topic_name": name, "day": day, "topic": topic(&[9; 32], name, day),
        }));
    }
    vectors
}
