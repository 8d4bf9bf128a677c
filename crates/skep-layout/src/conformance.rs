//! For tests: what holds for every layout, whatever is asked of it.

use proptest::{prelude::*, sample::Index};

use crate::{ALIGNMENT, BlockLayout, BlockPlace, Placement};

/// Asks for and frees blocks as `steps` say, and frees the rest at the end: blocks are aligned, lie in their chunks, of
/// these lengths, and never share a byte.
pub(crate) fn follow(
    layout: &mut impl BlockLayout,
    lengths: &[u64],
    steps: &[(u64, Index, bool)],
) -> Result<(), TestCaseError> {
    let mut live: Vec<(BlockPlace, u64)> = Vec::new();
    for (size, which, is_free) in steps {
        if *is_free && !live.is_empty() {
            let (place, size) = live.swap_remove(which.index(live.len()));
            end(layout, place, size)?;
        } else if let Placement::At(place) = layout.malloc(*size) {
            let BlockPlace { chunk, offset } = place;
            prop_assert!(offset % ALIGNMENT == 0 && offset + size <= lengths[chunk]);
            let apart = |(other, length): &(BlockPlace, u64)| {
                other.chunk != chunk
                    || offset + size <= other.offset
                    || other.offset + length <= offset
            };
            prop_assert!(live.iter().all(apart));
            live.push((place, *size));
        }
        for chunk in 0..lengths.len() {
            let mut blocks: Vec<_> = live
                .iter()
                .filter(|(place, _)| place.chunk == chunk)
                .map(|(place, size)| (place.offset, *size))
                .collect();
            blocks.sort_unstable();
            prop_assert_eq!(layout.in_use(chunk), !blocks.is_empty());
            prop_assert_eq!(layout.blocks(chunk), blocks);
        }
    }
    for (place, size) in live {
        end(layout, place, size)?;
    }
    Ok(())
}

fn end(layout: &mut impl BlockLayout, place: BlockPlace, size: u64) -> Result<(), TestCaseError> {
    let freed = layout.free(place);
    prop_assert_eq!(freed.map(|freed| freed.size), Some(size));
    prop_assert_eq!(layout.free(place), None, "it is free");
    Ok(())
}
