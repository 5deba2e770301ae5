//! Histories (SPEC §9.3 to §9.7).

use super::{
    admission::{invitation, proof, sign_invite},
    *,
};

fn action(name: &str, content: Fields) -> Vec<u8> {
    encoded(&fields([(name, Ipld::Map(content))]))
}

fn admission(person: &Person, role: &str) -> Fields {
    fields([
        ("member", b(person.id().as_bytes())),
        ("role", t(role)),
        ("name", t(person.name)),
        ("key_log", person.events()),
        ("invite", Ipld::Null),
        ("proof", Ipld::Null),
        ("until_ms", Ipld::Null),
    ])
}

pub(super) fn admit(person: &Person, role: &str) -> Vec<u8> {
    action("admit", admission(person, role))
}

/// `suspend` or `expel`.
pub(super) fn removal(name: &str, person: &Person) -> Vec<u8> {
    action(name, fields([("member", b(person.id().as_bytes())), ("why", t("moved out"))]))
}

/// `release` or `reinstate`.
fn plain(name: &str, person: &Person) -> Vec<u8> {
    action(name, fields([("member", b(person.id().as_bytes()))]))
}

fn rotate(person: &Person, from: usize) -> Vec<u8> {
    let events = blobs(person.log.to_list().split_off(from));
    action("rotate", fields([("member", b(person.id().as_bytes())), ("events", events)]))
}

fn revoke(invite: &Envelope) -> Vec<u8> {
    action("revoke", fields([("invite", b(invite.id.as_bytes()))]))
}

#[derive(Clone)]
struct Draft {
    payload: Fields,
    federation: FederationId,
    signer: SecretKey,
    key: SecretKey,
}

/// A history: acts in the order in which they arrive at somebody who knows only the genesis.
pub(super) struct History {
    vector: Value,
    pub(super) acts: Vec<Value>,
    /// What the next act follows: the heads and the greatest `seq` among them.
    at: (Vec<ObjectId>, u64),
    now_ms: u64,
}

impl History {
    pub(super) fn new(name: &str, spec: &str) -> Self {
        let vector = json!({
            "name": name, "spec": spec, "genesis": hex(encoded(&charter())),
            "id": hex(federation().as_bytes()), "now_ms": NOW_MS,
        });
        Self { vector, acts: Vec::new(), at: (Vec::new(), 0), now_ms: NOW_MS }
    }

    /// With ann, the founder, and bob, another steward, and cem, a member.
    pub(super) fn household(name: &str, spec: &str) -> Self {
        let mut history = Self::new(name, spec);
        history.by(&ann(), admit(&bob(), "steward"));
        history.by(&ann(), admit(&cem(), "member"));
        history
    }

    fn draft(&self, author: &Person, action: Vec<u8>) -> Draft {
        let (prev, seq) = &self.at;
        let payload = fields([
            ("seq", n(seq + 1)),
            ("prev", blobs(prev.iter().map(ObjectId::as_bytes))),
            ("authority", t("steward")),
            ("author", b(author.id().as_bytes())),
            ("key_seq", n(author.log.seq())),
            ("time_ms", n(self.now_ms)),
            ("action", b(action)),
        ]);
        Draft { payload, federation: federation(), signer: author.key(), key: author.key() }
    }

    /// An act that arrives: whether it is `new`, `held` or `refused`, and whether it counts in the end.
    fn arrives(&mut self, draft: &Draft, outcome: &str, counts: bool) -> ObjectId {
        let payload = encoded(&draft.payload);
        let envelope = sign("kos/act/1", &draft.federation, &draft.signer, &draft.key, &payload);
        // Whether it is genuine is asked for this federation.
        let genuine = envelope.shown["genuine"] == true && draft.federation == federation();
        let id =
            ObjectId::from_bytes(sha256(&sig_structure(&aad("kos/act/1", Some(federation())), &payload)));
        let shown = json!({
            "federation": hex(federation().as_bytes()), "id": hex(id.as_bytes()), "genuine": genuine,
            "outcome": outcome, "counts": counts, "cddl": {"envelope": "signed-object", "payload": "act"},
        });
        self.acts.push(merged(envelope.shown, shown));
        id
    }

