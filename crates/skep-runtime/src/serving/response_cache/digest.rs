//! The digest of a request: everything that its response depends on, besides the version that answers.

use skep_types::Time;
use smallvec::SmallVec;

use super::{long_work, table::EntryDigest};
use crate::{
    clock,
    serving::job::{Job, PreparedRequest},
};

/// A request's digest, and when its computation began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DigestedRequest {
    pub(super) digest: EntryDigest,
    pub(super) began: Time,
}

/// Room for the shapes of a few inputs.
type DigestHead = SmallVec<[u8; 256]>;

/// Adds the digest to a job, for a responder that wants it. A request without one is answered without the cache.
pub(crate) async fn add_to(job: &mut Job) {
    let began = clock::now();
    let bytes = job.prepared.inputs.iter().map(|input| input.data().len());
    let digest = match long_work::is_short(bytes.sum()) {
        true => Some(digest(&job.prepared)),
        false => {
            // The tensors share their bytes.
            let request = job.prepared.clone();
            long_work::run(move || digest(&request)).await
        }
    };
    job.digest = digest.map(|digest| DigestedRequest { digest, began });
}

/// BLAKE3 over a head, which says how the rest is divided, and the inputs' bytes. The version's interface gives names to
/// the numbers in it.
fn digest(request: &PreparedRequest) -> EntryDigest {
    // A field that is added has to be decided about here.
    let PreparedRequest {
        inputs,
        // Follows from the version.
        ragged: _,
        omitted,
        outputs,
        batch_size,
        charge: _,
        // A model with sequences has no cache.
        sequence: _,
    } = request;
    let mut head = DigestHead::new();
    put(&mut head, *batch_size);
    put_all(&mut head, outputs.iter().copied());
    put_all(&mut head, omitted.iter().map(|index| usize::from(*index)));
    put(&mut head, inputs.len());
    for input in inputs {
        head.push(input.datatype() as u8);
        put_all(&mut head, input.shape().dims().iter().copied());
        put(&mut head, input.data().len());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head);
    for input in inputs {
        hasher.update(input.data());
    }
    *hasher.finalize().as_bytes()
}

fn put(head: &mut DigestHead, number: usize) {
    head.extend_from_slice(&(number as u64).to_le_bytes());
}

/// Numbers, and before them how many there are.
fn put_all(head: &mut DigestHead, numbers: impl ExactSizeIterator<Item = usize>) {
    put(head, numbers.len());
    numbers.for_each(|number| put(head, number));
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::Bytes;
    use skep_tensor::Tensor;
    use skep_types::{DataType, Shape};
    use smallvec::smallvec;

    use super::*;

    fn tensor(datatype: DataType, dims: &[usize], data: &[u8]) -> Tensor {
        let shape = Shape::new(dims).expect("shape");
        Tensor::new(datatype, shape, Bytes::copy_from_slice(data)).expect("tensor")
    }

    fn request(inputs: &[Tensor]) -> PreparedRequest {
        PreparedRequest {
            inputs: inputs.iter().cloned().collect(),
            ragged: SmallVec::new(),
            omitted: SmallVec::new(),
            outputs: smallvec![0],
            batch_size: 1,
            charge: None,
            sequence: None,
        }
    }

    #[test]
    fn requests_that_differ_in_anything_have_different_digests() {
        use DataType::{Int32, Uint8, Uint32};
        let zeros = || tensor(Uint8, &[4], &[0; 4]);
        let mut all = vec![
            request(&[zeros()]),
            request(&[tensor(Uint8, &[4], &[0, 0, 0, 1])]),
            // The same bytes.
            request(&[tensor(Uint8, &[2, 2], &[0; 4])]),
            request(&[tensor(Uint8, &[1, 4], &[0; 4])]),
            request(&[tensor(Int32, &[1], &[0; 4])]),
            request(&[tensor(Uint32, &[1], &[0; 4])]),
            request(&[tensor(Uint32, &[], &[0; 4])]),
            request(&[tensor(Uint8, &[5], &[0; 5])]),
            // The same bytes, divided otherwise.
            request(&[tensor(Uint8, &[1], &[0]), tensor(Uint8, &[3], &[0; 3])]),
            request(&[tensor(Uint8, &[3], &[0; 3]), tensor(Uint8, &[1], &[0])]),
            request(&[zeros(), tensor(Uint8, &[0], &[])]),
            request(&[tensor(Uint8, &[0], &[]), zeros()]),
            // A string of four zeros, and two empty strings.
            request(&[tensor(DataType::Bytes, &[1], &[4, 0, 0, 0, 0, 0, 0, 0])]),
            request(&[tensor(DataType::Bytes, &[2], &[0; 8])]),
            request(&[]),
        ];
        let mut other = |change: fn(&mut PreparedRequest)| {
            let mut changed = request(&[zeros()]);
            change(&mut changed);
            all.push(changed);
        };
        other(|request| request.outputs = smallvec![1]);
        other(|request| request.outputs = smallvec![0, 1]);
        other(|request| request.outputs = smallvec![1, 0]);
        other(|request| request.omitted = smallvec![0]);
        other(|request| request.omitted = smallvec![1]);
        other(|request| request.batch_size = 2);
        let digests: HashSet<EntryDigest> = all.iter().map(digest).collect();
        assert_eq!(digests.len(), all.len());
        let again: HashSet<EntryDigest> = all.iter().map(digest).collect();
        assert_eq!(again, digests, "equal requests have equal digests");
    }

    #[tokio::test]
    async fn large_requests_have_the_same_digest_as_computed_in_place() {
        let data = vec![7; long_work::SHORT_BYTES + 1];
        let large = request(&[tensor(DataType::Uint8, &[data.len()], &data)]);
        let expected = digest(&large);
        let (reply, _) = tokio::sync::oneshot::channel();
        let mut job = Job::new(large, reply, clock::now());
        add_to(&mut job).await;
        assert_eq!(job.digest.map(|digested| digested.digest), Some(expected));
    }
}
