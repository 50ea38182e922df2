//! TLS of every connection: credentials from PEM, rustls configurations, and who a peer's certificate says it is.
//!
//! Invariants:
//!
//! - TLS 1.3 only, both sides show a certificate, and both certificates are signed by the cluster's authority.
//! - A peer is who its certificate says, never who its address says: a node's names are `node.starling` and
//!   `<id>.node.starling`, a client's is `<name>.client.starling`.
//! - Early data (0-RTT) is off: it could be replayed.
//!
//! It makes no certificates; the node does.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use starling_clock::NodeId;
use x509_parser::extensions::GeneralName;

/// The name in every node's certificate; what a dialler asks for that does not know the node's id yet.
pub const NODE_NAME: &str = "node.starling";
/// What follows the name in a client's certificate.
const CLIENT_SUFFIX: &str = ".client.starling";
/// Longest name of a client, in bytes: one label of a domain name.
pub const CLIENT_NAME_SIZE_MAX: usize = 63;

/// The name in the certificate of `node` alone.
pub fn node_name(node: NodeId) -> String {
    format!("{node}.{NODE_NAME}")
}

/// The name in the certificate of the client `name`; `None` if it is not 1 to 63 of `a-z 0-9 - _`.
pub fn client_name(name: &str) -> Option<String> {
    is_client_name(name).then(|| format!("{name}{CLIENT_SUFFIX}"))
}

fn is_client_name(name: &str) -> bool {
    let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    (1..=CLIENT_NAME_SIZE_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// Why TLS cannot be set up, or why a peer's certificate is not accepted. No connection was made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not PEM, or holds nothing of the kind that is wanted.
    #[error("no {wanted} in {origin}: {problem}")]
    Pem {
        /// The file, or what was passed in its stead.
        origin: String,
        /// What should be there.
        wanted: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The authority's certificate cannot be used.
    #[error("the authority's certificate cannot be used: {0}")]
    Authority(String),
    /// The certificate cannot be used with this key; mostly they are no pair.
    #[error("the certificate and its key cannot be used: {0}")]
    Pair(rustls::Error),
    /// The TLS library was built without what QUIC needs.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
    /// The node turned our certificate away.
    #[error(
        "node {node} does not accept this client's certificate ({reason}): use one that the authority of its cluster has made"
    )]
    NotAccepted {
        /// Which.
        node: NodeId,
        /// What it said.
        reason: String,
    },
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoPeerCertificate,
    /// The peer's certificate names no node and no client, or more than one.
    #[error("the peer's certificate does not say who it is: {0}")]
    NotAnIdentity(String),
}

/// Where credentials are on disk, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate of the cluster's authority (one or more).
    pub authority: PathBuf,
    /// Our certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Our private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// A node's files in a directory: `ca.pem`, `node.pem`, `node.key`.
    pub fn of_node(directory: &Path) -> Self {
        Self::named(directory, "node")
    }

    /// A client's files in a directory: `ca.pem`, `client.pem`, `client.key`.
    pub fn of_client(directory: &Path) -> Self {
        Self::named(directory, "client")
    }

    fn named(directory: &Path, name: &str) -> Self {
        Self {
            authority: directory.join("ca.pem"),
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        }
    }
}

/// What we trust and what we show.
pub struct Credentials {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Credentials {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { roots: self.roots.clone(), chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Credentials {
    /// Reads PEM files.
    ///
    /// # Errors
    /// [`TlsError`] that names the file.
    pub fn from_files(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|source| TlsError::Read { path: path.to_owned(), source })
                .map(|bytes| (path.display().to_string(), bytes))
        };
        let authority = read(&files.authority)?;
        let certificate = read(&files.certificate)?;
        let key = read(&files.key)?;
        Self::parse(&authority, &certificate, &key)
    }

    /// From PEM in memory.
    ///
    /// # Errors
    /// [`TlsError`] if a part is not what it should be.
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let part = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
        let authority = part("the authority's PEM", authority);
        Self::parse(
            &authority,
            &part("the certificate's PEM", certificate),
            &part("the key's PEM", key),
        )
    }

