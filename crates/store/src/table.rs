//! Typed tables: what a row's key and value are, and how they become bytes.

use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

/// A named table of rows from `K` to `V`, declared once as a constant.
///
/// `C` says how values become bytes. [`Plain`] stores bytes, text and integers as they are; for anything else the
/// caller brings a [`Codec`] of its own.
/// ```
/// use kos_store::Table;
/// const COUNTERS: Table<str, u64> = Table::new("counters");
/// const EVENTS: Table<([u8; 32], u64), [u8]> = Table::new("events");
/// ```
pub struct Table<K: ?Sized, V: ?Sized, C = Plain> {
    name: &'static str,
    types: PhantomData<Types<K, V, C>>,
}

/// Function types, so that a table is `Copy` and shared between threads whatever its keys and values are.
type Types<K, V, C> = (fn(&K), fn(&V), fn() -> C);

impl<K: ?Sized, V: ?Sized, C> Clone for Table<K, V, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: ?Sized, V: ?Sized, C> Copy for Table<K, V, C> {}

impl<K: ?Sized, V: ?Sized, C> Table<K, V, C> {
    /// A table of this name. Names beginning with `_` belong to this package.
    ///
    /// # Panics
    /// On an empty name or one that begins with `_`; in a constant that is a compile error.
    pub const fn new(name: &'static str) -> Self {
        assert!(
            !name.is_empty() && name.as_bytes()[0] != b'_',
            "a table name must not be empty or begin with `_`"
        );
        Self { name, types: PhantomData }
    }

    /// The name given in [`Table::new`].
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// Bytes that are not what a table's type says, or a value that its codec cannot write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// A key whose encoded bytes sort as the key itself does, and which can be followed by another key in a tuple.
///
/// Implemented for unsigned integers, byte arrays, byte strings, text, and tuples of two or three keys.
pub trait Key {
    /// What decoding gives: `Self`, or its owned form for unsized keys.
    type Owned;

    /// Appends the encoded key to `out`.
    fn encode(&self, out: &mut Vec<u8>);

    /// Takes one encoded key off the front of `input`.
    ///
    /// # Errors
    /// [`Malformed`]: the bytes were not written by [`Key::encode`]; the table is damaged or of another type.
    fn decode(input: &mut &[u8]) -> Result<Self::Owned, Malformed>;
}

macro_rules! integer_keys {
    ($($int:ty),*) => {$(
        impl Key for $int {
            type Owned = Self;

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
                Ok(Self::from_be_bytes(take(input)?))
            }
        }
    )*};
}
integer_keys!(u8, u16, u32, u64);

impl<const N: usize> Key for [u8; N] {
    type Owned = Self;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
        take(input)
    }
}

/// Ends a byte string within a key. A zero inside the string is written `00 01`, which sorts after the end `00 00`
/// and before every longer string, so order and boundaries both survive.
const STRING_END: [u8; 2] = [0, 0];
const STRING_ZERO: [u8; 2] = [0, 1];

impl Key for [u8] {
    type Owned = Vec<u8>;

    fn encode(&self, out: &mut Vec<u8>) {
        for &byte in self {
            if byte == 0 {
                out.extend_from_slice(&STRING_ZERO);
            } else {
                out.push(byte);
            }
        }
        out.extend_from_slice(&STRING_END);
    }

    fn decode(input: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut string = Vec::new();
        loop {
            match take::<1>(input)? {
                [0] => match take::<1>(input)? {
                    [0] => return Ok(string),
                    [1] => string.push(0),
                    [other] => return Err(Malformed(format!("0x00 followed by {other:#04x} in a key"))),
                },
                [byte] => string.push(byte),
            }
        }
    }
}

impl Key for Vec<u8> {
    type Owned = Self;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
        <[u8]>::decode(input)
    }
}

impl Key for str {
    type Owned = String;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_bytes().encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<String, Malformed> {
        String::from_utf8(<[u8]>::decode(input)?)
            .map_err(|error| Malformed(format!("key is not text: {error}")))
    }
}

impl Key for String {
    type Owned = Self;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
        str::decode(input)
    }
}

impl<A: Key, B: Key> Key for (A, B) {
    type Owned = (A::Owned, B::Owned);

    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<Self::Owned, Malformed> {
        Ok((A::decode(input)?, B::decode(input)?))
    }
}

impl<A: Key, B: Key, C: Key> Key for (A, B, C) {
    type Owned = (A::Owned, B::Owned, C::Owned);

    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
        self.2.encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<Self::Owned, Malformed> {
        Ok((A::decode(input)?, B::decode(input)?, C::decode(input)?))
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (head, tail) = input
        .split_first_chunk()
        .ok_or_else(|| Malformed(format!("{} bytes where {N} are due", input.len())))?;
    *input = tail;
    Ok(*head)
}

/// How values of type `V` become bytes and back.
///
/// A package implements it for a marker type of its own, often for every type its serializer knows:
/// `impl<V: Serialize + DeserializeOwned> Codec<V> for DagCbor`.
pub trait Codec<V: ?Sized> {
    /// What decoding gives: `V`, or its owned form for unsized values.
    type Owned;

    /// Appends the encoded value to `out`.
    ///
    /// # Errors
    /// [`Malformed`]: the value has no encoding. The write that asked for it is refused whole.
    fn encode(value: &V, out: &mut Vec<u8>) -> Result<(), Malformed>;

    /// The value of these bytes, all of them.
    ///
    /// # Errors
    /// [`Malformed`]: the bytes are not such a value; the row is damaged or was written by another type.
    fn decode(bytes: &[u8]) -> Result<Self::Owned, Malformed>;
}

/// Bytes and text as they are, integers big-endian, `()` as nothing.
pub struct Plain;

impl Codec<[u8]> for Plain {
    type Owned = Vec<u8>;

