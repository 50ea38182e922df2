//! What the tests share: nodes as processes, and connections to them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quinn::{Connection, ConnectionError, VarInt};
use starling_client::codec::{self, Text};
use starling_client::transport::{
    Credentials, FrameKind, FrameReader, TlsFiles, TransportOptions, bind, client_config,
    encode_frame,
};
use starling_client::wire::{ALPN_CLIENT, Header, Request, RequestId, Response};
use starling_node::io::CloseCode;

/// Longest that anything here may take.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// A running node; killed when dropped.
pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) data_dir: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn command(data_dir: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
    command.arg("node").arg("--data-dir").arg(data_dir).args(flags).env("RUST_BACKTRACE", "1");
    command
}

impl Node {
    /// Starts a node and waits until it listens.
    pub(crate) fn start(data_dir: &Path, flags: &[&str]) -> Self {
        let mut command = command(data_dir, flags);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        Self::start_by(data_dir, command)
    }

    /// Starts a node that cannot make a file longer than so many blocks of the shell's: 512 or 1024 bytes each.
    pub(crate) fn start_with_little_room(data_dir: &Path, blocks: u32) -> Self {
        let node = command(data_dir, &["--listen", "127.0.0.1:0"]);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -f {blocks} && exec \"$@\"")).arg("sh");
        command.arg(node.get_program()).args(node.get_args());
        Self::start_by(data_dir, command)
    }

    pub(crate) fn start_by(data_dir: &Path, mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("the node is up");
        let address = address.parse().unwrap();
        Self { child, data_dir: data_dir.to_owned(), address }
    }

    pub(crate) fn tls(&self) -> PathBuf {
        self.data_dir.join("tls")
    }

    pub(crate) fn credentials(&self) -> Credentials {
        Credentials::from_files(&TlsFiles::of_client(&self.tls())).unwrap()
    }

    pub(crate) async fn client(&self) -> Connection {
        connect(self.address, &self.credentials(), ALPN_CLIENT).await.unwrap()
    }

    /// Whether a new client gets an answer.
    pub(crate) async fn is_well(&self) -> bool {
        let connection = self.client().await;
        let mut stream = Stream::open(&connection).await;
        matches!(stream.ask(1, Request::Topology).await, Response::Topology(_))
    }

    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}

pub(crate) async fn connect(
    address: SocketAddr,
    credentials: &Credentials,
    protocol: &[u8],
) -> Result<Connection, ConnectionError> {
    let config =
        client_config(credentials.client_crypto(protocol).unwrap(), TransportOptions::DEFAULT);
    connect_with(address, config).await
}

pub(crate) async fn connect_with(
    address: SocketAddr,
    config: quinn::ClientConfig,
) -> Result<Connection, ConnectionError> {
    let endpoint = bind(SocketAddr::from(([127, 0, 0, 1], 0)), None, None).unwrap();
    in_time(endpoint.connect_with(config, address, "node.starling").unwrap()).await
}

pub(crate) async fn in_time<T>(what: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it happens before the deadline")
}

/// The stream of requests of a client.
pub(crate) struct Stream {
    pub(crate) send: quinn::SendStream,
    pub(crate) reader: FrameReader,
}

impl Stream {
    pub(crate) async fn open(connection: &Connection) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        Self { send, reader: FrameReader::shared(receive) }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn answer(&mut self) -> (u64, Response) {
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                assert_eq!(frame.kind, FrameKind::Response);
                return (frame.id, codec::decode(frame.body).unwrap());
            }
            assert!(in_time(self.reader.read()).await.unwrap(), "the stream goes on");
        }
    }

    pub(crate) async fn ask(&mut self, id: u64, request: Request) -> Response {
        self.send(&frame(FrameKind::Request, id, &(header(id), request))).await;
        let (answered, response) = self.answer().await;
        assert_eq!(answered, id);
        response
    }
}

pub(crate) fn header(sequence: u64) -> Header {
    let request = RequestId { client: 7, sequence };
    Header { request, attempt: 0, timeout_ms: 10_000, epoch: 0, observed: 0 }
}

pub(crate) fn frame<T: codec::bincode::Encode>(kind: FrameKind, id: u64, message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_frame(kind, id, &mut bytes, |body| codec::encode(message, body));
    bytes
}

pub(crate) fn write(key: &str) -> Request {
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
pub(crate) const TRIES: usize = 2000;

/// The code with which the node closes the connection. `None`: it had forgotten the connection before this side read its goodbye, and
/// what it says to strangers hides that.
pub(crate) async fn close_code(connection: &Connection) -> Option<VarInt> {
    code_of(in_time(connection.closed()).await)
}

fn code_of(closed: ConnectionError) -> Option<VarInt> {
    match closed {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code),
        ConnectionError::Reset => None,
        other => panic!("closed by {other:?}"),
    }
}

/// The code with which the node closes a connection on which these bytes are sent, and then nothing more.
pub(crate) async fn code_after(
    node: &Node,
    who: &Credentials,
    protocol: &[u8],
    bytes: &[u8],
) -> VarInt {
    for _ in 0..TRIES {
        // The node may close at any moment from the handshake on: before there is a stream, and before all is written.
        let closed = match connect(node.address, who, protocol).await {
            Ok(connection) => {
                let mut stream = connection.open_bi().await;
                if let Ok((send, _receive)) = &mut stream
                    && send.write_all(bytes).await.is_ok()
                {
                    let _ = send.finish();
                }
                in_time(connection.closed()).await
            }
            Err(error) => error,
        };
        if let Some(code) = code_of(closed) {
            return code;
        }
    }
    panic!("the end of {TRIES} connections was not heard");
}

pub(crate) fn code(code: CloseCode) -> VarInt {
    VarInt::from_u32(code as u32)
}

/// UDP ports that nobody has at this moment.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let sockets = [(); N].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}
