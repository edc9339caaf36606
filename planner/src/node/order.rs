//! Whether a document found under the node's assignment key may come into force (laws 1 and 3). The agent asks before it
//! acts on anything it was given; whatever the answer, what is in force stays so until something newer is in order.

use schemas::names::NodeName;
use schemas::records::{Assignment, ClusterId};

/// What is to be made of an offered assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Newer: write it to disk, then act on it. Ends a hold.
    Accept,
    /// The one in force already.
    Same,
    /// Older, or another document of the same order: the store has gone back. Held, on disk, until the restore epoch rises.
    WentBack(String),
    /// Of another cluster or node: held while it is offered.
    Foreign(String),
    /// A hold is in force, and this does not end it.
    StillHeld,
}

/// Judges an offered assignment against the one in force. `held` says that an earlier one went back.
#[must_use]
pub fn judge(
    cluster: &ClusterId,
    node: &NodeName,
    in_force: Option<&Assignment>,
    held: bool,
    offered: &Assignment,
) -> Ruling {
    if offered.cluster != *cluster {
        return Ruling::Foreign(format!(
            "the assignment is of cluster {}, this agent of {cluster}: start the agent on the store of its own cluster",
            offered.cluster
        ));
    }
    if offered.node != *node {
        return Ruling::Foreign(format!(
            "the assignment is for node `{}`, this one is `{node}`",
            offered.node
        ));
    }
    let Some(current) = in_force else { return Ruling::Accept };
    if offered == current {
        return Ruling::Same;
    }
    if held && offered.order.restore_epoch <= current.order.restore_epoch {
        return Ruling::StillHeld;
    }
    if offered.order > current.order {
        return Ruling::Accept;
    }
    let (found, known) = (offered.order, current.order);
    Ruling::WentBack(format!(
        "the store offers assignment {}/{}/{} after {}/{}/{}: it has gone back in time; what runs is kept until a person runs `reeve admin accept-store`",
        found.restore_epoch, found.epoch, found.generation, known.restore_epoch, known.epoch, known.generation
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::records::{Order, SchemaVersion};

    fn assignment(restore_epoch: u64, epoch: i64, generation: u64) -> Assignment {
        Assignment {
            network: Default::default(),
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: ClusterId::from_random([1; 16]),
            node: "n1".parse().expect("a name"),
            order: Order {
                restore_epoch,
                epoch,
                generation,
            },
            instances: Vec::new(),
        }
    }
    fn judged(in_force: Option<&Assignment>, held: bool, offered: &Assignment) -> Ruling {
        judge(
            &ClusterId::from_random([1; 16]),
            &"n1".parse().expect("a name"),
            in_force,
            held,
            offered,
        )
    }

    #[test]
    fn order_only_rises() {
        let current = assignment(1, 5, 9);
        assert_eq!(judged(None, false, &current), Ruling::Accept);
        assert_eq!(judged(Some(&current), false, &current), Ruling::Same);
        for newer in [assignment(1, 5, 10), assignment(1, 6, 1), assignment(2, 1, 1)] {
            assert_eq!(judged(Some(&current), false, &newer), Ruling::Accept);
        }
        for older in [assignment(1, 5, 8), assignment(1, 4, 20), assignment(0, 9, 9)] {
            assert!(matches!(judged(Some(&current), false, &older), Ruling::WentBack(_)));
        }
    }

    #[test]
    fn a_hold_ends_with_a_higher_restore_epoch_or_the_same_document_only() {
        let current = assignment(1, 5, 9);
        assert_eq!(judged(Some(&current), true, &assignment(1, 9, 9)), Ruling::StillHeld);
        assert_eq!(judged(Some(&current), true, &current), Ruling::Same);
        assert_eq!(judged(Some(&current), true, &assignment(2, 1, 1)), Ruling::Accept);
    }

    #[test]
    fn an_assignment_of_another_cluster_or_node_is_never_taken() {
        let mut other = assignment(9, 9, 9);
        other.cluster = ClusterId::from_random([2; 16]);
        assert!(matches!(judged(None, false, &other), Ruling::Foreign(_)));
        let mut other = assignment(9, 9, 9);
        other.node = "n2".parse().expect("a name");
        assert!(matches!(judged(None, false, &other), Ruling::Foreign(_)));
    }

    #[test]
    fn another_document_of_the_same_order_is_no_order() {
        let current = assignment(1, 5, 9);
        let mut forged = current.clone();
        forged.schema_version = SchemaVersion::default();
        forged.instances = Vec::new();
        assert_eq!(judged(Some(&current), false, &forged), Ruling::Same);
    }
}
