//! A laboratory of network namespaces, made by `tests/netlab/netlab` and gone with the value.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// A running laboratory.
pub struct Lab {
    id: String,
    _topology: tempfile::NamedTempFile,
}

fn netlab() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("netlab/netlab")
}

impl Lab {
    /// Builds the topology: TOML as `netlab/README.md` describes it.
    ///
    /// # Panics
    /// When the laboratory cannot be built.
    pub fn up(topology: &str) -> Self {
        let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
        file.write_all(topology.as_bytes()).expect("a temporary file takes a topology");
        let owner = std::process::id().to_string();
        let output = Command::new("python3")
            .arg(netlab())
            .args(["up", "--owner", &owner])
            .arg(file.path())
            .output()
            .expect("python3 runs");
        assert!(output.status.success(), "netlab: {}", String::from_utf8_lossy(&output.stderr));
        let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Self { id, _topology: file }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("python3");
        command.arg(netlab()).args(words).env("NETLAB", &self.id);
        command
    }

    /// An order to the laboratory: `["partition", "a", "b"]`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn order(&self, words: &[&str]) -> String {
        let output = self.command(words).output().expect("python3 runs");
        assert!(output.status.success(), "netlab {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A command on a host, in the foreground; nothing of it is awaited.
    pub fn on(&self, host: &str, program: &Path, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("nl-{}-{host}", self.id)]).arg(program).args(words);
        // One pool: what a process holds does not hang on which of its threads asked for it.
        command.env("MALLOC_ARENA_MAX", "1");
        command
    }

    /// Runs a command on a host to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, host: &str, program: &Path, words: &[&str]) -> Output {
        self.on(host, program, words).stdin(Stdio::null()).output().expect("ip netns exec runs")
    }

    /// Starts a command on a host in the background.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&self, host: &str, program: &Path, words: &[&str]) -> Background {
        let child = self
            .on(host, program, words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("ip netns exec runs");
        Background(child)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).output();
    }
}

/// A process that ends with the value.
pub struct Background(pub Child);

impl Background {
    /// The next line of its standard output; empty at the end of it.
    ///
    /// # Panics
    /// When its output is not piped, or no text.
    pub fn line(&mut self) -> String {
        let stdout = self.0.stdout.as_mut().expect("standard output is piped");
        let mut line = Vec::new();
        let mut byte = [0];
        // Byte by byte, so that nothing behind the line is taken from whoever reads next.
        while line.last() != Some(&b'\n') && stdout.read(&mut byte).expect("its output can be read") == 1 {
            line.push(byte[0]);
        }
        String::from_utf8(line).expect("its output is text")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
