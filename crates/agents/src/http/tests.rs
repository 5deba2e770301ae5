use super::*;
use proptest::prelude::*;

const CALLER: MemberId = MemberId::from_bytes([7; 32]);

fn origin() -> Origin {
    "http://127.0.0.1:8123".parse().unwrap()
}

fn target(target: &str) -> Result<(), RequestLineError> {
    RequestLine::parse("GET", target).map(drop)
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect()
}

fn shown(fields: &Fields) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned())).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn sent(headers: Fields) -> Result<Passed, RequestError> {
    let request = HttpRequest { headers, ..HttpRequest::new("GET", "/") };
    to_origin(request, &Policy::default(), &origin(), &CALLER)
}

/// What is left of a caller's fields beside those we set.
fn left(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    let ours = ["host", CALLER_FIELD, "forwarded"];
    let mut left = shown(sent(fields(headers)).unwrap().fields());
    left.retain(|(name, _)| !ours.contains(&name.as_str()));
    left
}

#[test]
fn ordinary_targets_pass_unchanged() {
    for fine in [
        "/",
        "/notes",
        "/notes/",
        "/a/b.c/~d-e_f",
        "/a%20b/%C3%A9",
        "/100%25",
        "/a%2520b",
        "/a,b;c=d/@e:f!$&'()*+=",
        "/a[0]|b^c",
        "/...",
        "/.well-known/x",
        "/a..b",
        "/?q=a%2Fb&r=//../x&s=100%&t={}|\\^`",
        "/x?http://other/",
        "/?",
        "/x?%0d%0a",
    ] {
        let line = RequestLine::parse("GET", fine).unwrap();
        assert_eq!(line.target(), fine);
        assert_eq!(line.path(), fine.split('?').next().unwrap());
    }
}

#[test]
fn methods_are_upper_case_and_neither_connect_nor_trace() {
    for fine in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "VERSION-CONTROL"] {
        assert!(RequestLine::parse(fine, "/").is_ok(), "{fine}");
    }
    for bad in ["", "get", "Get", "GE T", "GET\r\n", "GET/", "G\u{c9}T", &"A".repeat(33)] {
        assert_eq!(RequestLine::parse(bad, "/"), Err(RequestLineError::Method), "{bad:?}");
    }
    for never in ["CONNECT", "TRACE", "TRACK"] {
        assert_eq!(RequestLine::parse(never, "/"), Err(RequestLineError::ForbiddenMethod(never.to_owned())));
    }
}

#[test]
fn only_origin_form_is_a_target() {
    for bad in ["", "http://127.0.0.1/", "127.0.0.1:80", "*", "a", "?a", "%2fa", "\\a"] {
        assert_eq!(target(bad), Err(RequestLineError::NotOriginForm), "{bad}");
    }
}

#[test]
fn dot_segments_are_refused_in_every_disguise() {
    for bad in [
        "/..",
        "/.",
        "/a/../b",
        "/a/./b",
        "/a/..",
        "/%2e%2e/b",
        "/.%2E/b",
        "/%2e",
        "/a/..;/b",
        "/a/..;x=y/b",
        "/a/.;/b",
        "/%2e%2e;/b",
        "/a/..%20/b",
        "/a/%20../b",
        "/%252e%252e/b",
        "/%252e./b",
        "/%25252e%252e/b",
        "/%252e%252e/100%25",
    ] {
        assert_eq!(target(bad), Err(RequestLineError::DotSegment), "{bad}");
    }
}

#[test]
fn encoded_slashes_are_refused() {
    for bad in ["/a%2fb", "/a%2Fb", "/%2f", "/a%252fb", "/a%252Fb", "/..%2fb"] {
        assert_eq!(target(bad), Err(RequestLineError::EncodedSlash), "{bad}");
    }
}

#[test]
fn backslashes_are_refused_as_they_are_and_encoded() {
    for bad in ["/a\\b", "/a%5cb", "/a%5Cb", "/a%255cb", "/..\\b"] {
        assert_eq!(target(bad), Err(RequestLineError::Backslash), "{bad}");
    }
}

