//! The `starling node` process from outside: what it takes, what it refuses, how it stops and comes back.
//!
//! Every test runs the built program on a port of the system's choice and speaks QUIC to it. Waiting is for a
//! condition, up to a deadline.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, VarInt};
use starling_client::codec::{self, List, Text};
use starling_client::transport::{
    Credentials, FrameKind, FrameReader, LargeFrame, LargeFrameBudget, TlsFiles, TransportOptions,
    bind, client_config, encode_frame,
};
use starling_client::wire::{
    ALPN_CLIENT, ALPN_PEER, ChangesFrom, ChangesItem, ChangesRequest, ErrorCode, Header, Request,
    RequestId, Response,
};
use starling_client::{Client, ClientConfig, ClientError, ErrorKind, Level};
use starling_clock::NodeId;
use starling_node::core::peer::Hello;
use starling_node::io::CloseCode;
use starling_node::io::time::Clock;
use starling_node::tls::{self, Authority};
use starling_ring::{Epoch, Member, Partitions};

/// Longest that anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running node; killed when dropped.
struct Node {
    child: Child,
    data_dir: PathBuf,
    address: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(data_dir: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
    command.arg("node").arg("--data-dir").arg(data_dir).args(flags).env("RUST_BACKTRACE", "1");
    command
}

impl Node {
    /// Starts a node and waits until it listens.
    fn start(data_dir: &Path, flags: &[&str]) -> Self {
        let mut command = command(data_dir, flags);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        Self::start_by(data_dir, command)
    }

    /// Starts a node that cannot make a file longer than so many blocks of the shell's: 512 or 1024 bytes each.
    fn start_with_little_room(data_dir: &Path, blocks: u32) -> Self {
        let node = command(data_dir, &["--listen", "127.0.0.1:0"]);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -f {blocks} && exec \"$@\"")).arg("sh");
        command.arg(node.get_program()).args(node.get_args());
        Self::start_by(data_dir, command)
    }

    fn start_by(data_dir: &Path, mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("the node is up");
        let address = address.parse().unwrap();
        Self { child, data_dir: data_dir.to_owned(), address }
    }

    fn tls(&self) -> PathBuf {
        self.data_dir.join("tls")
    }

    fn credentials(&self) -> Credentials {
        Credentials::from_files(&TlsFiles::of_client(&self.tls())).unwrap()
    }

    async fn client(&self) -> Connection {
        connect(self.address, &self.credentials(), ALPN_CLIENT).await.unwrap()
    }

    /// Whether a new client gets an answer.
    async fn is_well(&self) -> bool {
        let connection = self.client().await;
        let mut stream = Stream::open(&connection).await;
        matches!(stream.ask(1, Request::Topology).await, Response::Topology(_))
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}

async fn connect(
    address: SocketAddr,
    credentials: &Credentials,
    protocol: &[u8],
) -> Result<Connection, ConnectionError> {
    let config =
        client_config(credentials.client_crypto(protocol).unwrap(), TransportOptions::DEFAULT);
    connect_with(address, config).await
}

async fn connect_with(
    address: SocketAddr,
    config: quinn::ClientConfig,
) -> Result<Connection, ConnectionError> {
    let endpoint = bind(SocketAddr::from(([127, 0, 0, 1], 0)), None, None).unwrap();
    in_time(endpoint.connect_with(config, address, "node.starling").unwrap()).await
}

async fn in_time<T>(what: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it happens before the deadline")
}

/// The stream of requests of a client.
struct Stream {
    send: quinn::SendStream,
    reader: FrameReader,
}

impl Stream {
    async fn open(connection: &Connection) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        Self { send, reader: FrameReader::shared(receive) }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
    }

    async fn answer(&mut self) -> (u64, Response) {
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                assert_eq!(frame.kind, FrameKind::Response);
                return (frame.id, codec::decode(frame.body).unwrap());
            }
            assert!(in_time(self.reader.read()).await.unwrap(), "the stream goes on");
        }
    }

    async fn ask(&mut self, id: u64, request: Request) -> Response {
        self.send(&frame(FrameKind::Request, id, &(header(id), request))).await;
        let (answered, response) = self.answer().await;
        assert_eq!(answered, id);
        response
    }
}

