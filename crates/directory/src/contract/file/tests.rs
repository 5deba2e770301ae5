use super::*;
use crate::contract::tests::contract;

const NOTES: &str = r#"# What the notes of the household offer.
name = "notes"
version = "1.2.0"
agent = "kBridge:notes"
description = "Notes of the household"
tags = ["notes", "text"]
fallbacks = ["kBridge:notes@MEMBER"]

[security]
callers = ["steward", "member"]

[hints]
calls_per_minute = 60
price = { amount = 2, unit = "cent" }

[[methods]]
method = "GET"
path = "/notes/{id}"
reply_file = "note.json"

[[methods]]
method = "POST"
path = "/notes"
request = { type = "object", required = ["title"] }
"#;

const LEAST: &str = r#"name = "notes"
version = "1.0.0"
agent = "kBridge:notes"
security = { callers = ["member"] }
methods = [{ method = "POST", path = "/", request = SCHEMA }]
"#;

fn resolve(name: &str) -> Result<String, String> {
    match name {
        "note.json" => Ok("{\n  \"type\": \"object\"\n}\n".to_owned()),
        "broken.json" => Ok("{\n  \"type\": object\n}".to_owned()),
        "misspelt.json" => Ok("{\"items\": {\"tipe\": \"object\"}}".to_owned()),
        _ => Err("no such file".to_owned()),
    }
}

/// A member's id as it is written.
fn member() -> String {
    contract().fallbacks[0].member.to_string()
}

fn parse(text: &str) -> Result<Contract, FileError> {
    parse_file(&text.replace("MEMBER", &member()), resolve)
}

fn with_schema(schema: &str) -> Result<String, String> {
    let contract = parse(&LEAST.replace("SCHEMA", schema)).map_err(|error| error.to_string())?;
    Ok(contract.methods[0].request.clone().unwrap())
}

#[test]
fn a_file_says_what_the_contract_says() {
    assert_eq!(parse(NOTES), Ok(contract()));
    let least = parse(&LEAST.replace(", request = SCHEMA", "")).unwrap();
    assert_eq!(least.security.idempotency, Idempotency::Accepted);
    assert_eq!((least.hints, least.fallbacks, least.tags), (Hints::default(), Vec::new(), Vec::new()));
}

