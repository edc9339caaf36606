//! Finding and reaching the store, and making sure that it holds a cluster. Every verb that needs a store begins here.

use std::path::{Path, PathBuf};

use membership::keep::Context;
use runtime::{EtcdOptions, EtcdStore, KeyValue, Listing, Prefix, Store, StoreErrorKind, TlsFiles};
use schemas::keys::{Key, Root};
use schemas::records::{ClusterMarker, Record};

use crate::args::Common;
use crate::contexts::{self, Chosen, Place};
use crate::failure::{Exit, Failure};

/// The store without any other word.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
/// In the data directory of a running `reeve up`: the URL of its store, for people and their tools.
pub const ENDPOINT_FILE: &str = "endpoint";

/// Where `reeve server` keeps its data when it is not told.
pub const SERVER_DIR: &str = "/var/lib/reeve/server";

fn endpoint_of(data_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data_dir.join(ENDPOINT_FILE)).ok()?;
    let url = text.trim();
    (url.starts_with("http") && url.len() <= 256).then(|| url.to_owned())
}

/// Where `reeve up` keeps its data when it is not told: `$XDG_DATA_HOME/reeve`, else `~/.local/share/reeve`.
pub fn default_data_dir() -> PathBuf {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|text| !text.is_empty())
            .map(PathBuf::from)
    };
    variable("XDG_DATA_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
        .map_or_else(|| PathBuf::from("/var/lib/reeve/up"), |dir| dir.join("reeve"))
}

/// A store that answers.
#[derive(Clone, Debug)]
pub struct Connection {
    pub store: EtcdStore,
    pub root: Root,
    /// As told or found, for people.
    pub endpoints: String,
    /// The context in use, for people: `prod as anna`.
    pub context: Option<String>,
    /// Whether this person only looks, and so may not read all classes of keys.
    pub viewer: bool,
}

/// The cluster marker and when it was written: what every write is made conditional on.
#[derive(Clone, Debug)]
pub struct Marker {
    pub record: ClusterMarker,
    pub mod_revision: i64,
}

/// Where to connect to, and how that was found out.
struct Found {
    endpoints: String,
    /// The file that named it.
    file: Option<PathBuf>,
    /// Of a context, or a seed on this host: the certificates that go with it.
    context: Option<Context>,
    /// The context in use.
    place: Option<Place>,
}

impl Found {
    fn tls<'a>(&'a self, common: &'a Common) -> TlsFlags<'a> {
        match &self.context {
            Some(context) if common.ca.is_none() && common.cert.is_none() => TlsFlags::of_context(context),
            Some(_) | None => TlsFlags::of(common),
        }
    }
}

/// As told, else the context in use, else what is on this host.
fn find(common: &Common) -> Result<Found, Failure> {
    match contexts::chosen(common)? {
        Chosen::Told | Chosen::Here => Ok(find_here(common)),
        Chosen::Context(place) => {
            let context = place.context()?;
            Ok(Found {
                endpoints: context.endpoints.join(","),
                file: Some(place.dir.clone()),
                context: Some(context),
                place: Some(place),
            })
        }
    }
}

/// As told, else the running `reeve up`, else the seed on this host, else the usual port.
fn find_here(common: &Common) -> Found {
    let plain = |endpoints: String, file| Found {
        endpoints,
        file,
        context: None,
        place: None,
    };
    if let Some(told) = common.etcd.as_ref().filter(|_| contexts::not_here(common)) {
        return plain(told.clone(), None);
    }
    let dir = common.data_dir.clone().unwrap_or_else(default_data_dir);
    if let Some(url) = endpoint_of(&dir) {
        return plain(url, Some(dir.join(ENDPOINT_FILE)));
    }
    let seed = match &common.data_dir {
        // Where `reeve install` was told to keep everything, the seed's is one of the directories in it.
        Some(dir) if !dir.join(membership::keep::CONTEXT).exists() => dir.join("server"),
        Some(dir) => dir.clone(),
        None => SERVER_DIR.into(),
    };
    match Context::in_dir(&seed) {
        Some(context) => Found {
            endpoints: context.endpoints.join(","),
            file: Some(seed.join(membership::keep::CONTEXT)),
            context: Some(context),
            place: None,
        },
        None => plain(DEFAULT_ENDPOINT.to_owned(), None),
    }
}

/// Flags that name TLS files, by the flag of the CA.
pub struct TlsFlags<'a> {
    /// `--` and what begins the flags: empty, or `to-`.
    pub begins: &'static str,
    pub ca: Option<&'a PathBuf>,
    pub cert: Option<&'a PathBuf>,
    pub key: Option<&'a PathBuf>,
}

impl<'a> TlsFlags<'a> {
    pub fn of(common: &'a Common) -> Self {
        Self {
            begins: "",
            ca: common.ca.as_ref(),
            cert: common.cert.as_ref(),
            key: common.key.as_ref(),
        }
    }

