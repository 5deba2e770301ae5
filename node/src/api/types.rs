//! What travels between commands and the node. Owned by this package, so that its JSON stays what it is.

use crate::{
    audit::{Entry, Page},
    config::Setting,
    errors::Code,
};
use data_encoding::HEXLOWER;
use kos_protocol::id::{AgentId, MemberId};
use kos_shell::{FederationInfo, LinkInfo, Me, PassedOver};
use serde::{Deserialize, Serialize};

/// One thing that could be better, with the command that makes it so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A code for `kai explain`.
    pub code: String,
    /// What.
    pub message: String,
    /// The command.
    pub fix: Option<String>,
}

impl Finding {
    /// A finding with what its code's entry says would mend it.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let entry = code.entry();
        Self { code: entry.code.to_owned(), message: message.into(), fix: entry.hint.map(str::to_owned) }
    }
}

/// `kai status`.
#[derive(Clone, Debug, Serialize)]
pub struct StatusView {
    /// `healthy` or `warnings`.
    pub verdict: &'static str,
    /// What could be better.
    pub findings: Vec<Finding>,
    /// Who.
    pub me: Me,
    /// Where its data lies.
    pub folder: String,
    /// Where the HTTP API listens; none when it is off.
    pub api: Option<String>,
    /// Since when it runs, in milliseconds.
    pub up_ms: u64,
    /// The program's version.
    pub version: &'static str,
    /// The process.
    pub pid: u32,
    /// What it is in.
    pub federations: Vec<FederationInfo>,
    /// How others reach it.
    pub reachability: ReachabilityView,
    /// Its part in the hash table; none when that is off.
    pub hash_table: Option<HashTableView>,
    /// Links, all kinds.
    pub links: usize,
    /// Sessions in use.
    pub sessions: usize,
    /// Connections opened in the last minute: what a home router has to remember.
    pub flows_per_minute: u32,
    /// Memory in use, in bytes.
    pub resident_bytes: Option<u64>,
    /// Counts since the start, for programs.
    pub counters: serde_json::Value,
    /// What peers were refused since the start, by reason; reasons that never occurred are left out.
    pub refusals: std::collections::BTreeMap<&'static str, u64>,
}

/// How others reach this node, and why not better.
#[derive(Clone, Debug, Serialize)]
pub struct ReachabilityView {
    /// `public`, `punchable`, `relayed`, `lan` or `unknown`.
    pub class: &'static str,
    /// What that means here.
    pub explanation: String,
    /// How the NAT gives out ports.
    pub mapping: String,
    /// What it lets in.
    pub filtering: String,
    /// What the router said to being asked for a port.
    pub port_mapping: String,
    /// Confirmed from outside.
    pub external: Vec<String>,
    /// On own interfaces.
    pub listen: Vec<String>,
    /// Relays that keep a place for us.
    pub reservations: usize,
}

/// A node's part in the hash table, where members look for each other when nothing else is left.
#[derive(Clone, Debug, Serialize)]
pub struct HashTableView {
    /// `client`, or `server` once an address of its own is confirmed.
    pub role: &'static str,
    /// Servers it knows.
    pub servers: u32,
    /// Names it keeps for others.
    pub names_kept: u32,
    /// Keys it is named under, as far as somebody keeps that name.
    pub names_ours: u32,
}

/// One link in `kai peers`.
#[derive(Clone, Debug, Serialize)]
pub struct PeerView {
    /// The member's name; none for a stranger.
    pub name: Option<String>,
    /// The libp2p id.
    pub peer: String,
    /// How it is reached.
    pub link: LinkInfo,
    /// Since when, in wall milliseconds.
    pub since_ms: u64,
}

/// `POST /v1/invite`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InviteRequest {
    /// `member`, `steward` or `relay`.
    pub role: String,
    /// How many may join.
    pub uses: u32,
    /// For how long, in milliseconds.
    pub ttl_ms: u64,
    /// How long the membership lasts, in milliseconds.
    pub for_ms: Option<u64>,
    /// For this LAN only.
    pub lan: bool,
    /// For the own list.
    pub note: Option<String>,
}

/// A code, a line, a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TextRequest {
    /// The text.
    pub text: String,
    /// A reason, or nothing.
    #[serde(default)]
    pub why: String,
    /// Yes to what would otherwise be asked.
    #[serde(default)]
    pub yes: bool,
}

