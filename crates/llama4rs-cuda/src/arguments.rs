//! Arguments of kernels, as the driver copies them.

use std::cell::RefCell;
use std::ffi::c_void;

use llama4rs_tensor::{Error, Result};

use crate::memory::{Buffer, Plain};
use crate::tensor::RowNorm;

/// Words of a list at most.
const MOST_ARGUMENTS: usize = 40;
/// Words of a structure at most: all that a kernel may take before CUDA 12.1.
const MOST_WORDS: usize = 4096 / 8;

thread_local! {
    /// Room for the next structures: a step has hundreds of them.
    static SPARE: RefCell<Vec<Box<[u64; MOST_WORDS]>>> = const { RefCell::new(Vec::new()) };
}

/// What can be the arguments of a launch, in the order of the kernel's parameters.
pub(crate) trait Arguments {
    /// Their bytes.
    fn packed(&self) -> Packed<'_>;
}

/// The bytes of arguments.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    pub words: &'a [u64],
    /// Whether word `i` begins an argument is bit `i`.
    pub begins: u64,
}

impl Packed<'_> {
    /// Where each argument begins, as the driver wants to know it.
    pub fn pointers(self) -> Vec<*mut c_void> {
        let first =
            self.words.iter().enumerate().filter(|&(i, _)| {
                self.begins.checked_shr(i as u32).is_some_and(|bits| bits & 1 == 1)
            });
        first.map(|(_, word)| std::ptr::from_ref(word).cast_mut().cast()).collect()
    }
}

/// Arguments one by one; one of 4 bytes is the low half of its word.
pub(crate) struct List {
    words: [u64; MOST_ARGUMENTS],
    count: usize,
    begins: u64,
}

impl List {
    pub fn new() -> Self {
        Self { words: [0; MOST_ARGUMENTS], count: 0, begins: 0 }
    }

    #[inline(always)]
    pub fn push(&mut self, argument: impl AsArgument) -> Result<()> {
        self.begins |= 1 << self.count;
        argument.push_to(self)
    }

    #[inline(always)]
    fn word(&mut self, word: u64) -> Result<()> {
        self.words[self.count] = word;
        self.count += 1;
        Ok(())
    }
}

impl Arguments for List {
    fn packed(&self) -> Packed<'_> {
        Packed { words: &self.words[..self.count], begins: self.begins }
    }
}

impl Arguments for Structure {
    fn packed(&self) -> Packed<'_> {
        let filled = self.halves.div_ceil(2);
        let words = self.words.as_ref().map_or(&[][..], |words| &words[..filled]);
        Packed { words, begins: 1 }
    }
}

/// A kernel's parameter structure, field by field in C's layout.
pub(crate) struct Structure {
    /// Always there until it is dropped.
    words: Option<Box<[u64; MOST_WORDS]>>,
    /// Halves of words that are filled.
    halves: usize,
}

impl Default for Structure {
    fn default() -> Self {
        let words = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Box::new([0; MOST_WORDS]));
        Self { words: Some(words), halves: 0 }
    }
}

impl Drop for Structure {
    fn drop(&mut self) {
        SPARE.with_borrow_mut(|spare| spare.extend(self.words.take()));
    }
}

impl Structure {
    #[inline(always)]
    fn put(&mut self, index: usize, value: u64) {
        if let Some(words) = &mut self.words {
            words[index] = value;
        }
    }

    #[inline(always)]
    fn at(&self, index: usize) -> u64 {
        self.words.as_ref().map_or(0, |words| words[index])
    }

    /// An address or another field of 8 bytes.
    #[inline(always)]
    pub fn long(mut self, value: u64) -> Self {
        let index = self.halves.div_ceil(2);
        self.put(index, value);
        self.halves = 2 * index + 2;
        self
    }

    /// A field of 4 bytes.
    #[inline(always)]
    pub fn word(mut self, value: u32) -> Self {
        let index = self.halves / 2;
        let low = if self.halves.is_multiple_of(2) { 0 } else { self.at(index) };
        let shift = 32 * (self.halves % 2);
        self.put(index, low | u64::from(value) << shift);
        self.halves += 1;
        self
    }

    /// A size.
    #[inline(always)]
    pub fn size(self, value: usize) -> Result<Self> {
        Ok(self.word(small(value)?))
    }

