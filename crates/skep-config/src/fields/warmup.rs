//! Warm-up samples: what each instance runs before it is ready.

use std::collections::BTreeMap;

use skep_proto::inference::{self, model_warmup::input::InputDataType};
use skep_types::{DataType, Shape};

use super::tensors::InputConfig;
use crate::{
    error::ConfigError,
    vocabulary::{
        datatypes::datatype,
        notice::Notice,
        paths::{leaves, stays_inside},
    },
};

/// The most elements of one input of a sample, including its batch: a warm-up must not exhaust the machine's memory.
const MAX_ELEMENTS: usize = 1 << 30;

/// One sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warmup {
    /// Its name, for logs.
    pub name: String,
    /// The batch size; at least 1.
    pub batch_size: usize,
    /// How often it runs; at least 1.
    pub count: u32,
    /// The data by input; every required input of the model is here.
    pub inputs: BTreeMap<String, WarmupInput>,
}

/// The data of one input of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmupInput {
    /// The datatype of the model's input.
    pub datatype: DataType,
    /// The shape as a client would send it, without the batch dimension.
    pub dims: Shape,
    /// The data of one inference. All inferences of the batch get the same.
    pub data: WarmupData,
}

/// Where the data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarmupData {
    /// Zeros; empty strings for BYTES.
    Zero,
    /// Random bytes; empty strings for BYTES.
    Random,
    /// A file in the model's `warmup` folder with raw data, as in a binary request.
    File(String),
}

/// Reads and checks every sample against the model's inputs.
pub(crate) fn read(
    proto: &inference::ModelConfig,
    inputs: &[InputConfig],
    notices: &mut Vec<Notice>,
) -> Result<Vec<Warmup>, ConfigError> {
    let largest_batch = proto.max_batch_size.unsigned_abs().max(1);
    let mut samples = Vec::with_capacity(proto.model_warmup.len());
    for (index, sample) in proto.model_warmup.iter().enumerate() {
        let inference::ModelWarmup {
            name,
            batch_size,
            inputs: _,
            count,
        } = sample;
        let field = format!("model_warmup[{index}]");
        if *batch_size == 0 {
            notices.push(Notice::new(
                field,
                "the sample is skipped: its batch_size is 0".to_owned(),
            ));
            continue;
        }
        if *batch_size > largest_batch {
            let reason = format!(
                "warmup sample '{name}' of model '{}' has batch_size {batch_size}, expected at most {largest_batch}",
                proto.name
            );
            return Err(ConfigError::invalid(
                &proto.name,
                format!("{field}.batch_size"),
                reason,
            ));
        }
        let batch_size = usize::try_from(*batch_size).unwrap_or(usize::MAX);
        let typed = WarmupReader {
            model: &proto.name,
            field,
            sample,
        }
        .inputs(inputs, batch_size)?;
        // The default, 0, runs the sample once.
        samples.push(Warmup {
            name: name.clone(),
            batch_size,
            count: (*count).max(1),
            inputs: typed,
        });
    }
    Ok(samples)
}

struct WarmupReader<'a> {
    model: &'a str,
    field: String,
    sample: &'a inference::ModelWarmup,
}

