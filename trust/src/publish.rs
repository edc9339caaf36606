//! How sealing keys are made known, and whose they are believed to be. In a cluster that has authorities a key is stated
//! under its holder's certificate ([`crate::seal::Statement`]); in one that has none, a key is believed as the store tells
//! it: there, who can write the store can have what is sealed from then on sealed for himself, and sealing protects copies
//! of the store, not the store. Which of the two a cluster is, each host knows from its own disk, never from the store.
//! Controllers and agents publish, the leader and `reeve login` read.

use std::str::FromStr as _;

use data_encoding::BASE64;

use crate::certificate::Certificate;
use crate::identity::{ClusterId, Identity, Name, Role, Who};
use crate::key::Key;
use crate::seal::{MAX_STATEMENT_BYTES, Reader, SealingPublic, Statement, StatementError};
use crate::sign::{Domain, KeyMismatch, Signature};
use crate::trusted::{Trust, Use};
use crate::validity::Time;

const PLAIN: &str = "plain:";
const STATED: &str = "stated:";

/// Why a published key is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishedError {
    #[error("it is no sealing key as this release publishes one")]
    NotAKey,
    #[error("it is stated by nobody, and in a cluster of seeds every key is")]
    NotStated,
    #[error("it is stated under a certificate, and this host has no authority to check that with")]
    NoAuthority,
    #[error("its statement does not count")]
    Statement(#[source] StatementError),
    #[error("no certificate of this cluster has signed it")]
    NotSigned,
    #[error("it is stated by {found}, and is used as another's")]
    SomebodyElse { found: String },
}

/// A node's signature over what it says of its link to others, with the certificate that it is under, in PEM.
///
/// # Errors
/// When the key is not the certificate's.
pub fn sign_link(
    document: &[u8],
    node: &str,
    certificate: &Certificate,
    key: &Key,
) -> Result<(String, String), KeyMismatch> {
    let signature = Signature::of(key, certificate, link_of(node), document)?;
    Ok((certificate.to_pem(), signature.to_string()))
}

/// Whether a node said this of its link, under a certificate of its own that is trusted now.
///
/// # Errors
/// When it did not, or it is not known who did.
pub fn verify_link(
    document: &[u8],
    node: &Name,
    (certificate, signature): (&str, &str),
    trust: &Trust,
    now: Time,
) -> Result<(), PublishedError> {
    if certificate.len() > MAX_STATEMENT_BYTES * 2 {
        return Err(PublishedError::NotSigned);
    }
    let told = Certificate::from_pem(certificate).map_err(|_| PublishedError::NotSigned)?;
    let certificate = trust
        .verify(&told.der(), Use::Stating, now)
        .map_err(|distrust| PublishedError::Statement(StatementError::Distrust(distrust)))?;
    let who = &certificate.identity().who;
    if who.role() != Role::Node || who.name() != node {
        return Err(PublishedError::SomebodyElse {
            found: who.subject().to_string(),
        });
    }
    let signature: Signature = signature.parse().map_err(|_| PublishedError::NotSigned)?;
    let Domain { word, about } = link_of(node.as_str());
    let signed = signature.signer() == certificate.fingerprint()
        && signature.is_by(certificate.key(), trust.cluster(), word, about, document);
    if signed { Ok(()) } else { Err(PublishedError::NotSigned) }
}

const fn link_of(node: &str) -> Domain<'_> {
    Domain {
        word: "link",
        about: node,
    }
}

/// Whom one expects behind a published key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder<'a> {
    Node(&'a Name),
    /// A controller: by itself, or on the host of a server.
    Controller,
}

/// What a host's own disk says of whom to believe.
#[derive(Clone, Debug)]
pub enum Believed {
    /// The cluster has no authorities.
    Store(ClusterId),
    /// It has these.
    Authorities(Box<Trust>),
}

/// A key as it is published where there is no authority.
#[must_use]
pub fn plain(key: SealingPublic) -> String {
    format!("{PLAIN}{key}")
}

/// A key as it is published with its holder's statement.
#[must_use]
pub fn stated(statement: &[u8]) -> String {
    format!("{STATED}{}", BASE64.encode(statement))
}

