//! The cluster's authority is replaced while work goes on: nothing restarts, whoever was away comes back while it can, and
//! what the former authority issued is refused afterwards.

use std::path::{Path, PathBuf};

use e2e::seats::{GLOBAL, agent, agent_dir, etcdctl, install_token, on, server, server_dir, serves, succeeds};
use e2e::{Host, Lab, Process, eventually};

const ROTATE: [&str; 3] = ["admin", "rotate-authority", "--yes"];

/// `reeve admin rotate-authority` on a seed, as a person leaves it running.
fn rotate(host: &Host, log: &str, more: &[&str]) -> Process {
    let dir = server_dir(host).display().to_string();
    let args = [ROTATE.as_slice(), &["--data-dir", &dir, "--timeout", "4m"], more].concat();
    Process::start(
        log,
        Some(&host.place),
        &host.binary,
        &args,
        &[("NO_COLOR", "1")],
        host.dir.join(log),
    )
}

/// The certificate of a node as it is now, in a directory of its own.
fn kept(node: &Host, name: &str) -> PathBuf {
    let (from, to) = (agent_dir(node).join("member"), node.dir.join(name));
    std::fs::create_dir_all(&to).expect("a directory");
    for file in ["node.crt", "node.key"] {
        std::fs::copy(from.join(file), to.join(file)).expect("a copy");
    }
    to
}

/// What the store says to a node that shows what is in this directory, and believes what is believed now.
fn ask(node: &Host, dir: &Path, seed: &Host) -> Result<String, String> {
    let ca = server_dir(seed).join("ca.crt");
    std::fs::copy(ca, dir.join("ca.crt")).map_err(|error| error.to_string())?;
    let args = ["--command-timeout", "3s", "get", "/reeve/cluster"];
    etcdctl(node, dir, "node", seed, &args)
}

fn said(process: &Process, text: &str) -> Result<(), String> {
    let log = process.output();
    if log.contains(text) { Ok(()) } else { Err(log) }
}

/// That verbs on this host find the store.
fn answers(host: &Host) -> Result<(), String> {
    match on(host, &["get", "nodes"]) {
        (Some(0), _) => Ok(()),
        (_, text) => Err(text),
    }
}

fn all_lives(lab: &Lab) -> Vec<Vec<(String, String, String)>> {
    lab.hosts.iter().map(Host::lives).collect()
}

#[test]
fn the_authority_is_replaced_during_work_and_nothing_is_restarted() {
    let lab = Lab::new(4);
    let [n1, n2, n3, n4] = lab.hosts.as_slice() else {
        panic!("four hosts")
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
        let all = ["n1", "n2", "n3", "n4"].iter().all(|node| text.contains(node));
        if all { Ok(()) } else { Err(text) }
    });
    let manifest = lab.file("web.yaml", GLOBAL);
    succeeds(n1, &["apply", "-f", &manifest, "--yes"]);
    let lives = all_lives(&lab);
    assert!(lives.iter().all(|host| host.len() == 1), "{lives:?}");
    let old = kept(n4, "old");
    ask(n4, &old, n2).expect("n4 reaches the store");
    let status = ["admin", "rotate-authority", "--status"];
    assert!(succeeds(n2, &status).contains("no other is believed"));

    // One node is away, and the seed on which it was asked for dies in the middle, with the verb.
    agents.pop().expect("four").kill();
    let mut verb = rotate(n1, "first", &[]);
    eventually("it is announced", 60, || said(&verb, "is believed beside"));
    verb.kill();
    servers[0].kill();
    // Its member runs on without it, and the store answers.
    answers(n2).expect("the store answers with one seed away");
    let text = succeeds(n2, &status);
    assert!(
        text.contains("is believed beside") && text.contains(&n1.address),
        "{text}"
    );
    servers[0] = server(n1, &seeds, &token);
    let mut verb = rotate(n2, "second", &[]);
    eventually("it waits for the node that is away", 120, || {
        said(&verb, "waiting for node/n4")?;
        answers(n3)
    });
    assert!(verb.output().contains("is being replaced already"), "{}", verb.output());
    let text = succeeds(n3, &status);
    assert!(
        text.contains("issues from now on") && text.contains("node/n4"),
        "{text}"
    );
    assert_eq!(all_lives(&lab), lives, "no container was restarted");
    // A token of before counts no more, and says so; a new one lets in though seeds still show what they showed.
    let args = |name: &str, token: &str, dir: &str| -> Vec<String> {
        let words = [
            "agent",
            "--data-dir",
            dir,
            "--seeds",
            &seeds,
            "--token-file",
            token,
            "--node",
            name,
        ];
        words.into_iter().map(str::to_owned).collect()
    };
    let dir = n4.dir.join("newcomer").display().to_string();
    let refused = n4.reeve(&args("n9", &token, &dir).iter().map(String::as_str).collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        text.contains("made before this cluster's authority was replaced") && text.contains("reeve token create"),
        "{text}"
    );

    // The one that was away comes back in time, renews, and then it ends by itself.
    agents.push(agent(n4, &seeds, &token));
    eventually("the rotation comes to its end", 180, || {
        answers(n1)?;
        if verb.alive() { Err(verb.output()) } else { Ok(()) }
    });
    let text = verb.output();
    assert!(text.contains("what the former one issued is refused"), "{text}");
    assert_eq!(all_lives(&lab), lives, "no container was restarted");
    for seed in [n1, n2, n3] {
        let why = ask(n4, &old, seed).expect_err("what the former authority issued is refused");
        assert!(why.contains("certificate") || why.contains("deadline"), "{why}");
        let present = kept(n4, "present");
        ask(n4, &present, seed).expect("its new one is not");
        assert!(
            !server_dir(seed).join("authority.key").exists(),
            "the former key is destroyed"
        );
    }
    assert!(succeeds(n1, &status).contains("no other is believed"));
    eventually("every node is ready", 60, || {
        let text = succeeds(n2, &["get", "nodes"]);
        let ready = text.lines().filter(|line| line.contains(" Ready ")).count();
        if ready == 4 { Ok(()) } else { Err(text) }
    });
    let changed = lab.file("changed.yaml", &GLOBAL.replace("3600", "3601"));
    succeeds(n3, &["apply", "-f", &changed, "--yes"]);
    let lives = all_lives(&lab);

    // Again, and without waiting for one that is away: it keeps what it runs, is told why, and joins with a new token.
    agents.pop().expect("four").kill();
    let text = succeeds(
        n3,
        &[ROTATE.as_slice(), &["--without", "n4", "--timeout", "4m"]].concat(),
    );
    assert!(
        text.contains("node/n4 is left behind") && text.contains("is refused"),
        "{text}"
    );
    // With the token of before it is refused, and goes on with what it runs.
    let mut away = agent(n4, &seeds, &token);
    eventually("n4 is told why it is not let in", 60, || {
        said(&away, "made before this cluster's authority was replaced")?;
        said(&away, "the cluster's authority was replaced while it was away")
    });
    assert!(away.alive(), "{}", away.output());
    assert_eq!(all_lives(&lab), lives, "no container was restarted");
    away.kill();
    let fresh = lab.file("fresh", &succeeds(n1, &["token", "create", "--node", "n4"]));
    agents.push(agent(n4, &seeds, &fresh));
    eventually("n4 is in again", 60, || {
        let text = succeeds(n1, &["get", "nodes"]);
        let ready = text
            .lines()
            .any(|line| line.starts_with("n4 ") && line.contains(" Ready "));
        if ready { Ok(()) } else { Err(text) }
    });
    assert_eq!(all_lives(&lab), lives, "no container was restarted");
    drop((agents, servers));
}
