//! The JSON Schemas that a contract may hold: a closed part of draft 2020-12 that cannot be made to run for long.
//!
//! A schema comes from a peer, so it is weighed before anything compiles it. References lead to `$defs` of the same
//! schema and never in a circle; that makes a schema a tree of which each node looks at each value of a body at most
//! once, so weight times size bounds the work. Refused with the rest: identifiers and anchors, dynamic references,
//! `unevaluated…` (their cost is not that of the tree), other dialects, and every keyword that is none, because a
//! misspelt one would silently check nothing.

use super::{
    json::{self, JsonError},
    validator,
};
use kos_protocol::{
    limits::{
        SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX, SCHEMA_PATTERN_BYTES_MAX, SCHEMA_PATTERN_PROGRAM_BYTES_MAX,
        SCHEMA_PATTERNS_MAX, SCHEMA_WEIGHT_MAX,
    },
    text::{is_display_safe, shown},
};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The one dialect, as `$schema` names it.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// What a pattern weighs: it looks at every byte of a text, in the worst case once for each state of its program.
const PATTERN_WEIGHT: usize = 32;
/// What other keywords weigh that do more than look at a value: long division, and comparing items with each other.
const SLOW_WEIGHT: usize = 16;
/// Longest quote of a schema in an error.
const QUOTE_BYTES_MAX: usize = 64;

/// Why a schema is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaFault {
    /// Above its limit.
    #[error("{size_bytes} bytes, limit {SCHEMA_BYTES_MAX}")]
    TooLong {
        /// What it takes.
        size_bytes: usize,
    },
    /// No JSON, or JSON that could be read in two ways.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Neither an object nor `true` nor `false`.
    #[error("a schema is an object, `true` or `false`")]
    NotASchema,
    /// A keyword outside the closed set.
    #[error("`{0}` is no keyword that a contract may use")]
    Keyword(String),
    /// A keyword with a value it cannot have.
    #[error("`{keyword}` is {expected}")]
    Value {
        /// The keyword.
        keyword: &'static str,
        /// What its value has to be.
        expected: &'static str,
    },
    /// A key or a text for people that cannot be shown safely.
    #[error("a name or a text holds a control, an invisible or a direction-changing character")]
    Text,
    /// Another dialect.
    #[error("`{0}` is another dialect: contracts use {DIALECT}")]
    Dialect(String),
    /// Definitions that are not at the root of the schema.
    #[error("`$defs` and `$schema` stand at the root of a schema only")]
    NotAtRoot,
    /// A reference to something outside the schema. Nothing is ever fetched.
    #[error("`{0}` leads out of the schema: a `$ref` is `#/$defs/NAME`")]
    RemoteRef(String),
    /// A reference to a definition that is not there.
    #[error("there is no `{0}` in `$defs`")]
    MissingRef(String),
    /// A definition that holds itself, directly or through others.
    #[error("`{0}` refers to itself")]
    Recursive(String),
    /// Not a pattern of regular languages, or too large a one.
    #[error(
        "`{0}` is no pattern without look-around and back-references, or compiles to more than \
         {SCHEMA_PATTERN_PROGRAM_BYTES_MAX} bytes"
    )]
    Pattern(String),
    /// Too many patterns in the contract.
    #[error("more than {SCHEMA_PATTERNS_MAX} different patterns in one contract")]
    TooManyPatterns,
    /// Nests deeper than its limit, with references followed.
    #[error("nests deeper than {SCHEMA_DEPTH_MAX}, with references followed")]
    TooDeep,
    /// Above its limit, with references followed.
    #[error("with references followed, the schema has a weight of {weight}, limit {SCHEMA_WEIGHT_MAX}")]
    TooHeavy {
        /// Its weight, as far as it was counted.
        weight: u32,
    },
}

/// What is wrong with a schema, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// A JSON pointer (RFC 6901); empty for the whole.
    pub(super) pointer: String,
    pub(super) fault: SchemaFault,
}

/// A schema that was weighed.
#[derive(Debug)]
pub(super) struct Weighed {
    /// What is checked of one value at most.
    pub(super) weight: u32,
    /// Whether it compares the items of arrays with each other.
    pub(super) compares_items: bool,
    /// Whether it has alternatives: `anyOf` or `oneOf`.
    pub(super) has_alternatives: bool,
}

