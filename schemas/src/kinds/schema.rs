//! The published JSON Schema of a kind, made from its types and brought to the form that people, editors and our own
//! messages can use: no `null`, no alternatives, enumerations as lists, the meaning of each pattern beside it.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Kind;
use crate::image::ImageRef;
use crate::meta::{API_VERSION, Metadata};
use crate::names::{LABEL_PATTERN, NODE_PATTERN};

/// Formats are annotations to other validators; to ours they are checks beyond the schema.
pub(crate) const FORMAT_IMAGE: &str = "reeve-image";
pub(crate) const FORMAT_SIZE: &str = "reeve-size";
pub(crate) const FORMAT_CPU: &str = "reeve-cpu";
pub(crate) const FORMAT_DURATION: &str = "reeve-duration";
pub(crate) const FORMAT_ADDRESS: &str = "reeve-address";

/// What each pattern of the schemas means to people; published as `patternErrorMessage`, which editors show.
pub(crate) const PATTERNS: &[(&str, &str)] = &[
    (
        LABEL_PATTERN,
        "a name is 1 to 63 of a-z, 0-9 and `-`, and begins and ends with a letter or digit",
    ),
    (
        NODE_PATTERN,
        "a node's name is 1 to 63 of a-z, 0-9 and `-`, begins and ends with a letter or digit, and has a letter",
    ),
    (
        SIZE_PATTERN,
        "a size is a number of bytes with k, M, G, T, Ki, Mi, Gi or Ti, such as `512Mi`",
    ),
    (
        CPU_PATTERN,
        "CPU is written in cores such as `2` or `0.5`, or in thousandths such as `500m`",
    ),
    (
        DURATION_PATTERN,
        "a duration is written with ms, s, m, h or d, such as `10s` or `1m30s`",
    ),
    (SWAP_PATTERN, "a swap limit is a size such as `1Gi`, or `unlimited`"),
    ("^/", "an absolute path begins with `/`"),
    ("^/.*[^/].*$", "a target is an absolute path other than `/`"),
    ("^/[!-~]*$", "a request path begins with `/` and has no spaces"),
    ("^auto$", "a host port is a number from 1 to 65535, or `auto`"),
    (
        "^[0-7]{3,4}$",
        "a mode is 3 or 4 octal digits in quotes, such as \"1777\"",
    ),
    ("^/.*[^/]$", "a file's path is absolute and does not end with `/`"),
    (
        "^[0-9]{1,10}(:[0-9]{1,10})?$",
        "an owner is a user's number, or `user:group` by number, such as \"101:101\"",
    ),
    (
        "^0?[0-7]{3}$",
        "a file's mode is 3 octal digits in quotes, such as \"0440\"",
    ),
    (
        "^sha256:[0-9a-f]{64}$",
        "a digest is `sha256:` and 64 hexadecimal digits, as `sha256sum` prints them",
    ),
    ("^[rwm]{1,3}$", "permissions are a combination of `r`, `w` and `m`"),
    (
        "^(CAP_)?[A-Z][A-Z_]{1,30}$",
        "a capability is written in capitals, such as `NET_ADMIN`, or `ALL`",
    ),
    (
        "^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$",
        "a set of CPUs or memory nodes is written as `0-3` or `0,2`",
    ),
    (
        "^[a-zA-Z0-9][a-zA-Z0-9_./:-]{0,127}$",
        "a logging driver is a name such as `json-file`",
    ),
    (
        "^[0-9]{1,19}$",
        "a resource version is a whole number in quotes, as `reeve get` prints it",
    ),
];

const SIZE_PATTERN: &str = r"^[0-9]{1,18}(\.[0-9]{1,18})?(k|M|G|T|Ki|Mi|Gi|Ti)?$";
const CPU_PATTERN: &str = r"^([0-9]{1,7}m|[0-9]{1,4}(\.[0-9]{1,3})?)$";
const DURATION_PATTERN: &str = r"^([0-9]{1,12}(\.[0-9]{1,9})?(d|h|m|s|ms))+$";
const SWAP_PATTERN: &str = r"^(unlimited|[0-9]{1,18}(\.[0-9]{1,18})?(k|M|G|T|Ki|Mi|Gi|Ti)?)$";

