//! What the cluster planner answers: a [`Plan`], so specific that whoever executes it has nothing left to choose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use schemas::keys::ResourceKey;
use schemas::names::{InstanceName, Namespace, NodeName, ResourceName, Slot};
use schemas::records::{
    Accepted, Assigned, Assignment, Breaker, Condition, ConfigFileStatus, Digest, Endpoints, EventType, FailingReason,
    NodeStatus, Peer, Policies, ServiceStatus, Uid, VerdictRecord, VirtualIpStatus,
};
use schemas::units::Span;
use serde::Serialize;

use super::snapshot::Snapshot;

/// What to do with the cluster now, and what will come of it in the end.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a plan does nothing until it is executed"]
pub struct Plan {
    /// Every change that leads from what is observed to what is desired, to the end and in order of names: for people.
    /// `Keep` is listed too.
    pub changes: Vec<Change>,
    /// Accepted records to create in this pass, each in the same txn as, or before, the assignments that refer to them.
    pub accepted: Vec<AcceptedWrite>,
    /// Accepted records that nothing refers to any more, beyond the last 20.
    pub forgotten: Vec<(ResourceKey, u64)>,
    /// Assignments that differ from the stored ones: this pass's step.
    pub assignments: Vec<AssignmentWrite>,
    /// The status every resource ought to have; the executor writes those that differ.
    pub statuses: BTreeMap<ResourceKey, Status>,
    /// Statuses to delete: their resource is gone, and so are its instances.
    pub ended: Vec<ResourceKey>,
    /// What the breaker record ought to be.
    pub breaker: Breaker,
    /// Acknowledgements that match no removal of this pass, and no orphan: used up, or their instances are gone. A person's ack must
    /// be written in one txn with the change it is about, or after it, so that no pass sees it alone.
    pub spent_acks: Vec<Digest>,
    /// The instances this pass takes away for good, or would if the breaker let it: what acknowledgements are about.
    pub removals: Vec<Removal>,
    /// Instances that stay listed though they fill no slot that is wanted of their node, or not alone: a node may only say
    /// that it runs them. They keep the secrets and accounts that their node was handed for them, and are handed nothing new.
    pub strays: BTreeSet<Stray>,
    /// What is to be published of the network: what differs from the stored records.
    pub network: NetworkWrites,
    /// Who is to hold each virtual address in the end: for people, in order of names.
    pub holders: Vec<Holder>,
    /// Things a person should hear of as events.
    pub notices: Vec<Notice>,
}

/// Who is to hold a virtual address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    #[serde(serialize_with = "display")]
    pub resource: ResourceKey,
    /// With its prefix; empty where none is declared that a host can have.
    pub address: String,
    /// Who holds it by the assignments of now.
    pub from: Option<NodeName>,
    /// None: nobody may.
    pub to: Option<NodeName>,
    /// One sentence.
    pub why: String,
}

/// What is to be published of the network; None takes a record away.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkWrites {
    pub peers: Vec<(NodeName, Option<Peer>)>,
    pub endpoints: Vec<(ResourceKey, Option<Endpoints>)>,
    pub policies: Vec<(Namespace, Option<Policies>)>,
}

impl NetworkWrites {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            peers,
            endpoints,
            policies,
        } = self;
        peers.is_empty() && endpoints.is_empty() && policies.is_empty()
    }
}

impl Plan {
    /// Whether an instance that this plan leaves on the node is one of its strays.
    #[must_use]
    pub fn is_stray(&self, node: &NodeName, one: &Assigned) -> bool {
        !self.strays.is_empty()
            && self.strays.contains(&Stray {
                node: node.clone(),
                uid: one.uid.clone(),
                slot: one.slot.clone(),
            })
    }

    /// Whether executing it writes nothing.
    #[must_use]
    pub fn rests(&self, snapshot: &Snapshot) -> bool {
        self.accepted.is_empty()
            && self.forgotten.is_empty()
            && self.assignments.is_empty()
            && self.ended.is_empty()
            && self.spent_acks.is_empty()
            && self.network.is_empty()
            && self.breaker == snapshot.breaker
            && self
                .statuses
                .iter()
                .all(|(key, status)| status.is_stored(key, snapshot))
    }
}

