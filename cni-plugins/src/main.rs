//! `skiff-cni`: every plugin in one executable, chosen by the name under which it is called.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::main()
}
