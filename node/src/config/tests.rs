use super::*;
use std::os::unix::fs::MetadataExt;

fn sources(variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let own = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    Sources { folder: "/nowhere".into(), variables: own(variables), flags: own(flags) }
}

fn refusal(file: &str) -> String {
    let failure = sources(&[], &[]).load_with(file).unwrap_err();
    format!("{}: {}", failure.code, failure.message)
}

#[test]
fn a_flag_beats_a_variable_beats_the_profile_beats_the_file_beats_the_default() {
    let file = r#"
        profile = "dev"
        log.level = "warn"
        [network]
        port = 1
        mdns = false
        upnp = false
        [profiles.dev.network]
        port = 2
        mdns = true
        [profiles.prod.network]
        port = 9
    "#;
    let loaded = sources(&[("KAI_NETWORK_PORT", "3"), ("KAI_LOG_LEVEL", "error")], &[("network.port", "4")])
        .load_with(file)
        .unwrap();
    let network = &loaded.config.network;
    assert_eq!((network.port, network.mdns, network.upnp, network.kad), (4, true, false, true));
    assert_eq!(loaded.config.log.level.as_str(), "error");
    let origin = |key: &str| loaded.origins.get(key).cloned();
    assert_eq!(origin("network.port"), Some(Origin::Flag));
    assert_eq!(origin("log.level"), Some(Origin::Variable("KAI_LOG_LEVEL".to_owned())));
    assert_eq!(origin("network.mdns"), Some(Origin::Profile("dev".to_owned())));
    assert_eq!(origin("network.upnp"), Some(Origin::File));
    assert_eq!(origin("network.kad"), None);
}

#[test]
fn the_profile_can_be_chosen_from_above_the_file() {
    let file =
        "profile = \"dev\"\n[profiles.dev.log]\nlevel = \"debug\"\n[profiles.staging.log]\nlevel = \"trace\"";
    let level = |sources: Sources| sources.load_with(file).unwrap().config.log.level.as_str().to_owned();
    assert_eq!(level(sources(&[], &[])), "debug");
    assert_eq!(level(sources(&[("KAI_PROFILE", "staging")], &[])), "trace");
    assert_eq!(level(sources(&[("KAI_PROFILE", "staging")], &[("profile", "prod")])), "info");
}

#[test]
fn a_complaint_names_the_key_the_place_and_the_reason() {
    assert_eq!(refusal("[network]\nprot = 1"), "KAI-CONF-0001: `network.prot` (config.toml) is no setting");
    let failure = sources(&[], &[]).load_with("[network]\nprot = 1").unwrap_err();
    assert_eq!(failure.why.as_deref(), Some("`network.port` is one"));
    let bad = refusal("[network]\nport = 70000");
    assert!(bad.starts_with("KAI-CONF-0002: network.port (config.toml): ") && bad.contains("70000"), "{bad}");
    let bad = refusal("[profiles.dev.api]\nlisten = \"0.0.0.0:80\"");
    assert!(bad.contains("api.listen (config.toml, profile dev)") && bad.contains("loopback"), "{bad}");
    let bad = refusal("name = \"Attic\"");
    assert!(bad.contains("`Attic` is not a name"), "{bad}");
    let bad = refusal("[network]\nbootstrap = [\"/ip4/1.2.3.4/tcp/1\"]");
    assert!(bad.contains("/p2p/ID"), "{bad}");
    let bad = refusal("\n\nlog = ");
    assert!(bad.starts_with("KAI-CONF-0003: /nowhere/config.toml, line 3: "), "{bad}");
    assert!(refusal("[profiles.test]\nname = \"a\"").starts_with("KAI-CONF-0005"));
    assert!(refusal("profile = \"test\"").starts_with("KAI-CONF-0002"));
    assert!(refusal("[calls.agents.notes]\nallow = []").starts_with("KAI-CONF-0001"));
    let variable = sources(&[("KAI_NETWORK_MDNS", "yes")], &[]).load_with("").unwrap_err();
    assert_eq!(variable.message, "KAI_NETWORK_MDNS: `yes` is neither true nor false");
}

#[test]
fn a_variable_that_sets_nothing_is_mentioned() {
    let loaded = sources(&[("KAI_NETWORK_PROT", "1"), ("KAI_FOLDER", "/x")], &[]).load_with("").unwrap();
    assert_eq!(loaded.warnings, ["KAI_NETWORK_PROT is set in the environment but is no setting"]);
}

