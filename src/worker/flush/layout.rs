//! What finished in a unit, laid out as the store takes it.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::tail::settle;
use crate::codec::segment::{Encoded, Line};
use crate::domain::file::Kind;
use crate::domain::outcome::Failure;
use crate::domain::totals::Totals;
use crate::domain::unit::Bitmap;
use crate::store::{CountsDelta, UnitFlush, UsageKey, Used};
use crate::upstream::{Bill, BillItem, Reservation};
use crate::worker::dispatch::result;
use crate::worker::work::finished::FinishedLine;
use crate::worker::work::unit::LoadedUnit;

/// Units written in one transaction, and bytes of their segments and tails. After an outage there
/// may be much to write, and no part of it may take longer than a statement has.
const UNITS_PER_TRANSACTION: usize = 256;
const BYTES_PER_TRANSACTION: usize = 8 << 20;

/// What finished in one unit, on its way to the store.
pub(super) struct Group {
    pub unit: Arc<LoadedUnit>,
    pub lines: usize,
    pub flush: UnitFlush,
    /// Of those lines that failed: why.
    pub failures: Vec<Failure>,
    /// Held until the answers are on disk.
    _reservations: Vec<Reservation>,
}

/// Divides what is to be written into transactions of a bounded size.
pub(super) fn into_transactions(groups: Vec<Group>) -> Vec<Vec<Group>> {
    let mut transactions: Vec<Vec<Group>> = Vec::new();
    let mut bytes = 0;
    for group in groups {
        let size = group.flush.size();
        bytes += size;
        match transactions.last_mut() {
            Some(last) if last.len() < UNITS_PER_TRANSACTION && bytes <= BYTES_PER_TRANSACTION => {
                last.push(group);
            }
            _ => {
                bytes = size;
                transactions.push(vec![group]);
            }
        }
    }
    transactions
}

/// Gathers finished lines by unit, in the order in which the store locks units. No unit is without
/// a line.
pub(super) fn by_unit(finished: Vec<FinishedLine>) -> Vec<Vec<FinishedLine>> {
    let mut by_unit: HashMap<u64, Vec<FinishedLine>> = HashMap::new();
    for line in finished {
        by_unit.entry(line.unit.id).or_default().push(line);
    }
    let mut units: Vec<Vec<FinishedLine>> = by_unit.into_values().collect();
    units.sort_by(|a, b| a[0].unit.lease.key.cmp(&b[0].unit.lease.key));
    units
}

/// How many bytes are to be laid out of a unit: its finished lines, and those of its tail, which
/// are decompressed and compressed again.
pub(super) fn raw_size(finished: &[FinishedLine]) -> usize {
    let lines: usize = finished.iter().map(|line| line.line.bytes.len()).sum();
    let unit = finished.first().map(|line| line.unit.durable());
    let tail = unit.and_then(|durable| durable.tail.as_ref()?.raw_size());
    lines + tail.unwrap_or(0)
}

/// Lays out what finished in each unit. `None` for a unit of which nothing can be laid out.
pub(super) fn lay_out_all(finished: Vec<Vec<FinishedLine>>) -> Vec<Option<Group>> {
    let units = finished.into_iter();
    units.map(|lines| lay_out(lines, into_group)).collect()
}

/// Lays out what finished in a unit. Where the code panics, the unit's lines end with an error
/// instead: if they ran again, they would be paid for again, and the code would panic again,
/// without end. `None`: there is no memory now, or the code panics even so.
fn lay_out(
    finished: Vec<FinishedLine>,
    into_group: impl Fn(Vec<FinishedLine>) -> io::Result<Group>,
) -> Option<Group> {
    let unit = finished[0].unit.clone();
    let numbers: Vec<u32> = finished.iter().map(|line| line.line.line).collect();
    // Before anything can panic: what was billed stays billed.
    let usage = used(&finished);
    let group = guarded(&unit, || into_group(finished)).or_else(|_| {
        guarded(&unit, || {
            let lines = numbers.into_iter().map(|number| {
                let line = unit.line(number).ok_or(io::ErrorKind::NotFound)?;
                Ok(result::mishandled(&unit, &line, Bill::default()))
            });
            into_group(lines.collect::<io::Result<_>>()?)
        })
    });
    let group = group.ok()?;
    let group = group.inspect_err(|error| {
        let key = &unit.lease.key;
        tracing::error!(unit.key = %key, %error, "what finished in a unit cannot be laid out");
    });
    let mut group = group.ok()?;
    group.flush.usage = usage;
    Some(group)
}

