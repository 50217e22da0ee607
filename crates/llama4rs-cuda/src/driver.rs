//! The driver: whether there is one, and which devices it has.

use std::sync::OnceLock;

use cudarc::driver::{result, sys};
use llama4rs_tensor::Result;

use crate::error::{device, words, During};

/// The oldest driver that is used: CUDA 12.0.
const OLDEST_DRIVER: (u32, u32) = (12, 0);
/// The oldest architecture that the kernels are written for: Ampere.
pub(crate) const OLDEST_ARCHITECTURE: (u32, u32) = (8, 0);

/// What the driver says about one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The driver's number of the device.
    pub ordinal: usize,
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability, such as `(9, 0)`.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: usize,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most bytes of shared memory of a block.
    pub shared_memory: usize,
}

impl DeviceInfo {
    fn read(ordinal: usize) -> Result<Self> {
        let handle = result::device::get(ordinal as i32).during("open the device")?;
        use sys::CUdevice_attribute as Attribute;
        let attribute = |attribute| {
            // SAFETY: `handle` came from the driver.
            unsafe { result::device::get_attribute(handle, attribute) }
                .map(|value| value.max(0) as u32)
                .during("read the device's properties")
        };
        Ok(Self {
            ordinal,
            name: result::device::get_name(handle).during("read the device's name")?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            // SAFETY: `handle` came from the driver.
            memory: unsafe { result::device::total_mem(handle) }
                .during("read the memory's size")?,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )? as usize,
        })
    }

    /// Whether this is the stand-in that runs PTX on the CPU, for tests.
    pub fn is_simulated(&self) -> bool {
        self.name.to_ascii_lowercase().contains("simulated")
    }
}

/// The version of CUDA that the driver knows, such as `(13, 0)`; an error when
/// there is no driver or it is too old.
pub fn driver_version() -> Result<(u32, u32)> {
    static OPENED: OnceLock<(u32, u32)> = OnceLock::new();
    match OPENED.get() {
        Some(version) => Ok(*version),
        None => open().map(|version| *OPENED.get_or_init(|| version)).map_err(device),
    }
}

/// Loads and initialises the driver.
fn open() -> std::result::Result<(u32, u32), String> {
    // SAFETY: loading the driver runs its constructors, which expect that.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver was found (libcuda.so.1 cannot be loaded): \
            install the driver, or use device=\"cpu\""
            .to_owned());
    }
    let mut version = 0;
    // SAFETY: `version` is writable; the library is present.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|error| format!("the NVIDIA driver does not say its version: {}", words(error)))?;
    let version = (version as u32 / 1000, version as u32 % 1000 / 10);
    if version < OLDEST_DRIVER {
        return Err(format!(
            "the NVIDIA driver knows CUDA {}.{}, and {}.{} is needed: update the driver",
            version.0, version.1, OLDEST_DRIVER.0, OLDEST_DRIVER.1
        ));
    }
    match result::init() {
        Ok(()) => Ok(version),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(NO_DEVICE.to_owned()),
        Err(error) => Err(format!("the NVIDIA driver does not start: {}", words(error))),
    }
}

const NO_DEVICE: &str = "the NVIDIA driver finds no device: check `nvidia-smi` and \
    CUDA_VISIBLE_DEVICES, or use device=\"cpu\"";

/// All devices of the machine; an error when there is none.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    driver_version()?;
    let count = result::device::get_count().during("count devices")?;
    if count <= 0 {
        return Err(device(NO_DEVICE));
    }
    (0..count as usize).map(DeviceInfo::read).collect()
}
