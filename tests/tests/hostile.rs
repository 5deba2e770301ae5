//! A node goes on serving its members whatever a hostile peer does to it.
//!
//! While each attack runs, an honest member calls. Afterwards the node's memory is where it was, the calls were about
//! as fast as before, and what was refused is counted under its label. `CI_LONG=1` runs each attack for a minute;
//! `HOSTILE=frames` runs only those whose name contains that.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_tests::{
    hostile::{ATTACKS, Attack},
    lab::Background,
    local::Local,
    node::until,
};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How much more memory an attack may take.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// How much slower the slowest hundredth of the calls may become.
const SLOWER_MAX: f64 = 10.0;
/// The slowest hundredth of quiet calls counts as no faster than this: on a machine that others use, too, a call
/// waits for a processor now and then.
const QUIET_MS_MIN: f64 = 5.0;
/// How often an attack is tried under which calls were slow: the machine may have been busy with something else, but not
/// each time.
const SLOW_TRIES: u32 = 3;
/// How much all attacks together may make the node log.
const LOG_BYTES_MAX: usize = 1 << 20;
/// How long calls are measured before each attack.
const QUIET: Duration = Duration::from_secs(1);

/// An attack that has not come to its point by then will not: a guard against hanging.
const ATTACK_MAX: Duration = Duration::from_secs(120);

/// How long an attack goes on, if that is enough for what it must cause.
fn at_least(attack: &Attack) -> Duration {
    let long = std::env::var("CI_LONG").as_deref() == Ok("1");
    attack.at_least.max(Duration::from_secs(if long { 60 } else { 5 }))
}

struct Scene {
    attic: Local,
    cellar: Local,
    code: String,
    idle_bytes: u64,
}

impl Scene {
    fn new(place: &Path) -> Self {
        let kai = Path::new(env!("CARGO_BIN_EXE_kai-under-test"));
        let (attic, cellar) = (Local::up(kai, place, "attic"), Local::up(kai, place, "cellar"));
        let code = attic.invitation(&["--role", "member", "--uses", "100"]);
        assert!(cellar.run(&["join", "--yes", &code]).status.success(), "{}", cellar.log());
        until("the honest member is connected", || {
            cellar.json(&["ping", "attic", "--count", "1"])["chosen"] == "direct"
        });
        let mut scene = Self { attic, cellar, code, idle_bytes: 0 };
        // What the first calls and the first newcomers leave behind belongs to an idle node.
        scene.calls_for(2 * QUIET);
        scene.idle_bytes = scene.resident_bytes();
        scene
    }

    fn resident_bytes(&self) -> u64 {
        self.attic.json(&["status"])["resident_bytes"].as_u64().unwrap()
    }

    fn refusals(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.attic.json(&["status"])["refusals"].clone()).unwrap()
    }

    /// What was refused since then.
    fn refusals_since(&self, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let since = |(label, count): (String, u64)| {
            let count = count - before.get(&label).copied().unwrap_or(0);
            (label, count)
        };
        self.refusals().into_iter().map(since).filter(|(_, count)| *count > 0).collect()
    }

    /// What calls of the honest member took, in milliseconds.
    fn calls(&self) -> Vec<f64> {
        let report = self.cellar.json(&["ping", "attic", "--count", "50"]);
        let took: Option<Vec<f64>> = report["rtts_ms"]
            .as_array()
            .map(|all| all.iter().filter_map(serde_json::Value::as_f64).collect());
        took.unwrap_or_else(|| panic!("an honest call failed: {report}\n{}", self.attic.log()))
    }

    fn calls_for(&self, time: Duration) -> Vec<f64> {
        let begun = Instant::now();
        let mut took = Vec::new();
        while begun.elapsed() < time {
            took.extend(self.calls());
        }
        took
    }
}

fn p99(mut took: Vec<f64>) -> f64 {
    took.sort_by(f64::total_cmp);
    took[took.len() * 99 / 100]
}

/// A hostile peer that has joined and begun. It ends with the value.
struct Peer {
    process: Background,
    begun: Instant,
}

impl Peer {
    fn begin(attack: &Attack, code: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hostile-peer"))
            .args([attack.name, "--seconds", &ATTACK_MAX.as_secs().to_string()])
            .env("HOSTILE_CODE", code)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let process = Background(child);
        assert!(said.next().is_some_and(|line| line.unwrap() == "begun"), "{}: not begun", attack.name);
        Self { process, begun: Instant::now() }
    }

