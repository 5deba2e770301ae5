use super::*;
use proptest::prelude::*;
use serde_json::json;

fn weight(schema: Value) -> Result<u32, (String, SchemaFault)> {
    match weigh(&schema.to_string(), &mut BTreeSet::new()) {
        Ok(weighed) => Ok(weighed.weight),
        Err(Located { pointer, fault }) => Err((pointer, fault)),
    }
}

fn refusal(schema: Value) -> String {
    let (pointer, fault) = weight(schema).unwrap_err();
    format!("{pointer}: {fault}")
}

/// Definitions of which each names the next one twice, and the last is `last`.
fn doubling(levels: usize, last: Value) -> Value {
    let mut defs = serde_json::Map::new();
    for level in 0..levels {
        let next = json!({ "$ref": format!("#/$defs/d{}", level + 1) });
        defs.insert(format!("d{level}"), json!({ "allOf": [next, next] }));
    }
    defs.insert(format!("d{levels}"), last);
    json!({ "$ref": "#/$defs/d0", "$defs": defs })
}

#[test]
fn what_people_write_passes() {
    let schema = json!({
        "$schema": DIALECT,
        "title": "A note",
        "type": "object",
        "required": ["title"],
        "additionalProperties": false,
        "properties": {
            "title": { "type": "string", "minLength": 1, "maxLength": 200 },
            "tags": { "type": "array", "items": { "$ref": "#/$defs/tag" }, "uniqueItems": true },
            "due": { "type": ["string", "null"], "format": "date" },
            "rank": { "type": "integer", "minimum": 0, "exclusiveMaximum": 10.5, "multipleOf": 0.5 },
        },
        "patternProperties": { "^x-": true },
        "dependentRequired": { "due": ["rank"] },
        "if": { "properties": { "rank": { "const": 1 } } },
        "then": { "required": ["due"] },
        "$defs": { "tag": { "type": "string", "pattern": "^[a-z]+$" }, "unused": { "enum": [1, "a", null] } },
    });
    assert!(weight(schema).is_ok_and(|weight| (80..180).contains(&weight)));
    assert_eq!(weight(json!(true)), Ok(1));
    assert_eq!(weight(json!({})), Ok(1));
}

#[test]
fn nothing_is_fetched_and_nothing_refers_to_itself() {
    for target in [
        "https://example.org/schema.json",
        "file:///etc/passwd",
        "other.json#/$defs/a",
        "//example.org",
        "#a",
        "#/properties/a",
        "#/$defs",
        "",
    ] {
        let schema =
            json!({ "items": { "$ref": target }, "properties": { "a": true }, "$defs": { "a": true } });
        let expected = format!("/items/$ref: `{target}` leads out of the schema: a `$ref` is `#/$defs/NAME`");
        assert_eq!(refusal(schema), expected);
    }
    assert_eq!(refusal(json!({ "$ref": "#/$defs/a" })), "/$ref: there is no `a` in `$defs`");
    assert_eq!(refusal(json!({ "items": { "$ref": "#" } })), "/items/$ref: `#` refers to itself");
    assert_eq!(
        refusal(json!({ "$defs": { "a": { "items": { "$ref": "#/$defs/a" } } } })),
        "/$defs/a/items/$ref: `a` refers to itself"
    );
    assert_eq!(
        refusal(json!({ "$defs": {
            "a": { "not": { "$ref": "#/$defs/b" } },
            "b": { "anyOf": [true, { "$ref": "#/$defs/a" }] },
        } })),
        "/$defs/b/anyOf/1/$ref: `a` refers to itself"
    );
    for keyword in ["$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$vocabulary", "id"] {
        let expected = format!("/{keyword}: `{keyword}` is no keyword that a contract may use");
        assert_eq!(refusal(json!({ keyword: "#/$defs/a" })), expected);
    }
}

#[test]
fn a_small_schema_that_stands_for_a_large_one_is_refused_at_the_cost_of_its_text() {
    // 2^9 copies of the last definition, then 2^40: more than could ever be looked at one by one.
    assert!(weight(doubling(6, json!({ "type": "null" }))).is_ok());
    assert_eq!(
        refusal(doubling(9, json!({ "type": "null" }))),
        ": with references followed, the schema has a weight of 2558, limit 1024"
    );
    assert_eq!(
        refusal(doubling(14, json!({ "enum": [[1, 2, 3], [4, 5, 6]] }))),
        ": with references followed, the schema has a weight of 212990, limit 1024"
    );
    assert!(refusal(doubling(16, json!(true))).ends_with("nests deeper than 32, with references followed"));
    assert!(refusal(doubling(40, json!(true))).ends_with("nests deeper than 32, with references followed"));
    // Heavy by itself, without references.
    let wide: Vec<Value> = (0..1100).map(|n| json!(n % 10)).collect();
    assert!(refusal(json!({ "enum": wide })).contains("a weight of 1102"));
}

