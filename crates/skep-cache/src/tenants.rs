//! A part of the directory for each tenant, with the same layout.
//!
//! ```text
//! <directory>/v1/...                     general: models without a tenant
//!                secret                  random bytes, from which names of parts derive
//!                tenants/<part>/tenant   the tenant's name
//!                               v1/...   its forms
//! ```
//!
//! A process that runs a tenant's model can only open files of that tenant's part, but the kernel lets it ask whether
//! any path exists. So the name of a part cannot be guessed: it derives from the tenant's name and a secret that such a
//! process cannot read. The budget covers all parts together.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::{Cache, CacheError, LAYOUT, directory};

const SECRET: &str = "secret";
const SECRET_BYTES: usize = 32;
const TENANTS: &str = "tenants";
/// The file in a part that tells people its tenant.
const NAME: &str = "tenant";

impl Cache {
    /// A tenant's part of the directory, which is created if necessary. Names are those of
    /// [`Tenant`](skep_store::Tenant).
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn of_tenant(&self, name: &str) -> Result<Self, CacheError> {
        if let Some(part) = self.known_parts().get(name) {
            return Ok(part.clone());
        }
        let home = self.home();
        let shared = home.join(LAYOUT);
        let secret =
            secret(&shared).map_err(|e| CacheError::io("read", &shared.join(SECRET), e))?;
        let tenants = shared.join(TENANTS);
        let path = tenants.join(part_name(&secret, name));
        let part = Self::over(&path, home, self.budget_bytes(), None);
        directory::open_part(&[&tenants, &path], part.root())?;
        let label = path.join(NAME);
        if !label.exists() {
            // Only people read it.
            let _ = fs::write(label, format!("{name}\n"));
        }
        self.known_parts().insert(name.to_owned(), part.clone());
        Ok(part)
    }

    /// All parts of the directory: the general one first, the others in a fixed order.
    pub(crate) fn all_parts(&self) -> io::Result<Vec<Self>> {
        let home = self.home();
        let part = |path: &Path| Self::over(path, home, self.budget_bytes(), None);
        let mut paths: Vec<PathBuf> = match fs::read_dir(home.join(LAYOUT).join(TENANTS)) {
            Ok(entries) => entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<io::Result<_>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        paths.sort();
        let tenants = paths.iter().map(|path| part(path));
        // A part is incomplete if a process died while making it; it holds nothing then.
        let mut parts: Vec<Self> = tenants
            .filter(|part| directory::is_whole(part.root()))
            .collect();
        parts.insert(0, part(home));
        Ok(parts)
    }
}

fn part_name(secret: &[u8; SECRET_BYTES], tenant: &str) -> String {
    blake3::keyed_hash(secret, tenant.as_bytes()).to_string()
}

/// The directory's secret, created at the first use.
fn secret(directory: &Path) -> io::Result<[u8; SECRET_BYTES]> {
    let path = directory.join(SECRET);
    loop {
        match fs::read(&path) {
            Ok(bytes) => {
                let wrong = |_| {
                    let text = format!("it does not have {SECRET_BYTES} bytes");
                    io::Error::new(io::ErrorKind::InvalidData, text)
                };
                return <[u8; SECRET_BYTES]>::try_from(bytes).map_err(wrong);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut random = [0; SECRET_BYTES];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        // Its mode is 0600.
        let mut file = NamedTempFile::new_in(directory)?;
        file.write_all(&random)?;
        match file.persist_noclobber(&path) {
            Ok(_) => {}
            // Another process was faster, and its secret counts.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const BUDGET_BYTES: u64 = 1 << 20;

    #[test]
    fn a_part_is_found_again_and_its_name_derives_from_a_secret() {
        let [one, other] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let of = |root: &tempfile::TempDir, name| {
            let cache = Cache::open(root.path(), BUDGET_BYTES).expect("a cache");
            let part = cache.of_tenant(name).expect("a part");
            let again = cache.of_tenant(name).expect("a part");
            assert_eq!(again.directory(), part.directory());
            part
        };
        let part = of(&one, "team");
        assert_eq!(part.directory(), of(&one, "team").directory());
        assert_ne!(part.directory(), of(&one, "team-2").directory());
        assert_ne!(
            part.directory().file_name(),
            of(&other, "team").directory().file_name(),
            "it cannot be guessed"
        );
        let label = fs::read_to_string(part.directory().join(NAME)).expect("for people");
        assert_eq!(label, "team\n");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&one.path().join("v1").join(SECRET)), 0o600);
        assert_eq!(mode(&one.path().join("v1").join(TENANTS)), 0o700);
        assert_eq!(mode(part.directory()), 0o700);
    }

    #[test]
    fn a_part_that_others_may_change_is_refused() {
        let root = tempfile::tempdir().expect("a directory");
        let open = || Cache::open(root.path(), BUDGET_BYTES).expect("a cache");
        let path = open()
            .of_tenant("t")
            .expect("a part")
            .directory()
            .to_owned();
        for directory in [&path, &root.path().join("v1").join(TENANTS)] {
            let set = |mode| fs::set_permissions(directory, fs::Permissions::from_mode(mode));
            set(0o777).expect("set");
            let error = open().of_tenant("t").expect_err("unsafe");
            assert_eq!(error.kind(), crate::ErrorKind::Unsafe, "{error}");
            set(0o700).expect("set");
        }
        fs::write(root.path().join("v1").join(SECRET), "short").expect("written");
        assert!(open().of_tenant("t").is_err());
    }
}
