//! `kai invite`.

use super::{Context, print, say};
use crate::{
    api::{InviteRequest, TextRequest},
    errors::{Code, Exit, Failure},
    os, text,
};
use serde_json::Value;
use std::{
    io::IsTerminal,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Without a subcommand: make an invitation and print its code.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// As what the newcomer joins: member, steward, relay.
    #[arg(long, default_value = "member")]
    role: String,
    /// How many may join with it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    uses: u32,
    /// How long the offer stands.
    #[arg(long = "for", default_value = "24h", value_parser = humantime::parse_duration, value_name = "TIME")]
    ttl: Duration,
    /// How long the membership lasts [default: without end].
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    membership: Option<Duration>,
    /// For someone on this network: the code may hold only addresses of it.
    #[arg(long)]
    lan: bool,
    /// A word for your own list.
    #[arg(long)]
    note: Option<String>,
    /// Show the QR code also where standard output is no terminal.
    #[arg(long)]
    qr: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Every invitation this node made.
    List,
    /// Withdraw an invitation.
    Revoke {
        /// Its id, or the beginning of it.
        id: String,
    },
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    match &args.command {
        None => create(context, args).await,
        Some(Command::List) => list(context).await,
        Some(Command::Revoke { id }) => {
            let request = TextRequest { text: id.clone(), why: String::new(), yes: true };
            let answer: Value = context.client.post("/v1/invites/revoke", &request).await?;
            if context.json {
                context.show(&answer, String::new);
            } else {
                say("withdrawn");
            }
            Ok(Exit::Ok)
        }
    }
}

async fn create(context: &Context, args: Args) -> Result<Exit, Failure> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let request = InviteRequest {
        role: args.role,
        uses: args.uses,
        ttl_ms: millis(args.ttl),
        for_ms: args.membership.map(millis),
        lan: args.lan,
        note: args.note,
    };
    let answer: Value = context.client.post("/v1/invite", &request).await?;
    if context.json {
        context.show(&answer, String::new);
        return Ok(Exit::Ok);
    }
    let code = answer["code"].as_str().ok_or_else(|| Code::Protocol.plain())?;
    let is_terminal = std::io::stdout().is_terminal();
    if is_terminal || args.qr {
        match text::qr(&code.to_uppercase(), os::columns()) {
            Some(qr) => print(&format!("{qr}\n")),
            None => say("the terminal is too narrow for the QR code"),
        }
    }
    print(&format!("{code}\n"));
    let until = text::when(answer["expires_ms"].as_u64().unwrap_or_default());
    let who = text::count(request.uses as usize, "newcomer");
    say(&format!("lets {who} join as {} until {until}; whoever has the code may use it", request.role));
    Ok(Exit::Ok)
}

async fn list(context: &Context) -> Result<Exit, Failure> {
    let answer: Value = context.client.get("/v1/invites").await?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    context.show(&answer, || {
        let row = |invite: &Value| {
            let (used, uses) =
                (invite["used"].as_u64().unwrap_or_default(), invite["uses"].as_u64().unwrap_or_default());
            let expires_ms = invite["expires_ms"].as_u64().unwrap_or_default();
            let state = if invite["revoked"] == true {
                "withdrawn"
            } else if used >= uses {
                "used"
            } else if expires_ms < now_ms {
                "expired"
            } else {
                "open"
            };
            [
                invite["id"].as_str().map(|id| id.chars().take(20).collect()).unwrap_or_default(),
                invite["role"].as_str().unwrap_or_default().to_lowercase(),
                state.to_owned(),
                format!("{used}/{uses}"),
                text::when(expires_ms),
                text::clean(invite["note"].as_str().unwrap_or("-")),
            ]
        };
        let rows: Vec<_> = answer["invites"].as_array().into_iter().flatten().map(row).collect();
        text::table(["ID", "ROLE", "STATE", "USED", "UNTIL", "NOTE"], &rows)
    });
    Ok(Exit::Ok)
}