    fn encode(value: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.extend_from_slice(value);
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        Ok(bytes.to_vec())
    }
}

impl Codec<str> for Plain {
    type Owned = String;

    fn encode(value: &str, out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<String, Malformed> {
        String::from_utf8(bytes.to_vec()).map_err(|error| Malformed(format!("value is not text: {error}")))
    }
}

impl Codec<u64> for Plain {
    type Owned = u64;

    fn encode(value: &u64, out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.extend_from_slice(&value.to_be_bytes());
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<u64, Malformed> {
        <Self as Codec<[u8; 8]>>::decode(bytes).map(u64::from_be_bytes)
    }
}

impl<const N: usize> Codec<[u8; N]> for Plain {
    type Owned = [u8; N];

    fn encode(value: &[u8; N], out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.extend_from_slice(value);
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<[u8; N], Malformed> {
        bytes.try_into().map_err(|_| Malformed(format!("value of {} bytes where {N} are due", bytes.len())))
    }
}

impl Codec<()> for Plain {
    type Owned = ();

    fn encode(_: &(), _: &mut Vec<u8>) -> Result<(), Malformed> {
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<(), Malformed> {
        <Self as Codec<[u8; 0]>>::decode(bytes).map(|_| ())
    }
}

/// A row decoded from a table of `K` to `V`.
pub(crate) type Row<K, V, C> = (<K as Key>::Owned, <C as Codec<V>>::Owned);

pub(crate) fn key_bytes<K: Key + ?Sized>(key: &K) -> Vec<u8> {
    let mut bytes = Vec::new();
    key.encode(&mut bytes);
    bytes
}

pub(crate) fn decode_row<K, V, C>(key: &[u8], value: &[u8]) -> Result<Row<K, V, C>, Malformed>
where
    K: Key + ?Sized,
    V: ?Sized,
    C: Codec<V>,
{
    let mut rest = key;
    let decoded = K::decode(&mut rest)?;
    if !rest.is_empty() {
        return Err(Malformed(format!("{} bytes left over after the key", rest.len())));
    }
    Ok((decoded, C::decode(value)?))
}

/// Bounds of a scan, over encoded keys.
pub(crate) type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The encoded bounds of `range`, or nothing when no key can lie in it (an engine may panic on reversed bounds).
pub(crate) fn key_range<K: Key + ?Sized>(range: &impl RangeBounds<K>) -> Option<KeyRange> {
    let bounds = (range.start_bound().map(key_bytes), range.end_bound().map(key_bytes));
    let empty = match (&bounds.0, &bounds.1) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => {
            start >= end
        }
    };
    (!empty).then_some(bounds)
}

/// The bounds of every key that begins with the encoded key `first`.
pub(crate) fn prefix_range<A: Key + ?Sized>(first: &A) -> KeyRange {
    let start = key_bytes(first);
    let mut end = start.clone();
    while end.last() == Some(&u8::MAX) {
        end.pop();
    }
    match end.last_mut() {
        Some(last) => {
            *last += 1;
            (Bound::Included(start), Bound::Excluded(end))
        }
        None => (Bound::Included(start), Bound::Unbounded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Triple = (u64, Vec<u8>, String);

    proptest! {
        #[test]
        fn encoded_keys_sort_as_the_keys_do_and_decode_to_them(a: Triple, b: Triple, same_head: bool) {
            let b = if same_head { (a.0, b.1, b.2) } else { b };
            prop_assert_eq!(key_bytes(&a).cmp(&key_bytes(&b)), a.cmp(&b));
            let bytes = key_bytes(&a);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(Triple::decode(&mut rest).unwrap(), a);
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn strings_with_zeros_keep_their_order(a in prop::collection::vec(0u8..3, 0..6), b in prop::collection::vec(0u8..3, 0..6)) {
            prop_assert_eq!(key_bytes(&(a.clone(), 255u8)).cmp(&key_bytes(&(b.clone(), 0u8))), (a, 255u8).cmp(&(b, 0u8)));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>) {
            let _ = decode_row::<(u32, String), str, Plain>(&bytes, &bytes);
            let _ = decode_row::<([u8; 4], [u8; 2]), u64, Plain>(&bytes, &bytes);
        }

        #[test]
        fn a_prefix_holds_its_keys_and_no_others(first: Vec<u8>, other: Vec<u8>, second: u16) {
            let range = prefix_range(&first);
            prop_assert!(range.contains(&key_bytes(&(first.clone(), second))));
            prop_assert_eq!(range.contains(&key_bytes(&(other.clone(), second))), first == other);
        }
    }

    #[test]
    fn a_prefix_of_all_ones_has_no_upper_bound() {
        assert_eq!(prefix_range(&[255u8; 2]), (Bound::Included(vec![255, 255]), Bound::Unbounded));
    }

    #[test]
    fn reversed_bounds_are_an_empty_range() {
        assert_eq!(key_range::<u64>(&(5..5)), None);
        assert_eq!(key_range::<u64>(&(Bound::Included(6), Bound::Included(5))), None);
        assert!(key_range::<u64>(&(5..=5)).is_some());
    }

    #[test]
    fn left_over_bytes_are_malformed() {
        assert!(decode_row::<u8, (), Plain>(&[1, 2], &[]).is_err());
        assert!(decode_row::<u8, (), Plain>(&[1], &[0]).is_err());
        assert!(decode_row::<u8, (), Plain>(&[1], &[]).is_ok());
    }
}
