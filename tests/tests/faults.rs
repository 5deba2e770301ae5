//! What goes wrong on real networks, in the NAT laboratory with the real binaries: a relay or a node dies, packets are
//! lost, an address changes, a reader stalls, a node starts without a network.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_tests::{
    binaries, has,
    lab::{Background, Lab},
    lab_needs,
    node::{Binaries, forget_peak, peak_resident_kib, until},
    story::{CONE, NOTES, PAGE, SYMMETRIC, Story, one_at_a_time, topology},
};
use std::{
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

/// How much more a stalled reader may make each process on the way hold than one that reads.
const STALL_GROWTH_KIB_MAX: u64 = 2 * 1024;

/// A laboratory with the story walked up to the first call.
fn with_story(gateways: &str, path: &str, test: impl FnOnce(&Lab, &Binaries, Story<'_>)) {
    if !has("the NAT laboratory", &lab_needs()) {
        return;
    }
    let _turn = one_at_a_time();
    let (lab, place, binaries) =
        (Lab::up(&topology("", gateways, gateways)), tempfile::tempdir().unwrap(), binaries!());
    let story = Story::begin(&lab, &binaries, place.path());
    story.call_goes_through();
    story.path_becomes(path);
    test(&lab, &binaries, story);
}

/// A download of `/big` through `kai forward` on cellar, that stalls for so long once 1 MB came.
fn download(lab: &Lab, binaries: &Binaries, megabytes: u64, stall: Duration) -> Background {
    let url = format!("http://127.0.0.1:9000/big?bytes={}", megabytes * 1_000_000);
    let mut tool =
        lab.start("cellar", &binaries.tool, &["stall", &url, "1000000", &stall.as_secs().to_string()]);
    assert_eq!(tool.line(), "stalled\n");
    tool
}

fn is_whole(mut download: Background) -> bool {
    let mut said = String::new();
    std::io::Read::read_to_string(download.0.stdout.as_mut().unwrap(), &mut said).unwrap();
    download.0.wait().unwrap().success() && said.ends_with("each in its place\n")
}

fn error_of(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it should have failed");
    assert!(text.starts_with("error: ") && text.contains("KAI-"), "no clear error: {text}");
    text
}

#[test]
fn a_direct_download_outlives_the_relay() {
    with_story(CONE, "direct", |lab, binaries, mut story| {
        let _forward = story.forward(9000);
        let download = download(lab, binaries, 50, Duration::from_secs(2));
        story.relay.kill();
        assert!(is_whole(download), "the download was cut");
        assert!(story.call_succeeds());
    });
}

#[test]
fn a_carried_download_ends_clearly_with_its_relay_and_calls_resume_when_it_is_back() {
    with_story(SYMMETRIC, "carried", |lab, binaries, mut story| {
        let _forward = story.forward(9000);
        let cut = download(lab, binaries, 50, Duration::from_secs(1));
        story.relay.kill();
        assert!(!is_whole(cut), "nothing could have carried the download to its end");
        let error = error_of(&story.cellar.run(&["call", NOTES, "/"]));
        assert!(error.contains("hint: "), "{error}");
        story.relay.start();
        println!("calls resumed {:?} after the relay was back", story.call_goes_through());
        assert!(is_whole(download(lab, binaries, 5, Duration::ZERO)));
    });
}

#[test]
fn a_call_ends_clearly_when_the_callee_is_killed_and_works_when_it_is_back() {
    with_story(CONE, "direct", |_, _, mut story| {
        let mut call = story.cellar.command(&["call", NOTES, "/slow"]);
        let call = call.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the call waits at the origin", || {
            story.attic.json(&["status"])["counters"]["exchanges_in"].as_u64() > Some(1)
        });
        story.attic.kill();
        let begun = Instant::now();
        println!("{}", error_of(&call.wait_with_output().unwrap()));
        assert!(begun.elapsed() < Duration::from_secs(60), "the caller hung for {:?}", begun.elapsed());
        story.attic.start();
        println!("calls resumed {:?} after the node was back", story.call_goes_through());
    });
}

