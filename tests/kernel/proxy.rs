//! Engine and data plane of one namespace, driven by hand as the daemon's controller drives them.

use std::time::{Duration, Instant};

use nft::Connection;
use pointsman::compile::{Delta, Image};
use pointsman::engine::Engine;
use pointsman::kernel::{Applied, DataPlane, Found, KernelError, Ownership, Reading};
use pointsman::lab::Namespace;
use pointsman::model::Problem;
use pointsman::schedule::Scheduler;
use pointsman::source::{Change, Object};
use serde_json::Value;

use super::support::beds::PATIENCE;

/// A proxy under test; [`Proxy::die`] is what a `kill -9` is to the daemon.
pub struct Proxy {
    pub engine: Engine,
    pub plane: DataPlane,
    /// What it met when it started.
    pub found: Found,
    /// Problems reported by the last compilation.
    pub problems: Vec<Problem>,
}

impl Proxy {
    /// Starts in a namespace, adopting what is there.
    pub fn start(inside: &Namespace) -> Self {
        Self::try_start(inside).expect("a data plane, which needs root")
    }

    /// Starts, if it is let.
    pub fn try_start(inside: &Namespace) -> Result<Self, KernelError> {
        Self::with(inside.run(DataPlane::open)?, Reading::default())
    }

    /// Starts in a namespace, reading what is there in this way.
    pub fn start_reading(inside: &Namespace, reading: Reading) -> Self {
        let plane = inside.run(DataPlane::open).expect("a data plane, which needs root");
        Self::with(plane, reading).expect("tables that can be read")
    }

    /// Starts in an empty namespace, with tables that anybody may change, and programs these objects.
    pub fn exposed(inside: &Namespace, objects: &[Value]) -> Self {
        let plane = inside.run(|| DataPlane::open_as(Ownership::Shared)).expect("a data plane, which needs root");
        let mut proxy = Self::with(plane, Reading::default()).expect("an empty namespace");
        proxy.put(objects);
        proxy
    }

    fn with(mut plane: DataPlane, reading: Reading) -> Result<Self, KernelError> {
        let found = plane.read_by(reading)?;
        let mut engine = Engine::new("n1", Scheduler::Random);
        engine.adopt(found.image.clone());
        Ok(Self { engine, plane, found, problems: Vec::new() })
    }

    /// Starts in an empty namespace and programs these objects.
    pub fn serving(inside: &Namespace, objects: &[Value]) -> Self {
        let mut proxy = Self::start(inside);
        assert!(!proxy.found.existed, "the namespace should be empty");
        proxy.put(objects);
        proxy
    }

    /// Starts where a predecessor was, with these objects: adopts, compares, applies the difference.
    pub fn succeeding(inside: &Namespace, objects: &[Value]) -> (Self, Applied) {
        let mut proxy = Self::start(inside);
        let difference = proxy.difference(objects);
        let applied = proxy.plane.apply(&difference).expect("the kernel takes the difference");
        (proxy, applied)
    }

    /// Ends without a word, and waits until the kernel has noticed: a child process that another test is just starting may hold
    /// the socket for a moment longer.
    pub fn die(self, inside: &Namespace) {
        drop(self);
        let mut witness = inside.run(Connection::open).expect("a connection");
        let begin = Instant::now();
        while witness.tables().expect("tables").iter().any(|table| table.owner.is_some()) {
            assert!(begin.elapsed() < PATIENCE, "a table whose owner is gone should have none");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What a start with these objects would have to change.
    pub fn difference(&mut self, objects: &[Value]) -> Delta {
        self.take(objects);
        self.engine.compile();
        self.engine.settle();
        self.engine.difference(self.found.image.clone())
    }

    /// Takes objects in without programming them.
    pub fn take(&mut self, objects: &[Value]) {
        objects.iter().for_each(|object| self.engine.take(Change::Apply(decode(object))));
    }

    /// Takes a deletion in without programming it.
    pub fn forget(&mut self, object: &Value) {
        let object = decode(object);
        self.engine.take(Change::Delete(object.kind(), object.key()));
    }

    /// Programs what was taken.
    pub fn apply(&mut self) -> Applied {
        self.try_apply().expect("the kernel takes the change")
    }

    /// Programs what was taken, if it is let.
    pub fn try_apply(&mut self) -> Result<Applied, KernelError> {
        let outcome = self.engine.compile();
        self.problems = outcome.problems;
        self.plane.apply(&outcome.delta)
    }

    /// Takes objects in and programs them.
    pub fn put(&mut self, objects: &[Value]) -> Applied {
        self.take(objects);
        self.apply()
    }

    /// Deletes objects and programs that.
    pub fn delete(&mut self, objects: &[Value]) -> Applied {
        objects.iter().for_each(|object| self.forget(object));
        self.apply()
    }

    /// What the kernel has, by our own reading.
    pub fn image(&mut self) -> Image {
        let found = self.plane.read().expect("our own table can be read");
        assert!(found.rejected.is_empty(), "our own table should be adoptable: {:?}", found.rejected);
        found.image
    }

    /// Fails unless the kernel has exactly what is desired.
    pub fn assert_exact(&mut self, what: &str) {
        let image = self.image();
        let difference = self.engine.difference(image);
        assert!(difference.is_empty(), "{what}: the kernel should have what is desired, but for {difference:?}");
    }
}

fn decode(object: &Value) -> Object {
    let decoded = match object["kind"].as_str() {
        Some("Service") => serde_json::from_value(object.clone()).map(|service| Object::Service(Box::new(service))),
        Some("EndpointSlice") => {
            serde_json::from_value(object.clone()).map(|slice| Object::EndpointSlice(Box::new(slice)))
        }
        other => panic!("a Service or an EndpointSlice, not {other:?}"),
    };
    decoded.unwrap_or_else(|error| panic!("{object} should decode: {error}"))
}
