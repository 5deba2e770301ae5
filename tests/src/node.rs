//! A node or a relay as a real process on a host of the laboratory, driven by its command line.

use crate::lab::{Background, Lab};
use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Longest wait for anything that must happen: a guard against hanging, not a measure.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a condition.
///
/// # Panics
/// After [`PATIENCE`].
pub fn until(what: &str, holds: impl FnMut() -> bool) -> Duration {
    until_or(what, holds, String::new)
}

/// As [`until`], and says `why` when it does not come about.
///
/// # Panics
/// After [`PATIENCE`].
pub fn until_or(what: &str, mut holds: impl FnMut() -> bool, why: impl FnOnce() -> String) -> Duration {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() >= PATIENCE {
            panic!("never: {what}\n{}", why());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    begun.elapsed()
}

/// The binaries under test, beside the test's own.
pub struct Binaries {
    /// `kai`.
    pub kai: PathBuf,
    /// `kai-relay`.
    pub relay: PathBuf,
    /// `lab-tool`.
    pub tool: PathBuf,
}

/// A node on a host.
pub struct Kai<'a> {
    lab: &'a Lab,
    host: String,
    kai: PathBuf,
    folder: PathBuf,
    settings: Vec<String>,
    process: Option<Background>,
}

impl<'a> Kai<'a> {
    /// `kai up` on this host; returns once it says that it is up.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn up(lab: &'a Lab, host: &str, binaries: &Binaries, folder: &Path) -> Self {
        Self::up_with(lab, host, binaries, folder, &[])
    }

    /// As [`Kai::up`], with these settings: `network.upnp=true`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn up_with(
        lab: &'a Lab,
        host: &str,
        binaries: &Binaries,
        folder: &Path,
        settings: &[String],
    ) -> Self {
        let mut node = Self {
            lab,
            host: host.to_owned(),
            kai: binaries.kai.clone(),
            folder: folder.join(host),
            settings: settings.to_vec(),
            process: None,
        };
        node.start();
        node
    }

    /// Starts it again after [`Kai::kill`] or [`Kai::down`].
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(&mut self) {
        let folder = self.folder.display().to_string();
        let words = [
            "--folder",
            &folder,
            "up",
            "--name",
            &self.host,
            "--set",
            "network.test_addresses=true",
            "--set",
            "network.upnp=false",
            "--set",
            &std::env::var("LAB_LOG")
                .map_or("log.level=info".to_owned(), |level| format!("log.level={level}")),
        ];
        let log = std::fs::File::create(self.folder.with_extension("log")).expect("a log file");
        let child = self
            .lab
            .on(&self.host, &self.kai, &words)
            .args(self.settings.iter().flat_map(|setting| ["--set", setting]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("kai starts");
        let mut process = Background(child);
        let line = process.line();
        self.process = Some(process);
        assert!(line.starts_with("up: "), "kai on {} said `{line}`; log: {}", self.host, self.log());
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default()
    }

    /// Its data folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Kills it without notice.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").0.id()
    }

    /// What it counts now, by the name and labels of `docs/metrics.md`; 0 for what it does not tell.
    pub fn metric(&self, series: &str) -> u64 {
        let socket = self.folder.join("kai.sock").display().to_string();
        let words = ["-s", "--max-time", "10", "--unix-socket", &socket, "http://kai/v1/metrics"];
        value_of(&self.lab.run(&self.host, Path::new("/usr/bin/curl"), &words).stdout, series)
    }

    /// A command to it, ready to run.
    pub fn command(&self, words: &[&str]) -> Command {
        let folder = self.folder.display().to_string();
        self.lab.on(&self.host, &self.kai, &[&["--folder", folder.as_str()], words].concat())
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).stdin(Stdio::null()).output().expect("kai runs")
    }

    /// What a command prints; it must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ask(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kai {words:?} on {}: {error}\n{}", self.host, self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What a command prints with `--json`, whatever it exits with.
    ///
    /// # Panics
    /// When that is no JSON.
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let output = self.run(&[words, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("kai {words:?}: {error}: {}", String::from_utf8_lossy(&output.stdout))
        })
    }

    /// Stops it in order.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn down(&mut self) {
        self.ask(&["down"]);
        if let Some(mut process) = self.process.take() {
            process.0.wait().expect("it can be waited for");
        }
    }

    /// The path calls to this member take: `direct`, `carried`, or why there is none.
    pub fn path_to(&self, name: &str) -> String {
        let report = self.json(&["ping", name, "--count", "1"]);
        report["chosen"].as_str().map_or_else(|| report["error"]["message"].to_string(), str::to_owned)
    }
}