/// A status of any kind. One that the store holds already is the stored one itself, shared.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    Service(Arc<ServiceStatus>),
    Node(Arc<NodeStatus>),
    ConfigFile(Arc<ConfigFileStatus>),
    VirtualIp(Arc<VirtualIpStatus>),
}

impl Status {
    /// Whether the store holds this status already; `since`, which the writer keeps, is not compared.
    #[must_use]
    pub fn is_stored(&self, key: &ResourceKey, snapshot: &Snapshot) -> bool {
        match self {
            Self::Service(status) => {
                let stored = snapshot.service_statuses.get(key);
                let stored = stored.and_then(|stored| stored.value.as_ref().ok());
                stored.is_some_and(|stored| {
                    let timeless = |status: &ServiceStatus| ServiceStatus {
                        conditions: without_since(&status.conditions),
                        ..status.clone()
                    };
                    Arc::ptr_eq(status, stored) || timeless(status) == timeless(stored)
                })
            }
            Self::Node(status) => {
                let name = key.name.as_str().parse::<NodeName>().ok();
                let stored = name.and_then(|name| snapshot.node_statuses.get(&name));
                let stored = stored.and_then(|stored| stored.value.as_ref().ok());
                stored.is_some_and(|stored| {
                    let timeless = |status: &NodeStatus| NodeStatus {
                        conditions: without_since(&status.conditions),
                        ..status.clone()
                    };
                    Arc::ptr_eq(status, stored) || timeless(status) == timeless(stored)
                })
            }
            Self::ConfigFile(status) => {
                let stored = snapshot.file_statuses.get(key);
                let stored = stored.and_then(|stored| stored.value.as_ref().ok());
                stored.is_some_and(|stored| {
                    let timeless = |status: &ConfigFileStatus| ConfigFileStatus {
                        conditions: without_since(&status.conditions),
                        ..status.clone()
                    };
                    Arc::ptr_eq(status, stored) || timeless(status) == timeless(stored)
                })
            }
            Self::VirtualIp(status) => {
                let stored = snapshot.virtual_ip_statuses.get(key);
                let stored = stored.and_then(|stored| stored.value.as_ref().ok());
                stored.is_some_and(|stored| {
                    let timeless = |status: &VirtualIpStatus| VirtualIpStatus {
                        conditions: without_since(&status.conditions),
                        ..status.clone()
                    };
                    Arc::ptr_eq(status, stored) || timeless(status) == timeless(stored)
                })
            }
        }
    }
}

fn without_since(conditions: &[Condition]) -> Vec<Condition> {
    let without = |one: &Condition| Condition {
        since: None,
        ..one.clone()
    };
    conditions.iter().map(without).collect()
}

/// One instance's change, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    #[serde(serialize_with = "display")]
    pub resource: ResourceKey,
    #[serde(serialize_with = "display")]
    pub instance: InstanceName,
    /// The node it is on in the end; None when no node fits, or when it goes.
    pub node: Option<NodeName>,
    /// The address it has there in the cluster's network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    pub action: Action,
    pub reason: Reason,
    /// What it waits for before its turn comes, if it does.
    pub waits: Option<Reason>,
}

fn display<T: fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// What happens to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Action {
    Create,
    /// A new container in its place; the fields that force it, as paths: `container.image`.
    Replace {
        fields: Vec<String>,
    },
    /// The same container under a newer spec: what changed costs no restart.
    Update {
        fields: Vec<String>,
    },
    Move {
        from: NodeName,
    },
    Keep,
    Remove,
    /// Wanted, and no node fits.
    Unschedulable,
}

