//! Many items in one body. SPEC §9.13.

use super::{Item, KIND_BYTES_MAX};
use std::collections::BTreeMap;

/// Stands for no kind: what follows is a whole item, byte for byte.
const WHOLE: u8 = u8::MAX;
/// Kinds one body names, at most.
const KINDS_MAX: usize = 32;
const PREFIX_BYTES: usize = 3;

/// Items, each after the number of its kind and its length: a directory has few kinds and many items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// The kinds, by number.
    pub kinds: Vec<String>,
    /// The items.
    pub body: Vec<u8>,
}

/// Puts items into one body.
pub fn pack<'a>(items: impl IntoIterator<Item = &'a Vec<u8>>) -> Packed {
    let mut packed = Packed::default();
    let mut numbers: BTreeMap<String, u8> = BTreeMap::new();
    for bytes in items {
        // Only what is made anew byte for byte may be taken apart: a later version may have put something in.
        let item = Item::parse(bytes).ok().filter(|item| item.to_bytes() == *bytes);
        let number = item.as_ref().and_then(|item| {
            let next = u8::try_from(numbers.len()).ok().filter(|_| numbers.len() < KINDS_MAX);
            let number = numbers.get(&item.kind).copied().or(next)?;
            numbers.entry(item.kind.clone()).or_insert_with(|| {
                packed.kinds.push(item.kind.clone());
                number
            });
            Some(number)
        });
        let (number, bytes) = match (&item, number) {
            (Some(item), Some(number)) => (number, item.body.as_slice()),
            _ => (WHOLE, bytes.as_slice()),
        };
        // Items are at most 62 KiB, by the limit of their kind.
        if let Ok(length) = u16::try_from(bytes.len()) {
            packed.body.push(number);
            packed.body.extend_from_slice(&length.to_be_bytes());
            packed.body.extend_from_slice(bytes);
        }
    }
    packed
}

/// The reverse of [`pack`]; stops at the first thing that is none.
pub fn unpack<'a>(kinds: &'a [String], mut body: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
    std::iter::from_fn(move || {
        let (prefix, rest) = body.split_first_chunk::<PREFIX_BYTES>()?;
        let length = usize::from(u16::from_be_bytes([prefix[1], prefix[2]]));
        let (bytes, rest) = rest.split_at_checked(length)?;
        body = rest;
        if prefix[0] == WHOLE {
            return Some(bytes.to_vec());
        }
        let kind = kinds.get(usize::from(prefix[0]))?;
        (kind.len() <= KIND_BYTES_MAX).then(|| Item::new(kind, bytes).to_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_items_come_out_as_they_went_in() {
        let of = |kind: &str, bytes: usize| Item::new(kind, &vec![2; bytes]).to_bytes();
        let items = vec![
            of("act", 60 * 1024),
            of("node-record", 1),
            vec![],
            vec![1],
            of("act", 0),
            of("node-record", 300),
        ];
        let packed = pack(&items);
        assert_eq!(packed.kinds, ["act", "node-record"]);
        assert_eq!(unpack(&packed.kinds, &packed.body).collect::<Vec<_>>(), items);
        let cut = &packed.body[..packed.body.len() - 1];
        assert_eq!(unpack(&packed.kinds, cut).count(), 5, "a cut item is none");
        assert_eq!(unpack(&packed.kinds[..1], &packed.body).count(), 1, "a kind nobody named ends it");
        let records: Vec<_> = (0..1_000).map(|_| of("node-record", 300)).collect();
        assert_eq!(pack(&records).body.len(), 1_000 * (300 + PREFIX_BYTES));
    }

    #[test]
    fn more_kinds_than_have_numbers_travel_whole() {
        let items: Vec<_> = (0..50).map(|n| Item::new(&"x".repeat(n % 32 + 1), &[]).to_bytes()).collect();
        let many: Vec<_> = ('a'..='z')
            .flat_map(|a| ('a'..='b').map(move |b| Item::new(&format!("{a}{b}"), &[7]).to_bytes()))
            .collect();
        for items in [items, many] {
            let packed = pack(&items);
            assert!(packed.kinds.len() <= KINDS_MAX);
            assert_eq!(unpack(&packed.kinds, &packed.body).collect::<Vec<_>>(), items);
        }
    }
}