impl WarmupReader<'_> {
    fn error(&self, input: &str, text: &str) -> ConfigError {
        let reason = format!(
            "warmup sample '{}' of model '{}': {text}",
            self.sample.name, self.model
        );
        ConfigError::invalid(self.model, format!("{}.inputs.{input}", self.field), reason)
    }

    fn inputs(
        &self,
        expected: &[InputConfig],
        batch_size: usize,
    ) -> Result<BTreeMap<String, WarmupInput>, ConfigError> {
        let mut typed = BTreeMap::new();
        for (name, input) in &self.sample.inputs {
            let Some(config) = expected.iter().find(|tensor| tensor.name == *name) else {
                let names: Vec<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
                let text = format!(
                    "unexpected inference input '{name}', allowed inputs are: {}",
                    names.join(", ")
                );
                return Err(self.error(name, &text));
            };
            let input = self.input(config, input)?;
            if input
                .dims
                .element_count()
                .checked_mul(batch_size)
                .is_none_or(|n| n > MAX_ELEMENTS)
            {
                let text = format!(
                    "input '{name}' has dims {} at batch size {batch_size}, expected at most {MAX_ELEMENTS} elements",
                    input.dims
                );
                return Err(self.error(name, &text));
            }
            typed.insert(name.clone(), input);
        }
        let missing = expected
            .iter()
            .find(|tensor| !tensor.optional && !typed.contains_key(&tensor.name));
        match missing {
            Some(tensor) => Err(self.error(
                &tensor.name,
                &format!("expected data for input '{}', got none", tensor.name),
            )),
            None => Ok(typed),
        }
    }

    fn input(
        &self,
        config: &InputConfig,
        input: &inference::model_warmup::Input,
    ) -> Result<WarmupInput, ConfigError> {
        let inference::model_warmup::Input {
            data_type,
            dims,
            input_data_type,
        } = input;
        let name = &config.name;
        if datatype(*data_type) != Some(config.datatype) {
            let text = format!(
                "input '{name}' has data_type {}, expected {}",
                input.data_type().as_str_name(),
                config.datatype.config_name()
            );
            return Err(self.error(name, &text));
        }
        if dims.contains(&-1) {
            let text = format!(
                "warmup setting expects all variable-size dimensions are specified for input '{name}'"
            );
            return Err(self.error(name, &text));
        }
        let shape = Shape::from_wire(dims)
            .map_err(|error| self.error(name, &format!("input '{name}': {error}")))?;
        if !config.dims.accepts(shape.dims()) {
            let text = format!("input '{name}' has dims {shape}, expected {}", config.dims);
            return Err(self.error(name, &text));
        }
        let data = match input_data_type {
            None => {
                let text =
                    format!("warmup setting expects input '{name}' to have input_data_type set");
                return Err(self.error(name, &text));
            }
            Some(InputDataType::ZeroData(_)) => WarmupData::Zero,
            Some(InputDataType::RandomData(_)) => WarmupData::Random,
            Some(InputDataType::InputDataFile(file)) if stays_inside(file) => {
                WarmupData::File(file.clone())
            }
            Some(InputDataType::InputDataFile(file)) => {
                return Err(self.error(
                    name,
                    &leaves(&format!("input_data_file '{file}' of input '{name}'")),
                ));
            }
        };
        Ok(WarmupInput {
            datatype: config.datatype,
            dims: shape,
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_ELEMENTS, Warmup, WarmupData, read};
    use crate::{fields::tensors, parse_pbtxt};

    fn warmups(text: &str) -> Result<(Vec<Warmup>, Vec<String>), String> {
        let text = format!(
            "name: 'm' max_batch_size: 4
             input [ {{ name: 'x' data_type: TYPE_FP32 dims: [ 3, -1 ] }}, {{ name: 's' data_type: TYPE_STRING dims: 1 }} ]
             model_warmup {{ name: 'w' {text} }}"
        );
        typed(&text)
    }

    /// The samples of a configuration, and the notices about them.
    fn typed(text: &str) -> Result<(Vec<Warmup>, Vec<String>), String> {
        let config = parse_pbtxt(text.as_bytes(), "c").unwrap_or_else(|error| panic!("{error}"));
        let inputs = tensors::read_inputs(&config).expect("valid inputs");
        let mut notices = Vec::new();
        let samples = read(&config, &inputs, &mut notices).map_err(|error| error.to_string())?;
        Ok((samples, notices.iter().map(ToString::to_string).collect()))
    }

    const S: &str =
        "inputs { key: 's' value { data_type: TYPE_STRING dims: 1 input_data_file: 'raw' } }";

    #[test]
    fn a_sample_may_have_as_many_elements_as_are_allowed() {
        let with_rows = |rows: usize| {
            typed(&format!(
                "name: 'm' max_batch_size: 4 input {{ name: 'x' data_type: TYPE_FP32 dims: -1 }}
                 model_warmup {{ name: 'w' batch_size: 4
                   inputs {{ key: 'x' value {{ data_type: TYPE_FP32 dims: {rows} zero_data: true }} }} }}"
            ))
        };
        assert!(with_rows(MAX_ELEMENTS / 4).is_ok());
        assert!(with_rows(MAX_ELEMENTS / 4 + 1).is_err());
    }

    #[test]
    fn samples_are_typed() {
        let (samples, notices) = warmups(&format!(
            "batch_size: 4 {S} inputs {{ key: 'x' value {{ data_type: TYPE_FP32 dims: [3,5] random_data: true }} }}"
        ))
        .expect("valid");
        assert_eq!((samples[0].batch_size, samples[0].count), (4, 1));
        assert_eq!(samples[0].inputs["x"].dims.dims(), [3, 5]);
        assert_eq!(samples[0].inputs["x"].data, WarmupData::Random);
        assert_eq!(
            samples[0].inputs["s"].data,
            WarmupData::File("raw".to_owned())
        );
        assert!(notices.is_empty());
        let skipped = warmups("batch_size: 0").expect("skipped");
        assert_eq!(
            skipped,
            (
                vec![],
                vec!["`model_warmup[0]`: the sample is skipped: its batch_size is 0".to_owned()]
            )
        );
    }

    #[test]
    fn samples_that_do_not_fit_the_model_are_refused() {
        let prefix = "warmup sample 'w' of model 'm'";
        let x =
            |value: &str| format!("batch_size: 1 {S} inputs {{ key: 'x' value {{ {value} }} }}");
        for (text, expected) in [
            (
                "batch_size: 5".to_owned(),
                " has batch_size 5, expected at most 4",
            ),
            (
                format!("batch_size: 1 {S}"),
                ": expected data for input 'x', got none",
            ),
            (
                "batch_size: 1 inputs { key: 'z' value {} }".to_owned(),
                ": unexpected inference input 'z', allowed inputs are: x, s",
            ),
            (
                x("data_type: TYPE_INT8"),
                ": input 'x' has data_type TYPE_INT8, expected TYPE_FP32",
            ),
            (
                x("data_type: TYPE_FP32 dims: [3,-1] zero_data: true"),
                ": warmup setting expects all variable-size dimensions are specified for input 'x'",
            ),
            (
                x("data_type: TYPE_FP32 dims: [4,1] zero_data: true"),
                ": input 'x' has dims [4,1], expected [3,-1]",
            ),
            (
                x("data_type: TYPE_FP32 dims: [3,-7] zero_data: true"),
                ": input 'x': shape [3,-7] has a negative dimension",
            ),
            (
                x("data_type: TYPE_FP32 dims: [3,1073741824] zero_data: true"),
                ": input 'x' has dims [3,1073741824] at batch size 1, expected at most 1073741824 elements",
            ),
            (
                x("data_type: TYPE_FP32 dims: [3,1]"),
                ": warmup setting expects input 'x' to have input_data_type set",
            ),
            (
                x("data_type: TYPE_FP32 dims: [3,1] input_data_file: '../x'"),
                ": input_data_file '../x' of input 'x' must be a relative path without '..'",
            ),
        ] {
            assert_eq!(warmups(&text), Err(format!("{prefix}{expected}")), "{text}");
        }
    }
}
