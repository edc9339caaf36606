//! The rules beyond the published schema: what one key means beside another, and what Docker or the kernel would refuse
//! later. Admission calls it on documents that the schema admits. Every rule has a code in
//! [`SEMANTIC_RULES`](crate::problem::SEMANTIC_RULES), a place and a remedy; nothing here asks a clock, a host or a store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::admit::{Aim, point};
use crate::container::{
    Capabilities, ContainerSpec, HealthCheck, HostPort, IpcMode, Mount, MountType, NetworkMode, PortSpec, Resources,
    SwapLimit,
};
use crate::kinds::{Document, Kind};
use crate::meta::{Metadata, Resource};
use crate::node::NodeSpec;
use crate::placement::{Expression, Operator, Placement, Toleration, TolerationOperator};
use crate::problem::{Code, Finding, quote};
use crate::service::{Mode, RestartBackoff, ServiceSpec, Update};
use crate::units::{ByteSize, Span};
use crate::yaml::{Content, Step, TextSpan, Tree, path_text};

/// The least memory limit that engines take.
const LEAST_MEMORY: ByteSize = ByteSize(6 << 20);
const HOUR: Span = Span::from_secs(3_600);
const DAY: Span = Span::from_secs(86_400);

macro_rules! path {
    ($($step:expr),* $(,)?) => { &[$(Step::from($step)),*][..] };
}

/// Rules about how single values are written: NUL, and numbers and booleans that would not be kept as written.
pub(crate) fn scalars(kind: Kind, tree: &Tree, text: &str, out: &mut Vec<Finding>) {
    walk(kind, tree, text, &mut Vec::new(), out);
}

/// Recursion is bounded by the composer's limit on depth.
fn walk<'a>(kind: Kind, node: &'a Tree, text: &str, trail: &mut Vec<StepRef<'a>>, out: &mut Vec<Finding>) {
    let written = || text.get(node.span.start..node.span.end).unwrap_or_default();
    match &node.content {
        Content::Null => {}
        Content::Text(value) => {
            if value.contains('\0') {
                out.push(
                    Finding::new(
                        node.span,
                        path_text(&owned(trail)),
                        Code::ControlCharacter,
                        "the text contains NUL",
                    )
                    .remedy("remove the character"),
                );
            }
        }
        Content::Bool(value) => {
            if written() != if *value { "true" } else { "false" } {
                ambiguous(kind, node, written(), &value.to_string(), trail, out);
            }
        }
        Content::Number(number) => {
            let kept = number.to_string();
            if number.is_f64() || written() != kept {
                ambiguous(kind, node, written(), &kept, trail, out);
            }
        }
        Content::List(items) => {
            for (index, item) in items.iter().enumerate() {
                trail.push(StepRef::Index(index));
                walk(kind, item, text, trail, out);
                trail.pop();
            }
        }
        Content::Mapping(entries) => {
            for (key, value) in entries {
                trail.push(StepRef::Key(&key.name));
                if key.name.contains('\0') {
                    out.push(
                        Finding::new(
                            key.span,
                            path_text(&owned(trail)),
                            Code::ControlCharacter,
                            "the key contains NUL",
                        )
                        .remedy("remove the character"),
                    );
                }
                walk(kind, value, text, trail, out);
                trail.pop();
            }
        }
    }
}

#[derive(Clone, Copy)]
enum StepRef<'a> {
    Key(&'a str),
    Index(usize),
}

fn owned(trail: &[StepRef<'_>]) -> Vec<Step> {
    let step = |step: &StepRef<'_>| match step {
        StepRef::Key(name) => Step::from(*name),
        StepRef::Index(index) => Step::from(*index),
    };
    trail.iter().map(step).collect()
}

