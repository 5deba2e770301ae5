//! What a node counts, as Prometheus reads it: text format 0.0.4, written when it is asked for.
//!
//! Every family is a constant [`Metric`], so that `docs/metrics.md` can be compared with what the code knows. Labels come
//! from closed sets; the one exception is the federation, of which a node is in a handful. No rates and no averages:
//! whoever reads the numbers makes those.

use crate::{runtime::Runtime, views::Status};
use kos_mesh::{
    Filtering, Mapping, Path, PortMapping, TableRole, Transport,
    link::{Refusal, Stats},
};
use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

/// The content type of what [`Exposition::finish`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From zero at the start of the process, never less.
    Counter,
    /// As it is now.
    Gauge,
}

impl Kind {
    /// The word of the text format.
    pub fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A family of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// `kos_…`; counters end with `_total`.
    pub name: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// `bytes`, `seconds`; empty for plain numbers.
    pub unit: &'static str,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, unit, labels, help }
}

/// A value as it is now.
pub const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, labels, help }
}

const START_TIME: Metric =
    gauge("kos_start_time_seconds", "seconds", &[], "When the node started, since the Unix epoch.");
const CONNECTIONS: Metric =
    gauge("kos_connections", "", &["path", "transport"], "Connections with peers that are up.");
const OPEN_STREAMS: Metric =
    gauge("kos_open_streams", "", &[], "Streams open on all connections, both directions.");
const SESSIONS: Metric = gauge("kos_sessions", "", &[], "Sessions that new exchanges may use.");
const HANDSHAKES: Metric =
    counter("kos_handshakes_total", "", &[], "Handshakes of sessions finished, begun by either side.");
const STREAMS: Metric =
    counter("kos_streams_total", "", &["direction"], "Streams of sessions opened to peers or by them.");
const EXCHANGES: Metric =
    counter("kos_exchanges_total", "", &["direction"], "Exchanges begun by this node or by peers.");
const BYTES: Metric =
    counter("kos_bytes_total", "bytes", &["direction"], "Bodies of exchanges, sent or received, unsealed.");
const CARRIED_BYTES: Metric =
    counter("kos_carried_bytes_total", "bytes", &[], "Sealed bytes passed on for members, both directions.");
const REFUSALS: Metric = counter(
    "kos_refusals_total",
    "",
    &["layer", "reason"],
    "What peers asked for and did not get: of sessions (`link`) or of connections (`swarm`).",
);
const DEEDS: Metric = counter(
    "kos_deeds_total",
    "",
    &["deed"],
    "What the swarm did and how it went: dials, punches, reservations, circuits, streams, gossip.",
);
const FLOWS: Metric =
    gauge("kos_flows_last_minute", "", &[], "Flows that dials opened through the router in the last minute.");
const CONNECTING: Metric = gauge("kos_connecting", "", &[], "Connects in progress.");
const RESERVATIONS: Metric = gauge("kos_reservations", "", &[], "Relays that keep a place for this node.");
const NAT_MAPPING: Metric =
    gauge("kos_nat_mapping", "", &["mapping"], "1 for how the NAT gives out ports, 0 for the others.");
const NAT_FILTERING: Metric =
    gauge("kos_nat_filtering", "", &["filtering"], "1 for what the NAT lets in, 0 for the others.");
const PORT_MAPPING: Metric =
    gauge("kos_port_mapping", "", &["state"], "1 for what became of asking the router, 0 for the others.");
const TABLE_ROLE: Metric =
    gauge("kos_hash_table_role", "", &["role"], "1 for the part in the hash table, 0 for the others.");
const TABLE_SERVERS: Metric =
    gauge("kos_hash_table_servers", "", &[], "Servers of the hash table this node knows.");
const TABLE_NAMES: Metric = gauge(
    "kos_hash_table_names",
    "",
    &["whose"],
    "Names kept for others, and keys this node is named under that somebody keeps.",
);
const LEDGER_WRITABLE: Metric =
    gauge("kos_ledger_writable", "", &[], "1 while the ledger can be written, else 0.");
