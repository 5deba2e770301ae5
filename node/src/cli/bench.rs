//! `kai bench`.

use super::{Context, print};
use crate::{
    bench,
    errors::{Code, Exit, Failure},
};

/// Measures this machine, on loopback, in folders of its own. Needs no running node.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// KLP against raw quinn: bulk, new exchanges, ping-pong; and `kai forward` against direct HTTP.
    Link(Size),
    /// The directory: 100,000 records in memory, found, reconciled, and taken over by a node that joins.
    Directory(Records),
    /// A real node: start, status, memory with 20 peers, flows. Takes about two minutes.
    Node(Runs),
}

/// How often.
#[derive(Debug, clap::Args)]
pub struct Runs {
    /// Starts measured; the figure is the median.
    #[arg(long, default_value_t = bench::RUNS)]
    runs: usize,
}

/// How many records.
#[derive(Debug, clap::Args)]
pub struct Records {
    /// Records in the directory.
    #[arg(long, default_value_t = 100_000)]
    records: usize,
}

/// How much work.
#[derive(Debug, clap::Args)]
pub struct Size {
    /// Megabytes of a bulk run.
    #[arg(long, default_value_t = 256)]
    bulk_mb: usize,
    /// Exchanges of a small run.
    #[arg(long, default_value_t = 4000)]
    exchanges: usize,
    /// Alternating runs of each side; the figure is the median.
    #[arg(long, default_value_t = bench::RUNS)]
    runs: usize,
    /// Only the figures whose names begin so.
    #[arg(long, default_value = "")]
    only: String,
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    // A provider that is there already serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let failed = |error: &dyn std::fmt::Display| Code::Internal.because(error);
    let place = tempfile::tempdir().map_err(|error| failed(&error))?;
    let report = match command {
        Command::Link(size) => {
            let size = bench::link::Size {
                bulk_bytes: size.bulk_mb << 20,
                exchanges: size.exchanges.max(64),
                runs: size.runs.max(1),
                only: size.only,
            };
            bench::link::run(place.path(), size).await
        }
        Command::Directory(Records { records }) => {
            bench::directory::run(place.path(), records.max(1_000)).await
        }
        Command::Node(Runs { runs }) => bench::node::run(place.path(), runs.max(1)).await,
    };
    let report = report.map_err(|error| failed(&format!("{error:#}")))?;
    if context.json {
        print(&format!("{}\n", serde_json::json!(report)));
    } else {
        print(&report.to_text());
    }
    Ok(Exit::Ok)
}
