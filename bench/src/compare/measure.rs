//! How each figure is taken; the same for everybody.
//!
//! Everything is seen from outside, by connections of a client: so it does not matter whether a contender is a daemon, a program that ends,
//! or nothing at all. What has several variants (schedulers, events) gives an observation for each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::contender::{Contender, Running};
use super::model::{self, Measurement, Service};
use super::stage::{CLIENTS, Stage, WEB_ENDPOINTS, client_address};
use crate::arrivals::Open;
use crate::first_packet::connect;
use crate::forward::load as tcp;
use crate::forward_udp::load::{self as udp, Load};
use crate::live::{Holding, schedule};
use crate::stats::{Spread, quantile};

/// Endpoints of the Service whose balance is looked at.
const BALANCED: usize = 10;
/// Its load: connections per second, and how long they last on average.
const ARRIVALS: f64 = 200.0;
const HOLDING: f64 = 1.0;
/// Connections held through every event.
const HELD: usize = 32;
/// Clients at once, and streams at once.
const ASKING: usize = 16;
const STREAMS: usize = 4;
/// Removals that are timed.
const REMOVALS: usize = 5;
/// Connections between two looks at the floor, in a set-up block.
const SLICE: usize = 200;

/// How long and how often.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Connections of a set-up block.
    pub samples: usize,
    /// Of a load.
    pub span: Duration,
    /// Single changes.
    pub changes: usize,
    /// Of a balance run.
    pub balance: f64,
    /// Until a change must have had its effect.
    pub settle: Duration,
    /// Until a program counts as failed.
    pub limit: Duration,
}

/// What is at hand for a measurement.
pub struct Scene<'a> {
    pub stage: &'a Stage,
    /// The stage without a proxy.
    pub floor: &'a Stage,
    pub cluster: &'a [Service],
    pub services: u32,
    pub contender: &'a dyn Contender,
    pub pace: &'a Pace,
    pub seed: u64,
}

/// Figures by key.
pub type Values = BTreeMap<String, f64>;

/// Each with its variant.
pub type Observations = Vec<(String, Values)>;

