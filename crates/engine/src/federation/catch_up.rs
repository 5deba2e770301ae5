//! What there is, named and ordered, so that two nodes can find out what they do not share. SPEC §9.14.

use super::Federation;
use crate::item::{ACT, Item};
use kos_directory::reconcile::{Name, Set};
use kos_protocol::{
    id::ObjectId,
    key_log::{KeyEvent, KeyLog},
    object::{Scope, Unverified},
};

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

    /// Items by name, those that are here, in an order in which they can be taken, up to `bytes_max` (at least one). Ask
    /// again for the rest.
    pub fn items<'a>(&'a self, names: impl IntoIterator<Item = &'a Name>, bytes_max: usize) -> Vec<Vec<u8>> {
        let mut found: Vec<(u64, Vec<u8>)> = names.into_iter().filter_map(|name| self.item(name)).collect();
        found.sort_by_key(|(order, _)| *order);
        let mut room = Some(bytes_max);
        let fits = |(place, item): &(usize, Vec<u8>)| {
            room = room.and_then(|room| room.checked_sub(item.len()));
            room.is_some() || *place == 0
        };
        found.into_iter().map(|(_, item)| item).enumerate().take_while(fits).map(|(_, item)| item).collect()
    }

    /// Whether something of that name is here.
    pub fn has(&self, name: &Name) -> bool {
        let id = ObjectId::from_bytes(*name);
        self.directory.get_by_id(&id).is_some() || self.item(name).is_some()
    }

    /// An item by name, with its place in the order.
    fn item(&self, name: &Name) -> Option<(u64, Vec<u8>)> {
        let id = ObjectId::from_bytes(*name);
        if let Some(record) = self.directory.get_by_id(&id) {
            let item = Item::new(record.kind().as_str(), record.bytes()).to_bytes();
            return Some((record.time_ms().max(RECORDS), item));
        }
        if let Some((act, _)) = self.acts.get(&id) {
            return Some((act.seq.min(LOGS - 1), Item::new(ACT, act.bytes()).to_bytes()));
        }
        // What a later version put in stays as it came.
        if let Some(bytes) = self.unknown.get(name) {
            return Some((UNKNOWN, bytes.clone()));
        }
        let (log, _) = self.acts.unrecorded().find(|(log, _)| last_event(log) == Some(*name))?;
        Some((LOGS, Item::key_log(log).to_bytes()))
    }
}

fn last_event(log: &KeyLog) -> Option<Name> {
    let last = log.to_list().pop()?;
    let event = Unverified::<KeyEvent>::parse(&last, Scope::Global).ok()?;
    Some(*event.id().as_bytes())
}
