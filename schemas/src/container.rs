//! The container of a workload: every option a person may set. One struct field per option. Two functions destructure
//! [`ContainerSpec`] whole and so must decide for each: what does changing it cost (planner), how does Docker say it (agent).
//! Absent means default, and defaults are not written out, so learning a new word changes no stored spec.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config_file::FileEdition;
use crate::image::ImageRef;
use crate::meta::is_default;
use crate::names::{Label, Namespace, ResourceName};
use crate::secret::SecretEdition;
use crate::units::{ByteSize, Cpu, Span, Text};

/// What one container is and may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerSpec {
    /// The image to run: `[host[:port]/]path[:tag][@sha256:digest]`.
    pub image: ImageRef,
    /// When to ask the registry; `IfNotPresent` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pull_policy: PullPolicy,
    /// Replaces the image's entrypoint. Given as a list; no shell reads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 1_024))]
    pub command: Vec<Text>,
    /// Arguments to the command; replaces the image's. Given as a list; no shell reads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 1_024))]
    pub args: Vec<Text>,
    /// Environment variables. Values are strings, whole numbers or booleans; quote decimals. Where it names none of them,
    /// a container also gets `CONTAINER_NAME`, `SERVICE_NAME`, `NAMESPACE`, `SLOT`, `NODE_NAME`, `NODE_ADDRESS`, `CLUSTER_ID`,
    /// and for each published port the node's as `PORT_<name>`, or `PORT_<containerPort>` (`PORT_53_UDP`) where it has no
    /// name; with published ports also `PUBLIC_HOST_IP`, where the node was given a public address; and a variable for each
    /// service in `dependsOn`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 1_024))]
    pub env: BTreeMap<String, Text>,
    /// The directory the command starts in; the image's when absent. An absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^/"))]
    pub working_dir: Option<String>,
    /// User or uid, with `:group` where wanted: `1000:1000`. The image's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// Additional groups, by name or gid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub group_add: Vec<Text>,
    /// The container's host name; `<workload>-<slot>` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Label>,
    /// Ports the container serves, and where the node publishes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256))]
    pub ports: Vec<PortSpec>,
    /// Services that it reaches at its own `localhost`: for programs that cannot find others by name. Each port leads to a ready
    /// instance, wherever it runs; where one does not answer, to the next. Needs a cluster that has a network of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub connect: Vec<Connect>,
    /// Host paths, named volumes and tmpfs in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256))]
    pub mounts: Vec<Mount>,
    /// ConfigFiles of the namespace in the container, read-only. A new edition of one replaces the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub files: Vec<FileMount>,
    /// Secrets of the namespace in the container: as files in memory, or as variables. A new edition of one replaces the
    /// container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub secrets: Vec<SecretUse>,
    /// CPU and memory: what placement reserves (`requests`) and what the engine enforces (`limits`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// Relative weight of CPU time when cores are short: 2 to 262,144; the engine's 1,024 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 262_144))]
    pub cpu_shares: Option<u32>,
    /// Cores it may run on: `0-3` or `0,2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = r"^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$"))]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes it may use: `0-1` or `0,1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = r"^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$"))]
    pub cpuset_mems: Option<String>,
    /// Memory and swap together, at least the memory limit; `unlimited` for as much swap as the host has. Needs a memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<SwapLimit>,
    /// How eagerly pages are swapped out: 0 to 100; the host's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub memory_swappiness: Option<u8>,
    /// Kernel memory limit; engines from 23.0 on no longer have it, which is then said in a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_memory: Option<ByteSize>,
    /// Relative weight of block IO: 10 to 1,000; the host's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 1_000))]
    pub blkio_weight: Option<u16>,
    /// The most processes and threads at once; no limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_194_304))]
    pub pids_limit: Option<u32>,
    /// Resource limits by name: `nofile: {soft: 1024, hard: 4096}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<UlimitName, Ulimit>,
    /// Size of `/dev/shm`; the engine's 64Mi when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// Kernel parameters of the container's own namespaces: `net.core.somaxconn: 1024`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub sysctls: BTreeMap<String, Text>,
    /// Host devices in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub devices: Vec<Device>,
    /// Linux capabilities beyond, or short of, the engine's default set.
    #[serde(default, skip_serializing_if = "is_default")]
    pub capabilities: Capabilities,
    /// All devices and all capabilities: root on the host. False when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// Whether the container's own file system is read-only. False when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only_root_filesystem: bool,
    /// Security options as the engine takes them: `no-new-privileges`, `apparmor=...`, `seccomp=unconfined`, `label=...`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub security_opt: Vec<String>,
    /// Whether a small init is the first process, which reaps zombies and forwards signals. False when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub init: bool,
    /// Names in `/etc/hosts` and their addresses; `host-gateway` is the host's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub extra_hosts: BTreeMap<String, String>,
    /// Name servers, search domains and resolver options; the engine's when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dns: Dns,
    /// The logging driver and its options; `json-file` in 3 files of 10 MB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// Labels on the container itself. Keys beginning with `reeve.` are Reeve's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub labels: BTreeMap<String, Text>,
    /// The signal that asks it to stop: `SIGTERM`, `TERM` or a number; the image's, or SIGTERM, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<Text>,
    /// Time between the stop signal and SIGKILL; `10s` when absent, at most `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_period: Option<Span>,
    /// Whether it has a terminal. False when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tty: bool,
    /// Whether its standard input stays open. False when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// How the agent finds out whether it is well. Without one, it is ready when it has been up for `minReady`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Which network it joins; the namespace's bridge network when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub network_mode: NetworkMode,
    /// Whose processes it sees; its own when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pid_mode: PidMode,
    /// Whose shared memory it sees; the engine's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipc_mode: Option<IpcMode>,
    /// The user namespace; the engine's when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub userns_mode: UsernsMode,
}

