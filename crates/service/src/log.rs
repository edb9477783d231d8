//! Where a process's own log goes: one rotating file, or stderr when no directory is configured.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use weir_types::{Error, Result};

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
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer();
    let installed = match (open(program, config)?, config.format) {
        (Some(file), LogFormat::Human) => registry.with(layer.with_ansi(false).with_writer(file)).try_init(),
        (Some(file), LogFormat::Json) => registry.with(layer.json().flatten_event(true).with_writer(file)).try_init(),
        (None, LogFormat::Human) => {
            let colours = std::io::stderr().is_terminal();
            registry.with(layer.with_ansi(colours).with_writer(std::io::stderr)).try_init()
        }
        (None, LogFormat::Json) => {
            registry.with(layer.json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
    };
    if installed.is_ok() {
        log_panics();
        tracing::info!(program, version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "process started");
    }
    Ok(())
}

fn open(program: &str, config: &LogConfig) -> Result<Option<RotatingFile>> {
    let Some(dir) = &config.dir else { return Ok(None) };
    let path = dir.join(config.file.clone().unwrap_or_else(|| format!("{program}.log")));
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
