//! Seeds as their operator runs them, with real etcd members, on addresses of loopback: one that is lost comes back, and the
//! authority is replaced though things go wrong. Nothing here needs an engine.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Some seeds on this machine. Each test has a network of its own in 127.0.0.0/8.
struct Lab {
    net: u8,
    count: usize,
    dir: TempDir,
    servers: Vec<Option<Child>>,
}

fn eventually(what: &str, within: u64, mut holds: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + Duration::from_secs(within);
    loop {
        match holds() {
            Ok(()) => return,
            Err(last) if Instant::now() > end => panic!("{what}: not within {within} s; last seen:\n{last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    parts.concat()
}

impl Lab {
    /// All of them, started and serving.
    fn new(net: u8, count: usize) -> Self {
        let mut lab = Self {
            net,
            count,
            dir: tempfile::tempdir().expect("a directory"),
            servers: (0..count).map(|_| None).collect(),
        };
        let token = lab.exits(0, 0, &["token", "install"]);
        lab.file("token", &token);
        for seed in 0..count {
            lab.start(seed, "token");
        }
        for seed in 0..count {
            lab.serves(seed);
        }
        lab
    }

    fn address(&self, seed: usize) -> String {
        format!("127.{}.0.{}", self.net, seed + 1)
    }

    fn seeds(&self) -> String {
        let all: Vec<String> = (0..self.count).map(|seed| self.address(seed)).collect();
        all.join(",")
    }

    fn data(&self, seed: usize) -> PathBuf {
        self.dir.path().join(format!("seed{seed}"))
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    fn log(&self, seed: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("log{seed}"))).unwrap_or_default()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reeve"));
        command
            .args(args)
            .env("NO_COLOR", "1")
            .env("COLUMNS", "80")
            .env("HOME", self.dir.path())
            .env_remove("REEVE_ETCD")
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::null());
        command
    }

    /// `reeve server` as seed number `seed`, with its data in this directory.
    fn server(&self, seed: usize, data: &str, token: &str) -> Command {
        let (address, token) = (self.address(seed), self.dir.path().join(token).display().to_string());
        let (data, metrics) = (
            self.dir.path().join(data).display().to_string(),
            format!("{address}:9463"),
        );
        let args = [
            "server",
            "--data-dir",
            &data,
            "--seeds",
            &self.seeds(),
            "--host",
            &address,
        ];
        self.command(&[args.as_slice(), &["--token-file", &token, "--metrics", &metrics]].concat())
    }

    fn start(&mut self, seed: usize, token: &str) {
        let log = std::fs::File::create(self.dir.path().join(format!("log{seed}"))).expect("a log");
        let mut command = self.server(seed, &format!("seed{seed}"), token);
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.servers[seed] = Some(command.spawn().expect("reeve starts"));
    }

    fn serves(&self, seed: usize) {
        eventually(&format!("seed {seed} serves"), 90, || {
            let log = self.log(seed);
            if log.contains(" serves: ") { Ok(()) } else { Err(log) }
        });
    }

    /// Ends a server and its member as a loss of power does.
    fn cut_power(&mut self, seed: usize) {
        let Some(mut server) = self.servers[seed].take() else {
            return;
        };
        let _ = server.kill();
        let _ = server.wait();
        let Ok(pid) = std::fs::read_to_string(self.data(seed).join("etcd.pid")) else {
            return;
        };
        let Ok(pid) = pid.trim().parse::<u32>() else { return };
        signal(pid, "KILL");
        let line = PathBuf::from(format!("/proc/{pid}/cmdline"));
        eventually("the member is gone", 20, || match std::fs::read(&line) {
            Ok(line) if !line.is_empty() => Err(pid.to_string()),
            Ok(_) | Err(_) => Ok(()),
        });
    }

    /// Runs `reeve` on a seed.
    fn run(&self, seed: usize, args: &[&str]) -> Output {
        let data = self.data(seed).display().to_string();
        let args = [args, &["--data-dir", &data]].concat();
        self.command(&args).output().expect("reeve starts")
    }

    /// Runs `reeve` as somebody on a machine of their own, who has logged in or is about to.
    fn elsewhere(&self, who: &str, code: i32, args: &[&str]) -> String {
        let output = self
            .command(args)
            .env("HOME", self.dir.path().join(who))
            .output()
            .expect("reeve starts");
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "{who}: reeve {args:?} said:\n{text}");
        text
    }

    fn login(&self, who: &str, token: &str) {
        let file = self.file(&format!("of-{who}"), token);
        let args = ["login-cluster", "--seeds", &self.seeds(), "--token-file", &file];
        self.elsewhere(who, 0, &args);
    }

    /// It must exit with this code; all that it printed, errors last.
    fn exits(&self, seed: usize, code: i32, args: &[&str]) -> String {
        let output = self.run(seed, args);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(code), "reeve {args:?} said:\n{text}");
        text
    }

    /// Who starts as this seed, on an empty disk of its own, with this token, is told why not and is none.
    fn refused(&self, seed: usize, token: &str, why: &str) {
        let output = self.server(seed, "other", token).output().expect("reeve starts");
        let said = text(&output);
        let refused = output.status.code() == Some(6) && said.contains(why);
        assert!(refused, "wanted {why:?}: {said}");
        // What the install token's holder begins with is in nobody's way.
        let known = std::fs::read_to_string(self.dir.path().join("other/seed.json")).unwrap_or_default();
        assert!(!known.contains("\"formed\": true"), "{known}");
    }

    fn cluster(&self, seed: usize) -> String {
        let log = self.log(seed);
        let line = log.lines().rev().find_map(|line| line.trim().strip_prefix("cluster "));
        line.unwrap_or_default().trim().to_owned()
    }

    /// The store's members, as etcd's own tool lists them on this seed.
    fn members(&self, seed: usize) -> Vec<String> {
        let file = |name: &str| self.data(seed).join(name).display().to_string();
        let endpoint = format!("https://{}:2379", self.address(seed));
        let output = Command::new("etcdctl")
            .args(["--endpoints", &endpoint, "--cacert", &file("ca.crt"), "--cert"])
            .args([&file("person.crt"), "--key", &file("person.key"), "member", "list"])
            .env("ETCDCTL_API", "3")
            .output()
            .expect("etcdctl");
        text(&output).lines().map(str::to_owned).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for seed in 0..self.count {
            let Some(mut server) = self.servers[seed].take() else {
                continue;
            };
            signal(server.id(), "TERM");
            let end = Instant::now() + Duration::from_secs(20);
            while Instant::now() < end && matches!(server.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(50));
            }
            self.servers[seed] = Some(server);
            if !std::thread::panicking() || self.data(seed).join("etcd.pid").exists() {
                self.cut_power(seed);
            }
        }
    }
}

