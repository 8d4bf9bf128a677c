//! Inputs and outputs: what is read, and what Triton's rules refuse.

use super::{read_inputs, read_outputs};
use crate::parse_pbtxt;

fn read(text: &str) -> Result<String, String> {
    let config = parse_pbtxt(format!("name: 'm' {text}").as_bytes(), "c").expect("parses");
    let shown = read_inputs(&config).and_then(|mut all| {
        all.extend(read_outputs(&config)?);
        Ok(all
            .iter()
            .map(|t| {
                format!(
                    "{} {} {} {}",
                    t.name,
                    t.datatype,
                    t.client_dims(),
                    t.full_dims()
                )
            })
            .collect())
    });
    shown
        .map(|lines: Vec<String>| lines.join("; "))
        .map_err(|error| error.to_string())
}

#[test]
fn tensors_are_read() {
    // As many elements as can be addressed.
    let most = "input { name: 'x' data_type: 1 dims: [-1, 576460752303423487, 1] }";
    assert_eq!(
        read(most),
        Ok("x BOOL [-1,576460752303423487,1] [-1,576460752303423487,1]".to_owned())
    );
    assert_eq!(
        read(
            "max_batch_size: 8 input { name: 'x' data_type: TYPE_STRING dims: [1] reshape {} } output { name: 'y' data_type: TYPE_BF16 dims: [-1, 4] }"
        ),
        Ok("x BYTES [-1,1] [-1]; y BF16 [-1,-1,4] [-1,-1,4]".to_owned())
    );
    assert_eq!(
        read(
            "input { name: 'x' data_type: TYPE_FP32 dims: [2,4,-1,6] reshape { shape: [8,-1,1,6] } }"
        ),
        Ok("x FP32 [2,4,-1,6] [8,-1,1,6]".to_owned())
    );
    assert_eq!(
        read("input { name: 'x' data_type: TYPE_FP32 format: FORMAT_NHWC dims: [2,4,3] }"),
        Ok("x FP32 [2,4,3] [2,4,3]".to_owned())
    );
}

#[test]
fn refusals_use_tritons_words() {
    let variable = "must be integer >= 1, or -1 to indicate a variable-size dimension for m";
    for (text, expected) in [
        ("input {}", "model input must specify 'name' for m".to_owned()),
        ("output { name: 'y' }", "model output 'y' must specify 'data_type' for m".to_owned()),
        ("input { name: 'x' data_type: TYPE_FP32 }", "model input 'x' must specify 'dims' for m".to_owned()),
        ("input { name: 'x' data_type: 1 dims: 0 }", format!("model input 'x' dimension {variable}")),
        ("input { name: 'x' data_type: 1 dims: -2 }", format!("model input 'x' dimension {variable}")),
        (
            "input { name: 'x' data_type: 1 dims: 1 reshape { shape: 0 } }",
            format!("model input 'x' reshape dimensions {variable}"),
        ),
        (
            "input { name: 'x' data_type: 1 dims: 1 reshape {} }",
            "model input 'x' cannot have empty reshape for non-batching model as scalar tensors are not supported for m".to_owned(),
        ),
        (
            "input { name: 'x' data_type: 1 dims: [2,3] reshape { shape: [5] } }",
            "model input 'x' has different size for dims and reshape for m".to_owned(),
        ),
        (
            "input { name: 'x' data_type: 1 dims: [2,3] reshape { shape: [-1] } }",
            "model input 'x' has different size for dims and reshape for m".to_owned(),
        ),
        (
            "max_batch_size: 1 input { name: 'x' data_type: 1 dims: [2] reshape { } }",
            "model input 'x' has different size for dims and reshape for m".to_owned(),
        ),
        (
            "input { name: 'x' data_type: 1 dims: [2,-1,3] reshape { shape: [3,-1,2] } }",
            "model input 'x' has different size for dims and reshape for m".to_owned(),
        ),
        (
            "output { name: 'x' data_type: 1 dims: [-1,-1] reshape { shape: [-1,1,-1,-1] } }",
            "model output 'x' has different number of variable-size dimensions for dims and reshape for m".to_owned(),
        ),
        (
            "input { name: 'x' data_type: 1 dims: [-1, 576460752303423488] }",
            "model input 'x' dims [-1, 576460752303423488] has too many elements for m".to_owned(),
        ),
        (
            "input { name: 'x' data_type: 1 dims: [4611686018427387904, 4] }",
            "model input 'x' dims [4611686018427387904, 4] has too many elements for m".to_owned(),
        ),
        (
            "input { name: 'x' data_type: 1 dims: [3, 2] format: FORMAT_NCHW }",
            "model input NHWC/NCHW require 3 dims for m".to_owned(),
        ),
        (
            "input [ { name: 'x' data_type: 1 dims: 1 }, { name: 'x' data_type: 1 dims: 1 } ]",
            "model input 'x' is listed twice for m".to_owned(),
        ),
        (
            "output { name: 'y' data_type: 1 dims: 1 label_filename: '../l' }",
            "model output 'y' label_filename must be a relative path without '..' for m".to_owned(),
        ),
    ] {
        assert_eq!(read(text), Err(expected), "{text}");
    }
}
