//! What a person sees when something did not work: a code, what happened, why, and one command to run.
//!
//! Codes are for ever: a code keeps its meaning, and one that is no longer used is not given to something else.
//! `kai explain CODE` prints the long text.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a command ends. Design section 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Did not work.
    Failed = 1,
    /// The command line, or a value in it, makes no sense.
    Usage = 2,
    /// No node is running.
    NotRunning = 3,
    /// Not allowed.
    NotAllowed = 4,
    /// No such thing.
    NotFound = 5,
    /// Took too long.
    TimedOut = 6,
    /// Healthy, with warnings.
    Warnings = 7,
}

/// What `kai explain` says of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The code as it is printed.
    pub code: &'static str,
    /// What a command that meets it exits with.
    pub exit: Exit,
    /// What the HTTP API answers with.
    pub http: u16,
    /// What happened, in a few words.
    pub title: &'static str,
    /// Why it happens and what to do, in sentences.
    pub text: &'static str,
    /// The command to run, where one fits every case.
    pub hint: Option<&'static str>,
}

macro_rules! codes {
    ($($variant:ident $code:literal $exit:ident $http:literal $title:literal $text:literal $hint:expr;)*) => {
        /// Everything that can go wrong, as a person sees it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $title] $variant,)* }

        impl Code {
            /// Every code, in the order in which they are listed.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// What there is to say about it.
            pub fn entry(self) -> &'static Entry {
                match self {
                    $(Code::$variant => &Entry {
                        code: $code, exit: Exit::$exit, http: $http, title: $title, text: $text, hint: $hint,
                    },)*
                }
            }
        }
    };
}

