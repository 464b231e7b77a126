//! The example shop (`examples/shop/`), carried inside the binary, and what a client of it should see.
//!
//! The manifests say everything that the demo needs: which pods to make (EndpointSlices name their pods and addresses), what they
//! listen on, which addresses to connect to, and who may answer. They are read here on purpose without [`crate::model`]: the demo
//! checks the daemon, so it must not believe whatever the daemon's own reading of an object is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{Addresses, Listen, has_ipv6};
use crate::source::object::{EndpointSlice, Service, labels};

/// Name of the Node object, for `--hostname-override`.
pub const NODE_NAME: &str = "shop-node";
/// The Service that is scaled up and down.
pub const SCALED: &str = "web";
/// The file with its EndpointSlices.
const SCALED_FILE: &str = "web-endpoints.yaml";

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../examples/shop/", $name)))),*]
    };
}

/// File names and contents of `examples/shop/`.
pub const FILES: &[(&str, &str)] = embedded![
    "cart.yaml",
    "catalog.yaml",
    "checkout.yaml",
    "database.yaml",
    "dns.yaml",
    "mail.yaml",
    "node.yaml",
    "payments.yaml",
    "recommendations.yaml",
    "search.yaml",
    "sessions.yaml",
    "web-endpoints.yaml",
    "web.yaml",
];

/// What the manifests mean to a client.
#[derive(Debug)]
pub struct Shop {
    /// Services that have addresses, by name.
    pub services: Vec<ShopService>,
    /// Services that a proxy ignores, and why.
    pub ignored: Vec<(String, &'static str)>,
    /// Pods by name, ready or not.
    pub pods: BTreeMap<String, ShopPod>,
}

/// A Service with addresses.
#[derive(Debug)]
pub struct ShopService {
    /// `metadata.name`.
    pub name: String,
    /// Whether it asks for round robin.
    pub round_robin: bool,
    /// Where to connect; all families and ports.
    pub frontends: Vec<Frontend>,
}

/// An address to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Datagrams rather than connections.
    pub udp: bool,
    /// Cluster address and port.
    pub address: SocketAddr,
    /// Pods that may answer; empty means that connections are to be refused.
    pub pods: BTreeSet<String>,
}

/// A pod to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShopPod {
    /// Its IPv4 address, from which the lab derives the IPv6 one.
    pub address: Option<Ipv4Addr>,
    /// What it listens on.
    pub ports: BTreeSet<Listen>,
}

impl Shop {
    /// Reads the embedded manifests.
    ///
    /// # Errors
    /// Names the file with the first mistake.
    pub fn embedded() -> Result<Self> {
        let mut services: Vec<Service> = Vec::new();
        let mut slices: Vec<EndpointSlice> = Vec::new();
        for (name, text) in FILES {
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(text).with_context(|| format!("examples/shop/{name}"))?;
            for document in documents {
                match document["kind"].as_str() {
                    Some("Service") => services.push(serde_json::from_value(document).context(*name)?),
                    Some("EndpointSlice") => slices.push(serde_json::from_value(document).context(*name)?),
                    Some("Node") => {}
                    other => bail!("examples/shop/{name}: unexpected kind {other:?}"),
                }
            }
        }
        let mut shop = Self { services: Vec::new(), ignored: Vec::new(), pods: BTreeMap::new() };
        for slice in &slices {
            shop.add_pods(slice)?;
        }
        services.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for service in &services {
            shop.add_service(service, &slices)?;
        }
        Ok(shop)
    }

    /// The Service that is scaled.
    pub fn scaled(&self) -> &ShopService {
        self.services.iter().find(|service| service.name == SCALED).expect("the shop has it; tested below")
    }

    /// Makes the pods of a slice known: name, address, ports.
    fn add_pods(&mut self, slice: &EndpointSlice) -> Result<()> {
        for endpoint in &slice.endpoints {
            let name = pod_name(endpoint)?;
            let address: IpAddr = endpoint.addresses.first().context("an endpoint without addresses")?.parse()?;
            let pod = self.pods.entry(name.to_owned()).or_default();
            match address {
                IpAddr::V4(v4) => pod.address = Some(v4),
                // Pods that only IPv6 slices name: the lab's IPv4 address with the same digits.
                IpAddr::V6(v6) if pod.address.is_none() => {
                    let number = format!("{:x}", v6.segments()[7]).parse().context("not an address of the lab")?;
                    pod.address = Some(Ipv4Addr::new(10, 244, 0, number));
                }
                IpAddr::V6(_) => {}
            }
            for port in &slice.ports {
                let number = u16::try_from(port.port.context("a port without number")?)?;
                pod.ports.insert(if is_udp(port.protocol.as_deref()) {
                    Listen::Udp(number)
                } else {
                    Listen::Tcp(number)
                });
            }
        }
        Ok(())
    }

