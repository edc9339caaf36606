//! The registry of resource kinds: one line per kind gives its names, its typed document, its JSON Schema and its
//! validator. Keys, admission, the CLI and the generated schemas all ask here.
//!
//! The published schema is the one that admits: it is made from the types once per process, brought to a form that
//! people, editors and our own messages can use (no `null`, no alternatives, enumerations as lists), and compiled once.

mod schema;

use std::sync::OnceLock;

use jsonschema::{PatternOptions, Validator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::schema::generate;
pub(crate) use self::schema::{
    FORMAT_ADDRESS, FORMAT_CPU, FORMAT_DURATION, FORMAT_IMAGE, FORMAT_SIZE, PATTERNS, resolve,
};
use crate::command::CommandSpec;
use crate::config_file::ConfigFileSpec;
use crate::image::ImageRef;
use crate::keys::ResourceKey;
use crate::meta::{API_VERSION, Metadata, Resource};
use crate::network_policy::NetworkPolicySpec;
use crate::node::NodeSpec;
use crate::registry::RegistrySpec;
use crate::secret::SecretSpec;
use crate::service::ServiceSpec;
use crate::units::{ByteSize, Cpu, Span};
use crate::virtual_ip::VirtualIpSpec;
use crate::yaml::{Step, Tree};

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $kind:ident($spec:ty) $scope:ident { $segment:literal, $plural:literal, $short:literal })*) => {
        /// A kind of resource.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[doc = $doc])* $kind,)* }

        /// A document of any kind, typed.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant)] // Most documents are of the large kind.
        pub enum Document { $($(#[doc = $doc])* $kind(Resource<$spec>),)* }

        impl Kind {
            /// Every kind, in the order they are listed to people.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// As keys spell it: `service`.
            #[must_use]
            pub fn segment(self) -> &'static str {
                match self { $(Self::$kind => $segment,)* }
            }
            /// As documents spell it: `Service`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)* }
            }
            /// As people may name many of them: `services`.
            #[must_use]
            pub fn plural(self) -> &'static str {
                match self { $(Self::$kind => $plural,)* }
            }
            /// As people may name it for short: `svc`.
            #[must_use]
            pub fn short(self) -> &'static str {
                match self { $(Self::$kind => $short,)* }
            }
            /// What it is, for people.
            #[must_use]
            pub fn description(self) -> &'static str {
                match self { $(Self::$kind => concat!($($doc,)*).trim_ascii_start(),)* }
            }
            /// Whether resources of this kind live in a namespace.
            #[must_use]
            pub fn namespaced(self) -> bool {
                match self { $(Self::$kind => kinds!(@namespaced $scope),)* }
            }

            fn compiled(self) -> &'static Compiled {
                match self {
                    $(Self::$kind => {
                        static CELL: OnceLock<Compiled> = OnceLock::new();
                        CELL.get_or_init(|| Compiled::new(self, generate::<$spec>(self)))
                    })*
                }
            }

            pub(crate) fn typed(self, mut value: Value) -> Result<Document, TypedError> {
                match self {
                    $(Self::$kind => {
                        let metadata = part(&mut value, "metadata")?;
                        let spec: $spec = part(&mut value, "spec")?;
                        Ok(Document::$kind(Resource { metadata, spec }))
                    })*
                }
            }
        }

        impl Document {
            /// Its kind.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }
            /// Its metadata.
            #[must_use]
            pub fn metadata(&self) -> &Metadata {
                match self { $(Self::$kind(resource) => &resource.metadata,)* }
            }
            /// Its metadata, to add what is Reeve's to say (uid, generation, resourceVersion).
            pub fn metadata_mut(&mut self) -> &mut Metadata {
                match self { $(Self::$kind(resource) => &mut resource.metadata,)* }
            }
            pub(crate) fn spec_value(&self) -> serde_json::Result<Value> {
                match self { $(Self::$kind(resource) => serde_json::to_value(&resource.spec),)* }
            }
        }
    };
    (@namespaced namespaced) => { true };
    (@namespaced cluster) => { false };
}

