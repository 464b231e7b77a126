//! What the daemon tells about itself: the views behind `pointsman` and the page, and their JSON.
//!
//! A *view* is plain data made from the [`Engine`](crate::engine::Engine) while the controller holds it: small, owned, to be serialised elsewhere. What a
//! view says comes from the functions that decide ([`crate::policy::survey`]), so it is what the kernel was told.
//!
//! The JSON is a contract: fields are camelCase, addresses and times are texts (RFC 3339), shares are parts of 1, enums are camelCase words, what is not known or does not
//! apply is left out. Within [`VERSION`] fields and words may be added, and none is renamed or taken away; readers pass over what they do
//! not know.
//!
//! | view | route |
//! |---|---|
//! | [`ServicePage`] of [`ServiceView`] | `/v1/services?namespace=&search=&only=&page=&perPage=&connections=` |
//! | [`ServiceView`] | `/v1/services/NAMESPACE/NAME?connections=` |
//! | [`VirtualList`] of [`VirtualView`] | `/v1/list`: every frontend with its endpoints, as `ipvsadm -ln` has them |
//! | text of [`rows`] | `/v1/list?rows=true`: the same with connections, as it is printed |
//! | [`ConnectionList`] | `/v1/connections`: live connections by frontend and endpoint |
//! | [`RateList`] | `/v1/rates?seconds=`: what came within some seconds, by frontend and endpoint |
//! | [`FlowList`](flows::FlowList), or lines of [`FlowEvent`](flows::FlowEvent) | `/v1/flows?target=&client=&endpoint=&protocol=&state=&node=&most=&follow=`: connections one by one |
//! | [`Explanation`](explain::Explanation) | `/v1/explain?target=&from=&protocol=&verify=`: what becomes of a connection |
//! | [`OverrideList`] of [`OverrideView`] | `/v1/overrides`: what was said by hand; POST and DELETE say more and take back |
//! | [`DriftView`] | `/v1/drift`: every element of every Service looked up in the kernel |
//! | [`HealthView`] | `/v1/health` |
//!
//! Where things are: `service` one Service from all sides; `listing` the short form for lists, [`rows`] what that looks like; `search` who is looked for; [`query`] parameters; `traffic` connections by endpoint; [`flows`] connections one by one; `overrides` what was said by hand; [`explain`] one decision,
//! step by step;
//! `health` the daemon itself. No I/O: who asks and who answers is in [`crate::observe`].
//!
//! Invariants: making a view of a Service takes some microseconds per ten endpoints, so that some hundred fit between two batches
//! ([`CHUNK`]). Proven by the tests of each file, and by `tests/e2e/status.rs` over the socket.

pub mod explain;
pub mod flows;
mod health;
mod listing;
mod overrides;
pub mod query;
pub mod rows;
mod search;
mod service;
mod traffic;

pub use health::{ApiHealth, DriftView, FamilyHealth, HealthView, LastError, LastSync};
pub use listing::{DestinationView, ListedFrontend, VirtualList, VirtualView, crossed, list};
#[cfg(test)]
pub(crate) use listing::{briefly, thoroughly};
pub use overrides::{
    ByHandView, LONGEST, Lift, OverrideList, OverrideView, USUAL, lasting, order_of, override_on, overrides,
};
pub use query::{Parameters, QueryError};
pub use search::{Only, Page, Search};
pub use service::{
    CarrierView, EndpointView, FrontendView, MembershipView, PathView, PortView, ProblemView, SchedulerView,
    ServicePage, ServiceView, StandingView, VerdictView, view,
};
pub use traffic::{ConnectionList, ConnectionRow, Counters, Opened, RateList, RateRow, Sums, Traffic};

/// Of the contract; the first part of every path.
pub const VERSION: &str = "v1";

/// Services that are looked at in one go: the controller does nothing else meanwhile.
pub const CHUNK: usize = 256;
