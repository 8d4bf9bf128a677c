//! Writes a model file without ever holding its weights: the protobuf is laid out by hand around them.
//!
//! ```text
//! ModelProto   header fields | graph: tag length | GraphProto
//! GraphProto   nodes, inputs, outputs | initializer: tag length TensorProto | ...
//! TensorProto  name, dims, datatype | raw_data: tag length | values, computed here in chunks
//! ```
//!
//! All lengths are known beforehand. Field order differs from prost's own; protobuf leaves it free.

use std::io::{self, Write};

use prost::Message;
use skep_proto::onnx::{ModelProto, StringStringEntryProto, tensor_proto::DataLocation};

use crate::{graph::GraphWeight, weights::WeightFill};

/// Tags of length-delimited fields: `number << 3 | 2`.
const MODEL_GRAPH: u8 = 7 << 3 | 2;
const GRAPH_INITIALIZER: u8 = 5 << 3 | 2;
const TENSOR_RAW_DATA: u8 = 9 << 3 | 2;

/// Weights below this stay in the model file: shapes and scalars must be known before the side file is opened.
const EXTERNAL_MIN_BYTES: u64 = 1024;
/// Each tensor of a side file starts at a page, so that it can be mapped and used in place.
const EXTERNAL_ALIGNMENT: u64 = 4096;

/// One initializer, ready to be written.
pub(crate) struct EncodedTensor<'a> {
    pub(crate) name: &'a str,
    /// The encoded `TensorProto`, without data that is computed.
    header: Vec<u8>,
    pub(crate) data: WeightData,
}

/// Where the values of a tensor are.
pub(crate) enum WeightData {
    /// In the header.
    Encoded,
    /// Computed into the model file.
    Inline {
        fill: WeightFill,
        seed: u64,
        count: usize,
    },
    /// Computed into the side file.
    External {
        fill: WeightFill,
        seed: u64,
        count: usize,
        offset: u64,
    },
}

/// Decides where each initializer's values go; `location` is the side file's name, if there is one.
pub(crate) fn lay_out<'a>(
    initializers: &'a [GraphWeight],
    seed_of: impl Fn(&GraphWeight) -> u64,
    location: Option<&str>,
) -> Vec<EncodedTensor<'a>> {
    let mut end = 0u64;
    let place = |initializer: &'a GraphWeight| {
        let mut proto = initializer.proto.clone();
        let Some(fill) = initializer.fill else {
            return EncodedTensor {
                name: initializer.proto.name(),
                header: proto.encode_to_vec(),
                data: WeightData::Encoded,
            };
        };
        let (count, seed) = (element_count(initializer), seed_of(initializer));
        let bytes = count as u64 * 4;
        let data = match location {
            Some(location) if bytes >= EXTERNAL_MIN_BYTES => {
                let offset = end.next_multiple_of(EXTERNAL_ALIGNMENT);
                end = offset + bytes;
                let entries = [
                    ("location", location.to_owned()),
                    ("offset", offset.to_string()),
                    ("length", bytes.to_string()),
                ];
                proto.external_data = entries.map(|(key, value)| entry(key, value)).into();
                proto.data_location = Some(DataLocation::External as i32);
                WeightData::External {
                    fill,
                    seed,
                    count,
                    offset,
                }
            }
            _ => WeightData::Inline { fill, seed, count },
        };
        EncodedTensor {
            name: initializer.proto.name(),
            header: proto.encode_to_vec(),
            data,
        }
    };
    initializers.iter().map(place).collect()
}

/// The number of values in a tensor.
pub(crate) fn element_count(initializer: &GraphWeight) -> usize {
    initializer
        .proto
        .dims
        .iter()
        .map(|&d| usize::try_from(d).unwrap_or(0))
        .product()
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    }
}

impl EncodedTensor<'_> {
    fn encoded_len(&self) -> u64 {
        let header = self.header.len() as u64;
        match self.data {
            WeightData::Inline { count, .. } => header + field_len(count as u64 * 4),
            _ => header,
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.header)?;
        if let WeightData::Inline { fill, seed, count } = self.data {
            write_key(out, TENSOR_RAW_DATA, count as u64 * 4)?;
            fill.write(seed, self.name, count, out)?;
        }
        Ok(())
    }
}

/// A model file, laid out.
pub(crate) struct EncodedModel<'a> {
    header: Vec<u8>,
    graph: Vec<u8>,
    pub(crate) tensors: Vec<EncodedTensor<'a>>,
}

impl<'a> EncodedModel<'a> {
    /// `model` without initializers, and the initializers.
    pub(crate) fn new(model: &ModelProto, tensors: Vec<EncodedTensor<'a>>) -> Self {
        let graph = model
            .graph
            .as_ref()
            .map(Message::encode_to_vec)
            .unwrap_or_default();
        let header = ModelProto {
            graph: None,
            ..model.clone()
        }
        .encode_to_vec();
        Self {
            header,
            graph,
            tensors,
        }
    }

    fn graph_len(&self) -> u64 {
        self.graph.len() as u64
            + self
                .tensors
                .iter()
                .map(|tensor| field_len(tensor.encoded_len()))
                .sum::<u64>()
    }

    /// The file's size.
    pub(crate) fn len(&self) -> u64 {
        self.header.len() as u64 + field_len(self.graph_len())
    }

    /// Writes the model file.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.header)?;
        write_key(out, MODEL_GRAPH, self.graph_len())?;
        out.write_all(&self.graph)?;
        for tensor in &self.tensors {
            write_key(out, GRAPH_INITIALIZER, tensor.encoded_len())?;
            tensor.write(out)?;
        }
        Ok(())
    }

    /// Writes the side file.
    pub(crate) fn write_external(&self, out: &mut impl Write) -> io::Result<()> {
        let mut end = 0;
        for tensor in &self.tensors {
            if let WeightData::External {
                fill,
                seed,
                count,
                offset,
            } = tensor.data
            {
                io::copy(&mut io::Read::take(io::repeat(0), offset - end), out)?;
                fill.write(seed, tensor.name, count, out)?;
                end = offset + count as u64 * 4;
            }
        }
        Ok(())
    }
}

/// The bytes of a field with its one-byte tag and its length.
fn field_len(content: u64) -> u64 {
    1 + prost::encoding::encoded_len_varint(content) as u64 + content
}

fn write_key(out: &mut impl Write, tag: u8, content: u64) -> io::Result<()> {
    let mut key = vec![tag];
    prost::encoding::encode_varint(content, &mut key);
    out.write_all(&key)
}
