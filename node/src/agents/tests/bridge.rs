//! A bridge in front of a real listener, clause by clause.

use super::{
    service::{Answer, Seen, Service, ok},
    *,
};
use kos_agents::http::{Fields, Rule, Upgrade};
use serde_bytes::ByteBuf;
use tokio::net::TcpListener;

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), ByteBuf::from(value.as_bytes()))).collect()
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> HttpRequest {
    HttpRequest { headers: fields(headers), ..HttpRequest::new(method, path) }
}

fn allowing(address: SocketAddr, rules: &[&str]) -> Bridge {
    let allow = rules.iter().map(|rule| rule.parse::<Rule>().unwrap()).collect();
    Bridge { policy: Policy { allow, upgrade: Upgrade::WebSocket }, ..bridge(address) }
}

#[tokio::test]
async fn what_is_checked_is_what_is_sent() {
    let service = Service::new(|_| ok("page")).await;
    let pair = Pair::with(allowing(service.address, &["GET,HEAD /public/*"]));
    for path in ["/public/a%20b/%C3%A9?q=a%2Fb//..&x=%25", "/public/100%25;v=1", "/public/?"] {
        let outcome = pair.get(path).await;
        assert_eq!((outcome.whole(), outcome.body.as_slice()), (200, &b"page"[..]));
        assert_eq!(service.seen().last().unwrap().line, format!("GET {path} HTTP/1.1"));
    }
}

#[tokio::test]
async fn what_no_rule_allows_reaches_no_service_and_is_told() {
    let service = Service::new(|_| ok("page")).await;
    let pair = Pair::with(allowing(service.address, &["GET,HEAD /public/*"]));
    let denied = [
        ("POST", "/public/a"),
        ("GET", "/public"),
        ("GET", "/publicity"),
        ("GET", "/admin"),
        ("GET", "/%70ublic/a"),
        ("GET", "/x?/public/a"),
        ("TRACE", "/public/a"),
        ("CONNECT", "/public/a"),
    ];
    for (method, path) in denied {
        let outcome = pair.call(&notes(), &HttpRequest::new(method, path), b"").await;
        assert_eq!(outcome.refused(), Status::Denied, "{method} {path}");
    }
    assert_eq!(service.seen(), []);
    let told = pair.denials.lock().unwrap().clone();
    assert_eq!(told.len(), denied.len());
    let expected = Denial {
        caller: member(CALLER),
        agent: notes(),
        why: "POST /public/a is not allowed here".to_owned(),
    };
    assert_eq!(told[0], expected);
}

#[tokio::test]
async fn a_path_that_could_be_read_in_two_ways_reaches_no_service() {
    let service = Service::new(|_| ok("page")).await;
    let pair = Pair::with(allowing(service.address, &["GET /public/*"]));
    for path in [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/.%2E/admin",
        "/public/%252e%252e/admin",
        "/public/..;/admin",
        "/public/./a",
        "/public/..%2fadmin",
        "/public/a%2Fb",
        "/public/a%5c..",
        "/public\\..\\admin",
        "/public//admin",
        "//other/public/a",
        "/public/a%00",
        "/public/a%0d%0ahost:%20x",
        "/public/a\r\nhost: x",
        "/public/a b",
        "/public/%zz",
        "/public/%c0%ae%c0%ae/",
        "http://127.0.0.1/public/a",
        "*",
        "public/a",
        "",
    ] {
        assert_eq!(pair.get(path).await.refused(), Status::Invalid, "{path:?}");
    }
    assert_eq!(service.seen(), []);
}