#[test]
fn a_schema_is_a_table_or_a_text_whose_blanks_are_dropped() {
    for (written, schema) in [
        ("{ type = \"array\", maxItems = 0x10 }", r#"{"maxItems":16,"type":"array"}"#),
        (
            "{ minimum = -1.5, maximum = 1e3, multipleOf = 0.1 }",
            r#"{"maximum":1000.0,"minimum":-1.5,"multipleOf":0.1}"#,
        ),
        ("{ \"$ref\" = \"#/$defs/a\", \"$defs\".a = true }", r##"{"$defs":{"a":true},"$ref":"#/$defs/a"}"##),
        ("false", "false"),
        (
            r#"'{"type" : "null", "title": "a \" b\\", "const": 1e2}'"#,
            r#"{"type":"null","title":"a \" b\\","const":1e2}"#,
        ),
        (r#"" true ""#, "true"),
    ] {
        assert_eq!(with_schema(written), Ok(schema.to_owned()), "{written}");
    }
}

#[test]
fn every_refusal_says_where_and_why() {
    // What is replaced in the file, by what, and what is said of it.
    let bad_name = "is not a name: 1 to 32 of a-z, 0-9 and `-`, starting and ending with a letter or digit";
    for (from, to, expected) in [
        ("= \"notes\"\nv", "= \"notes\nv", "line 2, column 14: no TOML: invalid basic string, expected `\"`"),
        ("name = \"notes\"\n", "", "line 1, column 1: contract: `name` is missing"),
        (
            "name =",
            "nane = 1\nname =",
            "line 2, column 1: nane: unknown key; hint: there are name, version, agent, description, tags, fallbacks, security, hints, methods",
        ),
        ("\"notes\"\nv", "7\nv", "line 2, column 8: name: integer, must be a string"),
        ("\"notes\"\nv", "\"No\"\nv", &format!("line 2, column 8: name: `No` {bad_name}")),
        (
            "\"1.2.0\"",
            "\"1.2\"",
            "line 3, column 11: version: `1.2` is no version like 1.2.0: unexpected end of input while parsing minor version number",
        ),
        (
            "\"kBridge:notes\"",
            "\"notes\"",
            "line 4, column 9: agent: `notes` is not an agent id: write it as kClass:name, for instance kBridge:notes",
        ),
        (
            "household\"\n",
            "\\u202E\"\n",
            "line 5, column 15: description: holds a control, an invisible or a direction-changing character",
        ),
        ("\"text\"]", "\"notes\"]", "line 6, column 18: tags[1]: `notes` is there twice"),
        ("\"text\"]", "[]]", "line 6, column 18: tags[1]: array, must be a string"),
        (
            "@MEMBER",
            "",
            "line 7, column 14: fallbacks[0]: `kBridge:notes` is no route: write it as kClass:name@MEMBER, with the member's id",
        ),
        (
            "@MEMBER",
            "@attic",
            "line 7, column 14: fallbacks[0]: `attic` is not a valid id: its checksum does not fit",
        ),
        (
            "[security]\ncallers = [\"steward\", \"member\"]\n",
            "",
            "line 1, column 1: contract: `security` is missing",
        ),
        ("callers = [\"steward\", \"member\"]", "", "line 9, column 1: security: `callers` is missing"),
        (
            "\"steward\", \"member\"",
            "\"everyone\"",
            "line 10, column 12: security.callers[0]: `everyone` is none of member, relay, steward",
        ),
        ("\"steward\", \"member\"", "", "line 10, column 11: security.callers: 0 entries, must be 1 to 3"),
        (
            "\"steward\", \"member\"",
            "\"member\", \"member\"",
            "line 10, column 11: security.callers: not in ascending order, or one of them is there twice",
        ),
        (
            "\n[hints]",
            "idempotency = \"maybe\"\n[hints]",
            "line 11, column 15: security.idempotency: `maybe` is none of refused, accepted, required",
        ),
        (
            "\n[hints]",
            "early_data = true\n[hints]",
            "line 11, column 14: security.early_data: early data may be replayed, so every method must be GET or HEAD; POST is not",
        ),
        (
            "\n[hints]",
            "early-data = true\n[hints]",
            "line 11, column 1: security.early-data: unknown key; hint: there are callers, early_data, idempotency",
        ),
        (
            "= 60",
            "= 0",
            "line 13, column 20: hints.calls_per_minute: integer, must be a whole number from 1 to 4294967295",
        ),
        (
            "= 2,",
            "= 2.5,",
            "line 14, column 20: hints.price.amount: float, must be a whole number, zero or above",
        ),
        (
            "= 2,",
            "= -2,",
            "line 14, column 20: hints.price.amount: integer, must be a whole number, zero or above",
        ),
        ("\"cent\"", "\"\"", "line 14, column 30: hints.price.unit: 0 bytes, must be 1 to 64"),
        (
            "\"GET\"",
            "\"get\"",
            "line 17, column 10: methods[0].method: `get` is no method of a call: upper case letters, never CONNECT, TRACE or TRACK",
        ),
        ("method = \"GET\"\n", "", "line 16, column 1: methods[0]: `method` is missing"),
        (
            "/{id}",
            "/{id}/..",
            "line 18, column 8: methods[0].path: `/notes/{id}/..` is not a path like `/notes/{id}` or `/files/*`: it holds a dot segment",
        ),
        (
            "\"note.json\"",
            "\"../note.json\"",
            "line 19, column 14: methods[0].reply_file: `../note.json` is no name of a file beside this one",
        ),
        (
            "\"note.json\"",
            "\"none.json\"",
            "line 19, column 14: methods[0].reply_file: cannot read `none.json`: no such file",
        ),
        (
            "\"note.json\"",
            "\"broken.json\"",
            "line 19, column 14: methods[0].reply_file: no JSON at line 2, column 11: expected value",
        ),
        (
            "\"note.json\"",
            "\"misspelt.json\"",
            "line 19, column 14: methods[0].reply, /items/tipe: `tipe` is no keyword that a contract may use",
        ),
        (
            "\"note.json\"",
            "\"note.json\"\nreply = true",
            "line 19, column 14: methods[0].reply_file: `reply` is there as well; a schema is in one place",
        ),
        (
            "request = {",
            "requests = {",
            "line 24, column 1: methods[1].requests: unknown key; hint: there are method, path, request, request_file, reply, reply_file",
        ),
        (
            "type = \"object\",",
            "tipe = \"object\",",
            "line 24, column 13: methods[1].request, /tipe: `tipe` is no keyword that a contract may use",
        ),
        (
            "\"object\",",
            "\"thing\",",
            "line 24, column 20: methods[1].request, /type: `type` is a name of a type or a list of different ones",
        ),
        (
            "[\"title\"]",
            "[\"title\", \"title\"]",
            "line 24, column 41: methods[1].request, /required: `required` is a list of different names",
        ),
    ] {
        assert!(NOTES.matches(from).count() >= 1, "{from}");
        let text = NOTES.replacen(from, to, 1);
        assert_eq!(parse(&text).unwrap_err().to_string(), expected, "{to}");
    }
}

#[test]
fn a_refusal_within_a_schema_says_the_place_in_it() {
    // The schema, what in it the refusal points at, and the key with the reason.
    for (schema, place, expected) in [
        (
            "{ items = { \"$ref\" = \"https://a.b/c\" } }",
            "\"https",
            ", /items/$ref: `https://a.b/c` leads out of the schema: a `$ref` is `#/$defs/NAME`",
        ),
        (
            "{ \"$defs\".a.items.\"$ref\" = \"#/$defs/a\" }",
            "\"#/",
            ", /$defs/a/items/$ref: `a` refers to itself",
        ),
        (
            "{ anyOf = [true, { pattern = '(?=a)' }] }",
            "'(",
            ", /anyOf/1/pattern: `(?=a)` is no pattern without look-around and back-references, or compiles to more \
             than 16384 bytes",
        ),
        ("{ not = { tipe = 1 } }", "tipe", ", /not/tipe: `tipe` is no keyword that a contract may use"),
        ("'{\"tipe\": 1}'", "'", ", /tipe: `tipe` is no keyword that a contract may use"),
        ("{ const = nan }", "nan", ".const: JSON has no such value: a number that is not finite"),
        ("{ const = 2026-01-01 }", "2026", ".const: JSON has no such value: a date or a time"),
        (
            "{ enum = [1, 99999999999999999999] }",
            "9999",
            ".enum[1]: JSON has no such value: a number of more than 64 bits",
        ),
        ("7", "7", ": integer, must be a table or a text of JSON"),
        ("'7'", "'", ": a schema is an object, `true` or `false`"),
        ("'{\"a\": }'", "'", ": no JSON at line 1, column 7: expected value"),
        ("'{\"a\": 1, \"a\": 1}'", "'", ": no JSON at line 1, column 12: a key is there twice"),
        ("'{\"not\": {\"not\": 1}}'", "'", ", /not/not: a schema is an object, `true` or `false`"),
    ] {
        let column = LEAST.lines().nth(4).unwrap().find("SCHEMA").unwrap() + schema.find(place).unwrap() + 1;
        let expected = format!("line 5, column {column}: methods[0].request{expected}");
        assert_eq!(with_schema(schema), Err(expected), "{schema}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(at in proptest::arbitrary::any::<proptest::sample::Index>(), text in ".{0,8}") {
        let mut file = NOTES.replace("MEMBER", &member());
        let at = file.floor_char_boundary(at.index(file.len()));
        file.insert_str(at, &text);
        let _ = parse(&file);
        let _ = parse(&text);
    }
}
