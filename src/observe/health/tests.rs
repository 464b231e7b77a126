//! The judgement as a table, and over HTTP. Names of upstream's tests where they test the same.

use std::net::{Ipv4Addr, SocketAddr};

use super::super::http::tests::{ask, get, reachable};
use super::super::http::{Limits, Server};
use super::super::metrics::Exposition;
use super::*;

const PERIOD: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

fn moment() -> Moment {
    Moment { wall: "2026-02-03T04:05:06.7Z".parse().expect("a time"), steady: Instant::now() }
}

enum Step {
    Wait(u64),
    Queued(Family),
    Updated(Family),
    Eligible(bool),
    /// livez, healthz
    Expect(bool, bool),
}

fn play(steps: &[Step]) {
    let mut health = ProxyHealth::new(PERIOD, true);
    let mut now = moment();
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Wait(seconds) => now = now.after(SECOND * u32::try_from(*seconds).expect("small")),
            Step::Queued(family) => health.queued(*family, now),
            Step::Updated(family) => health.updated(*family, now),
            Step::Eligible(eligible) => health.set_eligible(*eligible),
            Step::Expect(live, healthy) => {
                let verdict = health.verdict(now);
                let codes = (verdict.answer(Probe::Livez).status(), verdict.answer(Probe::Healthz).status());
                let code = |good: bool| if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                assert_eq!(codes, (code(*live), code(*healthy)), "step {number}");
            }
        }
    }
}

use Family::{V4, V6};
use Step::*;

#[test]
fn test_proxy_health_updater() {
    // Healthy by default, after updates, and for as long as nothing is asked for.
    play(&[Expect(true, true), Updated(V4), Updated(V6), Expect(true, true), Wait(86_400), Expect(true, true)]);
    // One family late is enough, whichever; in time up to one second before the limit.
    for family in [V4, V6] {
        play(&[Queued(family), Wait(59), Expect(true, true), Wait(1), Expect(false, false)]);
    }
    // Success of the late one mends it, success of the other does not.
    play(&[Queued(V4), Wait(61), Updated(V6), Expect(false, false), Updated(V4), Expect(true, true)]);
    play(&[Queued(V6), Wait(61), Updated(V4), Expect(false, false), Updated(V6), Expect(true, true)]);
    // The oldest request counts, and is forgotten with success.
    play(&[Queued(V4), Wait(40), Queued(V4), Wait(20), Expect(false, false)]);
    play(&[
        Queued(V4),
        Wait(40),
        Updated(V4),
        Queued(V4),
        Wait(40),
        Expect(true, true),
        Wait(20),
        Expect(false, false),
    ]);
}

#[test]
fn eligibility_concerns_healthz_only() {
    play(&[Eligible(false), Expect(true, false), Eligible(true), Expect(true, true)]);
    play(&[Eligible(false), Queued(V4), Wait(60), Expect(false, false)]);
}

#[test]
fn setting_the_clock_changes_nothing() {
    let mut health = ProxyHealth::new(PERIOD, true);
    let now = moment();
    health.queued(V4, now);
    let jumped = Moment { wall: now.wall + SECOND * 3600, steady: now.steady + SECOND };
    assert!(health.verdict(jumped).healthy);
    let back = Moment { wall: now.wall - SECOND * 3600, steady: now.steady + PERIOD * 2 };
    assert!(!health.verdict(back).healthy);
}

