//! Being near the containers, on real engines: logs over restarts and changes, commands with pipes and with terminals, their
//! exit codes, what is refused, and what is recorded.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use e2e::{Host, Lab, Process, eventually, reeve, run, succeed};

/// Says who it is and counts; each life of it has a name of its own, and a good end says so.
const COUNTER: &str = r#"
apiVersion: reeve/v1
kind: Service
metadata: {name: count}
spec:
  replicas: REPLICAS
  update: {minReady: 1s}
  container:
    image: reeve/hello:1
    env: {EDITION: first}
    command: [sh, -c]
    args:
      - |
        id=$(cat /proc/sys/kernel/random/uuid); i=0; over=
        trap over=1 TERM
        while [ -z "$over" ]; do i=$((i + 1)); echo "$id $i"; sleep 0.05; done
        echo "$id end $i"
"#;

const SHELL: &str = r#"
apiVersion: reeve/v1
kind: Service
metadata: {name: box}
spec:
  container:
    image: reeve/hello:1
    stdin: true
    command: [sh, -c, 'while read line; do echo "heard $line"; done; sleep 1000']
---
apiVersion: reeve/v1
kind: Service
metadata: {name: page}
spec:
  container:
    image: reeve/hello:1
    command: [httpd, -f, -p, "80", -h, /www]
---
apiVersion: reeve/v1
kind: Service
metadata: {name: mute}
spec:
  container:
    image: reeve/hello:1
    command: [sh, -c, 'echo nobody reads this; sleep 1000']
    logging: {driver: none}
"#;

