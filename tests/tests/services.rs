//! Calls of a service by its name: held against its contract where it is answered, over the route whose version and health
//! fit, over another where that one does not answer. Real processes on loopback, and services that count.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_tests::{local::Local, node::until};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

const KAI: &str = env!("CARGO_BIN_EXE_kai-under-test");

/// A service that answers every request with its name.
struct Origin {
    name: &'static str,
    requests: AtomicUsize,
}

impl Origin {
    fn start(name: &'static str) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (origin, address) =
            (Arc::new(Self { name, requests: AtomicUsize::new(0) }), listener.local_addr());
        let serving = origin.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let origin = serving.clone();
                std::thread::spawn(move || origin.answer(stream));
            }
        });
        (origin, address.unwrap())
    }

    fn answer(&self, mut stream: TcpStream) {
        let (mut request, mut byte) = (Vec::new(), [0]);
        while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            request.push(byte[0]);
        }
        if request.is_empty() {
            return;
        }
        self.requests.fetch_add(1, Ordering::SeqCst);
        let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", self.name.len());
        // A bridge that was killed takes nothing any more.
        let _ = stream.write_all(format!("{head}{}", self.name).as_bytes());
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Puts `kBridge:notes` of a node before a service that answers with the node's name.
fn offer(node: &Local, name: &'static str) -> Arc<Origin> {
    let (origin, address) = Origin::start(name);
    node.ask(&["agent", "start", "kBridge:notes", "--http", &format!("http://{address}")]);
    origin
}

/// Publishes `notes` at this version, and returns what became of that.
fn publish(node: &Local, version: &str, fallbacks: &[String]) -> Output {
    let file = node.folder().with_extension("toml");
    let contract = format!(
        r#"
        name = "notes"
        version = "{version}"
        agent = "kBridge:notes"
        fallbacks = {fallbacks:?}

        [security]
        callers = ["member", "steward"]

        [[methods]]
        method = "GET"
        path = "/notes/{{id}}"

        [[methods]]
        method = "POST"
        path = "/notes"
        request = {{ type = "object", required = ["title"], properties = {{ title = {{ type = "string" }} }} }}
        "#
    );
    std::fs::write(&file, contract).unwrap();
    node.run(&["agent", "publish", &file.display().to_string()])
}

/// attic and shed, which both offer `notes`, and cellar, which calls; attic names shed as its fallback.
struct Three {
    attic: Local,
    shed: Local,
    cellar: Local,
    at_attic: Arc<Origin>,
    at_shed: Arc<Origin>,
}

impl Three {
    fn up(place: &Path) -> Self {
        let [attic, shed, cellar] =
            ["attic", "shed", "cellar"].map(|name| Local::up(Path::new(KAI), place, name));
        for node in [&shed, &cellar] {
            node.ask(&["join", "--yes", &attic.invitation(&[])]);
        }
        let (at_attic, at_shed) = (offer(&attic, "attic"), offer(&shed, "shed"));
        for name in ["attic", "shed"] {
            until("they can call each other", || cellar.run(&["ping", name]).status.success());
        }
        let three = Self { attic, shed, cellar, at_attic, at_shed };
        let fallback = format!("kBridge:notes@{}", member(&three.shed));
        for published in [publish(&three.attic, "1.4.0", &[fallback]), publish(&three.shed, "1.2.0", &[])] {
            assert!(published.status.success(), "{}", said(&published));
        }
        three.until_offered(&["attic", "shed"]);
        three
    }

    /// Until cellar finds the service at these members, and no others.
    fn until_offered(&self, names: &[&str]) {
        until("cellar hears of it", || offered(&self.cellar) == names);
    }

    fn call(&self, words: &[&str]) -> Output {
        self.cellar.run(&[&["call"], words].concat())
    }

    /// Who answers, and what is said of that.
    fn answer(&self, words: &[&str]) -> (String, String) {
        let output = self.call(words);
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        (String::from_utf8(output.stdout.clone()).unwrap(), said(&output))
    }
}

