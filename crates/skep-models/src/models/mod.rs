//! The networks, one file each.

mod bert;
mod classifiers;
mod elementwise;
mod mobilenetv2;
mod resnet50;
mod text_recogniser;

use crate::{graph::GraphBuilder, kind::Kind, options::Options};

/// The graph of `kind`, whose sizes have been checked.
pub(crate) fn build(kind: &Kind, options: &Options) -> GraphBuilder {
    let batch = options.batch.dim();
    match kind {
        Kind::Mlp { layers, softmax } => classifiers::mlp(layers, *softmax, batch),
        Kind::Cnn { classes } => classifiers::cnn(*classes, batch),
        Kind::TextRecogniser => text_recogniser::build(batch),
        Kind::Resnet50 { classes } => resnet50::build(*classes, batch),
        Kind::Mobilenetv2 { classes } => mobilenetv2::build(*classes, batch),
        Kind::Bert(size) => bert::build(*size, batch),
        Kind::Identity { datatype, width } => elementwise::identity(*datatype, *width, batch),
        Kind::AddSub { datatype, width } => elementwise::add_sub(*datatype, *width, batch),
    }
}
