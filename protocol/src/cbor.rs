//! DAG-CBOR: one encoding for one value, so that a hash names a meaning. SPEC §2.

use crate::limits::CBOR_DEPTH_MAX;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, SeqAccess, Visitor},
};
use std::{fmt, marker::PhantomData};

/// Why bytes are not a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than its kind allows; nothing was decoded.
    #[error("{size_bytes} bytes, limit {limit_bytes}")]
    TooLarge {
        /// What arrived.
        size_bytes: usize,
        /// What its kind allows.
        limit_bytes: usize,
    },
    /// Not CBOR, or not of this shape.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Decodes, but is not the one deterministic encoding of its value.
    #[error("not deterministically encoded")]
    NotCanonical,
    /// Holds a float or a tag, or nests deeper than [`CBOR_DEPTH_MAX`].
    #[error("holds a float or a tag, or nests too deeply")]
    Forbidden,
}

/// Encodes a value of ours.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    struct Value<'a, T: ?Sized>(&'a T);
    impl<T: Serialize + ?Sized> Serialize for Value<'_, T> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize(serializer)
        }
    }
    serde_ipld_dagcbor::to_vec(&Value(value)).expect("our message types hold nothing DAG-CBOR cannot express")
}

/// Decodes a message. Unknown fields are ignored.
///
/// # Errors
/// [`DecodeError::TooLarge`] above `limit_bytes`, [`DecodeError::NotCanonical`] and [`DecodeError::Forbidden`] for
/// forms KLP does not have, [`DecodeError::Malformed`] otherwise.
pub fn decode_message<'a, T: Deserialize<'a>>(bytes: &'a [u8], limit_bytes: usize) -> Result<T, DecodeError> {
    check_size(bytes, limit_bytes)?;
    check_form(bytes)?;
    decode_again(bytes)
}

/// Reads something else out of bytes that [`decode_message`] has read before: their form is known to be right.
///
/// # Errors
/// [`DecodeError::Malformed`].
pub fn decode_again<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    serde_ipld_dagcbor::from_slice(bytes).map_err(|error| malformed(&error.to_string()))
}

/// Decodes a value that is hashed or signed: its bytes are the one encoding of it, unknown fields included.
///
/// All that KLP decodes has that one form, so this is [`decode_message`] under the name that says what its caller
/// relies on. Encoding the value again and comparing would prove the same at two hundred times the memory; tests do that.
///
/// # Errors
/// As [`decode_message`].
pub fn decode_canonical<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    limit_bytes: usize,
) -> Result<T, DecodeError> {
    decode_message(bytes, limit_bytes)
}

/// Reads a list of at most `MAX` items, for `#[serde(deserialize_with = …)]`.
///
/// An empty byte string is one byte on the wire and a `Vec` in memory: without a bound in items, a message of a few
/// megabytes could take a hundred.
///
/// # Errors
/// That of the decoder, also for a longer list.
pub fn bounded_list<'de, const MAX: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct Bounded<const MAX: usize, T>(PhantomData<T>);
    impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for Bounded<MAX, T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} items")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::invalid_length(MAX + 1, &self));
                }
                list.push(item);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(Bounded::<MAX, T>(PhantomData))
}

fn check_size(bytes: &[u8], limit_bytes: usize) -> Result<(), DecodeError> {
    if bytes.len() > limit_bytes {
        return Err(DecodeError::TooLarge { size_bytes: bytes.len(), limit_bytes });
    }
    Ok(())
}

fn malformed(why: &str) -> DecodeError {
    DecodeError::Malformed(why.to_owned())
}

/// Checks that `bytes` are one item in the form of SPEC §2, without allocating.
///
/// It comes before the decoder because that one believes the lengths it reads: for each list it sets aside what the
/// length announces, up to 1 MiB, so 700 bytes of nested lists that are not there would cost 128 MiB.
fn check_form(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut rest = Form(bytes);
    rest.item(CBOR_DEPTH_MAX)?;
    if rest.0.is_empty() { Ok(()) } else { Err(malformed("bytes after the end")) }
}

/// What has not been checked yet.
struct Form<'a>(&'a [u8]);

impl<'a> Form<'a> {
    /// One item that may nest `depth` levels of lists and maps; the recursion is no deeper than that.
    fn item(&mut self, depth: usize) -> Result<(), DecodeError> {
        match self.head()? {
            (0 | 1, _) => Ok(()),
            (2, length) => self.take(length).map(drop),
            (3, length) => self.text(length).map(drop),
            (4, length) => {
                let depth = depth.checked_sub(1).ok_or(DecodeError::Forbidden)?;
                // However great the length is, it ends with the bytes: every item takes at least one.
                (0..length).try_for_each(|_| self.item(depth))
            }
            (5, length) => self.entries(length, depth.checked_sub(1).ok_or(DecodeError::Forbidden)?),
            (6, _) => Err(DecodeError::Forbidden),
            (_, 20..=22) => Ok(()),
            _ => Err(malformed("a simple value other than false, true and null")),
        }
    }