/// Reads a schema and checks that it may be compiled. `patterns` are those of the contract so far.
///
/// Costs time in proportion to the text, and the compilation of each new pattern.
pub(super) fn weigh(text: &str, patterns: &mut BTreeSet<String>) -> Result<Weighed, Located> {
    let at_root = |fault| Located { pointer: String::new(), fault };
    if text.len() > SCHEMA_BYTES_MAX {
        return Err(at_root(SchemaFault::TooLong { size_bytes: text.len() }));
    }
    let root = json::read(text.as_bytes(), SCHEMA_DEPTH_MAX).map_err(|error| at_root(error.into()))?.value;
    let mut scale = Scale {
        defs: root.get("$defs").and_then(Value::as_object),
        weights: BTreeMap::new(),
        patterns,
        pointer: String::new(),
        depth: 0,
        compares_items: false,
        has_alternatives: false,
    };
    let outcome = scale.weigh_all(&root);
    let Scale { pointer, compares_items, has_alternatives, .. } = scale;
    match outcome {
        Ok(sum) if sum.weight > SCHEMA_WEIGHT_MAX => {
            Err(at_root(SchemaFault::TooHeavy { weight: sum.weight }))
        }
        Ok(sum) => Ok(Weighed { weight: sum.weight, compares_items, has_alternatives }),
        Err(fault) => Err(Located { pointer, fault }),
    }
}

/// The weight of a part, and how deep it nests, with references followed.
#[derive(Clone, Copy)]
struct Sum {
    weight: u32,
    depth: usize,
}

impl Sum {
    fn of(weight: usize) -> Self {
        Self { weight: u32::try_from(weight).unwrap_or(u32::MAX), depth: 0 }
    }

    fn and(self, other: Self) -> Self {
        Self { weight: self.weight.saturating_add(other.weight), depth: self.depth.max(other.depth) }
    }
}

struct Scale<'a> {
    defs: Option<&'a Map<String, Value>>,
    /// Of definitions: none while one is being weighed, so that a circle is seen. Each is weighed once, so that a chain
    /// of definitions that each name the next one twice costs as much as its text and not what it stands for.
    weights: BTreeMap<&'a str, Option<Sum>>,
    patterns: &'a mut BTreeSet<String>,
    /// Where it is; where it was when it failed.
    pointer: String,
    /// Schemas around it; bounds the recursion.
    depth: usize,
    compares_items: bool,
    has_alternatives: bool,
}

impl<'a> Scale<'a> {
    fn weigh_all(&mut self, root: &'a Value) -> Result<Sum, SchemaFault> {
        let sum = self.schema(root)?;
        for name in self.defs.into_iter().flat_map(Map::keys) {
            self.definition(name)?;
        }
        Ok(sum)
    }

    /// Does something one step further down; the pointer stays where it failed.
    fn within<T>(
        &mut self,
        step: &str,
        inner: impl FnOnce(&mut Self) -> Result<T, SchemaFault>,
    ) -> Result<T, SchemaFault> {
        let length = self.pointer.len();
        self.pointer.push('/');
        self.pointer += &step.replace('~', "~0").replace('/', "~1");
        let done = inner(self)?;
        self.pointer.truncate(length);
        Ok(done)
    }

    fn schema(&mut self, schema: &'a Value) -> Result<Sum, SchemaFault> {
        let keywords = match schema {
            Value::Bool(_) => return Ok(Sum::of(1)),
            Value::Object(keywords) => keywords,
            _ => return Err(SchemaFault::NotASchema),
        };
        self.depth += 1;
        if self.depth > SCHEMA_DEPTH_MAX {
            return Err(SchemaFault::TooDeep);
        }
        let mut sum = Sum::of(1);
        for (keyword, value) in keywords {
            sum = sum.and(self.within(keyword, |scale| scale.keyword(keyword, value))?);
        }
        self.depth -= 1;
        sum.depth += 1;
        if sum.depth > SCHEMA_DEPTH_MAX { Err(SchemaFault::TooDeep) } else { Ok(sum) }
    }

