//! Connections: finding the cluster, coming back, who is let in, and peers that break the rules.

use std::time::Duration;

use quinn::{ConnectionError, Endpoint, VarInt};
use starling_client::transport::tls::{client_name, node_name};
use starling_client::transport::{FRAME_SIZE_MAX, HEADER_SIZE, PeerIdentity, negotiated_protocol};
use starling_client::wire::{ALPN_CLIENT, ALPN_PEER, Response};
use starling_client::{
    Client, ClientConfig, ClientError, Credentials, ErrorKind, NodeId, TlsError, TlsFiles,
};

use crate::support::{Authority, Cluster, dialler, listen, soon, value, written};

#[tokio::test]
async fn a_lost_connection_is_made_anew() {
    let mut cluster = Cluster::start(1, 1);
    let client = cluster.connect().await;
    for _ in 0..3 {
        let read = tokio::spawn(client.keyspace("k").get("key").send());
        let asked = cluster.asked().await;
        asked.hang_up();
        let again = cluster.asked().await;
        assert_ne!(again.connection.stable_id(), asked.connection.stable_id());
        assert_eq!(again.header.attempt, 0, "a read has nothing to repeat");
        again.answer(&value(1, b"payload"));
        soon(read).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_restarted_node_is_found_again() {
    let mut cluster = Cluster::start(1, 1);
    let client = cluster.connect().await;
    cluster.stop(1).await;
    let write = tokio::spawn(client.keyspace("k").put("key", "payload").send());
    soon(cluster.restart(1)).await;
    let asked = cluster.asked().await;
    assert_eq!(asked.header.attempt, 0, "it never left while the node was away");
    asked.answer(&written(1));
    soon(write).await.unwrap().unwrap();
}

#[tokio::test]
async fn dead_nodes_are_passed_over() {
    let mut cluster = Cluster::start(3, 3);
    let mut config = cluster.config();
    config.connect_timeout = Duration::from_millis(100);
    let client = soon(Client::connect(config)).await.unwrap();
    cluster.stop(2).await;
    cluster.stop(3).await;
    for key in 0..6_u8 {
        let write = tokio::spawn(client.keyspace("k").put(vec![key], "payload").send());
        let asked = cluster.asked().await;
        assert_eq!(asked.node, 1);
        asked.answer(&written(1));
        soon(write).await.unwrap().unwrap();
    }
    let status = client.status(NodeId(9)).await;
    assert!(matches!(status, Err(ClientError::UnknownNode(NodeId(9)))), "{status:?}");
}

#[tokio::test]
async fn any_of_the_addresses_will_do() {
    let cluster = Cluster::start(2, 2);
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = cluster.config();
    config.addresses =
        vec![nobody.local_addr().unwrap().to_string(), cluster.address(2).to_string()];
    config.connect_timeout = Duration::from_millis(200);
    let client = soon(Client::connect(config)).await.unwrap();
    assert_eq!(client.nodes(), [NodeId(1), NodeId(2)]);
    assert_eq!(soon(client.topology_of(NodeId(1))).await.unwrap().node.0, NodeId(1));
}

#[tokio::test]
async fn nobody_there_is_told_in_time() {
    let cluster = Cluster::start(1, 1);
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = cluster.config();
    config.addresses = vec![nobody.local_addr().unwrap().to_string()];
    config.connect_timeout = Duration::from_millis(50);
    config.request_timeout = Duration::from_millis(120);
    let error = soon(Client::connect(config)).await.unwrap_err();
    assert!(matches!(error, ClientError::NoNode(_)), "{error}");
    assert_eq!(error.kind(), ErrorKind::NothingHappened);
}

#[tokio::test]
async fn wrong_settings_are_told_at_once() {
    let authority = Authority::new();
    let nowhere: [&str; 0] = [];
    let no_address = ClientConfig::new(nowhere, authority.client());
    let mut no_turns = ClientConfig::new(["127.0.0.1:1"], authority.client());
    no_turns.in_flight_max = 0;
    let mut no_time = ClientConfig::new(["127.0.0.1:1"], authority.client());
    no_time.connect_timeout = Duration::ZERO;
    for config in [no_address, no_turns, no_time] {
        let error = Client::connect(config).await.unwrap_err();
        assert!(matches!(error, ClientError::Config(_)), "{error}");
        assert_eq!(error.kind(), ErrorKind::ChangeRequest);
    }
}

#[tokio::test]
async fn a_closed_client_takes_no_calls() {
    let mut cluster = Cluster::start(1, 1);
    let client = cluster.connect().await;
    let read = tokio::spawn(client.keyspace("k").get("key").send());
    let asked = cluster.asked().await;
    soon(client.close()).await;
    assert!(soon(read).await.unwrap().is_err());
    assert!(matches!(soon(asked.connection.closed()).await, ConnectionError::ApplicationClosed(_)));
    let later = client.keyspace("k").put("key", "payload").await;
    assert!(matches!(later, Err(ClientError::Closed)), "{later:?}");
}

#[tokio::test]
async fn dropping_the_last_clone_ends_the_connections() {
    let mut cluster = Cluster::start(1, 1);
    let client = cluster.connect().await;
    let other = client.clone();
    let read = tokio::spawn(async move { other.keyspace("k").get("key").await });
    let asked = cluster.asked().await;
    drop(client);
    asked.answer(&value(1, b"payload"));
    soon(read).await.unwrap().unwrap();
    soon(asked.connection.closed()).await;
}

/// Accepts one connection on each side of `dialled`.
async fn meet(
    listener: &Endpoint,
    dialling: &Endpoint,
    name: &str,
) -> Result<(quinn::Connection, quinn::Connection), ConnectionError> {
    let address = listener.local_addr().unwrap();
    let dial = async { dialling.connect(address, name).unwrap().await };
    let accept = async { listener.accept().await.unwrap().await };
    let (dialled, accepted) = soon(async { tokio::join!(dial, accept) }).await;
    let dialled = dialled?;
    // Without a client's certificate the dialler learns of the refusal after it thinks it is connected.
    match accepted {
        Ok(accepted) => Ok((dialled, accepted)),
        Err(_) => Err(soon(dialled.closed()).await),
    }
}

#[tokio::test]
async fn both_ends_know_each_other_by_certificate() {
    let authority = Authority::new();
    let listener = listen(&authority.node(7), ([127, 0, 0, 1], 0).into(), None);
    let dialling = dialler(&authority.client(), ALPN_CLIENT);
    for name in ["node.starling", "7.node.starling"] {
        let (dialled, accepted) = meet(&listener, &dialling, name).await.unwrap();
        let identity = PeerIdentity::of_connection(&dialled).unwrap();
        assert_eq!(identity, PeerIdentity::Node(NodeId(7)));
        let identity = PeerIdentity::of_connection(&accepted).unwrap();
        assert_eq!(identity, PeerIdentity::Client("test".to_owned()));
        assert_eq!(negotiated_protocol(&accepted).unwrap(), ALPN_CLIENT);
    }
    assert!(meet(&listener, &dialling, "8.node.starling").await.is_err());
}

#[tokio::test]
async fn strangers_stay_outside() {
    let authority = Authority::new();
    let address = ([127, 0, 0, 1], 0).into();
    let listener = listen(&authority.node(7), address, None);
    let foreign = dialler(&Authority::new().client(), ALPN_CLIENT);
    assert!(meet(&listener, &foreign, "node.starling").await.is_err());
    let protocol = dialler(&authority.client(), ALPN_PEER);
    assert!(meet(&listener, &protocol, "node.starling").await.is_err());

    // The client is as careful: another authority's node, and a client that plays the node.
    let client = |address: std::net::SocketAddr| {
        let mut config = ClientConfig::new([address.to_string()], authority.client());
        config.request_timeout = Duration::from_millis(50);
        async { soon(Client::connect(config)).await.unwrap_err() }
    };
    let names = ["node.starling", "7.node.starling"];
    let player = client_name("player").unwrap();
    let players = [
        Authority::new().credentials(&names),
        authority.credentials(&["node.starling", &player]),
        authority.credentials(&[&player]),
        authority.credentials(&["node.starling"]),
        authority.credentials(&["node.starling", "7.node.starling", "8.node.starling"]),
    ];
    for credentials in players {
        let listener = listen(&credentials, address, None);
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Some(incoming) = listener.accept().await {
                if let Ok(connection) = incoming.await {
                    connection.closed().await;
                }
            }
        });
        let error = client(address).await;
        assert!(matches!(error, ClientError::NoNode(_)), "{error}");
    }
    assert_eq!(node_name(NodeId(7)), names[1]);
}