/// What the calls of finished lines of a unit add up to, by where they were made.
fn used(finished: &[FinishedLine]) -> Vec<Used> {
    let mut sums: Vec<(&BillItem, Totals)> = Vec::new();
    for line in finished {
        for (item, totals) in line.bill.totals(line.counts.completed == 0) {
            let is_same = |(sum, _): &&mut (&BillItem, Totals)| {
                Arc::ptr_eq(&sum.tariff, &item.tariff) && sum.path == item.path
            };
            match sums.iter_mut().find(is_same) {
                Some((_, sum)) => *sum += totals,
                None => sums.push((item, totals)),
            }
        }
    }
    let unit = finished.first().map(|line| &line.unit.batch);
    let used = sums.into_iter().zip(unit.into_iter().cycle());
    let used = used.map(|((item, totals), batch)| Used {
        by: UsageKey {
            tenant: Arc::clone(&batch.tenant),
            key_id: Arc::clone(&batch.key_id),
            model: Arc::clone(&item.tariff.model),
            upstream: Arc::clone(&item.tariff.upstream),
            task: batch.task.clone().unwrap_or_default(),
            endpoint: item.path,
        },
        totals,
    });
    used.collect()
}

/// Runs what may panic, so that a panic costs no other unit anything.
fn guarded<T>(unit: &LoadedUnit, work: impl FnOnce() -> T) -> std::thread::Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .inspect_err(|_| tracing::error!(unit.key = %unit.lease.key, "the code panicked at a unit"))
}

fn into_group(finished: Vec<FinishedLine>) -> io::Result<Group> {
    let unit = finished[0].unit.clone();
    let mut counts = CountsDelta::default();
    for finished in &*finished {
        counts += finished.counts;
    }
    // References, because a finished line is large to move about.
    let mut lines: Vec<&Line> = finished.iter().map(|finished| &finished.line).collect();
    lines.sort_by_key(|line| line.line);
    let bytes = |kind| -> i64 {
        lines
            .iter()
            .filter(|line| line.kind == kind)
            .map(|line| line.bytes.len() as i64)
            .sum()
    };
    let (flush_no, mut done, open, tail): (i64, Bitmap, usize, Option<Encoded>) = {
        let durable = unit.durable();
        let done = durable.done.clone();
        (durable.flush_no, done, durable.open, durable.tail.clone())
    };
    for line in &lines {
        done.insert(line.line);
    }
    let cleared = unit
        .isolation()
        .is_none_or(|isolation| isolation.is_cleared_by(&done));
    let is_last = open == lines.len();
    let settled = settle(tail, &lines, is_last)?;
    let flush = UnitFlush {
        lease: unit.lease.clone(),
        flush_no,
        done,
        finished: is_last,
        ends_batch: is_last && flush_no == 0 && unit.is_whole_batch,
        cleared,
        tail: settled.tail,
        segment: settled.segment,
        closed_tail: settled.closed_tail,
        output_bytes: bytes(Kind::Output),
        error_bytes: bytes(Kind::Error),
        counts,
        usage: Vec::new(),
    };
    Ok(Group {
        unit,
        lines: lines.len(),
        flush,
        failures: finished.iter().filter_map(|f| f.failure).collect(),
        _reservations: finished.into_iter().filter_map(|f| f.reservation).collect(),
    })
}

#[cfg(test)]
mod tests;
