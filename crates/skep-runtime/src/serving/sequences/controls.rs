//! Controls: inputs that tell the model where each request is in its sequence.

use bytes::Bytes;
use skep_config::{ControlKind, FlagValues, SequenceControl};
use skep_tensor::{Tensor, encode_strings};
use skep_types::{CorrelationId, DataType, ModelSignature, SequenceStep, Shape};

use super::SequenceFeeds;
use crate::{error::RuntimeError, serving::batch::BatchRow};

/// A control, and the shape that the model wants.
#[derive(Debug)]
pub(super) struct ControlFeed {
    pub(super) control: SequenceControl,
    batched: bool,
    /// Whether the model's input has rank 0.
    scalar: bool,
}

impl ControlFeed {
    pub(super) fn new(
        control: &SequenceControl,
        batched: bool,
        signature: &ModelSignature,
    ) -> Self {
        let spec = signature.input(&control.name);
        let dims = spec.and_then(|spec| spec.dims.as_ref());
        Self {
            control: control.clone(),
            batched,
            scalar: !batched && dims.is_some_and(|dims| dims.rank() == 0),
        }
    }
}

impl SequenceFeeds {
    /// One element for each inference of a batch, those of rows without a request included.
    pub(crate) fn control(
        &self,
        index: usize,
        rows: &[BatchRow<'_>],
    ) -> Result<Tensor, RuntimeError> {
        let ControlFeed {
            control,
            batched,
            scalar,
        } = &self.controls[index];
        let mut count = 0;
        let mut steps = Vec::with_capacity(rows.len());
        for row in rows {
            let step = row.job.and_then(|job| job.prepared.sequence.as_ref());
            let step = step.map(|sequence| &sequence.step);
            let inferences = row.size();
            count += inferences;
            steps.extend(std::iter::repeat_n(step, inferences));
        }
        let data = match control.kind {
            ControlKind::Start(values) => flags(values, control.datatype, &steps, |s| s.start),
            ControlKind::End(values) => flags(values, control.datatype, &steps, |s| s.end),
            ControlKind::Ready(values) => flags(values, control.datatype, &steps, |_| true),
            ControlKind::CorrelationId => ids(control.datatype, &steps),
        };
        let shape = match (batched, scalar) {
            (true, _) => Shape::new(&[count, 1]),
            (false, true) => Ok(Shape::scalar()),
            (false, false) => Shape::new(&[1]),
        };
        let shape = shape.map_err(|error| RuntimeError::internal(error.to_string()))?;
        Tensor::new(control.datatype, shape, Bytes::from(data))
            .map_err(|error| RuntimeError::internal(error.to_string()))
    }
}

/// A flag of each row. One without a request has none set.
fn flags(
    values: FlagValues,
    datatype: DataType,
    steps: &[Option<&SequenceStep>],
    flag: impl Fn(&SequenceStep) -> bool,
) -> Vec<u8> {
    let size = datatype.element_size().unwrap_or(1);
    let chosen = steps.iter().map(|step| match step {
        Some(step) if flag(step) => &values.yes[..size],
        _ => &values.no[..size],
    });
    chosen.flatten().copied().collect()
}

/// The correlation id of each row: 0 or an empty text for one without a request.
fn ids(datatype: DataType, steps: &[Option<&SequenceStep>]) -> Vec<u8> {
    let ids = steps.iter().map(|step| step.map(|step| &step.id));
    if datatype == DataType::Bytes {
        let texts = ids.map(|id| id.map(ToString::to_string).unwrap_or_default());
        let texts: Vec<String> = texts.collect();
        return encode_strings(texts.iter().map(String::as_bytes));
    }
    let size = datatype.element_size().unwrap_or(8);
    let numbers = ids.map(|id| match id {
        Some(CorrelationId::Number(number)) => *number,
        // A text is refused before.
        Some(CorrelationId::Text(_)) | None => 0,
    });
    numbers
        .flat_map(|number| number.to_le_bytes().into_iter().take(size))
        .collect()
}
