//! `kai logs`.

use super::{Context, print};
use crate::{
    api::client::failure,
    errors::{Code, Exit, Failure},
    log::{self, LINES_MAX},
};
use http::Method;
use http_body_util::BodyExt;

/// What the running node logged.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The last lines; with --json one JSON object each.
    Tail {
        /// How many; the node keeps the last 1000.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
        lines: usize,
        /// Go on with those that follow, until Ctrl-C or the node stops.
        #[arg(short, long)]
        follow: bool,
    },
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    let Command::Tail { lines, follow } = command;
    let path = format!("/v1/logs?lines={}&follow={follow}", lines.min(LINES_MAX));
    let response = context.client.send(Method::GET, &path, &()).await?;
    let (head, mut body) = response.into_parts();
    if !head.status.is_success() {
        let bytes = body.collect().await.map_err(|error| Code::Protocol.because(error))?.to_bytes();
        return Err(failure(head.status, &bytes));
    }
    let mut lines = Lines::default();
    loop {
        let frame = tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Ok),
            frame = body.frame() => frame,
        };
        // A node that stops ends what it says; one that was killed breaks off, and has nothing to add either.
        let Some(Ok(frame)) = frame else { return Ok(Exit::Ok) };
        if let Some(part) = frame.data_ref() {
            lines.add(part, |line| show(context, line));
        }
    }
}

fn show(context: &Context, line: &str) {
    let line = if context.json { line.to_owned() } else { log::render(line) };
    print(&format!("{line}\n"));
}

/// Puts lines together from parts that end anywhere.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn add(&mut self, part: &[u8], mut show: impl FnMut(&str)) {
        self.0.extend_from_slice(part);
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            show(String::from_utf8_lossy(&line[..end]).as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_their_parts_end() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for part in ["{\"a\"", ":1}\n{\"b\":2}\n", "", "\n{\"c\":"] {
            lines.add(part.as_bytes(), |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["{\"a\":1}", "{\"b\":2}", ""]);
    }
}
