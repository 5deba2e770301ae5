//! Another language's verifier: `vectors/verify.py`, which shares no line with ours.

use crate::folder;
use std::process::Command;

/// Runs it, unless Python or its one package is not there. In CI they must be.
#[test]
fn a_python_verifier_agrees() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python).args(["-c", "import cryptography"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        let hint = "pip install -r protocol/vectors/requirements.txt";
        let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!is_ci, "{python} with `cryptography` must be there in CI: {hint}");
        println!("skipped: verify.py needs {python} with `cryptography` ({hint})");
        return;
    }
    let output = Command::new(&python).arg(folder().join("verify.py")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    print!("{said}");
}
