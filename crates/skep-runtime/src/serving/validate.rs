//! Checks a request against a model's configuration, with Triton's error texts.
//!
//! Source of the texts: Triton Inference Server, `InferenceRequest::Normalize`. Users of its clients search for them.

use skep_config::TensorConfig;
use skep_tensor::Tensor;
use skep_types::{Dims, Shape};
use smallvec::SmallVec;

use crate::{
    error::RuntimeError,
    serving::{
        interface::{Interface, InterfaceTensor, OmittedInput},
        job::PreparedRequest,
        request::InferRequest,
        sequences::SequenceFeeds,
    },
};

/// What Triton adds when it refuses a shape that needs a batch dimension.
const BATCH_NOTE: &str = "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size.";

/// Checks a request and brings its tensors into the model's order and shape.
pub(crate) fn prepare(
    request: &InferRequest,
    interface: &Interface,
) -> Result<PreparedRequest, RuntimeError> {
    let mut prepared = prepare_tensors(request, interface)?;
    if let Some(sequences) = &interface.sequences {
        prepared.sequence = Some(sequences.check(request, prepared.batch_size, interface)?);
    }
    Ok(prepared)
}

/// The same for a request outside of serving, which is a sequence of its own if the model wants one.
pub(crate) fn prepare_alone(
    request: &InferRequest,
    interface: &Interface,
) -> Result<PreparedRequest, RuntimeError> {
    let mut prepared = prepare_tensors(request, interface)?;
    prepared.sequence = interface.sequences.as_ref().map(SequenceFeeds::alone);
    Ok(prepared)
}

fn prepare_tensors(
    request: &InferRequest,
    interface: &Interface,
) -> Result<PreparedRequest, RuntimeError> {
    let check = RequestCheck { request, interface };
    let mut inputs: SmallVec<[Option<Tensor>; 4]> = SmallVec::new();
    inputs.resize(interface.inputs.len(), None);
    check.twice()?;
    check.count()?;
    let mut batch_size = None;
    let mut ragged = SmallVec::new();
    for (name, tensor) in &request.inputs {
        let index = check.index(name)?;
        let input = &interface.inputs[index];
        check.datatype(&input.config, tensor)?;
        check.batch(&input.config, tensor, &mut batch_size)?;
        let shaped = check.shape(&input.config, tensor)?;
        inputs[input.position] = Some(shaped);
        if input.config.ragged {
            ragged.push(u16::try_from(input.position).unwrap_or(u16::MAX));
        }
    }
    let batch_size = batch_size.unwrap_or(1);
    let mut omitted = SmallVec::new();
    if request.inputs.len() < interface.inputs.len() {
        for input in &interface.inputs {
            let slot = &mut inputs[input.position];
            if slot.is_none() {
                *slot = Some(check.omitted(input, batch_size)?);
                omitted.push(u16::try_from(input.position).unwrap_or(u16::MAX));
            }
        }
        omitted.sort_unstable();
    }
    // No input is missing: each is known and occurs once, and there are as many as the model has, or the others were
    // filled in.
    let inputs = inputs.into_iter().flatten().collect();
    Ok(PreparedRequest {
        inputs,
        ragged,
        omitted,
        charge: request.charge.clone(),
        sequence: None,
        outputs: check.outputs()?,
        batch_size,
    })
}

struct RequestCheck<'a> {
    request: &'a InferRequest,
    interface: &'a Interface,
}

