//! Follows the change streams of all nodes, and remembers where it was.
//!
//! `cargo run -p starling-client --example tail -- 127.0.0.1:7400 starling-data/tls`, and write something meanwhile.

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::path::Path;

use starling_client::{
    ChangesEvent, ChangesFrom, Client, ClientConfig, ClientError, Credentials, TlsFiles,
};

/// The example ends after so many changes.
const CHANGES_MAX: usize = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let tls = arguments.next().unwrap_or_else(|| "starling-data/tls".to_owned());

    let credentials = Credentials::from_files(&TlsFiles::of_client(Path::new(&tls)))?;
    let client = Client::connect(ClientConfig::new([address], credentials)).await?;

    // Every node publishes what it applied: with three replicas an event comes three times, once a node.
    let mut changes = client.changes().from(ChangesFrom::Oldest).follow(true).all_nodes();
    let mut seen = 0;
    while let Some(event) = changes.next().await? {
        match event {
            ChangesEvent::Batch { node, changes, .. } => {
                for change in changes {
                    seen += 1;
                    let (sequence, key, version) = (change.sequence, change.key, change.version);
                    println!(
                        "node {node} #{sequence}: {key:?} {:?} {}",
                        version.action, version.stamp
                    );
                }
            }
            ChangesEvent::Gap { node, from, to } => {
                println!("node {node} no longer has its changes {from} to {to}");
            }
            ChangesEvent::Lost { node, problem } => println!("node {node} is lost: {problem}"),
            ChangesEvent::End { .. } => {}
        }
        if seen >= CHANGES_MAX {
            break;
        }
    }
    println!("to go on another time: {:?}", changes.positions());
    client.close().await;
    Ok(())
}
