//! A batch on its way through an instance: which request lies in which row, and what the model gave.

use skep_backend::OutputSlot;
use skep_scheduler::BatchRows;
use skep_tensor::Tensor;
use skep_types::Shape;
use smallvec::SmallVec;

use crate::serving::job::Job;

/// The rows of a batch.
pub(crate) type Rows<'a> = SmallVec<[BatchRow<'a>; 8]>;

/// A part of a batch along its first dimension: a request's, or, where sequences have slots, one without a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRow<'a> {
    /// `None` for the row of a slot that is not ready.
    pub(crate) job: Option<&'a Job>,
    /// The job whose inputs the row has, or whose shapes its zeros have.
    pub(crate) like: &'a Job,
}

impl BatchRow<'_> {
    /// Its part of an input.
    pub(crate) fn input(&self, index: usize) -> Tensor {
        let tensor = &self.like.prepared.inputs[index];
        match self.job {
            Some(_) => tensor.clone(),
            None => Tensor::zeros(tensor.datatype(), tensor.shape().clone()),
        }
    }

    /// The shape of its part of an input.
    pub(crate) fn shape(&self, index: usize) -> &Shape {
        self.like.prepared.inputs[index].shape()
    }

    /// Inferences in it.
    pub(crate) fn size(&self) -> usize {
        self.job.map_or(1, |job| job.prepared.batch_size)
    }
}

/// The rows of a batch of these jobs, of which there is at least one. `lie` says where they are if there are rows
/// without a job.
pub(crate) fn rows<'a>(jobs: &'a [Box<Job>], lie: Option<&BatchRows>) -> Rows<'a> {
    let taken = |job: &'a Job| BatchRow {
        job: Some(job),
        like: job,
    };
    let mut jobs = jobs.iter().map(|job| &**job);
    let Some(lie) = lie else {
        return jobs.map(taken).collect();
    };
    let Some(first) = jobs.clone().next() else {
        return Rows::new();
    };
    let empty = BatchRow {
        job: None,
        like: first,
    };
    let mut rows: Rows<'a> = SmallVec::from_elem(empty, lie.total);
    for row in &lie.of_requests {
        let place = usize::try_from(*row).ok().and_then(|row| rows.get_mut(row));
        if let (Some(place), Some(job)) = (place, jobs.next()) {
            *place = taken(job);
        }
    }
    rows
}

/// An output that a run gave.
#[derive(Debug)]
pub(crate) struct RunOutput {
    pub(crate) tensor: Tensor,
    /// Whether its bytes are alone in their memory.
    pub(crate) owns_memory: bool,
}

impl RunOutput {
    /// What a slot holds; `None` if the run did not fill it.
    pub(crate) fn of(slot: OutputSlot) -> Option<Self> {
        let owns_memory = slot.is_in_prepared_memory();
        Some(Self {
            tensor: slot.into_tensor()?,
            owns_memory,
        })
    }
}

#[cfg(test)]
mod tests {
    use skep_types::{DataType, Time};
    use smallvec::smallvec;
    use tokio::sync::oneshot;

    use super::*;
    use crate::serving::job::PreparedRequest;

    fn job(value: u8) -> Box<Job> {
        let shape = Shape::new(&[1, 1]).expect("a shape");
        let tensor = Tensor::new(DataType::Uint8, shape, vec![value].into());
        let prepared = PreparedRequest {
            inputs: smallvec![tensor.expect("a tensor")],
            ragged: SmallVec::new(),
            omitted: SmallVec::new(),
            outputs: SmallVec::new(),
            batch_size: 1,
            charge: None,
            sequence: None,
        };
        Job::new(prepared, oneshot::channel().0, Time::ZERO)
    }

    #[test]
    fn jobs_lie_where_the_scheduler_put_them() {
        let jobs = [job(7), job(8)];
        let values = |lie: Option<BatchRows>| {
            let rows = rows(&jobs, lie.as_ref());
            let inputs = rows
                .iter()
                .map(|row| (row.job.is_some(), row.input(0).data()[0]));
            inputs.collect::<Vec<_>>()
        };
        assert_eq!(values(None), [(true, 7), (true, 8)]);
        let lie = BatchRows {
            of_requests: vec![1, 3],
            total: 4,
        };
        let expected = [(false, 0), (true, 7), (false, 0), (true, 8)];
        assert_eq!(values(Some(lie)), expected);
    }
}
