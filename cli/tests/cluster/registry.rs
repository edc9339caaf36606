//! `reeve login`, `logout` and `registries` against a whole cluster in this process and registries that a thread plays: what
//! is asked of them, what is saved, what is told, and what never is.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use crate::lab::Lab;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::{Prefix, Store};

const PASSWORD: &str = "hunter2-canary";

const FIRST_PAGE: &str = "/v2/_catalog?n=100";
const NEXT_PAGE: &str = "/v2/_catalog?last=team%2Fb&n=100";

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Wants name and password.
    Basic,
    /// Wants a token, which name and password get.
    Bearer,
    /// Is a web server.
    NoRegistry,
    /// Has its tokens from a place without TLS that is not here.
    Elsewhere,
}

/// A registry on loopback that knows `ci` with one password.
struct Registry {
    host: String,
    /// The paths that were asked.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    /// A registry behind TLS, and its authority as PEM.
    fn secured() -> (Self, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
        let certificate = params.self_signed(&key).expect("a certificate");
        let pem = certificate.pem();
        let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private.into())
            .expect("a configuration");
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (own, heard) = (host.clone(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let session = rustls::ServerConnection::new(Arc::clone(&config)).expect("a session");
                answer(rustls::StreamOwned::new(session, stream), Manner::Basic, &own, &heard);
            }
        });
        (Self { host, asked }, pem)
    }

    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (own, heard) = (host.clone(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, manner, &own, &heard);
            }
        });
        Self { host, asked }
    }
}