/// The schema of a kind, from its types.
pub(super) fn generate<S: schemars::JsonSchema>(kind: Kind) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let metadata = generator.subschema_for::<Metadata>().to_value();
    let spec = generator.subschema_for::<S>().to_value();
    let mut defs: Map<String, Value> = generator.take_definitions(true);
    let image = generator_name::<ImageRef>();
    if let Some(Value::Object(image)) = defs.get_mut(&image) {
        image.insert("format".to_owned(), json!(FORMAT_IMAGE));
    }
    let mut metadata = metadata;
    if !kind.namespaced() {
        // A cluster-wide kind has no namespace, and a node's name has a letter: it gets a Metadata of its own.
        let own = format!("{}Metadata", kind.name());
        if let Some(mut def) = defs.remove("Metadata") {
            if let Some(properties) = def.get_mut("properties").and_then(Value::as_object_mut) {
                properties.remove("namespace");
                if kind == Kind::Node
                    && let Some(name) = properties.get_mut("name").and_then(Value::as_object_mut)
                {
                    name.remove("$ref");
                    name.insert("type".into(), json!("string"));
                    name.insert("pattern".into(), json!(NODE_PATTERN));
                    name.insert("maxLength".into(), json!(63));
                    name.insert(
                        "description".into(),
                        json!("The node's name: a DNS label with at least one letter."),
                    );
                }
            }
            defs.insert(own.clone(), def);
            metadata = json!({ "$ref": format!("#/$defs/{own}") });
        }
    }
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.name(),
        "description": kind.description(),
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": false,
        "properties": {
            "apiVersion": {
                "description": "The version of the words that the document is written in.",
                "type": "string",
                "const": API_VERSION,
            },
            "kind": { "description": "What it is.", "type": "string", "const": kind.name() },
            "metadata": metadata,
            "spec": spec,
        },
        "$defs": defs,
    });
    tidy(&mut schema);
    prune(&mut schema);
    schema
}

fn generator_name<T: schemars::JsonSchema>() -> String {
    T::schema_name().into_owned()
}

/// Brings a generated schema to the form that is published. Its depth is that of our own types.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            without_null(object);
            enumeration(object);
            if let Some(Value::String(format)) = object.get("format") {
                match format.as_str() {
                    "ip" => {
                        object.insert("format".into(), json!(FORMAT_ADDRESS));
                    }
                    "int64" => {
                        object.entry("maximum").or_insert(json!(i64::MAX));
                        object.remove("format");
                    }
                    "int32" => {
                        object.entry("minimum").or_insert(json!(i32::MIN));
                        object.entry("maximum").or_insert(json!(i32::MAX));
                        object.remove("format");
                    }
                    "uint32" => {
                        object.entry("maximum").or_insert(json!(u32::MAX));
                        object.remove("format");
                    }
                    "uint64" | "uint8" | "uint16" | "int8" | "int16" => {
                        object.remove("format");
                    }
                    _ => {}
                }
            }
            if let Some(Value::String(pattern)) = object.get("pattern") {
                let pattern = pattern.clone();
                let format = match pattern.as_str() {
                    SIZE_PATTERN | SWAP_PATTERN => Some(FORMAT_SIZE),
                    CPU_PATTERN => Some(FORMAT_CPU),
                    DURATION_PATTERN => Some(FORMAT_DURATION),
                    _ => None,
                };
                if let Some(format) = format {
                    object.insert("format".into(), json!(format));
                }
                if let Some((_, meaning)) = PATTERNS.iter().find(|(known, _)| *known == pattern) {
                    object.insert("patternErrorMessage".into(), json!(meaning));
                }
            }
            for inner in object.values_mut() {
                tidy(inner);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `null` is what an empty line of YAML means, and no option's value: leave a key out instead.
fn without_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(branches)) = object.get("anyOf") {
        let rest: Vec<Value> = branches
            .iter()
            .filter(|branch| **branch != json!({ "type": "null" }))
            .cloned()
            .collect();
        if let [Value::Object(only)] = rest.as_slice() {
            let only = only.clone();
            object.remove("anyOf");
            for (key, value) in only {
                object.entry(key).or_insert(value);
            }
        }
    }
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
}

/// `oneOf` of constants, as it is generated when variants are documented, becomes one `enum`.
fn enumeration(object: &mut Map<String, Value>) {
    let Some(Value::Array(branches)) = object.get("oneOf") else {
        return;
    };
    let mut values = Vec::new();
    let mut lines = Vec::new();
    for branch in branches {
        let names: Vec<Value> = match (branch.get("const"), branch.get("enum")) {
            (Some(value), _) => vec![value.clone()],
            (None, Some(Value::Array(values))) => values.clone(),
            _ => return,
        };
        if let (Some(text), Some(name)) = (branch.get("description").and_then(Value::as_str), names[0].as_str()) {
            lines.push(format!("`{name}`: {text}"));
        }
        values.extend(names);
    }
    object.remove("oneOf");
    object.insert("type".into(), json!("string"));
    object.insert("enum".into(), Value::Array(values));
    if !lines.is_empty() {
        let own = object
            .get("description")
            .and_then(Value::as_str)
            .map(|text| format!("{text}\n"))
            .unwrap_or_default();
        object.insert("description".into(), json!(format!("{own}{}", lines.join("\n"))));
    }
}

/// Leaves out definitions that nothing refers to.
fn prune(schema: &mut Value) {
    loop {
        let text = schema.to_string();
        let Some(Value::Object(defs)) = schema.get_mut("$defs") else {
            return;
        };
        let before = defs.len();
        defs.retain(|name, _| text.contains(&format!("\"#/$defs/{name}\"")));
        if defs.len() == before {
            return;
        }
    }
}

/// The definition a schema refers to, or itself.
pub(crate) fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| reference.strip_prefix("#/$defs/"))
        .and_then(|name| root.get("$defs").and_then(|defs| defs.get(name)))
        .unwrap_or(schema)
}
