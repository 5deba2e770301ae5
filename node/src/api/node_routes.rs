//! Routes about the node, its federations and its members.

use super::{
    AuditPage, AuditQuery, Done, Finding, HashTableView, InviteRequest, PeerView, PingRequest,
    ReachabilityView, Reloaded, Reply, StatusView, TextRequest, reply,
};
use crate::{
    agents::AgentView,
    audit::{Audit, Broken, PAGE_ENTRIES_MAX},
    daemon::{Daemon, identity_failure},
    errors::{Code, Failure},
    os,
};
use axum::{
    Json, Router,
    extract::{Query, State},
    routing::{get, post},
};
use kos_agents::supervisor::State as AgentState;
use kos_governance::{act::Role, code::CodeError, join::JoinError, roster::NameError};
use kos_mesh::{Filtering, Mapping, Path, PortMapping, Snapshot, TableRole};
use kos_shell::{
    InviteFailed, InviteOptions, Issued, JoinFailed, JoinPreview, Joined, LeaveFailed, MemberFailed,
    MemberInfo, PingFailed, PingReport, RelayFailed, RelayInfo, ResolveError,
};
use serde::Serialize;
use std::{sync::Arc, time::UNIX_EPOCH};

type Node = State<Arc<Daemon>>;

pub(super) fn router() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/metrics", get(crate::metrics::metrics))
        .route("/v1/down", post(down))
        .route("/v1/me", get(me))
        .route("/v1/id/words", get(words))
        .route("/v1/id/words/kept", post(words_kept))
        .route("/v1/id/rotate", post(rotate))
        .route("/v1/audit", get(audit))
        .route("/v1/audit/verify", get(audit_verify))
        .route("/v1/config/reload", post(reload))
        .route("/v1/peers", get(peers))
        .route("/v1/members", get(members))
        .route("/v1/members/remove", post(remove))
        .route("/v1/members/reinstate", post(reinstate))
        .route("/v1/invite", post(invite))
        .route("/v1/invites", get(invites))
        .route("/v1/invites/revoke", post(revoke))
        .route("/v1/join/preview", post(preview))
        .route("/v1/join", post(join))
        .route("/v1/leave", post(leave))
        .route("/v1/relays", get(relays))
        .route("/v1/relays/add", post(relay_add))
        .route("/v1/relays/remove", post(relay_remove))
        .route("/v1/ping", post(ping))
}

#[derive(Serialize)]
struct MeView {
    #[serde(flatten)]
    me: kos_shell::Me,
    line: String,
}

async fn me(State(daemon): Node) -> Reply<MeView> {
    let line = crate::identity_line::write(&daemon.runtime.key_log());
    reply(MeView { me: daemon.runtime.me(), line })
}

/// A part of the log; the entries are verified on the way.
async fn audit(State(daemon): Node, Query(query): Query<AuditQuery>) -> Reply<AuditPage> {
    let limit = query.limit.unwrap_or(PAGE_ENTRIES_MAX);
    reply(read_audit(daemon, move |audit| audit.page(query.after, limit)).await?.into())
}

#[derive(Serialize)]
struct Verified {
    entries: u64,
    holds: bool,
}

async fn audit_verify(State(daemon): Node) -> Reply<Verified> {
    let entries = read_audit(daemon, |audit| audit.verify()).await?;
    reply(Verified { entries, holds: true })
}

async fn read_audit<T: Send + 'static>(
    daemon: Arc<Daemon>,
    read: impl FnOnce(&Audit) -> Result<T, Broken> + Send + 'static,
) -> Result<T, Failure> {
    let reading = tokio::task::spawn_blocking(move || read(&daemon.audit));
    let read = reading.await.map_err(|error| Code::Internal.because(error))?;
    read.map_err(|error| match error {
        Broken::Ledger(_) => Code::LedgerDamaged.because(error),
        Broken::Entry { .. } | Broken::Chain { .. } => Code::AuditBroken.because(error),
    })
}