async fn body(verdict: &Verdict, probe: Probe) -> String {
    use http_body_util::BodyExt;
    let bytes = verdict.answer(probe).into_body().collect().await.expect("at hand").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[tokio::test]
async fn bodies_are_those_of_kube_proxy() {
    let mut health = ProxyHealth::new(PERIOD, true);
    let now = moment();
    assert_eq!(
        body(&health.verdict(now), Probe::Livez).await,
        r#"{"lastUpdated":"2026-02-03T04:05:06.7Z","currentTime":"2026-02-03T04:05:06.7Z","healthy":true}"#
    );
    health.queued(V4, now);
    let late = now.after(Duration::new(60, 23_456_789));
    assert_eq!(
        body(&health.verdict(late), Probe::Healthz).await,
        r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-02-03T04:06:06.723456789Z","nodeEligible":true,"healthy":false}"#
    );
    health.updated(V6, now.after(SECOND));
    health.updated(V4, now);
    health.queued(V6, now.after(SECOND));
    health.set_eligible(false);
    let late = now.after(SECOND * 61);
    insta::assert_snapshot!(body(&health.verdict(late), Probe::Healthz).await, @r#"{"lastUpdated":"2026-02-03T04:05:07.7Z","currentTime":"2026-02-03T04:06:07.7Z","nodeEligible":false,"healthy":false,"status":{"IPv4":{"lastUpdated":"2026-02-03T04:05:06.7Z","healthy":true},"IPv6":{"lastUpdated":"2026-02-03T04:05:07.7Z","healthy":false}}}"#);
    health.updated(V6, late);
    let verdict = health.verdict(late);
    assert!(verdict.healthy && !verdict.eligible);
    assert!(body(&verdict, Probe::Healthz).await.contains(r#""nodeEligible":false,"healthy":true"#));
}

fn serve(reporter: &HealthReporter) -> (Server, SocketAddr) {
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let handler = handler(reporter.watch());
    let server = Server::start("health", address, true, Limits::default(), handler).expect("a free port");
    let address = reachable(&server);
    (server, address)
}

async fn probe_all(path: &str) {
    let (exposition, recorder) = Exposition::new();
    let _recording = metrics_guard(&recorder);
    let reporter = HealthReporter::new(ProxyHealth::new(PERIOD, true));
    let (_server, address) = serve(&reporter);
    let good = get(address, path).await;
    assert_eq!((good.status, good.header("content-type")), (200, Some("application/json")));
    assert_eq!(good.header("x-content-type-options"), Some("nosniff"));
    assert!(!good.body.ends_with('\n') && good.body.contains(r#""healthy":true"#), "{}", good.body);
    assert_eq!(good.body.contains("nodeEligible"), path == "/healthz");

    let now = Moment::now();
    let long_ago = Moment { steady: now.steady.checked_sub(PERIOD * 2).unwrap_or(now.steady), wall: now.wall };
    reporter.queued([V4], long_ago);
    let late = get(address, path).await;
    assert_eq!(late.status, 503);
    assert_eq!(ask(address, "HEAD", path, &[], "").await.status, 503);
    reporter.updated([V4], Moment::now());
    assert_eq!(ask(address, "POST", path, &[], "").await.status, 200);
    reporter.set_eligible(false);
    let ineligible = get(address, path).await.status;
    assert_eq!(ineligible, if path == "/healthz" { 503 } else { 200 });
    // Readiness is another question: no probe of the others changes it, nor does being healthy.
    assert_eq!(get(address, "/readyz").await.status, 503);
    reporter.loaded();
    let ready = get(address, "/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (200, "ok"));
    for other in ["/", "/healthz/", "/readyz/", "/metrics"] {
        let said = get(address, other).await;
        assert_eq!((said.status, said.body.as_str()), (404, "404 page not found\n"), "{other}");
    }
    let name = format!("kubeproxy_proxy_{}_total", &path[1..]);
    let (ok, bad) = if path == "/healthz" { (2, 3) } else { (3, 2) };
    for (code, count) in [(200, ok), (503, bad)] {
        let line = format!("{name}{{code=\"{code}\"}} {count}");
        assert!(exposition.render().contains(&line), "{line} in {}", exposition.render());
    }
}

fn metrics_guard(recorder: &metrics_prometheus::Recorder) -> ::metrics::LocalRecorderGuard<'_> {
    ::metrics::set_default_local_recorder(recorder)
}

#[tokio::test]
async fn test_healthz_server() {
    probe_all("/healthz").await;
}

#[tokio::test]
async fn test_livez_server() {
    probe_all("/livez").await;
}
