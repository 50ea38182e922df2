//! Nodes that answer what a test tells them to, and certificates for them.
//!
//! A node answers `Topology` and `KeyspaceList` by itself; every other request is handed to the test, which answers it,
//! or not, whenever it likes. Nothing here waits for time to pass.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use starling_client::codec::{self, List};
use starling_client::transport::tls::{client_name, node_name};
use starling_client::transport::{
    self, FRAME_SIZE_MAX, Frame, FrameKind, FrameReader, KeptKeys, LargeFrame, LargeFrameBudget,
    OUTBOX_SIZE_DEFAULT, Outbox, TransportOptions,
};
use starling_client::wire::{
    self, ALPN_CLIENT, ChangesRequest, Durability, Header, KeyspaceSettings, Level, Liveness,
    MemberInfo, Request, Response, Topology,
};
use starling_client::{Client, ClientConfig, Credentials, HybridTime, NodeId, Stamp};
use starling_ring::{Epoch, Member, Partitions, ReplicationFactor, RoutingTable};
use tokio::sync::mpsc;

/// Longer than any of these tests should take, so that a lost wake-up fails instead of hanging.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// What must happen soon.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it should have happened by now")
}

/// Makes certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key of whoever has these names.
    pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn credentials(&self, names: &[&str]) -> Credentials {
        let (certificate, key) = self.issue(names);
        Credentials::from_pem(self.pem().as_bytes(), certificate.as_bytes(), key.as_bytes())
            .unwrap()
    }

    pub(crate) fn node(&self, node: u64) -> Credentials {
        self.credentials(&["node.starling", &node_name(NodeId(node))])
    }

    pub(crate) fn client(&self) -> Credentials {
        self.credentials(&[&client_name("test").unwrap()])
    }
}

/// A request that a node was asked.
pub(crate) struct Asked {
    pub(crate) node: u64,
    pub(crate) header: Header,
    pub(crate) request: Request,
    id: u64,
    outbox: Outbox,
    pub(crate) connection: Connection,
}

impl Asked {
    pub(crate) fn answer(&self, response: &Response) {
        let body = |out: &mut Vec<u8>| codec::encode(response, out);
        self.outbox.try_push(FrameKind::Response, self.id, body).unwrap();
    }

    pub(crate) fn hang_up(&self) {
        self.connection.close(VarInt::from_u32(0), b"test");
    }

    pub(crate) fn key(&self) -> &[u8] {
        match &self.request {
            Request::Write { key, .. }
            | Request::Get { key, .. }
            | Request::History { key, .. } => key,
            _ => &[],
        }
    }
}

/// A subscription that a node was asked for.
pub(crate) struct Subscribed {
    pub(crate) node: u64,
    pub(crate) request: ChangesRequest,
    pub(crate) send: SendStream,
    pub(crate) connection: Connection,
}

/// What nodes tell of the cluster.
#[derive(Default)]
struct View {
    members: Vec<(u64, SocketAddr)>,
    keyspaces: Vec<KeyspaceSettings>,
}

impl View {
    fn epoch(&self) -> Epoch {
        let members = self.members.iter().map(|&(node, _)| Member {
            node: NodeId(node),
            zone: String::new(),
            weight: 1,
        });
        Epoch::new(self.members.len() as u64, Partitions::default(), members.collect()).unwrap()
    }

    fn topology(&self, node: u64) -> Topology {
        let epoch = self.epoch();
        let member = |&(node, address): &(u64, SocketAddr)| MemberInfo {
            node: NodeId(node).into(),
            address: address.to_string().into(),
            zone: "".into(),
            weight: 1,
            liveness: Liveness::Alive,
        };
        Topology {
            cluster: "test".into(),
            node: NodeId(node).into(),
            epoch: epoch.number(),
            epoch_digest: epoch.digest(),
            partitions: epoch.partitions().count(),
            members: self.members.iter().map(member).collect(),
        }
    }
}

/// Some nodes.
pub(crate) struct Cluster {
    pub(crate) authority: Authority,
    view: Arc<Mutex<View>>,
    to_asked: mpsc::Sender<Asked>,
    asked: mpsc::Receiver<Asked>,
    to_subscribed: mpsc::Sender<Subscribed>,
    subscribed: mpsc::Receiver<Subscribed>,
    endpoints: Vec<(u64, Endpoint)>,
}

