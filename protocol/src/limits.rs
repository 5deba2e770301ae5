//! Every bound on what a peer can send, in one place. `SPEC.md` §10 lists them; hostile-peer tests hold them.

/// Longest KLP frame on the wire without its two length bytes, tag included. Noise's own message limit.
pub const FRAME_BYTES_MAX: usize = 65_535;
/// Poly1305 tag at the end of each frame.
pub const TAG_BYTES: usize = 16;
/// Most payload one `Data` frame carries: a frame less its tag and its type byte.
pub const DATA_BYTES_MAX: usize = FRAME_BYTES_MAX - TAG_BYTES - 1;
/// Longest encoded `Head`, `Hello` or `End`.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest intent-specific part of a `Head`: an HTTP request's method, path and headers, for instance.
pub const PARAMS_BYTES_MAX: usize = 12 * 1024;
/// Most early data in a handshake message, all frames together.
pub const EARLY_BYTES_MAX: usize = 16 * 1024;
/// Longest handshake message, without its two length bytes.
pub const HANDSHAKE_BYTES_MAX: usize = 48 * 1024;
/// Longest text in an `End`.
pub const STATUS_TEXT_BYTES_MAX: usize = 1024;
/// Longest clear refusal on a stream.
pub const NOTICE_BYTES_MAX: usize = 256;
/// Most capabilities a hello names, offered and wanted each.
pub const CAPABILITIES_MAX: usize = 64;
/// Longest name of a capability, an intent or a member.
pub const NAME_BYTES_MAX: usize = 64;
/// Frames a stream may carry in each direction before it must be left for a new one.
pub const STREAM_FRAMES_MAX: u32 = u32::MAX;
/// Streams the replay window remembers (RFC 6479); an older stream number is refused.
pub const REPLAY_WINDOW_STREAMS: u32 = 1024;
/// Frames one session may seal in each direction before a fresh handshake replaces it.
pub const SESSION_FRAMES_MAX: u64 = 1 << 30;
/// Age at which a session is replaced by a fresh handshake, in milliseconds.
pub const SESSION_AGE_MS_MAX: u64 = 60 * 60 * 1000;
/// Longest signed directory record, envelope included.
pub const RECORD_BYTES_MAX: usize = 4 * 1024;
/// Longest signed object of any other kind, envelope included.
pub const OBJECT_BYTES_MAX: usize = 16 * 1024;
/// Longest signed key event, envelope included.
pub const KEY_EVENT_BYTES_MAX: usize = 1024;
/// Deepest nesting of a decoded value.
pub const CBOR_DEPTH_MAX: usize = 16;
/// Key events one member may have: an inception and 63 rotations, as many as a stranger may show in a join request.
pub const KEY_EVENTS_MAX: usize = 64;
/// How far a peer's wall clock may be ahead of ours, in milliseconds.
pub const CLOCK_SKEW_MS_MAX: u64 = 10 * 60 * 1000;
/// Streams one member may have open at once.
pub const STREAMS_PER_MEMBER: usize = 200;
/// Of these, streams kept for short exchanges. A long one that would take one of them is ended with `rate-limited`.
pub const STREAMS_RESERVED: usize = 20;
/// An exchange that lasts longer is a long one, in milliseconds.
pub const STREAM_SHORT_MS: u64 = 10_000;
/// Bytes a stranger may send before it is authenticated.
pub const STRANGER_BYTES_MAX: usize = 16 * 1024;
/// Time a stranger has to finish its handshake, in milliseconds.
pub const STRANGER_MS_MAX: u64 = 10_000;
/// Handshakes accepted in a minute from one IPv4 address or one IPv6 /64.
pub const HANDSHAKES_PER_MINUTE: u32 = 20;
/// Handshakes under way at once from one IPv4 address or one IPv6 /64.
pub const HANDSHAKES_HALF_OPEN: u32 = 16;
/// Handshakes accepted in a minute from one member; each costs a write of its counter.
pub const HANDSHAKES_PER_MEMBER: u32 = 60;
/// Handshakes accepted in a minute through one carrier or circuit relay, from peers it has not proved to be members.
pub const HANDSHAKES_PER_CARRIER: u32 = 240;
/// Handshakes under way at once through one carrier or circuit relay.
pub const HANDSHAKES_CARRIED_HALF_OPEN: u32 = 64;
/// Sessions kept with one peer in one federation. The oldest goes for a new one, and its streams with it.
pub const SESSIONS_PER_PEER_MAX: usize = 8;
/// Sessions kept with one peer of which no frame has opened yet; they never take the place of others.
pub const SESSIONS_UNPROVEN_MAX: usize = 4;
/// `reset` notices sent in a second, to all peers together; streams of unknown sessions beyond are closed silently.
pub const RESETS_PER_SECOND: u32 = 50;
/// Most bytes of items in one answer to `kos.fetch`; the caller asks again for more.
pub const FETCH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most bytes of items in one `kos.push`; what does not fit comes by gossip and catch-up.
pub const PUSH_BYTES_MAX: usize = 512 * 1024;
/// Bodies of `kos.reconcile`, `kos.fetch` and `kos.push` of one member that are taken at once; each is whole in memory at its end.
pub const BULK_PER_MEMBER: usize = 2;
/// Those that wait for their turn, unread. More are answered `rate-limited`.
pub const BULK_WAITING_MAX: usize = 16;
/// Time such an exchange has, waiting included, in milliseconds.
pub const BULK_MS_MAX: u64 = 60_000;
/// Longest header of a carried stream.
pub const CARRY_HEADER_BYTES_MAX: usize = 1024;
/// Longest reply to the header of a carried stream.
pub const CARRY_REPLY_BYTES_MAX: usize = 2 * 1024;
/// Hops a carried stream may take; the first release accepts one.
pub const CARRY_HOPS_MAX: usize = 8;
/// How long an idempotency key names one request, in milliseconds.
pub const OUTCOME_LIFE_MS: u64 = 24 * 60 * 60 * 1000;
/// Idempotency keys one caller may have in use. Another one is refused until the oldest is forgotten.
pub const OUTCOMES_PER_CALLER_MAX: usize = 4_096;
/// Idempotency keys of all callers together.
pub const OUTCOMES_MAX: usize = 65_536;
/// Most of an answer, head's params and body together, that is kept for whoever asks again.
pub const OUTCOME_REPLY_BYTES_MAX: usize = 64 * 1024;
/// Most that is kept of all answers to one caller; what is above is only known to have been given.
pub const OUTCOME_REPLY_BYTES_PER_CALLER_MAX: usize = 4 * 1024 * 1024;
/// Longest stored outcome: an answer, its end and what they belong to.
pub const OUTCOME_BYTES_MAX: usize = OUTCOME_REPLY_BYTES_MAX + 4096;