async fn reload(State(daemon): Node) -> Reply<Reloaded> {
    reply(Reloaded { changes: daemon.reload().await? })
}

#[derive(Serialize)]
struct Words {
    words: String,
}

/// For the owner's terminal, over the owner's socket; the HTTP API does not have it.
async fn words(State(daemon): Node) -> Reply<Words> {
    let words = daemon.runtime.recovery_words().map_err(|error| identity_failure(&error))?;
    reply(Words { words: words.to_string() })
}

async fn words_kept(State(daemon): Node) -> Reply<Done> {
    daemon.runtime.forget_recovery_key().map_err(|error| identity_failure(&error))?;
    reply(Done { done: true })
}

#[derive(Serialize)]
struct Rotated {
    key: kos_protocol::key::PublicKey,
}

/// The mesh has its id from the key, so the node starts again in the same process, under the new one.
async fn rotate(State(daemon): Node, Json(request): Json<TextRequest>) -> Reply<Rotated> {
    let words = (!request.text.is_empty()).then_some(request.text.as_str());
    let key = daemon.runtime.rotate(words).await.map_err(|error| identity_failure(&error))?;
    let _ = daemon.ending.set(Code::KeyRotated);
    let daemon = daemon.clone();
    tokio::spawn(async move { daemon.stop.cancel() });
    reply(Rotated { key })
}

async fn down(State(daemon): Node) -> Reply<Done> {
    let daemon = daemon.clone();
    // The answer goes out first.
    tokio::spawn(async move { daemon.stop.cancel() });
    reply(Done { done: true })
}

async fn status(State(daemon): Node) -> Reply<StatusView> {
    reply(status_of(&daemon).await?)
}

/// How the node is.
pub(super) async fn status_of(daemon: &Daemon) -> Result<StatusView, Failure> {
    let runtime = &daemon.runtime;
    let (me, federations) = (runtime.me(), runtime.federations());
    let status = runtime.status().await.ok_or_else(|| Code::MeshStopped.plain())?;
    let relays = runtime.relays(&me.federation).await;
    let reachability = reachability(&status.mesh, daemon_is_lan(&status.mesh));
    let findings = findings(&Examined {
        me: &me,
        federations: &federations,
        relays: &relays,
        agents: &daemon.agents.list(),
        reachability: reachability.class,
        ledger_writable: status.ledger_writable,
    });
    let counters = serde_json::json!({
        "handshakes": status.stats.handshakes.load(std::sync::atomic::Ordering::Relaxed),
        "exchanges_in": status.stats.exchanges_in.load(std::sync::atomic::Ordering::Relaxed),
        "exchanges_out": status.stats.exchanges_out.load(std::sync::atomic::Ordering::Relaxed),
        "bytes_in": status.stats.bytes_in.load(std::sync::atomic::Ordering::Relaxed),
        "bytes_out": status.stats.bytes_out.load(std::sync::atomic::Ordering::Relaxed),
    });
    let of_swarm = status.mesh.refusals.iter().map(|(refusal, count)| (refusal.label(), *count));
    let refusals = status.stats.refusals().chain(of_swarm).filter(|(_, count)| *count > 0).collect();
    Ok(StatusView {
        verdict: if findings.is_empty() { "healthy" } else { "warnings" },
        findings,
        me,
        folder: runtime.folder().path().display().to_string(),
        api: daemon.http.address().map(|address| format!("http://{address}")),
        up_ms: daemon.started.elapsed().as_millis() as u64,
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        federations,
        reachability,
        hash_table: status.mesh.table.map(hash_table),
        links: status.mesh.links.len(),
        sessions: status.sessions,
        flows_per_minute: status.mesh.flows_last_minute,
        resident_bytes: os::resident_bytes(),
        counters,
        refusals,
    })
}

fn hash_table(table: kos_mesh::HashTable) -> HashTableView {
    HashTableView {
        role: match table.role {
            TableRole::Client => "client",
            TableRole::Server => "server",
        },
        servers: table.servers,
        names_kept: table.names_kept,
        names_ours: table.names_ours,
    }
}