fn header(sequence: u64) -> Header {
    let request = RequestId { client: 7, sequence };
    Header { request, attempt: 0, timeout_ms: 10_000, epoch: 0, observed: 0 }
}

fn frame<T: codec::bincode::Encode>(kind: FrameKind, id: u64, message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_frame(kind, id, &mut bytes, |body| codec::encode(message, body));
    bytes
}

fn write(key: &str) -> Request {
    Request::Write {
        keyspace: Text::from("default"),
        key: key.as_bytes().to_vec().into(),
        action: starling_client::wire::Action::Put,
        payload: vec![7; 10].into(),
        level: None,
        durability: None,
    }
}

/// How often a conversation is had again whose end was not heard: some milliseconds each, for as long as other processes may keep
/// this one from listening.
const TRIES: usize = 2000;

/// The code with which the node closes the connection. `None`: it had forgotten the connection before this side read its goodbye, and
/// what it says to strangers hides that.
async fn close_code(connection: &Connection) -> Option<VarInt> {
    match in_time(connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code),
        ConnectionError::Reset => None,
        other => panic!("closed by {other:?}"),
    }
}

/// The code with which the node closes a connection on which these bytes are sent, and then nothing more.
async fn code_after(node: &Node, who: &Credentials, protocol: &[u8], bytes: &[u8]) -> VarInt {
    for _ in 0..TRIES {
        let connection = connect(node.address, who, protocol).await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        // The node may close before all is written.
        if send.write_all(bytes).await.is_ok() {
            let _ = send.finish();
        }
        if let Some(code) = close_code(&connection).await {
            return code;
        }
    }
    panic!("the end of {TRIES} connections was not heard");
}

fn code(code: CloseCode) -> VarInt {
    VarInt::from_u32(code as u32)
}

/// UDP ports that nobody has at this moment.
fn free_ports<const N: usize>() -> [u16; N] {
    let sockets = [(); N].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

#[tokio::test]
async fn only_our_protocols_are_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let refused = connect(node.address, &node.credentials(), b"http/1.1").await.unwrap_err();
    let no_application_protocol = quinn::TransportErrorCode::crypto(120);
    match refused {
        ConnectionError::ConnectionClosed(close) => {
            assert_eq!(close.error_code, no_application_protocol);
        }
        other => panic!("refused by {other:?}"),
    }
    assert!(node.is_well().await);
}

#[tokio::test]
async fn strangers_do_not_get_past_the_handshake() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = Node::start(dir.path(), &[]);
    let read = |path: PathBuf| fs::read(path).unwrap();

    // Without a certificate. In TLS 1.3 the client hears of it after its own handshake is done.
    let mut roots = rustls::RootCertStore::empty();
    let pem = read(node.tls().join(tls::AUTHORITY_CERT));
    let authority = rustls_pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut crypto = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    crypto.alpn_protocols = vec![ALPN_CLIENT.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    assert!(is_refused(connect_with(node.address, config).await).await);

    // With another authority's certificate.
    tls::ensure_development(other.path(), "other", NodeId(1), 1_767_225_600).unwrap();
    let foreign = Credentials::from_pem(
        &pem,
        &read(other.path().join(tls::CLIENT_CERT)),
        &read(other.path().join(tls::CLIENT_KEY)),
    );
    let connected = connect(node.address, &foreign.unwrap(), ALPN_CLIENT).await;
    assert!(is_refused(connected).await);

    // And the client refuses a node of another authority.
    let trusting_other = Credentials::from_files(&TlsFiles::of_client(other.path())).unwrap();
    assert!(connect(node.address, &trusting_other, ALPN_CLIENT).await.is_err());
    assert!(node.is_well().await);
}

async fn is_refused(connected: Result<Connection, ConnectionError>) -> bool {
    let error = match connected {
        Ok(connection) => in_time(connection.closed()).await,
        Err(error) => error,
    };
    matches!(error, ConnectionError::ConnectionClosed(_))
}

/// What a node says that takes `member` for the only one.
fn hello(cluster: &str, member: u64) -> Hello {
    let member = Member { node: NodeId(member), zone: String::new(), weight: 1 };
    let epoch = Epoch::new(1, Partitions::default(), vec![member]).unwrap();
    Hello { cluster: cluster.into(), epoch: epoch.number(), epoch_digest: epoch.digest() }
}

