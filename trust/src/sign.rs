//! Signatures over documents, so that the store that carries a document need not be trusted. A signature binds the cluster,
//! what kind of document it is, what it is about, the signer and every byte: nothing signed as one thing verifies as another.
//! Readers keep a [`Keyring`]: a controller's certificate is verified once, pinned, and from then on a signature costs one
//! Ed25519 verification and no X.509.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::certificate::Certificate;
use crate::identity::{ClusterId, Name, Role};
use crate::key::{Fingerprint, Key, PublicKey, decoded, fields};
use crate::trusted::{Distrust, Trust, Use};
use crate::validity::{Time, Validity};

/// What a document is, so that it cannot pass for another: its kind in one word, and what it is about, such as the node of
/// an assignment or the key it is stored at (empty when the document itself says so in a field that its reader checks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain<'a> {
    pub word: &'static str,
    pub about: &'a str,
}

impl<'a> Domain<'a> {
    /// What one node must run.
    #[must_use]
    pub const fn assignment(node: &'a str) -> Self {
        Self {
            word: "assignment",
            about: node,
        }
    }
}

/// Who signs documents: a controller's certificate with its key.
#[derive(Debug)]
pub struct Pen {
    certificate: Certificate,
    key: Key,
}

impl Pen {
    /// # Errors
    /// When the key is not the certificate's.
    pub fn new(certificate: Certificate, key: Key) -> Result<Self, KeyMismatch> {
        if key.public() == *certificate.key() {
            Ok(Self { certificate, key })
        } else {
            Err(KeyMismatch)
        }
    }

    /// What readers must admit before its signatures count.
    #[must_use]
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    #[must_use]
    pub fn sign(&self, domain: Domain<'_>, document: &[u8]) -> Signature {
        Signature::make(
            &self.key,
            self.certificate.fingerprint(),
            self.certificate.identity().cluster,
            domain.word,
            domain.about,
            document,
        )
    }
}

/// A controller's pen, and whom it believes itself.
#[derive(Debug)]
pub struct Signing {
    pub pen: Pen,
    pub trust: Trust,
}

/// Who signed, and the 64 bytes. In text and JSON `1.<signer>.<signature>`, 132 characters.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signature {
    signer: Fingerprint,
    bytes: [u8; 64],
}

/// The length of a signature's text, in bytes.
pub const SIGNATURE_TEXT_BYTES: usize = 132;

impl Signature {
    /// The signature of a certificate's holder over a document.
    ///
    /// # Errors
    /// When the key is not the certificate's.
    pub fn of(key: &Key, certificate: &Certificate, domain: Domain<'_>, document: &[u8]) -> Result<Self, KeyMismatch> {
        if key.public() != *certificate.key() {
            return Err(KeyMismatch);
        }
        let cluster = certificate.identity().cluster;
        Ok(Self::make(
            key,
            certificate.fingerprint(),
            cluster,
            domain.word,
            domain.about,
            document,
        ))
    }

    pub(crate) fn make(
        key: &Key,
        signer: Fingerprint,
        cluster: ClusterId,
        word: &str,
        about: &str,
        document: &[u8],
    ) -> Self {
        Self {
            signer,
            bytes: key.sign(&message(cluster, word, about, &signer, document)),
        }
    }

    /// The fingerprint of the signer: of a certificate, or of an authority's key.
    #[must_use]
    pub const fn signer(&self) -> Fingerprint {
        self.signer
    }

    /// Whether the holder of this key made it, over exactly this.
    pub(crate) fn is_by(&self, key: &PublicKey, cluster: ClusterId, word: &str, about: &str, document: &[u8]) -> bool {
        key.verifies(&message(cluster, word, about, &self.signer, document), &self.bytes)
    }
}

/// The bytes that are signed.
fn message(cluster: ClusterId, word: &str, about: &str, signer: &Fingerprint, document: &[u8]) -> Vec<u8> {
    fields(&[
        b"reeve signature 1",
        word.as_bytes(),
        cluster.bytes(),
        about.as_bytes(),
        signer.bytes(),
        document,
    ])
}

/// The key given is not the one that the certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the private key does not belong to the certificate")]
pub struct KeyMismatch;

