//! Coming in, staying and being one's own: real nodes on loopback, by command line alone.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_governance::code::Invitation;
use kos_protocol::key::SecretKey;
use kos_tests::{
    local::Local,
    node::{until, until_or},
};
use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

const KAI: &str = env!("CARGO_BIN_EXE_kai-under-test");

fn up(place: &tempfile::TempDir, name: &str) -> Local {
    Local::up(Path::new(KAI), place.path(), name)
}

/// The code of a failure, and what was said.
fn failure(output: &Output) -> (String, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it should have failed");
    let code = said.split("(KAI-").nth(1).and_then(|rest| rest.split(')').next());
    (format!("KAI-{}", code.unwrap_or("?")), said)
}

fn joined(steward: &Local, newcomer: &Local) {
    newcomer.ask(&["join", "--yes", &steward.invitation(&[])]);
    until("they can call each other", || newcomer.run(&["ping", "attic"]).status.success());
}

#[test]
fn each_fault_of_an_invitation_is_its_own_clear_error() {
    let place = tempfile::tempdir().unwrap();
    let (attic, cellar, shed) = (up(&place, "attic"), up(&place, "cellar"), up(&place, "shed"));
    let fails = |invitation: &str, code: &str, word: &str| {
        let (found, said) = failure(&cellar.run(&["join", "--yes", invitation]));
        assert_eq!(found, code, "{said}");
        assert!(said.contains(word), "`{word}` is not in: {said}");
    };

    let unused = attic.invitation(&[]);
    let id = attic.json(&["invite", "list"])["invites"][0]["id"].as_str().unwrap().to_owned();
    attic.ask(&["invite", "revoke", &id]);
    assert_eq!(attic.json(&["invite", "list"])["invites"][0]["revoked"], true);
    fails(&unused, "KAI-FED-0008", "withdrawn");

    let once = attic.invitation(&[]);
    shed.ask(&["join", "--yes", &once]);
    fails(&once, "KAI-FED-0007", "used already");

    fails(&attic.invitation(&["--for", "1ms"]), "KAI-FED-0006", "expired");

    let genuine = attic.invitation(&[]);
    let place_of_change = genuine.len() - 40;
    let letter = if &genuine[place_of_change..=place_of_change] == "a" { "b" } else { "a" };
    let mistyped = format!("{}{letter}{}", &genuine[..place_of_change], &genuine[place_of_change + 1..]);
    fails(&mistyped, "KAI-FED-0005", "checksum");

    let read = Invitation::parse(&genuine).unwrap();
    let somebody = SecretKey::from_seed(&[7; 32]).public();
    let forged = Invitation::new(
        read.invite().clone(),
        read.invite_key().clone(),
        somebody,
        read.addresses().to_vec(),
    );
    fails(&forged.unwrap().to_text(), "KAI-FED-0009", "was not signed by the steward");

    // The steward's node began anew in the meantime: whoever answers there is of another federation.
    let other = up(&place, "other");
    let gone = other.invitation(&[]);
    other.ask(&["join", "--yes", &attic.invitation(&[])]);
    fails(&gone, "KAI-FED-0010", "another federation");
}

