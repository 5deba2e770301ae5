use super::*;
use crate::{
    merge::{Authors, Directory, Source},
    record::{AgentCert, AgentRecord, Capability, NodeRecord},
};
use kos_protocol::{
    id::FederationId,
    key::{PublicKey, SecretKey},
    object::{Scope, Signed},
    time::Timestamp,
};
use proptest::prelude::*;
use semver::Version;
use serde_bytes::ByteBuf;
use std::collections::BTreeSet;

const T0: u64 = 1_800_000_000_000;
const FEDERATION: FederationId = FederationId::from_bytes([4; 32]);
const SCOPE: Scope = Scope::Federation(FEDERATION);

/// Everybody is a member, and signs with the key its id tells.
struct Everybody;

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn member(n: u8) -> MemberId {
    MemberId::from_bytes([n; 32])
}

impl Authors for Everybody {
    fn key_of(&self, member: &MemberId, _: u64) -> Option<PublicKey> {
        Some(key(member.as_bytes()[0]).public())
    }
    fn is_author(&self, _: &MemberId) -> bool {
        true
    }
}

fn put<T: crate::Entry>(directory: &mut Directory, author: u8, record: T) {
    let signed = Signed::sign(record, SCOPE, &key(author)).unwrap();
    let now = Timestamp { monotonic_ms: 0, wall_ms: T0 };
    directory.merge(now, Source::Own, T::KIND, signed.bytes(), &Everybody).unwrap();
}

fn agent(
    directory: &mut Directory,
    author: u8,
    name: &str,
    caps: &[(&str, &str)],
    description: &str,
    age: u64,
) {
    let capabilities: Vec<_> = caps
        .iter()
        .map(|(name, version)| Capability { name: (*name).to_owned(), version: version.parse().unwrap() })
        .collect();
    let cert = AgentCert {
        agent_key: key(50).public(),
        agent: name.parse().unwrap(),
        capabilities: capabilities.iter().map(|capability| capability.name.clone()).collect(),
        not_before_ms: T0 - age,
        until_ms: T0 + 1_000,
        member: member(author),
        key_seq: 0,
    };
    let cert = Signed::sign(cert, SCOPE, &key(author)).unwrap();
    let record = AgentRecord {
        author: member(author),
        key_seq: 0,
        agent: name.parse().unwrap(),
        seq: T0 - age,
        time_ms: T0 - age,
        expires_ms: T0 + 1_000,
        cert: Some(ByteBuf::from(cert.bytes())),
        capabilities,
        description: description.to_owned(),
        protocol: "http".to_owned(),
    };
    put(directory, author, record);
}

fn node(directory: &mut Directory, author: u8, name: &str) {
    let record = NodeRecord {
        author: member(author),
        key_seq: 0,
        seq: 1,
        time_ms: T0 - 1,
        expires_ms: T0 + 1_000,
        name: name.to_owned(),
        addresses: Vec::new(),
        relays: Vec::new(),
        version: Version::new(0, 1, 0),
        features: vec!["nat-cone".to_owned()],
        left: false,
    };
    put(directory, author, record);
}

/// Four members; 1 is alive, 2 down, of 3 and 4 nobody said anything.
fn directory() -> Directory {
    let mut directory = Directory::new(FEDERATION);
    agent(&mut directory, 1, "kBridge:notes", &[("http", "1.4.0")], "shared notes of the house", 50);
    agent(&mut directory, 2, "kBridge:notes", &[("http", "2.0.0")], "notes, too", 10);
    agent(
        &mut directory,
        3,
        "kBridge:photos",
        &[("http", "1.2.0"), ("thumbs", "0.3.1")],
        "pictures; notes",
        20,
    );
    agent(&mut directory, 4, "kSentinel:node", &[], "watches NOTEBOOKS", 30);
    node(&mut directory, 4, "attic");
    directory.set_health(member(1), Health::Alive);
    directory.set_health(member(2), Health::Down);
    directory
}

fn find(directory: &Directory, text: &str) -> Vec<(u8, String)> {
    let members = |name: &str| name.parse().ok().map(member);
    let hits = directory.find(&Query::parse(text, members).unwrap());
    assert_eq!(hits.total, hits.page.len());
    hits.page.iter().map(|record| (record.author().as_bytes()[0], record.slot().name.to_string())).collect()
}

