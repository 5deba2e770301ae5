//! The federation every laboratory test begins with: `attic` with a web service behind its agent, `cellar`, and a relay.

use crate::{
    lab::{Background, Lab},
    node::{Binaries, Kai, Relay, until, until_or},
};
use std::{
    path::Path,
    process::Stdio,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A gateway whose holes can be punched.
pub const CONE: &str = "nat = \"port-restricted\"";
/// A gateway whose holes cannot be punched from behind another of its kind.
pub const SYMMETRIC: &str = "nat = \"symmetric\"";

/// The page the agent's origin serves at `/`.
pub const PAGE: &str = "hello from the attic\n";
/// The agent as cellar calls it.
pub const NOTES: &str = "kBridge:notes@attic";

/// The binaries cargo built for this test.
#[macro_export]
macro_rules! binaries {
    () => {
        $crate::node::Binaries {
            kai: env!("CARGO_BIN_EXE_kai-under-test").into(),
            relay: env!("CARGO_BIN_EXE_kai-relay-under-test").into(),
            tool: env!("CARGO_BIN_EXE_lab-tool").into(),
        }
    };
}

/// Laboratories take both cores; one at a time keeps their timing honest.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A public relay, and attic and cellar each behind a gateway of its own.
pub fn topology(internet: &str, attic: &str, cellar: &str) -> String {
    format!(
        "{internet}\n[gateways.home]\n{attic}\n[gateways.office]\n{cellar}\n\
         [hosts.relay]\n[hosts.attic]\nbehind = \"home\"\n[hosts.cellar]\nbehind = \"office\"\n"
    )
}

/// A federation of attic, cellar and the relay, with a web service behind attic's agent.
pub struct Story<'a> {
    /// The steward's node.
    pub attic: Kai<'a>,
    /// The node that joined.
    pub cellar: Kai<'a>,
    /// The relay.
    pub relay: Relay<'a>,
    /// How long `kai join` took.
    pub join_took: Duration,
    _origin: Background,
}

impl<'a> Story<'a> {
    /// Walks the story until cellar has joined.
    ///
    /// # Panics
    /// When a step fails.
    pub fn begin(lab: &'a Lab, binaries: &Binaries, folder: &Path) -> Self {
        Self::begin_after(lab, binaries, folder, || ())
    }

    /// As [`Story::begin`], with something done right before cellar joins.
    ///
    /// # Panics
    /// When a step fails.
    pub fn begin_after(
        lab: &'a Lab,
        binaries: &Binaries,
        folder: &Path,
        before_joining: impl FnOnce(),
    ) -> Self {
        Self::begin_set(lab, binaries, folder, &[], before_joining)
    }

    /// As [`Story::begin`], with these settings on both nodes.
    ///
    /// # Panics
    /// When a step fails.
    pub fn begin_with(lab: &'a Lab, binaries: &Binaries, folder: &Path, settings: &[String]) -> Self {
        Self::begin_set(lab, binaries, folder, settings, || ())
    }

    fn begin_set(
        lab: &'a Lab,
        binaries: &Binaries,
        folder: &Path,
        settings: &[String],
        before_joining: impl FnOnce(),
    ) -> Self {
        let relay = Relay::up(lab, "relay", binaries, folder);
        let attic = Kai::up_with(lab, "attic", binaries, folder, settings);
        attic.ask(&["relay", "add", &relay.line]);
        until("attic has a place at the relay", || {
            attic.json(&["relay", "list"])["relays"][0]["reserved"] == true
        });
        let origin = lab.start("attic", &binaries.tool, &["origin", "127.0.0.1:8123"]);
        attic.ask(&["agent", "start", "kBridge:notes", "--http", "http://127.0.0.1:8123"]);
        let cellar = Kai::up_with(lab, "cellar", binaries, folder, settings);
        let code = invitation(&attic);
        before_joining();
        let begun = Instant::now();
        cellar.ask(&["join", "--yes", &code]);
        let join_took = begun.elapsed();
        Self { attic, cellar, relay, join_took, _origin: origin }
    }

    /// Waits until cellar's calls to attic succeed; returns how long that took.
    ///
    /// # Panics
    /// When they never do.
    pub fn call_goes_through(&self) -> Duration {
        until_or(
            "a call goes through",
            || self.call_succeeds(),
            || {
                let call = self.cellar.run(&["call", NOTES, "/"]);
                let ping = self.cellar.run(&["ping", "attic"]);
                format!(
                    "call: {call:?}\nping: {ping:?}\nlog of cellar:\n{}\nlog of attic:\n{}",
                    self.cellar.log(),
                    self.attic.log()
                )
            },
        )
    }

    /// Whether cellar can call attic's agent now.
    pub fn call_succeeds(&self) -> bool {
        let output = self.cellar.run(&["call", NOTES, "/"]);
        output.status.success() && output.stdout == PAGE.as_bytes()
    }

    /// Waits until cellar's calls to attic take this path.
    ///
    /// # Panics
    /// When they never do.
    pub fn path_becomes(&self, path: &str) -> Duration {
        until(path, || self.cellar.path_to("attic") == path)
    }

    /// `kai forward` on cellar; the port is open when this returns.
    ///
    /// # Panics
    /// When it does not open.
    pub fn forward(&self, port: u16) -> Background {
        let port = port.to_string();
        let mut command = self.cellar.command(&["forward", &port, NOTES]);
        let mut forward = Background(command.stdout(Stdio::piped()).spawn().expect("kai forward starts"));
        let line = forward.line();
        assert_eq!(line, format!("http://127.0.0.1:{port}\n"));
        forward
    }
}

/// A fresh invitation of attic's, as soon as it can be reached from outside.
///
/// # Panics
/// When it never can.
pub fn invitation(attic: &Kai<'_>) -> String {
    invitation_as(attic, "member")
}

/// As [`invitation`], for another role.
///
/// # Panics
/// When it never can.
pub fn invitation_as(attic: &Kai<'_>, role: &str) -> String {
    let mut code = String::new();
    until("attic can invite", || {
        let invited = attic.json(&["invite", "--role", role]);
        code = invited["code"].as_str().unwrap_or_default().to_owned();
        !code.is_empty()
    });
    code
}
