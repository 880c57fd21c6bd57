use super::*;
use crate::domain::batch::BatchState;
use crate::domain::endpoint;
use crate::upstream::testing;

/// Batches of one unit of 50 lines each, in the order of their turns.
fn candidates(count: usize) -> Vec<Candidate> {
    let pool = testing::pool(64, &[("a", None)]);
    let routes = pool.resolve("a").expect("is served");
    (0..count)
        .map(|number| Candidate {
            backlog: Backlog {
                batch_id: format!("batch-{number}"),
                model_no: 0,
                model: "a".to_owned(),
                waiting: 1,
                tenant: "tenant".to_owned(),
                key_id: None,
                endpoint: endpoint::ENDPOINTS[0].path.to_owned(),
                input_file_id: "file".to_owned(),
                task: None,
                reuse: None,
                details: None,
                priority: 0,
                created_at: 0,
                expires_at: None,
                total: 50,
                state: BatchState {
                    status: Status::InProgress,
                    end_reason: None,
                },
            },
            routes: routes.clone(),
        })
        .collect()
}

/// Batches that are in hand already, with their lines.
fn in_hand(count: usize) -> HashMap<Arc<str>, usize> {
    (0..count)
        .map(|number| (format!("held-{number}").into(), 50))
        .collect()
}

/// How many of 300 candidates a process takes that has so many batches in hand.
fn taken(held: usize, share: usize, most: usize) -> usize {
    let (mut candidates, held) = (candidates(300), in_hand(held));
    leave_for_others(&mut candidates, Some(&held), share, most);
    let first = candidates
        .first()
        .map(|candidate| &*candidate.backlog.batch_id);
    assert!(first.is_none_or(|id| id == "batch-0"), "out of turn");
    candidates.len()
}

#[test]
fn a_process_leaves_batches_for_the_others() {
    // Its part of them, whatever the share that is kept ready asks for beside.
    assert_eq!(taken(0, 160, 94), 94);
    // What it has in hand counts.
    assert_eq!(taken(48, 160, 94), 46);
    assert_eq!(taken(94, 160, 94), 0);
    // Its permits are not to run dry: 160 lines are four such batches.
    assert_eq!(taken(0, 160, 1), 4);
    assert_eq!(taken(2, 160, 1), 2);
}

#[test]
fn more_units_of_a_batch_in_hand_are_always_candidates() {
    let mut candidates = candidates(3);
    let held: HashMap<Arc<str>, usize> = [("batch-2".into(), 500)].into();
    leave_for_others(&mut candidates, Some(&held), 10, 1);
    let ids: Vec<_> = candidates
        .iter()
        .map(|candidate| &*candidate.backlog.batch_id)
        .collect();
    assert_eq!(ids, ["batch-2"]);
}
