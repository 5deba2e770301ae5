//! How long bytes travel.
//!
//! Round trips between hosts of the internet: the King data set as used for Vivaldi (Dabek, Cox, Kaashoek, Morris,
//! SIGCOMM 2004), 1,740 hosts, median 159 ms, mean 180 ms. A log-normal distribution with these two is drawn for each
//! pair, once. What a pair has at one time or another varies by a tenth. An access line of a home adds the time its
//! uplink takes for the bytes.

use crate::random::{Random, mix};

/// Median round trip, in microseconds.
const MEDIAN_US: f64 = 159_000.0;
/// Of a log-normal distribution the mean is the median times e^(σ²/2): 180/159.
const SIGMA: f64 = 0.498;
/// Shortest one-way time there is.
const LEAST_US: f64 = 500.0;
/// Longest round trip: what is above is a host that is not there.
const MOST_US: f64 = 1_500_000.0;

/// What the network between nodes is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Latency {
    /// The internet, as measured; other medians for a sweep are multiples of it, in percent.
    Internet {
        /// 100 is as measured.
        percent: u32,
    },
    /// Always the same, in microseconds: one machine.
    Fixed(u64),
}

impl Latency {
    /// How long a message of `bytes` is under way from one node to another, in microseconds.
    pub fn one_way_us(&self, seed: u64, from: usize, to: usize, random: &mut Random) -> u64 {
        let percent = match self {
            Self::Fixed(us) => return *us,
            Self::Internet { percent } => f64::from(*percent) / 100.0,
        };
        let (low, high) = (from.min(to) as u64, from.max(to) as u64);
        let mut pair = Random::seeded(mix(seed ^ mix(low << 32 | high)));
        let round_trip_us = (MEDIAN_US * (SIGMA * pair.normal()).exp()).min(MOST_US) * percent;
        let jitter = 0.95 + 0.1 * random.unit();
        (round_trip_us / 2.0 * jitter).max(LEAST_US) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_have_the_median_and_mean_of_the_data_set() {
        let mut random = Random::seeded(1);
        let latency = Latency::Internet { percent: 100 };
        let mut round_trips: Vec<u64> =
            (0..20_000).map(|n| 2 * latency.one_way_us(7, n, n + 1, &mut random)).collect();
        round_trips.sort_unstable();
        let mean = round_trips.iter().sum::<u64>() / round_trips.len() as u64;
        assert!(round_trips[10_000].abs_diff(159_000) < 4_000, "median {}", round_trips[10_000]);
        assert!(mean.abs_diff(180_000) < 5_000, "mean {mean}");
        let there = latency.one_way_us(7, 3, 9, &mut random);
        let back = latency.one_way_us(7, 9, 3, &mut random);
        assert!(there.abs_diff(back) < there / 5, "one pair, both ways");
    }
}
