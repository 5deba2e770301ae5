//! The NAT laboratory from Rust, and the real binaries in it. Tests use only the command line and the local API.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod hostile;
pub mod igd;
pub mod lab;
pub mod local;
pub mod node;
pub mod story;

/// Whether the machine has what a test needs; says what is missing on a line of its own. With `CI=true` that is a
/// failure, because CI installs it.
///
/// # Panics
/// With `CI=true`, when something is missing.
pub fn has(test: &str, needs: &[(&str, bool)]) -> bool {
    let missing: Vec<&str> = needs.iter().filter(|(_, there)| !there).map(|(what, _)| *what).collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} needs {missing}");
    println!("skipped: {test} needs {missing}");
    false
}

/// Whether a program is on the path.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

/// What the laboratory needs.
pub fn lab_needs() -> Vec<(&'static str, bool)> {
    vec![
        ("root", rustix::process::geteuid().is_root()),
        ("nft (nftables)", on_path("nft")),
        ("ip (iproute2)", on_path("ip")),
        ("python3", on_path("python3")),
        ("/dev/net/tun", std::path::Path::new("/dev/net/tun").exists()),
        ("curl", on_path("curl")),
    ]
}

/// How often each laboratory cell is tried: once, or 20 times with `CI_LONG=1`.
pub fn tries() -> u32 {
    if std::env::var("CI_LONG").as_deref() == Ok("1") { 20 } else { 1 }
}
