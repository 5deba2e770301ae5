//! Calls held against the contracts of services: what does not hold never reaches the service.

use super::{
    service::{Service, ok},
    *,
};
use futures::StreamExt;
use kos_directory::contract::{Contract, parse_file};
use kos_protocol::limits::CHECKED_BODY_BYTES_MAX;

/// A contract of `kBridge:notes`, with what `security` says.
fn contract(security: &str) -> Contract {
    let text = format!(
        r#"
        name = "notes"
        version = "1.2.0"
        agent = "kBridge:notes"

        [security]
        callers = ["member"]
        {security}

        [[methods]]
        method = "GET"
        path = "/notes/{{id}}"

        [[methods]]
        method = "POST"
        path = "/notes"
        request = {{ type = "object", required = ["title"], properties = {{ title = {{ type = "string" }} }} }}

        [[methods]]
        method = "PUT"
        path = "/files/*"
        "#
    );
    parse_file(&text, |_| Err("no files".to_owned())).unwrap()
}

async fn pair(security: &str) -> (Service, Pair) {
    let service = Service::new(|_| ok("done")).await;
    let pair = Pair::before(service.address);
    *pair.published.lock().unwrap() = vec![contract(security).check().unwrap()];
    (service, pair)
}

fn post(path: &str, body: &[u8]) -> HttpRequest {
    let length = ("content-length".to_owned(), body.len().to_string().into_bytes().into());
    HttpRequest { headers: vec![length], ..HttpRequest::new("POST", path) }
}

fn told(outcome: &Outcome) -> (Status, String) {
    let end = outcome.reply.as_ref().expect_err("refused");
    (end.status, end.text.clone())
}

