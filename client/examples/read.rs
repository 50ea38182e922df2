//! Reads a key, its history and its neighbours.
//!
//! After the example `write`: `cargo run -p starling-client --example read -- 127.0.0.1:7400 starling-data/tls`

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::path::Path;

use starling_client::{Client, ClientConfig, ClientError, Credentials, Level, TlsFiles};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let tls = arguments.next().unwrap_or_else(|| "starling-data/tls".to_owned());

    let credentials = Credentials::from_files(&TlsFiles::of_client(Path::new(&tls)))?;
    let client = Client::connect(ClientConfig::new([address], credentials)).await?;
    let orders = client.keyspace("default");

    match orders.get("order/7").level(Level::Quorum).await? {
        Some(version) => println!("order/7 is {:?} since {}", version.payload, version.stamp),
        None => println!("there is no order/7: run the example `write` first"),
    }

    let history = orders.history("order/7").newest_first().collect().await?;
    for version in &history {
        println!("  {} {:?} {:?}", version.stamp, version.action, version.payload);
    }

    // What it was before the newest event.
    if let [_, before, ..] = &history[..] {
        let then = orders.get("order/7").at(before.stamp).await?;
        println!("before that it was {:?}", then.map(|version| version.payload));
    }

    let mut pages = orders.scan("order/").page_size(100).pages();
    while let Some(rows) = pages.next().await? {
        for row in rows {
            println!("{:?} = {:?}", row.key, row.version.payload);
        }
    }
    client.close().await;
    Ok(())
}
