//! Remembers which tensors were verified, by the size and times of their files.
//!
//! Hashing a model's weights takes longer than loading it. A file whose size and times have not changed since it was
//! verified is taken to be intact. The store verifies weights again when they are brought there.
//!
//! ```text
//! <digest> <stamp>
//! ```

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::Path,
};

use skep_host::read_text;
use skep_store::Digest;

use crate::{manifest::hex, stamps::FileFingerprint};

/// The name of the record in a form's directory.
pub(crate) const NAME: &str = "seen";

/// A tensor's line takes some 200 bytes.
const MAX_BYTES: u64 = 64 << 20;

/// The stamps of verified files, by digest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SeenTensors(BTreeMap<Digest, String>);

impl SeenTensors {
    /// Reads a record; an unreadable one is empty.
    pub(crate) fn read(path: &Path) -> Self {
        let text = read_text(path, MAX_BYTES).unwrap_or_default();
        let lines = text.lines().filter_map(|line| {
            let (digest, stamp) = line.split_once(' ')?;
            Some((Digest(hex(digest)?), stamp.to_owned()))
        });
        Self(lines.collect())
    }

    pub(crate) fn holds(&self, digest: &Digest, stamp: &FileFingerprint) -> bool {
        self.0.get(digest).is_some_and(|seen| *seen == stamp.text())
    }

    pub(crate) fn add(&mut self, digest: Digest, stamp: &FileFingerprint) {
        self.0.insert(digest, stamp.text());
    }

    pub(crate) fn remove(&mut self, digest: &Digest) {
        self.0.remove(digest);
    }

    /// Writes it atomically, through a file in `tmp`.
    pub(crate) fn write(&self, path: &Path, tmp: &Path) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(tmp)?;
        for (digest, stamp) in &self.0 {
            writeln!(file, "{digest} {stamp}")?;
        }
        file.persist(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use skep_store::{Description, Wanted};
    use skep_types::DataType;

    use std::fs;

    use super::*;
    use crate::{Begun, Cache, ErrorKind, Form, FormKey, Found, Role};

    fn made(cache: &Cache) -> Form {
        let begun = cache.begin(&FormKey::of(&[b"key"]), crate::Content::default());
        let Begun::Claimed(claim) = begun.expect("begun") else {
            panic!("it is there");
        };
        let mut making = claim.making();
        for value in [1_u8, 2] {
            let description = Description {
                datatype: DataType::Uint8,
                dims: vec![1000],
                layout: "plain".into(),
            };
            let added = making.add(Role::Weight, "w", description, &[value; 1000]);
            added.expect("written");
        }
        making.finish(b"graph", BTreeMap::new()).expect("finished");
        match claim.publish().expect("published") {
            Found::Form(form) => form,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_verified_file_is_trusted_until_it_changes() {
        let root = tempfile::tempdir().expect("a directory");
        let open = || Cache::open(root.path(), 1 << 20).expect("a cache");
        let form = made(&open());
        let path = form.graph_path().with_file_name(NAME);
        let now = SystemTime::now();
        let tensors: Vec<&Wanted> = form.parts().iter().map(|part| &part.tensor).collect();

        form.map_seen_at(now, &tensors).expect("whole");
        assert!(!path.exists(), "changed a moment ago");
        let later = now + Duration::from_secs(60);
        form.map_seen_at(later, &tensors).expect("whole");
        let text = fs::read_to_string(&path).expect("remembered");
        assert_eq!(text.lines().count(), 2);
        for fewer in [&tensors[..1], &[]] {
            form.map_seen_at(later, fewer).expect("whole");
            let still = fs::read_to_string(&path).expect("remembered");
            assert_eq!(still, text, "with {} of them", fewer.len());
        }

        // Each file gets the other's bytes: that this is not noticed shows that the digest is not computed.
        let [one, two] = [0, 1].map(|index| form.tensor_path(tensors[index]));
        for (path, value) in [(&one, 2), (&two, 1)] {
            fs::write(path, [value; 1000]).expect("written");
        }
        let error = form.map_seen_at(later, &tensors).expect_err("changed");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(
            error.to_string().contains(&one.display().to_string()),
            "{error}"
        );

        let stamp = |path: &Path| {
            FileFingerprint::of(&fs::File::open(path).expect("opened")).expect("a stamp")
        };
        let mut lie = SeenTensors::default();
        lie.add(tensors[0].digest, &stamp(&one));
        lie.add(tensors[1].digest, &stamp(&two));
        lie.write(&path, root.path()).expect("written");
        let believed = form.map_seen_at(later, &tensors).expect("believed");
        assert_eq!(believed[0].bytes(), &[2; 1000][..]);
        form.distrust();
        let looked_at = form.map_seen_at(later, &tensors);
        assert_eq!(looked_at.expect_err("changed").kind(), ErrorKind::Damaged);
        assert!(
            form.map(tensors[0]).is_err(),
            "mapping with verification notices"
        );
        assert!(form.verify().is_err());
        assert!(!one.exists() && !two.exists(), "removed");
    }

    #[test]
    fn an_unreadable_record_is_empty() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("seen");
        assert_eq!(SeenTensors::read(&path), SeenTensors::default());
        fs::write(&path, "nonsense\nabc def\n").expect("written");
        assert_eq!(SeenTensors::read(&path), SeenTensors::default());
    }
}
