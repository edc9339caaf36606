//! The pure check: a policy, the final request as it goes to the engine, and where its host paths lead; every denial comes
//! out, each with the manifest's option, what it asks, and the policy's line that would allow it. It reads the request and
//! not the manifest: whatever way an option came into it, an option that this file does not know is denied.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Guarded, HostNamespace, Policy, Resolved};
use crate::engine::clean;

/// What is asked: a request to create, and what of the node's it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What goes to the engine's `/containers/create`.
    pub body: &'a Value,
    /// The network of its own namespace, or the cluster's.
    pub network: &'a str,
    /// Its own address in the cluster's network, where it is on that one.
    pub address: Option<Ipv4Addr>,
    /// How the names of its own namespace's volumes begin.
    pub volumes: &'a str,
    /// Files of the agent's own that it mounts for this very container, read-only.
    pub files: &'a [String],
}

/// Which rule of the policy denies. The word is the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    Privileged,
    HostPath,
    HostNamespace,
    OtherNamespace,
    Image,
    Capability,
    Device,
    SecurityOption,
    Sysctl,
    Port,
    LoggingDriver,
    Ulimit,
    Volume,
    SystemPath,
    UnknownOption,
}

impl Rule {
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::HostPath => "host_path",
            Self::HostNamespace => "host_namespace",
            Self::OtherNamespace => "other_namespace",
            Self::Image => "image",
            Self::Capability => "capability",
            Self::Device => "device",
            Self::SecurityOption => "security_option",
            Self::Sysctl => "sysctl",
            Self::Port => "port",
            Self::LoggingDriver => "logging_driver",
            Self::Ulimit => "ulimit",
            Self::Volume => "volume",
            Self::SystemPath => "system_path",
            Self::UnknownOption => "unknown_option",
        }
    }
}

/// One thing that is asked and not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    pub rule: Rule,
    /// The option as the manifest names it: `container.mounts[0]`.
    pub option: String,
    /// What it asks, and why that is not allowed.
    pub asked: String,
    /// The line of the policy that would allow it; None: no line does.
    pub line: Option<String>,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.option, self.asked)?;
        match &self.line {
            Some(line) => write!(f, " (to allow it: `{line}`)"),
            None => f.write_str(" (nothing allows it)"),
        }
    }
}

/// Capabilities that the engine gives every container.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Security options that only ever take away.
const HARMLESS_SECURITY: [&str; 2] = ["no-new-privileges", "no-new-privileges=true"];

/// Every denial of a request, in the order of its options; none when it may be made.
#[must_use]
pub fn check(policy: &Policy, guarded: &Guarded, asked: &Asked<'_>, resolved: &Resolved) -> Vec<Denial> {
    let mut judge = Judge {
        policy,
        guarded,
        asked,
        resolved,
        denials: Vec::new(),
    };
    match asked.body.as_object() {
        Some(body) => judge.body(body),
        None => judge.unknown("container", "the whole request", asked.body),
    }
    judge.denials
}

/// The host paths that a request names: what [`check`] must be told where they lead.
#[must_use]
pub fn host_paths(body: &Value) -> BTreeSet<String> {
    let host = &body["HostConfig"];
    let binds = host["Mounts"].as_array().into_iter().flatten();
    let binds = binds
        .filter(|mount| mount["Type"] == "bind")
        .filter_map(|mount| mount["Source"].as_str());
    let devices = host["Devices"].as_array().into_iter().flatten();
    let devices = devices.filter_map(|device| device["PathOnHost"].as_str());
    binds.chain(devices).map(str::to_owned).collect()
}

struct Judge<'a> {
    policy: &'a Policy,
    guarded: &'a Guarded,
    asked: &'a Asked<'a>,
    resolved: &'a Resolved,
    denials: Vec<Denial>,
}

