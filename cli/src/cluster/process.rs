//! Starting, recognising, signalling and awaiting the cluster's processes.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use weir_types::{Error, Result};

/// How often to look whether a process has ended or has written its addresses.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A process, told apart from a later one that reuses its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// The process id.
    pub pid: u32,
    /// When it was started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub started: u64,
}

impl ProcessId {
    /// The running process with this number; none if there is none, or only its remains (a zombie).
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name, in parentheses, may hold anything; the fields after it are numbers.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { pid, started })
    }

    /// Whether it still runs.
    pub(crate) fn is_running(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_running()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // It may have ended since; that is what was wanted.
            let _ended = kill_process(pid, signal);
        }
    }

    /// Resident memory in bytes; none if it has ended.
    pub(crate) fn resident_bytes(self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }

    /// Waits until it has ended; false if it has not by the deadline.
    pub(crate) async fn ended(self, deadline: Instant) -> bool {
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        true
    }
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The name within the cluster: `tm-1`.
    pub name: &'a str,
    /// The binary's name: `weir-taskmanager`.
    pub binary: &'a str,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where its logs go.
    pub log_dir: &'a Path,
    /// Ends with this process, even when that is killed.
    pub exit_with_parent: bool,
}

/// A process that was started by this one.
#[derive(Debug)]
pub(crate) struct Started {
    /// Which process it is.
    pub id: ProcessId,
    child: Child,
    output: PathBuf,
    addresses: PathBuf,
}

impl Launch<'_> {
    /// Starts it, in a process group of its own, so that Ctrl-C in the terminal does not hit it.
    ///
    /// # Errors
    /// `NOT_FOUND` if the binary is missing, `IO` if it cannot be started.
    pub(crate) fn start(self) -> Result<Started> {
        let binary = find_binary(self.binary)?;
        let output = self.log_dir.join(format!("{}.out", self.name));
        let addresses = self.log_dir.join(format!("{}.addresses", self.name));
        let failed = |error: &std::io::Error| Error::io(format!("could not start {}", self.binary), error);
        if let Err(error) = std::fs::remove_file(&addresses)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(failed(&error));
        }
        let out = OpenOptions::new().create(true).append(true).open(&output).map_err(|error| failed(&error))?;
        let errors: File = out.try_clone().map_err(|error| failed(&error))?;
        let mut command = Command::new(binary);
        command.args(&self.arguments).arg("--log-dir").arg(self.log_dir).arg("--address-file").arg(&addresses);
        if self.exit_with_parent {
            command.arg("--exit-with-parent").arg(std::process::id().to_string());
        }
        command.stdin(Stdio::null()).stdout(out).stderr(errors).process_group(0);
        let child = command.spawn().map_err(|error| failed(&error))?;
        let id = ProcessId::of(child.id()).unwrap_or(ProcessId { pid: child.id(), started: 0 });
        Ok(Started { id, child, output, addresses })
    }
}

impl Started {
    /// Waits until the process listens and has said where.
    ///
    /// # Errors
    /// With what the process printed last if it ended instead; `TIMEOUT` at the deadline.
    pub(crate) async fn addresses(&mut self, deadline: Instant) -> Result<weir_service::net::AddressFile> {
        loop {
            if let Some(file) = weir_service::net::AddressFile::read(&self.addresses)?
                && file.pid == self.id.pid
            {
                return Ok(file);
            }
            self.check_alive()?;
            if Instant::now() >= deadline {
                return Err(Error::new(weir_types::Code::Timeout, "a process of the cluster does not come up")
                    .with_detail(format!("see {}", self.output.display())));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Checks that the process has not ended.
    ///
    /// # Errors
    /// With what it printed last.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let status = match self.child.try_wait() {
            Ok(None) => return Ok(()),
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let printed = std::fs::read_to_string(&self.output).unwrap_or_default();
        let lines: Vec<&str> = printed.lines().collect();
        let last = lines[lines.len().saturating_sub(8)..].join("\n");
        Err(Error::new(weir_types::Code::FailedPrecondition, "a process of the cluster ended at once")
            .with_detail(format!("{status}\n{last}"))
            .with_hint(format!("The whole output is in {}.", self.output.display())))
    }
}

/// The binary beside this one, else on the PATH.
fn find_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().ok().and_then(|path| path.parent().map(|dir| dir.join(name)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = own.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join(name)));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Error::not_found(format!("the binary {name} is neither beside weir nor on the PATH"))
            .with_hint("Build all binaries with `cargo build --bins`.")
    })
}