fn daemon_is_lan(snapshot: &Snapshot) -> bool {
    !snapshot.lan.is_empty()
}

/// What findings are drawn from.
struct Examined<'a> {
    me: &'a kos_shell::Me,
    federations: &'a [kos_shell::FederationInfo],
    relays: &'a [RelayInfo],
    agents: &'a [AgentView],
    reachability: &'static str,
    ledger_writable: bool,
}

impl Examined<'_> {
    /// The default federation, when this node is no member of it any more.
    fn lost_federation(&self) -> Option<&kos_shell::FederationInfo> {
        self.federations.iter().find(|federation| federation.default && federation.role.is_none())
    }

    /// Whether somebody may want to reach this node.
    fn is_in_company(&self) -> bool {
        self.federations.iter().any(|federation| federation.role.is_some() && federation.members > 1)
    }
}

fn findings(examined: &Examined<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !examined.ledger_writable {
        findings.push(Finding::new(Code::LedgerReadOnly, "the ledger cannot be written"));
    }
    if let Some(lost) = examined.lost_federation() {
        let message = format!("this node is no member of the federation {} any more", lost.name);
        findings.push(Finding::new(Code::NoMember, message));
    }
    if !examined.me.backed_up {
        findings.push(Finding::new(Code::RecoveryKeyHere, "the recovery key is not written down"));
    }
    if examined.is_in_company() && examined.reachability != "public" {
        if examined.relays.is_empty() {
            let message = "nobody outside can reach this node, and it has no relay";
            findings.push(Finding::new(Code::NoRelay, message));
        } else if !examined.relays.iter().any(|relay| relay.reserved) {
            findings.push(Finding::new(Code::RelayAway, "no relay keeps a place for this node"));
        }
    }
    findings.extend(examined.agents.iter().filter_map(failing));
    findings
}

/// What is to be said of an agent that shall run and does not.
fn failing(view: &AgentView) -> Option<Finding> {
    let condition = view.condition.as_ref()?;
    let what = match condition.state {
        AgentState::Failed => "cannot run",
        AgentState::BackingOff => "keeps failing",
        AgentState::Stopped | AgentState::Starting | AgentState::Running => return None,
    };
    let message = format!("{} {what}: {}", view.agent, condition.reason);
    let fix = Some(format!("kai agent show {}", view.agent));
    Some(Finding { fix, ..Finding::new(Code::AgentFailed, message) })
}

fn reachability(snapshot: &Snapshot, has_lan: bool) -> ReachabilityView {
    let is_circuit = |address: &&kos_mesh::Multiaddr| {
        address.iter().any(|part| matches!(part, kos_mesh::multiaddr::Protocol::P2pCircuit))
    };
    let public = snapshot.external.iter().any(|address| !is_circuit(&address));
    let reserved = !snapshot.reservations.is_empty();
    let mapping = snapshot.reachability.mapping;
    let (class, explanation) = match (public, reserved, mapping) {
        (true, ..) => ("public", "others reach this node directly"),
        (false, true, Mapping::EndpointDependent) => (
            "relayed",
            "the NAT gives out another port for each peer, so direct connections come about only with peers behind \
             a friendlier one; others are reached over a relay",
        ),
        (false, true, _) => {
            ("punchable", "a relay introduces peers, and direct connections are made through the NAT")
        }
        (false, false, _) if has_lan => ("lan", "peers on this network reach this node"),
        (false, false, _) => {
            ("unknown", "nobody outside has reached this node, and it has no place at a relay")
        }
    };
    ReachabilityView {
        class,
        explanation: explanation.to_owned(),
        mapping: match mapping {
            Mapping::Unknown => "not known: fewer than two peers have told what they see",
            Mapping::NotTranslated => "none: own addresses are the ones others see",
            Mapping::EndpointIndependent => "the same port for every peer",
            Mapping::EndpointDependent => "another port for each peer",
        }
        .to_owned(),
        filtering: match snapshot.reachability.filtering {
            Filtering::Unknown => "not known: nobody has tried",
            Filtering::Open => "strangers come in",
            Filtering::Restricted => "only answers come in",
        }
        .to_owned(),
        port_mapping: match &snapshot.reachability.port_mapping {
            PortMapping::None => "not asked, or no answer".to_owned(),
            PortMapping::Mapped(address) => format!("the router forwards {address}"),
            PortMapping::NoGateway => "no router that can be asked".to_owned(),
            PortMapping::GatewayNotPublic => "the router is behind another NAT".to_owned(),
        },
        external: snapshot.external.iter().map(ToString::to_string).collect(),
        listen: snapshot.listen.iter().map(ToString::to_string).collect(),
        reservations: snapshot.reservations.len(),
    }
}

