//! What a record costs in memory: bytes that are allocated for it, so that it hangs on nothing but the code.
#![allow(missing_docs, unsafe_code, clippy::unwrap_used)]

use kos_directory::{AgentCert, AgentRecord, Authors, Capability, Directory, Entry, Source};
use kos_protocol::{
    id::{FederationId, MemberId, sha256},
    key::{PublicKey, SecretKey},
    object::{Scope, Signed},
    time::Timestamp,
};
use memory::peak;

#[path = "../../../protocol/tests/hostile/memory.rs"]
mod memory;

const FEDERATION: FederationId = FederationId::from_bytes([4; 32]);
const T0: u64 = 1_800_000_000_000;
const RECORDS: u32 = 10_000;
const RECORDS_PER_AUTHOR: u32 = 10;

struct Everybody(PublicKey);

impl Authors for Everybody {
    fn key_of(&self, _: &MemberId, _: u64) -> Option<PublicKey> {
        Some(self.0)
    }
    fn is_author(&self, _: &MemberId) -> bool {
        true
    }
}

/// An agent in 450 to 500 bytes, its certificate included: no record of an agent is smaller.
fn record(key: &SecretKey, n: u32) -> Vec<u8> {
    let author = MemberId::from_bytes(sha256(&(n / RECORDS_PER_AUTHOR).to_be_bytes()));
    let agent: kos_protocol::id::AgentId = format!("kBridge:service-{n}").parse().unwrap();
    let cert = AgentCert {
        agent_key: key.public(),
        agent: agent.clone(),
        capabilities: vec!["http".to_owned()],
        not_before_ms: T0,
        until_ms: T0 + 1_000,
        member: author,
        key_seq: 0,
    };
    let cert = Signed::sign(cert, Scope::Federation(FEDERATION), key).unwrap();
    let record = AgentRecord {
        author,
        key_seq: 0,
        agent,
        seq: T0,
        time_ms: T0,
        expires_ms: T0 + 1_000,
        cert: Some(cert.bytes().to_vec().into()),
        capabilities: vec![Capability { name: "http".to_owned(), version: "1.0.0".parse().unwrap() }],
        description: format!("number {n}"),
        protocol: "http".to_owned(),
    };
    Signed::sign(record, Scope::Federation(FEDERATION), key).unwrap().bytes().to_vec()
}

#[test]
fn a_record_costs_less_than_900_bytes_besides_its_own() {
    let key = SecretKey::from_seed(&[7; 32]);
    let now = Timestamp { monotonic_ms: 0, wall_ms: T0 };
    let mut directory = Directory::new(FEDERATION);
    let grown = peak(|| {
        for n in 0..RECORDS {
            directory
                .merge(now, Source::Own, AgentRecord::KIND, &record(&key, n), &Everybody(key.public()))
                .unwrap();
        }
    });
    let stats = directory.stats();
    let (each, own) = (grown / RECORDS as usize, stats.bytes / RECORDS as usize);
    println!("{each} bytes for a record of {own}");
    assert_eq!(stats.records, RECORDS as usize);
    assert!(each < own + 900, "{each} bytes for a record of {own}");
}