/// When the agent asks the registry for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Whenever a change replaces the containers: they all run what the tag stands for then. A newer image under the same tag
    /// replaces nothing by itself.
    Always,
    /// When the node does not have it. What a tag stands for is settled once, for as long as the reference stays the same.
    #[default]
    IfNotPresent,
    /// Never; the node must have it.
    Never,
}

/// A port the container serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSpec {
    /// A name for it, unique in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Label>,
    /// The port inside the container: 1 to 65535.
    #[schemars(range(min = 1, max = 65_535))]
    pub container_port: u16,
    /// The node's port: 1 to 65535, or `auto` for one chosen at placing (30000 to 32767) that the instance then keeps. Not published when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<HostPort>,
    /// The node's address to publish on; all when absent.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<std::net::IpAddr>,
    /// `TCP` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// On which nodes the host port is open; `node` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub publish: Publish,
    /// Whether who connects is told ahead of each connection, as PROXY protocol version 2 has it: for TCP with `publish:
    /// everywhere`, and programs that read it. False when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub proxy_protocol: bool,
}

/// On which nodes a host port is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Publish {
    /// On those where an instance runs, each for its own.
    #[default]
    Node,
    /// On every node of the cluster's network, for all ready instances: those of the node first, then others. Needs a `hostPort`
    /// that is a number, and a cluster that has a network of its own.
    Everywhere,
}

/// A service at the container's own `localhost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connect {
    /// The port at 127.0.0.1 in the container, and at ::1 where it has IPv6: 1 to 65535.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// The service it leads to.
    pub service: ResourceName,
    /// That service's namespace; the container's own when absent. What network policies refuse is refused here too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The port of that service's containers, by its number or its name; `port` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_port: Option<ServicePort>,
    /// `TCP` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
}

/// A port of a service's containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServicePort {
    Number(u16),
    Name(Label),
}

