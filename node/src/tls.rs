//! Certificates as files: making them, and checking them before they are used.
//!
//! A node's certificate carries the names `node.starling` and `<id>.node.starling`, a client's `<name>.client.starling`. One
//! authority signs all of a cluster's: whoever holds its key can make members, so it need not be on any node.
//!
//! Invariants:
//!
//! - A file that exists is never written to. Files appear whole or not at all.
//! - Keys are readable by their owner alone (mode 0600), from the first byte on.
//! - Two processes that make certificates in one directory at once end with one authority.
//!
//! The TLS set-up itself is `starling_client::transport`'s. This module does not read the time: `now_s` is an argument.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use starling_client::transport::TlsFiles;
use starling_client::transport::tls::{CLIENT_NAME_SIZE_MAX, NODE_NAME, client_name, node_name};
use starling_clock::NodeId;

/// The authority's certificate, in a directory of certificates.
pub const AUTHORITY_CERT: &str = "ca.pem";
/// The authority's key.
pub const AUTHORITY_KEY: &str = "ca.key";
/// A node's certificate.
pub const NODE_CERT: &str = "node.pem";
/// A node's key.
pub const NODE_KEY: &str = "node.key";
/// A client's certificate.
pub const CLIENT_CERT: &str = "client.pem";
/// A client's key.
pub const CLIENT_KEY: &str = "client.key";

const LOCK: &str = ".lock";
/// Certificates hold from a day before they are made, for clocks that are behind.
const VALID_BEFORE_S: u64 = 24 * 60 * 60;
/// Ten years. There is no revocation list: a new authority is the way to lock somebody out.
const VALID_FOR_S: u64 = 10 * 365 * 24 * 60 * 60;

/// Certificates that cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there.
    #[error("{path} is missing: make it with `starling cert`, or name the directory with --tls-dir", path = path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be read, or does not hold what its name says.
    #[error("{path} cannot be used: {reason}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file cannot be written.
    #[error("{path} cannot be written: {source}", path = path.display())]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there already and stays as it is.
    #[error("{path} exists and is never overwritten: remove it first if it is not needed", path = path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The key is not the certificate's.
    #[error("{key} is not the key of {cert}: they must be made together", key = key.display(), cert = cert.display())]
    Mismatched {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The certificate is another authority's.
    #[error("{cert} was not signed by {ca}: use certificates of one authority", cert = cert.display(), ca = ca.display())]
    Foreign {
        /// The certificate.
        cert: PathBuf,
        /// The authority's.
        ca: PathBuf,
    },
    /// The certificate is another node's, or a client's.
    #[error("{cert} is not the certificate of node {node}: make one with `starling cert node {node}`", cert = cert.display())]
    WrongNode {
        /// The certificate.
        cert: PathBuf,
        /// Who needs one.
        node: NodeId,
    },
    /// The certificate does not hold now.
    #[error("{cert} is not valid now: make a new one, or set this machine's clock", cert = cert.display())]
    Expired {
        /// The certificate.
        cert: PathBuf,
    },
    /// Not a client's name.
    #[error("{0:?} is not a client's name: 1 to {CLIENT_NAME_SIZE_MAX} of a-z, 0-9, - and _")]
    ClientName(String),
    /// The cryptography library refused.
    #[error("making a certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// Whether `node` can use these: they are there, belong together, and hold at `now_s`, in seconds since the Unix epoch.
///
/// # Errors
/// [`TlsError`] with what to do.
pub fn check_node(files: &TlsFiles, node: NodeId, now_s: u64) -> Result<(), TlsError> {
    let authority = read_certificate(&files.authority)?;
    let certificate = read_certificate(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|error| unreadable(&files.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    CertifiedKey::from_der(vec![certificate.clone()], key, &provider).map_err(
        |error| match error {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::Mismatched { cert: files.certificate.clone(), key: files.key.clone() }
            }
            error => unreadable(&files.key, &error),
        },
    )?;
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| unreadable(&files.authority, &error))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| unreadable(&files.authority, &error))?;
    let name = ServerName::try_from(node_name(node))
        .map_err(|error| unreadable(&files.certificate, &error))?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
    let cert = || files.certificate.clone();
    match verifier.verify_server_cert(&certificate, &[], &name, &[], now) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(error)) => Err(match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                TlsError::Foreign { cert: cert(), ca: files.authority.clone() }
            }
            CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
            | CertificateError::InvalidPurpose
            | CertificateError::InvalidPurposeContext { .. } => {
                TlsError::WrongNode { cert: cert(), node }
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => TlsError::Expired { cert: cert() },
            error => unreadable(&files.certificate, &error),
        }),
        Err(error) => Err(unreadable(&files.certificate, &error)),
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The key. A secret.
    pub key_pem: String,
}

