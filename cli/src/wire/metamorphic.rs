//! Metamorphic tests of the cache: builds by chance, one change, and exactly the steps that may see it run. Everything
//! of the builder takes part but the sandbox: parser, solver, store, contexts, COPY and ADD on real folders.
//!
//! A *pair* is a build whose predecessors are in the store, and what happened in it. Each of its steps is held against
//! the model (`model.rs`): a step that is cached must have been made from what it may see now (else a wrong hit), one
//! that ran must see what no step has seen before (else a needless miss). `KILN_TEST_PAIRS` says how many pairs,
//! `KILN_TEST_SEED` where to begin; a failure prints its seed and what was built.

mod case;
mod generate;
mod model;
mod mutate;
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};

use case::Case;
use generate::{Chance, generate};
use world::World;

/// How many pairs are built when nobody says.
const PAIRS: usize = 10_000;
/// How many changes one generated build sees.
const CHANGES: usize = 40;

fn number(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// What was built, told when a test fails.
struct Story {
    seed: usize,
    changes: Vec<&'static str>,
    case: Case,
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, changes, case } = self;
            let text = case.render().text;
            eprintln!("KILN_TEST_SEED={seed}\n{changes:?}\n{case:?}\n{text}");
        }
    }
}

#[derive(Default)]
struct Counts {
    pairs: AtomicUsize,
    refused: AtomicUsize,
    steps: AtomicUsize,
    ran: AtomicUsize,
    compared: AtomicUsize,
}

fn add(count: &AtomicUsize, more: usize) {
    count.fetch_add(more, Ordering::Relaxed);
}

/// A generated build and its changes. Some changes stay, so that others come on top of them.
fn follow(seed: usize, counts: &Counts) {
    let mut chance = Chance(seed as u64);
    let mut world = World::new();
    let case = generate(&mut chance);
    let mut story = Story { seed, changes: vec!["first"], case: case.clone() };
    if world.build(&case).is_err() {
        add(&counts.refused, 1);
        return;
    }
    let mut case = case;
    for _ in 0..CHANGES {
        if chance.percent(15) {
            story.changes.push(elsewhere(&mut chance, &mut world));
            let built = world.build(&case).expect("it was built before");
            assert!(built.ran().is_empty(), "nothing was changed: {:?}", built.ran());
            add(&counts.pairs, 1);
        }
        let change = mutate::mutate(&mut chance, &case);
        story.changes.push(change.name);
        story.case.clone_from(&change.case);
        let Ok(built) = world.build(&change.case) else {
            add(&counts.refused, 1);
            continue;
        };
        add(&counts.pairs, 1);
        add(&counts.steps, built.outcome.statuses.len());
        add(&counts.ran, built.ran().len());
        assert!(!change.unseen || built.ran().is_empty(), "nobody sees it: {:?}", built.ran());
        if chance.percent(2) {
            same_elsewhere(&world, &built, &change.case);
            add(&counts.compared, 1);
        }
        if chance.percent(40) {
            case = change.case;
        } else if chance.percent(10) {
            let back = world.build(&case).expect("it was built before");
            assert!(back.ran().is_empty(), "it was taken back: {:?}", back.ran());
            add(&counts.pairs, 1);
        }
    }
}

/// Does to the checkout what changes nothing.
fn elsewhere(chance: &mut Chance, world: &mut World) -> &'static str {
    match chance.below(4) {
        0 => {
            world.touch(u32::try_from(chance.below(60_000)).expect("small"));
            "touch and chown"
        }
        1 => {
            world.rename_folder();
            "move"
        }
        2 => {
            world.clone_folder(false);
            "clone"
        }
        _ => {
            world.clone_folder(true);
            "clone in another order"
        }
    }
}

/// Another machine, with an empty store, makes the same files under the same keys.
fn same_elsewhere(world: &World, built: &world::Built, case: &Case) {
    let mut other = World::new();
    let again = other.build(case).expect("it was built here");
    assert_eq!(world.files(built), other.files(&again), "another machine makes other files");
    assert_eq!(world.keys(case, &built.graph), other.keys(case, &again.graph));
}

#[test]
fn exactly_the_steps_that_may_see_a_change_run() {
    let wanted = number("KILN_TEST_PAIRS").unwrap_or(PAIRS);
    let next = AtomicUsize::new(number("KILN_TEST_SEED").unwrap_or(0));
    let counts = Counts::default();
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                // So few files are hashed faster than they are handed to other threads.
                let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                alone.expect("a thread").install(|| {
                    while counts.pairs.load(Ordering::Relaxed) < wanted {
                        follow(next.fetch_add(1, Ordering::Relaxed), &counts);
                    }
                });
            });
        }
    });
    let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    println!(
        "{} pairs in {:.1} s, {} refused, {} steps of which {} ran, {} compared with another store",
        of(&counts.pairs),
        started.elapsed().as_secs_f64(),
        of(&counts.refused),
        of(&counts.steps),
        of(&counts.ran),
        of(&counts.compared),
    );
    assert!(of(&counts.refused) * 5 < of(&counts.pairs), "most changes can be built");
}