#[tokio::test]
async fn a_client_is_no_peer_and_a_peer_is_of_this_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--id", "5"]);
    let own_id = Credentials::from_files(&TlsFiles::of_node(&node.tls())).unwrap();
    for who in [&node.credentials(), &own_id] {
        let hello = frame(FrameKind::Hello, 0, &hello("starling", 5));
        let closed = code_after(&node, who, ALPN_PEER, &hello).await;
        assert_eq!(closed, code(CloseCode::WrongIdentity));
    }

    let authority = Authority::open(&node.tls()).unwrap();
    let issued = authority.issue_node(NodeId(6), 1_767_225_600).unwrap();
    let peer = Credentials::from_pem(
        authority.cert_pem().as_bytes(),
        issued.cert_pem.as_bytes(),
        issued.key_pem.as_bytes(),
    );
    let peer = peer.unwrap();
    let same = frame(FrameKind::Hello, 0, &hello("starling", 5));
    let no_message = frame(FrameKind::Peer, 0, &List(vec![u64::MAX]));
    for (bytes, expected) in [
        (frame(FrameKind::Hello, 0, &hello("elsewhere", 5)), CloseCode::OtherCluster),
        (frame(FrameKind::Hello, 0, &hello("starling", 6)), CloseCode::OtherRing),
        (frame(FrameKind::Peer, 0, &Text::from("starling")), CloseCode::Protocol),
        (frame(FrameKind::Hello, 0, &u8::MAX), CloseCode::Protocol),
        ([&same[..], &no_message].concat(), CloseCode::Protocol),
        (same, CloseCode::Done),
    ] {
        assert_eq!(code_after(&node, &peer, ALPN_PEER, &bytes).await, code(expected));
    }
    assert!(node.is_well().await);
}

#[tokio::test]
async fn a_bad_message_gets_an_error_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let before = node.resident_bytes();
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    // A whole header, then a write whose keyspace's name claims 2^60 bytes.
    let mut huge = Vec::new();
    codec::encode(&header(1), &mut huge);
    huge.extend_from_slice(&[0, 253]);
    huge.extend_from_slice(&(1_u64 << 60).to_le_bytes());
    let mut trailing = Vec::new();
    codec::encode(&(header(1), Request::Topology), &mut trailing);
    trailing.push(0);
    for (id, body) in [(1, vec![]), (2, vec![255; 40]), (3, huge), (4, trailing)] {
        let mut bytes = Vec::new();
        encode_frame(FrameKind::Request, id, &mut bytes, |out| out.extend_from_slice(&body));
        stream.send(&bytes).await;
        let (answered, response) = stream.answer().await;
        assert_eq!(answered, id);
        match response {
            Response::Error(error) => assert_eq!(error.code, ErrorCode::Malformed, "{error}"),
            other => panic!("{other:?} is the answer to message {id}"),
        }
    }
    assert!(matches!(stream.ask(9, Request::Topology).await, Response::Topology(_)));
    assert!(node.resident_bytes() < before + (64 << 20));
}