const ROTATE: [&str; 4] = ["admin", "rotate-authority", "--timeout", "3m"];

#[test]
fn a_seed_whose_disk_is_gone_comes_back_with_a_token_made_for_it_also_after_the_authority_was_replaced() {
    let mut lab = Lab::new(71, 3);
    let lost = lab.address(2);
    let said = lab.exits(0, 0, &[ROTATE.as_slice(), &["--yes"]].concat());
    assert!(said.contains("is refused"), "{said}");
    let cluster = lab.cluster(0);
    let token = lab.exits(0, 0, &["token", "create", "--seed", &lost]);
    lab.file("seat", &token);

    // Nobody takes a seat whose seed answers, nor one that is none, nor its own, nor with what lets nodes in.
    lab.refused(2, "seat", "answers: nobody takes its seat");
    let own = lab.address(0);
    for (host, why) in [(own.as_str(), "is this very seed"), ("10.9.9.9", "none of the seeds")] {
        let said = lab.exits(0, 6, &["token", "create", "--seed", host]);
        assert!(said.contains(why), "{said}");
    }
    lab.cut_power(2);
    let node = lab.exits(0, 0, &["token", "create"]);
    lab.file("node", &node);
    lab.refused(2, "node", "admits a node, not a server");

    // With the install token it is told which token it needs; with that it takes its place.
    std::fs::remove_dir_all(lab.data(2)).expect("a disk can be lost");
    lab.refused(2, "token", &format!("reeve token create --seed {lost}"));
    lab.start(2, "seat");
    lab.serves(2);
    assert_eq!(lab.cluster(2), cluster, "there is one cluster");
    assert!(lab.log(2).contains("taking this seed's place"), "{}", lab.log(2));
    eventually("three members have started", 60, || {
        let members = lab.members(0);
        let started = members.iter().filter(|line| line.contains(", started, ")).count();
        if started == 3 && members.len() == 3 {
            Ok(())
        } else {
            Err(members.join("\n"))
        }
    });
    let said = lab.exits(2, 0, &["admin", "rotate-authority", "--status"]);
    assert!(said.contains("no other is believed"), "{said}");
    let listed = lab.exits(2, 0, &["token", "ls"]);
    assert!(listed.contains("seed 127-71-0-3"), "{listed}");

    // Who made the token, and that the seed came in with it, is in the record.
    let record = lab.exits(0, 0, &["audit", "-o", "json"]);
    let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    let has = |verb: &str, text: &str| {
        let mut all = record.as_array().into_iter().flatten();
        all.any(|done| done["verb"] == verb && done.to_string().contains(text))
    };
    assert!(has("token create", &format!("seed/{lost}")), "{record}");
    assert!(
        has("join", "server/127-71-0-3") || has("join", "server.127-71-0-3"),
        "{record}"
    );

    // It is a seed as the others are: without another one there is a quorum, and it makes tokens.
    lab.cut_power(1);
    eventually("two of three manage on", 60, || {
        let output = lab.run(2, &["token", "create"]);
        if output.status.success() {
            Ok(())
        } else {
            Err(text(&output))
        }
    });
    // A copy of the token that was used is worth nothing.
    lab.cut_power(2);
    lab.start(1, "token");
    lab.serves(1);
    lab.refused(2, "seat", "has joined with this token already");
}

