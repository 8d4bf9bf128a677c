//! Tenants: who may use a store, and where its socket lies.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

use rustix::process::geteuid;

/// The owner of a store: the general one of the node, or a dedicated one with a name.
///
/// A name has 1 to 64 characters of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Tenant(Option<String>);

/// A text that cannot name a tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid tenant `{0}`, expected 1 to {MAX_NAME_BYTES} characters of a-z, A-Z, 0-9, `.`, `_` and `-`"
)]
pub struct InvalidTenant(pub String);

/// The default directory of this user's daemon: `$XDG_RUNTIME_DIR/skep`, or `/tmp/skep-<user id>`.
#[must_use]
pub fn default_directory() -> PathBuf {
    match env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        Some(path) => Path::new(&path).join("skep"),
        None => PathBuf::from(format!("/tmp/skep-{}", geteuid().as_raw())),
    }
}

const MAX_NAME_BYTES: usize = 64;

/// The general store's socket.
const GENERAL_SOCKET: &str = "store.sock";

/// Precedes a dedicated store's name, so that no name collides with the general store.
const DEDICATED_PREFIX: &str = "tenant-";
const SOCKET_SUFFIX: &str = ".sock";

impl Tenant {
    /// The general store of the node.
    pub const GENERAL: Self = Self(None);

    /// The tenant of this name.
    ///
    /// # Errors
    /// [`InvalidTenant`] for any other text.
    pub fn named(name: &str) -> Result<Self, InvalidTenant> {
        let fine = (1..=MAX_NAME_BYTES).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if fine {
            Ok(Self(Some(name.to_owned())))
        } else {
            Err(InvalidTenant(
                name.chars().take(2 * MAX_NAME_BYTES).collect(),
            ))
        }
    }

    /// The name; `None` for the general store.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The path of the tenant's socket: `store.sock` or `tenant-<name>.sock` in the daemon's directory.
    #[must_use]
    pub fn socket(&self, directory: &Path) -> PathBuf {
        directory.join(match self.name() {
            None => GENERAL_SOCKET.to_owned(),
            Some(name) => format!("{DEDICATED_PREFIX}{name}{SOCKET_SUFFIX}"),
        })
    }

    /// The tenant whose socket has this file name, if it is one.
    pub(crate) fn of_socket(file_name: &str) -> Option<Self> {
        if file_name == GENERAL_SOCKET {
            return Some(Self::GENERAL);
        }
        let name = file_name.strip_prefix(DEDICATED_PREFIX)?;
        Self::named(name.strip_suffix(SOCKET_SUFFIX)?).ok()
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or("general"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_in_a_path() {
        for name in ["a", "team-1", "A.b_c", "..", "store", &"x".repeat(64)] {
            assert!(Tenant::named(name).is_ok(), "{name}");
        }
        for name in ["", "a/b", "ä", "a b", "a\0", &"x".repeat(65)] {
            assert!(Tenant::named(name).is_err(), "{name}");
        }
    }

    #[test]
    fn each_tenant_has_a_socket_of_its_own() {
        let directory = Path::new("/run/skep");
        let store = Tenant::named("store").expect("a name");
        assert_eq!(
            Tenant::GENERAL.socket(directory),
            Path::new("/run/skep/store.sock")
        );
        assert_eq!(
            store.socket(directory),
            Path::new("/run/skep/tenant-store.sock")
        );
        assert_eq!(Tenant::of_socket("store.sock"), Some(Tenant::GENERAL));
        assert_eq!(Tenant::of_socket("tenant-store.sock"), Some(store));
        assert_eq!(Tenant::of_socket("tenant-.sock"), None);
        assert_eq!(Tenant::of_socket("other.sock"), None);
    }
}