#[tokio::test]
async fn what_is_no_frame_ends_the_connection_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let before = node.resident_bytes();
    let good = frame(FrameKind::Request, 1, &(header(1), Request::Topology));
    let mut unknown_kind = good.clone();
    unknown_kind[12] = 99;
    let cases: [(&str, Vec<u8>); 6] = [
        ("a length of 4 GiB", [&u32::MAX.to_le_bytes()[..], &[1; 100]].concat()),
        ("a length over a shared frame's", (65_u32 << 10).to_le_bytes().to_vec()),
        ("a length shorter than a header", [&8_u32.to_le_bytes()[..], &[0; 8]].concat()),
        ("an unknown kind", unknown_kind),
        ("an answer", frame(FrameKind::Response, 1, &Response::Keyspaces(List::default()))),
        ("half a frame", good[..good.len() - 1].to_vec()),
    ];
    for (name, bytes) in cases {
        let closed = code_after(&node, &node.credentials(), ALPN_CLIENT, &bytes).await;
        assert_eq!(closed, code(CloseCode::Protocol), "{name}");
    }
    // Large frames travel alone, and claim as much as they like.
    let mut huge = frame(FrameKind::Request, 1, &(header(1), Request::Topology));
    huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut trailing = good.clone();
    trailing.push(0);
    for (name, bytes) in [("4 GiB alone", huge), ("bytes after a frame alone", trailing)] {
        let mut closed = None;
        for _ in 0..TRIES {
            let connection = node.client().await;
            let mut stream = Stream::open(&connection).await;
            assert!(matches!(stream.ask(1, Request::Topology).await, Response::Topology(_)));
            let mut alone = connection.open_uni().await.unwrap();
            // The node may close before all is written.
            let _ = alone.write_all(&bytes).await;
            let _ = alone.finish();
            closed = close_code(&connection).await;
            if closed.is_some() {
                break;
            }
        }
        assert_eq!(closed, Some(code(CloseCode::Protocol)), "{name}");
    }
    assert!(node.is_well().await);
    assert!(node.resident_bytes() < before + (64 << 20));
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--set", "limits.client_queue_bytes=65536"]);
    let before = node.resident_bytes();
    let connection = node.client().await;
    let (mut send, _unread) = connection.open_bi().await.unwrap();
    let question = frame(FrameKind::Request, 1, &(header(1), Request::Topology));
    let many = question.repeat(1000);
    // At some point the node takes no more.
    let mut taken = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), send.write_all(&many)).await
    {
        written.unwrap();
        taken += 1000;
        assert!(taken < 1_000_000, "the node reads on from one who does not read");
        assert!(node.is_well().await);
    }
    assert!(node.is_well().await);
    assert!(node.resident_bytes() < before + (128 << 20));
}

#[tokio::test]
async fn no_more_clients_than_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--set", "limits.connections_max=2"]);
    let (first, _second) = (node.client().await, node.client().await);
    let mut closed = None;
    while closed.is_none() {
        closed = close_code(&node.client().await).await;
    }
    assert_eq!(closed, Some(code(CloseCode::TooManyConnections)));
    // One leaves, and there is room again as soon as the node has heard of it.
    first.close(VarInt::from_u32(0), b"");
    let clock = Clock::start();
    loop {
        assert!(clock.mono().since_ms(starling_node::core::types::Instant(0)) < 20_000);
        let connection = node.client().await;
        let Ok((mut send, receive)) = connection.open_bi().await else { continue };
        let question = frame(FrameKind::Request, 1, &(header(1), Request::Topology));
        let mut reader = FrameReader::shared(receive);
        if send.write_all(&question).await.is_ok() && matches!(reader.read().await, Ok(true)) {
            return;
        }
    }
}

#[tokio::test]
async fn large_values_and_changes_go_through() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let config = ClientConfig::new([node.address.to_string()], node.credentials());
    let client = Client::connect(config).await.unwrap();
    let keyspace = client.keyspace("default");
    let large: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    in_time(keyspace.put("large", large.clone()).send()).await.unwrap();
    in_time(keyspace.put("small", "value").send()).await.unwrap();
    let read = in_time(keyspace.get("large").send()).await.unwrap().unwrap();
    assert_eq!(read.payload[..], large[..]);
    let over = keyspace.put("over", vec![0; (16 << 20) + 1]);
    assert!(in_time(over.send()).await.is_err());

    let connection = node.client().await;
    let _requests = Stream::open(&connection).await;
    let (mut send, receive) = connection.open_bi().await.unwrap();
    let request = ChangesRequest {
        keyspace: None,
        prefix: b"small".to_vec().into(),
        partitions: None,
        from: ChangesFrom::Oldest,
        follow: false,
    };
    send.write_all(&frame(FrameKind::ChangesRequest, 0, &request)).await.unwrap();
    let mut reader = FrameReader::exchange(receive, 32 << 20);
    let mut keys = Vec::new();
    'stream: loop {
        while let Some(frame) = reader.next_frame().unwrap() {
            assert_eq!(frame.kind, FrameKind::ChangesItem);
            match codec::decode(frame.body).unwrap() {
                ChangesItem::Batch { changes, .. } => {
                    keys.extend(changes.0.into_iter().map(|change| change.key.to_vec()));
                }
                ChangesItem::End { .. } => break 'stream,
                other => panic!("{other:?}"),
            }
        }
        assert!(in_time(reader.read()).await.unwrap(), "the end is told");
    }
    assert_eq!(keys, [b"small".to_vec()]);
    assert!(!in_time(reader.read()).await.unwrap(), "the stream is finished after the end");
}