codes! {
    Usage "KAI-USE-0001" Usage 400 "the command line makes no sense"
        "A subcommand or option is unknown, or one that is needed is missing." Some("kai --help");
    NoTerminal "KAI-USE-0002" Usage 400 "this command needs a terminal"
        "The command asks a question or shows a secret, and neither is done where no person is watching. Run it on \
         a terminal; where a script must say yes, `--yes` does." None;
    Declined "KAI-USE-0003" Failed 409 "nothing was done"
        "The question was answered with no." None;

    NotRunning "KAI-NODE-0001" NotRunning 503 "no node is running in this folder"
        "The command talks to the node through a socket in its data folder, and nobody answers there. Start the \
         node, or name the right folder with `--folder` or KAI_FOLDER." Some("kai up");
    AlreadyRunning "KAI-NODE-0002" Failed 409 "a node is running in this folder already"
        "One process at a time may have a data folder open; the other one holds its lock." Some("kai status");
    FolderUnfit "KAI-NODE-0003" Failed 500 "the data folder cannot be used"
        "The folder holds keys, so it and its files must belong to you and be closed to others, and the disk must \
         be writable." Some("kai fsck");
    LedgerDamaged "KAI-NODE-0004" Failed 500 "the ledger does not open"
        "The ledger holds what nobody else can give back. It is damaged, or was written by a newer version, which \
         this one leaves untouched." Some("kai fsck");
    LedgerReadOnly "KAI-NODE-0005" Failed 500 "the ledger cannot be written"
        "A write failed or the disk is nearly full, so nothing is taken until there is space again. The node tries \
         again by itself." Some("df -h");
    StillStopping "KAI-NODE-0006" TimedOut 504 "the node has not stopped yet"
        "It was asked to stop, and is still closing what is open." Some("kai status");
    StartFailed "KAI-NODE-0007" Failed 500 "the node did not start"
        "See what happened above it; the log has more with KAI_LOG_LEVEL=debug." Some("kai config check");
    Twin "KAI-NODE-0008" Failed 500 "another machine runs as this member"
        "A node published a newer record under this identity, so two machines have the same keys: a copied folder, \
         or a backup restored while the original was still running. This one stopped, so that the two do not fight. \
         Stop the other one, or give this machine an identity of its own in another folder." Some("kai id rotate");
    Internal "KAI-NODE-0009" Failed 500 "something inside went wrong"
        "This is a fault in kai, not in what you did. The log says more." Some("kai logs tail");
    Protocol "KAI-NODE-0010" Failed 502 "the node's answer makes no sense"
        "The running node is of another version than this command. Restart it after an update." Some("kai down");
    NodeTimeout "KAI-NODE-0011" TimedOut 504 "the node did not answer in time"
        "The node runs but is busy, or waits for a peer." Some("kai status");
    SocketForeign "KAI-NODE-0012" NotAllowed 403 "this folder belongs to somebody else"
        "The socket of a node answers only to the user that runs it." None;
    DataDamaged "KAI-NODE-0013" Failed 500 "the data folder has errors"
        "What `kai fsck` found is listed above. It changes nothing; restore the folder from a backup, or the member \
         on a new folder with its recovery words." Some("kai id restore");

    Unauthorized "KAI-API-0001" NotAllowed 401 "the token is missing or wrong"
        "The HTTP API wants `Authorization: Bearer TOKEN` with the content of `api.token` in the data folder. A \
         token is never taken from a URL, which ends up in logs." None;
    WrongHost "KAI-API-0002" NotAllowed 403 "the request names another host"
        "Only the exact host names of the local listener are answered, so that no web page can reach the API by \
         pointing a name of its own at it." None;
    CrossSite "KAI-API-0003" NotAllowed 403 "the request comes from another site"
        "A browser says that a page of another origin made it. The API is for local programs." None;
    RateLimited "KAI-API-0004" Failed 429 "too many requests"
        "This route has a limit; the answer says when to try again." None;
    NoRoute "KAI-API-0005" NotFound 404 "there is no such route"
        "The API has no such path, or not with that method." None;
    BadRequest "KAI-API-0006" Usage 400 "the request is malformed"
        "The body or a parameter is not what the route takes." None;
    RequestTooLarge "KAI-API-0007" Usage 413 "the request is too large"
        "The body is above the limit of the route. Stream large bodies with `kai call` or `kai forward`." None;
    ApiListen "KAI-API-0008" Failed 500 "the HTTP API cannot listen"
        "The port of `api.listen` is taken by another program, or not yours to take. Another port, or 0 for any that \
         is free, is a setting." Some("kai config set api.listen 127.0.0.1:0");
    NoSuchTask "KAI-API-0009" NotFound 404 "there is no such task"
        "Tasks are kept in memory, the latest ones only: this one was never taken, has gone since, or the node was \
         started again." None;
    ResultTooLarge "KAI-API-0010" Failed 502 "the answer is too large for a task"
        "A task keeps the whole answer until somebody asks for it, so it must be small. Stream larger ones with \
         `kai call` or `kai forward`." None;

    ConfigUnknownKey "KAI-CONF-0001" Usage 400 "there is no such setting"
        "Unknown keys are errors, so that a mistyped one is not silently without effect." Some("kai config show");
    ConfigBadValue "KAI-CONF-0002" Usage 400 "the setting does not take this value"
        "The value has the wrong type or is out of range." Some("kai config show");
    ConfigMalformed "KAI-CONF-0003" Failed 500 "the configuration file cannot be read"
        "`config.toml` in the data folder is not valid TOML, or holds what no setting takes. Nothing is guessed: \
         the node does not start with it, and a running one keeps what it has." Some("kai config check");
    ConfigUnwritable "KAI-CONF-0004" Failed 500 "the configuration file cannot be written"
        "The data folder is read-only, full, or not yours." Some("kai fsck");
    ConfigNoProfile "KAI-CONF-0005" Usage 400 "there is no such profile"
        "Profiles are dev, staging and prod." Some("kai config set profile prod");

    RecoveryKeyGone "KAI-ID-0001" Failed 409 "the recovery key is not on this node any more"
        "It was written down and taken off the node, which is as it should be. What needs it asks for its 24 \
         words." None;
    WordsInvalid "KAI-ID-0002" Usage 400 "these are not 24 recovery words"
        "A word is misspelt, missing or in the wrong place; the last one is a checksum." None;
    WordsOther "KAI-ID-0003" Failed 409 "these words belong to something else"
        "They are well-formed, but not the recovery key of this member: another member's, or those from before the \
         last rotation." None;
    WordsMismatch "KAI-ID-0004" Failed 409 "the words do not match"
        "The words asked back are not the ones that were shown, so the recovery key stays on this node. Look at \
         what you wrote down and try again." Some("kai id backup");
    IdentityExists "KAI-ID-0005" Failed 409 "this folder has an identity already"
        "A member is restored into an empty folder. Name another one with `--folder`." None;
    IdentityDamaged "KAI-ID-0006" Failed 500 "the identity of this folder cannot be used"
        "A key file is missing, readable by others, or belongs to another identity." Some("kai fsck");
    IdentityLine "KAI-ID-0007" Usage 400 "this is not an identity line"
        "It begins with `kai:id/`; `kai id backup` and `kai id show` print it. It is not secret." None;

    RecoveryKeyHere "KAI-ID-0008" Warnings 409 "the recovery key is not written down"
        "The 24 words of the recovery key are the only way back to this member after the machine is lost, and as \
         long as they lie on the machine, whoever takes it can take the member over. Write them down." Some("kai id backup");

    KeyRotated "KAI-ID-0009" Failed 409 "the key was replaced"
        "The node goes on under its new key, which takes a moment." Some("kai status");
    KeysSealed "KAI-ID-0010" NotAllowed 403 "the keys in this folder are sealed"
        "They were sealed with a passphrase, and it was not given, is another one, or is out of bounds. A node starts \
         unattended, so it does not ask: the passphrase comes as the systemd credential `kai.passphrase`, or in the file \
         that KAI_PASSPHRASE_FILE names." None;

    NotInFederation "KAI-FED-0001" NotFound 404 "this node is not in that federation"
        "It left, was removed, or never joined." Some("kai status");
    NotSteward "KAI-FED-0002" NotAllowed 403 "only a steward may do this"
        "Stewards invite, admit and remove. This node has another role." Some("kai members");
    NoSuchMember "KAI-FED-0003" NotFound 404 "there is no such member"
        "No member has this name or id." Some("kai members");
    AmbiguousMember "KAI-FED-0004" Usage 400 "several members could be meant"
        "The beginning of an id must fit one member only." Some("kai members");
    BadCode "KAI-FED-0005" Usage 400 "this is not a usable code"
        "An invitation begins with `kai:join/`, a relay's line with `kai:relay/`. A checksum tells a mistyped one." None;
    InviteExpired "KAI-FED-0006" Failed 409 "the invitation has expired"
        "Invitations are good for 24 hours unless their maker said otherwise. Ask a steward for a new one." Some("kai invite");
    InviteUsed "KAI-FED-0007" Failed 409 "the invitation has been used"
        "An invitation is good for one member unless its maker said otherwise. Ask a steward for a new one." Some("kai invite");
    InviteRevoked "KAI-FED-0008" Failed 409 "the invitation was withdrawn"
        "A steward withdrew it. Ask for a new one." Some("kai invite");
    InviteForged "KAI-FED-0009" NotAllowed 403 "the invitation is not genuine"
        "Its signature or the proof that goes with it does not hold." None;
    InviteForeign "KAI-FED-0010" Failed 409 "the invitation is for another federation"
        "The node that was asked is not in the code's federation: it never was, has left it, or began anew." Some("kai invite");
    InviteIssuer "KAI-FED-0021" Failed 409 "whoever gave the invitation cannot invite any more"
        "The steward who signed it is none any more, or has a new key since. Ask a steward for a new one." Some("kai invite");
    AlreadyMember "KAI-FED-0011" Failed 409 "this node is a member already"
        "There is nothing to join." Some("kai members");
    HasContent "KAI-FED-0012" Failed 409 "the present federation has content"
        "The federation this node is in has agents, members or decisions of its own, so it is not simply dropped. \
         Keep it beside the new one." None;
    OnlySteward "KAI-FED-0013" Failed 409 "this node is the only steward"
        "Without it nobody could admit or remove members. Make another steward first, or remove the members." Some("kai members");
    NoSuchInvite "KAI-FED-0014" NotFound 404 "there is no such invitation"
        "No invitation of this node has this id." Some("kai invite list");
    ActRefused "KAI-FED-0015" NotAllowed 403 "the federation's rules do not allow this"
        "A steward cannot do this to that member, or the member's standing does not permit it." Some("kai members");
    JoinRefused "KAI-FED-0016" NotAllowed 403 "the steward's node let nobody in"
        "It did not accept the request; the reason is in its log." None;
    JoinBroken "KAI-FED-0017" Failed 502 "joining broke off"
        "The connection broke or the answer does not make this node a member. Joining again with the same code is \
         safe." None;
    NotARelay "KAI-FED-0018" Failed 409 "this member is not a relay"
        "`kai relay remove` removes relays only." Some("kai relay list");
    RelayTaken "KAI-FED-0019" NotAllowed 403 "the relay did not accept the line"
        "The token in the line has been used or is from before the relay was restarted. Take the line it prints now." None;
    NoMember "KAI-FED-0020" NotAllowed 403 "this node is no member of its federation any more"
        "It was removed, or its membership ended. Others refuse it. A member that was put out comes back only when a \
         steward runs `kai members reinstate`; else an invitation brings it back." Some("kai join CODE");

    StewardUnreachable "KAI-NET-0001" Failed 502 "the steward's node cannot be reached"
        "None of the addresses in the code answers: the node is off, has moved, or a firewall is in between." None;
    NetTimeout "KAI-NET-0002" TimedOut 504 "the peer did not answer in time"
        "A connection was there or being made, but no answer came." Some("kai peers");
    NoOutsideAddress "KAI-NET-0003" Failed 409 "no address of this node can be reached from outside"
        "A code with only addresses of your own network would be of no use elsewhere. Add a relay, open a port and \
         set `network.external_addresses`, or invite for this LAN with `--lan`." Some("kai invite --lan");
    RelayUnreachable "KAI-NET-0004" Failed 502 "the relay cannot be reached"
        "None of the addresses in its line answers: it is off, has moved, or a firewall is in between." None;
    MemberUnreachable "KAI-NET-0005" Failed 502 "the member cannot be reached"
        "There is no direct way and no relay that carries. `kai ping NAME` shows every way that was tried." Some("kai ping NAME");
    MeshStopped "KAI-NET-0006" Failed 503 "the mesh has stopped"
        "The node is going down." Some("kai status");
    NoRelay "KAI-NET-0007" Failed 409 "nobody outside can reach this node, and it has no relay"
        "It is behind a NAT that lets nobody in. A relay introduces members to each other, and carries for them \
         where no direct connection can be made." Some("kai relay add 'kai:relay/…'");
    RelayAway "KAI-NET-0008" Failed 409 "no relay keeps a place for this node"
        "The relays of the federation cannot be reached now; members behind NATs will not find this node." Some("kai relay list");

    BadQuery "KAI-DIR-0001" Usage 400 "this is not a query"
        "A query is words, and pairs like kind:agent, class:kBridge, cap:http@^1.2, tag:photos, health:alive or \
         member:attic." Some("kai find --help");
    NoSuchRecord "KAI-DIR-0002" NotFound 404 "there is no such record"
        "No record in this node's directory has an id that begins so. It may have been replaced by a newer one." Some("kai find");
    BadRecordId "KAI-DIR-0003" Usage 400 "this names no one record"
        "A record is named by the hex digits of its id, or by as many of the first ones as only it has." Some("kai find");

    NoSuchAgent "KAI-AGENT-0001" NotFound 404 "there is no such agent"
        "Nobody in the federation offers an agent of this name, or not the member named." Some("kai agent list --all");
    AmbiguousAgent "KAI-AGENT-0002" Usage 400 "several members offer this agent"
        "Say whose with `@NAME`." Some("kai agent list --all");
    BadAgentName "KAI-AGENT-0003" Usage 400 "this is not the name of an agent"
        "An agent is written kClass:name, on another node kClass:name@member; `kBridge:notes@attic` for instance." None;
    AgentRuns "KAI-AGENT-0004" Failed 409 "the agent is there already"
        "An agent of this name is on this node. Stop it first to start it in another way." Some("kai agent list");
    AgentOrigin "KAI-AGENT-0005" Usage 400 "an agent may not stand in front of this address"
        "A bridge speaks to this machine only, unless `--allow-host` names another host; link-local and metadata \
         addresses are never allowed." None;
    AgentFixed "KAI-AGENT-0006" NotAllowed 403 "this agent cannot be started or stopped by hand"
        "It belongs to the node." Some("kai agent list");
    AgentFailed "KAI-AGENT-0007" Failed 500 "the agent did not start"
        "The reason is above; the node tries again with growing pauses." Some("kai agent list");
    BadRule "KAI-AGENT-0008" Usage 400 "this is not a rule about what may pass a bridge"
        "A rule is methods and a path: `GET,HEAD /public/*` lets two methods read everything below /public/, \
         `* /notes` lets any method use that one path. Paths are compared byte for byte." None;

    BadContract "KAI-AGENT-0009" Usage 400 "this is not the contract of a service"
        "The line, the column and the key of the first fault are above. `SPEC.md` §9.16 says what a contract may hold." None;

    NoSuchService "KAI-AGENT-0010" NotFound 404 "there is no such service"
        "Nobody in the federation has published a service of this name, or not the member named." Some("kai find kind:service");

    CallDenied "KAI-CALL-0001" NotAllowed 403 "the call was denied"
        "The agent's owner does not let this node call it, or not in this way. The owner sets who may with \
         `calls.default` and `calls.agents`." None;
    CallNotFound "KAI-CALL-0002" NotFound 404 "the other node has no such agent"
        "It was stopped, or the name is wrong; or the contract of its service has no such call." Some("kai agent list --all");
    CallInvalid "KAI-CALL-0003" Usage 400 "the other node does not take this request"
        "A method, a path or a header is one that is never passed on; or the contract of a service describes the body, or \
         asks for an idempotency key, in another way." None;
    CallTooLarge "KAI-CALL-0004" Failed 413 "the request is above a limit"
        "Heads have limits; bodies have none, but where the contract of a service has a schema for them." None;
    CallRateLimited "KAI-CALL-0005" Failed 429 "too many calls"
        "The other node takes no more from this one for the moment." None;
    CallTimeout "KAI-CALL-0006" TimedOut 504 "the call took too long"
        "Its deadline passed before the answer was complete." None;
    CallUnavailable "KAI-CALL-0007" Failed 502 "the agent does not answer"
        "The node was reached, but what stands behind the agent was not." Some("kai agent list --all");
    CallCancelled "KAI-CALL-0008" Failed 502 "the call was given up"
        "One side gave up before the answer was complete." None;
    CallInternal "KAI-CALL-0009" Failed 502 "the other node failed"
        "Something went wrong at the other end; its log says what." None;
    CallCutShort "KAI-CALL-0010" Failed 502 "the answer was cut short"
        "The connection broke in the middle; what was printed is not all of it." None;
    UpstreamStatus "KAI-CALL-0011" Failed 502 "the service answered with an error"
        "The call worked, and the service behind the agent answered with an HTTP status of 400 or above. Its answer \
         was printed." None;
    Forward "KAI-CALL-0012" Failed 409 "the port cannot be opened"
        "Another program has it, or it is below 1024. Port 0 takes any that is free." None;

    CallUnknown "KAI-CALL-0013" Failed 502 "nobody knows whether the call was executed"
        "It was sent, and then the connection or the other node broke off. With an idempotency key the other node does \
         not execute it again under that key; look there whether it was done, and call with a new key if it was not." None;

    NoServiceRoute "KAI-CALL-0014" Failed 502 "no route of the service fits"
        "The members that offer it are down, cannot be reached, or have no version in the range. Each route that was \
         looked at is named above, with the reason." Some("kai find kind:service");

    AuditBroken "KAI-AUDIT-0001" Failed 409 "the audit log was tampered with"
        "Each entry is signed and names the one before. An entry was altered, removed, or put in another place." None;
    UnknownCode "KAI-USE-0004" NotFound 404 "there is no such code"
        "`kai explain` without a code lists them all." Some("kai explain");
}

