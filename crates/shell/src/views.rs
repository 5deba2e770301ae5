//! What commands and pages show of a node. Plain values, made when asked for.

use crate::{
    identity::IdentityError,
    intents::PING,
    nat::{self, Nat},
    query::{names_of, observed},
    runtime::Runtime,
    state::lock,
    wire::{key_of, peer_of},
};
use kos_directory::{Health, NodeRecord, liveness::Observed};
use kos_governance::{act::Role, roster::NameError};
use kos_mesh::{
    Documentation, Link, Path, Snapshot,
    link::{Stats, To},
};
use kos_protocol::{
    id::{AgentId, FederationId, InvalidName, MemberId},
    key::PublicKey,
    message::Head,
};
use serde::Serialize;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long one ping waits, connecting included.
const PING_TIMEOUT: Duration = Duration::from_secs(25);

/// Who this node is.
#[derive(Clone, Debug, Serialize)]
pub struct Me {
    /// The member.
    pub member: MemberId,
    /// What it calls itself.
    pub name: String,
    /// Its current key.
    pub key: PublicKey,
    /// How many times its key was rotated.
    pub rotations: u64,
    /// Its libp2p id.
    pub peer_id: String,
    /// Whether the recovery words were written down.
    pub backed_up: bool,
    /// The federation commands mean when they name none.
    pub federation: FederationId,
}

/// A federation this node is in.
#[derive(Clone, Debug, Serialize)]
pub struct FederationInfo {
    /// Which.
    pub id: FederationId,
    /// What people call it.
    pub name: String,
    /// Our role; none once we were removed.
    pub role: Option<Role>,
    /// How many active members it has.
    pub members: usize,
    /// Whether it is the default one.
    pub default: bool,
}

/// How a peer is reached.
#[derive(Clone, Debug, Serialize)]
pub struct LinkInfo {
    /// `direct`, `relayed` (a circuit) or `carried` (no link of its own; calls go over a relay).
    pub path: &'static str,
    /// `quic` or `tcp`; none where there is no direct link.
    pub transport: Option<&'static str>,
    /// The peer's address, or the relay's name.
    pub address: String,
    /// The last measured round trip, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Streams open on it.
    pub streams: u32,
}

/// A member as the others see it.
#[derive(Clone, Debug, Serialize)]
pub struct MemberInfo {
    /// Who.
    pub member: MemberId,
    /// The name it goes by.
    pub name: String,
    /// As what.
    pub role: Role,
    /// `active`, `suspended`, `lapsed`, `expelled`.
    pub standing: &'static str,
    /// Whether it is this node.
    pub me: bool,
    /// The best link with it.
    pub link: Option<LinkInfo>,
    /// When a link with it last came or went, in wall milliseconds.
    pub seen_ms: Option<u64>,
    /// How it can be reached, by its own word: `public`, `relayed`, `lan`, or `unknown`.
    pub address: &'static str,
    /// Its health, as far as anybody observed it.
    pub health: Health,
    /// Since when, in wall milliseconds; none where nothing was observed.
    pub since_ms: Option<u64>,
    /// The names of those who observed it.
    pub observers: Vec<String>,
    /// The version of its program.
    pub version: Option<String>,
}

/// An agent somebody runs.
#[derive(Clone, Debug, Serialize)]
pub struct AgentInfo {
    /// Class and name.
    pub agent: AgentId,
    /// Whose.
    pub member: MemberId,
    /// The name its member goes by.
    pub member_name: String,
    /// For people.
    pub description: String,
    /// How it is spoken to.
    pub protocol: String,
    /// Names with versions.
    pub capabilities: Vec<String>,
    /// How old its record is, in milliseconds.
    pub age_ms: u64,
    /// Whether its node is reachable now: us, linked, or carried.
    pub reachable: bool,
    /// Whether it is ours.
    pub mine: bool,
}

/// A relay of a federation.
#[derive(Clone, Debug, Serialize)]
pub struct RelayInfo {
    /// Who.
    pub member: MemberId,
    /// The name it goes by.
    pub name: String,
    /// The best link with it.
    pub link: Option<LinkInfo>,
    /// Whether it keeps a place for us.
    pub reserved: bool,
    /// Where it listens.
    pub addresses: Vec<String>,
}

