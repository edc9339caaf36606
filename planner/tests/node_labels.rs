//! Specs as earlier releases stored them: read by this release they must cost nothing, or an upgrade would restart
//! every container. Files under `labels/` are never edited; a new release adds one.

use planner::change::{Cost, cost};
use planner::node::OwnLabels;
use schemas::service::ServiceSpec;

#[test]
fn a_spec_stored_by_an_earlier_release_costs_nothing_in_this_one() {
    let stored = include_str!("labels/v1.json");
    let then: ServiceSpec = serde_json::from_str(stored).expect("what v1 wrote");
    let again: ServiceSpec =
        serde_json::from_str(&serde_json::to_string(&then).expect("JSON")).expect("what this one writes");
    assert_eq!(cost(&then, &again), Cost::Nothing);
    // What v1 wrote in full and this release would leave out as a default is the same spec.
    let mut filled: serde_json::Value = serde_json::from_str(stored).expect("JSON");
    filled["mode"] = "replicated".into();
    filled["container"]["pullPolicy"] = "IfNotPresent".into();
    filled["container"]["shmSize"] = "64Mi".into();
    filled["container"]["healthCheck"]["retries"] = 3.into();
    let filled: ServiceSpec = serde_json::from_value(filled).expect("a spec");
    assert_eq!(cost(&then, &filled), Cost::Nothing);
}

#[test]
fn labels_of_the_first_release_are_read_for_ever() {
    let labels = [
        ("reeve.cluster", "07070707070707070707070707070707"),
        ("reeve.node", "n1"),
        ("reeve.namespace", "default"),
        ("reeve.kind", "service"),
        ("reeve.workload", "web"),
        ("reeve.slot", "2"),
        ("reeve.uid", "0123456789abcdef0123456789abcdef"),
        ("reeve.n", "7"),
        (
            "reeve.digest",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ),
    ];
    let map = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let own = OwnLabels::parse(&map).expect("labels of ours");
    assert_eq!(own.name(), "default.web.2.7");
    assert_eq!(own.to_map(), map);
    for (key, _) in labels {
        let mut less = map.clone();
        less.remove(key);
        assert_eq!(OwnLabels::parse(&less), None, "without {key}");
    }
}
