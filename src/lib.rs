//! Pointsman: a drop-in replacement for kube-proxy that compiles Services into nftables maps.
#![forbid(unsafe_code)]

pub mod cleanup;
pub mod compile;
pub mod config;
pub mod conntrack;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod engine;
pub mod forward;
pub mod kernel;
pub mod lab;
pub mod logging;
pub mod model;
pub mod observe;
pub mod operator;
pub mod policy;
pub mod schedule;
pub mod source;
pub mod status;
