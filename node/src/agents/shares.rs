//! A room that members share: whoever fills it, others still find some.

use super::lock;
use kos_protocol::id::MemberId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// How a room is shared, in whatever it is counted in: calls, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// All there is.
    pub all: usize,
    /// Of this, one member's.
    pub per_member: usize,
    /// The last of it is for members that have little.
    pub reserved: usize,
    /// How much a member may have and still get some of what is reserved.
    pub few: usize,
}

/// What is taken, by member.
pub(super) struct Shares {
    bounds: Bounds,
    taken: Mutex<BTreeMap<MemberId, usize>>,
}

/// What one member has taken at once; given back when dropped.
pub(super) struct Share {
    shares: Arc<Shares>,
    member: MemberId,
    count: usize,
}

impl Shares {
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, taken: Mutex::default() })
    }

    /// A share that holds nothing yet.
    pub fn open(self: &Arc<Self>, member: MemberId) -> Share {
        Share { shares: self.clone(), member, count: 0 }
    }

    /// A share of `count`; none where the member may have no more, or all is taken.
    pub fn take(self: &Arc<Self>, member: MemberId, count: usize) -> Option<Share> {
        let mut share = self.open(member);
        share.grow(count).then_some(share)
    }
}

impl Share {
    /// Takes `count` more; false, and nothing is taken, where that is too much.
    pub fn grow(&mut self, count: usize) -> bool {
        let Bounds { all, per_member, reserved, few } = self.shares.bounds;
        let mut taken = lock(&self.shares.taken);
        let own = taken.get(&self.member).copied().unwrap_or_default();
        let free = all.saturating_sub(taken.values().sum());
        let most = if free > reserved { per_member } else { few };
        if count > free || own + count > most {
            return false;
        }
        taken.insert(self.member, own + count);
        self.count += count;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = lock(&self.shares.taken);
        match taken.get_mut(&self.member) {
            Some(own) if *own > self.count => *own -= self.count,
            _ => drop(taken.remove(&self.member)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: Bounds = Bounds { all: 256, per_member: 64, reserved: 64, few: 4 };

    fn member(n: u8) -> MemberId {
        MemberId::from_bytes([n; 32])
    }

    #[test]
    fn whoever_fills_a_room_others_still_find_some() {
        let shares = Shares::new(CALLS);
        let take = |n: u8, count: usize| -> Vec<Share> {
            (0..count).map_while(|_| shares.take(member(n), 1)).collect()
        };
        let hogs: Vec<_> = (1..=3).map(|n| take(n, CALLS.all)).collect();
        assert_eq!(hogs.iter().map(Vec::len).collect::<Vec<_>>(), [CALLS.per_member; 3]);
        let late: Vec<_> = (4..=19).map(|n| take(n, CALLS.all)).collect();
        assert!(late.iter().all(|held| held.len() == CALLS.few));
        assert!(take(20, 1).is_empty(), "full");
        drop(hogs);
        assert_eq!(take(20, CALLS.all).len(), CALLS.per_member);
        drop(late);
        assert!(lock(&shares.taken).is_empty(), "members without calls are forgotten");
    }

    #[test]
    fn a_share_grows_as_far_as_its_member_may_and_is_given_back_whole() {
        let shares = Shares::new(CALLS);
        let (mut first, mut second) = (shares.open(member(1)), shares.open(member(1)));
        assert!(
            first.grow(40) && second.grow(24) && !second.grow(1),
            "together they have what one member may"
        );
        drop(first);
        assert!(second.grow(40) && !second.grow(1));
        drop(second);
        assert!(lock(&shares.taken).is_empty());
    }
}
