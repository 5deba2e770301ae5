//! Our reconciliation against the JavaScript implementation of negentropy v1, message by message. What that one said lies
//! in `protocol/vectors/outside/negentropy-js.json` and is compared always; where Node and the package are there, it is
//! asked again. `KLP_VECTORS_WRITE=1 cargo test -p kos-directory --test reconcile_reference` records anew.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_types, clippy::disallowed_methods)]

use data_encoding::HEXLOWER;
use kos_directory::reconcile::{Initiator, Name, Set, respond};
use kos_protocol::{id::sha256, limits::RECONCILE_BYTES_MAX};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

#[path = "reference/scenarios.rs"]
mod scenarios;

/// A longer message is recorded as its hash.
const WHOLE_BYTES_MAX: usize = 200;
/// How a message ends that was cut at its frame: the range up to infinity has the fingerprint that follows.
const CUT: [u8; 3] = [0, 0, 1];
const FINGERPRINT_BYTES: usize = 16;

/// Numbers of elements: from the first of each triple to below the second, in steps of the third.
pub type Lacks = Vec<(u64, u64, u64)>;

/// Two sets, as a rule that every language can follow. Element `n` has the time `first_time + n / same_time * step` and
/// the name SHA-256 of `n` in 8 bytes, big-endian; `n` is below `count`, and each end lacks some.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    pub name: String,
    pub first_time: u64,
    pub step: u64,
    pub same_time: u64,
    pub count: u64,
    pub initiator_lacks: Lacks,
    pub responder_lacks: Lacks,
}

impl Scenario {
    fn elements(&self, lacks: &[(u64, u64, u64)]) -> BTreeSet<(u64, Name)> {
        let lacks = |n: u64| {
            lacks
                .iter()
                .any(|(from, below, step)| (*from..*below).contains(&n) && (n - from).is_multiple_of(*step))
        };
        let element = |n: u64| (self.first_time + n / self.same_time * self.step, sha256(&n.to_be_bytes()));
        (0..self.count).filter(|n| !lacks(*n)).map(element).collect()
    }

    fn initiator(&self) -> BTreeSet<(u64, Name)> {
        self.elements(&self.initiator_lacks)
    }

    fn responder(&self) -> BTreeSet<(u64, Name)> {
        self.elements(&self.responder_lacks)
    }

    /// The published code shifts its varints in 32 bits; what does not fit goes to the same code with wider ones.
    fn varints(&self) -> &'static str {
        let last = self.first_time + self.count / self.same_time * self.step;
        if last < 1 << 31 { "published" } else { "wider" }
    }

    /// What a frame of the reference may have; where all fits in one, it must not matter that there is a limit.
    fn frame_bytes(&self, turns: &[Turn]) -> usize {
        let is_short = turns.iter().all(|turn| turn.message.len() < RECONCILE_BYTES_MAX / 2);
        if is_short { 0 } else { RECONCILE_BYTES_MAX }
    }
}

/// One message, and what the initiator learned when it made it.
struct Turn {
    message: Vec<u8>,
    have: Vec<Name>,
    need: Vec<Name>,
}

/// Both ends of ours in turn; the last one is an initiator's that has nothing more to ask.
fn dialogue(scenario: &Scenario) -> Vec<Turn> {
    let set = |elements: BTreeSet<_>| Set::new(elements.into_iter().collect());
    let theirs = set(scenario.responder());
    let (mut initiator, message) = Initiator::new(set(scenario.initiator()));
    let mut turns = vec![Turn { message, have: Vec::new(), need: Vec::new() }];
    loop {
        let answer = respond(&theirs, &turns.last().unwrap().message).unwrap();
        let step = initiator.step(&answer).unwrap();
        turns.push(Turn { message: answer, have: Vec::new(), need: Vec::new() });
        let is_last = step.message.is_none();
        turns.push(Turn { message: step.message.unwrap_or_default(), have: step.have, need: step.need });
        if is_last {
            return turns;
        }
    }
}