const MEMBERS: Metric = gauge("kos_members", "", &["federation"], "Active members.");
const ITEMS: Metric = counter(
    "kos_items_total",
    "",
    &["federation", "outcome"],
    "Acts and records heard: new, known before, or held until the acts they need are there.",
);
const ITEM_REFUSALS: Metric =
    counter("kos_item_refusals_total", "", &["federation", "reason"], "Acts and records not taken.");
const RECORDS: Metric = gauge("kos_directory_records", "", &["federation"], "Records in the directory.");
const RECORD_BYTES: Metric =
    gauge("kos_directory_bytes", "bytes", &["federation"], "Size of the records in the directory.");
const MERGES: Metric = counter(
    "kos_directory_merges_total",
    "",
    &["federation", "outcome"],
    "Records taken (`merged`), heard again or too late (`known`), dropped when their time was over (`expired`).",
);

/// What every node tells, relays too, in the order in which it is told.
pub const METRICS: &[Metric] = &[
    START_TIME,
    CONNECTIONS,
    OPEN_STREAMS,
    SESSIONS,
    HANDSHAKES,
    STREAMS,
    EXCHANGES,
    BYTES,
    CARRIED_BYTES,
    REFUSALS,
    DEEDS,
    FLOWS,
    CONNECTING,
    RESERVATIONS,
    NAT_MAPPING,
    NAT_FILTERING,
    PORT_MAPPING,
    TABLE_ROLE,
    TABLE_SERVERS,
    TABLE_NAMES,
    LEDGER_WRITABLE,
    MEMBERS,
    ITEMS,
    ITEM_REFUSALS,
    RECORDS,
    RECORD_BYTES,
    MERGES,
];

/// The labels that closed sets give, with their values: what `docs/metrics.md` lists.
pub fn label_values() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("`reason` of layer `link`", Refusal::ALL.iter().map(|(_, label)| *label).collect()),
        ("`reason` of layer `swarm`", kos_mesh::Refusal::ALL.iter().map(|refusal| refusal.label()).collect()),
        ("`deed`", kos_mesh::Deed::ALL.iter().map(|deed| deed.label()).collect()),
        ("`direction`", vec!["in", "out"]),
        ("`path`, `transport`", vec!["direct, quic", "direct, tcp", "relayed, circuit"]),
        ("`outcome` of `kos_items_total`", vec!["new", "known", "held"]),
        ("`outcome` of `kos_directory_merges_total`", vec!["merged", "known", "expired"]),
        ("`mapping`", MAPPINGS.iter().map(|(_, label)| *label).collect()),
        ("`filtering`", FILTERINGS.iter().map(|(_, label)| *label).collect()),
        ("`state` of `kos_port_mapping`", PORT_MAPPINGS.to_vec()),
        ("`role`", TABLE_ROLES.iter().map(|(_, label)| *label).collect()),
        ("`whose`", vec!["others", "own"]),
    ]
}

const MAPPINGS: [(Mapping, &str); 4] = [
    (Mapping::Unknown, "unknown"),
    (Mapping::NotTranslated, "not_translated"),
    (Mapping::EndpointIndependent, "endpoint_independent"),
    (Mapping::EndpointDependent, "endpoint_dependent"),
];
const FILTERINGS: [(Filtering, &str); 3] =
    [(Filtering::Unknown, "unknown"), (Filtering::Open, "open"), (Filtering::Restricted, "restricted")];
const TABLE_ROLES: [(Option<TableRole>, &str); 3] =
    [(None, "off"), (Some(TableRole::Client), "client"), (Some(TableRole::Server), "server")];
const PORT_MAPPINGS: [&str; 4] = ["none", "mapped", "no_gateway", "gateway_not_public"];

fn port_mapping(state: &PortMapping) -> &'static str {
    match state {
        PortMapping::None => PORT_MAPPINGS[0],
        PortMapping::Mapped(_) => PORT_MAPPINGS[1],
        PortMapping::NoGateway => PORT_MAPPINGS[2],
        PortMapping::GatewayNotPublic => PORT_MAPPINGS[3],
    }
}