impl Serialize for ServicePort {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(port) => serializer.serialize_u16(*port),
            Self::Name(name) => name.serialize(serializer),
        }
    }
}
impl<'de> Deserialize<'de> for ServicePort {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map(Self::Name).map_err(D::Error::custom),
            serde_json::Value::Number(number) => number
                .as_u64()
                .and_then(|n| u16::try_from(n).ok())
                .filter(|port| *port > 0)
                .map(Self::Number)
                .ok_or_else(|| D::Error::custom("a port is a whole number from 1 to 65535")),
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Array(_)
            | serde_json::Value::Object(_) => Err(D::Error::custom("a port from 1 to 65535, or a port's name")),
        }
    }
}
impl JsonSchema for ServicePort {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ServicePort".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["integer", "string"],
            "minimum": 1,
            "maximum": 65_535,
            "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
        })
    }
}

/// A port on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPort {
    Fixed(u16),
    Auto,
}

impl Serialize for HostPort {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(port) => serializer.serialize_u16(*port),
            Self::Auto => serializer.serialize_str("auto"),
        }
    }
}
impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) if text == "auto" => Ok(Self::Auto),
            serde_json::Value::Number(number) => number
                .as_u64()
                .and_then(|n| u16::try_from(n).ok())
                .filter(|port| *port > 0)
                .map(Self::Fixed)
                .ok_or_else(|| D::Error::custom("a port is a whole number from 1 to 65535")),
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::String(_)
            | serde_json::Value::Array(_)
            | serde_json::Value::Object(_) => Err(D::Error::custom("a port from 1 to 65535, or `auto`")),
        }
    }
}
impl JsonSchema for HostPort {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HostPort".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["integer", "string"], "minimum": 1, "maximum": 65_535, "pattern": "^auto$" })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
}

impl ContainerSpec {
    /// Whether it may write to its node's disk what another node would not have.
    #[must_use]
    pub fn keeps_data(&self) -> bool {
        let kept = |mount: &Mount| matches!(mount.kind, MountType::Bind | MountType::Volume) && !mount.read_only;
        self.mounts.iter().any(kept)
    }
}

/// Something mounted into the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// `bind` (a host path), `volume` (a named volume of the node) or `tmpfs` (memory).
    #[serde(rename = "type")]
    pub kind: MountType,
    /// The host path of a bind, or the volume's name; a tmpfs has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Where it appears in the container: an absolute path.
    #[schemars(extend("pattern" = "^/.*[^/].*$"))]
    pub target: String,
    /// False when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// The most a tmpfs may hold; half the host's memory when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Permission bits of a tmpfs in octal text: `"1777"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[0-7]{3,4}$"))]
    pub mode: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MountType {
    Bind,
    Volume,
    Tmpfs,
}

/// A ConfigFile in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileMount {
    /// The ConfigFile's name; it is of the same namespace.
    pub file: ResourceName,
    /// Where it appears in the container: an absolute path without `.`, `..` and doubled slashes.
    #[schemars(extend("pattern" = "^/.*[^/]$", "maxLength" = 4_096))]
    pub path: String,
    /// Its user and group by number, `101:101` or `101`; `0:0` when absent. Without a group, that is the user's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[0-9]{1,10}(:[0-9]{1,10})?$"))]
    pub owner: Option<String>,
    /// Its permission bits in octal text; `"0444"` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^0?[0-7]{3}$"))]
    pub mode: Option<String>,
    /// Which edition it is. Reeve's own word, in accepted specs alone: no document has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub edition: Option<FileEdition>,
}

/// A Secret in the container: a file, read-only, in memory and on no disk; or a variable, which everybody sees who may look at
/// the container with the engine's own tools, and which the engine keeps on its disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretUse {
    /// The Secret's name; it is of the same namespace.
    pub secret: ResourceName,
    /// Where it appears in the container: an absolute path without `.`, `..` and doubled slashes; `/run/secrets/<name>`
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^/.*[^/]$", "maxLength" = 4_096))]
    pub path: Option<String>,
    /// The variable that holds it, instead of a file: `docker inspect` then shows the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 256))]
    pub env: Option<String>,
    /// The file's user and group by number, `101:101` or `101`; `0:0` when absent. Without a group, that is the user's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[0-9]{1,10}(:[0-9]{1,10})?$"))]
    pub owner: Option<String>,
    /// The file's permission bits in octal text; `"0400"` when absent: for its owner alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^0?[0-7]{3}$"))]
    pub mode: Option<String>,
    /// Which edition it is. Reeve's own word, in accepted specs alone: no document has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub edition: Option<SecretEdition>,
}