    /// Every keyword there is. An expectation that fails names what the keyword's value has to be.
    fn keyword(&mut self, keyword: &str, value: &'a Value) -> Result<Sum, SchemaFault> {
        let expect = |fits: bool, keyword, expected| {
            if fits { Ok(Sum::of(1)) } else { Err(SchemaFault::Value { keyword, expected }) }
        };
        match keyword {
            "$schema" => self.dialect(value),
            "$defs" => self.definitions(value),
            "$ref" => self.reference(value),

            "allOf" => self.list("allOf", value),
            "anyOf" | "oneOf" => {
                self.has_alternatives = true;
                self.list(if keyword == "anyOf" { "anyOf" } else { "oneOf" }, value)
            }
            "prefixItems" => self.list("prefixItems", value),
            "not"
            | "if"
            | "then"
            | "else"
            | "items"
            | "contains"
            | "additionalProperties"
            | "propertyNames" => self.schema(value),
            "properties" => self.map("properties", value),
            "dependentSchemas" => self.map("dependentSchemas", value),
            "patternProperties" => {
                let sum = self.map("patternProperties", value)?;
                let mut patterns = value.as_object().into_iter().flat_map(Map::keys);
                patterns.try_fold(sum, |sum, pattern| Ok(sum.and(self.pattern(pattern)?)))
            }

            "type" => expect(is_type(value), "type", "a name of a type or a list of different ones"),
            "enum" => {
                expect(value.as_array().is_some_and(|list| !list.is_empty()), "enum", "a list of values")?;
                Ok(Sum::of(count(value)))
            }
            "const" => Ok(Sum::of(count(value))),
            "multipleOf" => {
                let is_positive = value.as_f64().is_some_and(|number| number > 0.0);
                expect(is_positive, "multipleOf", "a number above zero")?;
                Ok(Sum::of(SLOW_WEIGHT))
            }
            "maximum" => expect(value.is_number(), "maximum", "a number"),
            "minimum" => expect(value.is_number(), "minimum", "a number"),
            "exclusiveMaximum" => expect(value.is_number(), "exclusiveMaximum", "a number"),
            "exclusiveMinimum" => expect(value.is_number(), "exclusiveMinimum", "a number"),
            "maxLength" => expect(value.is_u64(), "maxLength", "a whole number"),
            "minLength" => expect(value.is_u64(), "minLength", "a whole number"),
            "maxItems" => expect(value.is_u64(), "maxItems", "a whole number"),
            "minItems" => expect(value.is_u64(), "minItems", "a whole number"),
            "maxContains" => expect(value.is_u64(), "maxContains", "a whole number"),
            "minContains" => expect(value.is_u64(), "minContains", "a whole number"),
            "maxProperties" => expect(value.is_u64(), "maxProperties", "a whole number"),
            "minProperties" => expect(value.is_u64(), "minProperties", "a whole number"),
            "pattern" => {
                expect(value.is_string(), "pattern", "a text")?;
                self.pattern(value.as_str().unwrap_or_default())
            }
            "uniqueItems" => {
                self.compares_items |= value == &Value::Bool(true);
                expect(value.is_boolean(), "uniqueItems", "`true` or `false`")?;
                Ok(Sum::of(SLOW_WEIGHT))
            }
            "required" => {
                expect(is_names(value), "required", "a list of different names")?;
                Ok(Sum::of(count(value)))
            }
            "dependentRequired" => {
                let lists = value.as_object().is_some_and(|map| map.values().all(is_names));
                expect(lists, "dependentRequired", "a table of lists of different names")?;
                Ok(Sum::of(count(value)))
            }

            // What follows says something to people and checks nothing.
            "title" | "description" | "$comment" => match value.as_str() {
                Some(text) if is_display_safe(text) => Ok(Sum::of(0)),
                Some(_) => Err(SchemaFault::Text),
                None => expect(false, if keyword == "title" { "title" } else { "description" }, "a text"),
            },
            "format" => expect(value.is_string(), "format", "a text"),
            "contentEncoding" => expect(value.is_string(), "contentEncoding", "a text"),
            "contentMediaType" => expect(value.is_string(), "contentMediaType", "a text"),
            "examples" => expect(value.is_array(), "examples", "a list"),
            "deprecated" => expect(value.is_boolean(), "deprecated", "`true` or `false`"),
            "readOnly" => expect(value.is_boolean(), "readOnly", "`true` or `false`"),
            "writeOnly" => expect(value.is_boolean(), "writeOnly", "`true` or `false`"),
            "default" => Ok(Sum::of(0)),
            other => Err(SchemaFault::Keyword(shown(other, QUOTE_BYTES_MAX))),
        }
    }

    fn is_at_root(&self) -> bool {
        !self.pointer[1..].contains('/')
    }

    fn dialect(&mut self, value: &Value) -> Result<Sum, SchemaFault> {
        if !self.is_at_root() {
            return Err(SchemaFault::NotAtRoot);
        }
        match value.as_str() {
            Some(DIALECT) => Ok(Sum::of(0)),
            other => Err(SchemaFault::Dialect(shown(other.unwrap_or_default(), QUOTE_BYTES_MAX))),
        }
    }

