//! The files in `examples/kubeadm/`, checked against what they have to fit: kubeadm's contract on one side, this program on the other.
//!
//! Contract means what others rely on in a kubeadm cluster: names, labels, the command, the mounts, the ConfigMap's keys. Program
//! means what we really take and ask for: the configuration file is loaded through the library, and the RBAC rules must equal the
//! requests that an API server double has recorded, no right less and none more. Needs neither root nor a cluster.

#[path = "source_api/support.rs"]
#[allow(dead_code, reason = "the tests of the API source use the rest")]
mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use api_double::{ApiDouble, Request};
use pointsman::config::{Config, DetectLocal, Flags, Mode, Note, Parsed, SourceConfig};
use pointsman::observe::events::{self, Delivery, Event};
use pointsman::source::api::{ApiConfig, ApiSource};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// One right: API group, resource, verb.
type Right = (String, String, String);

fn example(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/kubeadm").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file.
fn documents(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&example(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The object of this kind in a file.
fn object(name: &str, kind: &str) -> Value {
    let found = documents(name).into_iter().find(|document| document["kind"] == kind);
    found.unwrap_or_else(|| panic!("{name} should have a {kind}"))
}

fn load(args: &[&str]) -> (Config, Vec<Note>) {
    let args = ["kube-proxy"].iter().chain(args).map(OsString::from);
    let Ok(Parsed::Flags(flags)) = Flags::parse(args) else { panic!("flags that parse") };
    let loaded = Config::load(&flags).expect("a configuration that is accepted");
    (loaded.config, loaded.notes)
}

#[test]
fn every_file_parses_and_every_object_says_what_and_where_it_is() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/kubeadm");
    let names = fs::read_dir(directory).expect("the directory").map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("UTF-8"));
    let yaml: BTreeSet<String> = names.filter(|name| name.ends_with(".yaml")).collect();
    assert!(["configmap.yaml", "daemonset.yaml", "rbac.yaml"].iter().all(|name| yaml.contains(*name)), "{yaml:?}");
    for name in yaml {
        for document in documents(&name) {
            for field in ["/apiVersion", "/kind", "/metadata/name"] {
                assert!(document.pointer(field).is_some_and(Value::is_string), "{name}: {field}: {document}");
            }
            let cluster_wide = document["kind"].as_str().is_some_and(|kind| kind.starts_with("Cluster"));
            let namespace = if cluster_wide { Value::Null } else { "kube-system".into() };
            assert_eq!(document["metadata"]["namespace"], namespace, "{name}: {document}");
        }
    }
}

#[test]
fn the_daemon_set_fits_where_kubeadms_was() {
    let set = object("daemonset.yaml", "DaemonSet");
    assert_eq!(set["metadata"]["name"], "kube-proxy");
    let label = json!({"k8s-app": "kube-proxy"});
    for place in ["/metadata/labels", "/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
        assert_eq!(set.pointer(place), Some(&label), "{place}");
    }
    assert_eq!(set["spec"]["updateStrategy"]["type"], "RollingUpdate");
    let pod = &set["spec"]["template"]["spec"];
    for (field, value) in [
        ("serviceAccountName", json!("kube-proxy")),
        ("hostNetwork", json!(true)),
        ("priorityClassName", json!("system-node-critical")),
        ("nodeSelector", json!({"kubernetes.io/os": "linux"})),
        ("tolerations", json!([{"operator": "Exists"}])),
    ] {
        assert_eq!(pod[field], value, "{field}");
    }
    let volumes = json!([
        {"name": "kube-proxy", "configMap": {"name": "kube-proxy"}},
        {"name": "pointsman-run", "hostPath": {"path": "/run/pointsman", "type": "DirectoryOrCreate"}},
        {"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
        {"name": "lib-modules", "hostPath": {"path": "/lib/modules"}},
    ]);
    assert_eq!(pod["volumes"], volumes);

    let [container] = &pod["containers"].as_array().expect("a list")[..] else { panic!("one container") };
    assert_eq!(container["name"], "kube-proxy");
    let command = json!([
        "/usr/local/bin/kube-proxy",
        "--config=/var/lib/kube-proxy/config.conf",
        "--hostname-override=$(NODE_NAME)"
    ]);
    assert_eq!(container["command"], command);
    let env = json!([{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]);
    assert_eq!(container["env"], env);
    let mounts = json!([
        {"name": "kube-proxy", "mountPath": "/var/lib/kube-proxy"},
        {"name": "pointsman-run", "mountPath": "/run/pointsman"},
        {"name": "xtables-lock", "mountPath": "/run/xtables.lock"},
        {"name": "lib-modules", "mountPath": "/lib/modules", "readOnly": true},
    ]);
    assert_eq!(container["volumeMounts"], mounts);
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}));

    // What needs more than that comes before, with the same image, and ends.
    let [before] = &pod["initContainers"].as_array().expect("a list")[..] else { panic!("one init container") };
    assert_eq!(before["image"], container["image"]);
    assert_eq!(before["securityContext"], json!({"privileged": true}));
    let mut with_init = command.as_array().expect("a list").clone();
    with_init.push("--init-only".into());
    assert_eq!(before["command"], json!(with_init));
}

