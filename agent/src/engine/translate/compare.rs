//! What an engine made of a request, held against the request: the fields it has otherwise, each by its name in a
//! manifest. Called by the agent after a create and by tests; pure.

use schemas::records::InstanceCondition;
use serde_json::{Value, json};

use super::{clean, condition, empty};

/// An option that the engine has otherwise than it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Discrepancy {
    /// The option's path in a manifest: `container.blkioWeight`.
    pub field: &'static str,
    /// What was asked for, as JSON in the engine's words, shortened.
    pub desired: String,
    /// What the engine has.
    pub observed: String,
}

impl Discrepancy {
    /// As the condition a report shows.
    #[must_use]
    pub fn condition(&self) -> InstanceCondition {
        condition(
            "OptionDiscarded",
            &format!(
                "{}: asked for {}, the engine has {}",
                self.field, self.desired, self.observed
            ),
        )
    }
}

/// How a field of the request is compared with the inspection's.
#[derive(Clone, Copy)]
enum Compare {
    /// The same value, where absent, null, false, 0 and empty are one.
    Same,
    /// The same, but 0 differs from absent.
    Exact,
    /// A list whose order means nothing.
    Set,
    /// Every entry asked for is there; the image or the engine may add others.
    Within,
    /// As `Set`, of capabilities: newer engines write `CAP_` before them.
    Capabilities,
    /// As `Set`, of mounts: engines add empty options.
    Mounts,
    /// Aliases in each network; newer engines tell them as `DNSNames` too.
    Networks,
    /// Nothing to compare: what it does is not read back.
    Skip,
}

/// Where each key of a request is found again, what its option is called, how it is compared.
const FIELDS: &[(&str, &str, &str, Compare)] = &[
    ("Config", "Image", "container.image", Compare::Same),
    ("Config", "Hostname", "container.hostname", Compare::Same),
    ("Config", "Labels", "container.labels", Compare::Within),
    ("Config", "Tty", "container.tty", Compare::Same),
    ("Config", "OpenStdin", "container.stdin", Compare::Same),
    ("Config", "StopTimeout", "container.stopGracePeriod", Compare::Exact),
    ("Config", "StopSignal", "container.stopSignal", Compare::Same),
    ("Config", "Healthcheck", "container.healthCheck", Compare::Same),
    ("Config", "Entrypoint", "container.command", Compare::Same),
    ("Config", "Cmd", "container.args", Compare::Same),
    ("Config", "Env", "container.env", Compare::Within),
    ("Config", "WorkingDir", "container.workingDir", Compare::Same),
    ("Config", "User", "container.user", Compare::Same),
    ("Config", "ExposedPorts", "container.ports", Compare::Within),
    ("Config", "NetworkingConfig", "container.networkMode", Compare::Networks),
    ("HostConfig", "RestartPolicy", "restartPolicy", Compare::Skip),
    ("HostConfig", "AutoRemove", "restartPolicy", Compare::Same),
    ("HostConfig", "Init", "container.init", Compare::Same),
    ("HostConfig", "Privileged", "container.privileged", Compare::Same),
    (
        "HostConfig",
        "ReadonlyRootfs",
        "container.readOnlyRootFilesystem",
        Compare::Same,
    ),
    (
        "HostConfig",
        "NanoCpus",
        "container.resources.limits.cpu",
        Compare::Same,
    ),
    ("HostConfig", "CpuShares", "container.cpuShares", Compare::Same),
    ("HostConfig", "CpusetCpus", "container.cpusetCpus", Compare::Same),
    ("HostConfig", "CpusetMems", "container.cpusetMems", Compare::Same),
    (
        "HostConfig",
        "Memory",
        "container.resources.limits.memory",
        Compare::Same,
    ),
    ("HostConfig", "MemorySwap", "container.memorySwap", Compare::Same),
    (
        "HostConfig",
        "MemorySwappiness",
        "container.memorySwappiness",
        Compare::Exact,
    ),
    ("HostConfig", "KernelMemory", "container.kernelMemory", Compare::Same),
    ("HostConfig", "BlkioWeight", "container.blkioWeight", Compare::Same),
    ("HostConfig", "PidsLimit", "container.pidsLimit", Compare::Same),
    ("HostConfig", "GroupAdd", "container.groupAdd", Compare::Set),
    ("HostConfig", "Ulimits", "container.ulimits", Compare::Within),
    ("HostConfig", "ShmSize", "container.shmSize", Compare::Same),
    ("HostConfig", "Sysctls", "container.sysctls", Compare::Within),
    ("HostConfig", "Devices", "container.devices", Compare::Set),
    (
        "HostConfig",
        "CapAdd",
        "container.capabilities.add",
        Compare::Capabilities,
    ),
    (
        "HostConfig",
        "CapDrop",
        "container.capabilities.drop",
        Compare::Capabilities,
    ),
    ("HostConfig", "SecurityOpt", "container.securityOpt", Compare::Within),
    ("HostConfig", "ExtraHosts", "container.extraHosts", Compare::Within),
    ("HostConfig", "Dns", "container.dns.nameservers", Compare::Same),
    ("HostConfig", "DnsSearch", "container.dns.searches", Compare::Same),
    ("HostConfig", "DnsOptions", "container.dns.options", Compare::Same),
    ("HostConfig", "LogConfig", "container.logging", Compare::Same),
    ("HostConfig", "Mounts", "container.mounts", Compare::Mounts),
    ("HostConfig", "PidMode", "container.pidMode", Compare::Same),
    ("HostConfig", "IpcMode", "container.ipcMode", Compare::Same),
    ("HostConfig", "UsernsMode", "container.usernsMode", Compare::Same),
    ("HostConfig", "NetworkMode", "container.networkMode", Compare::Same),
    ("HostConfig", "PortBindings", "container.ports", Compare::Same),
];

