//! gamegend: a system daemon that generates playable open-world game video.

#![deny(unsafe_code)]

pub mod api;
pub mod compute;
pub mod config;
pub mod ctl;
pub mod exit;
pub mod frame;
pub mod model;
pub mod parent;
pub mod proto;
pub mod store;
#[allow(unsafe_code)]
pub mod sys;
#[allow(unsafe_code)]
pub mod vk;
pub mod worker;
