//! A container spec in Docker's words, and Docker's words compared with it. [`create_body`] is one of the two places that
//! take every option apart; [`discrepancies`] finds what the engine silently made of them. Pure: called by the Docker
//! engine, by the agent after a create, and by tests that hold an inspection against a manifest.

use std::net::IpAddr;

use schemas::container::{
    Capabilities, ContainerSpec, Device, Dns, HostPort, IpcMode, Logging, Mount, MountType, NetworkMode, PidMode,
    PortSpec, Protocol, ResourceList, Resources, SwapLimit, Ulimit, UlimitName, UsernsMode,
};
use schemas::image::ImageRef;
use schemas::names::{InstanceName, Namespace};
use schemas::records::{AssignedPort, InstanceCondition};
use schemas::units::{ByteSize, Cpu, Text};
use serde_json::{Map, Value, json};

use super::{CLUSTER_LABEL, CreateRequest, FileBind, Limits, Seat, clean};

mod compare;
mod variables;

pub use compare::{Discrepancy, discrepancies};

/// The engine API that dropped the kernel memory limit.
const NO_KERNEL_MEMORY: (u32, u32) = (1, 42);
/// Host names are cut here: the kernel takes 64 characters, DNS 63.
const HOSTNAME_MAX: usize = 63;

/// Why a request cannot be said to the engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    #[error("port {container_port} is published and has no assigned port on this node")]
    PortUnassigned { container_port: u16 },
    #[error("the mount at `{target}` has no source")]
    NoSource { target: String },
}

pub use planner::node::network_name;

/// The name of a namespace's volume on a host. Namespaces have no dots, so no two volumes share a name.
#[must_use]
pub fn volume_name(namespace: &Namespace, name: &str) -> String {
    format!("{namespace}.{name}")
}

/// The names by which an instance is found in its namespace's network, on its host.
#[must_use]
pub fn aliases(instance: &InstanceName) -> Vec<String> {
    let InstanceName {
        namespace,
        workload,
        slot,
    } = instance;
    vec![
        format!("{workload}"),
        format!("{workload}.{namespace}"),
        format!("{workload}-{slot}"),
        format!("{slot}.{workload}"),
    ]
}

/// A container's end of the cluster's network: at its address. It has no names there that the engine knows of, which would
/// tell them to all its containers, also while it does not serve.
#[must_use]
pub fn end_of(seat: &Seat) -> Value {
    let mut own = json!({ "IPv4Address": seat.address.to_string() });
    if let (Some(address), Some(own)) = (seat.address6, own.as_object_mut()) {
        own.insert("IPv6Address".to_owned(), json!(address.to_string()));
    }
    json!({ "IPAMConfig": own })
}

/// The reference as the engine takes it: the digest where there is one, else the tag, else `latest`.
#[must_use]
pub fn engine_reference(image: &ImageRef) -> String {
    let name = image.name();
    match (image.digest(), image.tag()) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, Some(tag)) => format!("{name}:{tag}"),
        (None, None) => format!("{name}:latest"),
    }
}

/// The host name when the spec gives none: `<workload>-<slot>`.
fn default_hostname(instance: &InstanceName) -> String {
    let mut name = format!("{}-{}", instance.workload, instance.slot);
    name.truncate(HOSTNAME_MAX);
    name.trim_end_matches('-').to_owned()
}

