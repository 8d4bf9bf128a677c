//! Files that are not ONNX models: recognizes by their first bytes what they are, and says what to do about it.

/// Whether a file is in ONNX Runtime's own format (`.ort`).
#[must_use]
pub fn is_ort(bytes: &[u8]) -> bool {
    is_flat_buffer(bytes, b"ORTM")
}

/// Where the root of a FlatBuffers file lies at most: right behind its header. In an ONNX file these four bytes are a
/// far larger number, also in one whose producer is called as the format is marked.
const MAX_ROOT: u32 = 1 << 16;

/// Whether it is a FlatBuffers file of this mark.
fn is_flat_buffer(bytes: &[u8], mark: &[u8; 4]) -> bool {
    let Some((root, rest)) = bytes.split_first_chunk::<4>() else {
        return false;
    };
    u32::from_le_bytes(*root) < MAX_ROOT && rest.starts_with(mark)
}

/// How much of a file is looked at.
const LOOKED_AT: usize = 64 << 10;

/// What a file is that begins unlike any ONNX model, and the way out; `None` for one that may be an ONNX model.
#[must_use]
pub fn recognize(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(LOOKED_AT)];
    let found = match head {
        [] => "it is empty: copy or download it again",
        _ if head.starts_with(b"version https://git-lfs") => {
            "it is a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository"
        }
        _ if is_ort(head) => {
            "it is in ONNX Runtime's own format (`.ort`), which only the onnxruntime backend loads"
        }
        _ if head.starts_with(b"PK\x03\x04") => return Some(zip(head).to_owned()),
        _ if head.starts_with(b"\x1f\x8b") => "it is compressed by gzip: unpack it with `gunzip`",
        _ if head.starts_with(b"\x28\xb5\x2f\xfd") => {
            "it is compressed by zstd: unpack it with `unzstd`"
        }
        _ if is_flat_buffer(head, b"TFL3") => {
            "it is a TensorFlow Lite model: convert it with `python -m tf2onnx.convert --tflite FILE --output model.onnx`"
        }
        _ if head.starts_with(b"\x89HDF\r\n") => {
            "it is an HDF5 file, such as Keras writes: export it to ONNX with `tf2onnx`"
        }
        _ if head.starts_with(b"\x93NUMPY") => "it is a NumPy array, not a model",
        _ if head.starts_with(b"GGUF") => "it is a GGUF file: export the model to ONNX instead",
        _ if is_pickle(head) => {
            "it is a Python pickle, such as `torch.save` or `joblib` writes: export the model with `torch.onnx.export` or `skl2onnx`"
        }
        _ if is_safetensors(bytes) => {
            "it is a safetensors file, which holds weights without a graph: export the model with `torch.onnx.export`"
        }
        _ => return text(head),
    };
    Some(found.to_owned())
}

/// An archive, by the names in it.
fn zip(head: &[u8]) -> &'static str {
    let holds = |name: &[u8]| head.windows(name.len()).any(|window| window == name);
    if holds(b"data.pkl") || holds(b"constants.pkl") || holds(b".data/serialization_id") {
        "it is a PyTorch file (`torch.save` or TorchScript): export the model with `torch.onnx.export`"
    } else if holds(b"config.json") && holds(b"metadata.json") {
        "it is a Keras file: export the model to ONNX with `tf2onnx`"
    } else {
        "it is a ZIP archive: unpack it and serve the `.onnx` file in it"
    }
}

fn is_pickle(head: &[u8]) -> bool {
    // Protocols 2 to 5 begin with this operation; all end with a full stop, which the file's end may hold.
    matches!(head, [0x80, 2..=5, next, ..] if matches!(next, b'c' | b'}' | b']' | b'(' | b'K' | 0x8a | 0x95))
}

/// A length in eight bytes, then JSON of that length.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return false;
    };
    let length = u64::from_le_bytes(*length);
    rest.starts_with(b"{\"") && usize::try_from(length).is_ok_and(|length| length <= rest.len())
}