impl Drop for Kai<'_> {
    fn drop(&mut self) {
        keep_log(&self.host, &self.log());
    }
}

/// With `LAB_LOGS=FOLDER` the logs of nodes outlive them there.
fn keep_log(host: &str, log: &str) {
    if let Some(folder) = std::env::var_os("LAB_LOGS") {
        let _ = std::fs::write(Path::new(&folder).join(host).with_extension("log"), log);
    }
}

/// A relay on a public host.
pub struct Relay<'a> {
    lab: &'a Lab,
    host: String,
    program: PathBuf,
    folder: PathBuf,
    process: Option<Background>,
    /// What it printed.
    pub line: String,
}

impl<'a> Relay<'a> {
    /// `kai-relay` on this host; returns once it printed its line.
    ///
    /// # Panics
    /// When it does not.
    pub fn up(lab: &'a Lab, host: &str, binaries: &Binaries, folder: &Path) -> Self {
        let mut relay = Self {
            lab,
            host: host.to_owned(),
            program: binaries.relay.clone(),
            folder: folder.join(host),
            process: None,
            line: String::new(),
        };
        relay.start();
        relay
    }

    /// Starts it again after [`Relay::kill`].
    ///
    /// # Panics
    /// When it does not print its line.
    pub fn start(&mut self) {
        let folder = self.folder.display().to_string();
        let log_path = self.folder.with_extension("log");
        let log = std::fs::File::create(&log_path).expect("a log file");
        let child = self
            .lab
            .on(&self.host, &self.program, &["--folder", &folder, "--name", &self.host, "--test-addresses"])
            .args(["--metrics", METRICS])
            .envs(std::env::var("LAB_LOG").map(|level| ("KAI_LOG", level)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("kai-relay starts");
        let mut process = Background(child);
        self.line = process.line().trim().to_owned();
        self.process = Some(process);
        let log = std::fs::read_to_string(log_path).unwrap_or_default();
        assert!(self.line.starts_with("kai:relay/"), "kai-relay said `{}`: {log}", self.line);
    }

    /// What it logged since it was started.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default()
    }

    /// The addresses it says that others may begin with in the hash table.
    pub fn bootstrap(&self) -> Vec<String> {
        let log = self.log();
        let said = log.lines().filter_map(|line| line.split_once("bootstrap="));
        said.filter_map(|(_, rest)| Some(rest.split_whitespace().next()?.to_owned())).collect()
    }

    /// What it counts now, by the name and labels of `docs/metrics.md`; 0 for what it does not tell.
    pub fn metric(&self, series: &str) -> u64 {
        let words = ["-s", "--max-time", "10", &format!("http://{METRICS}/metrics")];
        value_of(&self.lab.run(&self.host, Path::new("/usr/bin/curl"), &words).stdout, series)
    }

    /// Kills it without notice.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").0.id()
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        keep_log(&self.host, &self.log());
    }
}

/// Where a relay tells what it counts.
const METRICS: &str = "127.0.0.1:9100";

/// One value of Prometheus' text format.
fn value_of(exposition: &[u8], series: &str) -> u64 {
    let text = String::from_utf8_lossy(exposition);
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Memory a process has in RAM, in KiB; 0 once it is gone.
pub fn resident_kib(pid: u32) -> u64 {
    memory_kib(pid, "VmRSS:")
}

/// The most memory a process had in RAM since [`forget_peak`], or since it began, in KiB; 0 once it is gone.
pub fn peak_resident_kib(pid: u32) -> u64 {
    memory_kib(pid, "VmHWM:")
}

/// Begins a new peak at what the process has in RAM now (`proc_pid_clear_refs(5)`).
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process runs");
}

fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
