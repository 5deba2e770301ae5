//! The agents of this node: which there are, which run, who may call them.

use super::{
    Agent, Call, HttpBridge, Sentinel, lock,
    shares::{Bounds, Share, Shares},
    terms::{Checks, NotPassed, Terms},
};
use crate::config::Calls;
use futures::FutureExt;
use kos_agents::{
    http::{INTENT, Policy},
    manifest::{Bridge, InvalidManifest, Kind, Manifest},
    origin::{InvalidOrigin, Origin, PinError, pin, reach},
    registry::{Desired, InvalidRegistry, Registry, RegistryError},
    supervisor::{self, Condition, Config, Input, Output, Run, Supervisor},
};
use kos_directory::contract::Checked;
use kos_governance::act::Role;
use kos_mesh::link::Request;
use kos_protocol::{
    id::{AgentId, MemberId},
    message::{End, Status},
    time::Timestamp,
};
use kos_shell::AgentOffer;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Calls one agent answers at once; more are told to come back.
pub const CALLS_PER_AGENT_MAX: usize = 256;
/// Of these, one member's.
pub const CALLS_PER_MEMBER_MAX: usize = 64;
/// The last places are for members that have few: whoever fills an agent, others still reach it.
pub const CALLS_RESERVED: usize = 64;
/// How many a member may have and still get a reserved place.
pub const CALLS_FEW: usize = 4;
const CALLS: Bounds = Bounds {
    all: CALLS_PER_AGENT_MAX,
    per_member: CALLS_PER_MEMBER_MAX,
    reserved: CALLS_RESERVED,
    few: CALLS_FEW,
};
/// When a caller that was told so may come back.
const RETRY_AFTER_MS: u32 = 1_000;
/// How long the resolver may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a bridge is started with.
#[derive(Clone, Debug)]
pub struct StartBridge {
    /// Where it leads: `http://host:port`.
    pub origin: String,
    /// The one host other than loopback that it may lead to.
    pub allow_host: Option<String>,
    /// The methods and paths that pass, and whether WebSockets do.
    pub policy: Policy,
    /// For people.
    pub description: String,
}

/// An agent in a list.
#[derive(Clone, Debug, Serialize)]
pub struct AgentView {
    /// Its id.
    pub agent: AgentId,
    /// For people.
    pub description: String,
    /// Where it leads, for a bridge.
    pub origin: Option<String>,
    /// What a bridge lets through.
    pub policy: Option<Policy>,
    /// What it is doing, since when and why; none for one that was never started.
    pub condition: Option<Condition>,
}

/// A call that its owner's rules, or the contract of a service, did not let through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// Who called.
    pub caller: MemberId,
    /// Whom.
    pub agent: AgentId,
    /// Why not.
    pub why: String,
}

