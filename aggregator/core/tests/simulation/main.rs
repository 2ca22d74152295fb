//! Both halves of the protocol and the real store over a simulated network, from a seed.
//!
//! Agents and the aggregator crash, restart, say goodbye and drain; files are edited; connections delay, stall, break at
//! any byte, or turn half-open; wall clocks jump; a second process claims an agent's name; vandals send rubbish. Then
//! everything is left in peace for some minutes of simulated time, and what the aggregator shows must be true.
//!
//! `HEALTHSCOPE_SEEDS=n` runs n seeds (1,000 otherwise), `HEALTHSCOPE_SEED=n` that one alone, with a trace.

mod agent;
mod network;
mod random;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

const DEFAULT_SEEDS: u64 = 1_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
    )
}

#[test]
fn what_the_aggregator_shows_is_true_whatever_the_network_does() {
    if let Some(seed) = number("HEALTHSCOPE_SEED") {
        println!("{:#?}", world::run(seed, true));
        return;
    }
    let seeds = number("HEALTHSCOPE_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let totals = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut total = world::Statistics::default();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds {
                            return Ok(total);
                        }
                        match catch_unwind(AssertUnwindSafe(|| world::run(seed, false))) {
                            Ok(statistics) => total.add(&statistics),
                            Err(_) => {
                                next.store(seeds, Ordering::Relaxed);
                                return Err(seed);
                            }
                        }
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker catches what panics"))
            .collect::<Vec<_>>()
    });
    let mut total = world::Statistics::default();
    for result in totals {
        match result {
            Ok(statistics) => total.add(&statistics),
            Err(seed) => panic!(
                "seed {seed} fails; again: HEALTHSCOPE_SEED={seed} cargo test -p healthscope-core --test simulation \
                 -- --nocapture"
            ),
        }
    }
    println!("{seeds} seeds: {total:#?}");
    if seeds >= 100 {
        total.assert_everything_was_tried();
    }
}
