//! What ties the log lines of one request together, on every node it passes: W3C Trace Context, level 1.
//!
//! A head carries it as the text of `traceparent`. It authorises nothing: it is a mark in logs, and a peer may choose it.

use std::{fmt, str::FromStr};

/// A request's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    parent: u64,
}

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct InvalidTrace;

impl TraceContext {
    /// A new trace out of random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| (n << 8) | u128::from(*byte));
        // Zero means none to W3C.
        Self { trace: number(&seed[..16]).max(1), parent: (number(&seed[16..24]) as u64).max(1) }
    }

    /// What all its log lines carry: 32 digits of hex.
    pub fn id(&self) -> impl fmt::Display {
        TraceId(self.trace)
    }
}

struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for TraceContext {
    /// Sampled, always: a node does not choose what it logs by request.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace, self.parent)
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTrace;

    /// Takes later versions too, as W3C asks: what they append is left out.
    fn from_str(text: &str) -> Result<Self, InvalidTrace> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let is_hex = part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            is_hex.then(|| u128::from_str_radix(part, 16).ok()).flatten()
        };
        let mut read = || Some((hex(2)?, hex(32)?, hex(16)?, hex(2)?));
        let (version, trace, parent, _flags) = read().ok_or(InvalidTrace)?;
        let is_whole = parts.next().is_none() || version > 0;
        if version == 0xff || trace == 0 || parent == 0 || !is_whole {
            return Err(InvalidTrace);
        }
        Ok(Self { trace, parent: parent as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_read_back() {
        let trace = TraceContext::from_seed(&[0xab; 32]);
        let text = trace.to_string();
        assert_eq!(text, format!("00-{}-{}-01", "ab".repeat(16), "ab".repeat(8)));
        assert_eq!(text.parse(), Ok(trace));
        assert_eq!(trace.id().to_string(), "ab".repeat(16));
        assert!(TraceContext::from_seed(&[0; 32]).to_string().parse::<TraceContext>().is_ok());
    }

    #[test]
    fn what_w3c_refuses_is_refused() {
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        for good in [
            format!("00-{trace}-{parent}-01"),
            format!("00-{trace}-{parent}-00"),
            format!("01-{trace}-{parent}-01-later"),
        ] {
            assert_eq!(good.parse::<TraceContext>().unwrap().id().to_string(), trace, "{good}");
        }
        for bad in [
            String::new(),
            trace.to_owned(),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{trace}-{parent}-01-more"),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-+{}-{parent}-01", &trace[1..]),
            format!("00-{trace}-{parent}\n-01"),
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(InvalidTrace), "{bad}");
        }
    }
}