/// Why an agent was not started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The origin's text.
    #[error(transparent)]
    Origin(#[from] InvalidOrigin),
    /// Where it leads.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The host's name.
    #[error("{host} cannot be looked up: {error}")]
    Resolve {
        /// Which.
        host: String,
        /// The system's words.
        error: String,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What was kept.
    #[error("the kept list of agents is damaged: {0}")]
    Kept(#[from] InvalidRegistry),
    /// Keeping it.
    #[error("the list of agents could not be kept: {0}")]
    Save(String),
    /// Only bridges can be started by hand.
    #[error("{0} cannot be started by hand: give a kBridge and --http URL")]
    NotABridge(AgentId),
}

/// Hears of denied calls, of the host's and of its bridges'.
pub type Denied = Arc<dyn Fn(Denial) + Send + Sync>;

type Save = Box<dyn Fn(Vec<u8>) -> Result<(), String> + Send + Sync>;

/// Makes an agent of its manifest. The text of an error says why it can never run as it is.
pub type Launcher = Box<dyn Fn(&Manifest) -> Result<Arc<dyn Agent>, String> + Send + Sync>;

/// Keeps agents and hands them their calls.
pub struct Host {
    state: Mutex<State>,
    calls: Mutex<Calls>,
    launcher: Launcher,
    save: Save,
    denied: Denied,
    checks: Checks,
    clock: Instant,
    /// The supervisor's next deadline may be another.
    wake: Notify,
    /// Ends every agent and every call.
    stop: CancellationToken,
}

struct State {
    registry: Registry,
    supervisor: Supervisor,
    running: BTreeMap<AgentId, Running>,
}

/// One run of an agent that takes calls.
#[derive(Clone)]
struct Running {
    run: Run,
    agent: Arc<dyn Agent>,
    halt: CancellationToken,
    places: Arc<Shares>,
}

/// A call that may go on.
pub struct Admitted {
    host: Arc<Host>,
    id: AgentId,
    member: MemberId,
    running: Running,
    place: Share,
    terms: Option<Terms>,
}

impl Admitted {
    /// Answers it. The call lives in this future: where it is dropped, because the member was removed or a deadline has
    /// passed, nothing of the call goes on.
    pub async fn answer(self, request: Request) {
        let Self { host, id, member, running, place, terms } = self;
        let Request { head, mut recv, send, .. } = request;
        let answering = async {
            if let Some(terms) = &terms
                && let Err(why) = host.checks.pass(member, terms, &mut recv).await
            {
                return drop(send.end_unbegun(&host.not_passed(member, &id, why)).await);
            }
            running.agent.call(Call { caller: member, head, recv, send }).await;
        };
        let answering = AssertUnwindSafe(answering).catch_unwind();
        tokio::select! {
            () = running.halt.cancelled() => {}
            ended = answering => if ended.is_err() {
                host.failed(id, running.run, "a call made it panic".to_owned());
            }
        }
        drop(place);
    }
}

impl Host {
    /// A host with the agents that `kept` names; those that shall run are launched. Call it within a runtime.
    ///
    /// # Errors
    /// [`HostError::Kept`].
    pub fn new(
        kept: Option<&[u8]>,
        calls: Calls,
        sentinel: Sentinel,
        save: impl Fn(Vec<u8>) -> Result<(), String> + Send + Sync + 'static,
        denied: impl Fn(Denial) + Send + Sync + 'static,
    ) -> Result<Arc<Self>, HostError> {
        let (sentinel, denied): (_, Denied) = (Arc::new(sentinel), Arc::new(denied));
        let told = denied.clone();
        let launcher = move |manifest: &Manifest| {
            let agent: Arc<dyn Agent> = match &manifest.kind {
                Kind::Sentinel => sentinel.clone(),
                Kind::Bridge(bridge) => {
                    Arc::new(HttpBridge::new(manifest.agent.clone(), bridge.clone(), told.clone()))
                }
            };
            Ok(agent)
        };
        Self::with_launcher(kept, calls, Box::new(launcher), Config::default(), save, denied)
    }

    /// As [`Host::new`], with agents of another make and other waits between their runs.
    ///
    /// # Errors
    /// As [`Host::new`].
    pub fn with_launcher(
        kept: Option<&[u8]>,
        calls: Calls,
        launcher: Launcher,
        config: Config,
        save: impl Fn(Vec<u8>) -> Result<(), String> + Send + Sync + 'static,
        denied: Denied,
    ) -> Result<Arc<Self>, HostError> {
        let registry = kept.map(Registry::decode).transpose()?.unwrap_or_default();
        let wanted: Vec<AgentId> = registry
            .entries()
            .filter(|entry| entry.desired == Desired::Running)
            .map(|entry| entry.manifest.agent.clone())
            .collect();
        let state = State { registry, supervisor: Supervisor::new(config), running: BTreeMap::new() };
        let host = Arc::new(Self {
            state: Mutex::new(state),
            calls: Mutex::new(calls),
            launcher,
            save: Box::new(save),
            denied,
            checks: Checks::new(),
            clock: Instant::now(),
            wake: Notify::new(),
            stop: CancellationToken::new(),
        });
        for agent in wanted {
            host.tell(Input::Start(agent));
        }
        Ok(host)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn now(&self) -> Timestamp {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms);
        Timestamp { monotonic_ms: ms(self.clock.elapsed()), wall_ms }
    }

    /// Starts a bridge: resolves its origin once, pins it, and keeps it running from now on.
    ///
    /// # Errors
    /// [`HostError`].
    pub async fn start_bridge(self: &Arc<Self>, agent: AgentId, start: StartBridge) -> Result<(), HostError> {
        if agent.class() != kos_protocol::id::AgentClass::Bridge {
            return Err(HostError::NotABridge(agent));
        }
        let origin: Origin = start.origin.parse()?;
        let reach = reach(&origin, start.allow_host.as_deref())?;
        let resolved = resolve(&origin).await?;
        let bridge = Bridge {
            addresses: pin(&origin, reach, &resolved)?,
            origin,
            reach,
            policy: start.policy,
            connect_ms: Bridge::CONNECT_MS,
            answer_ms: Bridge::ANSWER_MS,
        };
        let manifest = Manifest {
            agent: agent.clone(),
            description: start.description,
            federations: None,
            kind: Kind::Bridge(bridge),
        };
        self.change(|registry| registry.insert(manifest))?;
        self.tell(Input::Start(agent));
        Ok(())
    }

    /// Runs an agent again that is there and was stopped.
    ///
    /// # Errors
    /// [`HostError::Registry`].
    pub fn start(self: &Arc<Self>, agent: &AgentId) -> Result<(), HostError> {
        self.change(|registry| registry.desire(agent, Desired::Running))?;
        self.tell(Input::Start(agent.clone()));
        Ok(())
    }

    /// Stops an agent, and what it is doing.
    ///
    /// # Errors
    /// [`HostError::Registry`].
    pub fn stop(self: &Arc<Self>, agent: &AgentId) -> Result<(), HostError> {
        self.change(|registry| registry.desire(agent, Desired::Stopped))?;
        self.tell(Input::Stop(agent.clone()));
        Ok(())
    }

    /// Changes the registry: kept first, then acted upon.
    fn change(
        &self,
        change: impl FnOnce(&mut Registry) -> Result<(), RegistryError>,
    ) -> Result<(), HostError> {
        let mut state = self.state();
        let mut registry = state.registry.clone();
        change(&mut registry)?;
        (self.save)(registry.encode()).map_err(HostError::Save)?;
        state.registry = registry;
        Ok(())
    }

    /// Tells the supervisor, and does what it orders.
    fn tell(self: &Arc<Self>, input: Input) {
        let now = self.now();
        let mut state = self.state();
        state.supervisor.handle_input(now, input);
        while let Some(output) = state.supervisor.poll_output() {
            match output {
                Output::Launch(agent, run) => self.launch(&mut state, now, agent, run),
                Output::Halt(agent, run) => state.halt(&agent, run),
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    fn launch(self: &Arc<Self>, state: &mut State, now: Timestamp, id: AgentId, run: Run) {
        let Some(entry) = state.registry.entry(&id) else { return };
        let agent = match (self.launcher)(&entry.manifest) {
            Ok(agent) => agent,
            Err(why) => return state.supervisor.handle_input(now, Input::Refused(id, run, why)),
        };
        let halt = self.stop.child_token();
        let running = Running { run, agent: agent.clone(), halt: halt.clone(), places: Shares::new(CALLS) };
        state.running.insert(id.clone(), running);
        state.supervisor.handle_input(now, Input::Ready(id.clone(), run));
        let host = self.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                () = halt.cancelled() => return,
                ended = AssertUnwindSafe(agent.run()).catch_unwind() => ended,
            };
            host.failed(id, run, ended.unwrap_or_else(|_| "it panicked".to_owned()));
        });
    }

    /// A run ended without having been told to: its calls end with it, and the supervisor hears.
    fn failed(self: &Arc<Self>, agent: AgentId, run: Run, why: String) {
        tracing::warn!(%agent, why, "an agent failed");
        self.state().halt(&agent, run);
        self.tell(Input::Exited(agent, run, why));
    }

    /// Restarts what is due, until `stop`; then ends every agent and every call. What shall run stays as it is kept.
    pub async fn supervise(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let due_ms = self.state().supervisor.next_deadline();
            let due = async {
                match due_ms {
                    Some(ms) => tokio::time::sleep_until(self.clock + Duration::from_millis(ms)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return self.stop.cancel(),
                () = self.wake.notified() => {}
                () = due => self.tell(Input::DeadlineReached),
            }
        }
    }

    /// Every agent.
    pub fn list(&self) -> Vec<AgentView> {
        let state = self.state();
        let view = |entry: &kos_agents::registry::Entry| {
            let bridge = match &entry.manifest.kind {
                Kind::Sentinel => None,
                Kind::Bridge(bridge) => Some(bridge),
            };
            AgentView {
                agent: entry.manifest.agent.clone(),
                description: entry.manifest.description.clone(),
                origin: bridge.map(|bridge| bridge.origin.to_string()),
                policy: bridge.map(|bridge| bridge.policy.clone()),
                condition: state.supervisor.condition(&entry.manifest.agent).cloned(),
            }
        };
        state.registry.entries().map(view).collect()
    }

    /// What the directory shall say: the agents that shall run, and can. One that is just being started again is among
    /// them: others need not hear of each stumble.
    pub fn offers(&self) -> Vec<AgentOffer> {
        let state = self.state();
        let wanted = state.registry.entries().filter(|entry| {
            let condition = state.supervisor.condition(&entry.manifest.agent);
            entry.desired == Desired::Running
                && condition.is_none_or(|how| how.state != supervisor::State::Failed)
        });
        wanted
            .map(|entry| AgentOffer {
                agent: entry.manifest.agent.clone(),
                description: entry.manifest.description.clone(),
                protocol: "http".to_owned(),
                capabilities: Vec::new(),
            })
            .collect()
    }

    /// New rules about who may call.
    pub fn set_calls(&self, calls: Calls) {
        *lock(&self.calls) = calls;
    }

    /// Lets a request of a member with this role in and keeps a place for it. `contracts_of` gives the contracts of the
    /// services that an agent answers; the call is held against them.
    ///
    /// # Errors
    /// What it is refused with; without a role always.
    pub fn admit(
        self: &Arc<Self>,
        caller: Option<(MemberId, Role)>,
        head: &kos_protocol::message::Head,
        contracts_of: impl FnOnce(&AgentId) -> Vec<Checked>,
    ) -> Result<Admitted, End> {
        let refuse = |status, text: String| Err(End::because(status, text));
        let Some((member, role)) = caller else {
            return refuse(Status::Denied, "only members may call agents".to_owned());
        };
        if head.intent != INTENT {
            let text = format!("this node does not answer `{}`", head.intent.escape_default());
            return refuse(Status::NotFound, text);
        }
        let Some(id) = head.target.as_ref().and_then(|target| target.parse::<AgentId>().ok()) else {
            return refuse(Status::Invalid, "a call names an agent, as kClass:name".to_owned());
        };
        let may_call = lock(&self.calls).decide(&id, &member, role);
        if let Err(why) = may_call {
            (self.denied)(Denial { caller: member, agent: id, why: why.to_string() });
            return refuse(Status::Denied, format!("this call is not allowed: {why}"));
        }
        let state = self.state();
        let Some(running) = state.running.get(&id).cloned() else {
            return match state.registry.entry(&id) {
                Some(_) => refuse(Status::Unavailable, format!("{id} is not running")),
                None => refuse(Status::NotFound, format!("there is no {id} here")),
            };
        };
        drop(state);
        let terms = Terms::of(contracts_of(&id), role, head).inspect_err(|end| {
            (self.denied)(Denial { caller: member, agent: id.clone(), why: end.text.clone() })
        })?;
        let Some(place) = running.places.take(member, 1) else {
            let text = format!("{id} has too many calls under way");
            let retry_after_ms = Some(RETRY_AFTER_MS);
            return Err(End { retry_after_ms, ..End::because(Status::RateLimited, text) });
        };
        Ok(Admitted { host: self.clone(), id, member, running, place, terms })
    }

    /// What a call is answered with whose body did not pass.
    fn not_passed(&self, caller: MemberId, agent: &AgentId, why: NotPassed) -> End {
        match why {
            NotPassed::Violated(end) => {
                (self.denied)(Denial { caller, agent: agent.clone(), why: end.text.clone() });
                end
            }
            NotPassed::NotTaken(end) => end,
        }
    }
}

impl State {
    fn halt(&mut self, agent: &AgentId, run: Run) {
        if self.running.get(agent).is_some_and(|running| running.run == run)
            && let Some(running) = self.running.remove(agent)
        {
            running.halt.cancel();
        }
    }
}

/// Looks the host up, once.
async fn resolve(origin: &Origin) -> Result<Vec<IpAddr>, HostError> {
    use kos_agents::origin::Host as Named;
    match origin.host() {
        Named::Name(name) => {
            let failed = |error: String| HostError::Resolve { host: name.clone(), error };
            let looking = tokio::net::lookup_host((name.as_str(), origin.port()));
            let found = tokio::time::timeout(RESOLVE_TIMEOUT, looking)
                .await
                .map_err(|_| failed("the resolver does not answer".to_owned()))?
                .map_err(|error| failed(error.to_string()))?;
            Ok(found.map(|address| address.ip()).collect())
        }
        Named::Address(address) => Ok(vec![*address]),
    }
}
