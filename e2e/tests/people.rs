//! People on a machine that runs no node: they log in with a token, do what their rights cover and no more, have their
//! certificates renewed by using them, and are shut out with what they have open.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use e2e::seats::{GLOBAL, agent_dir, etcdctl, install_token, on, server_with, serves, succeeds};
use e2e::{Host, Lab, Process, eventually, run};
use serde_json::Value;

/// Somebody at a machine.
struct Person<'a> {
    machine: &'a Host,
    home: PathBuf,
}

impl Person<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.machine.place.command(&self.machine.binary);
        for variable in ["REEVE_ETCD", "REEVE_CONTEXT", "REEVE_DATA_DIR", "XDG_CONFIG_HOME"] {
            command.env_remove(variable);
        }
        command
            .args(args)
            .env("HOME", &self.home)
            .env("NO_COLOR", "1")
            .env("COLUMNS", "80");
        command
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = run(&mut self.command(args));
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), text.concat())
    }

    fn does(&self, args: &[&str]) -> String {
        let (code, text) = self.run(args);
        assert_eq!(code, Some(0), "reeve {args:?} said:\n{text}");
        text
    }

    /// It fails, and says all of this.
    fn is_refused(&self, args: &[&str], said: &[&str]) {
        let (code, text) = self.run(args);
        assert_ne!(code, Some(0), "reeve {args:?} said:\n{text}");
        for part in said {
            assert!(text.contains(part), "reeve {args:?} does not say `{part}`:\n{text}");
        }
    }

    fn log_in(&self, lab: &Lab, seed: &Host, name: &str, rights: &str) {
        let token = lab.file(
            name,
            &succeeds(seed, &["token", "create", "--person", name, "--rights", rights]),
        );
        self.does(&[
            "login-cluster",
            "--seeds",
            &seed.address,
            "--token-file",
            &token,
            "--name",
            "prod",
        ]);
    }

    fn until(&self) -> String {
        let shown: Value = serde_json::from_str(&self.does(&["context", "show", "-o", "json"])).expect("JSON");
        shown["until"].as_str().expect("a time").to_owned()
    }
}

/// Commands by name, in web's containers and on nodes.
const COMMANDS: &str = r#"
apiVersion: reeve/v1
kind: Command
metadata: {name: say}
spec:
  description: Say it
  service: web
  command: [sh, -c, 'printf "<%s> %s %s" "$1" "$LOUD" "$(pwd)"; exit 7', sh, "${what}"]
  workingDir: /tmp
  parameters: [{name: what}, {name: loud, values: [soft, loud], default: soft, env: LOUD}]
---
apiVersion: reeve/v1
kind: Command
metadata: {name: read}
spec: {service: web, all: true, command: [cat], extraArguments: true}
---
apiVersion: reeve/v1
kind: Command
metadata: {name: hear}
spec: {service: web, command: [cat], stdin: true, timeout: 30s}
---
apiVersion: reeve/v1
kind: Command
metadata: {name: slow}
spec: {service: web, command: [sleep, "1000"], timeout: 300ms}
---
apiVersion: reeve/v1
kind: Command
metadata: {name: tell}
spec: {nodes: {all: true}, command: [printf, "[%s]", "${what}"], parameters: [{name: what, pattern: ".*"}]}
"#;

