//! How often a route answers: a bucket of tokens for each (RFC 6585 §4 for what is said when it is empty).

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What a route allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests at once after a pause.
    pub burst: u32,
    /// Time in which one more becomes allowed.
    pub every: Duration,
}

/// A route's bucket. Local programs share it: whoever has the token is the node's user.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// When the bucket will be full again. One that is full has this in the past.
    full_at: Mutex<Instant>,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: Mutex::new(now) }
    }

    /// Takes one request's worth.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*full_at).max(now) + self.rate.every;
        let whole = self.rate.every * self.rate.burst;
        match (next - now).checked_sub(whole) {
            None | Some(Duration::ZERO) => {
                *full_at = next;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_at_a_time() {
        let (start, every) = (Instant::now(), Duration::from_millis(100));
        let bucket = Bucket::new(Rate { burst: 3, every }, start);
        for _ in 0..3 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        assert_eq!(bucket.take(start), Err(every));
        assert_eq!(bucket.take(start + every / 2), Err(every / 2));
        assert_eq!(bucket.take(start + every), Ok(()));
        assert_eq!(bucket.take(start + every), Err(every));
        // A long pause fills it, and no further than that.
        let later = start + every * 100;
        assert_eq!((0..10).filter(|_| bucket.take(later).is_ok()).count(), 3);
    }
}
