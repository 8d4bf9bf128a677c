//! Manifests: what a form consists of, as text.
//!
//! ```text
//! skep-cache 2
//! key <key>
//! file <digest> <bytes>
//! graph <digest>
//! note <name> <value>
//! tensor <role> <digest> <bytes> <datatype> <dims|-> <layout> <name>
//! end <digest of everything above>
//! ```
//!
//! `key` is the key under which the form was published: a form under another key is damaged. Each file of the model has
//! a `file` line. If the model cannot be baked, `unusable <why>` replaces all lines from `graph` to the last `tensor`.
//! Spaces, control characters and `%` in words are escaped as in a URL.

use std::{collections::BTreeMap, fmt::Write as _};

use skep_store::{Description, Digest, Wanted};
use skep_types::DataType;

use crate::FileContent;

/// The first line.
const TITLE: &str = "skep-cache 2";

/// What a runtime does with a tensor of a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// It computes with the tensor in place.
    Weight,
    /// It packs the tensor while it loads the model, and computes with the packed one.
    Source,
    /// A tensor that it packed, in the order of packing.
    Packed,
}

impl Role {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Weight, "weight"),
        (Self::Source, "source"),
        (Self::Packed, "packed"),
    ];

    fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(role, _)| *role == self);
        named.map_or("", |(_, name)| name)
    }
}

/// A tensor of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormTensor {
    /// What the runtime does with it.
    pub role: Role,
    /// Its name in the graph; empty for packed weights.
    pub name: String,
    /// Its digest, description and length.
    pub tensor: Wanted,
}

/// A form without its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// The key of the form.
    pub(crate) key: [u8; 32],
    /// The model's files.
    pub(crate) files: Vec<FileContent>,
    /// The digest of the graph.
    pub(crate) graph: [u8; 32],
    /// The backend's notes.
    pub(crate) notes: BTreeMap<String, String>,
    pub(crate) parts: Vec<FormTensor>,
    /// Why the model cannot be baked.
    pub(crate) unusable: Option<String>,
}

impl Manifest {
    pub(crate) fn encode(&self) -> String {
        let mut text = format!("{TITLE}\n");
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(text, "key {}", Digest(self.key));
        for FileContent { digest, bytes } in &self.files {
            let _ = writeln!(text, "file {} {bytes}", Digest(*digest));
        }
        if let Some(why) = &self.unusable {
            let _ = writeln!(text, "unusable {}", escape(why));
        } else {
            let _ = writeln!(text, "graph {}", Digest(self.graph));
            for (name, value) in &self.notes {
                let _ = writeln!(text, "note {} {}", escape(name), escape(value));
            }
            for part in &self.parts {
                let Wanted {
                    digest,
                    description,
                    length,
                } = &part.tensor;
                let dims: Vec<String> = description.dims.iter().map(u64::to_string).collect();
                let dims = if dims.is_empty() {
                    "-".to_owned()
                } else {
                    dims.join(",")
                };
                let _ = writeln!(
                    text,
                    "tensor {} {digest} {length} {} {dims} {} {}",
                    part.role.name(),
                    description.datatype.protocol_name(),
                    escape(&description.layout),
                    escape(&part.name),
                );
            }
        }
        let digest = blake3::hash(text.as_bytes());
        let _ = writeln!(text, "end {digest}");
        text
    }

    /// The sizes of the model's files, from the first lines of a manifest. Unchecked: this only tells whether reading
    /// the files is worthwhile.
    pub(crate) fn sizes(head: &str) -> Vec<u64> {
        let lines = head.lines().skip(2);
        let words = lines.map_while(|line| line.strip_prefix("file ")?.split_once(' '));
        words.map_while(|(_, bytes)| bytes.parse().ok()).collect()
    }

