//! Who somebody is: `reeve://<cluster id>/<role>/<name>`, the one URI in a certificate of ours. Every check of who may do
//! what begins with a value made here; a text that is not spelled exactly as we spell it is nobody.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// A cluster's identity: 16 bytes, drawn once or derived from the install token; 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId([u8; 16]);

impl ClusterId {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// A name in an identity: a DNS label, 1 to 63 of `a-z`, `0-9` and `-`, neither first nor last a `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What somebody is in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// A host's agent: client of the store, server of its own port.
    Node,
    /// A member of the store: peer of the others, server of clients, server of joins.
    Server,
    /// A controller: client of the store, signer of documents.
    Controller,
    /// A person at a command line: a client only.
    Person,
}

impl Role {
    const fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Server => "server",
            Self::Controller => "controller",
            Self::Person => "person",
        }
    }
}

/// What a person may do. In text and JSON `admin`, `operator`, `operator+exec`, `operator+host`, `operator+exec+host`,
/// `namespaces=shop,web`, `namespaces=shop,web+exec`, `viewer`, `viewer+run` or `viewer+run=shop,web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rights {
    /// Everything.
    Admin,
    /// Declares and changes what runs, in all namespaces; runs commands only as far as these say.
    Operator(Commands),
    /// Looks, declares nothing, and runs such commands as others have declared by name, as far as this says.
    Viewer(Runs),
    /// Declares and changes what runs in these namespaces, 1 to 16 of them.
    Namespaces {
        names: BTreeSet<Name>,
        /// Whether it also runs commands in their containers.
        exec: bool,
    },
}

/// In which namespaces who looks may run named commands, in containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runs {
    #[default]
    Nowhere,
    Everywhere,
    /// 1 to 16 of them.
    In(BTreeSet<Name>),
}

impl Runs {
    /// Whether this namespace is among them.
    #[must_use]
    pub fn cover(&self, namespace: &str) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Everywhere => true,
            Self::In(names) => names.iter().any(|name| name.as_str() == namespace),
        }
    }
}

/// Which commands an operator may run, where a node allows them at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commands {
    /// In containers.
    pub exec: bool,
    /// On the nodes themselves.
    pub host: bool,
}

/// A role with its name; a person's with the rights granted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    Node(Name),
    Server(Name),
    Controller(Name),
    Person(Name, Rights),
}

impl Who {
    #[must_use]
    pub const fn role(&self) -> Role {
        match self {
            Self::Node(_) => Role::Node,
            Self::Server(_) => Role::Server,
            Self::Controller(_) => Role::Controller,
            Self::Person(..) => Role::Person,
        }
    }

    /// Role and name, without a person's rights.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject {
            role: self.role(),
            name: self.name().clone(),
        }
    }

    #[must_use]
    pub const fn name(&self) -> &Name {
        match self {
            Self::Node(name) | Self::Server(name) | Self::Controller(name) | Self::Person(name, _) => name,
        }
    }
}

/// A role and a name, whatever rights go with it: `node/n1`, `person/anna`. What a token admits and a revocation names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subject {
    pub role: Role,
    pub name: Name,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}
impl FromStr for Subject {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let (role, name) = text.split_once('/').ok_or(IdentityError::Role)?;
        let role = match role {
            "node" => Role::Node,
            "server" => Role::Server,
            "controller" => Role::Controller,
            "person" => Role::Person,
            _ => return Err(IdentityError::Role),
        };
        Ok(Self {
            role,
            name: name.parse()?,
        })
    }
}

/// Somebody in one cluster. In text and JSON: `reeve://<cluster id>/node/n1`, `reeve://<cluster id>/person/anna?admin`,
/// `reeve://<cluster id>/person/otto?namespaces=shop,web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    pub cluster: ClusterId,
    pub who: Who,
}

const MAX_NAMESPACES: usize = 16;
/// Enough for a person with sixteen namespaces of sixty-three letters.
const MAX_TEXT_BYTES: usize = 1_280;
const SCHEME: &str = "reeve://";

/// Why a text is nobody's identity. The text itself is not repeated: it may come from anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("it is longer than {MAX_TEXT_BYTES} bytes")]
    TooLong,
    #[error("it does not begin with {SCHEME}")]
    Scheme,
    #[error("its cluster id is not 32 hexadecimal digits in lower case")]
    Cluster,
    #[error("its role is none of node, server, controller and person")]
    Role,
    #[error("a name in it is not a DNS label")]
    Name,
    #[error(
        "its rights are none of `admin`, `operator` (with `+exec`, `+host`), `namespaces=` with 1 to {MAX_NAMESPACES} names in \
         order (with `+exec`), `viewer` and `viewer+run` (also `=` with names), or are not a person's"
    )]
    Rights,
}

