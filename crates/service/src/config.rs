//! Layered configuration: defaults, then a TOML file, then the environment, then flags; later layers win key by key.
//!
//! Every layer is checked against the configuration's type by itself before they are merged, so that a mistake is
//! reported with the file and line, the variable or the flag that it is in. Unknown keys are mistakes.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};
use weir_types::{Error, Result};

use crate::net;

/// A binary's configuration.
///
/// The struct and every nested table derive `Serialize` and `Deserialize` with `#[serde(default,
/// deny_unknown_fields)]`, so that each layer may leave out what it does not set and nothing misspelt goes unseen.
pub trait Config: Serialize + DeserializeOwned + Default {
    /// Checks relations between keys, after merging.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming the keys.
    fn validate(&self) -> Result<()> {
        Ok(())
    }
}

/// Which program is being configured.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The binary's name, for example `weir-taskmanager`.
    pub name: &'static str,
    /// What its environment variables start with, for example `WEIR_TASKMANAGER_`; the key follows in capitals, with
    /// `__` between table and key: `WEIR_TASKMANAGER_HTTP__ADDRESS` is `http.address`.
    pub env_prefix: &'static str,
}

/// The options that every server takes; binaries flatten it into their own arguments.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServiceArgs {
    /// Read the configuration from this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one configuration key, for example `--set log.level=debug`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the effective configuration as TOML and exit
    #[arg(long)]
    pub print_config: bool,
    /// Write the addresses listened on to this file once they are bound
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// Shut down when the process with this id, which must be the parent, has died
    #[arg(long, value_name = "PID")]
    pub exit_with_parent: Option<u32>,
}

impl ServiceArgs {
    /// Logs the bound addresses and writes them to the address file, if one was asked for.
    ///
    /// # Errors
    /// `IO` if the file cannot be written.
    pub fn announce(&self, listeners: &[(&str, &tokio::net::TcpListener)]) -> Result<()> {
        let mut addresses = Vec::with_capacity(listeners.len());
        for (name, listener) in listeners {
            let address: SocketAddr =
                listener.local_addr().map_err(|error| Error::io("could not read a listener's own address", &error))?;
            tracing::info!(listener = name, %address, "listening");
            addresses.push(((*name).to_owned(), address));
        }
        match &self.address_file {
            Some(path) => net::AddressFile::new(addresses).write(path),
            None => Ok(()),
        }
    }
}

