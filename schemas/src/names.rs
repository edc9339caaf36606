//! The names people give things, parsed once at the door. Every other crate takes these types, so a bad
//! name cannot travel. Names are DNS labels (RFC 1123, no dots): 1 to 63 of `a-z`, `0-9` and `-`, beginning and
//! ending with a letter or digit.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The pattern of a DNS label, as JSON Schemas publish it.
pub const LABEL_PATTERN: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// As [`LABEL_PATTERN`], and at least one letter: a node called `1` could not be told from slot 1.
pub const NODE_PATTERN: &str = "^([0-9][0-9-]*)?[a-z]([a-z0-9-]*[a-z0-9])?$";

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name is 1 to 63 characters long; this one has {0}")]
    Length(usize),
    #[error("a name holds only a-z, 0-9 and `-`, and begins and ends with a letter or digit; `{0}` does not")]
    Characters(String),
    #[error("a node's name has at least one letter; `{0}` has none")]
    AllDigits(String),
}

pub(crate) fn check_label(text: &str) -> Result<(), NameError> {
    if text.is_empty() || text.len() > 63 {
        return Err(NameError::Length(text.chars().count()));
    }
    let bytes = text.as_bytes();
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = good(bytes[0]) && good(bytes[bytes.len() - 1]);
    if ends && bytes.iter().all(|b| good(*b) || *b == b'-') {
        Ok(())
    } else {
        Err(NameError::Characters(text.to_owned()))
    }
}

fn check_node(text: &str) -> Result<(), NameError> {
    check_label(text)?;
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        Ok(())
    } else {
        Err(NameError::AllDigits(text.to_owned()))
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $check:path, $pattern:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String", extend("pattern" = $pattern, "maxLength" = 63))]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                $check(text)?;
                Ok(Self(Arc::from(text)))
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name!(
    /// The name of a resource within its namespace and kind.
    ResourceName, check_label, LABEL_PATTERN
);
name!(
    /// A namespace: keeps one team's or application's names apart from another's. `default` when absent.
    Namespace, check_label, LABEL_PATTERN
);
name!(
    /// The name of a node: a DNS label with at least one letter.
    NodeName, check_node, NODE_PATTERN
);
name!(
    /// A DNS label: 1 to 63 of `a-z`, `0-9`, `-`.
    Label, check_label, LABEL_PATTERN
);

impl From<&NodeName> for ResourceName {
    /// The name of the resource about a node: a node's name is a resource's name too.
    fn from(node: &NodeName) -> Self {
        Self(Arc::clone(&node.0))
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

/// One slot of a workload: `2` of `web.2`, or the node's name where one runs per node (`web.n1`).
/// Indexes begin at 1. Node names have a letter, so the text form is never ambiguous.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Slot {
    Index(u32),
    Node(NodeName),
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Node(node) => write!(f, "{node}"),
        }
    }
}
impl FromStr for Slot {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse::<u32>() {
            Ok(index) if index > 0 && !text.starts_with(['0', '+']) => Ok(Self::Index(index)),
            _ => text.parse().map(Self::Node),
        }
    }
}
impl TryFrom<String> for Slot {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}
impl From<Slot> for String {
    fn from(slot: Slot) -> Self {
        slot.to_string()
    }
}

/// An instance as people name it: `web.2` in its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName {
    pub namespace: Namespace,
    pub workload: ResourceName,
    pub slot: Slot,
}

impl InstanceName {
    /// What its container is called when it runs accepted spec `n`: `<namespace>.<workload>.<slot>.<n>`.
    #[must_use]
    pub fn container(&self, n: u64) -> String {
        format!("{}.{}.{}.{n}", self.namespace, self.workload, self.slot)
    }
}
impl fmt::Display for InstanceName {
    /// Within its namespace: `web.2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.workload, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label_and_nothing_else() {
        for good in ["a", "0", "web", "a-b", "node", "x1", &"a".repeat(63)] {
            assert!(good.parse::<ResourceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<ResourceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_slot_is_an_index_or_a_node_and_never_both() {
        assert_eq!("2".parse(), Ok(Slot::Index(2)));
        assert_eq!("n1".parse::<Slot>().map(|s| s.to_string()), Ok("n1".to_owned()));
        assert!("0".parse::<Slot>().is_err());
        assert!("02".parse::<Slot>().is_err());
        assert!("17".parse::<NodeName>().is_err());
        assert!("4294967296".parse::<Slot>().is_err());
    }
}
