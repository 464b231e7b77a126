//! Kubernetes objects as they come off the wire, reduced to the fields a proxy reads.
//!
//! Both sources (the API server and a directory of manifests) decode into these types, so that a manifest and a watch event
//! mean the same thing. Unknown fields are skipped while parsing and never allocated. Nothing is judged here: a port of 0 or an
//! address that is no address decodes fine and is reported by [`crate::model`], which knows what the field is for.
//!
//! Field names and defaults follow the Kubernetes API (`core/v1` Service and Node, `discovery.k8s.io/v1` EndpointSlice,
//! `networking.k8s.io/v1` ServiceCIDR).

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize};

use super::metadata;

/// A `v1` Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Standard object metadata.
    #[serde(deserialize_with = "metadata::lean")]
    pub metadata: ObjectMeta,
    /// What the user asked for.
    #[serde(default, deserialize_with = "null_is_default")]
    pub spec: ServiceSpec,
    /// What a load balancer has reported.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_default")]
    pub status: ServiceStatus,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ClusterIP` (the default), `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// First cluster address; `None` (the word) for headless Services.
    #[serde(default, rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<String>,
    /// One cluster address per family, in the order of [`ServiceSpec::ip_families`].
    #[serde(
        default,
        rename = "clusterIPs",
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cluster_ips: Vec<String>,
    /// `IPv4` and/or `IPv6`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<String>,
    /// The ports served on every frontend address.
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Vec<ServicePort>,
    /// Addresses that somebody routes to the nodes.
    #[serde(
        default,
        rename = "externalIPs",
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub external_ips: Vec<String>,
    /// `None` (the word, or absent) or `ClientIP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<String>,
    /// How long a client stays with its endpoint.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_default")]
    pub session_affinity_config: SessionAffinityConfig,
    /// `Cluster` (the default) or `Local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` (the default) or `Local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<String>,
    /// Networks whose clients may use the load balancer's addresses; empty means all.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_source_ranges: Vec<String>,
    /// Where load balancers ask whether this node has endpoints.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_default")]
    pub health_check_node_port: i64,
}

/// `spec.sessionAffinityConfig` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    /// For affinity `ClientIP`.
    #[serde(default, rename = "clientIP", deserialize_with = "null_is_default")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// 1..86400; the API server fills in 10800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// What the load balancer has reported.
    #[serde(default, deserialize_with = "null_is_default")]
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadBalancerStatus {
    /// Its addresses.
    #[serde(default, deserialize_with = "null_is_default")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One entry of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// Empty or absent for balancers known by host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// `VIP` (the default) or `Proxy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_mode: Option<String>,
}

/// One entry of `spec.ports`. The target port is not here: EndpointSlices carry the resolved one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Empty or absent when the Service has a single port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `TCP` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// 1..65535.
    #[serde(default)]
    pub port: i64,
    /// The port on the nodes' own addresses; 0 for none.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_default")]
    pub node_port: i64,
}

/// A `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Standard object metadata; the label `kubernetes.io/service-name` ties the slice to its Service.
    #[serde(deserialize_with = "metadata::lean")]
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(default)]
    pub address_type: String,
    /// The ports every endpoint of this slice listens on.
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    #[serde(default, deserialize_with = "null_is_default")]
    pub endpoints: Vec<Endpoint>,
}

/// One entry of an EndpointSlice's `ports`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Matches the Service port's name; `""` for the unnamed one. Absent means the port cannot be matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `TCP` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Absent means "all ports", which a proxy cannot use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Only the first address is used, as everywhere in Kubernetes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub addresses: Vec<String>,
    /// Readiness and termination.
    #[serde(default, deserialize_with = "null_is_default")]
    pub conditions: EndpointConditions,
    /// The node the endpoint runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The zone the endpoint is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The pod behind the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Where the control plane wants the endpoint used.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_default")]
    pub hints: EndpointHints,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointHints {
    /// Zones whose nodes shall use it.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub for_zones: Vec<Named>,
    /// Nodes that shall use it.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub for_nodes: Vec<Named>,
}

/// A thing that has a name and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Named {
    /// The name.
    #[serde(default)]
    pub name: String,
}

/// `conditions` of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointConditions {
    /// Absent counts as ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Absent counts as serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    /// Only an explicit `true` counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminating: Option<bool>,
}

/// `targetRef` of an endpoint: only the name is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetRef {
    /// The pod's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A `v1` Node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Standard object metadata; the label `topology.kubernetes.io/zone` says where the node is.
    #[serde(deserialize_with = "metadata::lean")]
    pub metadata: ObjectMeta,
    /// Networks and taints.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_default")]
    pub spec: NodeSpec,
    /// Observed addresses.
    #[serde(default, deserialize_with = "null_is_default")]
    pub status: NodeStatus,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// Networks of the node's pods, at most one per family.
    #[serde(default, rename = "podCIDRs", deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<String>,
    /// Taints.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
}

/// A taint of a Node: only the key is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Taint {
    /// The taint's key.
    #[serde(default)]
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// All addresses, of every type.
    #[serde(default, deserialize_with = "null_is_default")]
    pub addresses: Vec<NodeAddress>,
}

/// One address of a Node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`...
    #[serde(rename = "type")]
    pub type_: String,
    /// The address itself.
    pub address: String,
}

/// A `networking.k8s.io/v1` ServiceCIDR: networks that cluster addresses are taken from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceCIDR {
    /// Standard object metadata.
    #[serde(deserialize_with = "metadata::lean")]
    pub metadata: ObjectMeta,
    /// The networks.
    #[serde(default, deserialize_with = "null_is_default")]
    pub spec: ServiceCIDRSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceCIDRSpec {
    /// At most one per family.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cidrs: Vec<String>,
}

/// Kubernetes writes `null` for empty lists and maps now and then; it means "absent".
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Fields of their default value are not worth a line.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The labels of an object, empty when it has none.
pub fn labels(meta: &ObjectMeta) -> Cow<'_, BTreeMap<String, String>> {
    meta.labels.as_ref().map_or_else(|| Cow::Owned(BTreeMap::new()), Cow::Borrowed)
}

macro_rules! kube_resource {
    ($type:ty, $kind:literal, $plural:literal, $group:literal, $version:literal, $scope:ty) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn kind(_: &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group(_: &()) -> Cow<'_, str> {
                $group.into()
            }
            fn version(_: &()) -> Cow<'_, str> {
                $version.into()
            }
            fn plural(_: &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

kube_resource!(Service, "Service", "services", "", "v1", kube::core::NamespaceResourceScope);
kube_resource!(
    EndpointSlice,
    "EndpointSlice",
    "endpointslices",
    "discovery.k8s.io",
    "v1",
    kube::core::NamespaceResourceScope
);
kube_resource!(Node, "Node", "nodes", "", "v1", kube::core::ClusterResourceScope);
kube_resource!(ServiceCIDR, "ServiceCIDR", "servicecidrs", "networking.k8s.io", "v1", kube::core::ClusterResourceScope);
