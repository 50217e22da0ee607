//! Launches that are written down, to be submitted together.

use cudarc::driver::sys;
use llama4rs_tensor::Result;

use crate::arguments::Packed;
use crate::cuda::Launch;
use crate::gpu::Gpu;
use crate::kernels::KernelSource;

/// Launches in order, with their constants and the words of their arguments.
#[derive(Default, PartialEq)]
pub(crate) struct Recording {
    launches: Vec<Recorded>,
    constants: Vec<(&'static str, u32)>,
    words: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Recorded {
    source: &'static KernelSource,
    kernel: &'static str,
    shared: usize,
    blocks: [usize; 3],
    threads: u32,
    begins: u64,
    /// Where its constants and its words end.
    end: Place,
}

/// A launch of a recording: those before it, their constants and their words.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Place {
    launches: usize,
    constants: usize,
    words: usize,
}

impl PartialEq for Recorded {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.source, other.source)
            && self.kernel == other.kernel
            && (self.shared, self.blocks, self.threads, self.end)
                == (other.shared, other.blocks, other.threads, other.end)
    }
}

impl Recording {
    pub fn clear(&mut self) {
        self.launches.clear();
        self.constants.clear();
        self.words.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.launches.is_empty()
    }

    /// The place behind the last launch.
    pub fn end(&self) -> Place {
        self.launches.last().map_or(Place::default(), |last| last.end)
    }

    pub fn push(&mut self, launch: &Launch<'_>, arguments: Packed<'_>) {
        self.constants.extend_from_slice(launch.constants);
        self.words.extend_from_slice(arguments.words);
        let end = Place {
            launches: self.launches.len() + 1,
            constants: self.constants.len(),
            words: self.words.len(),
        };
        let &Launch { source, kernel, shared, blocks, threads, .. } = launch;
        let begins = arguments.begins;
        self.launches.push(Recorded { source, kernel, shared, blocks, threads, begins, end });
    }

    /// The place behind the launch at `place`, if it is this one.
    pub fn follow(
        &self,
        place: Place,
        launch: &Launch<'_>,
        arguments: Packed<'_>,
    ) -> Option<Place> {
        let known = self.launches.get(place.launches)?;
        let end = known.end;
        // The texts of a file's constants are always the same.
        let same_constant = |(a, b): (&(&str, u32), &(&str, u32))| a.1 == b.1;
        let constants = &self.constants[place.constants..end.constants];
        let is_equal = std::ptr::eq(known.source, launch.source)
            && (known.shared, known.blocks, known.threads)
                == (launch.shared, launch.blocks, launch.threads)
            && self.words[place.words..end.words] == *arguments.words
            && constants.len() == launch.constants.len()
            && constants.iter().zip(launch.constants).all(same_constant)
            && known.kernel == launch.kernel;
        is_equal.then_some(end)
    }

    /// Whether `beginning` comes at the beginning.
    pub fn begins_with(&self, beginning: &Self) -> bool {
        let Place { launches, constants, words } = beginning.end();
        self.launches.get(..launches) == Some(&beginning.launches[..])
            && self.constants[..constants] == beginning.constants
            && self.words[..words] == beginning.words
    }

    /// Becomes what comes before `end` in `other`.
    pub fn copy(&mut self, other: &Self, end: Place) {
        self.clear();
        self.launches.extend_from_slice(&other.launches[..end.launches]);
        self.constants.extend_from_slice(&other.constants[..end.constants]);
        self.words.extend_from_slice(&other.words[..end.words]);
    }

    /// Queues all launches on a stream.
    pub fn submit(&self, gpu: &Gpu, stream: sys::CUstream) -> Result<()> {
        let mut start = Place::default();
        for launch in &self.launches {
            let &Recorded { source, kernel, shared, blocks, threads, end, .. } = launch;
            let constants = &self.constants[start.constants..end.constants];
            let kernel = gpu.library.kernel(gpu, source, kernel, constants, shared)?;
            let words = &self.words[start.words..end.words];
            let arguments = Packed { words, begins: launch.begins };
            kernel.launch(gpu, stream, blocks, threads, arguments)?;
            start = end;
        }
        Ok(())
    }
}