kinds! {
    /// A workload that keeps running: as a number of replicas, or once on every fitting node.
    Service(ServiceSpec) namespaced { "service", "services", "svc" }
    /// What people say about a node: labels, roles, taints. A node without one works.
    Node(NodeSpec) cluster { "node", "nodes", "no" }
    /// A file that services of its namespace mount, read-only; every change of its content is a new edition.
    ConfigFile(ConfigFileSpec) namespaced { "configfile", "configfiles", "cf" }
    /// A registry of images and the accounts that are used there; `reeve login` keeps their passwords, sealed.
    Registry(RegistrySpec) cluster { "registry", "registries", "reg" }
    /// A value that services of its namespace get, sealed until then: a password, a key, a token. `reeve secret set` sets it.
    Secret(SecretSpec) namespaced { "secret", "secrets", "sec" }
    /// A command that is offered by name: in containers of a service, or on nodes. `reeve run` lists and runs them.
    Command(CommandSpec) namespaced { "command", "commands", "cmd" }
    /// Who may connect to services of its namespace through the cluster's network, and to whom they may.
    NetworkPolicy(NetworkPolicySpec) namespaced { "networkpolicy", "networkpolicies", "netpol" }
    /// An address that one of several nodes holds, and another one when that is lost.
    VirtualIP(VirtualIpSpec) namespaced { "virtualip", "virtualips", "vip" }
}

impl Kind {
    /// Whether resources of this kind run containers. Workloads of one namespace have different names.
    #[must_use]
    pub const fn is_workload(self) -> bool {
        match self {
            Self::Service => true,
            Self::Node
            | Self::ConfigFile
            | Self::Registry
            | Self::Secret
            | Self::Command
            | Self::NetworkPolicy
            | Self::VirtualIP => false,
        }
    }

    /// The kind a key's segment names, exactly.
    #[must_use]
    pub fn from_segment(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.segment() == text)
    }

    /// The kind a document names, exactly: `Service`.
    #[must_use]
    pub fn from_name(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == text)
    }

    /// The kind a person names, in any case: `service`, `services`, `svc`.
    ///
    /// # Errors
    /// A text that names no kind, with the nearest one.
    pub fn from_person(text: &str) -> Result<Self, UnknownKind> {
        let lower = text.to_ascii_lowercase();
        let names = |kind: Kind| [kind.segment(), kind.plural(), kind.short()];
        Self::ALL
            .iter()
            .copied()
            .find(|kind| names(*kind).contains(&lower.as_str()))
            .ok_or_else(|| {
                let near = crate::problem::closest(&lower, Self::ALL.iter().flat_map(|kind| names(*kind)));
                UnknownKind {
                    written: crate::problem::quote(text),
                    near,
                }
            })
    }

    /// The published JSON Schema: draft 2020-12, without remote references.
    #[must_use]
    pub fn schema(self) -> &'static Value {
        &self.compiled().schema
    }

    pub(crate) fn validator(self) -> &'static Validator {
        &self.compiled().validator
    }

    /// The schema of a place, and whether the place is in the schema at all.
    pub(crate) fn schema_at(self, path: &[Step]) -> Option<&'static Value> {
        let root = self.schema();
        let mut at = root;
        for step in path {
            at = match step {
                Step::Key(name) => match at.get("properties").and_then(|properties| properties.get(name)) {
                    Some(found) => found,
                    None => at.get("additionalProperties").filter(|found| found.is_object())?,
                },
                Step::Index(_) => at.get("items")?,
            };
            at = resolve(root, at);
        }
        Some(at)
    }

    /// What the schema says about a place: the words of its key before those of its type.
    pub(crate) fn description_at(self, path: &[Step]) -> Option<&'static str> {
        let own = path.split_last().and_then(|(last, parents)| match last {
            Step::Key(name) => self
                .schema_at(parents)?
                .get("properties")?
                .get(name)?
                .get("description"),
            Step::Index(_) => None,
        });
        own.or_else(|| self.schema_at(path)?.get("description"))
            .and_then(Value::as_str)
    }

    /// The paths of the mappings that have a key of this name, shortest first: where a misplaced key may belong.
    pub(crate) fn homes(self, key: &str) -> Vec<String> {
        let mut homes = Vec::new();
        let mut open = vec![(String::new(), self.schema(), 0)];
        while let Some((path, schema, depth)) = open.pop() {
            let schema = resolve(self.schema(), schema);
            if let Some(Value::Object(properties)) = schema.get("properties") {
                if properties.contains_key(key) {
                    homes.push(path.clone());
                }
                if depth < 6 {
                    for (name, inner) in properties {
                        let inner_path = if path.is_empty() {
                            name.clone()
                        } else {
                            format!("{path}.{name}")
                        };
                        open.push((inner_path, inner, depth + 1));
                    }
                }
            }
            if let Some(items) = schema.get("items") {
                open.push((format!("{path}[]"), items, depth + 1));
            }
        }
        homes.sort_by_key(|path| (path.len(), path.clone()));
        homes
    }
}