#[test]
fn two_slashes_are_refused() {
    for bad in ["//", "//other/", "/a//b", "/a//"] {
        assert_eq!(target(bad), Err(RequestLineError::DoubleSlash), "{bad}");
    }
}

#[test]
fn control_characters_are_refused_as_they_are_and_encoded() {
    for bad in ["/a\r\nb", "/a\0", "/a\tb", "/a b", "/a\u{7f}", "/a?b\n", "/a?b c"] {
        assert!(matches!(target(bad), Err(RequestLineError::Byte(_))), "{bad:?}");
    }
    for bad in ["/%00", "/a%0d%0ab", "/%7f", "/%1b", "/%C2%85", "/%2500"] {
        assert_eq!(target(bad), Err(RequestLineError::Control), "{bad}");
    }
}

#[test]
fn fragments_and_quotes_and_foreign_letters_are_refused() {
    for bad in ["/a#b", "/a?b#c", "/\"", "/<", "/a?\"", "/`", "/{", "/é", "/a?é"] {
        assert!(matches!(target(bad), Err(RequestLineError::Byte(_))), "{bad}");
    }
}

#[test]
fn broken_and_endless_escapes_are_refused() {
    for bad in ["/%", "/%2", "/%zz", "/%-1", "/a%2 ", "/%2525252541"] {
        assert!(matches!(target(bad), Err(RequestLineError::Escape | RequestLineError::Byte(_))), "{bad}");
    }
}

#[test]
fn overlong_utf8_is_refused() {
    for bad in ["/%c0%ae%c0%ae/", "/%c0%af", "/%ff", "/%e0%80%af"] {
        assert_eq!(target(bad), Err(RequestLineError::NotUtf8), "{bad}");
    }
}

#[test]
fn a_target_has_a_length() {
    assert!(target(&format!("/{}", "a".repeat(TARGET_BYTES_MAX - 1))).is_ok());
    let long = format!("/{}", "a".repeat(TARGET_BYTES_MAX));
    let error = RequestError::from(target(&long).unwrap_err());
    assert_eq!(error.status(), Status::TooLarge);
}

#[test]
fn rules_match_the_bytes_that_are_sent() {
    let allows = |rule: &str, method: &str, target: &str| {
        rule.parse::<Rule>().unwrap().allows(&RequestLine::parse(method, target).unwrap())
    };
    assert!(allows("GET,HEAD /public/*", "GET", "/public/a?b"));
    assert!(allows("GET,HEAD /public/*", "HEAD", "/public/a/b"));
    assert!(!allows("GET,HEAD /public/*", "POST", "/public/a"));
    assert!(!allows("GET /public/*", "GET", "/public"), "the folder itself is another path");
    assert!(!allows("GET /public/*", "GET", "/publicity"));
    assert!(!allows("GET /public/*", "GET", "/%70ublic/a"), "bytes, not meanings");
    assert!(!allows("GET /public/*", "GET", "/x?/public/a"));
    assert!(allows("/notes", "DELETE", "/notes?id=1"));
    assert!(!allows("/notes", "GET", "/notes/"));
    assert!(allows("/*", "GET", "/"));
    assert!(allows("* /*", "PUT", "/any/thing"));
    for bad in
        ["", "GET", "get /", "GET a", "GET /a*", "GET /*/a", "GET /../a", "GET /a?b", "GET, /a", "CONNECT /"]
    {
        assert!(bad.parse::<Rule>().is_err(), "{bad}");
    }
    for rule in ["GET,HEAD /public/*", "* /notes"] {
        assert_eq!(rule.parse::<Rule>().unwrap().to_string(), rule);
    }
}

#[test]
fn what_no_rule_allows_is_denied() {
    let policy = Policy { allow: vec!["GET /public/*".parse().unwrap()], ..Policy::default() };
    let ask = |method, path| to_origin(HttpRequest::new(method, path), &policy, &origin(), &CALLER);
    assert!(ask("GET", "/public/a").is_ok());
    for (method, path) in [("POST", "/public/a"), ("GET", "/admin")] {
        assert_eq!(ask(method, path).unwrap_err().status(), Status::Denied);
    }
    assert_eq!(ask("GET", "/public/../admin").unwrap_err().status(), Status::Invalid);
}

