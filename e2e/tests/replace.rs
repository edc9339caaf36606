//! A host that is gone for good: another takes its name and what is assigned to it, and the old one is not let in again. Where
//! it was a seed, the other takes its seat, too.

use e2e::seats::{
    GLOBAL, agent, agent_dir, cut_power, etcdctl, install_token, members, on, server, server_dir, server_log, serves,
    succeeds,
};
use e2e::{Host, Lab, Process, eventually};

/// An agent on `host` under another name than the host's own.
fn agent_as(host: &Host, node: &str, seeds: &str, token: &str) -> Process {
    let dir = host.dir.join("as-another").display().to_string();
    let args = ["agent", "--data-dir", &dir, "--seeds", seeds, "--token-file", token];
    let args = [args.as_slice(), &["--node", node, "--docker", &host.docker_host]].concat();
    let log = host.dir.join("as-another.log");
    Process::start("the new host's agent", Some(&host.place), &host.binary, &args, &[], log)
}

/// The address of n2's instance, which one on n1 reaches over the cluster's network.
fn reached_from_n1(n1: &Host) -> Result<String, String> {
    let text = succeeds(n1, &["get", "instances", "-o", "wide"]);
    let line = text.lines().find(|line| line.starts_with("web.n2 "));
    let address = line.and_then(|line| line.split_whitespace().find(|word| word.starts_with("10.188.")));
    let address = address.ok_or_else(|| text.clone())?.to_owned();
    let running = n1.running();
    let asker = running.first().ok_or("nothing runs on n1")?;
    let output = e2e::run(&mut n1.docker_command(&["exec", asker, "ping", "-c", "1", "-W", "1", &address]));
    if output.status.success() {
        Ok(address)
    } else {
        Err(text + &String::from_utf8_lossy(&output.stdout))
    }
}

#[test]
fn another_host_takes_the_name_of_one_that_is_gone_and_what_it_ran() {
    let lab = Lab::new(3);
    let [n1, n2, n3] = lab.hosts.as_slice() else {
        panic!("three hosts")
    };
    let token = install_token(&lab, "token");
    let seeds = n1.address.clone();
    let _server = server(n1, &seeds, &token);
    eventually("the seed serves", 60, || serves(n1));
    succeeds(n1, &["network", "create", "--cidr", "10.188.0.0/16"]);
    let mut old = agent(n2, &seeds, &token);
    let _own = agent(n1, &seeds, &token);
    eventually("both nodes are there", 60, || {
        let text = succeeds(n1, &["get", "nodes", "-o", "name"]);
        let both = ["n1", "n2"].iter().all(|node| text.contains(node));
        if both { Ok(()) } else { Err(text) }
    });
    let manifest = lab.file("web.yaml", GLOBAL);
    succeeds(n1, &["apply", "-f", &manifest, "--yes"]);
    let before = n2.lives();
    assert_eq!(before.len(), 1);
    let address = eventually("n1 reaches n2", 40, || reached_from_n1(n1));
    let others = n1.lives();

    // One that answers is not replaced by mistake, nor the seed that is asked; nor one that nobody knows.
    for (node, why) in [
        ("n2", "would run twice"),
        ("n1", "this very seed"),
        ("n7", "there is no node"),
    ] {
        let (code, text) = on(n1, &["node", "replace", node, "--yes"]);
        assert!(code != Some(0) && text.contains(why), "{text}");
    }
    old.kill();
    n2.cut(true);
    eventually("n2 is gone", 60, || {
        let text = succeeds(n1, &["get", "nodes"]);
        let gone = text
            .lines()
            .any(|line| line.starts_with("n2 ") && !line.contains(" Ready "));
        if gone { Ok(()) } else { Err(text) }
    });
    let text = succeeds(n1, &["node", "replace", "n2", "--yes", "-o", "json"]);
    let said: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let install = said["install"].as_str().expect("a command");
    assert!(install.contains("--node n2") && install.contains(&seeds), "{install}");
    let fresh = lab.file("fresh", said["token"].as_str().expect("a token"));

    // Under another name it does not count.
    let mut other = agent_as(n3, "n3", &seeds, &fresh);
    eventually("another name is refused", 30, || {
        let text = other.output();
        let refused = text.contains("does not admit the name n3") && !other.alive();
        if refused { Ok(()) } else { Err(text) }
    });
    let _new = agent_as(n3, "n2", &seeds, &fresh);
    eventually("the new host runs what n2 ran", 90, || {
        let text = succeeds(n1, &["get", "nodes"]);
        let ready = text
            .lines()
            .any(|line| line.starts_with("n2 ") && line.contains(" Ready "));
        match n3.lives().as_slice() {
            [(name, ..)] if ready && name.contains("web.n2") => Ok(()),
            found => Err(format!("{found:?}\n{text}")),
        }
    });
    let kept = eventually("n1 reaches the new host", 40, || reached_from_n1(n1));
    assert_eq!(kept, address, "what has an address keeps it");

    // The old one comes back: it is not let in, and keeps what it runs until somebody stops it there.
    n2.cut(false);
    let gone = agent_dir(n2).join("no-token").display().to_string();
    let mut back = agent(n2, &seeds, &gone);
    eventually("the old host is told", 60, || {
        let text = back.output();
        let told = text.contains("no longer let this host in") && text.contains("reeve uninstall");
        if told { Ok(()) } else { Err(text) }
    });
    assert!(back.alive(), "{}", back.output());
    eventually("n1 reaches the new host, and not the old one", 20, || {
        reached_from_n1(n1)
    });
    assert_eq!(n2.lives(), before, "nothing was stopped or restarted");
    assert_eq!(n1.lives(), others, "nothing was stopped or restarted");
    assert_eq!(n3.lives().len(), 1);
}

