//! A lab with a daemon, a Service, and one thread that is client and servers.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pointsman::lab::Lab;
use socket2::Socket;

use crate::arrivals::{self, Carried, Door, Open, Visit};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the manifests are, the daemon, and a listener per endpoint.
pub struct Rig {
    // Dropped in this order.
    listeners: Vec<Socket>,
    daemon: Child,
    directory: PathBuf,
    scheduler: &'static str,
    lab: Lab,
}

/// What came of a schedule.
pub struct Run {
    /// Mean coefficient of variation.
    pub variation: f64,
    /// As they really came.
    pub visits: Vec<Visit>,
    pub failures: usize,
    /// How late 99 of 100 were at most.
    pub late: Duration,
    /// CPU time of the threads `counts` and `controller`.
    pub cpu: [Duration; 2],
    /// How often the thread `counts` woke up.
    pub wakeups: u64,
}

/// One connection after an endpoint joined.
pub struct Step {
    pub connection: usize,
    pub seconds: f64,
    pub newcomer: u32,
    pub least: u32,
    pub most: u32,
}

// === impl Rig ===

impl Rig {
    /// A Service with as many endpoints as [`super::ENDPOINTS`], and pods for so many.
    pub fn new(scheduler: &'static str, pods: usize) -> anyhow::Result<Self> {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most.min(200_000), most)?;
        let names: Vec<_> = (0..pods).map(|number| format!("pod-{number}")).collect();
        let lab = Lab::builder().prefix("pmlive").pods(names.clone()).build()?;
        let listeners = names
            .iter()
            .map(|name| lab.pod(name).run(|| arrivals::listen(TARGET)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let directory = std::env::temp_dir().join(format!("{}-manifests", lab.name()));
        fs::create_dir_all(&directory)?;
        let binary = std::env::current_exe()?.with_file_name("kube-proxy");
        let mut command = Command::new(&binary);
        command.args(["--hostname-override", "bench", "--manifests"]).arg(&directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        write(&lab, &directory, scheduler, super::ENDPOINTS)?;
        let daemon = lab.node().spawn(command).with_context(|| format!("starting {}", binary.display()))?;
        let rig = Self { listeners, daemon, directory, scheduler, lab };
        rig.lab.client(0).run(|| rig.until_served())?;
        Ok(rig)
    }

    /// Changes the number of endpoints.
    pub fn serve(&self, endpoints: usize) -> anyhow::Result<()> {
        write(&self.lab, &self.directory, self.scheduler, endpoints)
    }

    fn until_served(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while self.open().is_err() {
            anyhow::ensure!(begin.elapsed() < PATIENCE, "the daemon should serve by now");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Opens a connection and finds out whose it is.
    fn open(&self) -> anyhow::Result<Open> {
        self.door().open()
    }

    fn door(&self) -> Door<'_> {
        Door { listeners: &self.listeners, to: (VIP, PORT).into(), endpoint: |listener, _| listener }
    }

    /// Carries a schedule out.
    pub fn run(&self, visits: &[Visit], warm: f64, seconds: f64) -> anyhow::Result<Run> {
        std::thread::sleep(Duration::from_millis(200));
        let before = self.usage();
        let carried = self.lab.client(0).run(|| self.door().carry_out(visits, warm, seconds, super::ENDPOINTS));
        let after = self.usage();
        let cpu = [0, 1].map(|thread: usize| after[thread].0.saturating_sub(before[thread].0));
        let Carried { even, visits, failures, late } = carried;
        Ok(Run { variation: even.cv, visits, failures, late, cpu, wakeups: after[0].1 - before[0].1 })
    }

    /// Holds so many connections, lets an endpoint join, and opens some more.
    pub fn join(&self, held: usize, rate: f64) -> anyhow::Result<Vec<Step>> {
        self.lab.client(0).run(|| {
            let mut open = vec![0u32; self.listeners.len()];
            let mut kept = Vec::new();
            for _ in 0..held {
                kept.push(self.open()?);
                std::thread::sleep(Duration::from_micros(500));
            }
            kept.iter().for_each(|one: &Open| open[one.endpoint] += 1);
            self.serve(self.listeners.len())?;
            let begin = Instant::now();
            let mut steps = Vec::new();
            for connection in 1..=held / 4 {
                let due = begin + Duration::from_secs_f64(connection as f64 / rate);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let one = self.open()?;
                open[one.endpoint] += 1;
                kept.push(one);
                let (newcomer, others) = open.split_last().expect("endpoints");
                let (least, most) = (others.iter().min().expect("ten"), others.iter().max().expect("ten"));
                let seconds = begin.elapsed().as_secs_f64();
                steps.push(Step { connection, seconds, newcomer: *newcomer, least: *least, most: *most });
            }
            Ok(steps)
        })
    }

    /// CPU time and wake-ups of `counts` and `controller`.
    fn usage(&self) -> [(Duration, u64); 2] {
        ["counts", "controller"].map(|name| self.thread(name).unwrap_or_default())
    }

    fn thread(&self, name: &str) -> Option<(Duration, u64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.daemon.id())).ok()?;
        let named = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name);
        let task = tasks.filter_map(|task| Some(task.ok()?.path())).find(named)?;
        let nanos = fs::read_to_string(task.join("schedstat")).ok()?.split(' ').next()?.parse().ok()?;
        let status = fs::read_to_string(task.join("status")).ok()?;
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((Duration::from_nanos(nanos), switches.trim().parse().ok()?))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Writes the manifests beside, then renames them over: the daemon sees all or nothing.
fn write(lab: &Lab, directory: &std::path::Path, scheduler: &str, endpoints: usize) -> anyhow::Result<()> {
    let (scheduler, beside) = match scheduler.strip_suffix("-beside-lc") {
        Some(scheduler) => (scheduler, true),
        None => (scheduler, false),
    };
    let mut items = objects(lab, "web", VIP, scheduler, endpoints);
    if beside {
        items.push(',');
        items.push_str(&objects(lab, "idle", Ipv4Addr::new(10, 96, 0, 2), "lc", endpoints));
    }
    let text = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{items}]}}"#);
    let beside = directory.join(".new");
    fs::write(&beside, text)?;
    Ok(fs::rename(beside, directory.join("all.json"))?)
}

fn objects(lab: &Lab, name: &str, ip: Ipv4Addr, scheduler: &str, endpoints: usize) -> String {
    let address = |number: usize| {
        format!(
            r#"{{"addresses":["{}"],"conditions":{{"ready":true}}}}"#,
            lab.pod(&format!("pod-{number}")).addresses().v4
        )
    };
    let endpoints: Vec<_> = (0..endpoints).map(address).collect();
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"namespace":"bench","name":"{name}","annotations":{{"pointsman.dev/scheduler":"{scheduler}"}}}},
        "spec":{{"clusterIP":"{ip}","clusterIPs":["{ip}"],"ipFamilies":["IPv4"],"ports":[{{"name":"","port":{PORT}}}]}}}},
        {{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4",
        "metadata":{{"namespace":"bench","name":"{name}-1","labels":{{"kubernetes.io/service-name":"{name}"}}}},
        "ports":[{{"name":"","port":{TARGET}}}],"endpoints":[{}]}}"#,
        endpoints.join(",")
    )
}
