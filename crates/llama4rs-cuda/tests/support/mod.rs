//! What the tests share: a device, random weights, comparisons.

// No test uses all of this.
#![allow(dead_code)]

pub mod operations;
pub mod scout;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::bf16;
use llama4rs_cpu::{Arithmetic, Cpu};
use llama4rs_cuda::Cuda;
use llama4rs_tensor::format::PANEL_ROWS;
use llama4rs_tensor::{AlignedBytes, PackedMatrix, WeightFormat};

/// Where `make build` puts NVRTC.
pub fn nvrtc_folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/lib");
    let pythons = std::fs::read_dir(root).into_iter().flatten().flatten();
    pythons
        .flat_map(|python| {
            ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"]
                .map(|folder| python.path().join("site-packages").join(folder))
        })
        .collect()
}

/// The GPU, else the simulated device; `None`, with the reason printed, without both.
pub fn cuda() -> Option<&'static Cuda> {
    static CUDA: OnceLock<Result<Cuda, String>> = OnceLock::new();
    let opened = CUDA.get_or_init(|| {
        if driver_is_absent() {
            load_simulated_driver();
        }
        Cuda::open(0, &nvrtc_folders()).map_err(|error| error.to_string())
    });
    match opened {
        Ok(cuda) => Some(cuda),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

/// The same device with tensor cores.
pub fn tensor_cores() -> Option<&'static Cuda> {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    cuda()?;
    Some(
        CUDA.get_or_init(|| {
            Cuda::open(0, &nvrtc_folders()).unwrap().with_tensor_cores(true).unwrap()
        }),
    )
}

/// Whether there is a device, the simulated one being of Hopper's kind: to be asked for before any other.
pub fn hopper() -> Option<&'static Cuda> {
    std::env::set_var("LLAMA4RS_SIM_CAPABILITY", "9.0");
    cuda()
}

/// What a function of the simulated device writes down; none on others.
fn simulated_text(function: &[u8]) -> Option<String> {
    type Write = unsafe extern "C" fn(*mut std::ffi::c_char, usize) -> usize;
    // SAFETY: the driver is loaded already; the function is the stand-in's, of this type, and writes into
    // the room that there is.
    unsafe {
        let library = libloading::Library::new("libcuda.so.1").ok()?;
        let write = library.get::<Write>(function).ok()?;
        let mut text = vec![0u8; 1 << 16];
        let length = write(text.as_mut_ptr().cast(), text.len());
        text.truncate(length.min(1 << 16));
        String::from_utf8(text).ok()
    }
}

/// The number behind `key`; 0 without one.
fn number_behind(text: &str, key: &str) -> usize {
    let found = text.split(key).nth(1);
    found.map_or(0, |rest| rest.split([',', '}']).next().unwrap().parse().unwrap())
}

/// How often the simulated device launched a kernel; none on others.
pub fn launches(kernel: &str) -> Option<usize> {
    let text = simulated_text(b"llama4rs_sim_counters")?;
    Some(number_behind(&text, &format!("\"{kernel}\":{{\"launches\":")))
}

/// How often a function of the simulated driver was called; none on others.
pub fn calls(function: &str) -> Option<usize> {
    let text = simulated_text(b"llama4rs_sim_calls")?;
    Some(number_behind(&text, &format!("\"{function}\":")))
}

/// Lets the next calls of a function of the simulated driver answer `code`; `false` on a real device.
pub fn fail(function: &str, calls: u32, code: i32) -> bool {
    type Fail = unsafe extern "C" fn(*const std::ffi::c_char, u32, i32);
    let function = std::ffi::CString::new(function).unwrap();
    // SAFETY: the driver is loaded already; the function is the stand-in's, of this type.
    unsafe {
        let Ok(driver) = libloading::Library::new("libcuda.so.1") else { return false };
        let Ok(fail) = driver.get::<Fail>(b"llama4rs_sim_fail") else { return false };
        fail(function.as_ptr(), calls, code);
    }
    true
}

fn driver_is_absent() -> bool {
    // SAFETY: loading the driver runs its constructors, which expect that.
    let absent = |name: &str| unsafe { libloading::Library::new(name) }.is_err();
    absent("libcuda.so") && absent("libcuda.so.1")
}

/// Loads the stand-in, which a later search for `libcuda.so.1` finds.
fn load_simulated_driver() {
    let place = std::env::current_exe().unwrap();
    let library = place.with_file_name("libllama4rs_cuda_sim.so");
    // SAFETY: our own library; it is never unloaded.
    if let Ok(library) = unsafe { libloading::Library::new(library) } {
        std::mem::forget(library);
    }
}