#[test]
fn five_percent_of_lost_packets_lose_nothing() {
    with_story(CONE, "direct", |lab, binaries, story| {
        lab.order(&["loss", "attic", "cellar", "5%"]);
        let _forward = story.forward(9000);
        for _ in 0..20 {
            assert_eq!(story.cellar.ask(&["call", NOTES, "/"]), PAGE);
        }
        assert!(is_whole(download(lab, binaries, 10, Duration::ZERO)));
        assert_eq!(story.cellar.path_to("attic"), "direct");
    });
}

#[test]
fn a_changed_address_is_found_again_without_a_restart() {
    with_story(CONE, "direct", |lab, _, story| {
        change_address(lab, "cellar");
        println!("found again {:?} after the address changed", story.call_goes_through());
        println!("direct again after {:?}", story.path_becomes("direct"));
    });
}

/// Gives the host's only interface another address of its LAN and takes the old one.
fn change_address(lab: &Lab, host: &str) {
    let ip = |words: &[&str]| {
        let output = lab.run(host, Path::new("/usr/sbin/ip"), words);
        assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = ip(&["-4", "-o", "address", "show", "scope", "global"]);
    let words: Vec<&str> = shown.split_whitespace().collect();
    let (device, old) = (words[1], words[3]);
    let gateway = ip(&["-4", "route", "show", "default"]);
    let gateway = gateway.split_whitespace().nth(2).unwrap();
    let (prefix, host_number) = old.rsplit_once('.').unwrap();
    let number: u8 = host_number.split('/').next().unwrap().parse().unwrap();
    let new = format!("{prefix}.{}/24", if number < 200 { number + 50 } else { number - 50 });
    // In this order: with a primary address its secondary ones go, too.
    ip(&["address", "del", old, "dev", device]);
    ip(&["address", "add", &new, "dev", device]);
    ip(&["route", "replace", "default", "via", gateway, "dev", device]);
}

#[test]
fn a_node_that_starts_without_a_network_is_there_once_it_has_one() {
    with_story(CONE, "direct", |lab, _, mut story| {
        story.cellar.down();
        lab.order(&["isolate", "cellar"]);
        story.cellar.start();
        error_of(&story.cellar.run(&["call", NOTES, "/"]));
        lab.order(&["heal", "cellar"]);
        println!("calls go through {:?} after the network came", story.call_goes_through());
    });
}

#[test]
fn a_node_that_slept_is_found_again_without_a_restart() {
    with_story(CONE, "direct", |_, _, story| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(story.cellar.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        until("attic has lost cellar", || {
            let peers = story.attic.json(&["members"]);
            let members = peers["members"].as_array().unwrap();
            members.iter().any(|member| member["name"] == "cellar" && member["link"].is_null())
        });
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        println!("calls go through {:?} after waking", story.call_goes_through());
        println!("direct again after {:?}", story.path_becomes("direct"));
    });
}

#[test]
fn a_reader_that_stalls_makes_nobody_hold_more_than_a_window() {
    for (gateways, path) in [(CONE, "direct"), (SYMMETRIC, "carried")] {
        with_story(gateways, path, |lab, binaries, story| {
            let _forward = story.forward(9000);
            let pids =
                [("attic", story.attic.pid()), ("cellar", story.cellar.pid()), ("relay", story.relay.pid())];
            let peaks_of = |megabytes, stall| {
                pids.iter().for_each(|(_, pid)| forget_peak(*pid));
                assert!(is_whole(download(lab, binaries, megabytes, stall)), "the download was cut");
                pids.map(|(_, pid)| peak_resident_kib(pid))
            };
            // What any download takes: windows, and the allocator's pools.
            let flowing = peaks_of(50, Duration::ZERO);
            let stalled = peaks_of(200, Duration::from_secs(10));
            for ((name, _), (flowing, stalled)) in pids.iter().zip(flowing.iter().zip(stalled)) {
                println!("{path}: {name} holds at most {flowing} KiB, {stalled} KiB with a stall");
                assert!(stalled.saturating_sub(*flowing) < STALL_GROWTH_KIB_MAX, "{path}: {name} grew");
            }
        });
    }
}
