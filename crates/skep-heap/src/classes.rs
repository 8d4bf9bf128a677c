//! Sizes of blocks: powers of two and the sizes halfway between, from 32 KiB to 32 MiB.

/// The smallest block.
pub(crate) const MIN_BYTES: usize = 1 << MIN_SHIFT;
/// The largest block.
pub(crate) const MAX_BYTES: usize = 1 << MAX_SHIFT;
/// The number of sizes.
pub(crate) const CLASSES: usize = 2 * (MAX_SHIFT - MIN_SHIFT) as usize + 1;

const MIN_SHIFT: u32 = 15;
const MAX_SHIFT: u32 = 25;

/// The class of the smallest block that holds `size` bytes, at most [`MAX_BYTES`].
pub(crate) const fn class_of(size: usize) -> usize {
    if size <= MIN_BYTES {
        return 0;
    }
    let shift = (size - 1).ilog2() + 1;
    let class = 2 * (shift - MIN_SHIFT) as usize;
    if size <= 3 << (shift - 2) {
        class - 1
    } else {
        class
    }
}

/// The bytes of a class's blocks.
pub(crate) const fn bytes_of(class: usize) -> usize {
    let doublings = class / 2;
    if class.is_multiple_of(2) {
        MIN_BYTES << doublings
    } else {
        (MIN_BYTES / 2 * 3) << doublings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_has_the_smallest_class_that_holds_it() {
        assert_eq!(bytes_of(0), MIN_BYTES);
        assert_eq!(bytes_of(CLASSES - 1), MAX_BYTES);
        for class in 0..CLASSES {
            let bytes = bytes_of(class);
            assert_eq!(class_of(bytes), class, "{bytes}");
            assert_eq!(bytes % 4096, 0, "whole pages");
            if class > 0 {
                let below = bytes_of(class - 1);
                assert_eq!(class_of(below + 1), class, "{below} + 1");
                assert!(bytes * 2 <= below * 3, "a half more at most");
            }
        }
        assert_eq!(class_of(1), 0);
    }
}
