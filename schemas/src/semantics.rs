//! The rules beyond the published schema: what one key means beside another, and what Docker or the kernel would refuse
//! later. Admission calls it on documents that the schema admits. Every rule has a code in
//! [`SEMANTIC_RULES`](crate::problem::SEMANTIC_RULES), a place and a remedy; nothing here asks a clock, a host or a store.

macro_rules! path {
    ($($step:expr),* $(,)?) => { &[$(Step::from($step)),*][..] };
}

mod command;
mod container;
mod network_policy;
mod secrets;
mod virtual_ip;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::admit::{Aim, point};
use crate::config_file::{ConfigFileSpec, ContentError};
use crate::image::ImageRef;
use crate::kinds::{Document, Kind};
use crate::meta::{Metadata, Resource};
use crate::node::NodeSpec;
use crate::placement::{Expression, Operator, Placement, Toleration, TolerationOperator};
use crate::problem::{Code, Finding, quote};
use crate::registry::{Account, RegistrySpec, is_registry};
use crate::secret::SecretSpec;
use crate::service::{Mode, RestartBackoff, ServiceSpec, Update};
use crate::units::Span;
use crate::yaml::{Content, Step, TextSpan, Tree, path_text};

const HOUR: Span = Span::from_secs(3_600);
const DAY: Span = Span::from_secs(86_400);

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
        Document::ConfigFile(Resource { metadata, spec }) => {
            rules.metadata(metadata);
            rules.config_file(spec);
        }
        Document::Registry(Resource { metadata, spec }) => {
            rules.metadata(metadata);
            rules.registry(spec);
        }
        Document::Secret(Resource {
            metadata,
            spec: SecretSpec { description: _ },
        }) => rules.metadata(metadata),
        Document::Command(Resource { metadata, spec }) => {
            rules.metadata(metadata);
            rules.command(spec);
        }
        Document::NetworkPolicy(Resource { metadata, spec }) => {
            rules.metadata(metadata);
            rules.network_policy(spec);
        }
        Document::VirtualIP(Resource { metadata, spec }) => {
            rules.metadata(metadata);
            rules.virtual_ip(spec);
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
            if matches!(rules, Labels::Selecting) && key.starts_with("reeve.") {
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

    fn config_file(&mut self, spec: &ConfigFileSpec) {
        let Err(error) = spec.content() else { return };
        let (place, remedy) = match &error {
            ContentError::Count(0) => (
                path!["spec"],
                "add `text:` with the content, or use `reeve upload FILE`",
            ),
            ContentError::Count(_) => (path!["spec"], "keep one of them"),
            ContentError::NotBase64(_) => (path!["spec", "base64"], "write it as `base64 FILE` prints it"),
            ContentError::Size => (path!["spec"], "write `size` beside `digest`, and nowhere else"),
            ContentError::TooLong(_) => (path!["spec"], "use `reeve upload FILE`, which takes up to 8 MiB"),
        };
        self.say(place, Code::FileContent, error.to_string(), remedy);
    }

    fn registry(&mut self, spec: &RegistrySpec) {
        let RegistrySpec {
            registry,
            insecure: _,
            accounts,
        } = spec;
        if !is_registry(registry) {
            self.say(
                path!["spec", "registry"],
                Code::Registry,
                format!("{} is not a registry as images name it", quote(registry)),
                "write `host` or `host:port`, without https:// and without a path",
            );
        }
        let mut seen = BTreeMap::new();
        for (index, account) in accounts.iter().enumerate() {
            let Account {
                user,
                namespaces: _,
                images,
            } = account;
            let place = path!["spec", "accounts", index, "user"];
            if user.contains(':') || user.chars().any(char::is_control) {
                self.say(
                    place,
                    Code::Registry,
                    format!("{} is not a user's name", quote(user)),
                    "write it without `:`; a password is never written here, `reeve login` asks for it",
                );
            }
            if let Some(first) = seen.insert(user, index) {
                self.say_twice(
                    path!["spec", "accounts", first, "user"],
                    place,
                    Code::Registry,
                    format!("the account {} is there twice", quote(user)),
                    "keep one, with the namespaces and images of both",
                );
            }
            for (number, prefix) in images.iter().enumerate() {
                let path = prefix.trim_end_matches('/');
                let fits = path
                    .parse::<ImageRef>()
                    .is_ok_and(|image| image.registry().is_none() && image.tag().is_none() && image.digest().is_none());
                if !fits {
                    self.say(
                        path!["spec", "accounts", index, "images", number],
                        Code::Registry,
                        format!("{} is not the beginning of images' paths", quote(prefix)),
                        "write a path such as `team` or `team/app`, without registry and tag",
                    );
                }
            }
        }
    }

    fn node(&mut self, spec: &NodeSpec) {
        let NodeSpec {
            labels,
            roles,
            taints,
            unschedulable: _,
            exposed: _,
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
            // What is named twice, or itself, does no harm.
            depends_on: _,
            placement,
            tolerations,
            restart_policy: _,
            restart_backoff,
            update,
            // A global one may have none.
            seeds: _,
            replace_after,
            exclusive,
            on_disconnect: _,
        } = spec;
        if *mode == Mode::Global {
            for place in [
                path!["spec", "replicas"],
                path!["spec", "seeds"],
                path!["spec", "replaceAfter"],
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
        if *exclusive && *mode == Mode::Global {
            let message = "a service with `mode: global` runs one instance on every node, and none of them elsewhere";
            let remedy = "remove the key, or the mode";
            self.say_key(path!["spec", "exclusive"], Code::ExclusiveOption, message, remedy);
        }
        if *exclusive && replace_after.is_some() {
            let message = "a service with `exclusive: true` is never replaced by time alone";
            let remedy = "remove the key: an instance is replaced when its node says that it is gone, or a person with `reeve node \
                          confirm-lost`";
            self.say_key(path!["spec", "replaceAfter"], Code::ExclusiveOption, message, remedy);
        }
        let stop_after = path!["spec", "onDisconnect", "stopAfter"];
        self.limit(stop_after, spec.stop_after(), DAY);
        self.at_least(stop_after, spec.stop_after(), Span::from_secs(10));
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
        self.limit(path!["spec", "replaceAfter"], *replace_after, DAY);
        self.at_least(path!["spec", "replaceAfter"], *replace_after, Span::from_secs(10));
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

    fn at_least(&mut self, path: &[Step], span: Option<Span>, least: Span) {
        if let Some(span) = span
            && span < least
        {
            let message = format!("{span} is shorter than {least}");
            self.say(path, Code::DurationLimit, message, format!("write at least `{least}`"));
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