    /// The definitions themselves are weighed where they are referred to, and at the end.
    fn definitions(&mut self, value: &'a Value) -> Result<Sum, SchemaFault> {
        if !self.is_at_root() {
            return Err(SchemaFault::NotAtRoot);
        }
        let is_name = |name: &String| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        if value.as_object().is_some_and(|map| map.keys().all(is_name)) {
            Ok(Sum::of(0))
        } else {
            Err(SchemaFault::Value {
                keyword: "$defs",
                expected: "a table of schemas with names of `a-z A-Z 0-9 - . _`",
            })
        }
    }

    fn reference(&mut self, value: &Value) -> Result<Sum, SchemaFault> {
        let Some(target) = value.as_str() else {
            return Err(SchemaFault::Value { keyword: "$ref", expected: "a text" });
        };
        let quoted = || shown(target, QUOTE_BYTES_MAX);
        if target == "#" {
            return Err(SchemaFault::Recursive(quoted()));
        }
        let name = target.strip_prefix("#/$defs/").ok_or_else(|| SchemaFault::RemoteRef(quoted()))?;
        let known = self.defs.and_then(|defs| defs.get_key_value(name));
        let (name, _) = known.ok_or_else(|| SchemaFault::MissingRef(shown(name, QUOTE_BYTES_MAX)))?;
        self.definition(name)
    }

    fn definition(&mut self, name: &'a str) -> Result<Sum, SchemaFault> {
        match self.weights.insert(name, None) {
            Some(Some(sum)) => {
                self.weights.insert(name, Some(sum));
                Ok(sum)
            }
            Some(None) => Err(SchemaFault::Recursive(shown(name, QUOTE_BYTES_MAX))),
            None => {
                let schema = &self.defs.expect("a name of a definition comes from them")[name];
                let here = std::mem::replace(&mut self.pointer, "/$defs".to_owned());
                let sum = self.within(name, |scale| scale.schema(schema))?;
                self.pointer = here;
                self.weights.insert(name, Some(sum));
                Ok(sum)
            }
        }
    }

    fn list(&mut self, keyword: &'static str, value: &'a Value) -> Result<Sum, SchemaFault> {
        let Some(schemas) = value.as_array().filter(|list| !list.is_empty()) else {
            return Err(SchemaFault::Value { keyword, expected: "a list of schemas" });
        };
        schemas.iter().enumerate().try_fold(Sum::of(0), |sum, (at, schema)| {
            Ok(sum.and(self.within(&at.to_string(), |scale| scale.schema(schema))?))
        })
    }

    fn map(&mut self, keyword: &'static str, value: &'a Value) -> Result<Sum, SchemaFault> {
        let Some(schemas) = value.as_object() else {
            return Err(SchemaFault::Value { keyword, expected: "a table of schemas" });
        };
        schemas.iter().try_fold(Sum::of(0), |sum, (name, schema)| {
            if !is_display_safe(name) {
                return Err(SchemaFault::Text);
            }
            Ok(sum.and(self.within(name, |scale| scale.schema(schema))?))
        })
    }

    fn pattern(&mut self, pattern: &str) -> Result<Sum, SchemaFault> {
        if !self.patterns.contains(pattern) {
            if pattern.len() > SCHEMA_PATTERN_BYTES_MAX || !validator::is_pattern(pattern) {
                return Err(SchemaFault::Pattern(shown(pattern, QUOTE_BYTES_MAX)));
            }
            if self.patterns.len() == SCHEMA_PATTERNS_MAX {
                return Err(SchemaFault::TooManyPatterns);
            }
            self.patterns.insert(pattern.to_owned());
        }
        Ok(Sum::of(PATTERN_WEIGHT))
    }
}

/// Values in a value, itself included, and names.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(|value| 1 + count(value)).sum::<usize>(),
        _ => 1,
    }
}

fn is_type(value: &Value) -> bool {
    let is_name = |value: &Value| {
        let names = ["null", "boolean", "object", "array", "number", "string", "integer"];
        value.as_str().is_some_and(|name| names.contains(&name))
    };
    is_name(value) || (is_names(value) && value != &Value::Array(Vec::new()) && each(value).all(is_name))
}

/// A list of texts, each once.
fn is_names(value: &Value) -> bool {
    let mut seen = BTreeSet::new();
    value.is_array() && each(value).all(|name| name.as_str().is_some_and(|name| seen.insert(name)))
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests;
