//! The labels on every container of ours: what instance it is and which accepted spec made it. Written at create, read
//! back when the ledger is lost. Labels nominate; they never prove, for anyone can copy them.

use std::collections::BTreeMap;

use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{InstanceName, NodeName};
use schemas::records::{ClusterId, Digest};

use super::types::{InstanceKey, SpecId};

/// The label by which the agent lists its containers.
pub const LABEL_CLUSTER: &str = "reeve.cluster";
/// The label that names the node.
pub const LABEL_NODE: &str = "reeve.node";
/// The label with its holder's token, of an exclusive service.
pub const LABEL_TOKEN: &str = "reeve.token";
const LABEL_NAMESPACE: &str = "reeve.namespace";
const LABEL_KIND: &str = "reeve.kind";
const LABEL_WORKLOAD: &str = "reeve.workload";
const LABEL_SLOT: &str = "reeve.slot";
const LABEL_UID: &str = "reeve.uid";
const LABEL_N: &str = "reeve.n";
const LABEL_DIGEST: &str = "reeve.digest";

/// What a container's labels say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLabels {
    pub cluster: ClusterId,
    pub node: NodeName,
    pub instance: InstanceKey,
    pub n: u64,
    pub digest: Digest,
    /// Of an exclusive service: its holder's.
    pub token: Option<u64>,
}

impl OwnLabels {
    /// None when any is missing or malformed.
    #[must_use]
    pub fn parse(labels: &BTreeMap<String, String>) -> Option<Self> {
        let get = |key: &str| labels.get(key).map(String::as_str);
        let instance = InstanceKey {
            namespace: get(LABEL_NAMESPACE)?.parse().ok()?,
            workload: get(LABEL_WORKLOAD)?.parse().ok()?,
            slot: get(LABEL_SLOT)?.parse().ok()?,
            uid: get(LABEL_UID)?.parse().ok()?,
            kind: Kind::from_segment(get(LABEL_KIND)?)?,
        };
        let n = get(LABEL_N)?;
        let number = |text: &str| text.parse().ok().filter(|value: &u64| value.to_string() == text);
        let token = match get(LABEL_TOKEN) {
            Some(text) => Some(number(text)?),
            None => None,
        };
        Some(Self {
            cluster: get(LABEL_CLUSTER)?.parse().ok()?,
            node: get(LABEL_NODE)?.parse().ok()?,
            instance,
            n: number(n)?,
            digest: get(LABEL_DIGEST)?.parse().ok()?,
            token,
        })
    }

    /// As the engine takes them.
    #[must_use]
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let Self {
            cluster,
            node,
            instance,
            n,
            digest,
            token,
        } = self;
        let InstanceKey {
            namespace,
            workload,
            slot,
            uid,
            kind,
        } = instance;
        let pairs = [
            (LABEL_CLUSTER, cluster.to_string()),
            (LABEL_NODE, node.to_string()),
            (LABEL_NAMESPACE, namespace.to_string()),
            (LABEL_KIND, kind.segment().to_owned()),
            (LABEL_WORKLOAD, workload.to_string()),
            (LABEL_SLOT, slot.to_string()),
            (LABEL_UID, uid.to_string()),
            (LABEL_N, n.to_string()),
            (LABEL_DIGEST, digest.to_string()),
        ];
        let token = token.map(|token| (LABEL_TOKEN, token.to_string()));
        let pairs = pairs.into_iter().chain(token);
        pairs.map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The accepted spec it claims to run.
    #[must_use]
    pub fn spec(&self) -> SpecId {
        self.instance.spec(self.n, &self.digest)
    }

    /// The name it must bear.
    #[must_use]
    pub fn name(&self) -> String {
        self.instance.name().container(self.n)
    }

    /// The instance, for people.
    #[must_use]
    pub fn instance_name(&self) -> InstanceName {
        self.instance.name()
    }

    /// The resource it is an instance of.
    #[must_use]
    pub fn resource(&self) -> ResourceKey {
        self.instance.resource()
    }
}
