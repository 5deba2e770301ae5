use super::*;
use crate::api::CallHead;
use futures::{StreamExt, stream};
use http::{HeaderMap, Method};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, client::IntoClientRequest},
};

/// A guard against hanging.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers by path; `/wait` only once there is a permit.
struct Fake(Semaphore);

impl Node for Fake {
    fn status(&self) -> Pending<'_, Result<Value, Failure>> {
        Box::pin(async { Ok(json!({"status": {"verdict": "healthy"}, "agents": []})) })
    }

    fn metrics(&self) -> Pending<'_, Result<String, Failure>> {
        Box::pin(async { Ok("kos_agents{state=\"running\"} 1\n".to_owned()) })
    }

    fn call(&self, request: CallRequest) -> Pending<'_, Result<Called, Failure>> {
        Box::pin(async move {
            let body = match request.path.as_str() {
                "/wait" => {
                    self.0.acquire().await.map_err(|error| Code::Internal.because(error))?.forget();
                    Body::from("at last")
                }
                "/big" => Body::from(vec![b'x'; tasks::RESULT_BYTES_MAX + 1]),
                "/large" => Body::from(vec![b'x'; 200_000]),
                "/cut" => {
                    let parts = [Ok(bytes::Bytes::from("half")), Err(std::io::Error::other("cut"))];
                    Body::from_stream(stream::iter(parts))
                }
                "/denied" => return Err(Code::CallDenied.plain()),
                "/key" => Body::from(request.idempotency_key.unwrap_or_default()),
                _ => Body::from(data_encoding::BASE64.decode(request.body.as_bytes()).unwrap()),
            };
            let headers = vec![("content-type".to_owned(), "text/plain".to_owned())];
            Ok(Called {
                head: CallHead {
                    status: 200,
                    headers,
                    route: "direct".to_owned(),
                    trace: String::new(),
                    service: None,
                },
                body,
            })
        })
    }
}

struct Server {
    address: SocketAddr,
    token: String,
    served: Arc<Served>,
    node: Arc<Fake>,
    folder: Folder,
    serving: JoinHandle<()>,
    _place: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::paced(Pace::default()).await
    }

    async fn paced(pace: Pace) -> Self {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path().join("kai")).unwrap();
        let node = Arc::new(Fake(Semaphore::new(0)));
        let listen = Loopback::try_from("127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        let mut api =
            Api::bind(listen, &folder, node.clone(), Arc::default(), CancellationToken::new()).await.unwrap();
        Arc::get_mut(&mut api.served).unwrap().pace = pace;
        let token = std::fs::read_to_string(folder.path().join(TOKEN)).unwrap().trim().to_owned();
        let (served, address) = (api.served.clone(), api.listener.local_addr().unwrap());
        let serving = tokio::spawn(api.serve(folder.clone()));
        Self { address, token, served, node, folder, serving, _place: place }
    }

    fn own(&self) -> Vec<(&'static str, String)> {
        vec![("host", self.address.to_string()), ("authorization", format!("Bearer {}", self.token))]
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        fields: &[(&'static str, String)],
        body: impl Into<bytes::Bytes>,
    ) -> (StatusCode, HeaderMap, String) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in fields {
            request = request.header(*name, value);
        }
        let answer = sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let (status, _, body) = self.ask(Method::GET, path, &self.own(), "").await;
        (status, serde_json::from_str(&body).unwrap())
    }

    async fn post(&self, task: &Value) -> (StatusCode, HeaderMap, Value) {
        let (status, headers, body) =
            self.ask(Method::POST, "/agent/task", &self.own(), task.to_string()).await;
        (status, headers, serde_json::from_str(&body).unwrap())
    }

    async fn subscribe(&self) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, tungstenite::Error> {
        let mut request = format!("ws://{}/ws", self.address).into_client_request().unwrap();
        let token = HeaderValue::from_str(&format!("Bearer {}", self.token)).unwrap();
        request.headers_mut().insert("authorization", token);
        connect_async(request).await.map(|(socket, _)| socket)
    }
}

fn code(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).unwrap();
    answer["error"]["code"].as_str().unwrap_or_default().to_owned()
}

