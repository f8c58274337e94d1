//! Where the messages of the validation layers go.

use std::ffi::{CStr, c_void};
use std::panic::catch_unwind;
use std::sync::{Mutex, PoisonError};

use ash::vk;

/// Collects validation messages of one instance. A test that uses a device drains it at its end and fails if there is
/// anything, leaks at destruction included.
#[derive(Default)]
pub struct Canary {
    messages: Mutex<Vec<String>>,
}

impl Canary {
    /// Takes all messages.
    pub fn drain(&self) -> Vec<String> {
        std::mem::take(&mut *self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, message: String) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }

    /// Describes a messenger that feeds this canary, which must outlive it.
    pub(super) fn messenger(&self) -> vk::DebugUtilsMessengerCreateInfoEXT<'static> {
        use vk::{DebugUtilsMessageSeverityFlagsEXT as Severity, DebugUtilsMessageTypeFlagsEXT as Type};
        vk::DebugUtilsMessengerCreateInfoEXT::default()
            .message_severity(Severity::ERROR | Severity::WARNING)
            .message_type(Type::VALIDATION | Type::GENERAL)
            .pfn_user_callback(Some(receive))
            .user_data(std::ptr::from_ref(self).cast_mut().cast())
    }
}

/// Called by the layers and the loader. Must not unwind into them, hence `catch_unwind`.
///
/// # Safety
/// `data` is null or a message that lives as long as the call; `user` is null or what [`Canary::messenger`] gave.
unsafe extern "system" fn receive(
    severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    types: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    user: *mut c_void,
) -> vk::Bool32 {
    if std::thread::panicking() || data.is_null() || user.is_null() {
        return vk::FALSE;
    }
    let _ = catch_unwind(|| {
        // SAFETY: needs a live message; the caller passes one for the length of the call, and it is not null.
        let text = unsafe { describe(&*data) };
        if types.contains(vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION) {
            // SAFETY: needs a live canary; `Canary::messenger` passed its address, and the instance that the messenger
            // belongs to holds the canary until after its own destruction.
            unsafe { &*user.cast::<Canary>() }.push(text.clone());
        }
        // The loader reports drivers that it cannot open as errors; they are only of interest when one is missed.
        let general = !types.contains(vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION);
        let error = severity.contains(vk::DebugUtilsMessageSeverityFlagsEXT::ERROR) && !general;
        log::log!(if error { log::Level::Error } else { log::Level::Debug }, "vulkan: {text}");
    });
    vk::FALSE
}

/// The message with the names of the objects that it is about.
///
/// # Safety
/// The pointers in `data` must be null or valid, as Vulkan requires of its caller.
unsafe fn describe(data: &vk::DebugUtilsMessengerCallbackDataEXT<'_>) -> String {
    let mut text = if data.p_message.is_null() {
        String::from("a message without text")
    } else {
        // SAFETY: needs a terminated string; the caller of `describe` promises it.
        unsafe { CStr::from_ptr(data.p_message) }.to_string_lossy().into_owned()
    };
    if data.object_count > 0 && !data.p_objects.is_null() {
        // SAFETY: needs `object_count` elements; the caller of `describe` promises them.
        let objects = unsafe { std::slice::from_raw_parts(data.p_objects, data.object_count as usize) };
        for object in objects {
            if !object.p_object_name.is_null() {
                // SAFETY: needs a terminated string; the caller of `describe` promises it.
                let name = unsafe { CStr::from_ptr(object.p_object_name) };
                text.push_str(&format!(" [{}]", name.to_string_lossy()));
            }
        }
    }
    text
}