    fn refused(&mut self, draft: &Draft) {
        self.arrives(draft, "refused", false);
    }

    /// The shape of the action is shown as well.
    fn show_action(&mut self) {
        let act = self.acts.last_mut().unwrap();
        let payload = unhex(&act["payload"]);
        let payload: Fields = cbor::decode_message(&payload, payload.len()).unwrap();
        let Ipld::Bytes(action) = &payload["action"] else { unreachable!() };
        act["action"] = hex(action).into();
        act["cddl"]["action"] = "action".into();
    }

    /// An act that is new, counts, and is followed by the next one.
    pub(super) fn by(&mut self, author: &Person, action: Vec<u8>) -> ObjectId {
        let id = self.arrives(&self.draft(author, action), "new", true);
        self.show_action();
        self.at = (vec![id], self.at.1 + 1);
        id
    }

    /// An act that is new and in the end has no effect.
    fn in_vain(&mut self, author: &Person, action: Vec<u8>) -> ObjectId {
        let id = self.by(author, action);
        self.acts.last_mut().unwrap()["counts"] = false.into();
        id
    }

    /// Both histories are known to who acts next.
    fn joined(a: &(Vec<ObjectId>, u64), b: &(Vec<ObjectId>, u64)) -> (Vec<ObjectId>, u64) {
        let mut heads = [a.0.clone(), b.0.clone()].concat();
        heads.sort();
        heads.dedup();
        (heads, a.1.max(b.1))
    }

    /// The roster it all adds up to: (who, name, role, standing).
    fn ends<const N: usize>(mut self, roster: [(&Person, &str, &str, &str); N]) -> Value {
        let member = |(person, name, role, standing): (&Person, &str, &str, &str)| {
            json!({
                "member": person.id().to_string(), "name": name, "role": role, "standing": standing,
                "key_seq": person.log.seq(),
            })
        };
        self.vector["acts"] = self.acts.into();
        self.vector["roster"] = roster.map(member).to_vec().into();
        self.vector
    }
}

fn refusals() -> Value {
    let mut h = History::household("acts that may not be here", "§9.5");
    let good = h.draft(&ann(), admit(&dan(), "member"));
    let with = |field: &str, value: Ipld| Draft {
        payload: but(&good.payload, [(field, Some(value))]),
        ..good.clone()
    };
    let prev = h.at.0.clone();
    h.refused(&Draft { signer: key(99), ..good.clone() });
    h.refused(&Draft { federation: FederationId::from_bytes([1; 32]), ..good.clone() });
    h.refused(&with("authority", t("council")));
    h.refused(&with("seq", n(4)));
    h.refused(&with("seq", n(2)));
    h.refused(&with("prev", blobs([prev[0].as_bytes(), prev[0].as_bytes()])));
    h.refused(&with("time_ms", n(NOW_MS + SKEW_MS + 1)));
    h.refused(&with("key_seq", n(1)));
    h.refused(&with("action", b([0xff])));
    h.refused(&with("action", b([0xa1, 0x18, 1, 1])));
    for (author, action) in [
        (&cem(), admit(&dan(), "member")),
        (&dan(), admit(&eve(), "member")),
        (&ann(), admit(&cem(), "member")),
        (&ann(), removal("suspend", &dan())),
        (&ann(), plain("reinstate", &cem())),
        (&ann(), plain("reinstate", &dan())),
        (&bob(), removal("expel", &ann())),
        (&bob(), removal("suspend", &ann())),
        (&ann(), rotate(&cem(), 0)),
        (&ann(), rotate(&dan().rotated(), 1)),
        (&ann(), rotate(&cem().rotated().rotated(), 2)),
    ] {
        let draft = h.draft(author, action);
        h.refused(&draft);
    }
    let dan_but =
        |field: &str, value: Ipld| action("admit", but(&admission(&dan(), "member"), [(field, Some(value))]));
    let mut broken = dan().log.to_list();
    *broken[0].last_mut().unwrap() ^= 1;
    let twin = Person { log: KeyLog::incept(&cem().key(), &key(200).public()), ..dan() };
    let long = fields([("member", b(cem().id().as_bytes())), ("why", t(&"x".repeat(WHY_BYTES_MAX + 1)))]);
    for action in [
        dan_but("name", t("Dan")),
        dan_but("key_log", eve().events()),
        dan_but("key_log", blobs(broken)),
        dan_but("key_log", blobs::<[u8; 0]>([])),
        admit(&twin, "member"),
        action("suspend", long),
    ] {
        let draft = h.draft(&ann(), action);
        h.refused(&draft);
    }
    h.by(&ann(), removal("expel", &bob()));
    let alone = h.draft(&ann(), plain("release", &ann()));
    h.refused(&alone);
    let back = h.draft(&ann(), admit(&bob(), "member"));
    h.refused(&back);
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "expelled"),
        (&cem(), "cem", "member", "active"),
    ])
}

