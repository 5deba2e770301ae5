//! Logs: to standard error, as text or JSON, and into a ring that `kai logs tail` reads.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::broadcast;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Registry, fmt::MakeWriter, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// Lines kept for `kai logs tail`.
pub const LINES_MAX: usize = 1000;
/// Bytes kept for `kai logs tail`; older lines go first.
pub const BYTES_MAX: usize = 512 * 1024;
/// Longest line kept; a longer one is left out.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Lines a follower may be behind before it misses some.
const FOLLOW_LINES: usize = 256;

/// What libraries say at `info` is for their authors. Where a peer can make them say something, however loudly, they
/// say nothing: it could fill a disk. What it does is counted by reason.
const QUIET: [&str; 12] = [
    "libp2p=warn",
    "libp2p_gossipsub=off",
    "libp2p_identify=off",
    "libp2p_yamux=off",
    "quinn=warn",
    "hickory_proto=error",
    "netlink_proto=warn",
    "yamux=off",
    "multistream_select=warn",
    "hyper=warn",
    "igd_next=warn",
    "sled=info",
];

/// Reads log directives: a level, or `target=level` with commas between.
///
/// # Errors
/// What is wrong with them.
pub fn parse(directives: &str) -> Result<EnvFilter, String> {
    if directives.trim().is_empty() {
        return Err("log directives are empty".to_owned());
    }
    // A filter would take a word that is no level for a target, and then show everything of a module nobody has.
    for part in directives.split(',') {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
        if level.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "`{}` is not a level: off, error, warn, info, debug, trace",
                level.escape_default()
            ));
        }
    }
    let quiet = QUIET.iter().map(|directive| (*directive).to_owned());
    // What is said later and more precisely wins, so that a library can be listened to by name.
    let all: Vec<String> = quiet.chain([directives.to_owned()]).collect();
    EnvFilter::builder().parse(directives).map_err(|error| error.to_string())?;
    EnvFilter::builder().parse(all.join(",")).map_err(|error| error.to_string())
}

/// The last lines, one JSON object each.
#[derive(Clone, Debug)]
pub struct Ring {
    lines: Arc<Mutex<Lines>>,
    follow: broadcast::Sender<Arc<str>>,
}

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<Arc<str>>,
    bytes: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self { lines: Arc::default(), follow: broadcast::channel(FOLLOW_LINES).0 }
    }
}

impl Ring {
    /// The last `count` lines, oldest first, and those that follow, without a gap between.
    pub fn tail(&self, count: usize) -> (Vec<Arc<str>>, broadcast::Receiver<Arc<str>>) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = lines.lines.len().saturating_sub(count);
        (lines.lines.iter().skip(skip).cloned().collect(), self.follow.subscribe())
    }

    fn push(&self, line: &str) {
        if line.is_empty() || line.len() > LINE_BYTES_MAX {
            return;
        }
        let line: Arc<str> = Arc::from(line);
        let mut kept = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += line.len();
        kept.lines.push_back(line.clone());
        while kept.lines.len() > LINES_MAX || kept.bytes > BYTES_MAX {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.len();
        }
        // Nobody may be following; and under the lock, so that a tail and its followers see each line once.
        let _ = self.follow.send(line);
    }
}

/// Collects one event's line.
#[derive(Debug)]
pub struct RingWriter {
    ring: Ring,
    line: Vec<u8>,
}

impl Write for RingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for RingWriter {
    fn drop(&mut self) {
        if let Ok(line) = std::str::from_utf8(&self.line) {
            self.ring.push(line.trim_end());
        }
    }
}

impl<'a> MakeWriter<'a> for Ring {
    type Writer = RingWriter;
    fn make_writer(&'a self) -> RingWriter {
        RingWriter { ring: self.clone(), line: Vec::new() }
    }
}