    /// Of a host that belongs to a cluster of seeds.
    fn of_context(context: &'a Context) -> Self {
        Self {
            begins: "",
            ca: Some(&context.ca),
            cert: Some(&context.cert),
            key: Some(&context.key),
        }
    }

    /// The flag that names the store.
    fn store(&self) -> &'static str {
        if self.begins.is_empty() { "--etcd" } else { "--to" }
    }

    /// TLS as the flags say, for these endpoints. Wrong files and wrong schemes are told by the flag, before anything is
    /// connected to.
    fn files(&self, endpoints: &str) -> Result<Option<TlsFiles>, Failure> {
        let Self { begins, ca, cert, key } = self;
        let store = self.store();
        let mut secured = false;
        for endpoint in endpoints.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            match endpoint.split_once("://") {
                Some(("https", _)) => secured = true,
                Some(("http", _)) | None => {}
                Some((scheme, _)) => {
                    return Err(
                        Failure::usage(format!("{store} {endpoint}: `{scheme}` is no scheme of etcd's"))
                            .help("write http://HOST:2379, or https://HOST:2379 with --ca"),
                    );
                }
            }
        }
        let identity = cert.zip(*key);
        let Some(ca) = ca else {
            if identity.is_some() {
                return Err(Failure::usage(format!("--{begins}cert needs --{begins}ca"))
                    .help("name the CA that signed the store's certificates"));
            }
            if secured {
                return Err(
                    Failure::usage(format!("{store} {endpoints}: https:// needs --{begins}ca"))
                        .help("name the CA that signed the store's certificates; use http:// where there is no TLS"),
                );
            }
            return Ok(None);
        };
        pem(&format!("--{begins}ca"), ca, "CERTIFICATE")?;
        if let Some((cert, key)) = identity {
            pem(&format!("--{begins}cert"), cert, "CERTIFICATE")?;
            pem(&format!("--{begins}key"), key, "PRIVATE KEY")?;
        }
        Ok(Some(TlsFiles {
            ca: (*ca).clone(),
            identity: identity.map(|(cert, key)| (cert.clone(), key.clone())),
        }))
    }
}

/// Whether a file can be read and holds what its flag says.
fn pem(flag: &str, path: &Path, what: &str) -> Result<(), Failure> {
    let place = path.display();
    let text =
        std::fs::read(path).map_err(|error| Failure::usage(format!("{flag}: cannot read {place}")).because(&error))?;
    let text = String::from_utf8_lossy(&text);
    let holds = text
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.contains(what));
    if holds {
        return Ok(());
    }
    let what = what.to_ascii_lowercase();
    Err(Failure::usage(format!("{flag}: {place} holds no {what} in PEM")).help(format!(
        "it begins with `-----BEGIN`; is it another file, or DER? `openssl` turns DER into PEM ({flag} takes PEM only)"
    )))
}

