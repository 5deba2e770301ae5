//! Scenarios as files: `scenarios/*.toml`. Times are in seconds of virtual time.

use serde::Deserialize;

/// What happens to a network, and what must hold in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// Nodes, all founders of one federation: 2 to 64.
    pub nodes: usize,
    /// Links of each, about.
    pub links: usize,
    /// Packets lost, in thousandths.
    #[serde(default)]
    pub loss_permille: u32,
    /// Somebody publishes a record every so often, until the last fault is over.
    #[serde(default)]
    pub publish_every_s: Option<u64>,
    /// What goes wrong.
    #[serde(default)]
    pub fault: Vec<Fault>,
    /// How long faults last at the most; then progress must follow.
    pub run_s: u64,
    /// Within this time of the end of faults all nodes have the same records and take each other for alive.
    pub settle_s: u64,
    /// A node that crashed is down at all others within this time.
    #[serde(default)]
    pub down_within_s: Option<u64>,
    /// Nobody who is up and reachable is ever taken for down.
    #[serde(default)]
    pub nobody_wronged: bool,
}

/// Something that goes wrong.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum Fault {
    /// The first nodes and the others do not reach each other.
    Partition {
        /// From when.
        from_s: u64,
        /// Until when.
        until_s: u64,
        /// How many are on one side.
        first: usize,
    },
    /// A node hears nothing from half of the others.
    HalfCut {
        /// From when.
        from_s: u64,
        /// Until when.
        until_s: u64,
        /// Which.
        node: usize,
    },
    /// A node loses its process, and what was not synced, and starts again.
    Crash {
        /// When.
        at_s: u64,
        /// When it is back.
        until_s: u64,
        /// Which.
        node: usize,
    },
    /// A node stops on purpose and starts again.
    Stop {
        /// When.
        at_s: u64,
        /// When it is back.
        until_s: u64,
        /// Which.
        node: usize,
    },
    /// Random nodes crash and come back.
    Churn {
        /// From when.
        from_s: u64,
        /// Until when.
        until_s: u64,
        /// Time between two.
        every_s: u64,
        /// How long each is away.
        away_s: u64,
    },
    /// A node gets to its inputs late.
    Slow {
        /// From when.
        from_s: u64,
        /// Until when.
        until_s: u64,
        /// Which.
        node: usize,
        /// Up to so many milliseconds.
        lag_ms: u64,
    },
    /// A node's wall clock is wrong.
    Skew {
        /// Which.
        node: usize,
        /// Milliseconds ahead; behind where negative.
        ahead_ms: i64,
    },
    /// A member that does not keep to the rules.
    Byzantine {
        /// From when.
        from_s: u64,
        /// Until when.
        until_s: u64,
        /// Which.
        node: usize,
        /// What it does.
        how: Misdeed,
    },
}

/// What a member that does not keep to the rules does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Misdeed {
    /// Publishes a hundred valid records a second.
    Flood,
    /// Forwards nothing and says in catch-up that it has nothing.
    Withhold,
    /// Publishes different records under one number.
    Equivocate,
    /// Sends old messages of others again, and altered ones.
    Replay,
    /// Publishes records from the future.
    Future,
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let nodes = scenario.nodes;
        if !(2..=64).contains(&nodes) {
            return Err(format!("`nodes` is {nodes}: 2 to 64 founders make a federation"));
        }
        let named = |fault: &Fault| match fault {
            Fault::HalfCut { node, .. }
            | Fault::Crash { node, .. }
            | Fault::Stop { node, .. }
            | Fault::Slow { node, .. }
            | Fault::Skew { node, .. }
            | Fault::Byzantine { node, .. } => Some(*node),
            Fault::Partition { .. } | Fault::Churn { .. } => None,
        };
        match scenario.fault.iter().filter_map(named).find(|node| *node >= nodes) {
            Some(node) => Err(format!("a fault names node {node} of {nodes}")),
            None => Ok(scenario),
        }
    }

    /// Nodes that break rules: what they hold is not looked at.
    pub fn byzantine(&self) -> impl Iterator<Item = usize> {
        self.fault.iter().filter_map(|fault| match fault {
            Fault::Byzantine { node, .. } => Some(*node),
            _ => None,
        })
    }
}
