//! Validation: from what the upload already knows, in milliseconds.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument as _;

use super::duty::{self, Duty};
use crate::domain::findings::{self, Finding};
use crate::domain::line::Fault;
use crate::observe::trace;
use crate::store::{self, Input, Store, Unvalidated};
use crate::upstream::Pool;

pub(super) struct Validate {
    pub store: Store,
    pub pool: Arc<Pool>,
    pub max_requests: u64,
}

impl Duty for Validate {
    const NAME: &'static str = "validate";
    const TICK: Duration = Duration::from_secs(2);

    async fn round(&mut self) -> store::Result<bool> {
        let batches = self.store.unvalidated().await?;
        if !batches.is_empty() {
            // The first batch may come before the upstreams have said what models they have.
            self.pool.discovered().await;
        }
        duty::each(&batches, |batch| {
            let span = tracing::trace_span!(
                target: trace::TARGET,
                parent: None,
                "validate batch",
                batch.id = batch.batch_id,
                batch.total = batch.input.as_ref().map(|input| input.requests),
            );
            self.settle(batch).instrument(span)
        })
        .await?;
        Ok(!batches.is_empty())
    }
}

impl Validate {
    async fn settle(&self, batch: &Unvalidated) -> store::Result<()> {
        let faults = self.judge(batch);
        if faults.is_empty() {
            self.store.accept_batch(batch, only_model(batch)).await?;
        } else {
            let errors = serde_json::to_string(&faults).unwrap_or_else(|_| "[]".to_owned());
            self.store.reject_batch(&batch.batch_id, &errors).await?;
        }
        Ok(())
    }

    /// All that is wrong with a batch, as OpenAI would list it.
    fn judge(&self, batch: &Unvalidated) -> Vec<Finding> {
        let Some(input) = &batch.input else {
            let id = &batch.input_file_id;
            return vec![Finding::of_file(
                "invalid_request",
                &format!(
                    "Cannot find file {id}, or organization {} does not have access to it.",
                    batch.tenant
                ),
                Some("file_id"),
            )];
        };
        if input.requests == 0 {
            return vec![Finding::of_file(
                "empty_file",
                "The input file is empty. Please ensure that your batch contains at least one \
                 request.",
                None,
            )];
        }
        let mut of_file = Vec::new();
        if input.requests as u64 > self.max_requests {
            of_file.push(Finding::of_file(
                "too_many_requests",
                &format!(
                    "The input file has {} requests; a batch may have at most {}.",
                    input.requests, self.max_requests
                ),
                None,
            ));
        }
        let of_lines = input.findings.for_endpoint(&batch.endpoint);
        findings::report([of_file, of_lines, self.unknown_models(input)])
    }

    /// A finding for each of the first lines whose model no route serves.
    fn unknown_models(&self, input: &Input) -> Vec<Finding> {
        let unknown = input
            .models
            .iter()
            .filter(|model| self.pool.resolve(&model.name).is_none());
        let mut found: Vec<Finding> = unknown
            .flat_map(|model| {
                let fault = Fault::model_not_found(&model.name);
                model
                    .first_lines
                    .iter()
                    .map(move |&line| Finding::of_line(line, fault.clone()))
            })
            .collect();
        found.sort_by_key(|finding| finding.line);
        found
    }
}

/// The model that all lines name, if there is one.
fn only_model(batch: &Unvalidated) -> Option<&str> {
    match batch.input.as_ref()?.models.as_slice() {
        [model] if !model.name.is_empty() => Some(&model.name),
        _ => None,
    }
}