    fn add_service(&mut self, service: &Service, slices: &[EndpointSlice]) -> Result<()> {
        let name = service.metadata.name.clone().context("a Service without name")?;
        if service.spec.type_.as_deref() == Some("ExternalName") {
            self.ignored.push((name, "an ExternalName: a DNS alias, nothing to program"));
            return Ok(());
        }
        if service.spec.cluster_ip.as_deref() == Some("None") {
            self.ignored.push((name, "headless: clients connect to the pods themselves"));
            return Ok(());
        }
        let own = |slice: &&EndpointSlice| {
            labels(&slice.metadata).get("kubernetes.io/service-name").is_some_and(|label| *label == name)
        };
        let mut frontends = Vec::new();
        for address in &service.spec.cluster_ips {
            let address: IpAddr = address.parse().with_context(|| format!("Service {name}: {address}"))?;
            if address.is_ipv6() && !has_ipv6() {
                continue;
            }
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            for port in &service.spec.ports {
                let udp = is_udp(port.protocol.as_deref());
                let port_name = port.name.as_deref().unwrap_or_default();
                let mut pods = BTreeSet::new();
                for slice in slices.iter().filter(own).filter(|slice| slice.address_type == family) {
                    let serves = |candidate: &crate::source::object::EndpointPort| {
                        candidate.name.as_deref() == Some(port_name) && is_udp(candidate.protocol.as_deref()) == udp
                    };
                    for endpoint in slice.endpoints.iter().filter(|_| slice.ports.iter().any(serves)) {
                        if endpoint.conditions.ready != Some(false) {
                            pods.insert(pod_name(endpoint)?.to_owned());
                        }
                    }
                }
                frontends.push(Frontend { udp, address: SocketAddr::new(address, u16::try_from(port.port)?), pods });
            }
        }
        if frontends.is_empty() {
            self.ignored.push((name, "IPv6 only, and this kernel has no IPv6"));
            return Ok(());
        }
        let annotations = service.metadata.annotations.as_ref();
        let round_robin =
            annotations.and_then(|all| all.get("pointsman.dev/scheduler")).is_some_and(|name| name == "rr");
        self.services.push(ShopService { name, round_robin, frontends });
        Ok(())
    }
}

/// Writes the manifests into a directory.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_manifests(directory: &Path) -> io::Result<()> {
    FILES.iter().try_for_each(|(name, text)| std::fs::write(directory.join(name), text))
}

/// Replaces the endpoints of the scaled Service by these pods, atomically: whoever reads the directory sees the old file or the new
/// one, never half of one. The draft is written beside the directory, so that nothing happens inside before the rename, which is the
/// last step.
///
/// # Errors
/// When the directory cannot be written.
pub fn replace_endpoints(directory: &Path, pods: &BTreeMap<String, Addresses>) -> io::Result<()> {
    let draft = directory.with_extension("draft");
    std::fs::write(&draft, endpoints_manifest(pods))?;
    std::fs::rename(draft, directory.join(SCALED_FILE))
}

fn endpoints_manifest(pods: &BTreeMap<String, Addresses>) -> String {
    let mut text = String::from("# Written by `pointsman demo`.\n");
    for (family, suffix) in [("IPv4", "ipv4"), ("IPv6", "ipv6")] {
        let _ = write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {SCALED}-{suffix}\n  namespace: shop\n  \
             labels: {{kubernetes.io/service-name: {SCALED}}}\naddressType: {family}\nports:\n  \
             - {{name: http, protocol: TCP, port: 8080}}\nendpoints:\n"
        );
        for (name, addresses) in pods {
            let address = if family == "IPv4" { IpAddr::V4(addresses.v4) } else { IpAddr::V6(addresses.v6) };
            let _ = write!(
                text,
                "  - addresses: [\"{address}\"]\n    conditions: {{ready: true}}\n    nodeName: {NODE_NAME}\n    \
                 targetRef: {{kind: Pod, namespace: shop, name: {name}}}\n"
            );
        }
    }
    text
}

