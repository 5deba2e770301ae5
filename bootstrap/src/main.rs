//! The `kai-relay` binary. Everything is in the library, so that tests can build the same program.

fn main() -> std::process::ExitCode {
    kos_bootstrap::main()
}