    fn parse(
        authority: &(String, Vec<u8>),
        certificate: &(String, Vec<u8>),
        key: &(String, Vec<u8>),
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(authority)? {
            roots.add(root).map_err(|error| TlsError::Authority(error.to_string()))?;
        }
        let chain = certificates(certificate)?;
        let key_der = PrivateKeyDer::from_pem_slice(&key.1).map_err(|error| TlsError::Pem {
            origin: key.0.clone(),
            wanted: "private key",
            problem: error.to_string(),
        })?;
        Ok(Self { roots: Arc::new(roots), chain, key: key_der })
    }

    /// Who our own certificate says we are.
    ///
    /// # Errors
    /// [`TlsError::NotAnIdentity`].
    pub fn identity(&self) -> Result<PeerIdentity, TlsError> {
        PeerIdentity::of_certificate(self.chain.first().ok_or(TlsError::NoPeerCertificate)?)
    }

    /// Takes connections that speak one of `protocols` (ALPN).
    ///
    /// # Errors
    /// [`TlsError`] if the credentials don't work together.
    pub fn server_crypto(&self, protocols: &[&[u8]]) -> Result<QuicServerConfig, TlsError> {
        let provider = provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone())
                .build()
                .map_err(|error| TlsError::Authority(error.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError::Setup(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(TlsError::Pair)?;
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        QuicServerConfig::try_from(config).map_err(|error| TlsError::Setup(error.to_string()))
    }

    /// Makes connections that speak `protocol` (ALPN).
    ///
    /// # Errors
    /// [`TlsError`] if the credentials don't work together.
    pub fn client_crypto(&self, protocol: &[u8]) -> Result<QuicClientConfig, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError::Setup(error.to_string()))?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(TlsError::Pair)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        config.enable_early_data = false;
        QuicClientConfig::try_from(config).map_err(|error| TlsError::Setup(error.to_string()))
    }
}

fn certificates(
    (origin, pem): &(String, Vec<u8>),
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wanted = "certificate";
    let bad = |problem: String| TlsError::Pem { origin: origin.clone(), wanted, problem };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| bad(error.to_string()))?;
    if found.is_empty() { Err(bad("the file holds none".to_owned())) } else { Ok(found) }
}

/// *ring*, with AES-128 first: no slower anywhere, and QUIC's first packets need it.
fn provider() -> Arc<CryptoProvider> {
    let suites =
        [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = suites.to_vec();
    Arc::new(provider)
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// A node.
    Node(NodeId),
    /// A client of this name.
    Client(String),
}

impl PeerIdentity {
    /// Who is at the other end of `connection`, whose handshake is done.
    ///
    /// # Errors
    /// [`TlsError::NotAnIdentity`] for a certificate of the authority that is neither a node's nor a client's.
    pub fn of_connection(connection: &quinn::Connection) -> Result<Self, TlsError> {
        let shown = connection.peer_identity().ok_or(TlsError::NoPeerCertificate)?;
        let chain = shown
            .downcast::<Vec<CertificateDer<'static>>>()
            .map_err(|_| TlsError::NoPeerCertificate)?;
        Self::of_certificate(chain.first().ok_or(TlsError::NoPeerCertificate)?)
    }

    /// Whose certificate this is.
    ///
    /// # Errors
    /// [`TlsError::NotAnIdentity`] unless its names say exactly one node or one client.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let no = |problem: String| TlsError::NotAnIdentity(problem);
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| no(error.to_string()))?;
        let names = parsed.subject_alternative_name().map_err(|error| no(error.to_string()))?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names[..]);
        let mut found = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Self::of_name(name),
            _ => None,
        });
        match (found.next(), found.next()) {
            (Some(identity), None) => Ok(identity),
            (None, _) => Err(no("it names no node and no client".to_owned())),
            (Some(_), Some(_)) => Err(no("it names more than one node or client".to_owned())),
        }
    }

    /// The name that every node's certificate carries says nothing about which node it is.
    fn of_name(name: &str) -> Option<Self> {
        if let Some(client) = name.strip_suffix(CLIENT_SUFFIX) {
            return is_client_name(client).then(|| Self::Client(client.to_owned()));
        }
        let id = name.strip_suffix(NODE_NAME)?.strip_suffix('.')?;
        let node = NodeId(id.parse().ok()?);
        // `+7` and `007` parse as well, and are nobody's names.
        (node_name(node) == name).then_some(Self::Node(node))
    }
}

/// The protocol (ALPN) that both ends of `connection` agreed to speak.
pub fn negotiated_protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}