/// Why. The log line, the event and `describe` all print this; the enum's name is the stable code.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "code")]
pub enum Reason {
    /// Desired, and on no node yet.
    NotAssigned,
    /// The accepted spec is a newer one.
    SpecChanged {
        from: u64,
        to: u64,
    },
    /// A file that it mounts has a newer edition.
    FileChanged {
        #[serde(serialize_with = "display")]
        file: ResourceName,
        from: u64,
        to: u64,
    },
    /// A secret that it gets has a newer edition.
    SecretChanged {
        #[serde(serialize_with = "display")]
        secret: ResourceName,
        from: u64,
        to: u64,
    },
    /// More or fewer are asked for.
    ScaledDown {
        to: u32,
    },
    ResourceDeleted,
    /// A global service's node no longer fits, or is gone.
    NodeNoLongerFits {
        rule: String,
    },
    NodeDrained,
    NodeRetired,
    NodeLost,
    /// Another instance of the same uid and slot is kept instead.
    Duplicate {
        kept_on: NodeName,
    },
    /// Already as desired.
    UpToDate,
    /// Its turn comes when this one is ready.
    WaitsFor {
        #[serde(serialize_with = "display")]
        instance: InstanceName,
    },
    /// The first addresses of this service, which it is told when it is made, are not all known yet.
    WaitsForSeeds {
        #[serde(serialize_with = "display")]
        service: ResourceName,
    },
    /// The change has stopped here.
    ChangeFailed {
        #[serde(serialize_with = "display")]
        instance: InstanceName,
        cause: FailingReason,
    },
    /// It is passed over until its node is back.
    NodeUnreachable {
        node: NodeName,
    },
    /// One may run there still. It is waited for until that node says that it is gone, or a person that its host is off; where
    /// he has said so, until it must have stopped by itself.
    MayRunOn {
        node: NodeName,
        /// Once the node has been away for so long.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<Span>,
    },
    /// No node fits; the status has the refusals.
    NoNodeFits,
    /// The breaker holds it until a person acknowledges.
    HeldByBreaker {
        digest: Digest,
    },
    /// The node's records cannot be trusted as they are.
    NodeHeld {
        why: String,
    },
}

/// An accepted record to create; its key must not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedWrite {
    pub key: ResourceKey,
    pub record: Accepted,
    /// For a deletion: only if the desired key is absent. For a spec: only if it still has that mod revision.
    pub guard: Guard,
}

/// One node's next assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignmentWrite {
    pub assignment: Assignment,
    /// The stored assignment's mod revision; 0 when there must be none.
    pub stored_mod_revision: i64,
    /// What its removals rest on; each is compared in the same txn.
    pub guards: Vec<Guard>,
    /// What the virtual addresses that it grants rest on.
    pub grants: Vec<Guard>,
    /// Whose statuses are written in the same txn: of two grants of one address only one comes into force.
    pub granted: Vec<ResourceKey>,
}

/// A fact about the store that must still be true when a write is done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    DesiredAbsent(ResourceKey),
    DesiredAt {
        key: ResourceKey,
        mod_revision: i64,
    },
    CordonAt {
        node: NodeName,
        mod_revision: i64,
    },
    SessionAbsent(NodeName),
    /// The session is in the life that began then.
    SessionAt {
        node: NodeName,
        create_revision: i64,
    },
}

/// An instance that is taken away and not replaced first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub key: ResourceKey,
    pub uid: Uid,
    pub slot: Slot,
    pub node: NodeName,
    pub reason: Reason,
    /// Whether the resource's own documents ask for it (deleted, fewer replicas, other placement), so that an
    /// acknowledgement of that resource's removals covers it.
    pub own: bool,
    /// Whether the breaker holds it.
    pub held: bool,
}

/// See [`Plan::strays`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stray {
    pub node: NodeName,
    pub uid: Uid,
    pub slot: Slot,
}

/// Something to tell people once, as an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: EventType,
    /// A stable CamelCase word.
    pub reason: &'static str,
    pub message: String,
    /// `default/service/web` or `default/web.2` or `_/node/n1`.
    pub about: String,
    pub node: Option<NodeName>,
}

/// What [`super::verdicts`] answers.
#[derive(Clone, Debug, Default)]
#[must_use = "verdicts do nothing until they are written"]
pub struct VerdictsOut {
    /// Verdicts that differ from the stored ones.
    pub writes: Vec<(NodeName, VerdictRecord)>,
    /// Nodes all of whose records may go: retired, reported empty, without a session.
    pub forget: Vec<NodeName>,
    /// So many nodes are away at once that none is called lost.
    pub mass_loss: bool,
    /// When to ask again though nothing changes.
    pub look_again_ms: Option<u64>,
}