#[test]
fn a_seed_that_is_gone_for_good_is_replaced_by_a_host_with_its_address() {
    let lab = Lab::new(3);
    let [n1, n2, n3] = lab.hosts.as_slice() else {
        panic!("three hosts")
    };
    let token = install_token(&lab, "token");
    let seeds = format!("{},{},{}", n1.address, n2.address, n3.address);
    let mut servers: Vec<_> = [n1, n2, n3].iter().map(|host| server(host, &seeds, &token)).collect();
    for host in [n1, n2, n3] {
        eventually(&format!("{} serves", host.name), 60, || serves(host));
    }
    let mut agents: Vec<_> = lab.hosts.iter().map(|host| agent(host, &seeds, &token)).collect();
    eventually("all nodes are there", 60, || {
        let text = succeeds(n1, &["get", "nodes", "-o", "name"]);
        let all = ["n1", "n2", "n3"].iter().all(|node| text.contains(node));
        if all { Ok(()) } else { Err(text) }
    });
    let manifest = lab.file("web.yaml", GLOBAL);
    succeeds(n1, &["apply", "-f", &manifest, "--yes"]);
    let lives = [n1.lives(), n2.lives()];
    let (code, text) = on(n1, &["node", "replace", "n3", "--yes"]);
    assert!(code == Some(4) && text.contains("its seat is taken"), "{text}");
    let (code, text) = on(n1, &["node", "replace", "n1", "--yes"]);
    assert!(code == Some(6) && text.contains("this very seed"), "{text}");

    // The host is gone, with its disk; another one gets its address and a token.
    agents.pop().expect("three").kill();
    cut_power(n3, &mut servers[2]);
    for dir in [server_dir(n3), agent_dir(n3)] {
        std::fs::remove_dir_all(dir).expect("its disk");
    }
    eventually("n3 is gone", 60, || {
        let text = succeeds(n1, &["get", "nodes"]);
        let gone = text
            .lines()
            .any(|line| line.starts_with("n3 ") && !line.contains(" Ready "));
        if gone { Ok(()) } else { Err(text) }
    });
    let text = succeeds(n1, &["node", "replace", "n3", "--yes", "-o", "json"]);
    let said: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(said["seed"], n3.address.as_str(), "{text}");
    let fresh = lab.file("fresh", said["token"].as_str().expect("a token"));
    let _again = server(n3, &seeds, &fresh);
    agents.push(agent(n3, &seeds, &fresh));
    eventually("the new host is a seed", 90, || {
        let args = ["--command-timeout", "3s", "get", "/reeve/cluster"];
        etcdctl(n1, &server_dir(n1), "person", n3, &args).map_err(|error| {
            let log = std::fs::read_to_string(server_dir(n3).join("etcd.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            format!("{error}\n{}\n{}", tail.join("\n"), server_log(n3))
        })?;
        let (code, text) = on(n3, &["get", "nodes"]);
        if code == Some(0) { Ok(()) } else { Err(text) }
    });
    let text = members(n1).expect("members");
    assert_eq!(
        text.lines().filter(|line| line.contains("started")).count(),
        3,
        "{text}"
    );
    eventually("it has the node's name, and runs what that ran", 90, || {
        let text = succeeds(n3, &["get", "nodes"]);
        let ready = text
            .lines()
            .any(|line| line.starts_with("n3 ") && line.contains(" Ready "));
        if ready { Ok(()) } else { Err(text) }
    });
    assert_eq!([n1.lives(), n2.lives()], lives, "no container was restarted");
    drop((agents, servers));
}
