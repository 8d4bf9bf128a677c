//! Identity and add/sub, for every datatype.

use skep_types::DataType;

use crate::graph::{Dim, GraphBuilder, int};

/// `OUTPUT0` = `INPUT0`.
pub(super) fn identity(datatype: DataType, width: usize, batch: Dim) -> GraphBuilder {
    let mut b = GraphBuilder::new("identity");
    let dims = [batch, Dim::Fixed(int(width))];
    let x = b.input("INPUT0", datatype, &dims);
    let y = b.node("Identity", &[&x], &[]);
    b.output(&y, "OUTPUT0", datatype, &dims);
    b
}

/// `OUTPUT0` = `INPUT0 + INPUT1`, `OUTPUT1` = `INPUT0 - INPUT1`.
pub(super) fn add_sub(datatype: DataType, width: usize, batch: Dim) -> GraphBuilder {
    let mut b = GraphBuilder::new("addsub");
    let dims = [batch, Dim::Fixed(int(width))];
    let inputs = ["INPUT0", "INPUT1"].map(|name| b.input(name, datatype, &dims));
    let computed = computed_as(datatype);
    let [left, right] = inputs.map(|x| {
        if computed == datatype {
            x
        } else {
            b.cast(&x, computed)
        }
    });
    for (operator, name) in [("Add", "OUTPUT0"), ("Sub", "OUTPUT1")] {
        let mut y = b.node(operator, &[&left, &right], &[]);
        if computed != datatype {
            y = b.cast(&y, datatype);
        }
        b.output(&y, name, datatype, &dims);
    }
    b
}

/// The datatype in which the sum is computed: one that runtimes have kernels for, and wide enough that the result is
/// that of the datatype itself.
///
/// FP32 holds any sum of two FP16 or BF16 numbers closely enough that rounding it once more changes nothing (24 bits of
/// mantissa against 2 * 11 + 2). Small integers wrap when cast back, as their own addition would; so does UINT64
/// through INT64, in two's complement.
fn computed_as(datatype: DataType) -> DataType {
    match datatype {
        DataType::Int32 | DataType::Int64 | DataType::Fp32 | DataType::Fp64 => datatype,
        DataType::Fp16 | DataType::Bf16 => DataType::Fp32,
        DataType::Uint32 | DataType::Uint64 => DataType::Int64,
        DataType::Bool
        | DataType::Uint8
        | DataType::Uint16
        | DataType::Int8
        | DataType::Int16
        | DataType::Bytes => DataType::Int32,
    }
}
