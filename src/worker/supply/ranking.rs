//! Which batches of a tenant get units next.

use std::collections::HashSet;

use super::candidates::{Candidate, LINES_PER_UNIT};
use crate::worker::dispatch::ledger::needed;
use crate::worker::dispatch::ledger::run_queues::Turn;

/// Of one batch, so many models are ranked at once.
const MODELS_PER_BATCH: usize = 16;

/// By what a tenant's candidates are ranked.
pub(super) struct Ranking<'a, K: Fn(&str) -> bool> {
    /// So many batches may have units in hand.
    pub share: usize,
    /// The turns of the candidates' batches.
    pub turns: &'a [Turn],
    /// How long a call takes in the lane, as far as is known.
    pub seconds: Option<f64>,
    pub now_ms: i64,
    /// Whether a batch keeps the units that it has in hand.
    pub keeps: K,
}

impl<K: Fn(&str) -> bool> Ranking<'_, K> {
    /// Leaves the candidates of as many batches as may have units in hand: those whose turn it is,
    /// the next one first.
    pub(super) fn rank(&self, candidates: &mut Vec<Candidate>) {
        let mut ranked: Vec<_> = std::mem::take(candidates)
            .into_iter()
            .zip(self.turns)
            .map(|(candidate, turn)| (self.key(&candidate, turn.last), candidate))
            .collect();
        // Of thousands only the first need be in order.
        let most = self.share.saturating_mul(MODELS_PER_BATCH);
        if ranked.len() > most {
            ranked.select_nth_unstable_by(most, |a, b| a.0.cmp(&b.0));
            ranked.truncate(most);
        }
        ranked.sort_by(|a, b| a.0.cmp(&b.0));
        let mut batches: HashSet<String> = HashSet::new();
        for (_, candidate) in ranked {
            let id = &candidate.backlog.batch_id;
            if batches.contains(id) || batches.len() < self.share {
                batches.insert(id.clone());
                candidates.push(candidate);
            }
        }
    }

    fn key(&self, candidate: &Candidate, last_turn: u64) -> impl Ord + use<K> {
        let row = &candidate.backlog;
        let deadline = row.expires_at.unwrap_or(i64::MAX);
        let lines = (row.waiting * LINES_PER_UNIT as i64).min(row.total);
        let left_ms = deadline.saturating_sub(self.now_ms);
        let is_in_time = needed(lines as f64, self.seconds, left_ms) < 1.0;
        // Taking turns costs something, so a batch with units in hand keeps them for a while.
        let gives_way = last_turn > 0 && !(self.keeps)(&row.batch_id);
        let place = (deadline, row.created_at, row.batch_id.clone(), row.model_no);
        (is_in_time, -row.priority, gives_way, last_turn, place)
    }
}
