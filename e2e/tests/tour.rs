//! The README's tour, by `reeve`'s own commands, on three hosts of a cluster of seeds: a registry that wants a password, a
//! secret, files, and a web server, a cache and a database that are deployed, changed, logged and exec'd into, with a password
//! that is changed while they run.

use std::io::Write as _;
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::seats::{agent_dir, install_token, server, server_dir, serves, succeeds};
use e2e::{Host, Lab, Process, eventually, run, succeed};

const REGISTRY_PASSWORD: &str = "canary-Kw3vTq81-first";
/// The line of an htpasswd file for user `ci` with this password.
const REGISTRY_LINE: &str = "ci:$2y$05$kBILK419WYPmLqXg3ksPN.KgMxuXd8PeYbUDgj3AsgA4VViUQuhqK\n";
const PASSWORDS: [&str; 2] = ["canary-Dz5mWr17-database", "canary-Uf8qJc64-database"];

const CONFIGURATION: &str = "server.document-root = \"/srv/www\"\nserver.port = 80\nserver.errorlog = \"/dev/stderr\"\n\
     server.upload-dirs = (\"/tmp\")\nindex-file.names = (\"index.html\")\nmimetype.assign = (\".html\" => \"text/html\")\n";

/// Runs a verb on a host of the cluster, and gives it a password by a pipe.
fn told(host: &Host, args: &[&str], password: &str) -> String {
    let mut command = host.place.command(&host.binary);
    let mut child = command
        .args(args)
        .arg("--data-dir")
        .arg(server_dir(host))
        .env_remove("REEVE_ETCD")
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("reeve starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(password.as_bytes()).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.concat();
    assert!(output.status.success(), "reeve {args:?} said:\n{text}");
    assert!(!text.contains(password), "a password is printed");
    text
}

/// Makes the application's images and puts them into the registry; nothing of them stays on the host.
fn push(host: &Host, registry: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    succeed(
        Command::new(root.join("manifests/examples/application/images.sh"))
            .env("DOCKER_HOST", &host.docker_host)
            .env("REEVE_PACKAGE_CACHE", root.join("target/packages")),
    );
    let config = tempfile::tempdir().expect("a directory");
    let place = config.path().to_str().expect("a path");
    host.docker(&[
        "--config",
        place,
        "login",
        "-u",
        "ci",
        "-p",
        REGISTRY_PASSWORD,
        registry,
    ]);
    for name in ["web", "cache", "database"] {
        let (here, there) = (format!("reeve/{name}:1"), format!("{registry}/team/{name}:1"));
        host.docker(&["tag", &here, &there]);
        host.docker(&["--config", place, "push", &there]);
        host.docker(&["rmi", &here, &there]);
    }
}

fn agent(host: &Host, seed: &Host, token: &str) -> Process {
    let dir = agent_dir(host).display().to_string();
    let args = [
        "agent",
        "--data-dir",
        &dir,
        "--seeds",
        &seed.address,
        "--token-file",
        token,
        "--node",
        &host.name,
        "--allow-exec",
        "--docker",
        &host.docker_host,
    ];
    let name = format!("agent of {}", host.name);
    let log = host.dir.join("agent.log");
    Process::start(&name, Some(&host.place), &host.binary, &args, &[], log)
}

/// The web server on n1, the database on n2, the cache on n3.
fn application(registry: &str) -> String {
    format!(
        r#"apiVersion: reeve/v1
kind: Service
metadata: {{name: web}}
spec:
  placement: {{nodeNames: [n1]}}
  container:
    image: {registry}/team/web:1
    command: [lighttpd, -D, -f, /etc/web.conf]
    files:
      - {{file: web-conf, path: /etc/web.conf}}
      - {{file: page, path: /srv/www/index.html}}
    secrets: [{{secret: db-password}}]
    ports: [{{name: http, containerPort: 80, hostPort: 8088}}]
    healthCheck: {{http: {{port: 80}}, interval: 1s, startPeriod: 10s}}
---
apiVersion: reeve/v1
kind: Service
metadata: {{name: database}}
spec:
  placement: {{nodeNames: [n2]}}
  container:
    image: {registry}/team/database:1
    command: [sh, -c]
    args:
      - |
        set -e
        chown postgres /data && chmod 700 /data
        [ -s /data/PG_VERSION ] || su postgres -c 'initdb -D /data --auth=scram-sha-256 --pwfile=/run/secrets/db-password >/dev/null'
        grep -q 0.0.0.0 /data/pg_hba.conf || echo 'host all all 0.0.0.0/0 scram-sha-256' >> /data/pg_hba.conf
        echo "alter user postgres password '$(cat /run/secrets/db-password)'" | su postgres -c 'postgres --single -D /data postgres >/dev/null'
        exec su postgres -c 'exec postgres -D /data -h 0.0.0.0 -k /tmp'
    secrets: [{{secret: db-password, owner: "70:70"}}]
    mounts: [{{type: volume, source: database, target: /data}}]
    ports: [{{containerPort: 5432, hostPort: 5432}}]
    stopSignal: INT
    stopGracePeriod: 20s
    healthCheck: {{exec: {{command: [pg_isready, -h, 127.0.0.1, -U, postgres]}}, interval: 1s, startPeriod: 30s}}
---
apiVersion: reeve/v1
kind: Service
metadata: {{name: cache}}
spec:
  placement: {{nodeNames: [n3]}}
  container:
    image: {registry}/team/cache:1
    command: [redis-server, --protected-mode, "no", --save, "", --appendonly, "no"]
    user: "71:71"
    workingDir: /tmp
    readOnlyRootFilesystem: true
    ports: [{{containerPort: 6379, hostPort: 6379}}]
    healthCheck: {{exec: {{command: [redis-cli, ping]}}, interval: 1s}}
"#
    )
}

#[test]
fn the_tour_of_the_first_day_goes_through_on_three_hosts() {
    let mut lab = Lab::new(3);
    let registry = lab.guarded_registry(REGISTRY_LINE);
    let token = install_token(&lab, "token");
    let [n1, n2, n3] = lab.hosts.as_slice() else {
        panic!("three hosts")
    };
    push(n1, &registry);
    let _seed = server(n1, &n1.address, &token);
    eventually("the seed serves", 60, || serves(n1));
    let _agents = [n1, n2, n3].map(|host| agent(host, n1, &token));
    eventually("three nodes are there", 60, || {
        let text = succeeds(n1, &["get", "nodes"]);
        if text.matches(" Ready ").count() == 3 {
            Ok(())
        } else {
            Err(text)
        }
    });

    // A registry, a secret, two files; then all three services by one command.
    let login = ["login", &registry, "--user", "ci", "--password-stdin", "--insecure"];
    told(n1, &login, REGISTRY_PASSWORD);
    told(n1, &["secret", "set", "db-password"], PASSWORDS[0]);
    let file = lab.file("web.conf", CONFIGURATION);
    succeeds(n1, &["upload", &file]);
    let page = lab.file("page", "<h1>one</h1>\n");
    succeeds(n1, &["upload", &page]);
    let manifest = lab.file("application.yaml", &application(&registry));
    succeeds(n1, &["apply", "-f", &manifest, "--yes", "--timeout", "180s"]);
    let shows = |wanted: &str| {
        eventually(&format!("the page says {wanted}"), 60, || {
            match n1.http("http://127.0.0.1:8088/") {
                Ok(text) if text.contains(wanted) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    shows("one");

    // A shell in the web server reaches the others, with the password that it was given.
    let exec = |script: &str| {
        let mut command = n1.place.command(&n1.binary);
        // What follows `--` is the container's.
        command.arg("--data-dir").arg(server_dir(n1)).env_remove("REEVE_ETCD");
        let output = run(command.args(["exec", "web.1", "--", "sh", "-c", script]));
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), text.concat())
    };
    let (code, text) = exec(&format!("redis-cli -h {} incr visits", n3.address));
    assert_eq!((code, text.trim()), (Some(0), "1"), "{text}");
    let ask = |sql: &str| {
        let host = &n2.address;
        exec(&format!(
            "PGPASSWORD=$(cat /run/secrets/db-password) psql -h {host} -U postgres -qtAc \"{sql}\""
        ))
    };
    let (code, text) = ask("create table notes (text text)");
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = ask("insert into notes values ('kept'); select text from notes");
    assert_eq!((code, text.trim()), (Some(0), "kept"), "{text}");
    // No control port answers it, though each answers other hosts; what somebody opens is closed again.
    let closed = || {
        let mut open = Vec::new();
        let gateway = exec("ip route | sed -n 's/default via \\([^ ]*\\) .*/\\1/p'").1;
        assert!(gateway.trim().parse::<IpAddr>().is_ok(), "{gateway}");
        for (host, ports) in [
            (n1.address.as_str(), &[2378, 2379, 2380, 9465][..]),
            (gateway.trim(), &[9465]),
            (n2.address.as_str(), &[9465]),
            (n3.address.as_str(), &[9465]),
        ] {
            for port in ports {
                let (_, text) = exec(&format!("redis-cli -h {host} -p {port} ping"));
                if !text.contains("Connection refused") {
                    open.push(format!("{host}:{port}: {}", text.trim()));
                }
            }
        }
        if open.is_empty() { Ok(()) } else { Err(open.join("\n")) }
    };
    closed().expect("no control port answers");
    for (host, port) in [(n1, 2378), (n1, 2379), (n1, 2380), (n1, 9465), (n2, 9465), (n3, 9465)] {
        let address = format!("{}:{port}", host.address);
        TcpStream::connect(&address).unwrap_or_else(|error| panic!("{address} answers hosts: {error}"));
    }
    let (code, _) = exec("test -e /var/run/docker.sock || test -e /run/docker.sock");
    assert_eq!(code, Some(1), "an engine's socket is in a container");
    let tables =
        String::from_utf8_lossy(&run(n1.place.command(Path::new("nft")).args(["list", "tables", "inet"])).stdout)
            .into_owned();
    let table = tables
        .split_whitespace()
        .find(|word| word.starts_with("reeve_"))
        .expect("a table of ours");
    succeed(
        n1.place
            .command(Path::new("nft"))
            .args(["delete", "table", "inet", table]),
    );
    assert!(closed().is_err(), "it is the table that closes them");
    eventually("they are closed again", 60, closed);

    let logs = succeeds(n1, &["logs", "database"]);
    assert!(logs.contains("ready to accept connections"), "{logs}");

    // Changed: the page, and then the password, of which only its users hear.
    lab.file("page", "<h1>two</h1>\n");
    let text = succeeds(n1, &["upload", &page]);
    assert!(text.contains("edition 1 of file page became 2"), "{text}");
    shows("two");
    let cache = n3.lives();
    let text = told(n1, &["secret", "set", "db-password"], PASSWORDS[1]);
    assert!(text.contains("edition 1 of secret db-password became 2"), "{text}");
    eventually("the new password is in force, and the data is there", 120, || {
        let (code, text) = ask("select text from notes");
        if code == Some(0) && text.trim() == "kept" {
            let script = format!(
                "PGPASSWORD={} psql -h {} -U postgres -c 'select 1'",
                PASSWORDS[0], n2.address
            );
            match exec(&script) {
                (Some(0), _) => Err("the old password is still good".to_owned()),
                (_, text) if text.contains("password authentication failed") => Ok(()),
                (_, text) => Err(text),
            }
        } else {
            Err(text)
        }
    });
    assert_eq!(cache, n3.lives(), "the cache has no password, and was not touched");
    let text = succeeds(n1, &["secret", "ls"]);
    assert!(text.contains("database, web"), "{text}");
}