#[test]
fn when_most_seeds_are_gone_for_good_one_that_is_left_begins_again_and_the_others_come_back() {
    let mut lab = Lab::new(74, 3);
    let cluster = lab.cluster(0);
    let token = lab.exits(0, 0, &["token", "create", "--node", "n9"]);
    for lost in [1, 2] {
        lab.cut_power(lost);
        std::fs::remove_dir_all(lab.data(lost)).expect("a disk can be lost");
    }
    let said = lab.exits(0, 3, &["node", "replace", "n9", "--yes"]);
    assert!(
        said.contains("no majority")
            && said.contains("2 of 3 members are away")
            && said.contains("--force-new-cluster"),
        "{said}"
    );

    // As decision 22 says it.
    lab.cut_power(0);
    let here = format!("http://127.{}.1.1", lab.net);
    let log = std::fs::File::create(lab.dir.path().join("forced")).expect("a log");
    let mut forced = Command::new("etcd")
        .args([
            "--name",
            &lab.address(0).replace('.', "-"),
            "--force-new-cluster",
            "--data-dir",
        ])
        .arg(lab.data(0).join("etcd"))
        .args(["--listen-peer-urls", &format!("{here}:32380"), "--listen-client-urls"])
        .args([
            &format!("{here}:32379"),
            "--advertise-client-urls",
            &format!("{here}:32379"),
        ])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("etcd starts");
    let mut ready = || {
        let log = std::fs::read_to_string(lab.dir.path().join("forced")).unwrap_or_default();
        let ended = forced.try_wait().is_ok_and(|ended| ended.is_some());
        if log.contains("ready to serve") || ended {
            Ok(())
        } else {
            Err(log)
        }
    };
    eventually("it is ready", 30, &mut ready);
    signal(forced.id(), "TERM");
    forced.wait().expect("it ends");
    lab.start(0, "token");
    lab.serves(0);
    let doctor = text(&lab.run(0, &["doctor", "-o", "json"]));
    let away = format!("member {}", lab.address(1));
    let told = checks(&doctor, &away);
    assert!(
        told.iter()
            .any(|(level, said)| level == "bad" && said.contains("no member of the store")),
        "{doctor}"
    );
    for lost in [1, 2] {
        let token = lab.exits(0, 0, &["token", "create", "--seed", &lab.address(lost)]);
        lab.file("seat", &token);
        lab.start(lost, "seat");
        lab.serves(lost);
        assert_eq!(lab.cluster(lost), cluster, "there is one cluster");
    }
    let members = lab.members(2);
    assert_eq!(
        members.iter().filter(|line| line.contains(", started, ")).count(),
        3,
        "{members:?}"
    );
    let listed = lab.exits(2, 0, &["token", "ls"]);
    assert!(listed.contains("node n9"), "what was stored is there: {listed}");
    drop(token);
}