impl Believed {
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        match self {
            Self::Store(cluster) => *cluster,
            Self::Authorities(trust) => trust.cluster(),
        }
    }

    /// The reader behind a published key.
    ///
    /// # Errors
    /// When it is not to be believed as this holder's.
    pub fn reader(&self, published: &str, holder: Holder<'_>, now: Time) -> Result<Reader, PublishedError> {
        if published.len() > MAX_STATEMENT_BYTES * 2 {
            return Err(PublishedError::NotAKey);
        }
        match (self, published.strip_prefix(PLAIN), published.strip_prefix(STATED)) {
            (Self::Store(cluster), Some(digits), _) => {
                let key = SealingPublic::from_str(digits).map_err(|_| PublishedError::NotAKey)?;
                let who = match holder {
                    Holder::Node(name) => Who::Node(name.clone()),
                    Holder::Controller => Who::Controller(Name::from_str("controller").expect("a name")),
                };
                Ok(Reader::as_told(Identity::new(*cluster, who), key))
            }
            (Self::Authorities(trust), _, Some(text)) => {
                let bytes = BASE64.decode(text.as_bytes()).map_err(|_| PublishedError::NotAKey)?;
                let reader = Statement::verify(&bytes, trust, now).map_err(PublishedError::Statement)?;
                let who = &reader.identity().who;
                let fits = match holder {
                    Holder::Node(name) => who.role() == Role::Node && who.name() == name,
                    Holder::Controller => matches!(who.role(), Role::Controller | Role::Server),
                };
                if fits {
                    Ok(reader)
                } else {
                    Err(PublishedError::SomebodyElse {
                        found: who.subject().to_string(),
                    })
                }
            }
            (Self::Store(_), _, Some(_)) => Err(PublishedError::NoAuthority),
            (Self::Authorities(_), Some(_), _) => Err(PublishedError::NotStated),
            (_, None, None) => Err(PublishedError::NotAKey),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::SealingKey;
    use crate::testing::{DAY, NOW, World};

    #[test]
    fn with_authorities_only_what_the_right_holder_states_counts() {
        let world = World::new();
        let believed = Believed::Authorities(Box::new(world.trust()));
        let key = SealingKey::generate().expect("randomness").public();
        let of = |rest: &str| {
            let held = world.holder(rest);
            stated(&Statement::write(key, &held.certificate, &held.key).expect("a statement"))
        };
        let (n1, n2): (Name, Name) = ("n1".parse().expect("a name"), "n2".parse().expect("a name"));
        let node = of("node/n1");
        let reader = believed.reader(&node, Holder::Node(&n1), NOW).expect("its own");
        assert_eq!(reader.key(), key);
        for holder in [Holder::Node(&n2), Holder::Controller] {
            let error = believed.reader(&node, holder, NOW).expect_err("another's");
            assert!(matches!(error, PublishedError::SomebodyElse { .. }), "{error}");
        }
        for rest in ["server/s1", "controller/c1"] {
            assert!(believed.reader(&of(rest), Holder::Controller, NOW).is_ok(), "{rest}");
            assert!(believed.reader(&of(rest), Holder::Node(&n1), NOW).is_err(), "{rest}");
        }
        // Whoever writes the store may put a key there, and nothing is sealed for it.
        let error = believed
            .reader(&plain(key), Holder::Node(&n1), NOW)
            .expect_err("nobody states it");
        assert_eq!(error, PublishedError::NotStated);
        let late = NOW.plus(4_000 * DAY);
        assert!(matches!(
            believed.reader(&node, Holder::Node(&n1), late),
            Err(PublishedError::Statement(_))
        ));
        let another = Believed::Store(world.cluster());
        assert_eq!(
            another.reader(&node, Holder::Node(&n1), NOW),
            Err(PublishedError::NoAuthority)
        );
    }

    #[test]
    fn a_link_is_its_own_nodes_word_and_nobody_elses() {
        let world = World::new();
        let trust = world.trust();
        let said = b"{\"key\":\"k\"}";
        let by = |rest: &str, node: &str| {
            let held = world.holder(rest);
            sign_link(said, node, &held.certificate, &held.key).expect("a signature")
        };
        let n1: Name = "n1".parse().expect("a name");
        let check = |document: &[u8], (pem, signature): &(String, String), now| {
            verify_link(document, &n1, (pem, signature), &trust, now)
        };
        let own = by("node/n1", "n1");
        check(said, &own, NOW).expect("its own");
        assert_eq!(check(b"{\"key\":\"x\"}", &own, NOW), Err(PublishedError::NotSigned));
        let other = by("node/n2", "n1");
        assert!(matches!(
            check(said, &other, NOW),
            Err(PublishedError::SomebodyElse { .. })
        ));
        let server = by("server/n1", "n1");
        assert!(matches!(
            check(said, &server, NOW),
            Err(PublishedError::SomebodyElse { .. })
        ));
        // Signed by the right one, as what another node says.
        assert_eq!(check(said, &by("node/n1", "n2"), NOW), Err(PublishedError::NotSigned));
        let late = NOW.plus(4_000 * DAY);
        assert!(matches!(check(said, &own, late), Err(PublishedError::Statement(_))));
        for (pem, signature) in [
            ("", ""),
            ("x", "1.a.b"),
            (own.0.as_str(), ""),
            (own.0.as_str(), "9.x.y"),
        ] {
            let told = (pem.to_owned(), signature.to_owned());
            assert_eq!(check(said, &told, NOW), Err(PublishedError::NotSigned));
        }
    }

    #[test]
    fn without_authorities_a_key_is_believed_and_a_statement_is_not_judged() {
        let cluster = ClusterId::from_bytes([7; 16]);
        let key = SealingKey::generate().expect("randomness").public();
        let name: Name = "n1".parse().expect("a name");
        let believed = Believed::Store(cluster);
        let reader = believed.reader(&plain(key), Holder::Node(&name), Time::from_unix_seconds(0));
        let reader = reader.expect("a reader");
        assert_eq!((reader.key(), reader.identity().cluster), (key, cluster));
        let told = |text: &str| {
            let read = believed.reader(text, Holder::Controller, Time::from_unix_seconds(0));
            read.expect_err("no reader")
        };
        assert_eq!(told(&stated(b"x")), PublishedError::NoAuthority);
        for text in ["", "plain:", "plain:zz", "x", &"a".repeat(100_000)] {
            assert_eq!(told(text), PublishedError::NotAKey, "{text:.20}");
        }
    }
}