/// `reeve` in a host's network, with the data directory of its `up`.
fn command(host: &Host, args: &[&str]) -> Command {
    let mut command = host.place.command(&reeve());
    command
        .args(args)
        .env("NO_COLOR", "1")
        .env("COLUMNS", "80")
        .env("REEVE_ETCD", "http://127.0.0.1:2379")
        .env("REEVE_DATA_DIR", host.dir.join("up"));
    command
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn up(host: &Host, more: &[&str]) -> Process {
    let up = host.up(more);
    eventually("the node is ready", 30, || {
        let text = said(&host.reeve(&["get", "nodes"])).1;
        if text.contains("Ready") { Ok(()) } else { Err(text) }
    });
    up
}

/// A `reeve` beside the test that is fed by it; killed when dropped.
struct Fed(Child);

impl Drop for Fed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Fed {
    fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(command.spawn().expect("it starts"))
    }

    /// With its output in a file, which can be looked at meanwhile.
    fn into(mut command: Command, path: &Path) -> Self {
        let file = std::fs::File::create(path).expect("a file");
        let errors = file.try_clone().expect("a second handle");
        command.stdin(Stdio::piped()).stdout(file).stderr(errors);
        Self(command.spawn().expect("it starts"))
    }

    fn type_in(&mut self, bytes: &[u8]) {
        let input = self.0.stdin.as_mut().expect("it is piped");
        input.write_all(bytes).expect("it listens");
        input.flush().expect("it listens");
    }

    /// Waits for its end, by itself.
    fn ends(&mut self, seconds: u64) -> Option<i32> {
        eventually("it ends", seconds, || match self.0.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }
}

/// `reeve` on a terminal of 33 rows and 99 columns, made by `script`; the terminal's name is in the file beside.
fn on_terminal(host: &Host, dir: &Path, args: &str) -> Fed {
    let tty = dir.join("tty");
    let line = format!(
        "stty rows 33 cols 99; tty > {}; exec {} {} {args}",
        tty.display(),
        host.place.words().join(" "),
        reeve().display()
    );
    let mut command = Command::new("script");
    command
        .args(["-qefc", &line, "/dev/null"])
        .env("TERM", "xterm")
        .env("REEVE_ETCD", "http://127.0.0.1:2379")
        .env("REEVE_DATA_DIR", host.dir.join("up"));
    Fed::into(command, &dir.join("screen"))
}

fn shows(dir: &Path, word: &str) {
    eventually(&format!("the terminal shows {word:?}"), 20, || {
        let text = std::fs::read(dir.join("screen")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        if text.contains(word) { Ok(()) } else { Err(text) }
    });
}

#[test]
fn a_command_in_a_container_is_like_one_here_and_is_recorded() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let mut running = up(host, &[]);
    let file = lab.file("box.yaml", SHELL);
    host.reeve_exits(0, &["apply", "-f", &file]);

    // Exit codes, streams apart, arguments as they are.
    let output = run(&mut command(
        host,
        &[
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; printf '%s|' \"$@\"; exit 42",
            "x",
            "a b",
            "\"q'",
            "ä→",
            "",
        ],
    ));
    assert_eq!(
        said(&output),
        (Some(42), "out\na b|\"q'|ä→||".to_owned(), "err\n".to_owned())
    );

    // Four megabytes of every byte go through, and come back.
    let bytes: Vec<u8> = (0..4_u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut cat = Fed::start(command(host, &["exec", "-i", "box.1", "--", "cat"]));
    let mut input = cat.0.stdin.take().expect("it is piped");
    let sent = bytes.clone();
    let feeding = std::thread::spawn(move || input.write_all(&sent));
    let mut back = Vec::new();
    cat.0
        .stdout
        .as_mut()
        .expect("it is piped")
        .read_to_end(&mut back)
        .expect("it can be read");
    feeding.join().expect("no panic").expect("all is taken");
    assert!(back == bytes, "{} bytes came back", back.len());
    assert_eq!(cat.ends(10), Some(0));

    // A terminal: its size, its resizing, Ctrl-C, and the exit code.
    let dir = tempfile::tempdir().expect("a directory");
    let script = "trap 'echo caught; exit 7' INT; while :; do stty size; sleep 0.2; done";
    let mut shell = on_terminal(host, dir.path(), &format!("exec -it box -- sh -c \"{script}\""));
    shows(dir.path(), "33 99");
    let tty = std::fs::read_to_string(dir.path().join("tty")).expect("the terminal's name");
    succeed(Command::new("stty").args(["-F", tty.trim(), "rows", "40", "cols", "120"]));
    shows(dir.path(), "40 120");
    shell.type_in(b"\x03");
    shows(dir.path(), "caught");
    assert_eq!(shell.ends(10), Some(7));

    // The container's own process, and leaving it.
    let dir = tempfile::tempdir().expect("a directory");
    let mut attached = on_terminal(host, dir.path(), "attach box.1");
    shows(dir.path(), "Ctrl-P Ctrl-Q");
    attached.type_in(b"you there\n");
    shows(dir.path(), "heard you there");
    attached.type_in(b"\x10\x11");
    assert_eq!(attached.ends(10), Some(0));
    assert!(host.running().contains(&"default.box.1.1".to_owned()));

    // A port of the container's, and what it uses.
    let dir = tempfile::tempdir().expect("a directory");
    let _forward = Fed::into(
        command(host, &["port-forward", "page", "18080:80"]),
        &dir.path().join("screen"),
    );
    shows(dir.path(), "leads to port 80 of page.1");
    for _ in 0..3 {
        assert_eq!(
            host.http("http://127.0.0.1:18080/").as_deref(),
            Ok("Hello from Reeve.\n")
        );
    }
    let (code, text, errors) = said(&run(&mut command(host, &["top", "-o", "json"])));
    let used: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (code, used.as_array().map(Vec::len)),
        (Some(0), Some(3)),
        "{text}{errors}"
    );
    assert!(used[0]["memoryBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{text}");

    // Files into the container and out again: four megabytes, a tree, names of every kind, and back as they were.
    let dir = tempfile::tempdir().expect("a directory");
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("a b/ä")).expect("a directory");
    std::fs::write(tree.join("a b/ä/data"), &bytes).expect("a file");
    std::os::unix::fs::symlink("a b", tree.join("link")).expect("a link");
    let copy = |from: &str, to: &str| said(&run(&mut command(host, &["cp", from, to])));
    let own = |name: &str| dir.path().join(name).display().to_string();
    let (code, text, errors) = copy(&own("tree"), "box.1:/tmp");
    assert!(code == Some(0) && text.contains("box.1:/tmp/tree"), "{text}{errors}");
    let (code, text, errors) = copy("box.1:/tmp/tree", &own("back"));
    assert!(code == Some(0) && text.contains("2 files"), "{text}{errors}");
    assert!(std::fs::read(dir.path().join("back/a b/ä/data")).expect("it is there") == bytes);
    assert_eq!(
        std::fs::read_link(dir.path().join("back/link")).expect("it is there"),
        Path::new("a b")
    );
    let (code, text, errors) = copy(&own("back/a b/ä/data"), "box:/tmp/other");
    assert_eq!(code, Some(0), "{text}{errors}");
    let sum = "cmp /tmp/other '/tmp/tree/a b/ä/data' && echo same";
    let output = run(&mut command(host, &["exec", "box", "--", "sh", "-c", sum]));
    assert_eq!(said(&output), (Some(0), "same\n".to_owned(), String::new()));
    let (code, _, text) = copy("box.1:/not/there", &own("x"));
    assert!(code == Some(6) && text.contains("/not/there"), "{code:?} {text}");
    let (code, _, text) = copy(&own("tree"), "box.1:/not/there");
    assert!(code == Some(6) && text.contains("mkdir -p /not"), "{code:?} {text}");

    // What is wrong is said with its remedy.
    let (code, out, _) = said(&run(&mut command(host, &["exec", "box", "--", "nothing-like-it"])));
    assert!(
        matches!(code, Some(126 | 127)) && out.contains("nothing-like-it"),
        "{code:?} {out}"
    );
    let (code, _, text) = said(&run(&mut command(host, &["exec", "box.2", "--", "true"])));
    assert!(code == Some(6) && text.contains("box.1"), "{text}");
    let (code, _, text) = said(&run(&mut command(host, &["logs", "mute"])));
    assert!(
        code == Some(6) && text.contains("cannot be read back") && text.contains("json-file"),
        "{text}"
    );

    // Each is recorded before and after, without what passed.
    let path = host.dir.join("up/agent/exec.jsonl");
    let lines: Vec<serde_json::Value> = std::fs::read_to_string(&path)
        .expect("the record")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let first = |phase: &str| {
        lines
            .iter()
            .find(|line| line["phase"] == phase)
            .expect("a line")
            .clone()
    };
    assert_eq!(first("began")["command"][0], "sh");
    assert_eq!(first("ended")["exitCode"], 42);
    assert!(first("began")["by"].as_str().is_some_and(|by| by.contains('@')));
    let events = host.reeve_exits(0, &["events", "--all"]);
    assert!(events.contains("ExecBegan") && events.contains("ExecEnded"), "{events}");

    // Not where the node does not allow it; logs are read all the same, also the last line alone.
    drop(_forward);
    running.stop(Duration::from_secs(10));
    let _second = up(host, &["--no-exec"]);
    let (code, _, text) = said(&run(&mut command(host, &["exec", "box", "--", "true"])));
    assert!(code == Some(6) && text.contains("--allow-exec"), "{text}");
    let recorded = std::fs::read_to_string(&path).expect("the record").lines().count();
    assert_eq!(recorded, lines.len(), "what is refused is not begun");
    let output = run(&mut command(host, &["logs", "box", "--tail", "1"]));
    assert_eq!(said(&output), (Some(0), "heard you there\n".to_owned(), String::new()));
}

/// Certificates of one authority for each address, made by `openssl`.
fn certificates(lab: &Lab, addresses: &[String]) {
    let dir = lab.dir();
    let openssl = |args: &[&str]| succeed(Command::new("openssl").args(args).current_dir(dir));
    let curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ];
    openssl(
        &[
            &["req", "-x509"],
            &curve[..],
            &["-subj", "/CN=lab", "-keyout", "ca.key", "-out", "ca.pem"],
        ]
        .concat(),
    );
    for address in addresses {
        let (key, csr, pem, ext) = (
            format!("{address}.key"),
            format!("{address}.csr"),
            format!("{address}.pem"),
            format!("{address}.ext"),
        );
        let subject = format!("/CN=someone at {address}");
        openssl(
            &[
                &["req"],
                &curve[..5],
                &["-subj", &subject, "-keyout", &key, "-out", &csr],
            ]
            .concat()[..],
        );
        std::fs::write(dir.join(&ext), format!("subjectAltName=IP:{address}\n")).expect("a file");
        openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &ext,
            "-out",
            &pem,
        ]);
    }
}