/// What a node sends that breaks the framing, and what must be left of the connection: nothing.
#[tokio::test]
async fn a_node_that_breaks_the_framing_is_left() {
    let frame = |length: u32, kind: u8, body: &[u8]| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&0_u64.to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(body);
        bytes
    };
    let breaches = [
        ("longer than anything", frame(u32::MAX, 2, &[])),
        ("longer than the shared stream takes", frame(65 << 10, 2, &[])),
        ("shorter than its header", frame(3, 2, &[])),
        ("of no kind", frame(9, 0, &[])),
        ("of a kind that does not belong there", frame(9, 1, &[])),
        ("no response", frame(10, 2, &[200])),
        ("trailing bytes", frame(12, 2, &[1, 0, 99])),
    ];
    for (what, bytes) in breaches {
        let (authority, address) = (Authority::new(), ([127, 0, 0, 1], 0).into());
        let listener = listen(&authority.node(1), address, None);
        let config =
            ClientConfig::new([listener.local_addr().unwrap().to_string()], authority.client());
        let connecting = tokio::spawn(Client::connect(config));
        let connection = soon(async { listener.accept().await.unwrap().await }).await.unwrap();
        let (mut send, mut receive) = soon(connection.accept_bi()).await.unwrap();
        let mut request = [0; HEADER_SIZE];
        soon(receive.read_exact(&mut request)).await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let closed = soon(connection.closed()).await;
        // A connection that ends before its handshake is confirmed is told by a reset.
        let told = matches!(closed, ConnectionError::ApplicationClosed(_) | ConnectionError::Reset);
        assert!(told, "{what}: {closed}");
        assert!(!connecting.is_finished(), "{what}: it tries on");
        connecting.abort();
    }
}

