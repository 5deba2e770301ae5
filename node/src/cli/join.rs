//! `kai join`.

use super::{Context, say};
use crate::{
    api::TextRequest,
    errors::{Code, Exit, Failure},
    os, text,
};
use serde_json::Value;
use std::io::{IsTerminal, Read};

/// Shows what the code offers and asks before anything is sent.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The code, or `-` to read it from standard input.
    code: String,
    /// Accept without being asked.
    #[arg(long, short)]
    yes: bool,
    /// Stay in the present federation as well, if it has content.
    #[arg(long)]
    keep: bool,
}

/// Longest code read from standard input.
const CODE_BYTES_MAX: u64 = 16 * 1024;

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let code = if args.code == "-" { from_stdin()? } else { args.code };
    let mut request = TextRequest { text: code, why: String::new(), yes: args.keep };
    let preview: Value = context.client.post("/v1/join/preview", &request).await?;
    if !context.json {
        say(&render(&preview));
    }
    if preview["current_has_content"] == true && !args.keep {
        let may_ask = !args.yes && std::io::stdin().is_terminal();
        if !may_ask || !asked("the present federation has content; stay in it as well?")? {
            return Err(Code::HasContent.plain().hint("kai join --keep CODE"));
        }
        request.yes = true;
    }
    if !args.yes && !is_accepted()? {
        return Err(Code::Declined.plain());
    }
    let joined: Value = context.client.post("/v1/join", &request).await?;
    context.show(&joined, || {
        let members = joined["members"].as_u64().unwrap_or_default();
        let name = text::clean(joined["federation_name"].as_str().unwrap_or_default());
        let own = text::clean(joined["name"].as_str().unwrap_or_default());
        format!("joined {name} as {own}, {}\n", text::count(members as usize, "member"))
    });
    Ok(Exit::Ok)
}

fn from_stdin() -> Result<String, Failure> {
    let mut code = String::new();
    std::io::stdin()
        .take(CODE_BYTES_MAX)
        .read_to_string(&mut code)
        .map_err(|error| Code::BadCode.because(format!("standard input: {error}")))?;
    Ok(code.trim().to_owned())
}

fn is_accepted() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Code::NoTerminal.because("nobody is there to accept").hint("kai join --yes CODE"));
    }
    asked("join?")
}

fn asked(question: &str) -> Result<bool, Failure> {
    eprint!("{question} [y/N] ");
    let line = os::read_line().map_err(|error| Code::NoTerminal.because(error))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

fn render(preview: &Value) -> String {
    let shown = |name: &str| text::clean(preview[name].as_str().unwrap_or_default());
    let until = preview["until_ms"]
        .as_u64()
        .map_or_else(|| "without end".to_owned(), |ms| format!("until {}", text::when(ms)));
    let mut out = text::facts(&[
        ("federation", format!("{} ({})", shown("federation_name"), shown("federation"))),
        ("invited by", shown("issuer")),
        ("role", shown("role").to_lowercase()),
        ("membership", until),
        ("offer", format!("stands until {}", text::when(preview["expires_ms"].as_u64().unwrap_or_default()))),
    ]);
    for right in preview["rights"].as_array().into_iter().flatten() {
        out += &format!("  - {}\n", text::clean(right.as_str().unwrap_or_default()));
    }
    out
}