/// Whether launches do nothing from now on; `false` on a real device.
pub fn skip_kernels(skip: bool) -> bool {
    type Skip = unsafe extern "C" fn(i32);
    // SAFETY: the driver is loaded already; the function is the stand-in's, of this type.
    unsafe {
        let Ok(driver) = libloading::Library::new("libcuda.so.1") else { return false };
        let Ok(function) = driver.get::<Skip>(b"llama4rs_sim_skip_kernels") else { return false };
        function(skip.into());
    }
    true
}

/// The CPU that everything is compared with.
pub fn cpu() -> &'static Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    CPU.get_or_init(|| Cpu::new(Some(2)).unwrap().with_arithmetic(Arithmetic::Exact))
}

/// One of every weight format.
pub const FORMATS: [WeightFormat; 8] = [
    WeightFormat::F32,
    WeightFormat::Bf16,
    WeightFormat::Int8 { group: 32 },
    WeightFormat::Int8 { group: 64 },
    WeightFormat::Int8 { group: 128 },
    WeightFormat::Int4 { group: 32 },
    WeightFormat::Int4 { group: 64 },
    WeightFormat::Int4 { group: 128 },
];

/// A small generator of repeatable values (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `count` of [`Random::value`].
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// Bytes of random matrices; [`matrix`] makes one of them.
    pub fn weights(
        &mut self,
        format: WeightFormat,
        stack: usize,
        rows: usize,
        cols: usize,
    ) -> Weights {
        let mut bytes = vec![0; stack * format.matrix_bytes(rows, cols).unwrap()];
        let panels = rows.div_ceil(PANEL_ROWS);
        for (i, panel) in bytes.chunks_exact_mut(format.panel_bytes(cols)).enumerate() {
            let used = PANEL_ROWS.min(rows - i % panels * PANEL_ROWS);
            match format.group() {
                None => format.encode_float_panel(&self.values(used * cols), cols, panel),
                Some(group) => self.integer_panel(format, group, used, cols, panel),
            }
        }
        Weights { format, stack, rows, cols, bytes }
    }

    fn integer_panel(
        &mut self,
        format: WeightFormat,
        group: usize,
        rows: usize,
        cols: usize,
        panel: &mut [u8],
    ) {
        let padded = format.padded_cols(cols);
        let largest = if matches!(format, WeightFormat::Int8 { .. }) { 127 } else { 8 };
        let mut codes = vec![0i8; PANEL_ROWS * padded];
        let mut scales = vec![bf16::ZERO; PANEL_ROWS * (padded / group)];
        for row in 0..rows {
            for code in &mut codes[row * padded..][..cols] {
                *code = (self.below(2 * largest) as i32 - largest as i32) as i8;
            }
            for scale in &mut scales[row * (padded / group)..][..padded / group] {
                *scale = bf16::from_f32(self.value() / largest as f32);
            }
        }
        format.encode_integer_panel(&codes, &scales, cols, panel);
    }
}

/// Packed matrices that can be given to several backends.
pub struct Weights {
    format: WeightFormat,
    stack: usize,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl Weights {
    /// A copy for one backend.
    pub fn packed(&self) -> PackedMatrix {
        let mut bytes = AlignedBytes::zeroed(self.bytes.len()).unwrap();
        bytes.copy_from_slice(&self.bytes);
        PackedMatrix::new(self.format, self.stack, self.rows, self.cols, bytes.into()).unwrap()
    }
}

/// Panics unless `‖got - expected‖ <= tolerance * ‖expected‖` and all of it are numbers.
#[track_caller]
pub fn assert_close(what: &str, expected: &[f32], got: &[f32], tolerance: f64) {
    assert_eq!(expected.len(), got.len(), "{what}: number of values");
    let square = |x: f64| x * x;
    let size: f64 = expected.iter().map(|&x| square(x.into())).sum();
    let error: f64 = expected.iter().zip(got).map(|(&e, &g)| square(e as f64 - g as f64)).sum();
    let relative = (error / size.max(1e-60)).sqrt();
    assert!(relative <= tolerance, "{what}: relative error {relative:.2e}");
}

/// Panics unless the bits are equal.
#[track_caller]
pub fn assert_bits(what: &str, expected: &[f32], got: &[f32]) {
    assert_eq!(expected.len(), got.len(), "{what}: number of values");
    let differs = |(e, g): (&f32, &f32)| e.to_bits() != g.to_bits();
    if let Some(i) = expected.iter().zip(got).position(differs) {
        panic!("{what}: value {i} is {}, not {}", got[i], expected[i]);
    }
}