#[derive(Serialize)]
struct Peers {
    peers: Vec<PeerView>,
}

async fn peers(State(daemon): Node) -> Reply<Peers> {
    let runtime = &daemon.runtime;
    let names: std::collections::BTreeMap<_, _> =
        runtime.members(&daemon.federation()).into_iter().map(|info| (info.member, info.name)).collect();
    let status = runtime.status().await.ok_or_else(|| Code::MeshStopped.plain())?;
    let view = |link: &kos_mesh::Link| {
        let (path, transport, address) = match &link.path {
            Path::Direct { addr, transport } => {
                let quic = *transport == kos_mesh::Transport::Quic;
                ("direct", Some(if quic { "quic" } else { "tcp" }), addr.to_string())
            }
            Path::Relayed { via } => {
                ("relayed", None, via.map(|relay| relay.to_string()).unwrap_or_default())
            }
        };
        let rtt_ms = link.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0);
        PeerView {
            name: runtime.member_of_peer(&link.peer).and_then(|member| names.get(&member).cloned()),
            peer: link.peer.to_string(),
            link: kos_shell::LinkInfo { path, transport, address, rtt_ms, streams: link.streams },
            since_ms: link.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        }
    };
    reply(Peers { peers: status.mesh.links.iter().map(view).collect() })
}

#[derive(Serialize)]
struct Members {
    members: Vec<MemberInfo>,
}

async fn members(State(daemon): Node) -> Reply<Members> {
    reply(Members { members: daemon.runtime.members(&daemon.federation()) })
}

/// What a name that names nothing is reported as.
pub(super) fn unresolved(error: ResolveError) -> Failure {
    let code = match &error {
        ResolveError::Member(NameError::Unknown(_)) => Code::NoSuchMember,
        ResolveError::Member(NameError::Ambiguous { .. }) => Code::AmbiguousMember,
        ResolveError::Agent(_) => Code::BadAgentName,
        ResolveError::NoAgent { .. } | ResolveError::Nobody(_) => Code::NoSuchAgent,
        ResolveError::Several { .. } => Code::AmbiguousAgent,
        ResolveError::NotInFederation => Code::NotInFederation,
    };
    code.because(error)
}

fn not_parted(error: &MemberFailed) -> Failure {
    match error {
        MemberFailed::Act(failed) => not_acted(failed),
        MemberFailed::Commit(error) => Code::LedgerReadOnly.because(error),
    }
}

fn not_acted(failed: &kos_shell::ActFailed) -> Failure {
    use kos_governance::acts::ActError;
    let code = match failed {
        kos_shell::ActFailed::Act(ActError::NotASteward(_)) => Code::NotSteward,
        kos_shell::ActFailed::Act(_) | kos_shell::ActFailed::Size(_) => Code::ActRefused,
        kos_shell::ActFailed::NotInFederation => Code::NotInFederation,
    };
    code.because(failed)
}

