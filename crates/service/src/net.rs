//! Listening, and telling others where: a taken port is a clear error, and port 0 is found through the address file.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use weir_types::{Code, Error, Result};

/// Listens on `address`, `host:port`, port 0 for any. `key` is the configuration key the address came from.
///
/// # Errors
/// `FAILED_PRECONDITION` if the port is taken, `INVALID_ARGUMENT` for an address that is not one of this machine's.
pub async fn bind(key: &str, address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let message = format!("could not listen on {address}");
        let (code, hint) = match error.kind() {
            ErrorKind::AddrInUse => (
                Code::FailedPrecondition,
                format!("Another process uses that port. Stop it, or choose another with --set {key}=HOST:PORT; port 0 takes any that is free."),
            ),
            ErrorKind::PermissionDenied => {
                (Code::FailedPrecondition, format!("Ports below 1024 need privileges; choose another with --set {key}=HOST:PORT."))
            }
            _ => (Code::InvalidArgument, format!("{key} must be HOST:PORT with an address of this machine.")),
        };
        Error::new(code, message).with_detail(error.to_string()).with_hint(hint)
    })
}

/// What a process writes with `--address-file`: its id and the addresses it listens on, by name (`rpc`, `http`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressFile {
    /// The process that listens; a file of another process is a stale one.
    pub pid: u32,
    /// The bound addresses.
    pub addresses: BTreeMap<String, SocketAddr>,
}

impl AddressFile {
    /// The addresses of this process.
    pub fn new(addresses: impl IntoIterator<Item = (String, SocketAddr)>) -> Self {
        Self { pid: std::process::id(), addresses: addresses.into_iter().collect() }
    }

    /// Writes the file in one step: readers see all of it or none.
    ///
    /// # Errors
    /// `IO`, naming the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self)
            .map_err(|error| Error::internal("could not write the addresses").with_detail(error.to_string()))?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", self.pid));
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(|error| Error::io(format!("could not write the address file {}", path.display()), &error))
    }

    /// Reads the file; `None` while it does not exist.
    ///
    /// # Errors
    /// `IO` or `CORRUPT`, naming the file.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("could not read the address file {}", path.display()), &error)),
        };
        toml::from_str(&text).map(Some).map_err(|error| {
            Error::new(Code::Corrupt, format!("{} is not an address file", path.display()))
                .with_detail(error.to_string().trim_end().to_owned())
        })
    }

    /// The address listened on under `name`.
    ///
    /// # Errors
    /// `NOT_FOUND` if the process has no such listener.
    pub fn get(&self, name: &str) -> Result<SocketAddr> {
        let found = self.addresses.get(name).copied();
        found.ok_or_else(|| Error::not_found(format!("process {} has no listener {name:?}", self.pid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_explained_with_the_key_to_change() {
        let first = bind("rpc.address", "127.0.0.1:0").await.unwrap();
        let taken = first.local_addr().unwrap().to_string();
        let error = bind("rpc.address", &taken).await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        assert_eq!(error.message, format!("could not listen on {taken}"));
        assert!(error.hint.unwrap().contains("--set rpc.address="));
        assert_eq!(bind("rpc.address", "nonsense").await.unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn the_address_file_reads_back_and_is_absent_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.toml");
        assert_eq!(AddressFile::read(&path).unwrap(), None);
        let written = AddressFile::new([("rpc".to_owned(), "127.0.0.1:4242".parse().unwrap())]);
        written.write(&path).unwrap();
        let read = AddressFile::read(&path).unwrap().unwrap();
        assert_eq!(read, written);
        assert_eq!(read.get("rpc").unwrap().port(), 4242);
        assert_eq!(read.get("http").unwrap_err().code, Code::NotFound);
        std::fs::write(&path, "half").unwrap();
        assert_eq!(AddressFile::read(&path).unwrap_err().code, Code::Corrupt);
    }
}
