//! All behaviours of a node together, and the swarm made of them.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::core::upgrade::Version;
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, autonat, connection_limits, dcutr, gossipsub, identify,
    identity, kad, mdns, memory_connection_limits, ping, relay, swarm, upnp,
};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::config::{Config, Role};
use super::counters::{Deed, Refusal};
use super::filter::{Filter, Rule};
use super::gate::Gate;
use super::klp;
use super::pace::Buckets;
use super::shared::Shared;
use super::transport;
use super::types::{Event, StartError};
use crate::limits;

/// The private name of our distributed hash table.
pub(crate) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/kos/kad/1");
/// The name of gossipsub among members. One name, so that its streams cost no round trip.
static GOSSIP_PROTOCOL: StreamProtocol = StreamProtocol::new("/kos/gossip/1");
/// What identify says we are. It names no version of the software: strangers hear it, too.
const IDENTIFY_PROTOCOL: &str = "/kos/1";

type Gossip = gossipsub::Behaviour<
    gossipsub::IdentityTransform,
    gossipsub::MaxCountSubscriptionFilter<gossipsub::AllowAllSubscriptionFilter>,
>;

/// On a relayed circuit only identify, DCUtR and `/klp/1` run; everything else sits behind a [`Gate`] or brings a
/// dummy of its own there (relay, AutoNAT's dial-back).
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub limits: connection_limits::Behaviour,
    pub memory: memory_connection_limits::Behaviour,
    pub klp: klp::Behaviour,
    pub identify: Filter<identify::Behaviour>,
    pub ping: Gate<ping::Behaviour>,
    pub gossip: Gate<Gossip>,
    pub relay_client: relay::client::Behaviour,
    pub dcutr: Toggle<dcutr::Behaviour>,
    pub autonat: Gate<autonat::v2::client::Behaviour>,
    pub kad: Toggle<Gate<Filter<kad::Behaviour<MemoryStore>>>>,
    pub relay: Toggle<relay::Behaviour>,
    pub autonat_server: Toggle<Gate<autonat::v2::server::Behaviour>>,
    pub mdns: Toggle<Filter<mdns::tokio::Behaviour>>,
    pub upnp: Toggle<upnp::tokio::Behaviour>,
}

fn bounds(config: &Config) -> klp::Bounds {
    klp::Bounds {
        links_max: config.links_max,
        strangers_max: match config.role {
            Role::Home => limits::STRANGERS_HOME_MAX.min(config.links_max),
            Role::Relay => limits::STRANGERS_RELAY_MAX.min(config.links_max),
        },
        inbound_per_prefix_per_minute: config.inbound_per_prefix_per_minute,
        dials_per_minute: config.dials_per_minute,
    }
}

fn gossip(shared: &Arc<Shared>) -> Result<Gossip, StartError> {
    let failed = |reason: String| StartError::Behaviour { what: "gossipsub", reason };
    let shared = shared.clone();
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id(GOSSIP_PROTOCOL.as_ref().to_owned(), gossipsub::Version::V1_1)
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(move |message| {
            // Asked for every message that comes, before it is known whether it is news.
            shared.counters.count(Deed::GossipCopy);
            gossip_id(message.topic.as_str(), &message.data).to_vec().into()
        })
        .mesh_n(limits::GOSSIP_MESH_N)
        .mesh_n_low(limits::GOSSIP_MESH_N - 1)
        .mesh_n_high(limits::GOSSIP_MESH_N + 1)
        .mesh_outbound_min(1)
        .gossip_lazy(limits::GOSSIP_LAZY)
        .gossip_factor(0.0)
        .history_gossip(limits::GOSSIP_HISTORY)
        .max_transmit_size(limits::GOSSIP_BYTES_MAX + 1_024)
        .connection_handler_queue_len(limits::GOSSIP_QUEUE_MAX)
        .max_publish_messages(64)
        .max_ihave_messages_heartbeat(10)
        .max_control_messages_sent(500)
        .duplicate_cache_time(Duration::from_secs(120))
        .build()
        .map_err(|error| failed(error.to_string()))?;
    // libp2p remembers every topic it is told of.
    let topics = gossipsub::MaxCountSubscriptionFilter {
        filter: gossipsub::AllowAllSubscriptionFilter {},
        max_subscribed_topics: limits::GOSSIP_TOPICS_MAX,
        max_subscriptions_per_request: limits::GOSSIP_TOPIC_CHANGES_MAX,
    };
    let mut gossip =
        Gossip::new_with_subscription_filter(gossipsub::MessageAuthenticity::Anonymous, config, topics)
            .map_err(|reason| failed(reason.into()))?;
    let params = gossipsub::PeerScoreParams {
        // Members behind one NAT share an address.
        ip_colocation_factor_weight: 0.0,
        ..Default::default()
    };
    gossip.with_peer_score(params, gossipsub::PeerScoreThresholds::default()).map_err(failed)?;
    Ok(gossip)
}

/// Parameters that hold an invalid message against its bearer, and nothing else: topics differ too much in
/// traffic to judge a peer by how little it sends.
pub(crate) fn topic_score() -> gossipsub::TopicScoreParams {
    gossipsub::TopicScoreParams {
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: 0.9,
        ..Default::default()
    }
}

/// SHA-256 over the topic's length, the topic and the bytes.
pub(crate) fn gossip_id(topic: &str, bytes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((topic.len() as u64).to_be_bytes());
    hash.update(topic.as_bytes());
    hash.update(bytes);
    hash.finalize().into()
}