/// Whom and what a call means.
#[derive(Clone, Debug)]
pub struct Target {
    /// The session to use.
    pub to: To,
    /// The agent.
    pub agent: AgentId,
    /// Whose it is.
    pub member: MemberId,
    /// The name its member goes by.
    pub member_name: String,
}

/// Why a text names nothing here.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No such member, or several.
    #[error(transparent)]
    Member(#[from] NameError),
    /// Not an agent's name.
    #[error(transparent)]
    Agent(#[from] InvalidName),
    /// No such agent.
    #[error("`{agent}` is not offered by {member}")]
    NoAgent {
        /// What was asked for.
        agent: AgentId,
        /// Of whom.
        member: String,
    },
    /// Nobody has it.
    #[error("nobody offers `{0}`")]
    Nobody(AgentId),
    /// More than one member has it.
    #[error("`{agent}` is offered by {}: add @NAME", .members.join(", "))]
    Several {
        /// What was asked for.
        agent: AgentId,
        /// Who has it.
        members: Vec<String>,
    },
    /// Not ours.
    #[error("this node is not in that federation")]
    NotInFederation,
}

/// One way to a member and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct PathTried {
    /// The way, in words.
    pub path: String,
    /// Whether it works.
    pub works: bool,
    /// The round trip at the level of calls, in milliseconds, of the way in use.
    pub rtt_ms: Option<f64>,
    /// Why it does not work, or is not used.
    pub why: Option<String>,
}

/// What `kai ping` shows.
#[derive(Clone, Debug, Serialize)]
pub struct PingReport {
    /// Whom.
    pub member: MemberId,
    /// The name it goes by.
    pub name: String,
    /// Round trips, in milliseconds.
    pub rtts_ms: Vec<f64>,
    /// Every way that was tried.
    pub paths: Vec<PathTried>,
    /// The way in use: `direct` or `carried`; `none` when nobody answered.
    pub chosen: String,
    /// Why that one.
    pub why: String,
    /// What would make it a direct one, where it is none.
    pub fix: Option<String>,
}

/// Why nobody was pinged.
#[derive(Debug, thiserror::Error)]
pub enum PingFailed {
    /// It is no active member.
    #[error("not an active member")]
    NotAMember,
    /// It is this very node.
    #[error("this is the node itself")]
    Myself,
}

/// The state of the mesh, and the counters of the sessions.
#[derive(Clone)]
pub struct Status {
    /// Addresses, links, reachability.
    pub mesh: Snapshot,
    /// Sessions new streams may use.
    pub sessions: usize,
    /// The counters.
    pub stats: Arc<Stats>,
    /// Whether the ledger can be written.
    pub ledger_writable: bool,
    /// Records and items, each federation.
    pub engines: Vec<(FederationId, kos_engine::Stats, kos_directory::Stats)>,
}

impl Runtime {
    /// Who this node is.
    pub fn me(&self) -> Me {
        let identity = self.0.state.identity();
        Me {
            member: identity.member(),
            name: self.0.state.name(),
            key: identity.key(),
            rotations: identity.log().seq(),
            peer_id: peer_of(&identity.key()).to_string(),
            backed_up: identity.is_backed_up(),
            federation: self.0.state.default_federation(),
        }
    }

    /// The key log of this node, for writing it down beside the recovery words.
    pub fn key_log(&self) -> Vec<serde_bytes::ByteBuf> {
        self.0.state.identity().log().to_list()
    }

    /// Signs an object of the application's own kind with the member's current key.
    ///
    /// # Errors
    /// [`kos_protocol::cbor::DecodeError::TooLarge`].
    pub fn sign<T: kos_protocol::object::Object>(
        &self,
        object: T,
        scope: kos_protocol::object::Scope,
    ) -> Result<kos_protocol::object::Signed<T>, kos_protocol::cbor::DecodeError> {
        kos_protocol::object::Signed::sign(object, scope, self.0.state.identity().secret())
    }

    /// The 24 recovery words, as long as they are on this node.
    ///
    /// # Errors
    /// [`IdentityError::WordsNeeded`].
    pub fn recovery_words(&self) -> Result<zeroize::Zeroizing<String>, IdentityError> {
        self.0.state.identity().words()
    }