/// Whom a node finds that offers `notes`.
fn offered(node: &Local) -> Vec<String> {
    let found = node.json(&["find", "kind:service"]);
    let hits = found["hits"].as_array().unwrap().iter();
    let mut names: Vec<_> = hits.map(|hit| hit["member_name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn member(node: &Local) -> String {
    node.json(&["status"])["me"]["member"].as_str().unwrap().to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const GOOD: [&str; 6] = ["/notes", "-X", "POST", "-d", r#"{"title":"milk"}"#, "service:notes"];

#[test]
fn a_call_that_does_not_hold_is_refused_before_the_service_sees_it() {
    let place = tempfile::tempdir().unwrap();
    let mut three = Three::up(place.path());
    for agent in ["service:notes", "kBridge:notes@attic"] {
        let refused = three.call(&[agent, "/notes", "-X", "POST", "-d", r#"{"title":7}"#]);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(
            said(&refused).contains(r#"at `/title`: value is not of type "string""#),
            "{}",
            said(&refused)
        );
    }
    let unlisted = three.call(&["kBridge:notes@attic", "/admin"]);
    assert!(
        said(&unlisted).contains("KAI-CALL-0002") && said(&unlisted).contains("has no GET for this path")
    );
    assert_eq!((three.at_attic.requests(), three.at_shed.requests()), (0, 0));
    until("attic has noted who it was", || {
        let noted = three.attic.ask(&["audit", "list"]);
        noted.contains("call-denied")
            && noted.contains(&member(&three.cellar))
            && noted.contains("at `/title`")
    });

    // A refusal uses up no idempotency key, and the contract holds after a restart as well.
    three.attic.down();
    three.attic.start();
    until("attic is back", || three.cellar.run(&["ping", "attic"]).status.success());
    let post = |body| ["kBridge:notes@attic", "/notes", "-X", "POST", "-d", body, "--idempotency-key", "a"];
    let refused = three.call(&post("{}"));
    assert!(said(&refused).contains("\"title\" is a required property"), "{}", said(&refused));
    assert_eq!(three.answer(&post(r#"{"title":"milk"}"#)).0, "attic");
    assert_eq!(three.at_attic.requests(), 1);
}

#[test]
fn a_range_of_versions_chooses_who_is_called() {
    let place = tempfile::tempdir().unwrap();
    let three = Three::up(place.path());
    let get = |agent, range| ["/notes/7", "--version", range, agent];
    for (agent, range, who) in [
        ("service:notes", "*", "attic"),
        ("service:notes", "^1.2", "attic"),
        ("service:notes", "<1.4", "shed"),
        ("service:notes@shed", "^1.2", "shed"),
    ] {
        let [path, version, range, agent] = get(agent, range);
        assert_eq!(
            three.answer(&[agent, path, version, range]),
            (who.to_owned(), String::new()),
            "{agent} {range}"
        );
    }
    let (who, why) = three.answer(&["service:notes@attic", "/notes/7", "--version", "=1.2.0"]);
    assert_eq!(who, "shed");
    assert_eq!(
        why,
        "kBridge:notes@shed answers instead of kBridge:notes@attic: its version 1.4.0 is not in the range\n"
    );
    let none = three.call(&["service:notes", "/notes/7", "--version", "^2"]);
    let told = said(&none);
    assert!(
        told.contains("KAI-CALL-0014") && told.contains("kBridge:notes@attic: its version 1.4.0 is not"),
        "{told}"
    );
    for (words, code) in [
        (&["service:nobody", "/"][..], "KAI-AGENT-0010"),
        (&["service:notes@nobody", "/"], "KAI-FED-0003"),
        (&["service:notes", "/", "--version", "one"], "KAI-USE-0001"),
        (&["kBridge:notes@attic", "/", "--version", "1"], "KAI-USE-0001"),
    ] {
        let refused = three.call(words);
        assert!(said(&refused).contains(code), "{words:?}: {}", said(&refused));
    }
}

#[test]
fn a_fallback_answers_for_whom_was_killed_or_stopped_and_the_reply_says_so() {
    let place = tempfile::tempdir().unwrap();
    let mut three = Three::up(place.path());
    let [path, x, post, d, body, service] = GOOD;
    let good = [service, path, x, post, d, body];
    assert_eq!(three.answer(&good), ("attic".to_owned(), String::new()));

    three.attic.kill();
    let output = three.call(&["service:notes", "/notes/7", "--json"]);
    assert_eq!(output.stdout, b"shed", "{}", said(&output));
    let reply: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    let service = &reply["service"];
    assert_eq!((&service["member_name"], &service["version"]), (&"shed".into(), &"1.2.0".into()), "{reply}");
    assert_eq!(service["instead_of"]["member_name"], "attic");
    assert!(service["instead_of"]["why"].as_str().is_some_and(|why| !why.is_empty()), "{reply}");

    // What is stopped in order says so, and nothing needs to be tried. What is not replay-safe goes elsewhere as well:
    // it was never sent.
    three.attic.start();
    until("attic answers again", || three.answer(&["service:notes", "/notes/7"]).0 == "attic");
    three.attic.down();
    until("cellar has heard of it", || three.cellar.ask(&["members"]).contains("left"));
    let (who, why) = three.answer(&good);
    assert_eq!(who, "shed");
    assert_eq!(why, "kBridge:notes@shed answers instead of kBridge:notes@attic: it is down\n");

    // An agent that was stopped does not answer, though its node does.
    three.attic.start();
    until("attic answers again", || three.answer(&["service:notes", "/notes/7"]).0 == "attic");
    three.attic.ask(&["agent", "stop", "kBridge:notes"]);
    until("its fallback answers", || three.answer(&["service:notes", "/notes/7"]).0 == "shed");
    let asked = three.at_attic.requests();
    three.shed.kill();
    let none = three.call(&["service:notes", "/notes/7"]);
    let told = said(&none);
    assert!(told.contains("KAI-CALL-0014"), "{told}");
    assert!(told.contains("kBridge:notes@attic: ") && told.contains("kBridge:notes@shed: "), "{told}");
    assert_eq!(three.at_attic.requests(), asked);
}

#[test]
fn a_service_that_is_withdrawn_is_gone_everywhere_until_it_is_published_again() {
    let place = tempfile::tempdir().unwrap();
    let mut three = Three::up(place.path());
    let withdrawn = three.attic.run(&["agent", "unpublish", "notes"]);
    assert!(
        withdrawn.status.success() && said(&withdrawn).contains("notes is withdrawn, stored by "),
        "{withdrawn:?}"
    );
    three.until_offered(&["shed"]);
    let twice = three.attic.run(&["agent", "unpublish", "notes"]);
    assert!(said(&twice).contains("KAI-AGENT-0010"), "{}", said(&twice));
    let gone = three.call(&["service:notes@attic", "/notes/7"]);
    assert!(said(&gone).contains("KAI-AGENT-0010"), "{}", said(&gone));
    assert_eq!(three.answer(&["service:notes", "/notes/7"]).0, "shed");
    assert_eq!(three.answer(&["kBridge:notes@attic", "/anything"]).0, "attic", "nothing holds it any more");

    three.attic.down();
    three.attic.start();
    assert_eq!(offered(&three.attic), ["shed"], "a restart brings nothing back");
    let own = format!("kBridge:notes@{}", member(&three.attic));
    let refused = publish(&three.attic, "1.5.0", std::slice::from_ref(&own));
    let told = said(&refused);
    assert!(told.contains("fallbacks[0]") && told.contains("is the route of the contract itself"), "{told}");
    let again = publish(&three.attic, "1.5.0", &[]);
    assert!(again.status.success(), "{}", said(&again));
    three.until_offered(&["attic", "shed"]);
    until("attic answers again", || three.answer(&["service:notes", "/notes/7"]).0 == "attic");
    let unlisted = three.call(&["kBridge:notes@attic", "/anything"]);
    assert!(said(&unlisted).contains("KAI-CALL-0002"), "{}", said(&unlisted));
}

#[test]
fn a_published_service_outlives_the_index_and_the_key_that_signed_it() {
    let place = tempfile::tempdir().unwrap();
    let mut three = Three::up(place.path());
    three.attic.down();
    std::fs::remove_dir_all(three.attic.folder().join("index")).unwrap();
    three.attic.start();
    until("attic offers it again", || offered(&three.attic).contains(&"attic".to_owned()));
    let unlisted = three.call(&["kBridge:notes@attic", "/anything"]);
    assert!(said(&unlisted).contains("KAI-CALL-0002"), "{}", said(&unlisted));

    three.attic.ask(&["id", "rotate"]);
    until("attic answers under its new key", || {
        let answer = three.call(&["service:notes@attic", "/notes/7"]);
        answer.status.success() && answer.stdout == b"attic"
    });
    three.until_offered(&["attic", "shed"]);
}
