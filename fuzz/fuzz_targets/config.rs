//! A node's configuration file. What is taken is written as a file that is taken again and says the same.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use starling_node::config::Config;

static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("starling-fuzz-{}.toml", std::process::id()))
});

fn load(text: &str) -> Option<Config> {
    std::fs::write(&*PATH, text).expect("the temporary directory takes files");
    Config::load(Some(&PATH), [], &[]).ok()
}

fuzz_target!(|text: &str| {
    if let Some(config) = load(text) {
        let written = config.to_toml();
        assert_eq!(load(&written).map(|config| config.to_toml()), Some(written));
    }
});
