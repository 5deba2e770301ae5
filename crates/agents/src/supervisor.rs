//! Keeps agents running: starts, waits, starts again. Sans-IO: time and news go in, orders come out.

use kos_protocol::{id::AgentId, time::Timestamp};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Longest reason kept.
pub const REASON_BYTES_MAX: usize = 256;

/// How an agent that fails is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The wait after the first failure; each further one doubles it.
    pub backoff_first_ms: u64,
    /// The longest wait. An agent is never given up: what it needs may come back next week.
    pub backoff_most_ms: u64,
    /// An agent that ran this long had no reason to fail at once: the next wait is the first again.
    pub healthy_ms: u64,
    /// An agent that is not ready by then is halted and counts as failed.
    pub start_most_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { backoff_first_ms: 500, backoff_most_ms: 60_000, healthy_ms: 60_000, start_most_ms: 30_000 }
    }
}

/// Names one run of one agent; news of another run is old news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Run(u64);

/// What an agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not wanted. Next: `Starting`, when it is started.
    Stopped,
    /// Launched, not ready. Next: `Running`; `BackingOff` when it exits or takes too long; `Failed` when it never can.
    Starting,
    /// Takes calls. Next: `BackingOff` when it exits.
    Running,
    /// Waits to be launched again. Next: `Starting`.
    BackingOff,
    /// Cannot run as it is. Next: `Starting`, only when it is started again.
    Failed,
}

/// An agent's state, since when, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What it is doing.
    pub state: State,
    /// Since when, wall clock.
    pub since_ms: u64,
    /// What went wrong last; empty while nothing has since it was started.
    pub reason: String,
    /// How often it was launched again since it was started.
    pub restarts: u32,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// It shall run. One that runs is halted and launched anew: its manifest may have changed.
    Start(AgentId),
    /// It shall not run.
    Stop(AgentId),
    /// It is no more.
    Forget(AgentId),
    /// A run takes calls.
    Ready(AgentId, Run),
    /// A run can never succeed.
    Refused(AgentId, Run, String),
    /// A run ended, whatever way, without having been told to.
    Exited(AgentId, Run, String),
    /// [`Supervisor::next_deadline`] has come.
    DeadlineReached,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Launch it; report `Ready` and `Exited`, or `Refused`.
    Launch(AgentId, Run),
    /// End this run and what it is doing. No report is expected.
    Halt(AgentId, Run),
}

#[derive(Debug)]
struct Supervised {
    condition: Condition,
    run: Run,
    /// Failures without a healthy time in between.
    failures: u32,
    /// When the state began, monotonic.
    began_ms: u64,
    /// When something is due, monotonic.
    due_ms: Option<u64>,
}

/// The supervisor of a node's agents. Holds as many as its caller starts.
#[derive(Debug)]
pub struct Supervisor {
    config: Config,
    agents: BTreeMap<AgentId, Supervised>,
    outputs: VecDeque<Output>,
    runs: u64,
}

impl Supervisor {
    /// A supervisor without agents.
    pub fn new(config: Config) -> Self {
        Self { config, agents: BTreeMap::new(), outputs: VecDeque::new(), runs: 0 }
    }

    /// How an agent is.
    pub fn condition(&self, agent: &AgentId) -> Option<&Condition> {
        self.agents.get(agent).map(|supervised| &supervised.condition)
    }