/// A service to be published.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceRequest {
    /// What it promises.
    pub contract: kos_directory::contract::Contract,
    /// How many linked members are to have it before the answer comes.
    pub receipts: usize,
}

/// `POST /v1/agents`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentRequest {
    /// Class and name.
    pub agent: String,
    /// For a bridge: the origin.
    pub http: Option<String>,
    /// A host other than loopback that the origin may be on.
    pub allow_host: Option<String>,
    /// For a bridge: the methods and paths that pass, as `GET,HEAD /public/*`; all when there is none.
    #[serde(default)]
    pub allow: Vec<String>,
    /// For a bridge: whether WebSockets pass; they do when absent.
    #[serde(default)]
    pub websocket: Option<bool>,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// `GET /v1/audit`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct AuditQuery {
    /// Entries behind this number; the newest when absent.
    pub after: Option<u64>,
    /// How many at most.
    pub limit: Option<usize>,
}

/// `POST /v1/config/reload`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// What has changed since the settings were last read. The reloadable ones are in use now.
    pub changes: Vec<Setting>,
}

/// `POST /v1/ping`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PingRequest {
    /// Whom.
    pub name: String,
    /// How often.
    pub count: u32,
}

/// `POST /v1/call`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CallRequest {
    /// The agent, or `service:` and the name of a service; with or without `@member`.
    pub agent: String,
    /// Of a service: which versions will do, as Cargo reads ranges; any when absent.
    #[serde(default)]
    pub version: Option<String>,
    /// The HTTP method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Name and value.
    pub headers: Vec<(String, String)>,
    /// The request's body, in base64.
    #[serde(default)]
    pub body: String,
    /// Has the call executed at most once, however often it is made; 1 to 64 bytes.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}

/// What a call answered, before its body: the value of the header `x-kai-call`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CallHead {
    /// The HTTP status of the service.
    pub status: u16,
    /// Its header fields.
    pub headers: Vec<(String, String)>,
    /// How the stream reached it: `direct`, `carried`, `local`.
    pub route: String,
    /// The trace that the log lines of both nodes name.
    #[serde(default)]
    pub trace: String,
    /// Who answered, where a service was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceAnswered>,
}

/// Who answered the call of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceAnswered {
    /// The service.
    pub name: String,
    /// The version of the contract.
    pub version: String,
    /// Which agent,
    pub agent: AgentId,
    /// of whom,
    pub member: MemberId,
    /// by which name.
    pub member_name: String,
    /// The first choice and why it did not answer, where this is another.
    pub instead_of: Option<PassedOver>,
}

/// A service to be withdrawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithdrawRequest {
    /// Its name.
    pub name: String,
    /// How many linked members are to know it before the answer comes.
    pub receipts: usize,
}

/// An entry of the audit log, for programs.
#[derive(Clone, Debug, Serialize)]
pub struct AuditEntry {
    /// Its number.
    pub seq: u64,
    /// SHA-256 of the envelope before, in hex; zeros for the first.
    pub prev: String,
    /// The number of the member's key that signs.
    pub key_seq: u64,
    /// When, in wall milliseconds.
    pub time_ms: u64,
    /// What kind of thing.
    pub kind: String,
    /// What, for people.
    pub text: String,
}

/// `GET /v1/audit`, answered.
#[derive(Clone, Debug, Serialize)]
pub struct AuditPage {
    /// Oldest first.
    pub entries: Vec<AuditEntry>,
    /// Behind which entry to go on; none when the newest is among these.
    pub next: Option<u64>,
}

impl From<Page> for AuditPage {
    fn from(page: Page) -> Self {
        let entry = |entry: Entry| AuditEntry {
            seq: entry.seq,
            prev: HEXLOWER.encode(&*entry.prev),
            key_seq: entry.key_seq,
            time_ms: entry.time_ms,
            kind: entry.kind,
            text: entry.text,
        };
        Self { entries: page.entries.into_iter().map(entry).collect(), next: page.next }
    }
}

/// `POST /v1/forward`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// Port on loopback; 0 for any.
    pub port: u16,
    /// The agent, with or without `@member`.
    pub agent: String,
}

/// Nothing more to say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// True.
    pub done: bool,
}
