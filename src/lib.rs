//! Pointsman: a drop-in replacement for kube-proxy that compiles Services into nftables maps.
#![forbid(unsafe_code)]

pub mod compile;
pub mod demo;
pub mod engine;
pub mod lab;
pub mod model;
pub mod policy;
pub mod schedule;
pub mod source;
