//! `kai fsck`.

use super::{Context, print};
use crate::{
    api::ErrorAnswer,
    audit::Entry,
    errors::{Code, Exit, Failure},
};
use kos_governance::{genesis::Genesis, invite::Invite};
use kos_protocol::{
    id::FederationId,
    key_log::KeyEvent,
    object::{Object, Scope, Unverified},
};
use kos_shell::{check_item, tables};
use kos_store::{Finding, Malformed, Report, Severity, TableCheck, fsck};

/// Examines the data folder of a node that is not running: modes, ledger, every row, index. Changes nothing.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[expect(clippy::unused_async, reason = "every subcommand is called alike")]
pub(super) async fn run(context: &Context, _: Args) -> Result<Exit, Failure> {
    let report = fsck(&context.folder, &tables::schema(), &checks());
    let failure = failure(&report.findings);
    if context.json {
        print(&format!("{}\n", json(&report, failure.as_ref())));
    } else {
        print(&text(&report.findings));
    }
    match (failure, report.worst()) {
        // One object holds findings and failure.
        (Some(failure), _) if context.json => Ok(failure.exit()),
        (Some(failure), _) => Err(failure),
        (None, Some(Severity::Warning)) => Ok(Exit::Warnings),
        (None, _) => Ok(Exit::Ok),
    }
}

fn failure(findings: &[Finding]) -> Option<Failure> {
    let errors = findings.iter().filter(|finding| finding.severity() == Severity::Error);
    errors.into_iter().next().map(|first| match first {
        Finding::NoFolder { .. } => Code::DataDamaged.because("there is no data folder").hint("kai up"),
        _ => Code::DataDamaged.plain(),
    })
}

fn severity(finding: &Finding) -> &'static str {
    match finding.severity() {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn json(report: &Report, failure: Option<&Failure>) -> serde_json::Value {
    let finding =
        |finding: &Finding| serde_json::json!({"severity": severity(finding), "what": finding.to_string()});
    let mut answer = failure.map_or_else(
        || serde_json::json!({"schema_version": 1}),
        |failure| serde_json::json!(ErrorAnswer::new(failure)),
    );
    answer["findings"] = report.findings.iter().map(finding).collect();
    answer["ledger_rows"] = serde_json::json!(report.ledger_rows);
    answer
}

fn text(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is wrong\n".to_owned();
    }
    findings.iter().map(|finding| format!("{}: {finding}\n", severity(finding))).collect()
}

/// What the rows of each table must be.
fn checks() -> Vec<TableCheck> {
    let malformed = |what: &str| Malformed(what.to_owned());
    vec![
        tables::KEY_EVENTS.check(|_, event| parse::<KeyEvent>(&event, Scope::Global).map(drop)),
        tables::FEDERATIONS.check(move |id, genesis| {
            let genesis = Genesis::parse(&genesis).map_err(|error| Malformed(error.to_string()))?;
            if *genesis.id().as_bytes() == id { Ok(()) } else { Err(malformed("a genesis under another id")) }
        }),
        tables::INVITES.check(|(federation, _), invite| {
            parse::<Invite>(&invite, Scope::Federation(FederationId::from_bytes(federation))).map(drop)
        }),
        tables::AUDIT.check(move |seq, entry| {
            let entry = parse::<Entry>(&entry, Scope::Global)?;
            if entry.claim().seq == seq { Ok(()) } else { Err(malformed("an entry under another number")) }
        }),
        tables::LEDGER_ITEMS
            .check(|(federation, key), item| check_item(federation, &key, &item).map_err(Malformed)),
        // Of these the types of key and value say all there is to say.
        tables::SETTINGS.check(|_, _| Ok(())),
        tables::COUNTERS.check(|_, _| Ok(())),
        tables::AGENT_KEYS.check(|_, _| Ok(())),
        tables::PEER_COUNTERS.check(|_, _| Ok(())),
        tables::OUTCOMES.check(|_, _| Ok(())),
        tables::WAYS.check(|_, _| Ok(())),
    ]
}

fn parse<T: Object>(bytes: &[u8], scope: Scope) -> Result<Unverified<T>, Malformed> {
    Unverified::parse(bytes, scope).map_err(|error| Malformed(error.to_string()))
}
