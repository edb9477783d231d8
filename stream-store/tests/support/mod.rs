//! A server on a free port, for tests that talk to it over a real socket.

use std::net::SocketAddr;
use std::path::Path;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weir_stream_store::client::StoreClient;
use weir_stream_store::{StoreConfig, server};
use weir_types::Result;

pub(crate) struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<Result<()>>,
}

impl Server {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_on(dir, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_on(dir: &Path, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let config = StoreConfig { segment_bytes: 64 << 10, ..StoreConfig::at(dir) };
        let shutdown = async {
            let _ = stopped.await;
        };
        let done = tokio::spawn(server::run(listener, config, shutdown));
        Self { address, stop, done }
    }

    pub(crate) async fn stop(self) -> SocketAddr {
        self.stop.send(()).unwrap();
        self.done.await.unwrap().unwrap();
        self.address
    }

    pub(crate) fn client(&self) -> StoreClient {
        StoreClient::connect(&self.address.to_string()).unwrap()
    }
}