impl Code {
    /// The code with this text, in any case.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.entry().code.eq_ignore_ascii_case(text))
    }

    /// A failure of this kind.
    pub fn because(self, message: impl fmt::Display) -> Failure {
        Failure {
            code: self.entry().code.to_owned(),
            message: message.to_string(),
            why: None,
            hint: self.entry().hint.map(str::to_owned),
        }
    }

    /// A failure of this kind about which there is no more to say than its title.
    pub fn plain(self) -> Failure {
        self.because(self.entry().title)
    }
}

/// Something that did not work, ready to be shown. Travels from the node to the command as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A [`Code`] as text; a newer node may send one that this version does not know.
    pub code: String,
    /// What happened, naming the value at fault.
    pub message: String,
    /// Why we think so, where the message does not say it.
    #[serde(default)]
    pub why: Option<String>,
    /// One command to run.
    #[serde(default)]
    pub hint: Option<String>,
}

impl Failure {
    /// Says why.
    #[must_use]
    pub fn why(mut self, why: impl fmt::Display) -> Self {
        self.why = Some(why.to_string());
        self
    }

    /// Names a command that fits this very case.
    #[must_use]
    pub fn hint(mut self, command: impl fmt::Display) -> Self {
        self.hint = Some(command.to_string());
        self
    }

