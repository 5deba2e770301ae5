//! The `kos-simulations` command.

use clap::{Parser, Subcommand};
use kos_simulations::{
    figure::{Plot, Series},
    gossip::Params,
    latency::Latency,
    reach,
    reach::Setup,
    scenario::Scenario,
    world,
};
use std::{path::PathBuf, process::ExitCode};

/// Networks of engines in virtual time. One command for each figure.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How long a record takes to reach everybody, and what it costs.
    Directory {
        /// Nodes.
        #[arg(long, default_value_t = 1_000)]
        nodes: usize,
        /// Seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Records.
        #[arg(long, default_value_t = 20)]
        records: u32,
        /// Bytes of a record, about.
        #[arg(long, default_value_t = 1_024)]
        record_bytes: usize,
        /// Mesh peers in gossip [default: as the mesh runs].
        #[arg(long)]
        degree: Option<usize>,
        /// Peers told of hashes at each heartbeat [default: as the mesh runs].
        #[arg(long)]
        lazy: Option<usize>,
        /// Heartbeats a hash is told of [default: as the mesh runs].
        #[arg(long)]
        history: Option<u64>,
        /// Latencies, in percent of those measured.
        #[arg(long, default_value_t = 100)]
        latency: u32,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// What gossip costs in bytes against how fast it is, by mesh peers and latencies: CSV and SVG.
    Curve {
        /// Nodes.
        #[arg(long, default_value_t = 1_000)]
        nodes: usize,
        /// Seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where the files go.
        #[arg(long, default_value = "docs/figures")]
        folder: PathBuf,
    },
    /// A network under faults, and whether the rules hold: a file, or the name of one in `simulations/scenarios`.
    Scenario {
        /// Which.
        file: PathBuf,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Directory { nodes, seed, records, record_bytes, degree, lazy, history, latency, json } => {
            let mut params = degree.map_or_else(Params::default, Params::of_degree);
            params.gossip_lazy = lazy.unwrap_or(params.gossip_lazy);
            params.history_gossip = history.unwrap_or(params.history_gossip);
            let latency = Latency::Internet { percent: latency };
            let figures = reach::run(&Setup {
                nodes,
                seed,
                records,
                record_bytes,
                params,
                latency,
                ..Setup::default()
            });
            if json {
                println!("{}", serde_json::json!(figures));
            } else {
                println!("{figures:#?}");
            }
            ExitCode::SUCCESS
        }
        Command::Curve { nodes, seed, folder } => match curve(nodes, seed, &folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {}: {error}", folder.display());
                ExitCode::FAILURE
            }
        },
        Command::Scenario { file, seed, seeds, json } => match read(&file) {
            Ok(scenario) => scenarios(&scenario, seed..seed + seeds, json),
            Err(error) => {
                eprintln!("error: {}: {error}", file.display());
                ExitCode::from(2)
            }
        },
    }
}

fn curve(nodes: usize, seed: u64, folder: &std::path::Path) -> std::io::Result<()> {
    let mut csv =
        "latency_percent,degree,reach_mean_ms,reach_p99_ms,bytes_per_useful_byte,copies,missed\n".to_owned();
    let mut series = Vec::new();
    for percent in [50, 100, 200] {
        let mut points = Vec::new();
        for degree in 2..=8 {
            let params = Params::of_degree(degree);
            let latency = Latency::Internet { percent };
            let figures = reach::run(&Setup { nodes, seed, params, latency, ..Setup::default() });
            let reach::Figures { reach_mean_ms, reach_p99_ms, bytes_per_useful_byte, copies, missed, .. } =
                figures;
            csv += &format!(
                "{percent},{degree},{reach_mean_ms:.1},{reach_p99_ms:.1},{bytes_per_useful_byte:.3},{copies:.3},{missed}\n"
            );
            points.push((reach_mean_ms, bytes_per_useful_byte, format!("D={degree}")));
        }
        series.push(Series { name: format!("latencies at {percent} %"), points });
    }
    let plot = Plot {
        title: format!("A record of 1 KiB in {nodes} nodes: bytes received for each useful one"),
        x: "mean time to reach a node, ms".to_owned(),
        y: "bytes for each useful byte".to_owned(),
        series,
    };
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("gossip-curve.csv"), csv)?;
    std::fs::write(folder.join("gossip-curve.svg"), plot.to_svg())
}

fn read(file: &std::path::Path) -> Result<Scenario, String> {
    let named = PathBuf::from("simulations/scenarios").join(file).with_extension("toml");
    let file = if file.exists() { file } else { &named };
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    Scenario::parse(&text)
}

fn scenarios(scenario: &Scenario, seeds: std::ops::Range<u64>, json: bool) -> ExitCode {
    for seed in seeds {
        match world::run(scenario, seed) {
            Ok(outcome) if json => println!("{}", serde_json::json!(outcome)),
            Ok(outcome) => println!("{outcome:?}"),
            Err(violation) => {
                eprintln!("error: {violation}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
