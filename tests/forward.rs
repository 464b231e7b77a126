//! The userspace forwarder between real clients and real pods. Needs root, and fails without it.

#[path = "forward/bed.rs"]
mod bed;
#[path = "forward/bytes.rs"]
mod bytes;
#[path = "forward/client_ip.rs"]
mod client_ip;
#[path = "forward/faults.rs"]
mod faults;
#[path = "forward/life.rs"]
mod life;
#[path = "forward/limits.rs"]
mod limits;
#[path = "forward/proxy.rs"]
mod proxy;
