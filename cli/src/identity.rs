//! Who asks, and in which namespace: the one place where the command line finds that out.
//!
//! Each is taken from its flag, else from the environment (`WEIR_OWNER`, `WEIR_NAMESPACE`), else from the configuration file:
//! that of `--config` or `WEIR_CONFIG`, else `weir/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`, if it is there. What
//! none of them says is left to the JobManager.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};
use weir_proto::pb::client::v1 as pb;
use weir_service::config::{self, Config};
use weir_types::quota::{QuotaLevel, check_namespace, check_owner};
use weir_types::{Error, Result};

use crate::args::Global;

/// Who asks.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct OwnerArgs {
    /// Who asks: owns what is made and stands in the records; default: the configuration file's
    #[arg(long, env = "WEIR_OWNER", value_name = "NAME")]
    pub owner: Option<String>,
}

/// Where something is.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct NamespaceArgs {
    /// Namespace that the job or snapshot is in; default: the configuration file's
    #[arg(long, env = "WEIR_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
}

/// What a user calls a snapshot, and where that is looked for.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// Id, unique prefix of an id, name, or absolute directory.
    pub text: String,
    /// Where names are looked for; none: everywhere.
    pub namespace: Option<String>,
}

impl Named {
    /// The request for it.
    pub(crate) fn request(self) -> pb::SnapshotRequest {
        pb::SnapshotRequest { request_id: String::new(), snapshot: self.text, namespace: self.namespace }
    }
}

/// What is listed.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct ScopeArgs {
    /// Of this namespace only; default: the configuration file's, else all
    #[arg(long, env = "WEIR_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
    /// Of all namespaces, whatever the environment and the configuration file say
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    /// Who asks.
    owner: Option<String>,
    /// Where jobs are made, looked for and listed.
    namespace: Option<String>,
}

impl Config for File {}

/// What the configuration file says about who asks.
#[derive(Debug, Default)]
pub(crate) struct Identity(File);

impl Identity {
    /// Reads the configuration file.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` that names file and line, or for a name that is none; `NOT_FOUND` if a file that was named is not
    /// there; `IO`.
    pub(crate) fn load(global: &Global) -> Result<Self> {
        let home = |variable: &str| std::env::var_os(variable);
        let file = match (&global.config, default_file(home)) {
            (Some(path), _) => read(path)?,
            (None, Some(path)) if path.exists() => read(&path)?,
            _ => File::default(),
        };
        Ok(Self(file))
    }

    /// Who asks; empty: nobody in particular.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if that cannot be an owner.
    pub(crate) fn owner(&self, args: &OwnerArgs) -> Result<String> {
        let owner = given(&args.owner).or(self.0.owner.as_ref());
        owner.map_or(Ok(()), |owner| check_owner(owner))?;
        Ok(owner.cloned().unwrap_or_default())
    }

    /// The namespace to work in; none: the JobManager's default one to make jobs in, and any to find them in.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if that cannot be a namespace.
    pub(crate) fn namespace(&self, args: &NamespaceArgs) -> Result<Option<String>> {
        let namespace = given(&args.namespace).or(self.0.namespace.as_ref());
        namespace.map_or(Ok(()), |namespace| check_namespace(namespace))?;
        Ok(namespace.cloned())
    }

    /// The namespace to list; none: all.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if that cannot be a namespace.
    pub(crate) fn scope(&self, args: &ScopeArgs) -> Result<Option<String>> {
        if args.all_namespaces {
            return Ok(None);
        }
        self.namespace(&NamespaceArgs { namespace: args.namespace.clone() })
    }

    /// The quota level or policy that is meant: `job:NAME` is a job of the namespace to work in.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it is no level.
    pub(crate) fn level(&self, args: &NamespaceArgs, text: &str) -> Result<QuotaLevel> {
        QuotaLevel::parse_in(self.namespace(args)?.as_deref(), text)
    }
}

/// An empty flag or variable says nothing.
fn given(name: &Option<String>) -> Option<&String> {
    name.as_ref().filter(|name| !name.is_empty())
}

fn default_file(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(directory.join("weir").join("config.toml"))
}

fn read(path: &Path) -> Result<File> {
    let file: File = config::read(path)?;
    let checked = [file.owner.as_deref().map(check_owner), file.namespace.as_deref().map(check_namespace)];
    let place = |error: Error| error.with_detail(format!("in {}", path.display()));
    checked.into_iter().flatten().collect::<Result<()>>().map_err(place)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(owner: &str, namespace: &str) -> Identity {
        Identity(File { owner: Some(owner.to_owned()), namespace: Some(namespace.to_owned()) })
    }

    #[test]
    fn a_flag_goes_before_the_file_and_an_empty_one_says_nothing() {
        let file = identity("ada", "team");
        let owner = |owner: Option<&str>| OwnerArgs { owner: owner.map(str::to_owned) };
        assert_eq!(file.owner(&owner(Some("bob"))).unwrap(), "bob");
        assert_eq!(file.owner(&owner(Some(""))).unwrap(), "ada");
        assert_eq!(Identity::default().owner(&owner(None)).unwrap(), "");
        let other = ScopeArgs { namespace: Some("other".to_owned()), all_namespaces: false };
        assert_eq!(file.scope(&other).unwrap().as_deref(), Some("other"));
        assert_eq!(file.scope(&ScopeArgs::default()).unwrap().as_deref(), Some("team"));
        assert_eq!(file.scope(&ScopeArgs { namespace: None, all_namespaces: true }).unwrap(), None);
    }

    #[test]
    fn hostile_names_are_refused_wherever_they_come_from() {
        let hostile = NamespaceArgs { namespace: Some("../../x".to_owned()) };
        assert_eq!(Identity::default().namespace(&hostile).unwrap_err().code, weir_types::Code::InvalidArgument);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, "owner = \"ada\"\nnamespace = \"../../x\"\n").unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.code, weir_types::Code::InvalidArgument);
        assert!(error.detail.unwrap().starts_with("in "));
        std::fs::write(&path, "ownr = \"ada\"\n").unwrap();
        assert_eq!(read(&path).unwrap_err().code, weir_types::Code::InvalidArgument);
    }

    #[test]
    fn a_job_without_a_namespace_is_one_of_the_present_namespace() {
        let level = |text: &str| identity("ada", "team").level(&NamespaceArgs::default(), text).unwrap().to_string();
        assert_eq!(level("job:totals"), "job:team/totals");
        assert_eq!(level("job:other/totals"), "job:other/totals");
        assert_eq!(level("owner:bob"), "owner:bob");
        let none = Identity::default().level(&NamespaceArgs::default(), "job:totals").unwrap();
        assert_eq!(none.to_string(), "job:default/totals");
    }

    #[test]
    fn the_file_lies_where_other_programs_keep_theirs() {
        let home = |name: &str| (name == "HOME").then(|| OsString::from("/users/ada"));
        assert_eq!(default_file(home), Some(PathBuf::from("/users/ada/.config/weir/config.toml")));
        let both = |name: &str| Some(OsString::from(if name == "HOME" { "/users/ada" } else { "/etc/ada" }));
        assert_eq!(default_file(both), Some(PathBuf::from("/etc/ada/weir/config.toml")));
        assert_eq!(default_file(|_| None), None);
    }
}
