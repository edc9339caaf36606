//! Virtual addresses on a device of a network namespace of their own, with a neighbour in another: a real kernel, real packets. As
//! root. Nothing stays behind.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use network::floating::{Addresses, Outcome, Wanted, announce};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Two namespaces and a cable. Dropping it removes them.
struct Lab {
    host: String,
    other: String,
}

impl Lab {
    fn new(name: &str) -> Self {
        let own = std::process::id();
        let lab = Self {
            host: format!("rvf{own}{name}h"),
            other: format!("rvf{own}{name}o"),
        };
        let Self { host, other } = &lab;
        for args in [
            format!("netns add {host}"),
            format!("netns add {other}"),
            format!("-n {host} link add eth0 type veth peer name eth0 netns {other}"),
            format!("-n {host} addr add 192.0.2.1/24 dev eth0"),
            format!("-n {host} addr add 2001:db8::1/64 dev eth0 nodad"),
            format!("-n {other} addr add 192.0.2.2/24 dev eth0"),
            format!("-n {other} addr add 2001:db8::2/64 dev eth0 nodad"),
            format!("-n {host} link set eth0 up"),
            format!("-n {other} link set eth0 up"),
        ] {
            ip(&args);
        }
        lab
    }

    fn has(&self, address: &str) -> bool {
        ip(&format!("-n {} addr show dev eth0", self.host)).contains(&format!("{address}/"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for netns in [&self.host, &self.other] {
            let _ = Command::new("ip").args(["netns", "del", netns]).output();
        }
    }
}

#[track_caller]
fn ip(args: &str) -> String {
    let done = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .expect("ip runs");
    assert!(
        done.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[track_caller]
fn until(what: &str, mut met: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !met() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Does something in a network namespace, on a thread and a runtime of its own.
fn within<T: Send>(netns: &str, work: impl AsyncFnOnce() -> T + Send) -> T {
    let entered = || {
        let netns = File::open(format!("/run/netns/{netns}")).expect("the namespace is there");
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).expect("as root");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work())
    };
    std::thread::scope(|scope| match scope.spawn(entered).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn wanted(addresses: &[&str]) -> Vec<Wanted> {
    let one = |text: &&str| Wanted {
        address: text.parse().unwrap(),
        interface: None,
    };
    addresses.iter().map(one).collect()
}

fn held(outcome: &Outcome) -> Vec<String> {
    outcome.held.keys().map(ToString::to_string).collect()
}

const FOUR: &str = "192.0.2.10/24";
const SIX: &str = "2001:db8::10/64";

#[test]
fn the_kernel_drops_what_nobody_renews_and_others_addresses_stay() {
    let lab = Lab::new("a");
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("virtual-ips.json");
    let taken = within(&lab.host, async || {
        let mut addresses = Addresses::new(ledger.clone()).unwrap();
        addresses.converge(&wanted(&[FOUR, SIX]), || Some(3)).await.unwrap()
    });
    assert_eq!(held(&taken), ["192.0.2.10", "2001:db8::10"]);
    assert_eq!(taken.taken.len(), 2);
    let said = ip(&format!("-n {} addr show dev eth0", lab.host));
    assert!(
        said.contains("valid_lft 3sec") || said.contains("valid_lft 2sec"),
        "{said}"
    );
    let six = said
        .lines()
        .find(|line| line.contains("2001:db8::10"))
        .expect("it is there");
    assert!(!six.contains("tentative"), "{said}");
    until("the kernel drops them", || {
        !lab.has("192.0.2.10") && !lab.has("2001:db8::10")
    });
    assert!(lab.has("192.0.2.1") && lab.has("2001:db8::1"));

    // What a person gave the host is neither taken nor removed, and is said.
    ip(&format!("-n {} addr add {FOUR} dev eth0", lab.host));
    let (refused, after) = within(&lab.host, async || {
        let mut addresses = Addresses::new(ledger.clone()).unwrap();
        let refused = addresses.converge(&wanted(&[FOUR]), || Some(60)).await.unwrap();
        (refused, addresses.converge(&[], || Some(60)).await.unwrap())
    });
    assert!(held(&refused).is_empty() && held(&after).is_empty());
    let four: IpAddr = "192.0.2.10".parse().unwrap();
    assert!(refused.refused[&four].contains("by hand"), "{:?}", refused.refused);
    assert!(lab.has("192.0.2.10"));
    // Of a network that no device is in nothing can be had.
    let refused = within(&lab.host, async || {
        let mut addresses = Addresses::new(ledger.clone()).unwrap();
        addresses
            .converge(&wanted(&["198.51.100.1/24"]), || Some(60))
            .await
            .unwrap()
    });
    assert!(refused.refused.values().all(|why| why.contains("no device")) && refused.refused.len() == 1);
}

#[test]
fn it_goes_on_after_a_restart_is_repaired_and_goes_when_it_is_no_longer_certain() {
    let lab = Lab::new("b");
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("virtual-ips.json");
    let (first, again) = within(&lab.host, async || {
        let mut addresses = Addresses::new(ledger.clone()).unwrap();
        let first = addresses.converge(&wanted(&[FOUR, SIX]), || Some(60)).await.unwrap();
        // Renewed, it is not taken anew.
        (
            first,
            addresses.converge(&wanted(&[FOUR, SIX]), || Some(90)).await.unwrap(),
        )
    });
    assert_eq!(first.taken.len(), 2);
    assert!(again.taken.is_empty() && again.held == first.held);
    let (restarted, repaired, gone) = within(&lab.host, async || {
        let mut addresses = Addresses::new(ledger.clone()).unwrap();
        let restarted = addresses.converge(&wanted(&[FOUR, SIX]), || Some(60)).await.unwrap();
        ip(&format!("-n {} addr del {FOUR} dev eth0", lab.host));
        let repaired = addresses.converge(&wanted(&[FOUR, SIX]), || Some(60)).await.unwrap();
        (
            restarted,
            repaired,
            addresses.converge(&wanted(&[FOUR, SIX]), || None).await.unwrap(),
        )
    });
    assert!(restarted.taken.is_empty() && restarted.held.len() == 2);
    assert_eq!(repaired.taken, BTreeSet::from(["192.0.2.10".parse().unwrap()]));
    assert!(held(&gone).is_empty());
    assert!(!lab.has("192.0.2.10") && !lab.has("2001:db8::10") && lab.has("192.0.2.1"));
}

#[test]
fn neighbours_that_knew_another_place_are_told() {
    let lab = Lab::new("c");
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("virtual-ips.json");
    let stale = "lladdr 02:00:00:00:00:99 dev eth0 nud stale";
    for address in ["192.0.2.10", "2001:db8::10"] {
        ip(&format!("-n {} neigh replace {address} {stale}", lab.other));
    }
    let own = ip(&format!("-n {} -brief link show dev eth0", lab.host));
    let own = own.split_whitespace().nth(2).unwrap().to_owned();
    let outcome = within(&lab.host, async || {
        let mut addresses = Addresses::new(ledger.clone()).unwrap();
        addresses.converge(&wanted(&[FOUR, SIX]), || Some(60)).await.unwrap()
    });
    until("both are known to be there", || {
        within(&lab.host, async || {
            for (address, place) in &outcome.held {
                announce(*address, place).unwrap();
            }
        });
        let known = |address: &str| ip(&format!("-n {} neigh show {address}", lab.other)).contains(&own);
        known("192.0.2.10") && known("2001:db8::10")
    });
}
