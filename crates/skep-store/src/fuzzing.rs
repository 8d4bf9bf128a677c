//! What the fuzz target in `fuzz/` runs of this crate's private decoder. **Not for use elsewhere**: it is here only in
//! tests and with the feature `fuzzing`.

#![allow(
    clippy::missing_panics_doc,
    reason = "panics are what this function is for"
)]

use crate::wire::{StoreReply, StoreRequest};

/// Messages of clients and daemons. There is one way to write each: what is read is written as it came.
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

    /// Feeds what is worth keeping to the target again.
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
