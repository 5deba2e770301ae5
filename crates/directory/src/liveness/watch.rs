//! How late is late: learned for each subject, in integers. RFC 6298.

use super::HEARTBEAT_MS;

/// Heartbeats that are missed before one is late, in quarters: two, and a little for the way.
const MISSED_QUARTERS: u64 = 9;
/// A subject cannot make us wait longer for it.
const PERIOD_MS_MAX: u64 = 5 * HEARTBEAT_MS;
const TIMEOUT_MS_MAX: u64 = 30_000;

/// The heartbeats of one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    last_ms: u64,
    period_ms: u64,
    smoothed_ms: u64,
    deviation_ms: u64,
}

impl Watch {
    /// After another heartbeat at `now_ms`, the next due in `period_ms`.
    pub fn heard(before: Option<Self>, now_ms: u64, period_ms: u64) -> Self {
        let period_ms = period_ms.clamp(HEARTBEAT_MS / 4, PERIOD_MS_MAX);
        let Some(before) = before.filter(|before| before.period_ms == period_ms) else {
            return Self { last_ms: now_ms, period_ms, smoothed_ms: period_ms, deviation_ms: period_ms / 2 };
        };
        let measured_ms = now_ms.saturating_sub(before.last_ms);
        let error_ms = measured_ms.abs_diff(before.smoothed_ms);
        Self {
            last_ms: now_ms,
            period_ms,
            smoothed_ms: (7 * before.smoothed_ms + measured_ms) / 8,
            deviation_ms: (3 * before.deviation_ms + error_ms) / 4,
        }
    }

    /// How long after the last one the next one is late.
    pub fn timeout_ms(&self) -> u64 {
        let learned_ms = self.smoothed_ms + 4 * self.deviation_ms;
        (self.period_ms * MISSED_QUARTERS / 4).max(learned_ms).min(TIMEOUT_MS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_subject_is_late_soon_and_an_irregular_one_later() {
        let mut watch = Watch::heard(None, 0, 2_000);
        assert_eq!(watch.timeout_ms(), 6_000, "nothing is known yet");
        for n in 1..50 {
            watch = Watch::heard(Some(watch), n * 2_000, 2_000);
        }
        assert_eq!(watch.timeout_ms(), 4_500);
        let mut now_ms = 98_000;
        for n in 0..50 {
            now_ms += if n % 2 == 0 { 200 } else { 3_800 };
            watch = Watch::heard(Some(watch), now_ms, 2_000);
        }
        assert!((8_000..12_000).contains(&watch.timeout_ms()), "{watch:?}");
        let slow = Watch::heard(Some(watch), now_ms + 100_000_000, 2_000);
        assert_eq!(slow.timeout_ms(), TIMEOUT_MS_MAX);
        assert_eq!(Watch::heard(Some(watch), 1, u64::MAX).period_ms, PERIOD_MS_MAX);
    }
}
