//! Which route of a service a call takes.

use super::{Contract, Route};
use kos_protocol::id::MemberId;
use semver::{Version, VersionReq};

/// A contract, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Who published it.
    pub member: MemberId,
    /// What they published.
    pub contract: &'a Contract,
}

impl Candidate<'_> {
    /// Where it is answered.
    pub fn route(&self) -> Route {
        Route { agent: self.contract.agent.clone(), member: self.member }
    }
}

/// The contract a call is made under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<'a> {
    /// Of whom.
    pub member: MemberId,
    /// What they promise.
    pub contract: &'a Contract,
    /// Whether it is the first choice.
    pub place: Place,
}

/// The place of a choice. Its text is for the caller of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// What was asked for.
    First,
    /// Another route, named by the first choice.
    Fallback {
        /// The route of the first choice.
        of: Route,
        /// What kept the first choice from being taken.
        why: Unfit,
    },
}

/// Why a route was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Its version is not in the range.
    #[error("its version {0} is not in the range")]
    OutOfRange(Version),
    /// It does not answer.
    #[error("it is down")]
    Down,
    /// It has published no contract of this service.
    #[error("it has no contract for this service")]
    NoContract,
}

/// No route fits: each in the order in which it was looked at, with the reason. At most one more than a contract has
/// fallbacks; empty when there was no candidate at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no route of the service fits{}", listed(.0))]
pub struct NoneFit(pub Vec<(Route, Unfit)>);

fn listed(tried: &[(Route, Unfit)]) -> String {
    let each = tried.iter().enumerate();
    each.map(|(at, (route, why))| format!("{} {route}: {why}", if at == 0 { ":" } else { ";" })).collect()
}

/// Chooses among the contracts that are known of a service: the first of `candidates` when its version is in `range` and
/// it is up, else the first of its fallbacks, in its order, of which both is true. Other candidates are there so that the
/// contracts of fallbacks are found; none is taken that the first does not name, and the fallbacks of a fallback are
/// not followed.
///
/// # Errors
/// [`NoneFit`].
pub fn choose<'a>(
    candidates: &[Candidate<'a>],
    range: &VersionReq,
    is_up: impl Fn(&Route) -> bool,
) -> Result<Chosen<'a>, NoneFit> {
    let Some(first) = candidates.first() else { return Err(NoneFit(Vec::new())) };
    let fault_of = |candidate: &Candidate<'_>, route: &Route| {
        if !candidate.contract.satisfies(range) {
            Some(Unfit::OutOfRange(candidate.contract.version.clone()))
        } else {
            (!is_up(route)).then_some(Unfit::Down)
        }
    };
    let of = first.route();
    let Some(why) = fault_of(first, &of) else {
        return Ok(Chosen { member: first.member, contract: first.contract, place: Place::First });
    };
    let mut tried = vec![(of.clone(), why.clone())];
    for route in &first.contract.fallbacks {
        let known = candidates
            .iter()
            .find(|candidate| candidate.contract.name == first.contract.name && candidate.route() == *route);
        match known.map(|candidate| (candidate, fault_of(candidate, route))) {
            Some((&Candidate { member, contract }, None)) => {
                return Ok(Chosen { member, contract, place: Place::Fallback { of, why } });
            }
            Some((_, Some(why))) => tried.push((route.clone(), why)),
            None => tried.push((route.clone(), Unfit::NoContract)),
        }
    }
    Err(NoneFit(tried))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::tests::contract;

    fn member(n: u8) -> MemberId {
        MemberId::from_bytes([n; 32])
    }

    fn of(agent: &str, version: &str, fallbacks: &[Route]) -> Contract {
        Contract {
            agent: agent.parse().unwrap(),
            version: version.parse().unwrap(),
            fallbacks: fallbacks.to_vec(),
            ..contract()
        }
    }

    fn route(agent: &str, n: u8) -> Route {
        Route { agent: agent.parse().unwrap(), member: member(n) }
    }

    #[test]
    fn the_first_choice_is_taken_when_it_is_up_and_in_range_else_the_fallbacks_in_their_order() {
        let (a, b, c) = (route("kBridge:a", 1), route("kBridge:b", 2), route("kBridge:c", 3));
        let first = of("kBridge:a", "1.4.0", &[b.clone(), c.clone()]);
        let (second, third) = (of("kBridge:b", "2.0.0", &[]), of("kBridge:c", "1.2.0", &[]));
        // The order of the fallbacks counts, not that of the candidates behind the first.
        let candidates = [
            Candidate { member: member(1), contract: &first },
            Candidate { member: member(3), contract: &third },
            Candidate { member: member(2), contract: &second },
        ];
        let choose = |range: &str, down: &[&Route]| {
            choose(&candidates, &range.parse().unwrap(), |route| !down.contains(&route))
        };
        let chosen = |n, contract, place| Ok(Chosen { member: member(n), contract, place });
        let fallback = |why| Place::Fallback { of: a.clone(), why };
        let out_of_range = || Unfit::OutOfRange("1.4.0".parse().unwrap());

        assert_eq!(choose("^1.2", &[]), chosen(1, &first, Place::First));
        assert_eq!(choose("*", &[&a]), chosen(2, &second, fallback(Unfit::Down)));
        assert_eq!(choose("^1.2", &[&a]), chosen(3, &third, fallback(Unfit::Down)));
        assert_eq!(choose("<1.4", &[]), chosen(3, &third, fallback(out_of_range())));
        assert_eq!(choose("^2", &[&a]), chosen(2, &second, fallback(out_of_range())));
        assert_eq!(
            choose("^2", &[&b]).unwrap_err().to_string(),
            format!(
                "no route of the service fits: {a}: its version 1.4.0 is not in the range; {b}: it is down; \
                 {c}: its version 1.2.0 is not in the range"
            )
        );
    }

    #[test]
    fn only_what_the_first_choice_names_stands_in_for_it() {
        let (a, b) = (route("kBridge:a", 1), route("kBridge:b", 2));
        let first = of("kBridge:a", "1.0.0", std::slice::from_ref(&b));
        let stranger = of("kBridge:c", "1.0.0", &[]);
        let other_service = Contract { name: "other".to_owned(), ..of("kBridge:b", "1.0.0", &[]) };
        let candidates = [
            Candidate { member: member(1), contract: &first },
            Candidate { member: member(3), contract: &stranger },
            Candidate { member: member(2), contract: &other_service },
            // The same agent id at another member is another agent.
            Candidate { member: member(4), contract: &of("kBridge:b", "1.0.0", &[]) },
        ];
        let chosen = choose(&candidates, &VersionReq::STAR, |route| *route != a);
        assert_eq!(chosen, Err(NoneFit(vec![(a, Unfit::Down), (b, Unfit::NoContract)])));
        let none = choose(&[], &VersionReq::STAR, |_| true).unwrap_err();
        assert_eq!(none.to_string(), "no route of the service fits");
    }
}