/// Whoever signs the certificates of a cluster.
pub struct Authority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority and writes [`AUTHORITY_CERT`] and [`AUTHORITY_KEY`] to `dir`.
    ///
    /// # Errors
    /// [`TlsError::Exists`] if either is there; nothing is written then.
    pub fn create(dir: &Path, cluster: &str, now_s: u64) -> Result<Self, TlsError> {
        let _lock = lock(dir)?;
        Self::create_locked(dir, cluster, now_s)
    }

    fn create_locked(dir: &Path, cluster: &str, now_s: u64) -> Result<Self, TlsError> {
        let mut params = params(Vec::new(), &format!("Starling authority of {cluster}"), now_s)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let cert_pem = params.self_signed(&key)?.pem();
        let issued = Issued { cert_pem: cert_pem.clone(), key_pem: key.serialize_pem() };
        write_pair(dir, (AUTHORITY_CERT, AUTHORITY_KEY), &issued)?;
        Ok(Self { cert_pem, issuer: Issuer::new(params, key) })
    }

    /// The authority whose [`AUTHORITY_CERT`] and [`AUTHORITY_KEY`] are in `dir`.
    ///
    /// # Errors
    /// [`TlsError`] if they are not there or not an authority's.
    pub fn open(dir: &Path) -> Result<Self, TlsError> {
        let (cert_path, key_path) = (dir.join(AUTHORITY_CERT), dir.join(AUTHORITY_KEY));
        let cert_pem = read_text(&cert_path)?;
        let key = KeyPair::from_pem(&read_text(&key_path)?)
            .map_err(|error| unreadable(&key_path, &error))?;
        let certificate = read_certificate(&cert_path)?;
        let provider = rustls::crypto::ring::default_provider();
        let key_der = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
            .map_err(|error| unreadable(&key_path, &error))?;
        if CertifiedKey::from_der(vec![certificate], key_der, &provider).is_err() {
            return Err(TlsError::Mismatched { cert: cert_path, key: key_path });
        }
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key)
            .map_err(|error| unreadable(&cert_path, &error))?;
        Ok(Self { cert_pem, issuer })
    }

    /// The authority's certificate, for those who check.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// A certificate for a node. It is good for both ends of a connection between nodes.
    ///
    /// # Errors
    /// [`TlsError::Generate`].
    pub fn issue_node(&self, node: NodeId, now_s: u64) -> Result<Issued, TlsError> {
        let names = vec![NODE_NAME.to_owned(), node_name(node)];
        let mut params = params(names, &format!("Starling node {node}"), now_s)?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// A certificate for a client of this name.
    ///
    /// # Errors
    /// [`TlsError::ClientName`], [`TlsError::Generate`].
    pub fn issue_client(&self, name: &str, now_s: u64) -> Result<Issued, TlsError> {
        let Some(full_name) = client_name(name) else {
            return Err(TlsError::ClientName(name.to_owned()));
        };
        let mut params = params(vec![full_name], &format!("Starling client {name}"), now_s)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn issue(&self, mut params: CertificateParams) -> Result<Issued, TlsError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { cert_pem, key_pem: key.serialize_pem() })
    }
}

/// Writes a certificate and its key to `dir` under these names, the key first: where the certificate is, the key is.
///
/// # Errors
/// [`TlsError::Exists`] if either is there; nothing is written then.
pub fn write_pair(dir: &Path, (cert, key): (&str, &str), issued: &Issued) -> Result<(), TlsError> {
    let (cert, key) = (dir.join(cert), dir.join(key));
    for path in [&cert, &key] {
        if path.exists() {
            return Err(TlsError::Exists { path: path.clone() });
        }
    }
    make_dir(dir)?;
    write_new(&key, &issued.key_pem, 0o600)?;
    write_new(&cert, &issued.cert_pem, 0o644)
}