impl Cluster {
    /// Nodes 1 to `count`, and the keyspace `k` on `replication` of them.
    pub(crate) fn start(count: u64, replication: u8) -> Self {
        let (to_asked, asked) = mpsc::channel(1024);
        let (to_subscribed, subscribed) = mpsc::channel(16);
        let settings = KeyspaceSettings {
            name: "k".into(),
            replication,
            write_level: Level::Quorum,
            read_level: Level::Quorum,
            durability: Durability::Sync,
            history_versions_max: None,
            history_age_ms_max: None,
        };
        let view = View { members: Vec::new(), keyspaces: vec![settings] };
        let mut cluster = Self {
            authority: Authority::new(),
            view: Arc::new(Mutex::new(view)),
            to_asked,
            asked,
            to_subscribed,
            subscribed,
            endpoints: Vec::new(),
        };
        (1..=count).for_each(|node| cluster.add(node));
        cluster
    }

    /// One more member.
    pub(crate) fn add(&mut self, node: u64) {
        let address = self.run(node, ([127, 0, 0, 1], 0).into());
        self.view.lock().unwrap().members.push((node, address));
    }

    /// Ends a member's process, as it were; it stays a member.
    pub(crate) async fn stop(&mut self, node: u64) {
        let at = self.endpoints.iter().position(|&(running, _)| running == node).unwrap();
        let (_, endpoint) = self.endpoints.remove(at);
        endpoint.close(VarInt::from_u32(0), b"stopped");
        endpoint.wait_idle().await;
    }

    /// Runs a stopped member again, where it was.
    pub(crate) async fn restart(&mut self, node: u64) {
        let address = self.address(node);
        // The old endpoint's task lets go of the socket when it gets its turn.
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::task::yield_now().await;
        }
        self.run(node, address);
    }

    fn run(&mut self, node: u64, address: SocketAddr) -> SocketAddr {
        let endpoint = listen(&self.authority.node(node), address, None);
        let address = endpoint.local_addr().unwrap();
        let serving = Serving {
            node,
            view: self.view.clone(),
            asked: self.to_asked.clone(),
            subscribed: self.to_subscribed.clone(),
        };
        tokio::spawn(serve(endpoint.clone(), serving));
        self.endpoints.push((node, endpoint));
        address
    }

    pub(crate) fn address(&self, node: u64) -> SocketAddr {
        let view = self.view.lock().unwrap();
        view.members.iter().find(|(member, _)| *member == node).unwrap().1
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new([self.address(1).to_string()], self.authority.client());
        config.request_timeout = LONG;
        config.silence_timeout = LONG;
        config
    }

    pub(crate) async fn connect(&self) -> Client {
        soon(Client::connect(self.config())).await.unwrap()
    }

    /// The next request that any node is asked.
    pub(crate) async fn asked(&mut self) -> Asked {
        soon(self.asked.recv()).await.unwrap()
    }

    /// The next subscription that any node is asked for.
    pub(crate) async fn subscribed(&mut self) -> Subscribed {
        soon(self.subscribed.recv()).await.unwrap()
    }

    pub(crate) fn nobody_asked(&mut self) -> bool {
        self.asked.try_recv().is_err()
    }

    pub(crate) fn home_of(&self, key: &[u8], replication: u8) -> Vec<NodeId> {
        let factor = ReplicationFactor::new(replication).unwrap();
        let table = RoutingTable::new(&self.view.lock().unwrap().epoch(), factor);
        table.route(key).1.to_vec()
    }
}

/// An endpoint of these credentials that takes clients.
pub(crate) fn listen(
    credentials: &Credentials,
    address: SocketAddr,
    keys: Option<&KeptKeys>,
) -> Endpoint {
    let crypto = credentials.server_crypto(&[ALPN_CLIENT]).unwrap();
    let config = transport::server_config(crypto, TransportOptions::DEFAULT);
    transport::bind(address, Some(config), keys).unwrap()
}