impl RequestCheck<'_> {
    fn error(&self, text: impl AsRef<str>) -> RuntimeError {
        let id = if self.request.id.is_empty() {
            "<id_unknown>"
        } else {
            &self.request.id
        };
        RuntimeError::invalid(format!("[request id: {id}] {}", text.as_ref()))
    }

    fn model(&self) -> &str {
        self.interface.model.as_str()
    }

    /// Refuses an input that occurs twice.
    fn twice(&self) -> Result<(), RuntimeError> {
        let inputs = &self.request.inputs;
        // A request with more inputs than the model has is refused anyway; the bound keeps this quadratic comparison
        // small.
        let looked_at = self.interface.inputs.len() + 1;
        for (index, (name, _)) in inputs.iter().enumerate().take(looked_at) {
            if inputs[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(self.error(format!("input '{name}' already exists in request")));
            }
        }
        Ok(())
    }

    /// Checks the number of inputs. Triton does so before it checks their names.
    fn count(&self) -> Result<(), RuntimeError> {
        let (expected, got) = (self.interface.inputs.len(), self.request.inputs.len());
        if expected == got {
            return Ok(());
        }
        let inputs = self.interface.inputs.iter();
        let required = inputs.filter(|input| input.when_omitted.is_none());
        if got < expected && required.clone().all(|input| self.gives(&input.name)) {
            return Ok(());
        }
        let given = self.request.inputs.iter().map(|(name, _)| name.as_str());
        let given: Vec<&str> = given.collect();
        let missing = required.clone().map(|input| input.config.name.as_str());
        let missing: Vec<&str> = missing.filter(|name| !self.gives(name)).collect();
        let least = required.count();
        let mut text = if least == expected {
            format!("expected {expected} inputs")
        } else {
            format!("expected number of inputs between {least} and {expected}")
        };
        text += &format!(" but got {got} inputs for model '{}'.", self.model());
        text += &format!(" Got input(s) {}", quoted(&given));
        if missing.is_empty() {
            text += ".";
        } else {
            text += &format!(
                ", but missing required input(s) {}. Please provide all required input(s).",
                quoted(&missing)
            );
        }
        Err(self.error(text))
    }

    /// Whether the request has an input of this name.
    fn gives(&self, input: &str) -> bool {
        self.request.inputs.iter().any(|(name, _)| name == input)
    }

    /// The value of an input that the request omits.
    fn omitted(&self, input: &InterfaceTensor, batch_size: usize) -> Result<Tensor, RuntimeError> {
        match &input.when_omitted {
            Some(OmittedInput::Default(value)) => Ok(value.clone()),
            Some(OmittedInput::Zeros) => zeros(&input.config, batch_size)
                .map_err(|error| self.error(format!("input '{}': {error}", input.name))),
            // `count` has refused this already.
            None => Err(self.error(format!("missing required input '{}'", input.name))),
        }
    }

    fn index(&self, name: &str) -> Result<usize, RuntimeError> {
        let found = self
            .interface
            .inputs
            .iter()
            .position(|input| input.config.name == name);
        // Without the request's id, as on Triton.
        found.ok_or_else(|| {
            RuntimeError::invalid(format!(
                "unexpected inference input '{name}' for model '{}'",
                self.model()
            ))
        })
    }

    fn datatype(&self, config: &TensorConfig, tensor: &Tensor) -> Result<(), RuntimeError> {
        if tensor.datatype() == config.datatype {
            return Ok(());
        }
        Err(self.error(format!(
            "inference input '{}' data-type is '{}', but model '{}' expects '{}'",
            config.name,
            tensor.datatype(),
            self.model(),
            config.datatype
        )))
    }

    /// Checks the input's batch size against the model's limit and the other inputs.
    fn batch(
        &self,
        config: &TensorConfig,
        tensor: &Tensor,
        batch_size: &mut Option<usize>,
    ) -> Result<(), RuntimeError> {
        let max = self.interface.max_batch_size;
        if max == 0 {
            return Ok(());
        }
        let Some(&size) = tensor.shape().dims().first() else {
            return Err(self.unexpected_shape(config, tensor));
        };
        if *batch_size.get_or_insert(size) != size {
            return Err(self.error(format!(
                "input '{}' batch size does not match other inputs for '{}'",
                config.name,
                self.model()
            )));
        }
        if size > max {
            return Err(self.error(format!(
                "inference request batch-size must be <= {max} for '{}'",
                self.model()
            )));
        }
        if size == 0 {
            return Err(self.unexpected_shape(config, tensor));
        }
        Ok(())
    }

    /// Checks the shape, and gives the tensor the shape that the model sees.
    fn shape(&self, config: &TensorConfig, tensor: &Tensor) -> Result<Tensor, RuntimeError> {
        let (batch, inner) = tensor
            .shape()
            .dims()
            .split_at(usize::from(config.batched).min(tensor.shape().rank()));
        if !config.dims.accepts(inner) {
            return Err(self.unexpected_shape(config, tensor));
        }
        let Some(reshape) = &config.reshape else {
            return Ok(tensor.clone());
        };
        reshaped(&config.dims, reshape, batch, inner)
            .and_then(|shape| tensor.clone().reshape(shape).ok())
            .ok_or_else(|| self.unexpected_shape(config, tensor))
    }

    fn unexpected_shape(&self, config: &TensorConfig, tensor: &Tensor) -> RuntimeError {
        let note = if config.batched { BATCH_NOTE } else { "" };
        self.error(format!(
            "unexpected shape for input '{}' for model '{}'. Expected {}, got {}. {note}",
            config.name,
            self.model(),
            config.client_dims(),
            tensor.shape()
        ))
    }

    fn outputs(&self) -> Result<SmallVec<[usize; 4]>, RuntimeError> {
        if self.request.outputs.is_empty() {
            return Ok((0..self.interface.outputs.len()).collect());
        }
        let mut indices = SmallVec::new();
        for name in &self.request.outputs {
            let index = self
                .interface
                .outputs
                .iter()
                .position(|input| input.config.name == *name)
                .ok_or_else(|| {
                    RuntimeError::invalid(format!(
                        "unexpected inference output '{name}' for model '{}'",
                        self.model()
                    ))
                })?;
            if !indices.contains(&index) {
                indices.push(index);
            }
        }
        Ok(indices)
    }
}

