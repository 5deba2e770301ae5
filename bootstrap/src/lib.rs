//! `kai-relay`: a public node that gives members behind NATs a path to each other.
//!
//! It keeps reservations and opens circuits (introductions and joining only), carries sealed streams between members
//! within a byte rate, answers AutoNAT and takes part in the hash table. It has no agents, no vault and no command
//! socket: what it serves is decided by the federations that claim it.
//!
//! It refuses to start while it knows no address at which others reach it: a relay that nobody reaches would only
//! make its members wait.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod metrics;

use anyhow::Context;
use clap::Parser;
use kos_mesh::{
    Documentation, Multiaddr, Transport,
    addr::{self, Scope},
    link::Caller,
    multiaddr::Protocol,
};
use kos_protocol::message::{End, Head};
use kos_shell::{Answering, App, AuditEvent, Change, NoApp, NodeRole, Options, Runtime, Secrets};
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};
use tokio::sync::Notify;

/// Gives members behind NATs a path to each other.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
pub struct Args {
    /// Where keys and federations are kept.
    #[arg(long, env = "KAI_RELAY_FOLDER", value_name = "PATH")]
    folder: Option<PathBuf>,
    /// What the relay calls itself; the host's name if not given.
    #[arg(long, env = "KAI_RELAY_NAME")]
    name: Option<String>,
    /// UDP and TCP port to listen on, IPv4 and IPv6.
    #[arg(long, env = "KAI_RELAY_PORT", default_value_t = 4100)]
    port: u16,
    /// An address at which others reach this relay: an IP address, or a multiaddr. May be given several times.
    ///
    /// Without it, public addresses of this host's own interfaces are taken.
    #[arg(long = "external", env = "KAI_RELAY_EXTERNAL", value_delimiter = ',', value_name = "ADDRESS")]
    external: Vec<String>,
    /// Bytes a second carried for each member, both directions together.
    #[arg(long, env = "KAI_RELAY_RATE", default_value_t = 25_000_000, value_name = "BYTES",
        value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// Listen on loopback only and take it for reachable. For trying things out on one machine.
    #[arg(long)]
    loopback: bool,
    /// Let documentation addresses (198.51.100.0/24 and the like) count as public. For laboratories.
    #[arg(long, hide = true)]
    test_addresses: bool,
    /// Log as JSON.
    #[arg(long)]
    log_json: bool,
    /// Tell Prometheus what is counted, at `http://ADDRESS/metrics`. An address of loopback with its port.
    #[arg(long, env = "KAI_RELAY_METRICS", value_name = "ADDRESS", value_parser = metrics::loopback)]
    metrics: Option<SocketAddr>,
}

/// Runs the program.
pub fn main() -> ExitCode {
    // Keys and databases are for this user alone, whatever the caller's mask was.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let args = Args::parse();
    start_log(args.log_json);
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a crypto provider was installed before");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kai-relay: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kai-relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KAI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,libp2p=warn,netlink=warn"));
    let colours =
        std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    if json { log.json().init() } else { log.with_target(false).init() }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let mut options = options(&args, own_addresses())?;
    let external = options.external.clone();
    options.secrets = Secrets::of_system().context("a secret that was given is of no use")?;
    let app = Arc::new(RelayApp::default());
    let runtime = Runtime::start(options, app.clone()).await.context("the relay did not start")?;
    if let Some(address) = args.metrics {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("metrics cannot be told at {address}"))?;
        tracing::info!(address = %listener.local_addr()?, "tells metrics");
        tokio::spawn(metrics::serve(listener, runtime.clone()));
    }
    for address in &external {
        // What others write into their `network.bootstrap`.
        tracing::info!(bootstrap = %format!("{address}/p2p/{}", runtime.me().peer_id), "reachable");
    }
    show_line(&runtime)?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => break,
            _ = terminate.recv() => break,
            () = app.claimed.notified() => {
                // The old line is used up.
                show_line(&runtime)?;
            }
        }
    }
    runtime.shutdown().await;
    Ok(())
}

