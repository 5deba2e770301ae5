//! The file in which people write a contract: TOML, with its schemas as tables, as JSON texts or as files beside it.
//!
//! ```toml
//! name = "notes"
//! version = "1.2.0"
//! agent = "kBridge:notes"
//! description = "Notes of the household"           # optional, like tags, fallbacks and hints
//! tags = ["notes"]
//! fallbacks = ["kBridge:notes@kos1…"]
//!
//! [security]
//! callers = ["member", "steward"]
//! early_data = false                               # the default
//! idempotency = "accepted"                         # the default; or "refused", "required"
//!
//! [hints]
//! calls_per_minute = 60
//! price = { amount = 2, unit = "cent" }
//!
//! [[methods]]
//! method = "POST"
//! path = "/notes/{id}"
//! request = { type = "object", required = ["title"], properties = { title = { type = "string" } } }
//! reply_file = "note.schema.json"                  # or `reply`, a table or a text of JSON
//! ```
//!
//! TOML has no `null`: a schema that needs one is a text or a file. Of texts and files the blanks between JSON's parts are
//! dropped, the rest goes into the contract as it is. Every refusal says where: line, column and key.

use super::{
    At, Caller, Contract, Fault, Hints, Idempotency, InvalidRoute, JsonError, Method, Price, SchemaFault,
    Security, json,
};
use kos_protocol::{
    id::InvalidName,
    limits::{NAME_BYTES_MAX, SCHEMA_DEPTH_MAX},
    text::shown,
};
use serde_json::{Map, Number, Value as Json};
use std::{fmt, str::FromStr};
use toml::de::{DeTable, DeValue};

/// Why a file is no contract, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FileError {
    /// Counted from 1.
    pub line: usize,
    /// Counted in characters, from 1.
    pub column: usize,
    /// A path of keys like `methods[0].request.properties`; empty where the file is no TOML.
    pub key: String,
    /// What is wrong there.
    pub fault: FileFault,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, key, fault } = self;
        write!(f, "line {line}, column {column}: ")?;
        if key.is_empty() { write!(f, "{fault}") } else { write!(f, "{key}: {fault}") }
    }
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// No TOML.
    #[error("no TOML: {0}")]
    Toml(String),
    /// A key that means nothing here.
    #[error("unknown key; hint: there are {0}")]
    UnknownKey(String),
    /// A key that has to be there.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A value of another type.
    #[error("{found}, must be {expected}")]
    Type {
        /// What is there.
        found: &'static str,
        /// What has to be.
        expected: &'static str,
    },
    /// A text outside a closed set.
    #[error("`{text}` is none of {known}")]
    Word {
        /// What is there.
        text: String,
        /// What there is.
        known: String,
    },
    /// No version.
    #[error("`{text}` is no version like 1.2.0: {why}")]
    Version {
        /// What is there.
        text: String,
        /// What the reader says.
        why: String,
    },
    /// No agent id.
    #[error(transparent)]
    Agent(InvalidName),
    /// No route.
    #[error(transparent)]
    Route(InvalidRoute),
    /// A schema twice: in the file and in one beside it.
    #[error("`{0}` is there as well; a schema is in one place")]
    TwoPlaces(&'static str),
    /// A name of a file in another folder.
    #[error("`{0}` is no name of a file beside this one")]
    FileName(String),
    /// A file that cannot be read.
    #[error("cannot read `{name}`: {why}")]
    Unreadable {
        /// Its name.
        name: String,
        /// What the system says.
        why: String,
    },
    /// A schema in a text or a file that is no JSON; line and column in it are in the text.
    #[error(transparent)]
    Json(JsonError),
    /// A value that JSON does not have.
    #[error("JSON has no such value: {0}")]
    NoJson(&'static str),
    /// What the contract's own check says.
    #[error(transparent)]
    Contract(Fault),
}

/// Reads a file and checks the contract in it. `resolve` gives the text of a file beside it, by name, or says why not.
///
/// # Errors
/// [`FileError`]: the first fault, with its place.
pub fn parse_file(
    text: &str,
    resolve: impl Fn(&str) -> Result<String, String>,
) -> Result<Contract, FileError> {
    let file = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Located { at, key: String::new(), fault: FileFault::Toml(error.message().to_owned()) }.in_text(text)
    })?;
    let root = Table { key: String::new(), at: file.span().start, entries: file.get_ref() };
    let contract = read_contract(&root, &resolve).map_err(|located| located.in_text(text))?;
    match contract.check() {
        Ok(_) => Ok(contract),
        Err(error) => Err(locate(&root, &error.at, error.fault).in_text(text)),
    }
}