#[tokio::test]
async fn a_body_that_is_not_what_the_contract_says_never_reaches_the_service() {
    let (service, pair) = pair("").await;
    let call = async |body: &[u8]| pair.call(&notes(), &post("/notes", body), body).await;
    for (body, text) in [
        (&br#"{"title":7}"#[..], r#"at `/title`: value is not of type "string""#),
        (b"{}", r#"at ``: "title" is a required property"#),
        (b"", "the body is no JSON"),
    ] {
        let (status, why) = told(&call(body).await);
        assert_eq!(status, Status::Invalid);
        assert!(why.starts_with(text), "{why}");
        let denial = Denial { caller: member(CALLER), agent: notes(), why };
        assert_eq!(pair.denials.lock().unwrap().pop(), Some(denial));
    }
    let long = format!(r#"{{"title":"{}"}}"#, "a".repeat(CHECKED_BODY_BYTES_MAX));
    let (status, why) = told(&call(long.as_bytes()).await);
    assert_eq!(status, Status::TooLarge);
    assert!(why.contains("the most its contract can check"), "{why}");
    assert_eq!((service.connections(), service.seen().len()), (0, 0));

    let good = br#"{"title":"milk"}"#;
    assert_eq!(call(good).await.whole(), 200);
    let seen = service.only();
    assert_eq!((seen.body.as_slice(), seen.is_whole), (&good[..], true), "byte for byte");
}

#[tokio::test]
async fn a_body_in_parts_is_checked_whole() {
    let (service, pair) = pair("").await;
    let exchange = pair.open(&notes(), &HttpRequest::new("POST", "/notes"), Body::Streaming).await;
    let (mut send, recv) = exchange.into_halves();
    for part in [&br#"{"title""#[..], b":", br#""milk"}"#] {
        send.data(part).await.unwrap();
        send.flush().await.unwrap();
    }
    assert!(service.seen().is_empty(), "nothing of it passes before all of it was checked");
    send.end(&End::ok()).await.unwrap();
    let outcome = tokio::time::timeout(PATIENCE, Outcome::read(recv)).await.unwrap();
    assert_eq!((outcome.whole(), service.only().body.as_slice()), (200, &br#"{"title":"milk"}"#[..]));
}

#[tokio::test]
async fn a_body_without_a_schema_streams_whatever_its_size() {
    let (service, pair) = pair("").await;
    let body = vec![b'x'; 4 * CHECKED_BODY_BYTES_MAX];
    let put = HttpRequest { method: "PUT".to_owned(), ..post("/files/a/b", &body) };
    assert_eq!(pair.call(&notes(), &put, &body).await.whole(), 200);
    assert_eq!(service.only().body.len(), body.len());
}

#[tokio::test]
async fn what_no_contract_of_the_agent_lists_is_not_there() {
    let (service, pair) = pair("").await;
    assert_eq!(pair.get("/notes/7?page=2").await.whole(), 200);
    let (status, why) = told(&pair.get("/admin").await);
    assert_eq!(
        (status, why.as_str()),
        (Status::NotFound, "the contract of `notes` has no GET for this path")
    );
    assert_eq!(told(&pair.get("/%6eotes/7").await).0, Status::NotFound, "byte for byte");
    let seen = service.seen().len();

    // A second service of the same agent lists more; a service of another agent says nothing of this one.
    let more = Contract { name: "admin".to_owned(), ..contract("") };
    let admin = parse_file(
        "name = \"admin\"\nversion = \"1.0.0\"\nagent = \"kBridge:notes\"\n[security]\ncallers = [\"member\"]\n\
         [[methods]]\nmethod = \"GET\"\npath = \"/admin\"",
        |_| Err(String::new()),
    );
    let other = Contract { agent: "kBridge:other".parse().unwrap(), ..more };
    let published = [admin.unwrap(), other].map(|contract| contract.check().unwrap());
    pair.published.lock().unwrap().extend(published);
    assert_eq!(pair.get("/admin").await.whole(), 200);
    assert_eq!(pair.get("/notes/7").await.whole(), 200);
    assert_eq!(service.seen().len(), seen + 2);

    pair.published.lock().unwrap().clear();
    assert_eq!(pair.get("/anything").await.whole(), 200, "an agent without services answers everything");
}

#[tokio::test]
async fn who_may_call_and_with_which_keys_is_what_the_contract_says() {
    let (service, pair) = pair("").await;
    let ask = async |key: Option<&[u8]>| {
        let head = Head {
            intent: INTENT.to_owned(),
            target: Some(notes().to_string()),
            idempotency_key: key.map(|key| key.to_vec().into()),
            params: HttpRequest::new("GET", "/notes/7").encode().unwrap(),
            ..Head::default()
        };
        let to = To { federation: FEDERATION, key: secret(CALLEE).public() };
        let exchange = pair.caller.open(to, &head, Body::Whole(b"")).await.unwrap();
        let outcome = Outcome::of(exchange).await;
        outcome.reply.map(|reply| reply.status).map_err(|end| (end.status, end.text))
    };
    let publish = |security: &str| {
        *pair.published.lock().unwrap() = vec![contract(security).check().unwrap()];
    };
    assert_eq!((ask(None).await, ask(Some(b"a")).await), (Ok(200), Ok(200)));
    publish(r#"idempotency = "refused""#);
    let refused =
        |text: &str| Err((Status::Invalid, format!("the contract of `notes` takes no call {text}")));
    assert_eq!((ask(None).await, ask(Some(b"a")).await), (Ok(200), refused("with an idempotency key")));
    publish(r#"idempotency = "required""#);
    assert_eq!((ask(None).await, ask(Some(b"a")).await), (refused("without an idempotency key"), Ok(200)));
    let seen = service.seen().len();

    let mut for_others = contract("");
    for_others.security.callers = vec![kos_directory::contract::Caller::Steward];
    *pair.published.lock().unwrap() = vec![for_others.check().unwrap()];
    let denied = "the contract of `notes` lets no member call".to_owned();
    assert_eq!(ask(None).await, Err((Status::Denied, denied.clone())));
    assert_eq!(pair.denials.lock().unwrap().last().map(|denial| denial.why.clone()), Some(denied));
    assert_eq!(service.seen().len(), seen);
}

#[tokio::test]
async fn bodies_that_fill_the_room_of_a_member_are_told_to_come_back() {
    let (service, pair) = pair("").await;
    let part = vec![b' '; 200 * 1024];
    // Each sends most of a body and does not end it; a member has room for some of them.
    let mut waiting = futures::stream::FuturesUnordered::new();
    for _ in 0..CALLS_PER_MEMBER_MAX {
        let exchange = pair.open(&notes(), &HttpRequest::new("POST", "/notes"), Body::Streaming).await;
        let (mut send, mut recv) = exchange.into_halves();
        let part = &part;
        waiting.push(async move {
            // Whoever is refused meanwhile takes no more.
            let _ = send.data(part).await;
            let _ = send.flush().await;
            recv.head().await.map(|answer| (answer.expect_err("nothing was asked"), send))
        });
    }
    let first = tokio::time::timeout(PATIENCE, waiting.next()).await.expect("not all of them find room");
    let (end, _) = first.unwrap().unwrap();
    assert_eq!((end.status, end.retry_after_ms), (Status::RateLimited, Some(1_000)));
    drop(waiting);
    let good = br#"{"title":"milk"}"#;
    until_called(&pair, good).await;
    assert_eq!(service.seen().len(), 1);
}

/// What others gave up makes room as soon as the callee hears of it.
async fn until_called(pair: &Pair, body: &[u8]) {
    let calling = async {
        while pair.call(&notes(), &post("/notes", body), body).await.reply.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, calling).await.expect("there is room again");
}