/// The logs of this process.
#[derive(Clone, Debug)]
pub struct Logs {
    /// The last lines.
    pub ring: Ring,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Logs {
    /// Changes what is logged from now on; nothing where the process keeps another subscriber.
    ///
    /// # Errors
    /// What is wrong with the directives.
    pub fn set_level(&self, directives: &str) -> Result<(), String> {
        let filter = parse(directives)?;
        match self.filter.reload(filter) {
            Err(error) if !error.is_dropped() => Err(error.to_string()),
            _ => Ok(()),
        }
    }
}

/// How lines look on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Starts logging. A process that logs already keeps its subscriber, and gets a ring that stays empty.
///
/// # Errors
/// What is wrong with the directives.
pub fn start(directives: &str, style: Style) -> Result<Logs, String> {
    let (filter, handle) = reload::Layer::new(parse(directives)?);
    let ring = Ring::default();
    let kept = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_writer(ring.clone());
    let json = (style == Style::Json).then(|| {
        tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_writer(io::stderr)
    });
    let colour =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let text = (style == Style::Text).then(|| {
        tracing_subscriber::fmt::layer().with_target(false).with_ansi(colour).with_writer(io::stderr)
    });
    let _ = tracing_subscriber::registry().with(filter).with(kept).with(json).with(text).try_init();
    Ok(Logs { ring, filter: handle })
}

/// A kept line for a person: time, level, what happened, fields.
pub fn render(line: &str) -> String {
    use crate::text::clean;
    let Ok(serde_json::Value::Object(mut line)) = serde_json::from_str::<serde_json::Value>(line) else {
        return clean(line);
    };
    let mut take = |name: &str| match line.remove(name) {
        Some(serde_json::Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let (time, level, message) = (take("timestamp"), take("level"), take("message"));
    let time = time.get(..19).unwrap_or(&time).replace('T', " ");
    let mut text = format!("{time} {level:5} {}", clean(&message));
    let span = line.remove("span");
    line.remove("target");
    let fields =
        line.iter().chain(span.as_ref().and_then(serde_json::Value::as_object).into_iter().flatten());
    for (name, value) in fields.filter(|(name, _)| *name != "name") {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.push_str(&format!(" {}={}", clean(name), clean(&value)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_checked_before_they_count() {
        for good in ["info", "warn,kos_mesh=debug", "kos_node::api=trace"] {
            parse(good).unwrap();
        }
        for bad in ["", "loud", "kos_mesh=loud"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_ring_keeps_the_last_lines_within_its_bounds() {
        let ring = Ring::default();
        for number in 0..LINES_MAX + 10 {
            ring.push(&format!("line {number}"));
        }
        let (lines, _) = ring.tail(3);
        let end = LINES_MAX + 10;
        assert_eq!(
            lines.iter().map(|line| line.to_string()).collect::<Vec<_>>(),
            [format!("line {}", end - 3), format!("line {}", end - 2), format!("line {}", end - 1)]
        );
        assert_eq!(ring.tail(usize::MAX).0.len(), LINES_MAX);
        for _ in 0..100 {
            ring.push(&"x".repeat(LINE_BYTES_MAX));
        }
        assert!(ring.tail(usize::MAX).0.iter().map(|line| line.len()).sum::<usize>() <= BYTES_MAX);
        ring.push(&"x".repeat(LINE_BYTES_MAX + 1));
        assert_eq!(ring.tail(1).0[0].len(), LINE_BYTES_MAX);
    }

    #[test]
    fn a_follower_gets_each_line_once() {
        let ring = Ring::default();
        ring.push("before");
        let (lines, mut follow) = ring.tail(10);
        ring.push("after");
        assert_eq!(lines.len(), 1);
        assert_eq!(&*follow.try_recv().unwrap(), "after");
        assert!(follow.try_recv().is_err());
    }

    #[test]
    fn events_are_kept_with_the_ids_of_their_spans_and_read_well() {
        let ring = Ring::default();
        let kept = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_writer(ring.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(kept), || {
            let _span = tracing::info_span!("task", task_id = "t1", plan_id = "p1").entered();
            tracing::warn!(peer = "cellar\u{1b}[2J", "no answer");
        });
        let (lines, _) = ring.tail(1);
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((&line["level"], &line["span"]["task_id"]), (&"WARN".into(), &"t1".into()));
        let shown = render(&lines[0]);
        assert!(shown.ends_with("WARN  no answer peer=cellar\\u{1b}[2J plan_id=p1 task_id=t1"), "{shown}");
        assert_eq!(render("not json\u{7}"), "not json\\u{7}");
    }
}
