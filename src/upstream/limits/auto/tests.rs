//! Against a simulated engine, by a simulated clock.

mod engine;
mod plots;

use self::engine::{Load, Shape, Simulation};

const SEEDS: [u64; 4] = [1, 2, 3, 4];
/// Calls at once up to which a token takes no longer.
const KNEES: [u32; 3] = [8, 64, 500];

/// Whether a window is within so many parts of a hundred of another, or within a call of it.
fn is_near(window: u32, knee: u32, percent: u32) -> bool {
    let off = window.abs_diff(knee);
    off <= 1 || 100 * off <= percent * knee
}

#[test]
fn the_knee_is_found_within_thirty_flights() {
    for knee in KNEES {
        for seed in SEEDS {
            let mut simulation = Simulation::new(knee, Load::default(), seed);
            simulation.run(30.0);
            let window = simulation.window();
            assert!(is_near(window, knee, 20), "{knee}, {seed}: {window}");
        }
    }
}

#[test]
fn a_knee_that_halves_and_doubles_is_followed_within_sixty_flights() {
    for knee in KNEES {
        for seed in SEEDS {
            let mut simulation = Simulation::new(knee, Load::default(), seed);
            simulation.run(40.0);
            for now in [knee / 2, knee] {
                simulation.knee = now;
                simulation.run(60.0);
                let window = simulation.window();
                assert!(
                    is_near(window, now, 20),
                    "{knee} to {now}, {seed}: {window}"
                );
            }
        }
    }
}

#[test]
fn goodput_is_that_of_the_best_fixed_number() {
    for knee in KNEES {
        // All numbers to twice the knee, as far as another one makes a difference.
        let step = (knee as usize / 32).max(1);
        let fixed = (1..=2 * knee).step_by(step).map(|window| {
            let mut simulation = Simulation::fixed(window, knee, Load::default(), 9);
            simulation.run_for(60.0, 120.0)
        });
        let best = fixed.fold(0.0, f64::max);
        for seed in SEEDS {
            let mut simulation = Simulation::new(knee, Load::default(), seed);
            let goodput = simulation.run_for(60.0, 600.0);
            assert!(
                goodput >= 0.97 * best,
                "{knee}, {seed}: {goodput} of {best}"
            );
        }
    }
}

#[test]
fn lines_of_very_different_lengths_lead_nobody_astray() {
    let loads = [
        // Most have few tokens, some very many.
        Load {
            spread: 1.5,
            ..Load::default()
        },
        // To read a line takes as long as to write fifty tokens.
        Load {
            spread: 1.2,
            overhead: 50.0,
            ..Load::default()
        },
        // Twenty flights of short answers, then twenty of long ones.
        Load {
            alternates: true,
            overhead: 20.0,
            ..Load::default()
        },
    ];
    for knee in KNEES {
        for load in loads {
            for seed in SEEDS {
                let mut simulation = Simulation::new(knee, load, seed);
                simulation.run(30.0);
                let windows: Vec<u32> = (0..40)
                    .map(|_| {
                        simulation.run(2.0);
                        simulation.window()
                    })
                    .collect();
                let near = windows.iter().filter(|window| is_near(**window, knee, 25));
                let near = near.count();
                assert!(near >= 32, "{knee}, {load:?}, {seed}: {windows:?}");
            }
        }
    }
}

#[test]
fn failures_that_say_nothing_of_load_do_not_move_the_window() {
    let loads = [
        // A tenth fails with 500, at its end or at once.
        Load {
            fail: 0.1,
            ..Load::default()
        },
        Load {
            fail: 0.1,
            fail_at_once: true,
            ..Load::default()
        },
        // Half of the calls have a key that is refused.
        Load {
            fail: 0.5,
            fail_at_once: true,
            ..Load::default()
        },
    ];
    for knee in KNEES {
        for load in loads {
            for seed in SEEDS {
                let mut simulation = Simulation::new(knee, load, seed);
                simulation.run(30.0);
                let window = simulation.window();
                assert!(is_near(window, knee, 20), "{knee}, {load:?}: {window}");
                simulation.run(100.0);
                assert!(simulation.smallest >= 1);
            }
        }
    }
}

#[test]
fn processes_share_a_window() {
    for processes in [2, 3] {
        for knee in KNEES {
            for seed in SEEDS {
                let load = Load {
                    processes,
                    ..Load::default()
                };
                let mut simulation = Simulation::new(knee, load, seed);
                simulation.run(30.0);
                let window = simulation.window();
                assert!(is_near(window, knee, 20), "{processes}, {knee}: {window}");
                let most = simulation.most_in_flight();
                assert!(most <= simulation.largest, "{most}");
            }
        }
    }
}

#[test]
fn a_soft_knee_and_a_noisy_engine_lose_little() {
    for (shape, noise, least) in [
        (Shape::Soft(8.0), 0.0, 0.94),
        (Shape::Soft(4.0), 0.0, 0.90),
        (Shape::Hard, 0.05, 0.93),
    ] {
        for knee in KNEES {
            for seed in SEEDS {
                let load = Load {
                    shape,
                    noise,
                    ..Load::default()
                };
                let mut simulation = Simulation::new(knee, load, seed);
                let goodput = simulation.run_for(60.0, 600.0) / simulation.most_goodput();
                assert!(goodput >= least, "{shape:?} {noise}, {knee}: {goodput}");
            }
        }
    }
}

#[test]
fn calls_beyond_a_fixed_number_that_are_turned_away_narrow_the_window_to_it() {
    for knee in KNEES {
        for seed in SEEDS {
            let load = Load {
                turns_away: true,
                ..Load::default()
            };
            let mut simulation = Simulation::new(knee, load, seed);
            let goodput = simulation.run_for(40.0, 400.0) / simulation.most_goodput();
            assert!(goodput >= 0.85, "{knee}, {seed}: {goodput}");
            assert!(simulation.smallest >= 1);
        }
    }
}

#[test]
fn a_window_that_is_not_used_does_not_grow() {
    let load = Load {
        demand: 10,
        ..Load::default()
    };
    let mut simulation = Simulation::new(500, load, 1);
    simulation.run(100.0);
    assert_eq!(simulation.window(), 16);
}

#[test]
fn a_restart_goes_on_with_what_was_found() {
    let mut simulation = Simulation::new(64, Load::default(), 1);
    simulation.run(40.0);
    let found = simulation.window();
    simulation.restart();
    simulation.run(10.0);
    assert!(is_near(found, 64, 20), "{found}");
    assert!(is_near(simulation.window(), found, 12));
}
