//! `kai up`: the runtime, the agents and the local API put together.

use crate::{
    agents::{Denial, Host, Sentinel},
    api::{self, client::SOCKET},
    audit::Audit,
    config::{Config, Loaded, Setting, Sources, changes},
    errors::{Code, Failure},
    log, os,
};
use kos_mesh::link::Caller;
use kos_protocol::{
    id::AgentId,
    message::{End, Head, Status},
};
use kos_shell::tables::SETTINGS;
use kos_shell::{
    Answering, App, AuditEvent, Change, IdentityError, NodeRole, Options, Runtime, Secrets, StartError,
};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Where the list of agents is kept among the settings of the ledger.
const AGENTS: &str = "agents";
/// Where the settings are kept that were last noted in the audit log.
const NOTED: &str = "settings";
/// Changes of settings that get an entry each; of what is beyond only the number is noted.
const CHANGES_NOTED_MAX: usize = 64;

/// A running node as the API sees it.
pub struct Daemon {
    /// Identity, federations, mesh.
    pub runtime: Runtime,
    /// Where settings come from.
    pub sources: Sources,
    /// What it did.
    pub audit: Arc<Audit>,
    /// The agents of this node.
    pub agents: Arc<Host>,
    /// The settings in use.
    pub config: Mutex<Config>,
    /// What it logged.
    pub logs: log::Logs,
    /// When it started.
    pub started: Instant,
    /// The HTTP API's share.
    pub http: Arc<api::http::Hub>,
    /// Ends the process in order.
    pub stop: CancellationToken,
    /// Why it ends, where that is no order.
    pub ending: OnceLock<Code>,
}

impl Daemon {
    /// Tells the federation which agents run here.
    pub async fn offer_agents(&self) {
        for federation in self.runtime.federations() {
            if let Err(error) = self.runtime.publish_agents(&federation.id, self.agents.offers()).await {
                tracing::warn!(%error, "the agents were not published");
            }
        }
    }

    /// Takes over what has changed in the settings and may change while the node runs, and notes all changes in the audit
    /// log. Returns the changes.
    ///
    /// # Errors
    /// The settings do not hold: those in use stay. [`Code::LedgerReadOnly`].
    pub async fn reload(&self) -> Result<Vec<Setting>, Failure> {
        let loaded = self.sources.load()?;
        let level = loaded.config.log.level.as_str();
        self.logs.set_level(level).map_err(|error| Code::ConfigBadValue.because(error))?;
        let calls = {
            let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
            config.reload(&loaded.config);
            config.calls.clone()
        };
        self.agents.set_calls(calls);
        let changes = note_settings(&self.runtime, &self.audit, &loaded).await?;
        self.http.news.settings_changed(&changes);
        Ok(changes)
    }

    /// The default federation.
    pub fn federation(&self) -> kos_protocol::id::FederationId {
        self.runtime.me().federation
    }
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Ordered,
    /// It has a new key: start again under it.
    Again,
}

/// Runs a node until it is asked to stop.
///
/// # Errors
/// What kept it from starting, or [`Code::Twin`].
pub async fn run(sources: Sources, logs: log::Logs, ready: impl FnOnce(&Daemon)) -> Result<Ended, Failure> {
    let loaded = sources.load()?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    logs.set_level(loaded.config.log.level.as_str()).map_err(|error| Code::ConfigBadValue.because(error))?;
    let mut options = options(&sources.folder, &loaded.config);
    options.secrets = Secrets::of_system().map_err(|error| Code::KeysSealed.because(error))?;
    let app = Arc::new(NodeApp::default());
    let runtime = Runtime::start(options, app.clone()).await.map_err(start_failure)?;
    let stop = CancellationToken::new();
    let audit = Arc::new(Audit::open(runtime.clone()));
    let listen = loaded.config.api.listen;
    let agents = host(&runtime, &loaded.config, audit.clone())?;
    tokio::spawn(agents.clone().supervise(stop.clone()));
    audit.note("start", concat!("kai ", env!("CARGO_PKG_VERSION")));
    if let Err(error) = note_settings(&runtime, &audit, &loaded).await {
        tracing::warn!(%error, "changed settings were not noted");
    }
    let daemon = Arc::new(Daemon {
        audit,
        agents,
        runtime,
        sources,
        config: Mutex::new(loaded.config),
        logs,
        started: Instant::now(),
        http: Arc::default(),
        stop: stop.clone(),
        ending: OnceLock::new(),
    });
    app.serve(&daemon);
    let listener = os::bind_socket(daemon.runtime.folder().path(), SOCKET)
        .map_err(|error| Code::FolderUnfit.because(format!("the socket cannot be made: {error}")))?;
    daemon.offer_agents().await;
    let serving_http = api::http::start(&daemon, listen).await?;
    let serving = tokio::spawn(api::serve_socket(listener, api::router(daemon.clone()), stop.clone()));
    if let Err(error) = os::notify_manager("READY=1") {
        tracing::debug!(%error, "the service manager was not told");
    }
    ready(&daemon);
    wait_for_order(&stop).await;
    if let Err(error) = os::notify_manager("STOPPING=1") {
        tracing::debug!(%error, "the service manager was not told");
    }
    stop.cancel();
    let _ = serving.await;
    if let Some(serving) = serving_http {
        let _ = serving.await;
    }
    daemon.audit.close().await;
    daemon.runtime.shutdown().await;
    match daemon.ending.get() {
        Some(Code::Twin) => Err(Code::Twin.plain()),
        Some(_) => Ok(Ended::Again),
        None => Ok(Ended::Ordered),
    }
}

