//! The core crates hold no clock, no chance and no map with an order of its own: looked for in their sources.

use std::path::{Path, PathBuf};

/// What is simulated: no file of these may name anything of [`BANNED`] outside its comments and tests.
const CORES: [&str; 6] =
    ["clock/src", "ring/src", "storage/src", "gossip/src", "node/src/core", "client/src/wire"];
/// The operating system's disk, which is no part of a simulation.
const EXCEPT: [&str; 1] = ["storage/src/disk/os.rs"];
const BANNED: [&str; 12] = [
    "Instant::now",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
    "DefaultHasher",
    "rand::rng",
    "thread_rng",
    "SysRng",
    "getrandom",
    "thread::spawn",
    "tokio::",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("the directory is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

/// Lines before the tests, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    lines.map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

fn offences(text: &str) -> Vec<(usize, &'static str)> {
    let in_line = |(number, line): (usize, &str)| {
        let found = BANNED.into_iter().filter(|banned| line.contains(banned));
        found.map(|banned| (number, banned)).collect::<Vec<_>>()
    };
    code(text).flat_map(in_line).collect()
}

#[test]
fn cores_have_no_time_chance_or_order_of_their_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut count = 0;
    for core in CORES {
        let mut files = Vec::new();
        sources(&root.join(core), &mut files);
        for file in files {
            let name =
                file.strip_prefix(root).expect("it is inside").to_string_lossy().into_owned();
            let is_test = name.ends_with("tests.rs") || name.contains("/tests/");
            if is_test || EXCEPT.contains(&name.as_str()) {
                continue;
            }
            let text = std::fs::read_to_string(&file).expect("it can be read");
            assert_eq!(offences(&text), [], "{name}");
            count += 1;
        }
    }
    assert!(count > 100, "{count} files");
}

#[test]
fn what_is_banned_is_found() {
    assert_eq!(offences("use std::collections::HashMap;\nlet a = Instant::now();").len(), 2);
    assert_eq!(
        offences("// HashMap\n#[cfg(test)]\nmod tests { use std::collections::HashMap; }"),
        []
    );
}