impl Identity {
    #[must_use]
    pub const fn new(cluster: ClusterId, who: Who) -> Self {
        Self { cluster, who }
    }

    /// The common name of the certificate: the user that the store sees. `node.n1`, `controller.c1`, `person.anna`, and
    /// for all servers alike `server`, so that the store's peers can demand it of each other
    /// (`--peer-cert-allowed-cn server`): without that, any certificate of the authority could speak as a peer.
    #[must_use]
    pub fn common_name(&self) -> String {
        match &self.who {
            Who::Server(_) => SERVER_COMMON_NAME.to_owned(),
            Who::Node(name) | Who::Controller(name) | Who::Person(name, _) => {
                format!("{}.{name}", self.who.role().word())
            }
        }
    }
}

/// What the store's members demand of each other's certificates.
pub const SERVER_COMMON_NAME: &str = "server";

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (role, name) = (self.who.role().word(), self.who.name());
        write!(f, "{SCHEME}{}/{role}/{name}", self.cluster)?;
        match &self.who {
            Who::Node(_) | Who::Server(_) | Who::Controller(_) => Ok(()),
            Who::Person(_, rights) => write!(f, "?{rights}"),
        }
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Viewer(Runs::Nowhere) => f.write_str("viewer"),
            Self::Viewer(Runs::Everywhere) => f.write_str("viewer+run"),
            Self::Viewer(Runs::In(names)) => write!(f, "viewer+run={}", listed(names)),
            Self::Operator(Commands { exec, host }) => {
                let more = |granted: bool, word| if granted { word } else { "" };
                write!(f, "operator{}{}", more(*exec, "+exec"), more(*host, "+host"))
            }
            Self::Namespaces { names, exec } => {
                write!(f, "namespaces={}{}", listed(names), if *exec { "+exec" } else { "" })
            }
        }
    }
}

fn listed(names: &BTreeSet<Name>) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(",")
}

/// 1 to 16 names, in order and each once: one set of rights has one spelling.
fn names(text: &str) -> Result<BTreeSet<Name>, IdentityError> {
    let mut names = BTreeSet::new();
    for part in text.split(',') {
        let name: Name = part.parse()?;
        if names.last().is_some_and(|last| *last >= name) || names.len() == MAX_NAMESPACES {
            return Err(IdentityError::Rights);
        }
        names.insert(name);
    }
    Ok(names)
}

impl FromStr for Identity {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(IdentityError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityError::Scheme)?;
        let (cluster, rest) = rest.split_once('/').ok_or(IdentityError::Cluster)?;
        let cluster: ClusterId = cluster.parse()?;
        let (subject, rights) = match rest.split_once('?') {
            Some((subject, rights)) => (subject, Some(rights)),
            None => (rest, None),
        };
        let Subject { role, name } = subject.parse()?;
        let who = match (role, rights) {
            (Role::Node, None) => Who::Node(name),
            (Role::Server, None) => Who::Server(name),
            (Role::Controller, None) => Who::Controller(name),
            (Role::Person, Some(rights)) => Who::Person(name, rights.parse()?),
            (Role::Node | Role::Server | Role::Controller, Some(_)) | (Role::Person, None) => {
                return Err(IdentityError::Rights);
            }
        };
        Ok(Self { cluster, who })
    }
}

impl FromStr for Rights {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let operator = |exec, host| Ok(Self::Operator(Commands { exec, host }));
        match text {
            "admin" => return Ok(Self::Admin),
            "viewer" => return Ok(Self::Viewer(Runs::Nowhere)),
            "viewer+run" => return Ok(Self::Viewer(Runs::Everywhere)),
            "operator" => return operator(false, false),
            "operator+exec" => return operator(true, false),
            "operator+host" => return operator(false, true),
            "operator+exec+host" => return operator(true, true),
            _ => {}
        }
        if let Some(list) = text.strip_prefix("viewer+run=") {
            return Ok(Self::Viewer(Runs::In(names(list)?)));
        }
        let list = text.strip_prefix("namespaces=").ok_or(IdentityError::Rights)?;
        let (list, exec) = match list.strip_suffix("+exec") {
            Some(list) => (list, true),
            None => (list, false),
        };
        let names = names(list)?;
        Ok(Self::Namespaces { names, exec })
    }
}

impl FromStr for Name {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdentityError::Name)
        }
    }
}

impl FromStr for ClusterId {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        crate::key::decoded(&HEXLOWER, text)
            .map(Self)
            .ok_or(IdentityError::Cluster)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&HEXLOWER.encode(&self.0))
    }
}
impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

