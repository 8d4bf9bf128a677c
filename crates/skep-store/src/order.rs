//! The order in which an acquire asks for tensors that are not there.

use crate::{
    Wanted,
    layout::{SEGMENT_BYTES, room},
};

/// The order in which an acquire asks for, and so fills, what is not there.
///
/// It asks for chunks of consecutive tensors, each about a segment. Acquires that start at once each get the chunks
/// that no other has begun. With different orders they meet late, so that each finds what the others have filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadOrder {
    /// In the given order.
    #[default]
    Fixed,
    /// Chunks shuffled by this seed.
    Random(u64),
}

/// Tensors that one message may name.
pub(crate) const MAX_TENSORS: usize = 2048;

/// Cuts positions of `wanted` into chunks, in the order in which an acquire asks for them.
pub(crate) fn chunks(wanted: &[&Wanted], positions: &[usize], order: LoadOrder) -> Vec<Vec<usize>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut bytes = 0_u64;
    for &position in positions {
        let own = room(wanted[position].length);
        if own >= SEGMENT_BYTES && !chunk.is_empty() {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
        bytes = bytes.saturating_add(own);
        chunk.push(position);
        if bytes >= SEGMENT_BYTES || chunk.len() == MAX_TENSORS {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    if let LoadOrder::Random(seed) = order {
        shuffle(&mut chunks, seed);
    }
    chunks
}

/// The Fisher-Yates shuffle with the generator SplitMix64.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    for last in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let choice = (u128::from(mixed) * (last as u128 + 1)) >> 64;
        items.swap(last, usize::try_from(choice).unwrap_or(last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Description, Digest};
    use skep_types::DataType;

    fn wanted(length: u64) -> Wanted {
        Wanted {
            digest: Digest([0; 32]),
            description: Description {
                datatype: DataType::Uint8,
                dims: vec![length],
                layout: "plain".into(),
            },
            length,
        }
    }

    fn cut(lengths: &[u64], order: LoadOrder) -> Vec<Vec<usize>> {
        let wanted: Vec<Wanted> = lengths.iter().map(|length| wanted(*length)).collect();
        let positions: Vec<usize> = (0..wanted.len()).collect();
        chunks(&wanted.iter().collect::<Vec<_>>(), &positions, order)
    }

    #[test]
    fn a_chunk_ends_once_it_has_a_segment_and_large_tensors_are_alone() {
        let large = SEGMENT_BYTES + 1;
        assert_eq!(
            cut(&[large, 10, 10, large / 2, large / 2, 10], LoadOrder::Fixed),
            [vec![0], vec![1, 2, 3, 4], vec![5]]
        );
        assert_eq!(
            cut(&[10, large, 10], LoadOrder::Fixed),
            [vec![0], vec![1], vec![2]]
        );
        assert_eq!(cut(&[], LoadOrder::Fixed), Vec::<Vec<usize>>::new());
        let tiny = cut(&[0; MAX_TENSORS + 1], LoadOrder::Fixed);
        assert_eq!(
            tiny.iter().map(Vec::len).collect::<Vec<_>>(),
            [MAX_TENSORS, 1]
        );
    }

    #[test]
    fn a_random_order_has_every_chunk_once_and_depends_on_its_seed_alone() {
        let lengths = [SEGMENT_BYTES; 20];
        let first = cut(&lengths, LoadOrder::Random(1));
        assert_eq!(first, cut(&lengths, LoadOrder::Random(1)));
        assert_ne!(first, cut(&lengths, LoadOrder::Random(2)));
        assert_ne!(first, cut(&lengths, LoadOrder::Fixed));
        let mut sorted = first;
        sorted.sort();
        assert_eq!(sorted, cut(&lengths, LoadOrder::Fixed));
    }
}
