//! What each author has here: its share of the room, its rate, and what of it was refused.

use crate::merge::MergeError;
use kos_protocol::{
    id::MemberId,
    limits::{RECORD_EVERY_MS_PER_AUTHOR, RECORDS_BURST_PER_AUTHOR},
    time::Timestamp,
};
use std::collections::BTreeMap;

/// One author.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Records held.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
    /// New records taken since the start.
    pub taken: u64,
    /// Records refused since the start, by the label of the reason: a closed set.
    pub refused: BTreeMap<&'static str, u64>,
    bucket: Bucket,
}

/// A token bucket: what a burst has used up comes back one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    used: u32,
    since_ms: u64,
}

impl Bucket {
    fn at(self, now_ms: u64) -> Self {
        let back = now_ms.saturating_sub(self.since_ms) / RECORD_EVERY_MS_PER_AUTHOR;
        match self.used.saturating_sub(u32::try_from(back).unwrap_or(u32::MAX)) {
            0 => Self { used: 0, since_ms: now_ms },
            used => Self { used, since_ms: self.since_ms + back * RECORD_EVERY_MS_PER_AUTHOR },
        }
    }

    fn is_empty(self, now_ms: u64) -> bool {
        self.at(now_ms).used >= RECORDS_BURST_PER_AUTHOR
    }

    fn spend(&mut self, now_ms: u64) {
        *self = self.at(now_ms);
        self.used = self.used.saturating_add(1);
    }
}

/// All authors. As many as there are members: nobody else's records are looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    by_author: BTreeMap<MemberId, Account>,
    bytes: usize,
}

impl Accounts {
    /// Accounts that together hold so many bytes.
    #[cfg(test)]
    pub(crate) fn holding(bytes: usize) -> Self {
        Self { by_author: BTreeMap::new(), bytes }
    }

    pub(crate) fn held(&self, author: &MemberId) -> (usize, usize) {
        self.by_author.get(author).map_or((0, 0), |account| (account.records, account.bytes))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn authors(&self) -> usize {
        self.by_author.values().filter(|account| account.records > 0).count()
    }

    /// Whether an author's rate has room for another record.
    pub(crate) fn may_spend(&self, author: &MemberId, now: Timestamp) -> bool {
        self.by_author.get(author).is_none_or(|account| !account.bucket.is_empty(now.monotonic_ms))
    }

    /// Takes one from an author's rate.
    pub(crate) fn spend(&mut self, author: MemberId, now: Timestamp) {
        self.by_author.entry(author).or_default().bucket.spend(now.monotonic_ms);
    }

    pub(crate) fn add(&mut self, author: MemberId, bytes: usize) {
        let account = self.by_author.entry(author).or_default();
        account.records += 1;
        account.bytes += bytes;
        account.taken += 1;
        self.bytes += bytes;
    }

    pub(crate) fn subtract(&mut self, author: &MemberId, bytes: usize) {
        if let Some(account) = self.by_author.get_mut(author) {
            account.records -= 1;
            account.bytes -= bytes;
            self.bytes -= bytes;
        }
    }

    /// Counts a refusal against its author, where it is certain enough who that is: a made-up author has no account.
    pub(crate) fn blame(&mut self, error: &MergeError) {
        if let Some(author) = error.author() {
            *self.by_author.entry(author).or_default().refused.entry(error.label()).or_default() += 1;
        }
    }

    /// Forgets the others.
    pub(crate) fn retain_authors_with_records_or(&mut self, is_member: impl Fn(&MemberId) -> bool) {
        self.by_author.retain(|author, account| account.records > 0 || is_member(author));
    }

    /// Every author that has a record, or had one refused, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&MemberId, &Account)> {
        self.by_author.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_and_then_one_a_second() {
        let mut bucket = Bucket::default();
        let mut take = |now_ms| {
            let has_room = !bucket.is_empty(now_ms);
            if has_room {
                bucket.spend(now_ms);
            }
            has_room
        };
        let burst = RECORDS_BURST_PER_AUTHOR as usize;
        assert_eq!((0..2 * burst).filter(|_| take(50)).count(), burst);
        assert!(!take(999));
        assert!(take(1_050) && !take(1_051));
        assert!(take(2_051) && !take(2_999), "what is left of a second counts on");
        assert!(take(3_050));
        assert_eq!((0..2 * burst).filter(|_| take(u64::MAX)).count(), burst);
    }
}