#[test]
fn every_key_can_be_set_and_every_setting_has_a_key() {
    let peer = "/ip4/192.0.2.1/udp/4/quic-v1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
    for key in KEYS {
        let name = key.name.replace('*', "kBridge:notes");
        let value = match key.name {
            "name" => "attic",
            "profile" => "dev",
            "log.level" => "debug",
            // Not what they are anyway.
            "network.mdns" | "network.upnp" | "network.kad" => "false",
            "api.listen" => "127.0.0.1:0",
            "network.external_addresses" | "network.listen_addresses" | "network.bootstrap" => peer,
            _ => match key.kind {
                Kind::Switch => "true",
                Kind::Number => "7",
                Kind::List => "stewards",
                Kind::Text => "text",
            },
        };
        let loaded = sources(&[], &[(&name, value)]).load_with("").unwrap();
        let settings = loaded.settings();
        let set: Vec<&Setting> = settings.iter().filter(|setting| setting.origin == Origin::Flag).collect();
        assert_eq!(set.len(), 1, "{name}");
        assert_eq!(set[0].reloadable, key.reloadable);
        let mut before = Config::default();
        before.reload(&loaded.config);
        assert_eq!(before == loaded.config, key.reloadable, "{name} is marked rightly");
        // With no value of its own, each key is listed all the same, so that people can find it.
        let listed = sources(&[], &[]).load_with("").unwrap().settings();
        assert_eq!(listed.iter().any(|setting| setting.key == name), !key.name.contains('*'), "{name}");
    }
}

#[test]
fn setting_a_value_keeps_the_rest_of_the_file() {
    let place = tempfile::tempdir().unwrap();
    let sources = Sources { folder: place.path().join("kai"), ..Sources::default() };
    let read = || read_file(&sources.folder).unwrap().unwrap();
    set(&sources, "network.port", "4001").unwrap();
    assert_eq!(read(), "[network]\nport = 4001\n");
    assert_eq!(std::fs::metadata(sources.folder.join(FILE)).unwrap().mode() & 0o777, 0o600);
    let commented =
        "# mine\nname = \"attic\" # the house\n\n[network]\n# forwarded by the router\nport = 4001 # fixed\n";
    std::fs::write(sources.folder.join(FILE), commented).unwrap();
    set(&sources, "network.port", "4002").unwrap();
    set(&sources, "calls.agents.kBridge:notes.allow", "members,stewards").unwrap();
    set(&sources, "profiles.dev.log.level", "debug").unwrap();
    let expected = commented.replace("port = 4001", "port = 4002")
        + "\n[calls.agents.\"kBridge:notes\"]\nallow = [\"members\", \"stewards\"]\n\n[profiles.dev.log]\nlevel = \"debug\"\n";
    assert_eq!(read(), expected);
}

#[test]
fn a_bad_value_leaves_the_file_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    let sources = Sources { folder: place.path().to_owned(), ..Sources::default() };
    set(&sources, "name", "attic").unwrap();
    for (key, value, code) in [
        ("name", "Attic", Code::ConfigBadValue),
        ("nmae", "attic", Code::ConfigUnknownKey),
        ("network", "1", Code::ConfigUnknownKey),
        ("network.port", "many", Code::ConfigBadValue),
        ("api.listen", "192.0.2.1:80", Code::ConfigBadValue),
        ("profiles.test.name", "attic", Code::ConfigNoProfile),
        ("calls.default", "[1]", Code::ConfigBadValue),
        ("calls.default", "cellar", Code::ConfigBadValue),
    ] {
        let failure = set(&sources, key, value).unwrap_err();
        assert!(failure.is(code), "{key}: {failure}");
    }
    assert_eq!(read_file(place.path()).unwrap().unwrap(), "name = \"attic\"\n");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
}

#[test]
fn a_reload_says_what_it_takes_and_what_needs_a_restart() {
    let load = |file: &str| sources(&[], &[]).load_with(file).unwrap();
    let old = load("network.port = 1\ncalls.agents.\"kBridge:x\".deny = [\"stewards\"]").settings();
    let new = load("network.port = 2\nlog.level = \"debug\"").settings();
    let changed: Vec<(String, String, bool)> = changes(&old, &new)
        .into_iter()
        .map(|change| (change.key.clone(), change.value_text(), change.reloadable))
        .collect();
    let expected = [
        ("log.level", "\"debug\"", true),
        ("calls.agents.\"kBridge:x\".deny", "unset", true),
        ("network.port", "2", false),
    ];
    assert_eq!(changed, expected.map(|(key, value, reloads)| (key.to_owned(), value.to_owned(), reloads)));
    assert_eq!(changes(&old, &old), []);
}

#[test]
fn names_among_callers_become_ids() {
    let ids = [("cellar".to_owned(), "kos1xyz".to_owned())].into();
    for key in ["calls.default", "calls.agents.kBridge:notes.allow", "profiles.dev.calls.default"] {
        for list in ["members, cellar", "[\"members\", \"cellar\"]"] {
            assert_eq!(names_in(key, list), ["cellar"], "{key} {list}");
            assert_eq!(with_ids(key, list, &ids).unwrap(), "members,kos1xyz");
        }
    }
    for (key, text) in [("name", "cellar"), ("network.bootstrap", "cellar"), ("calls.nothing", "cellar")] {
        assert_eq!(names_in(key, text), Vec::<String>::new(), "{key}");
    }
    assert_eq!(names_in("calls.default", "members,stewards"), Vec::<String>::new());
}
