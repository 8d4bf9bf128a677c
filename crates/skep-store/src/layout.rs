//! How tensors lie in segments.

/// A segment takes consecutive tensors of one fill until it has this many bytes. A large tensor is then alone in its
/// segment, so that reclaiming whole segments drops little else. A model's hundreds of small tensors do not cost a
/// mapping (`vm.max_map_count` is 65530) and a descriptor each.
pub(crate) const SEGMENT_BYTES: u64 = 8 << 20;

/// Bytes that a tensor takes in a segment: whole pages, at least one.
pub(crate) fn room(length: u64) -> u64 {
    let page = rustix::param::page_size() as u64;
    length
        .max(1)
        .checked_next_multiple_of(page)
        .unwrap_or(u64::MAX)
}

/// The identity of a memory file, the same for all descriptors of it: its device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileIdentity(pub(crate) u64, pub(crate) u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_take_whole_pages() {
        let page = rustix::param::page_size() as u64;
        assert_eq!(room(0), page);
        assert_eq!(room(1), page);
        assert_eq!(room(page), page);
        assert_eq!(room(page + 1), 2 * page);
        assert_eq!(room(u64::MAX), u64::MAX);
    }
}