#[test]
fn people_do_what_their_rights_cover_from_a_machine_that_runs_no_node() {
    let lab = Lab::new(2);
    let [seed, laptop] = lab.hosts.as_slice() else {
        panic!("two hosts")
    };
    let token = install_token(&lab, "token");
    let _server = server_with(seed, &seed.address, &token, &["--certificate-life", "2m"]);
    eventually("the seed serves", 60, || serves(seed));
    let dir = agent_dir(seed).display().to_string();
    let policy = lab.file("policy.yaml", "nodeCommands: []\n");
    let args = [
        "agent",
        "--data-dir",
        &dir,
        "--seeds",
        &seed.address,
        "--token-file",
        &token,
        "--node",
        "n1",
        "--allow-exec",
        "--policy",
        &policy,
        "--docker",
        &seed.docker_host,
    ];
    let _agent = Process::start(
        "agent of n1",
        Some(&seed.place),
        &seed.binary,
        &args,
        &[],
        seed.dir.join("agent.log"),
    );
    eventually("the node is there", 30, || {
        let text = succeeds(seed, &["get", "nodes"]);
        if text.contains(" Ready ") { Ok(()) } else { Err(text) }
    });
    let person = |name: &str| Person {
        machine: laptop,
        home: lab.dir().join(format!("home-of-{name}")),
    };
    let manifest = lab.file("web.yaml", GLOBAL);

    // Nobody yet; then anna, with a token that counts once.
    let anna = person("anna");
    anna.is_refused(&["get", "nodes"], &["cannot be reached"]);
    anna.log_in(&lab, seed, "anna", "operator+exec");
    let used = lab.dir().join("anna").display().to_string();
    anna.is_refused(
        &[
            "login-cluster",
            "--seeds",
            &seed.address,
            "--token-file",
            &used,
            "--name",
            "again",
        ],
        &["used up", "reeve token create --person"],
    );
    let kept = anna.home.join(".config/reeve/contexts/prod");
    let mode = |path: PathBuf| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(kept.clone()), mode(kept.join("person.key"))), (0o700, 0o600));
    assert!(anna.does(&["status"]).contains("context prod as anna"));
    anna.does(&["apply", "-f", &manifest, "--yes"]);
    assert!(
        anna.does(&["exec", "web.n1", "--", "echo", "ä b", "c"])
            .contains("ä b c")
    );
    // Sealed on this machine, for the controllers that the authority vouches for.
    let secret = lab.file("password", "open sesame");
    anna.does(&["secret", "set", "db", "--file", &secret]);
    anna.does(&["cordon", "n1"]);
    anna.does(&["uncordon", "n1"]);
    anna.is_refused(&["token", "create"], &["on a seed"]);
    anna.is_refused(&["person", "rm", "anna", "--yes"], &["on a seed"]);

    // A viewer looks, and changes nothing, in the store and near the containers.
    let otto = person("otto");
    otto.log_in(&lab, seed, "otto", "viewer");
    assert!(otto.does(&["get", "services"]).contains("web"));
    assert!(otto.does(&["status"]).contains("context prod as otto"));
    otto.does(&["logs", "web"]);
    otto.is_refused(
        &["cordon", "n1"],
        &["the store denied access", "you are otto, with the rights `viewer`"],
    );
    otto.is_refused(
        &["exec", "web.n1", "--", "true"],
        &["your rights, `viewer`, do not cover running commands"],
    );
    let place = otto.home.join(".config/reeve/contexts/prod");
    etcdctl(laptop, &place, "person", seed, &["get", "--prefix", "/reeve/desired/"]).expect("a viewer reads this");
    etcdctl(laptop, &place, "person", seed, &["get", "--prefix", "/reeve/sealed/"]).expect_err("and nothing sealed");
    etcdctl(laptop, &place, "person", seed, &["put", "/reeve/desired/x", "y"]).expect_err("and writes nothing");

    // An operator whose rights say nothing of commands; and one of a namespace.
    let emil = person("emil");
    emil.log_in(&lab, seed, "emil", "operator");
    emil.is_refused(
        &["exec", "web.n1", "--", "true"],
        &["your rights, `operator`, do not cover"],
    );
    let ida = person("ida");
    ida.log_in(&lab, seed, "ida", "namespaces=shop");
    ida.is_refused(&["delete", "service", "web", "--yes"], &["the store denied access"]);
    ida.is_refused(&["logs", "web"], &["do not cover reading logs in that namespace"]);

    // Commands on the nodes themselves: a right of their own, and the node's policy besides.
    let echo = ["node", "exec", "--all", "--", "printf", "<%s>", "ä b", "c'\"$d"];
    anna.is_refused(&echo, &["do not cover running commands on nodes"]);
    let ruth = person("ruth");
    ruth.log_in(&lab, seed, "ruth", "operator+host");
    ruth.is_refused(&echo, &["nodeCommands: [exec]"]);
    lab.file("policy.yaml", "nodeCommands: [exec, docker]\n");
    assert_eq!(ruth.does(&echo), "<ä b><c'\"$d>\n");
    assert_eq!(
        ruth.run(&["node", "exec", "--nodes", "n1", "--", "sh", "-c", "exit 7"])
            .0,
        Some(7)
    );
    assert!(
        ruth.does(&["docker", "--nodes", "n1", "--", "ps"])
            .contains("default.web.n1")
    );

    // Commands that others declared by name: a right to these alone. The agent reads them itself, and makes their words.
    let commands = lab.file("commands.yaml", COMMANDS);
    anna.does(&["apply", "-f", &commands, "--yes"]);
    let nina = person("nina");
    nina.log_in(&lab, seed, "nina", "viewer+run");
    println!("{}", nina.does(&["run"]));
    let said = nina.run(&["run", "say", "--param", "what=ä b; c'\"$d", "--param", "loud=loud"]);
    assert_eq!(said, (Some(7), "<ä b; c'\"$d> loud /tmp".to_owned()));
    nina.is_refused(&["run", "say", "--param", "what=-x"], &["would be an option"]);
    assert_eq!(
        nina.does(&["run", "read", "--on", "n1", "--", "/etc/hostname"]).trim(),
        "web-n1"
    );
    let mut hears = nina.command(&["run", "hear"]);
    let mut hears = hears
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = hears.stdin.take().expect("a pipe");
    input.write_all("ä\n".as_bytes()).expect("it listens");
    drop(input);
    assert_eq!(hears.wait_with_output().expect("it ends").stdout, "ä\n".as_bytes());
    nina.is_refused(&["run", "slow"], &["given up after 0.3 s"]);
    nina.is_refused(
        &["exec", "web.n1", "--", "true"],
        &["your rights, `viewer+run`, do not cover running commands in containers"],
    );
    nina.is_refused(
        &["run", "tell", "-p", "what=x", "--yes"],
        &["do not cover running commands on nodes"],
    );
    nina.is_refused(&["cordon", "n1"], &["the store denied access"]);
    let place = nina.home.join(".config/reeve/contexts/prod");
    let forged = ["put", "/reeve/desired/default/command/say", "x"];
    etcdctl(laptop, &place, "person", seed, &forged).expect_err("who runs commands declares none");
    otto.is_refused(
        &["run", "hear"],
        &["do not cover running named commands", "--rights viewer+run"],
    );
    ruth.is_refused(&["run", "tell", "-p", "what=x"], &["printf '[%s]' x", "add --yes"]);
    assert_eq!(ruth.does(&["run", "tell", "-p", "what=$(x) y", "--yes"]), "[$(x) y]\n");
    // In some namespaces alone.
    let olga = person("olga");
    olga.log_in(&lab, seed, "olga", "namespaces=default,shop+exec");
    assert_eq!(olga.does(&["exec", "web.n1", "--", "echo", "x"]), "x\n");
    olga.is_refused(
        &["node", "exec", "--all", "--", "true"],
        &["do not cover running commands on nodes"],
    );
    for (name, rights, refused) in [
        ("paul", "viewer+run=shop", ["named commands in that namespace"]),
        ("rosa", "namespaces=shop+exec", ["named commands in that namespace"]),
    ] {
        let somebody = person(name);
        somebody.log_in(&lab, seed, name, rights);
        somebody.is_refused(&["run", "hear"], &refused);
        somebody.is_refused(
            &["exec", "web.n1", "--", "true"],
            &["do not cover running commands in containers"],
        );
    }
    let recorded = std::fs::read_to_string(agent_dir(seed).join("exec.jsonl")).expect("a record");
    let ended = |line: &&str| line.contains("person.nina") && line.contains("\"exitCode\":7");
    let run = recorded.lines().find(ended).expect("nina's run, and how it ended");
    assert!(
        run.contains("\"named\":\"default/say\"") && run.contains("ä b; c'"),
        "{run}"
    );

    // What was done is recorded, by whom, and how it ended; what only looks is not.
    anna.does(&["kv", "set", "deploy/last", "1.4"]);
    assert_eq!(otto.does(&["kv", "get", "deploy/last"]), "1.4");
    let records: Value = serde_json::from_str(&succeeds(seed, &["audit", "-o", "json"])).expect("JSON");
    let records = records.as_array().expect("a list");
    let of = |who: &str, verb: &str| records.iter().find(|one| one["who"] == who && one["verb"] == verb);
    let applied = of("anna", "apply").expect("it is recorded");
    assert_eq!(
        (&applied["objects"][0], &applied["exitCode"]),
        (&"service/web".into(), &0.into())
    );
    assert_eq!(of("anna", "exec").expect("it is recorded")["exitCode"], 0);
    assert!(of("root", "token create").is_some() && of("ruth", "node exec").is_some());
    let run = of("nina", "run").expect("it is recorded");
    assert_eq!(
        (&run["objects"], &run["exitCode"]),
        (&serde_json::json!(["command/say", "web.n1 on node/n1"]), &7.into())
    );
    // What somebody may not write yet, the seed that let him in has written.
    assert!(
        of("node/n1", "join").is_some() && of("otto", "login-cluster").is_some(),
        "{records:?}"
    );
    let otto_did = |one: &&Value| one["who"] == "otto" && one["verb"] != "login-cluster";
    assert!(!records.iter().any(|one| otto_did(&one)), "{records:?}");
    let place = emil.home.join(".config/reeve/contexts/prod");
    etcdctl(
        laptop,
        &place,
        "person",
        seed,
        &["put", "/reeve/audit/person.anna/1", "x"],
    )
    .expect_err("not in anna's name");

    ida.does(&["kv", "set", "-n", "shop", "mine", "1"]);
    ida.is_refused(&["kv", "set", "mine", "1"], &["the store denied access"]);
    for shown in [["context", "ls"], ["context", "show"]] {
        println!("{}", anna.does(&shown));
    }
    for shown in [&["person", "ls"][..], &["token", "ls"], &["audit"]] {
        println!("{}", succeeds(seed, shown));
    }

    // Other rights are no second set beside the first ones.
    let (code, text) = on(seed, &["token", "create", "--person", "otto", "--rights", "admin"]);
    assert!(code == Some(4) && text.contains("reeve person rm otto"), "{text}");

    // Using it renews it.
    let first = anna.until();
    eventually("the certificate is renewed by a verb", 100, || {
        anna.does(&["get", "nodes"]);
        for other in [&otto, &emil] {
            other.does(&["get", "nodes"]);
        }
        let now = anna.until();
        if now == first { Err(now) } else { Ok(()) }
    });

    // Shut out, with what is open; the others are not.
    let mut open = anna
        .command(&["exec", "web.n1", "--", "sleep", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    eventually("the command runs", 20, || {
        let text = std::fs::read_to_string(agent_dir(seed).join("exec.jsonl")).unwrap_or_default();
        let runs = text.contains("\"1000\"") && text.contains("person.anna");
        if runs { Ok(()) } else { Err(text) }
    });
    let said = succeeds(seed, &["person", "rm", "anna", "--yes"]);
    assert!(said.contains("person/anna is shut out"), "{said}");
    anna.is_refused(&["get", "nodes"], &["were you removed", "reeve login-cluster"]);
    eventually("what anna had open ends", 20, || {
        match open.try_wait().expect("a child") {
            Some(_) => Ok(()),
            None => Err("it is still open".to_owned()),
        }
    });
    assert!(otto.does(&["get", "nodes"]).contains("n1"));
    let people = succeeds(seed, &["person", "ls"]);
    let line = |name: &str| {
        people
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(
        line("anna").contains("removed at") && line("otto").contains("viewer"),
        "{people}"
    );

    // Back with other rights, under the same name: only the new ones count.
    anna.log_in(&lab, seed, "anna", "viewer");
    eventually("anna looks", 30, || {
        let (code, text) = anna.run(&["get", "nodes"]);
        if code == Some(0) { Ok(()) } else { Err(text) }
    });
    anna.is_refused(&["cordon", "n1"], &["the rights `viewer`"]);

    // The cluster's authority is replaced while otto works: his certificate follows.
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| on(seed, &["admin", "rotate-authority", "--yes"]));
        while !rotating.is_finished() {
            // The only member of the store starts again in between.
            let _ = otto.run(&["get", "nodes"]);
        }
        let (code, text) = rotating.join().expect("no panic");
        assert_eq!(code, Some(0), "{text}");
    });
    eventually("otto works on", 60, || {
        let (code, text) = otto.run(&["get", "nodes"]);
        if code == Some(0) { Ok(()) } else { Err(text) }
    });
    assert!(otto.does(&["logs", "web"]).is_empty());
    anna.log_in(&lab, seed, "anna", "viewer");

    // Contexts: which cluster is meant is said once, and forgotten when asked.
    assert!(anna.does(&["context", "ls"]).contains("prod"));
    anna.does(&["context", "use", "here"]);
    anna.is_refused(&["get", "nodes"], &["cannot be reached"]);
    assert!(anna.does(&["--context", "prod", "get", "nodes"]).contains("n1"));
    anna.is_refused(
        &["--context", "other", "get", "nodes"],
        &["there is no context `other`"],
    );
    anna.is_refused(
        &["--context", "prod", "--etcd", "http://127.0.0.1:1", "get", "nodes"],
        &["both name a cluster"],
    );
    anna.does(&["context", "rm", "prod"]);
    assert!(!kept.exists());
}
