//! Measurements that need what no caller does: a connection made from nothing, over and over, and a federation with more
//! members and records than one machine would ever make.

use crate::{carry_out::ActFailed, intents::PING, runtime::Runtime, wire::peer_of};
use kos_directory::{AgentCert, AgentRecord, Capability, Entry};
use kos_engine::{Input, Item};
use kos_governance::act::{Action, Admit, Role};
use kos_mesh::link::{Body, CallError, To, Unreachable};
use kos_protocol::{
    id::{AgentId, FederationId, MemberId, sha256},
    key::SecretKey,
    key_log::KeyLog,
    limits::RECORD_LIFE_MS_MAX,
    message::Head,
    object::{Scope, Signed},
};
use std::time::{Duration, Instant};

/// A member that exists for measurements only.
pub struct Extra {
    key: SecretKey,
    log: KeyLog,
}

impl Extra {
    /// The one with a number.
    pub fn numbered(number: usize) -> Self {
        let seed = |what: &[u8]| sha256(&[b"measure", what, &(number as u64).to_be_bytes()].concat());
        let (key, next) = (SecretKey::from_seed(&seed(b"key")), SecretKey::from_seed(&seed(b"next")));
        Self { log: KeyLog::incept(&key, &next.public()), key }
    }

    /// Its member id.
    pub fn id(&self) -> MemberId {
        self.log.member()
    }

    /// Its current key.
    pub fn key(&self) -> kos_protocol::key::PublicKey {
        self.key.public()
    }

    /// A record of its agent with this number, signed.
    ///
    /// # Errors
    /// [`kos_protocol::cbor::DecodeError::TooLarge`], which does not happen.
    pub fn agent(
        &self,
        federation: FederationId,
        number: usize,
        time_ms: u64,
    ) -> Result<Signed<AgentRecord>, kos_protocol::cbor::DecodeError> {
        const CLASSES: [&str; 4] = ["kBridge", "kMemory", "kExecutor", "kPlanner"];
        const WORDS: [&str; 8] = ["notes", "photos", "music", "maps", "backup", "mail", "weather", "garden"];
        let text = format!("{}:{}-{number}", CLASSES[number % 4], WORDS[number % 8]);
        let agent: AgentId = text.parse().expect("a class, and a name of lower case letters and digits");
        let version = semver::Version::new(1 + number as u64 % 3, number as u64 % 5, 0);
        let (author, expires_ms) = (self.id(), time_ms + RECORD_LIFE_MS_MAX);
        let cert = AgentCert {
            agent_key: self.key.public(),
            agent: agent.clone(),
            capabilities: vec!["http".to_owned()],
            not_before_ms: time_ms,
            until_ms: expires_ms,
            member: author,
            key_seq: 0,
        };
        let cert = Signed::sign(cert, Scope::Federation(federation), &self.key)?;
        let record = AgentRecord {
            author,
            key_seq: 0,
            agent,
            seq: time_ms,
            time_ms,
            expires_ms,
            cert: Some(cert.bytes().to_vec().into()),
            capabilities: vec![Capability { name: "http".to_owned(), version }],
            description: format!("{} of house {}", WORDS[number % 8], number / 8),
            protocol: "http".to_owned(),
        };
        Signed::sign(record, Scope::Federation(federation), &self.key)
    }
}

/// What the caller knows of the peer it has no session with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Its key: the handshake is IK and carries the request.
    Key,
    /// Nothing but its addresses: the handshake is XX.
    Addresses,
}

/// How long the other end is given to notice that a connection is gone.
const NOTICED: Duration = Duration::from_millis(200);

impl Runtime {
    /// Admits extra members to a federation this node is a steward of, and takes in so many records of each. Returns the
    /// bytes of the records.
    ///
    /// # Errors
    /// [`ActFailed`].
    pub async fn fill(
        &self,
        id: &FederationId,
        members: usize,
        records_each: usize,
    ) -> Result<u64, ActFailed> {
        let mut bytes = 0;
        for number in 0..members {
            let extra = Extra::numbered(number);
            let admit = Admit {
                member: extra.id(),
                role: Role::Member,
                name: format!("extra-{number}"),
                key_log: extra.log.to_list(),
                invite: None,
                proof: None,
                until_ms: None,
            };
            self.act(id, &Action::Admit(Box::new(admit)))?;
            let now = self.0.state.now();
            for record in 0..records_each {
                let time_ms = now.wall_ms - (records_each - record) as u64;
                let record = extra.agent(*id, number * records_each + record, time_ms)?;
                bytes += record.bytes().len() as u64;
                let item = Item::new(AgentRecord::KIND, record.bytes()).to_bytes();
                self.0
                    .state
                    .with(id, |federation| federation.handle(now, Input::Heard { from: None, item: &item }));
            }
            self.carry_out(id);
        }
        if let Err(error) = self.0.keeper.settle().await {
            tracing::warn!(%error, "not everything was kept");
        }
        Ok(bytes)
    }

    /// Drops every connection and session with a member, then measures how long connecting and a first reply take.
    ///
    /// # Errors
    /// [`CallError`], also when it is no active member.
    pub async fn cold_ping(
        &self,
        id: &FederationId,
        member: MemberId,
        knowledge: Knowledge,
    ) -> Result<Duration, CallError> {
        let key = self
            .0
            .state
            .with(id, |federation| federation.roster().active_member(&member).map(|member| member.key()));
        let key = key.flatten().ok_or(CallError::NotInFederation)?;
        let (to, head) = (To { federation: *id, key }, Head { intent: PING.to_owned(), ..Head::default() });
        self.0.links.close(&key);
        self.0.mesh.disconnect(peer_of(&key)).await;
        while !self.0.mesh.links_with(&peer_of(&key)).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(NOTICED).await;
        let begun = Instant::now();
        let answer = match knowledge {
            // A session that another task began while the connection went may be one that the peer gave up.
            Knowledge::Key => self.0.links.request(to, &head, b"").await?.1,
            Knowledge::Addresses => {
                let mut exchange = self.0.links.open_with_xx(to, &head, Body::Whole(b"")).await?;
                exchange.recv.head().await?
            }
        };
        answer.map_err(|end| Unreachable(end.to_string()))?;
        Ok(begun.elapsed())
    }
}