/// An endpoint of these credentials that dials.
pub(crate) fn dialler(credentials: &Credentials, protocol: &[u8]) -> Endpoint {
    let crypto = credentials.client_crypto(protocol).unwrap();
    let mut endpoint = transport::bind(([127, 0, 0, 1], 0).into(), None, None).unwrap();
    endpoint.set_default_client_config(transport::client_config(crypto, TransportOptions::DEFAULT));
    endpoint
}

#[derive(Clone)]
struct Serving {
    node: u64,
    view: Arc<Mutex<View>>,
    asked: mpsc::Sender<Asked>,
    subscribed: mpsc::Sender<Subscribed>,
}

async fn serve(endpoint: Endpoint, serving: Serving) {
    while let Some(incoming) = endpoint.accept().await {
        let serving = serving.clone();
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                serving.connection(connection).await;
            }
        });
    }
}

impl Serving {
    async fn connection(self, connection: Connection) {
        let Ok((send, receive)) = connection.accept_bi().await else { return };
        let outbox = Outbox::spawn(connection.clone(), send, OUTBOX_SIZE_DEFAULT);
        tokio::spawn(self.clone().requests(connection.clone(), receive, outbox.clone()));
        tokio::spawn(self.clone().large_requests(connection.clone(), outbox));
        while let Ok((send, receive)) = connection.accept_bi().await {
            tokio::spawn(self.clone().subscription(connection.clone(), send, receive));
        }
    }

    async fn requests(self, connection: Connection, stream: RecvStream, outbox: Outbox) {
        let mut reader = FrameReader::shared(stream);
        while let Ok(true) = reader.read().await {
            while let Some(frame) = reader.next_frame().unwrap() {
                self.request(frame, &connection, &outbox);
            }
        }
    }

    async fn large_requests(self, connection: Connection, outbox: Outbox) {
        let budget = LargeFrameBudget::new(FRAME_SIZE_MAX);
        while let Ok(mut stream) = connection.accept_uni().await {
            let large = LargeFrame::read(&mut stream, &budget).await.unwrap();
            self.request(large.frame(), &connection, &outbox);
        }
    }

    fn request(&self, frame: Frame<'_>, connection: &Connection, outbox: &Outbox) {
        assert_eq!(frame.kind, FrameKind::Request);
        let (header, request) = codec::decode::<(Header, Request)>(frame.body).unwrap();
        let asked = Asked {
            node: self.node,
            header,
            request,
            id: frame.id,
            outbox: outbox.clone(),
            connection: connection.clone(),
        };
        let view = self.view.lock().unwrap();
        match asked.request {
            Request::Topology => asked.answer(&Response::Topology(view.topology(self.node))),
            Request::KeyspaceList => {
                asked.answer(&Response::Keyspaces(List(view.keyspaces.clone())));
            }
            _ => assert!(self.asked.try_send(asked).is_ok(), "the test takes what is asked"),
        }
    }

    async fn subscription(self, connection: Connection, send: SendStream, receive: RecvStream) {
        let mut reader = FrameReader::exchange(receive, FRAME_SIZE_MAX);
        assert!(reader.read().await.unwrap());
        let frame = reader.next_frame().unwrap().expect("it fits one packet");
        assert_eq!(frame.kind, FrameKind::ChangesRequest);
        let request = codec::decode(frame.body).unwrap();
        let subscribed = Subscribed { node: self.node, request, send, connection };
        assert!(self.subscribed.try_send(subscribed).is_ok(), "the test takes what is asked");
    }
}

pub(crate) fn stamp(physical_ms: u64) -> Stamp {
    Stamp { time: HybridTime::new(physical_ms, 0), node: NodeId(1) }
}

pub(crate) fn written(physical_ms: u64) -> Response {
    Response::Written { stamp: stamp(physical_ms).into(), superseded: false, acks: 2 }
}

pub(crate) fn version(physical_ms: u64, payload: &[u8]) -> wire::Version {
    wire::Version {
        stamp: stamp(physical_ms).into(),
        request: wire::RequestId::default(),
        action: wire::Action::Put,
        payload: payload.to_vec().into(),
    }
}

pub(crate) fn value(physical_ms: u64, payload: &[u8]) -> Response {
    Response::Value { version: Some(version(physical_ms, payload)) }
}
