//! The real `kai-relay`, built with the tests so that they never run a stale one.

fn main() -> std::process::ExitCode {
    kos_bootstrap::main()
}
