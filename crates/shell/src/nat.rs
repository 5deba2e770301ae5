//! What kind of NAT stands before a node, told to the others in its record, and why two nodes meet only over a relay.

use kos_mesh::{Filtering, Mapping, PortMapping, Reachability};

/// A NAT as a node's record names it: one feature, `nat/` and a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    /// Reached from outside, or the router forwards a port.
    Open,
    /// The same port for every peer: holes can be punched.
    Friendly,
    /// Another port for each peer ("symmetric"): holes can be punched only towards a friendlier one.
    Strict,
}

impl Nat {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Open, "nat/open"), (Self::Friendly, "nat/friendly"), (Self::Strict, "nat/strict")];

    /// What the peers have shown of ours so far.
    pub fn seen(reachability: &Reachability) -> Option<Self> {
        if let PortMapping::Mapped(_) = reachability.port_mapping {
            return Some(Self::Open);
        }
        match (reachability.filtering, reachability.mapping) {
            (Filtering::Open, _) => Some(Self::Open),
            (_, Mapping::EndpointDependent) => Some(Self::Strict),
            (_, Mapping::EndpointIndependent | Mapping::NotTranslated) => Some(Self::Friendly),
            (_, Mapping::Unknown) => None,
        }
    }

    /// What a record says of its author's.
    pub fn of(features: &[String]) -> Option<Self> {
        let named = |(_, word): &&(Self, &str)| features.iter().any(|feature| feature == word);
        Self::ALL.iter().find(named).map(|(nat, _)| *nat)
    }

    /// The feature of a record.
    pub fn feature(self) -> &'static str {
        Self::ALL.iter().find(|(nat, _)| *nat == self).map_or("", |(_, word)| word)
    }
}

/// Why calls are carried and not direct, and what would change it.
pub(crate) fn why_relayed(own: Option<Nat>, peer: Option<Nat>) -> (String, Option<String>) {
    let open_a_port = |whose: &str| {
        Some(format!(
            "forward a UDP port on {whose} router to the node and name it there: kai config set network.port PORT; \
             or let the router do it (UPnP)"
        ))
    };
    let carried = "a relay of the federation carries for us";
    match (own, peer) {
        (Some(Nat::Strict), Some(Nat::Strict)) => (
            format!("both NATs give out another port for each peer, so no hole can be punched; {carried}"),
            open_a_port("either"),
        ),
        (Some(Nat::Strict), _) => (
            format!("the NAT before this node gives out another port for each peer; {carried}"),
            open_a_port("this node's"),
        ),
        (_, Some(Nat::Strict)) => (
            format!("the NAT before the other node gives out another port for each peer; {carried}"),
            open_a_port("the other node's"),
        ),
        _ => (format!("no direct connection has come about yet, it is tried again; {carried}"), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_tells_the_nat_and_two_strict_ones_explain_a_relay() {
        for (nat, word) in Nat::ALL {
            assert_eq!(nat.feature(), word);
            assert_eq!(Nat::of(&["other".to_owned(), word.to_owned()]), Some(nat));
        }
        assert_eq!(Nat::of(&[]), None);
        let (why, fix) = why_relayed(Some(Nat::Strict), Some(Nat::Strict));
        assert!(why.starts_with("both NATs") && fix.is_some_and(|fix| fix.contains("either router")));
        assert_eq!(why_relayed(Some(Nat::Friendly), None).1, None, "nothing to do but wait");
    }
}