/// What to post to `/containers/create`, and which options an engine of API version `api` cannot do.
pub fn create_body(
    request: &CreateRequest<'_>,
    api: (u32, u32),
) -> Result<(Value, Vec<InstanceCondition>), TranslateError> {
    let CreateRequest {
        name: _,
        instance,
        spec,
        labels,
        ports: assigned,
        files,
        // Among the variables.
        secrets: _,
        addresses: _,
        depends_on: _,
        seat,
        gate: _,
    } = *request;
    let ContainerSpec {
        image,
        pull_policy: _,
        command,
        args,
        // With those that it is told about itself: see `variables`.
        env: _,
        working_dir,
        user,
        group_add,
        hostname,
        ports,
        connect,
        mounts,
        // Laid out by the agent: the request says where.
        files: _,
        secrets: _,
        resources:
            Resources {
                requests: _,
                limits: ResourceList { cpu: _, memory: _ },
            },
        cpu_shares: _,
        cpuset_cpus: _,
        cpuset_mems: _,
        memory_swap: _,
        memory_swappiness,
        kernel_memory,
        blkio_weight: _,
        pids_limit: _,
        ulimits,
        shm_size,
        sysctls,
        devices,
        capabilities: Capabilities { add, drop },
        privileged,
        read_only_root_filesystem,
        security_opt,
        init,
        extra_hosts,
        dns: Dns {
            nameservers,
            searches,
            options: dns_options,
        },
        logging,
        labels: user_labels,
        stop_signal,
        stop_grace_period: _,
        tty,
        stdin,
        // The agent probes; see "Healthcheck" below.
        health_check: _,
        network_mode,
        pid_mode,
        ipc_mode,
        userns_mode,
    } = spec;
    let mut conditions = Vec::new();

    let mut host = Map::new();
    host.insert("RestartPolicy".into(), json!({ "Name": "no" }));
    host.insert("AutoRemove".into(), json!(false));
    host.insert("Init".into(), json!(init));
    host.insert("Privileged".into(), json!(privileged));
    host.insert("ReadonlyRootfs".into(), json!(read_only_root_filesystem));
    limits_into(&mut host, &limits(spec));
    let mut put = |key: &str, value: Value| {
        if !empty(&value) {
            host.insert(key.to_owned(), value);
        }
    };
    // 0 is a value of its own here: never swap.
    let swappiness = memory_swappiness.map(Value::from);
    match kernel_memory {
        Some(_) if api >= NO_KERNEL_MEMORY => {
            conditions.push(unsupported(
                "container.kernelMemory",
                "this engine no longer limits kernel memory",
            ));
        }
        Some(ByteSize(bytes)) => put("KernelMemory", json!(signed(*bytes))),
        None => {}
    }
    put("GroupAdd", texts(group_add));
    put(
        "Ulimits",
        Value::Array(
            ulimits
                .iter()
                .map(|(name, Ulimit { soft, hard })| json!({ "Name": ulimit(*name), "Soft": soft, "Hard": hard }))
                .collect(),
        ),
    );
    put("ShmSize", json!(shm_size.map_or(0, |ByteSize(bytes)| signed(bytes))));
    put("Sysctls", text_map(sysctls));
    put("Devices", Value::Array(devices.iter().map(device).collect()));
    put("CapAdd", json!(add));
    put("CapDrop", json!(drop));
    put("SecurityOpt", json!(security_opt));
    put(
        "ExtraHosts",
        Value::Array(
            extra_hosts
                .iter()
                .map(|(name, address)| json!(format!("{name}:{address}")))
                .collect(),
        ),
    );
    put(
        "Dns",
        json!(nameservers.iter().map(ToString::to_string).collect::<Vec<_>>()),
    );
    put("DnsSearch", json!(searches));
    put("DnsOptions", json!(dns_options));
    put("LogConfig", log_config(logging.as_ref()));
    put(
        "Mounts",
        Value::Array(
            mounts
                .iter()
                .map(|one| mount(one, instance, labels.get(CLUSTER_LABEL)))
                .chain(files.iter().map(|file| Ok(file_mount(file))))
                .collect::<Result<_, _>>()?,
        ),
    );
    match pid_mode {
        PidMode::Private => {}
        PidMode::Host => put("PidMode", json!("host")),
    }
    if let Some(mode) = ipc_mode {
        put(
            "IpcMode",
            json!(match mode {
                IpcMode::None => "none",
                IpcMode::Private => "private",
                IpcMode::Shareable => "shareable",
                IpcMode::Host => "host",
            }),
        );
    }
    match userns_mode {
        UsernsMode::Engine => {}
        UsernsMode::Host => put("UsernsMode", json!("host")),
    }
    let mut networking = Value::Null;
    let mut exposed = Map::new();
    match network_mode {
        NetworkMode::Bridge => {
            let network = request.network();
            let end = match seat {
                Some(seat) => end_of(seat),
                None => json!({ "Aliases": aliases(instance) }),
            };
            networking = json!({ "EndpointsConfig": { network.as_str(): end } });
            put("NetworkMode", json!(network));
            put("PortBindings", port_bindings(ports, assigned)?);
            let relayed = [
                ("container.connect", !connect.is_empty()),
                ("container.ports", ports.iter().any(|port| port.everywhere().is_some())),
            ];
            for (field, _) in relayed.iter().filter(|(_, asked)| *asked && seat.is_none()) {
                let why = "this cluster has no network of its own (`reeve network create`), which it needs";
                conditions.push(unsupported(field, why));
            }
            exposed = ports
                .iter()
                .map(|port| (port_key(port.container_port, port.protocol), json!({})))
                .collect();
        }
        NetworkMode::Host => {
            put("NetworkMode", json!("host"));
            for port in ports {
                let elsewhere = |assigned: u16| assigned != port.container_port;
                let moved = match port.host_port {
                    None => false,
                    Some(HostPort::Fixed(fixed)) => elsewhere(fixed),
                    Some(HostPort::Auto) => true,
                };
                if moved || port.host_ip.is_some() {
                    let why = format!(
                        "with networkMode host, port {} is the node's own port {} on all addresses",
                        port.container_port, port.container_port
                    );
                    conditions.push(unsupported("container.ports", &why));
                }
            }
        }
        NetworkMode::None => {
            put("NetworkMode", json!("none"));
            if ports.iter().any(|port| port.host_port.is_some()) {
                conditions.push(unsupported(
                    "container.ports",
                    "with networkMode none, no port can be published",
                ));
            }
        }
    }
    if let Some(swappiness) = swappiness {
        host.insert("MemorySwappiness".into(), swappiness);
    }

    // Ours last: a person's label never stands for one of ours.
    let mut all_labels: Map<String, Value> = user_labels
        .iter()
        .map(|(key, Text(value))| (key.clone(), json!(value)))
        .collect();
    all_labels.extend(labels.iter().map(|(key, value)| (key.clone(), json!(value))));

    let mut body = Map::new();
    body.insert("Image".into(), json!(engine_reference(image)));
    body.insert(
        "Hostname".into(),
        json!(
            hostname
                .as_ref()
                .map_or_else(|| default_hostname(instance), ToString::to_string)
        ),
    );
    body.insert("Labels".into(), Value::Object(all_labels));
    body.insert("Tty".into(), json!(tty));
    body.insert("OpenStdin".into(), json!(stdin));
    // So that a stop by hand, or the engine's own end, gives it the same time.
    body.insert("StopTimeout".into(), json!(seconds_up(spec.grace().millis)));
    // The agent is the only prober: an image's own check would run beside it and be heard by nobody.
    body.insert("Healthcheck".into(), json!({ "Test": ["NONE"] }));
    let optional = [
        ("Entrypoint", texts(command)),
        ("Cmd", texts(args)),
        (
            "Env",
            Value::Array(
                variables::all(request)
                    .iter()
                    .map(|(key, value)| json!(format!("{key}={value}")))
                    .collect(),
            ),
        ),
        ("WorkingDir", json!(working_dir)),
        ("User", json!(user.as_ref().map(|Text(user)| user))),
        ("StopSignal", json!(stop_signal.as_ref().map(|Text(signal)| signal))),
        ("ExposedPorts", Value::Object(exposed)),
        ("NetworkingConfig", networking),
    ];
    for (key, value) in optional {
        if !empty(&value) {
            body.insert(key.into(), value);
        }
    }
    body.insert("HostConfig".into(), Value::Object(host));
    Ok((Value::Object(body), conditions))
}