/// What an inspection has otherwise than the body its container was created with, field by field, sorted. Nothing that was
/// asked for is left uncompared: a key this function does not know is compared as it stands.
#[must_use]
pub fn discrepancies(request: &Value, inspection: &Value) -> Vec<Discrepancy> {
    let mut found = Vec::new();
    let sections = [("Config", request), ("HostConfig", &request["HostConfig"])];
    for (section, asked) in sections {
        for (key, desired) in asked.as_object().into_iter().flatten() {
            if key == "HostConfig" {
                continue;
            }
            let (field, how) = FIELDS
                .iter()
                .find(|(home, name, _, _)| *home == section && name == key)
                .map_or(("container", Compare::Same), |(_, _, field, how)| (*field, *how));
            let observed = if matches!(how, Compare::Networks) {
                &inspection["NetworkSettings"]["Networks"]
            } else {
                &inspection[section][key]
            };
            if !agrees(how, desired, observed) {
                found.push(Discrepancy {
                    field,
                    desired: shown(desired),
                    observed: shown(observed),
                });
            }
        }
    }
    found.sort();
    found
}

fn shown(value: &Value) -> String {
    if value.is_null() {
        "nothing".to_owned()
    } else {
        clean(&value.to_string(), 80)
    }
}

fn agrees(how: Compare, desired: &Value, observed: &Value) -> bool {
    match how {
        Compare::Same => same(desired, observed),
        Compare::Exact => desired == observed,
        Compare::Set => sorted(desired, |item| item.clone()) == sorted(observed, |item| item.clone()),
        Compare::Within => within(desired, observed),
        Compare::Capabilities => sorted(desired, capability) == sorted(observed, capability),
        Compare::Mounts => sorted(desired, without_empty) == sorted(observed, without_empty),
        Compare::Networks => desired["EndpointsConfig"]
            .as_object()
            .into_iter()
            .flatten()
            .all(|(network, end)| {
                let has = &observed[network];
                !has.is_null()
                    && (within(&end["Aliases"], &has["Aliases"]) || within(&end["Aliases"], &has["DNSNames"]))
            }),
        Compare::Skip => true,
    }
}

fn same(desired: &Value, observed: &Value) -> bool {
    desired == observed || (empty(desired) && empty(observed)) || without_empty(desired) == without_empty(observed)
}

/// A copy with everything left out that says nothing.
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(key, inner)| (key.clone(), without_empty(inner)))
                .filter(|(_, inner)| !empty(inner))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.iter().map(without_empty).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn sorted(value: &Value, normal: fn(&Value) -> Value) -> Vec<String> {
    let mut items: Vec<String> = value
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| normal(item).to_string())
        .collect();
    items.sort();
    items.dedup();
    items
}

fn capability(value: &Value) -> Value {
    let text = value.as_str().unwrap_or_default().to_ascii_uppercase();
    json!(text.strip_prefix("CAP_").unwrap_or(&text))
}

fn within(desired: &Value, observed: &Value) -> bool {
    match (desired, observed) {
        (Value::Object(want), Value::Object(have)) => want
            .iter()
            .all(|(key, value)| have.get(key).is_some_and(|found| same(value, found))),
        (Value::Array(want), Value::Array(have)) => want.iter().all(|item| have.contains(item)),
        _ => same(desired, observed),
    }
}
