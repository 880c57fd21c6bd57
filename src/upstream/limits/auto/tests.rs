//! Against a simulated engine, by a simulated clock.

mod engine;
mod plots;

use self::engine::{Load, Shape, Simulation};
use super::window::{Evidence, Report, Turn, Window};

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
            let window = simulation.window();
            assert!(is_near(window, knee, 20), "{knee}, {seed}: {window}");
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

#[test]
fn what_the_engine_says_of_its_queue_keeps_the_window_at_the_knee() {
    for knee in KNEES {
        for seed in SEEDS {
            let load = Load {
                tells: true,
                ..Load::default()
            };
            let mut simulation = Simulation::new(knee, load, seed);
            let goodput = simulation.run_for(60.0, 600.0) / simulation.most_goodput();
            assert!(goodput >= 0.95, "{knee}, {seed}: {goodput}");
        }
    }
}

/// An engine that is shared, whose knee was found while nobody else used it.
fn shared(knee: u32, seed: u64, processes: usize) -> Simulation {
    let load = Load {
        tells: true,
        yields: true,
        processes,
        ..Load::default()
    };
    let mut simulation = Simulation::new(knee, load, seed);
    simulation.run(60.0);
    simulation
}

#[test]
fn others_have_the_right_of_way_and_what_they_leave_is_ours() {
    for processes in [1, 2] {
        for (knee, others) in [(64, 30), (64, 60), (500, 100), (8, 4)] {
            for seed in SEEDS {
                let mut simulation = shared(knee, seed, processes);
                simulation.others = others;
                let due = simulation.all_ended() + 2.0;
                simulation.run_until(due);
                let place = format!("{processes} processes, {others} of {knee}, {seed}");
                let left = knee - others;
                let (mut waited, mut taken) = (0, 0);
                for _ in 0..60 {
                    simulation.run_until(simulation.now() + 1.0);
                    // It may be tried whether the engine runs a call more.
                    waited += u32::from(simulation.waiting() > 1 + knee / 50);
                    taken += simulation.ours();
                }
                assert!(waited <= 6, "{place}: waiting in {waited} of 60 seconds");
                assert!(
                    taken >= 60 * left * 85 / 100,
                    "{place}: {taken} of 60 * {left}"
                );
            }
        }
    }
}

#[test]
fn nothing_is_sent_while_others_fill_the_engine_and_all_again_when_they_are_gone() {
    for seed in SEEDS {
        let mut simulation = shared(64, seed, 1);
        simulation.others = 90;
        let due = simulation.all_ended() + 2.0;
        simulation.run_until(due);
        for _ in 0..30 {
            simulation.run_until(simulation.now() + 1.0);
            assert_eq!(simulation.ours(), 0);
        }
        simulation.others = 0;
        simulation.run_until(simulation.now() + 30.0);
        assert!(simulation.ours() >= 50, "{}", simulation.ours());
    }
}

#[test]
fn an_engine_that_others_use_from_the_start_is_shared_with_them() {
    for seed in SEEDS {
        let load = Load {
            tells: true,
            yields: true,
            ..Load::default()
        };
        let mut simulation = Simulation::new(64, load, seed);
        simulation.others = 30;
        simulation.run(60.0);
        let ours = simulation.ours();
        assert!((28..=36).contains(&ours), "{seed}: {ours}");
    }
}

/// A turn in which so many calls were answered, and turned away without and with a time to come
/// again. Calls at once then, and why.
fn turned_away(window: &mut Window, [answers, refused, delayed]: [u32; 3]) -> (u32, &'static str) {
    let turn = Turn {
        token: "p",
        now_ms: 1_000,
        most: 1_024,
        yields: false,
        load: None,
        at_upstream: 0,
    };
    let report = Report {
        generation: window.generation(),
        seen: Evidence {
            answers,
            refused,
            delayed,
            in_flight: 1,
            room: 1,
            ..Evidence::default()
        },
        in_flight: 16,
        peak: 16,
    };
    window.turn(turn, &report);
    (window.allowed(1_000), window.reason(1_000).as_str())
}

#[test]
fn calls_that_are_turned_away_take_half_of_their_share_off_the_window() {
    for (calls, size, reason) in [
        ([15, 1, 0], 16, "start"),
        ([12, 4, 0], 14, "refused"),
        ([0, 16, 0], 8, "refused"),
        ([15, 0, 1], 16, "start"),
        ([60, 0, 2], 16, "start"),
        ([14, 0, 2], 8, "cooldown"),
    ] {
        let mut window = Window::new(0, 1_024);
        assert_eq!(turned_away(&mut window, calls), (size, reason), "{calls:?}");
    }
}

#[test]
fn one_loss_a_generation_counts_and_the_window_never_falls_below_one() {
    let mut window = Window::new(0, 1_024);
    let before = window.generation();
    assert_eq!(turned_away(&mut window, [0, 16, 0]).0, 8);
    assert_eq!(window.generation(), before + 1);
    for _ in 0..10 {
        turned_away(&mut window, [0, 16, 0]);
    }
    assert_eq!(turned_away(&mut window, [0, 16, 0]).0, 1);
}
