//! The rules about containers: ports, mounts, resources, kernel options and health checks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{DAY, HOST_NAME, HOUR, RESERVED, Rules, host_name};
use crate::admit::Aim;
use crate::container::{
    Capabilities, Connect, ContainerSpec, FileMount, HealthCheck, HostPort, IpcMode, Mount, MountType, NetworkMode,
    PortSpec, Protocol, Publish, Resources, SwapLimit,
};
use crate::problem::{Code, Finding, quote};
use crate::units::{ByteSize, Span};
use crate::yaml::{Step, path_text};

/// The least memory limit that engines take.
const LEAST_MEMORY: ByteSize = ByteSize(6 << 20);

/// A path's parts, without what means nothing in it, and without the first slash.
pub(super) fn plain(path: &str) -> String {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect::<Vec<_>>()
        .join("/")
}

impl Rules<'_> {
    pub(super) fn container(&mut self, container: &ContainerSpec) {
        let ContainerSpec {
            image: _,
            pull_policy: _,
            command: _,
            args: _,
            env,
            working_dir: _,
            user: _,
            group_add: _,
            hostname: _,
            ports,
            connect,
            mounts,
            files,
            secrets,
            resources,
            cpu_shares: _,
            cpuset_cpus,
            cpuset_mems,
            memory_swap,
            memory_swappiness: _,
            kernel_memory: _,
            blkio_weight: _,
            pids_limit: _,
            ulimits,
            shm_size,
            sysctls,
            devices,
            capabilities,
            privileged: _,
            read_only_root_filesystem: _,
            security_opt,
            init: _,
            extra_hosts,
            dns,
            logging: _,
            labels,
            stop_signal,
            stop_grace_period,
            tty: _,
            stdin: _,
            health_check,
            network_mode,
            pid_mode: _,
            ipc_mode,
            userns_mode: _,
        } = container;
        for name in env.keys().filter(|name| name.is_empty() || name.contains('=')) {
            let message = format!("{} is not a variable's name", quote(name));
            self.say_key(
                path!["spec", "container", "env", name.as_str()],
                Code::EnvName,
                message,
                "name it without `=`",
            );
        }
        self.ports(ports, *network_mode);
        self.connect(connect, *network_mode);
        self.mounts(mounts);
        self.files(files, mounts);
        self.secrets(secrets, env, files, mounts);
        self.resources(resources, *memory_swap);
        for (name, set) in [("cpusetCpus", cpuset_cpus), ("cpusetMems", cpuset_mems)] {
            let falls = |range: &str| {
                let (from, to) = range.split_once('-')?;
                Some(from.parse::<u32>().ok()? > to.parse::<u32>().ok()?)
            };
            if let Some(set) = set
                && set.split(',').any(|range| falls(range) == Some(true))
            {
                let message = format!("{} has a range that ends before it begins", quote(set));
                self.say(
                    path!["spec", "container", name],
                    Code::CpuSetOrder,
                    message,
                    "write the lower number first: `0-3`",
                );
            }
        }
        for (name, ulimit) in ulimits {
            let open = |value: i64| if value == -1 { i64::MAX } else { value };
            if open(ulimit.soft) > open(ulimit.hard) {
                let name = serde_json::to_value(name)
                    .ok()
                    .and_then(|name| name.as_str().map(str::to_owned))
                    .unwrap_or_default();
                let message = format!("the soft limit {} is above the hard limit {}", ulimit.soft, ulimit.hard);
                self.say(
                    path!["spec", "container", "ulimits", name.as_str(), "soft"],
                    Code::UlimitOrder,
                    message,
                    "raise `hard` or lower `soft`; -1 is no limit",
                );
            }
        }
        if shm_size.is_some() && matches!(ipc_mode, Some(IpcMode::Host | IpcMode::None)) {
            let message = "the container has no `/dev/shm` of its own with this `ipcMode`";
            self.say_key(
                path!["spec", "container", "shmSize"],
                Code::ShmWithoutIpc,
                message,
                "remove `shmSize` or `ipcMode`",
            );
        }
        self.sysctls(sysctls.keys(), *network_mode, *ipc_mode);
        let mut seen = BTreeMap::new();
        for (index, device) in devices.iter().enumerate() {
            let target = device.container_path.as_ref().unwrap_or(&device.host_path);
            if let Some(first) = seen.insert(target, index) {
                let (a, b) = (
                    path!["spec", "container", "devices", first],
                    path!["spec", "container", "devices", index],
                );
                let message = format!("two devices are {} in the container", quote(target));
                self.say_twice(
                    a,
                    b,
                    Code::DuplicateEntry,
                    message,
                    "give one of them another `containerPath`",
                );
            }
        }
        self.capabilities(capabilities);
        for (index, option) in security_opt.iter().enumerate() {
            if option.trim().is_empty() {
                self.say(
                    path!["spec", "container", "securityOpt", index],
                    Code::SecurityOption,
                    "the option is empty",
                    "remove it",
                );
            }
        }
        for (name, address) in extra_hosts {
            let place = path!["spec", "container", "extraHosts", name.as_str()];
            if !host_name(name) {
                self.say_key(
                    place,
                    Code::HostName,
                    format!("{} is not a host name", quote(name)),
                    HOST_NAME,
                );
            }
            if address != "host-gateway" && address.parse::<IpAddr>().is_err() {
                let message = format!("{} is not an IP address", quote(address));
                self.say(
                    place,
                    Code::BadAddress,
                    message,
                    "write an IPv4 or IPv6 address, or `host-gateway`",
                );
            }
        }
        for (index, domain) in dns.searches.iter().enumerate() {
            if domain != "." && !host_name(domain.trim_end_matches('.')) {
                let message = format!("{} is not a domain", quote(domain));
                self.say(
                    path!["spec", "container", "dns", "searches", index],
                    Code::HostName,
                    message,
                    HOST_NAME,
                );
            }
        }
        for key in labels.keys() {
            let place = path!["spec", "container", "labels", key.as_str()];
            if key.starts_with("reeve.") {
                self.say_key(
                    place,
                    Code::ReservedLabel,
                    format!("{} is Reeve's own", quote(key)),
                    RESERVED,
                );
            } else if key.is_empty() {
                self.say_key(place, Code::LabelName, "a label's key is empty", "give it a name");
            }
        }
        if let Some(signal) = stop_signal
            && !is_signal(&signal.0)
        {
            let message = format!("{} is not a signal", quote(&signal.0));
            let remedy = "write its name, such as `SIGTERM` or `TERM`, or its number from 1 to 64";
            self.say(
                path!["spec", "container", "stopSignal"],
                Code::StopSignal,
                message,
                remedy,
            );
        }
        self.limit(path!["spec", "container", "stopGracePeriod"], *stop_grace_period, HOUR);
        if let Some(check) = health_check {
            self.health_check(check, *network_mode);
        }
    }

    fn ports(&mut self, ports: &[PortSpec], network: NetworkMode) {
        let at = |index: usize, key: &str| [path!["spec", "container", "ports", index], path![key]].concat();
        for (index, port) in ports.iter().enumerate() {
            let PortSpec {
                name,
                container_port,
                host_port,
                host_ip,
                protocol,
                publish,
                proxy_protocol,
            } = port;
            if *publish == Publish::Everywhere && !matches!(host_port, Some(HostPort::Fixed(_))) {
                let message = "a port that every node has needs one number for all of them";
                let remedy = "write the number as `hostPort`";
                self.say_key(&at(index, "publish"), Code::PublishForm, message, remedy);
            }
            if *proxy_protocol && (*publish != Publish::Everywhere || *protocol != Protocol::Tcp) {
                let message = "who connects is told ahead by TCP, and by ports that are published everywhere";
                let remedy = "remove `proxyProtocol`, or add `publish: everywhere`";
                self.say_key(&at(index, "proxyProtocol"), Code::PublishForm, message, remedy);
            }
            if host_port.is_some() && network != NetworkMode::Bridge {
                let (message, remedy) = match network {
                    NetworkMode::Host => (
                        "with `networkMode: host` the container's ports are the node's",
                        "remove `hostPort`: the container listens on the node itself",
                    ),
                    NetworkMode::None | NetworkMode::Bridge => (
                        "with `networkMode: none` no port can be reached",
                        "remove `hostPort` or `networkMode`",
                    ),
                };
                self.say_key(&at(index, "hostPort"), Code::PortWithoutNetwork, message, remedy);
            }
            if host_ip.is_some() && host_port.is_none() {
                let message = "the port is not published, so no address can be chosen for it";
                self.say_key(
                    &at(index, "hostIP"),
                    Code::HostAddressWithoutPort,
                    message,
                    "add `hostPort`, or remove `hostIP`",
                );
            }
            for (other_index, other) in ports[..index].iter().enumerate() {
                if name.is_some() && *name == other.name {
                    let message = format!(
                        "the port name `{}` is used twice",
                        name.as_ref().map_or("", |name| name.as_str())
                    );
                    self.say_twice(
                        &at(other_index, "name"),
                        &at(index, "name"),
                        Code::PortNameTaken,
                        message,
                        "give each port its own name",
                    );
                }
                if *protocol != other.protocol {
                    continue;
                }
                let one_address = match (host_ip, other.host_ip) {
                    (Some(a), Some(b)) => {
                        *a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
                    }
                    _ => true,
                };
                match (host_port, other.host_port) {
                    (Some(HostPort::Fixed(a)), Some(HostPort::Fixed(b))) if *a == b && one_address => {
                        let message = format!("the host port {a} is asked for twice");
                        self.say_twice(
                            &at(other_index, "hostPort"),
                            &at(index, "hostPort"),
                            Code::PortTaken,
                            message,
                            "choose another port or address",
                        );
                    }
                    (None, None) if *container_port == other.container_port => {
                        let message = format!("the port {container_port} is declared twice");
                        self.say_twice(
                            &at(other_index, "containerPort"),
                            &at(index, "containerPort"),
                            Code::PortTaken,
                            message,
                            "remove one of them",
                        );
                    }
                    (Some(_) | None, Some(_) | None) => {}
                }
            }
        }
    }

    fn connect(&mut self, connect: &[Connect], network: NetworkMode) {
        let at = |index: usize| path!["spec", "container", "connect", index, "port"].to_vec();
        for (index, one) in connect.iter().enumerate() {
            if network != NetworkMode::Bridge {
                let message = "the container has no `localhost` of its own that leads anywhere with this `networkMode`";
                let place = path!["spec", "container", "connect", index];
                self.say(
                    place,
                    Code::PortWithoutNetwork,
                    message,
                    "remove `connect` or `networkMode`",
                );
            }
            let same = |other: &Connect| (other.port, other.protocol) == (one.port, one.protocol);
            if let Some(first) = connect[..index].iter().position(same) {
                let message = format!("the port {} at `localhost` leads to two services", one.port);
                self.say_twice(
                    &at(first),
                    &at(index),
                    Code::PortTaken,
                    message,
                    "give one of them another `port`",
                );
            }
        }
    }

    fn mounts(&mut self, mounts: &[Mount]) {
        let at = |index: usize, key: &str| [path!["spec", "container", "mounts", index], path![key]].concat();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (index, mount) in mounts.iter().enumerate() {
            let Mount {
                kind,
                source,
                target,
                read_only: _,
                size,
                mode,
            } = mount;
            if let Some(first) = seen.insert(plain(target), index) {
                let message = format!("{} is mounted twice", quote(target));
                self.say_twice(
                    &at(first, "target"),
                    &at(index, "target"),
                    Code::MountTargetTaken,
                    message,
                    "choose another target",
                );
            }
            match (kind, source) {
                (MountType::Bind, Some(path)) if path.starts_with('/') => {}
                (MountType::Bind, Some(path)) => {
                    let message = format!(
                        "a bind's source is an absolute path on the host, {} is not",
                        quote(path)
                    );
                    self.say(
                        &at(index, "source"),
                        Code::MountSource,
                        message,
                        "begin it with `/`, or write `type: volume` for a named volume",
                    );
                }
                (MountType::Volume, Some(name)) if volume_name(name) => {}
                (MountType::Volume, Some(name)) => {
                    let message = format!("{} is not a volume's name", quote(name));
                    let remedy = if name.starts_with('/') {
                        "write `type: bind` to mount a path of the host"
                    } else {
                        "write 2 to 255 letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
                    };
                    self.say(&at(index, "source"), Code::MountSource, message, remedy);
                }
                (MountType::Bind | MountType::Volume, None) => {
                    let what = if *kind == MountType::Bind {
                        "a path on the host"
                    } else {
                        "the volume's name"
                    };
                    self.say(
                        &at(index, "type"),
                        Code::MountSource,
                        "this type of mount needs a source",
                        format!("add `source:` with {what}"),
                    );
                }
                (MountType::Tmpfs, Some(_)) => {
                    self.say_key(
                        &at(index, "source"),
                        Code::MountSource,
                        "a tmpfs has no source",
                        "remove it, or change the type",
                    );
                }
                (MountType::Tmpfs, None) => {}
            }
            if *kind != MountType::Tmpfs {
                for (key, set) in [("size", size.is_some()), ("mode", mode.is_some())] {
                    if set {
                        let message = format!("only a tmpfs has a `{key}`");
                        self.say_key(
                            &at(index, key),
                            Code::MountOption,
                            message,
                            "remove it, or write `type: tmpfs`",
                        );
                    }
                }
            }
        }
    }

    fn files(&mut self, files: &[FileMount], mounts: &[Mount]) {
        let at = |index: usize, key: &str| [path!["spec", "container", "files", index], path![key]].concat();
        let choose = "choose another path";
        for (index, one) in files.iter().enumerate() {
            let FileMount {
                file: _,
                path,
                owner: _,
                mode: _,
                edition: _,
            } = one;
            let clean = path
                .split('/')
                .skip(1)
                .all(|part| !part.is_empty() && part != "." && part != "..");
            if !clean || path.chars().any(char::is_control) {
                let message = format!("{} is no clean path of a file", quote(path));
                let remedy = "write an absolute path without `.`, `..`, doubled slashes and control characters";
                self.say(&at(index, "path"), Code::FilePath, message, remedy);
                continue;
            }
            if one.owner().is_none() {
                let message = "the owner's numbers are too large";
                self.say(
                    &at(index, "owner"),
                    Code::FilePath,
                    message,
                    "write numbers below 4294967295",
                );
            }
            let plain = |target: &str| format!("/{}", plain(target));
            let inside = |outer: &str, inner: &str| {
                inner
                    .strip_prefix(outer)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if let Some(first) = files[..index]
                .iter()
                .position(|other| inside(&other.path, path) || inside(path, &other.path))
            {
                let message = format!("{} is taken by another file", quote(path));
                self.say_twice(
                    &at(first, "path"),
                    &at(index, "path"),
                    Code::MountTargetTaken,
                    message,
                    choose,
                );
            }
            if let Some(mount) = mounts.iter().position(|mount| inside(path, &plain(&mount.target))) {
                let target = [path!["spec", "container", "mounts", mount], path!["target"]].concat();
                let message = format!("{} is taken by a mount", quote(path));
                self.say_twice(&target, &at(index, "path"), Code::MountTargetTaken, message, choose);
            }
        }
    }

    fn resources(&mut self, resources: &Resources, swap: Option<SwapLimit>) {
        let Resources { requests, limits } = resources;
        let request = |key: &str| [path!["spec", "container", "resources", "requests"], path![key]].concat();
        let limit = |key: &str| [path!["spec", "container", "resources", "limits"], path![key]].concat();
        if let (Some(wanted), Some(most)) = (requests.cpu, limits.cpu)
            && wanted > most
        {
            let message = format!("the request of {wanted} is above the limit of {most}");
            self.say_twice(
                &limit("cpu"),
                &request("cpu"),
                Code::RequestAboveLimit,
                message,
                "raise the limit or lower the request",
            );
        }
        if let (Some(wanted), Some(most)) = (requests.memory, limits.memory)
            && wanted > most
        {
            let message = format!("the request of {wanted} is above the limit of {most}");
            self.say_twice(
                &limit("memory"),
                &request("memory"),
                Code::RequestAboveLimit,
                message,
                "raise the limit or lower the request",
            );
        }
        if limits.cpu.is_some_and(|cpu| cpu.millis < 10) {
            self.say(
                &limit("cpu"),
                Code::BelowMinimum,
                "engines take no CPU limit below 10m",
                "raise it, or remove it for no limit",
            );
        }
        if let Some(memory) = limits.memory
            && memory < LEAST_MEMORY
        {
            let message = format!("engines take no memory limit below {LEAST_MEMORY}, this is {memory}");
            self.say(
                &limit("memory"),
                Code::BelowMinimum,
                message,
                "raise it, or remove it for no limit",
            );
        }
        let place = path!["spec", "container", "memorySwap"];
        match (swap, limits.memory) {
            (Some(_), None) => {
                self.say_key(
                    place,
                    Code::SwapWithoutMemory,
                    "there is no memory limit",
                    "add `resources.limits.memory`, or remove it",
                );
            }
            (Some(SwapLimit::Bytes(swap)), Some(memory)) if swap < memory => {
                let message = format!("memory and swap together ({swap}) are less than the memory limit ({memory})");
                self.say(
                    place,
                    Code::SwapWithoutMemory,
                    message,
                    format!("write at least `{memory}`, which means no swap"),
                );
            }
            (Some(_) | None, Some(_) | None) => {}
        }
    }

    fn sysctls<'k>(&mut self, names: impl Iterator<Item = &'k String>, network: NetworkMode, ipc: Option<IpcMode>) {
        const IPC: [&str; 8] = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shmall",
            "kernel.shmmax",
            "kernel.shmmni",
            "kernel.shm_rmid_forced",
        ];
        for name in names {
            let place = path!["spec", "container", "sysctls", name.as_str()];
            let of_ipc = IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.");
            if name.starts_with("net.") && name.len() > 4 {
                if network == NetworkMode::Host {
                    let message = format!("{} belongs to the node's network with `networkMode: host`", quote(name));
                    self.say_key(
                        place,
                        Code::NetworkOption,
                        message,
                        "set it on the node, or leave the host's network",
                    );
                }
            } else if of_ipc {
                if ipc == Some(IpcMode::Host) {
                    let message = format!("{} belongs to the node with `ipcMode: host`", quote(name));
                    self.say_key(
                        place,
                        Code::NetworkOption,
                        message,
                        "set it on the node, or leave the host's IPC",
                    );
                }
            } else {
                let message = format!("{} is not a parameter that a container has for itself", quote(name));
                let remedy = "only `net.*`, `fs.mqueue.*` and the `kernel.msg*`, `kernel.sem` and `kernel.shm*` of IPC are; set others on the node";
                self.say_key(place, Code::SysctlName, message, remedy);
            }
        }
    }

    fn capabilities(&mut self, capabilities: &Capabilities) {
        let Capabilities { add, drop } = capabilities;
        let plain = |name: &str| name.strip_prefix("CAP_").unwrap_or(name).to_owned();
        for (key, names) in [("add", add), ("drop", drop)] {
            for (index, name) in names.iter().enumerate() {
                let short = plain(name);
                if short != "ALL" && !CAPABILITIES.contains(&short.as_str()) {
                    let near = crate::problem::closest(&short, CAPABILITIES.iter().copied());
                    let remedy = near.map_or_else(
                        || "see capabilities(7) for their names".to_owned(),
                        |near| format!("did you mean `{near}`?"),
                    );
                    let place = path!["spec", "container", "capabilities", key, index];
                    self.say(
                        place,
                        Code::CapabilityName,
                        format!("{} is not a capability", quote(name)),
                        remedy,
                    );
                }
            }
        }
        for (index, name) in drop.iter().enumerate() {
            let short = plain(name);
            if let Some(first) = add.iter().position(|other| plain(other) == short) {
                let (a, b) = (
                    path!["spec", "container", "capabilities", "add", first],
                    path!["spec", "container", "capabilities", "drop", index],
                );
                self.say_twice(
                    a,
                    b,
                    Code::CapabilityTwice,
                    format!("`{short}` is both added and dropped"),
                    "remove one of them",
                );
            }
        }
    }

    fn health_check(&mut self, check: &HealthCheck, network: NetworkMode) {
        let HealthCheck {
            http,
            tcp,
            exec,
            interval,
            timeout,
            retries: _,
            start_period,
        } = check;
        let here = |key: &str| [path!["spec", "container", "healthCheck"], path![key]].concat();
        let actions: Vec<&str> = [
            ("http", http.is_some()),
            ("tcp", tcp.is_some()),
            ("exec", exec.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, set)| set.then_some(name))
        .collect();
        match actions.as_slice() {
            [] => {
                let message = "the health check checks nothing";
                self.say_key(
                    path!["spec", "container", "healthCheck"],
                    Code::ProbeAction,
                    message,
                    "add `http`, `tcp` or `exec`",
                );
            }
            [_] => {}
            [first, second, ..] => {
                let before = self.at(&here(first), Aim::Key);
                let span = self.at(&here(second), Aim::Key);
                let message = "a health check does one thing";
                let finding = Finding::new(span, path_text(&here(second)), Code::ProbeAction, message);
                self.out.push(
                    finding
                        .also(before, "this one too")
                        .remedy("keep one of `http`, `tcp` and `exec`"),
                );
            }
        }
        if network == NetworkMode::None {
            for key in ["http", "tcp"] {
                if actions.contains(&key) {
                    let message = "with `networkMode: none` nothing outside the container reaches its ports";
                    self.say_key(&here(key), Code::NetworkOption, message, "use `exec`");
                }
            }
        }
        for (key, span, least, most) in [
            ("interval", interval, Span { millis: 100 }, DAY),
            ("timeout", timeout, Span { millis: 1 }, Span::from_secs(600)),
            ("startPeriod", start_period, Span { millis: 0 }, DAY),
        ] {
            if let Some(span) = span
                && (*span < least || *span > most)
            {
                let message = format!("{span} is not between {least} and {most}");
                self.say(
                    &here(key),
                    Code::ProbeTiming,
                    message,
                    format!("write a duration from `{least}` to `{most}`"),
                );
            }
        }
        if let Some(http) = http {
            for (name, value) in &http.headers {
                let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
                if name.is_empty() || !name.bytes().all(token) {
                    let place = [here("http"), path!["headers", name.as_str()].to_vec()].concat();
                    self.say_key(
                        &place,
                        Code::ProbeHeader,
                        format!("{} is not a header's name", quote(name)),
                        "write it without spaces and colons",
                    );
                } else if value.chars().any(|c| c.is_control() && c != '\t') {
                    let place = [here("http"), path!["headers", name.as_str()].to_vec()].concat();
                    self.say(
                        &place,
                        Code::ProbeHeader,
                        "a header's value is one line without control characters",
                        "remove them",
                    );
                }
            }
        }
        if let Some(exec) = exec
            && exec.command.first().is_some_and(|word| word.0.is_empty())
        {
            let place = [here("exec"), path!["command", 0usize].to_vec()].concat();
            self.say(
                &place,
                Code::ProbeAction,
                "the command is empty",
                "write the program to run",
            );
        }
    }
}

fn volume_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (2..=255).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b))
}

fn is_signal(text: &str) -> bool {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, sign: char| {
        rest.is_empty()
            || rest
                .strip_prefix(sign)
                .and_then(|n| n.parse::<u8>().ok())
                .is_some_and(|n| (1..=15).contains(&n))
    };
    SIGNALS.contains(&name)
        || name.strip_prefix("RTMIN").is_some_and(|rest| real_time(rest, '+'))
        || name.strip_prefix("RTMAX").is_some_and(|rest| real_time(rest, '-'))
}

const SIGNALS: [&str; 35] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "UNUSED", "URG",
    "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
