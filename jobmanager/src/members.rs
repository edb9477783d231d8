//! The other JobManagers: where they are, and messages to and from them.
//!
//! Who belongs to the group is decided by raft; this only knows addresses. They come from the configuration, from whoever
//! adds a member, and from the other members, who tell each other what they know. They are kept on disk, so that a restarted
//! member finds members that were added since it was configured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::pb::client::v1 as client;
use weir_proto::pb::members::v1 as pb;
use weir_proto::pb::members::v1::member_message::Message;
use weir_proto::pb::members::v1::members_client::MembersClient;
use weir_proto::pb::members::v1::members_server::{Members, MembersServer};
use weir_replication::{Error as RaftError, MemberChange, Node, NodeId, Transport};
use weir_types::{Error, Result};

use crate::door::not_leader;
use crate::metadata::Machine;

/// Messages that wait for one member; beyond this they are dropped, which raft makes up for.
const QUEUE_MAX: usize = 512;
/// Largest message: one entry of the log, with room to spare.
const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Members that a group may be told of.
const ADDRESSES_MAX: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait before a member that did not answer is tried again.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);

type Addresses = BTreeMap<u64, String>;

/// The addresses of members; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct AddressBook {
    path: Arc<PathBuf>,
    known: Arc<watch::Sender<Addresses>>,
}

impl AddressBook {
    /// Opens the book in a directory; what is `configured` is stronger than what was learnt.
    ///
    /// # Errors
    /// `IO` or `CORRUPT`, naming the file.
    pub(crate) fn open(directory: &Path, configured: Addresses) -> Result<Self> {
        let path = directory.join("members.json");
        let mut known: Addresses = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                Error::new(weir_types::Code::Corrupt, format!("{} is damaged", path.display()))
                    .with_detail(error.to_string())
                    .with_hint("Delete it: this JobManager learns the addresses anew from its configuration.")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Addresses::new(),
            Err(error) => return Err(Error::io(format!("could not read {}", path.display()), &error)),
        };
        known.extend(configured);
        Ok(Self { path: Arc::new(path), known: Arc::new(watch::Sender::new(known)) })
    }

    /// Where a member is.
    pub(crate) fn address(&self, member: NodeId) -> Option<String> {
        self.known.borrow().get(&member.get()).cloned()
    }

    /// Learns addresses; those known are kept, unless `stronger`.
    pub(crate) fn learn(&self, addresses: Addresses, stronger: bool) {
        let changed = self.known.send_if_modified(|known| {
            let before = known.clone();
            for (member, address) in addresses {
                if known.len() < ADDRESSES_MAX && (stronger || !known.contains_key(&member)) {
                    known.insert(member, address);
                }
            }
            *known != before
        });
        if changed {
            let written = serde_json::to_vec(&*self.known.borrow())
                .map_err(std::io::Error::other)
                .and_then(|text| weir_durable::replace_file(&self.path, &text));
            if let Err(error) = written {
                tracing::warn!(%error, path = %self.path.display(), "could not keep the addresses of members");
            }
        }
    }
}

/// Carries messages to other members, each over a stream of its own.
#[derive(Debug)]
pub(crate) struct Streams {
    me: u64,
    book: AddressBook,
    runtime: Handle,
    queues: Mutex<BTreeMap<NodeId, mpsc::Sender<Bytes>>>,
}

impl Streams {
    /// Streams of member `me` that run on this runtime.
    pub(crate) fn new(me: NodeId, book: AddressBook, runtime: Handle) -> Self {
        Self { me: me.get(), book, runtime, queues: Mutex::default() }
    }
}

impl Transport for Streams {
    fn send(&self, to: NodeId, message: Bytes) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(to).or_insert_with(|| {
            let (queue, messages) = mpsc::channel(QUEUE_MAX);
            self.runtime.spawn(deliver(self.me, self.book.clone(), to, messages));
            queue
        });
        // One that does not keep up, or is away, misses messages.
        let _dropped = queue.try_send(message);
    }
}

/// Sends messages to a member until the node lets go of them.
async fn deliver(me: u64, book: AddressBook, to: NodeId, mut messages: mpsc::Receiver<Bytes>) {
    let mut failures = 0_u32;
    while !messages.is_closed() {
        let Err(error) = deliver_some(me, &book, to, &mut messages).await else { return };
        failures += 1;
        if failures.is_power_of_two() {
            tracing::debug!(%to, failures, %error, "no connection to another JobManager");
        }
        // What waited for it is old by now.
        while messages.try_recv().is_ok() {}
        tokio::time::sleep(RECONNECT_DELAY).await;
    }
}

async fn deliver_some(me: u64, book: &AddressBook, to: NodeId, messages: &mut mpsc::Receiver<Bytes>) -> Result<()> {
    let mut known = book.known.subscribe();
    known.mark_changed();
    let address = book.address(to).ok_or_else(|| Error::unavailable("its address is not known"))?;
    let broken = |why: String| Error::unavailable(format!("lost member {to} at {address}")).with_detail(why);
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| broken(error.to_string()))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    let transport = endpoint.connect().await.map_err(|error| broken(error.to_string()))?;
    let mut client = MembersClient::new(transport).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (outbox, outgoing) = mpsc::channel(1);
    let say = |message| pb::MemberMessage { message: Some(message) };
    let exchange = client.exchange(ReceiverStream::new(outgoing));
    let feed = async {
        loop {
            let message = tokio::select! {
                biased;
                // The first time at once.
                addresses = async {
                    let _changes = known.changed().await;
                    known.borrow_and_update().clone()
                } => Message::Addresses(pb::Addresses { members: addresses, from: me }),
                message = messages.recv() => match message {
                    Some(message) => Message::Raft(message),
                    None => return Ok(()),
                },
            };
            if outbox.send(say(message)).await.is_err() {
                return Err(broken("it ended the stream".to_owned()));
            }
        }
    };
    tokio::select! {
        ended = exchange => Err(broken(ended.map_or_else(|status| status.to_string(), |_| "it ended the stream".to_owned()))),
        fed = feed => fed,
    }
}

