//! Compiled kernels on disk: `<cache>/llama4rs/cuda/<key>`.
//!
//! The key is a hash of everything that the code depends on. A file is the code
//! and a hash of it; one that does not fit is not there. Nothing here can fail:
//! without a cache kernels are compiled again.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The environment variable that names another folder; empty: keep nothing.
const FOLDER: &str = "LLAMA4RS_CUDA_CACHE";
const HASH_BYTES: usize = blake3::OUT_LEN;

/// A folder of compiled kernels, or none.
pub(crate) struct Binaries {
    folder: Option<PathBuf>,
}

impl Binaries {
    /// The user's folder.
    pub fn of_user() -> Self {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        let folder = match std::env::var_os(FOLDER) {
            Some(folder) if folder.is_empty() => None,
            Some(folder) => Some(PathBuf::from(folder)),
            None => cache.map(|cache| cache.join("llama4rs").join("cuda")),
        };
        Self { folder: folder.filter(|folder| folder.is_absolute()) }
    }

    /// The name of code that depends on `parts`.
    pub fn key(parts: &[&str]) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The code that was kept under `key`.
    pub fn load(&self, key: &str) -> Option<Vec<u8>> {
        let mut bytes = std::fs::read(self.folder.as_deref()?.join(key)).ok()?;
        let code = bytes.len().checked_sub(HASH_BYTES)?;
        let intact = blake3::hash(&bytes[..code]).as_bytes() == &bytes[code..];
        bytes.truncate(code);
        intact.then_some(bytes)
    }

    /// Keeps `code` under `key`; whoever reads sees all of it or nothing.
    pub fn store(&self, key: &str, code: &[u8]) {
        // A cache that cannot be written is no cache.
        let _ = self.folder.as_deref().map(|folder| write(folder, key, code));
    }
}

fn write(folder: &Path, key: &str, code: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(code)?;
    file.write_all(blake3::hash(code).as_bytes())?;
    file.persist(folder.join(key))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back_unless_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let binaries = Binaries { folder: Some(folder.path().join("deep/er")) };
        let key = Binaries::key(&["source", "options"]);
        assert_ne!(key, Binaries::key(&["sourc", "eoptions"]));
        assert_eq!(binaries.load(&key), None);
        binaries.store(&key, b"code");
        assert_eq!(binaries.load(&key).unwrap(), b"code");
        let path = folder.path().join("deep/er").join(&key);
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(binaries.load(&key), None, "byte {at}");
        }
        std::fs::write(&path, &bytes[..7]).unwrap();
        assert_eq!(binaries.load(&key), None);
    }

    #[test]
    fn no_folder_is_no_error() {
        let binaries = Binaries { folder: None };
        binaries.store("key", b"code");
        assert_eq!(binaries.load("key"), None);
    }
}
