use super::*;
use crate::{Answering, App, AuditEvent, Change, Options, Runtime, tables::schema};
use kos_mesh::link::{CallError, Caller, Exchange};
use kos_protocol::{
    limits::{OUTCOME_LIFE_MS, OUTCOMES_PER_CALLER_MAX},
    message::{End, Head, ReplyHead},
    time::Timestamp,
};
use kos_store::{Batch, Folder, Ledger};
use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};
use tokio::sync::Notify;

/// Counts what it executes. The intent says how it answers.
#[derive(Default)]
struct Counting {
    runs: AtomicUsize,
    go_on: Notify,
    is_closed: std::sync::atomic::AtomicBool,
}

impl App for Arc<Counting> {
    fn admit(&self, _: &Caller, _: &Head) -> Result<Answering, End> {
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(End::because(Status::Denied, "closed"));
        }
        let app = self.clone();
        Ok(Box::new(move |request| Box::pin(async move { app.answer(request).await })))
    }
    fn audit(&self, _: AuditEvent) {}
    fn changed(&self, _: Change) {}
}

impl Counting {
    async fn answer(&self, request: Request) {
        let Request { head, send, mut recv, .. } = request;
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        let body = run.to_string();
        let reply = ReplyHead { params: ByteBuf::from(*b"params") };
        let outcome = match head.intent.as_str() {
            "wait" => {
                self.go_on.notified().await;
                send.reply(&reply, body.as_bytes()).await
            }
            // Goes on when its caller is gone, and finds nobody.
            "gone" => {
                let _ = recv.read_all(100).await;
                tokio::select! {
                    () = recv.gone() => return,
                    () = self.go_on.notified() => {}
                }
                send.reply(&reply, body.as_bytes()).await
            }
            "long" => send.reply(&reply, &vec![7; OUTCOME_REPLY_BYTES_MAX]).await,
            "refuse" => send.refuse(Status::Denied, body).await,
            "unbegun" => send.refuse_unbegun(Status::Unavailable, body).await,
            "give-up" => return,
            "never" => std::future::pending().await,
            _ => send.reply(&reply, body.as_bytes()).await,
        };
        drop(outcome);
    }
}

struct Node {
    runtime: Runtime,
    app: Arc<Counting>,
}

impl Node {
    async fn start(folder: &Path) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut options = Options::new(folder);
        (options.mdns, options.upnp, options.kad) = (false, false, false);
        options.listen = Some(vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()]);
        let app = Arc::new(Counting::default());
        let runtime = Runtime::start(options, Arc::new(app.clone())).await.unwrap();
        Self { runtime, app }
    }

    async fn stop(self, folder: &Path) {
        self.runtime.shutdown().await;
        drop(self);
        until("the folder is free", || Folder::open(folder).is_ok()).await;
    }

    fn runs(&self) -> usize {
        self.app.runs.load(Ordering::SeqCst)
    }

    async fn open(&self, head: &Head) -> Result<(Exchange, Result<ReplyHead, End>), CallError> {
        let me = self.runtime.me();
        self.runtime.request(&me.federation, &me.member, head, b"").await
    }

    /// Calls this node by itself: the params and body of the answer, or its end.
    async fn call(&self, head: &Head) -> Result<(Vec<u8>, Vec<u8>), End> {
        let (mut exchange, reply) = self.open(head).await.unwrap();
        let reply = reply?;
        let body = exchange.recv.read_all(1 << 20).await.unwrap();
        match exchange.recv.ended() {
            Some(end) if end.status == Status::Ok => Ok((reply.params.into_vec(), body)),
            Some(end) => Err(end.clone()),
            None => panic!("read to its end"),
        }
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn head(intent: &str, key: &[u8]) -> Head {
    Head { intent: intent.to_owned(), idempotency_key: Some(ByteBuf::from(key)), ..Head::default() }
}

fn answer(body: &str) -> Result<(Vec<u8>, Vec<u8>), End> {
    Ok((b"params".to_vec(), body.as_bytes().to_vec()))
}

#[tokio::test]
async fn a_key_runs_its_request_once_also_across_a_restart() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("node");
    let node = Node::start(&folder).await;
    for _ in 0..3 {
        assert_eq!(node.call(&head("count", b"a")).await, answer("1"));
    }
    let refusal = node.call(&head("refuse", b"a")).await.unwrap_err();
    assert_eq!((refusal.status, refusal.text.as_str()), (Status::Denied, "2"));
    assert_eq!(node.call(&head("refuse", b"a")).await, Err(refusal.clone()));
    let other = Head { params: ByteBuf::from([1]), ..head("count", b"a") };
    assert_eq!(node.call(&other).await.unwrap_err().status, Status::Invalid);
    let unmarked = Head { intent: "count".to_owned(), ..Head::default() };
    assert_eq!([node.call(&unmarked).await, node.call(&unmarked).await], [answer("3"), answer("4")]);
    node.stop(&folder).await;
    let node = Node::start(&folder).await;
    assert_eq!(node.call(&head("count", b"a")).await, answer("1"));
    assert_eq!(node.call(&head("refuse", b"a")).await, Err(refusal));
    assert_eq!(node.runs(), 0, "nothing ran after the restart");
    node.runtime.shutdown().await;
}

