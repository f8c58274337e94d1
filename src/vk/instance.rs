//! The loaded library, the instance and the list of devices.

use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;

use ash::{ext, vk};

use super::VkError;
use super::canary::Canary;

const VALIDATION_LAYER: &CStr = c"VK_LAYER_KHRONOS_validation";

/// Which checks of the validation layers run. Synchronisation checks are a pass of their own, since the layers
/// advise against mixing them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    Off,
    Core,
    Synchronization,
}

impl Default for Validation {
    /// On in debug builds, which tests are.
    fn default() -> Self {
        if cfg!(debug_assertions) { Validation::Core } else { Validation::Off }
    }
}

/// What a driver runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhysicalKind {
    Discrete,
    Integrated,
    Virtual,
    /// A software driver such as lavapipe.
    Cpu,
    Other,
}

impl From<vk::PhysicalDeviceType> for PhysicalKind {
    fn from(kind: vk::PhysicalDeviceType) -> Self {
        match kind {
            vk::PhysicalDeviceType::DISCRETE_GPU => PhysicalKind::Discrete,
            vk::PhysicalDeviceType::INTEGRATED_GPU => PhysicalKind::Integrated,
            vk::PhysicalDeviceType::VIRTUAL_GPU => PhysicalKind::Virtual,
            vk::PhysicalDeviceType::CPU => PhysicalKind::Cpu,
            _ => PhysicalKind::Other,
        }
    }
}

/// One physical device as the loader lists it.
#[derive(Clone, Debug)]
pub struct DeviceEntry {
    /// Position in the loader's list: the N of `vulkan:N`.
    pub index: usize,
    pub name: String,
    pub kind: PhysicalKind,
}

/// Lists the physical devices. Errors: [`VkError::NoDriver`] if there is no loader or no driver.
pub fn devices() -> Result<Vec<DeviceEntry>, VkError> {
    Instance::new(Validation::Off)?.devices()
}

pub(super) struct InstanceShared {
    pub(super) raw: ash::Instance,
    /// Present if the instance has `VK_EXT_debug_utils`: then objects get names.
    pub(super) debug: bool,
    messenger: Option<(ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>,
    /// The messenger holds its address; declared before the library only by chance, both outlive `drop`.
    canary: Arc<Canary>,
    /// Last: unloads the library.
    pub(super) entry: ash::Entry,
}

/// A Vulkan instance. Clones share it.
#[derive(Clone)]
pub struct Instance {
    pub(super) shared: Arc<InstanceShared>,
    validation: Validation,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("validation", &self.validation).finish_non_exhaustive()
    }
}

impl Instance {
    /// Loads the library and creates an instance. Validation that is wanted but not installed is left out;
    /// [`Instance::validation`] says what came of it.
    ///
    /// Errors: [`VkError::NoDriver`] if there is no loader, no driver, or none for Vulkan 1.3.
    pub fn new(validation: Validation) -> Result<Instance, VkError> {
        // SAFETY: loading runs the library's initialisers; they are those of the system's Vulkan loader, found by the
        // dynamic linker, which the administrator installed for this purpose.
        let entry = unsafe { ash::Entry::load() }
            .map_err(|e| VkError::NoDriver { what: format!("the Vulkan loader cannot be opened ({e})") })?;
        // SAFETY: needs a loaded entry, which it is.
        let version = unsafe { entry.try_enumerate_instance_version() }.ok().flatten();
        if version.unwrap_or(vk::API_VERSION_1_0) < vk::API_VERSION_1_3 {
            return Err(VkError::NoDriver { what: "the Vulkan loader is older than 1.3".to_string() });
        }
        let validation = if has_layer(&entry, VALIDATION_LAYER) { validation } else { Validation::Off };
        let layer = (validation != Validation::Off).then_some(VALIDATION_LAYER);
        let debug = validation != Validation::Off && has_extension(&entry, layer, ext::debug_utils::NAME);
        let features = has_extension(&entry, layer, ext::validation_features::NAME);

        let layers: Vec<_> = layer.iter().map(|l| l.as_ptr()).collect();
        let mut extensions = Vec::new();
        if debug {
            extensions.push(ext::debug_utils::NAME.as_ptr());
        }
        let canary = Arc::new(Canary::default());
        let mut messenger = canary.messenger();
        let app = vk::ApplicationInfo::default().application_name(c"gamegend").api_version(vk::API_VERSION_1_3);
        let enabled = [vk::ValidationFeatureEnableEXT::SYNCHRONIZATION_VALIDATION];
        let mut checks = vk::ValidationFeaturesEXT::default().enabled_validation_features(&enabled);
        let synchronization = validation == Validation::Synchronization && features;
        if synchronization {
            extensions.push(ext::validation_features::NAME.as_ptr());
        }
        let mut info = vk::InstanceCreateInfo::default()
            .application_info(&app)
            .enabled_layer_names(&layers)
            .enabled_extension_names(&extensions);
        if debug {
            info = info.push_next(&mut messenger);
        }
        if synchronization {
            info = info.push_next(&mut checks);
        }
        // SAFETY: needs a valid create info: its layers and extensions were found above, and everything that it points
        // to lives until the end of this function.
        let raw =
            unsafe { entry.create_instance(&info, None) }.map_err(|e| VkError::from_call("vkCreateInstance", e))?;
        let mut shared = InstanceShared { raw, debug, messenger: None, canary, entry };
        if debug {
            shared.start_messenger()?;
        }
        Ok(Instance { shared: Arc::new(shared), validation })
    }

