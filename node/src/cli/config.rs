//! `kai config`.

use super::{Context, print, read, say};
use crate::{
    api::Reloaded,
    config::{KEYS, Key, Setting, Sources, names_in, set, with_ids},
    errors::{Code, Exit, Failure},
    text,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Settings. One optional file, `config.toml` in the data folder; `KAI_*` variables and flags of `kai up` beat it.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the value of one setting.
    Get {
        /// For instance network.port
        key: String,
    },
    /// Change one setting in the file. Comments in it stay. A running node takes a reloadable one at once.
    ///
    /// Who may call agents (calls.…) is kept as `members`, `stewards` and ids: names of members are turned into their ids
    /// by the running node, since a name may be another's tomorrow.
    Set {
        /// For instance network.port
        key: String,
        /// The new value.
        value: String,
    },
    /// Check the file and the variables.
    Check,
    /// Every setting with its value.
    Show {
        /// And where each value comes from.
        #[arg(long)]
        origin: bool,
    },
}

pub(super) async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    let sources = Sources::of_process(context.folder.clone(), Vec::new());
    match command {
        Command::Get { key } => {
            let settings = sources.load()?.settings();
            let setting = settings.into_iter().find(|setting| setting.key == key);
            let setting = setting
                .ok_or_else(|| Code::ConfigUnknownKey.because(format!("there is no setting `{key}`")))?;
            context.show(&serde_json::json!({"schema_version": 1, "setting": setting}), || {
                format!("{}\n", setting.raw_text())
            });
        }
        Command::Set { key, value } => change(context, &sources, &key, &value).await?,
        Command::Check => {
            let loaded = sources.load()?;
            for warning in &loaded.warnings {
                say(&format!("warning: {warning}"));
            }
            if context.json {
                print(&format!(
                    "{}\n",
                    serde_json::json!({"schema_version": 1, "warnings": loaded.warnings})
                ));
            } else {
                say("the settings are fine");
            }
        }
        Command::Show { origin } => {
            let settings = sources.load()?.settings();
            context.show(&serde_json::json!({"schema_version": 1, "settings": settings}), || {
                let about = |key: &str| {
                    KEYS.iter().find(|known: &&Key| known.name == key).map_or("", |known| known.about)
                };
                if origin {
                    let rows: Vec<_> = settings
                        .iter()
                        .map(|setting| {
                            [setting.key.clone(), setting.value_text(), setting.origin.to_string()]
                        })
                        .collect();
                    text::table(["KEY", "VALUE", "ORIGIN"], &rows)
                } else {
                    let rows: Vec<_> = settings
                        .iter()
                        .map(|setting| {
                            [setting.key.clone(), setting.value_text(), about(&setting.key).to_owned()]
                        })
                        .collect();
                    text::table(["KEY", "VALUE", "MEANING"], &rows)
                }
            });
        }
    }
    Ok(Exit::Ok)
}

/// Sets a value, and has a running node take it.
async fn change(context: &Context, sources: &Sources, key: &str, value: &str) -> Result<(), Failure> {
    let value = match names_in(key, value).as_slice() {
        [] => value.to_owned(),
        names => with_ids(key, value, &ids_of(context, names).await?)?,
    };
    set(sources, key, &value)?;
    let reloaded = match context.client.post::<Value>("/v1/config/reload", &()).await {
        Ok(answer) => Some(read::<Reloaded>(&answer)?.changes),
        Err(failure) if failure.is(Code::NotRunning) => None,
        Err(failure) => return Err(failure),
    };
    if context.json {
        let changes = reloaded.unwrap_or_default();
        print(&format!("{}\n", serde_json::json!({"schema_version": 1, "done": true, "changes": changes})));
    } else {
        say(told(reloaded.as_deref()));
    }
    Ok(())
}

/// What became of a change, given what a running node made of it.
fn told(reloaded: Option<&[Setting]>) -> &'static str {
    match reloaded {
        None => "set; takes effect at the next `kai up`",
        Some([]) => {
            "set; the running node goes by the same value as before: it had it, or a variable or flag beats the file"
        }
        Some(changes) if changes.iter().all(|change| change.reloadable) => "set; the running node goes by it",
        Some(_) => "set; takes effect when the node is started again: kai down, kai up",
    }
}

/// The ids of members that go by these names now.
async fn ids_of(context: &Context, names: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let answer: Value = context.client.get("/v1/members").await.map_err(|failure| {
        if failure.is(Code::NotRunning) {
            failure.why(format!(
                "`{}` is a name, and only a running node can tell whose; an id needs none",
                names[0]
            ))
        } else {
            failure
        }
    })?;
    let id = |name: &String| {
        let listed = answer["members"].as_array().into_iter().flatten();
        let mut active = listed.filter(|member| member["standing"] == "active");
        let found = active.find(|member| member["name"] == name.as_str())?;
        Some((name.clone(), found["member"].as_str()?.to_owned()))
    };
    names
        .iter()
        .map(|name| {
            id(name).ok_or_else(|| Code::NoSuchMember.because(format!("no active member is called `{name}`")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    #[test]
    fn a_change_says_when_it_counts() {
        let change = |reloadable| Setting {
            key: "calls.default".to_owned(),
            value: serde_json::json!(["members"]),
            origin: Origin::File,
            reloadable,
        };
        assert!(told(None).contains("next `kai up`"));
        assert!(told(Some(&[change(true)])).contains("goes by it"));
        assert!(told(Some(&[change(true), change(false)])).contains("started again"));
        assert!(told(Some(&[])).contains("same value"));
    }
}
