//! `state`: tensors that the server keeps for each sequence. The model gets the value with a request and gives the next.

use std::collections::BTreeSet;

use skep_proto::inference::model_sequence_batching::{
    InitialState, State, initial_state::StateData,
};
use skep_types::{DataType, Dims, Shape};

use super::SequenceReader;
use crate::{
    error::ConfigError,
    fields::tensors::{InputConfig, OutputConfig},
    vocabulary::{
        datatypes::datatype,
        notice::Notice,
        paths::{leaves, stays_inside},
    },
};

/// A state of each sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceState {
    /// The model's input that gets it. Requests do not have it.
    pub input: InputConfig,
    /// The model's output that gives the next one. Responses have it only if it is listed in `output` as well.
    pub output: OutputConfig,
    /// The shape of the first one, without the batch dimension. It has one element where `dims` are variable and nothing
    /// else is configured.
    pub initial_shape: Shape,
    /// The data of the first one.
    pub initial_data: InitialData,
}

/// The data of a sequence's first state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitialData {
    /// Zeros, or empty strings.
    Zero,
    /// A file in the model's `initial_state` folder with raw data, as in a binary request.
    File(String),
}

/// The most elements of a state that every sequence begins with: its memory is multiplied by sequences.
const MAX_ELEMENTS: usize = 1 << 28;

/// Reads all states.
pub(super) fn read(
    reader: &SequenceReader<'_>,
    states: &[State],
    notices: &mut Vec<Notice>,
) -> Result<Vec<SequenceState>, ConfigError> {
    let mut read = Vec::with_capacity(states.len());
    let mut outputs = BTreeSet::new();
    for (index, state) in states.iter().enumerate() {
        let field = StateField { reader, index };
        let State {
            input_name,
            output_name,
            data_type,
            dims,
            initial_state,
            use_same_buffer_for_input_output,
            use_growable_memory,
        } = state;
        for (is_set, name) in [
            (
                *use_same_buffer_for_input_output,
                "use_same_buffer_for_input_output",
            ),
            (*use_growable_memory, "use_growable_memory"),
        ] {
            if is_set {
                let field = format!("sequence_batching.state[{index}].{name}");
                notices.push(Notice::new(
                    field,
                    "no effect: states are in the host's memory",
                ));
            }
        }
        let (input, output) = field.tensors(input_name, output_name, *data_type, dims)?;
        if !outputs.insert(output_name) {
            let rule = format!("state output '{output_name}' can only be specified once");
            return Err(field.refuse("output_name", &rule, "each state has its own output"));
        }
        let (initial_shape, initial_data) = match initial_state.as_slice() {
            [] => (field.first_shape(&input.dims)?, InitialData::Zero),
            [initial] => field.initial(&input, initial)?,
            more => {
                let rule = "a state can have one initial_state";
                let hint = format!("it has {}", more.len());
                return Err(field.refuse("initial_state", rule, &hint));
            }
        };
        if initial_shape.element_count() > MAX_ELEMENTS {
            let rule = format!("state '{input_name}' must have at most {MAX_ELEMENTS} elements");
            return Err(field.refuse("dims", &rule, &format!("it has shape {initial_shape}")));
        }
        read.push(SequenceState {
            input,
            output,
            initial_shape,
            initial_data,
        });
    }
    Ok(read)
}

/// One entry of the list.
struct StateField<'a> {
    reader: &'a SequenceReader<'a>,
    index: usize,
}

impl StateField<'_> {
    fn refuse(&self, member: &str, rule: &str, hint: &str) -> ConfigError {
        let field = format!("state[{}].{member}", self.index);
        self.reader.refusal(&field, rule, hint)
    }

    /// The input and the output, which differ in their name alone.
    fn tensors(
        &self,
        input: &str,
        output: &str,
        data_type: i32,
        dims: &[i64],
    ) -> Result<(InputConfig, OutputConfig), ConfigError> {
        for (member, name) in [("input_name", input), ("output_name", output)] {
            if name.is_empty() {
                let rule = format!("state must specify '{member}'");
                return Err(self.refuse(member, &rule, "it is empty"));
            }
        }
        let Some(datatype) = datatype(data_type) else {
            let rule = format!("state '{input}' must specify 'data_type'");
            return Err(self.refuse(
                "data_type",
                &rule,
                "write, for example, `data_type: TYPE_FP32`",
            ));
        };
        let tensor = |name: &str, dims: Dims| InputConfig {
            name: name.to_owned(),
            datatype,
            dims,
            reshape: None,
            optional: false,
            label_filename: None,
            batched: self.reader.max_batch_size > 0,
            ragged: false,
        };
        let is_bad = |dim: &i64| *dim < 1 && *dim != -1;
        match Dims::new(dims) {
            Ok(dims) if !dims.as_slice().is_empty() && !dims.as_slice().iter().any(is_bad) => {
                Ok((tensor(input, dims.clone()), tensor(output, dims)))
            }
            _ => {
                let rule =
                    format!("state '{input}' must specify 'dims', each >= 1, or -1 if it varies");
                Err(self.refuse("dims", &rule, &format!("it is {dims:?}")))
            }
        }
    }

    /// The shape of zeros: 1 in place of variable dimensions, as on Triton.
    fn first_shape(&self, dims: &Dims) -> Result<Shape, ConfigError> {
        let fixed: Vec<i64> = dims.as_slice().iter().map(|dim| (*dim).max(1)).collect();
        self.shape("dims", &fixed)
    }

    fn shape(&self, member: &str, dims: &[i64]) -> Result<Shape, ConfigError> {
        Shape::from_wire(dims).map_err(|error| {
            let rule = format!("state has wrong dims: {error}");
            self.refuse(member, &rule, &format!("it is {dims:?}"))
        })
    }

    fn initial(
        &self,
        input: &InputConfig,
        initial: &InitialState,
    ) -> Result<(Shape, InitialData), ConfigError> {
        let InitialState {
            data_type,
            dims,
            // for logs
            name: _,
            state_data,
        } = initial;
        let name = &input.name;
        let expected: DataType = input.datatype;
        if datatype(*data_type) != Some(expected) {
            let rule = format!("initial state of '{name}' must have the state's data_type");
            let hint = format!("expected {}", expected.config_name());
            return Err(self.refuse("initial_state.data_type", &rule, &hint));
        }
        if dims.iter().any(|dim| *dim < 0) {
            let rule = format!("initial state of '{name}' must have no variable dims");
            return Err(self.refuse("initial_state.dims", &rule, &format!("it is {dims:?}")));
        }
        let shape = self.shape("initial_state.dims", dims)?;
        if !input.dims.accepts(shape.dims()) {
            let rule = format!(
                "initial state of '{name}' must fit the state's dims {}",
                input.dims
            );
            return Err(self.refuse("initial_state.dims", &rule, &format!("it is {shape}")));
        }
        let data = match state_data {
            Some(StateData::ZeroData(_)) => InitialData::Zero,
            Some(StateData::DataFile(file)) if stays_inside(file) => {
                InitialData::File(file.clone())
            }
            Some(StateData::DataFile(file)) => {
                let rule = leaves(&format!("data_file of the initial state of '{name}'"));
                let hint = format!("it is `{file}`");
                return Err(self.refuse("initial_state.data_file", &rule, &hint));
            }
            None => {
                let rule = format!("initial state of '{name}' must specify its data");
                let hint = "write `zero_data: true` or `data_file: \"...\"`";
                return Err(self.refuse("initial_state", &rule, hint));
            }
        };
        Ok((shape, data))
    }
}