    /// # Errors
    /// A text that says what is wrong. Any change of a manifest is an error.
    pub(crate) fn decode(text: &str) -> Result<Self, String> {
        let body_length = text
            .trim_end_matches('\n')
            .rfind('\n')
            .map_or(0, |position| position + 1);
        let (body, last) = text.split_at(body_length);
        if last.trim_end_matches('\n') != format!("end {}", blake3::hash(body.as_bytes())) {
            return Err("its last line is not the digest of the lines above".to_owned());
        }
        let mut lines = body.lines();
        if lines.next() != Some(TITLE) {
            return Err(format!("expected `{TITLE}` as the first line"));
        }
        let mut manifest = Self::default();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            manifest
                .line(&words)
                .ok_or_else(|| format!("cannot read the line `{line}`"))?;
        }
        Ok(manifest)
    }

    fn line(&mut self, words: &[&str]) -> Option<()> {
        match *words {
            ["unusable", why] => self.unusable = Some(unescape(why)?),
            ["key", key] => self.key = hex(key)?,
            ["file", digest, bytes] => self.files.push(FileContent {
                digest: hex(digest)?,
                bytes: bytes.parse().ok()?,
            }),
            ["graph", digest] => self.graph = hex(digest)?,
            ["note", name, value] => {
                self.notes.insert(unescape(name)?, unescape(value)?);
            }
            ["tensor", role, digest, length, datatype, dims, layout, name] => {
                let role = Role::ALL.iter().find(|(_, known)| *known == role)?.0;
                let dims = match dims {
                    "-" => Vec::new(),
                    dims => dims
                        .split(',')
                        .map(|extent| extent.parse().ok())
                        .collect::<Option<_>>()?,
                };
                self.parts.push(FormTensor {
                    role,
                    name: unescape(name)?,
                    tensor: Wanted {
                        digest: Digest(hex(digest)?),
                        description: Description {
                            datatype: DataType::from_protocol_name(datatype).ok()?,
                            dims,
                            layout: unescape(layout)?.into(),
                        },
                        length: length.parse().ok()?,
                    },
                });
            }
            _ => return None,
        }
        Some(())
    }
}

/// 32 bytes in hexadecimal.
pub(crate) fn hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Escapes spaces, control characters and `%`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '%' || character == ' ' || character.is_control() {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                let _ = write!(escaped, "%{byte:02x}");
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts() -> impl Strategy<Value = FormTensor> {
        let role = prop::sample::select(vec![Role::Weight, Role::Source, Role::Packed]);
        let dims = prop::collection::vec(any::<u64>(), 0..4);
        (
            role,
            any::<String>(),
            any::<String>(),
            dims,
            any::<[u8; 32]>(),
            any::<u64>(),
        )
            .prop_map(|(role, name, layout, dims, digest, length)| FormTensor {
                role,
                name,
                tensor: Wanted {
                    digest: Digest(digest),
                    description: Description {
                        datatype: DataType::Fp16,
                        dims,
                        layout: layout.into(),
                    },
                    length,
                },
            })
    }

    proptest! {
        #[test]
        fn a_manifest_decodes_to_what_was_encoded(
            parts in prop::collection::vec(parts(), 0..4),
            notes in prop::collection::btree_map(any::<String>(), any::<String>(), 0..3),
            files in prop::collection::vec((any::<[u8; 32]>(), any::<u64>()), 0..3),
            [key, graph] in any::<[[u8; 32]; 2]>(),
        ) {
            let files = files.into_iter().map(|(digest, bytes)| FileContent { digest, bytes });
            let files = files.collect();
            let manifest = Manifest { key, files, graph, notes, parts, unusable: None };
            prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }

        #[test]
        fn any_other_text_is_refused(text in any::<String>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            prop_assert!(Manifest::decode(&text).is_err());
            let unusable = Manifest { unusable: Some("no\nreason at 100%".to_owned()), ..Manifest::default() };
            let good = unusable.encode();
            prop_assert_eq!(Manifest::decode(&good), Ok(unusable));
            let mut bytes = good.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(changed) = String::from_utf8(bytes)
                && changed.trim_end_matches('\n') != good.trim_end_matches('\n')
            {
                prop_assert!(Manifest::decode(&changed).is_err());
            }
        }
    }
}