    /// The words are written down: takes the recovery key off this node.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn forget_recovery_key(&self) -> Result<(), IdentityError> {
        let mut identity = self.0.state.identity();
        identity.forget_next(&self.0.state.folder)?;
        self.0.state.set_identity(identity);
        Ok(())
    }

    /// The federations this node is in.
    pub fn federations(&self) -> Vec<FederationInfo> {
        let (own, default) = (self.0.state.identity().member(), self.0.state.default_federation());
        let info = |(id, federation): (&FederationId, &kos_engine::Federation)| FederationInfo {
            id: *id,
            name: federation.acts().genesis().charter().name.clone(),
            role: federation.roster().active_member(&own).map(|me| me.role),
            members: federation.roster().active().count(),
            default: *id == default,
        };
        self.0.state.federations().iter().map(info).collect()
    }

    fn best_link(&self, key: &PublicKey) -> Option<LinkInfo> {
        self.0.mesh.links_with(&peer_of(key)).first().map(link_info)
    }

    /// Everybody in a federation, past members included.
    pub fn members(&self, id: &FederationId) -> Vec<MemberInfo> {
        let (own, now) = (self.0.state.identity().member(), self.0.state.now());
        let documentation = self.0.options.documentation;
        let listed = self.0.state.with(id, |federation| {
            let of = |member: &kos_governance::roster::Member| {
                let node = federation.directory().node(now, member.id).map(|found| found.entry);
                let version = node.map(|node| node.version.to_string());
                let observed = observed(federation, &member.id);
                let observers = names_of(federation, &observed.observers);
                (
                    member.clone(),
                    version,
                    node.map_or("unknown", |node| address_class(node, documentation)),
                    observed,
                    observers,
                )
            };
            federation.roster().members().map(of).collect::<Vec<_>>()
        });
        let seen = lock(&self.0.seen).clone();
        type Listed = (kos_governance::roster::Member, Option<String>, &'static str, Observed, Vec<String>);
        let info = |(member, version, address, observed, observers): Listed| MemberInfo {
            member: member.id,
            name: member.name.clone(),
            role: member.role,
            standing: member.standing.label(),
            me: member.id == own,
            link: if member.id == own { None } else { self.best_link(&member.key()) },
            seen_ms: seen.get(&member.key()).copied(),
            address,
            health: observed.health,
            since_ms: (observed.health != Health::Unknown).then_some(observed.since_ms),
            observers,
            version,
        };
        let mut members: Vec<MemberInfo> = listed.unwrap_or_default().into_iter().map(info).collect();
        members.sort_by(|a, b| (!a.me, &a.name).cmp(&(!b.me, &b.name)));
        members
    }

    /// The role of an active member: one look-up, for deciding about each call.
    pub fn role_of(&self, id: &FederationId, member: &MemberId) -> Option<Role> {
        self.0.state.with(id, |federation| Some(federation.roster().active_member(member)?.role)).flatten()
    }

    /// Whether calls to the holder of `key` have a way now.
    fn is_reachable(&self, key: &PublicKey) -> bool {
        let direct = self.0.mesh.is_direct(&peer_of(key));
        direct || !self.0.mesh.links_with(&peer_of(key)).is_empty() || self.0.wire.may_be_carried(key)
    }

    /// Every agent in a federation.
    pub fn agents(&self, id: &FederationId) -> Vec<AgentInfo> {
        let (own, now) = (self.0.state.identity().member(), self.0.state.now());
        let listed = self.0.state.with(id, |federation| {
            let of = |found: kos_directory::Found<kos_directory::AgentRecord>| {
                let member = federation.roster().active_member(&found.entry.author)?;
                Some((found.entry, found.age_ms, member.name.clone(), member.key()))
            };
            federation.directory().agents(now, None).filter_map(of).collect::<Vec<_>>()
        });
        let info =
            |(record, age_ms, member_name, key): (kos_directory::AgentRecord, u64, String, PublicKey)| {
                AgentInfo {
                    member: record.author,
                    member_name,
                    description: record.description.clone(),
                    protocol: record.protocol.clone(),
                    capabilities: record
                        .capabilities
                        .iter()
                        .map(|capability| format!("{} {}", capability.name, capability.version))
                        .collect(),
                    age_ms,
                    reachable: record.author == own || self.is_reachable(&key),
                    mine: record.author == own,
                    agent: record.agent,
                }
            };
        listed.unwrap_or_default().into_iter().map(info).collect()
    }

    /// Whom a person means: a name, an id, or the beginning of one.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn resolve_member(&self, id: &FederationId, text: &str) -> Result<MemberId, ResolveError> {
        self.0
            .state
            .with(id, |federation| Ok(federation.roster().resolve(text)?.id))
            .ok_or(ResolveError::NotInFederation)?
    }

    /// Which agent a person means: `kClass:name@member`, or `kClass:name` where only one member has it.
    ///
    /// An agent of a named member need not be in the directory yet: its node will say.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn resolve_agent(&self, id: &FederationId, text: &str) -> Result<Target, ResolveError> {
        let own = self.0.state.identity().member();
        let (agent, place) = match text.split_once('@') {
            Some((agent, place)) => (agent.parse::<AgentId>()?, Some(place)),
            None => (text.parse::<AgentId>()?, None),
        };
        let now = self.0.state.now();
        let resolve = |federation: &mut kos_engine::Federation| {
            let member = match place {
                Some(place) => federation.roster().resolve(place)?,
                None => {
                    let has =
                        |member: &MemberId| federation.directory().agent(now, *member, &agent).is_some();
                    let active = federation.roster().active();
                    let having: Vec<_> = active.filter(|member| has(&member.id)).collect();
                    match *having.as_slice() {
                        [] => return Err(ResolveError::Nobody(agent.clone())),
                        [one] => one,
                        ref several => match several.iter().find(|member| member.id == own) {
                            Some(me) => *me,
                            None => {
                                let members = several.iter().map(|member| member.name.clone()).collect();
                                return Err(ResolveError::Several { agent: agent.clone(), members });
                            }
                        },
                    }
                }
            };
            Ok(Target {
                to: To { federation: *id, key: member.key() },
                agent: agent.clone(),
                member: member.id,
                member_name: member.name.clone(),
            })
        };
        self.0.state.with(id, resolve).ok_or(ResolveError::NotInFederation)?
    }

    /// The relays of a federation.
    pub async fn relays(&self, id: &FederationId) -> Vec<RelayInfo> {
        let reservations =
            self.0.mesh.snapshot().await.map(|snapshot| snapshot.reservations).unwrap_or_default();
        let listed = self.0.state.with(id, |federation| {
            let relays = federation.roster().active().filter(|member| member.role == Role::Relay);
            relays.map(|member| (member.id, member.name.clone(), member.key())).collect::<Vec<_>>()
        });
        let info = |(member, name, key): (MemberId, String, PublicKey)| RelayInfo {
            member,
            name,
            link: self.best_link(&key),
            reserved: reservations.contains(&peer_of(&key)),
            addresses: self.0.wire.addresses(&key).iter().map(ToString::to_string).collect(),
        };
        listed.unwrap_or_default().into_iter().map(info).collect()
    }

    /// The state of the mesh; none once it has ended.
    pub async fn status(&self) -> Option<Status> {
        let mesh = self.0.mesh.snapshot().await?;
        let engines = self.0.state.federations();
        let engines = engines
            .iter()
            .map(|(id, federation)| (*id, federation.stats().clone(), federation.directory().stats()))
            .collect();
        Some(Status {
            mesh,
            sessions: self.0.links.sessions().len(),
            stats: self.0.links.stats().clone(),
            ledger_writable: matches!(self.0.state.ledger.health(), kos_store::Health::Writable),
            engines,
        })
    }

    /// Sends up to `count` pings to a member, one after the other, and tells every way that was tried; the first one
    /// that is not answered is the last.
    ///
    /// # Errors
    /// [`PingFailed`].
    pub async fn ping(
        &self,
        id: &FederationId,
        member: MemberId,
        count: u32,
    ) -> Result<PingReport, PingFailed> {
        if member == self.0.state.identity().member() {
            return Err(PingFailed::Myself);
        }
        let found = self.0.state.with(id, |federation| {
            let found = federation.roster().active_member(&member)?;
            let nat = federation.directory().node(self.0.state.now(), member);
            Some((found.clone(), nat.and_then(|found| Nat::of(&found.entry.features))))
        });
        let (found, peer_nat) = found.flatten().ok_or(PingFailed::NotAMember)?;
        let to = To { federation: *id, key: found.key() };
        let (mut rtts_ms, mut chosen, mut failure) = (Vec::new(), "none".to_owned(), None);
        for _ in 0..count.max(1) {
            match self.ping_once(to).await {
                Ok((rtt_ms, route)) => {
                    rtts_ms.push(rtt_ms);
                    chosen = route;
                }
                Err(why) => {
                    failure = Some(why);
                    break;
                }
            }
        }
        let paths = self.paths(&found.key(), &chosen, rtts_ms.last().copied()).await;
        let own_nat = self.0.mesh.snapshot().await.and_then(|snapshot| Nat::seen(&snapshot.reachability));
        let (why, fix) = match (chosen.as_str(), failure) {
            (_, Some(failure)) => (format!("no answer: {failure}"), None),
            ("direct", None) => ("a direct connection always wins".to_owned(), None),
            (_, None) => nat::why_relayed(own_nat, peer_nat),
        };
        Ok(PingReport { member, name: found.name, rtts_ms, paths, chosen, why, fix })
    }

    async fn ping_once(&self, to: To) -> Result<(f64, String), String> {
        let head = Head { intent: PING.to_owned(), ..Head::default() };
        let begun = Instant::now();
        let asked = tokio::time::timeout(PING_TIMEOUT, self.0.links.ask(to, &head, b"", 0)).await;
        let answer = asked.map_err(|_| "not in time".to_owned())?.map_err(|error| error.to_string())?;
        let route = answer.map_err(|end| format!("refused: {end}"))?.route;
        Ok((begun.elapsed().as_secs_f64() * 1000.0, route.to_string()))
    }

    /// Connections that stand, then attempts that failed, newest last.
    async fn paths(&self, key: &PublicKey, chosen: &str, rtt_ms: Option<f64>) -> Vec<PathTried> {
        let peer = peer_of(key);
        let links = self.0.mesh.links_with(&peer);
        let mut paths: Vec<PathTried> = links
            .iter()
            .enumerate()
            .map(|(place, link)| {
                let in_use = place == 0 && link.path.is_direct() && chosen == "direct";
                PathTried {
                    path: link.path.to_string(),
                    works: true,
                    rtt_ms: if in_use { rtt_ms } else { link.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0) },
                    why: (!in_use).then(|| match &link.path {
                        Path::Relayed { .. } => "a circuit serves introductions only".to_owned(),
                        Path::Direct { .. } => "a better connection is there".to_owned(),
                    }),
                }
            })
            .collect();
        if chosen == "carried" {
            paths.push(PathTried { path: "carried by a relay".to_owned(), works: true, rtt_ms, why: None });
        }
        let Some(snapshot) = self.0.mesh.snapshot().await else { return paths };
        for tried in snapshot.reachability.tried.iter().filter(|tried| tried.peer == peer) {
            if let Err(failure) = &tried.outcome {
                paths.push(PathTried {
                    path: format!("{:?} {}", tried.what, failure.addr).to_lowercase(),
                    works: false,
                    rtt_ms: None,
                    why: Some(format!("{:?}: {}", failure.step, failure.reason)),
                });
            }
        }
        paths
    }

    /// The member behind a libp2p id, in any of our federations.
    pub fn member_of_peer(&self, peer: &kos_mesh::PeerId) -> Option<MemberId> {
        self.0.state.memberships(&key_of(peer)?).first().map(|(_, member)| *member)
    }
}