#[test]
fn queries_find_what_has_all_their_parts_best_first() {
    let directory = directory();
    let named =
        |list: &[(u8, &str)]| list.iter().map(|(n, name)| (*n, (*name).to_owned())).collect::<Vec<_>>();
    let notes1 = (1, "kBridge:notes");
    let notes2 = (2, "kBridge:notes");
    let photos = (3, "kBridge:photos");
    let watcher = (4, "kSentinel:node");
    let attic = (4, "");
    for (text, expected) in [
        ("class:kBridge", named(&[notes1, photos, notes2])),
        ("cap:http@^1", named(&[notes1, photos])),
        ("cap:http@>=1.3,<2", named(&[notes1])),
        ("cap:HTTP", named(&[notes1, photos, notes2])),
        ("cap:htt", named(&[])),
        ("notes", named(&[notes1, photos, notes2])),
        ("note", named(&[notes1, photos, watcher, notes2])),
        ("notes house", named(&[notes1])),
        ("health:down", named(&[notes2])),
        ("health:unknown class:kSentinel", named(&[watcher])),
        ("member:3", named(&[photos])),
        ("member:3 member:2 notes", named(&[photos, notes2])),
        ("kind:node", named(&[attic])),
        ("tag:nat-cone", named(&[attic])),
        ("tag:nat", named(&[])),
        ("ATTIC", named(&[attic])),
        ("", named(&[notes1, attic, photos, watcher, notes2])),
        ("nothing-like-it", named(&[])),
    ] {
        assert_eq!(find(&directory, text), expected, "{text}");
    }
}

#[test]
fn pages_follow_each_other() {
    let directory = directory();
    let all = directory.find(&Query::default()).page;
    let page = |offset, limit| directory.find(&Query::default().page(offset, limit));
    assert_eq!((page(0, 2).total, page(0, 2).page), (5, all[..2].to_vec()));
    assert_eq!(page(2, 2).page, all[2..4]);
    assert_eq!(page(4, 2).page, all[4..]);
    assert_eq!(page(7, 2).page, []);
    assert_eq!(page(usize::MAX, usize::MAX).page, []);
    assert_eq!(page(0, 0).total, 5);
}

#[test]
fn what_is_no_query_is_told() {
    let parse = |text: &str| Query::parse(text, |_| None).unwrap_err().to_string();
    assert_eq!(parse("colour:red"), "`colour:` is none of kind, class, cap, tag, health and member");
    assert_eq!(parse("health:fine"), "`fine` is no health: one of alive, suspect, down, left, unknown");
    assert_eq!(parse("kind:link"), "`link` is no kind: one of node, agent, service");
    assert!(parse("cap:http@one").starts_with("`http@one` is no range of versions: "));
    assert!(parse("class:kNone").contains("kBridge"));
    assert_eq!(parse("member:nobody"), "no member is called `nobody`");
    let long = "a query has at most 1024 bytes and 64 parts";
    assert_eq!(parse(&"x".repeat(1_025)), long);
    assert_eq!(parse(&"x ".repeat(65)), long);
    assert_eq!(parse(&"x-".repeat(65)), long);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_index_finds_what_a_scan_would(
        steps in prop::collection::vec((1..4_u8, 0..4_usize, 0..3_usize, any::<bool>()), 1..40),
    ) {
        const NAMES: [&str; 4] = ["kBridge:notes", "kBridge:nodes", "kMemory:notes", "kCore:x"];
        const VERSIONS: [&str; 3] = ["1.0.0", "1.5.0", "2.0.0"];
        let mut directory = Directory::new(FEDERATION);
        for (place, (author, name, version, is_healthy)) in steps.into_iter().enumerate() {
            let age = 1_000 - place as u64;
            agent(&mut directory, author, NAMES[name], &[("http", VERSIONS[version])], "notes", age);
            let health = if is_healthy { Health::Alive } else { Health::Suspect };
            directory.set_health(member(author), health);
            if place % 7 == 6 {
                struct Without(u8);
                impl Authors for Without {
                    fn key_of(&self, author: &MemberId, _: u64) -> Option<PublicKey> {
                        (*author != member(self.0)).then(|| key(author.as_bytes()[0]).public())
                    }
                    fn is_author(&self, author: &MemberId) -> bool {
                        *author != member(self.0)
                    }
                }
                directory.retain(&Without(author), &[member(author)]);
            }
            let scan = |wanted: &dyn Fn(&AgentRecord) -> bool| {
                let now = Timestamp { monotonic_ms: 0, wall_ms: T0 };
                directory.agents(now, None).filter(|found| wanted(&found.entry)).map(|found| found.id).collect()
            };
            let find = |text: &str| -> BTreeSet<_> {
                let query = Query::parse(text, |_| None).unwrap().page(0, 100);
                directory.find(&query).page.iter().map(|record| record.id()).collect()
            };
            let range: semver::VersionReq = "^1".parse().unwrap();
            let all: BTreeSet<_> = scan(&|agent| agent.agent.name() == "notes"
                && agent.capabilities.iter().any(|capability| range.matches(&capability.version)));
            prop_assert_eq!(find("name cap:http@^1"), BTreeSet::new());
            prop_assert_eq!(find("cap:http@^1 notes").is_superset(&all), true);
            prop_assert_eq!(find("class:kMemory"), scan(&|agent| agent.agent.to_string().starts_with("kMemory")));
            prop_assert_eq!(find("no"), scan(&|_| true), "every text has notes in it");
        }
    }
}