    /// A `RowNorm` of `kernels/norm.cuh`; null without one.
    pub fn row_norm(self, norm: Option<RowNorm>) -> Result<Self> {
        let RowNorm { squares, parts, eps } =
            norm.unwrap_or(RowNorm { squares: 0, parts: 0, eps: 0.0 });
        Ok(self.long(squares).size(parts)?.word(eps.to_bits()))
    }

    /// `count` bytes of zeros, a multiple of 8, such as unused elements of an array.
    pub fn zeros(self, count: usize) -> Self {
        debug_assert!(count.is_multiple_of(8));
        (0..count / 8).fold(self, |fields, _| fields.long(0))
    }
}

/// A size, which kernels take as `u32`.
#[inline(always)]
fn small(size: usize) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::shape("kernel", "sizes below 2^32", size))
}

/// What can be an argument.
pub(crate) trait AsArgument {
    /// Adds the argument's bytes.
    fn push_to(self, all: &mut List) -> Result<()>;
}

impl<T: Plain> AsArgument for &Buffer<T> {
    #[inline(always)]
    fn push_to(self, all: &mut List) -> Result<()> {
        all.word(self.address())
    }
}

impl AsArgument for u64 {
    #[inline(always)]
    fn push_to(self, all: &mut List) -> Result<()> {
        all.word(self)
    }
}

impl AsArgument for u32 {
    #[inline(always)]
    fn push_to(self, all: &mut List) -> Result<()> {
        all.word(self.into())
    }
}

impl AsArgument for f32 {
    #[inline(always)]
    fn push_to(self, all: &mut List) -> Result<()> {
        all.word(self.to_bits().into())
    }
}

impl AsArgument for usize {
    #[inline(always)]
    fn push_to(self, all: &mut List) -> Result<()> {
        all.word(small(self)?.into())
    }
}

impl AsArgument for Structure {
    fn push_to(self, all: &mut List) -> Result<()> {
        self.packed().words.iter().try_for_each(|&word| all.word(word))
    }
}

/// A `RowNorm` of `kernels/norm.cuh`; null without one.
impl AsArgument for Option<RowNorm> {
    fn push_to(self, all: &mut List) -> Result<()> {
        Structure::default().row_norm(self)?.push_to(all)
    }
}

/// Arguments in the order of the kernel's parameters, sizes as `u32`; or a [`Structure`] alone.
macro_rules! arguments {
    ($structure:expr $(,)?) => {
        $structure
    };
    ($($argument:expr),* $(,)?) => {{
        let mut all = $crate::arguments::List::new();
        $(all.push($argument)?;)*
        all
    }};
}
pub(crate) use arguments;

// An argument's first bytes are the low ones.
const _: () = assert!(cfg!(target_endian = "little"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_laid_out_as_in_c() -> Result<()> {
        // What an earlier one left behind is not seen.
        drop((0..8).fold(Structure::default(), |fields, _| fields.long(u64::MAX)));
        // struct { u32; u64; u32; u32; f32; u64 x[3]; u32 }
        let fields = Structure::default().word(1).long(2).size(3)?.word(4).word(5);
        let all = arguments![fields.long(6).zeros(16).word(7)];
        assert_eq!(all.packed().words, [1, 2, 3 | 4 << 32, 5, 6, 0, 0, 7]);
        assert!(Structure::default().size(1 << 32).is_err());
        Ok(())
    }

    #[test]
    fn sizes_have_32_bits() {
        let norm = RowNorm { squares: 9, parts: 3, eps: 0.0 };
        let sizes = |size: usize| Ok::<_, Error>(arguments![1u64 << 40, Some(norm), size, 1.5f32]);
        let all = sizes(u32::MAX as usize).unwrap();
        let expected = [1 << 40, 9, 3, u64::from(u32::MAX), u64::from(1.5f32.to_bits())];
        assert_eq!(all.packed().words, expected);
        let pointers = all.packed().pointers();
        let words = [0, 1, 3, 4].map(|i| std::ptr::from_ref(&all.words[i]).cast_mut().cast());
        assert_eq!(pointers, words);
        assert!(sizes(1 << 32).is_err());
    }
}