/// A fault at a byte of the file.
struct Located {
    at: usize,
    key: String,
    fault: FileFault,
}

impl Located {
    fn in_text(self, text: &str) -> FileError {
        let before = text.get(..self.at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        FileError {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            key: shown(&self.key, 256),
            fault: self.fault,
        }
    }
}

/// A table of the file.
struct Table<'a> {
    key: String,
    at: usize,
    entries: &'a DeTable<'a>,
}

/// A value of the file.
struct Value<'a> {
    key: String,
    at: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Table<'a> {
    fn path_to(&self, name: &str) -> String {
        if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) }
    }

    fn only(&self, known: &[&str]) -> Result<(), Located> {
        match self.entries.keys().find(|key| !known.contains(&key.get_ref().as_ref())) {
            Some(key) => {
                let fault = FileFault::UnknownKey(known.join(", "));
                Err(Located { at: key.span().start, key: self.path_to(key.get_ref()), fault })
            }
            None => Ok(()),
        }
    }

    fn optional(&self, name: &str) -> Option<Value<'a>> {
        let value = self.entries.get(name)?;
        Some(Value { key: self.path_to(name), at: value.span().start, value: value.get_ref() })
    }

    fn required(&self, name: &'static str) -> Result<Value<'a>, Located> {
        self.optional(name).ok_or_else(|| {
            let key = if self.key.is_empty() { "contract" } else { &self.key };
            Located { at: self.at, key: key.to_owned(), fault: FileFault::Missing(name) }
        })
    }
}

impl<'a> Value<'a> {
    fn fault<T>(&self, fault: FileFault) -> Result<T, Located> {
        Err(Located { at: self.at, key: self.key.clone(), fault })
    }

    fn is_no<T>(&self, expected: &'static str) -> Result<T, Located> {
        self.fault(FileFault::Type { found: self.value.type_str(), expected })
    }

    fn text(&self) -> Result<&'a str, Located> {
        self.value.as_str().map_or_else(|| self.is_no("a string"), Ok)
    }

    fn flag(&self) -> Result<bool, Located> {
        self.value.as_bool().map_or_else(|| self.is_no("`true` or `false`"), Ok)
    }

    fn number<T: FromStr>(&self, expected: &'static str) -> Result<T, Located> {
        let number = self.value.as_integer().filter(|integer| integer.radix() == 10);
        number.and_then(|number| number.as_str().parse().ok()).map_or_else(|| self.is_no(expected), Ok)
    }

    fn table(&self) -> Result<Table<'a>, Located> {
        match self.value.as_table() {
            Some(entries) => Ok(Table { key: self.key.clone(), at: self.at, entries }),
            None => self.is_no("a table"),
        }
    }

    fn list(&self) -> Result<Vec<Value<'a>>, Located> {
        let Some(list) = self.value.as_array() else { return self.is_no("a list") };
        let entry = |(at, value): (usize, &'a toml::Spanned<DeValue<'a>>)| Value {
            key: format!("{}[{at}]", self.key),
            at: value.span().start,
            value: value.get_ref(),
        };
        Ok(list.iter().enumerate().map(entry).collect())
    }

    /// One word of a closed set.
    fn word<T: Copy>(&self, all: &[(T, &str)]) -> Result<T, Located> {
        let text = self.text()?;
        match all.iter().find(|(_, written)| *written == text) {
            Some((word, _)) => Ok(*word),
            None => {
                let known: Vec<&str> = all.iter().map(|(_, written)| *written).collect();
                self.fault(FileFault::Word { text: shown(text, NAME_BYTES_MAX), known: known.join(", ") })
            }
        }
    }
}