#[tokio::test]
async fn a_question_on_a_stream_of_its_own_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let connection = node.client().await;
    let mut requests = Stream::open(&connection).await;
    assert!(matches!(requests.ask(1, Request::KeyspaceList).await, Response::Keyspaces(_)));
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(&frame(FrameKind::ChangesRequest, 0, &u64::MAX)).await.unwrap();
    let mut reader = FrameReader::exchange(receive, 1 << 20);
    assert!(in_time(reader.read()).await.unwrap());
    match codec::decode(reader.next_frame().unwrap().unwrap().body).unwrap() {
        ChangesItem::Error(error) => assert_eq!(error.code, ErrorCode::Malformed),
        other => panic!("{other:?}"),
    }
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&frame(FrameKind::PushPull, 0, &0_u8)).await.unwrap();
    let closed = close_code(&connection).await;
    assert!(closed.is_none_or(|closed| closed == code(CloseCode::Protocol)), "{closed:?}");
}

#[tokio::test]
async fn a_large_request_is_answered_on_the_shared_stream() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let connection = node.client().await;
    let mut requests = Stream::open(&connection).await;
    let key = b"k".to_vec();
    let put = Request::Write {
        keyspace: Text::from("default"),
        key: key.clone().into(),
        action: starling_client::wire::Action::Put,
        payload: vec![1; 200_000].into(),
        level: None,
        durability: None,
    };
    assert!(matches!(requests.ask(1, Request::KeyspaceList).await, Response::Keyspaces(_)));
    let mut alone = connection.open_uni().await.unwrap();
    alone.write_all(&frame(FrameKind::Request, 2, &(header(2), put))).await.unwrap();
    alone.finish().unwrap();
    let (id, response) = requests.answer().await;
    assert_eq!(id, 2);
    assert!(matches!(response, Response::Written { .. }), "{response:?}");

    let get =
        Request::Get { keyspace: Text::from("default"), key: key.into(), at: None, level: None };
    requests.send(&frame(FrameKind::Request, 3, &(header(3), get))).await;
    let mut large = in_time(connection.accept_uni()).await.unwrap();
    let budget = LargeFrameBudget::new(0);
    let large = in_time(LargeFrame::read(&mut large, &budget)).await.unwrap();
    assert_eq!(large.frame().id, 3);
}

async fn refusal(stream: &mut Stream, id: u64, request: Request) -> (ErrorCode, String) {
    match stream.ask(id, request).await {
        Response::Error(error) => (error.code, error.to_string()),
        other => panic!("{other:?} is the answer to request {id}"),
    }
}

#[tokio::test]
async fn what_no_request_may_ask_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--set", "limits.payload_size_max=1000"]);
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    let put = |keyspace: &str, key: usize, payload: usize, level: Option<Level>| Request::Write {
        keyspace: Text::from(keyspace),
        key: vec![b'k'; key].into(),
        action: starling_client::wire::Action::Put,
        payload: vec![7; payload].into(),
        level,
        durability: None,
    };
    let read = |level: Level| Request::Get {
        keyspace: Text::from("default"),
        key: b"k".to_vec().into(),
        at: None,
        level: Some(level),
    };
    let cases = [
        (put("default", 0, 1, None), ErrorCode::KeyEmpty, "1 to 4096 bytes"),
        (put("default", 4097, 1, None), ErrorCode::KeyTooLarge, "use a shorter key"),
        (put("default", 1, 1001, None), ErrorCode::PayloadTooLarge, "limits.payload_size_max"),
        (put("nowhere", 1, 1, None), ErrorCode::KeyspaceUnknown, "starling keyspace create"),
        (put("default", 1, 1, Some(Level::Two)), ErrorCode::LevelTooLarge, "lower the level"),
        (put("default", 1, 1, Some(Level::Count(0))), ErrorCode::LevelTooLarge, "the level"),
        (read(Level::Count(9)), ErrorCode::LevelTooLarge, "lower the level"),
        (read(Level::Any), ErrorCode::LevelNotForReads, "read at ONE or more"),
    ];
    for (id, (request, code, text)) in (1..).zip(cases) {
        let (found, said) = refusal(&mut stream, id, request).await;
        assert_eq!(found, code, "{said}");
        assert!(said.contains(text), "{said:?} should say {text:?}");
    }
    // The limits themselves are fine.
    let largest = put("default", 4096, 1000, Some(Level::One));
    assert!(matches!(stream.ask(99, largest).await, Response::Written { .. }));
}

