//! Which tool wrote a trace, by what is in it: names of files are not asked.

use std::fmt;

use crate::{
    error::{TraceError, shown},
    table, tensorflow,
};

/// Every format, for errors.
pub(crate) const NAMES: &str = "TensorFlow's log with `__LOG_MEMORY__`, PyTorch's profile as JSON, PyTorch's CUDA snapshot, XLA's \
    `*.hlo.pb`, or a table `op,id,bytes`";

/// What a trace is, once it is decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceFormat {
    /// A log of TensorFlow 1.x or 2.x with `__LOG_MEMORY__` lines (`TF_CPP_VMODULE=log_memory=2`).
    TensorFlowLog,
    /// A Chrome trace of PyTorch's profiler with `profile_memory=True`.
    PyTorchProfile,
    /// A pickle of `torch.cuda.memory._dump_snapshot`.
    PyTorchSnapshot,
    /// XLA's `*.hlo.pb` (`--xla_dump_hlo_as_proto`), with the traces of its heap simulator.
    XlaProto,
    /// Skep's own table: [`crate::write_events`].
    EventTable,
}

impl fmt::Display for TraceFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::TensorFlowLog => "TensorFlow memory log",
            Self::PyTorchProfile => "PyTorch profile",
            Self::PyTorchSnapshot => "PyTorch CUDA snapshot",
            Self::XlaProto => "XLA buffer assignment",
            Self::EventTable => "event table",
        })
    }
}

/// A mark of the encoding, before text.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The format of input that begins like this.
pub(crate) fn detect(head: &[u8]) -> Result<TraceFormat, TraceError> {
    let start = head
        .strip_prefix(BYTE_ORDER_MARK)
        .unwrap_or(head)
        .trim_ascii_start();
    // Opcode PROTO with the version, from the first that has the opcode to the newest.
    if let [0x80, 2..=5, ..] = head {
        return Ok(TraceFormat::PyTorchSnapshot);
    }
    if start.is_empty() {
        return Err(TraceError::Empty);
    }
    if start[0] == b'{' {
        return Ok(TraceFormat::PyTorchProfile);
    }
    if table::is_heading(start) {
        return Ok(TraceFormat::EventTable);
    }
    for (heading, got) in [
        (&b"BufferAssignment:"[..], "XLA's buffer assignment as text"),
        (b"HloLiveRange", "XLA's live ranges as text"),
    ] {
        if start.starts_with(heading) {
            let expected = "XLA's `*.hlo.pb` of the same run (`--xla_dump_hlo_as_proto`)";
            return Err(TraceError::OtherFile { expected, got });
        }
    }
    // In other text, the first line of the log may come later.
    if tensorflow::marker(head).is_some() || is_text(head) {
        return Ok(TraceFormat::TensorFlowLog);
    }
    // The tag of a message in field 1, the module, or in field 3, the buffer assignment.
    if matches!(head[0], 0x0a | 0x1a) {
        return Ok(TraceFormat::XlaProto);
    }
    Err(TraceError::UnknownFormat { got: shown(head) })
}

/// Whether the beginning is UTF-8 with no control characters but those of logs: colours, and bars that go back.
fn is_text(head: &[u8]) -> bool {
    let valid = match std::str::from_utf8(head) {
        Ok(_) => true,
        // A character may be cut in two at the end.
        Err(error) => error.error_len().is_none(),
    };
    valid
        && !head
            .iter()
            .any(|byte| byte.is_ascii_control() && !b"\t\r\n\x08\x1b".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_content() {
        let marked = b"\xff other line\n__LOG_MEMORY__ MemoryLogStep { }\n";
        let cases: [(&[u8], TraceFormat); 12] = [
            (b"op,id,bytes\n", TraceFormat::EventTable),
            (
                b"\xef\xbb\xbfOp,Id,Bytes,stream\r\n",
                TraceFormat::EventTable,
            ),
            (b"\n {\"traceEvents\": []}", TraceFormat::PyTorchProfile),
            (b"\xef\xbb\xbf{", TraceFormat::PyTorchProfile),
            (b"\x80\x04\x95", TraceFormat::PyTorchSnapshot),
            (b"\x80\x02}q\x00.", TraceFormat::PyTorchSnapshot),
            (
                b"2026-11-20 13:29:22: I tensorflow\n",
                TraceFormat::TensorFlowLog,
            ),
            (b"\n\x1b[1mbold\x1b[0m \x08\n", TraceFormat::TensorFlowLog),
            (marked, TraceFormat::TensorFlowLog),
            (
                "\u{fc}".as_bytes().split_at(1).0,
                TraceFormat::TensorFlowLog,
            ),
            (b"\x0a\x01\x00\x1a\x00", TraceFormat::XlaProto),
            (b"\x1a\x00", TraceFormat::XlaProto),
        ];
        for (head, expected) in cases {
            assert_eq!(detect(head), Ok(expected), "{head:?}");
        }
        for (head, expected) in [
            (&b""[..], "expected a memory trace, got nothing"),
            (b" \r\n", "expected a memory trace, got nothing"),
            (
                b"BufferAssignment:\nallocation 0",
                "expected XLA's `*.hlo.pb` of the same run (`--xla_dump_hlo_as_proto`), got XLA's buffer assignment as \
                 text, which does not say in which order blocks are allocated",
            ),
            (
                b"HloLiveRange (max 3):\n",
                "expected XLA's `*.hlo.pb` of the same run (`--xla_dump_hlo_as_proto`), got XLA's live ranges as text, \
                 which does not say in which order blocks are allocated",
            ),
        ] {
            let error = detect(head).expect_err("no trace").to_string();
            assert_eq!(error, expected);
        }
        for head in [
            &b"\x08\x09\x3a\x02"[..],
            b"\x80\x01",
            b"\x80\x06",
            b"\x7fELF",
        ] {
            let error = detect(head).expect_err("no trace").to_string();
            assert!(
                error.starts_with("expected a memory trace (TensorFlow's"),
                "{error}"
            );
        }
    }
}
