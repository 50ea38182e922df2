//! [`GroupCommit`]: what many threads ask for at the same time, done together by one of them.
//!
//! Invariants:
//!
//! - What is asked for while a commit is under way is gathered as the next batch. A thread that is alone commits at once.
//! - At most one commit is under way, and batches are committed in the order in which they were gathered.
//! - A thread is answered after the commit of its batch, with the first error there was of any batch.
//! - Nobody sleeps while something is gathered and no commit is under way: who ends a commit wakes somebody to make the next one.
//! - All who sleep for one batch are woken by one call of the system, after the one who is to make the next commit.
//!
//! To be put to sleep and woken takes longer than most commits. So who waits for a short one gives way to others a few times before
//! it sleeps (as the write threads of RocksDB do), and leaves the next commit for a moment to who made the last one, if there were
//! others with it: that thread is about to ask for more, what a commit touches is near its processor, and the batches are larger
//! (as in flat combining; Hendler, Incze, Shavit and Tzafrir, 2010).
//!
//! It does not know what a commit is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};

/// So many times who waits for a short commit gives way before it sleeps.
const YIELDS: u32 = 64;
/// For so many turns of a loop, about two microseconds, the next commit is left to who made the last one.
const PATIENCE: u32 = 100;
/// Batches that threads may sleep for at the same time: the one that is committed, the next one, and, of which some may still
/// be waking up, two that are answered.
const ROOMS: usize = 4;

/// How long a commit takes, as far as who waits for it is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Takes {
    /// Microseconds.
    Short,
    /// As long as a disk does.
    Long,
}

/// See the file's head. `T` is one thing of those that are committed together.
pub(super) struct GroupCommit<T> {
    queue: Mutex<Queue<T>>,
    /// Changes with the lock of `queue` held.
    committing: AtomicBool,
    /// Batches up to this are answered.
    answered: AtomicU64,
    failed: OnceLock<String>,
    rooms: [Room; ROOMS],
}

/// The batch that is gathered.
struct Queue<T> {
    number: u64,
    items: Vec<T>,
    takes: Takes,
    /// Threads that wait for it.
    threads: u32,
    /// Who made the last commit and is about to ask for more.
    leader: Option<ThreadNumber>,
}

/// Where threads sleep that wait for a batch, by its number.
#[derive(Default)]
struct Room {
    sleeping: Mutex<u32>,
    wake: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct ThreadNumber(u64);

impl ThreadNumber {
    fn of_this() -> Self {
        static THREADS: AtomicU64 = AtomicU64::new(0);
        thread_local! {
            static NUMBER: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        Self(NUMBER.with(|number| *number))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with this lock")
}

impl<T> Default for GroupCommit<T> {
    fn default() -> Self {
        let queue =
            Queue { number: 1, items: Vec::new(), takes: Takes::Short, threads: 0, leader: None };
        Self {
            queue: Mutex::new(queue),
            committing: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            failed: OnceLock::new(),
            rooms: std::array::from_fn(|_| Room::default()),
        }
    }
}

impl<T> GroupCommit<T> {
    /// Commits what `items` gives, all of it or none, together with what others ask for. `commit` does a batch: every thread
    /// has to bring the same one. It is told how long the longest takes that is in the batch.
    ///
    /// # Errors
    /// What the first commit that failed said, of this batch or one before it.
    pub(super) fn submit<E: std::fmt::Display>(
        &self,
        items: impl IntoIterator<Item = T>,
        takes: Takes,
        commit: impl FnOnce(Vec<T>, Takes) -> Result<(), E>,
    ) -> Result<(), String> {
        let mut queue = lock(&self.queue);
        queue.items.extend(items);
        queue.takes = queue.takes.max(takes);
        queue.threads += 1;
        let number = queue.number;
        let others = |leader| takes == Takes::Short && leader != ThreadNumber::of_this();
        let is_left_to_another = queue.leader.is_some_and(others);
        let leads = if self.committing.load(Ordering::Relaxed) || is_left_to_another {
            drop(queue);
            self.wait(number, takes)
        } else {
            Some(queue)
        };
        if let Some(queue) = leads {
            self.lead(queue, commit);
        }
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Waits until the batch is answered; gives back the queue if this thread is to commit it.
    fn wait(&self, number: u64, takes: Takes) -> Option<MutexGuard<'_, Queue<T>>> {
        if takes == Takes::Short {
            let (mut yields, mut patience) = (YIELDS, PATIENCE);
            while 0 < yields {
                if self.is_answered(number) {
                    return None;
                }
                if self.committing.load(Ordering::Acquire) {
                    yields -= 1;
                    std::thread::yield_now();
                } else if 0 < patience {
                    patience -= 1;
                    std::hint::spin_loop();
                } else if let Some(queue) = self.take_lead(number) {
                    return Some(queue);
                }
            }
        }
        self.sleep(number)
    }

    fn sleep(&self, number: u64) -> Option<MutexGuard<'_, Queue<T>>> {
        let room = self.room(number);
        let mut sleeping = lock(&room.sleeping);
        loop {
            if self.is_answered(number) {
                return None;
            }
            if self.committing.load(Ordering::Acquire) {
                // Who ends the commit looks into the room after it has said so: it finds this thread.
                *sleeping += 1;
                sleeping = room.wake.wait(sleeping).expect("nobody panics with this lock");
                *sleeping -= 1;
                continue;
            }
            drop(sleeping);
            if let Some(queue) = self.take_lead(number) {
                return Some(queue);
            }
            sleeping = lock(&room.sleeping);
        }
    }

    /// The queue, if it still has the batch with this number and nobody commits.
    fn take_lead(&self, number: u64) -> Option<MutexGuard<'_, Queue<T>>> {
        let queue = lock(&self.queue);
        (queue.number == number && !self.committing.load(Ordering::Relaxed)).then_some(queue)
    }

