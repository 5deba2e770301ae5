//! Bodies that are kept whole in memory until they are complete: few at a time from one member.
//!
//! A member may have 200 streams open. Were each of them a `kos.push` of 8 MiB, one member could take 1.6 GiB. Those
//! that wait are not read, so the transport holds their sender back.

use crate::state::lock;
use kos_protocol::{
    key::PublicKey,
    limits::{BULK_PER_MEMBER, BULK_WAITING_MAX},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who has how many of them.
#[derive(Default)]
pub(crate) struct Bulk(Mutex<BTreeMap<PublicKey, Arc<Semaphore>>>);

impl Bulk {
    /// Waits for one of the member's places; none when too many wait already.
    pub async fn take(&self, key: PublicKey) -> Option<OwnedSemaphorePermit> {
        let places = self.places(key);
        // The map holds it, and everybody who has or waits for a place, us included.
        if Arc::strong_count(&places) > 1 + BULK_PER_MEMBER + BULK_WAITING_MAX {
            return None;
        }
        places.acquire_owned().await.ok()
    }

    fn places(&self, key: PublicKey) -> Arc<Semaphore> {
        let mut members = lock(&self.0);
        // Whoever has or waits for a place holds the semaphore.
        members.retain(|_, places| Arc::strong_count(places) > 1);
        members.entry(key).or_insert_with(|| Arc::new(Semaphore::new(BULK_PER_MEMBER))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use kos_protocol::key::SecretKey;

    #[tokio::test]
    async fn a_member_waits_for_its_own_and_for_nobody_elses() {
        let bulk = Bulk::default();
        let key = |n| SecretKey::from_seed(&[n; 32]).public();
        let first = bulk.take(key(1)).await;
        let _second = bulk.take(key(1)).await;
        let mut third = Box::pin(bulk.take(key(1)));
        assert!(third.as_mut().now_or_never().is_none());
        assert!(bulk.take(key(2)).now_or_never().flatten().is_some());
        drop(first);
        assert!(third.now_or_never().flatten().is_some());
        assert_eq!(lock(&bulk.0).len(), 2);
        drop(bulk.places(key(3)));
        assert_eq!(bulk.places(key(4)).available_permits(), BULK_PER_MEMBER);
    }

    #[tokio::test]
    async fn more_than_may_wait_are_told_to_come_back() {
        let bulk = Bulk::default();
        let key = SecretKey::from_seed(&[1; 32]).public();
        let mut takers: Vec<_> =
            (0..BULK_PER_MEMBER + BULK_WAITING_MAX).map(|_| Box::pin(bulk.take(key))).collect();
        let taken: Vec<_> = takers.iter_mut().filter_map(|taker| taker.as_mut().now_or_never()).collect();
        assert_eq!(taken.len(), BULK_PER_MEMBER);
        assert!(bulk.take(key).now_or_never().is_some_and(|place| place.is_none()));
    }
}