    /// The checks that run.
    pub fn validation(&self) -> Validation {
        self.validation
    }

    /// Where this instance's validation messages go. Outlives the instance, to receive the leaks of its end.
    pub fn canary(&self) -> &Arc<Canary> {
        &self.shared.canary
    }

    /// The physical devices in the loader's order.
    pub fn devices(&self) -> Result<Vec<DeviceEntry>, VkError> {
        let all = self.physical_devices()?;
        Ok(all.into_iter().enumerate().map(|(index, raw)| self.describe(index, raw)).collect())
    }

    fn describe(&self, index: usize, raw: vk::PhysicalDevice) -> DeviceEntry {
        // SAFETY: needs a device of this instance, which `raw` is.
        let properties = unsafe { self.shared.raw.get_physical_device_properties(raw) };
        let name = properties.device_name_as_c_str().map_or("unnamed".into(), CStr::to_string_lossy);
        DeviceEntry { index, name: name.into_owned(), kind: properties.device_type.into() }
    }

    pub(super) fn physical_devices(&self) -> Result<Vec<vk::PhysicalDevice>, VkError> {
        // SAFETY: needs a live instance, which `shared` holds.
        let all = unsafe { self.shared.raw.enumerate_physical_devices() };
        all.map_err(|e| match e {
            // What loaders say when every driver failed to start.
            vk::Result::ERROR_INITIALIZATION_FAILED => {
                VkError::NoDriver { what: "no driver could be started".to_string() }
            }
            e => VkError::from_call("vkEnumeratePhysicalDevices", e),
        })
    }
}

impl InstanceShared {
    fn start_messenger(&mut self) -> Result<(), VkError> {
        let loader = ext::debug_utils::Instance::new(&self.entry, &self.raw);
        let info = self.canary.messenger();
        // SAFETY: needs a valid create info whose callback and user data outlive the messenger: the callback is a
        // function, the user data is the canary, which `self` holds until after `drop` destroyed the messenger.
        let messenger = unsafe { loader.create_debug_utils_messenger(&info, None) }
            .map_err(|e| VkError::from_call("vkCreateDebugUtilsMessengerEXT", e))?;
        self.messenger = Some((loader, messenger));
        Ok(())
    }
}

impl Drop for InstanceShared {
    fn drop(&mut self) {
        if let Some((loader, messenger)) = self.messenger.take() {
            // SAFETY: needs a live messenger of this instance, used by no one else; it was created with it and is
            // taken out of its field here.
            unsafe { loader.destroy_debug_utils_messenger(messenger, None) };
        }
        // SAFETY: needs that every child is gone; devices hold this value in an `Arc`, so the last one dropped before.
        unsafe { self.raw.destroy_instance(None) };
    }
}

fn has_layer(entry: &ash::Entry, wanted: &CStr) -> bool {
    // SAFETY: needs a loaded entry, which it is.
    let layers = unsafe { entry.enumerate_instance_layer_properties() }.unwrap_or_default();
    layers.iter().any(|l| l.layer_name_as_c_str() == Ok(wanted))
}

/// True if the instance, or the layer if one is given, provides the extension.
fn has_extension(entry: &ash::Entry, layer: Option<&CStr>, wanted: &CStr) -> bool {
    let from = |layer: Option<&CStr>| {
        // SAFETY: needs a loaded entry and the name of a layer that exists; the caller found it in the list.
        let all = unsafe { entry.enumerate_instance_extension_properties(layer) }.unwrap_or_default();
        all.iter().any(|e| e.extension_name_as_c_str() == Ok(wanted))
    };
    from(None) || (layer.is_some() && from(layer))
}