/// Why a text is not a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the signature is of a newer form than this version reads")]
    Version,
    #[error("the text is not a signature")]
    NotSignature,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (signer, bytes) = (
            BASE64URL_NOPAD.encode(self.signer.bytes()),
            BASE64URL_NOPAD.encode(&self.bytes),
        );
        write!(f, "1.{signer}.{bytes}")
    }
}
impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}
impl FromStr for Signature {
    type Err = SignatureError;
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let (version, rest) = text.split_once('.').ok_or(SignatureError::NotSignature)?;
        if version != "1" {
            let number = (1..=3).contains(&version.len()) && version.bytes().all(|byte| byte.is_ascii_digit());
            return Err(if number {
                SignatureError::Version
            } else {
                SignatureError::NotSignature
            });
        }
        let (signer, bytes) = rest.split_once('.').ok_or(SignatureError::NotSignature)?;
        Ok(Self {
            signer: Fingerprint::from_bytes(decoded(&BASE64URL_NOPAD, signer).ok_or(SignatureError::NotSignature)?),
            bytes: decoded(&BASE64URL_NOPAD, bytes).ok_or(SignatureError::NotSignature)?,
        })
    }
}
impl TryFrom<String> for Signature {
    type Error = SignatureError;
    fn try_from(text: String) -> Result<Self, SignatureError> {
        text.parse()
    }
}
impl From<Signature> for String {
    fn from(signature: Signature) -> Self {
        signature.to_string()
    }
}

/// A document with its signature on a line of its own below it: how statements are kept and sent. What is signed are the
/// document's bytes as they are, so nothing needs to be encoded twice the same way.
#[must_use]
pub fn attach(mut document: Vec<u8>, signature: &Signature) -> Vec<u8> {
    document.push(b'\n');
    document.extend_from_slice(signature.to_string().as_bytes());
    document
}

/// The document and the signature below it; nothing when there is none.
#[must_use]
pub fn detach(bytes: &[u8]) -> Option<(&[u8], Signature)> {
    let end = bytes.len().checked_sub(SIGNATURE_TEXT_BYTES)?;
    let (document, text) = bytes.split_at(end);
    let signature = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some((document.strip_suffix(b"\n")?, signature))
}

const MEMBER: &[u8] = b",\"signature\":\"";
const MEMBER_END: &[u8] = b"\"}";

/// A JSON object (of one member at least) with its signature as its last member, so that whoever reads JSON still reads it.
/// What is signed are the object's bytes before that.
#[must_use]
pub fn weave(mut object: Vec<u8>, signature: &Signature) -> Vec<u8> {
    debug_assert_eq!(object.last(), Some(&b'}'), "only an object has members");
    object.pop();
    object.extend_from_slice(MEMBER);
    object.extend_from_slice(signature.to_string().as_bytes());
    object.extend_from_slice(MEMBER_END);
    object
}

/// The object as it was signed, and the signature; nothing when it does not end in one, to the byte.
#[must_use]
pub fn unweave(bytes: &[u8]) -> Option<(Vec<u8>, Signature)> {
    let rest = bytes.strip_suffix(MEMBER_END)?;
    let (rest, text) = rest.split_at(rest.len().checked_sub(SIGNATURE_TEXT_BYTES)?);
    let signature = std::str::from_utf8(text).ok()?.parse().ok()?;
    let mut object = rest.strip_suffix(MEMBER)?.to_vec();
    object.push(b'}');
    Some((object, signature))
}

/// How many controllers' certificates a keyring pins at a time. A cluster has seven controllers at most, each with a new
/// certificate every third of a life.
pub const MAX_SIGNERS: usize = 64;

/// Why a document or a signer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the signer's certificate is not to be trusted")]
    Signer(#[source] Distrust),
    #[error("the signer {signer} is not known here: its certificate must be admitted first")]
    UnknownSigner { signer: Fingerprint },
    #[error("the certificate of the signer, controller {name}, begins to be valid only at {from}")]
    NotYetValid { name: Name, from: Time },
    #[error(
        "the certificate of the signer, controller {name}, was valid until {until}: the document must be signed anew"
    )]
    Expired { name: Name, until: Time },
    #[error("the signature is not the signer's over this document, as this kind of document, in this cluster")]
    BadSignature,
    #[error("{MAX_SIGNERS} signers are pinned already, and none of them has expired")]
    TooManySigners,
}

/// The controllers whose signatures count here.
#[derive(Clone, Debug)]
pub struct Keyring {
    trust: Trust,
    signers: BTreeMap<Fingerprint, Signer>,
}

#[derive(Clone, Debug)]
struct Signer {
    certificate: Certificate,
    name: Name,
    validity: Validity,
    /// Its authority issues no more, and will be forgotten.
    former: bool,
}

impl Keyring {
    /// A keyring that trusts these authorities and pins nobody yet.
    #[must_use]
    pub const fn new(trust: Trust) -> Self {
        Self {
            trust,
            signers: BTreeMap::new(),
        }
    }