/// No kind has that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{written} is not a kind{}; there are {}", near_text(.near), all_kinds())]
pub struct UnknownKind {
    written: String,
    near: Option<&'static str>,
}

fn near_text(near: &Option<&'static str>) -> String {
    near.map(|near| format!(", did you mean `{near}`?")).unwrap_or_default()
}

pub(crate) fn all_kinds() -> String {
    Kind::ALL
        .iter()
        .map(|kind| format!("`{}`", kind.name()))
        .collect::<Vec<_>>()
        .join(" and ")
}

impl Document {
    /// Where it is kept: kind, namespace (`default` when absent) and name.
    #[must_use]
    pub fn key(&self) -> ResourceKey {
        let metadata = self.metadata();
        let namespace = self
            .kind()
            .namespaced()
            .then(|| metadata.namespace.clone().unwrap_or_default());
        ResourceKey {
            namespace,
            kind: self.kind(),
            name: metadata.name.clone(),
        }
    }

    /// The document as JSON, as it is stored and printed: `apiVersion`, `kind`, `metadata`, `spec`; defaults left out.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let metadata = serde_json::to_value(self.metadata()).expect("metadata has string keys and finite numbers");
        let spec = self.spec_value().expect("a spec has string keys and finite numbers");
        json!({ "apiVersion": API_VERSION, "kind": self.kind().name(), "metadata": metadata, "spec": spec })
    }
}