/// The line goes to stdout: it is what this program is asked for. Everything else is on stderr.
fn show_line(runtime: &Runtime) -> anyhow::Result<()> {
    let line = runtime.relay_line().context("the relay has no line to show")?;
    for federation in runtime.federations() {
        tracing::info!(federation = %federation.id, name = federation.name, "serves");
    }
    // A reader that went away is no reason to stop carrying.
    if std::io::Write::write_all(&mut std::io::stdout(), format!("{line}\n").as_bytes()).is_err() {
        tracing::debug!("nobody reads standard output any more");
    }
    eprintln!("give the line above to a steward: kai relay add 'kai:…'");
    Ok(())
}

/// What the arguments ask for, on a host with these addresses of its own.
fn options(args: &Args, own: Vec<IpAddr>) -> anyhow::Result<Options> {
    let folder = match &args.folder {
        Some(folder) => folder.clone(),
        None => default_folder().context("no home folder is known: give --folder PATH")?,
    };
    let documentation = if args.test_addresses { Documentation::Global } else { Documentation::Unusable };
    let mut options = Options::new(folder);
    options.name.clone_from(&args.name);
    options.role = NodeRole::Relay;
    options.port = args.port;
    options.mdns = false;
    options.upnp = false;
    options.carry_bytes_per_second =
        NonZeroU64::new(args.rate).context("nothing can be carried at --rate 0: give 1 or more")?;
    options.agent = concat!("kai-relay/", env!("CARGO_PKG_VERSION")).to_owned();
    anyhow::ensure!(args.port != 0, "a relay's port must be known to others: give --port NUMBER");
    if args.loopback {
        let local = both_transports(IpAddr::from([127, 0, 0, 1]), args.port);
        options.listen = Some(local.clone());
        options.external = local;
        options.kad = false;
        return Ok(options);
    }
    options.documentation = documentation;
    for text in &args.external {
        options.external.extend(parse_external(text, args.port, documentation)?);
    }
    if options.external.is_empty() {
        let own = own.into_iter().flat_map(|ip| both_transports(ip, args.port));
        options.external = own.filter(|own| addr::scope(own, documentation) == Scope::Global).collect();
    }
    anyhow::ensure!(
        !options.external.is_empty(),
        "no address is known at which others reach this relay: this host has no public address of its own\n\
         hint: kai-relay --external PUBLIC-IP   (and forward UDP and TCP port {} to this host)",
        args.port
    );
    Ok(options)
}

fn default_folder() -> Option<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from);
    Some(data.or_else(|| Some(home?.join(".local/share")))?.join("kai-relay"))
}

/// An IP address stands for QUIC and TCP on our port; a multiaddr for itself. Refuses what nobody outside could use: a
/// relay that gives out such an address would only make its members wait.
fn parse_external(text: &str, port: u16, documentation: Documentation) -> anyhow::Result<Vec<Multiaddr>> {
    let text = text.trim();
    let addresses = match text.parse::<IpAddr>() {
        Ok(ip) => both_transports(ip, port),
        Err(_) => {
            let address: Multiaddr =
                text.parse().with_context(|| format!("`{text}` is neither an IP address nor a multiaddr"))?;
            vec![addr::without_peer(&address)]
        }
    };
    for address in &addresses {
        check_external(address, documentation).map_err(|why| anyhow::anyhow!("--external {text}: {why}"))?;
    }
    Ok(addresses)
}