fn task(path: &str) -> Value {
    json!({"agent": "kBridge:notes@attic", "method": "POST", "path": path, "body": "hello", "correlationId": "c1"})
}

#[tokio::test]
async fn a_tasks_idempotency_key_is_in_its_header_or_in_its_body() {
    let server = Server::start().await;
    let mut socket = server.subscribe().await.unwrap();
    let keyed = |key: &str| {
        let mut task = task("/key");
        task["idempotencyKey"] = json!(key);
        task.to_string()
    };
    let take = async |header: Option<&str>, body: String| {
        let mut fields = server.own();
        fields.extend(header.map(|key| ("idempotency-key", key.to_owned())));
        let (status, _, answer) = server.ask(Method::POST, "/agent/task", &fields, body).await;
        (status, serde_json::from_str::<Value>(&answer).unwrap())
    };
    for (header, body) in
        [(Some("a b"), task("/key").to_string()), (None, keyed("a b")), (Some("a b"), keyed("a b"))]
    {
        let (status, answer) = take(header, body).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        let result = loop {
            let told = message(&mut socket).await;
            if told["type"] == "AGENT_RESULT" {
                break told;
            }
        };
        assert_eq!((&result["taskId"], &result["payload"]["body"]), (&answer["taskId"], &json!("a b")));
    }
    let long = "k".repeat(65);
    let refused = [
        (Some("b"), keyed("a")),
        (Some(""), keyed("")),
        (None, keyed("")),
        (None, keyed(&long)),
        (Some(&*long), keyed(&long)),
    ];
    for (header, body) in refused {
        assert_eq!(take(header, body).await.0, StatusCode::BAD_REQUEST, "{header:?}");
    }
}

async fn message(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Value {
    loop {
        let received = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        if let tungstenite::Message::Text(text) = received {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

#[tokio::test]
async fn the_address_is_told_while_the_api_listens_and_goes_with_it() {
    let server = Server::start().await;
    let path = server.folder.path().join(ADDRESS);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("http://{}\n", server.address));
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(server.served.hub.address(), Some(server.address));
    server.served.stop.cancel();
    server.serving.await.unwrap();
    assert!(!path.exists());
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = tempfile::tempdir().unwrap();
    let folder = Folder::open(place.path().join("kai")).unwrap();
    let node = Arc::new(Fake(Semaphore::new(0)));
    let address = taken.local_addr().unwrap();
    let listen = Loopback::try_from(address).unwrap();
    let refused = Api::bind(listen, &folder, node, Arc::default(), CancellationToken::new()).await;
    let failure = refused.err().unwrap();
    assert!(failure.is(Code::ApiListen) && failure.message.contains(&address.to_string()), "{failure}");
}

#[tokio::test]
async fn only_the_token_in_its_header_opens_a_route() {
    let server = Server::start().await;
    let host = ("host", server.address.to_string());
    for path in ["/agent/status", "/agent/task/x", "/ws", &format!("/agent/status?token={}", server.token)] {
        let (status, headers, body) = server.ask(Method::GET, path, std::slice::from_ref(&host), "").await;
        assert_eq!((status, code(&body)), (StatusCode::UNAUTHORIZED, "KAI-API-0001".to_owned()), "{path}");
        assert_eq!(headers["www-authenticate"], "Bearer");
    }
    let wrong = [host.clone(), ("authorization", format!("Bearer {}", "A".repeat(43)))];
    assert_eq!(server.ask(Method::GET, "/agent/status", &wrong, "").await.0, StatusCode::UNAUTHORIZED);
    let (status, answer) = server.get("/agent/status").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&answer["schema_version"], &answer["status"]["verdict"]), (&json!(1), &json!("healthy")));
    let (status, _, body) = server.ask(Method::GET, "/health", &[host], "").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "ok\n"));
}