#[tokio::test]
async fn fields_of_one_connection_and_of_others_making_are_replaced_by_ours() {
    let service = Service::new(|_| ok("")).await;
    let pair = Pair::before(service.address);
    let sent = request(
        "GET",
        "/",
        &[
            ("Host", "evil.example"),
            ("Connection", "close, X-Secret, TE"),
            ("X-Secret", "1"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Trailer", "x"),
            ("Transfer-Encoding", "gzip, chunked"),
            ("Proxy-Authorization", "x"),
            ("Forwarded", "for=1.2.3.4"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X-Forwarded-Host", "evil.example"),
            ("X-Forwarded-Proto", "https"),
            ("X_Forwarded_For", "1.2.3.4"),
            ("X-Real-IP", "1.2.3.4"),
            ("X-Kos-Caller", "somebody"),
            ("X_Kos_Caller", "somebody"),
            ("X-Kos-Anything", "x"),
            ("Accept", "text/html"),
            ("Cookie", "a=b"),
            ("X-Custom", "kept"),
        ],
    );
    assert_eq!(pair.call(&notes(), &sent, b"").await.whole(), 200);
    let caller = member(CALLER);
    let expected = [
        ("host", service.address.to_string()),
        ("accept", "text/html".to_owned()),
        ("cookie", "a=b".to_owned()),
        ("x-custom", "kept".to_owned()),
        ("x-kos-caller", caller.to_string()),
        ("forwarded", format!("for=_{caller}")),
    ];
    assert_eq!(service.only().fields, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[tokio::test]
async fn a_body_is_framed_anew() {
    let service = Service::new(|_| ok("")).await;
    let pair = Pair::before(service.address);
    let promised = request("POST", "/", &[("content-length", "5"), ("transfer-encoding", "chunked")]);
    assert_eq!(pair.call(&notes(), &promised, b"hello").await.whole(), 200);
    let endless = request("POST", "/", &[("transfer-encoding", "gzip")]);
    assert_eq!(pair.call(&notes(), &endless, b"5\r\nhello\r\n0\r\n\r\n").await.whole(), 200);
    assert_eq!(pair.call(&notes(), &request("POST", "/", &[]), b"").await.whole(), 200);
    let seen = service.seen();
    let framing = |seen: &Seen| {
        let field = |name| seen.field(name).map(str::to_owned);
        (field("content-length"), field("transfer-encoding"), seen.body.clone(), seen.is_whole)
    };
    assert_eq!(framing(&seen[0]), (Some("5".to_owned()), None, b"hello".to_vec(), true));
    let body = b"5\r\nhello\r\n0\r\n\r\n".to_vec();
    assert_eq!(framing(&seen[1]), (None, Some("chunked".to_owned()), body, true));
    assert!(seen[2].body.is_empty() && seen[2].field("transfer-encoding").is_none());
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_promised_is_never_a_whole_request() {
    let service = Service::new(|_| ok("")).await;
    let pair = Pair::before(service.address);
    for (promised, body) in [("5", "abc"), ("3", "abcde"), ("0", "abc")] {
        let sent = request("POST", "/", &[("content-length", promised)]);
        let outcome = pair.call(&notes(), &sent, body.as_bytes()).await;
        // A service that has its whole body may answer before the rest is looked at; ours never did then.
        assert_eq!(outcome.refused(), Status::Invalid, "{promised} {body}");
    }
    let smuggled = request("POST", "/", &[("content-length", "5"), ("content-length", "6")]);
    assert_eq!(pair.call(&notes(), &smuggled, b"hello").await.refused(), Status::Invalid);
    assert!(service.seen().iter().all(|seen| !seen.is_whole), "{:?}", service.seen());
}

#[tokio::test]
async fn an_upload_that_its_caller_breaks_off_is_cut_at_the_service() {
    let service = Service::new(|_| ok("")).await;
    let pair = Pair::before(service.address);
    let mut exchange = pair.open(&notes(), &request("POST", "/", &[]), Body::Streaming).await;
    exchange.send.data(b"half").await.unwrap();
    exchange.send.flush().await.unwrap();
    until("the bridge has connected", || service.connections() == 1).await;
    drop(exchange);
    until("the service sees the cut", || !service.seen().is_empty()).await;
    assert!(!service.only().is_whole);
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_nobody_follows_it() {
    let other = Service::new(|_| ok("the other")).await;
    let elsewhere = format!("http://{}/x", other.address);
    let answer = elsewhere.clone();
    let service = Service::new(move |seen| {
        let own = seen.field("host").unwrap();
        let to = if seen.line.contains("/own") { format!("http://{own}/moved") } else { answer.clone() };
        Answer::Send(format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"))
    })
    .await;
    let pair = Pair::before(service.address);
    let outcome = pair.get("/").await;
    assert_eq!((outcome.whole(), outcome.field("location")), (302, Some(elsewhere)));
    let outcome = pair.get("/own").await;
    assert_eq!((outcome.whole(), outcome.field("location")), (302, Some("/moved".to_owned())));
    assert_eq!((service.seen().len(), other.seen().len()), (2, 0));
}

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

fn websocket(path: &str) -> HttpRequest {
    request(
        "GET",
        path,
        &[("upgrade", "websocket"), ("sec-websocket-key", "k"), ("sec-websocket-version", "13")],
    )
}

#[tokio::test]
async fn a_websocket_passes_where_it_is_allowed() {
    let service = Service::new(|_| Answer::Echo(SWITCH.to_owned())).await;
    let pair = Pair::with(allowing(service.address, &["GET /ws"]));
    let mut exchange = pair.open(&notes(), &websocket("/ws"), Body::Streaming).await;
    exchange.send.flush().await.unwrap();
    let reply = HttpReply::decode(&exchange.recv.head().await.unwrap().unwrap().params).unwrap();
    assert_eq!((reply.status, &reply.headers), (101, &fields(&[("upgrade", "websocket")])));
    for word in [&b"one"[..], b"two"] {
        exchange.send.data(word).await.unwrap();
        exchange.send.flush().await.unwrap();
        assert_eq!(exchange.recv.next().await.unwrap().unwrap(), word);
    }
    exchange.send.end(&End::ok()).await.unwrap();
    assert_eq!(exchange.recv.next().await.unwrap(), None);
    let seen = service.only();
    assert_eq!((seen.field("connection"), seen.field("upgrade")), (Some("upgrade"), Some("websocket")));
    assert_eq!(seen.field("sec-websocket-key"), Some("k"));

    assert_eq!(pair.call(&notes(), &websocket("/other"), b"").await.refused(), Status::Denied);
}

#[tokio::test]
async fn a_websocket_passes_nowhere_else() {
    let service = Service::new(|_| Answer::Echo(SWITCH.to_owned())).await;
    let plain = Policy { allow: Vec::new(), upgrade: Upgrade::None };
    let pair = Pair::with(Bridge { policy: plain, ..bridge(service.address) });
    assert_eq!(pair.call(&notes(), &websocket("/ws"), b"").await.refused(), Status::Denied);
    assert_eq!(service.seen(), []);
    assert_eq!(pair.denials.lock().unwrap()[0].why, "WebSockets are not allowed here");
    // Another protocol is not even asked for, and a service that switches all the same is not followed.
    let pair = Pair::before(service.address);
    let other = request("GET", "/", &[("upgrade", "h2c"), ("http2-settings", "x")]);
    assert_eq!(pair.call(&notes(), &other, b"").await.refused(), Status::Unavailable);
    assert_eq!((service.only().field("upgrade"), service.only().field("http2-settings")), (None, None));
}

#[tokio::test]
async fn a_service_that_is_down_is_unavailable() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let pair = Pair::before(closed);
    let outcome = pair.get("/").await;
    assert_eq!(outcome.refused(), Status::Unavailable);
    let text = outcome.reply.unwrap_err().to_string();
    assert!(!text.contains("127.0.0.1"), "where the service is, is nobody's business: {text}");
}

#[tokio::test]
async fn a_service_that_says_nothing_times_out() {
    let service = Service::new(|_| Answer::Stall(String::new())).await;
    let pair = Pair::with(impatient(service.address));
    assert_eq!(pair.get("/").await.refused(), Status::Timeout);
    let half = Service::new(|_| Answer::Stall("HTTP/1.1 200 OK\r\ncontent-le".to_owned())).await;
    assert_eq!(Pair::with(impatient(half.address)).get("/").await.refused(), Status::Timeout);
}

#[tokio::test]
async fn a_service_that_closes_or_talks_nonsense_is_unavailable() {
    for answer in [
        "",
        "HTTP/1.1 200",
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let service = Service::new(move |_| Answer::Close(answer.to_owned())).await;
        let outcome = Pair::before(service.address).get("/").await;
        assert_eq!(outcome.refused(), Status::Unavailable, "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_or_stalls_ends_as_broken_never_as_whole() {
    for (answer, status) in [
        (Answer::Close("content-length: 10\r\n\r\nhello".to_owned()), Status::Unavailable),
        (Answer::Close("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n".to_owned()), Status::Unavailable),
        (Answer::Stall("content-length: 10\r\n\r\nhello".to_owned()), Status::Timeout),
        (Answer::Stall("transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n".to_owned()), Status::Timeout),
    ] {
        let answer = Mutex::new(Some(answer));
        let service = Service::new(move |_| {
            let head = |rest: String| format!("HTTP/1.1 200 OK\r\n{rest}");
            match answer.lock().unwrap().take().unwrap() {
                Answer::Close(rest) => Answer::Close(head(rest)),
                Answer::Stall(rest) => Answer::Stall(head(rest)),
                other => other,
            }
        })
        .await;
        let outcome = Pair::with(impatient(service.address)).get("/").await;
        assert_eq!(outcome.broken(), status);
        assert_eq!(outcome.body, b"hello", "what came is passed on");
    }
}

#[tokio::test]
async fn an_answer_is_framed_anew_and_ends_with_the_service() {
    let answers = [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nkeep-alive: x\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nconnection: x-secret\r\nx-secret: 1\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-kos-caller: x\r\n\r\nhello and more",
    ];
    for answer in answers {
        let service = Service::new(move |_| Answer::Close(answer.to_owned())).await;
        let outcome = Pair::before(service.address).get("/").await;
        assert_eq!((outcome.whole(), outcome.body.as_slice()), (200, &b"hello"[..]), "{answer:?}");
        let length = answer.contains("content-length").then(|| "5".to_owned());
        assert_eq!(outcome.field("content-length"), length);
        for stripped in ["transfer-encoding", "keep-alive", "connection", "x-secret", "x-kos-caller"] {
            assert_eq!(outcome.field(stripped), None);
        }
    }
}

#[tokio::test]
async fn a_caller_that_sends_nothing_does_not_keep_its_place() {
    let service = Service::new(|_| ok("")).await;
    let pair = Pair::with(impatient(service.address));
    for headers in [&[][..], &[("content-length", "5")]] {
        let mut exchange = pair.open(&notes(), &request("POST", "/", headers), Body::Streaming).await;
        exchange.send.flush().await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, exchange.recv.head()).await.unwrap();
        assert_eq!(ended.unwrap().unwrap_err().status, Status::Timeout, "{headers:?}");
    }
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_no_failure() {
    let service =
        Service::new(|_| Answer::Close("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned())).await;
    let pair = Pair::before(service.address);
    for _ in 0..10 {
        assert_eq!(pair.get("/").await.whole(), 200);
    }
}
