//! What a line's calls were billed: all of them, because an answer that is thrown away is paid for,
//! too.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::price::{Cost, Price};
use crate::domain::totals::Totals;
use crate::domain::usage::Usage;

/// By whom the calls of a route are billed, for which model, and at which price.
#[derive(Debug)]
pub struct Tariff {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The model's public name. Empty where neither the lines nor the route name one.
    pub model: Arc<str>,
    /// `None`: nobody knows it.
    pub price: Option<Price>,
}

/// The calls of one line so far, by where they were made; the last call is in the last item. Takes
/// no memory before the first call.
#[derive(Clone, Debug, Default)]
pub struct Bill(Vec<BillItem>);

/// Calls of one line that were made at one tariff.
#[derive(Clone, Debug)]
pub struct BillItem {
    pub tariff: Arc<Tariff>,
    /// The line's `url`, such as `/v1/chat/completions`.
    pub path: &'static str,
    /// How many were sent. 0: the line got the answer of another.
    pub calls: u32,
    /// Those of them that may be billed, and whose answers nobody has.
    pub lost: u32,
    /// Those of them that were answered, and whose cost is not known.
    pub unpriced: u32,
    /// Of those that were answered.
    pub usage: Usage,
    /// Of those whose cost is known.
    pub cost: Cost,
    /// From when the last one's place was taken to the last byte of its answer.
    pub took: Duration,
}

/// What became of a call that was sent.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) enum Billed {
    /// It is not paid for.
    Nothing,
    /// It is paid for, and reports its usage, or does not.
    Used(Option<Usage>),
    /// It may be paid for, and nobody has its answer.
    Lost,
}

impl BillItem {
    fn new(tariff: &Arc<Tariff>, path: &'static str) -> Self {
        Self {
            tariff: Arc::clone(tariff),
            path,
            calls: 0,
            lost: 0,
            unpriced: 0,
            usage: Usage::default(),
            cost: Cost::default(),
            took: Duration::ZERO,
        }
    }

    /// Adds what a call used that is paid for.
    fn charge(&mut self, usage: Option<Usage>) {
        self.usage += usage.unwrap_or_default();
        match &self.tariff.price {
            Some(price) if usage.is_some() || price.is_flat() => {
                self.cost += price.cost(&usage.unwrap_or_default());
            }
            _ => self.unpriced += 1,
        }
    }
}

impl Bill {
    /// A call is sent. Until it has [ended](Self::ended), its answer counts as lost.
    pub(in crate::upstream) fn sent(&mut self, tariff: &Arc<Tariff>, path: &'static str) {
        let known = self.0.iter();
        let known = known
            .rev()
            .position(|item| Arc::ptr_eq(&item.tariff, tariff));
        match known {
            Some(0) => {}
            Some(back) => {
                let at = self.0.len() - 1 - back;
                self.0[at..].rotate_left(1);
            }
            None => {
                self.0.reserve_exact(1);
                self.0.push(BillItem::new(tariff, path));
            }
        }
        if let Some(item) = self.0.last_mut() {
            item.calls += 1;
            item.lost += 1;
        }
    }

    /// The line got the answer of another one, which was asked at this tariff.
    pub fn reused(&mut self, tariff: &Arc<Tariff>, path: &'static str) {
        // An item of its own: calls of the line before count there.
        self.0.push(BillItem::new(tariff, path));
    }

    /// The call that was sent last has ended.
    pub(in crate::upstream) fn ended(&mut self, took: Duration, billed: Billed) {
        let Some(item) = self.0.last_mut() else {
            return;
        };
        item.took = took;
        match billed {
            Billed::Lost => return,
            Billed::Nothing => {}
            Billed::Used(usage) => item.charge(usage),
        }
        item.lost -= 1;
    }

    /// Adds later calls of the same line.
    pub(in crate::upstream) fn add(&mut self, later: Bill) {
        for item in later.0 {
            let same = |one: &BillItem| Arc::ptr_eq(&one.tariff, &item.tariff);
            let Some(at) = self.0.iter().position(same) else {
                self.0.push(item);
                continue;
            };
            let mut sum = self.0.remove(at);
            sum.calls += item.calls;
            sum.lost += item.lost;
            sum.unpriced += item.unpriced;
            sum.usage += item.usage;
            sum.cost += item.cost;
            sum.took = item.took;
            self.0.push(sum);
        }
    }

    /// What each of the lines has that have shared the calls of this bill: each has had the calls,
    /// and its part of what they used and cost, by its weight.
    #[must_use]
    pub fn divided(&self, weights: &[u64]) -> Vec<Bill> {
        let mut bills = vec![Bill::default(); weights.len()];
        for item in &self.0 {
            let parts = item.usage.divided(weights).into_iter();
            let parts = parts.zip(item.cost.divided(weights));
            for (bill, (usage, cost)) in bills.iter_mut().zip(parts) {
                let item = item.clone();
                bill.0.push(BillItem {
                    usage,
                    cost,
                    ..item
                });
            }
        }
        bills
    }

    /// The items, the one with the last call at the end.
    #[must_use]
    pub fn items(&self) -> &[BillItem] {
        &self.0
    }

    /// How many calls were sent.
    #[must_use]
    pub fn calls(&self) -> u32 {
        self.0.iter().map(|item| item.calls).sum()
    }

