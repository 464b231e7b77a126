//! Kubernetes objects as they come off the wire, reduced to the fields a proxy reads.
//!
//! Both sources (the API server and a directory of manifests) decode into these types, so that a manifest and a watch event
//! mean the same thing. Unknown fields are skipped while parsing and never allocated. Nothing is judged here: a port of 0 or an
//! address that is no address decodes fine and is reported by [`crate::model`], which knows what the field is for.
//!
//! Field names and defaults follow the Kubernetes API (`core/v1` Service and Node, `discovery.k8s.io/v1` EndpointSlice).

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize};

/// A `v1` Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Standard object metadata.
    pub metadata: ObjectMeta,
    /// What the user asked for.
    #[serde(default, deserialize_with = "null_is_default")]
    pub spec: ServiceSpec,
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
}

/// A `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Standard object metadata; the label `kubernetes.io/service-name` ties the slice to its Service.
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
    /// The pod behind the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
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
    /// Standard object metadata.
    pub metadata: ObjectMeta,
    /// Observed addresses.
    #[serde(default, deserialize_with = "null_is_default")]
    pub status: NodeStatus,
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

/// Kubernetes writes `null` for empty lists and maps now and then; it means "absent".
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
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