/// Text in the making.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Writes a family of one value.
    pub fn one(&mut self, metric: &Metric, value: u64) {
        self.family(metric, [(&[] as &[&str], value)]);
    }

    /// Writes a family: each sample has a value for each of the metric's labels, in their order.
    ///
    /// # Panics
    /// When a sample has more values, or fewer.
    pub fn family<V: AsRef<[S]>, S: AsRef<str>>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = (V, u64)>,
    ) {
        let Metric { name, kind, labels, help, .. } = metric;
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {}", kind.label()));
        for (values, sample) in samples {
            let values = values.as_ref();
            assert_eq!(values.len(), labels.len(), "{name} has other labels");
            if labels.is_empty() {
                self.line(format_args!("{name} {sample}"));
                continue;
            }
            let pairs: Vec<String> = labels
                .iter()
                .zip(values)
                .map(|(label, value)| format!("{label}=\"{}\"", escape(value.as_ref())))
                .collect();
            self.line(format_args!("{name}{{{}}} {sample}", pairs.join(",")));
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes every line");
    }
}

/// A label's value as the format wants it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Runtime {
    /// What this node counts, to add to; none once the mesh has ended. See [`METRICS`].
    pub async fn metrics(&self) -> Option<Exposition> {
        let status = self.status().await?;
        let mut out = Exposition::default();
        out.one(&START_TIME, self.started_s());
        write_links(&mut out, &status);
        write_sessions(&mut out, &status);
        write_refusals(&mut out, &status);
        write_swarm(&mut out, &status);
        out.one(&LEDGER_WRITABLE, u64::from(status.ledger_writable));
        self.write_federations(&mut out, &status);
        Some(out)
    }

    fn started_s(&self) -> u64 {
        let now = self.0.state.now();
        now.wall_ms.saturating_sub(now.monotonic_ms) / 1000
    }

    fn write_federations(&self, out: &mut Exposition, status: &Status) {
        let members = self.federations();
        out.family(&MEMBERS, members.iter().map(|info| ([info.id.to_string()], info.members as u64)));
        let engines: Vec<_> = status
            .engines
            .iter()
            .map(|(id, engine, directory)| (id.to_string(), engine, directory))
            .collect();
        let items = engines.iter().flat_map(|(id, engine, _)| {
            let outcomes = [("new", engine.new), ("known", engine.known), ("held", engine.held)];
            outcomes.map(|(outcome, count)| ([id.as_str(), outcome], count))
        });
        out.family(&ITEMS, items);
        let refused = engines.iter().flat_map(|(id, engine, _)| {
            engine.refused.iter().map(move |(reason, count)| ([id.as_str(), reason], *count))
        });
        out.family(&ITEM_REFUSALS, refused);
        out.family(&RECORDS, engines.iter().map(|(id, _, records)| ([id], records.records as u64)));
        out.family(&RECORD_BYTES, engines.iter().map(|(id, _, records)| ([id], records.bytes as u64)));
        let merges = engines.iter().flat_map(|(id, _, records)| {
            let outcomes =
                [("merged", records.merged), ("known", records.known), ("expired", records.expired)];
            outcomes.map(|(outcome, count)| ([id.as_str(), outcome], count))
        });
        out.family(&MERGES, merges);
    }
}

