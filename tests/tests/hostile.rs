//! A node goes on serving its members whatever a hostile peer does to it.
//!
//! While each attack runs, an honest member calls. Afterwards the node's memory is where it was, the calls were about
//! as fast as before, and what was refused is counted under its label; of records the directory says who passed them on,
//! and who made too many. `CI_LONG=1` runs each attack for a minute;
//! `HOSTILE=frames` runs only those whose name contains that.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_protocol::limits::{RECORDS_BYTES_PER_AUTHOR_MAX, RECORDS_PER_AUTHOR_MAX};
use kos_tests::{
    hostile::{ATTACKS, Attack},
    lab::Background,
    local::Local,
    node::until,
};
use serde_json::Value;
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
/// Members of whom any record may be taken: the honest ones, and the one whose records are sound and too many.
const AUTHORS: [&str; 3] = ["attic", "cellar", "floods-of-records"];
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
        let mut refusals: BTreeMap<String, u64> =
            serde_json::from_value(self.attic.json(&["status"])["refusals"].clone()).unwrap();
        refusals.extend(Self::directory_refusals(&self.attic.json(&["directory", "stats"])));
        refusals
    }

    /// The same of its directory, by the name of who is to blame: passed on by it, or authored by it.
    fn directory_refusals(stats: &Value) -> BTreeMap<String, u64> {
        let authored = stats["authors"].as_array().unwrap().iter();
        let authored = authored.map(|author| (authored_by(&text(&author["name"])), &author["refused"]));
        let from = stats["refused_from"].as_object().unwrap().iter();
        let from = from.map(|(name, refused)| (passed_on_by(name), refused));
        authored
            .chain(from)
            .flat_map(|(whose, refused)| {
                let count =
                    |(label, count): (&String, &Value)| (format!("{whose}{label}"), count.as_u64().unwrap());
                refused.as_object().unwrap().iter().map(count).collect::<Vec<_>>()
            })
            .collect()
    }

    /// What was refused since then.
    fn refusals_since(&self, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let since = |(label, count): (String, u64)| {
            let count = count - before.get(&label).copied().unwrap_or(0);
            (label, count)
        };
        self.refusals().into_iter().map(since).filter(|(_, count)| *count > 0).collect()
    }

    /// What the directory has that it should not have: more than an author's share, or what only the
    /// attackers published.
    fn directory_faults(&self) -> Vec<String> {
        let stats = self.attic.json(&["directory", "stats"]);
        let above = |author: &&Value| {
            author["records"].as_u64() > Some(RECORDS_PER_AUTHOR_MAX as u64)
                || author["bytes"].as_u64() > Some(RECORDS_BYTES_PER_AUTHOR_MAX as u64)
        };
        let authors = stats["authors"].as_array().unwrap().iter();
        let greedy = authors.clone().filter(above).map(|author| format!("above its share: {author}"));
        let strange = ["node", "agent", "service"].into_iter().flat_map(|kind| {
            let found = self.attic.json(&["find", &format!("kind:{kind}"), "--limit", "1000"]);
            let hits = found["hits"].as_array().unwrap().iter();
            let strange = hits.filter(|hit| hit["member_name"] != "attic" && hit["member_name"] != "cellar");
            strange.map(|hit| format!("taken and found: {hit}")).collect::<Vec<_>>()
        });
        let taken =
            |author: &&Value| author["taken"] != 0 && !AUTHORS.contains(&author["name"].as_str().unwrap());
        let wrong = authors.filter(taken).map(|author| format!("taken: {author}"));
        greedy.chain(strange).chain(wrong).collect()
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

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn passed_on_by(name: &str) -> String {
    format!("from {name}: ")
}

fn authored_by(name: &str) -> String {
    format!("of {name}: ")
}

/// Everything a node must count while this runs, under the names of [`Scene::refusals`].
fn expected(attack: &Attack) -> Vec<String> {
    let all = |whose: String, labels: &[&str]| {
        labels.iter().map(|label| format!("{whose}{label}")).collect::<Vec<_>>()
    };
    [
        all(String::new(), attack.refusals),
        all(passed_on_by(attack.name), attack.passed_on),
        all(authored_by(attack.name), attack.authored),
    ]
    .concat()
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
        expected(attack).into_iter().filter(|label| !counted.contains_key(label)).collect::<Vec<_>>()
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
    faults.extend(scene.directory_faults());
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