fn every_action() -> Value {
    let mut h = History::household("every action", "§9.4");
    h.by(&bob(), removal("suspend", &cem()));
    h.by(&ann(), plain("reinstate", &cem()));
    h.by(&ann(), admit(&dan(), "relay"));
    // A member's leaving is written by a steward, at the member's word (§9.13).
    h.by(&bob(), plain("release", &dan()));
    h.by(&ann(), admit(&dan(), "member"));
    h.by(&bob(), removal("expel", &dan()));
    h.by(&bob(), rotate(&cem().rotated(), 1));
    let invite = sign_invite(&ann(), &invitation(&ann()));
    h.by(&ann(), revoke(&invite));
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "active"),
        (&cem().rotated(), "cem", "member", "active"),
        (&dan(), "dan", "member", "expelled"),
    ])
}

fn later_actions() -> Value {
    let mut h = History::household("actions that this version cannot read are kept without effect", "§9.4");
    let without = |field: &str| action("admit", but(&admission(&dan(), "member"), [(field, None)]));
    for content in [
        encoded(&fields([("dissolve", n(1))])),
        admit(&dan(), "king"),
        without("invite"),
        without("proof"),
        without("until_ms"),
        action("suspend", fields([("member", b([1; 31])), ("why", t(""))])),
        encoded(&fields([("expel", n(1)), ("release", n(1))])),
        cbor::encode("expel"),
    ] {
        let id = h.arrives(&h.draft(&ann(), content), "new", true);
        h.at = (vec![id], h.at.1 + 1);
    }
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "active"),
        (&cem(), "cem", "member", "active"),
    ])
}

fn removal_wins() -> Value {
    let mut h = History::household("what an expelled steward did meanwhile does not count", "§9.6");
    let before = h.at.clone();
    h.by(&ann(), removal("expel", &bob()));
    let expelled = std::mem::replace(&mut h.at, before);
    h.in_vain(&bob(), admit(&dan(), "steward"));
    h.in_vain(&dan(), admit(&eve(), "steward"));
    let mut aware = h.draft(&bob(), admit(&eve(), "member"));
    let known = History::joined(&h.at, &expelled);
    aware.payload.insert("prev".to_owned(), blobs(known.0.iter().map(ObjectId::as_bytes)));
    aware.payload.insert("seq".to_owned(), n(known.1 + 1));
    h.refused(&aware);
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "expelled"),
        (&cem(), "cem", "member", "active"),
    ])
}

fn junior_loses() -> Value {
    let mut h = History::household("of two stewards who expel at the same time the senior one wins", "§9.6");
    h.by(&ann(), admit(&dan(), "steward"));
    let before = h.at.clone();
    h.in_vain(&bob(), removal("expel", &dan()));
    h.at = before;
    h.by(&ann(), removal("expel", &bob()));
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "expelled"),
        (&cem(), "cem", "member", "active"),
        (&dan(), "dan", "steward", "active"),
    ])
}