/// A file is never created by the engine, which would make a directory of a missing one.
fn file_mount(file: &FileBind) -> Value {
    json!({ "Type": "bind", "Source": file.source(), "Target": file.target, "ReadOnly": true })
}

/// The limits a spec asks for; 0 and empty are no limit.
#[must_use]
pub fn limits(spec: &ContainerSpec) -> Limits {
    let ResourceList { cpu, memory } = &spec.resources.limits;
    Limits {
        nano_cpus: cpu.map_or(0, |Cpu { millis }| i64::from(millis) * 1_000_000),
        cpu_shares: spec.cpu_shares.map_or(0, i64::from),
        cpuset_cpus: spec.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: spec.cpuset_mems.clone().unwrap_or_default(),
        memory: memory.map_or(0, |ByteSize(bytes)| signed(bytes)),
        memory_swap: match spec.memory_swap {
            None => 0,
            Some(SwapLimit::Unlimited) => -1,
            Some(SwapLimit::Bytes(ByteSize(bytes))) => signed(bytes),
        },
        blkio_weight: spec.blkio_weight.map_or(0, i64::from),
        pids_limit: spec.pids_limit.map_or(0, i64::from),
        ..Limits::default()
    }
}

/// Writes limits in Docker's words; what is no limit is left out.
pub(super) fn limits_into(host: &mut Map<String, Value>, limits: &Limits) {
    let Limits {
        nano_cpus,
        cpu_shares,
        cpu_quota,
        cpu_period,
        cpuset_cpus,
        cpuset_mems,
        memory,
        memory_swap,
        memory_reservation,
        blkio_weight,
        pids_limit,
    } = limits;
    let numbers = [
        ("NanoCpus", nano_cpus),
        ("CpuShares", cpu_shares),
        ("CpuQuota", cpu_quota),
        ("CpuPeriod", cpu_period),
        ("Memory", memory),
        ("MemorySwap", memory_swap),
        ("MemoryReservation", memory_reservation),
        ("BlkioWeight", blkio_weight),
        ("PidsLimit", pids_limit),
    ];
    for (key, value) in numbers {
        if *value != 0 {
            host.insert(key.into(), json!(value));
        }
    }
    for (key, value) in [("CpusetCpus", cpuset_cpus), ("CpusetMems", cpuset_mems)] {
        if !value.is_empty() {
            host.insert(key.into(), json!(value));
        }
    }
}

