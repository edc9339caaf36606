//! Certificates that end and are renewed while work goes on, and nodes that are shut out.

use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use e2e::seats::{GLOBAL, agent, agent_dir, etcdctl, install_token, on, server_dir, server_with, serves, succeeds};
use e2e::{Host, Lab, eventually, run};

/// Until when a certificate's file says it counts, in seconds since 1970.
fn until(host: &Host, file: &std::path::Path) -> Result<u64, String> {
    let file = file.display().to_string();
    let said = host.within("openssl", &["x509", "-noout", "-enddate", "-in", &file])?;
    let date = said.trim().strip_prefix("notAfter=").ok_or(said.clone())?;
    let seconds = run(Command::new("date").args(["-u", "-d", date, "+%s"]));
    String::from_utf8_lossy(&seconds.stdout)
        .trim()
        .parse()
        .map_err(|_| said)
}

fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The connections to a seed's store that come from this address.
fn open_at(seed: &Host, from: &str) -> Vec<String> {
    let text = seed.within("ss", &["-Htn", "state", "established"]).expect("ss");
    let at = format!("{}:2379", seed.address);
    text.lines()
        .filter(|line| line.split_whitespace().any(|word| word == at))
        .filter(|line| line.contains(&format!("{from}:")))
        .map(str::to_owned)
        .collect()
}

/// What etcdctl says with the certificate of a node, from that node.
fn ask(node: &Host, seed: &Host) -> Result<String, String> {
    let args = ["--command-timeout", "3s", "get", "/reeve/cluster"];
    etcdctl(node, &agent_dir(node).join("member"), "node", seed, &args)
}

#[test]
fn certificates_are_renewed_during_work_and_a_removed_node_is_shut_out() {
    let lab = Lab::new(3);
    let [n1, n2, n3] = lab.hosts.as_slice() else {
        panic!("three hosts")
    };
    let token = install_token(&lab, "token");
    let seeds = format!("{},{},{}", n1.address, n2.address, n3.address);
    let short = ["--certificate-life", "1m"];
    let servers: Vec<_> = lab
        .hosts
        .iter()
        .map(|host| server_with(host, &seeds, &token, &short))
        .collect();
    for host in &lab.hosts {
        eventually(&format!("{} serves", host.name), 60, || serves(host));
    }
    let agents: Vec<_> = lab.hosts.iter().map(|host| agent(host, &seeds, &token)).collect();
    eventually("all nodes are there", 30, || {
        let text = succeeds(n1, &["get", "nodes", "-o", "name"]);
        let all = ["n1", "n2", "n3"].iter().all(|node| text.contains(node));
        if all { Ok(()) } else { Err(text) }
    });
    let manifest = lab.file("web.yaml", GLOBAL);
    succeeds(n1, &["apply", "-f", &manifest, "--yes"]);
    let lives: Vec<_> = lab.hosts.iter().map(Host::lives).collect();

    // Every first certificate ends during this, and each has a successor in time.
    let mut files = Vec::new();
    for host in &lab.hosts {
        files.push((host, agent_dir(host).join("member/node.crt")));
        for name in ["server", "controller", "person"] {
            files.push((host, server_dir(host).join(format!("{name}.crt"))));
        }
    }
    let first: Vec<u64> = files
        .iter()
        .map(|(host, file)| until(host, file).expect("a certificate"))
        .collect();
    let last = first.iter().max().expect("twelve");
    eventually("all first certificates have ended", 120, || {
        let now = seconds();
        for ((host, file), first) in files.iter().zip(&first) {
            let until = until(host, file)?;
            assert!(until > now, "{} has ended", file.display());
            if until == *first || now <= *last {
                return Err(format!("{} until {until}, now {now}", file.display()));
            }
        }
        Ok(())
    });
    let text = succeeds(n2, &["get", "nodes"]);
    assert!(!text.contains("unreachable"), "{text}");
    let changed = lab.file("changed.yaml", &GLOBAL.replace("3600", "3601"));
    let fresh: Vec<_> = lab.hosts.iter().map(Host::lives).collect();
    assert_eq!(fresh, lives, "no container was restarted");
    succeeds(n3, &["apply", "-f", &changed, "--yes"]);
    let lives: Vec<_> = lab.hosts.iter().map(Host::lives).collect();
    assert_ne!(fresh, lives);

    // A node in wrong hands: shut out at once, what it had open included, and nobody else.
    ask(n3, n1).expect("n3 reaches the store");
    assert!(lab.hosts.iter().any(|seed| !open_at(seed, &n3.address).is_empty()));
    // Its own seed and the verbs there have connections from the same address: they are not the node's.
    let begun = Instant::now();
    let said = succeeds(n1, &["node", "rm", "n3", "--now", "--yes", "--note", "stolen"]);
    println!("shut out after {:.1} s", begun.elapsed().as_secs_f32());
    assert!(
        said.contains("is shut out") && said.contains("reeve token rm "),
        "{said}"
    );
    for seed in &lab.hosts {
        ask(n3, seed).expect_err("n3 is shut out");
        ask(n2, seed).expect("n2 is not");
    }
    eventually("n3's agent hears that it is refused", 30, || {
        let log = std::fs::read_to_string(n3.dir.join("agent.log")).unwrap_or_default();
        let told = log.contains("no longer let this host in");
        if told { Ok(()) } else { Err(log) }
    });
    eventually("the others work on", 30, || {
        let (code, text) = on(n2, &["get", "nodes"]);
        let fine = code == Some(0) && text.lines().filter(|line| line.contains(" Ready ")).count() >= 2;
        if fine { Ok(()) } else { Err(text) }
    });
    let others: Vec<_> = [n1, n2].iter().map(|host| host.lives()).collect();
    assert_eq!(others, lives[..2], "no container was restarted");
    // It does not come back with what it has: neither its certificate nor the token it joined with; with a new one it does.
    let mut agents = agents;
    agents.pop().expect("three").kill();
    let mut refused = agent(n3, &seeds, &token);
    eventually("the old token does not let it in again", 60, || {
        let said = refused.output();
        if said.contains("refuses to let this host in") {
            Ok(())
        } else {
            Err(said)
        }
    });
    refused.kill();
    let fresh = lab.file("fresh", &succeeds(n1, &["token", "create", "--node", "n3"]));
    let _again = agent(n3, &seeds, &fresh);
    eventually("n3 is in again", 60, || ask(n3, n1).map(drop));
    succeeds(n1, &["uncordon", "n3"]);
    eventually("n3 runs its instance again", 60, || match n3.lives().len() {
        1 => Ok(()),
        found => Err(format!("{found} containers")),
    });
    drop((agents, servers));
}