    /// Takes in what happened. At most two outputs follow from each agent concerned.
    pub fn handle_input(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Start(agent) => self.start(now, agent),
            Input::Stop(agent) => self.stop(now, &agent),
            Input::Forget(agent) => {
                self.stop(now, &agent);
                self.agents.remove(&agent);
            }
            Input::Ready(agent, run) => {
                if let Some(supervised) = self.current(&agent, run)
                    && supervised.condition.state == State::Starting
                {
                    supervised.enter(now, State::Running, None);
                }
            }
            Input::Refused(agent, run, reason) => {
                if let Some(supervised) = self.current(&agent, run) {
                    supervised.condition.reason = bounded(reason);
                    supervised.enter(now, State::Failed, None);
                }
            }
            Input::Exited(agent, run, reason) => {
                let config = self.config;
                if let Some(supervised) = self.current(&agent, run) {
                    supervised.fail(now, config, reason);
                }
            }
            Input::DeadlineReached => self.expire(now),
        }
    }

    /// The next order, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to hand in [`Input::DeadlineReached`], monotonic milliseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.agents.values().filter_map(|supervised| supervised.due_ms).min()
    }

    /// The agent, if it is in this very run.
    fn current(&mut self, agent: &AgentId, run: Run) -> Option<&mut Supervised> {
        let alive = [State::Starting, State::Running];
        self.agents
            .get_mut(agent)
            .filter(|supervised| supervised.run == run && alive.contains(&supervised.condition.state))
    }

    fn start(&mut self, now: Timestamp, agent: AgentId) {
        self.stop(now, &agent);
        self.agents.insert(
            agent.clone(),
            Supervised {
                condition: Condition {
                    state: State::Starting,
                    since_ms: now.wall_ms,
                    reason: String::new(),
                    restarts: 0,
                },
                run: Run(0),
                failures: 0,
                began_ms: now.monotonic_ms,
                due_ms: None,
            },
        );
        self.launch(now, &agent);
    }

    fn launch(&mut self, now: Timestamp, agent: &AgentId) {
        self.runs += 1;
        let run = Run(self.runs);
        if let Some(supervised) = self.agents.get_mut(agent) {
            supervised.run = run;
            supervised.enter(now, State::Starting, Some(self.config.start_most_ms));
            self.outputs.push_back(Output::Launch(agent.clone(), run));
        }
    }

    fn stop(&mut self, now: Timestamp, agent: &AgentId) {
        let Some(supervised) = self.agents.get_mut(agent) else { return };
        if matches!(supervised.condition.state, State::Starting | State::Running) {
            self.outputs.push_back(Output::Halt(agent.clone(), supervised.run));
        }
        supervised.condition.reason.clear();
        supervised.enter(now, State::Stopped, None);
    }

    fn expire(&mut self, now: Timestamp) {
        let due: Vec<AgentId> = self
            .agents
            .iter()
            .filter(|(_, supervised)| supervised.due_ms.is_some_and(|due_ms| due_ms <= now.monotonic_ms))
            .map(|(agent, _)| agent.clone())
            .collect();
        for agent in due {
            let config = self.config;
            let Some(supervised) = self.agents.get_mut(&agent) else { continue };
            match supervised.condition.state {
                State::BackingOff => {
                    supervised.condition.restarts = supervised.condition.restarts.saturating_add(1);
                    self.launch(now, &agent);
                }
                State::Starting => {
                    self.outputs.push_back(Output::Halt(agent.clone(), supervised.run));
                    let reason = format!("not ready within {} ms", config.start_most_ms);
                    supervised.fail(now, config, reason);
                }
                // Nothing is due in the other states; a deadline there would come again for ever.
                State::Stopped | State::Running | State::Failed => supervised.due_ms = None,
            }
        }
    }
}

impl Supervised {
    fn enter(&mut self, now: Timestamp, state: State, due_in_ms: Option<u64>) {
        self.condition.state = state;
        self.condition.since_ms = now.wall_ms;
        self.began_ms = now.monotonic_ms;
        self.due_ms = due_in_ms.map(|ms| now.monotonic_ms.saturating_add(ms));
    }

    fn fail(&mut self, now: Timestamp, config: Config, reason: String) {
        let ran_ms = now.monotonic_ms.saturating_sub(self.began_ms);
        if self.condition.state == State::Running && ran_ms >= config.healthy_ms {
            self.failures = 0;
        }
        let doubled = config.backoff_first_ms.saturating_mul(1 << self.failures.min(32));
        self.failures = self.failures.saturating_add(1);
        self.condition.reason = bounded(reason);
        self.enter(now, State::BackingOff, Some(doubled.min(config.backoff_most_ms)));
    }
}