/// Prepares TLS once per process.
fn install_crypto() {
    // Fails only when it was installed before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Connects to a list of endpoints.
pub async fn open(endpoints: &str, tls: TlsFlags<'_>) -> Result<EtcdStore, Failure> {
    let connected = EtcdStore::connect(options(endpoints, &tls)?).await;
    connected.map_err(|error| hung_up(Failure::from(error), endpoints, &tls))
}

/// What a failure says when the server did not like our certificate, or that we have none: an alert of TLS if it arrives
/// before the connection ends, and else only that it ended.
const REFUSED: [&str; 8] = [
    "connection closed",
    "broken pipe",
    "reset by peer",
    "alert: BadCertificate",
    "alert: CertificateRequired",
    "alert: CertificateExpired",
    "alert: CertificateUnknown",
    "alert: UnknownCA",
];

/// A server that takes a connection and closes it says little of why: TLS is the likeliest reason.
fn hung_up(failure: Failure, endpoints: &str, tls: &TlsFlags<'_>) -> Failure {
    if let (Some(ca), true) = (tls.ca, failure.is_caused_by(&["BadSignature", "UnknownIssuer"])) {
        return failure.help(format!(
            "{} (--{}ca) did not sign the store's certificate: name the CA that did",
            ca.display(),
            tls.begins
        ));
    }
    if !failure.is_caused_by(&REFUSED) {
        return failure;
    }
    let begins = tls.begins;
    if !endpoints.contains("https://") {
        return failure.help(format!("the store may speak TLS: write https://, with --{begins}ca"));
    }
    match tls.cert {
        None => failure.help(format!(
            "the store may ask for a client certificate: name it with --{begins}cert and --{begins}key"
        )),
        Some(cert) => failure.help(format!(
            "the store may not trust {}: see that the authority it trusts signed it, and its dates",
            cert.display()
        )),
    }
}

fn options(endpoints: &str, tls: &TlsFlags<'_>) -> Result<EtcdOptions, Failure> {
    install_crypto();
    let mut options = EtcdOptions::new(endpoints);
    if options.endpoints.is_empty() {
        let store = tls.store();
        return Err(
            Failure::usage(format!("{store} names no endpoint")).help("write client URLs with commas between them")
        );
    }
    options.tls = tls.files(endpoints)?;
    Ok(options)
}

/// The store as the flags say, whether it answers or not: for controllers and agents, which are nobody's person.
pub async fn prepare(common: &Common) -> Result<EtcdStore, Failure> {
    let found = find_here(common);
    Ok(EtcdStore::prepare(options(&found.endpoints, &found.tls(common))?).await?)
}

/// The store of a host that belongs to a cluster of seeds, whether it answers or not.
pub async fn prepare_in(context: &Context) -> Result<EtcdStore, Failure> {
    let endpoints = context.endpoints.join(",");
    Ok(EtcdStore::prepare(options(&endpoints, &TlsFlags::of_context(context))?).await?)
}

/// Where the store is and how it is reached, without asking it anything; and whether somebody said so, or it is only the
/// usual place.
pub fn reach(common: &Common) -> Result<(Vec<String>, Option<TlsFiles>, bool), Failure> {
    let found = find(common)?;
    let told = common.etcd.is_some() || found.file.is_some();
    let options = options(&found.endpoints, &found.tls(common))?;
    Ok((options.endpoints, options.tls, told))
}

/// Connects as the flags say.
pub async fn connect(common: &Common) -> Result<Connection, Failure> {
    let found = find(common)?;
    if let Some(place) = &found.place {
        place.keep_fresh(&common.prefix).await?;
    }
    let options = options(&found.endpoints, &found.tls(common))?;
    let store = EtcdStore::connect(options).await.map_err(|error| {
        let nobody = error.kind == StoreErrorKind::Unreachable;
        if let Some(place) = &found.place {
            let failure = Failure::from(error);
            let refused = failure.is_caused_by(&REFUSED);
            return place.unreachable(failure, refused);
        }
        let failure = hung_up(Failure::from(error), &found.endpoints, &found.tls(common));
        if !nobody || common.etcd.is_some() {
            return failure;
        }
        match (&found.file, &found.context) {
            (Some(file), Some(_)) => failure.help(format!(
                "{} names these endpoints: does `reeve server` run on this host and on most of the others?",
                file.display()
            )),
            (Some(file), None) => failure.help(format!(
                "{} names this endpoint, but `reeve up` does not run there: start it again, or name another store with --etcd",
                file.display()
            )),
            (None, _) => failure.help("start a cluster here with `reeve up`, or name a store with --etcd (REEVE_ETCD)"),
        }
    })?;
    if let Some(place) = &found.place {
        place.hear(&store, &common.prefix).await;
    }
    let endpoints = found.endpoints;
    Ok(Connection {
        store,
        root: common.prefix.clone(),
        endpoints,
        context: found.place.as_ref().map(Place::title),
        viewer: found.place.as_ref().is_some_and(Place::only_looks),
    })
}

impl Connection {
    pub fn key(&self, key: &Key) -> Vec<u8> {
        self.root.key(key).into_bytes()
    }

    /// All keys of one class, such as `desired`.
    pub async fn class(&self, class: &str) -> Result<Listing, Failure> {
        let prefix = Prefix::new(self.root.prefix(class))?;
        Ok(self.store.list(&prefix).await?)
    }

    pub async fn get(&self, key: &Key) -> Result<Option<KeyValue>, Failure> {
        Ok(self.store.get(&self.key(key)).await?.value)
    }

    /// The marker, whatever it says.
    pub async fn marker_if_any(&self) -> Result<Option<Marker>, Failure> {
        let Some(kv) = self.get(&Key::Cluster).await? else {
            return Ok(None);
        };
        let record = ClusterMarker::decode(&kv.value).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("cannot read the cluster marker `{}`", self.root.key(&Key::Cluster)),
            )
            .because(&error)
            .help(
                "a later release of reeve, or something that is not reeve, wrote it: `reeve version` on a host of the cluster says \
                 which release to install here",
            )
        })?;
        Ok(Some(Marker {
            record,
            mod_revision: kv.mod_revision,
        }))
    }

    /// The marker of a cluster that is here.
    pub async fn marker(&self) -> Result<Marker, Failure> {
        let marker = self.marker_if_any().await?.ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                format!("the store at {} holds no cluster under `{}`", self.endpoints, self.root),
            )
            .help("make it one with `reeve init`, or name another store with --etcd or another prefix with --prefix")
        })?;
        match &marker.record.moved {
            None => {
                crate::audit::begin(self);
                Ok(marker)
            }
            Some(moved) => {
                let to = moved.to.join(",");
                Err(
                    Failure::new(Exit::Failed, format!("cluster {} has moved to {to}", marker.record.id))
                        .help(format!("use --etcd {to}")),
                )
            }
        }
    }
}
