use super::*;
use crate::contract::{
    Contract,
    tests::{contract, method},
};
use kos_protocol::text::is_display_safe;
use serde_json::{Value, json};

/// A service with one `POST /` whose body is described by `schema`.
fn service(schema: &str) -> Checked {
    let methods = vec![method("POST", "/", Some(schema), None)];
    Contract { methods, ..contract() }.check().unwrap()
}

fn refusal(checked: &Checked, body: &str) -> String {
    let violation = checked.validate_request("POST", "/", body.as_bytes()).unwrap_err();
    let text = violation.to_string();
    assert!(text.len() <= STATUS_TEXT_BYTES_MAX && is_display_safe(&text), "{text}");
    text
}

#[test]
fn a_body_is_what_its_schema_describes_or_the_answer_says_where_it_is_not() {
    let checked = service(
        r#"{
            "type": "object", "required": ["title"], "additionalProperties": false,
            "properties": {
                "title": {"type": "string", "maxLength": 5},
                "tags": {"items": {"pattern": "^[a-z]+$"}},
                "a/b~c": {"type": "null"}
            }
        }"#,
    );
    let passes = |body: &str| checked.validate_request("POST", "/", body.as_bytes());
    assert_eq!(passes(r#" {"title": "notes", "tags": ["a"], "a/b~c": null} "#), Ok(()));
    for (body, text) in [
        ("[]", "at ``: value is not of type \"object\""),
        ("{}", "at ``: \"title\" is a required property"),
        (r#"{"title":1}"#, "at `/title`: value is not of type \"string\""),
        (r#"{"title":"a secret"}"#, "at `/title`: value is longer than 5 characters"),
        (r#"{"title":"a","tags":["a","B"]}"#, "at `/tags/1`: value does not match \"^[a-z]+$\""),
        (r#"{"title":"a","a/b~c":1}"#, "at `/a~1b~0c`: value is not of type \"null\""),
        ("", "the body is no JSON at line 1, column 0: EOF while parsing a value"),
        ("{\"title\":\"a\"", "the body is no JSON at line 1, column 12: EOF while parsing an object"),
        (r#"{"title":"a","title":"b"}"#, "the body is no JSON at line 1, column 20: a key is there twice"),
    ] {
        assert_eq!(refusal(&checked, body), text);
    }
    let hostile = format!(r#"{{"title":"a","\u202e{}":1}}"#, "x".repeat(5000));
    assert!(
        refusal(&checked, &hostile).starts_with("at ``: Additional properties are not allowed ('\\u{202e}xx")
    );
}

#[test]
fn the_method_that_says_most_counts() {
    let methods = vec![
        method("GET", "/*", None, Some("false")),
        method("GET", "/notes/{id}", None, Some(r#"{"const":1}"#)),
        method("GET", "/notes/new", None, Some(r#"{"const":2}"#)),
        method("POST", "/free", None, None),
        method("HEAD", "/head", None, None),
    ];
    let checked = Contract { methods, ..contract() }.check().unwrap();
    let reply = |path: &str, body: &str| checked.validate_reply("GET", path, 200, body.as_bytes()).is_ok();
    assert!(reply("/notes/7?full=1", "1") && !reply("/notes/7", "2"));
    assert!(reply("/notes/new", "2") && !reply("/notes/new", "1"));
    assert!(!reply("/notes/7/text", "1"));
    // No schema: any body, or none.
    assert_eq!(checked.validate_request("POST", "/free", b"\xff"), Ok(()));
    assert_eq!(checked.validate_request("HEAD", "/notes/1", b""), Ok(()));
    let not_offered = checked.validate_request("POST", "/notes", b"").unwrap_err();
    assert_eq!(not_offered.to_string(), "the contract of `notes` has no POST for this path");
    let hostile = checked.validate_request("PO\u{1b}ST", "/free", b"").unwrap_err();
    assert_eq!(hostile.to_string(), "the contract of `notes` has no PO\\u{1b}ST for this path");
}

#[test]
fn only_what_a_success_says_is_held_against_a_reply_schema() {
    let methods = vec![method("GET", "/", None, Some(r#"{"type":"array"}"#))];
    let checked = Contract { methods, ..contract() }.check().unwrap();
    let reply = |method, status, body: &[u8]| checked.validate_reply(method, "/", status, body).is_ok();
    assert!(reply("GET", 200, b"[]") && !reply("GET", 200, b"{}") && !reply("GET", 299, b""));
    assert!(reply("GET", 404, b"not found") && reply("GET", 304, b"") && reply("GET", 500, b""));
    assert!(reply("GET", 204, b"") && reply("GET", 205, b"") && reply("HEAD", 200, b""));
    assert_eq!(checked.reply_bytes_max("GET", "/"), Some(CHECKED_BODY_BYTES_MAX));
    assert_eq!(checked.request_bytes_max("GET", "/"), None);
}

#[test]
fn a_schema_is_compiled_when_it_is_used_and_then_kept() {
    let checked = service(r#"{"type":"object"}"#);
    let is_compiled = || checked.0.methods[0].request.as_ref().unwrap().compiled.get().is_some();
    assert!(!is_compiled());
    assert!(refusal(&checked, "{").contains("no JSON"));
    assert!(!is_compiled(), "what is no JSON needs no schema");
    assert_eq!(checked.clone().validate_request("POST", "/", b"{}"), Ok(()));
    assert!(is_compiled(), "the clone shares it");
}

#[test]
fn the_work_of_a_body_is_bounded_by_its_size_and_the_weight_of_its_schema() {
    let light = service("true");
    assert_eq!(light.request_bytes_max("POST", "/"), Some(CHECKED_BODY_BYTES_MAX));
    let text = |bytes: usize| Value::String("a".repeat(bytes - 2)).to_string();
    assert_eq!(light.validate_request("POST", "/", text(CHECKED_BODY_BYTES_MAX).as_bytes()), Ok(()));
    assert_eq!(
        refusal(&light, &text(CHECKED_BODY_BYTES_MAX + 1)),
        "the body is 262145 bytes, limit 262144 for what its contract checks"
    );
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert_eq!(light.validate_request("POST", "/", deep(CHECKED_BODY_DEPTH_MAX).as_bytes()), Ok(()));
    assert!(refusal(&light, &deep(CHECKED_BODY_DEPTH_MAX + 1)).ends_with("nested too deeply"));

    // As heavy as may be: alternatives in alternatives that all fail, at each item of an array.
    let branch = |inner: Value| json!({ "anyOf": [inner, { "type": "string" }, { "type": "null" }] });
    let alternatives = (0..14).fold(json!({ "enum": vec![0; 930] }), |inner, _| branch(inner));
    let heavy = service(&json!({ "items": alternatives }).to_string());
    let bytes_max = heavy.request_bytes_max("POST", "/").unwrap();
    assert!(
        (CHECKED_BODY_STEPS_MAX / 1024..CHECKED_BODY_STEPS_MAX / 900).contains(&bytes_max),
        "{bytes_max}"
    );
    let most = format!("[{}\"\"]", "0,".repeat((bytes_max - 4) / 2));
    assert_eq!(heavy.validate_request("POST", "/", most.as_bytes()), Ok(()));
    let last_fails = format!("[{}1]", "0,".repeat((bytes_max - 3) / 2));
    assert_eq!(
        refusal(&heavy, &last_fails),
        "at ``: the body is not what its schema describes, and too large to say where"
    );
    assert!(refusal(&heavy, "[0,0,1]").starts_with("at `/2`: value is not valid under any of the schemas"));
    assert!(refusal(&heavy, &format!("{most}  ")).contains("limit"));
}

#[test]
fn items_that_must_differ_are_few() {
    let checked = service(r#"{"uniqueItems":true}"#);
    // Different arrays of empty arrays: the ones with equal hashes, for whoever hashes leaves only.
    let nested = |n: usize| {
        format!(
            "[{}]",
            (0..10)
                .map(|bit| if n >> bit & 1 == 1 { "[[]]," } else { "[]," })
                .collect::<String>()
                .trim_end_matches(',')
        )
    };
    let bodies = |count: usize| format!("[{}]", (0..count).map(nested).collect::<Vec<_>>().join(","));
    assert_eq!(checked.validate_request("POST", "/", bodies(CHECKED_BODY_ITEMS_MAX).as_bytes()), Ok(()));
    let many = format!("[{}]", vec!["1"; CHECKED_BODY_ITEMS_MAX + 1].join(","));
    assert_eq!(
        refusal(&checked, &many),
        "the body has an array of 1025 items, limit 1024 where they have to be different"
    );
    assert_eq!(service("{}").validate_request("POST", "/", many.as_bytes()), Ok(()));
}

#[test]
fn the_head_of_a_call_is_held_against_the_security_declaration() {
    let checked = |callers: &[Caller], idempotency| {
        let security = Security { callers: callers.to_vec(), early_data: false, idempotency };
        Contract { security, ..contract() }.check().unwrap()
    };
    let admit =
        |role, idempotency, key| checked(&[Caller::Member, Caller::Steward], idempotency).admit(role, key);
    let (key, none) = (Some(&b"a"[..]), None);
    let service = || "notes".to_owned();
    for role in [Caller::Member, Caller::Steward] {
        assert_eq!(admit(role, Idempotency::Accepted, key), Ok(()));
        assert_eq!(admit(role, Idempotency::Accepted, none), Ok(()));
        assert_eq!(admit(role, Idempotency::Refused, none), Ok(()));
        assert_eq!(admit(role, Idempotency::Required, key), Ok(()));
        assert_eq!(admit(role, Idempotency::Refused, key), Err(Violation::KeyRefused { service: service() }));
        assert_eq!(
            admit(role, Idempotency::Required, none),
            Err(Violation::KeyRequired { service: service() })
        );
    }
    let denied = Violation::NotForRole { service: service(), role: "relay" };
    assert_eq!(denied.status(), Status::Denied);
    assert_eq!(admit(Caller::Relay, Idempotency::Accepted, none), Err(denied));
}