fn check_external(address: &Multiaddr, documentation: Documentation) -> Result<(), &'static str> {
    if addr::is_circuit(address) {
        return Err("this leads through another relay; give an address of this host");
    }
    let parts = match addr::transport(address) {
        Some(Transport::Quic) => 3,
        Some(Transport::Tcp) => 2,
        None => 0,
    };
    if address.iter().count() != parts {
        return Err("neither QUIC nor TCP: write /ip4/ADDRESS/udp/PORT/quic-v1 or /ip4/ADDRESS/tcp/PORT");
    }
    if addr::port(address) == Some(0) {
        return Err("port 0 is no port that others could use");
    }
    match addr::scope(address, documentation) {
        Scope::Global => Ok(()),
        Scope::Loopback => {
            Err("only this machine reaches this address; to try things out there is --loopback")
        }
        Scope::Private => Err("nobody outside this network reaches this address; give the one others see"),
        Scope::Unusable => Err("no host on the internet has this address"),
    }
}

fn both_transports(ip: IpAddr, port: u16) -> Vec<Multiaddr> {
    let base = Multiaddr::from(ip);
    vec![base.clone().with(Protocol::Udp(port)).with(Protocol::QuicV1), base.with(Protocol::Tcp(port))]
}

/// The addresses packets to the outside would leave from. Sends nothing: connecting a UDP socket only picks a route.
fn own_addresses() -> Vec<IpAddr> {
    let outside = ["192.0.2.1:9", "198.51.100.254:9", "[2001:db8::1]:9", "[2606::1]:9"];
    let mut own: Vec<IpAddr> = outside
        .iter()
        .filter_map(|target| {
            let any = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = std::net::UdpSocket::bind(any).ok()?;
            socket.connect(target).ok()?;
            Some(socket.local_addr().ok()?.ip())
        })
        .collect();
    own.sort();
    own.dedup();
    own
}

/// A relay has no calls to answer; it shows a new line when the old one was used.
#[derive(Default)]
struct RelayApp {
    claimed: Notify,
}