    /// Whether it is of this kind.
    pub fn is(&self, code: Code) -> bool {
        self.code == code.entry().code
    }

    /// What a command that meets it exits with.
    pub fn exit(&self) -> Exit {
        Code::find(&self.code).map_or(Exit::Failed, |code| code.entry().exit)
    }

    /// What the HTTP API answers with.
    pub fn http(&self) -> u16 {
        Code::find(&self.code).map_or(500, |code| code.entry().http)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let mut seen = BTreeSet::new();
        for code in Code::ALL {
            let entry = code.entry();
            assert!(seen.insert(entry.code), "{} twice", entry.code);
            let parts: Vec<&str> = entry.code.split('-').collect();
            assert!(
                matches!(parts.as_slice(), ["KAI", area, number]
                if area.bytes().all(|byte| byte.is_ascii_uppercase()) && number.len() == 4 && number.parse::<u16>().is_ok()),
                "{}",
                entry.code
            );
            assert_eq!(Code::find(&entry.code.to_lowercase()), Some(*code));
            assert!(!entry.title.ends_with('.') && entry.text.ends_with('.'), "{}", entry.code);
            assert!(!entry.text.contains("  "), "{}: {}", entry.code, entry.text);
            assert!((400..=599).contains(&entry.http), "{}", entry.code);
        }
    }

    #[test]
    fn a_failure_survives_the_way_to_the_command() {
        let failure =
            Code::NoSuchMember.because("no member is called `celar`").why("the nearest is `cellar`");
        let read: Failure = serde_json::from_str(&serde_json::to_string(&failure).unwrap()).unwrap();
        assert_eq!(read, failure);
        assert_eq!((read.exit(), read.http()), (Exit::NotFound, 404));
        let newer = Failure { code: "KAI-NEW-0001".to_owned(), ..failure };
        assert_eq!((newer.exit(), newer.http()), (Exit::Failed, 500));
    }
}