/// What `reeve doctor` says of one thing, as programs read it.
fn checks(text: &str, check: &str) -> Vec<(String, String)> {
    let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let word = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let lines = value["checks"].as_array().expect("a list").iter();
    let lines = lines.filter(|line| line["check"] == check);
    lines.map(|line| (word(line, "level"), word(line, "found"))).collect()
}

#[test]
fn a_rotation_waits_for_a_seed_that_is_away_is_taken_back_or_goes_on_when_that_is_replaced() {
    let mut lab = Lab::new(72, 3);
    let away = lab.address(2);
    lab.cut_power(2);
    let said = lab.exits(0, 6, &["admin", "rotate-authority", "--withdraw"]);
    assert!(said.contains("no authority is announced"), "{said}");
    let said = lab.exits(0, 2, &ROTATE);
    assert!(said.contains("add --yes"), "{said}");

    // Too long: who is away, and what to do.
    let said = lab.exits(0, 124, &["admin", "rotate-authority", "--yes", "--timeout", "6s"]);
    for wanted in [
        format!("waiting for {away}:2378 does not answer"),
        format!("bring {away} back"),
        format!("reeve token create --seed {away}"),
        "--withdraw".to_owned(),
    ] {
        assert!(said.contains(&wanted), "wanted {wanted:?}: {said}");
    }
    let wide = said
        .lines()
        .filter(|line| !line.starts_with("help: ") && line.chars().count() > 80);
    let wide: Vec<&str> = wide.collect();
    assert!(wide.is_empty(), "{wide:?}");
    let said = lab.exits(1, 0, &["admin", "rotate-authority", "--status"]);
    assert!(said.contains("is believed beside") && said.contains(&away), "{said}");
    let doctor = text(&lab.run(0, &["doctor", "-o", "json"]));
    let told = checks(&doctor, "rotation");
    assert!(
        told.len() >= 2
            && told.iter().all(|(level, _)| level == "warn")
            && told.iter().any(|(_, said)| said.contains(&away)),
        "{told:?}"
    );
    let told = checks(&doctor, &format!("member {}", away.replace('.', "-")));
    assert!(told.iter().any(|(level, _)| level == "bad"), "{doctor}");

    // Taken back, and then begun again, followed for a while, and followed once more.
    let said = lab.exits(1, 0, &["admin", "rotate-authority", "--withdraw"]);
    assert!(said.contains("is taken back"), "{said}");
    eventually("it rests", 60, || {
        let said = lab.exits(0, 0, &["admin", "rotate-authority", "--status"]);
        if said.contains("no other is believed") {
            Ok(())
        } else {
            Err(said)
        }
    });
    let data = lab.data(0).display().to_string();
    let args = [ROTATE.as_slice(), &["--yes", "--data-dir", &data]].concat();
    let file = |name: &str| lab.dir.path().join(name);
    let (out, err) = ["out", "err"]
        .map(|name| std::fs::File::create(file(name)).expect("a file"))
        .into();
    let mut verb = lab
        .command(&args)
        .stdout(out)
        .stderr(err)
        .spawn()
        .expect("reeve starts");
    let shown = || {
        let read = |name| std::fs::read_to_string(file(name)).unwrap_or_default();
        read("out") + &read("err")
    };
    eventually("the verb waits", 30, || {
        let text = shown();
        if text.contains(&format!("waiting for {away}")) {
            Ok(())
        } else {
            Err(text)
        }
    });
    signal(verb.id(), "INT");
    let ended = verb.wait().expect("it ends");
    assert!(
        ended.code() == Some(6) && shown().contains("replaced all the same") && shown().contains("again to follow it"),
        "{}",
        shown()
    );
    // It is gone for good, in the middle of it: another disk takes its seat, with both authorities.
    std::fs::remove_dir_all(lab.data(2)).expect("a disk can be lost");
    let token = lab.exits(1, 0, &["token", "create", "--seed", &away]);
    lab.file("seat", &token);
    lab.start(2, "seat");
    lab.serves(2);
    let said = lab.exits(0, 0, &ROTATE);
    assert!(
        said.contains("is being replaced already") && said.contains("what the former one issued is refused"),
        "{said}"
    );
    let told = checks(&text(&lab.run(2, &["doctor", "-o", "json"])), "rotation");
    assert!(matches!(told.as_slice(), [(level, _)] if level == "ok"), "{told:?}");
}