/// `0x1f` where a text is wanted would become `31`, `True` would become `true`, and `2.0` is no whole number to the types.
fn ambiguous(kind: Kind, node: &Tree, written: &str, kept: &str, trail: &[StepRef<'_>], out: &mut Vec<Finding>) {
    let path = owned(trail);
    let Some(schema) = kind.schema_at(&path) else { return };
    let takes = |name: &str| match schema.get("type") {
        Some(Value::String(only)) => only == name,
        Some(Value::Array(names)) => names.iter().any(|known| known == name),
        _ => false,
    };
    let whole = match &node.content {
        Content::Number(number) => number.is_f64() && number.as_f64().is_some_and(|value| value.fract() == 0.0),
        Content::Null | Content::Bool(_) | Content::Text(_) | Content::List(_) | Content::Mapping(_) => false,
    };
    let finding = |code, message: String| Finding::new(node.span, path_text(&path), code, message);
    if takes("boolean") && takes("string") {
        let message = format!(
            "{} is used as a text here, and would be kept as {}",
            quote(written),
            quote(kept)
        );
        out.push(
            finding(Code::AmbiguousText, message)
                .remedy(format!("quote it: \"{}\"", written.trim_matches(['"', '\'']))),
        );
    } else if whole && takes("integer") && !takes("number") {
        let message = format!("{} is a whole number written as a decimal", quote(written));
        out.push(finding(Code::DecimalForWhole, message).remedy("write it without a point or exponent"));
    }
}

/// The rules about a whole document.
pub(crate) fn check(document: &Document, tree: &Tree, text: &str, out: &mut Vec<Finding>) {
    let mut rules = Rules { tree, text, out };
    match document {
        Document::Service(Resource { metadata, spec }) => {
            rules.metadata(metadata);
            rules.service(spec);
        }
        Document::Node(Resource { metadata, spec }) => {
            rules.metadata(metadata);
            rules.node(spec);
        }
    }
}

struct Rules<'a> {
    tree: &'a Tree,
    text: &'a str,
    out: &'a mut Vec<Finding>,
}