/// Writes the authority's certificate to `dir`, for a node or client that gets its own from there.
///
/// # Errors
/// [`TlsError::Exists`] if there is one.
pub fn write_authority_cert(dir: &Path, authority: &Authority) -> Result<(), TlsError> {
    make_dir(dir)?;
    write_new(&dir.join(AUTHORITY_CERT), authority.cert_pem(), 0o644)
}

/// Makes what a node needs to be tried out and is not in `dir` yet: an authority, the node's certificate, and a client's called `development`.
///
/// # Errors
/// [`TlsError`]. What is there is neither changed nor checked.
pub fn ensure_development(
    dir: &Path,
    cluster: &str,
    node: NodeId,
    now_s: u64,
) -> Result<(), TlsError> {
    let _lock = lock(dir)?;
    let missing = |name: &str| !dir.join(name).exists();
    if !missing(NODE_CERT) && !missing(AUTHORITY_CERT) {
        return Ok(());
    }
    let authority = if missing(AUTHORITY_CERT) && missing(NODE_CERT) {
        // A key without its certificate is what a crash between the two leaves; it has signed nothing.
        remove_orphan(dir, AUTHORITY_CERT, AUTHORITY_KEY)?;
        Authority::create_locked(dir, cluster, now_s)?
    } else {
        Authority::open(dir)?
    };
    if missing(CLIENT_CERT) {
        remove_orphan(dir, CLIENT_CERT, CLIENT_KEY)?;
        let issued = authority.issue_client("development", now_s)?;
        write_pair(dir, (CLIENT_CERT, CLIENT_KEY), &issued)?;
    }
    remove_orphan(dir, NODE_CERT, NODE_KEY)?;
    write_pair(dir, (NODE_CERT, NODE_KEY), &authority.issue_node(node, now_s)?)
}

fn remove_orphan(dir: &Path, cert: &str, key: &str) -> Result<(), TlsError> {
    let path = dir.join(key);
    if dir.join(cert).exists() || !path.exists() {
        return Ok(());
    }
    fs::remove_file(&path).map_err(|source| TlsError::Unwritable { path, source })
}

fn params(
    names: Vec<String>,
    common_name: &str,
    now_s: u64,
) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // A clock beyond the year 9999 is no reason to panic: what is made then does not hold.
    let at = |s: u64| epoch + Duration::from_secs(s.min(8_000 * 365 * 24 * 60 * 60));
    params.not_before = at(now_s.saturating_sub(VALID_BEFORE_S));
    params.not_after = at(now_s.saturating_add(VALID_FOR_S));
    Ok(params)
}

/// Held while files are made in `dir`; released when dropped.
fn lock(dir: &Path) -> Result<File, TlsError> {
    make_dir(dir)?;
    let path = dir.join(LOCK);
    let error = |source| TlsError::Unwritable { path: path.clone(), source };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(error)?;
    file.lock().map_err(error)?;
    Ok(file)
}

fn make_dir(dir: &Path) -> Result<(), TlsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| TlsError::Unwritable { path: dir.to_owned(), source })
}

/// Whole or not at all, and never over another: written under another name, then linked.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    let written = write();
    // It is a leftover in both cases; one that cannot be removed does no harm.
    let _ = fs::remove_file(&temporary);
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => TlsError::Exists { path: path.to_owned() },
        _ => TlsError::Unwritable { path: path.to_owned(), source },
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => TlsError::Missing { path: path.to_owned() },
        _ => unreadable(path, &error),
    })
}