#[test]
fn end_to_end_fields_pass() {
    let fine = [
        ("accept", "text/html"),
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("range", "bytes=0-1"),
        ("authorization", "Bearer x"),
        ("x-custom", "caf\u{e9}"),
    ];
    assert_eq!(left(&fine), pairs(&fine));
}

#[test]
fn host_is_the_origins() {
    let passed = sent(fields(&[("Host", "evil"), ("host", "evil")])).unwrap();
    let hosts: Vec<_> = shown(passed.fields()).into_iter().filter(|(name, _)| name == "host").collect();
    assert_eq!(hosts, pairs(&[("host", "127.0.0.1:8123")]));
}

#[test]
fn the_caller_is_named_by_us_alone() {
    let passed = sent(fields(&[
        ("X-Kos-Caller", "someone"),
        ("x_kos_caller", "someone"),
        ("X-Kos_Anything", "x"),
        ("Forwarded", "for=1.2.3.4"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("X_Forwarded_Host", "x"),
        ("X-Real-IP", "1.2.3.4"),
        ("Via", "x"),
    ]))
    .unwrap();
    assert_eq!(
        shown(passed.fields()),
        pairs(&[
            ("host", "127.0.0.1:8123"),
            ("x-kos-caller", &CALLER.to_string()),
            ("forwarded", &format!("for=_{CALLER}")),
        ])
    );
}

#[test]
fn connection_and_what_it_names_stay_behind() {
    assert_eq!(
        left(&[
            ("Connection", "close, X-Secret"),
            ("connection", "x_other"),
            ("x-secret", "1"),
            ("X-Other", "2"),
            ("x-kept", "3"),
            ("Keep-Alive", "timeout=5"),
        ]),
        pairs(&[("x-kept", "3")])
    );
    // Naming a field of ours takes nothing away: ours are set afterwards.
    let passed = sent(fields(&[("connection", "x-kos-caller, host")])).unwrap();
    assert_eq!(shown(passed.fields()).len(), 3);
}

#[test]
fn framing_stays_behind() {
    assert_eq!(
        left(&[
            ("TE", "trailers"),
            ("Trailer", "x"),
            ("Transfer-Encoding", "chunked"),
            ("transfer_encoding", "chunked"),
            ("Expect", "100-continue"),
            ("Proxy-Authorization", "x"),
            ("Proxy-Connection", "x"),
        ]),
        []
    );
}

#[test]
fn nothing_makes_the_origin_read_another_request() {
    assert_eq!(
        left(&[
            ("X-HTTP-Method-Override", "DELETE"),
            ("x_http_method_override", "DELETE"),
            ("X-Original-URL", "/admin"),
            ("X-Rewrite-Url", "/admin"),
        ]),
        []
    );
}

#[test]
fn a_length_is_one_number() {
    let length = |values: &[&str]| {
        let headers = values.iter().map(|value| ("Content-Length".to_owned(), text(value))).collect();
        sent(headers).map(|passed| passed.length())
    };
    assert_eq!(length(&[]), Ok(None));
    assert_eq!(length(&["5"]), Ok(Some(5)));
    assert_eq!(length(&["5", "5"]), Ok(Some(5)));
    assert_eq!(length(&["5, 5"]), Ok(Some(5)));
    for bad in
        [&["5", "6"][..], &["5,6"], &["+5"], &["-5"], &["5a"], &[""], &["0x5"], &["99999999999999999999"]]
    {
        assert_eq!(length(bad), Err(FieldError::Length.into()), "{bad:?}");
    }
    let passed = sent(fields(&[("content-length", "5"), ("x", "y")])).unwrap();
    assert!(shown(passed.fields()).iter().all(|(name, _)| name != "content-length"));
    let travels = passed.into_request().headers;
    assert_eq!(shown(&travels).last().unwrap(), &("content-length".to_owned(), "5".to_owned()));
}

#[test]
fn no_field_begins_another_request() {
    for value in ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "a\u{7f}", "\u{1b}[2J"] {
        assert_eq!(
            sent(fields(&[("X-A", value)])),
            Err(FieldError::Value("x-a".to_owned()).into()),
            "{value:?}"
        );
    }
    for name in ["", "a b", "a:", "a\r\n", " a", "a ", ":method", "é", "a\0", "(a)"] {
        assert_eq!(sent(fields(&[(name, "x")])), Err(FieldError::Name.into()), "{name:?}");
    }
    assert_eq!(left(&[("x-tab", " a\tb ")]), pairs(&[("x-tab", "a\tb")]));
}

