//! `kai members`.

use super::{Context, find::observers, say};
use crate::{
    api::TextRequest,
    errors::{Exit, Failure},
    text,
};
use serde_json::Value;
use std::time::{SystemTime, UNIX_EPOCH};

/// Without a subcommand: who is in, and how they are reached.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Show those who were removed or left, too.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// End a membership. The member can do nothing any more within two seconds.
    Remove {
        /// Name, id, or the beginning of an id.
        name: String,
        /// A reason, for the others.
        #[arg(long, default_value = "")]
        why: String,
    },
    /// Bring back a member that was removed or left.
    Reinstate {
        /// Name, id, or the beginning of an id.
        name: String,
    },
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.command {
        None => list(context, args.all).await,
        Some(Command::Remove { name, why }) => {
            change(context, "/v1/members/remove", &name, why, "is no member any more").await
        }
        Some(Command::Reinstate { name }) => {
            change(context, "/v1/members/reinstate", &name, String::new(), "is a member again").await
        }
    }
}

async fn change(
    context: &Context,
    route: &str,
    name: &str,
    why: String,
    outcome: &str,
) -> Result<Exit, Failure> {
    let request = TextRequest { text: name.to_owned(), why, yes: true };
    let answer: Value = context.client.post(route, &request).await?;
    if context.json {
        context.show(&answer, String::new);
    } else {
        say(&format!("{} {outcome}", text::clean(name)));
    }
    Ok(Exit::Ok)
}

async fn list(context: &Context, all: bool) -> Result<Exit, Failure> {
    let answer: Value = context.client.get("/v1/members").await?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    context.show(&answer, || render(&answer, all, now_ms));
    Ok(Exit::Ok)
}

fn render(answer: &Value, all: bool, now_ms: u64) -> String {
    let members = answer["members"].as_array().into_iter().flatten();
    let row = |member: &Value| {
        let (name, link) = (text::clean(member["name"].as_str().unwrap_or_default()), &member["link"]);
        let me = member["me"] == true;
        let path = match (me, link["path"].as_str()) {
            (true, _) => "this node".to_owned(),
            (false, Some(path)) => path.to_owned(),
            (false, None) => "-".to_owned(),
        };
        let status = match member["standing"].as_str() {
            Some("active") => member["health"].as_str().unwrap_or_default().to_owned(),
            standing => standing.unwrap_or_default().to_owned(),
        };
        [
            name,
            text::clean(member["address"].as_str().unwrap_or_default()),
            status,
            member["since_ms"]
                .as_u64()
                .map_or_else(|| "-".to_owned(), |since_ms| text::ago(since_ms, now_ms)),
            observers(&member["observers"]),
            text::clean(member["version"].as_str().unwrap_or("-")),
            member["role"].as_str().unwrap_or_default().to_lowercase(),
            path,
            link["rtt_ms"].as_f64().map_or_else(|| "-".to_owned(), text::millis),
            member["member"].as_str().map(|id| text::short_id(&id)).unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = members.filter(|member| all || member["standing"] == "active").map(row).collect();
    let heading =
        ["NAME", "ADDRESS", "STATUS", "SINCE", "OBSERVERS", "VERSION", "ROLE", "PATH", "RTT", "MEMBER"];
    text::table(heading, &rows)
}
