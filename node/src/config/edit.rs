//! Changing one value of the file, leaving everything else in it as it was.

use super::{FILE, Key, Party, Sources, layers, read_file};
use crate::errors::{Code, Failure};
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};
use toml_edit::{DocumentMut, Item, Table, Value};

/// Sets `key` to `text` in the folder's file: checks the whole before writing, and writes whole or not at all.
///
/// With a profile, sets it in that profile's section. Comments and order stay.
///
/// # Errors
/// [`Code::ConfigUnknownKey`], [`Code::ConfigBadValue`], [`Code::ConfigMalformed`]: the file is as it was.
/// [`Code::ConfigUnwritable`].
pub fn set(sources: &Sources, key: &str, text: &str) -> Result<(), Failure> {
    let old = read_file(&sources.folder)?.unwrap_or_default();
    let new = with_value(&sources.folder, &old, key, text)?;
    // The file alone must hold, whatever the environment of this moment adds to it.
    Sources { folder: sources.folder.clone(), ..Sources::default() }.load_with(&new)?;
    write(&sources.folder, &new).map_err(|error| {
        Code::ConfigUnwritable.because(format!("{}: {error}", sources.folder.join(FILE).display()))
    })
}

/// The names among the callers that `text` lists for `key`: each must be a member's id before it can be set.
pub fn names_in(key: &str, text: &str) -> Vec<String> {
    let is_of_calls = |path: &Vec<String>| named(path).first().is_some_and(|section| section == "calls");
    let found = layers::parse_key(key).ok().filter(is_of_calls).and_then(|path| Key::find(&named(&path)));
    let Some(Ok(toml::Value::Array(parties))) = found.map(|found| layers::parse_value(found, text)) else {
        return Vec::new();
    };
    let texts = parties.iter().filter_map(toml::Value::as_str);
    texts.filter(|text| Party::is_name(text)).map(str::to_owned).collect()
}

/// The list `text` with names replaced by the ids that `ids` has for them.
///
/// # Errors
/// [`Code::ConfigBadValue`]: not a list.
pub fn with_ids(key: &str, text: &str, ids: &BTreeMap<String, String>) -> Result<String, Failure> {
    let refuse = |why: &str| Code::ConfigBadValue.because(format!("{key}: {why}"));
    let path = layers::parse_key(key)?;
    let found = Key::find(&named(&path)).ok_or_else(|| refuse("no setting"))?;
    let value = layers::parse_value(found, text).map_err(|why| refuse(&why))?;
    let parties =
        value.as_array().ok_or_else(|| refuse("not a list"))?.iter().filter_map(|item| item.as_str());
    Ok(parties.map(|party| ids.get(party).map_or(party, String::as_str)).collect::<Vec<_>>().join(","))
}

/// The setting a path names, without its profile.
fn named(path: &[String]) -> Vec<String> {
    match path {
        [section, _, rest @ ..] if section == "profiles" => rest.to_vec(),
        _ => path.to_vec(),
    }
}

fn with_value(folder: &Path, old: &str, key: &str, text: &str) -> Result<String, Failure> {
    layers::parse_file(&folder.join(FILE), old)?;
    let path = layers::parse_key(key)?;
    let Some(found) = Key::find(&named(&path)) else {
        let failure = Code::ConfigUnknownKey.because(format!("`{}` is no setting", crate::text::clean(key)));
        return Err(match Key::nearest(key) {
            Some(near) => failure.why(format!("`{near}` is one")),
            None => failure,
        });
    };
    let refuse = |why: String| Code::ConfigBadValue.because(format!("{key}: {why}"));
    let value = layers::parse_value(found, text).map_err(refuse)?;
    let value: Value =
        value.to_string().parse().map_err(|error: toml_edit::TomlError| refuse(error.to_string()))?;
    let mut document: DocumentMut =
        old.parse().map_err(|error: toml_edit::TomlError| Code::ConfigMalformed.because(error.message()))?;
    put(document.as_table_mut(), &path, value)
        .map_err(|()| refuse("it is a section in the file".to_owned()))?;
    Ok(document.to_string())
}

/// Puts a value where it is, keeping the comments around it, or at the end of its section.
fn put(table: &mut Table, path: &[String], mut value: Value) -> Result<(), ()> {
    let (name, sections) = path.split_last().ok_or(())?;
    let mut section: &mut dyn toml_edit::TableLike = table;
    for part in sections {
        let inner = section.entry(part).or_insert_with(|| {
            let mut inner = Table::new();
            inner.set_implicit(true);
            Item::Table(inner)
        });
        section = inner.as_table_like_mut().ok_or(())?;
    }
    match section.get_mut(name) {
        Some(Item::Value(old)) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        Some(Item::None) | None => {
            section.insert(name, Item::Value(value));
        }
        Some(_) => return Err(()),
    }
    Ok(())
}

/// Replaces the file, whole or not at all, durable when it returns.
fn write(folder: &Path, text: &str) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new_path = folder.join(format!("{FILE}.new"));
    match fs::remove_file(&new_path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new_path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new_path, folder.join(FILE))?;
    crate::os::sync_folder(folder)
}
