//! Who gets a connection: protocols, certificates, clusters, and how many clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, VarInt};
use starling_client::codec::{List, Text};
use starling_client::transport::{Credentials, FrameKind, FrameReader, TlsFiles};
use starling_client::wire::{ALPN_CLIENT, ALPN_PEER, Request};
use starling_client::{Client, ClientConfig, ClientError};
use starling_clock::NodeId;
use starling_node::core::peer::Hello;
use starling_node::io::CloseCode;
use starling_node::io::time::Clock;
use starling_node::tls::{self, Authority};
use starling_ring::{Epoch, Member, Partitions};

use crate::support::{
    Node, close_code, code, code_after, connect, connect_with, frame, header, in_time,
};

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
    // Reset: the node had forgotten the connection before this side read why.
    matches!(error, ConnectionError::ConnectionClosed(_) | ConnectionError::Reset)
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
