//! Where a process's own log goes: one rotating file, or stderr when no directory is configured.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use weir_types::{Error, Result};

use crate::events;
use crate::rotate::RotatingFile;
use crate::units::ByteSize;

/// Overrides `log.level` in every Weir process that inherits it.
pub const FILTER_VARIABLE: &str = "WEIR_LOG";

/// The `[log]` table of every binary's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Directory of the log file; created if missing. Without it, the log goes to stderr.
    pub dir: Option<PathBuf>,
    /// Name of the log file, which no other process may share; `<program>.log` by default.
    pub file: Option<String>,
    /// What to log: `error`, `warn`, `info`, `debug`, `trace`, or filters such as `info,weir_replication=debug`. The
    /// environment variable `WEIR_LOG` overrides it.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
    /// A file that would grow beyond this is rotated.
    pub file_bytes_max: ByteSize,
    /// Number of files kept, the current one included.
    pub files_max: usize,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            dir: None,
            file: None,
            level: "info".to_owned(),
            format: LogFormat::Human,
            file_bytes_max: ByteSize::mib(32),
            files_max: 5,
        }
    }
}

/// Starts logging for the whole process and sends panics there too. The second call in one process, as tests make it,
/// keeps the first one's settings.
///
/// # Errors
/// `INVALID_ARGUMENT` for a filter that does not parse, `IO` if the file cannot be opened.
pub fn init(program: &str, config: &LogConfig) -> Result<()> {
    let directives = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| config.level.clone());
    let filter = EnvFilter::try_new(&directives).map_err(|error| {
        Error::invalid(format!("log filter {directives:?} does not parse"))
            .with_detail(error.to_string())
            .with_hint(format!("Use a level such as info or debug in log.level or {FILTER_VARIABLE}."))
    })?;
    let layer = tracing_subscriber::fmt::layer();
    let layer = match (open(program, config)?, config.format) {
        (Some(file), LogFormat::Human) => layer.with_ansi(false).with_writer(file).boxed(),
        (Some(file), LogFormat::Json) => layer.json().flatten_event(true).with_writer(file).boxed(),
        (None, LogFormat::Human) => {
            let colours = std::io::stderr().is_terminal();
            layer.with_ansi(colours).with_writer(std::io::stderr).boxed()
        }
        (None, LogFormat::Json) => layer.json().flatten_event(true).with_writer(std::io::stderr).boxed(),
    };
    // What is said about snapshots is remembered whatever the file's level is.
    let events = events::layer(path(program, config));
    if tracing_subscriber::registry().with(layer.with_filter(filter)).with(events).try_init().is_ok() {
        log_panics();
        tracing::info!(program, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "process started");
    }
    Ok(())
}

/// The log file, if there is one.
fn path(program: &str, config: &LogConfig) -> Option<PathBuf> {
    let name = || config.file.clone().unwrap_or_else(|| format!("{program}.log"));
    config.dir.as_ref().map(|dir| dir.join(name()))
}

fn open(program: &str, config: &LogConfig) -> Result<Option<RotatingFile>> {
    let (Some(dir), Some(path)) = (&config.dir, path(program, config)) else { return Ok(None) };
    std::fs::create_dir_all(dir)
        .and_then(|()| RotatingFile::open(path.clone(), config.file_bytes_max.0, config.files_max))
        .map(Some)
        .map_err(|error| Error::io(format!("could not open the log file {}", path.display()), &error))
}

fn log_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(location, message, thread = std::thread::current().name().unwrap_or(""), "thread panicked");
        default(panic);
    }));
}
