//! Words about stored keys and values: pages, their forms, their layout.
//!
//! A page holds `page_tokens` tokens of *every* layer of its pool, in one of two
//! forms. An **exact** page is
//!
//! ```text
//! [layer][kv head][keys, values][token][head_dim]     f32, or bf16
//! ```
//!
//! A **sealed** page, which only pools of a quantised [`KvDtype`] have, is
//! `[layer][kv head]` of the following, with `T` the tokens of a page and `D` the
//! head's width, filled up with zeros to a multiple of 16:
//!
//! ```text
//! key centres    f16[D]        key steps      f16[D]         per channel over the page
//! key codes      int8: u8[T/16][D/4][16 tokens][4 channels]
//!                int4: u8[T/16][D/8][16 tokens][4]           byte j: channels j (low nibble), j + 4
//! value centres  f16[T]        value steps    f16[T]         per token over the head
//! value codes    int8: u8[D/16][T/4][16 channels][4 tokens]
//!                int4: u8[D/16][T/8][16 channels][4]         byte j: tokens j (low nibble), j + 4
//! ```
//!
//! and a number is `centre + step * (code - zero)`, `zero` being 128 (int8) or 8
//! (int4). So a 64-byte line of key codes feeds 16 tokens, a line of value codes
//! 16 channels, and both are multiplied by four broadcast bytes: integer dot
//! products without sums across lanes. All numbers are little-endian; heads and
//! codes start at multiples of 64 bytes.
//!
//! In an int4 pool the *values* of both forms are [rotated](KvDtype::rotates_values):
//! `v' = H v / sqrt(B)`, `H` the Hadamard matrix of order `B`, the largest power of two that
//! divides the width, applied to each `B` channels. That spreads outliers, and
//! as `H H = B`, the same rotation of the attention's result undoes it.

use std::ops::Range;

use crate::{Error, Result};

/// Element type of stored keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// Single precision: exact, for tests and small models.
    F32,
    /// The upper half of a single: the normal case.
    Bf16,
    /// 8 bits, about half of bf16: sealed pages, bf16 where a page is exact.
    Int8,
    /// 4 bits, about a quarter of bf16: sealed pages, bf16 where a page is exact.
    Int4,
}

impl KvDtype {
    /// All of them.
    pub const ALL: [KvDtype; 4] = [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Int4];

    /// What exact pages hold: `F32` or `Bf16`.
    pub fn exact(self) -> KvDtype {
        match self {
            KvDtype::F32 => KvDtype::F32,
            KvDtype::Bf16 | KvDtype::Int8 | KvDtype::Int4 => KvDtype::Bf16,
        }
    }

    /// Whether full pages are sealed.
    pub fn is_quantised(self) -> bool {
        self.code_bits().is_some()
    }

    /// Bytes of one element of an exact page.
    pub fn exact_bytes(self) -> usize {
        match self.exact() {
            KvDtype::F32 => 4,
            _ => 2,
        }
    }

    /// Bits of one code of a sealed page.
    pub fn code_bits(self) -> Option<usize> {
        match self {
            KvDtype::F32 | KvDtype::Bf16 => None,
            KvDtype::Int8 => Some(8),
            KvDtype::Int4 => Some(4),
        }
    }

    /// Whether values are stored rotated, in both forms of page.
    pub fn rotates_values(self) -> bool {
        self == KvDtype::Int4
    }

    /// The element type that users call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The name that users know.
    pub fn name(self) -> &'static str {
        match self {
            KvDtype::F32 => "f32",
            KvDtype::Bf16 => "bf16",
            KvDtype::Int8 => "int8",
            KvDtype::Int4 => "int4",
        }
    }
}

/// How a page is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageForm {
    /// As the keys and values were computed, rounded once.
    Exact,
    /// Quantised, when all tokens of the page were there.
    Sealed,
}

/// A page of a pool: its form, and its number among the pages of that form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(u32);

impl PageId {
    const SEALED: u32 = 1 << 31;

