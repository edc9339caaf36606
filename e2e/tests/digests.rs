//! Images on real engines and a real registry: what a tag stands for is settled once, for slots and nodes that come later
//! too, and an image that was built here needs no registry. With the registry away a node has its images from another.

use std::path::Path;

use e2e::seats::{agent, install_token, on, server, serves, succeeds};
use e2e::{Host, Lab, Process, eventually};

/// Puts an image into the registry under this tag, marked with a label; nothing of it stays on the host.
fn push(host: &Host, registry: &str, tag: &str, mark: &str) {
    let reference = format!("{registry}/team/app:{tag}");
    host.docker(&["create", "--name", "pushed", "reeve/hello:1", "sh"]);
    let label = format!("LABEL mark={mark}");
    host.docker(&["commit", "--change", &label, "pushed", &reference]);
    host.docker(&["rm", "pushed"]);
    host.docker(&["push", &reference]);
    host.docker(&["rmi", &reference]);
}

fn manifest(lab: &Lab, image: &str, replicas: u32, word: &str) -> String {
    let text = format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  update: {{minReady: 1s}}\n  container:\n    image: {image}\n    env: {{WORD: {word}}}\n    command: [sleep, '1000']\n    stopGracePeriod: 1s\n  placement: {{maxPerNode: 1}}\n"
    );
    lab.file(&format!("web-{replicas}-{word}.yaml"), &text)
}

/// The marks of what runs, host by host.
fn marks(hosts: &[&Host]) -> Vec<String> {
    let of = |host: &&Host| {
        let mut marks: Vec<String> = host
            .docker(&["ps", "--format", "{{.Label \"mark\"}}"])
            .lines()
            .map(str::to_owned)
            .collect();
        marks.sort();
        marks.join(",")
    };
    hosts.iter().map(of).collect()
}

fn applied(host: &Host, file: &str) {
    assert!(Path::new(file).exists());
    succeeds(host, &["apply", "-f", file, "--yes", "--timeout", "120s"]);
}

fn wait_nodes(host: &Host, count: usize) {
    eventually("the nodes are ready", 90, || {
        let (_, text) = on(host, &["get", "nodes"]);
        if text.matches("Ready").count() >= count {
            Ok(())
        } else {
            Err(text)
        }
    });
}

/// A cluster whose one node runs an image of a registry. Its processes are in the order seed, agent.
struct Bed {
    lab: Lab,
    registry: String,
    image: String,
    token: String,
    processes: Vec<Process>,
}

impl Bed {
    /// The seed is n1, the node n2.
    fn new(hosts: usize) -> Self {
        let mut lab = Lab::new(hosts);
        let registry = lab.registry();
        let token = install_token(&lab, "token");
        let mut bed = Self {
            image: format!("{registry}/team/app:1"),
            registry,
            token,
            processes: Vec::new(),
            lab,
        };
        let seed = &bed.lab.hosts[0];
        let server = server(seed, &seed.address, &bed.token);
        eventually("the seed serves", 60, || serves(seed));
        bed.processes.push(server);
        bed.join(&[1]);
        let seed = &bed.lab.hosts[0];
        push(seed, &bed.registry, "1", "first");
        applied(seed, &manifest(&bed.lab, &bed.image, 1, "a"));
        assert_eq!(marks(&[&bed.lab.hosts[1]]), ["first"]);
        bed
    }

    /// Makes nodes of these hosts.
    fn join(&mut self, hosts: &[usize]) {
        let seed = &self.lab.hosts[0];
        for at in hosts {
            let agent = agent(&self.lab.hosts[*at], &seed.address, &self.token);
            self.processes.push(agent);
        }
        wait_nodes(seed, self.processes.len() - 1);
    }
}

#[test]
fn a_tag_means_one_image_for_slots_and_nodes_that_come_later() {
    let mut bed = Bed::new(3);
    let [n1, n2, _] = bed.lab.hosts.as_slice() else {
        panic!("three hosts")
    };
    let text = succeeds(n1, &["describe", "service", "web"]);
    assert!(text.contains("is settled as sha256:"), "{text}");

    // The tag is moved. Nothing happens, also not by the same manifest; a node that joins later runs what the others do.
    push(n1, &bed.registry, "1", "second");
    let before = n2.lives();
    applied(n1, &manifest(&bed.lab, &bed.image, 1, "a"));
    bed.join(&[2]);
    let (lab, registry, image) = (&bed.lab, &bed.registry, &bed.image);
    let [n1, n2, n3] = lab.hosts.as_slice() else {
        panic!("three hosts")
    };
    applied(n1, &manifest(lab, image, 2, "a"));
    assert_eq!(marks(&[n2, n3]), ["first", "first"]);
    assert_eq!(n2.lives(), before, "nothing was restarted");

    // A change replaces the containers by the same image; another reference takes the new one, and going back the old one.
    applied(n1, &manifest(lab, image, 2, "b"));
    assert_eq!(marks(&[n2, n3]), ["first", "first"]);
    push(n1, registry, "2", "third");
    applied(n1, &manifest(lab, &format!("{registry}/team/app:2"), 2, "c"));
    assert_eq!(marks(&[n2, n3]), ["third", "third"]);
    applied(n1, &manifest(lab, image, 2, "d"));
    assert_eq!(marks(&[n2, n3]), ["first", "first"]);

    // An image of each host's own.
    applied(n1, &manifest(lab, "reeve/hello:1", 2, "e"));
    let text = succeeds(n1, &["describe", "service", "web"]);
    assert!(text.contains("as it is on each node"), "{text}");
}

#[test]
fn with_the_registry_away_all_runs_on_and_new_nodes_have_the_image_from_others_while_who_waits_waits() {
    let mut bed = Bed::new(4);
    let registry_process = bed.lab.process(0).pid().to_string();
    let n2 = &bed.lab.hosts[1];

    // The registry goes. What runs runs on, and is started again where it ends.
    e2e::succeed(std::process::Command::new("kill").args(["-9", &registry_process]));
    let before = n2.lives();
    n2.docker(&["kill", "default.web.1.1"]);
    eventually("it is started again", 60, || {
        let now = n2.lives();
        if now.len() == 1 && now != before {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });

    // Nodes that come now: whoever waits for what is to run there, waits until it does.
    bed.join(&[2, 3]);
    let [n1, n2, n3, n4] = bed.lab.hosts.as_slice() else {
        panic!("four hosts")
    };
    applied(n1, &manifest(&bed.lab, &bed.image, 2, "a"));
    succeeds(n1, &["scale", "web=3", "--timeout", "120s"]);
    assert_eq!(marks(&[n2, n3, n4]), ["first", "first", "first"]);
    let names = n3.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert!(names.contains("team/app:sha256-"), "{names}");
    // It is made again of what is there.
    n3.docker(&["rm", "-f", &n3.running()[0]]);
    eventually("it is made again", 60, || {
        if marks(&[n3]) == ["first"] {
            Ok(())
        } else {
            Err(on(n1, &["describe", "service", "web"]).1)
        }
    });
}
