//! The program's tripwire, in a program of its own: whoever asks the system for time or chance inside a simulation is noticed, and
//! nobody does.
//!
//! The asking is done by what takes the trace: it is called inside the simulation, as a core or a dependency would be.

#![expect(clippy::disallowed_methods, reason = "this is what must be noticed")]

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use starling_chaos::sim::plan::Profile;
use starling_chaos::sim::{self, Settings};

#[path = "../src/tripwire.rs"]
mod tripwire;

/// Takes a trace and does something at each line.
struct Listener(fn());

impl Write for Listener {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many calls are noticed in a short run in which `listen` is called at every event; and how many events there were.
fn trips(listen: fn()) -> (u64, u64) {
    let settings = Settings {
        nodes: 3,
        duration_us: 200_000,
        profile: Profile::Calm,
        operations_per_second: 50,
        ..Settings::new(1)
    };
    assert_eq!(tripwire::take(), 0, "nothing was noticed outside");
    let run = sim::run(&settings, Some(Box::new(Listener(listen))));
    assert!(run.events > 100);
    (tripwire::take(), run.events)
}

#[test]
fn a_run_asks_the_system_for_nothing() {
    assert_eq!(trips(|| {}).0, 0);
}

#[test]
fn whoever_asks_for_the_time_is_noticed() {
    let (noticed, events) = trips(|| {
        assert!(SystemTime::UNIX_EPOCH < SystemTime::now());
    });
    assert_eq!(noticed, events);
    let (noticed, events) = trips(|| {
        let now = Instant::now();
        assert!(now <= Instant::now());
    });
    assert_eq!(noticed, 2 * events);
}

#[test]
fn whoever_asks_for_chance_is_noticed() {
    // The keys of a thread's hashers are drawn once.
    let (noticed, _) = trips(|| {
        RandomState::new().hash_one(1);
    });
    assert!(0 < noticed);
}

#[test]
fn outside_of_a_run_the_system_answers() {
    let before = SystemTime::now();
    let year_2020 = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 18_262);
    assert!(year_2020 < before && before <= SystemTime::now());
    assert_ne!(RandomState::new().hash_one(1), RandomState::new().hash_one(1));
    assert_eq!(tripwire::take(), 0);
}