fn read_contract(
    file: &Table<'_>,
    resolve: &impl Fn(&str) -> Result<String, String>,
) -> Result<Contract, Located> {
    file.only(&[
        "name",
        "version",
        "agent",
        "description",
        "tags",
        "fallbacks",
        "security",
        "hints",
        "methods",
    ])?;
    let version = file.required("version")?;
    let agent = file.required("agent")?;
    let contract = Contract {
        name: file.required("name")?.text()?.to_owned(),
        version: version.text()?.parse().or_else(|error: semver::Error| {
            let text = shown(version.text()?, NAME_BYTES_MAX);
            version.fault(FileFault::Version { text, why: error.to_string() })
        })?,
        agent: agent.text()?.parse().or_else(|error| agent.fault(FileFault::Agent(error)))?,
        methods: each(&file.required("methods")?, |method| read_method(method, resolve))?,
        fallbacks: optional(file, "fallbacks", |list| {
            each(&list, |route| route.text()?.parse().or_else(|error| route.fault(FileFault::Route(error))))
        })?,
        security: read_security(&file.required("security")?.table()?)?,
        tags: optional(file, "tags", |list| each(&list, |tag| Ok(tag.text()?.to_owned())))?,
        description: optional(file, "description", |text| Ok(text.text()?.to_owned()))?,
        hints: optional(file, "hints", |hints| read_hints(&hints.table()?))?,
    };
    Ok(contract)
}

fn optional<'a, T: Default>(
    table: &Table<'a>,
    name: &str,
    read: impl FnOnce(Value<'a>) -> Result<T, Located>,
) -> Result<T, Located> {
    table.optional(name).map_or_else(|| Ok(T::default()), read)
}

fn each<'a, T>(list: &Value<'a>, read: impl Fn(&Value<'a>) -> Result<T, Located>) -> Result<Vec<T>, Located> {
    list.list()?.iter().map(read).collect()
}

fn read_security(table: &Table<'_>) -> Result<Security, Located> {
    table.only(&["callers", "early_data", "idempotency"])?;
    let mut callers = each(&table.required("callers")?, |caller| caller.word(&Caller::ALL))?;
    callers.sort();
    let idempotency = table.optional("idempotency").map(|value| value.word(&Idempotency::ALL)).transpose()?;
    Ok(Security {
        callers,
        early_data: optional(table, "early_data", |value| value.flag())?,
        idempotency: idempotency.unwrap_or(Idempotency::Accepted),
    })
}

fn read_hints(table: &Table<'_>) -> Result<Hints, Located> {
    table.only(&["calls_per_minute", "price"])?;
    let price = |value: Value<'_>| {
        let price = value.table()?;
        price.only(&["amount", "unit"])?;
        Ok(Some(Price {
            amount: price.required("amount")?.number("a whole number, zero or above")?,
            unit: price.required("unit")?.text()?.to_owned(),
        }))
    };
    Ok(Hints {
        price: optional(table, "price", price)?,
        calls_per_minute: optional(table, "calls_per_minute", |value| {
            value.number("a whole number from 1 to 4294967295").map(Some)
        })?,
    })
}

fn read_method(
    value: &Value<'_>,
    resolve: &impl Fn(&str) -> Result<String, String>,
) -> Result<Method, Located> {
    let table = value.table()?;
    table.only(&["method", "path", "request", "request_file", "reply", "reply_file"])?;
    Ok(Method {
        method: table.required("method")?.text()?.to_owned(),
        path: table.required("path")?.text()?.to_owned(),
        request: read_schema(&table, "request", "request_file", resolve)?,
        reply: read_schema(&table, "reply", "reply_file", resolve)?,
    })
}