impl Judge<'_> {
    fn deny(&mut self, rule: Rule, option: &str, asked: String, line: Option<String>) {
        self.denials.push(Denial {
            rule,
            option: option.to_owned(),
            asked: clean(&asked, 200),
            line: line.map(|line| clean(&line, 200)),
        });
    }

    fn unknown(&mut self, option: &str, key: &str, value: &Value) {
        let asked = format!("the engine's option `{key}` ({value}) is not known to the policy");
        self.deny(Rule::UnknownOption, option, asked, None);
    }

    fn body(&mut self, body: &Map<String, Value>) {
        for (key, value) in body {
            match key.as_str() {
                // What a process sees and says of itself inside its container.
                "Hostname" | "Labels" | "Tty" | "OpenStdin" | "StopTimeout" | "Healthcheck" | "Entrypoint" | "Cmd"
                | "Env" | "WorkingDir" | "User" | "StopSignal" | "ExposedPorts" => {}
                "Image" => self.image(value),
                "NetworkingConfig" => self.networks(value),
                "HostConfig" => match value.as_object() {
                    Some(host) => self.host(host),
                    None => self.unknown("container", key, value),
                },
                _ => self.unknown("container", key, value),
            }
        }
    }

    fn host(&mut self, host: &Map<String, Value>) {
        for (key, value) in host {
            match key.as_str() {
                // What takes away or divides, and cannot reach beyond the container.
                "RestartPolicy" | "AutoRemove" | "Init" | "ReadonlyRootfs" | "NanoCpus" | "CpuShares" | "CpuQuota"
                | "CpuPeriod" | "CpusetCpus" | "CpusetMems" | "Memory" | "MemorySwap" | "MemoryReservation"
                | "MemorySwappiness" | "KernelMemory" | "BlkioWeight" | "PidsLimit" | "GroupAdd" | "ShmSize"
                | "CapDrop" | "ExtraHosts" | "Dns" | "DnsSearch" | "DnsOptions" => {}
                "Privileged" => self.privileged(value),
                "Ulimits" => self.each("container.ulimits", key, value, Self::ulimit),
                "Sysctls" => self.sysctls(value),
                "Devices" => self.each("container.devices", key, value, Self::device),
                "CapAdd" => self.each("container.capabilities.add", key, value, Self::capability),
                "SecurityOpt" => self.each("container.securityOpt", key, value, Self::security),
                "LogConfig" => self.logging(value),
                "Mounts" => self.each("container.mounts", key, value, Self::mount),
                "NetworkMode" => self.network_mode(value),
                "PidMode" => self.namespace("container.pidMode", HostNamespace::Pid, &[], value),
                "IpcMode" => {
                    let own = ["none", "private", "shareable"];
                    self.namespace("container.ipcMode", HostNamespace::Ipc, &own, value);
                }
                "UsernsMode" => self.namespace("container.usernsMode", HostNamespace::User, &[], value),
                "PortBindings" => self.ports(value),
                _ => self.unknown("container", key, value),
            }
        }
    }

    /// Each of a list under its number; what is no list is no known option.
    fn each(&mut self, option: &str, key: &str, value: &Value, one: fn(&mut Self, &str, &Value)) {
        let Some(list) = value.as_array() else {
            return self.unknown(option, key, value);
        };
        for (at, item) in list.iter().enumerate() {
            one(self, &format!("{option}[{at}]"), item);
        }
    }

    fn privileged(&mut self, value: &Value) {
        if *value != Value::Bool(false) && !self.policy.privileged {
            let asked = "`true` is root on the host".to_owned();
            self.deny(
                Rule::Privileged,
                "container.privileged",
                asked,
                Some("privileged: true".to_owned()),
            );
        }
    }

    fn image(&mut self, value: &Value) {
        let Some(reference) = value.as_str() else {
            return self.unknown("container.image", "Image", value);
        };
        if !self
            .policy
            .images
            .iter()
            .any(|pattern| image_matches(pattern, reference))
        {
            let line = whole_image(reference).map(|(repository, _)| format!("images: [{}]", scalar(&repository)));
            let asked = format!("`{reference}` is of no allowed registry or repository");
            self.deny(Rule::Image, "container.image", asked, line);
        }
    }

    fn capability(&mut self, option: &str, value: &Value) {
        let Some(word) = value.as_str() else {
            return self.unknown(option, "CapAdd", value);
        };
        let word = word.to_ascii_uppercase();
        let name = word.strip_prefix("CAP_").unwrap_or(&word);
        // `ALL` in the policy is all of them, and `ALL` in a request is nothing less.
        let listed = |name: &str| self.policy.capabilities.contains(name);
        if DEFAULT_CAPABILITIES.contains(&name) || listed(name) || listed("ALL") {
            return;
        }
        let line = Some(format!("capabilities: [{}]", scalar(name)));
        let asked = format!("`{name}` is beyond the engine's default set");
        self.deny(Rule::Capability, option, asked, line);
    }

    fn security(&mut self, option: &str, value: &Value) {
        let Some(text) = value.as_str() else {
            return self.unknown(option, "SecurityOpt", value);
        };
        let normal = security_option(text);
        if HARMLESS_SECURITY.contains(&normal.as_str()) || self.policy.security_options.contains(&normal) {
            return;
        }
        let line = Some(format!("securityOptions: [{}]", scalar(&normal)));
        self.deny(Rule::SecurityOption, option, format!("`{text}` is not listed"), line);
    }

    fn sysctls(&mut self, value: &Value) {
        let Some(map) = value.as_object() else {
            return self.unknown("container.sysctls", "Sysctls", value);
        };
        for name in map.keys() {
            // The kernel takes slashes for dots.
            let plain = name.replace('/', ".");
            let listed = self.policy.sysctls.iter().any(|pattern| wildcard(pattern, &plain));
            if !listed {
                let line = Some(format!("sysctls: [{}]", scalar(&plain)));
                let asked = format!("`{name}` is not listed");
                self.deny(Rule::Sysctl, "container.sysctls", asked, line);
            }
        }
    }

    fn ulimit(&mut self, option: &str, value: &Value) {
        let Some(name) = value["Name"].as_str() else {
            return self.unknown(option, "Ulimits", value);
        };
        if !self.policy.ulimits.contains(name) {
            let line = Some(format!("ulimits: [{}]", scalar(name)));
            self.deny(
                Rule::Ulimit,
                &format!("container.ulimits.{name}"),
                "it is not listed".to_owned(),
                line,
            );
        }
    }

    fn logging(&mut self, value: &Value) {
        for key in value.as_object().into_iter().flat_map(Map::keys) {
            if key != "Type" && key != "Config" {
                self.unknown("container.logging", key, value);
            }
        }
        let Some(driver) = value["Type"].as_str() else {
            return self.unknown("container.logging", "LogConfig", value);
        };
        if !self.policy.logging_drivers.contains(driver) {
            let line = Some(format!("loggingDrivers: [{}]", scalar(driver)));
            let asked = format!("`{driver}` is not listed");
            self.deny(Rule::LoggingDriver, "container.logging.driver", asked, line);
        }
    }

    // ---- namespaces and networks ---------------------------------------------------------------------------------

    fn namespace(&mut self, option: &str, which: HostNamespace, own: &[&str], value: &Value) {
        match value.as_str() {
            Some("host") => self.host_namespace(option, which),
            Some(mode) if own.contains(&mode) => {}
            Some(mode) if mode.starts_with("container:") => {
                let asked = format!("`{mode}` is another container's namespace");
                self.deny(Rule::OtherNamespace, option, asked, None);
            }
            Some(_) | None => self.unknown(option, option, value),
        }
    }

    fn host_namespace(&mut self, option: &str, which: HostNamespace) {
        if !self.policy.host_namespaces.contains(&which) {
            let line = Some(format!("hostNamespaces: [{}]", which.word()));
            let asked = "`host` is the node's own namespace".to_owned();
            self.deny(Rule::HostNamespace, option, asked, line);
        }
    }

    fn network_mode(&mut self, value: &Value) {
        let own = ["none", self.asked.network];
        match value.as_str() {
            Some(mode) if own.contains(&mode) => {}
            Some("host") | None => self.namespace("container.networkMode", HostNamespace::Network, &own, value),
            Some(mode) => {
                let asked = format!("`{mode}` is not the network of its own namespace");
                self.deny(Rule::OtherNamespace, "container.networkMode", asked, None);
            }
        }
    }

    fn networks(&mut self, value: &Value) {
        let shape = value.as_object().filter(|map| map.len() == 1);
        let Some(ends) = shape
            .and_then(|map| map.get("EndpointsConfig"))
            .and_then(Value::as_object)
        else {
            return self.unknown("container.networkMode", "NetworkingConfig", value);
        };
        for (name, end) in ends {
            if name != self.asked.network {
                let asked = format!("`{name}` is not the network of its own namespace");
                self.deny(Rule::OtherNamespace, "container.networkMode", asked, None);
            }
            let ours = end.as_object().is_some_and(|end| {
                end.iter().all(|(key, value)| match key.as_str() {
                    "Aliases" => self.asked.address.is_none(),
                    // At the address that is its own, and at no other's.
                    "IPAMConfig" => {
                        let own = self.asked.address.map(|address| address.to_string());
                        let wanted = value["IPv4Address"].as_str();
                        let known = |map: &Map<String, Value>| {
                            map.keys()
                                .all(|key| matches!(key.as_str(), "IPv4Address" | "IPv6Address"))
                        };
                        own.is_some() && wanted == own.as_deref() && value.as_object().is_some_and(known)
                    }
                    _ => false,
                })
            });
            if !ours {
                self.unknown("container.networkMode", "EndpointsConfig", end);
            }
        }
    }

    fn ports(&mut self, value: &Value) {
        let Some(map) = value.as_object() else {
            return self.unknown("container.ports", "PortBindings", value);
        };
        let all = map
            .iter()
            .flat_map(|(port, bindings)| bindings.as_array().into_iter().flatten().map(move |one| (port, one)));
        for (port, binding) in all {
            let option = format!("container.ports ({port})");
            let number = binding["HostPort"].as_str().and_then(|text| text.parse::<u16>().ok());
            let Some(number) = number else {
                self.unknown(&option, "PortBindings", binding);
                continue;
            };
            if number < self.policy.lowest_port {
                let line = Some(format!("lowestPort: {number}"));
                let asked = format!("port {number} of the node is below {}", self.policy.lowest_port);
                self.deny(Rule::Port, &option, asked, line);
            }
            if let Some(allowed) = &self.policy.host_addresses {
                let text = binding["HostIp"].as_str().unwrap_or_default();
                let address = if text.is_empty() { "0.0.0.0" } else { text };
                let listed = address.parse::<IpAddr>().is_ok_and(|ip| allowed.contains(&ip));
                if !listed {
                    let line = Some(format!("hostAddresses: [\"{address}\"]"));
                    let asked = format!("address {address} of the node is not listed");
                    self.deny(Rule::Port, &option, asked, line);
                }
            }
        }
    }

    // ---- paths and devices ---------------------------------------------------------------------------------------

    fn mount(&mut self, option: &str, value: &Value) {
        let Some(mount) = value.as_object() else {
            return self.unknown(option, "Mounts", value);
        };
        let text = |key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = text("Type");
        for (key, inner) in mount {
            match (key.as_str(), kind) {
                ("Type" | "Target" | "ReadOnly", _) | ("Source", "bind" | "volume") => {}
                ("VolumeOptions", "volume") => self.only(option, inner, &["Labels"]),
                ("TmpfsOptions", "tmpfs") => self.only(option, inner, &["SizeBytes", "Mode"]),
                // A driver's options can make a bind of a volume; propagation can carry mounts back to the host.
                _ => self.unknown(option, key, inner),
            }
        }
        let target = Path::new(text("Target"));
        let covers = ["/proc", "/sys"].iter().any(|system| target.starts_with(system));
        let climbs = target.components().any(|part| part == std::path::Component::ParentDir);
        if (covers || climbs) && !self.policy.privileged {
            let asked = format!(
                "a mount at `{}` lays bare what the engine hides there",
                target.display()
            );
            let line = Some("privileged: true".to_owned());
            self.deny(Rule::SystemPath, option, asked, line);
        }
        match kind {
            "bind" => {
                let read_only = mount.get("ReadOnly") == Some(&Value::Bool(true));
                self.host_path(option, text("Source"), read_only);
            }
            "volume" => self.volume(option, text("Source")),
            "tmpfs" => {}
            _ => self.unknown(option, "Type", value),
        }
    }

    fn only(&mut self, option: &str, value: &Value, known: &[&str]) {
        match value.as_object() {
            Some(map) => {
                for (key, inner) in map.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
                    self.unknown(option, key, inner);
                }
            }
            None => self.unknown(option, "Mounts", value),
        }
    }

    /// A volume is its own namespace's, and has a name, not a path.
    fn volume(&mut self, option: &str, name: &str) {
        let plain = |name: &str| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        };
        let own = name.strip_prefix(self.asked.volumes);
        if !own.is_some_and(plain) {
            let asked = format!("`{name}` is no volume of its own namespace");
            self.deny(Rule::Volume, option, asked, None);
        }
    }

    fn host_path(&mut self, option: &str, source: &str, read_only: bool) {
        if read_only && self.asked.files.iter().any(|own| own == source) {
            return;
        }
        let Some((path, shown)) = self.leads(Rule::HostPath, option, source) else {
            return;
        };
        if let Some(own) = self.guarded.own(&path) {
            let asked = format!("host path {shown} is in `{}`, which is Reeve's own", own.display());
            return self.deny(Rule::HostPath, option, asked, None);
        }
        let opens = |line: &&super::HostPath| self.guarded.opens(&line.path, &path);
        let mut lines = self.policy.host_paths.iter().filter(opens).peekable();
        let writable = lines.peek().is_none();
        if lines.any(|line| !line.read_only || read_only) {
            return;
        }
        let asked = match self.guarded.why(&path) {
            _ if !writable => format!("host path {shown} may be mounted read-only only"),
            Some(place) if path == place => format!("host path {shown} is guarded"),
            Some(place) if path.starts_with(place) => {
                format!("host path {shown} is guarded (`{}`)", place.display())
            }
            Some(place) => format!("host path {shown} holds `{}`, which is guarded", place.display()),
            None => format!("host path {shown} is under no listed path"),
        };
        let mode = if read_only { ", readOnly: true" } else { "" };
        let line = format!("hostPaths: [{{path: {}{mode}}}]", scalar(&path.to_string_lossy()));
        self.deny(Rule::HostPath, option, asked, Some(line));
    }

    /// Where a path leads, and how that is said; None, and a denial, where it cannot be told.
    fn leads(&mut self, rule: Rule, option: &str, source: &str) -> Option<(PathBuf, String)> {
        let why = match self.resolved.get(source) {
            Some(Ok(path)) if path.as_path() == Path::new(source) => {
                return Some((path.clone(), format!("`{source}`")));
            }
            Some(Ok(path)) => {
                return Some((
                    path.clone(),
                    format!("`{source}`, which leads to `{}`,", path.display()),
                ));
            }
            Some(Err(why)) => why.clone(),
            None => "it was not looked up".to_owned(),
        };
        self.deny(rule, option, format!("host path `{source}`: {why}"), None);
        None
    }

    fn device(&mut self, option: &str, value: &Value) {
        let Some(device) = value.as_object() else {
            return self.unknown(option, "Devices", value);
        };
        for (key, inner) in device {
            if !matches!(key.as_str(), "PathOnHost" | "PathInContainer" | "CgroupPermissions") {
                self.unknown(option, key, inner);
            }
        }
        let text = |key: &str| device.get(key).and_then(Value::as_str).unwrap_or_default();
        let Some((path, shown)) = self.leads(Rule::Device, option, text("PathOnHost")) else {
            return;
        };
        let permissions = text("CgroupPermissions");
        let allowed =
            self.policy.devices.iter().any(|line| {
                path.starts_with(&line.path) && permissions.chars().all(|one| line.permissions.contains(one))
            });
        if !allowed || permissions.is_empty() {
            let line = format!(
                "devices: [{{path: {}, permissions: {}}}]",
                scalar(&path.to_string_lossy()),
                scalar(permissions)
            );
            let asked = format!("device {shown} with `{permissions}` is not listed");
            self.deny(Rule::Device, option, asked, Some(line));
        }
    }
}

