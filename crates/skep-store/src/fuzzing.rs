//! The private decoder, for the fuzz target in `fuzz/`. **Not for use elsewhere**: it exists only in tests and with the
//! feature `fuzzing`.

#![allow(
    clippy::missing_panics_doc,
    reason = "panics are what this function is for"
)]

use crate::wire::{StoreReply, StoreRequest};

/// Decodes a message of a client or a daemon. Each message has one encoding: what decodes encodes to the same bytes.
pub fn store_messages(data: &[u8]) {
    if let Ok(request) = StoreRequest::decode(data) {
        assert_eq!(request.encode(), data);
    }
    if let Ok(reply) = StoreReply::decode(data) {
        assert_eq!(reply.encode(), data);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Runs the target on the committed corpus.
    #[test]
    fn the_corpus_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/store_messages");
        let mut fed = 0;
        for file in fs::read_dir(corpus).expect("a committed corpus") {
            let path = file.expect("a file").path();
            println!("{}", path.display());
            super::store_messages(&fs::read(&path).expect("readable"));
            fed += 1;
        }
        assert!(fed > 0, "the corpus is empty");
    }
}