#[test]
fn an_administrator_makes_tokens_and_shuts_people_out_from_elsewhere_and_one_seed_replaces_its_authority() {
    let lab = Lab::new(73, 1);
    let person =
        |name: &str, rights: &str| ["token", "create", "--person", name, "--rights", rights].map(str::to_owned);
    let make = |seed_or: Option<&str>, name: &str, rights: &str| {
        let args = person(name, rights);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match seed_or {
            None => lab.exits(0, 0, &args),
            Some(who) => lab.elsewhere(who, 0, &args),
        }
    };
    lab.login("anna", &make(None, "anna", "admin"));
    lab.login("otto", &make(Some("anna"), "otto", "operator+exec"));
    let listed = lab.elsewhere("anna", 0, &["person", "ls"]);
    assert!(listed.contains("anna") && listed.contains("otto"), "{listed}");

    // Tokens, from elsewhere: made, listed without a cut in 80 columns, withdrawn.
    let token = lab.elsewhere(
        "anna",
        0,
        &["token", "create", "--node", "n7", "--uses", "2", "-o", "json"],
    );
    let token: serde_json::Value = serde_json::from_str(&token).expect("JSON");
    let id = token["id"].as_str().expect("an id");
    let listed = lab.elsewhere("anna", 0, &["token", "ls"]);
    assert!(
        listed.contains(id) && listed.contains("node n7") && (listed.contains("in 60m") || listed.contains("in 59m")),
        "{listed}"
    );
    assert!(
        listed.contains("otto (operator+exec)") && !listed.contains('…'),
        "all of it fits: {listed}"
    );
    assert!(lab.exits(0, 0, &["token", "ls"]).contains(id), "seeds see the same");
    lab.elsewhere("anna", 0, &["token", "rm", id]);
    assert!(!lab.elsewhere("anna", 0, &["token", "ls"]).contains(id));
    let own = lab.address(0);
    for (who, code, args, why) in [
        (
            "anna",
            6,
            ["token", "create", "--seed", own.as_str()].as_slice(),
            "on another seed alone",
        ),
        (
            "anna",
            6,
            &["admin", "rotate-authority", "--yes"],
            "this host is no seed",
        ),
        (
            "anna",
            4,
            &["token", "create", "--person", "otto", "--rights", "viewer"],
            "has the rights `operator+exec`",
        ),
        ("otto", 6, &["token", "create"], "with the right `admin`"),
        ("otto", 6, &["person", "rm", "anna", "--yes"], "with the right `admin`"),
    ] {
        let said = lab.elsewhere(who, code, args);
        assert!(said.contains(why), "{who} {args:?}, wanted {why:?}: {said}");
    }
    let said = lab.elsewhere("otto", 0, &["admin", "rotate-authority", "--status"]);
    assert!(said.contains("no other is believed"), "{said}");
    let doctor = lab
        .command(&["doctor", "-o", "json"])
        .env("HOME", lab.dir.path().join("anna"))
        .output();
    let doctor = String::from_utf8_lossy(&doctor.expect("reeve starts").stdout).into_owned();
    assert_eq!(checks(&doctor, "rotation").len(), 1, "{doctor}");
    assert_eq!(checks(&doctor, "cert context").len(), 1, "{doctor}");
    let said = lab.elsewhere("anna", 0, &["person", "rm", "otto", "--yes"]);
    assert!(said.contains("person/otto is shut out"), "{said}");
    lab.elsewhere("otto", 3, &["get", "nodes"]);

    // The only seed: its store is away for moments, and all of it comes to its end.
    let said = lab.exits(0, 0, &[ROTATE.as_slice(), &["--yes"]].concat());
    assert!(said.contains("these people log in again: person/anna"), "{said}");
    let said = lab.elsewhere("anna", 3, &["get", "nodes"]);
    assert!(
        said.contains("log in again") || said.contains("were you removed"),
        "{said}"
    );
    lab.login("anna", &make(None, "anna", "admin"));
    lab.elsewhere("anna", 0, &["person", "ls"]);
}