/// What a node's record says of how it is reached.
fn address_class(node: &NodeRecord, documentation: Documentation) -> &'static str {
    let addresses = || node.addresses.iter().filter_map(|text| text.parse::<kos_mesh::Multiaddr>().ok());
    let is_global = |address: &kos_mesh::Multiaddr| {
        let is_global = kos_mesh::addr::scope(address, documentation) == kos_mesh::addr::Scope::Global;
        is_global && !kos_mesh::addr::is_circuit(address)
    };
    if addresses().any(|address| is_global(&address)) {
        "public"
    } else if !node.relays.is_empty() {
        "relayed"
    } else if node.addresses.is_empty() {
        "unknown"
    } else {
        "lan"
    }
}

/// A link in words.
pub(crate) fn link_info(link: &Link) -> LinkInfo {
    let (path, transport, address) = match &link.path {
        Path::Direct { addr, transport } => {
            let transport = match transport {
                kos_mesh::Transport::Quic => "quic",
                kos_mesh::Transport::Tcp => "tcp",
            };
            ("direct", Some(transport), addr.to_string())
        }
        Path::Relayed { via } => ("relayed", None, via.map(|relay| relay.to_string()).unwrap_or_default()),
    };
    let rtt_ms = link.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0);
    LinkInfo { path, transport, address, rtt_ms, streams: link.streams }
}