/// The directory of secrets whose place in the container is not told.
const SECRETS_DIR: &str = "/run/secrets";

impl SecretUse {
    /// Where the container sees it as a file; None where it is a variable.
    #[must_use]
    pub fn path(&self) -> Option<String> {
        match (&self.path, &self.env) {
            (_, Some(_)) => None,
            (Some(path), None) => Some(path.clone()),
            (None, None) => Some(format!("{SECRETS_DIR}/{}", self.secret)),
        }
    }
    /// User and group; None when a number is none that a file can have.
    #[must_use]
    pub fn owner(&self) -> Option<(u32, u32)> {
        owner(self.owner.as_deref())
    }
    /// Permission bits; what cannot be read gives the least.
    #[must_use]
    pub fn mode(&self) -> u32 {
        mode(self.mode.as_deref(), 0o400)
    }
}

impl FileMount {
    /// User and group; None when a number is none that a file can have.
    #[must_use]
    pub fn owner(&self) -> Option<(u32, u32)> {
        owner(self.owner.as_deref())
    }
    /// Permission bits; what cannot be read gives the least.
    #[must_use]
    pub fn mode(&self) -> u32 {
        mode(self.mode.as_deref(), 0o444)
    }
}

fn owner(text: Option<&str>) -> Option<(u32, u32)> {
    // The largest number means "leave it" to the kernel.
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number != u32::MAX);
    match text {
        None => Some((0, 0)),
        Some(text) => match text.split_once(':') {
            Some((user, group)) => Some((number(user)?, number(group)?)),
            None => number(text).map(|user| (user, user)),
        },
    }
}

fn mode(text: Option<&str>, otherwise: u32) -> u32 {
    match text {
        None => otherwise,
        Some(text) => u32::from_str_radix(text, 8).map_or(0o400, |mode| mode & 0o777),
    }
}

/// CPU and memory, asked for and allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// What placement keeps free for it on its node; the limits where absent, or nothing.
    #[serde(default, skip_serializing_if = "is_default")]
    pub requests: ResourceList,
    /// What the engine lets it use at most; no limit where absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: ResourceList,
}

impl Resources {
    /// What placement reserves: the request, or the limit where there is no request.
    #[must_use]
    pub fn reserved(&self) -> (Cpu, ByteSize) {
        (
            self.requests.cpu.or(self.limits.cpu).unwrap_or_default(),
            self.requests.memory.or(self.limits.memory).unwrap_or_default(),
        )
    }
}

/// Amounts of CPU and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceList {
    /// Cores: `500m`, `1.5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Bytes: `512Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
}

/// Memory and swap together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapLimit {
    Unlimited,
    Bytes(ByteSize),
}

impl Serialize for SwapLimit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unlimited => serializer.serialize_str("unlimited"),
            Self::Bytes(size) => size.serialize(serializer),
        }
    }
}
impl<'de> Deserialize<'de> for SwapLimit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let value = serde_json::Value::deserialize(deserializer)?;
        if value == "unlimited" {
            return Ok(Self::Unlimited);
        }
        serde_json::from_value(value).map(Self::Bytes).map_err(D::Error::custom)
    }
}
impl JsonSchema for SwapLimit {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SwapLimit".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"],
            "pattern": r"^(unlimited|[0-9]{1,18}(\.[0-9]{1,18})?(k|M|G|T|Ki|Mi|Gi|Ti)?)$",
            "minimum": 0,
            "maximum": 1_125_899_906_842_624u64
        })
    }
}

/// The limits the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UlimitName {
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// A soft and a hard limit; -1 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ulimit {
    /// What a process has at first.
    #[schemars(range(min = -1))]
    pub soft: i64,
    /// Up to where it may raise that itself.
    #[schemars(range(min = -1))]
    pub hard: i64,
}