async fn remove(State(daemon): Node, Json(request): Json<TextRequest>) -> Reply<Done> {
    let id = daemon.federation();
    let member = daemon.runtime.resolve_member(&id, &request.text).map_err(unresolved)?;
    daemon.runtime.remove_member(&id, member, request.why).await.map_err(|error| not_parted(&error))?;
    reply(Done { done: true })
}

async fn reinstate(State(daemon): Node, Json(request): Json<TextRequest>) -> Reply<Done> {
    let id = daemon.federation();
    let member = daemon.runtime.resolve_member(&id, &request.text).map_err(unresolved)?;
    daemon.runtime.reinstate(&id, member).await.map_err(|error| not_parted(&error))?;
    reply(Done { done: true })
}

async fn invite(State(daemon): Node, Json(request): Json<InviteRequest>) -> Reply<Issued> {
    let role = Role::ALL.into_iter().find(|(_, name)| *name == request.role);
    let (role, _) = role.ok_or_else(|| {
        Code::Usage.because(format!("`{}` is not a role: steward, member, relay", request.role))
    })?;
    let now_ms =
        std::time::SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let options = InviteOptions {
        role,
        uses: request.uses,
        ttl_ms: request.ttl_ms,
        until_ms: request.for_ms.map(|for_ms| now_ms.saturating_add(for_ms)),
        lan: request.lan,
        note: request.note,
    };
    reply(daemon.runtime.invite(&daemon.federation(), options).await.map_err(not_invited)?)
}

fn not_invited(error: InviteFailed) -> Failure {
    let code = match &error {
        InviteFailed::Unreachable => Code::NoOutsideAddress,
        InviteFailed::NotASteward => Code::NotSteward,
        InviteFailed::NotInFederation => Code::NotInFederation,
        InviteFailed::Unknown(_) => Code::NoSuchInvite,
        InviteFailed::Act(failed) => return not_acted(failed),
        InviteFailed::Commit(_) => Code::LedgerReadOnly,
        InviteFailed::Identity(_) | InviteFailed::Code(_) => Code::Internal,
        InviteFailed::Size(_) => Code::Usage,
    };
    code.because(error)
}

#[derive(Serialize)]
struct Invites {
    invites: Vec<kos_shell::InviteSummary>,
}

async fn invites(State(daemon): Node) -> Reply<Invites> {
    reply(Invites { invites: daemon.runtime.invites(&daemon.federation()) })
}

async fn revoke(State(daemon): Node, Json(request): Json<TextRequest>) -> Reply<Done> {
    daemon.runtime.revoke(&daemon.federation(), &request.text).await.map_err(not_invited)?;
    reply(Done { done: true })
}

async fn preview(State(daemon): Node, Json(request): Json<TextRequest>) -> Reply<JoinPreview> {
    reply(daemon.runtime.preview(&request.text).map_err(not_joined)?)
}

async fn join(State(daemon): Node, Json(request): Json<TextRequest>) -> Reply<Joined> {
    reply(daemon.runtime.join(&request.text, request.yes).await.map_err(not_joined)?)
}

fn join_code(error: JoinError) -> Code {
    match error {
        JoinError::Expired => Code::InviteExpired,
        JoinError::Used => Code::InviteUsed,
        JoinError::Revoked => Code::InviteRevoked,
        JoinError::Forged => Code::InviteForged,
        JoinError::OtherFederation => Code::InviteForeign,
        JoinError::IssuerGone => Code::InviteIssuer,
        JoinError::AlreadyMember => Code::AlreadyMember,
        JoinError::Token => Code::RelayTaken,
        _ => Code::JoinRefused,
    }
}

fn not_joined(error: JoinFailed) -> Failure {
    let code = match &error {
        JoinFailed::Code(CodeError::Invite(_)) => Code::InviteForged,
        JoinFailed::Code(_) => Code::BadCode,
        JoinFailed::Refused(refused) => join_code(*refused),
        JoinFailed::Unreachable(_) => Code::StewardUnreachable,
        JoinFailed::Timeout => Code::NetTimeout,
        JoinFailed::Welcome(_) | JoinFailed::Malformed => Code::JoinBroken,
        JoinFailed::HasContent => Code::HasContent,
        JoinFailed::Commit(_) => Code::LedgerReadOnly,
    };
    code.because(error)
}

