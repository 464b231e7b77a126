//! What one changed Service of 1,000 endpoints costs before the kernel, and what it costs to read a slice.
//!
//! `change/*`: one endpoint of a Service with 1,000 endpoints (ten slices of 100) leaves or joins: [`Engine::take`] of the slice,
//! policy and compile of the Service. `alone` is an engine with nothing else, `among-10000` one that holds 10,000 other Services of
//! ten endpoints. The two must not differ: there is no work for unchanged Services. `random` is the default, whose endpoints are
//! exchanged one by one; `affinity` has session affinity, so that all 1,000 are looked at.
//!
//! `slice/*`: an EndpointSlice of 100 endpoints, as an API server writes it, from JSON to the object and on to the model.

#![allow(missing_docs)]

#[path = "../src/cluster.rs"]
#[allow(dead_code)]
mod cluster;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pointsman::engine::Engine;
use pointsman::model::{Names, Slice};
use pointsman::schedule::Scheduler;
use pointsman::source::{Change, Object, ObjectKey};
use serde_json::{Value, json};

use cluster::Endpoints;

/// The daemon's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SLICES: u16 = 10;
const PER_SLICE: u16 = 100;

/// The Service that changes.
fn large(affinity: bool) -> Change {
    let value = json!({
        "metadata": {"namespace": "bench", "name": "large"},
        "spec": {
            "clusterIPs": ["10.97.0.1"], "ports": [{"name": "http", "port": 80}],
            "sessionAffinity": if affinity { "ClientIP" } else { "None" },
        },
    });
    Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
}

/// One of its slices, with all its endpoints or one in the middle missing.
fn slice(number: u16, complete: bool) -> Value {
    let endpoints: Vec<_> = (0..PER_SLICE)
        .filter(|endpoint| complete || *endpoint != PER_SLICE / 2)
        .map(|endpoint| {
            json!({
                "addresses": [format!("10.200.{number}.{endpoint}")], "nodeName": format!("node-{}", endpoint % 7), "zone": "a",
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": "bench", "name": format!("large-6d4cf56db6-{number}-{endpoint}"),
                    "uid": "9f1c7f3e-53a1-4d0e-8f3a-2f1f0b7f6c11"},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "bench", "name": format!("large-{number}"), "resourceVersion": "12345", "generation": 7,
            "labels": {"kubernetes.io/service-name": "large", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

fn change(number: u16, complete: bool) -> Change {
    let slice = serde_json::from_value(slice(number, complete)).expect("decodes");
    Change::Apply(Object::EndpointSlice(Box::new(slice)))
}

fn engine(others: u32, affinity: bool) -> Engine {
    let mut engine = Engine::new("bench", Scheduler::Random);
    cluster::changes(others, Endpoints::Spread).into_iter().for_each(|change| engine.take(change));
    engine.take(large(affinity));
    (0..SLICES).for_each(|number| engine.take(change(number, true)));
    let problems = engine.compile().problems;
    assert!(problems.is_empty(), "{problems:?}");
    engine
}

/// Lets an endpoint go and come back, and times one of the two.
fn alternate(engine: &mut Engine, times: u64, timed: bool) -> Duration {
    let mut total = Duration::ZERO;
    for time in 0..times {
        let number = (time % u64::from(SLICES)) as u16;
        for complete in [false, true] {
            let change = change(number, complete);
            let begin = Instant::now();
            engine.take(change);
            let outcome = black_box(engine.compile());
            let took = begin.elapsed();
            assert!(!outcome.delta.is_empty() && outcome.services.len() == 1, "this Service and no other");
            if complete == timed {
                total += took;
            }
        }
    }
    total
}

fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    group.throughput(Throughput::Elements(u64::from(SLICES * PER_SLICE)));
    for (kind, affinity) in [("random", false), ("affinity", true)] {
        for (place, others) in [("alone", 0), ("among-10000", 10_000)] {
            let mut engine = engine(others, affinity);
            for (what, timed) in [("leaves", false), ("joins", true)] {
                group.bench_function(format!("{kind}/{what}/{place}"), |bencher| {
                    bencher.iter_custom(|times| alternate(&mut engine, times, timed));
                });
            }
        }
    }
    group.finish();
}

fn slices(criterion: &mut Criterion) {
    let text = slice(0, true).to_string();
    let decode = || serde_json::from_str(black_box(&text)).expect("decodes");
    let key = ObjectKey { namespace: "bench".into(), name: "large-0".into() };
    let mut group = criterion.benchmark_group("slice");
    group.throughput(Throughput::Elements(u64::from(PER_SLICE)));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| -> pointsman::source::object::EndpointSlice { decode() });
    });
    let mut names = Names::default();
    group.bench_function("decode-and-parse", |bencher| bencher.iter(|| Slice::parse(&key, &decode(), &mut names)));
    group.finish();
}

criterion_group! {
    name = engine_benches;
    config = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = changes, slices
}
criterion_main!(engine_benches);
