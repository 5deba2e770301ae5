//! Time as a value. The shell reads the clocks; everything below is told.

use serde::{Deserialize, Serialize};

/// A moment, read from both clocks at once.
///
/// Timers use `monotonic_ms`, which never jumps; validity uses `wall_ms`, which others can compare with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Milliseconds since an arbitrary start; only differences mean something.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub wall_ms: u64,
}

impl Timestamp {
    /// Whether something stamped `wall_ms` by another clock may be taken as not from the future.
    pub fn allows(&self, wall_ms: u64) -> bool {
        wall_ms <= self.wall_ms.saturating_add(crate::limits::CLOCK_SKEW_MS_MAX)
    }
}