/// Zeros for a whole request; variable dimensions are 1.
fn zeros(config: &TensorConfig, batch_size: usize) -> Result<Tensor, String> {
    let inner = config.model_dims().as_slice().iter();
    let inner = inner.map(|dim| usize::try_from(*dim).unwrap_or(1));
    let batch = config.batched.then_some(batch_size);
    let dims: SmallVec<[usize; 6]> = batch.into_iter().chain(inner).collect();
    let shape = Shape::new(&dims).map_err(|error| error.to_string())?;
    Ok(Tensor::zeros(config.datatype, shape))
}

/// The shape `[batch.., to..]`, where the variable entries of `to` take, in order, the values of `inner` at the
/// variable entries of `from`. `None` if `to` has more variable entries, or the result is too large.
pub(crate) fn reshaped(from: &Dims, to: &Dims, batch: &[usize], inner: &[usize]) -> Option<Shape> {
    let mut variable = from
        .as_slice()
        .iter()
        .zip(inner)
        .filter(|(dim, _)| **dim == -1)
        .map(|(_, size)| *size);
    let mut dims: SmallVec<[usize; 6]> = batch.into();
    for &dim in to.as_slice() {
        dims.push(if dim == -1 {
            variable.next()?
        } else {
            usize::try_from(dim).ok()?
        });
    }
    Shape::new(&dims).ok()
}

/// `['a','b']`, as Triton lists names.
fn quoted(names: &[&str]) -> String {
    let inner: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    format!("[{}]", inner.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(dims: &[i64]) -> Dims {
        Dims::new(dims).expect("dims")
    }

    fn shape(dims: &[usize]) -> Option<Shape> {
        Some(Shape::new(dims).expect("shape"))
    }

    #[test]
    fn variable_dims_keep_their_order_in_a_reshape() {
        assert_eq!(reshaped(&dims(&[1]), &dims(&[]), &[4], &[1]), shape(&[4]));
        assert_eq!(
            reshaped(&dims(&[-1, 6]), &dims(&[-1, 2, 3]), &[], &[5, 6]),
            shape(&[5, 2, 3])
        );
        assert_eq!(reshaped(&dims(&[2]), &dims(&[-1]), &[], &[2]), None);
    }
}