#[test]
fn depth_is_bounded_in_the_text_and_along_references() {
    let nested = |levels| (0..levels).fold(json!(true), |inner, _| json!({ "not": inner }));
    assert!(weight(nested(32)).is_ok());
    let validator = validator::compile(&nested(32).to_string()).unwrap();
    assert!(validator.is_valid(&json!(1)), "32 negations of `true`");
    assert!(refusal(nested(33)).contains("nested too deeply"));
    // Each definition is shallow; the way through them is not.
    let mut defs = serde_json::Map::new();
    for n in 0..90 {
        defs.insert(format!("d{n}"), json!({ "$ref": format!("#/$defs/d{}", n + 1) }));
    }
    defs.insert("d90".to_owned(), json!(true));
    assert!(refusal(json!({ "$defs": defs })).ends_with("nests deeper than 32, with references followed"));
}

#[test]
fn each_keyword_has_its_type() {
    for (keyword, good, bad) in [
        ("type", json!("integer"), json!("int")),
        ("type", json!(["string", "null"]), json!([])),
        ("type", json!(["string"]), json!(["string", "string"])),
        ("enum", json!([null]), json!([])),
        ("multipleOf", json!(0.1), json!(0)),
        ("maximum", json!(-1.5), json!("1")),
        ("minimum", json!(1), json!(null)),
        ("exclusiveMaximum", json!(1), json!(true)),
        ("exclusiveMinimum", json!(1), json!([1])),
        ("maxLength", json!(0), json!(-1)),
        ("minLength", json!(1), json!(1.5)),
        ("maxItems", json!(1), json!("1")),
        ("minItems", json!(1), json!(-1)),
        ("maxContains", json!(1), json!(-1)),
        ("minContains", json!(1), json!(-1)),
        ("maxProperties", json!(1), json!(-1)),
        ("minProperties", json!(1), json!(-1)),
        ("pattern", json!("^a"), json!(1)),
        ("uniqueItems", json!(true), json!(1)),
        ("required", json!([]), json!(["a", "a"])),
        ("dependentRequired", json!({ "a": ["b"] }), json!({ "a": "b" })),
        ("properties", json!({ "a": true }), json!([])),
        ("dependentSchemas", json!({ "a": {} }), json!(true)),
        ("patternProperties", json!({ "^a": {} }), json!(1)),
        ("allOf", json!([true]), json!([])),
        ("anyOf", json!([{}]), json!({})),
        ("oneOf", json!([false]), json!(1)),
        ("prefixItems", json!([false]), json!([])),
        ("$defs", json!({ "a-b.c_1": true }), json!({ "a/b": true })),
        ("$ref", json!("#/$defs/a"), json!(1)),
        ("title", json!("é"), json!(1)),
        ("description", json!(""), json!([])),
        ("format", json!("date"), json!(1)),
        ("contentEncoding", json!("base64"), json!(1)),
        ("contentMediaType", json!("text/plain"), json!(1)),
        ("examples", json!([1]), json!(1)),
        ("deprecated", json!(true), json!("yes")),
        ("readOnly", json!(true), json!(0)),
        ("writeOnly", json!(false), json!(0)),
    ] {
        let schema = |value| {
            if keyword == "$defs" {
                json!({ keyword: value })
            } else {
                json!({ keyword: value, "$defs": { "a": true } })
            }
        };
        assert!(weight(schema(good.clone())).is_ok(), "{keyword} {good}");
        let (pointer, fault) = weight(schema(bad.clone())).unwrap_err();
        assert_eq!(pointer, format!("/{keyword}"), "{bad}");
        assert!(matches!(&fault, SchemaFault::Value { keyword: named, .. } if *named == keyword), "{fault}");
    }
    for keyword in ["not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"]
    {
        assert!(weight(json!({ keyword: {} })).is_ok());
        assert_eq!(weight(json!({ keyword: 1 })), Err((format!("/{keyword}"), SchemaFault::NotASchema)));
    }
    for keyword in ["requierd", "definitions", "unevaluatedProperties", "unevaluatedItems", "contentSchema"] {
        let fault = SchemaFault::Keyword(keyword.to_owned());
        assert_eq!(weight(json!({ keyword: {} })), Err((format!("/{keyword}"), fault)));
    }
}