/// A client that shows `certificate`'s pair and trusts `authority`'s nodes.
async fn connect_as(node: &Node, authority: &Path, certificate: &Path) -> ClientError {
    let files = TlsFiles {
        authority: authority.join(tls::AUTHORITY_CERT),
        ..TlsFiles::of_client(certificate)
    };
    let credentials = Credentials::from_files(&files).unwrap();
    let mut config = ClientConfig::new([node.address.to_string()], credentials);
    config.request_timeout = Duration::from_secs(5);
    in_time(Client::connect(config)).await.expect_err("it is a stranger")
}

#[tokio::test]
async fn a_client_is_told_that_its_certificate_is_foreign() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = Node::start(dir.path(), &[]);
    tls::ensure_development(other.path(), "other", NodeId(1), 1_767_225_600).unwrap();
    let error = connect_as(&node, &node.tls(), other.path()).await;
    assert!(matches!(error, ClientError::Tls(_)), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("use one that the authority of its cluster has made"), "{said}");

    let error = connect_as(&node, other.path(), &node.tls()).await;
    assert!(matches!(error, ClientError::NoNode(_)), "{error:?}");
    assert!(error.to_string().contains("authority this client trusts"), "{error}");
}

/// A limit on the size of files stands for a full disk: both end a write in the middle, and neither needs rights that a test has not.
#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing that could be compressed: a linear congruential generator (Knuth's MMIX), its upper bytes.
    let value = |at: u8| -> Vec<u8> {
        let next =
            |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        let states = std::iter::successors(Some(u64::from(at) + 1), next);
        states.skip(8).take(100_000).map(|state| state.to_be_bytes()[0]).collect()
    };
    let read = async |client: &Client, at: u8| {
        let get = client.keyspace("default").get(format!("key {at}"));
        in_time(get.send()).await.unwrap().map(|version| version.payload.to_vec())
    };
    let node = Node::start_with_little_room(dir.path(), 2000);
    let mut config = ClientConfig::new([node.address.to_string()], node.credentials());
    config.request_timeout = Duration::from_secs(2);
    let client = Client::connect(config.clone()).await.unwrap();
    let mut at = 0;
    let mut taken = Vec::new();
    let error = loop {
        assert!(at < 100, "the limit is reached");
        let put = client.keyspace("default").put(format!("key {at}"), value(at));
        match in_time(put.send()).await {
            Ok(_) => taken.push(at),
            // So slow is a busy machine now and then; that write may have happened, or not.
            Err(error) if error.kind() == ErrorKind::Unknown => {}
            Err(error) => break error,
        }
        at += 1;
    };
    let refused = at;
    assert!(!taken.is_empty(), "there is room at first");
    assert_eq!(error.kind(), ErrorKind::NothingHappened, "{error}");
    assert_eq!(error.wire().map(|error| error.code), Some(ErrorCode::DiskFull), "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
    for &at in &taken {
        assert_eq!(read(&client, at).await, Some(value(at)), "{at} of {taken:?}");
    }
    assert_eq!(read(&client, refused).await, None, "nothing happened");
    // It takes what there is room for.
    in_time(client.keyspace("default").put("small", "value").send()).await.unwrap();
    // Dropping kills it.
    drop(node);

    let mut node = Node::start(dir.path(), &[]);
    config.addresses = vec![node.address.to_string()];
    let client = Client::connect(config).await.unwrap();
    for &at in &taken {
        assert_eq!(read(&client, at).await, Some(value(at)), "{at} of {taken:?}");
    }
    assert_eq!(read(&client, refused).await, None, "nothing happened");
    let again = client.keyspace("default").put(format!("key {refused}"), value(refused));
    in_time(again.send()).await.unwrap();
    assert_eq!(read(&client, refused).await, Some(value(refused)));
    client.close().await;
    assert_eq!(node.terminate(), Some(0));
}

fn fails(output: &Output, exit_code: i32, text: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "{said}");
    assert!(said.contains(text), "{said:?} should say {text:?}");
    assert!(output.stdout.is_empty());
}