    /// Commits what is gathered.
    fn lead<E: std::fmt::Display>(
        &self,
        mut queue: MutexGuard<'_, Queue<T>>,
        commit: impl FnOnce(Vec<T>, Takes) -> Result<(), E>,
    ) {
        self.committing.store(true, Ordering::Release);
        // The next batch is as large as this one, more often than not.
        let room = Vec::with_capacity(queue.items.len());
        let items = std::mem::replace(&mut queue.items, room);
        let takes = std::mem::replace(&mut queue.takes, Takes::Short);
        let threads = std::mem::take(&mut queue.threads);
        let number = queue.number;
        queue.number += 1;
        drop(queue);
        if let Err(error) = commit(items, takes) {
            self.failed.get_or_init(|| error.to_string());
        }
        self.answered.store(number, Ordering::Release);
        let mut queue = lock(&self.queue);
        self.committing.store(false, Ordering::Release);
        let next = (0 < queue.threads).then_some(queue.number);
        let is_alone = threads == 1 && next.is_none();
        queue.leader = (!is_alone).then(ThreadNumber::of_this);
        drop(queue);
        if let Some(next) = next {
            self.wake(next, Condvar::notify_one);
        }
        if 1 < threads {
            self.wake(number, Condvar::notify_all);
        }
    }

    fn is_answered(&self, number: u64) -> bool {
        number <= self.answered.load(Ordering::Acquire)
    }

    fn room(&self, number: u64) -> &Room {
        &self.rooms[usize::try_from(number % ROOMS as u64).expect("a small number")]
    }

    /// Wakes who sleeps for the batch; whoever waits without sleep sees by itself what has happened.
    fn wake(&self, number: u64, wake: impl FnOnce(&Condvar)) {
        let room = self.room(number);
        if 0 < *lock(&room.sleeping) {
            wake(&room.wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::mpsc;

    use super::*;

    type Batches = Mutex<Vec<Vec<u64>>>;

    /// A commit that notes its batch.
    fn noting(batches: &Batches) -> impl FnOnce(Vec<u64>, Takes) -> Result<(), Infallible> {
        |items, _| {
            lock(batches).push(items);
            Ok(())
        }
    }

    #[test]
    fn everything_is_committed_once_and_in_order_and_then_answered() {
        for (threads, takes) in [(1, 0), (2, 0), (4, 0), (3, 1), (16, 1), (5, 2)] {
            let (group, batches) = (GroupCommit::default(), Batches::default());
            let one = |thread: u64| {
                for number in 0..2000 {
                    let item = number << 8 | thread;
                    let takes = match takes {
                        0 => Takes::Short,
                        1 => Takes::Long,
                        _ if number % 2 == 0 => Takes::Short,
                        _ => Takes::Long,
                    };
                    group.submit([item], takes, noting(&batches)).unwrap();
                    let is_answered = lock(&batches).iter().rev().any(|it| it.contains(&item));
                    assert!(is_answered, "{item} was answered before its commit");
                }
            };
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let one = &one;
                    scope.spawn(move || one(thread));
                }
            });
            let all: Vec<u64> = lock(&batches).iter().flatten().copied().collect();
            assert_eq!(all.len() as u64, threads * 2000);
            for thread in 0..threads {
                let of_thread = all.iter().filter(|item| **item & 0xff == thread);
                let numbers: Vec<u64> = of_thread.map(|item| item >> 8).collect();
                assert_eq!(numbers, (0..2000).collect::<Vec<_>>());
            }
        }
    }

    /// Holds the first commit until three threads wait for the next.
    fn check_gathers(takes: Takes) {
        let (group, batches) = (&GroupCommit::default(), &Batches::default());
        let (begin, begun) = mpsc::sync_channel(1);
        let (end, ended) = mpsc::sync_channel::<()>(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let commit = |items, takes| {
                    begin.send(()).unwrap();
                    ended.recv().unwrap();
                    noting(batches)(items, takes)
                };
                group.submit([0], takes, commit).unwrap();
            });
            begun.recv().unwrap();
            for item in 1..=3 {
                scope.spawn(move || {
                    group.submit([item], takes, noting(batches)).unwrap();
                });
            }
            while lock(&group.queue).threads < 3 {
                std::thread::yield_now();
            }
            end.send(()).unwrap();
        });
        let batches: Vec<usize> = lock(batches).iter().map(Vec::len).collect();
        assert_eq!(batches, [1, 3]);
    }

    #[test]
    fn what_comes_while_a_commit_is_under_way_is_one_batch() {
        check_gathers(Takes::Short);
        check_gathers(Takes::Long);
    }

    #[test]
    fn a_failure_is_told_to_all_that_come_after() {
        let group = GroupCommit::default();
        group.submit([1], Takes::Short, |_, _| Ok::<_, &str>(())).unwrap();
        let first = group.submit([2], Takes::Long, |_, _| Err("the disk is full"));
        let next = group.submit([3], Takes::Short, |_, _| Ok::<_, &str>(()));
        assert_eq!((first.unwrap_err(), next.unwrap_err()).0, "the disk is full");
    }
}
