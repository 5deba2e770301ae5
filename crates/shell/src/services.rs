//! Services by name: whose contract a call is made under, and what our own agents promise.

use crate::{
    query::observed,
    runtime::Runtime,
    views::{ResolveError, Target},
};
use kos_directory::{
    Health,
    contract::{Candidate, Checked, Chosen, NoneFit, Place, Route, Unfit, choose},
};
use kos_engine::Federation;
use kos_mesh::link::To;
use kos_protocol::{
    id::{AgentId, FederationId, InvalidName, MemberId, check_name},
    limits::NAME_BYTES_MAX,
    text::shown,
};
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Contracts that may be the first choice one after the other, where nobody was named.
const FIRST_CHOICES_MAX: usize = 16;
/// Routes told of when none of them fits.
const ROUTES_SHOWN: usize = 8;

/// A service as a caller means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Whose is the first choice: a name, an id, or the beginning of one. Without it, the best one's.
    pub member: Option<String>,
    /// Which versions will do.
    pub range: VersionReq,
}

impl Wanted {
    /// Reads `name`, or `name@member`.
    ///
    /// # Errors
    /// [`InvalidName`].
    pub fn parse(text: &str, range: VersionReq) -> Result<Self, InvalidName> {
        let (name, member) = match text.split_once('@') {
            Some((name, member)) => (name, Some(member.to_owned())),
            None => (text, None),
        };
        check_name(name)?;
        Ok(Self { name: name.to_owned(), member, range })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.member.as_ref().map_or(Ok(()), |member| write!(f, "@{}", shown(member, NAME_BYTES_MAX)))
    }
}

/// The route that a call of a service takes.
#[derive(Clone, Debug)]
pub struct ServiceRoute {
    /// Whom to call.
    pub target: Target,
    /// The version of the contract it is called under.
    pub version: Version,
    /// The first choice, where it is another.
    pub instead_of: Option<PassedOver>,
}

/// A route that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Which agent,
    pub agent: AgentId,
    /// of whom,
    pub member: MemberId,
    /// the name the member goes by, or its id where nobody knows it.
    pub member_name: String,
    /// Why not.
    pub why: String,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}: {}", self.agent, self.member_name, self.why)
    }
}

/// Why no route of a service can be taken.
#[derive(Debug, thiserror::Error)]
pub enum NoRoute {
    /// The member.
    #[error(transparent)]
    Member(#[from] ResolveError),
    /// Nobody has published it, or not the member that was named.
    #[error("nobody offers the service `{0}`")]
    Nobody(String),
    /// None of its routes has a version that will do and answers.
    #[error("no route of the service fits: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoneFits(Vec<PassedOver>),
}

/// Routes that were tried for a call and did not answer, each with the reason.
pub type Failed = BTreeMap<Route, String>;

impl Runtime {
    /// The contracts of the services that one of our agents answers.
    pub fn contracts_of_agent(&self, id: &FederationId, agent: &AgentId) -> Vec<Checked> {
        let own = self.0.state.identity().member();
        let contracts = |federation: &mut Federation| {
            let services = federation.directory().services_of(own);
            services.filter(|checked| checked.contract().agent == *agent).cloned().collect()
        };
        self.0.state.with(id, contracts).unwrap_or_default()
    }

    /// The route that a call of a service takes next, when those that `failed` are left out. SPEC §9.16.
    ///
    /// # Errors
    /// [`NoRoute`].
    pub fn route_of_service(
        &self,
        id: &FederationId,
        wanted: &Wanted,
        failed: &Failed,
    ) -> Result<ServiceRoute, NoRoute> {
        self.0
            .state
            .with(id, |federation| route(federation, wanted, failed))
            .ok_or(ResolveError::NotInFederation)?
    }
}

fn route(federation: &Federation, wanted: &Wanted, failed: &Failed) -> Result<ServiceRoute, NoRoute> {
    let (candidates, firsts) = ranked(federation, wanted)?;
    let is_up = |route: &Route| {
        let health = observed(federation, &route.member).health;
        let is_down = matches!(health, Health::Down | Health::Left);
        !is_down
            && !failed.contains_key(route)
            && !federation.directory().is_withdrawn(route.member, &route.agent)
    };
    let mut tried: Vec<PassedOver> = Vec::new();
    for at in 0..firsts {
        let unfit = match choose(&candidates[at..], &wanted.range, is_up) {
            Ok(Chosen { member, contract, place }) => {
                if let Place::Fallback { of, why } = place {
                    tried.push(passed_over(federation, failed, of, &why));
                }
                let holder = federation.roster().active_member(&member);
                let holder = holder.expect("candidates are of active members");
                let target = Target {
                    to: To { federation: federation.id(), key: holder.key() },
                    agent: contract.agent.clone(),
                    member,
                    member_name: holder.name.clone(),
                };
                let version = contract.version.clone();
                return Ok(ServiceRoute { target, version, instead_of: tried.into_iter().next() });
            }
            Err(NoneFit(routes)) => routes,
        };
        tried.extend(unfit.into_iter().map(|(route, why)| passed_over(federation, failed, route, &why)));
    }
    let mut seen = BTreeSet::new();
    tried.retain(|route| seen.insert((route.agent.clone(), route.member)));
    tried.truncate(ROUTES_SHOWN);
    Err(if tried.is_empty() { NoRoute::Nobody(wanted.to_string()) } else { NoRoute::NoneFits(tried) })
}

/// What is known of a service, best first, and how many of these may be the first choice: the best few, or the one of
/// the member that was named.
fn ranked<'a>(
    federation: &'a Federation,
    wanted: &Wanted,
) -> Result<(Vec<Candidate<'a>>, usize), ResolveError> {
    let of_member = |member: MemberId| {
        let contract = federation.directory().service(member, &wanted.name)?.contract();
        Some(Candidate { member, contract })
    };
    let mut candidates: Vec<_> =
        federation.roster().active().filter_map(|member| of_member(member.id)).collect();
    candidates.sort_by_cached_key(|Candidate { member, contract }| {
        let is_out_of_range = !contract.satisfies(&wanted.range);
        let health = observed(federation, member).health;
        (is_out_of_range, Reverse(contract.version.clone()), health, *member)
    });
    let Some(text) = &wanted.member else {
        let firsts = candidates.len().min(FIRST_CHOICES_MAX);
        return Ok((candidates, firsts));
    };
    let named = federation.roster().resolve(text)?.id;
    candidates.sort_by_key(|candidate| candidate.member != named);
    let firsts = usize::from(candidates.first().is_some_and(|first| first.member == named));
    Ok((candidates, firsts))
}

/// A route that was not taken; where it was tried, with what came of that.
fn passed_over(federation: &Federation, failed: &Failed, route: Route, unfit: &Unfit) -> PassedOver {
    let why = failed.get(&route).cloned().unwrap_or_else(|| unfit.to_string());
    let Route { agent, member } = route;
    let known = federation.roster().member(&member);
    let member_name = known.map_or_else(|| member.to_string(), |known| known.name.clone());
    PassedOver { agent, member, member_name, why }
}