#[test]
fn fields_are_counted() {
    let many = |count| (0..count).map(|n| (format!("x-{n}"), text("v"))).collect::<Fields>();
    assert!(sent(many(FIELDS_MAX)).is_ok());
    let error = sent(many(FIELDS_MAX + 1)).unwrap_err();
    assert_eq!(error.status(), Status::TooLarge);
}

#[test]
fn only_websockets_upgrade_and_only_where_allowed() {
    let ask = |upgrade: &str, policy: &Policy| {
        let headers = fields(&[("upgrade", upgrade), ("http2-settings", "x"), ("sec-websocket-key", "k")]);
        let request = HttpRequest { headers, ..HttpRequest::new("GET", "/") };
        to_origin(request, policy, &origin(), &CALLER)
    };
    let open = Policy { upgrade: Upgrade::WebSocket, ..Policy::default() };
    let passed = ask("WebSocket", &open).unwrap();
    assert_eq!(passed.upgrade(), Upgrade::WebSocket);
    assert_eq!(
        shown(passed.fields()).split_off(2),
        pairs(&[
            ("x-kos-caller", &CALLER.to_string()),
            ("forwarded", &format!("for=_{CALLER}")),
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
        ])
    );
    assert_eq!(ask("websocket", &Policy::default()).unwrap_err(), RequestError::Upgrade);
    for other in ["h2c", "websocket, h2c", "h2c, websocket", "TLS/1.0"] {
        let passed = ask(other, &open).unwrap();
        assert_eq!(passed.upgrade(), Upgrade::None, "{other}");
        assert!(shown(passed.fields()).iter().all(|(name, _)| name != "upgrade" && name != "http2-settings"));
    }
    let post = HttpRequest { headers: fields(&[("upgrade", "websocket")]), ..HttpRequest::new("POST", "/") };
    assert_eq!(to_origin(post, &open, &origin(), &CALLER).unwrap_err().status(), Status::Invalid);
}

#[test]
fn a_client_asks_for_an_upgrade_by_connection_and_upgrade() {
    let ask = |headers: &[(&str, &str)]| from_client("GET", "/", fields(headers)).unwrap();
    let passed = ask(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("host", "x")]);
    assert_eq!(passed.upgrade(), Upgrade::WebSocket);
    assert_eq!(shown(&passed.into_request().headers), pairs(&[("upgrade", "websocket")]));
    let passed = ask(&[("upgrade", "websocket")]);
    assert_eq!(passed.upgrade(), Upgrade::None);
    assert_eq!(shown(&passed.into_request().headers), []);
}