macro_rules! as_text {
    ($($type:ident),*) => {$(
        impl TryFrom<String> for $type {
            type Error = IdentityError;
            fn try_from(text: String) -> Result<Self, IdentityError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}
as_text!(ClusterId, Name, Rights, Subject, Identity);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const C: &str = "000102030405060708090a0b0c0d0e0f";

    fn parsed(rest: &str) -> Result<Identity, IdentityError> {
        format!("reeve://{C}/{rest}").parse()
    }

    #[test]
    fn an_identity_is_read_as_it_is_written() {
        for rest in [
            "node/n1",
            "server/10-0-0-1",
            "controller/c",
            "person/anna?admin",
            "person/otto?namespaces=shop,web",
            "person/otto?namespaces=shop,web+exec",
            "person/otto?viewer",
            "person/otto?viewer+run",
            "person/otto?viewer+run=shop,web",
            "person/otto?operator",
            "person/otto?operator+exec",
            "person/otto?operator+host",
            "person/otto?operator+exec+host",
        ] {
            assert_eq!(parsed(rest).unwrap().to_string(), format!("reeve://{C}/{rest}"));
        }
    }

    #[test]
    fn what_is_not_spelled_our_way_is_nobody() {
        for (rest, why) in [
            ("authority/x", IdentityError::Role),
            ("Node/n1", IdentityError::Role),
            ("node", IdentityError::Role),
            ("node/", IdentityError::Name),
            ("node/N1", IdentityError::Name),
            ("node/n1/", IdentityError::Name),
            ("node/-n", IdentityError::Name),
            ("node/n-", IdentityError::Name),
            ("node/n1.a", IdentityError::Name),
            ("node/n1%2e", IdentityError::Name),
            ("node/n1#x", IdentityError::Name),
            ("node/n1?admin", IdentityError::Rights),
            ("controller/c?", IdentityError::Rights),
            ("person/anna", IdentityError::Rights),
            ("person/anna?", IdentityError::Rights),
            ("person/anna?admin&x", IdentityError::Rights),
            ("person/anna?operator+host+exec", IdentityError::Rights),
            ("person/anna?viewer+exec", IdentityError::Rights),
            ("person/anna?viewer+run=", IdentityError::Name),
            ("person/anna?viewer+run=b,a", IdentityError::Rights),
            ("person/anna?namespaces=a+host", IdentityError::Name),
            ("person/anna?namespaces=a+exec+exec", IdentityError::Name),
            ("person/anna?namespaces=+exec", IdentityError::Name),
            ("person/anna?operator+", IdentityError::Rights),
            ("person/anna?namespaces=", IdentityError::Name),
            ("person/anna?namespaces=b,a", IdentityError::Rights),
            ("person/anna?namespaces=a,a", IdentityError::Rights),
            ("person/anna?namespaces=a,", IdentityError::Name),
        ] {
            assert_eq!(parsed(rest), Err(why), "{rest}");
        }
        assert_eq!("https://x/node/n1".parse::<Identity>(), Err(IdentityError::Scheme));
        assert_eq!("reeve://AB/node/n1".parse::<Identity>(), Err(IdentityError::Cluster));
        assert_eq!(
            format!("reeve://user@{C}/node/n1").parse::<Identity>(),
            Err(IdentityError::Cluster)
        );
        assert_eq!("x".repeat(5_000).parse::<Identity>(), Err(IdentityError::TooLong));
    }

    #[test]
    fn no_other_role_has_the_servers_common_name() {
        assert_eq!(parsed("server/s1").unwrap().common_name(), "server");
        for rest in ["node/server", "controller/server", "person/server?admin"] {
            assert_ne!(parsed(rest).unwrap().common_name(), "server");
        }
    }

    proptest! {
        #[test]
        fn every_identity_comes_back_from_its_text(
            cluster in any::<[u8; 16]>(), role in 0..4, name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            spaces in proptest::collection::btree_set("[a-z0-9]{1,63}", 0..16),
        ) {
            let name: Name = name.parse().unwrap();
            let spaces: BTreeSet<Name> = spaces.iter().map(|s| s.parse().unwrap()).collect();
            let who = match role {
                0 => Who::Node(name),
                1 => Who::Server(name),
                2 => Who::Controller(name),
                _ if spaces.is_empty() => Who::Person(name, Rights::Admin),
                _ if spaces.len() > 8 => Who::Person(name, Rights::Viewer(Runs::In(spaces))),
                _ => Who::Person(name, Rights::Namespaces { exec: spaces.len() > 4, names: spaces }),
            };
            let identity = Identity::new(ClusterId::from_bytes(cluster), who);
            prop_assert_eq!(identity.to_string().parse::<Identity>(), Ok(identity));
        }

        #[test]
        fn what_is_read_was_spelled_our_way(text in "(reeve://)?[0-9a-f]{31,33}/(node|server|person|\\PC{0,5})/[a-z,?=-]{0,20}(admin)?") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }

        #[test]
        fn no_text_breaks_the_reader(text in "\\PC{0,100}") {
            let _ = text.parse::<Identity>();
        }
    }
}
