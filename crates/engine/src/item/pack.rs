//! Many items in one body. SPEC §9.13.

use super::{ACT, Item, KEY_LOG, KIND_BYTES_MAX, is_record};
use kos_directory::{Claim, reconcile::Name};
use kos_governance::act::Act;
use kos_protocol::{
    cbor,
    id::{FederationId, sha256},
    key_log::KeyEvent,
    limits::ITEM_BYTES_MAX,
    object::{Scope, Unverified},
};
use serde_bytes::ByteBuf;
use std::borrow::Cow;

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

/// An item in one of the two forms it has in a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Of this kind, with this body.
    Of(&'a str, Cow<'a, [u8]>),
    /// Byte for byte: a later version may have put something in.
    Whole(&'a [u8]),
}

impl<'a> Piece<'a> {
    /// An item as it travels alone. Only what is made anew byte for byte is taken apart.
    fn of(bytes: &'a [u8], read: Option<&'a Item>) -> Self {
        match read.filter(|item| item.to_bytes() == bytes) {
            Some(item) => Self::Of(&item.kind, Cow::Borrowed(&item.body)),
            None => Self::Whole(bytes),
        }
    }

    /// The name it has among those of [`crate::Federation::set`], as far as it can be read; of key logs and of items of
    /// unknown kinds too.
    pub fn name(&self, federation: &FederationId) -> Option<Name> {
        let read;
        let (kind, body): (&str, &[u8]) = match self {
            Self::Of(kind, body) => (kind, body),
            Self::Whole(bytes) => {
                read = Item::parse(bytes).ok()?;
                (&read.kind, &read.body)
            }
        };
        match kind {
            ACT => {
                let act = Unverified::<Act>::parse(body, Scope::Federation(*federation)).ok()?;
                Some(*act.id().as_bytes())
            }
            KEY_LOG => {
                let list: Vec<ByteBuf> = cbor::decode_canonical(body, ITEM_BYTES_MAX).ok()?;
                name_of_key_log(&list)
            }
            _ if is_record(kind) => Some(*Claim::parse(*federation, kind, body).ok()?.id().as_bytes()),
            _ => Some(sha256(&self.to_bytes())),
        }
    }

    /// The item as it travels alone.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Of(kind, body) => Item::new(kind, body).to_bytes(),
            Self::Whole(bytes) => bytes.to_vec(),
        }
    }
}

impl Packed {
    /// Adds an item, if it has less than 64 KiB, as all have by the limit of their kind.
    pub fn push(&mut self, piece: &Piece<'_>) {
        let whole;
        let (number, bytes) = match piece {
            Piece::Whole(bytes) => (WHOLE, *bytes),
            Piece::Of(kind, body) => match self.number(kind) {
                Some(number) => (number, &**body),
                None => {
                    whole = piece.to_bytes();
                    (WHOLE, whole.as_slice())
                }
            },
        };
        if let Ok(length) = u16::try_from(bytes.len()) {
            self.body.push(number);
            self.body.extend_from_slice(&length.to_be_bytes());
            self.body.extend_from_slice(bytes);
        }
    }

    fn number(&mut self, kind: &str) -> Option<u8> {
        let place = self.kinds.iter().position(|named| named == kind).or_else(|| {
            (self.kinds.len() < KINDS_MAX).then(|| {
                self.kinds.push(kind.to_owned());
                self.kinds.len() - 1
            })
        })?;
        u8::try_from(place).ok()
    }
}

/// The name of a key log: the id of its last event.
pub(crate) fn name_of_key_log(list: &[ByteBuf]) -> Option<Name> {
    let event = Unverified::<KeyEvent>::parse(list.last()?, Scope::Global).ok()?;
    Some(*event.id().as_bytes())
}

/// Puts items into one body.
pub fn pack<'a>(items: impl IntoIterator<Item = &'a Vec<u8>>) -> Packed {
    let mut packed = Packed::default();
    for bytes in items {
        packed.push(&Piece::of(bytes, Item::parse(bytes).ok().as_ref()));
    }
    packed
}

/// The reverse of [`pack`]; stops at the first thing that is none.
pub fn unpack<'a>(kinds: &'a [String], mut body: &'a [u8]) -> impl Iterator<Item = Piece<'a>> {
    std::iter::from_fn(move || {
        let (prefix, rest) = body.split_first_chunk::<PREFIX_BYTES>()?;
        let length = usize::from(u16::from_be_bytes([prefix[1], prefix[2]]));
        let (bytes, rest) = rest.split_at_checked(length)?;
        body = rest;
        if prefix[0] == WHOLE {
            return Some(Piece::Whole(bytes));
        }
        let kind = kinds.get(usize::from(prefix[0]))?;
        (kind.len() <= KIND_BYTES_MAX).then_some(Piece::Of(kind, Cow::Borrowed(bytes)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(packed: &Packed) -> Vec<Vec<u8>> {
        unpack(&packed.kinds, &packed.body).map(|piece| piece.to_bytes()).collect()
    }

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
        assert_eq!(unpacked(&packed), items);
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
            assert_eq!(unpacked(&packed), items);
        }
    }
}