/// Pages and other texts, such as a download that failed leaves behind.
fn text(head: &[u8]) -> Option<String> {
    let begin = head.trim_ascii_start();
    let begin = begin.strip_prefix(b"\xef\xbb\xbf").unwrap_or(begin);
    let begin = begin[..begin.len().min(64)].to_ascii_lowercase();
    let starts = |text: &str| begin.starts_with(text.as_bytes());
    let found = if starts("<!doctype html") || starts("<html") {
        "it is an HTML page: the download gave a page instead of the file; open its address in a browser to see what it says, and download the file itself"
    } else if starts("<?xml") && head.windows(4).any(|w| w == b"<net") {
        "it is an OpenVINO model: serve the ONNX file that it was made from"
    } else if starts("<?xml") {
        "it is an XML document: if it was downloaded, it holds the error that came instead of the file"
    } else if starts("{") && serde_like(head) {
        "it is a JSON document: if it was downloaded, it holds the error that came instead of the file"
    } else {
        return None;
    };
    Some(found.to_owned())
}

/// Whether text looks like the beginning of a JSON object: no other bytes than text has.
fn serde_like(head: &[u8]) -> bool {
    let is_text = |byte: &u8| *byte >= 0x20 || matches!(byte, b'\t' | b'\n' | b'\r');
    head.contains(&b'"') && head.iter().all(is_text)
}

/// What a file may be that was found to be no ONNX model.
pub(crate) fn guess(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(LOOKED_AT)];
    let holds = |name: &[u8]| head.windows(name.len()).any(|window| window == name);
    let names = [
        &b"Placeholder"[..],
        b"VarHandleOp",
        b"serving_default",
        b"saved_model",
    ];
    if names.iter().any(|name| holds(name)) {
        let text = "it looks like a TensorFlow graph: convert the model with `python -m tf2onnx.convert --saved-model DIRECTORY --output model.onnx`";
        return Some(text.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use skep_proto::onnx::{GraphProto, ModelProto, ValueInfoProto};

    use crate::{OnnxError, OnnxModel};

    fn decoded(bytes: &[u8]) -> String {
        match OnnxModel::decode(bytes.to_vec().into()) {
            Ok(_) => "an ONNX model".to_owned(),
            Err(OnnxError::Foreign(what)) => what,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn known_kinds_of_files_are_named_with_the_way_out() {
        let safetensors = [
            &30_u64.to_le_bytes()[..],
            b"{\"w\":{\"dtype\":\"F32\",\"x\":1}}   ....",
        ]
        .concat();
        let saved_model = [
            &b"\x08\x01\x12\xff\xff\x03"[..],
            b"..saved_model..serving_default..",
        ]
        .concat();
        for (bytes, what) in [
            (&b""[..], "it is empty"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
                "`git lfs pull`",
            ),
            (b"\n <!DOCTYPE html><html>", "an HTML page"),
            (b"<html><head>", "an HTML page"),
            (b"\x20\0\0\0ORTM....", "ONNX Runtime's own format"),
            (
                b"PK\x03\x04............archive/data.pkl",
                "`torch.onnx.export`",
            ),
            (b"PK\x03\x04............model.onnx", "a ZIP archive"),
            (b"\x1c\0\0\0TFL3....", "TensorFlow Lite"),
            (b"\x80\x02}q\x00.", "a Python pickle"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b"\x1f\x8b\x08", "`gunzip`"),
            (
                b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>",
                "XML",
            ),
            (b"{\"error\": \"not found\"}", "JSON"),
            (&safetensors, "safetensors"),
            (&saved_model, "tf2onnx"),
        ] {
            let said = decoded(bytes);
            assert!(said.contains(what), "{bytes:?}: {said}");
        }
    }

    #[test]
    fn a_producer_may_be_named_like_another_formats_mark() {
        for name in ["ORTM", "TFL3"] {
            let graph = GraphProto {
                output: vec![ValueInfoProto::default()],
                ..Default::default()
            };
            let proto = ModelProto {
                ir_version: Some(8),
                producer_name: Some(name.to_owned()),
                graph: Some(graph),
                ..Default::default()
            };
            let bytes = proto.encode_to_vec();
            assert_eq!(&bytes[4..8], name.as_bytes());
            assert_eq!(decoded(&bytes), "an ONNX model");
        }
    }
}