// Federation state: governance, directory and what carries them.

/// Longest genesis.
pub const GENESIS_BYTES_MAX: usize = 256 * 1024;
/// Most founders a genesis names.
pub const FOUNDERS_MAX: usize = 64;
/// Longest signed act: an admission carries a whole key log.
pub const ACT_BYTES_MAX: usize = 60 * 1024;
/// Heads one act may follow.
pub const ACT_PARENTS_MAX: usize = 16;
/// Acts a federation keeps. Another one is refused.
pub const ACTS_MAX: usize = 65_536;
/// Acts one steward other than the founder may write, so that one alone cannot fill the federation.
pub const ACTS_PER_AUTHOR_MAX: usize = 2_048;
/// Acts held while an act before them is missing. Another one is refused and comes back at the next catch-up.
pub const ACTS_HELD_MAX: usize = 128;
/// Of these, acts that claim one steward of the roster as their author. They are held once their signature verifies.
pub const ACTS_HELD_PER_AUTHOR_MAX: usize = 32;
/// Of these, acts of authors or keys not known here, which anybody can make up: they cannot crowd out the others.
pub const ACTS_HELD_UNPROVEN_MAX: usize = 32;
/// How long an act is held, in milliseconds.
pub const ACTS_HELD_MS_MAX: u64 = 10 * 60 * 1000;
/// Longest signed invitation.
pub const INVITE_BYTES_MAX: usize = 1024;
/// Most members one invitation can let in.
pub const INVITE_USES_MAX: u32 = 1_000;
/// Longest free text in an act or an invitation.
pub const WHY_BYTES_MAX: usize = 256;
/// Longest address (multiaddr text).
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Most addresses, and most relays, in a node record.
pub const ADDRESSES_MAX: usize = 16;
/// Most addresses in an invitation code or a relay line.
pub const CODE_ADDRESSES_MAX: usize = 6;
/// Longest invitation code or relay line; fits a QR code in alphanumeric mode.
pub const CODE_CHARS_MAX: usize = 4_096;
/// Longest join request: all that a stranger may send. The longest key log and the longest invitation fit in it.
pub const JOIN_REQUEST_BYTES_MAX: usize = STRANGER_BYTES_MAX;
/// Longest join reply or relay claim. Acts that do not fit follow by catch-up.
pub const JOIN_REPLY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Records one member may have in the directory, all kinds together.
pub const RECORDS_PER_AUTHOR_MAX: usize = 256;
/// Bytes of one member's records together, so that a few cannot fill the directory for all.
pub const RECORDS_BYTES_PER_AUTHOR_MAX: usize = 256 * 1024;
/// Bytes of all records together. A record that does not fit is refused.
pub const RECORDS_BYTES_MAX: usize = 256 * 1024 * 1024;
/// New records taken from one author at once, twice what it may have,
pub const RECORDS_BURST_PER_AUTHOR: u32 = 512;
/// and one more in each of these, in milliseconds. What is above it is neither kept nor forwarded; reconciliation brings
/// it later.
pub const RECORD_EVERY_MS_PER_AUTHOR: u64 = 1_000;
/// Links one record names.
pub const LINKS_IN_RECORD_MAX: usize = 32;
/// Hops a link record travels.
pub const LINK_RECORD_HOPS_MAX: u8 = 3;
/// Accusers of one member that are remembered: more decide nothing.
pub const SUSPICIONS_OF_MEMBER_MAX: usize = 16;
/// Suspicions one node tells of in a minute.
pub const SUSPICIONS_PER_MINUTE: usize = 30;
/// Longest message of a set reconciliation.
pub const RECONCILE_BYTES_MAX: usize = 64 * 1024;
/// Rounds one reconciliation takes at most: twice what two sets of 100,000 need that share nothing.
pub const RECONCILE_ROUNDS_MAX: u32 = 256;
/// Rounds in a row of one reconciliation that name no difference. Each splits a range in 256, so 4 reach into any set.
pub const RECONCILE_IDLE_ROUNDS_MAX: u32 = 8;
/// Items asked for by name in one request.
pub const FETCH_NAMES_MAX: usize = 2_048;
/// Most words of a query, and of a record that are searched.
pub const QUERY_TERMS_MAX: usize = 64;
/// Longest query.
pub const QUERY_BYTES_MAX: usize = 1024;
/// Most hits on one page.
pub const QUERY_PAGE_MAX: usize = 1_000;
/// Longest time from a record's making to its expiry, in milliseconds.
pub const RECORD_LIFE_MS_MAX: u64 = 14 * 24 * 60 * 60 * 1000;
/// Most capabilities in an agent record.
pub const RECORD_CAPABILITIES_MAX: usize = 32;
/// Longest encoded contract of a service; the rest of a record is for its envelope and its header.
pub const CONTRACT_BYTES_MAX: usize = 3_712;
/// Most methods in a contract.
pub const CONTRACT_METHODS_MAX: usize = 16;
/// Most fallback routes in a contract.
pub const CONTRACT_FALLBACKS_MAX: usize = 4;
/// Most tags in a contract.
pub const CONTRACT_TAGS_MAX: usize = 16;
/// Longest path pattern of a method.
pub const PATH_PATTERN_BYTES_MAX: usize = 128;
/// Longest JSON Schema, as text.
pub const SCHEMA_BYTES_MAX: usize = 3_072;
/// Deepest nesting of a JSON Schema with its references followed, and of its text.
pub const SCHEMA_DEPTH_MAX: usize = 32;
/// Greatest weight of a JSON Schema: what is checked of one value at most, with references followed.
pub const SCHEMA_WEIGHT_MAX: u32 = 1_024;
/// Most different patterns in the schemas of a contract.
pub const SCHEMA_PATTERNS_MAX: usize = 8;
/// Longest pattern in a JSON Schema.
pub const SCHEMA_PATTERN_BYTES_MAX: usize = 128;
/// Greatest size of a compiled pattern.
pub const SCHEMA_PATTERN_PROGRAM_BYTES_MAX: usize = 16 * 1024;
/// Longest body that is held against a JSON Schema.
pub const CHECKED_BODY_BYTES_MAX: usize = 256 * 1024;
/// Deepest nesting of such a body.
pub const CHECKED_BODY_DEPTH_MAX: usize = 64;
/// Longest array of such a body where its items have to be different.
pub const CHECKED_BODY_ITEMS_MAX: usize = 1_024;
/// Most steps of such a check: the body's bytes times the schema's weight.
pub const CHECKED_BODY_STEPS_MAX: usize = 8 * 1024 * 1024;
/// Longest text for people in a record.
pub const DESCRIPTION_BYTES_MAX: usize = 512;
/// Longest item: an act or a key log with its kind around it.
pub const ITEM_BYTES_MAX: usize = 62 * 1024;
/// Items of kinds this version does not know, kept and forwarded. The oldest makes room.
pub const UNKNOWN_ITEMS_MAX: usize = 256;
