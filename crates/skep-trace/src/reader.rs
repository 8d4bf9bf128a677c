//! A trace as a stream of events, whatever its format.

use std::{fmt, io::Read, iter::FusedIterator};

use crate::{
    blocks::LiveBlocks,
    error::TraceError,
    event::TraceEvent,
    format::{self, TraceFormat},
    input::Input,
    pytorch::{ProfileReader, SnapshotReader},
    table::TableReader,
    tensorflow::LogReader,
    unmatched::Unmatched,
    xla::HeapReader,
};

/// Reads a trace: an iterator over its events, which ends after an error.
///
/// Each block is allocated once, freed at most once, and freed after it was allocated. Blocks that the trace does not
/// free are live at its end.
pub struct TraceReader<R> {
    input: Input<R>,
    source: EventSource,
    blocks: LiveBlocks,
    has_ended: bool,
}

/// The format's own part.
enum EventSource {
    Table(TableReader),
    Log(LogReader),
    Profile(Box<ProfileReader>),
    Snapshot(SnapshotReader),
    Heap(HeapReader),
}

impl<R: Read> TraceReader<R> {
    /// Looks at the beginning of the input, compressed with gzip or not, to see what it is. Snapshots and XLA's dumps
    /// are read to the end, the others piece by piece while the iterator advances.
    ///
    /// # Errors
    /// The input cannot be read, is no memory trace, or, where it is read to the end, is damaged.
    pub fn open(input: R) -> Result<Self, TraceError> {
        let mut input = Input::open(input)?;
        let head = input.head()?;
        let format = format::detect(head)?;
        if head.starts_with(format::BYTE_ORDER_MARK) {
            input.consume(format::BYTE_ORDER_MARK.len());
        }
        let source = match format {
            TraceFormat::EventTable => EventSource::Table(TableReader::default()),
            TraceFormat::TensorFlowLog => EventSource::Log(LogReader::default()),
            TraceFormat::PyTorchProfile => EventSource::Profile(Box::default()),
            TraceFormat::PyTorchSnapshot => {
                EventSource::Snapshot(SnapshotReader::open(&mut input)?)
            }
            TraceFormat::XlaProto => EventSource::Heap(HeapReader::open(&mut input)?),
        };
        Ok(Self {
            input,
            source,
            blocks: LiveBlocks::default(),
            has_ended: false,
        })
    }

    /// Reads on; `false` at the end.
    fn advance(&mut self) -> Result<bool, TraceError> {
        let Self {
            input,
            source,
            blocks,
            ..
        } = self;
        match source {
            EventSource::Table(reader) => reader.advance(input, blocks),
            EventSource::Log(reader) => reader.advance(input, blocks),
            EventSource::Profile(reader) => reader.advance(input, blocks),
            EventSource::Snapshot(reader) => reader.advance(blocks),
            EventSource::Heap(reader) => reader.advance(blocks),
        }
    }
}

impl<R> TraceReader<R> {
    /// What the trace is.
    #[must_use]
    pub fn format(&self) -> TraceFormat {
        match self.source {
            EventSource::Table(_) => TraceFormat::EventTable,
            EventSource::Log(_) => TraceFormat::TensorFlowLog,
            EventSource::Profile(_) => TraceFormat::PyTorchProfile,
            EventSource::Snapshot(_) => TraceFormat::PyTorchSnapshot,
            EventSource::Heap(_) => TraceFormat::XlaProto,
        }
    }

    /// What did not match so far.
    #[must_use]
    pub fn unmatched(&self) -> &Unmatched {
        &self.blocks.unmatched
    }
}

impl<R: Read> Iterator for TraceReader<R> {
    type Item = Result<TraceEvent, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.blocks.next_ready() {
                return Some(Ok(event));
            }
            if self.has_ended {
                return None;
            }
            match self.advance() {
                Ok(more) => self.has_ended = !more,
                Err(error) => {
                    self.has_ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl<R: Read> FusedIterator for TraceReader<R> {}

impl<R> fmt::Debug for TraceReader<R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TraceReader")
            .field("format", &self.format())
            .field("unmatched", self.unmatched())
            .finish_non_exhaustive()
    }
}