/// Merges as `kubectl apply` does when nobody has applied anything before: a strategic merge patch that deletes nothing. Lists are merged
/// where the API's types say so (`patchMergeKey`), and replaced everywhere else.
fn strategic_merge(live: &mut Value, patch: &Value, field: &str) {
    let key = match field {
        "containers" | "initContainers" | "env" | "volumes" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        _ => None,
    };
    match (live, patch, key) {
        (Value::Object(live), Value::Object(patch), _) => {
            for (field, value) in patch {
                strategic_merge(live.entry(field).or_insert(Value::Null), value, field);
            }
        }
        (Value::Array(live), Value::Array(patch), Some(key)) => {
            for item in patch {
                match live.iter_mut().find(|there| there[key] == item[key]) {
                    Some(there) => strategic_merge(there, item, ""),
                    None => live.push(item.clone()),
                }
            }
        }
        (live, patch, _) => *live = patch.clone(),
    }
}

/// What validation of a container's security context refuses (`ValidateSecurityContext` of the API server).
fn security_offences(container: &Value) -> Vec<&'static str> {
    let context = &container["securityContext"];
    let mut offences = Vec::new();
    if context["allowPrivilegeEscalation"] == false {
        if context["privileged"] == true {
            offences.push("cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        let added = context["capabilities"]["add"].as_array();
        if added.is_some_and(|added| added.iter().any(|capability| capability == "SYS_ADMIN")) {
            offences.push("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    offences
}

#[test]
fn applied_over_kubeadms_it_is_valid_and_means_the_same() {
    let kubeadms: Value = serde_saphyr::from_str(include_str!("data/kubeadm-daemonset.yaml")).expect("YAML");
    let ours = object("daemonset.yaml", "DaemonSet");
    let mut merged = kubeadms.clone();
    strategic_merge(&mut merged, &ours, "");
    // The pod as it is after `kubectl replace`, and as it is after `kubectl apply`.
    for set in [&ours, &merged] {
        assert_eq!(set["spec"]["selector"], kubeadms["spec"]["selector"], "immutable");
        let pod = &set["spec"]["template"]["spec"];
        for container in ["containers", "initContainers"].iter().flat_map(|list| pod[*list].as_array().expect("a list"))
        {
            assert_eq!(security_offences(container), [""; 0], "{container}");
        }
        let [container] = &pod["containers"].as_array().expect("a list")[..] else { panic!("one container: {pod}") };
        assert_eq!(
            container["securityContext"],
            json!({
                "privileged": false,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            })
        );
        assert_eq!(container["image"], ours["spec"]["template"]["spec"]["containers"][0]["image"]);
        assert_eq!(pod["volumes"].as_array().expect("a list").len(), 4);
        assert_eq!(container["volumeMounts"].as_array().expect("a list").len(), 4);
    }
    // Which is why MIGRATE.md replaces: variables for a proxy that kubeadm found in its environment survive a merge.
    let names = |set: &Value| -> Vec<String> {
        let env = &set["spec"]["template"]["spec"]["containers"][0]["env"];
        env.as_array()
            .expect("a list")
            .iter()
            .map(|variable| variable["name"].as_str().expect("text").to_owned())
            .collect()
    };
    assert_eq!(names(&merged), ["NODE_NAME", "HTTPS_PROXY", "NO_PROXY"]);
    assert_eq!(names(&ours), ["NODE_NAME"]);
    assert!(example("MIGRATE.md").contains("kubectl replace -f examples/kubeadm/daemonset.yaml"));
}

#[test]
fn probes_ask_where_the_program_answers() {
    let set = object("daemonset.yaml", "DaemonSet");
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let (config, _) = config_of_the_map();
    let port = config.healthz.expect("health is served").port();
    // A rollout goes on to the next node when this one serves; it is alive before that, while the API server is away, for one.
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz"), ("startupProbe", "/livez")] {
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": port}), "{probe}");
    }
    // A restart must not be quicker than the retry that would mend it.
    let liveness = &container["livenessProbe"];
    let patience = liveness["periodSeconds"].as_u64().zip(liveness["failureThreshold"].as_u64());
    let patience = patience.map(|(period, failures)| Duration::from_secs(period * failures)).expect("numbers");
    assert!(patience >= config.sync.period, "{patience:?}");
}

/// What `config.conf` of the ConfigMap means, on the command line of the DaemonSet.
fn config_of_the_map() -> (Config, Vec<Note>) {
    let map = object("configmap.yaml", "ConfigMap");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.conf");
    fs::write(&path, map["data"]["config.conf"].as_str().expect("text")).expect("written");
    load(&[&format!("--config={}", path.display()), "--hostname-override=node-1"])
}

#[test]
fn the_config_map_is_kubeadms_and_starts_us() {
    let map = object("configmap.yaml", "ConfigMap");
    assert_eq!(map["metadata"]["name"], "kube-proxy");
    assert_eq!(map["metadata"]["labels"], json!({"app": "kube-proxy"}));
    let (config, notes) = config_of_the_map();
    assert_eq!((config.mode, config.node.as_str()), (Mode::Iptables, "node-1"));
    let kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    assert_eq!(config.source, SourceConfig::Api { kubeconfig, master: None });
    assert!(matches!(&config.detect_local, DetectLocal::ClusterCidr(networks) if networks.len() == 1));
    assert!(matches!(&notes[..], [Note::Info(_)]), "only what mode it is: {notes:?}");
    // With comments or without: the fields and their values are those that kubeadm writes.
    let ours: Value = serde_saphyr::from_str(map["data"]["config.conf"].as_str().expect("text")).expect("YAML");
    let theirs: Value = serde_saphyr::from_str(include_str!("data/kubeadm.yaml")).expect("YAML");
    assert_eq!(ours, theirs);

    let kubeconfig: Value =
        serde_saphyr::from_str(map["data"]["kubeconfig.conf"].as_str().expect("text")).expect("YAML");
    let secret = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["certificate-authority"], format!("{secret}/ca.crt"));
    assert_eq!(kubeconfig["users"][0]["user"]["tokenFile"], format!("{secret}/token"));
}

#[test]
fn the_clean_up_is_nobody_elses_pod() {
    let set = object("cleanup.yaml", "DaemonSet");
    let label = json!({"k8s-app": "kube-proxy-cleanup"});
    for place in ["/metadata/labels", "/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
        assert_eq!(set.pointer(place), Some(&label), "{place}");
    }
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    let command = &pod["initContainers"][0]["command"];
    assert_eq!(*command, json!(["/usr/local/bin/kube-proxy", "--cleanup"]));
    // Ours would remove the rules of every mode, its own included.
    let image = pod["initContainers"][0]["image"].as_str().expect("text");
    assert!(image.starts_with("registry.k8s.io/kube-proxy:"), "{image}");
}

/// What the rules of a role allow.
fn allowed(role: &Value) -> BTreeSet<Right> {
    let texts = |rule: &Value, field: &str| -> Vec<String> {
        let list = rule[field].as_array().unwrap_or_else(|| panic!("{field} of {rule}"));
        list.iter().map(|text| text.as_str().expect("text").to_owned()).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                rights.extend(texts(rule, "verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    rights
}

/// Which right a request takes, as the API server's authorizer sees it.
fn taken(request: &Request) -> Right {
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    let (group, rest) = match &parts[..] {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _version, rest @ ..] => (*group, rest),
        other => panic!("no path of the API: {other:?}"),
    };
    let rest = if rest.first() == Some(&"namespaces") { &rest[2..] } else { rest };
    let verb = match (request.method.as_str(), rest) {
        ("GET", [_]) if request.is_watch() => "watch",
        ("GET", [_]) => "list",
        ("GET", [_, _]) => "get",
        ("POST", [_]) => "create",
        ("PATCH", [_, _]) => "patch",
        other => panic!("no verb for {other:?}"),
    };
    (group.to_owned(), rest[0].to_owned(), verb.to_owned())
}

#[tokio::test]
async fn the_rights_are_exactly_those_that_are_used() {
    let role = object("rbac.yaml", "ClusterRole");
    let binding = object("rbac.yaml", "ClusterRoleBinding");
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let subjects = json!([{"kind": "ServiceAccount", "name": "kube-proxy", "namespace": "kube-system"}]);
    assert_eq!(binding["subjects"], subjects);
    let allowed = allowed(&role);

    // A server that refuses to stream lists is asked for everything that there is to ask: lists, then watches.
    let double = ApiDouble::start();
    double.streaming_lists(api_double::StreamingLists::Refused);
    let config = ApiConfig {
        master: Some(double.url()),
        node_name: "node-1".into(),
        timing: support::short(),
        ..ApiConfig::default()
    };
    let source = ApiSource::new(config).expect("a URL");
    let (sink, _events) = events::start("node-1", source.clients(), Delivery::default());
    let (changes, mut taken_changes) = mpsc::channel(64);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(source.run(changes, shutdown.clone()));
    let draining = tokio::spawn(async move { while taken_changes.recv().await.is_some() {} });
    // The first makes an Event, its repetition a series of it.
    sink.send(Event::starting("node-1"));
    sink.send(Event::starting("node-1"));

    let used = || double.requests().iter().map(taken).collect::<BTreeSet<Right>>();
    for _ in 0..500 {
        if used() == allowed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(used(), allowed, "used, and allowed");
    // What is asked for is what kube-proxy asks for, cluster-wide.
    let listed: BTreeSet<_> = double
        .requests()
        .iter()
        .filter(|request| request.method == "GET")
        .map(|request| request.path.clone())
        .collect();
    let wanted = [support::NODES, support::SERVICES, support::SLICES, "/apis/networking.k8s.io/v1/servicecidrs"];
    assert_eq!(listed, wanted.map(str::to_owned).into());
    shutdown.cancel();
    running.await.expect("the source ends");
    draining.await.expect("nobody is left to say anything");
}
