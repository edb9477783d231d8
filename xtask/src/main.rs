//! `cargo xtask`: the project's own commands. They need nothing but a Rust toolchain, and little of it: this crate
//! stays small because every one of them compiles it first.

mod run;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
Usage: cargo xtask COMMAND [ARGUMENTS]

  test [--release] [FILTER…]     build the binaries that tests start, then run all tests
  quickstart [--release] [ARG…]  build the binaries, then run `weir quickstart ARG…`
<<<<<<< HEAD
  sim [SEEDS]                    run so many seeds of the simulations (default 10000)
=======
  sim [SEEDS]                    run so many seeds of the simulation of raft groups (default 10000)
  soak [--debug] [--FLAG VALUE…]  torment a cluster of hosts in containers: --minutes (30), --seed, --faults, --report
>>>>>>> e02aace (wip)
  tidy                           check what neither rustc nor clippy checks
  bench [ARG…]                   run the micro-benchmarks, as `cargo bench` would with ARG…";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((command, rest)) = arguments.split_first() else { bail!("no command given\n\n{USAGE}") };
    match command.as_str() {
        "test" => run::test(rest),
        "quickstart" => run::quickstart(rest),
        "sim" => run::simulate(rest),
        "soak" => run::soak(rest),
        "tidy" => tidy::check(),
        "bench" => run::bench(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("unknown command {other:?}\n\n{USAGE}"),
    }
}