fn bounded(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: Config =
        Config { backoff_first_ms: 100, backoff_most_ms: 1_000, healthy_ms: 10_000, start_most_ms: 5_000 };

    fn at(ms: u64) -> Timestamp {
        Timestamp { monotonic_ms: ms, wall_ms: 1_000_000 + ms }
    }

    fn notes() -> AgentId {
        "kBridge:notes".parse().unwrap()
    }

    fn feed(supervisor: &mut Supervisor, ms: u64, input: Input) -> Vec<Output> {
        supervisor.handle_input(at(ms), input);
        std::iter::from_fn(|| supervisor.poll_output()).collect()
    }

    fn state(supervisor: &Supervisor) -> State {
        supervisor.condition(&notes()).unwrap().state
    }

    #[test]
    fn an_agent_starts_runs_and_stops() {
        let mut supervisor = Supervisor::new(CONFIG);
        assert_eq!(feed(&mut supervisor, 0, Input::Start(notes())), [Output::Launch(notes(), Run(1))]);
        assert_eq!(state(&supervisor), State::Starting);
        assert_eq!(feed(&mut supervisor, 5, Input::Ready(notes(), Run(1))), []);
        let running =
            Condition { state: State::Running, since_ms: 1_000_005, reason: String::new(), restarts: 0 };
        assert_eq!(supervisor.condition(&notes()), Some(&running));
        assert_eq!(supervisor.next_deadline(), None);
        assert_eq!(feed(&mut supervisor, 9, Input::Stop(notes())), [Output::Halt(notes(), Run(1))]);
        assert_eq!(state(&supervisor), State::Stopped);
        assert_eq!(feed(&mut supervisor, 10, Input::Stop(notes())), [], "stopped once");
    }

    #[test]
    fn failures_double_the_wait_up_to_its_limit() {
        let mut supervisor = Supervisor::new(CONFIG);
        feed(&mut supervisor, 0, Input::Start(notes()));
        let (mut now, mut waits) = (0, Vec::new());
        for run in 1..=7 {
            assert_eq!(feed(&mut supervisor, now, Input::Ready(notes(), Run(run))), []);
            assert_eq!(feed(&mut supervisor, now, Input::Exited(notes(), Run(run), "ouch".to_owned())), []);
            assert_eq!(state(&supervisor), State::BackingOff);
            let due = supervisor.next_deadline().unwrap();
            waits.push(due - now);
            assert_eq!(feed(&mut supervisor, due - 1, Input::DeadlineReached), [], "not before its time");
            now = due;
            let launched = [Output::Launch(notes(), Run(run + 1))];
            assert_eq!(feed(&mut supervisor, now, Input::DeadlineReached), launched);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1_000, 1_000, 1_000]);
        let condition = supervisor.condition(&notes()).unwrap();
        assert_eq!((condition.restarts, condition.reason.as_str()), (7, "ouch"));
    }

    #[test]
    fn a_healthy_time_forgives() {
        let mut supervisor = Supervisor::new(CONFIG);
        feed(&mut supervisor, 0, Input::Start(notes()));
        feed(&mut supervisor, 0, Input::Exited(notes(), Run(1), "a".to_owned()));
        feed(&mut supervisor, 100, Input::DeadlineReached);
        feed(&mut supervisor, 100, Input::Ready(notes(), Run(2)));
        feed(&mut supervisor, 100 + 9_999, Input::Exited(notes(), Run(2), "b".to_owned()));
        assert_eq!(supervisor.next_deadline(), Some(10_099 + 200), "not long enough");
        feed(&mut supervisor, 10_299, Input::DeadlineReached);
        feed(&mut supervisor, 10_299, Input::Ready(notes(), Run(3)));
        feed(&mut supervisor, 20_299, Input::Exited(notes(), Run(3), "c".to_owned()));
        assert_eq!(supervisor.next_deadline(), Some(20_299 + 100));
    }

    #[test]
    fn a_start_that_takes_too_long_is_halted_and_tried_again() {
        let mut supervisor = Supervisor::new(CONFIG);
        feed(&mut supervisor, 0, Input::Start(notes()));
        assert_eq!(supervisor.next_deadline(), Some(5_000));
        assert_eq!(feed(&mut supervisor, 5_000, Input::DeadlineReached), [Output::Halt(notes(), Run(1))]);
        assert_eq!(state(&supervisor), State::BackingOff);
        assert_eq!(feed(&mut supervisor, 5_050, Input::Ready(notes(), Run(1))), [], "too late");
        assert_eq!(state(&supervisor), State::BackingOff);
    }

    #[test]
    fn what_can_never_run_waits_for_its_owner() {
        let mut supervisor = Supervisor::new(CONFIG);
        feed(&mut supervisor, 0, Input::Start(notes()));
        feed(&mut supervisor, 1, Input::Refused(notes(), Run(1), "no".to_owned()));
        assert_eq!(state(&supervisor), State::Failed);
        assert_eq!(supervisor.next_deadline(), None);
        assert_eq!(feed(&mut supervisor, 2, Input::Start(notes())), [Output::Launch(notes(), Run(2))]);
        assert_eq!(supervisor.condition(&notes()).unwrap().reason, "");
    }

    #[test]
    fn starting_again_replaces_the_run_and_its_news_is_old() {
        let mut supervisor = Supervisor::new(CONFIG);
        feed(&mut supervisor, 0, Input::Start(notes()));
        feed(&mut supervisor, 1, Input::Ready(notes(), Run(1)));
        assert_eq!(
            feed(&mut supervisor, 2, Input::Start(notes())),
            [Output::Halt(notes(), Run(1)), Output::Launch(notes(), Run(2))]
        );
        feed(&mut supervisor, 3, Input::Exited(notes(), Run(1), "old".to_owned()));
        assert_eq!(state(&supervisor), State::Starting);
    }

    #[test]
    fn a_forgotten_agent_is_halted_and_gone() {
        let mut supervisor = Supervisor::new(CONFIG);
        feed(&mut supervisor, 0, Input::Start(notes()));
        assert_eq!(feed(&mut supervisor, 1, Input::Forget(notes())), [Output::Halt(notes(), Run(1))]);
        assert_eq!(supervisor.condition(&notes()), None);
        assert_eq!(feed(&mut supervisor, 2, Input::Exited(notes(), Run(1), String::new())), []);
    }

    proptest! {
        /// Whatever comes in whatever order: at most one run lives, and one that shall run always will again.
        #[test]
        fn at_most_one_run_lives(steps in proptest::collection::vec((0_u8..6, 0_u64..4, 0_u64..20_000), 0..60)) {
            let mut supervisor = Supervisor::new(CONFIG);
            let (mut now, mut live, mut wanted) = (0, Vec::new(), false);
            for (kind, back, wait) in steps {
                let run = Run(supervisor.runs.saturating_sub(back));
                let input = match kind {
                    0 => Input::Start(notes()),
                    1 => Input::Stop(notes()),
                    2 => Input::Ready(notes(), run),
                    3 => Input::Refused(notes(), run, "no".to_owned()),
                    4 => Input::Exited(notes(), run, "gone".to_owned()),
                    _ => { now += wait; Input::DeadlineReached }
                };
                match &input {
                    Input::Start(_) => wanted = true,
                    Input::Stop(_) => wanted = false,
                    Input::Refused(_, run, _) | Input::Exited(_, run, _) => live.retain(|alive| alive != run),
                    _ => {}
                }
                for output in feed(&mut supervisor, now, input) {
                    match output {
                        Output::Launch(_, run) => live.push(run),
                        Output::Halt(_, run) => live.retain(|alive| *alive != run),
                    }
                }
                prop_assert!(live.len() <= 1);
                let state = supervisor.condition(&notes()).map(|condition| condition.state);
                if wanted && state != Some(State::Failed) {
                    prop_assert!(!live.is_empty() || supervisor.next_deadline().is_some());
                }
                if !wanted {
                    prop_assert!(live.is_empty());
                }
            }
        }
    }
}