#[test]
fn patterns_are_those_of_regular_languages() {
    let pattern = |pattern: &str| weight(json!({ "pattern": pattern })).map_err(|(_, fault)| fault);
    for good in ["^[a-z0-9-]{1,32}$", "\\d+", "a\\/b", "(a+)+$", "^(?:[0-9]{1,3}\\.){3}$"] {
        assert_eq!(pattern(good), Ok(33), "{good}");
    }
    let too_long = "a".repeat(SCHEMA_PATTERN_BYTES_MAX + 1);
    for bad in ["(", "(?=a)b", "(a)\\1", "(?<!a)b", "((a{1,100}){1,100}){1,100}", "\\p{L}{1,20}", &too_long] {
        assert_eq!(pattern(bad), Err(SchemaFault::Pattern(shown(bad, QUOTE_BYTES_MAX))), "{bad}");
    }
    let properties = |count: usize| {
        let each = (0..count).map(|n| (format!("^{n}"), json!({ "pattern": "^a" })));
        json!({ "patternProperties": each.collect::<Map<_, _>>() })
    };
    assert!(weight(properties(SCHEMA_PATTERNS_MAX - 1)).is_ok());
    assert_eq!(
        weight(properties(SCHEMA_PATTERNS_MAX)),
        Err(("/patternProperties".to_owned(), SchemaFault::TooManyPatterns))
    );
}

#[test]
fn names_and_texts_show_what_they_are() {
    assert_eq!(
        weight(json!({ "properties": { "a\u{200b}": true } })),
        Err(("/properties".to_owned(), SchemaFault::Text))
    );
    assert_eq!(weight(json!({ "title": "\u{202e}" })), Err(("/title".to_owned(), SchemaFault::Text)));
    assert_eq!(
        refusal(json!({ "x\u{202e}": 1 })),
        "/x\u{202e}: `x\\u{202e}` is no keyword that a contract may use"
    );
    assert!(
        refusal(json!({ "$schema": "http://json-schema.org/draft-07/schema#" })).contains("another dialect")
    );
    let inner = json!({ "items": { "$schema": DIALECT } });
    assert_eq!(weight(inner), Err(("/items/$schema".to_owned(), SchemaFault::NotAtRoot)));
    let twice = weigh(r#"{"type":"null","type":"string"}"#, &mut BTreeSet::new()).unwrap_err().fault;
    assert_eq!(twice.to_string(), "no JSON at line 1, column 21: a key is there twice");
    let long = format!(r#"{{"title":"{}"}}"#, "a".repeat(SCHEMA_BYTES_MAX));
    let fault = weigh(&long, &mut BTreeSet::new()).unwrap_err().fault;
    assert_eq!(fault, SchemaFault::TooLong { size_bytes: long.len() });
}

/// Schemas as somebody might write them who tries things out: keywords mostly where they belong, values mostly of their
/// type.
fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        prop_oneof![Just("string"), Just("integer"), Just("number"), Just("nothing")]
            .prop_map(|name| json!({ "type": name })),
        (0u64..5).prop_map(|n| json!({ "maxLength": n, "minItems": n, "maxProperties": n })),
        (-3i64..5).prop_map(|n| json!({ "minimum": n, "multipleOf": n, "enum": [n, "a"] })),
        "[a-c^$|()\\[\\]*+?{},0-3\\\\d.-]{0,10}".prop_map(|pattern| json!({ "pattern": pattern })),
        (0u8..4).prop_map(|n| json!({ "$ref": format!("#/$defs/{n}") })),
        Just(json!({ "uniqueItems": true, "format": "email", "required": ["a"], "minContains": 2 })),
    ];
    let tree = leaf.prop_recursive(4, 24, 4, |inner| {
        let list = proptest::collection::vec(inner.clone(), 1..4);
        let map = proptest::collection::btree_map("[a-c]{1,2}", inner.clone(), 0..3);
        let one = ["not", "if", "then", "items", "contains", "additionalProperties", "propertyNames"];
        let many = ["allOf", "anyOf", "oneOf", "prefixItems"];
        let named = ["properties", "patternProperties", "dependentSchemas"];
        prop_oneof![
            (proptest::sample::select(one.to_vec()), inner)
                .prop_map(|(keyword, schema)| json!({ keyword: schema })),
            (proptest::sample::select(many.to_vec()), list)
                .prop_map(|(keyword, list)| json!({ keyword: list })),
            (proptest::sample::select(named.to_vec()), map)
                .prop_map(|(keyword, map)| json!({ keyword: map })),
        ]
    });
    let defs = proptest::collection::btree_map("[0-3]", tree.clone(), 0..4);
    (tree, defs).prop_map(|(root, defs)| match root {
        Value::Object(mut root) => {
            root.insert("$defs".to_owned(), json!(defs));
            Value::Object(root)
        }
        other => other,
    })
}

proptest! {
    #[test]
    fn what_passes_compiles(schema in schemas(), body in schemas()) {
        let text = schema.to_string();
        if let Ok(weighed) = weigh(&text, &mut BTreeSet::new()) {
            prop_assert!(weighed.weight <= SCHEMA_WEIGHT_MAX);
            let validator = validator::compile(&text);
            prop_assert!(validator.is_some(), "{}", text);
            let _ = validator.unwrap().validate(&body);
        }
    }

    #[test]
    fn no_text_makes_the_scale_panic(text in "[{}\\[\\]\":,a-z$#/0-9]{0,64}") {
        let _ = weigh(&text, &mut BTreeSet::new());
    }
}
