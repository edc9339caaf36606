//! Hosts of one's own: seeds that come together with real etcd members behind certificates, nodes that join with tokens,
//! and who is refused.

use std::process::Command;

use e2e::seats::{
    GLOBAL, agent, agent_dir, cluster_of, cut_power, install_token, members, on, server, server_dir, server_log,
    serves, succeeds,
};
use e2e::{Lab, Process, eventually, run};

#[test]
fn seeds_come_together_in_any_order_and_a_lost_one_takes_its_place_again() {
    let lab = Lab::new(3);
    let [n1, n2, n3] = lab.hosts.as_slice() else {
        panic!("three hosts")
    };
    let token = install_token(&lab, "token");
    let (a, b, c) = (&n1.address, &n2.address, &n3.address);

    // A node before any seed, and the seeds from the last to the first, with one of them cut off.
    let early = agent(n2, &format!("{c},{a},{b}"), &token);
    let third = server(n3, &format!("{a},{b},{c}"), &token);
    let mut first = server(n1, &format!("{b},{c},{a}"), &token);
    eventually("the third seed says whom it misses", 20, || {
        let log = server_log(n3);
        let said = log.contains("waiting for 1 seed;") && log.contains(&format!("  {b}:2378"));
        if said { Ok(()) } else { Err(log) }
    });
    n1.cut(true);
    let second = server(n2, &format!("{c},{b},{a}"), &token);
    eventually("the second seed misses the first", 20, || {
        let log = server_log(n2);
        let said = log.contains(&format!("  {a}:2378"));
        if said { Ok(()) } else { Err(log) }
    });
    for host in [n1, n2, n3] {
        assert!(
            !server_dir(host).join("etcd").exists(),
            "{} has begun a store too early",
            host.name
        );
    }
    n1.cut(false);
    for host in [n1, n2, n3] {
        eventually(&format!("{} serves", host.name), 60, || serves(host));
    }
    let news = [n1, n2, n3]
        .iter()
        .filter(|host| server_log(host).contains("serves: a new cluster"))
        .count();
    assert_eq!(news, 1, "one seed makes the cluster");
    assert_eq!(cluster_of(n1).len(), 32);
    assert!(cluster_of(n1) == cluster_of(n2) && cluster_of(n2) == cluster_of(n3));

    // All of it works as any other cluster does.
    let agents = [
        agent(n1, &format!("{a},{b},{c}"), &token),
        agent(n3, &format!("{a},{b},{c}"), &token),
    ];
    eventually("all nodes are there", 30, || {
        let text = succeeds(n1, &["get", "nodes", "-o", "name"]);
        let all = ["n1", "n2", "n3"].iter().all(|node| text.contains(node));
        if all { Ok(()) } else { Err(text) }
    });
    let manifest = lab.file("web.yaml", GLOBAL);
    succeeds(n3, &["apply", "-f", &manifest, "--yes"]);
    let lives: Vec<_> = [n1, n2, n3].iter().map(|host| host.lives()).collect();
    assert!(lives.iter().all(|lives| lives.len() == 1), "{lives:?}");

    // People on a seed reach the containers of every host, by the certificates that are there; without them nobody does.
    let top = succeeds(n3, &["top", "instances"]);
    assert!(
        ["web.n1", "web.n2", "web.n3"].iter().all(|name| top.contains(name)),
        "{top}"
    );
    let api = format!("https://{a}:9465/v1/near");
    n3.within("curl", &["-sSk", "--max-time", "3", &api])
        .expect_err("who shows nothing is nobody");
    let file = |name: &str| agent_dir(n3).join("member").join(name).display().to_string();
    let (cert, key) = (file("node.crt"), file("node.key"));
    let node = n3.within(
        "curl",
        &["-sSkf", "--max-time", "3", "--cert", &cert, "--key", &key, &api],
    );
    node.expect_err("a node opens nothing on another node but images, by asking for them");

    // The first seed's disk is lost: the others manage on, and it comes back as a member.
    cut_power(n1, &mut first);
    std::fs::remove_dir_all(server_dir(n1)).expect("its disk can be lost");
    std::fs::remove_file(n1.dir.join("server.log")).expect("a log");
    eventually("the others manage on", 30, || {
        let (code, text) = on(n2, &["get", "services"]);
        if code == Some(0) { Ok(()) } else { Err(text) }
    });
    let _first = server(n1, &format!("{a},{b},{c}"), &token);
    eventually("it takes its place again", 60, || serves(n1));
    let log = server_log(n1);
    assert!(
        log.contains("taking this seed's place") && log.contains("serves: the cluster is there"),
        "{log}"
    );
    eventually("three members have started", 30, || {
        let list = members(n2)?;
        let started = list.lines().filter(|line| line.contains(", started, ")).count();
        if started == 3 && list.lines().count() == 3 {
            Ok(())
        } else {
            Err(list)
        }
    });

    // It counts: without another one there still is a quorum.
    let mut second = second;
    cut_power(n2, &mut second);
    eventually("two of three manage on", 40, || {
        let (code, text) = on(n1, &["cordon", "n3"]);
        if code == Some(0) { Ok(()) } else { Err(text) }
    });
    let after: Vec<_> = [n1, n2, n3].iter().map(|host| host.lives()).collect();
    assert_eq!(after, lives, "no container was restarted");
    drop((early, agents, third));
}

