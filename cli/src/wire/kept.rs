//! Keeps what a failing RUN wrote, for `kiln debug` and `kiln cp`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kiln_cache::{LayerDraft, LayerId, NewRecord, Store, StoreError};
use kiln_parser::graph::{NodeId, RunOp};
use kiln_solver::ports::StepRequest;

use crate::history::failed::FailedStep;

/// The failures of one build.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<HashMap<NodeId, LayerId>>);

impl Kept {
    /// Keeps a step that failed. That it cannot be kept is no failure of its own: `kiln debug` says so.
    pub(crate) fn keep(
        &self,
        store: &Store,
        step: &StepRequest<'_>,
        op: &RunOp,
        draft: LayerDraft,
    ) {
        if let Ok(failed) = keep(store, step, op, draft) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(step.id, failed);
        }
    }

    pub(crate) fn take(&self) -> HashMap<NodeId, LayerId> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn keep(
    store: &Store,
    step: &StepRequest<'_>,
    op: &RunOp,
    draft: LayerDraft,
) -> Result<LayerId, StoreError> {
    let tree = draft.scan().map_err(|source| StoreError::Io {
        operation: "read what the step wrote in",
        path: draft.fs_path().to_owned(),
        source,
    })?;
    let (content, size, own) = (tree.content(), tree.data_size(), LayerId::random());
    let lease = store.lease()?;
    lease.hold_layer(&own)?;
    draft.publish(own.clone(), tree)?;
    let result = step.base.with(own.clone(), &content);
    let text = step.node.steps.first().map(|step| step.text.as_str()).unwrap_or_default();
    let record = NewRecord {
        // The store gives it a key that no step has.
        definition: blake3::hash(own.as_str().as_bytes()).into(),
        content: None,
        layers: result.layers.clone(),
        own: Some(own.clone()),
        result: result.content,
        description: format!("failed: {text}"),
        parts: Vec::new(),
        duration_ms: 0,
    };
    let failed = FailedStep::new(op, step.node.platform.as_ref(), &result, step.inputs);
    let document = serde_json::to_string(&failed).unwrap_or_default();
    store.keep_failure(record, size, &document)?;
    Ok(own)
}
