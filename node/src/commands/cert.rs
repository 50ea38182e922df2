//! `starling cert`: makes the authority of a cluster, and the certificates of its nodes and clients.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use starling_clock::NodeId;

use super::Failure;
use super::output::Out;
use crate::tls::{self, Authority, TlsError};

/// Make certificates.
///
/// Everything in a cluster shows a certificate of the cluster's authority: nodes to nodes, nodes to clients, clients to nodes.
/// Whoever has `ca.key` can make more of them, so keep it off the nodes. Nothing that exists is ever overwritten.
#[derive(Debug, Args)]
pub struct CertArgs {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Make an authority: ca.pem and ca.key.
    Ca {
        /// Where to write them.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The cluster's name, told in the certificate.
        #[arg(long, default_value = "starling")]
        cluster: String,
    },
    /// Make a node's certificate: ca.pem, node.pem and node.key.
    Node {
        /// Directory of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The node's id, as in its configuration.
        #[arg(long)]
        id: u64,
        /// Where to write them: the node's `tls.dir`.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make a client's certificate: ca.pem, client.pem and client.key.
    Client {
        /// Directory of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The client's name: 1 to 63 of a-z, 0-9 and '-'.
        #[arg(long)]
        name: String,
        /// Where to write them: what `--tls` then names.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Runs the command. `now_s`: seconds since the Unix epoch.
pub(super) fn run(args: &CertArgs, out: Out, now_s: u64) -> Result<(), Failure> {
    match &args.kind {
        Kind::Ca { dir, cluster } => {
            Authority::create(dir, cluster, now_s)?;
            made(out, dir, &[tls::AUTHORITY_CERT, tls::AUTHORITY_KEY])
        }
        Kind::Node { ca, id, dir } => {
            let authority = Authority::open(ca)?;
            let issued = authority.issue_node(NodeId(*id), now_s)?;
            trust(dir, &authority)?;
            tls::write_pair(dir, (tls::NODE_CERT, tls::NODE_KEY), &issued)?;
            made(out, dir, &[tls::AUTHORITY_CERT, tls::NODE_CERT, tls::NODE_KEY])
        }
        Kind::Client { ca, name, dir } => {
            let authority = Authority::open(ca)?;
            let issued = authority.issue_client(name, now_s)?;
            trust(dir, &authority)?;
            tls::write_pair(dir, (tls::CLIENT_CERT, tls::CLIENT_KEY), &issued)?;
            made(out, dir, &[tls::AUTHORITY_CERT, tls::CLIENT_CERT, tls::CLIENT_KEY])
        }
    }
}

/// The authority's certificate where the new one will be, before that is made: one that is there may be the same, and no other.
fn trust(dir: &Path, authority: &Authority) -> Result<(), TlsError> {
    match tls::write_authority_cert(dir, authority) {
        Err(TlsError::Exists { path }) => {
            let there = std::fs::read_to_string(&path).unwrap_or_default();
            if there == authority.cert_pem() { Ok(()) } else { Err(TlsError::Exists { path }) }
        }
        other => other,
    }
}

fn made(out: Out, dir: &Path, names: &[&str]) -> Result<(), Failure> {
    let paths: Vec<String> =
        names.iter().map(|name| dir.join(name).to_string_lossy().into_owned()).collect();
    out.value(&serde_json::json!({ "made": paths }), || paths.join("\n") + "\n")
}