fn removal_over_reinstatement() -> Value {
    let mut h = History::household("a removal wins over a reinstatement that did not know it", "§9.6");
    h.by(&ann(), removal("suspend", &cem()));
    let before = h.at.clone();
    h.by(&bob(), plain("reinstate", &cem()));
    h.at = before;
    h.by(&ann(), removal("expel", &cem()));
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "active"),
        (&cem(), "cem", "member", "expelled"),
    ])
}

fn old_key() -> Value {
    let mut h = History::household("a thief of a replaced key cannot date back", "§9.6");
    let before = h.at.clone();
    let too_early = h.draft(&ann().rotated(), admit(&dan(), "member"));
    h.refused(&too_early);
    h.by(&ann().rotated(), rotate(&ann().rotated(), 1));
    let after = std::mem::replace(&mut h.at, before);
    h.in_vain(&ann(), removal("expel", &bob()));
    h.at = after;
    let late = h.draft(&ann(), removal("expel", &bob()));
    h.refused(&late);
    h.ends([
        (&ann().rotated(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "active"),
        (&cem(), "cem", "member", "active"),
    ])
}

fn forked_log() -> Value {
    let mut h = History::household("of two forked key logs the one seen first stands", "§9.5");
    let other = cem().log.rotate(&key(cem().base + 1), &key(201).public()).unwrap();
    let forked = Person { log: other, ..cem() };
    h.by(&bob(), rotate(&cem().rotated(), 1));
    let fork = h.draft(&ann(), rotate(&forked, 1));
    h.refused(&fork);
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "active"),
        (&cem().rotated(), "cem", "member", "active"),
    ])
}

fn any_order() -> Value {
    let mut h = History::household("an act waits for those before it", "§9.5");
    let last = h.acts.pop().unwrap();
    let mut held = last;
    held["outcome"] = "held".into();
    h.acts.insert(0, held);
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "active"),
        (&cem(), "cem", "member", "active"),
    ])
}

fn by_date() -> Value {
    let mut h = History::household("a membership ends by date, and begins again by an admission", "§9.3");
    let until = |ms: u64| action("admit", but(&admission(&dan(), "member"), [("until_ms", Some(n(ms)))]));
    h.now_ms = NOW_MS - HOUR_MS;
    h.by(&ann(), until(NOW_MS - 10));
    let early = h.draft(&ann(), until(NOW_MS + HOUR_MS));
    h.refused(&early);
    h.now_ms = NOW_MS - 10;
    h.by(&ann(), until(NOW_MS));
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "active"),
        (&cem(), "cem", "member", "active"),
        (&dan(), "dan", "member", "lapsed"),
    ])
}

fn namesakes() -> Value {
    let mut h = History::household("of two namesakes the senior keeps the name", "§9.3");
    let named =
        |person: &Person| action("admit", but(&admission(person, "member"), [("name", Some(t("bob")))]));
    h.by(&ann(), named(&dan()));
    let suffix = dan().id().to_string()[4..8].to_owned();
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "active"),
        (&cem(), "cem", "member", "active"),
        (&dan(), &format!("bob-{suffix}"), "member", "active"),
    ])
}

/// What an admission with an invitation says.
fn invited(person: &Person, invite: &Envelope, proof: Ipld) -> Fields {
    but(&admission(person, "member"), [("invite", Some(b(&invite.bytes))), ("proof", Some(proof))])
}

