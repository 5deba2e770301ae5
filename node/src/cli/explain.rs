//! `kai explain`.

use super::Context;
use crate::{
    errors::{Code, Entry, Exit, Failure},
    text,
};

/// What an error code means, why it happens and what to do. Without a code: all of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// For instance KAI-NET-0003
    code: Option<String>,
}

#[expect(clippy::unused_async, reason = "every subcommand is called alike")]
pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.code {
        Some(code) => {
            let found = Code::find(&code).ok_or_else(|| {
                Code::UnknownCode.because(format!("there is no code `{}`", text::clean(&code)))
            })?;
            let entry = found.entry();
            context.show(&json(entry), || long(entry));
        }
        None => {
            let all: Vec<_> = Code::ALL.iter().map(|code| json(code.entry())).collect();
            context.show(&serde_json::json!({"schema_version": 1, "codes": all}), || {
                let row = |code: &Code| [code.entry().code.to_owned(), code.entry().title.to_owned()];
                let rows: Vec<_> = Code::ALL.iter().map(row).collect();
                text::table(["CODE", "MEANS"], &rows)
            });
        }
    }
    Ok(Exit::Ok)
}

fn json(entry: &Entry) -> serde_json::Value {
    serde_json::json!({
        "schema_version": 1, "code": entry.code, "title": entry.title, "text": entry.text, "hint": entry.hint,
        "exit": entry.exit as u8,
    })
}

fn long(entry: &Entry) -> String {
    let hint = entry.hint.map_or_else(String::new, |hint| format!("\nrun: {hint}\n"));
    format!("{}: {}\n\n{}\n{hint}", entry.code, entry.title, entry.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_explains_itself() {
        for code in Code::ALL {
            let shown = long(code.entry());
            assert!(shown.starts_with(code.entry().code) && shown.len() > 60, "{shown}");
        }
    }
}
