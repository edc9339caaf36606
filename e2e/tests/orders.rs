//! Seeds in every order: whichever of 1, 3 or 5 begins when, and with one of them cut off in the middle, there is one
//! cluster. Three take all their orders; five take some here, and all 120 with `REEVE_ORDERS=all`.

use std::collections::BTreeSet;

use e2e::seats::{cluster_of, cut_power, install_token, members, server, server_dir, server_log, serves};
use e2e::{Host, Lab, Process, eventually};

/// All orders of `count` things, in the order of their numbers.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for shorter in orders(count - 1) {
        for at in (0..count).rev() {
            let mut order = shorter.clone();
            order.insert(at, count - 1);
            all.push(order);
        }
    }
    all.sort();
    all
}

/// One beginning: the seeds start in this order, each told the list in another one, the next when the last one has said
/// whom it misses (or all at once); when the last but one has begun, one that has begun is cut off until the end.
fn begins_as_one(hosts: &[Host], order: &[usize], at_once: bool, token: &str) {
    let count = order.len();
    let list = |first: usize| -> String {
        let turned = (0..count).map(|index| hosts[(first + index) % count].address.as_str());
        turned.collect::<Vec<_>>().join(",")
    };
    let mut running: Vec<Option<Process>> = hosts.iter().map(|_| None).collect();
    let lonely = (count > 1).then(|| &hosts[order[order[0] % (count - 1)]]);
    for (nth, &index) in order.iter().enumerate() {
        let host = &hosts[index];
        if nth + 1 == count
            && let Some(lonely) = lonely
        {
            lonely.cut(true);
        }
        running[index] = Some(server(host, &list(index), token));
        if !at_once && nth + 1 < count {
            eventually("it waits for the others", 30, || {
                let log = server_log(host);
                if log.contains("waiting for ") { Ok(()) } else { Err(log) }
            });
        }
    }
    let last = &hosts[order[count - 1]];
    if let Some(lonely) = lonely {
        eventually("the last one misses the one that is cut off", 60, || {
            let log = server_log(last);
            let said = log.contains("waiting for 1 seed;") && log.contains(&format!("  {}:2378", lonely.address));
            if said { Ok(()) } else { Err(log) }
        });
        let begun = hosts[..count]
            .iter()
            .filter(|host| server_dir(host).join("etcd").exists());
        assert_eq!(begun.count(), 0, "{order:?}: a store began without {}", lonely.name);
        lonely.cut(false);
    }
    let hosts = &hosts[..count];
    for host in hosts {
        eventually(&format!("{order:?}: {} serves", host.name), 90, || serves(host));
    }
    let clusters: BTreeSet<String> = hosts.iter().map(cluster_of).collect();
    assert!(clusters.len() == 1 && !clusters.contains(""), "{order:?}: {clusters:?}");
    let makers = hosts
        .iter()
        .filter(|host| server_log(host).contains("serves: a new cluster"));
    assert_eq!(makers.count(), 1, "{order:?}: one seed makes the cluster");
    eventually(&format!("{order:?}: every seed is a member"), 60, || {
        let list = members(last)?;
        let started = list.lines().filter(|line| line.contains(", started, ")).count();
        if started == count && list.lines().count() == count {
            Ok(())
        } else {
            Err(list)
        }
    });
    for (host, server) in hosts.iter().zip(running) {
        cut_power(host, &mut server.expect("it was started"));
        std::fs::remove_dir_all(server_dir(host)).expect("a server's directory");
        std::fs::remove_file(host.dir.join("server.log")).expect("a server's log");
    }
}

#[test]
fn seeds_in_every_order_with_one_cut_off_are_one_cluster() {
    let lab = Lab::new(5);
    let ids: BTreeSet<String> = lab
        .hosts
        .iter()
        .map(|host| host.within("cat", &["/etc/machine-id"]).expect("a machine id"))
        .collect();
    assert_eq!(ids.len(), 5, "every host is a machine of its own");
    let token = install_token(&lab, "token");
    let every = std::env::var("REEVE_ORDERS").is_ok_and(|which| which == "all");
    begins_as_one(&lab.hosts, &[0], false, &token);
    for order in orders(3) {
        begins_as_one(&lab.hosts, &order, false, &token);
    }
    let five = orders(5);
    assert_eq!(five.len(), 120);
    for order in five.iter().step_by(if every { 1 } else { 41 }) {
        begins_as_one(&lab.hosts, order, false, &token);
    }
    begins_as_one(&lab.hosts, &[2, 0, 1], true, &token);
    begins_as_one(&lab.hosts, &[4, 2, 0, 3, 1], true, &token);
}