    /// Page `index` of a form.
    ///
    /// # Panics
    /// When `index` is 2^31 or more.
    pub fn new(form: PageForm, index: u32) -> Self {
        assert!(index < Self::SEALED, "2^31 pages in a pool");
        match form {
            PageForm::Exact => Self(index),
            PageForm::Sealed => Self(index | Self::SEALED),
        }
    }

    /// Exact page `index`.
    pub fn exact(index: u32) -> Self {
        Self::new(PageForm::Exact, index)
    }

    /// Sealed page `index`.
    pub fn sealed(index: u32) -> Self {
        Self::new(PageForm::Sealed, index)
    }

    /// The page's number among the pages of its form.
    pub fn index(self) -> usize {
        (self.0 & !Self::SEALED) as usize
    }

    /// How the page is stored.
    pub fn form(self) -> PageForm {
        if self.0 & Self::SEALED == 0 {
            PageForm::Exact
        } else {
            PageForm::Sealed
        }
    }
}

/// Where the keys and values of one token are written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// An exact page.
    pub page: PageId,
    /// Token within the page.
    pub offset: u32,
}

/// Consecutive query rows of one sequence that attend to the same pages.
///
/// Row `rows.start + i` sees the first `visible + i` tokens of `pages`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvSpan {
    /// Query rows of the step.
    pub rows: Range<usize>,
    /// Pages in the order of their tokens. Every row sees the sealed ones whole.
    pub pages: Vec<PageId>,
    /// Tokens that the first row sees, itself included.
    pub visible: usize,
}

/// Sizes of a pool of key/value pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvGeometry {
    /// Layers that share the pool.
    pub num_layers: usize,
    /// Key/value heads of a layer.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens of a page; a multiple of 32 in a quantised pool.
    pub page_tokens: usize,
    /// Element type.
    pub dtype: KvDtype,
}

/// Channels and tokens of a line of codes.
const LANES: usize = 16;
/// Tokens of a page with codes are a multiple of this, so that every section is whole lines.
const TOKEN_MULTIPLE: usize = 32;

impl KvGeometry {
    /// An error unless all sizes are above zero, fit in memory and suit the element type.
    pub fn check(&self) -> Result<()> {
        let Self { num_layers, num_kv_heads, head_dim, page_tokens, dtype } = *self;
        // An exact page of single precision is larger than any other.
        [num_layers, num_kv_heads, 2, page_tokens, head_dim.saturating_add(LANES), 8]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)
            .filter(|&bytes| bytes > 0 && head_dim > 0 && bytes <= isize::MAX as usize)
            .filter(|_| !dtype.is_quantised() || page_tokens.is_multiple_of(TOKEN_MULTIPLE))
            .map(|_| ())
            .ok_or_else(|| {
                Error::shape(
                    "kv pool",
                    format!(
                        "sizes above zero that fit in memory, with codes pages of a multiple of \
                         {TOKEN_MULTIPLE} tokens"
                    ),
                    format!("{self:?}"),
                )
            })
    }

    /// Bytes of one plane of an exact page: the keys (or the values) of one head of one layer.
    pub fn plane_bytes(&self) -> usize {
        self.page_tokens * self.head_dim * self.dtype.exact_bytes()
    }

    /// Where one head's sections are in a sealed page; `None` without codes.
    pub fn sealed_head(&self) -> Option<SealedHead> {
        let bits = self.dtype.code_bits()?;
        let width = self.head_dim.next_multiple_of(LANES);
        let codes = self.page_tokens * width * bits / 8;
        let (per_channel, per_token) = (2 * width, 2 * self.page_tokens);
        let mut end = 0;
        let mut section = |bytes: usize| {
            end += bytes;
            end - bytes..end
        };
        Some(SealedHead {
            width,
            key_centres: section(per_channel),
            key_steps: section(per_channel),
            key_codes: section(codes),
            value_centres: section(per_token),
            value_steps: section(per_token),
            value_codes: section(codes),
        })
    }

    /// Bytes of one head of one layer in a page; no page without codes is sealed.
    pub fn head_bytes(&self, form: PageForm) -> usize {
        match form {
            PageForm::Exact => 2 * self.plane_bytes(),
            PageForm::Sealed => self.sealed_head().map_or(0, |head| head.bytes()),
        }
    }

    /// Bytes of a page.
    pub fn page_bytes(&self, form: PageForm) -> usize {
        self.num_layers * self.num_kv_heads * self.head_bytes(form)
    }
}

