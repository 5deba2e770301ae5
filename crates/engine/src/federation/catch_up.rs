//! What there is, named and ordered, so that two nodes can find out what they do not share. SPEC §9.14.

use super::Federation;
use crate::item::{ACT, Item, KEY_LOG, Packed, Piece, name_of_key_log};
use kos_directory::{
    Record,
    reconcile::{Name, Set},
};
use kos_protocol::{id::ObjectId, key_log::KeyLog};

/// Where a key log that acts have not recorded stands in the order: behind all acts,
const LOGS: u64 = 1 << 32;
/// then items of unknown kinds, then records by the time they were made.
const UNKNOWN: u64 = LOGS + 1;
/// A record of the year 1970 stands no further ahead.
const RECORDS: u64 = UNKNOWN + 1;

impl Federation {
    /// Names everything held: the id of each act and record, of the last event of each key log that acts have not
    /// recorded, and the hash of each unknown item. Not hashes of bytes, because one object can be signed twice in
    /// different bytes. In an order in which it can be taken: acts before the records of those they admit. Link records
    /// are left out: they stay near.
    pub fn set(&mut self) -> Set {
        let version = self.changes + self.directory.version();
        if let Some((of, set)) = &self.set
            && *of == version
        {
            return set.clone();
        }
        let acts =
            self.acts.in_order().into_iter().map(|(act, _)| (act.seq.min(LOGS - 1), *act.id().as_bytes()));
        let logs = self.acts.unrecorded().filter_map(|(log, _)| Some((LOGS, last_event(log)?)));
        let unknown = self.unknown.keys().map(|hash| (UNKNOWN, *hash));
        let records = self.directory.records().filter(|record| record.kind().is_global());
        let records = records.map(|record| (record.time_ms().max(RECORDS), *record.id().as_bytes()));
        let set = Set::new(acts.chain(logs).chain(unknown).chain(records).collect());
        self.set = Some((version, set.clone()));
        set
    }

    /// Items by name, those that are here, in an order in which they can be taken, and how many of the names that went
    /// through: at least one, and until the body has `bytes_max`; one item may begin before. Ask again for the rest.
    pub fn items(&self, names: &[Name], bytes_max: usize) -> (Packed, usize) {
        let mut found: Vec<_> = names.iter().filter_map(|name| self.find(name)).collect();
        found.sort_by_key(|(order, _)| *order);
        let missing = names.len() - found.len();
        let (packed, count) = pack_up_to(found.into_iter().map(|(_, held)| Some(held)), bytes_max);
        (packed, missing + count)
    }

    /// As [`Federation::items`], of names in the order of [`Federation::set`].
    pub fn items_in_order<'a>(
        &self,
        names: impl IntoIterator<Item = &'a Name>,
        bytes_max: usize,
    ) -> (Packed, usize) {
        pack_up_to(names.into_iter().map(|name| Some(self.find(name)?.1)), bytes_max)
    }

    /// Whether something of that name is here.
    pub fn has(&self, name: &Name) -> bool {
        self.find(name).is_some()
    }

    /// An item by name, with its place in the order.
    fn find(&self, name: &Name) -> Option<(u64, Held<'_>)> {
        let id = ObjectId::from_bytes(*name);
        if let Some(record) = self.directory.get_by_id(&id) {
            return Some((record.time_ms().max(RECORDS), Held::Record(record)));
        }
        if let Some((act, _)) = self.acts.get(&id) {
            return Some((act.seq.min(LOGS - 1), Held::Act(act.bytes())));
        }
        if let Some(bytes) = self.unknown.get(name) {
            return Some((UNKNOWN, Held::Unknown(bytes)));
        }
        let (log, _) = self.acts.unrecorded().find(|(log, _)| last_event(log) == Some(*name))?;
        Some((LOGS, Held::KeyLog(log)))
    }
}

/// Something that has a name.
enum Held<'a> {
    Record(&'a Record),
    Act(&'a [u8]),
    Unknown(&'a [u8]),
    KeyLog(&'a KeyLog),
}

impl<'a> Held<'a> {
    fn piece(&self) -> Piece<'a> {
        match self {
            Self::Record(record) => Piece::Of(record.kind().as_str(), record.bytes().into()),
            Self::Act(bytes) => Piece::Of(ACT, (*bytes).into()),
            // What a later version put in stays as it came.
            Self::Unknown(bytes) => Piece::Whole(bytes),
            Self::KeyLog(log) => Piece::Of(KEY_LOG, Item::key_log(log).body.into_vec().into()),
        }
    }
}

/// Puts in what is there, at least one of them and until the body has `bytes_max`; and how many were gone through.
fn pack_up_to<'a>(held: impl Iterator<Item = Option<Held<'a>>>, bytes_max: usize) -> (Packed, usize) {
    let (mut packed, mut count) = (Packed::default(), 0);
    for held in held {
        count += 1;
        if let Some(held) = held {
            packed.push(&held.piece());
        }
        if packed.body.len() >= bytes_max {
            break;
        }
    }
    (packed, count)
}

fn last_event(log: &KeyLog) -> Option<Name> {
    name_of_key_log(&log.to_list())
}
