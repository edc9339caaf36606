//! What a change of spec costs a running container. Both planners ask: the cluster's, to know whether slots must take
//! turns; the node's, to know whether the container must go. It compares values as they count after defaults, never
//! texts or hashes, so a release that learns a new word restarts nothing. Every field is named here: the compiler
//! refuses a new one until its cost is decided.

use std::collections::BTreeSet;

use schemas::container::{
    Capabilities, ContainerSpec, Device, FileMount, HealthCheck, HttpCheck, Logging, Mount, PortSpec, PullPolicy,
    ResourceList, Resources, SecretUse,
};
use schemas::names::ResourceName;
use schemas::service::{RestartBackoff, ServiceSpec, Update};
use schemas::units::{ByteSize, Span, Text};

/// What it costs to go from one spec to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Nothing that an agent or a container notices.
    Nothing,
    /// The agent acts differently from now on; the container stays.
    AgentOnly { fields: Vec<&'static str> },
    /// The container must be replaced. Only the fields that force it are listed.
    Replace { fields: Vec<&'static str> },
}

/// Collects the fields that differ, by what they cost.
#[derive(Default)]
struct Fields {
    agent: Vec<&'static str>,
    replace: Vec<&'static str>,
}

impl Fields {
    fn agent<T: PartialEq>(&mut self, path: &'static str, old: T, new: T) {
        if old != new {
            self.agent.push(path);
        }
    }
    fn replace<T: PartialEq>(&mut self, path: &'static str, old: T, new: T) {
        if old != new {
            self.replace.push(path);
        }
    }
}

/// What it costs the containers of a service to go from `old` to `new`.
#[must_use]
pub fn cost(old: &ServiceSpec, new: &ServiceSpec) -> Cost {
    if old == new {
        return Cost::Nothing;
    }
    let mut fields = Fields::default();
    // The cluster planner alone reads what is bound to `_`: how many, and where.
    let ServiceSpec {
        mode: _,
        replicas: _,
        container,
        depends_on,
        placement: _,
        tolerations: _,
        restart_policy,
        restart_backoff,
        update,
        seeds,
        replace_after: _,
        // Who has a token keeps it, who has none gets one with his next container.
        exclusive: _,
        on_disconnect,
    } = old;
    compare_containers(&mut fields, container, &new.container);
    // Its variables tell of each.
    fields.replace("dependsOn", names(depends_on), names(&new.depends_on));
    fields.replace("seeds", seeds, &new.seeds);
    fields.agent("onDisconnect", on_disconnect, &new.on_disconnect);
    fields.agent("restartPolicy", restart_policy, &new.restart_policy);
    fields.agent(
        "restartBackoff.initial",
        backoff(restart_backoff).0,
        backoff(&new.restart_backoff).0,
    );
    fields.agent(
        "restartBackoff.max",
        backoff(restart_backoff).1,
        backoff(&new.restart_backoff).1,
    );
    let Update {
        min_ready: _,
        progress_deadline: _,
    } = update;
    fields.agent("update.minReady", update.min_ready(), new.update.min_ready());
    fields.agent(
        "update.progressDeadline",
        update.progress_deadline(),
        new.update.progress_deadline(),
    );
    let Fields { agent, replace } = fields;
    match (agent.is_empty(), replace.is_empty()) {
        (_, false) => Cost::Replace { fields: replace },
        (false, true) => Cost::AgentOnly { fields: agent },
        (true, true) => Cost::Nothing,
    }
}

/// Whether a spec's image is named by a tag, and what that stands for is to be settled: not where a digest says it already,
/// nor where whatever is on the node is meant.
#[must_use]
pub fn is_tagged(spec: &ServiceSpec) -> bool {
    spec.container.image.digest().is_none() && spec.container.pull_policy != PullPolicy::Never
}

/// The initial and the longest delay between restarts in a row, after defaults.
#[must_use]
pub fn backoff(backoff: &RestartBackoff) -> (Span, Span) {
    let RestartBackoff { initial, max } = backoff;
    let initial = initial.unwrap_or(Span::from_secs(1));
    (initial, max.unwrap_or(Span::from_secs(60)).max(initial))
}

/// In whatever order, and however often, they are written.
fn names(list: &[ResourceName]) -> BTreeSet<&ResourceName> {
    list.iter().collect()
}

fn compare_containers(fields: &mut Fields, old: &ContainerSpec, new: &ContainerSpec) {
    let ContainerSpec {
        image,
        pull_policy,
        command,
        args,
        env,
        working_dir,
        user,
        group_add,
        hostname,
        ports,
        connect,
        mounts,
        files,
        secrets,
        resources,
        cpu_shares,
        cpuset_cpus,
        cpuset_mems,
        memory_swap,
        memory_swappiness,
        kernel_memory,
        blkio_weight,
        pids_limit,
        ulimits,
        shm_size,
        sysctls,
        devices,
        capabilities,
        privileged,
        read_only_root_filesystem,
        security_opt,
        init,
        extra_hosts,
        dns,
        logging,
        labels,
        stop_signal,
        stop_grace_period: _,
        tty,
        stdin,
        health_check,
        network_mode,
        pid_mode,
        ipc_mode,
        userns_mode,
    } = old;
    fields.replace("container.image", image, &new.image);
    fields.agent("container.pullPolicy", pull_policy, &new.pull_policy);
    fields.replace("container.command", command, &new.command);
    fields.replace("container.args", args, &new.args);
    fields.replace("container.env", env, &new.env);
    fields.replace("container.workingDir", working_dir, &new.working_dir);
    fields.replace("container.user", user, &new.user);
    fields.replace("container.groupAdd", group_add, &new.group_add);
    fields.replace("container.hostname", hostname, &new.hostname);
    compare_ports(fields, ports, &new.ports);
    fields.agent("container.connect", connect, &new.connect);
    compare_mounts(fields, mounts, &new.mounts);
    compare_files(fields, files, &new.files);
    compare_secrets(fields, secrets, &new.secrets);
    let Resources { requests: _, limits } = resources;
    let ResourceList { cpu, memory } = limits;
    fields.replace("container.resources.limits.cpu", cpu, &new.resources.limits.cpu);
    fields.replace(
        "container.resources.limits.memory",
        memory,
        &new.resources.limits.memory,
    );
    fields.replace(
        "container.cpuShares",
        cpu_shares.unwrap_or(1024),
        new.cpu_shares.unwrap_or(1024),
    );
    fields.replace("container.cpusetCpus", cpuset_cpus, &new.cpuset_cpus);
    fields.replace("container.cpusetMems", cpuset_mems, &new.cpuset_mems);
    fields.replace("container.memorySwap", memory_swap, &new.memory_swap);
    fields.replace("container.memorySwappiness", memory_swappiness, &new.memory_swappiness);
    fields.replace("container.kernelMemory", kernel_memory, &new.kernel_memory);
    fields.replace("container.blkioWeight", blkio_weight, &new.blkio_weight);
    fields.replace("container.pidsLimit", pids_limit, &new.pids_limit);
    fields.replace("container.ulimits", ulimits, &new.ulimits);
    let shm = |size: Option<ByteSize>| size.unwrap_or(ByteSize(64 << 20));
    fields.replace("container.shmSize", shm(*shm_size), shm(new.shm_size));
    fields.replace("container.sysctls", sysctls, &new.sysctls);
    fields.replace("container.devices", device_list(devices), device_list(&new.devices));
    let Capabilities { add, drop } = capabilities;
    fields.replace("container.capabilities.add", caps(add), caps(&new.capabilities.add));
    fields.replace("container.capabilities.drop", caps(drop), caps(&new.capabilities.drop));
    fields.replace("container.privileged", privileged, &new.privileged);
    fields.replace(
        "container.readOnlyRootFilesystem",
        read_only_root_filesystem,
        &new.read_only_root_filesystem,
    );
    fields.replace("container.securityOpt", security_opt, &new.security_opt);
    fields.replace("container.init", init, &new.init);
    fields.replace("container.extraHosts", extra_hosts, &new.extra_hosts);
    fields.replace("container.dns", dns, &new.dns);
    fields.replace(
        "container.logging",
        log_choice(logging.as_ref()),
        log_choice(new.logging.as_ref()),
    );
    fields.replace("container.labels", labels, &new.labels);
    fields.replace("container.stopSignal", stop_signal, &new.stop_signal);
    fields.agent("container.stopGracePeriod", old.grace(), new.grace());
    fields.replace("container.tty", tty, &new.tty);
    fields.replace("container.stdin", stdin, &new.stdin);
    fields.agent(
        "container.healthCheck",
        health_check.as_ref().map(check),
        new.health_check.as_ref().map(check),
    );
    fields.replace("container.networkMode", network_mode, &new.network_mode);
    fields.replace("container.pidMode", pid_mode, &new.pid_mode);
    fields.replace("container.ipcMode", ipc_mode, &new.ipc_mode);
    fields.replace("container.usernsMode", userns_mode, &new.userns_mode);
}

/// A port's name is for people and agents; the engine never hears it.
fn compare_ports(fields: &mut Fields, old: &[PortSpec], new: &[PortSpec]) {
    let engine = |ports: &[PortSpec]| -> Vec<_> {
        let published = |port: &PortSpec| {
            let PortSpec {
                name: _,
                container_port,
                host_port,
                host_ip,
                protocol,
                publish,
                // Known to the nodes' relays alone.
                proxy_protocol: _,
            } = port;
            (*container_port, *host_port, *host_ip, *protocol, *publish)
        };
        ports.iter().map(published).collect()
    };
    fields.replace("container.ports", engine(old), engine(new));
    let names = |ports: &[PortSpec]| -> Vec<_> { ports.iter().map(|port| port.name.clone()).collect() };
    if old.len() == new.len() {
        fields.agent("container.ports.name", names(old), names(new));
    }
}

fn compare_mounts(fields: &mut Fields, old: &[Mount], new: &[Mount]) {
    let by_target = |mounts: &[Mount]| {
        let mut mounts = mounts.to_vec();
        mounts.sort_by(|a, b| a.target.cmp(&b.target));
        mounts
    };
    fields.replace("container.mounts", by_target(old), by_target(new));
}

/// The field of a file whose content is another while all else of it is the same.
pub const FILE_CONTENT: &str = "container.files.content";

/// What a container sees counts: path, owner, mode and content. Under which name and number that is kept does not.
fn compare_files(fields: &mut Fields, old: &[FileMount], new: &[FileMount]) {
    let by_path = |files: &[FileMount]| {
        let seen = |one: &FileMount| {
            let FileMount {
                file: _,
                path,
                owner: _,
                mode: _,
                edition,
            } = one;
            let digest = edition.map(|edition| edition.digest);
            (path.clone(), one.owner(), one.mode(), digest)
        };
        let mut files: Vec<_> = files.iter().map(seen).collect();
        files.sort();
        files
    };
    let (old, new) = (by_path(old), by_path(new));
    let one_place = |(a, b): (&(String, _, _, _), &(String, _, _, _))| (&a.0, a.1, a.2) == (&b.0, b.1, b.2);
    if old.len() == new.len() && old.iter().zip(&new).all(one_place) {
        fields.replace(FILE_CONTENT, old, new);
    } else {
        fields.replace("container.files", old, new);
    }
}

/// The field of a secret whose value is another while all else of it is the same.
pub const SECRET_CONTENT: &str = "container.secrets.content";

/// As with files: what a container sees counts. Equal values have different digests, for those must tell nothing.
fn compare_secrets(fields: &mut Fields, old: &[SecretUse], new: &[SecretUse]) {
    let by_place = |secrets: &[SecretUse]| {
        let seen = |one: &SecretUse| {
            let SecretUse {
                secret: _,
                path: _,
                env,
                owner: _,
                mode: _,
                edition,
            } = one;
            let file = one.path().map(|path| (path, one.owner(), one.mode()));
            (
                (file, env.clone()),
                edition.as_ref().map(|edition| edition.digest.clone()),
            )
        };
        let mut secrets: Vec<_> = secrets.iter().map(seen).collect();
        secrets.sort();
        secrets
    };
    let (old, new) = (by_place(old), by_place(new));
    if old.len() == new.len() && old.iter().zip(&new).all(|(old, new)| old.0 == new.0) {
        fields.replace(SECRET_CONTENT, old, new);
    } else {
        fields.replace("container.secrets", old, new);
    }
}

fn device_list(devices: &[Device]) -> Vec<(&str, &str, BTreeSet<char>)> {
    let full =
        |device: &'_ Device| -> BTreeSet<char> { device.permissions.as_deref().unwrap_or("rwm").chars().collect() };
    devices
        .iter()
        .map(|device| {
            let Device {
                host_path,
                container_path,
                permissions: _,
            } = device;
            (
                host_path.as_str(),
                container_path.as_deref().unwrap_or(host_path),
                full(device),
            )
        })
        .collect()
}

fn caps(names: &[String]) -> BTreeSet<&str> {
    names
        .iter()
        .map(|name| name.strip_prefix("CAP_").unwrap_or(name))
        .collect()
}

/// Logging as it counts: the default is `json-file` in 3 files of 10 MB.
fn log_choice(logging: Option<&Logging>) -> Logging {
    logging.cloned().unwrap_or_else(|| Logging {
        driver: "json-file".to_owned(),
        options: [("max-size", "10m"), ("max-file", "3")]
            .map(|(key, value)| (key.to_owned(), Text(value.to_owned())))
            .into(),
    })
}

/// A health check with its defaults filled in.
fn check(check: &HealthCheck) -> HealthCheck {
    let HealthCheck {
        http,
        tcp,
        exec,
        interval,
        timeout,
        retries,
        start_period,
    } = check.clone();
    let http = http.map(|http| {
        let HttpCheck {
            port,
            path,
            method,
            scheme,
            headers,
            status,
        } = http;
        HttpCheck {
            port,
            path: Some(path.unwrap_or_else(|| "/".to_owned())),
            method,
            scheme,
            headers,
            status,
        }
    });
    HealthCheck {
        http,
        tcp,
        exec,
        interval: Some(interval.unwrap_or(Span::from_secs(10))),
        timeout: Some(timeout.unwrap_or(Span::from_secs(3))),
        retries: Some(retries.unwrap_or(3)),
        start_period: Some(start_period.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests;