impl Rules<'_> {
    fn at(&self, path: &[Step], aim: Aim) -> TextSpan {
        point(self.tree, self.text, path, aim)
    }

    fn say(&mut self, path: &[Step], code: Code, message: impl Into<String>, remedy: impl Into<String>) {
        let span = self.at(path, Aim::Value);
        self.out
            .push(Finding::new(span, path_text(path), code, message).remedy(remedy));
    }

    fn say_key(&mut self, path: &[Step], code: Code, message: impl Into<String>, remedy: impl Into<String>) {
        let span = self.at(path, Aim::Key);
        self.out
            .push(Finding::new(span, path_text(path), code, message).remedy(remedy));
    }

    fn say_twice(&mut self, first: &[Step], second: &[Step], code: Code, message: String, remedy: &str) {
        let before = self.at(first, Aim::Value);
        let span = self.at(second, Aim::Value);
        self.out.push(
            Finding::new(span, path_text(second), code, message)
                .also(before, "first here")
                .remedy(remedy),
        );
    }

    fn has(&self, path: &[Step]) -> bool {
        self.tree.find(path).is_some()
    }

    fn metadata(&mut self, metadata: &Metadata) {
        self.labels(path!["metadata", "labels"], &metadata.labels, Labels::Selecting);
        self.labels(path!["metadata", "annotations"], &metadata.annotations, Labels::Notes);
    }

    fn labels(&mut self, path: &[Step], labels: &BTreeMap<String, String>, rules: Labels) {
        for (key, value) in labels {
            let place = [path, path![key.as_str()]].concat();
            if key.starts_with("reeve.") {
                self.say_key(
                    &place,
                    Code::ReservedLabel,
                    format!("{} is Reeve's own", quote(key)),
                    RESERVED,
                );
            } else if let Err(why) = label_key(key) {
                self.say_key(&place, Code::LabelName, format!("{} {why}", quote(key)), LABEL_KEY);
            }
            match rules {
                Labels::Selecting if value.len() > 63 => {
                    let message = format!("the label has {} bytes; the limit is 63", value.len());
                    self.say(&place, Code::LabelSize, message, "shorten it, or make it an annotation");
                }
                Labels::Selecting if !value.is_empty() && !label_word(value) => {
                    self.say(
                        &place,
                        Code::LabelName,
                        format!("{} is not a label's value", quote(value)),
                        "write letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit",
                    );
                }
                Labels::Notes if value.len() > 4_096 => {
                    let message = format!("the annotation has {} bytes; the limit is 4096", value.len());
                    self.say(
                        &place,
                        Code::LabelSize,
                        message,
                        "shorten it, or keep it elsewhere and note where",
                    );
                }
                Labels::Selecting | Labels::Notes => {}
            }
        }
    }

    fn node(&mut self, spec: &NodeSpec) {
        let NodeSpec {
            labels,
            roles,
            taints,
            unschedulable: _,
            public_address,
            reserved: _,
        } = spec;
        self.labels(path!["spec", "labels"], labels, Labels::Selecting);
        self.distinct(path!["spec", "roles"], roles);
        let mut seen = BTreeMap::new();
        for (index, taint) in taints.iter().enumerate() {
            let place = path!["spec", "taints", index];
            if let Err(why) = label_key(&taint.key) {
                let message = format!("{} {why}", quote(&taint.key));
                self.say(
                    path!["spec", "taints", index, "key"],
                    Code::LabelName,
                    message,
                    LABEL_KEY,
                );
            }
            if let Some(first) = seen.insert((&taint.key, taint.effect), index) {
                let message = format!("the taint {} has this effect twice", quote(&taint.key));
                self.say_twice(
                    path!["spec", "taints", first],
                    place,
                    Code::DuplicateEntry,
                    message,
                    "remove one of them",
                );
            }
        }
        if let Some(address) = public_address
            && address.parse::<IpAddr>().is_err()
            && !host_name(address)
        {
            let message = format!("{} is neither an address nor a host name", quote(address));
            self.say(
                path!["spec", "publicAddress"],
                Code::HostName,
                message,
                "write it without scheme and port",
            );
        }
    }

    fn service(&mut self, spec: &ServiceSpec) {
        let ServiceSpec {
            mode,
            replicas: _,
            container,
            placement,
            tolerations,
            restart_policy: _,
            restart_backoff,
            update,
        } = spec;
        if *mode == Mode::Global {
            for place in [
                path!["spec", "replicas"],
                path!["spec", "placement", "maxPerNode"],
                path!["spec", "placement", "spread"],
                path!["spec", "placement", "preferred"],
            ] {
                if self.has(place) {
                    let message = "a service with `mode: global` runs one instance on every node it may run on";
                    self.say_key(place, Code::GlobalOption, message, "remove the key, or the mode");
                }
            }
        }
        self.container(container);
        self.placement(placement);
        for (index, toleration) in tolerations.iter().enumerate() {
            self.toleration(index, toleration);
        }
        let RestartBackoff { initial, max } = restart_backoff;
        let (first, last) = (
            initial.unwrap_or(Span::from_secs(1)),
            max.unwrap_or(Span::from_secs(60)),
        );
        if first.millis == 0 || first > last {
            let place = if initial.is_some() { "initial" } else { "max" };
            let message = format!("the delays go from {first} to {last}");
            let remedy = "write an initial delay above 0 and a `max` that is not smaller";
            self.say(
                path!["spec", "restartBackoff", place],
                Code::DurationOrder,
                message,
                remedy,
            );
        }
        self.limit(path!["spec", "restartBackoff", "max"], *max, DAY);
        let Update {
            min_ready,
            progress_deadline,
        } = update;
        self.limit(path!["spec", "update", "minReady"], *min_ready, HOUR);
        self.limit(path!["spec", "update", "progressDeadline"], *progress_deadline, DAY);
        if update.progress_deadline() <= update.min_ready() {
            let place = if progress_deadline.is_some() {
                "progressDeadline"
            } else {
                "minReady"
            };
            let message = format!(
                "an instance has {} to become ready, but must be up for {}",
                update.progress_deadline(),
                update.min_ready()
            );
            self.say(
                path!["spec", "update", place],
                Code::DurationOrder,
                message,
                "make `progressDeadline` the longer one",
            );
        }
    }

    fn limit(&mut self, path: &[Step], span: Option<Span>, most: Span) {
        if let Some(span) = span
            && span > most
        {
            self.say(
                path,
                Code::DurationLimit,
                format!("{span} is longer than {most}"),
                format!("write at most `{most}`"),
            );
        }
    }

    fn distinct<T: Ord + std::fmt::Display>(&mut self, path: &[Step], items: &[T]) {
        let mut seen = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            if let Some(first) = seen.insert(item, index) {
                let (a, b) = ([path, path![first]].concat(), [path, path![index]].concat());
                self.say_twice(
                    &a,
                    &b,
                    Code::DuplicateEntry,
                    format!("`{item}` is said twice"),
                    "remove one of them",
                );
            }
        }
    }

    fn placement(&mut self, placement: &Placement) {
        let Placement {
            node_names,
            roles,
            required,
            preferred,
            spread,
            max_per_node: _,
            affinity: _,
            anti_affinity: _,
            priority: _,
        } = placement;
        self.distinct(path!["spec", "placement", "nodeNames"], node_names);
        self.distinct(path!["spec", "placement", "roles"], roles);
        for (index, expression) in required.iter().enumerate() {
            self.expression(path!["spec", "placement", "required", index], expression);
        }
        for (index, preference) in preferred.iter().enumerate() {
            self.expression(
                path!["spec", "placement", "preferred", index, "expression"],
                &preference.expression,
            );
        }
        let mut seen = BTreeMap::new();
        for (index, rule) in spread.iter().enumerate() {
            if let Some(first) = seen.insert(&rule.topology_key, index) {
                let message = format!("the spread over {} is said twice", quote(&rule.topology_key));
                let (a, b) = (
                    path!["spec", "placement", "spread", first],
                    path!["spec", "placement", "spread", index],
                );
                self.say_twice(a, b, Code::DuplicateEntry, message, "remove one of them");
            }
        }
    }

    fn expression(&mut self, path: &[Step], expression: &Expression) {
        let Expression { key, operator, values } = expression;
        if let Err(why) = label_key(key) {
            let place = [path, path!["key"]].concat();
            self.say(&place, Code::LabelName, format!("{} {why}", quote(key)), LABEL_KEY);
        }
        let place = [path, path!["values"]].concat();
        let place = if self.has(&place) {
            place
        } else {
            [path, path!["operator"]].concat()
        };
        match operator {
            Operator::In | Operator::NotIn => {
                if values.is_empty() {
                    let message = format!("`{operator:?}` needs at least one value");
                    self.say(&place, Code::ExpressionValues, message, "write `values: [a, b]`");
                }
            }
            Operator::Exists | Operator::DoesNotExist => {
                if !values.is_empty() {
                    let message = format!("`{operator:?}` takes no values");
                    self.say(
                        &place,
                        Code::ExpressionValues,
                        message,
                        "remove `values`, or use `In` or `NotIn`",
                    );
                }
            }
            Operator::Gt | Operator::Lt => {
                if !matches!(values.as_slice(), [one] if one.parse::<i64>().is_ok()) {
                    let message = format!("`{operator:?}` needs exactly one whole number");
                    self.say(&place, Code::ExpressionValues, message, "write `values: [\"4\"]`");
                }
            }
        }
        let mut seen = BTreeSet::new();
        for (index, value) in values.iter().enumerate() {
            if !seen.insert(value) {
                let place = [path, path!["values", index]].concat();
                self.say(
                    &place,
                    Code::DuplicateEntry,
                    format!("{} is said twice", quote(value)),
                    "remove one of them",
                );
            }
        }
    }

    fn toleration(&mut self, index: usize, toleration: &Toleration) {
        let Toleration {
            key,
            operator,
            value,
            effect: _,
        } = toleration;
        let here = path!["spec", "tolerations", index];
        if let Some(key) = key
            && let Err(why) = label_key(key)
        {
            let place = path!["spec", "tolerations", index, "key"];
            self.say(place, Code::LabelName, format!("{} {why}", quote(key)), LABEL_KEY);
        }
        match operator {
            TolerationOperator::Exists if value.is_some() => {
                let place = path!["spec", "tolerations", index, "value"];
                self.say(
                    place,
                    Code::TolerationShape,
                    "`Exists` covers every value",
                    "remove `value`, or write `operator: Equal`",
                );
            }
            TolerationOperator::Equal if key.is_none() => {
                let remedy = "write `key`, or `operator: Exists` to tolerate everything";
                self.say(here, Code::TolerationShape, "`Equal` needs the key of a taint", remedy);
            }
            TolerationOperator::Exists | TolerationOperator::Equal => {}
        }
    }

    fn container(&mut self, container: &ContainerSpec) {
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
            mounts,
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
        self.mounts(mounts);
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
            } = port;
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

    fn mounts(&mut self, mounts: &[Mount]) {
        let at = |index: usize, key: &str| [path!["spec", "container", "mounts", index], path![key]].concat();
        let plain = |path: &str| {
            path.split('/')
                .filter(|part| !part.is_empty() && *part != ".")
                .collect::<Vec<_>>()
                .join("/")
        };
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

/// What labels are for: to select by, or as notes.
#[derive(Clone, Copy)]
enum Labels {
    Selecting,
    Notes,
}

const RESERVED: &str = "choose a key that does not begin with `reeve.`";
const LABEL_KEY: &str = "write 1 to 63 letters, digits, `-`, `_` and `.`, with `a.domain/` before it if you like";
const HOST_NAME: &str = "write letters, digits, `-` and `.`, at most 253 of them";

/// A label's key: a word of at most 63 bytes, with a domain of at most 253 and `/` before it where wanted.
fn label_key(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|prefix| prefix.len() > 253 || !host_name(prefix)) {
        return Err("does not begin with a domain");
    }
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > 63 {
        return Err("is longer than 63 characters");
    }
    if label_word(name) {
        Ok(())
    } else {
        Err("has characters that a key cannot have")
    }
}

fn label_word(text: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn host_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|part| {
            !part.is_empty()
                && part.len() <= 63
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !part.starts_with('-')
                && !part.ends_with('-')
        })
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