#[test]
fn answers_are_stripped_and_statuses_are_final() {
    let from = |status, headers: &[(&str, &str)], asked| {
        from_origin(status, fields(headers), asked, &origin())
            .map(|answered| (shown(&answered.fields), answered.length))
    };
    let headers = [
        ("Connection", "x-secret"),
        ("x-secret", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Transfer-Encoding", "chunked"),
        ("Proxy-Authenticate", "x"),
        ("X-Kos-Caller", "x"),
        ("Alt-Svc", "h3"),
        ("Upgrade", "h2c"),
        ("Content-Type", "text/plain"),
        ("Set-Cookie", "a=b"),
        ("Set-Cookie", "c=d"),
    ];
    let kept = pairs(&[("content-type", "text/plain"), ("set-cookie", "a=b"), ("set-cookie", "c=d")]);
    assert_eq!(from(200, &headers, Upgrade::None), Ok((kept, None)));
    assert_eq!(from(200, &[("content-length", "9")], Upgrade::None), Ok((Vec::new(), Some(9))));
    assert_eq!(from(204, &[("content-length", "9")], Upgrade::None), Ok((Vec::new(), None)));
    for status in [0, 99, 100, 102, 103, 199, 600, 65_535] {
        assert_eq!(from(status, &[], Upgrade::WebSocket), Err(ReplyError::Status(status)));
    }
    for bad in [&[("x", "a\r\nb")][..], &[("a b", "c")], &[("content-length", "1"), ("content-length", "2")]]
    {
        assert!(matches!(from(200, bad, Upgrade::None), Err(ReplyError::Field(_))));
    }
}

#[test]
fn a_switch_nobody_asked_for_is_refused() {
    let agreed = fields(&[("connection", "upgrade"), ("upgrade", "websocket")]);
    let from = |headers: &Fields, asked| from_origin(101, headers.clone(), asked, &origin());
    assert_eq!(from(&agreed, Upgrade::None), Err(ReplyError::Upgrade));
    let other = fields(&[("connection", "upgrade"), ("upgrade", "h2c")]);
    assert_eq!(from(&other, Upgrade::WebSocket), Err(ReplyError::Upgrade));
    assert_eq!(from(&fields(&[]), Upgrade::WebSocket), Err(ReplyError::Upgrade));
    let answered = from(&agreed, Upgrade::WebSocket).unwrap();
    let reply = answered.into_reply();
    assert_eq!(shown(&reply.headers), pairs(&[("upgrade", "websocket")]));
    let answered = to_client(reply.clone(), Upgrade::WebSocket).unwrap();
    assert_eq!(shown(&answered.fields), pairs(&[("connection", "upgrade"), ("upgrade", "websocket")]));
    assert_eq!(to_client(reply, Upgrade::None), Err(ReplyError::Upgrade));
}

#[test]
fn a_redirect_to_the_origin_itself_is_made_relative() {
    let location = |to: &str| {
        let answered = from_origin(302, fields(&[("Location", to)]), Upgrade::None, &origin()).unwrap();
        shown(&answered.fields).remove(0).1
    };
    assert_eq!(location("http://127.0.0.1:8123/a?b"), "/a?b");
    assert_eq!(location("http://127.0.0.1:8123"), "/");
    assert_eq!(location("http://127.0.0.1:8123?a"), "/?a");
    for other in [
        "/a",
        "http://127.0.0.1:81234/a",
        "http://127.0.0.1:8123@evil/",
        "http://127.0.0.1:8123//evil/",
        "http://127.0.0.1:8123/\\evil/",
        "https://127.0.0.1:8123/a",
        "http://other/",
    ] {
        assert_eq!(location(other), other);
    }
}

#[test]
fn only_some_answers_have_a_body() {
    assert!(has_body("GET", 200) && has_body("POST", 404) && has_body("GET", 205));
    assert!(
        !has_body("HEAD", 200) && !has_body("GET", 204) && !has_body("GET", 304) && !has_body("GET", 101)
    );
}

#[test]
fn messages_travel_within_their_limits() {
    let request = HttpRequest { headers: fields(&[("a", "b")]), ..HttpRequest::new("GET", "/") };
    assert_eq!(HttpRequest::decode(&request.encode().unwrap()).unwrap(), request);
    let reply = HttpReply { headers: fields(&[("a", "b")]), ..HttpReply::new(200) };
    assert_eq!(HttpReply::decode(&reply.encode().unwrap()).unwrap(), reply);
    let large = HttpRequest { headers: fields(&[("a", &"b".repeat(PARAMS_BYTES_MAX))]), ..request };
    assert!(matches!(large.encode(), Err(TooLarge { .. })));
    assert!(HttpRequest::decode(&vec![0; PARAMS_BYTES_MAX + 1]).is_err());
    assert!(HttpRequest::decode(b"junk").is_err());
}

/// Tries hard to be dangerous.
fn hostile_path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-z.]{0,3}",
        Just("/".to_owned()),
        Just("..".to_owned()),
        Just("%2e".to_owned()),
        Just("%252E".to_owned()),
        Just("%2f".to_owned()),
        Just("%5c".to_owned()),
        Just("%".to_owned()),
        Just("%25".to_owned()),
        Just(";".to_owned()),
        Just("\\".to_owned()),
        Just("?".to_owned()),
        Just("%0a".to_owned()),
        Just("%20".to_owned()),
        any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(part, 0..12).prop_map(|parts| format!("/{}", parts.concat()))
}

