//! Inputs and outputs that the configuration lists incompletely or not at all.

use skep_proto::inference;
use skep_types::TensorSpec;

use crate::{error::ConfigError, vocabulary::datatypes::datatype_number};

/// An input or output message.
pub(super) trait TensorMessage: Default {
    fn name(&mut self) -> &mut String;
    fn data_type(&mut self) -> &mut i32;
    fn dims(&mut self) -> &mut Vec<i64>;
    fn reshape(&mut self) -> &mut Option<inference::ModelTensorReshape>;
}

macro_rules! tensor_message {
    ($message:ty) => {
        impl TensorMessage for $message {
            fn name(&mut self) -> &mut String {
                &mut self.name
            }
            fn data_type(&mut self) -> &mut i32 {
                &mut self.data_type
            }
            fn dims(&mut self) -> &mut Vec<i64> {
                &mut self.dims
            }
            fn reshape(&mut self) -> &mut Option<inference::ModelTensorReshape> {
                &mut self.reshape
            }
        }
    };
}
tensor_message!(inference::ModelInput);
tensor_message!(inference::ModelOutput);

/// All inputs, or all outputs, of the model's file.
pub(super) struct TensorCompletion<'a> {
    pub(super) model: &'a str,
    pub(super) side: &'static str,
    pub(super) specs: &'a [TensorSpec],
    pub(super) batched: bool,
}

impl TensorCompletion<'_> {
    /// Lists every tensor if the configuration lists none. Otherwise fills in what the listed ones lack.
    pub(super) fn complete<T: TensorMessage>(
        &self,
        tensors: &mut Vec<T>,
    ) -> Result<(), ConfigError> {
        if tensors.is_empty() {
            for spec in self.specs {
                let mut tensor = T::default();
                spec.name.clone_into(tensor.name());
                self.complete_tensor(&mut tensor, spec)?;
                tensors.push(tensor);
            }
            return Ok(());
        }
        for tensor in tensors {
            // Validation refuses a tensor without a name.
            if tensor.name().is_empty() || (*tensor.data_type() != 0 && !tensor.dims().is_empty()) {
                continue;
            }
            let Some(spec) = self.specs.iter().find(|spec| spec.name == *tensor.name()) else {
                return Err(self.unknown(tensor.name()));
            };
            self.complete_tensor(tensor, spec)?;
        }
        Ok(())
    }

    fn complete_tensor<T: TensorMessage>(
        &self,
        tensor: &mut T,
        spec: &TensorSpec,
    ) -> Result<(), ConfigError> {
        if *tensor.data_type() == 0 {
            *tensor.data_type() = datatype_number(spec.datatype);
        }
        if !tensor.dims().is_empty() {
            return Ok(());
        }
        let Some(dims) = &spec.dims else {
            return Err(self.no_rank(spec));
        };
        let dims = dims
            .as_slice()
            .get(usize::from(self.batched)..)
            .unwrap_or_default();
        tensor.dims().extend_from_slice(dims);
        if dims.is_empty() {
            tensor.dims().push(1);
            // Without batching an empty reshape is invalid; `ModelConfig::with_signature` recognises scalars.
            if self.batched {
                tensor.reshape().get_or_insert_default();
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> ConfigError {
        let side = self.side;
        let allowed: Vec<&str> = self.specs.iter().map(|spec| spec.name.as_str()).collect();
        ConfigError::Signature {
            model: self.model.to_owned(),
            tensor: name.to_owned(),
            reason: format!(
                "unexpected inference {side} '{name}', allowed {side}s are: {}",
                allowed.join(", ")
            ),
            hint: None,
        }
    }

    fn no_rank(&self, spec: &TensorSpec) -> ConfigError {
        let (side, name) = (self.side, &spec.name);
        ConfigError::Signature {
            model: self.model.to_owned(),
            tensor: name.clone(),
            reason: format!(
                "{side} `{name}` of model `{}` has no shape in the model's file, expected its dims in the configuration",
                self.model
            ),
            hint: Some(format!(
                "write `{side} [ {{ name: \"{name}\" data_type: {} dims: [ .. ] }} ]`, and the other {side}s with it",
                spec.datatype.config_name()
            )),
        }
    }
}
