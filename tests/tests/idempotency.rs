//! A call with an idempotency key runs once, whatever happens to the nodes: real processes on loopback, and a service
//! that counts.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_tests::{
    local::{Local, free_port},
    node::until,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

const KAI: &str = env!("CARGO_BIN_EXE_kai-under-test");
const NOTES: &str = "kBridge:notes@attic";

/// A service that answers every request with how many it has had. What is for `/wait` waits until it is let go.
#[derive(Default)]
struct Counting {
    requests: AtomicUsize,
    go_on: (Mutex<bool>, Condvar),
}

impl Counting {
    fn start() -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (service, address) = (Arc::new(Self::default()), listener.local_addr().unwrap());
        let serving = service.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let service = serving.clone();
                std::thread::spawn(move || service.answer(stream));
            }
        });
        (service, address)
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            request.push(byte[0]);
        }
        if request.is_empty() {
            return;
        }
        let count = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        if request.starts_with(b"POST /wait ") {
            let (let_go, news) = &self.go_on;
            drop(news.wait_while(let_go.lock().unwrap(), |let_go| !*let_go).unwrap());
        }
        let body = match request.starts_with(b"POST /long ") {
            true => "x".repeat(100_000),
            false => count.to_string(),
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        // A bridge that was killed takes nothing any more.
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
    }

    fn let_go(&self) {
        *self.go_on.0.lock().unwrap() = true;
        self.go_on.1.notify_all();
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// attic with the service, and cellar, which may call it.
fn two(place: &Path) -> (Arc<Counting>, Local, Local) {
    let (service, address) = Counting::start();
    let (attic, cellar) =
        (Local::up(Path::new(KAI), place, "attic"), Local::up(Path::new(KAI), place, "cellar"));
    attic.ask(&["agent", "start", "kBridge:notes", "--http", &format!("http://{address}")]);
    cellar.ask(&["join", "--yes", &attic.invitation(&[])]);
    until("cellar sees the agent", || cellar.ask(&["agent", "list", "--all"]).contains(NOTES));
    until("they can call each other", || cellar.run(&["ping", "attic"]).status.success());
    (service, attic, cellar)
}

fn post<'a>(path: &'a str, key: &'a str) -> [&'a str; 7] {
    ["call", NOTES, path, "-X", "POST", "--idempotency-key", key]
}

fn begin(node: &Local, words: &[&str]) -> Child {
    let mut command = Command::new(KAI);
    command.arg("--folder").arg(node.folder()).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_same_key_runs_once_and_gives_the_same_answer() {
    let place = tempfile::tempdir().unwrap();
    let (service, mut attic, cellar) = two(place.path());
    for _ in 0..3 {
        assert_eq!(cellar.ask(&post("/", "a")), "1");
    }
    assert_eq!(cellar.ask(&post("/", "b")), "2");
    let other = cellar.run(&post("/other", "b"));
    assert!(other.status.code() == Some(2) && said(&other).contains("used for another request"), "{other:?}");

    assert_eq!(cellar.ask(&post("/long", "c")).len(), 100_000);
    let long = cellar.run(&post("/long", "c"));
    assert!(said(&long).contains("too long to keep"), "{long:?}");
    assert_eq!(service.requests(), 3);

    // Copies at once: one runs, the others are told so or get its answer.
    let copies: Vec<Child> = (0..4).map(|_| begin(&cellar, &post("/wait", "d"))).collect();
    until("one of them has arrived", || service.requests() == 4);
    let running = cellar.run(&post("/wait", "d"));
    assert!(said(&running).contains("still being executed"), "{running:?}");
    service.let_go();
    let outcomes: Vec<Output> = copies.into_iter().map(|copy| copy.wait_with_output().unwrap()).collect();
    assert!(outcomes.iter().any(|outcome| outcome.stdout == b"4"), "{outcomes:?}");
    for refused in outcomes.iter().filter(|outcome| !outcome.status.success()) {
        assert!(said(refused).contains("still being executed"), "{refused:?}");
    }

    // What was answered is answered after a restart of the callee, too.
    attic.down();
    attic.start();
    until("attic is back", || cellar.run(&["ping", "attic"]).status.success());
    assert_eq!([cellar.ask(&post("/", "a")), cellar.ask(&post("/wait", "d"))], ["1", "4"]);
    assert_eq!(service.requests(), 4);
}

#[test]
fn a_callee_that_was_killed_in_the_middle_does_not_run_the_call_again() {
    let place = tempfile::tempdir().unwrap();
    let (service, mut attic, cellar) = two(place.path());
    let cut = begin(&cellar, &post("/wait", "a"));
    until("the call has arrived", || service.requests() == 1);
    attic.kill();
    let cut = cut.wait_with_output().unwrap();
    assert!(said(&cut).contains("KAI-CALL-0013") && said(&cut).contains("outcome unknown"), "{cut:?}");
    service.let_go();
    attic.start();
    until("attic is back", || cellar.run(&["ping", "attic"]).status.success());
    for _ in 0..2 {
        let again = cellar.run(&post("/wait", "a"));
        assert!(said(&again).contains("unavailable: outcome unknown"), "{again:?}");
    }
    assert_eq!(service.requests(), 1);
    assert_eq!(cellar.ask(&post("/wait", "b")), "2", "another key is another request");
}

#[test]
fn a_service_that_was_down_is_called_under_the_same_key_once_it_is_up() {
    let place = tempfile::tempdir().unwrap();
    let (_, attic, cellar) = two(place.path());
    attic.ask(&["agent", "start", "kBridge:notes", "--http", &format!("http://127.0.0.1:{}", free_port())]);
    let down = cellar.run(&post("/", "a"));
    assert!(said(&down).contains("cannot be reached"), "{down:?}");
    let (service, address) = Counting::start();
    // The same agent, in front of a service that is up.
    attic.ask(&["agent", "start", "kBridge:notes", "--http", &format!("http://{address}")]);
    assert_eq!((cellar.ask(&post("/", "a")), service.requests()), ("1".to_owned(), 1));
}