    #[must_use]
    pub const fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Who is pinned: the fingerprints of their certificates.
    pub fn signers(&self) -> impl Iterator<Item = &Fingerprint> {
        self.signers.keys()
    }

    /// Until when this signer's signatures count, if it is pinned: what it signed must be signed anew before that.
    #[must_use]
    pub fn until(&self, signer: &Fingerprint) -> Option<Time> {
        Some(self.signers.get(signer)?.validity.until)
    }

    /// Whether what this signer signed should be signed anew by another certificate: it is to be replaced, for its own age
    /// or its authority's, or is not known here.
    #[must_use]
    pub fn is_leaving(&self, signer: &Fingerprint, now: Time) -> bool {
        self.signers
            .get(signer)
            .is_none_or(|signer| signer.former || signer.certificate.renewal_is_due(now))
    }

    /// Whether this signer is pinned by an authority that issues no more, and that will be forgotten.
    #[must_use]
    pub fn is_former(&self, signer: &Fingerprint) -> bool {
        self.signers.get(signer).is_some_and(|signer| signer.former)
    }

    /// Verifies a controller's certificate (DER, from anywhere) and pins it.
    ///
    /// # Errors
    /// When it is of another cluster or authority, of another role, revoked, or not valid now.
    pub fn admit(&mut self, certificate: &[u8], now: Time) -> Result<Fingerprint, Refusal> {
        let certificate = self
            .trust
            .verify(certificate, Use::Signing, now)
            .map_err(Refusal::Signer)?;
        let fingerprint = certificate.fingerprint();
        if self.signers.len() >= MAX_SIGNERS && !self.signers.contains_key(&fingerprint) {
            self.signers.retain(|_, signer| signer.validity.until >= now);
            if self.signers.len() >= MAX_SIGNERS {
                return Err(Refusal::TooManySigners);
            }
        }
        let signer = Signer {
            name: certificate.identity().who.name().clone(),
            validity: certificate.validity(),
            former: self.trust.is_of_former(&certificate),
            certificate,
        };
        self.signers.insert(fingerprint, signer);
        Ok(fingerprint)
    }

    /// Takes other authorities or a longer list of the revoked into force. Who is no longer trusted under them is no longer
    /// pinned; the fingerprints of those are returned.
    pub fn retrust(&mut self, trust: Trust) -> Vec<Fingerprint> {
        let mut gone = Vec::new();
        self.signers.retain(|fingerprint, signer| {
            // Whether it is valid at this moment is asked at every signature; here only whether it is trusted at all.
            let during = signer.validity.from;
            let kept = trust.verify(&signer.certificate.der(), Use::Signing, during).is_ok();
            if !kept {
                gone.push(*fingerprint);
            }
            signer.former = trust.is_of_former(&signer.certificate);
            kept
        });
        self.trust = trust;
        gone
    }

    /// Whether a pinned controller signed this document, as this, in this cluster; its name when so. A document that was
    /// accepted once is not asked about again when its signer's certificate ends: the reader keeps it on its own disk.
    ///
    /// # Errors
    /// With the reason why the signature does not count.
    pub fn verify(
        &self,
        domain: Domain<'_>,
        document: &[u8],
        signature: &Signature,
        now: Time,
    ) -> Result<&Name, Refusal> {
        let signer = self.signers.get(&signature.signer).ok_or(Refusal::UnknownSigner {
            signer: signature.signer,
        })?;
        let Signer {
            certificate,
            name,
            validity,
            former: _,
        } = signer;
        if now < validity.from {
            return Err(Refusal::NotYetValid {
                name: name.clone(),
                from: validity.from,
            });
        }
        if now > validity.until {
            return Err(Refusal::Expired {
                name: name.clone(),
                until: validity.until,
            });
        }
        let cluster = self.trust.cluster();
        if signature.is_by(certificate.key(), cluster, domain.word, domain.about, document) {
            Ok(name)
        } else {
            Err(Refusal::BadSignature)
        }
    }
}

impl Keyring {
    /// As [`Keyring::verify`], whatever the dates of the signer's certificate: for who has the document signed anew.
    ///
    /// # Errors
    /// With the reason why it is not a controller's word at all.
    pub fn recall(
        &self,
        domain: Domain<'_>,
        document: &[u8],
        signature: &Signature,
        now: Time,
    ) -> Result<&Name, Refusal> {
        let life = self.signers.get(&signature.signer).map(|signer| signer.validity);
        let then = life.map_or(now, |life| now.max(life.from).min(life.until));
        self.verify(domain, document, signature, then)
    }
}

/// The role whose certificates may sign documents for a keyring.
pub(crate) const SIGNING_ROLE: Role = Role::Controller;

#[cfg(test)]
mod tests;