/// What is wrong with the lines of one life: those that lack or come twice.
fn untrue(lines: &[&str]) -> Option<String> {
    let mut last = 0;
    for line in lines {
        let number = line.rsplit(' ').next().and_then(|word| word.parse::<u64>().ok())?;
        let right = if line.contains(" end ") { last } else { last + 1 };
        if number != right {
            return Some(format!("{line} after {last}"));
        }
        last = number;
    }
    None
}

/// How many processes have said something.
fn text_lives(text: &str) -> usize {
    let ids = text
        .lines()
        .filter_map(|line| line.split(" | ").nth(1)?.split(' ').next());
    ids.collect::<std::collections::BTreeSet<&str>>().len()
}

#[test]
fn logs_of_many_instances_on_three_hosts_lose_and_double_no_line() {
    let mut lab = Lab::new(3);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.control(&etcd);
    let mut addresses: Vec<String> = lab.hosts.iter().map(|host| host.address.clone()).collect();
    addresses.push(lab.address(254));
    certificates(&lab, &addresses);
    let dir = lab.dir().display().to_string();
    let tls = |address: &str| {
        let (ca, cert, key) = (
            format!("{dir}/ca.pem"),
            format!("{dir}/{address}.pem"),
            format!("{dir}/{address}.key"),
        );
        [
            "--ca".to_owned(),
            ca,
            "--cert".to_owned(),
            cert,
            "--key".to_owned(),
            key,
        ]
    };
    let agent = |host: &mut Host| {
        let tls = tls(&host.address);
        let api = format!("{}:9466", host.address);
        let mut args: Vec<&str> = tls.iter().map(String::as_str).collect();
        args.extend(["--api-addr", &api]);
        host.start_agent(&endpoints, &args);
    };
    for host in &mut lab.hosts {
        agent(host);
    }
    eventually("three nodes are ready", 30, || {
        let text = said(&lab.reeve(&endpoints, &["get", "nodes"])).1;
        if text.matches("Ready").count() >= 3 {
            Ok(())
        } else {
            Err(text)
        }
    });
    let file = lab.file("count.yaml", &COUNTER.replace("REPLICAS", "20"));
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &file]);

    let own = tls(&lab.address(254));
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let follow: Vec<&str> = ["logs", "-f", "count"].into_iter().chain(own.iter().copied()).collect();
    let mut follower = lab.follow("logs", &reeve(), &follow, &endpoints);
    eventually("all are followed", 30, || {
        let text = follower.output();
        let seen: std::collections::BTreeSet<&str> = text.lines().filter_map(|line| line.split(" | ").next()).collect();
        if seen.len() == 20 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });

    // Containers killed, an agent restarted, and all of them replaced, one after the other.
    for host in &lab.hosts {
        let running = host.running();
        for name in running.iter().take(3) {
            host.docker(&["kill", name]);
        }
    }
    eventually("all that were killed run again", 30, || {
        let text = said(&lab.reeve(&endpoints, &["get", "services"])).1;
        let lives = text_lives(&follower.output());
        if text.contains("20/20") && lives >= 29 {
            Ok(())
        } else {
            Err(format!("{lives} lives\n{text}"))
        }
    });
    lab.hosts[1].agent().kill();
    agent(&mut lab.hosts[1]);
    let changed = COUNTER.replace("REPLICAS", "20").replace("first", "second");
    let file = lab.file("count.yaml", &changed);
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &file]);
    eventually("every instance's next container is followed", 60, || {
        let text = follower.output();
        let ended: std::collections::BTreeSet<&str> = text
            .lines()
            .filter(|line| line.contains(" end "))
            .filter_map(|line| line.split(" | ").next())
            .collect();
        let missing: Vec<String> = (1..=20)
            .map(|slot| format!("count.{slot}"))
            .filter(|name| !ended.iter().any(|ended| ended.trim() == name))
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("no end of {missing:?}"))
        }
    });
    // What was written by now is printed soon.
    let last: BTreeMap<String, String> = lab
        .hosts
        .iter()
        .flat_map(|host| {
            let one = |name: String| {
                let line = host.docker(&["logs", "--tail", "1", &name]);
                (name, line)
            };
            host.running().into_iter().map(one).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(last.len(), 20);
    eventually("the last lines are printed", 30, || {
        let text = follower.output();
        match last.values().find(|line| !text.contains(line.as_str())) {
            None => Ok(()),
            Some(line) => Err(format!("{line} is missing")),
        }
    });
    follower.kill();
    let text = follower.output();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut lives: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in whole.lines() {
        let (name, rest) = line.split_once(" | ").unwrap_or_else(|| panic!("no prefix: {line:?}"));
        assert!(name.trim().starts_with("count."), "{line}");
        lives
            .entry(rest.split(' ').next().unwrap_or(""))
            .or_default()
            .push(rest);
    }
    let wrong: Vec<String> = lives.values().filter_map(|lines| untrue(lines)).collect();
    assert!(wrong.is_empty(), "{} of {} lives: {wrong:?}", wrong.len(), lives.len());
    assert!(lives.len() >= 40 + 9, "{} lives", lives.len());
    let ended = whole.lines().filter(|line| line.contains(" end ")).count();
    assert_eq!(ended, 20, "every container that was replaced said its last line");

    // A node that cannot be reached is one line and an exit code, and the others are shown.
    lab.hosts[2].cut(true);
    let once: Vec<&str> = ["logs", "count", "--tail", "1"]
        .into_iter()
        .chain(own.iter().copied())
        .collect();
    let (code, text, errors) = said(&lab.reeve(&endpoints, &once));
    assert_eq!(code, Some(3), "{text}{errors}");
    assert!(text.lines().count() >= 10 && text.lines().count() < 20, "{text}");
    assert!(errors.contains("n3"), "{errors}");
    lab.hosts[2].cut(false);
    // A certificate of another authority lets nobody in, and says so.
    let other = lab.dir().join("other");
    let (key, pem) = (format!("{}.key", other.display()), format!("{}.pem", other.display()));
    succeed(Command::new("openssl").args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=other",
        "-keyout",
        &key,
        "-out",
        &pem,
    ]));
    let ca = format!("{dir}/ca.pem");
    let strange = ["logs", "count.1", "--ca", &ca, "--cert", &pem, "--key", &key];
    let (code, text, errors) = said(&lab.reeve(&endpoints, &strange));
    assert!(
        code == Some(3) && text.is_empty() && errors.contains("one CA"),
        "{text}{errors}"
    );
    // Without a certificate there is no way, and a remedy.
    let (code, _, errors) = said(&lab.reeve(&endpoints, &["logs", "count"]));
    assert!(code == Some(3) && errors.contains("--cert"), "{errors}");
    // Nobody is let in by another authority's certificate, or by none.
    let api = format!("https://{}:9466/v1/near", lab.hosts[0].address);
    let refused = run(Command::new("curl").args(["-sk", "--max-time", "5", &api]));
    assert!(!refused.status.success() && refused.stdout.is_empty());
}
