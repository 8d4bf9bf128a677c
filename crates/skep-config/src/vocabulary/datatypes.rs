//! Datatypes by the numbers of the wire's enum.

use skep_proto::inference;
use skep_types::DataType;

/// The datatype with this number; `None` for `TYPE_INVALID` and unknown numbers.
pub(crate) fn datatype(number: i32) -> Option<DataType> {
    let name = inference::DataType::try_from(number).ok()?.as_str_name();
    DataType::ALL
        .into_iter()
        .find(|datatype| datatype.config_name() == name)
}

/// The number of a datatype.
pub(crate) fn datatype_number(datatype: DataType) -> i32 {
    let number = inference::DataType::from_str_name(datatype.config_name());
    number.unwrap_or(inference::DataType::TypeInvalid).into()
}
