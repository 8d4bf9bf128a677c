//! `control_input`: inputs of the model that tell it where a request is in its sequence.

use std::collections::BTreeSet;

use skep_proto::inference::model_sequence_batching::{Control, ControlInput, control::Kind};
use skep_types::{DataType, Dims};

use super::SequenceReader;
use crate::{error::ConfigError, fields::tensors::InputConfig, vocabulary::datatypes::datatype};

/// An input that the server sets. It has one element for each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceControl {
    /// The model's input.
    pub name: String,
    /// INT32, FP32 or BOOL for a flag; UINT64, INT64, UINT32, INT32 or BYTES for a correlation id.
    pub datatype: DataType,
    /// What it tells.
    pub kind: ControlKind,
}

/// What a control tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlKind {
    /// Whether the request is the first of its sequence.
    Start(FlagValues),
    /// Whether the request is the last of its sequence.
    End(FlagValues),
    /// Whether the row has a request.
    Ready(FlagValues),
    /// The correlation id.
    CorrelationId,
}

/// The elements that stand for false and true, little-endian. A datatype of one byte has only the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlagValues {
    /// For false.
    pub no: [u8; 4],
    /// For true.
    pub yes: [u8; 4],
}

impl SequenceControl {
    /// The input as the model has it: one element for each request.
    pub(crate) fn input(&self, is_batched: bool) -> InputConfig {
        InputConfig {
            name: self.name.clone(),
            datatype: self.datatype,
            dims: Dims::new(&[1]).unwrap_or_default(),
            reshape: None,
            optional: false,
            label_filename: None,
            batched: is_batched,
            ragged: false,
        }
    }
}

/// Reads all controls.
pub(super) fn read(
    reader: &SequenceReader<'_>,
    inputs: &[ControlInput],
) -> Result<Vec<SequenceControl>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut kinds: Vec<Kind> = Vec::new();
    let mut controls = Vec::with_capacity(inputs.len());
    for (index, ControlInput { name, control }) in inputs.iter().enumerate() {
        let field = format!("control_input[{index}]");
        let refuse = |member: &str, rule: String, hint: &str| {
            reader.refusal(&format!("{field}.{member}"), &rule, hint)
        };
        if name.is_empty() {
            let rule = "sequence batching control tensor must have a name".to_owned();
            return Err(refuse("name", rule, "it is empty"));
        }
        if !names.insert(name) {
            let rule = format!(
                "sequence batching control tensor '{name}' is specified for multiple control kinds"
            );
            return Err(refuse("name", rule, "an input tells one thing"));
        }
        let [control] = control.as_slice() else {
            let rule = format!("sequence batching control tensor '{name}' must have one control");
            let hint = format!("it has {}", control.len());
            return Err(refuse("control", rule, &hint));
        };
        let Ok(kind) = Kind::try_from(control.kind) else {
            let rule = format!("sequence batching control kind {} is unknown", control.kind);
            return Err(refuse(
                "control.kind",
                rule,
                "expected CONTROL_SEQUENCE_START or another",
            ));
        };
        if kinds.contains(&kind) {
            let kind = kind.as_str_name();
            let rule = format!("sequence batching specifies multiple {kind} tensors");
            return Err(refuse("control.kind", rule, "each kind has one input"));
        }
        kinds.push(kind);
        let read = match kind {
            Kind::ControlSequenceCorrid => correlation_id(control),
            _ => flag(kind, control),
        };
        let (datatype, kind) = read.map_err(|rule| refuse("control", rule, CONTROL_HINT))?;
        controls.push(SequenceControl {
            name: name.clone(),
            datatype,
            kind,
        });
    }
    Ok(controls)
}

const CONTROL_HINT: &str = "write, for example, `control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] }` or `control { kind: \
                            CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }`";

fn flag(kind: Kind, control: &Control) -> Result<(DataType, ControlKind), String> {
    let Control {
        kind: _,
        int32_false_true,
        fp32_false_true,
        bool_false_true,
        // Triton ignores it: the list decides.
        data_type: _,
    } = control;
    let name = kind.as_str_name();
    let lists = [
        ("int32_false_true", int32_false_true.len()),
        ("fp32_false_true", fp32_false_true.len()),
        ("bool_false_true", bool_false_true.len()),
    ];
    let mut given = lists.iter().filter(|(_, len)| *len > 0);
    let Some((list, len)) = given.next() else {
        return Err(format!(
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for {name}"
        ));
    };
    if given.next().is_some() {
        return Err(format!(
            "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and 'bool_false_true' for {name}"
        ));
    }
    if *len != 2 {
        return Err(format!(
            "sequence batching control '{list}' must have exactly 2 entries for {name}"
        ));
    }
    let (datatype, values) = match (&**int32_false_true, &**fp32_false_true, &**bool_false_true) {
        ([no, yes], _, _) => (DataType::Int32, [no.to_le_bytes(), yes.to_le_bytes()]),
        (_, [no, yes], _) => (DataType::Fp32, [no.to_le_bytes(), yes.to_le_bytes()]),
        (_, _, list) => {
            let byte = |index: usize| {
                let value = list.get(index).copied().unwrap_or_default();
                [u8::from(value), 0, 0, 0]
            };
            (DataType::Bool, [byte(0), byte(1)])
        }
    };
    let [no, yes] = values;
    let values = FlagValues { no, yes };
    let kind = match kind {
        Kind::ControlSequenceStart => ControlKind::Start(values),
        Kind::ControlSequenceEnd => ControlKind::End(values),
        Kind::ControlSequenceReady => ControlKind::Ready(values),
        Kind::ControlSequenceCorrid => ControlKind::CorrelationId,
    };
    Ok((datatype, kind))
}

fn correlation_id(control: &Control) -> Result<(DataType, ControlKind), String> {
    let name = Kind::ControlSequenceCorrid.as_str_name();
    let Control {
        kind: _,
        int32_false_true,
        fp32_false_true,
        bool_false_true,
        data_type,
    } = control;
    if !(int32_false_true.is_empty() && fp32_false_true.is_empty() && bool_false_true.is_empty()) {
        return Err(format!(
            "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for {name}"
        ));
    }
    match datatype(*data_type) {
        Some(
            datatype @ (DataType::Uint64
            | DataType::Int64
            | DataType::Uint32
            | DataType::Int32
            | DataType::Bytes),
        ) => Ok((datatype, ControlKind::CorrelationId)),
        _ => Err(format!(
            "unexpected control data type, expected TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32, or TYPE_STRING for {name}"
        )),
    }
}