#[test]
fn who_has_no_right_to_be_here_is_refused_with_the_reason() {
    let lab = Lab::new(2);
    let [n1, n2] = lab.hosts.as_slice() else {
        panic!("two hosts")
    };
    let (token, other) = (install_token(&lab, "token"), install_token(&lab, "other"));
    let seeds = n1.address.clone();
    let mut first = server(n1, &seeds, &token);
    eventually("the seed serves", 60, || serves(n1));

    let joins = |node: &str, dir: &str, token: &str| -> (Option<i32>, String) {
        let dir = lab.dir().join(format!("of-{dir}")).display().to_string();
        let output = run(Command::new("timeout")
            .args(["-s", "TERM", "20"])
            .args(n2.place.words())
            .arg(&n2.binary)
            .args([
                "agent",
                "--data-dir",
                &dir,
                "--seeds",
                &seeds,
                "--token-file",
                token,
                "--node",
                node,
            ])
            .args(["--docker", &n2.docker_host])
            .env("NO_COLOR", "1"));
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let refused = |node: &str, dir: &str, token: &str, why: &str| {
        let (code, text) = joins(node, dir, token);
        assert!(
            code == Some(6) && text.contains(why),
            "{code:?}, wanted {why:?}:\n{text}"
        );
    };
    let create = |name: &str, args: &[&str]| -> String {
        lab.file(name, &succeeds(n1, &[["token", "create"].as_slice(), args].concat()))
    };

    // Another cluster's token, one for another name, a used one, an expired one, a withdrawn one.
    refused("n2", "wrong", &other, "belong to another cluster");
    let named = create("named", &["--node", "n2"]);
    refused("n9", "named", &named, "does not admit the name n9");
    let mut n2_agent = agent(n2, &seeds, &named);
    eventually("n2 has joined", 30, || {
        let text = succeeds(n1, &["get", "nodes", "-o", "name"]);
        if text.contains("n2") { Ok(()) } else { Err(text) }
    });
    refused(
        "n2",
        "clone",
        &named,
        "has joined with this token already, with another key",
    );
    let once = create("once", &[]);
    // Joined by hand: this one is not to run on.
    let mut third = Process::start(
        "a node of another name",
        Some(&n2.place),
        &n2.binary,
        &[
            "agent",
            "--data-dir",
            &lab.dir().join("of-third").display().to_string(),
            "--seeds",
            &seeds,
            "--token-file",
            &once,
            "--node",
            "third",
            "--docker",
            &n2.docker_host,
            "--metrics",
            "127.0.0.1:0",
            "--api-addr",
            "none",
        ],
        &[],
        lab.dir().join("third.log"),
    );
    eventually("it has joined", 30, || {
        let text = succeeds(n1, &["token", "ls"]);
        if text.contains("third") { Ok(()) } else { Err(text) }
    });
    third.kill();
    refused("fourth", "fourth", &once, "used up");
    let short = create("short", &["--ttl", "1s"]);
    eventually("it has expired", 10, || {
        let text = succeeds(n1, &["token", "ls"]);
        if text.contains("expired") { Ok(()) } else { Err(text) }
    });
    refused("fifth", "fifth", &short, "expired at");
    let withdrawn = create("withdrawn", &[]);
    let ids: Vec<serde_json::Value> =
        serde_json::from_str(&succeeds(n1, &["token", "ls", "-o", "json"])).expect("JSON");
    for id in ids
        .iter()
        .filter(|token| token["joined"].as_array().is_some_and(Vec::is_empty) && token["expired"] == false)
    {
        let id = id["id"].as_str().expect("an id");
        succeeds(n1, &["token", "rm", id]);
    }
    refused("sixth", "sixth", &withdrawn, "was withdrawn");

    // Who has joined needs no token again, and is nobody else.
    n2_agent.kill();
    refused("n3", "n2", &named, "is `node/n2` of cluster");
    let again = agent(n2, &seeds, "/nonexistent");
    eventually("it is there again", 30, || {
        let log = std::fs::read_to_string(n2.dir.join("agent.log")).unwrap_or_default();
        if log.matches("agent starts").count() >= 2 {
            Ok(())
        } else {
            Err(log)
        }
    });
    drop(again);

    // Nobody reaches the store without a certificate, nor its peers with a node's.
    let node = |file: &str| agent_dir(n2).join("member").join(file).display().to_string();
    let ask = |port: u16, more: &[&str]| {
        let url = format!("https://{}:{port}/version", n1.address);
        let args = ["-sSi", "--max-time", "3", "--cacert", &node("ca.crt")];
        n2.within("curl", &[args.as_slice(), more, &[&url]].concat())
    };
    let (cert, key) = (node("node.crt"), node("node.key"));
    let own = ["--cert", cert.as_str(), "--key", key.as_str()];
    assert!(
        ask(2379, &own)
            .expect("a node reaches the store")
            .contains("the store is asked by gRPC")
    );
    assert!(ask(2379, &[]).is_err() && ask(2380, &own).is_err() && ask(2380, &[]).is_err());

    // A seed is not another cluster's, nor among other seeds.
    first.stop(std::time::Duration::from_secs(15));
    let mut again = server(n1, &n1.address, "/nonexistent");
    eventually("a seed serves again without its token", 30, || {
        let log = server_log(n1);
        let twice = log.matches(" serves: ").count() == 2;
        if twice { Ok(()) } else { Err(log) }
    });
    again.stop(std::time::Duration::from_secs(15));
    let (code, text) = on(
        n1,
        &["server", "--seeds", &n1.address, "--etcd-program", "/nonexistent"],
    );
    let told = code == Some(6) && text.contains("apt install etcd-server");
    assert!(told, "{code:?}: {text}");
    for (token, seeds, why) in [
        (&other, n1.address.clone(), "but the token is of cluster"),
        (
            &token,
            format!("{},{},10.255.0.9", n1.address, n2.address),
            "was installed as",
        ),
    ] {
        let (code, text) = on(n1, &["server", "--seeds", &seeds, "--token-file", token]);
        assert!(code == Some(6) && text.contains(why), "{code:?}: {text}");
    }

    // A seed that has seen its cluster and lost its store begins no other.
    std::fs::remove_dir_all(server_dir(n1).join("etcd")).expect("a store can be lost");
    let (code, text) = on(n1, &["server", "--seeds", &n1.address, "--token-file", &token]);
    assert!(
        code == Some(6) && text.contains("no seed has its store any more"),
        "{code:?}: {text}"
    );
}