#[test]
fn a_code_comes_from_standard_input_and_content_is_not_dropped_unasked() {
    let place = tempfile::tempdir().unwrap();
    let (attic, cellar) = (up(&place, "attic"), up(&place, "cellar"));
    cellar.ask(&["agent", "start", "kBridge:notes", "--http", "http://127.0.0.1:9"]);
    let code = attic.invitation(&[]);
    let (kept, said) = failure(&cellar.run(&["join", "--yes", &code]));
    assert!(said.contains("hint: kai join --keep CODE"), "{kept}: {said}");

    let mut join = Command::new(KAI)
        .arg("--folder")
        .arg(cellar.folder())
        .args(["join", "--yes", "--keep", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    join.stdin.take().unwrap().write_all(format!("{code}\n").as_bytes()).unwrap();
    assert!(join.wait_with_output().unwrap().status.success());
    assert_eq!(cellar.json(&["status"])["federations"].as_array().unwrap().len(), 2);
}

#[test]
fn nobody_outside_reaches_a_node_without_a_relay_so_it_does_not_invite() {
    let place = tempfile::tempdir().unwrap();
    let attic = up(&place, "attic");
    let (_, said) = failure(&attic.run(&["invite"]));
    assert!(said.contains("can be reached from outside") && said.contains("hint: "), "{said}");
    attic.invitation(&[]);
}

#[test]
fn a_rotated_key_keeps_the_member_its_agents_and_its_calls() {
    let place = tempfile::tempdir().unwrap();
    let (attic, cellar) = (up(&place, "attic"), up(&place, "cellar"));
    joined(&attic, &cellar);
    let before = attic.json(&["id", "show"]);
    attic.ask(&["id", "rotate"]);
    until("attic is up under its new key", || attic.json(&["id", "show"])["rotations"] == 1);
    let after = attic.json(&["id", "show"]);
    assert_eq!(after["member"], before["member"]);
    assert_ne!(after["key"], before["key"]);
    until_or(
        "cellar calls attic under its new key",
        || cellar.run(&["ping", "attic"]).status.success(),
        || format!("attic:\n{}\ncellar:\n{}", attic.log(), cellar.log()),
    );
    until("attic calls cellar", || attic.run(&["ping", "cellar"]).status.success());
    until("cellar has noted it", || cellar.json(&["audit", "list"]).to_string().contains("rotated"));
}

#[test]
fn a_key_that_was_rotated_while_nobody_listened_is_believed_when_they_meet_again() {
    let place = tempfile::tempdir().unwrap();
    let (mut attic, cellar) = (up(&place, "attic"), up(&place, "cellar"));
    joined(&attic, &cellar);
    attic.down();
    cellar.ask(&["id", "rotate"]);
    until("cellar is up under its new key", || cellar.json(&["id", "show"])["rotations"] == 1);
    attic.start();
    until_or(
        "attic calls cellar under its new key",
        || attic.run(&["ping", "cellar"]).status.success(),
        || format!("attic:\n{}\ncellar:\n{}", attic.log(), cellar.log()),
    );
    until("cellar calls attic", || cellar.run(&["ping", "attic"]).status.success());
}

#[test]
fn a_member_whose_folder_was_lost_comes_back_with_its_words() {
    let place = tempfile::tempdir().unwrap();
    let (attic, mut cellar) = (up(&place, "attic"), up(&place, "cellar"));
    joined(&attic, &cellar);
    let before = cellar.json(&["id", "show"]);
    let words = cellar.get("/v1/id/words")["words"].as_str().unwrap().to_owned();
    cellar.down();
    std::fs::remove_dir_all(cellar.folder()).unwrap();
    cellar.answer(&["id", "restore", before["line"].as_str().unwrap()], &words);
    cellar.start();
    cellar.ask(&["join", "--yes", &attic.invitation(&[])]);
    until("they can call each other", || {
        cellar.run(&["ping", "attic"]).status.success() && attic.run(&["ping", "cellar"]).status.success()
    });
    let after = cellar.json(&["id", "show"]);
    assert_eq!((&after["member"], &after["rotations"]), (&before["member"], &1.into()));
    assert_eq!(attic.json(&["members"])["members"].as_array().unwrap().len(), 2);
}

#[test]
fn who_was_removed_by_mistake_is_reinstated() {
    let place = tempfile::tempdir().unwrap();
    let (attic, cellar) = (up(&place, "attic"), up(&place, "cellar"));
    joined(&attic, &cellar);
    attic.ask(&["members", "remove", "cellar"]);
    until("cellar can call nobody", || !cellar.run(&["ping", "attic"]).status.success());
    attic.ask(&["members", "reinstate", "cellar"]);
    until_or(
        "they can call each other again",
        || cellar.run(&["ping", "attic"]).status.success() && attic.run(&["ping", "cellar"]).status.success(),
        || format!("attic:\n{}\ncellar:\n{}", attic.log(), cellar.log()),
    );
}

#[test]
fn of_two_machines_with_one_identity_one_stops_and_says_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let (attic, mut cellar) = (up(&place, "attic"), up(&place, "cellar"));
    joined(&attic, &cellar);
    cellar.down();
    let copied = Command::new("cp").arg("-a").arg(cellar.folder()).arg(place.path().join("copy")).status();
    assert!(copied.unwrap().success());
    cellar.start();
    until("the original is back", || cellar.run(&["ping", "attic"]).status.success());
    let mut copy = Local::down_in(Path::new(KAI), &place.path().join("copy"), "cellar");
    copy.start();
    until("one of them has stopped", || !cellar.is_running() || !copy.is_running());
    let stopped = if cellar.is_running() { &mut copy } else { &mut cellar };
    assert_eq!(stopped.exit_code(), Some(1));
    let said = stopped.log();
    assert!(said.contains("KAI-NODE-0008") && said.contains("hint: "), "{said}");
}

#[test]
fn a_deleted_index_loses_nothing() {
    let place = tempfile::tempdir().unwrap();
    let (attic, mut cellar) = (up(&place, "attic"), up(&place, "cellar"));
    joined(&attic, &cellar);
    let names = |node: &Local| {
        let members = node.json(&["members"]);
        let mut names: Vec<_> =
            members["members"].as_array().unwrap().iter().map(|member| member["name"].to_string()).collect();
        names.sort();
        names
    };
    let before = names(&cellar);
    cellar.down();
    std::fs::remove_dir_all(cellar.folder().join("index")).unwrap();
    assert!(
        matches!(cellar.run(&["fsck"]).status.code(), Some(0 | 7)),
        "fsck takes a missing index for damage"
    );
    cellar.start();
    assert_eq!(names(&cellar), before);
    until("cellar finds attic again", || cellar.run(&["ping", "attic"]).status.success());
    until("cellar sees attic's agent again", || {
        cellar.ask(&["agent", "list", "--all"]).contains("kSentinel:node@attic")
    });
}

#[test]
fn a_node_calls_its_own_agents_like_anybody_elses() {
    let place = tempfile::tempdir().unwrap();
    let attic = up(&place, "attic");
    let own = attic.ask(&["call", "kSentinel:node", "/status"]);
    assert!(own.contains("\"name\":\"attic\""), "{own}");
}

/// An inviter that speaks versions this program does not: `kai` names both ranges.
#[test]
fn versions_without_one_in_common_are_both_named_on_the_command_line() {
    let place = tempfile::tempdir().unwrap();
    let cellar = up(&place, "cellar");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut options = kos_shell::Options::new(place.path().join("later"));
    options.listen = Some(vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()]);
    (options.mdns, options.upnp, options.kad) = (false, false, false);
    options.versions = kos_protocol::hello::Versions { min: 2, max: 2 };
    let later =
        runtime.block_on(kos_shell::Runtime::start(options, std::sync::Arc::new(kos_shell::NoApp))).unwrap();
    let mut code = String::new();
    until("it can invite", || {
        let invite = kos_shell::InviteOptions {
            role: kos_governance::act::Role::Member,
            uses: 1,
            ttl_ms: 60_000,
            until_ms: None,
            lan: true,
            note: None,
        };
        let issued = runtime.block_on(later.invite(&later.me().federation, invite));
        code = issued.map(|issued| issued.code).unwrap_or_default();
        !code.is_empty()
    });
    let (kept, said) = failure(&cellar.run(&["join", "--yes", &code]));
    println!("{said}");
    assert!(said.contains("[1,1]") && said.contains("[2,2]"), "{kept}: {said}");
    runtime.block_on(later.shutdown());
}