#[tokio::test]
async fn copies_at_the_same_time_run_once() {
    let place = tempfile::tempdir().unwrap();
    let node = Node::start(&place.path().join("node")).await;
    let wait = head("wait", b"a");
    let copies = async {
        let copies = (0..16).map(|_| node.call(&wait));
        futures::future::join_all(copies).await
    };
    let let_go = async {
        // All but the one that runs have been answered by the time a seventeenth is.
        until("it runs", || node.runs() == 1).await;
        let end = node.call(&wait).await.unwrap_err();
        assert_eq!((end.status, end.text.as_str()), (Status::Unavailable, "still being executed"));
        node.app.go_on.notify_one();
    };
    let (answers, ()) = futures::future::join(copies, let_go).await;
    assert!(answers.contains(&answer("1")));
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(refused.status, Status::Unavailable);
    }
    assert_eq!((node.call(&wait).await, node.runs()), (answer("1"), 1));
    node.runtime.shutdown().await;
}

#[tokio::test]
async fn what_was_stopped_before_its_end_is_unknown_and_not_run_again() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("node");
    let node = Node::start(&folder).await;
    // Long enough for its row to be durable, so that it runs, also on a slow disk.
    let late = Head { deadline_ms: Some(3_000), ..head("never", b"a") };
    assert_eq!(node.call(&late).await.unwrap_err().status, Status::Timeout);
    assert_eq!(node.call(&head("give-up", b"a")).await.unwrap_err().status, Status::Internal);
    for intent in ["never", "give-up"] {
        let end = node.call(&head(intent, b"a")).await.unwrap_err();
        assert!(end.status == Status::Unavailable && end.text.starts_with("outcome unknown"), "{end}");
    }
    assert_eq!(node.runs(), 2);
    node.stop(&folder).await;
    let node = Node::start(&folder).await;
    let end = node.call(&head("never", b"a")).await.unwrap_err();
    assert!(end.text.starts_with("outcome unknown"), "{end}");
    assert_eq!(node.runs(), 0);
    node.runtime.shutdown().await;
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_kept_and_its_request_not_run_again() {
    let place = tempfile::tempdir().unwrap();
    let node = Node::start(&place.path().join("node")).await;
    assert_eq!(node.call(&head("long", b"a")).await.unwrap().1.len(), OUTCOME_REPLY_BYTES_MAX);
    let end = node.call(&head("long", b"a")).await.unwrap_err();
    assert!(end.status == Status::Unavailable && end.text.contains("too long to keep"), "{end}");
    assert_eq!(node.runs(), 1);
    node.runtime.shutdown().await;
}

