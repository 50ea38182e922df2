//! A short simulation with every `cargo test`: determinism, kept seeds, a few fixed ones, and fresh ones of every profile.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use clap::ValueEnum;
use starling_chaos::check;
use starling_chaos::sim::plan::Profile;
use starling_chaos::sim::{self, Run, Settings};

fn settings(seed: u64, profile: Profile, nodes: u64, seconds: u64, rate: u64) -> Settings {
    Settings {
        seed,
        nodes,
        duration_us: seconds * 1_000_000,
        profile,
        operations_per_second: rate,
        plan: None,
    }
}

/// Runs, and holds the history against every guarantee.
fn passes(settings: &Settings) -> Run {
    let run = sim::run(settings, None);
    let broken: Vec<String> = check::check(&run.history).iter().map(ToString::to_string).collect();
    let Settings { seed, profile, nodes, duration_us, operations_per_second, .. } = settings;
    assert!(
        broken.is_empty(),
        "{}\nreplay: starling-chaos sim --seed {seed} --profile {profile} --nodes {nodes} --duration {}s --rate {operations_per_second}",
        broken.join("\n\n"),
        duration_us / 1_000_000
    );
    assert!(run.history.operations.len() > 20, "there was load");
    run
}

#[test]
fn one_seed_gives_one_run_byte_for_byte() {
    for (seed, profile) in [(11, Profile::All), (12, Profile::Net), (13, Profile::Disk)] {
        let settings = settings(seed, profile, 3, 3, 60);
        let (first, second) = (sim::run(&settings, None), sim::run(&settings, None));
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}");
        assert_eq!(first.events, second.events);
        assert_eq!(first.history.operations, second.history.operations);
        let other = Settings { seed: seed + 100, ..settings };
        assert_ne!(first.trace_hash, sim::run(&other, None).trace_hash);
    }
}

#[test]
fn a_calm_cluster_does_everything_that_it_is_asked() {
    let run = passes(&settings(5, Profile::Calm, 5, 3, 60));
    let errors = run.history.operations.iter().filter(|operation| {
        matches!(operation.reply, starling_chaos::history::Reply::Error { .. })
    });
    assert_eq!(errors.count(), 0);
    assert!(run.history.healed_at_us.is_some());
}

#[test]
fn kept_seeds_pass() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions/seeds.txt");
    let text = std::fs::read_to_string(path).expect("the file is there");
    let mut count = 0;
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let words: Vec<&str> = line.splitn(6, ' ').collect();
        assert_eq!(words.len(), 6, "{line}");
        let number = |at: usize| words[at].parse().unwrap_or_else(|_| panic!("{line}"));
        let (seed, nodes, seconds, rate) = (number(0), number(2), number(3), number(4));
        let profile = Profile::from_str(words[1], false).expect("a profile");
        passes(&settings(seed, profile, nodes, seconds, rate));
        count += 1;
    }
    assert!(count > 0);
}

/// Every profile, so that a run of any length up to the first round has them all.
const PROFILES: [Profile; 5] =
    [Profile::All, Profile::Disk, Profile::Net, Profile::Clock, Profile::Calm];
/// Fresh seeds are run for this long.
const FRESH: Duration = Duration::from_secs(30);

#[test]
fn fixed_seeds_pass() {
    for (seed, profile) in (1..).zip(PROFILES.into_iter().cycle()).take(10) {
        passes(&settings(seed, profile, [5, 3, 1][usize::try_from(seed % 3).unwrap()], 4, 40));
    }
}

/// Seeds that nobody has run. One that fails is printed with the line that replays it; `STARLING_SEED` gives the first one.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "time is what makes a seed fresh, and what bounds the test"
)]
fn fresh_seeds_pass() {
    let first = std::env::var("STARLING_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let first: u64 = first.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        since.as_secs()
    });
    println!("seeds from {first} on");
    let started = Instant::now();
    for (seed, profile) in (first..).zip(PROFILES.into_iter().cycle()) {
        passes(&settings(seed, profile, [5, 3, 7][usize::try_from(seed % 3).unwrap()], 4, 40));
        if FRESH <= started.elapsed() && u64::try_from(PROFILES.len()).unwrap() <= seed - first + 1
        {
            return;
        }
    }
}