#[tokio::test]
async fn a_large_answer_that_breaks_the_framing_costs_the_connection() {
    let header = |size: usize| {
        let length = u32::try_from(size - 4).unwrap();
        [&length.to_le_bytes()[..], &0_u64.to_le_bytes(), &[2]].concat()
    };
    let too_long = header(FRAME_SIZE_MAX + 1);
    let cut = header(FRAME_SIZE_MAX);
    let trailing = [&header(HEADER_SIZE)[..], b"x"].concat();
    for bytes in [too_long, cut, trailing] {
        let mut cluster = Cluster::start(1, 1);
        let client = cluster.connect().await;
        let read = tokio::spawn(client.keyspace("k").get("key").send());
        let asked = cluster.asked().await;
        let mut stream = asked.connection.open_uni().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.finish().unwrap();
        soon(asked.connection.closed()).await;
        // The read is repeated on a new connection.
        cluster.asked().await.answer(&Response::Value { version: None });
        soon(read).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_stream_that_ends_costs_the_connection() {
    let mut cluster = Cluster::start(1, 1);
    let client = cluster.connect().await;
    let read = tokio::spawn(client.keyspace("k").get("key").send());
    let asked = cluster.asked().await;
    asked.connection.close(VarInt::from_u32(9), b"going");
    cluster.asked().await.answer(&value(1, b"payload"));
    assert!(soon(read).await.unwrap().unwrap().is_some());
}

#[test]
fn credentials_that_cannot_be_used_are_told_by_file() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue(&["node.starling", "7.node.starling"]);
    let (_, other_key) = authority.issue(&["node.starling"]);
    let directory = tempfile::tempdir().unwrap();
    let files = TlsFiles::of_node(directory.path());
    match Credentials::from_files(&files) {
        Err(TlsError::Read { path, .. }) => assert_eq!(path, files.authority),
        other => panic!("{other:?}"),
    }
    std::fs::write(&files.authority, authority.pem()).unwrap();
    std::fs::write(&files.certificate, &certificate).unwrap();
    for not_a_key in ["", "no PEM", certificate.as_str()] {
        std::fs::write(&files.key, not_a_key).unwrap();
        match Credentials::from_files(&files) {
            Err(TlsError::Pem { origin, .. }) => {
                assert_eq!(origin, files.key.display().to_string());
            }
            other => panic!("{other:?}"),
        }
    }
    std::fs::write(&files.key, other_key).unwrap();
    let unpaired = Credentials::from_files(&files).unwrap();
    assert!(matches!(unpaired.client_crypto(ALPN_CLIENT), Err(TlsError::Pair(_))));
    assert!(matches!(unpaired.server_crypto(&[ALPN_CLIENT]), Err(TlsError::Pair(_))));

    std::fs::write(&files.key, key).unwrap();
    let credentials = Credentials::from_files(&files).unwrap();
    assert_eq!(credentials.identity().unwrap(), PeerIdentity::Node(NodeId(7)));
    assert!(!format!("{credentials:?}").contains("PRIVATE"));
    std::fs::write(&files.authority, "").unwrap();
    assert!(matches!(Credentials::from_files(&files), Err(TlsError::Pem { .. })));
}

#[test]
fn a_certificate_names_one_node_or_one_client() {
    let authority = Authority::new();
    let identity = |names: &[&str]| authority.credentials(names).identity().ok();
    let ann = Some(PeerIdentity::Client("ann".to_owned()));
    assert_eq!(identity(&["ann.client.starling"]), ann);
    assert_eq!(
        identity(&["18446744073709551615.node.starling"]),
        Some(PeerIdentity::Node(NodeId(u64::MAX)))
    );
    for names in [
        &[][..],
        &["node.starling"],
        &["example.org"],
        &["07.node.starling"],
        &["+7.node.starling"],
        &["18446744073709551616.node.starling"],
        &["x7.node.starling"],
        &["7.node.starling.example.org"],
        &["client.starling"],
        &["a.b.client.starling"],
        &["7.node.starling", "8.node.starling"],
        &["7.node.starling", "ann.client.starling"],
    ] {
        assert_eq!(identity(names), None, "{names:?}");
    }
    for name in ["", "Ann", "a.b", "\u{e4}", &"a".repeat(64)] {
        assert_eq!(client_name(name), None);
    }
}