fn read_text(path: &Path) -> Result<String, TlsError> {
    String::from_utf8(read(path)?).map_err(|error| unreadable(path, &error))
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(&read(path)?).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Unreadable { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// 2026-01-01.
    const NOW_S: u64 = 1_767_225_600;
    const NODE: NodeId = NodeId(7);

    #[test]
    fn development_certificates_are_made_once_and_fit() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        ensure_development(&tls, "test", NODE, NOW_S).unwrap();
        check_node(&TlsFiles::of_node(&tls), NODE, NOW_S).unwrap();
        let before = fs::read(tls.join(NODE_CERT)).unwrap();
        ensure_development(&tls, "test", NODE, NOW_S + 1).unwrap();
        assert_eq!(fs::read(tls.join(NODE_CERT)).unwrap(), before);
        for key in [AUTHORITY_KEY, NODE_KEY, CLIENT_KEY] {
            assert_eq!(fs::metadata(tls.join(key)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let leftovers = fs::read_dir(&tls).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tmp")
        });
        assert_eq!(leftovers.count(), 0);
    }

    #[test]
    fn two_at_once_end_with_one_authority() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| ensure_development(dir.path(), "test", NODE, NOW_S).unwrap());
            }
        });
        check_node(&TlsFiles::of_node(dir.path()), NODE, NOW_S).unwrap();
    }

    #[test]
    fn a_crash_between_key_and_certificate_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(AUTHORITY_KEY), "half").unwrap();
        fs::write(dir.path().join(NODE_KEY), "half").unwrap();
        ensure_development(dir.path(), "test", NODE, NOW_S).unwrap();
        check_node(&TlsFiles::of_node(dir.path()), NODE, NOW_S).unwrap();
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), "test", NOW_S).unwrap();
        let again = Authority::create(dir.path(), "test", NOW_S);
        assert!(matches!(again, Err(TlsError::Exists { .. })));
        let issued = authority.issue_node(NODE, NOW_S).unwrap();
        write_pair(dir.path(), (NODE_CERT, NODE_KEY), &issued).unwrap();
        let again = write_pair(dir.path(), (NODE_CERT, NODE_KEY), &issued);
        assert!(matches!(again, Err(TlsError::Exists { .. })));
    }

    #[test]
    fn what_does_not_fit_is_told_apart() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        ensure_development(dir.path(), "test", NODE, NOW_S).unwrap();
        ensure_development(other.path(), "test", NODE, NOW_S).unwrap();
        let files = TlsFiles::of_node(dir.path());
        let check = |files: &TlsFiles| check_node(files, NODE, NOW_S).unwrap_err();

        let authority = other.path().join(AUTHORITY_CERT);
        assert!(matches!(
            check(&TlsFiles { authority, ..files.clone() }),
            TlsError::Foreign { .. }
        ));
        let key = other.path().join(NODE_KEY);
        assert!(matches!(check(&TlsFiles { key, ..files.clone() }), TlsError::Mismatched { .. }));
        let certificate = dir.path().join("nowhere.pem");
        assert!(matches!(
            check(&TlsFiles { certificate, ..files.clone() }),
            TlsError::Missing { .. }
        ));
        let certificate = files.key.clone();
        assert!(matches!(
            check(&TlsFiles { certificate, ..files.clone() }),
            TlsError::Unreadable { .. }
        ));
        let (certificate, key) = (dir.path().join(CLIENT_CERT), dir.path().join(CLIENT_KEY));
        let client = TlsFiles { certificate, key, ..files.clone() };
        assert!(matches!(check(&client), TlsError::WrongNode { .. }));

        let error = check_node(&files, NodeId(8), NOW_S).unwrap_err();
        assert!(matches!(error, TlsError::WrongNode { .. }));
        let error = check_node(&files, NODE, NOW_S + 2 * VALID_FOR_S).unwrap_err();
        assert!(matches!(error, TlsError::Expired { .. }));
    }

    #[test]
    fn an_opened_authority_signs_as_the_made_one() {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), "test", NOW_S).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let issued = authority.issue_node(NODE, NOW_S).unwrap();
        write_pair(dir.path(), (NODE_CERT, NODE_KEY), &issued).unwrap();
        check_node(&TlsFiles::of_node(dir.path()), NODE, NOW_S).unwrap();
        for name in ["", "Upper", "dot.ted", "a b", &"a".repeat(64)] {
            let error = authority.issue_client(name, NOW_S).err();
            assert!(matches!(error, Some(TlsError::ClientName(_))), "{name}");
        }
        let other = tempfile::tempdir().unwrap();
        Authority::create(other.path(), "test", NOW_S).unwrap();
        let (from, to) = (other.path().join(AUTHORITY_KEY), dir.path().join(AUTHORITY_KEY));
        fs::copy(from, to).unwrap();
        assert!(matches!(Authority::open(dir.path()).err(), Some(TlsError::Mismatched { .. })));
    }
}