impl App for RelayApp {
    fn admit(&self, caller: &Caller, head: &Head) -> Result<Answering, End> {
        NoApp.admit(caller, head)
    }
    fn audit(&self, event: AuditEvent) {
        tracing::info!(?event, "audit");
    }
    fn changed(&self, change: Change) {
        if change == Change::Claimed {
            self.claimed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Args {
        Args::try_parse_from([&["kai-relay", "--folder", "/nowhere"], words].concat()).unwrap()
    }

    fn options_of(words: &[&str], own: &[&str]) -> anyhow::Result<Options> {
        options(&args(words), own.iter().map(|ip| ip.parse().unwrap()).collect())
    }

    fn external(words: &[&str], own: &[&str]) -> Vec<String> {
        options_of(words, own).unwrap().external.iter().map(ToString::to_string).collect()
    }

    fn refusal(words: &[&str], own: &[&str]) -> String {
        format!("{:#}", options_of(words, own).unwrap_err())
    }

    #[test]
    fn an_ip_address_stands_for_both_transports() {
        let both = ["/ip4/9.9.9.9/udp/4100/quic-v1", "/ip4/9.9.9.9/tcp/4100"];
        assert_eq!(external(&["--external", "9.9.9.9"], &[]), both);
        assert_eq!(external(&[], &["10.0.0.7", "9.9.9.9"]), both, "a public address of the host's own");
        let one = "/ip6/2a01::1/udp/7/quic-v1";
        assert_eq!(external(&["--external", one], &["9.9.9.9"]), [one], "what is said beats what is found");
        assert_eq!(
            external(&["--external", "9.9.9.9,/dns4/relay.example/tcp/7"], &[]).last().unwrap(),
            "/dns4/relay.example/tcp/7"
        );
        assert!(refusal(&["--external", "home"], &[]).contains("neither an IP address nor a multiaddr"));
    }

    #[test]
    fn a_relay_that_nobody_reaches_does_not_start_and_says_what_to_set() {
        for own in [
            &[][..],
            &["10.1.2.3", "192.168.1.1", "127.0.0.1"],
            &["100.64.0.1", "169.254.1.1", "198.18.0.1", "198.51.100.7"],
            &["224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.1", "0.0.0.0"],
            &["fe80::1", "fd00::1", "ff02::1", "2001:db8::1", "::1", "::"],
        ] {
            let why = refusal(&[], own);
            assert!(why.contains("no address is known"), "{own:?}: {why}");
            assert!(why.contains("hint: kai-relay --external PUBLIC-IP") && why.contains("4100"), "{why}");
        }
    }

    #[test]
    fn an_address_that_leads_nowhere_is_refused() {
        let relay = "/ip4/9.9.9.9/udp/1/quic-v1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        let circuit = format!("{relay}/p2p-circuit");
        for (address, why) in [
            ("10.0.0.1", "outside this network"),
            ("/ip4/192.168.1.1/tcp/4100", "outside this network"),
            ("fd00::1", "outside this network"),
            ("127.0.0.1", "--loopback"),
            ("100.64.0.1", "no host on the internet"),
            ("198.18.0.1", "no host on the internet"),
            ("240.0.0.1", "no host on the internet"),
            ("239.1.1.1", "no host on the internet"),
            ("203.0.113.7", "no host on the internet"),
            ("0.0.0.0", "no host on the internet"),
            ("/ip4/9.9.9.9/udp/4100", "neither QUIC nor TCP"),
            ("/ip4/9.9.9.9/udp/4100/quic-v1/webtransport", "neither QUIC nor TCP"),
            ("/ip4/9.9.9.9/tcp/4100/ws", "neither QUIC nor TCP"),
            ("/ip4/9.9.9.9", "neither QUIC nor TCP"),
            ("/ip4/9.9.9.9/tcp/0", "port 0"),
            (circuit.as_str(), "another relay"),
        ] {
            let refused = refusal(&["--external", address], &["9.9.9.9"]);
            assert!(refused.contains(address) && refused.contains(why), "{address}: {refused}");
        }
        assert_eq!(external(&["--external", relay], &[]), ["/ip4/9.9.9.9/udp/1/quic-v1"]);
        let laboratory = ["--external", "203.0.113.7", "--test-addresses"];
        assert_eq!(external(&laboratory, &[]).len(), 2);
    }

    #[test]
    fn a_rate_of_nothing_is_no_rate() {
        for zero in ["0", "x"] {
            let words = ["kai-relay", "--folder", "/nowhere", "--rate", zero];
            let refused = Args::try_parse_from(words).unwrap_err();
            assert_eq!(refused.exit_code(), 2);
            assert!(refused.to_string().contains("--rate"), "{refused}");
        }
        assert_eq!(args(&["--rate", "1"]).rate, 1);
    }

    #[test]
    fn a_port_is_always_known() {
        assert!(refusal(&["--loopback", "--port", "0"], &[]).contains("--port"));
        assert!(refusal(&["--port", "0"], &["9.9.9.9"]).contains("--port"));
        assert_eq!(external(&["--loopback"], &[]).len(), 2);
    }

    /// What a package of the lock file depends on.
    fn dependencies<'a>(lock: &'a str, package: &str) -> Vec<&'a str> {
        let named = format!("name = \"{package}\"\n");
        let sections = lock.split("[[package]]\n").filter(|section| section.starts_with(&named));
        let lists = sections.filter_map(|section| section.split_once("dependencies = ["));
        let quoted = lists.flat_map(|(_, list)| list.split('"').skip(1).step_by(2));
        quoted.filter_map(|text| text.split(' ').next()).collect()
    }

    #[test]
    fn a_relay_brings_no_agents_no_node_and_no_web_framework() {
        let lock = include_str!("../../Cargo.lock");
        let (mut reached, mut open) = (std::collections::BTreeSet::new(), vec!["kos-bootstrap"]);
        while let Some(package) = open.pop() {
            if reached.insert(package) {
                open.extend(dependencies(lock, package));
            }
        }
        assert!(reached.contains("kos-mesh") && reached.contains("libp2p"), "{reached:?}");
        for heavy in ["kos-node", "kos-agents", "axum"] {
            assert!(!reached.contains(heavy), "{heavy}");
        }
    }
}