async fn leave(State(daemon): Node) -> Reply<Done> {
    daemon.runtime.leave(&daemon.federation()).await.map_err(|error| {
        let code = match &error {
            LeaveFailed::NotInFederation => Code::NotInFederation,
            LeaveFailed::OnlySteward => Code::OnlySteward,
            LeaveFailed::Commit(_) | LeaveFailed::Read(_) => Code::LedgerReadOnly,
            LeaveFailed::Identity(_) => Code::Internal,
        };
        code.because(error)
    })?;
    reply(Done { done: true })
}

#[derive(Serialize)]
struct Relays {
    relays: Vec<RelayInfo>,
}

async fn relays(State(daemon): Node) -> Reply<Relays> {
    reply(Relays { relays: daemon.runtime.relays(&daemon.federation()).await })
}

#[derive(Serialize)]
struct RelayAdded {
    member: String,
    name: String,
}

async fn relay_add(State(daemon): Node, Json(request): Json<TextRequest>) -> Reply<RelayAdded> {
    let id = daemon.federation();
    let member = daemon.runtime.relay_add(&id, &request.text).await.map_err(|error| {
        let code = match &error {
            RelayFailed::Code(_) => Code::BadCode,
            RelayFailed::Act(failed) => return not_acted(failed),
            RelayFailed::Refused(refused) => join_code(*refused),
            RelayFailed::Unreachable(_) => Code::RelayUnreachable,
            RelayFailed::Timeout => Code::NetTimeout,
            RelayFailed::Commit(_) => Code::LedgerReadOnly,
            RelayFailed::NotInFederation => Code::NotInFederation,
        };
        code.because(error)
    })?;
    let listed = daemon.runtime.members(&id).into_iter().find(|info| info.member == member);
    reply(RelayAdded { member: member.to_string(), name: listed.map(|info| info.name).unwrap_or_default() })
}

async fn relay_remove(State(daemon): Node, Json(request): Json<TextRequest>) -> Reply<Done> {
    let id = daemon.federation();
    let member = daemon.runtime.resolve_member(&id, &request.text).map_err(unresolved)?;
    let listed = daemon.runtime.members(&id).into_iter().find(|info| info.member == member);
    if listed.is_none_or(|info| info.role != Role::Relay) {
        return Err(Code::NotARelay.because(format!("`{}` is not a relay", request.text)));
    }
    daemon.runtime.let_go(&id, member).await.map_err(|error| not_parted(&error))?;
    reply(Done { done: true })
}