/// The agents that were kept, and `kSentinel:node`.
fn host(runtime: &Runtime, config: &Config, audit: Arc<Audit>) -> Result<Arc<Host>, Failure> {
    let kept = runtime.ledger().read(SETTINGS, AGENTS).map_err(|error| Code::LedgerDamaged.because(error))?;
    let ledger = runtime.ledger().clone();
    let save = move |bytes: Vec<u8>| {
        let mut batch = kos_store::Batch::new();
        batch.put(SETTINGS, AGENTS, &bytes);
        ledger.commit(batch).map_err(|error| error.to_string())
    };
    let told = runtime.clone();
    let sentinel = Sentinel::new(move || {
        let me = told.me();
        serde_json::json!({
            "schema_version": 1, "name": me.name, "member": me.member, "version": env!("CARGO_PKG_VERSION"),
            "sessions": told.links().sessions().len(),
        })
    });
    let denied = move |denial: Denial| {
        tracing::debug!(caller = %denial.caller, agent = %denial.agent, why = denial.why, "a call was denied");
        audit.denied(denial);
    };
    Host::new(kept.as_deref(), config.calls.clone(), sentinel, save, denied)
        .map_err(|error| Code::LedgerDamaged.because(error))
}

/// Notes which settings differ from those last noted, whoever changed them in whatever way, and remembers them.
async fn note_settings(runtime: &Runtime, audit: &Audit, loaded: &Loaded) -> Result<Vec<Setting>, Failure> {
    let damaged = |error: &dyn std::fmt::Display| Code::LedgerDamaged.because(error);
    let noted = runtime.ledger().read(SETTINGS, NOTED).map_err(|error| damaged(&error))?;
    let old = match noted {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?,
        None => Sources::default().load_with("")?.settings(),
    };
    let new = loaded.settings();
    let changed = changes(&old, &new);
    if changed.is_empty() {
        return Ok(changed);
    }
    for change in changed.iter().take(CHANGES_NOTED_MAX) {
        audit.note("config", &format!("{} = {} ({})", change.key, change.value_text(), change.origin));
    }
    if changed.len() > CHANGES_NOTED_MAX {
        audit.note("config", &format!("{} settings more have changed", changed.len() - CHANGES_NOTED_MAX));
    }
    let mut batch = kos_store::Batch::new();
    let bytes = serde_json::to_vec(&new).map_err(|error| Code::Internal.because(error))?;
    batch.put(SETTINGS, NOTED, &bytes);
    runtime.ledger().commit_async(batch).await.map_err(|error| Code::LedgerReadOnly.because(error))?;
    Ok(changed)
}