fn values<const N: usize>(pairs: [(&str, f64); N]) -> Values {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn alone(values: Values) -> Observations {
    vec![(String::new(), values)]
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// p50 of connecting without a proxy, in microseconds: whether the machine is as it was.
pub fn floor(stage: &Stage, samples: usize) -> anyhow::Result<f64> {
    let to: SocketAddr = (model::bulk_endpoint(0), model::BULK_PORT).into();
    let block = stage.client().run(|| connect::measure(&mut std::iter::repeat(to), stage.bulk(), samples))?;
    Ok(micros(quantile(&block.sorted, 0.5)))
}

impl Scene<'_> {
    /// Takes one measurement.
    pub fn measure(&self, measurement: Measurement, running: &mut dyn Running) -> anyhow::Result<Observations> {
        self.stage.forget_connections()?;
        match measurement {
            Measurement::Setup => self.setup().map(alone),
            Measurement::Requests => self.requests().map(alone),
            Measurement::OneChange => self.one_change(running).map(alone),
            Measurement::Throughput => self.throughput().map(alone),
            Measurement::Udp => self.udp().map(alone),
            Measurement::Packets => self.packets().map(alone),
            Measurement::Balance => self.balance(running),
            Measurement::Moved => self.moved(running),
            Measurement::Disruption => self.disruption(running),
            Measurement::Removal => self.removal(running).map(alone),
            Measurement::FirstSync | Measurement::Cost => anyhow::bail!("taken at the start"),
        }
    }

    fn to(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let service = self.cluster.iter().find(|service| service.name == name).context("one of the three")?;
        Ok(self.contender.address(service))
    }

    /// Slices of connections and of the floor's take turns: the machine's speed may change by half within a second, and what it does to a
    /// slice it does to the floor beside it. So the ratio is the median of ratios of neighbours, not a ratio of medians.
    fn setup(&self) -> anyhow::Result<Values> {
        let (count, slices) = (self.contender.targets(self.services), self.pace.samples.div_ceil(SLICE));
        // Steps of a prime: neighbours in number are not neighbours in time.
        let service = |step: u32| &self.cluster[(step.wrapping_mul(7919) % count) as usize];
        let mut targets = (0..).map(|step| self.contender.address(service(step)));
        let (mut all, mut ratios) = (Vec::new(), Vec::new());
        let mut before = floor(self.floor, SLICE)?;
        for _ in 0..slices {
            let block = self.stage.client().run(|| connect::measure(&mut targets, self.stage.bulk(), SLICE))?;
            let after = floor(self.floor, SLICE)?;
            ratios.push(micros(quantile(&block.sorted, 0.5)) * 2.0 / (before + after));
            all.extend(block.sorted);
            before = after;
        }
        all.sort();
        let rate = all.len() as f64 / all.iter().sum::<Duration>().as_secs_f64();
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| micros(quantile(&all, share)));
        let ratio = Spread::of(ratios).median;
        Ok(values([("p50_ratio", ratio), ("p50_us", p50), ("p90_us", p90), ("p99_us", p99), ("rate", rate)]))
    }

    fn requests(&self) -> anyhow::Result<Values> {
        let to = self.to(model::STREAM)?;
        let (times, rate) = tcp::transactions(self.stage.client(), to, ASKING, self.pace.span)?;
        let [p50, p99] = [0.5, 0.99].map(|share| micros(quantile(&times, share)));
        Ok(values([("rate", rate), ("p50_us", p50), ("p99_us", p99)]))
    }

    fn throughput(&self) -> anyhow::Result<Values> {
        let to = self.to(model::STREAM)?;
        let received = tcp::throughput(self.stage.client(), to, STREAMS, self.pace.span, || Ok(()))?;
        Ok(values([("gbps", received.gigabits_per_second)]))
    }

    fn udp(&self) -> anyhow::Result<Values> {
        let one = self.datagrams(Load::PingPong)?;
        self.stage.forget_connections()?;
        let fresh = self.datagrams(Load::Fresh)?;
        Ok(values([("p50_us", micros(one.p50)), ("p99_us", micros(one.p99)), ("fresh_rate", fresh.rate())]))
    }

    fn packets(&self) -> anyhow::Result<Values> {
        Ok(values([("rate", 2.0 * self.datagrams(Load::Standing)?.rate())]))
    }

    fn datagrams(&self, load: Load) -> anyhow::Result<udp::Block> {
        let (to, span) = (self.to(model::DNS)?, self.pace.span.max(Duration::from_millis(400)) / 2);
        self.stage.client().run(|| udp::run(load, to, span, &AtomicU64::default()))
    }

    /// Hands a change over, and connects until the endpoint of this number answers; returns how long that took.
    fn until(&self, running: &mut dyn Running, service: &Service, endpoint: usize) -> anyhow::Result<Duration> {
        let (door, settle) = (self.stage.web(service.to()), self.pace.limit);
        let started = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let poll = scope.spawn(|| {
                self.stage.client().run(|| {
                    let begin = Instant::now();
                    while begin.elapsed() < settle {
                        let at = Instant::now();
                        if door.open().is_ok_and(|open| open.endpoint == endpoint) && started.load(Ordering::Relaxed) {
                            return Ok(at);
                        }
                        std::thread::sleep(
                            (begin.elapsed() / 200).clamp(Duration::from_micros(30), Duration::from_millis(2)),
                        );
                    }
                    anyhow::bail!("the new endpoint was not met within {} s", settle.as_secs())
                })
            });
            // The first polls are those of a warm path.
            std::thread::sleep(Duration::from_millis(3));
            started.store(true, Ordering::Relaxed);
            let begin = Instant::now();
            let handed = running.change(service);
            let met = poll.join().expect("no panic");
            handed?;
            Ok(met?.saturating_duration_since(begin))
        })
    }

    fn one_change(&self, running: &mut dyn Running) -> anyhow::Result<Values> {
        running.change(&model::web([0], None))?;
        self.settle();
        let (mut times, begin) = (Vec::new(), Instant::now());
        for number in 0..self.pace.changes {
            // One that no recent change had: proxies that are told to read again keep processes of an earlier configuration for a while.
            let endpoint = (number + 1) % WEB_ENDPOINTS;
            times.push(self.until(running, &model::web([endpoint], None), endpoint)?);
            // Some changes take so long that few of them say enough.
            if begin.elapsed() > self.pace.limit / 6 && times.len() > 2 {
                break;
            }
            std::thread::sleep(Duration::from_millis(15));
        }
        self.restore(running)?;
        times.sort();
        let longest = times.last().copied().unwrap_or_default();
        Ok(values([
            ("p50_ms", millis(quantile(&times, 0.5))),
            ("max_ms", millis(longest)),
            ("changes", times.len() as f64),
        ]))
    }

    fn removal(&self, running: &mut dyn Running) -> anyhow::Result<Values> {
        let mut times = Vec::new();
        for _ in 0..REMOVALS {
            running.change(&model::web(0..4, None))?;
            self.settle();
            let churn = self.churn(|| running.change(&model::web(0..3, None)))?;
            let last = churn.met.iter().filter(|(_, endpoint)| *endpoint == 3).map(|(at, _)| *at).max();
            times.push(last.map_or(Duration::ZERO, |last| last.saturating_duration_since(churn.begun)));
        }
        self.restore(running)?;
        times.sort();
        Ok(values([("ms", millis(quantile(&times, 0.5))), ("max_ms", millis(times[times.len() - 1]))]))
    }

    fn balance(&self, running: &mut dyn Running) -> anyhow::Result<Observations> {
        let mut observations = Vec::new();
        for scheduler in self.contender.schedulers() {
            let service = model::web(0..BALANCED, Some(*scheduler));
            running.change(&service)?;
            self.settle();
            let mut sum = values([("most", 0.0), ("cv", 0.0), ("jain", 0.0), ("failed", 0.0)]);
            for holding in Holding::ALL {
                let mut random = fastrand::Rng::with_seed(self.seed);
                let seconds = self.pace.balance;
                let visits = schedule(&mut random, ARRIVALS, seconds, holding, HOLDING);
                let door = self.stage.web(service.to());
                let warm = HOLDING.min(seconds / 3.0);
                let carried = self.stage.client().run(|| door.carry_out(&visits, warm, seconds, BALANCED));
                let half = 1.0 / Holding::ALL.len() as f64;
                let even = carried.even;
                let found = [("most", even.most), ("cv", even.cv), ("jain", even.jain)];
                found.into_iter().for_each(|(key, value)| *sum.get_mut(key).expect("there") += value * half);
                *sum.get_mut("failed").expect("there") += carried.failures as f64;
                self.stage.web(service.to()).clear()?;
            }
            observations.push(((*scheduler).to_owned(), sum));
        }
        self.restore(running)?;
        Ok(observations)
    }

    fn moved(&self, running: &mut dyn Running) -> anyhow::Result<Observations> {
        let mut observations = Vec::new();
        for scheduler in self.contender.steady() {
            let all = model::web(0..BALANCED, Some(*scheduler));
            let fewer = model::web(0..BALANCED - 1, Some(*scheduler));
            running.change(&all)?;
            self.settle();
            let first = self.everybody(&all)?;
            running.change(&fewer)?;
            self.settle();
            let meanwhile = self.everybody(&all)?;
            running.change(&all)?;
            self.settle();
            let last = self.everybody(&all)?;
            let share = |now: &[Option<usize>]| {
                let stayed: Vec<_> = first.iter().zip(now).filter(|(was, _)| **was != Some(BALANCED - 1)).collect();
                100.0 * stayed.iter().filter(|(was, is)| was != is).count() as f64 / stayed.len().max(1) as f64
            };
            let [left, back] = [share(&meanwhile), share(&last)];
            observations.push(((*scheduler).to_owned(), values([("left_pct", left), ("back_pct", back)])));
        }
        self.restore(running)?;
        Ok(observations)
    }

    /// Whom each client address meets; nobody if it is refused.
    fn everybody(&self, service: &Service) -> anyhow::Result<Vec<Option<usize>>> {
        self.stage.forget_connections()?;
        let door = self.stage.web(service.to());
        let patience = Duration::from_millis(300);
        let meets = |number| door.open_from(Some(client_address(number)), patience).ok().map(|open| open.endpoint);
        Ok(self.stage.client().run(|| (0..CLIENTS).map(meets).collect()))
    }

    fn disruption(&self, running: &mut dyn Running) -> anyhow::Result<Observations> {
        let mut observations = Vec::new();
        let mut event = |name: &str, work: &mut dyn FnMut() -> anyhow::Result<()>| -> anyhow::Result<()> {
            self.settle();
            let door = self.stage.web(model::web([], None).to());
            door.clear()?;
            let hold = || (0..HELD).map(|_| door.open()).collect::<anyhow::Result<Vec<Open>>>();
            let held = self.stage.client().run(hold).context("connections to hold")?;
            // One that a proxy made too late for its client would be taken for the next one's.
            anyhow::ensure!(held.iter().all(Open::alive), "a connection to hold does not carry a byte");
            let churn = self.churn(work)?;
            let broken = held.iter().filter(|open| !open.alive()).count();
            let found = [
                ("failed", churn.failed as f64),
                ("new", (churn.met.len() + churn.failed) as f64),
                ("broken", broken as f64),
                ("held", held.len() as f64),
            ];
            observations.push((name.to_owned(), values(found)));
            Ok(())
        };
        event("scale-up", &mut || running.change(&model::web(0..6, None)))?;
        event("scale-down", &mut || running.change(&model::web(0..4, None)))?;
        event("rolling", &mut || {
            for step in 1..=4 {
                running.change(&model::web(step..step + 4, None))?;
                std::thread::sleep(self.pace.settle / 4);
            }
            Ok(())
        })?;
        event("restart", &mut || running.restart())?;
        self.restore(running)?;
        Ok(observations)
    }

    /// Connects all the time while something is done, and a while longer.
    fn churn(&self, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Churn> {
        let door = self.stage.web(model::web([], None).to());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                self.stage.client().run(|| {
                    let (mut met, mut failed) = (Vec::new(), 0);
                    while !stop.load(Ordering::Relaxed) {
                        let at = Instant::now();
                        match door.open_from(None, Duration::from_secs(1)) {
                            Ok(open) => met.push((at, open.endpoint)),
                            Err(_) => {
                                failed += 1;
                                let _ = door.clear();
                            }
                        }
                        std::thread::sleep(Duration::from_micros(500));
                    }
                    (met, failed)
                })
            });
            std::thread::sleep(Duration::from_millis(20));
            let begun = Instant::now();
            let done = work();
            self.settle();
            stop.store(true, Ordering::Relaxed);
            let (met, failed) = client.join().expect("no panic");
            done?;
            Ok(Churn { begun, met, failed })
        })
    }

    fn restore(&self, running: &mut dyn Running) -> anyhow::Result<()> {
        running.change(&model::web(0..4, None))?;
        self.settle();
        self.stage.web(model::web([], None).to()).clear()
    }

    fn settle(&self) {
        std::thread::sleep(self.pace.settle);
    }
}

/// What clients met.
struct Churn {
    begun: Instant,
    met: Vec<(Instant, usize)>,
    failed: usize,
}
