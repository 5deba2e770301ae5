//! JSON that has one reading: no key twice in an object, nothing behind the end, a bounded depth.
//!
//! With a key twice, what is checked here and what a service reads may be two values. The same principle as for paths
//! (SPEC §8.5): what could be read in two ways is refused.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Why bytes are no JSON of this kind: where they end to be it, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no JSON at line {line}, column {column}: {why}")]
pub struct JsonError {
    /// Counted from 1.
    pub line: usize,
    /// Counted in bytes, from 1; 0 at the end of a line.
    pub column: usize,
    /// What the reader says.
    pub why: String,
}

/// A value, and what its check may cost.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) value: Value,
    /// Elements of its longest array.
    pub(super) longest: usize,
}

/// Reads one value that nests at most `depth_max` deep, at most 127. The recursion is no deeper.
pub(super) fn read(bytes: &[u8], depth_max: usize) -> Result<Read, JsonError> {
    let mut longest = 0;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { depth: depth_max, longest: &mut longest }.deserialize(&mut reader);
    match value.and_then(|value| reader.end().map(|()| value)) {
        Ok(value) => Ok(Read { value, longest }),
        Err(error) => {
            let text = error.to_string();
            let why = text.split(" at line ").next().unwrap_or_default();
            Err(JsonError { line: error.line(), column: error.column(), why: why.to_owned() })
        }
    }
}

struct Seed<'a> {
    depth: usize,
    longest: &'a mut usize,
}

impl Seed<'_> {
    /// How deep what is inside may nest; refuses a list or an object that is too deep itself.
    fn depth_inside<E: Error>(&self) -> Result<usize, E> {
        self.depth.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let depth = self.depth_inside()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Seed { depth, longest: self.longest })? {
            list.push(item);
        }
        *self.longest = list.len().max(*self.longest);
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let depth = self.depth_inside()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom("a key is there twice"));
            }
            let value = entries.next_value_seed(Seed { depth, longest: self.longest })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(text: &str) -> String {
        read(text.as_bytes(), 3).unwrap_err().to_string()
    }

    #[test]
    fn a_value_reads_in_one_way_or_not_at_all() {
        let read = read(br#" {"b": [1, -2, 0.5, "\u00e9"], "a": {"b": null, "c": [true]}} "#, 3).unwrap();
        assert_eq!(read.value.to_string(), r#"{"a":{"b":null,"c":[true]},"b":[1,-2,0.5,"é"]}"#);
        assert_eq!(read.longest, 4);
        assert_eq!(refusal(r#"{"a": 1, "a": 1}"#), "no JSON at line 1, column 12: a key is there twice");
        assert_eq!(refusal(r#"{"a": 1, "\u0061": 1}"#), "no JSON at line 1, column 17: a key is there twice");
        assert_eq!(refusal("1 2"), "no JSON at line 1, column 3: trailing characters");
        assert_eq!(refusal("{\n1}"), "no JSON at line 2, column 1: key must be a string");
        assert_eq!(refusal(""), "no JSON at line 1, column 0: EOF while parsing a value");
        assert_eq!(refusal("1e999"), "no JSON at line 1, column 5: number out of range");
        assert!(super::read(b"[[[0]]]", 3).is_ok());
        assert!(refusal("[[[[]]]]").ends_with("nested too deeply"));
        assert!(refusal("[[[{}]]]").ends_with("nested too deeply"));
        assert!(super::read(&[b'['; 100_000], 64).is_err());
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_others_read(bytes in "[\\[\\]{}:,\"a-c0-2 .e-]{0,24}") {
            if let Ok(read) = read(bytes.as_bytes(), 100) {
                prop_assert_eq!(read.value, serde_json::from_str::<Value>(&bytes).unwrap());
            }
        }
    }
}
