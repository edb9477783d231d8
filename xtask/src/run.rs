//! Building and running what cargo alone would not build together: tests that start the workspace's own binaries, and
//! the quickstart. Binaries are always built first, with the same profile, so that none is stale.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Tells the tests where the binaries are that they start.
const BIN_DIR_VARIABLE: &str = "WEIR_BIN_DIR";

/// How long a soak lasts unless somebody says otherwise.
const SOAK_MINUTES: &str = "30";

/// The profile that both the binaries and whatever runs them are built with.
#[derive(Clone, Copy)]
enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// The profile that a leading `--release` chooses, and the arguments after it.
    fn take(arguments: &[String]) -> (Self, &[String]) {
        match arguments.split_first() {
            Some((first, rest)) if first == "--release" => (Profile::Release, rest),
            _ => (Profile::Dev, arguments),
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Profile::Dev => &[],
            Profile::Release => &["--release"],
        }
    }

    fn directory(self) -> &'static str {
        match self {
            Profile::Dev => "debug",
            Profile::Release => "release",
        }
    }
}

/// Runs all tests, with cargo-nextest if it is installed.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    let started = Instant::now();
    let (profile, filters) = Profile::take(arguments);
    let binaries = build_binaries(profile)?;
    let nextest = cargo().args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if nextest.is_ok_and(|status| status.success()) {
        let mut command = cargo();
        command.args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]).args(profile.flags());
        return succeed(command.args(filters).env(BIN_DIR_VARIABLE, &binaries));
    }
    let mut command = cargo();
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]).args(profile.flags());
    command.arg("--").args(filters).env(BIN_DIR_VARIABLE, &binaries).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("could not start {command:?}"))?;
    let mut total = Totals::default();
    for line in BufReader::new(child.stdout.take().context("no output to read")?).lines() {
        let line = line?;
        println!("{line}");
        total.add(&line);
    }
    let passed = child.wait()?.success();
    let Totals { passed: count, failed, ignored, filtered } = total;
    println!(
        "\ntest result: {}. {count} passed; {failed} failed; {ignored} ignored; 0 measured; {filtered} filtered out; \
         finished in {:.2}s (all crates)",
        if passed { "ok" } else { "FAILED" },
        started.elapsed().as_secs_f64()
    );
    if passed { Ok(()) } else { bail!("some tests failed") }
}

/// Runs `weir quickstart` on freshly built binaries.
pub(crate) fn quickstart(arguments: &[String]) -> Result<()> {
    let (profile, rest) = Profile::take(arguments);
    let weir = build_binaries(profile)?.join("weir");
    succeed(Command::new(weir).arg("quickstart").args(rest))
}

/// Runs the micro-benchmarks.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    succeed(cargo().args(["bench", "--locked", "--package", "weir-benches"]).args(arguments))
}

/// Runs many seeds of the simulations, optimised.
pub(crate) fn simulate(arguments: &[String]) -> Result<()> {
    let seeds = match arguments {
        [] => "10000",
        [seeds] if seeds.parse::<u64>().is_ok() => seeds,
        _ => bail!("the only argument is how many seeds to run"),
    };
    let arguments = ["test", "--locked", "--release", "--package", "weir-simulation", "--lib", "no_seed"];
    succeed(cargo().args(arguments).env("WEIR_SIMULATION_SEEDS", seeds))
}

/// Torments a cluster of hosts in containers for a while: `--minutes`, `--seed`, `--faults A,B`, `--report FILE`.
pub(crate) fn soak(arguments: &[String]) -> Result<()> {
    let (profile, rest) = match arguments.split_first() {
        Some((first, rest)) if first == "--debug" => (Profile::Dev, rest),
        _ => (Profile::Release, arguments),
    };
    let mut command = cargo();
    command.args(["test", "--workspace", "--locked", "--test", "hosts"]).args(profile.flags());
    command.args(["--", "--nocapture", "torment"]).env("WEIR_SOAK_MINUTES", SOAK_MINUTES);
    for pair in rest.chunks(2) {
        let [flag, value] = pair else { bail!("{} needs a value", pair[0]) };
        let variable = match flag.as_str() {
            "--minutes" => "WEIR_SOAK_MINUTES",
            "--seed" => "WEIR_CHAOS_SEED",
            "--faults" => "WEIR_SOAK_FAULTS",
            "--report" => "WEIR_SOAK_REPORT",
            other => bail!("unknown flag {other}; there are --minutes, --seed, --faults and --report"),
        };
        // The test runs in the directory of its package.
        let value =
            if flag == "--report" { std::path::absolute(value)?.into() } else { std::ffi::OsString::from(value) };
        command.env(variable, value);
    }
    let binaries = build_binaries(profile)?;
    succeed(command.env(BIN_DIR_VARIABLE, &binaries))
}

/// Builds all binaries of the workspace and returns their directory. The whole workspace at once, so that features, and
/// with them compiled dependencies, are the same for every command.
fn build_binaries(profile: Profile) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--workspace", "--bins", "--locked", "--exclude", "xtask", "--exclude", "weir-benches"])
        .args(profile.flags());
    succeed(&mut command)?;
    Ok(target_directory()?.join(profile.directory()))
}

fn target_directory() -> Result<PathBuf> {
    let metadata = metadata()?;
    let directory = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(directory.into())
}

/// What cargo says about the workspace's own packages.
pub(crate) fn metadata() -> Result<serde_json::Value> {
    let mut command = cargo();
    command.args(["metadata", "--no-deps", "--format-version", "1", "--locked", "--offline"]);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("could not start {command:?}"))?;
    if !output.status.success() {
        bail!("cargo metadata failed");
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The cargo that runs this program, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map_or_else(|| PathBuf::from("."), PathBuf::from)
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not start {command:?}"))?;
    match status.success() {
        true => Ok(()),
        false => bail!("{} failed: {status}", command.get_program().display()),
    }
}

/// The sum of the lines with which each test binary ends.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
}

impl Totals {
    fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ").and_then(|line| line.split_once(". ")) else { return };
        for count in counts.1.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let number = number.parse::<u64>().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "filtered out" => self.filtered += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_test_binaries_add_up() {
        let mut total = Totals::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: FAILED. 4 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            total.add(line);
        }
        assert_eq!(total, Totals { passed: 7, failed: 5, ignored: 1, filtered: 2 });
    }
}
