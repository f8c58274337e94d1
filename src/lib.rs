//! gamegend: a system daemon that generates playable open-world game video.
//!
//! | folder | owns | may use, beside `config`, `proto` and `sys` |
//! | --- | --- | --- |
//! | [`parent`] | listeners, children, supervision, the log | |
//! | [`api`] | HTTP, WebSocket, the Unix socket, encoders | `store`, `frame` |
//! | [`worker`] | one device with all its sessions | `model`, `frame`, `compute` |
//! | [`decode`] | pictures of one upload, in a process of its own | `model`, `frame` |
//! | [`ctl`] | the command-line tool's commands | `compute`, `frame` |
//! | [`model`] | the paper's modules, and the engine that plays them | `compute` |
//! | [`store`] | stored generations | |
//! | [`frame`] | frame ring, control block, snapshot | |
//! | [`compute`] | operations, plans, executors | `vk` |
//! | [`vk`] | Vulkan, the only one to name it | |
//! | [`config`], [`proto`], [`sys`], [`exit`] | what everybody speaks: keys, messages, the system, exit codes | |
//!
//! Roles never import each other. `unsafe` is denied except in [`sys`] and [`vk`]. `tests/tidy.rs` checks both;
//! ARCHITECTURE.md follows one frame through all of it.

#![deny(unsafe_code)]

pub mod api;
pub mod compute;
pub mod config;
pub mod ctl;
pub mod decode;
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