/// Whether a pattern that may end in `*` covers a name.
fn wildcard(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

/// A text as a scalar of YAML.
fn scalar(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/');
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

/// A security option with `=` between key and value, however it was written.
pub(super) fn security_option(text: &str) -> String {
    let at = text.find(['=', ':']);
    match at {
        Some(at) => format!("{}={}", &text[..at], &text[at + 1..]),
        None => text.to_owned(),
    }
}

/// An image as the engine understands it: `registry/path`, and what follows it (`:tag`, `@digest`). None for a bare id, by
/// which any image of the node could be meant.
fn whole_image(reference: &str) -> Option<(String, &str)> {
    let (rest, digest) = match reference.find('@') {
        Some(at) => reference.split_at(at),
        None => (reference, ""),
    };
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[last..].find(':') {
        Some(at) => rest.split_at(last + at),
        None => (rest, ""),
    };
    let hex = |text: &str| text.len() >= 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if name == "sha256" || (hex(name) && tag.is_empty() && digest.is_empty()) {
        return None;
    }
    let registry = name
        .split_once('/')
        .filter(|(first, _)| first.contains(['.', ':']) || *first == "localhost");
    let whole = match registry {
        Some(_) => name.to_owned(),
        None if name.contains('/') => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    let whole = match whole.strip_prefix("index.docker.io/") {
        Some(path) if path.contains('/') => format!("docker.io/{path}"),
        Some(path) => format!("docker.io/library/{path}"),
        None => match whole.strip_prefix("docker.io/") {
            Some(path) if !path.contains('/') => format!("docker.io/library/{path}"),
            _ => whole,
        },
    };
    Some((whole, if digest.is_empty() { tag } else { digest }))
}

fn image_matches(pattern: &str, reference: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let Some((repository, rest)) = whole_image(reference) else {
        return false;
    };
    if pattern.ends_with('/') {
        return repository.starts_with(pattern);
    }
    pattern == repository || pattern == format!("{repository}{rest}")
}
