//! Links, as the nodes at their ends measure them. Design section 5: routes.

use super::{Entry, Header, check};
use crate::merge::MergeError;
use kos_protocol::{
    id::MemberId,
    limits::{LINKS_IN_RECORD_MAX, RECORD_BYTES_MAX},
    object::Object,
};
use serde::{Deserialize, Serialize};

/// A change of a measurement below this share is noise, in percent.
const CHANGE_PERCENT: u32 = 25;
/// Shortest time between two link records of one node, in milliseconds.
pub const LINK_RECORD_EVERY_MS: u64 = 10 * 60 * 1000;

/// A node's direct links, one record for each member. Travels `LINK_RECORD_HOPS_MAX` hops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// Whose links.
    pub author: MemberId,
    /// As in [`Header`].
    pub key_seq: u64,
    /// As in [`Header`].
    pub seq: u64,
    /// As in [`Header`].
    pub time_ms: u64,
    /// As in [`Header`].
    pub expires_ms: u64,
    /// At most `LINKS_IN_RECORD_MAX`, in the order of their peers.
    pub links: Vec<MeasuredLink>,
}

/// One end's measurement of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredLink {
    /// The other end.
    pub peer: MemberId,
    /// Smoothed round trip, in milliseconds.
    pub rtt_ms: u32,
    /// Round trips that were lost, in thousandths.
    pub loss_permille: u16,
}

impl Object for LinkRecord {
    const DOMAIN: &'static str = "kos/link-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

impl Entry for LinkRecord {
    const KIND: &'static str = "link-record";
    fn header(&self) -> Header {
        let Self { author, key_seq, seq, time_ms, expires_ms, .. } = *self;
        Header { author, key_seq, slot: String::new(), seq, time_ms, expires_ms }
    }
}

impl LinkRecord {
    pub(super) fn check(&self) -> Result<(), MergeError> {
        let in_order = self.links.windows(2).all(|pair| pair[0].peer < pair[1].peer);
        let of_others = self.links.iter().all(|link| link.peer != self.author && link.loss_permille <= 1000);
        check(self.links.len() <= LINKS_IN_RECORD_MAX && in_order && of_others, "links")
    }

    /// Whether `now` is worth telling to those who know `told`: a link came or went, or a measurement moved by more than
    /// a quarter.
    pub fn is_news(told: &[MeasuredLink], now: &[MeasuredLink]) -> bool {
        let moved = |old: u32, new: u32| old.abs_diff(new) * 100 > old.max(1) * CHANGE_PERCENT;
        let differs = |(old, new): (&MeasuredLink, &MeasuredLink)| {
            old.peer != new.peer
                || moved(old.rtt_ms, new.rtt_ms)
                || moved(u32::from(old.loss_permille) + 10, u32::from(new.loss_permille) + 10)
        };
        told.len() != now.len() || told.iter().zip(now).any(differs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(n: u8, rtt_ms: u32, loss_permille: u16) -> MeasuredLink {
        MeasuredLink { peer: MemberId::from_bytes([n; 32]), rtt_ms, loss_permille }
    }

    #[test]
    fn only_a_change_beyond_a_quarter_is_news() {
        let told = [link(1, 100, 0), link(2, 8, 20)];
        assert!(!LinkRecord::is_news(&told, &told));
        assert!(!LinkRecord::is_news(&told, &[link(1, 125, 0), link(2, 10, 20)]));
        assert!(LinkRecord::is_news(&told, &[link(1, 126, 0), link(2, 8, 20)]));
        assert!(LinkRecord::is_news(&told, &[link(1, 100, 0), link(2, 8, 40)]));
        assert!(LinkRecord::is_news(&told, &[link(1, 100, 0)]), "a link went");
        assert!(LinkRecord::is_news(&told, &[link(1, 100, 0), link(3, 8, 20)]), "another peer");
    }
}
