//! Layers of settings, merged, with the origin of each value.

use super::{Config, FILE, Key, Kind, Profile, read_file};
use crate::errors::{Code, Failure};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path as FilePath, PathBuf},
};
use toml::{Table, Value};

/// A key, part by part.
pub(super) type Path = Vec<String>;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "name")]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In the file.
    File,
    /// In this profile of the file.
    Profile(String),
    /// In this variable.
    Variable(String),
    /// In a flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str(FILE),
            Self::Profile(name) => write!(f, "{FILE}, profile {name}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// What settings are made of, besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The data folder, with its file.
    pub folder: PathBuf,
    /// The environment's `KAI_*` variables.
    pub variables: Vec<(String, String)>,
    /// Flags: keys and values as written.
    pub flags: Vec<(String, String)>,
}

/// Variables that are no settings.
const OTHER_VARIABLES: [&str; 1] = ["KAI_FOLDER"];

/// Values, and for each of their keys the variable that set it.
type Set = (Table, BTreeMap<String, String>);

/// Settings with what is worth knowing of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Where each value that is no default was set, by key.
    pub origins: BTreeMap<String, Origin>,
    /// What is odd but no error: variables that set nothing.
    pub warnings: Vec<String>,
}

/// One setting as `kai config show` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Its key.
    pub key: String,
    /// Its value; null when nothing is set and there is no default.
    pub value: serde_json::Value,
    /// Where it was set.
    pub origin: Origin,
    /// Whether a running node takes a new value.
    pub reloadable: bool,
}

impl Sources {
    /// The folder's file and the variables of this process.
    pub fn of_process(folder: PathBuf, flags: Vec<(String, String)>) -> Self {
        let variables = std::env::vars().filter(|(name, _)| name.starts_with("KAI_")).collect();
        Self { folder, variables, flags }
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// [`Code::ConfigMalformed`], [`Code::ConfigUnknownKey`], [`Code::ConfigBadValue`].
    pub fn load(&self) -> Result<Loaded, Failure> {
        self.load_with(read_file(&self.folder)?.as_deref().unwrap_or_default())
    }

    /// As [`Sources::load`], with this text in place of the file's.
    ///
    /// # Errors
    /// As [`Sources::load`].
    pub fn load_with(&self, file: &str) -> Result<Loaded, Failure> {
        let mut file = parse_file(&self.folder.join(FILE), file)?;
        let mut profiles = take_profiles(&mut file)?;
        for (name, table) in &profiles {
            check(table, &Origin::Profile(name.clone()))?;
        }
        let (variables, warnings) = self.variables()?;
        let flags = self.flags()?;

        let mut merged = Merged::default();
        merged.layer(&file, |_| Origin::File)?;
        let above = |table: &Table| table.get("profile").cloned();
        let profile = above(&flags).or_else(|| above(&variables.0)).or_else(|| above(&file));
        let profile = match profile {
            Some(value) => value.try_into::<Profile>().map_err(|_| Code::ConfigNoProfile.plain())?,
            None => Profile::default(),
        };
        if let Some(table) = profiles.remove(profile.as_str()) {
            merged.layer(&table, |_| Origin::Profile(profile.as_str().to_owned()))?;
        }
        merged
            .layer(&variables.0, |key| Origin::Variable(variables.1.get(key).cloned().unwrap_or_default()))?;
        merged.layer(&flags, |_| Origin::Flag)?;
        let config = Value::Table(merged.table)
            .try_into()
            .map_err(|error| Code::ConfigMalformed.because(one_line(&error)))?;
        Ok(Loaded { config, origins: merged.origins, warnings })
    }

    fn variables(&self) -> Result<(Set, Vec<String>), Failure> {
        let (mut table, mut names, mut warnings) = (Table::new(), BTreeMap::new(), Vec::new());
        for (name, text) in &self.variables {
            if OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            match super::KEYS.iter().find(|key| key.variable().as_deref() == Some(name)) {
                Some(key) => {
                    let path: Path = key.name.split('.').map(str::to_owned).collect();
                    let value = parse_value(key, text)
                        .map_err(|why| Code::ConfigBadValue.because(format!("{name}: {why}")))?;
                    put(&mut table, &path, value);
                    names.insert(key.name.to_owned(), name.clone());
                }
                None => warnings.push(format!("{name} is set in the environment but is no setting")),
            }
        }
        Ok(((table, names), warnings))
    }

    fn flags(&self) -> Result<Table, Failure> {
        let mut table = Table::new();
        for (key, text) in &self.flags {
            let path = parse_key(key)?;
            let found = Key::find(&path).ok_or_else(|| unknown(key, &Origin::Flag))?;
            let value = parse_value(found, text)
                .map_err(|why| Code::ConfigBadValue.because(format!("{key}: {why}")))?;
            put(&mut table, &path, value);
        }
        Ok(table)
    }
}

impl Loaded {
    /// Every setting, in the order of [`super::KEYS`], rules of single agents where there are any.
    pub fn settings(&self) -> Vec<Setting> {
        let effective = Value::try_from(&self.config).expect("settings consist of what TOML can express");
        let mut leaves = Vec::new();
        if let Value::Table(table) = &effective {
            collect(table, &mut Vec::new(), &mut leaves);
        }
        let mut settings = Vec::new();
        for key in super::KEYS {
            let found: Vec<_> = leaves.iter().filter(|(path, _)| Key::find(path) == Some(key)).collect();
            if found.is_empty() && !key.name.contains('*') {
                settings.push(self.setting(key, key.name.to_owned(), serde_json::Value::Null));
            }
            for (path, value) in found {
                let value = serde_json::to_value(value).unwrap_or_default();
                settings.push(self.setting(key, write_key(path), value));
            }
        }
        settings
    }

