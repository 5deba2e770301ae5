//! A node as a real process on loopback, driven by its command line.

use crate::lab::Background;
use std::{
    io::{Read, Write},
    net::{TcpListener, UdpSocket},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// A node that talks to nobody but nodes of this machine.
pub struct Local {
    kai: PathBuf,
    folder: PathBuf,
    name: String,
    /// The same at each start, so that others find it again.
    port: u16,
    process: Option<Background>,
}

impl Local {
    /// `kai up` in a folder of its own below `place`; returns once it says that it is up.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn up(kai: &Path, place: &Path, name: &str) -> Self {
        let mut node = Self::down_in(kai, &place.join(name), name);
        node.start();
        node
    }

    /// A node in this folder that does not run.
    pub fn down_in(kai: &Path, folder: &Path, name: &str) -> Self {
        let (kai, folder, name) = (kai.to_owned(), folder.to_owned(), name.to_owned());
        Self { kai, folder, name, port: free_port(), process: None }
    }

    /// Starts it, again.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(&mut self) {
        let log = std::fs::File::create(self.folder.with_extension("log")).expect("a log file");
        let port = self.port;
        let listen = format!(
            "network.listen_addresses=[\"/ip4/127.0.0.1/udp/{port}/quic-v1\", \"/ip4/127.0.0.1/tcp/{port}\"]"
        );
        let settings = ["network.mdns=false", "network.upnp=false", "network.kad=false", &listen];
        let child = Command::new(&self.kai)
            .arg("--folder")
            .arg(&self.folder)
            .args(["up", "--name", &self.name])
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            .args(
                std::env::var("LAB_LOG")
                    .ok()
                    .into_iter()
                    .flat_map(|level| ["--set".to_owned(), format!("log.level={level}")]),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("kai starts");
        let mut process = Background(child);
        let line = process.line();
        self.process = Some(process);
        assert!(line.starts_with("up: "), "kai {} said `{line}`; log: {}", self.name, self.log());
    }

    /// Stops it in order.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn down(&mut self) {
        let output = self.run(&["down"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        if let Some(mut process) = self.process.take() {
            process.0.wait().expect("it can be waited for");
        }
    }

    /// Kills it, as a power cut would.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.0.kill().expect("it can be killed");
        process.0.wait().expect("it can be waited for");
    }

    /// What it ended with by itself; waits for that.
    ///
    /// # Panics
    /// When it was not running.
    pub fn exit_code(&mut self) -> Option<i32> {
        let mut process = self.process.take().expect("it runs");
        process.0.wait().expect("it can be waited for").code()
    }

    /// Its data folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default()
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.0.try_wait(), Ok(None)))
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(&self.kai);
        command.arg("--folder").arg(&self.folder).args(words).stdin(Stdio::null());
        command.output().expect("kai runs")
    }

    /// Runs a command that reads one line; it must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn answer(&self, words: &[&str], line: &str) {
        let mut command = Command::new(&self.kai);
        command.arg("--folder").arg(&self.folder).args(words).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("kai runs");
        let mut stdin = child.stdin.take().expect("standard input is piped");
        writeln!(stdin, "{line}").expect("kai reads");
        drop(stdin);
        assert!(child.wait().expect("it can be waited for").success(), "kai {words:?}");
    }

    /// What the local API answers to a `GET`, for what no command prints.
    ///
    /// # Panics
    /// When it does not answer with JSON.
    pub fn get(&self, route: &str) -> serde_json::Value {
        let mut socket = UnixStream::connect(self.folder.join("kai.sock")).expect("the node listens");
        write!(socket, "GET {route} HTTP/1.1\r\nHost: kai\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("it answers");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{route}: {error}: {answer}"))
    }

    /// What a command prints with `--json`; it must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let output = self.run(&[words, &["--json"]].concat());
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("kai {words:?}: {error}: {} {}", shown(&output.stdout), shown(&output.stderr))
        })
    }

    /// What a command prints; it must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ask(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kai {words:?} on {}: {error}\n{}", self.name, self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// An invitation of this node for a node of this machine, once it has an address.
    ///
    /// # Panics
    /// When it never has.
    pub fn invitation(&self, words: &[&str]) -> String {
        let mut code = String::new();
        crate::node::until("an invitation", || {
            let invited = self.json(&[&["invite", "--lan"], words].concat());
            code = invited["code"].as_str().unwrap_or_default().to_owned();
            !code.is_empty()
        });
        code
    }
}

/// A port of loopback that is free for UDP and TCP, handed out once in this process. None of those that the system gives
/// to whoever connects: it stays free while a node that had it is down.
pub fn free_port() -> u16 {
    static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(97) + HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + u16::try_from(number % 22_000).expect("below 22,000");
        let is_free = UdpSocket::bind(("127.0.0.1", port)).is_ok();
        if is_free && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