#[tokio::test]
async fn what_was_not_begun_may_be_asked_again() {
    let place = tempfile::tempdir().unwrap();
    let node = Node::start(&place.path().join("node")).await;
    assert_eq!(node.call(&head("unbegun", b"a")).await.unwrap_err().text, "1");
    assert_eq!(node.call(&head("unbegun", b"a")).await.unwrap_err().text, "2");
    node.app.is_closed.store(true, Ordering::SeqCst);
    assert_eq!(node.call(&head("count", b"b")).await.unwrap_err().text, "closed");
    node.app.is_closed.store(false, Ordering::SeqCst);
    assert_eq!(node.call(&head("count", b"b")).await, answer("3"));
    assert!(lock(&node.runtime.0.once.0.outcomes).len() == 1);
    node.runtime.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_went_away_finds_the_answer_when_it_asks_again() {
    let place = tempfile::tempdir().unwrap();
    let node = Node::start(&place.path().join("node")).await;
    let me = node.runtime.me();
    let body = kos_mesh::link::Body::Whole(b"");
    let gone = head("gone", b"a");
    let exchange = node.runtime.open(&me.federation, &me.member, &gone, body).await.unwrap();
    until("it runs", || node.runs() == 1).await;
    drop(exchange);
    node.app.go_on.notify_one();
    let is_kept = || {
        let kept = node.runtime.0.once.row(&asked(&node, &gone).key());
        kept.is_some_and(|row| row.into_answer().0.is_some())
    };
    until("it has ended", is_kept).await;
    assert_eq!((node.call(&gone).await, node.runs()), (answer("1"), 1));
    node.runtime.shutdown().await;
}

fn asked(node: &Node, head: &Head) -> Asked {
    let me = node.runtime.me();
    Asked::by(me.member, &me.federation, head).unwrap()
}

#[tokio::test]
async fn a_ledger_that_takes_nothing_lets_nothing_run() {
    let place = tempfile::tempdir().unwrap();
    let node = Node::start(&place.path().join("node")).await;
    assert_eq!(node.call(&head("count", b"a")).await, answer("1"));
    // From here on the one writer takes no more.
    node.runtime.0.stop.cancel();
    let end = node.call(&head("count", b"b")).await.unwrap_err();
    assert!(end.status == Status::Unavailable && end.text.starts_with("not executed"), "{end}");
    assert_eq!(node.call(&head("count", b"a")).await, answer("1"), "what is kept is answered all the same");
    assert_eq!(node.runs(), 1);
    node.runtime.shutdown().await;
}

#[tokio::test]
async fn a_full_table_lets_nothing_more_run_and_a_damaged_row_nothing_again() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("node");
    let node = Node::start(&folder).await;
    let (first, damaged) = (asked(&node, &head("count", b"0")), asked(&node, &head("count", b"damaged")));
    let me = node.runtime.me();
    node.stop(&folder).await;
    let mut filling = Outcomes::new();
    let now = Timestamp { monotonic_ms: 0, wall_ms: crate::state::wall_ms() };
    for n in 0..OUTCOMES_PER_CALLER_MAX - 1 {
        let asked = Asked::by(me.member, &me.federation, &head("count", n.to_string().as_bytes())).unwrap();
        assert_eq!(filling.ask(now, &asked), Decision::Run);
        filling.finish(asked.key(), Answer::Refusal, End::because(Status::NotFound, "as before"));
    }
    assert_eq!(filling.ask(now, &first), Decision::Replay);
    {
        let ledger = Ledger::open(&Folder::open(&folder).unwrap(), &schema()).unwrap();
        let mut batch = Batch::new();
        while let Some(output) = filling.poll_output() {
            if let Output::Persist { key, bytes } = output {
                batch.put(OUTCOMES, &outcome_key(&key), &bytes);
            }
        }
        batch.put(OUTCOMES, &outcome_key(&damaged.key()), b"no row");
        ledger.commit(batch).unwrap();
    }
    let node = Node::start(&folder).await;
    let full = node.call(&head("count", b"new")).await.unwrap_err();
    assert_eq!(full.status, Status::RateLimited);
    assert!(full.retry_after_ms.is_some_and(|ms| u64::from(ms) <= OUTCOME_LIFE_MS), "{full}");
    assert_eq!(node.call(&head("count", b"0")).await.unwrap_err().text, "as before");
    let unknown = node.call(&head("count", b"damaged")).await.unwrap_err();
    assert!(unknown.text.starts_with("outcome unknown"), "{unknown}");
    assert_eq!(node.runs(), 0);
    node.runtime.shutdown().await;
}