/// The engine's warnings about a create or update, as conditions.
#[must_use]
pub fn discarded(warnings: &[String]) -> Vec<InstanceCondition> {
    warnings
        .iter()
        .take(16)
        .map(|text| condition("OptionDiscarded", &clean(text, 240)))
        .collect()
}

fn unsupported(field: &str, why: &str) -> InstanceCondition {
    condition("OptionUnsupported", &format!("{field}: {why}"))
}

fn condition(reason: &str, message: &str) -> InstanceCondition {
    InstanceCondition {
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Whole seconds, never less than asked.
pub(super) fn seconds_up(millis: u64) -> u64 {
    millis.div_ceil(1_000)
}

fn texts(list: &[Text]) -> Value {
    Value::Array(list.iter().map(|Text(text)| json!(text)).collect())
}

fn text_map(map: &std::collections::BTreeMap<String, Text>) -> Value {
    Value::Object(
        map.iter()
            .map(|(key, Text(value))| (key.clone(), json!(value)))
            .collect(),
    )
}

/// Whether a value says nothing: Docker writes absent options in any of these forms.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn ulimit(name: UlimitName) -> &'static str {
    match name {
        UlimitName::Core => "core",
        UlimitName::Cpu => "cpu",
        UlimitName::Data => "data",
        UlimitName::Fsize => "fsize",
        UlimitName::Locks => "locks",
        UlimitName::Memlock => "memlock",
        UlimitName::Msgqueue => "msgqueue",
        UlimitName::Nice => "nice",
        UlimitName::Nofile => "nofile",
        UlimitName::Nproc => "nproc",
        UlimitName::Rss => "rss",
        UlimitName::Rtprio => "rtprio",
        UlimitName::Rttime => "rttime",
        UlimitName::Sigpending => "sigpending",
        UlimitName::Stack => "stack",
    }
}

fn device(device: &Device) -> Value {
    let Device {
        host_path,
        container_path,
        permissions,
    } = device;
    json!({
        "PathOnHost": host_path,
        "PathInContainer": container_path.as_ref().unwrap_or(host_path),
        "CgroupPermissions": permissions.as_deref().unwrap_or("rwm"),
    })
}

fn log_config(logging: Option<&Logging>) -> Value {
    match logging {
        None => json!({ "Type": "json-file", "Config": { "max-size": "10m", "max-file": "3" } }),
        Some(Logging { driver, options }) => json!({ "Type": driver, "Config": text_map(options) }),
    }
}

fn mount(mount: &Mount, instance: &InstanceName, cluster: Option<&String>) -> Result<Value, TranslateError> {
    let Mount {
        kind,
        source,
        target,
        read_only,
        size,
        mode,
    } = mount;
    let source = || {
        source
            .as_ref()
            .ok_or_else(|| TranslateError::NoSource { target: target.clone() })
    };
    let mut value = json!({ "Target": target });
    if *read_only {
        value["ReadOnly"] = json!(true);
    }
    match kind {
        // In this form the engine never makes the host path: a missing one is its clear refusal.
        MountType::Bind => {
            value["Type"] = json!("bind");
            value["Source"] = json!(source()?);
        }
        MountType::Volume => {
            value["Type"] = json!("volume");
            value["Source"] = json!(volume_name(&instance.namespace, source()?));
            let mut labels = json!({ "reeve.namespace": instance.namespace.as_str() });
            if let Some(cluster) = cluster {
                labels[CLUSTER_LABEL] = json!(cluster);
            }
            value["VolumeOptions"] = json!({ "Labels": labels });
        }
        MountType::Tmpfs => {
            value["Type"] = json!("tmpfs");
            let mut options = Map::new();
            if let Some(ByteSize(bytes)) = size {
                options.insert("SizeBytes".into(), json!(signed(*bytes)));
            }
            if let Some(mode) = mode.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok()) {
                options.insert("Mode".into(), json!(mode));
            }
            if !options.is_empty() {
                value["TmpfsOptions"] = Value::Object(options);
            }
        }
    }
    Ok(value)
}

fn port_key(port: u16, protocol: Protocol) -> String {
    match protocol {
        Protocol::Tcp => format!("{port}/tcp"),
        Protocol::Udp => format!("{port}/udp"),
    }
}

/// One binding for each published port, to the port the assignment gives it.
fn port_bindings(ports: &[PortSpec], assigned: &[AssignedPort]) -> Result<Value, TranslateError> {
    let mut bindings: Map<String, Value> = Map::new();
    let mut assigned = assigned.iter();
    for port in ports.iter().filter(|port| port.is_on_node()) {
        let given = assigned
            .next()
            .filter(|given| given.container_port == port.container_port && given.protocol == port.protocol)
            .ok_or(TranslateError::PortUnassigned {
                container_port: port.container_port,
            })?;
        let binding = json!({
            "HostIp": given.host_ip.as_ref().map_or_else(String::new, IpAddr::to_string),
            "HostPort": given.host_port.to_string(),
        });
        let entry = bindings
            .entry(port_key(port.container_port, port.protocol))
            .or_insert_with(|| json!([]));
        if let Value::Array(list) = entry {
            list.push(binding);
        }
    }
    Ok(Value::Object(bindings))
}

#[cfg(test)]
mod tests;