fn check_difference(scenario: &Scenario, turns: &[Turn]) {
    let (ours, theirs) = (scenario.initiator(), scenario.responder());
    let only = |one: &BTreeSet<(u64, Name)>, other| one.difference(other).map(|(_, name)| *name).collect();
    let have: BTreeSet<Name> = turns.iter().flat_map(|turn| turn.have.clone()).collect();
    let need: BTreeSet<Name> = turns.iter().flat_map(|turn| turn.need.clone()).collect();
    assert_eq!((have, need), (only(&ours, &theirs), only(&theirs, &ours)), "{}", scenario.name);
}

/// A message as it is recorded. `reference_sha256` is there where the reference says something else.
fn recorded(ours: &[u8], reference: Option<&[u8]>) -> Value {
    let hash = |bytes: &[u8]| HEXLOWER.encode(&sha256(bytes));
    let mut value = json!({"length": ours.len(), "sha256": hash(ours)});
    if ours.len() <= WHOLE_BYTES_MAX {
        value["bytes"] = HEXLOWER.encode(ours).into();
    }
    if let Some(reference) = reference {
        value["reference_sha256"] = hash(reference).into();
    }
    value
}

/// The whole file. What `reference` said in place of a message of ours is at its place, where it is not the same.
fn file(spoken: &[(Scenario, Vec<Turn>)], reference: impl Fn(usize, usize) -> Option<Vec<u8>>) -> Value {
    let vector = |(number, (scenario, turns)): (usize, &(Scenario, Vec<Turn>))| {
        let messages = turns.iter().enumerate().take(turns.len() - 1);
        let messages: Vec<Value> = messages
            .map(|(place, turn)| recorded(&turn.message, reference(number, place).as_deref()))
            .collect();
        let total =
            |names: fn(&Turn) -> &Vec<Name>| turns.iter().map(|turn| names(turn).len()).sum::<usize>();
        let mut value = serde_json::to_value(scenario).unwrap();
        value["spec"] = "9.14".into();
        value["varints"] = scenario.varints().into();
        value["messages"] = messages.into();
        value["have"] = total(|turn| &turn.have).into();
        value["need"] = total(|turn| &turn.need).into();
        value
    };
    json!({
        "about": "set reconciliations: the messages of initiator and responder in turn, in frames of 65,536 bytes. Element `n` below `count` has the time `first_time + n / same_time * step` (whole numbers) and the name SHA-256 of `n` in 8 bytes, big-endian; an end lacks those from the first number of a triple to below the second, in steps of the third",
        "source": "the JavaScript implementation of negentropy v1 (D. Hoyte, MIT), as npm's @welshman/net 0.8.15 carries it. `varints`: where `wider`, three of its expressions were widened from 32 bits. `reference_sha256`: what it says in place of a message that is cut before a range it split; the last 16 bytes differ, see SPEC 9.14",
        "vectors": spoken.iter().enumerate().map(vector).collect::<Vec<_>>(),
    })
}

fn spoken() -> Vec<(Scenario, Vec<Turn>)> {
    scenarios::all().into_iter().map(|scenario| (scenario.clone(), dialogue(&scenario))).collect()
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocol/vectors/outside/negentropy-js.json")
}

#[test]
fn our_messages_are_the_recorded_ones() {
    let whole: Value = serde_json::from_str(&std::fs::read_to_string(path()).unwrap()).unwrap();
    let mut vectors = whole["vectors"].as_array().unwrap().clone();
    let mut cut_elsewhere = 0;
    for vector in &mut vectors {
        for message in vector["messages"].as_array_mut().unwrap() {
            cut_elsewhere +=
                usize::from(message.as_object_mut().unwrap().remove("reference_sha256").is_some());
        }
    }
    let spoken = spoken();
    for (scenario, turns) in &spoken {
        check_difference(scenario, turns);
    }
    let ours = file(&spoken, |_, _| None);
    for (ours, vector) in ours["vectors"].as_array().unwrap().iter().zip(&vectors) {
        assert_eq!(ours, vector, "{}", vector["name"]);
    }
    assert_eq!(vectors.len(), spoken.len());
    assert!(cut_elsewhere > 0, "one of the scenarios shows where we differ");
}

/// Whether these are the same, but for the fingerprint of what was left out of a full frame.
fn differ_in_what_was_cut(ours: &[u8], reference: &[u8]) -> bool {
    let Some(same) = ours.len().checked_sub(FINGERPRINT_BYTES) else { return false };
    ours.len() == reference.len() && ours[..same] == reference[..same] && ours[..same].ends_with(&CUT)
}