fn hostile_field() -> impl Strategy<Value = (String, ByteBuf)> {
    let name = prop_oneof![
        "[A-Za-z_-]{1,12}",
        proptest::sample::select(vec![
            "Host",
            "connection",
            "X_Kos_Caller",
            "X-Forwarded-For",
            "Transfer-Encoding",
            "content-length",
            "Upgrade",
            "TE",
            "Proxy-Connection",
            "forwarded",
            "keep_alive",
            "x-a",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    let value = prop_oneof![
        "[ -~]{0,12}",
        Just("x-a, close".to_owned()),
        Just("websocket".to_owned()),
        Just("5".to_owned()),
        any::<String>(),
    ];
    (name, value).prop_map(|(name, value)| (name, text(&value)))
}

/// Decodes as the most eager of servers would.
fn most_decoded(path: &str) -> String {
    let mut text = path.to_owned();
    for escape in 0..=255_u8 {
        for written in [format!("%{escape:02x}"), format!("%{escape:02X}")] {
            if escape.is_ascii() {
                text = text.replace(&written, &char::from(escape).to_string());
            }
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_target_passes_reads_one_way(target in hostile_path()) {
        if let Ok(line) = RequestLine::parse("GET", &target) {
            prop_assert_eq!(line.target(), &target);
            prop_assert!(target.bytes().all(|byte| byte.is_ascii_graphic()));
            let eager = most_decoded(&most_decoded(line.path()));
            prop_assert_eq!(eager.matches('/').count(), line.path().matches('/').count());
            prop_assert!(!eager.contains("//") && !eager.contains('\\'));
            prop_assert!(!eager.contains(char::is_control));
            prop_assert!(eager.split('/').all(|segment| !["." , ".."].contains(&segment.trim())));
        }
    }

    #[test]
    fn whatever_request_passes_says_only_what_it_may(
        headers in proptest::collection::vec(hostile_field(), 0..8),
        path in hostile_path(),
    ) {
        let request = HttpRequest { headers, ..HttpRequest::new("GET", &path) };
        let policy = Policy { upgrade: Upgrade::WebSocket, ..Policy::default() };
        let Ok(passed) = to_origin(request, &policy, &origin(), &CALLER) else { return Ok(()) };
        let sent = shown(passed.fields());
        let values = |wanted: &str| {
            let same = |name: &str| name.replace('_', "-") == wanted;
            sent.iter().filter(|(name, _)| same(name)).map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        prop_assert_eq!(values("host"), vec!["127.0.0.1:8123".to_owned()]);
        prop_assert_eq!(values("x-kos-caller"), vec![CALLER.to_string()]);
        prop_assert_eq!(values("forwarded"), vec![format!("for=_{CALLER}")]);
        for gone in ["x-forwarded-for", "transfer-encoding", "te", "proxy-connection", "keep-alive", "content-length"] {
            prop_assert!(values(gone).is_empty(), "{}", gone);
        }
        let is_upgrade = passed.upgrade() == Upgrade::WebSocket;
        prop_assert_eq!(values("upgrade"), if is_upgrade { vec!["websocket".to_owned()] } else { vec![] });
        prop_assert_eq!(values("connection"), if is_upgrade { vec!["upgrade".to_owned()] } else { vec![] });
        for (name, value) in passed.fields() {
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && byte != b':'));
            prop_assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
        }
    }

    #[test]
    fn no_params_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = HttpRequest::decode(&bytes);
        let _ = HttpReply::decode(&bytes);
    }
}
