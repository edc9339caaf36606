//! Escapes from a container to its host, all the way: put into the store by whoever can write it, denied by the node's
//! policy, told in the status, and never made. The rules themselves have a corpus of their own beside them.

use std::os::unix::fs::symlink;
use std::time::Duration;

use e2e::{Etcd, Lab, eventually, holds_for};

/// A service whose container has these options beside its image, in flow style.
fn service(name: &str, replicas: u32, options: &str) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n  update: {{minReady: 100ms}}\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n{options}"
    )
}

/// A lab of one host whose agent has a policy of this text.
fn cluster(policy: &str) -> (Lab, Etcd, String) {
    let mut lab = Lab::new(1);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.control(&etcd);
    let file = lab.file("policy.yaml", policy);
    lab.hosts[0].start_agent(&endpoints, &["--policy", &file]);
    (lab, etcd, file)
}

fn put(etcd: &Etcd, name: &str, replicas: u32, options: &str) {
    let key = format!("/reeve/desired/default/service/{name}");
    etcd.ctl(&["put", &key, &service(name, replicas, options)]);
}

#[test]
fn escapes_put_into_the_store_are_never_made_and_the_status_says_why() {
    let (lab, etcd, _policy) = cluster("{}\n");
    let endpoints = etcd.endpoints.clone();
    let host = &lab.hosts[0];
    std::fs::create_dir(lab.dir().join("srv")).expect("a directory");
    let link = lab.dir().join("srv/harmless");
    symlink("/", &link).expect("a link");
    let bind = |path: &str| format!("    mounts: [{{type: bind, source: {path}, target: /host}}]\n");
    let socket = host.docker_host.trim_start_matches("unix://").to_owned();
    let agent = host.dir.join("agent").display().to_string();
    let cases: Vec<(String, &str)> = vec![
        ("    privileged: true\n".to_owned(), "container.privileged"),
        (bind("/"), "container.mounts[0]"),
        (bind("/etc"), "container.mounts[0]"),
        (bind("/proc/1/root"), "container.mounts[0]"),
        (bind("/var/run/docker.sock"), "container.mounts[0]"),
        (bind(&socket), "container.mounts[0]"),
        (bind(&agent), "container.mounts[0]"),
        (bind(&link.display().to_string()), "container.mounts[0]"),
        (bind(&format!("{}/etc/shadow", link.display())), "container.mounts[0]"),
        ("    networkMode: host\n".to_owned(), "container.networkMode"),
        ("    pidMode: host\n".to_owned(), "container.pidMode"),
        ("    ipcMode: host\n".to_owned(), "container.ipcMode"),
        ("    usernsMode: host\n".to_owned(), "container.usernsMode"),
        (
            "    capabilities: {add: [SYS_ADMIN]}\n".to_owned(),
            "container.capabilities.add[0]",
        ),
        (
            "    capabilities: {add: [CHOWN, ALL]}\n".to_owned(),
            "container.capabilities.add[1]",
        ),
        (
            "    securityOpt: [seccomp=unconfined]\n".to_owned(),
            "container.securityOpt[0]",
        ),
        (
            "    securityOpt: ['apparmor:unconfined']\n".to_owned(),
            "container.securityOpt[0]",
        ),
        (
            "    devices: [{hostPath: /dev/mem}]\n".to_owned(),
            "container.devices[0]",
        ),
        (
            "    ulimits: {rtprio: {soft: 99, hard: 99}}\n".to_owned(),
            "container.ulimits.rtprio",
        ),
        (
            "    logging: {driver: syslog, options: {syslog-address: 'udp://192.0.2.1:514'}}\n".to_owned(),
            "container.logging.driver",
        ),
    ];
    put(&etcd, "honest", 1, "");
    for (at, (options, _)) in cases.iter().enumerate() {
        put(&etcd, &format!("escape-{at}"), 1, options);
    }
    for (at, (options, option)) in cases.iter().enumerate() {
        let name = format!("escape-{at}");
        eventually(&format!("the status of {options:?} says why"), 40, || {
            let said = lab.reeve(&endpoints, &["describe", "service", &name]);
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            // Lines are wrapped at the terminal's width.
            let plain = said.split_whitespace().collect::<Vec<_>>().join(" ");
            if plain.contains("PolicyDenied") && plain.contains(option) && plain.contains("denied by the node's policy")
            {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
    eventually("what asks nothing of the host runs", 30, || {
        if host.running() == ["default.honest.1.1"] {
            Ok(())
        } else {
            Err(format!("{:?}", host.running()))
        }
    });
    holds_for(
        "no other container exists, in whatever state",
        Duration::from_secs(3),
        || {
            let names: Vec<String> = host.containers().into_iter().map(|(name, _)| name).collect();
            if names == ["default.honest.1.1"] {
                Ok(())
            } else {
                Err(format!("{names:?}"))
            }
        },
    );
    // Nobody tries again and again.
    let mut last = etcd.revision();
    eventually("the store rests", 30, || {
        std::thread::sleep(Duration::from_secs(2));
        let before = std::mem::replace(&mut last, etcd.revision());
        if before == last {
            Ok(())
        } else {
            Err(format!("{before}, then {last}"))
        }
    });
}

#[test]
fn a_denied_change_leaves_what_runs_and_goes_through_when_the_policy_allows_it() {
    let (lab, etcd, policy) = cluster("privileged: false\n");
    let endpoints = etcd.endpoints.clone();
    let host = &lab.hosts[0];
    let manifest = |options: &str| lab.file("web.yaml", &service("web", 2, options));
    let first = manifest("");
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &first, "--yes", "--timeout", "60s"]);
    let before = host.lives();
    assert_eq!(before.len(), 2);

    let wider = manifest("    capabilities: {add: [NET_ADMIN]}\n");
    let said = lab.reeve_exits(&endpoints, 6, &["apply", "-f", &wider, "--yes", "--timeout", "60s"]);
    let plain = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in [
        "PolicyDenied",
        "container.capabilities.add[0]",
        "capabilities: [NET_ADMIN]",
    ] {
        assert!(plain.contains(word), "{word} in\n{said}");
    }
    assert_eq!(host.lives(), before, "nothing was stopped");
    let said = lab.reeve_exits(&endpoints, 0, &["get", "services"]);
    assert!(said.contains("2/2"), "both serve on:\n{said}");

    // The line that the denial names is all that is needed; nobody restarts anything.
    lab.file("policy.yaml", "capabilities: [NET_ADMIN]\n");
    eventually("the change goes through", 40, || {
        let names = host.running();
        if names == ["default.web.1.2", "default.web.2.2"] {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    });

    // A stricter policy stops nothing, and is told of.
    let before = host.lives();
    std::fs::write(&policy, "capabilities: [NET_ADMIM\n").expect("the policy");
    eventually("a policy that cannot be read is told", 20, || {
        let said = lab.reeve(&endpoints, &["describe", "node", "n1"]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        if said.contains("PolicyUnreadable") {
            Ok(())
        } else {
            Err(said)
        }
    });
    lab.file("policy.yaml", "capabilities: []\n");
    eventually("the stricter policy is told", 20, || {
        let said = lab.reeve(&endpoints, &["describe", "service", "web"]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let plain = said.split_whitespace().collect::<Vec<_>>().join(" ");
        if plain.contains("PolicyDenied") && plain.contains("it is kept") {
            Ok(())
        } else {
            Err(said)
        }
    });
    assert_eq!(host.lives(), before);
}
