//! The private parsers of this crate for the fuzz targets in `fuzz/`: a function for each parser, which takes bytes and
//! returns nothing. **Not for use elsewhere**: it exists only in tests and with the feature `fuzzing`, and changes with
//! the targets.
//!
//! A function fails by panicking. Each also checks that tensors agree with their shapes, and that a decoded request
//! reads back unchanged once written. Public parsers have their functions in `fuzz/src`.

#![allow(
    clippy::missing_panics_doc,
    reason = "panics are what these functions are for"
)]

pub(crate) mod checks;

pub use crate::{
    grpc::fuzzing::{grpc_infer, grpc_messages},
    http::fuzzing::{http_compression, http_control, http_generate, http_infer},
};

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Feeds the corpus that fuzzing found to a target again.
    fn feed(name: &str, target: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        let files = fs::read_dir(corpus.join(name)).expect("a committed corpus");
        let mut fed = 0;
        for file in files {
            let path = file.expect("a file").path();
            println!("{}", path.display());
            target(&fs::read(&path).expect("readable"));
            fed += 1;
        }
        assert!(fed > 0, "the corpus of {name} is empty");
    }

    #[test]
    fn corpora_hold() {
        feed("grpc_infer", super::grpc_infer);
        feed("grpc_messages", super::grpc_messages);
        feed("http_compression", super::http_compression);
        feed("http_control", super::http_control);
        feed("http_generate", super::http_generate);
        feed("http_infer", super::http_infer);
    }
}