/// The sections of one head of one layer in a sealed page, as drawn [above](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedHead {
    /// Width of the head, as a multiple of 16.
    pub width: usize,
    /// `f16[width]`
    pub key_centres: Range<usize>,
    /// `f16[width]`
    pub key_steps: Range<usize>,
    /// Codes of the keys.
    pub key_codes: Range<usize>,
    /// `f16[page_tokens]`
    pub value_centres: Range<usize>,
    /// `f16[page_tokens]`
    pub value_steps: Range<usize>,
    /// Codes of the values.
    pub value_codes: Range<usize>,
}

impl SealedHead {
    /// Bytes of all sections.
    pub fn bytes(&self) -> usize {
        self.value_codes.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(head_dim: usize, dtype: KvDtype) -> KvGeometry {
        KvGeometry { num_layers: 12, num_kv_heads: 8, head_dim, page_tokens: 64, dtype }
    }

    #[test]
    fn a_page_number_keeps_its_form() {
        for form in [PageForm::Exact, PageForm::Sealed] {
            let page = PageId::new(form, 77);
            assert_eq!((page.form(), page.index()), (form, 77));
        }
        assert_ne!(PageId::exact(3), PageId::sealed(3));
    }

    #[test]
    fn pages_have_the_bytes_of_the_layout() {
        let per_token = |dtype, form| geometry(128, dtype).head_bytes(form) as f64 / 64.0;
        assert_eq!(per_token(KvDtype::F32, PageForm::Exact), 1024.0);
        assert_eq!(per_token(KvDtype::Bf16, PageForm::Exact), 512.0);
        assert_eq!(per_token(KvDtype::Int4, PageForm::Exact), 512.0);
        assert_eq!(per_token(KvDtype::Int8, PageForm::Sealed), 268.0);
        assert_eq!(per_token(KvDtype::Int4, PageForm::Sealed), 140.0);
        assert_eq!(geometry(128, KvDtype::Int8).page_bytes(PageForm::Sealed), 96 * 64 * 268);
        assert_eq!(geometry(128, KvDtype::Bf16).page_bytes(PageForm::Sealed), 0);
    }

    #[test]
    fn sections_are_whole_lines_one_after_the_other() {
        for (head_dim, dtype) in [(8, KvDtype::Int8), (80, KvDtype::Int4), (256, KvDtype::Int8)] {
            let head = geometry(head_dim, dtype).sealed_head().unwrap();
            let mut end = 0;
            for section in [
                &head.key_centres,
                &head.key_steps,
                &head.key_codes,
                &head.value_centres,
                &head.value_steps,
                &head.value_codes,
            ] {
                assert_eq!(section.start, end);
                end = section.end;
            }
            for line in [head.key_codes.start, head.value_codes.start, end] {
                assert!(line.is_multiple_of(64));
            }
            assert_eq!(head.bytes(), end);
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let sizes = geometry(128, KvDtype::Int8);
        sizes.check().unwrap();
        for bad in [
            KvGeometry { num_layers: 0, ..sizes },
            KvGeometry { head_dim: 0, ..sizes },
            KvGeometry { head_dim: usize::MAX, ..sizes },
            KvGeometry { num_kv_heads: 1 << 60, ..sizes },
            KvGeometry { page_tokens: 40, ..sizes },
        ] {
            assert!(bad.check().unwrap_err().to_string().contains("kv pool"), "{bad:?}");
        }
        KvGeometry { page_tokens: 5, dtype: KvDtype::Bf16, ..sizes }.check().unwrap();
    }
}
