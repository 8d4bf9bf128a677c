//! An allocator whose every answer is checked before anyone relies on it.
//!
//! For allocators that others wrote: an overlapping block would be silent damage in a tensor. Their calls of the source
//! are checked as well, so that memory under a live block, or memory that was never theirs, does not go back. After the
//! first [`ContractFault`] the allocator is not called any more: further requests are refused, and frees of live blocks
//! are only noted.

use std::{collections::BTreeMap, fmt, ops::Range};

use super::{Allocator, BlockRequest, MemoryFigures, NotInUse, OutOfMemory, Source};

/// A block, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedBlock {
    /// Its number among all blocks of the allocator, from 0.
    pub number: u64,
    /// Where it begins.
    pub address: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl fmt::Display for CheckedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            address,
            bytes,
        } = self;
        write!(f, "block {number} ({bytes} bytes at {address:#x})")
    }
}

/// How an allocator broke its contract. Blocks are numbered from 0 in the order in which they were allocated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContractFault {
    /// Two blocks in use share bytes.
    #[error("{block} overlaps {other}, which is in use")]
    Overlap {
        /// The new block.
        block: CheckedBlock,
        /// The one that was there.
        other: CheckedBlock,
    },
    /// A block lies at an address that its request excludes.
    #[error("{block} is not aligned to {alignment} bytes")]
    Misaligned {
        /// The block.
        block: CheckedBlock,
        /// What was asked for.
        alignment: u64,
    },
    /// A block lies at least in part outside of the memory that the source has given.
    #[error("{block} lies outside of the memory that the source has given")]
    NoMemory {
        /// The block.
        block: CheckedBlock,
    },
    /// Freeing a block in use returned another size than it has.
    #[error("freeing {block} returned {returned} bytes")]
    FreedBytes {
        /// The block.
        block: CheckedBlock,
        /// What the allocator returned.
        returned: u64,
    },
    /// A block in use could not be freed.
    #[error("{block} is in use, and freeing it was refused")]
    FreeRefused {
        /// The block.
        block: CheckedBlock,
    },
    /// Memory went back to the source while a block lay on it.
    #[error("it gave the memory of {block} back, which is in use")]
    GivenBackInUse {
        /// The block.
        block: CheckedBlock,
    },
    /// The source was asked for something impossible, such as to take back what it had not given.
    #[error("it called `{call}` with {range:#x?}, {expected}")]
    SourceCall {
        /// The function of the source.
        call: &'static str,
        /// The addresses that were passed.
        range: Range<u64>,
        /// What is wrong with it.
        expected: &'static str,
    },
    /// A figure is wrong.
    #[error("it reports {reported} bytes {figure}, expected {expected}")]
    Figure {
        /// Which one.
        figure: &'static str,
        /// What it says.
        reported: u64,
        /// What is true.
        expected: u64,
    },
}

/// Ranges of addresses; none overlaps another.
#[derive(Debug, Default)]
struct AddressRanges {
    ends: BTreeMap<u64, u64>,
}

impl AddressRanges {
    /// Whether every address of `range` is in one.
    fn cover(&self, range: &Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            match self.ends.range(..=at).next_back() {
                Some((_, end)) if *end > at => at = *end,
                _ => return false,
            }
        }
        true
    }

    /// Whether an address of `range` is in one.
    fn touch(&self, range: &Range<u64>) -> bool {
        let below = self.ends.range(..range.end).next_back();
        below.is_some_and(|(_, end)| *end > range.start)
    }

    fn add(&mut self, range: &Range<u64>) {
        self.ends.insert(range.start, range.end);
    }

    /// Removes `range`, which they cover.
    fn remove(&mut self, range: &Range<u64>) {
        if let Some((start, end)) = self.ends.range(..range.start).next_back() {
            let (start, end) = (*start, *end);
            if end > range.start {
                self.ends.insert(start, range.start);
                self.ends.insert(range.start, end);
            }
        }
        while let Some((start, end)) = self.ends.range(range.start..range.end).next() {
            let (start, end) = (*start, *end);
            self.ends.remove(&start);
            if end > range.end {
                self.ends.insert(range.end, end);
            }
        }
    }
}