/// Keys set by a binary's own flags, such as `--data-dir` for `data_dir`.
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<(&'static str, String)>);

impl Overrides {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` (dotted) if the flag was given.
    #[must_use]
    pub fn set(mut self, key: &'static str, value: Option<impl ToString>) -> Self {
        self.0.extend(value.map(|value| (key, value.to_string())));
        self
    }
}

/// Loads the effective configuration. With `--print-config` it prints it and returns `None`: there is nothing to run.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the file and line, variable or flag; `IO` or `NOT_FOUND` for an unreadable file.
pub fn load<C: Config>(program: Program, args: &ServiceArgs, flags: &Overrides) -> Result<Option<C>> {
    let config: C = merge(program, args, flags, std::env::vars_os())?;
    if !args.print_config {
        return Ok(Some(config));
    }
    print!("{}", render(&config)?);
    Ok(None)
}

/// The configuration as a TOML file that [`load`] would read back.
///
/// # Errors
/// `INTERNAL` if the type cannot be written as TOML.
pub fn render<C: Config>(config: &C) -> Result<String> {
    toml::to_string_pretty(config)
        .map_err(|error| Error::internal("could not print the configuration").with_detail(error.to_string()))
}

fn merge<C: Config>(
    program: Program,
    args: &ServiceArgs,
    flags: &Overrides,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<C> {
    let mut merged = match &args.config {
        Some(path) => read_file::<C>(path)?,
        None => Table::new(),
    };
    for (variable, value) in environment(program, env)? {
        let key = variable[program.env_prefix.len()..].to_ascii_lowercase().replace("__", ".");
        overlay(&mut merged, single::<C>(&format!("the environment variable {variable}"), &key, &value)?);
    }
    for (key, value) in &flags.0 {
        overlay(&mut merged, single::<C>(&format!("the flag for {key}"), key, value)?);
    }
    for setting in &args.set {
        let (key, value) = setting.split_once('=').ok_or_else(|| {
            Error::invalid(format!("--set {setting} has no value"))
                .with_hint("Write --set KEY=VALUE, for example --set log.level=debug.")
        })?;
        overlay(&mut merged, single::<C>(&format!("--set {setting}"), key.trim(), value.trim())?);
    }
    let config: C = merged.try_into().map_err(|error| wrong("the merged configuration", &error))?;
    config.validate()?;
    Ok(config)
}

/// A configuration file by itself, without any other layer.
///
/// # Errors
/// `INVALID_ARGUMENT` that names file and line; `IO` or `NOT_FOUND` for an unreadable file.
pub fn read<C: Config>(path: &Path) -> Result<C> {
    let config: C = read_file::<C>(path)?.try_into().map_err(|error| wrong(&path.display().to_string(), &error))?;
    config.validate()?;
    Ok(config)
}

fn read_file<C: Config>(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let message = format!("could not read the configuration file {}", path.display());
        match error.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(message).with_detail(error.to_string()),
            _ => Error::io(message, &error),
        }
    })?;
    let place = path.display().to_string();
    // Straight from the text, because only then do errors know their line.
    toml::from_str::<C>(&text).map_err(|error| wrong(&place, &error))?;
    toml::from_str(&text).map_err(|error| wrong(&place, &error))
}

/// The program's own variables, in the order of their names so that merging is deterministic.
fn environment(program: Program, env: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with(program.env_prefix)) else { continue };
        let Some(value) = value.to_str() else {
            return Err(Error::invalid(format!("the environment variable {name} is not valid UTF-8")));
        };
        found.push((name.to_owned(), value.to_owned()));
    }
    found.sort();
    Ok(found)
}

/// The table that sets just `key`, checked against the configuration's type. The text is read as a TOML value where
/// that fits, else as a plain string, so that neither `8` nor `debug` needs quotes.
fn single<C: Config>(source: &str, key: &str, text: &str) -> Result<Table> {
    let check = |value: Value| {
        let table = nested(key, value);
        table.clone().try_into::<C>().map(|_| table)
    };
    let plain = check(Value::String(text.to_owned()));
    let fitting = match text.parse::<Value>() {
        Ok(typed) => check(typed).or_else(|error| plain.map_err(|_| error)),
        Err(_) => plain,
    };
    fitting.map_err(|error| wrong(source, &error))
}

fn nested(key: &str, value: Value) -> Table {
    let mut parts = key.rsplit('.');
    let mut table = Table::new();
    table.insert(parts.next().unwrap_or_default().to_owned(), value);
    for part in parts {
        table = Table::from_iter([(part.to_owned(), Value::Table(table))]);
    }
    table
}

/// Puts `upper` over `base`: tables merge key by key, everything else is replaced.
fn overlay(base: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn wrong(source: &str, error: &toml::de::Error) -> Error {
    Error::invalid(format!("invalid configuration in {source}"))
        .with_detail(error.to_string().trim_end().to_owned())
        .with_hint("--print-config shows every key with its effective value.")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use weir_types::Code;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        name: String,
        slots: u32,
        http: Http,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Http {
        address: String,
        timeout_ms: Option<u64>,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self { name: "default".into(), slots: 2, http: Http { address: "127.0.0.1:0".into(), timeout_ms: None } }
        }
    }

    impl Config for Sample {
        fn validate(&self) -> Result<()> {
            if self.slots == 0 { Err(Error::invalid("slots must be at least 1")) } else { Ok(()) }
        }
    }

    const PROGRAM: Program = Program { name: "weir-sample", env_prefix: "WEIR_SAMPLE_" };

    fn load(file: Option<&str>, env: &[(&str, &str)], flags: &Overrides, set: &[&str]) -> Result<Sample> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let args = ServiceArgs {
            config: file.map(|_| path),
            set: set.iter().map(|setting| (*setting).to_owned()).collect(),
            ..ServiceArgs::default()
        };
        merge(PROGRAM, &args, flags, env.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn later_layers_win_key_by_key() {
        let file = "name = \"file\"\nslots = 3\n[http]\naddress = \"file:1\"\ntimeout_ms = 7\n";
        let env = [
            ("WEIR_SAMPLE_SLOTS", "4"),
            ("WEIR_SAMPLE_HTTP__ADDRESS", "env:2"),
            ("WEIR_OTHER_SLOTS", "9"),
            ("PATH", "/bin"),
        ];
        let flags = Overrides::new().set("slots", Some(5)).set("name", None::<String>);
        let config = load(Some(file), &env, &flags, &["http.timeout_ms = 8"]).unwrap();
        let http = Http { address: "env:2".into(), timeout_ms: Some(8) };
        assert_eq!(config, Sample { name: "file".into(), slots: 5, http });
    }

    #[test]
    fn without_any_layer_the_defaults_hold() {
        assert_eq!(load(None, &[], &Overrides::new(), &[]).unwrap(), Sample::default());
    }

    #[test]
    fn a_text_key_takes_a_value_that_looks_like_a_number() {
        let none = Overrides::new();
        assert_eq!(load(None, &[("WEIR_SAMPLE_NAME", "7")], &none, &[]).unwrap().name, "7");
        assert_eq!(load(None, &[], &none, &["name=\"quoted\""]).unwrap().name, "quoted");
        assert_eq!(load(None, &[], &none, &["name=a=b"]).unwrap().name, "a=b");
    }

    #[test]
    fn mistakes_are_reported_where_they_were_made() {
        let none = Overrides::new();
        let detail = |error: Error| error.detail.unwrap();

        let error = load(Some("slots = 3\nslotz = 4\n"), &[], &none, &[]).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument);
        assert!(error.message.ends_with("sample.toml"), "{}", error.message);
        let shown = detail(error);
        assert!(shown.contains("line 2") && shown.contains("unknown field `slotz`"), "{shown}");

        let error = load(None, &[("WEIR_SAMPLE_HTTP__PORT", "1")], &none, &[]).unwrap_err();
        assert_eq!(error.message, "invalid configuration in the environment variable WEIR_SAMPLE_HTTP__PORT");
        assert!(detail(error).contains("unknown field `port`"));

        let error = load(None, &[], &none, &["slots=many"]).unwrap_err();
        assert_eq!(error.message, "invalid configuration in --set slots=many");

        let error = load(None, &[], &none, &["slots"]).unwrap_err();
        assert_eq!(error.message, "--set slots has no value");

        let error = load(None, &[], &none, &["slots=0"]).unwrap_err();
        assert_eq!(error.message, "slots must be at least 1");
    }

    #[test]
    fn the_printed_configuration_reads_back_the_same() {
        let text = render(&Sample::default()).unwrap();
        assert_eq!(load(Some(&text), &[], &Overrides::new(), &[]).unwrap(), Sample::default());
    }

    #[test]
    fn a_missing_file_is_named() {
        let args = ServiceArgs { config: Some("nowhere.toml".into()), ..ServiceArgs::default() };
        let error = merge::<Sample>(PROGRAM, &args, &Overrides::new(), std::iter::empty()).unwrap_err();
        assert_eq!(error.code, Code::NotFound);
        assert!(error.message.contains("nowhere.toml"));
    }
}