/// The other ends of the streams, and what clients may ask about members.
#[derive(Clone)]
pub(crate) struct Service {
    node: Node<Machine>,
    book: AddressBook,
}

impl Service {
    pub(crate) fn new(node: Node<Machine>, book: AddressBook) -> Self {
        Self { node, book }
    }

    /// The gRPC service that the other members call.
    pub(crate) fn server(&self) -> MembersServer<Self> {
        MembersServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// All members.
    ///
    /// # Errors
    /// `NOT_LEADER`: only the leader knows how the others are.
    pub(crate) async fn list(&self) -> Result<client::ListMembersReply> {
        self.node.barrier().await.map_err(|error| self.error(error))?;
        let members = self.node.members().await.map_err(|error| self.error(error))?;
        let member = |member: weir_replication::MemberStatus| client::Member {
            id: member.id.get(),
            address: self.book.address(member.id).unwrap_or_default(),
            votes: member.votes,
            leads: member.leads,
            active: member.active.unwrap_or_default(),
            lag: member.lag.unwrap_or_default(),
        };
        Ok(client::ListMembersReply { members: members.into_iter().map(member).collect() })
    }

    /// Adds a member.
    ///
    /// # Errors
    /// `NOT_LEADER`, `INVALID_ARGUMENT`, `FAILED_PRECONDITION`.
    pub(crate) async fn add(&self, request: client::AddMemberRequest) -> Result<client::ListMembersReply> {
        let client::AddMemberRequest { id, address } = request;
        let member = member_id(id)?;
        if address.is_empty() || Endpoint::from_shared(format!("http://{address}")).is_err() {
            return Err(Error::invalid(format!("{address:?} is not an address")).with_hint("Write HOST:PORT."));
        }
        self.node.barrier().await.map_err(|error| self.error(error))?;
        self.book.learn(BTreeMap::from([(id, address)]), true);
        self.change(MemberChange::Add(member)).await
    }

    /// Removes a member.
    ///
    /// # Errors
    /// `NOT_LEADER`, also if it leads itself: another one does soon; `FAILED_PRECONDITION`.
    pub(crate) async fn remove(&self, request: client::RemoveMemberRequest) -> Result<client::ListMembersReply> {
        self.change(MemberChange::Remove(member_id(request.id)?)).await
    }

    async fn change(&self, change: MemberChange) -> Result<client::ListMembersReply> {
        self.node.change_members(change).await.map_err(|error| self.error(error))?;
        self.list().await
    }

    fn error(&self, error: RaftError) -> Error {
        match error {
            RaftError::NotLeader { leader } => not_leader(leader.and_then(|leader| self.book.address(leader))),
            error => error.into(),
        }
    }
}

fn member_id(id: u64) -> Result<NodeId> {
    NodeId::new(id).ok_or_else(|| Error::invalid("there is no member 0"))
}

#[tonic::async_trait]
impl Members for Service {
    async fn exchange(
        &self,
        request: Request<Streaming<pb::MemberMessage>>,
    ) -> Result<Response<pb::ExchangeReply>, Status> {
        let mut inbound = request.into_inner();
        while let Some(message) = inbound.message().await? {
            match message.message {
                Some(Message::Raft(message)) => self.node.step(message),
                Some(Message::Addresses(pb::Addresses { mut members, from })) => {
                    let own = members.remove_entry(&from).into_iter().collect();
                    self.book.learn(own, true);
                    self.book.learn(members, false);
                }
                None => {}
            }
        }
        Ok(Response::new(pb::ExchangeReply {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_kept_and_what_a_member_says_of_itself_is_stronger() {
        let dir = tempfile::tempdir().unwrap();
        let at = |member: u64, address: &str| BTreeMap::from([(member, address.to_owned())]);
        let id = |member| NodeId::new(member).unwrap();
        let book = AddressBook::open(dir.path(), at(1, "a:1")).unwrap();
        book.learn(at(2, "b:1"), false);
        book.learn(at(2, "c:1"), false);
        assert_eq!(book.address(id(2)).as_deref(), Some("b:1"));
        book.learn(at(2, "d:1"), true);
        let book = AddressBook::open(dir.path(), at(1, "e:1")).unwrap();
        assert_eq!(book.address(id(1)).as_deref(), Some("e:1"));
        assert_eq!(book.address(id(2)).as_deref(), Some("d:1"));
        assert_eq!(book.address(id(3)), None);
        std::fs::write(dir.path().join("members.json"), "{").unwrap();
        assert_eq!(AddressBook::open(dir.path(), BTreeMap::new()).unwrap_err().code, weir_types::Code::Corrupt);
    }
}