/// What a source has given.
#[derive(Debug, Default)]
struct GivenMemory {
    /// Chunks, each from its start to its end.
    chunks: BTreeMap<u64, u64>,
    /// Reserved addresses, likewise.
    reserved: BTreeMap<u64, u64>,
    /// Everything with memory behind it: chunks and committed pages.
    memory: AddressRanges,
    bytes: u64,
}

/// A source whose calls are checked before they are passed on.
struct CheckedCalls<'a> {
    source: &'a mut dyn Source,
    given: &'a mut GivenMemory,
    live: &'a BTreeMap<u64, (u64, u64)>,
    fault: &'a mut Option<ContractFault>,
}

impl CheckedCalls<'_> {
    /// Whether a call may be passed on.
    fn require(
        &mut self,
        call: &'static str,
        range: &Range<u64>,
        is_met: bool,
        expected: &'static str,
    ) -> bool {
        if !is_met {
            self.fault.get_or_insert(ContractFault::SourceCall {
                call,
                range: range.clone(),
                expected,
            });
        }
        is_met && self.fault.is_none()
    }

    /// The same for a call that takes memory away, on which no block may lie.
    fn require_unused(&mut self, range: &Range<u64>) -> bool {
        let below = self.live.range(..range.end).next_back();
        if let Some((start, (end, number))) = below.filter(|(_, (end, _))| *end > range.start) {
            self.fault.get_or_insert(ContractFault::GivenBackInUse {
                block: CheckedBlock {
                    number: *number,
                    address: *start,
                    bytes: end - start,
                },
            });
        }
        self.fault.is_none()
    }

    fn whole_pages(&mut self, call: &'static str, pages: &Range<u64>) -> bool {
        let page = self.source.page();
        let whole = pages.start < pages.end
            && pages.start.is_multiple_of(page)
            && pages.end.is_multiple_of(page);
        self.require(call, pages, whole, "expected whole pages")
    }
}

/// The addresses from `address` on; empty beyond the address space.
const fn range(address: u64, bytes: u64) -> Range<u64> {
    address..address.saturating_add(bytes)
}

impl Source for CheckedCalls<'_> {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        if !self.require("take", &range(0, bytes), bytes > 0, "expected a size") {
            return None;
        }
        let address = self.source.take(bytes)?;
        self.given.chunks.insert(address, address + bytes);
        self.given.memory.add(&range(address, bytes));
        self.given.bytes += bytes;
        Some(address)
    }

    fn give_back(&mut self, address: u64, bytes: u64) {
        let chunk = range(address, bytes);
        let is_chunk = self.given.chunks.get(&address) == Some(&chunk.end);
        if self.require("give_back", &chunk, is_chunk, "expected a whole chunk")
            && self.require_unused(&chunk)
        {
            self.given.chunks.remove(&address);
            self.given.memory.remove(&chunk);
            self.given.bytes -= bytes;
            self.source.give_back(address, bytes);
        }
    }

    fn reserve(&mut self, bytes: u64) -> Option<u64> {
        if !self.require("reserve", &range(0, bytes), bytes > 0, "expected a size") {
            return None;
        }
        let address = self.source.reserve(bytes)?;
        self.given.reserved.insert(address, address + bytes);
        Some(address)
    }

    fn release(&mut self, address: u64, bytes: u64) {
        let all = range(address, bytes);
        let is_reserved = self.given.reserved.get(&address) == Some(&all.end);
        let is_empty = !self.given.memory.touch(&all);
        let expected = "expected addresses as they were reserved";
        if self.require("release", &all, is_reserved, expected)
            && self.require("release", &all, is_empty, "some of it has memory")
        {
            self.given.reserved.remove(&address);
            self.source.release(address, bytes);
        }
    }

    fn commit(&mut self, pages: Range<u64>) -> bool {
        let below = self.given.reserved.range(..=pages.start).next_back();
        let is_reserved = below.is_some_and(|(_, end)| *end >= pages.end);
        let is_empty = !self.given.memory.touch(&pages);
        let allowed = self.whole_pages("commit", &pages)
            && self.require("commit", &pages, is_reserved, "expected reserved addresses")
            && self.require("commit", &pages, is_empty, "some of it has memory");
        if !allowed || !self.source.commit(pages.clone()) {
            return false;
        }
        self.given.memory.add(&pages);
        self.given.bytes += pages.end - pages.start;
        true
    }

    fn decommit(&mut self, pages: Range<u64>) {
        let below = self.given.reserved.range(..=pages.start).next_back();
        let is_reserved = below.is_some_and(|(_, end)| *end >= pages.end);
        let has_memory = is_reserved && self.given.memory.cover(&pages);
        if self.whole_pages("decommit", &pages)
            && self.require("decommit", &pages, has_memory, "expected committed pages")
            && self.require_unused(&pages)
        {
            self.given.memory.remove(&pages);
            self.given.bytes -= pages.end - pages.start;
            self.source.decommit(pages);
        }
    }

    fn page(&self) -> u64 {
        self.source.page()
    }

    fn available(&self) -> Option<u64> {
        self.source.available()
    }

    fn wait(&mut self) {
        self.source.wait();
    }

    fn now(&self) -> u64 {
        self.source.now()
    }
}