async fn ping(State(daemon): Node, Json(request): Json<PingRequest>) -> Reply<PingReport> {
    let id = daemon.federation();
    let member = daemon.runtime.resolve_member(&id, &request.name).map_err(unresolved)?;
    let report = daemon.runtime.ping(&id, member, request.count.min(100)).await;
    reply(report.map_err(|error| match error {
        PingFailed::NotAMember => Code::NoSuchMember.because(error),
        PingFailed::Myself => Code::CallInvalid.because(error),
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kos_agents::supervisor::Condition;
    use kos_protocol::{
        id::{FederationId, MemberId},
        key::SecretKey,
    };
    use kos_shell::{FederationInfo, Me};

    const ID: FederationId = FederationId::from_bytes([1; 32]);

    fn me() -> Me {
        let member = MemberId::from_bytes([1; 32]);
        let key = SecretKey::from_seed(&[1; 32]).public();
        let (name, peer_id) = ("attic".to_owned(), String::new());
        Me { member, name, key, rotations: 0, peer_id, backed_up: true, federation: ID }
    }

    fn federation(role: Option<Role>, members: usize) -> FederationInfo {
        FederationInfo { id: ID, name: "attic".to_owned(), role, members, default: true }
    }

    fn relay(reserved: bool) -> RelayInfo {
        let member = MemberId::from_bytes([2; 32]);
        RelayInfo { member, name: "relay".to_owned(), link: None, reserved, addresses: Vec::new() }
    }

    fn agent(state: AgentState) -> AgentView {
        let condition = Condition { state, since_ms: 0, reason: "worn out".to_owned(), restarts: 3 };
        AgentView {
            agent: "kBridge:notes".parse().unwrap(),
            description: String::new(),
            origin: None,
            policy: None,
            condition: Some(condition),
        }
    }

    /// A node about which there is nothing to say.
    fn healthy<'a>(me: &'a Me, federations: &'a [FederationInfo], relays: &'a [RelayInfo]) -> Examined<'a> {
        Examined { me, federations, relays, agents: &[], reachability: "punchable", ledger_writable: true }
    }

    /// Codes and fixes.
    fn found(examined: &Examined<'_>) -> Vec<(String, String)> {
        let found = findings(examined).into_iter();
        found.map(|finding| (finding.code, finding.fix.unwrap_or_default())).collect()
    }

    fn expected(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(code, fix)| ((*code).to_owned(), (*fix).to_owned())).collect()
    }

    #[test]
    fn a_healthy_node_has_no_findings() {
        let (me, in_company, relays) = (me(), [federation(Some(Role::Steward), 2)], [relay(true)]);
        assert_eq!(found(&healthy(&me, &in_company, &relays)), []);
        let public = Examined { reachability: "public", ..healthy(&me, &in_company, &[]) };
        assert_eq!(found(&public), []);
        let alone = [federation(Some(Role::Steward), 1)];
        assert_eq!(found(&healthy(&me, &alone, &[])), [], "nobody would want to reach it");
    }

    #[test]
    fn a_disk_and_a_recovery_key_are_told() {
        let (mut me, alone) = (me(), [federation(Some(Role::Steward), 1)]);
        me.backed_up = false;
        let examined = Examined { ledger_writable: false, ..healthy(&me, &alone, &[]) };
        let codes: Vec<String> = findings(&examined).into_iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [Code::LedgerReadOnly, Code::RecoveryKeyHere].map(|code| code.entry().code));
    }

    #[test]
    fn relays_that_are_missing_or_away_are_told() {
        let (me, in_company) = (me(), [federation(Some(Role::Member), 2)]);
        let missing = expected(&[("KAI-NET-0007", "kai relay add 'kai:relay/…'")]);
        assert_eq!(found(&healthy(&me, &in_company, &[])), missing);
        let away = expected(&[("KAI-NET-0008", "kai relay list")]);
        assert_eq!(found(&healthy(&me, &in_company, &[relay(false)])), away);
        assert_eq!(found(&healthy(&me, &in_company, &[relay(false), relay(true)])), []);
    }

    #[test]
    fn a_node_that_was_removed_is_told_and_needs_no_relay() {
        let (me, lost) = (me(), [federation(None, 5)]);
        let removed = expected(&[("KAI-FED-0020", "kai join CODE")]);
        assert_eq!(found(&healthy(&me, &lost, &[])), removed);
    }

    #[test]
    fn agents_that_fail_are_told() {
        let (me, alone) = (me(), [federation(Some(Role::Steward), 1)]);
        for state in [AgentState::Failed, AgentState::BackingOff] {
            let agents = [agent(state)];
            let examined = Examined { agents: &agents, ..healthy(&me, &alone, &[]) };
            let fix = expected(&[("KAI-AGENT-0007", "kai agent show kBridge:notes")]);
            assert_eq!(found(&examined), fix);
            assert!(findings(&examined)[0].message.ends_with("worn out"));
        }
        for state in [AgentState::Running, AgentState::Starting, AgentState::Stopped] {
            let agents = [agent(state)];
            assert_eq!(found(&Examined { agents: &agents, ..healthy(&me, &alone, &[]) }), []);
        }
    }
}