fn invited_in() -> Value {
    let mut h = History::household("each fault of an invitation", "§9.7");
    let good = invitation(&ann());
    let invite = |changes: Fields| {
        let mut payload = good.clone();
        payload.extend(changes);
        sign_invite(&ann(), &payload)
    };
    let only = |field: &str, value: Ipld| invite(fields([(field, value)]));
    let note = |text: &str| only("note", t(text));
    let by_bob = sign_invite(&bob(), &invitation(&bob()));
    let by_cem = sign_invite(&cem(), &invitation(&cem()));
    let elsewhere = FederationId::from_bytes([1; 32]);
    let mut forged = note("forged");
    *forged.bytes.last_mut().unwrap() ^= 1;
    let valid = note("good");
    let proof = |person: &Person| proof(&invite_key(), &federation(), person);
    let withdrawn = note("withdrawn");
    h.by(&bob(), revoke(&withdrawn));
    for bad in [
        invited(&dan(), &withdrawn, proof(&dan())),
        invited(&dan(), &forged, proof(&dan())),
        invited(&dan(), &only("expires_ms", n(NOW_MS)), proof(&dan())),
        invited(&dan(), &only("role", t("steward")), proof(&dan())),
        invited(&dan(), &only("until_ms", n(NOW_MS + HOUR_MS)), proof(&dan())),
        invited(&dan(), &only("federation", b(elsewhere.as_bytes())), proof(&dan())),
        invited(&dan(), &only("uses", n(0)), proof(&dan())),
        invited(&dan(), &only("uses", n(u64::from(INVITE_USES_MAX) + 1)), proof(&dan())),
        invited(&dan(), &by_cem, proof(&dan())),
        invited(&dan(), &valid, proof(&eve())),
        invited(&dan(), &valid, super::admission::proof(&key(78), &federation(), &dan())),
        invited(&dan(), &valid, super::admission::proof(&invite_key(), &elsewhere, &dan())),
        invited(&dan(), &valid, Ipld::Null),
        but(&invited(&dan(), &valid, proof(&dan())), [("invite", Some(Ipld::Null))]),
        but(&invited(&dan(), &valid, proof(&dan())), [("until_ms", Some(n(NOW_MS + HOUR_MS)))]),
    ] {
        let draft = h.draft(&ann(), action("admit", bad));
        h.refused(&draft);
    }
    h.by(&ann(), action("admit", invited(&dan(), &valid, proof(&dan()))));
    let used = h.draft(&ann(), action("admit", invited(&eve(), &valid, proof(&eve()))));
    h.refused(&used);
    // The same invitation again, for the one it let in: it left.
    h.by(&ann(), plain("release", &dan()));
    h.by(&ann(), action("admit", invited(&dan(), &valid, proof(&dan()))));
    // An invitation ends with the key it was signed with.
    h.by(&bob().rotated(), rotate(&bob().rotated(), 1));
    let old = h.draft(&ann(), action("admit", invited(&eve(), &by_bob, proof(&eve()))));
    h.refused(&old);
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob().rotated(), "bob", "steward", "active"),
        (&cem(), "cem", "member", "active"),
        (&dan(), "dan", "member", "active"),
    ])
}

fn used_twice_at_once() -> Value {
    let mut h = History::household("of two uses at once the senior steward's counts", "§9.6");
    let invite = sign_invite(&ann(), &invitation(&ann()));
    let proof = |person: &Person| proof(&invite_key(), &federation(), person);
    let before = h.at.clone();
    h.in_vain(&bob(), action("admit", invited(&eve(), &invite, proof(&eve()))));
    h.at = before;
    h.by(&ann(), action("admit", invited(&dan(), &invite, proof(&dan()))));
    h.ends([
        (&ann(), "attic", "steward", "active"),
        (&bob(), "bob", "steward", "active"),
        (&cem(), "cem", "member", "active"),
        (&dan(), "dan", "member", "active"),
    ])
}

pub fn acts() -> Vec<Value> {
    vec![
        every_action(),
        later_actions(),
        refusals(),
        any_order(),
        forked_log(),
        by_date(),
        namesakes(),
        removal_wins(),
        junior_loses(),
        removal_over_reinstatement(),
        old_key(),
        invited_in(),
        used_twice_at_once(),
    ]
}