#[tokio::test]
async fn every_route_names_this_listener_and_comes_from_no_other_site() {
    let server = Server::start().await;
    let port = server.address.port();
    let token = ("authorization", format!("Bearer {}", server.token));
    for path in ["/health", "/agent/status", "/nothing"] {
        let foreign = [("host", format!("evil.example:{port}")), token.clone()];
        let (status, _, body) = server.ask(Method::GET, path, &foreign, "").await;
        assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "KAI-API-0002".to_owned()), "{path}");
        for (name, value) in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")] {
            let page = [("host", format!("localhost:{port}")), token.clone(), (name, value.to_owned())];
            let (status, headers, body) = server.ask(Method::GET, path, &page, "").await;
            assert_eq!((status, code(&body)), (StatusCode::FORBIDDEN, "KAI-API-0003".to_owned()), "{path}");
            assert!(headers.keys().all(|name| !name.as_str().starts_with("access-control-")));
        }
    }
    for name in ["localhost", "127.0.0.1", "[::1]"] {
        let own = [("host", format!("{name}:{port}")), token.clone()];
        let (status, headers, _) = server.ask(Method::GET, "/agent/status", &own, "").await;
        assert_eq!(status, StatusCode::OK, "{name}");
        assert!(headers.keys().all(|name| !name.as_str().starts_with("access-control-")));
    }
    let preflight = [("host", server.address.to_string()), ("origin", "https://evil.example".to_owned())];
    let (status, ..) = server.ask(Method::OPTIONS, "/agent/task", &preflight, "").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn what_is_not_there_yet_is_not_found() {
    let server = Server::start().await;
    for (method, path) in [
        (Method::POST, "/vault/encrypt"),
        (Method::POST, "/memory/search"),
        (Method::GET, "/artifact/1"),
        (Method::GET, "/v1/status"),
        (Method::DELETE, "/agent/status"),
    ] {
        let (status, _, body) = server.ask(method, path, &server.own(), "").await;
        assert_eq!((status, code(&body)), (StatusCode::NOT_FOUND, "KAI-API-0005".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_task_is_taken_at_once_and_can_be_asked_for() {
    let server = Server::start().await;
    let (status, headers, taken) = server.post(&task("/wait")).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let path = format!("/agent/task/{}", taken["taskId"].as_str().unwrap());
    assert_eq!(headers["location"], path.as_str());
    let (_, running) = server.get(&path).await;
    assert_eq!((&running["state"], &running["correlationId"]), (&json!("running"), &json!("c1")));
    let mut socket = server.subscribe().await.unwrap();
    assert_eq!(message(&mut socket).await["type"], "SYSTEM_STATUS");
    server.node.0.add_permits(1);
    while message(&mut socket).await["type"] != "AGENT_RESULT" {}
    let (_, done) = server.get(&path).await;
    assert_eq!((&done["state"], &done["result"]["status"]), (&json!("done"), &json!(200)));
    assert_eq!((&done["result"]["body"], &done["result"]["encoding"]), (&json!("at last"), &json!("utf-8")));
    let (status, missing) = server.get("/agent/task/none").await;
    assert_eq!((status, &missing["error"]["code"]), (StatusCode::NOT_FOUND, &json!("KAI-API-0009")));
}

#[tokio::test]
async fn a_subscriber_hears_of_a_task_from_its_start_to_its_end() {
    let server = Server::start().await;
    let mut socket = server.subscribe().await.unwrap();
    let first = message(&mut socket).await;
    assert_eq!(
        (&first["type"], &first["payload"]["status"]["verdict"]),
        (&json!("SYSTEM_STATUS"), &json!("healthy"))
    );
    let (_, _, taken) = server.post(&task("/echo")).await;
    let about = |message: &Value| {
        assert_eq!((&message["taskId"], &message["correlationId"]), (&taken["taskId"], &json!("c1")));
        assert_eq!(message["agent"], "kBridge:notes@attic");
        assert!(message["timestamp"].as_u64().is_some_and(|time| time > 1_600_000_000_000));
        (message["type"].as_str().unwrap().to_owned(), message["payload"].clone())
    };
    let calling = about(&message(&mut socket).await);
    assert_eq!(calling, ("TASK_PROGRESS".to_owned(), json!({"state": "calling"})));
    let answering = about(&message(&mut socket).await);
    let payload = json!({"state": "answering", "status": 200, "route": "direct"});
    assert_eq!(answering, ("TASK_PROGRESS".to_owned(), payload));
    let (kind, result) = about(&message(&mut socket).await);
    assert_eq!((kind.as_str(), &result["body"]), ("AGENT_RESULT", &json!("hello")));
}

#[tokio::test]
async fn a_task_that_fails_says_why() {
    let server = Server::start().await;
    for (path, code) in [("/denied", "KAI-CALL-0001"), ("/cut", "KAI-CALL-0010"), ("/big", "KAI-API-0010")] {
        let mut socket = server.subscribe().await.unwrap();
        let (_, _, taken) = server.post(&task(path)).await;
        let error = loop {
            let message = message(&mut socket).await;
            if message["type"] == "AGENT_ERROR" {
                break message;
            }
        };
        assert_eq!((&error["taskId"], &error["payload"]["code"]), (&taken["taskId"], &json!(code)), "{path}");
        let (_, view) = server.get(&format!("/agent/task/{}", taken["taskId"].as_str().unwrap())).await;
        assert_eq!((&view["state"], &view["error"]["code"]), (&json!("failed"), &json!(code)), "{path}");
    }
}

#[tokio::test]
async fn malformed_and_oversized_requests_are_told_apart() {
    let server = Server::start().await;
    let mut long_id = task("/echo");
    long_id["correlationId"] = json!("x".repeat(200));
    let mut not_base64 = task("/echo");
    not_base64["encoding"] = json!("base64");
    not_base64["body"] = json!("no");
    for bad in
        [json!({}), json!({"agent": "a", "method": "GET", "path": "/", "more": 1}), long_id, not_base64]
    {
        let (status, _, answer) = server.post(&bad).await;
        let got = (status, &answer["error"]["code"]);
        assert_eq!(got, (StatusCode::BAD_REQUEST, &json!("KAI-API-0006")), "{bad}");
    }
    let body = "x".repeat(BODY_BYTES_MAX + 1);
    let (status, _, answer) = server.ask(Method::POST, "/agent/task", &server.own(), body).await;
    assert_eq!((status, code(&answer)), (StatusCode::PAYLOAD_TOO_LARGE, "KAI-API-0007".to_owned()));
    let (status, _, answer) = server.ask(Method::GET, "/ws", &server.own(), "").await;
    assert_eq!((status, code(&answer)), (StatusCode::BAD_REQUEST, "KAI-API-0006".to_owned()));
}

#[tokio::test]
async fn each_route_has_its_own_limit_and_says_when_to_come_back() {
    let server = Server::start().await;
    let fields = server.own();
    let asked = (0..3 * STATUS_RATE.burst).map(|_| server.ask(Method::GET, "/agent/status", &fields, ""));
    let answers = futures::future::join_all(asked).await;
    let count = |wanted| answers.iter().filter(|(status, ..)| *status == wanted).count();
    assert!(count(StatusCode::OK) >= STATUS_RATE.burst as usize);
    let refused = answers.iter().find(|(status, ..)| *status == StatusCode::TOO_MANY_REQUESTS);
    let (_, headers, body) = refused.unwrap();
    assert_eq!((headers["retry-after"].to_str().unwrap(), code(body).as_str()), ("1", "KAI-API-0004"));
    assert_eq!(server.get("/agent/task/none").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn only_so_many_tasks_run_at_once() {
    let server = Server::start().await;
    for _ in 0..tasks::RUNNING_MAX {
        assert_eq!(server.post(&task("/wait")).await.0, StatusCode::ACCEPTED);
    }
    let (status, headers, answer) = server.post(&task("/wait")).await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("KAI-API-0004")));
    assert_eq!(headers["retry-after"], "1");
    let mut socket = server.subscribe().await.unwrap();
    server.node.0.add_permits(1);
    while message(&mut socket).await["type"] != "AGENT_RESULT" {}
    assert_eq!(server.post(&task("/wait")).await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn only_so_many_subscribers_listen_at_once_and_a_stop_closes_them() {
    let server = Server::start().await;
    let mut sockets = Vec::new();
    // The route's limit would refuse the last one too, but later than the number of places does.
    for _ in 0..SUBSCRIBERS_MAX - 1 {
        sockets.push(server.subscribe().await.unwrap());
    }
    let place = server.served.subscribers.clone().try_acquire_owned().unwrap();
    let Err(tungstenite::Error::Http(refused)) = server.subscribe().await else { panic!("one too many") };
    assert_eq!(refused.status().as_u16(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    drop(place);
    let mut last = sockets.pop().unwrap();
    assert_eq!(message(&mut last).await["type"], "SYSTEM_STATUS");
    server.served.stop.cancel();
    let close = tokio::time::timeout(PATIENCE, last.next()).await.unwrap();
    let Some(Ok(tungstenite::Message::Close(Some(frame)))) = close else { panic!("{close:?}") };
    assert_eq!(frame.reason.as_str(), "the node stops");
}

#[tokio::test]
async fn heartbeats_and_changed_settings_are_told() {
    let server = Server::paced(Pace { heartbeat: Duration::from_millis(10), ..Pace::default() }).await;
    let mut socket = server.subscribe().await.unwrap();
    message(&mut socket).await;
    assert_eq!(message(&mut socket).await["type"], "HEARTBEAT");
    let change = crate::config::Setting {
        key: "log.level".to_owned(),
        value: json!("debug"),
        origin: crate::config::Origin::File,
        reloadable: true,
    };
    server.served.hub.news.settings_changed(&[change]);
    let update = loop {
        let message = message(&mut socket).await;
        if message["type"] != "HEARTBEAT" {
            break message;
        }
    };
    assert_eq!(update["type"], "CONFIG_UPDATE");
    assert_eq!(update["payload"]["changes"][0]["key"], "log.level");
}

#[tokio::test]
async fn a_stop_ends_tasks_so_that_nothing_holds_the_node() {
    let server = Server::start().await;
    let (_, _, taken) = server.post(&task("/wait")).await;
    server.get(&format!("/agent/task/{}", taken["taskId"].as_str().unwrap())).await;
    let Server { served, node, serving, .. } = server;
    served.stop.cancel();
    serving.await.unwrap();
    drop(served);
    let released = async {
        while Arc::strong_count(&node) > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, released).await.unwrap();
}

#[tokio::test]
async fn progress_counts_bytes() {
    let server = Server::start().await;
    let mut socket = server.subscribe().await.unwrap();
    server.post(&task("/large")).await;
    let mut payloads = Vec::new();
    loop {
        let message = message(&mut socket).await;
        match message["type"].as_str() {
            Some("TASK_PROGRESS") => payloads.push(message["payload"].clone()),
            Some("AGENT_RESULT") => break,
            _ => {}
        }
    }
    assert_eq!(payloads.last().unwrap(), &json!({"state": "answering", "bytes": 200_000}));
}

#[tokio::test]
async fn a_subscriber_that_missed_something_is_told_so_and_dropped() {
    let server = Server::start().await;
    let mut socket = server.subscribe().await.unwrap();
    message(&mut socket).await;
    // All at once, so that the subscriber's task takes none in between.
    for _ in 0..100 {
        server.served.hub.news.tell(|| news::Message::new(news::Type::Heartbeat, json!({})));
    }
    let close = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    let Some(Ok(tungstenite::Message::Close(Some(frame)))) = close else { panic!("{close:?}") };
    assert_eq!(frame.reason.as_str(), "too slow");
}

#[tokio::test]
async fn a_subscriber_that_takes_nothing_is_dropped() {
    let pace = Pace { patience: Duration::from_millis(50), ..Pace::default() };
    let server = Server::paced(pace).await;
    let socket = server.subscribe().await.unwrap();
    let taken = || SUBSCRIBERS_MAX - server.served.subscribers.available_permits();
    assert_eq!(taken(), 1);
    // More than the system's buffers hold, and more than is kept for one that is behind.
    let dropped = async {
        while taken() == 1 {
            let payload = json!("x".repeat(200_000));
            server.served.hub.news.tell(|| news::Message::new(news::Type::Heartbeat, payload));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, dropped).await.unwrap();
    drop(socket);
}