fn is_udp(protocol: Option<&str>) -> bool {
    protocol == Some("UDP")
}

fn pod_name(endpoint: &crate::source::object::Endpoint) -> Result<&str> {
    endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref()).context("an endpoint without targetRef.name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_embedded_is_the_directory() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shop");
        let mut there: Vec<_> = std::fs::read_dir(&directory)
            .expect("examples/shop")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        there.sort();
        assert_eq!(there, FILES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for (name, text) in FILES {
            assert_eq!(std::fs::read_to_string(directory.join(name)).expect("readable"), *text, "{name}");
        }
    }

    #[test]
    fn the_shop_is_what_its_comments_say() {
        let shop = Shop::embedded().expect("reads");
        let mut text = String::new();
        for service in &shop.services {
            let _ = writeln!(text, "{}{}", service.name, if service.round_robin { " (rr)" } else { "" });
            for frontend in &service.frontends {
                let protocol = if frontend.udp { "udp" } else { "tcp" };
                let pods: Vec<_> = frontend.pods.iter().map(String::as_str).collect();
                let _ = writeln!(
                    text,
                    "  {protocol} {} -> {}",
                    frontend.address,
                    if pods.is_empty() { "refused".into() } else { pods.join(" ") }
                );
            }
        }
        for (name, why) in &shop.ignored {
            let _ = writeln!(text, "{name}: {why}");
        }
        insta::assert_snapshot!(text, @"
        cart (rr)
          tcp 10.96.0.20:80 -> cart-1 cart-2 cart-3
        catalog
          tcp 10.96.0.40:80 -> catalog-1 catalog-2 catalog-3 catalog-4
        checkout
          tcp 10.96.0.30:80 -> checkout-1 checkout-2
          tcp 10.96.0.30:8081 -> checkout-1 checkout-2
          tcp 10.96.0.30:9090 -> checkout-1 checkout-2
        dns
          udp 10.96.0.53:53 -> dns-1 dns-2
          tcp 10.96.0.53:53 -> dns-1 dns-2
          udp [fd00:10:96::53]:53 -> dns-1 dns-2
          tcp [fd00:10:96::53]:53 -> dns-1 dns-2
        payments
          tcp 10.96.0.60:443 -> payments-1 payments-2
        recommendations
          tcp 10.96.0.90:80 -> refused
        search
          tcp [fd00:10:96::50]:9000 -> search-1 search-2
        sessions
          tcp 10.96.0.80:6379 -> sessions-1
        web
          tcp 10.96.0.10:80 -> web-1 web-2 web-3
          tcp [fd00:10:96::10]:80 -> web-1 web-2 web-3
        database: headless: clients connect to the pods themselves
        mail: an ExternalName: a DNS alias, nothing to program
        ");
    }

    #[test]
    fn every_address_in_the_shop_is_one_that_the_lab_gives_its_pod() {
        let shop = Shop::embedded().expect("reads");
        for (name, text) in FILES {
            for document in serde_saphyr::from_multiple::<Value>(text).expect("reads") {
                for endpoint in document["endpoints"].as_array().into_iter().flatten() {
                    let pod = endpoint["targetRef"]["name"].as_str().expect("a name");
                    let given = Addresses::of_pod(shop.pods[pod].address.expect("an address"));
                    let address: IpAddr = endpoint["addresses"][0].as_str().expect("text").parse().expect("an address");
                    assert!(address == given.v4 || address == given.v6, "{name}: {pod} {address}");
                    assert_eq!(endpoint["nodeName"], NODE_NAME, "{name}: {pod}");
                }
            }
        }
    }

    #[test]
    fn scaled_endpoints_read_back_as_the_same_objects() {
        let pods =
            (1..=3).map(|n| (format!("web-{n}"), Addresses::of_pod(Ipv4Addr::new(10, 244, 0, 10 + n)))).collect();
        let (_, original) = FILES.iter().find(|(name, _)| *name == SCALED_FILE).expect("embedded");
        let read = |text: &str| serde_saphyr::from_multiple::<Value>(text).expect("reads");
        assert_eq!(read(&endpoints_manifest(&pods)), read(original));
    }
}
