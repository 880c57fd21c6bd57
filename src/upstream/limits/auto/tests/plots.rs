//! The plots in `docs/benchmarks/auto.md`, by the simulated clock:
//!
//! ```sh
//! cargo test --lib -- --ignored --nocapture draws_the_plots
//! ```

use super::engine::{Load, Simulation};

/// Points of a plot.
const POINTS: u32 = 48;

struct Plot {
    title: &'static str,
    knee: u32,
    load: Load,
    flights: f64,
    /// After so many flights, the knee is this.
    changes: &'static [(f64, u32)],
    /// After so many flights, others have so many calls at the engine.
    others: &'static [(f64, u32)],
}

#[test]
#[ignore = "prints plots for the documentation"]
fn draws_the_plots() {
    let plot = |title, knee, load| Plot {
        title,
        knee,
        load,
        flights: 96.0,
        changes: &[],
        others: &[],
    };
    let plots = [
        plot("From a cold start, K = 8", 8, Load::default()),
        plot("From a cold start, K = 64", 64, Load::default()),
        plot("From a cold start, K = 500", 500, Load::default()),
        Plot {
            flights: 192.0,
            changes: &[(48.0, 32), (120.0, 64)],
            ..plot(
                "K halves after 48 flights, and doubles after 120",
                64,
                Load::default(),
            )
        },
        plot(
            "Lines of very different lengths, K = 64",
            64,
            Load {
                spread: 1.2,
                overhead: 50.0,
                ..Load::default()
            },
        ),
        plot(
            "A tenth fails with 500, K = 64",
            64,
            Load {
                fail: 0.1,
                ..Load::default()
            },
        ),
        plot(
            "Half of the calls have a key that is refused, K = 64",
            64,
            Load {
                fail: 0.5,
                fail_at_once: true,
                ..Load::default()
            },
        ),
        plot(
            "Two processes, K = 64",
            64,
            Load {
                processes: 2,
                ..Load::default()
            },
        ),
    ];
    let shared = Plot {
        flights: 144.0,
        others: &[(48.0, 30), (72.0, 90), (84.0, 30), (108.0, 0)],
        ..plot(
            "Others have 30, 90, 30 and no calls there, K = 64",
            64,
            Load {
                tells: true,
                yields: true,
                ..Load::default()
            },
        )
    };
    for plot in plots.into_iter().chain([shared]) {
        println!("{}", drawn(&plot));
    }
}

fn drawn(plot: &Plot) -> String {
    let mut simulation = Simulation::new(plot.knee, plot.load, 1);
    let (mut windows, mut knees) = (Vec::new(), Vec::new());
    for point in 0..=POINTS {
        let until = plot.flights * f64::from(point) / f64::from(POINTS);
        for (after, knee) in plot.changes {
            if until > *after {
                simulation.knee = *knee;
            }
        }
        for (after, others) in plot.others {
            if until > *after {
                simulation.others = *others;
            }
        }
        simulation.run_until_flight(until);
        windows.push(simulation.window());
        knees.push(simulation.knee.saturating_sub(simulation.others));
    }
    let list = |numbers: &[u32]| {
        let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
        numbers.join(", ")
    };
    let top = windows.iter().chain(&knees).max().copied().unwrap_or(1);
    format!(
        "```mermaid\nxychart-beta\n  title \"{}\"\n  x-axis \"flights\" 0 --> {}\n  \
         y-axis \"calls at once\" 0 --> {}\n  line [{}]\n  line [{}]\n```\n",
        plot.title,
        plot.flights,
        top + top / 10,
        list(&windows),
        list(&knees)
    )
}
