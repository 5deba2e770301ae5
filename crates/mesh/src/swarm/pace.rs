//! Token buckets and the count of flows opened.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// A bucket of tokens that fills by the minute. It begins full.
#[derive(Clone, Debug)]
pub struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A bucket of `burst` tokens that gains `per_minute` of them a minute.
    pub fn new(burst: u32, per_minute: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        Self { tokens: burst, burst, per_second: f64::from(per_minute.max(1)) / 60.0, filled_at: now }
    }

    /// Takes `tokens` (at most the burst) if they are there.
    ///
    /// # Errors
    /// How long until they will be.
    pub fn take(&mut self, tokens: u32, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        let wanted = f64::from(tokens).min(self.burst);
        if self.tokens >= wanted {
            self.tokens -= wanted;
            return Ok(());
        }
        Err(Duration::from_secs_f64(((wanted - self.tokens) / self.per_second).max(0.001)))
    }

    /// Whether the bucket is as good as new, so that forgetting it loses nothing.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= self.burst
    }

    fn fill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.filled_at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.filled_at = now;
    }
}

/// One bucket for each key, forgetting full ones, at most `keys_max` of them.
#[derive(Debug)]
pub struct Buckets<K> {
    buckets: BTreeMap<K, Bucket>,
    burst: u32,
    per_minute: u32,
    keys_max: usize,
}

impl<K: Ord + Clone> Buckets<K> {
    /// See [`Bucket::new`].
    pub fn new(burst: u32, per_minute: u32, keys_max: usize) -> Self {
        Self { buckets: BTreeMap::new(), burst, per_minute, keys_max }
    }

    /// Takes one token of the key's bucket; `false` when it is empty, or when too many keys are busy.
    pub fn take(&mut self, key: K, now: Instant) -> bool {
        if !self.buckets.contains_key(&key) && self.buckets.len() >= self.keys_max {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            if self.buckets.len() >= self.keys_max {
                return false;
            }
        }
        let bucket = self.buckets.entry(key).or_insert_with(|| Bucket::new(self.burst, self.per_minute, now));
        bucket.take(1, now).is_ok()
    }
}

/// How many flows were opened in the last minute.
#[derive(Debug, Default)]
pub struct Flows {
    seconds: VecDeque<(u64, u32)>,
}

impl Flows {
    /// Counts `flows` opened at second `now_s`.
    pub fn add(&mut self, flows: u32, now_s: u64) {
        match self.seconds.back_mut() {
            Some((second, count)) if *second == now_s => *count = count.saturating_add(flows),
            _ => self.seconds.push_back((now_s, flows)),
        }
        self.forget(now_s);
    }

    /// Flows opened in the minute before `now_s`.
    pub fn last_minute(&mut self, now_s: u64) -> u32 {
        self.forget(now_s);
        self.seconds.iter().map(|(_, count)| count).sum()
    }

    fn forget(&mut self, now_s: u64) {
        while self.seconds.front().is_some_and(|(second, _)| second + 60 <= now_s) {
            self.seconds.pop_front();
        }
    }
}

/// A small generator for jitter, seeded by the system. Not for keys.
#[derive(Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A generator that begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// `around` ± a quarter.
    pub fn spread(&mut self, around: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = ((word ^ (word >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
        around.mul_f64(0.75 + share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(2, 60, start);
        assert_eq!(bucket.take(2, start), Ok(()));
        assert!(bucket.take(1, start).is_err());
        assert_eq!(bucket.take(1, start + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn too_many_busy_keys_are_refused_and_rested_ones_forgotten() {
        let start = Instant::now();
        let mut buckets = Buckets::new(1, 60, 2);
        assert!(buckets.take(1, start));
        assert!(buckets.take(2, start));
        assert!(!buckets.take(3, start));
        assert!(buckets.take(3, start + Duration::from_secs(2)));
    }

    #[test]
    fn flows_are_counted_for_a_minute() {
        let mut flows = Flows::default();
        flows.add(2, 0);
        flows.add(3, 30);
        assert_eq!(flows.last_minute(59), 5);
        assert_eq!(flows.last_minute(60), 3);
        assert_eq!(flows.last_minute(90), 0);
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let mut jitter = Jitter::new(7);
        for _ in 0..1_000 {
            let spread = jitter.spread(Duration::from_secs(100));
            assert!((75..=125).contains(&spread.as_secs()), "{spread:?}");
        }
    }
}
