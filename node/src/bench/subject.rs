//! A node that is measured: a real process of this very program.

use anyhow::{Context, ensure};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// A guard against hanging.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// What a subject listens on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Listen {
    Quic,
    Tcp,
}

/// A `kai up` of this program, in a folder of its own.
pub(super) struct Subject {
    name: &'static str,
    folder: PathBuf,
    listen: String,
    process: Option<Child>,
}

impl Subject {
    /// On a port of its own, so that peers find it again after a restart.
    pub fn new(place: &Path, name: &'static str, listen: Listen) -> anyhow::Result<Self> {
        let listen = match listen {
            Listen::Quic => {
                let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
                format!("/ip4/127.0.0.1/udp/{port}/quic-v1")
            }
            Listen::Tcp => {
                let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                format!("/ip4/127.0.0.1/tcp/{port}")
            }
        };
        Ok(Self { name, folder: place.join(name), listen, process: None })
    }

    pub fn command(&self, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--folder").arg(&self.folder).args(words).stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Starts it; returns how long it took until it answered a first `status`.
    pub async fn up(&mut self) -> anyhow::Result<Duration> {
        let listen = format!("network.listen_addresses=[\"{}\"]", self.listen);
        let set = ["network.mdns=false", "network.upnp=false", "network.kad=false", listen.as_str()];
        let words: Vec<&str> = ["up", "--name", self.name]
            .into_iter()
            .chain(set.iter().flat_map(|setting| ["--set", setting]))
            .collect();
        let begun = Instant::now();
        let mut process = self.command(&words)?.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = process.stdout.take().context("standard output is piped")?;
        let line = BufReader::new(stdout).lines().next_line().await?.unwrap_or_default();
        ensure!(line.starts_with("up: "), "kai up said `{line}`");
        self.process = Some(process);
        self.json(&["status"]).await?;
        Ok(begun.elapsed())
    }

    pub async fn down(&mut self) -> anyhow::Result<()> {
        self.command(&["down"])?.stdout(Stdio::null()).stderr(Stdio::null()).status().await?;
        if let Some(mut process) = self.process.take() {
            process.wait().await?;
        }
        Ok(())
    }

    /// What a command answers, whether or not it has warnings.
    pub async fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let output = self.command(&[words, &["--json"]].concat())?.output().await?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("kai {words:?}"))
    }

    pub async fn resident_kib(&self) -> anyhow::Result<f64> {
        let status = self.json(&["status"]).await?;
        Ok(status["resident_bytes"].as_f64().context("a node tells its memory")? / 1024.0)
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !holds(&self.json(&["status"]).await?) {
            ensure!(begun.elapsed() < PATIENCE, "this did not come about: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// An invitation for so many nodes of this machine.
    pub async fn invitation(&self, uses: usize) -> anyhow::Result<String> {
        let uses = uses.to_string();
        let begun = Instant::now();
        loop {
            // Listening addresses come a moment after the start.
            let invited = self.json(&["invite", "--lan", "--uses", &uses]).await?;
            if let Some(code) = invited["code"].as_str() {
                return Ok(code.to_owned());
            }
            ensure!(begun.elapsed() < PATIENCE, "no invitation: {invited}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