    /// Whether it has not ended; it never should but at its time.
    fn is_at_it(&mut self, attack: &Attack) -> bool {
        match self.process.0.try_wait().unwrap() {
            None => true,
            Some(status) => {
                assert!(status.success(), "{}: the attack broke off", attack.name);
                false
            }
        }
    }
}

/// What an attack did to the node that it must not have done.
struct Harm {
    faults: Vec<String>,
    /// That calls took too long, if they did.
    slow: Option<String>,
}

fn suffer(scene: &mut Scene, attack: &Attack) -> Harm {
    let before = scene.refusals();
    let quiet_ms = p99(scene.calls_for(QUIET));
    let mut peer = Peer::begin(attack, &scene.code);
    let (mut took, mut peak_bytes) = (Vec::new(), 0);
    let mut counted = BTreeMap::new();
    let missing = |counted: &BTreeMap<String, u64>| {
        attack.refusals.iter().copied().filter(|label| !counted.contains_key(*label)).collect::<Vec<_>>()
    };
    // A slow disk holds an attack up, too: it has its time, and what it takes to be refused.
    while peer.is_at_it(attack) && (peer.begun.elapsed() < at_least(attack) || !missing(&counted).is_empty())
    {
        took.extend(scene.calls());
        peak_bytes = peak_bytes.max(scene.resident_bytes());
        counted = scene.refusals_since(&before);
    }
    let lasted = peer.begun.elapsed();
    assert!(scene.attic.is_running(), "{}: the node died: {}", attack.name, scene.attic.log());
    let (calls, attacked_ms, bytes) = (took.len(), p99(took), scene.resident_bytes());
    drop(peer);
    // A machine that is slower now than before was so under the attack, too.
    let quiet_ms = quiet_ms.max(p99(scene.calls_for(QUIET)));
    let grown = |bytes: u64| bytes.saturating_sub(scene.idle_bytes) as f64 / f64::from(1 << 20);
    println!(
        "{}: {lasted:.1?}; {calls} calls, p99 {quiet_ms:.2} -> {attacked_ms:.2} ms; memory +{:.1} MiB, at most +{:.1}; {counted:?}",
        attack.name,
        grown(bytes),
        grown(peak_bytes)
    );
    let slowest_ms = SLOWER_MAX * quiet_ms.max(QUIET_MS_MIN);
    let mut faults: Vec<String> =
        missing(&counted).iter().map(|label| format!("nothing was refused as {label}")).collect();
    if bytes > scene.idle_bytes + GROWTH_BYTES_MAX {
        faults.push(format!("memory grew by {:.1} MiB", grown(bytes)));
    }
    let slow = (attacked_ms > slowest_ms)
        .then(|| format!("{}: calls took {attacked_ms:.1} ms, quiet ones {quiet_ms:.1} ms", attack.name));
    let logged = scene.attic.log().len();
    if logged > LOG_BYTES_MAX {
        faults.push(format!("{logged} bytes in the log"));
    }
    if scene.attic.log().contains("panicked") {
        faults.push("something panicked".to_owned());
    }
    Harm { faults: faults.iter().map(|fault| format!("{}: {fault}", attack.name)).collect(), slow }
}

/// The faults of an attack, that of slow calls among them only if they are slow at each try.
fn faults_of(scene: &mut Scene, attack: &Attack) -> Vec<String> {
    let mut faults = Vec::new();
    let mut slow = None;
    for _ in 0..SLOW_TRIES {
        let harm = suffer(scene, attack);
        faults.extend(harm.faults);
        slow = harm.slow;
        match &slow {
            Some(slow) => println!("{slow}"),
            None => break,
        }
    }
    faults.extend(slow);
    faults
}

#[test]
fn a_node_serves_its_members_whatever_a_hostile_peer_does() {
    let place = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(place.path());
    println!("idle: {:.1} MiB", scene.idle_bytes as f64 / f64::from(1 << 20));
    let only = std::env::var("HOSTILE").unwrap_or_default();
    let faults: Vec<String> = ATTACKS
        .iter()
        .filter(|attack| attack.name.contains(&only))
        .flat_map(|attack| faults_of(&mut scene, attack))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}\nlog of the node:\n{}", scene.attic.log());
}