/// What the reference says to our messages.
#[derive(Deserialize)]
struct Said {
    message: Option<String>,
    have: Vec<String>,
    need: Vec<String>,
}

/// Installs the package as its lock file names it, by hash, and asks it. None where something is missing, with the reason.
fn ask(spoken: &[(Scenario, Vec<Turn>)]) -> Result<Vec<Vec<Said>>, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
    let folder = tempfile::tempdir().unwrap();
    for name in ["package.json", "package-lock.json", ".npmrc", "answer.mjs"] {
        std::fs::copy(here.join(name), folder.path().join(name)).unwrap();
    }
    let install = Command::new("npm")
        .args([
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--fetch-retries=1",
            "--fetch-timeout=20000",
        ])
        .current_dir(&folder)
        .output();
    match install {
        Err(error) => return Err(format!("npm: {error}")),
        Ok(output) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_ours = ["EINTEGRITY", "EUSAGE"].iter().any(|code| said.contains(code));
            assert!(!is_ours, "not what the lock file names: {said}");
            return Err(format!("the package: {}", said.lines().next().unwrap_or_default()));
        }
        Ok(_) => {}
    }
    let listed = |elements: BTreeSet<(u64, Name)>| -> Vec<Value> {
        elements.iter().map(|(time, name)| json!([time, HEXLOWER.encode(name)])).collect()
    };
    let question = |(scenario, turns): &(Scenario, Vec<Turn>)| {
        let messages = turns.iter().take(turns.len() - 1).map(|turn| HEXLOWER.encode(&turn.message));
        json!({
            "varints": scenario.varints(),
            "frame_bytes": scenario.frame_bytes(turns),
            "initiator": listed(scenario.initiator()),
            "responder": listed(scenario.responder()),
            "messages": messages.collect::<Vec<_>>(),
        })
    };
    let questions = Value::from(spoken.iter().map(question).collect::<Vec<_>>()).to_string();
    let mut node = Command::new("node")
        .arg("answer.mjs")
        .current_dir(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("node: {error}"))?;
    node.stdin.take().unwrap().write_all(questions.as_bytes()).unwrap();
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success(), "answer.mjs failed");
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn the_reference_says_the_same() {
    let spoken = spoken();
    let said = match ask(&spoken) {
        Ok(said) => said,
        Err(missing) => {
            println!("skipped: the reference of set reconciliation needs {missing}");
            return;
        }
    };
    assert_eq!(said.len(), spoken.len());
    let unhex = |hex: &String| HEXLOWER.decode(hex.as_bytes()).unwrap();
    for ((scenario, turns), said) in spoken.iter().zip(&said) {
        assert_eq!(turns.len(), said.len(), "{}", scenario.name);
        for (place, (turn, said)) in turns.iter().zip(said).enumerate() {
            let at = format!("{}, message {place}", scenario.name);
            let reference = said.message.as_ref().map(unhex).unwrap_or_default();
            assert!(
                turn.message == reference || differ_in_what_was_cut(&turn.message, &reference),
                "{at}: {} not {}",
                HEXLOWER.encode(&turn.message),
                HEXLOWER.encode(&reference)
            );
            let names = |names: &[Name]| names.iter().map(|name| HEXLOWER.encode(name)).collect::<Vec<_>>();
            assert_eq!(
                (names(&turn.have), names(&turn.need)),
                (said.have.clone(), said.need.clone()),
                "{at}"
            );
        }
    }
    let file = file(&spoken, |number, place| {
        let reference = said[number][place].message.as_ref().map(unhex).unwrap_or_default();
        (reference != spoken[number].1[place].message).then_some(reference)
    });
    if std::env::var("KLP_VECTORS_WRITE").is_ok_and(|value| value == "1") {
        std::fs::write(path(), serde_json::to_string_pretty(&file).unwrap() + "\n").unwrap();
    }
    let there: Value = serde_json::from_str(&std::fs::read_to_string(path()).unwrap()).unwrap();
    assert_eq!(there, file, "KLP_VECTORS_WRITE=1 records it");
}