#[test]
fn each_reason_not_to_start_has_its_text_and_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&dir.path().join("a"), &["--id", "1"]);
    let address = node.address.to_string();
    let run = |name: &str, flags: &[&str]| command(&dir.path().join(name), flags).output().unwrap();

    fails(&run("b", &["--listen", &address]), 4, "in use by another process");
    fails(&run("b", &["--listen", "192.0.2.1:0"]), 4, "cannot listen on 192.0.2.1:0");
    fails(&run("a", &["--listen", "127.0.0.1:0"]), 3, "in use by another process");
    fails(&run("b", &["--set", "storage.memtable=1"]), 2, "unknown field");
    fails(&run("b", &["--set", "nonsense"]), 2, "--set nonsense");
    fails(&run("b", &["--member", "1@127.0.0.1:1"]), 2, "--id");
    fails(&run("b", &["--listen", "localhost"]), 2, "--listen");
    fails(&run("b", &["--config", "/nowhere.toml"]), 2, "/nowhere.toml");
    let file = dir.path().join("starling.toml");
    fs::write(&file, "[storage]\nmemtable = 1\n").unwrap();
    let file = file.to_str().unwrap();
    fails(&run("b", &["--config", file]), 2, "unknown field");
    fails(&run("b", &["--config", file]), 2, "memtable");
    fails(&run("b", &["--tls-dir", "/nowhere"]), 5, "/nowhere/ca.pem is missing");
    drop(node);

    fails(&run("a", &["--id", "2"]), 3, "belongs to node 1");
    fails(&run("a", &["--cluster", "other"]), 3, "belongs to cluster \"starling\"");
    fails(&run("a", &["--set", "cluster.partitions=64"]), 3, "1024 partitions");
    let tls_dir = dir.path().join("a/tls");
    let other = ["--id", "9", "--tls-dir", tls_dir.to_str().unwrap()];
    fails(&run("c", &other), 5, "not the certificate of node 9");

    // Another node's storage under this node's name, and storage of a newer release.
    let mut moved = Node::start(&dir.path().join("d"), &["--id", "4"]);
    assert_eq!(moved.terminate(), Some(0));
    drop(moved);
    let storage_identity = |name: &str| dir.path().join(name).join("storage/identity");
    let own = fs::read(storage_identity("a")).unwrap();
    fs::copy(storage_identity("d"), storage_identity("a")).unwrap();
    fails(&run("a", &["--listen", "127.0.0.1:0"]), 3, "belongs to node 4");
    fs::write(storage_identity("a"), own).unwrap();

    let identity = dir.path().join("a/identity.toml");
    let text = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, text.replace("format = 1", "format = 2")).unwrap();
    fails(&run("a", &[]), 3, "run the newer release");
    fs::write(&identity, "nonsense").unwrap();
    fails(&run("a", &[]), 3, "is damaged");
}

#[test]
fn settings_are_printed_as_they_are_in_effect() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("starling.toml");
    fs::write(&file, "[log]\nlevel = \"debug\"\n[cluster]\nname = \"file\"\n").unwrap();
    let output = command(dir.path(), &["--print-config", "--cluster", "flag"])
        .arg("--config")
        .arg(&file)
        .env("STARLING_LOG__FORMAT", "json")
        .output()
        .unwrap();
    assert!(output.status.success());
    let printed: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
    assert_eq!(printed["log"]["level"].as_str(), Some("debug"));
    assert_eq!(printed["log"]["format"].as_str(), Some("json"));
    assert_eq!(printed["cluster"]["name"].as_str(), Some("flag"));
    assert!(!dir.path().join("identity.toml").exists(), "printing starts nothing");
}