fn kad(local: PeerId) -> kad::Behaviour<MemoryStore> {
    let store = MemoryStoreConfig {
        // Values are refused; the driver decides which providers are kept.
        max_records: 0,
        max_value_bytes: 0,
        max_providers_per_key: limits::KAD_PROVIDERS_PER_KEY_MAX,
        max_provided_keys: limits::KAD_NAMES_MAX + limits::KAD_KEYS_OURS_MAX,
    };
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_periodic_bootstrap_interval(None)
        // The driver announces again by itself: sooner, and when an address changed.
        .set_provider_publication_interval(None)
        .set_provider_record_ttl(Some(limits::KAD_NAME_LIFE))
        .set_query_timeout(limits::KAD_QUERY_TIMEOUT);
    let mut kad = kad::Behaviour::with_config(local, MemoryStore::with_config(local, store), config);
    kad.set_mode(Some(kad::Mode::Client));
    kad
}

fn relay_server(local: PeerId, shared: Arc<Shared>) -> relay::Behaviour {
    // Bytes and time are libp2p's defaults: circuits are for introductions and joining. The rate by IP address
    // is left out: one NAT is one address, and only members get a reservation.
    let mut config = relay::Config {
        max_reservations: limits::RESERVATIONS_MAX,
        max_circuits: limits::CIRCUITS_MAX,
        max_circuits_per_peer: limits::CIRCUITS_PER_PEER_MAX,
        max_circuit_duration: limits::CIRCUIT_DURATION,
        max_circuit_bytes: limits::CIRCUIT_BYTES_MAX,
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        ..Default::default()
    };
    let mut rate = Buckets::new(30, 30, limits::BOOK_PEERS_MAX);
    config.reservation_rate_limiters.push(Box::new(move |peer: PeerId, _: &Multiaddr, now: Instant| {
        if !shared.is_member(&peer) {
            shared.counters.refuse(Refusal::ReservationStranger);
            return false;
        }
        let allowed = rate.take(peer, now);
        if !allowed {
            shared.counters.refuse(Refusal::ReservationRate);
        }
        allowed
    }));
    let per_peer = NonZeroU32::new(30).expect("30 is not zero");
    let per_ip = NonZeroU32::new(240).expect("240 is not zero");
    let config = config
        .circuit_src_per_peer(per_peer, Duration::from_secs(20))
        .circuit_src_per_ip(per_ip, Duration::from_secs(5));
    relay::Behaviour::new(local, config)
}

/// Makes the swarm, which does not listen yet.
pub(crate) fn build(
    config: &Config,
    shared: &Arc<Shared>,
    events: &mpsc::Sender<Event>,
) -> Result<Swarm<Behaviour>, StartError> {
    let (transport, relay_client) = transport::build(&config.keypair, shared)?;
    let behaviour = behaviour(&config.keypair, relay_client, config, shared, events)?;
    let settings = swarm::Config::with_tokio_executor()
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_idle_connection_timeout(limits::IDLE_CONNECTION)
        .with_max_negotiating_inbound_streams(limits::QUIC_STREAMS_MAX as usize);
    Ok(Swarm::new(transport, behaviour, shared.local, settings))
}

fn behaviour(
    keypair: &identity::Keypair,
    relay_client: relay::client::Behaviour,
    config: &Config,
    shared: &Arc<Shared>,
    events: &mpsc::Sender<Event>,
) -> Result<Behaviour, StartError> {
    let local = keypair.public().to_peer_id();
    let connections = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits::HALF_OPEN_MAX * 2))
        .with_max_pending_outgoing(Some(limits::DIALING_MAX))
        .with_max_established_per_peer(Some(limits::CONNECTIONS_PER_PEER_MAX * 2))
        .with_max_established(Some(config.links_max.saturating_mul(3)));
    let identify = identify::Config::new(IDENTIFY_PROTOCOL.into(), keypair.public())
        .with_agent_version("kos".into())
        .with_hide_listen_addrs(true)
        // Changes are pushed; this is for a push that got lost.
        .with_interval(Duration::from_secs(60))
        .with_cache_size(0);
    let ping = ping::Config::new().with_interval(limits::PING_INTERVAL).with_timeout(limits::PING_TIMEOUT);
    let lan = match config.mdns {
        true => {
            let lan = mdns::tokio::Behaviour::new(mdns::Config::default(), local)
                .map_err(|error| StartError::Behaviour { what: "mdns", reason: error.to_string() })?;
            Some(Filter::new(lan, Rule::HearsPrivateAddresses))
        }
        false => None,
    };
    let is_relay = config.role == Role::Relay;
    Ok(Behaviour {
        limits: connection_limits::Behaviour::new(connections),
        memory: memory_connection_limits::Behaviour::with_max_bytes(limits::PROCESS_MEMORY_MAX_BYTES),
        klp: klp::Behaviour::new(shared.clone(), events.clone(), bounds(config)),
        identify: Filter::new(identify::Behaviour::new(identify), Rule::NamesNoAddresses),
        ping: Gate::direct(ping::Behaviour::new(ping)),
        gossip: Gate::members(gossip(shared)?, &GOSSIP_PROTOCOL),
        relay_client,
        dcutr: Some(dcutr::Behaviour::new(local)).filter(|_| !is_relay).into(),
        autonat: Gate::direct(autonat::v2::client::Behaviour::default()),
        kad: config
            .kad
            .then(|| {
                let rule = Rule::KeepsToPublic(config.documentation);
                Gate::direct(Filter::new(kad(local), rule))
            })
            .into(),
        relay: is_relay.then(|| relay_server(local, shared.clone())).into(),
        autonat_server: is_relay.then(|| Gate::direct(autonat::v2::server::Behaviour::default())).into(),
        mdns: lan.into(),
        upnp: config.upnp.then(upnp::tokio::Behaviour::default).into(),
    })
}