    fn setting(&self, key: &Key, name: String, value: serde_json::Value) -> Setting {
        let origin = self.origins.get(&name).cloned().unwrap_or(Origin::Default);
        Setting { key: name, value, origin, reloadable: key.reloadable }
    }
}

/// The settings whose values differ, as they are in `new`, those a running node takes first. One that `new` does not have
/// has no value.
pub fn changes(old: &[Setting], new: &[Setting]) -> Vec<Setting> {
    let before: BTreeMap<&str, &serde_json::Value> =
        old.iter().map(|setting| (setting.key.as_str(), &setting.value)).collect();
    let gone = old.iter().filter(|setting| !new.iter().any(|other| other.key == setting.key));
    let gone = gone.map(|setting| Setting {
        value: serde_json::Value::Null,
        origin: Origin::Default,
        ..setting.clone()
    });
    let differs = |setting: &&Setting| before.get(setting.key.as_str()) != Some(&&setting.value);
    let mut changed: Vec<Setting> = new.iter().filter(differs).cloned().chain(gone).collect();
    changed.sort_by_key(|setting| !setting.reloadable);
    changed
}

#[derive(Default)]
struct Merged {
    table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Merged {
    fn layer(&mut self, layer: &Table, origin: impl Fn(&str) -> Origin) -> Result<(), Failure> {
        let mut leaves = Vec::new();
        collect(layer, &mut Vec::new(), &mut leaves);
        for (path, value) in leaves {
            let name = write_key(&path);
            let origin = origin(&name);
            check_leaf(&path, &value, &origin)?;
            put(&mut self.table, &path, value);
            self.origins.insert(name, origin);
        }
        Ok(())
    }
}

fn check(table: &Table, origin: &Origin) -> Result<(), Failure> {
    let mut leaves = Vec::new();
    collect(table, &mut Vec::new(), &mut leaves);
    leaves.iter().try_for_each(|(path, value)| check_leaf(path, value, origin))
}

/// Takes the value alone for settings, so that what serde says is about this key.
fn check_leaf(path: &Path, value: &Value, origin: &Origin) -> Result<(), Failure> {
    let name = write_key(path);
    if Key::find(path).is_none() {
        return Err(unknown(&name, origin));
    }
    let mut alone = Table::new();
    put(&mut alone, path, value.clone());
    Value::Table(alone)
        .try_into::<Config>()
        .map(drop)
        .map_err(|error| Code::ConfigBadValue.because(format!("{name} ({origin}): {}", one_line(&error))))
}

fn unknown(name: &str, origin: &Origin) -> Failure {
    let failure =
        Code::ConfigUnknownKey.because(format!("`{}` ({origin}) is no setting", crate::text::clean(name)));
    match Key::nearest(name) {
        Some(near) => failure.why(format!("`{near}` is one")),
        None => failure,
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().lines().next().unwrap_or("malformed").to_owned()
}

pub(super) fn parse_file(path: &FilePath, text: &str) -> Result<Table, Failure> {
    text.parse::<Table>().map_err(|error| {
        let line =
            error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Code::ConfigMalformed.because(format!("{}, line {line}: {}", path.display(), one_line(&error)))
    })
}

fn take_profiles(file: &mut Table) -> Result<BTreeMap<String, Table>, Failure> {
    let mut profiles = BTreeMap::new();
    let Some(section) = file.remove("profiles") else { return Ok(profiles) };
    let malformed = || Code::ConfigBadValue.because("profiles: each profile is a table of settings");
    for (name, table) in section.as_table().ok_or_else(malformed)? {
        if !Profile::ALL.iter().any(|(_, known)| known == name) {
            return Err(
                Code::ConfigNoProfile.because(format!("`{}` is no profile", crate::text::clean(name)))
            );
        }
        let table = table.as_table().ok_or_else(malformed)?;
        if table.contains_key("profile") {
            return Err(unknown(&format!("profiles.{name}.profile"), &Origin::File));
        }
        profiles.insert(name.clone(), table.clone());
    }
    Ok(profiles)
}

fn collect(table: &Table, path: &mut Path, leaves: &mut Vec<(Path, Value)>) {
    for (name, value) in table {
        path.push(name.clone());
        match value {
            Value::Table(inner) => collect(inner, path, leaves),
            leaf => leaves.push((path.clone(), leaf.clone())),
        }
        path.pop();
    }
}

fn put(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [name] => {
            table.insert(name.clone(), value);
        }
        [name, rest @ ..] => {
            let inner = table.entry(name.clone()).or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// A key as people write it. Parts with other than plain characters may stand in quotes, as in TOML, but need not
/// unless they hold a dot.
pub(super) fn parse_key(text: &str) -> Result<Path, Failure> {
    let path: Path = if text.contains(['"', '\'']) {
        let keys = toml_edit::Key::parse(text).map_err(|_| unknown(text, &Origin::Flag))?;
        keys.iter().map(|key| key.get().to_owned()).collect()
    } else {
        text.split('.').map(str::to_owned).collect()
    };
    Ok(path)
}

/// The key as TOML has it.
pub(super) fn write_key(path: &Path) -> String {
    let part = |part: &String| toml_edit::Key::new(part).display_repr().into_owned();
    path.iter().map(part).collect::<Vec<_>>().join(".")
}

/// A value as written on a command line or in a variable.
pub(super) fn parse_value(key: &Key, text: &str) -> Result<Value, String> {
    match key.kind {
        Kind::Text => Ok(Value::String(text.to_owned())),
        Kind::Switch => text
            .parse()
            .map(Value::Boolean)
            .map_err(|_| format!("`{}` is neither true nor false", crate::text::clean(text))),
        Kind::Number => text
            .parse()
            .map(Value::Integer)
            .map_err(|_| format!("`{}` is not a whole number", crate::text::clean(text))),
        Kind::List if text.trim_start().starts_with('[') => {
            let table: Table =
                format!("list = {text}").parse().map_err(|error: toml::de::Error| one_line(&error))?;
            table.get("list").cloned().filter(|_| table.len() == 1).ok_or_else(|| "not a list".to_owned())
        }
        Kind::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
    }
}

impl Setting {
    /// The value as TOML has it; `unset` when there is none.
    pub fn value_text(&self) -> String {
        match toml::Value::try_from(&self.value) {
            Ok(value) if !self.value.is_null() => value.to_string(),
            _ => "unset".to_owned(),
        }
    }

    /// The value for scripts: text without its quotes.
    pub fn raw_text(&self) -> String {
        match &self.value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => String::new(),
            _ => self.value_text(),
        }
    }
}
