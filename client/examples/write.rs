//! Writes a few events and says what became of each.
//!
//! With a node running (`starling node --data-dir starling-data`):
//! `cargo run -p starling-client --example write -- 127.0.0.1:7400 starling-data/tls`

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::path::Path;
use std::time::Duration;

use starling_client::{
    Client, ClientConfig, ClientError, Credentials, Durability, ErrorKind, Level, TlsFiles,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let tls = arguments.next().unwrap_or_else(|| "starling-data/tls".to_owned());

    let credentials = Credentials::from_files(&TlsFiles::of_client(Path::new(&tls)))?;
    let client = Client::connect(ClientConfig::new([address], credentials)).await?;
    let orders = client.keyspace("default");

    // The keyspace's own level and durability.
    let written = orders.put("order/7", "placed").await?;
    println!("placed: stamp {}, on {} replicas", written.stamp, written.acks);

    // Levels, durability and patience are the request's own if it says so.
    let paid = orders
        .put("order/7", "paid")
        .level(Level::All)
        .durability(Durability::Sync)
        .timeout(Duration::from_secs(2));
    match paid.clone().await {
        Ok(written) => println!("paid: stamp {}", written.stamp),
        // Time ran out: it may have happened. Repeating it under its own name is safe: there is one event at the end.
        Err(ClientError::Unknown { request, .. }) => {
            let written = paid.level(Level::Quorum).repeating(request).await?;
            println!("paid, after a repetition: stamp {}", written.stamp);
        }
        // Not enough replicas for ALL: nothing happened, so a smaller level is a new request.
        Err(error) if error.kind() == ErrorKind::NothingHappened => {
            let written = orders.put("order/7", "paid").level(Level::Quorum).await?;
            println!("paid at quorum: stamp {}", written.stamp);
        }
        Err(error) => return Err(error),
    }
    client.close().await;
    Ok(())
}