/// See the module.
#[derive(Debug)]
pub struct ValidatedAllocator {
    pub(super) inner: Box<dyn Allocator>,
    given: GivenMemory,
    /// End and number of each block in use, by its start.
    live: BTreeMap<u64, (u64, u64)>,
    in_use: u64,
    next: u64,
    fault: Option<ContractFault>,
}

impl ValidatedAllocator {
    /// Checks what `inner` does.
    #[must_use]
    pub fn new(inner: Box<dyn Allocator>) -> Self {
        Self {
            inner,
            given: GivenMemory::default(),
            live: BTreeMap::new(),
            in_use: 0,
            next: 0,
            fault: None,
        }
    }

    /// Calls the allocator with a source that checks.
    fn call<T>(
        &mut self,
        source: &mut dyn Source,
        call: impl FnOnce(&mut dyn Allocator, &mut dyn Source) -> T,
    ) -> T {
        let mut checked = CheckedCalls {
            source,
            given: &mut self.given,
            live: &self.live,
            fault: &mut self.fault,
        };
        call(&mut *self.inner, &mut checked)
    }

    fn check_block(&self, block: CheckedBlock, request: BlockRequest) -> Result<(), ContractFault> {
        let place = range(block.address, block.bytes);
        if !block.address.is_multiple_of(request.alignment) {
            return Err(ContractFault::Misaligned {
                block,
                alignment: request.alignment,
            });
        }
        if place.end - place.start != block.bytes || !self.given.memory.cover(&place) {
            return Err(ContractFault::NoMemory { block });
        }
        let below = self.live.range(..place.end).next_back();
        match below.filter(|(_, (end, _))| *end > place.start) {
            None => Ok(()),
            Some((start, (end, number))) => Err(ContractFault::Overlap {
                block,
                other: CheckedBlock {
                    number: *number,
                    address: *start,
                    bytes: end - start,
                },
            }),
        }
    }

    fn check_figures(&self) -> Result<(), ContractFault> {
        let figures = self.inner.figures();
        let is = |figure, reported, expected| match reported == expected {
            true => Ok(()),
            false => Err(ContractFault::Figure {
                figure,
                reported,
                expected,
            }),
        };
        is("in use", figures.in_use, self.in_use)?;
        is("reserved", figures.reserved, self.given.bytes)?;
        let most = figures.reserved - figures.in_use;
        is("of padding", figures.padding, figures.padding.min(most))
    }

    /// Keeps the first fault.
    fn note(&mut self, checked: Result<(), ContractFault>) {
        if let Err(fault) = checked {
            self.fault.get_or_insert(fault);
        }
    }
}

