use std::sync::Arc;

use super::*;
use crate::domain::batch::EndReason;
use crate::upstream::{Bill, testing};
use crate::worker::dispatch::ledger::Start;
use crate::worker::dispatch::ledger::run_queues::{Counted, LaneLimit};
use crate::worker::dispatch::ledger::unit::Ready;
use crate::worker::dispatch::result;
use crate::worker::testing as units;
use crate::worker::work::line::OpenLine;
use crate::worker::work::unit::LoadedUnit;

/// A unit of which one line is in flight, and what the flush is due by.
struct Flusher {
    unit: Arc<LoadedUnit>,
    lines: Vec<OpenLine>,
    completions: CompletionQueue,
    ledger: SharedLedger,
    pool: Arc<Pool>,
    counted: Counted,
}

impl Flusher {
    fn new() -> Self {
        let pool = testing::pool(64, &[("model", None)]);
        let routes = pool.resolve("model").expect("is served");
        let batch = Arc::new(units::batch());
        let leased = units::leased(200, 0, None);
        let (unit, lines) = units::unit_on(1, batch, leased);
        let ledger = SharedLedger::default();
        let limit = LaneLimit {
            calls: 64,
            unspilled: 64,
            domain: 0,
        };
        ledger
            .lock()
            .admit(unit.clone(), Some(routes), lines.clone(), limit);
        let sent = ledger.lock().start(1, Ready::Fresh, Start::default());
        let (_, _, counted) = sent.expect("a line is in flight");
        Flusher {
            unit,
            lines,
            completions: CompletionQueue::default(),
            ledger,
            pool,
            counted,
        }
    }

    fn finish(&self, lines: usize) {
        let lines = self.lines.iter().take(lines);
        let ended =
            lines.map(|line| result::ended(&self.unit, line, EndReason::Expired, Bill::default()));
        self.completions.push(ended);
    }

    /// How long from a moment on the next flush is not due, in milliseconds.
    async fn due_after(&self, since: Instant) -> u128 {
        due(&self.completions, &self.ledger, &self.pool, &mut None).await;
        since.elapsed().as_millis()
    }
}

#[tokio::test(start_paused = true)]
async fn few_lines_wait_for_others_but_for_less_than_a_second() {
    let flusher = Flusher::new();
    flusher.finish(3);
    let waited = flusher.due_after(Instant::now()).await;
    assert!((800..=810).contains(&waited), "{waited} ms");
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_flush_is_part_of_what_a_line_waits() {
    let flusher = Flusher::new();
    let came = Instant::now();
    flusher.finish(3);
    tokio::time::advance(Duration::from_millis(300)).await;
    let waited = flusher.due_after(came).await;
    assert!((800..=810).contains(&waited), "{waited} ms");
    // What came since the lines were taken is counted from then.
    flusher.completions.take();
    let came = Instant::now();
    flusher.finish(1);
    tokio::time::advance(Duration::from_secs(5)).await;
    let waited = flusher.due_after(came).await;
    assert!((5_100..=5_110).contains(&waited), "{waited} ms");
}

#[tokio::test(start_paused = true)]
async fn many_lines_do_not_wait() {
    let flusher = Flusher::new();
    flusher.finish(FEW_LINES);
    let waited = flusher.due_after(Instant::now()).await;
    assert!((100..=110).contains(&waited), "{waited} ms");
}

#[tokio::test(start_paused = true)]
async fn with_nothing_in_flight_there_is_nothing_to_wait_for() {
    let flusher = Flusher::new();
    flusher.finish(1);
    let counted = flusher.counted;
    flusher.ledger.lock().finish(&flusher.unit, counted, None);
    assert_eq!(flusher.due_after(Instant::now()).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_has_finished_waits_shortly_and_holds_up_no_other() {
    let flusher = Flusher::new();
    flusher.finish(FEW_LINES);
    let (came, mut earliest) = (Instant::now(), None);
    let mut flushes = 0;
    loop {
        // Another batch finishes, again and again.
        flusher.completions.batch_finished(&flusher.unit);
        let (ledger, pool) = (&flusher.ledger, &flusher.pool);
        let due = due(&flusher.completions, ledger, pool, &mut earliest).await;
        if due == Due::All {
            break;
        }
        flushes += 1;
        // Its lines are taken, and the others wait still.
        flusher.completions.take_whole_batches();
        flusher.finish(FEW_LINES);
    }
    assert!((5..=7).contains(&flushes), "{flushes} flushes");
    let waited = came.elapsed().as_millis();
    assert!((100..=115).contains(&waited), "{waited} ms");
}
