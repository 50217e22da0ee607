//! Names of files in the directory. They say where a segment belongs, so that
//! listing the directory is enough to know what is there; nothing else is believed.

use super::chain::ShortHash;
use crate::PoolKind;

const SEGMENT_END: &str = ".kv";
const TEMPORARY_START: &str = ".tmp-";

/// `<pool>-<first page>-<pages>-<hash after its first page>-<hash at its end>.kv`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SegmentName {
    pub pool: PoolKind,
    /// Pages of the text before this segment.
    pub start: u64,
    /// Pages in it.
    pub pages: u32,
    /// The text up to the end of its first page: by this it is found.
    pub head: ShortHash,
    /// The text up to its end.
    pub end: ShortHash,
}

impl SegmentName {
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(SEGMENT_END)?.split('-');
        let mut part = || parts.next();
        let word = part()?;
        let pool =
            [PoolKind::Global, PoolKind::Chunked].into_iter().find(|p| p.as_str() == word)?;
        let this = Self {
            pool,
            start: part()?.parse().ok()?,
            pages: part()?.parse().ok()?,
            head: ShortHash::parse(part()?)?,
            end: ShortHash::parse(part()?)?,
        };
        // One spelling only: the name and the file are the same thing.
        (this.to_string() == name).then_some(this)
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pool, start, pages, head, end } = self;
        write!(f, "{}-{start}-{pages}-{head}-{end}{SEGMENT_END}", pool.as_str())
    }
}

/// The name of a file in the making.
pub(super) fn temporary(process: u32, number: u64) -> String {
    format!("{TEMPORARY_START}{process}-{number}{SEGMENT_END}")
}

/// Whether a file of this name is in the making, or was when its writer died.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY_START) && name.ends_with(SEGMENT_END)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PageHash;

    #[test]
    fn names_are_read_as_they_are_written() {
        let hash = PageHash::root(&[1; 32]).short();
        let name = SegmentName {
            pool: PoolKind::Chunked,
            start: 1 << 40,
            pages: 128,
            head: hash,
            end: hash,
        };
        let text = name.to_string();
        assert_eq!(SegmentName::parse(&text), Some(name));
        for bad in [
            "",
            ".kv",
            &text[1..],
            &text.replace("-128-", "-0128-"),
            &text.replace("-128-", "-4294967296-"),
            &text.replace(".kv", "-x.kv"),
            &temporary(1, 2),
        ] {
            assert_eq!(SegmentName::parse(bad), None, "{bad}");
        }
        assert!(is_temporary(&temporary(1, 2)));
        assert!(!is_temporary(&text));
    }
}