fn answer(mut stream: impl std::io::Read + std::io::Write, manner: Manner, host: &str, asked: &Mutex<Vec<String>>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            // What begins so is TLS.
            Ok(read) if read > 0 && buffer[0] != 0x16 => bytes.extend_from_slice(&buffer[..read]),
            Ok(_) | Err(_) => {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                return;
            }
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().expect("no panic").push(path.clone());
    let own = text.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization")
            .then(|| value.trim().to_owned())
    });
    let right = format!("Basic {}", STANDARD.encode(format!("ci:{PASSWORD}")));
    let (token, service) = ("Bearer a-token".to_owned(), r#"service="the registry",scope="a,b""#);
    let is_right = own.as_deref() == Some(&right);
    let (status, demand, body) = match (manner, path.as_str()) {
        (Manner::NoRegistry, _) => ("404 Not Found", String::new(), "<html>"),
        (Manner::Basic, "/v2/") if is_right => ("200 OK", String::new(), "{}"),
        (Manner::Basic, _) => ("401 Unauthorized", r#"Basic realm="lab""#.to_owned(), "{}"),
        (Manner::Bearer, FIRST_PAGE) if own.as_ref() == Some(&token) => (
            "200 OK",
            String::new(),
            r#"{"repositories":["team/b","\u001b[31mred"]}"#,
        ),
        (Manner::Bearer, NEXT_PAGE) if own.as_ref() == Some(&token) => {
            ("200 OK", String::new(), r#"{"repositories":["team/a","team/b"]}"#)
        }
        (Manner::Bearer, "/v2/") if own == Some(token) => ("200 OK", String::new(), "{}"),
        (Manner::Bearer, "/v2/") => (
            "401 Unauthorized",
            format!(r#"Bearer realm="http://{host}/token",{service}"#),
            "{}",
        ),
        (Manner::Bearer, path) if path.starts_with("/v2/") => ("401 Unauthorized", String::new(), "{}"),
        (Manner::Bearer, _) if is_right => ("200 OK", String::new(), r#"{"token":"a-token"}"#),
        (Manner::Bearer, _) => ("401 Unauthorized", String::new(), "{}"),
        (Manner::Elsewhere, _) => (
            "401 Unauthorized",
            r#"Bearer realm="http://198.51.100.1/token""#.to_owned(),
            "{}",
        ),
    };
    let demand = if demand.is_empty() {
        demand
    } else {
        format!("WWW-Authenticate: {demand}\r\n")
    };
    let link = if path == FIRST_PAGE {
        format!("Link: <http://{host}{NEXT_PAGE}>; rel=\"next\"\r\n")
    } else {
        String::new()
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n{demand}{link}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

fn started() -> Lab {
    Lab::with(&["nginx:1"], "140")
}

impl Lab {
    fn login(&self, code: i32, registry: &str, password: &str, more: &[&str]) -> String {
        self.as_ci(code, &[&["login", registry], more].concat(), password)
    }

    fn as_ci(&self, code: i32, verb: &[&str], password: &str) -> String {
        let args = [verb, &["--user", "ci", "--password-stdin"]].concat();
        let mut child = self
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("reeve starts");
        let mut input = child.stdin.take().expect("a pipe");
        // It may have ended before it read anything.
        let _ = writeln!(input, "{password}");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(code), "reeve {args:?}\n{text}");
        assert!(password.is_empty() || !text.contains(password), "{text}");
        text
    }

    fn tells_nothing(&self) {
        let all = self
            .on(self.store.list(&Prefix::new("/reeve/").expect("a prefix")))
            .expect("a list");
        for kv in all.kvs {
            let text = String::from_utf8_lossy(&kv.value).into_owned();
            assert!(!text.contains(PASSWORD), "{}", String::from_utf8_lossy(&kv.key));
        }
    }
}

fn service(name: &str, image: &str) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  replicas: 1\n  container: {{image: \"{image}\", pullPolicy: Always}}\n  update: {{minReady: 10ms}}\n"
    )
}

#[test]
fn a_login_is_checked_saved_sealed_used_by_pulls_and_taken_back() {
    let lab = started();
    for manner in [Manner::Basic, Manner::Bearer] {
        let registry = Registry::start(manner);
        let text = lab.login(6, &registry.host, "wrong", &[]);
        assert!(
            text.contains("refuses user `ci`") && text.contains("nothing was saved"),
            "{text}"
        );
        assert!(!lab.out(&["registries"]).contains(&registry.host));
        let text = lab.login(0, &registry.host, PASSWORD, &[]);
        assert!(text.contains("logged in"), "{text}");
        if manner == Manner::Bearer {
            let asked = registry.asked.lock().expect("no panic").clone();
            assert!(
                asked.contains(&"/token?account=ci&client_id=reeve&service=the%20registry".to_owned()),
                "{asked:?}"
            );
        }
        let name = if manner == Manner::Basic { "basic" } else { "bearer" };
        let web = lab.file(
            "web.yaml",
            service(name, &format!("{}/team/app:1", registry.host)).as_bytes(),
        );
        lab.exits(0, &["apply", "-f", &web]);
        assert_eq!(lab.engine.pulled_as().as_deref(), Some("ci"));
        let text = lab.exits(0, &["registries"]);
        assert!(
            text.contains(&registry.host) && text.contains("Valid") && text.contains(&format!("default/{name}")),
            "{text}"
        );
        lab.tells_nothing();
        let resource = registry.host.replace(['.', ':'], "-");
        let text = lab.exits(0, &["describe", "registry", &resource]);
        assert!(text.contains("ci, for all images"), "{text}");
        assert!(lab.exits(0, &["get", "registries", "-o", "yaml"]).contains("user: ci"));

        lab.exits(0, &["logout", &registry.host]);
        assert!(lab.out(&["registries"]).contains("NoAccount"));
        lab.until("it is handed out no more", || {
            let key = "/reeve/handed/node.n1";
            let kv = lab
                .on(lab.store.get(key.as_bytes()))
                .expect("an answer")
                .value
                .expect("a document");
            !String::from_utf8_lossy(&kv.value).contains(&registry.host)
        });
        let text = lab.exits(6, &["logout", &registry.host]);
        assert!(text.contains("nobody is logged in"), "{text}");
    }
}

#[test]
fn what_a_registry_has_is_listed_page_after_page_for_who_may_see_it() {
    let lab = started();
    let registry = Registry::start(Manner::Bearer);
    let host = &registry.host;
    let search = ["registries", "search", host];
    let text = lab.as_ci(0, &search, PASSWORD);
    assert_eq!(text, format!("IMAGE\n{host}/ [31mred\n{host}/team/a\n{host}/team/b\n"));
    let asked = registry.asked.lock().expect("no panic").clone();
    let scoped = asked
        .iter()
        .filter(|path| path.contains("&scope=registry%3Acatalog%3A%2A"));
    assert_eq!(scoped.count(), 1, "one token for all pages: {asked:?}");
    let json = lab.as_ci(0, &[&search[..], &["/a", "-o", "json"]].concat(), PASSWORD);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["images"], serde_json::json!(["team/a"]));
    for text in [lab.as_ci(6, &search, "wrong"), lab.exits(6, &search)] {
        assert!(
            text.contains("does not show that to us") && text.contains("--user"),
            "{text}"
        );
    }
    let none = Registry::start(Manner::NoRegistry);
    let text = lab.exits(6, &["registries", "tags", &format!("{}/app", none.host)]);
    assert!(text.contains("is no registry (it answers 404"), "{text}");
    let text = lab.exits(2, &["registries", "search", "docker.io"]);
    assert!(text.contains("docker.io has too much to list"), "{text}");
}

#[test]
fn what_is_no_registry_or_wants_the_password_elsewhere_gets_none() {
    let lab = started();
    let none = Registry::start(Manner::NoRegistry);
    let text = lab.login(6, &none.host, PASSWORD, &[]);
    assert!(text.contains("is no registry (it answers 404"), "{text}");
    let elsewhere = Registry::start(Manner::Elsewhere);
    let text = lab.login(6, &elsewhere.host, PASSWORD, &["--insecure"]);
    assert!(!text.contains("logged in"), "{text}");
    let text = lab.login(6, "127.0.0.1:1", PASSWORD, &[]);
    assert!(text.contains("cannot reach 127.0.0.1:1"), "{text}");
    let text = lab.login(6, "no-such-host.invalid", PASSWORD, &[]);
    assert!(text.contains("find no-such-host.invalid"), "{text}");
    let text = lab.login(2, "https://r.example/v2", PASSWORD, &[]);
    assert!(text.contains("write `reeve login r.example`"), "{text}");
    assert!(lab.login(2, "r.example", "", &[]).contains("the password is empty"));
    let text = lab.exits(2, &["login", "r.example", "--user", "ci"]);
    assert!(text.contains("--password-stdin"), "{text}");
    assert!(lab.out(&["registries"]).contains("no registries"));
    assert_eq!(lab.count("/reeve/sealed/"), 0);
}

#[test]
fn a_registry_with_an_unknown_certificate_gets_nothing_until_its_authority_is_named() {
    let lab = started();
    let (registry, ca) = Registry::secured();
    for more in [&[][..], &["--insecure"]] {
        let text = lab.login(6, &registry.host, PASSWORD, more);
        assert!(
            text.contains("cannot speak TLS") && text.contains("--registry-ca"),
            "{text}"
        );
    }
    assert_eq!(registry.asked.lock().expect("no panic").len(), 0);
    let ca = lab.file("ca.pem", ca.as_bytes());
    let text = lab.login(0, &registry.host, PASSWORD, &["--registry-ca", &ca]);
    assert!(text.contains("logged in"), "{text}");
    assert_eq!(*registry.asked.lock().expect("no panic"), ["/v2/", "/v2/"]);
}

#[test]
fn a_manifest_of_a_registry_and_its_passwords_live_apart() {
    let lab = started();
    let registry = Registry::start(Manner::Basic);
    let manifest = format!(
        "apiVersion: reeve/v1\nkind: Registry\nmetadata: {{name: mine}}\nspec:\n  registry: {}\n  accounts:\n    - {{user: ci, images: [team]}}\n    - {{user: other}}\n",
        registry.host
    );
    let file = lab.file("registry.yaml", manifest.as_bytes());
    lab.exits(0, &["apply", "-f", &file]);
    let text = lab.exits(0, &["registries"]);
    assert!(text.contains("NoPassword") && text.contains("reeve login"), "{text}");
    lab.login(0, &registry.host, PASSWORD, &[]);
    let text = lab.exits(0, &["registries"]);
    assert!(text.contains("Valid") && text.contains("team"), "{text}");
    // What a repository says again changes no password.
    assert!(lab.exits(0, &["apply", "-f", &file]).contains("unchanged"));
    let values: serde_json::Value =
        serde_json::from_slice(&lab.run(&["registries", "-o", "json"]).stdout).expect("JSON");
    assert_eq!(
        (&values[0]["status"], &values[1]["status"]),
        (&"Valid".into(), &"NoPassword".into())
    );
    let text = lab.exits(2, &["logout", &registry.host]);
    assert!(text.contains("several accounts: ci, other"), "{text}");
    lab.exits(0, &["delete", "registry", "mine", "--yes"]);
    assert!(lab.out(&["registries"]).contains("no registries"));
}