    /// The entries of a map: keys are text, each above the one before, shorter ones first.
    fn entries(&mut self, length: u64, depth: usize) -> Result<(), DecodeError> {
        let mut last: Option<&str> = None;
        for _ in 0..length {
            let (3, length) = self.head()? else { return Err(malformed("a key that is not text")) };
            let key = self.text(length)?;
            if last.is_some_and(|last| (last.len(), last) >= (key.len(), key)) {
                return Err(DecodeError::NotCanonical);
            }
            last = Some(key);
            self.item(depth)?;
        }
        Ok(())
    }

    /// Major type and argument of the next item; the argument in its shortest form.
    fn head(&mut self) -> Result<(u8, u64), DecodeError> {
        let first = self.take(1)?[0];
        let (major, short) = (first >> 5, first & 0x1f);
        let width = match short {
            0..24 => return Ok((major, u64::from(short))),
            24 if major == 7 => return Err(malformed("a simple value other than false, true and null")),
            25..=27 if major == 7 => return Err(DecodeError::Forbidden),
            24..=27 => 1 << (short - 24),
            31 => return Err(DecodeError::NotCanonical),
            _ => return Err(malformed("a reserved length")),
        };
        let argument = self.take(width)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let is_shortest = if width == 1 { argument >= 24 } else { argument >> (width * 4) != 0 };
        if is_shortest { Ok((major, argument)) } else { Err(DecodeError::NotCanonical) }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], DecodeError> {
        let taken = usize::try_from(length).ok().and_then(|length| self.0.split_at_checked(length));
        let (taken, rest) = taken.ok_or_else(|| malformed("cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn text(&mut self, length: u64) -> Result<&'a str, DecodeError> {
        str::from_utf8(self.take(length)?).map_err(|_| malformed("text that is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipld_core::ipld::Ipld;
    use proptest::prelude::*;

    #[test]
    fn only_the_deterministic_encoding_is_accepted() {
        let decode = |bytes: &[u8]| decode_canonical::<Ipld>(bytes, 100);
        assert!(decode(&[0xa2, 0x61, 0x61, 0x01, 0x61, 0x62, 0x02]).is_ok());
        assert!(decode(&[0xa2, 0x61, 0x62, 0x01, 0x61, 0x61, 0x02]).is_err(), "key order");
        assert!(decode(&[0x18, 0x01]).is_err(), "a longer integer than needed");
        assert!(decode(&[0xa2, 0x61, 0x61, 0x01, 0x61, 0x61, 0x01]).is_err(), "a key twice");
        assert!(decode(&[0x9f, 0x01, 0xff]).is_err(), "indefinite length");
        assert!(decode(&[0xf9, 0x3c, 0x00]).is_err(), "a short float");
        assert_eq!(decode(&[0xfb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]), Err(DecodeError::Forbidden), "a float");
        assert!(decode(&[0x01, 0x01]).is_err(), "trailing bytes");
        assert_eq!(decode(&[0xd8, 0x2a, 0x41, 0x00]), Err(DecodeError::Forbidden), "a tag");
        assert_eq!(decode(&[0xf7]), Err(malformed("a simple value other than false, true and null")));
        assert!(decode(&[0xf8, 0x16]).is_err(), "null in two bytes");
        assert!(decode(&[0xa1, 0x01, 0x01]).is_err(), "a key that is not text");
        assert!(decode(&[0x61, 0xff]).is_err(), "not UTF-8");
        assert!(matches!(decode(&[0; 101]), Err(DecodeError::TooLarge { .. })));
    }

    #[test]
    fn each_number_has_one_form() {
        for value in [0, 23, 24, 255, 256, 65_535, 65_536, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            let bytes = encode(&value);
            assert_eq!(decode_canonical::<u64>(&bytes, 9), Ok(value));
            let widths = [(0x18, 1), (0x19, 2), (0x1a, 4), (0x1b, 8)];
            for (head, width) in widths.into_iter().filter(|(_, width)| width + 1 > bytes.len()) {
                let mut longer = vec![head];
                longer.extend_from_slice(&value.to_be_bytes()[8 - width..]);
                assert_eq!(
                    decode_message::<u64>(&longer, 9),
                    Err(DecodeError::NotCanonical),
                    "{longer:02x?}"
                );
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused_without_recursion() {
        let deep = vec![0x81; 60_000];
        assert!(decode_canonical::<Ipld>(&deep, 65_536).is_err());
        let mut nested = vec![0x81; CBOR_DEPTH_MAX + 1];
        nested.push(0x01);
        assert_eq!(decode_canonical::<Ipld>(&nested, 65_536), Err(DecodeError::Forbidden));
    }

    #[test]
    fn a_length_that_is_not_there_allocates_nothing() {
        let claims_4_gib = [0x5a, 0xff, 0xff, 0xff, 0xff, 0x00];
        assert!(decode_canonical::<Ipld>(&claims_4_gib, 100).is_err());
        let claims_many_items = [0x9a, 0xff, 0xff, 0xff, 0xff, 0x00];
        assert!(decode_canonical::<Ipld>(&claims_many_items, 100).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(value) = decode_canonical::<Ipld>(&bytes, 512) {
                prop_assert_eq!(encode(&value), bytes);
            }
        }
    }
}
