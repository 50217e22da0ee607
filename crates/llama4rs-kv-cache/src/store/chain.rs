//! Names of texts: one hash for every page boundary.
//!
//! ```text
//! hash[0]     = derive_key("llama4rs kv page chain 1", fingerprint)
//! hash[n + 1] = keyed_hash(key = hash[n], the 64 token keys of page n, little-endian)
//! ```
//!
//! A hash stands for every token before its boundary, and for the model. It does
//! not depend on how the text was cut into segments.

use llama4rs_tensor::KvDtype;

use super::format::VERSION;
use crate::{TokenKey, PAGE_TOKENS};

/// What a store's pages were computed by: model, formats, arithmetic. Pages with
/// different fingerprints never meet.
pub type Fingerprint = [u8; 32];

/// The fingerprint of pages that weights with the digest `weights` compute with some
/// `numerics`, a name that changes when any bit of a result does.
pub fn fingerprint(weights: &[u8; 32], dtype: KvDtype, numerics: &str) -> Fingerprint {
    let mut hasher = blake3::Hasher::new_derive_key("llama4rs kv fingerprint 1");
    hasher.update(weights);
    for field in [dtype.name(), numerics, &PAGE_TOKENS.to_string(), &VERSION.to_string()] {
        hasher.update(&(field.len() as u64).to_le_bytes()).update(field.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

const CONTEXT: &str = "llama4rs kv page chain 1";

/// The hash of a text up to a page boundary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageHash([u8; 32]);

impl PageHash {
    /// The beginning of every text of one fingerprint.
    pub fn root(fingerprint: &Fingerprint) -> Self {
        Self(blake3::derive_key(CONTEXT, fingerprint))
    }

    /// The next boundary, after the page with these token keys.
    pub fn after(&self, page: &[TokenKey]) -> Self {
        debug_assert_eq!(page.len(), PAGE_TOKENS, "a hash covers whole pages");
        let mut bytes = [0; PAGE_TOKENS * 8];
        for (key, bytes) in page.iter().zip(bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&key.to_le_bytes());
        }
        Self(*blake3::keyed_hash(&self.0, &bytes).as_bytes())
    }

    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The part that file names show.
    pub(super) fn short(&self) -> ShortHash {
        let (short, _) = self.0.split_at(16);
        ShortHash(u128::from_be_bytes(short.try_into().expect("sixteen bytes")))
    }
}

impl std::fmt::Debug for PageHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageHash({})", self.short())
    }
}

/// The first 128 bits of a [`PageHash`]; 32 hexadecimal digits in a file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ShortHash(u128);

impl ShortHash {
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (text.len() == 32 && lower).then(|| u128::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl std::fmt::Display for ShortHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A text as the store sees it: whole pages of token keys and the hash at every
/// page boundary, the beginning included.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub(super) chain: &'a [PageHash],
    pub(super) keys: &'a [TokenKey],
}

impl<'a> Text<'a> {
    /// The whole pages of `keys`, with the hashes of their boundaries.
    ///
    /// # Panics
    /// When there are fewer token keys than `chain` has boundaries for.
    pub fn new(chain: &'a [PageHash], keys: &'a [TokenKey]) -> Self {
        let pages = chain.len().saturating_sub(1);
        Self { chain, keys: &keys[..pages * PAGE_TOKENS] }
    }

    /// Whole pages.
    pub fn pages(&self) -> usize {
        self.keys.len() / PAGE_TOKENS
    }

    /// The text up to a page, or the beginning of it.
    pub fn hash(&self, page: usize) -> PageHash {
        self.chain[page]
    }

    /// The first `pages` pages of it.
    pub fn first(&self, pages: usize) -> Self {
        Self::new(&self.chain[..=pages], self.keys)
    }

    /// The token keys of some pages.
    pub fn page_keys(&self, pages: std::ops::Range<usize>) -> &'a [TokenKey] {
        &self.keys[pages.start * PAGE_TOKENS..pages.end * PAGE_TOKENS]
    }
}

/// Adds to `chain` the boundaries of all whole pages of `keys` that it lacks.
pub fn extend_chain(chain: &mut Vec<PageHash>, root: PageHash, keys: &[TokenKey]) {
    if chain.is_empty() {
        chain.push(root);
    }
    let known = (chain.len() - 1) * PAGE_TOKENS;
    let mut last = chain[chain.len() - 1];
    for page in keys.get(known..).unwrap_or_default().chunks_exact(PAGE_TOKENS) {
        last = last.after(page);
        chain.push(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(keys: &[TokenKey]) -> Vec<PageHash> {
        let mut chain = Vec::new();
        extend_chain(&mut chain, PageHash::root(&[7; 32]), keys);
        chain
    }

    #[test]
    fn a_chain_grows_as_its_text_does() {
        let keys: Vec<TokenKey> = (0..1000).collect();
        let whole = chain(&keys);
        assert_eq!(whole.len(), 1 + 1000 / PAGE_TOKENS);
        let mut grown = chain(&keys[..130]);
        extend_chain(&mut grown, PageHash::root(&[0; 32]), &keys);
        assert_eq!(grown, whole);
        let mut other = keys.clone();
        other[64] ^= 1 << 63;
        assert_eq!(chain(&other)[..2], whole[..2]);
        assert_ne!(chain(&other)[2..], whole[2..]);
    }

    #[test]
    fn a_fingerprint_depends_on_everything() {
        let base = fingerprint(&[1; 32], KvDtype::Bf16, "cpu 1");
        assert_eq!(fingerprint(&[1; 32], KvDtype::Bf16, "cpu 1"), base);
        assert_ne!(fingerprint(&[2; 32], KvDtype::Bf16, "cpu 1"), base);
        assert_ne!(fingerprint(&[1; 32], KvDtype::F32, "cpu 1"), base);
        assert_ne!(fingerprint(&[1; 32], KvDtype::Bf16, "cpu 2"), base);
    }

    /// The hash of a text may never change, or every store is lost.
    #[test]
    fn hashes_are_what_they_were() {
        let keys: Vec<TokenKey> = (0..64).collect();
        let hash = PageHash::root(&[1; 32]).after(&keys);
        assert_eq!(hash.short().to_string(), "c1b84446ca500f35ebcb342019a910ba");
    }

    #[test]
    fn short_hashes_are_read_as_they_are_written() {
        let short = PageHash::root(&[3; 32]).short();
        assert_eq!(ShortHash::parse(&short.to_string()), Some(short));
        for bad in ["", "+0000000000000000000000000000000", &short.to_string()[1..]] {
            assert_eq!(ShortHash::parse(bad), None);
        }
        assert_eq!(ShortHash::parse(&"AB".repeat(16)), None, "one spelling only");
    }
}