#[tokio::test]
async fn a_graceful_stop_answers_says_goodbye_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[]);
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    assert!(matches!(stream.ask(1, write("kept")).await, Response::Written { .. }));
    let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
    assert_eq!(pid.trim(), node.child.id().to_string());
    let address = fs::read_to_string(dir.path().join("address")).unwrap();
    assert_eq!(address.trim(), node.address.to_string());

    assert_eq!(node.terminate(), Some(0));
    let closed = close_code(&connection).await;
    assert!(closed.is_none_or(|closed| closed == code(CloseCode::Stopping)), "{closed:?}");
    assert!(!dir.path().join("pid").exists());
    assert!(!dir.path().join("address").exists());

    let node = Node::start(dir.path(), &[]);
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    let key = b"kept".to_vec().into();
    let get = Request::Get { keyspace: Text::from("default"), key, at: None, level: None };
    match stream.ask(2, get).await {
        Response::Value { version: Some(version) } => assert_eq!(version.payload[..], [7; 10]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn after_kill_and_restart_old_connections_hear_of_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let address = node.address.to_string();
    let connection = node.client().await;
    let mut stream = Stream::open(&connection).await;
    assert!(matches!(stream.ask(1, write("kept")).await, Response::Written { .. }));
    // Dropping kills it, without a goodbye.
    drop(node);
    let node = Node::start(dir.path(), &["--listen", &address]);
    let question = frame(FrameKind::Request, 2, &(header(2), Request::Topology));
    stream.send(&question).await;
    // The idle timeout of this connection is 10 s.
    let closed = tokio::time::timeout(Duration::from_secs(4), connection.closed()).await;
    assert!(matches!(closed, Ok(ConnectionError::Reset)), "{closed:?}");
    assert!(node.is_well().await);
}

/// A cluster's nodes share an authority, which is on none of them.
fn cluster(dir: &Path, ports: &[u16]) -> Vec<Vec<String>> {
    let authority = Authority::create(&dir.join("ca"), "starling", 1_767_225_600).unwrap();
    let members = |flags: &mut Vec<String>| {
        for (id, port) in (1..).zip(ports) {
            flags.extend(["--member".to_owned(), format!("{id}@127.0.0.1:{port}")]);
        }
    };
    let flags = (1_u64..).zip(ports).map(|(id, port)| {
        let tls_dir = dir.join(format!("tls-{id}"));
        let issued = authority.issue_node(NodeId(id), 1_767_225_600).unwrap();
        tls::write_authority_cert(&tls_dir, &authority).unwrap();
        tls::write_pair(&tls_dir, (tls::NODE_CERT, tls::NODE_KEY), &issued).unwrap();
        let client = authority.issue_client("test", 1_767_225_600).unwrap();
        tls::write_pair(&tls_dir, (tls::CLIENT_CERT, tls::CLIENT_KEY), &client).unwrap();
        let mut flags = vec!["--id".to_owned(), id.to_string()];
        flags.extend(["--listen".to_owned(), format!("127.0.0.1:{port}")]);
        flags.extend(["--tls-dir".to_owned(), tls_dir.display().to_string()]);
        flags.extend(["--set".to_owned(), "gossip.probe_interval_ms=200".to_owned()]);
        flags.extend(["--set".to_owned(), "gossip.probe_timeout_ms=100".to_owned()]);
        members(&mut flags);
        flags
    });
    flags.collect()
}

/// Writes at level ALL until it succeeds.
async fn write_to_all(client: &Client, deadline: Duration) {
    let keyspace = client.keyspace("default");
    let clock = Clock::start();
    let end = clock.now().mono.plus_ms(u64::try_from(deadline.as_millis()).unwrap());
    let mut last = None;
    while !clock.until(end).is_zero() {
        let write = keyspace.put("key", "value").level(Level::All);
        match write.timeout(Duration::from_secs(1)).send().await {
            Ok(_) => return,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not all nodes took a write in {deadline:?}: {last:?}");
}

#[tokio::test]
async fn peers_find_each_other_again_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports::<3>();
    let flags = cluster(dir.path(), &ports);
    let start = |at: usize| {
        let flags: Vec<&str> = flags[at].iter().map(String::as_str).collect();
        Node::start(&dir.path().join(at.to_string()), &flags)
    };
    let mut nodes: Vec<Node> = (0..3).map(start).collect();
    let tls_dir = dir.path().join("tls-1");
    let credentials = Credentials::from_files(&TlsFiles::of_client(&tls_dir)).unwrap();
    let client = Client::connect(ClientConfig::new([nodes[0].address.to_string()], credentials));
    let client = client.await.unwrap();
    write_to_all(&client, DEADLINE).await;
    for at in [0, 2] {
        // The old one is killed before the new one starts.
        drop(nodes.remove(at));
        nodes.insert(at, start(at));
        let clock = Clock::start();
        write_to_all(&client, Duration::from_secs(20)).await;
        let took_ms = clock.mono().0 / 1000;
        eprintln!("all nodes took a write {took_ms} ms after node {} was back", at + 1);
    }
    for node in &mut nodes {
        assert_eq!(node.terminate(), Some(0));
    }
}
