//! Every path of the metrics port, as a client sees it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use super::super::http::tests::{ask, get, reachable};
use super::super::http::{Limits, Server};
use super::super::metrics::Exposition;
use super::*;

fn serve(surface: Surface) -> (Server, SocketAddr) {
    let (exposition, _) = Exposition::new();
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let handler = handler(surface, exposition, None);
    let server = Server::start("metrics", address, true, Limits::default(), handler).expect("a free port");
    let address = reachable(&server);
    (server, address)
}

fn surface() -> Surface {
    Surface {
        mode: "iptables".to_owned(),
        configuration: Some(Arc::new(|| r#"{"kind":"KubeProxyConfiguration"}"#.to_owned())),
        flags: vec![("v".to_owned(), "2".to_owned()), ("config".to_owned(), "/c".to_owned())],
        version: "1.36.2".to_owned(),
        ..Surface::default()
    }
}

#[tokio::test]
async fn the_simple_paths() {
    let (_server, address) = serve(surface());
    for (path, kind, body) in [
        ("/healthz", "text/plain; charset=utf-8", "ok"),
        ("/healthz/ping", "text/plain; charset=utf-8", "ok"),
        ("/healthz?verbose", "text/plain; charset=utf-8", "[+]ping ok\nhealthz check passed\n"),
        ("/proxyMode", "text/plain; charset=utf-8", "iptables"),
        ("/configz", "application/json", r#"{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration"}}"#),
    ] {
        let said = get(address, path).await;
        assert_eq!((said.status, said.header("content-type"), said.body.as_str()), (200, Some(kind), body), "{path}");
        assert_eq!(said.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(ask(address, "POST", path, &[], "").await.status, 200);
        let head = ask(address, "HEAD", path, &[], "").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert_eq!(head.header("content-length"), Some(body.len().to_string().as_str()));
    }
    for path in ["/", "/livez", "/readyz", "/debug/pprof/", "/debug/pprof/heap", "/debug/flags/v", "/metrics/", "/x"] {
        let said = get(address, path).await;
        assert_eq!((said.status, said.body.as_str()), (404, "404 page not found\n"), "{path}");
    }
    let (_server, address) = serve(Surface::default());
    assert_eq!(get(address, "/configz").await.status, 404, "without a configuration");
}

#[tokio::test]
async fn metrics_and_slis() {
    let (_server, address) = serve(surface());
    let said = get(address, "/metrics").await;
    assert_eq!(said.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(said.body.contains("kubeproxy_sync_proxy_rules_service_changes_total 0\n"), "{}", said.body);
    let slis = get(address, "/metrics/slis").await.body;
    assert!(!slis.contains("kubernetes_healthcheck") && slis.contains("process_start_time_seconds "), "{slis}");
    get(address, "/healthz").await;
    get(address, "/healthz/ping").await;
    let slis = get(address, "/metrics/slis").await.body;
    for line in [
        "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1",
        "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2",
    ] {
        assert!(slis.lines().any(|found| found == line), "{line} in\n{slis}");
    }
    assert_eq!(ask(address, "DELETE", "/metrics/slis", &[], "").await.body, "metrics reset\n");
    assert!(!get(address, "/metrics/slis").await.body.contains("kubernetes_healthcheck"));
}

#[tokio::test]
async fn flagz_and_statusz() {
    let (_server, address) = serve(surface());
    let text = get(address, "/flagz").await;
    assert_eq!((text.status, text.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    assert!(text.body.starts_with("\nkube-proxy flagz\nWarning: "), "{}", text.body);
    let lines: Vec<_> = text.body.lines().skip(4).collect();
    let delimiter = lines[1].trim_start_matches('v').trim_end_matches('2');
    assert!([":", ": ", "=", " "].contains(&delimiter), "{delimiter:?}");
    assert_eq!(lines[0], format!("config{delimiter}/c"));
    assert_eq!(get(address, "/flagz").await.body, text.body, "the same in the same process");

    let json = "Accept: application/json;g=config.k8s.io;v=v1beta1;as=Flagz";
    let said = ask(address, "GET", "/flagz", &[json], "").await;
    assert_eq!(
        (said.status, said.header("content-type"), said.header("warning")),
        (200, Some("application/json"), None)
    );
    let expected = r#"{"kind":"Flagz","apiVersion":"config.k8s.io/v1beta1","metadata":{"name":"kube-proxy"},"flags":{"config":"/c","v":"2"}}"#;
    assert_eq!(said.body, expected);
    let yaml = "Accept: application/yaml;g=config.k8s.io;v=v1alpha1;as=Flagz";
    let said = ask(address, "GET", "/flagz", &[yaml], "").await;
    assert_eq!((said.status, said.header("content-type")), (200, Some("application/yaml")));
    assert!(said.header("warning").is_some_and(|warning| warning.starts_with("299 - \"config.k8s.io/v1alpha1 flagz")));
    let back: serde_json::Value = serde_saphyr::from_str(&said.body).expect("YAML");
    assert_eq!((&back["kind"], &back["flags"]["v"]), (&"Flagz".into(), &"2".into()), "{}", said.body);

    for path in ["/flagz", "/statusz"] {
        let bare = ask(address, "GET", path, &["Accept: application/json"], "").await;
        assert_eq!(bare.status, 406, "{path}");
    }
    let text = get(address, "/statusz").await.body;
    for name in ["Started", "Up", "Go version", "Binary version", "Emulation version", "Paths"] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} in {text}");
    }
    assert!(text.contains("1.36.2") && text.contains("/metrics/slis"), "{text}");
    let json = "Accept: application/json;g=config.k8s.io;v=v1beta1;as=Statusz";
    let said = ask(address, "GET", "/statusz", &[json], "").await;
    let status: serde_json::Value = serde_json::from_str(&said.body).expect("JSON");
    assert_eq!((&status["kind"], &status["emulationVersion"]), (&"Statusz".into(), &"1.36".into()));
    assert!(status["startTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{status}");
    assert!(status["uptimeSeconds"].is_u64() && status["paths"].is_array(), "{status}");
}

#[tokio::test]
async fn verbosity_can_be_set_when_profiling_is_on() {
    let set = Arc::new(Mutex::new(Vec::new()));
    let record = set.clone();
    let set_verbosity = Arc::new(move |level| match level {
        0..=10 => {
            record.lock().expect("no panic").push(level);
            Ok(())
        }
        _ => Err("out of range".to_owned()),
    });
    let (_server, address) = serve(Surface { profiling: true, set_verbosity, ..surface() });
    let said = ask(address, "PUT", "/debug/flags/v", &[], "4").await;
    assert_eq!((said.status, said.body.as_str()), (200, "successfully set klog.logging.verbosity to 4\n"));
    assert_eq!(*set.lock().expect("no panic"), [4]);
    for bad in ["", "four", "4.5", "99", "99999999999"] {
        assert_eq!(ask(address, "PUT", "/debug/flags/v", &[], bad).await.status, 400, "{bad}");
    }
    assert_eq!(get(address, "/debug/flags/v").await.status, 406);
    assert_eq!(get(address, "/debug/pprof/").await.status, 404);
}