impl Allocator for ValidatedAllocator {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        if self.fault.is_some() {
            return Err(request.refused());
        }
        let placed = self.call(source, |inner, source| inner.malloc(request, source));
        if let Ok(address) = placed {
            let block = CheckedBlock {
                number: self.next,
                address,
                bytes: request.bytes,
            };
            let checked = self.check_block(block, request);
            self.note(checked);
            if self.fault.is_none() {
                self.live
                    .insert(address, (address + request.bytes, self.next));
                self.in_use += request.bytes;
                self.next += 1;
            }
        }
        self.note(self.check_figures());
        match self.fault {
            None => placed,
            Some(_) => Err(request.refused()),
        }
    }

    fn free(&mut self, address: u64, source: &mut dyn Source) -> Result<u64, NotInUse> {
        // Foreign addresses are not passed on: their allocator may be less careful.
        let Some((end, number)) = self.live.remove(&address) else {
            return Err(NotInUse { address });
        };
        let block = CheckedBlock {
            number,
            address,
            bytes: end - address,
        };
        self.in_use -= block.bytes;
        if self.fault.is_none() {
            let freed = self.call(source, |inner, source| inner.free(address, source));
            self.note(match freed {
                Ok(returned) if returned == block.bytes => Ok(()),
                Ok(returned) => Err(ContractFault::FreedBytes { block, returned }),
                Err(_) => Err(ContractFault::FreeRefused { block }),
            });
            self.note(self.check_figures());
        }
        Ok(block.bytes)
    }

    fn trim(&mut self, source: &mut dyn Source) {
        if self.fault.is_none() {
            self.call(source, |inner, source| inner.trim(source));
            self.note(self.check_figures());
        }
    }

    fn figures(&self) -> MemoryFigures {
        let padding = match self.fault {
            None => self.inner.figures().padding,
            Some(_) => 0,
        };
        MemoryFigures {
            in_use: self.in_use,
            padding,
            reserved: self.given.bytes,
        }
    }

    fn largest_free(&self) -> u64 {
        match self.fault {
            None => self.inner.largest_free(),
            Some(_) => 0,
        }
    }

    fn fault(&self) -> Option<&ContractFault> {
        self.fault.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::conformance::ImaginedSource;

    /// What an allocator does wrong.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Wrong {
        Nothing,
        Overlap,
        Misaligned,
        Outside,
        FreedBytes,
        FreeRefused,
        GivesBackInUse,
        GivesBackParts,
        InUse,
        Reserved,
        Padding,
        CommitsForeignPages,
    }

    /// Blocks one behind the other in one chunk, but for what is wrong.
    #[derive(Debug)]
    struct Careless {
        wrong: Wrong,
        chunk: Option<u64>,
        next: u64,
        sizes: BTreeMap<u64, u64>,
    }

    const CHUNK: u64 = 1 << 20;

    impl Allocator for Careless {
        fn malloc(
            &mut self,
            request: BlockRequest,
            source: &mut dyn Source,
        ) -> Result<u64, OutOfMemory> {
            let base = match self.chunk {
                Some(base) => base,
                None => source.take(CHUNK).ok_or(request.refused())?,
            };
            self.chunk = Some(base);
            let second = !self.sizes.is_empty();
            let address = match self.wrong {
                Wrong::Overlap if second => base + 960,
                Wrong::Misaligned if second => base + self.next + 1,
                Wrong::Outside if second => base + CHUNK - 64,
                _ => base + self.next,
            };
            match self.wrong {
                Wrong::GivesBackInUse if second => source.give_back(base, CHUNK),
                Wrong::GivesBackParts if second => source.give_back(base + 512, 512),
                Wrong::CommitsForeignPages if second => {
                    assert!(!source.commit(4096..8192), "nothing is passed on");
                }
                _ => {}
            }
            self.next += request.bytes.next_multiple_of(1024);
            self.sizes.insert(address, request.bytes);
            Ok(address)
        }

        fn free(&mut self, address: u64, _: &mut dyn Source) -> Result<u64, NotInUse> {
            if self.wrong == Wrong::FreeRefused {
                return Err(NotInUse { address });
            }
            let bytes = self.sizes.remove(&address).ok_or(NotInUse { address })?;
            Ok(bytes + u64::from(self.wrong == Wrong::FreedBytes))
        }

        fn trim(&mut self, _: &mut dyn Source) {}

        fn figures(&self) -> MemoryFigures {
            let second = u64::from(self.sizes.len() > 1);
            MemoryFigures {
                in_use: self.sizes.values().sum::<u64>()
                    + second * u64::from(self.wrong == Wrong::InUse),
                padding: second * u64::from(self.wrong == Wrong::Padding) * CHUNK,
                reserved: self.chunk.map_or(0, |_| CHUNK)
                    - second * u64::from(self.wrong == Wrong::Reserved),
            }
        }

        fn largest_free(&self) -> u64 {
            0
        }
    }

    /// Two blocks of 1,000 and 2,000 bytes, the second freed: the fault, and what the second block got.
    fn faulty(wrong: Wrong) -> (Option<String>, bool) {
        let mut source = ImaginedSource::new(1 << 30);
        let mut allocator = ValidatedAllocator::new(Box::new(Careless {
            wrong,
            chunk: None,
            next: 0,
            sizes: BTreeMap::new(),
        }));
        let mut get = |allocator: &mut ValidatedAllocator, bytes| {
            let request = BlockRequest {
                alignment: 64,
                ..BlockRequest::of(bytes)
            };
            allocator.malloc(request, &mut source)
        };
        let first = get(&mut allocator, 1000).expect("the first is right");
        let second = get(&mut allocator, 2000);
        if let Ok(second) = second {
            assert_eq!(allocator.free(second, &mut source), Ok(2000));
        }
        let fault = allocator.fault().map(ToString::to_string);
        let third = allocator.malloc(BlockRequest::of(10), &mut source);
        assert_eq!(third.is_err(), fault.is_some(), "{wrong:?}");
        // Whatever happened, a block in use can be freed, and foreign ones cannot.
        assert_eq!(
            allocator.free(first + 8, &mut source),
            Err(NotInUse { address: first + 8 })
        );
        assert_eq!(allocator.free(first, &mut source), Ok(1000), "{wrong:?}");
        assert_eq!(
            allocator.free(first, &mut source),
            Err(NotInUse { address: first })
        );
        assert_eq!(
            source.bytes, CHUNK,
            "{wrong:?}: nothing wrong was passed on"
        );
        (fault, second.is_ok())
    }

    #[test]
    fn each_way_to_break_the_contract_is_found_and_named() {
        assert_eq!(faulty(Wrong::Nothing), (None, true));
        let base: u64 = 1 << 30;
        for (wrong, text) in [
            (
                Wrong::Overlap,
                format!(
                    "block 1 (2000 bytes at {:#x}) overlaps block 0 (1000 bytes at {base:#x}), which is in use",
                    base + 960
                ),
            ),
            (
                Wrong::Misaligned,
                format!(
                    "block 1 (2000 bytes at {:#x}) is not aligned to 64 bytes",
                    base + 1025
                ),
            ),
            (
                Wrong::Outside,
                format!(
                    "block 1 (2000 bytes at {:#x}) lies outside of the memory that the source has given",
                    base + CHUNK - 64
                ),
            ),
            (
                Wrong::GivesBackInUse,
                format!(
                    "it gave the memory of block 0 (1000 bytes at {base:#x}) back, which is in use"
                ),
            ),
            (
                Wrong::InUse,
                "it reports 3001 bytes in use, expected 3000".to_owned(),
            ),
            (
                Wrong::Reserved,
                "it reports 1048575 bytes reserved, expected 1048576".to_owned(),
            ),
            (
                Wrong::Padding,
                "it reports 1048576 bytes of padding, expected 1045576".to_owned(),
            ),
        ] {
            assert_eq!(faulty(wrong), (Some(text), false), "{wrong:?}");
        }
        for (wrong, part) in [
            (Wrong::GivesBackParts, "it called `give_back`"),
            (Wrong::CommitsForeignPages, "it called `commit`"),
        ] {
            let (fault, is_given) = faulty(wrong);
            assert!(fault.is_some_and(|text| text.contains(part)), "{wrong:?}");
            assert!(!is_given);
        }
        let (fault, _) = faulty(Wrong::FreedBytes);
        assert!(fault.is_some_and(|text| text.ends_with("returned 2001 bytes")));
        let (fault, _) = faulty(Wrong::FreeRefused);
        assert!(fault.is_some_and(|text| text.ends_with("is in use, and freeing it was refused")));
    }
}