async fn wait_for_order(stop: &CancellationToken) {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

fn options(folder: &std::path::Path, config: &Config) -> Options {
    let mut options = Options::new(folder);
    options.name = config.name.as_ref().map(|name| name.as_str().to_owned());
    options.role = NodeRole::Home;
    options.port = config.network.port;
    options.mdns = config.network.mdns;
    options.upnp = config.network.upnp;
    options.kad = config.network.kad;
    options.external.clone_from(&config.network.external_addresses);
    if !config.network.listen_addresses.is_empty() {
        options.listen = Some(config.network.listen_addresses.clone());
    }
    options.bootstrap = config.network.bootstrap.iter().map(|peer| peer.as_multiaddr().clone()).collect();
    if config.network.test_addresses {
        options.documentation = kos_mesh::Documentation::Global;
    }
    options.agent = concat!("kos-node/", env!("CARGO_PKG_VERSION")).to_owned();
    options
}

fn start_failure(error: StartError) -> Failure {
    let code = match &error {
        StartError::Folder(kos_store::FolderError::InUse { .. }) => Code::AlreadyRunning,
        StartError::Folder(_) => Code::FolderUnfit,
        StartError::Ledger(_) | StartError::Read(_) | StartError::Federation(_) => Code::LedgerDamaged,
        StartError::Commit(_) => Code::LedgerReadOnly,
        StartError::Identity(error) => return identity_failure(error),
        _ => Code::StartFailed,
    };
    code.because(error)
}

/// Why an identity is not what was asked for.
pub fn identity_failure(error: &IdentityError) -> Failure {
    let code = match error {
        IdentityError::WordsNeeded => Code::RecoveryKeyGone,
        IdentityError::Words(_) => Code::WordsInvalid,
        IdentityError::OtherWords(_) => Code::WordsOther,
        IdentityError::Exists(_) => Code::IdentityExists,
        IdentityError::Commit(_) => Code::LedgerReadOnly,
        IdentityError::Sealed | IdentityError::WrongPassphrase => Code::KeysSealed,
        IdentityError::Random(_) => Code::Internal,
        _ => Code::IdentityDamaged,
    };
    code.because(error)
}

/// Why a member was not restored into a folder.
pub fn not_restored(error: &StartError) -> Failure {
    match error {
        StartError::Identity(error) => identity_failure(error),
        StartError::Folder(kos_store::FolderError::InUse { .. }) => Code::AlreadyRunning.because(error),
        other => Code::FolderUnfit.because(other),
    }
}

/// The default data folder, or the one given.
///
/// # Errors
/// [`Code::Usage`] when there is no home folder either.
pub fn folder(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    given
        .or_else(|| os::default_folder(|name| std::env::var_os(name).map(PathBuf::from)))
        .ok_or_else(|| Code::Usage.because("no home folder is known").hint("kai --folder PATH …"))
}

/// What the runtime calls back. Made before the daemon, which is made of a runtime that needs it.
#[derive(Default)]
struct NodeApp {
    daemon: OnceLock<Weak<Daemon>>,
    early: Mutex<Early>,
}

/// What happened before there was a daemon to tell.
#[derive(Default)]
struct Early {
    audits: Vec<AuditEvent>,
    changes: Vec<Change>,
}

impl NodeApp {
    fn serve(&self, daemon: &Arc<Daemon>) {
        let _ = self.daemon.set(Arc::downgrade(daemon));
        let early = std::mem::take(&mut *self.early());
        early.audits.into_iter().for_each(|event| self.audit(event));
        early.changes.into_iter().for_each(|change| self.changed(change));
    }

    fn early(&self) -> MutexGuard<'_, Early> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn daemon(&self) -> Option<Arc<Daemon>> {
        self.daemon.get().and_then(Weak::upgrade)
    }
}

impl App for NodeApp {
    fn admit(&self, caller: &Caller, head: &Head) -> Result<Answering, End> {
        let daemon =
            self.daemon().ok_or_else(|| End::because(Status::Unavailable, "the node is starting"))?;
        let role = caller.member.and_then(|member| daemon.runtime.role_of(&caller.federation, &member));
        let contracts_of = |agent: &AgentId| daemon.runtime.contracts_of_agent(&caller.federation, agent);
        let admitted = daemon.agents.admit(caller.member.zip(role), head, contracts_of)?;
        Ok(Box::new(|request| Box::pin(admitted.answer(request))))
    }

    fn audit(&self, event: AuditEvent) {
        let Some(daemon) = self.daemon() else {
            self.early().audits.push(event);
            return;
        };
        let (kind, federation, member) = match event {
            AuditEvent::Admitted { federation, member } => ("admitted", federation, member),
            AuditEvent::Removed { federation, member } => ("removed", federation, member),
            AuditEvent::Rotated { federation, member } => ("rotated", federation, member),
        };
        tracing::info!(kind, %member, "membership");
        daemon.audit.note(kind, &format!("{member} in {}", crate::audit::named(&federation)));
    }

    fn changed(&self, change: Change) {
        let Some(daemon) = self.daemon() else {
            self.early().changes.push(change);
            return;
        };
        match change {
            Change::Twin => {
                let _ = daemon.ending.set(Code::Twin);
                daemon.stop.cancel();
            }
            Change::Removed(federation) => {
                tracing::warn!(%federation, "this node was removed from the federation");
            }
            _ => {}
        }
    }
}