fn write_links(out: &mut Exposition, status: &Status) {
    let labels = |path: &Path| match path {
        Path::Direct { transport: Transport::Quic, .. } => ["direct", "quic"],
        Path::Direct { transport: Transport::Tcp, .. } => ["direct", "tcp"],
        Path::Relayed { .. } => ["relayed", "circuit"],
    };
    let links = &status.mesh.links;
    let of =
        |set: [&'static str; 2]| (set, links.iter().filter(|link| labels(&link.path) == set).count() as u64);
    out.family(&CONNECTIONS, [["direct", "quic"], ["direct", "tcp"], ["relayed", "circuit"]].map(of));
    out.one(&OPEN_STREAMS, links.iter().map(|link| u64::from(link.streams)).sum());
}

fn write_sessions(out: &mut Exposition, status: &Status) {
    let stats: &Stats = &status.stats;
    let at = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let both = |inward: &AtomicU64, outward: &AtomicU64| [(["in"], at(inward)), (["out"], at(outward))];
    out.one(&SESSIONS, status.sessions as u64);
    out.one(&HANDSHAKES, at(&stats.handshakes));
    out.family(&STREAMS, both(&stats.streams_in, &stats.streams_out));
    out.family(&EXCHANGES, both(&stats.exchanges_in, &stats.exchanges_out));
    out.family(&BYTES, both(&stats.bytes_in, &stats.bytes_out));
    out.one(&CARRIED_BYTES, at(&stats.bytes_carried));
}

fn write_refusals(out: &mut Exposition, status: &Status) {
    let links = status.stats.refusals().map(|(reason, count)| (["link", reason], count));
    let swarm = status.mesh.refusals.iter().map(|(reason, count)| (["swarm", reason.label()], *count));
    out.family(&REFUSALS, links.chain(swarm));
}

fn write_swarm(out: &mut Exposition, status: &Status) {
    let mesh = &status.mesh;
    out.family(&DEEDS, mesh.deeds.iter().map(|(deed, count)| ([deed.label()], *count)));
    out.one(&FLOWS, u64::from(mesh.flows_last_minute));
    out.one(&CONNECTING, u64::from(mesh.connecting));
    out.one(&RESERVATIONS, mesh.reservations.len() as u64);
    let reach = &mesh.reachability;
    out.family(&NAT_MAPPING, MAPPINGS.map(|(it, label)| ([label], u64::from(it == reach.mapping))));
    out.family(&NAT_FILTERING, FILTERINGS.map(|(it, label)| ([label], u64::from(it == reach.filtering))));
    let state = port_mapping(&reach.port_mapping);
    out.family(&PORT_MAPPING, PORT_MAPPINGS.map(|label| ([label], u64::from(label == state))));
    let role = mesh.table.map(|table| table.role);
    out.family(&TABLE_ROLE, TABLE_ROLES.map(|(it, label)| ([label], u64::from(it == role))));
    out.one(&TABLE_SERVERS, mesh.table.map_or(0, |table| u64::from(table.servers)));
    let names = mesh.table.map_or([0, 0], |table| [table.names_kept, table.names_ours]);
    out.family(&TABLE_NAMES, [(["others"], u64::from(names[0])), (["own"], u64::from(names[1]))]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoApp, Options};
    use std::{collections::BTreeSet, sync::Arc};

    #[test]
    fn values_of_labels_are_escaped() {
        let metric = gauge("kos_x", "", &["a", "b"], "An x.");
        let mut out = Exposition::default();
        out.family(&metric, [(["plain", "a \"b\" \\ c\nd"], 3)]);
        let expected =
            "# HELP kos_x An x.\n# TYPE kos_x gauge\nkos_x{a=\"plain\",b=\"a \\\"b\\\" \\\\ c\\nd\"} 3\n";
        assert_eq!(out.finish(), expected);
    }

    #[test]
    fn names_say_what_they_are() {
        let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.name.starts_with("kos_") && metric.help.ends_with('.'), "{}", metric.name);
            assert!(metric.name.contains(metric.unit), "{} is in {}", metric.name, metric.unit);
        }
    }

    #[tokio::test]
    async fn a_node_tells_every_metric_and_no_other() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::new(folder.path().join("node"));
        (options.mdns, options.upnp, options.kad) = (false, false, false);
        options.listen = Some(vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()]);
        let node = Runtime::start(options, Arc::new(NoApp)).await.unwrap();
        let text = node.metrics().await.unwrap().finish();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let told: Vec<String> = types.map(str::to_owned).collect();
        let known: Vec<String> =
            METRICS.iter().map(|metric| format!("{} {}", metric.name, metric.kind.label())).collect();
        assert_eq!(told, known);
        let federation = node.me().federation;
        assert!(text.contains(&format!("kos_members{{federation=\"{federation}\"}} 1\n")), "{text}");
        assert!(text.contains("kos_refusals_total{layer=\"link\",reason=\"preamble\"} 0\n"), "{text}");
        assert!(text.contains("kos_refusals_total{layer=\"swarm\",reason=\"memory\"} 0\n"), "{text}");
        node.shutdown().await;
        assert!(node.metrics().await.is_none());
    }
}