fn read_schema(
    table: &Table<'_>,
    here: &'static str,
    beside: &str,
    resolve: &impl Fn(&str) -> Result<String, String>,
) -> Result<Option<String>, Located> {
    let from_text = |value: &Value<'_>, text: &str| match json::read(text.as_bytes(), SCHEMA_DEPTH_MAX) {
        Ok(_) => Ok(Some(without_blanks(text))),
        Err(error) => value.fault(FileFault::Json(error)),
    };
    match (table.optional(here), table.optional(beside)) {
        (None, None) => Ok(None),
        (Some(_), Some(value)) => value.fault(FileFault::TwoPlaces(here)),
        (Some(value), None) => match value.value {
            DeValue::String(text) => from_text(&value, text),
            DeValue::Table(_) | DeValue::Boolean(_) => Ok(Some(json_of(&value)?.to_string())),
            _ => value.is_no("a table or a text of JSON"),
        },
        (None, Some(value)) => {
            let name = value.text()?;
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
                return value.fault(FileFault::FileName(shown(name, NAME_BYTES_MAX)));
            }
            match resolve(name) {
                Ok(text) => from_text(&value, &text),
                Err(why) => value.fault(FileFault::Unreadable { name: shown(name, NAME_BYTES_MAX), why }),
            }
        }
    }
}

/// A value of TOML as JSON. The recursion is no deeper than the reader of TOML allows, which is 80.
fn json_of(value: &Value<'_>) -> Result<Json, Located> {
    Ok(match value.value {
        DeValue::String(text) => Json::String(text.to_string()),
        DeValue::Boolean(flag) => Json::Bool(*flag),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => number.into(),
            Err(_) => return value.fault(FileFault::NoJson("a number of more than 64 bits")),
        },
        DeValue::Float(float) => match float.as_str().parse().ok().and_then(Number::from_f64) {
            Some(number) => Json::Number(number),
            None => return value.fault(FileFault::NoJson("a number that is not finite")),
        },
        DeValue::Datetime(_) => return value.fault(FileFault::NoJson("a date or a time")),
        DeValue::Array(_) => each(value, json_of)?.into(),
        DeValue::Table(entries) => {
            let table = Table { key: value.key.clone(), at: value.at, entries };
            let mut map = Map::new();
            for name in entries.keys().map(|name| name.get_ref()) {
                let entry = table.optional(name).expect("it is one of the table's keys");
                map.insert(name.to_string(), json_of(&entry)?);
            }
            map.into()
        }
    })
}

/// JSON without the blanks between its parts. The text was read before, so quotes are where they belong.
fn without_blanks(json: &str) -> String {
    let (mut in_text, mut is_escaped) = (false, false);
    let mut keep = |c: char| {
        let is_quote = c == '"' && !is_escaped;
        is_escaped = in_text && c == '\\' && !is_escaped;
        in_text ^= is_quote;
        in_text || !matches!(c, ' ' | '\t' | '\n' | '\r')
    };
    json.chars().filter(|c| keep(*c)).collect()
}

/// Finds a place of the contract in the file: the innermost value on the way to it that is there, so the text or the
/// name of a file where a schema is one of these. A keyword that is none is found by itself, not by its value.
fn locate(root: &Table<'_>, place: &At, fault: Fault) -> Located {
    let keys = place.key.split(['.', '[']).map(|step| step.trim_end_matches(']').to_owned());
    let pointer = place.pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~"));
    let (mut at, mut at_name, mut inner) = (root.at, root.at, None);
    for step in keys.chain(pointer) {
        let entries = inner.map_or(Some(root.entries), DeValue::as_table);
        let named = |name: &str| entries.and_then(|entries| entries.get_key_value(name));
        let numbered = || inner?.as_array()?.get(step.parse::<usize>().ok()?);
        let value = if let Some((name, value)) = named(&step).or_else(|| named(&format!("{step}_file"))) {
            at_name = name.span().start;
            value
        } else if let Some(value) = numbered() {
            value
        } else {
            at_name = at;
            break;
        };
        at = value.span().start;
        inner = Some(value.get_ref());
    }
    if matches!(fault, Fault::Schema(SchemaFault::Keyword(_))) {
        at = at_name;
    }
    Located { at, key: place.to_string(), fault: FileFault::Contract(fault) }
}

#[cfg(test)]
mod tests;
