//! Compares the signature that a worker reports with the one in the model's file.
//!
//! A worker may run code of the model's author. The signature decides how the server checks requests and answers, so
//! the server trusts its own reading of the file.

use skep_types::{ModelSignature, TensorSpec};

/// Checks that both have the same tensors, in any order.
///
/// # Errors
/// A text that names the first difference.
pub(crate) fn check(expected: &ModelSignature, got: &ModelSignature) -> Result<(), String> {
    for (role, expected, got) in [
        ("input", &expected.inputs, &got.inputs),
        ("output", &expected.outputs, &got.outputs),
    ] {
        for spec in got {
            let name = &spec.name;
            let same_name = |list: &[TensorSpec]| {
                let named = list.iter().filter(|other| other.name == *name);
                named.count()
            };
            match expected.iter().find(|other| other.name == *name) {
                None => return Err(format!("{role} `{name}`, which its file does not have")),
                Some(_) if same_name(got) > 1 => return Err(format!("{role} `{name}` twice")),
                Some(other) if other != spec => {
                    let (got, expected) = (describe(spec), describe(other));
                    return Err(format!(
                        "{role} `{name}` as {got}, expected {expected} as its file has it"
                    ));
                }
                Some(_) => {}
            }
        }
        if let Some(missing) = expected
            .iter()
            .find(|spec| !got.iter().any(|other| other.name == spec.name))
        {
            return Err(format!("no {role} `{}`, which its file has", missing.name));
        }
    }
    Ok(())
}

/// `FP32 [-1,4]`.
fn describe(spec: &TensorSpec) -> String {
    let dims = match &spec.dims {
        None => "of any shape".to_owned(),
        Some(dims) => {
            let dims: Vec<String> = dims.as_slice().iter().map(ToString::to_string).collect();
            format!("[{}]", dims.join(","))
        }
    };
    format!("{} {dims}", spec.datatype.protocol_name())
}

#[cfg(test)]
mod tests {
    use skep_types::{DataType, Dims};

    use super::*;

    fn spec(name: &str, datatype: DataType, dims: Option<&[i64]>) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            datatype,
            dims: dims.map(|dims| Dims::new(dims).expect("dims")),
        }
    }

    fn signature(inputs: &[TensorSpec], outputs: &[TensorSpec]) -> ModelSignature {
        ModelSignature {
            inputs: inputs.to_vec(),
            outputs: outputs.to_vec(),
        }
    }

    #[test]
    fn differences_from_the_file_are_named() {
        let x = spec("x", DataType::Fp32, Some(&[-1, 4]));
        let n = spec("n", DataType::Int64, None);
        let y = spec("y", DataType::Bytes, Some(&[]));
        let file = signature(&[x.clone(), n.clone()], std::slice::from_ref(&y));
        let ordered = signature(&[n.clone(), x.clone()], std::slice::from_ref(&y));
        assert_eq!(check(&file, &file), Ok(()));
        assert_eq!(check(&file, &ordered), Ok(()), "in any order");

        let said = |inputs: &[TensorSpec], outputs: &[TensorSpec]| {
            check(&file, &signature(inputs, outputs)).expect_err("another model")
        };
        let outputs = std::slice::from_ref(&y);
        let narrower = spec("x", DataType::Fp32, Some(&[1, 4]));
        let other = spec("x", DataType::Int32, Some(&[-1, 4]));
        let ranked = spec("n", DataType::Int64, Some(&[2]));
        for (inputs, outputs, text) in [
            (
                &[narrower, n.clone()][..],
                outputs,
                "input `x` as FP32 [1,4], expected FP32 [-1,4] as its file has it",
            ),
            (
                &[other, n.clone()],
                outputs,
                "input `x` as INT32 [-1,4], expected FP32 [-1,4] as its file has it",
            ),
            (
                &[x.clone(), ranked],
                outputs,
                "input `n` as INT64 [2], expected INT64 of any shape as its file has it",
            ),
            (
                std::slice::from_ref(&x),
                outputs,
                "no input `n`, which its file has",
            ),
            (
                &[x.clone(), n.clone(), n.clone()],
                outputs,
                "input `n` twice",
            ),
            (
                &[x.clone(), n.clone()],
                &[],
                "no output `y`, which its file has",
            ),
            (
                &[x.clone(), n.clone()],
                &[y.clone(), x.clone()],
                "output `x`, which its file does not have",
            ),
        ] {
            assert_eq!(said(inputs, outputs), text);
        }
    }
}