    /// What all calls cost. `None`: that is not known of one of them.
    #[must_use]
    pub fn cost(&self) -> Option<Cost> {
        let mut cost = Cost::default();
        for item in &self.0 {
            if item.unpriced + item.lost > 0 {
                return None;
            }
            cost += item.cost;
        }
        Some(cost)
    }

    /// What each item adds to what is known of usage. `has_failed`: the line has no good answer.
    pub fn totals(&self, has_failed: bool) -> impl Iterator<Item = (&BillItem, Totals)> {
        let last = self.0.len().saturating_sub(1);
        let items = self.0.iter().enumerate();
        items.map(move |(at, item)| {
            let is_request = at == last && item.calls > 0;
            let requests = i64::from(is_request);
            let totals = Totals {
                requests,
                failed: i64::from(is_request && has_failed),
                retries: i64::from(item.calls) - requests,
                lost: item.lost.into(),
                reused: i64::from(item.calls == 0),
                unpriced: item.unpriced.into(),
                usage: item.usage,
                cost: item.cost,
                latency_ms: requests * i64::try_from(item.took.as_millis()).unwrap_or(i64::MAX),
            };
            (item, totals)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/v1/chat/completions";

    fn tariff(upstream: &str, input: Option<i64>) -> Arc<Tariff> {
        let price = input.map(|input| Price {
            input: input.into(),
            cached_input: None,
            cache_write: None,
            output: 0.into(),
            request: 0.into(),
            above: None,
        });
        Arc::new(Tariff {
            upstream: upstream.into(),
            model: "m".into(),
            price,
        })
    }

    fn used(input_tokens: i64) -> Billed {
        Billed::Used(Some(Usage {
            input_tokens,
            ..Usage::default()
        }))
    }

    fn call(bill: &mut Bill, tariff: &Arc<Tariff>, billed: Billed) {
        bill.sent(tariff, PATH);
        bill.ended(Duration::from_millis(7), billed);
    }

    #[test]
    fn an_answer_that_is_thrown_away_is_paid_for_where_it_came_from() {
        let (dear, cheap) = (tariff("dear", Some(3)), tariff("cheap", Some(1)));
        let mut bill = Bill::default();
        call(&mut bill, &dear, used(1_000_000));
        call(&mut bill, &cheap, Billed::Nothing);
        call(&mut bill, &dear, used(10));
        call(&mut bill, &cheap, used(1_000_000));
        assert_eq!(bill.calls(), 4);
        assert_eq!(bill.cost().expect("known").to_string(), "4.00003");
        let totals: Vec<_> = bill.totals(false).collect();
        let [(first, earlier), (second, last)] = &totals[..] else {
            panic!("{totals:?}");
        };
        assert_eq!(
            (&*first.tariff.upstream, &*second.tariff.upstream),
            ("dear", "cheap")
        );
        assert_eq!(
            (earlier.requests, earlier.retries, earlier.latency_ms),
            (0, 2, 0)
        );
        assert_eq!((last.requests, last.retries, last.latency_ms), (1, 1, 7));
        assert_eq!(earlier.usage.input_tokens, 1_000_010);
    }

    #[test]
    fn a_call_that_never_ends_is_lost_and_its_cost_is_not_known() {
        let tariff = tariff("one", Some(1));
        let mut bill = Bill::default();
        bill.sent(&tariff, PATH);
        call(&mut bill, &tariff, Billed::Lost);
        assert_eq!((bill.items()[0].lost, bill.cost()), (2, None));
        call(&mut bill, &tariff, used(1));
        let (_, totals) = bill.totals(true).next().expect("an item");
        assert_eq!((totals.lost, totals.retries, totals.failed), (2, 2, 1));
    }

    #[test]
    fn what_has_no_price_or_no_usage_has_no_cost() {
        for (input, billed, unpriced) in [
            (None, used(1), 1),
            (Some(1), Billed::Used(None), 1),
            (Some(0), Billed::Used(None), 0),
            (Some(1), used(1), 0),
            (None, Billed::Nothing, 0),
        ] {
            let mut bill = Bill::default();
            call(&mut bill, &tariff("one", input), billed);
            assert_eq!(bill.items()[0].unpriced, unpriced, "{input:?} {billed:?}");
            assert_eq!(bill.cost().is_none(), unpriced > 0);
        }
    }

    #[test]
    fn lines_that_share_a_call_share_what_it_used_and_cost() {
        let tariff = tariff("one", Some(3));
        let mut shared = Bill::default();
        call(&mut shared, &tariff, used(10));
        let mut own = Bill::default();
        call(&mut own, &tariff, Billed::Lost);
        let parts = shared.divided(&[5, 2]);
        let tokens = parts.iter().map(|bill| bill.items()[0].usage.input_tokens);
        assert_eq!(tokens.collect::<Vec<_>>(), [7, 3]);
        let mut cost = parts[0].cost().expect("known");
        cost += parts[1].cost().expect("known");
        assert_eq!(Some(cost), shared.cost());
        own.add(parts.into_iter().next().expect("a part"));
        let (_, totals) = own.totals(false).next().expect("an item");
        assert_eq!((totals.requests, totals.retries, totals.lost), (1, 1, 1));
        assert_eq!(totals.usage.input_tokens, 7);
    }

    #[test]
    fn a_line_that_was_never_sent_has_no_items() {
        assert_eq!(Bill::default().totals(true).count(), 0);
    }
}