impl Serialize for Document {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

/// Where in a document its types refuse what its schema admits, and why.
#[derive(Debug)]
pub(crate) struct TypedError {
    pub(crate) path: Vec<Step>,
    pub(crate) reason: String,
}

fn part<T: serde::de::DeserializeOwned>(value: &mut Value, key: &'static str) -> Result<T, TypedError> {
    let inner = value.get_mut(key).map_or(Value::Null, Value::take);
    serde_path_to_error::deserialize(inner).map_err(|error| {
        let mut path = vec![Step::Key(key.to_owned())];
        for segment in error.path() {
            match segment {
                serde_path_to_error::Segment::Seq { index } => path.push(Step::Index(*index)),
                serde_path_to_error::Segment::Map { key } => path.push(Step::Key(key.clone())),
                serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => {}
            }
        }
        TypedError {
            path,
            reason: error.inner().to_string(),
        }
    })
}

/// A step from an older version of a kind to a newer one, on the spanned document, so that what a problem is about
/// keeps its place in what the person wrote.
#[derive(Clone, Copy)]
pub(crate) struct Conversion {
    pub(crate) kind: Kind,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    /// Must be total: it leaves alone what it does not understand, and the schema then refuses it.
    pub(crate) convert: fn(&mut Tree),
}

/// Every older version that is still read. Applied one after the other until the version is [`API_VERSION`].
pub(crate) const CONVERSIONS: &[Conversion] = &[];

struct Compiled {
    schema: Value,
    validator: Validator,
}

impl Compiled {
    fn new(kind: Kind, schema: Value) -> Self {
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .with_pattern_options(PatternOptions::regex())
            .should_validate_formats(true)
            .with_format(FORMAT_IMAGE, |text: &str| text.parse::<ImageRef>().is_ok())
            .with_format(FORMAT_SIZE, |text: &str| {
                text == "unlimited" || text.parse::<ByteSize>().is_ok()
            })
            .with_format(FORMAT_CPU, |text: &str| text.parse::<Cpu>().is_ok())
            .with_format(FORMAT_DURATION, |text: &str| text.parse::<Span>().is_ok())
            .with_format(FORMAT_ADDRESS, |text: &str| text.parse::<std::net::IpAddr>().is_ok())
            .build(&schema)
            .unwrap_or_else(|error| {
                unreachable!("the schema of {} is valid, a test compiles it: {error}", kind.name())
            });
        Compiled { schema, validator }
    }
}

/// The schema files as they are published, by file name: one per kind, and `reeve.json` for files that mix kinds.
#[must_use]
pub fn published() -> Vec<(String, String)> {
    let print = |value: &Value| format!("{value:#}\n");
    let mut files: Vec<(String, String)> = Kind::ALL
        .iter()
        .map(|kind| (format!("{}.json", kind.segment()), print(kind.schema())))
        .collect();
    files.push(("reeve.json".to_owned(), print(&combined())));
    files
}

/// One schema for documents of every kind: it chooses by `kind`.
#[must_use]
pub fn combined() -> Value {
    let mut defs = Map::new();
    let mut choices = Vec::new();
    for kind in Kind::ALL {
        let mut schema = kind.schema().clone();
        if let Some(object) = schema.as_object_mut() {
            object.remove("$schema");
            if let Some(Value::Object(inner)) = object.remove("$defs") {
                defs.extend(inner);
            }
        }
        defs.insert(kind.name().to_owned(), schema);
        choices.push(json!({
            "if": { "properties": { "kind": { "const": kind.name() } }, "required": ["kind"] },
            "then": { "$ref": format!("#/$defs/{}", kind.name()) },
        }));
    }
    let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Reeve",
        "description": "Any resource of Reeve.",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "properties": { "kind": { "description": "What it is.", "type": "string", "enum": names } },
        "allOf": choices,
        "$defs": defs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(schema: &Value, look: &mut dyn FnMut(&Map<String, Value>)) {
        match schema {
            Value::Object(object) => {
                look(object);
                object.values().for_each(|inner| each(inner, look));
            }
            Value::Array(items) => items.iter().for_each(|inner| each(inner, look)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn schemas_are_closed_described_and_free_of_alternatives() {
        let mut missing = Vec::new();
        for kind in Kind::ALL {
            each(kind.schema(), &mut |object| {
                let text = Value::Object(object.clone()).to_string();
                if object.contains_key("properties") {
                    assert!(
                        object.get("additionalProperties") == Some(&json!(false)) || object.contains_key("if"),
                        "open: {text}"
                    );
                    let properties = object["properties"].as_object().expect("properties are a mapping");
                    for (name, property) in properties {
                        // `properties` may itself be the name of a property; ours never is.
                        let described = resolve(kind.schema(), property)
                            .get("description")
                            .or(property.get("description"));
                        if described.is_none() {
                            missing.push(name.clone());
                        }
                    }
                }
                for word in ["oneOf", "anyOf", "allOf", "not"] {
                    assert!(!object.contains_key(word), "{word} in {text}");
                }
                if let Some(Value::String(reference)) = object.get("$ref") {
                    assert!(reference.starts_with("#/$defs/"), "{reference}");
                }
                if let Some(Value::String(pattern)) = object.get("pattern") {
                    assert!(
                        object.contains_key("patternErrorMessage"),
                        "no meaning for the pattern {pattern}"
                    );
                }
                if let Some(Value::String(format)) = object.get("format") {
                    assert!(format.starts_with("reeve-"), "{format}");
                }
            });
        }
        assert!(missing.is_empty(), "keys without a description: {missing:?}");
    }

    #[test]
    fn kinds_are_found_by_every_name_a_person_may_use() {
        for text in ["service", "Services", "SVC"] {
            assert_eq!(Kind::from_person(text), Ok(Kind::Service));
        }
        let error = Kind::from_person("servise").expect_err("no kind").to_string();
        assert!(error.contains("did you mean `service`"), "{error}");
        assert_eq!(Kind::from_segment("Service"), None);
        assert_eq!(Kind::from_name("service"), None);
    }

    #[test]
    fn a_key_is_known_to_belong_elsewhere() {
        assert_eq!(Kind::Service.homes("image"), ["spec.container"]);
        assert!(Kind::Service.homes("nonsense").is_empty());
    }
}