/// A host device in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// The device on the host: `/dev/fuse`.
    #[schemars(extend("pattern" = "^/"))]
    pub host_path: String,
    /// The device in the container; the same path when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^/"))]
    pub container_path: Option<String>,
    /// `r`, `w` and `m` (mknod) in any combination; `rwm` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[rwm]{1,3}$"))]
    pub permissions: Option<String>,
}

/// Capabilities to add and drop, without `CAP_`: `NET_ADMIN`, or `ALL`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capabilities {
    /// Capabilities beyond the default set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = "^(CAP_)?[A-Z][A-Z_]{1,30}$")))]
    pub add: Vec<String>,
    /// Capabilities of the default set to go without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = "^(CAP_)?[A-Z][A-Z_]{1,30}$")))]
    pub drop: Vec<String>,
}

/// How the container resolves names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 16))]
    pub nameservers: Vec<std::net::IpAddr>,
    /// Domains in which short names are looked up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub searches: Vec<String>,
    /// Resolver options: `ndots:2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub options: Vec<String>,
}

/// A logging driver of the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Logging {
    /// `json-file`, `local`, `journald`, `syslog`, `fluentd`, `none`, or another the engine has.
    #[schemars(extend("pattern" = "^[a-zA-Z0-9][a-zA-Z0-9_./:-]{0,127}$"))]
    pub driver: String,
    /// Options of that driver: `max-size: 10m`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub options: BTreeMap<String, Text>,
}

/// A check the agent runs itself. Exactly one of `http`, `tcp` and `exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// A request whose answer is 200 to 399, or `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A connection that opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// A command in the container that ends with 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecCheck>,
    /// Time between checks; `10s` when absent, at least `100ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// Time a check may take; `3s` when absent, at most `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Failures in a row that make it unhealthy, which restarts it; 3 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub retries: Option<u32>,
    /// Time after the start in which failures do not count; none when absent. It is ready at its first success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period: Option<Span>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// The container's port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^/[!-~]*$"))]
    pub path: Option<String>,
    /// `GET` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub method: HttpMethod,
    /// `HTTP` when absent. With `HTTPS` the certificate is not verified.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scheme: HttpScheme,
    /// Headers to send.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub headers: BTreeMap<String, String>,
    /// The one status that is a success; 200 to 399 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 599))]
    pub status: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Options,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpScheme {
    #[default]
    Http,
    Https,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpCheck {
    /// The container's port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecCheck {
    /// The command as a list; no shell reads it.
    #[schemars(extend("minItems" = 1, "maxItems" = 256))]
    pub command: Vec<Text>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NetworkMode {
    /// The namespace's bridge network on the node, where workload and instance names resolve.
    #[default]
    Bridge,
    /// The node's own network.
    Host,
    /// Loopback only.
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PidMode {
    #[default]
    Private,
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum IpcMode {
    None,
    Private,
    Shareable,
    Host,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UsernsMode {
    /// The engine's own setting.
    #[default]
    Engine,
    /// The host's user namespace, whatever the engine remaps.
    Host,
}

impl PortSpec {
    /// The host port that is open on every node; None where it is not published so.
    #[must_use]
    pub const fn everywhere(&self) -> Option<u16> {
        match (self.publish, self.host_port) {
            (Publish::Everywhere, Some(HostPort::Fixed(port))) => Some(port),
            (Publish::Everywhere, Some(HostPort::Auto) | None) | (Publish::Node, _) => None,
        }
    }
    /// Whether the engine publishes it for an instance, on the instance's node alone.
    #[must_use]
    pub const fn is_on_node(&self) -> bool {
        self.host_port.is_some() && self.everywhere().is_none()
    }
}

impl Connect {
    /// The port of that service's containers.
    #[must_use]
    pub fn target(&self) -> ServicePort {
        self.service_port.clone().unwrap_or(ServicePort::Number(self.port))
    }
}

impl ContainerSpec {
    /// Time between the stop signal and SIGKILL.
    #[must_use]
    pub fn grace(&self) -> Span {
        self.stop_grace_period.unwrap_or(Span::from_secs(10))
    }
}
