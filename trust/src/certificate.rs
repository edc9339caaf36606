//! Certificates read strictly: what an end certificate or an authority's certificate of ours says, and nothing that we
//! would not have written. Reading is not trusting: [`crate::trusted::Trust`] says whether one is genuine, now, for a use.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::SectionKind;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{ClusterId, Identity, IdentityError};
use crate::key::{Fingerprint, PublicKey, decoded};
use crate::pem::{self, PemError};
use crate::validity::{Time, Validity};

/// The longest certificate that is looked at, in bytes; ours take 400 to 900, more with many addresses.
pub const MAX_CERTIFICATE_BYTES: usize = 8_192;

/// Why bytes are not a certificate of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate is longer than {MAX_CERTIFICATE_BYTES} bytes")]
    TooLong,
    #[error("the certificate's PEM text cannot be read")]
    Pem(#[source] PemError),
    #[error("the certificate's base64 text cannot be read")]
    Base64,
    #[error("the bytes are not one X.509 certificate of version 3")]
    NotX509,
    #[error("the certificate's key or signature is not Ed25519")]
    NotEd25519,
    #[error("the certificate's serial number has not 16 bytes")]
    Serial,
    #[error("the certificate's validity is not a span of time")]
    Validity,
    #[error("the certificate has an extension twice, or one that cannot be read")]
    Extension,
    #[error("the certificate names nobody, or more than one, as a `reeve://` URI")]
    NoIdentity,
    #[error("the certificate's URI is not an identity")]
    Identity(#[source] IdentityError),
    #[error("the certificate has an alternative name that is neither URI, DNS name nor address")]
    OtherName,
    #[error("an authority's certificate where an end certificate belongs")]
    IsAuthority,
    #[error("the certificate is not an authority's: {missing}")]
    NotAuthority { missing: &'static str },
}

/// What a certificate is for; each role has its own set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Uses {
    /// It may be shown by a TLS server.
    pub server: bool,
    /// It may be shown by a TLS client.
    pub client: bool,
}

/// The number that an authority gave a certificate: 16 bytes, drawn; 32 hexadecimal digits. Programs that know nothing of
/// identities, such as the store, are told by it which certificates are revoked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial([u8; 16]);

/// Why a text is not a serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a serial number is 32 hexadecimal digits in lower case")]
pub struct SerialError;

impl Serial {
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}
impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&HEXLOWER.encode(&self.0))
    }
}
impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}
impl FromStr for Serial {
    type Err = SerialError;
    fn from_str(text: &str) -> Result<Self, SerialError> {
        decoded(&HEXLOWER, text).map(Self).ok_or(SerialError)
    }
}
impl TryFrom<String> for Serial {
    type Error = SerialError;
    fn try_from(text: String) -> Result<Self, SerialError> {
        text.parse()
    }
}
impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

/// An end certificate: somebody's public key, vouched for by an authority. Its fingerprint is its DER's SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    identity: Identity,
    key: PublicKey,
    validity: Validity,
    serial: Serial,
    uses: Uses,
    addresses: Vec<IpAddr>,
    dns_names: Vec<String>,
    fingerprint: Fingerprint,
}

impl Certificate {
    /// What a certificate says. Nothing is verified yet.
    ///
    /// # Errors
    /// When the bytes are not what an authority of ours would issue.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let parts = Parts::of(der)?;
        if parts.authority.is_some() {
            return Err(CertificateError::IsAuthority);
        }
        Ok(Self {
            identity: parts.uri.parse().map_err(CertificateError::Identity)?,
            key: parts.key,
            validity: parts.validity,
            serial: parts.serial,
            uses: parts.uses,
            addresses: parts.addresses,
            dns_names: parts.dns_names,
            fingerprint: Fingerprint::of(der),
            der: der.to_vec(),
        })
    }

    /// The certificate in a PEM text with exactly one.
    ///
    /// # Errors
    /// As [`Certificate::from_der`].
    pub fn from_pem(text: &str) -> Result<Self, CertificateError> {
        let der = pem::one(SectionKind::Certificate, text, MAX_CERTIFICATE_BYTES * 2).map_err(CertificateError::Pem)?;
        Self::from_der(&der)
    }

    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::write("CERTIFICATE", &self.der).to_string()
    }

    #[must_use]
    pub fn der(&self) -> CertificateDer<'_> {
        CertificateDer::from(self.der.as_slice())
    }

    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    #[must_use]
    pub const fn key(&self) -> &PublicKey {
        &self.key
    }

    #[must_use]
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    #[must_use]
    pub const fn serial(&self) -> Serial {
        self.serial
    }

    #[must_use]
    pub const fn uses(&self) -> Uses {
        self.uses
    }

    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    #[must_use]
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether its holder should ask for its successor by now: a third of its life is over.
    #[must_use]
    pub fn renewal_is_due(&self, now: Time) -> bool {
        now >= self.validity.renewal()
    }
}

/// An authority's own certificate: what others keep in order to trust what it issues. Its fingerprint is that of its public
/// key (SPKI), so that a token can pin the key. In JSON the base64 of its DER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AuthorityCertificate {
    der: Vec<u8>,
    cluster: ClusterId,
    key: PublicKey,
    validity: Validity,
}

impl AuthorityCertificate {
    /// What an authority's certificate says, once its own signature on it holds.
    ///
    /// # Errors
    /// When the bytes are not what [`crate::authority::Authority`] writes.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = Self::signed_by_anyone(der)?;
        if certificate.is_signed_by(&certificate.key) {
            Ok(certificate)
        } else {
            Err(CertificateError::NotAuthority {
                missing: "it is not signed by its own key",
            })
        }
    }

    /// What an authority's certificate says, whoever signed it.
    fn signed_by_anyone(der: &[u8]) -> Result<Self, CertificateError> {
        let parts = Parts::of(der)?;
        let missing = |missing| CertificateError::NotAuthority { missing };
        parts.authority.ok_or(missing("it may not issue certificates"))?;
        let cluster = parts
            .uri
            .strip_prefix("reeve://")
            .and_then(|rest| rest.strip_suffix("/authority"))
            .ok_or(missing("its URI is not `reeve://<cluster id>/authority`"))?;
        Ok(Self {
            cluster: cluster.parse().map_err(CertificateError::Identity)?,
            key: parts.key,
            validity: parts.validity,
            der: der.to_vec(),
        })
    }

    fn is_signed_by(&self, key: &PublicKey) -> bool {
        signed_part(&self.der).is_some_and(|(signed, signature)| key.verifies(signed, signature))
    }

    /// All authorities' certificates in a PEM text, in order; at most eight.
    ///
    /// # Errors
    /// As [`AuthorityCertificate::from_der`], for any of them.
    pub fn all_from_pem(text: &str) -> Result<Vec<Self>, CertificateError> {
        pem::all(SectionKind::Certificate, text, MAX_CERTIFICATE_BYTES * 2)
            .map_err(CertificateError::Pem)?
            .iter()
            .map(|der| Self::from_der(der))
            .collect()
    }

    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::write("CERTIFICATE", &self.der).to_string()
    }

    #[must_use]
    pub fn der(&self) -> CertificateDer<'_> {
        CertificateDer::from(self.der.as_slice())
    }

    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    #[must_use]
    pub const fn key(&self) -> &PublicKey {
        &self.key
    }

    #[must_use]
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// The pin: the SHA-256 of its public key.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.key.fingerprint()
    }
}

/// A certificate for an authority's key that an earlier authority of the same cluster signed, when the later one was about
/// to follow it. Shown behind the later one's certificate, it proves to who pins the earlier one that the later one is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endorsement(AuthorityCertificate);

impl Endorsement {
    /// What an endorsement says. Whose it is, is not asked yet.
    ///
    /// # Errors
    /// When the bytes are not a certificate for an authority.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        AuthorityCertificate::signed_by_anyone(der).map(Self)
    }

    /// The endorsement in a PEM text with exactly one.
    ///
    /// # Errors
    /// As [`Endorsement::from_der`].
    pub fn from_pem(text: &str) -> Result<Self, CertificateError> {
        let der = pem::one(SectionKind::Certificate, text, MAX_CERTIFICATE_BYTES * 2).map_err(CertificateError::Pem)?;
        Self::from_der(&der)
    }

    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.to_pem()
    }

    #[must_use]
    pub fn der(&self) -> CertificateDer<'_> {
        self.0.der()
    }

    /// Whether `earlier` says here that `later` follows it, and says so now.
    #[must_use]
    pub fn proves(&self, earlier: &AuthorityCertificate, later: &AuthorityCertificate, now: Time) -> bool {
        let Self(said) = self;
        said.key == later.key
            && said.cluster == later.cluster
            && earlier.cluster == later.cluster
            && said.validity.contains(now)
            && earlier.validity.contains(now)
            && said.is_signed_by(&earlier.key)
    }
}

impl TryFrom<String> for AuthorityCertificate {
    type Error = CertificateError;
    fn try_from(text: String) -> Result<Self, CertificateError> {
        Self::from_der(&der_of_base64(&text)?)
    }
}
impl From<AuthorityCertificate> for String {
    fn from(certificate: AuthorityCertificate) -> Self {
        BASE64.encode(&certificate.der)
    }
}

/// The bytes of a certificate written as base64 in JSON.
pub(crate) fn der_of_base64(text: &str) -> Result<Vec<u8>, CertificateError> {
    if text.len() > BASE64.encode_len(MAX_CERTIFICATE_BYTES) {
        return Err(CertificateError::TooLong);
    }
    BASE64.decode(text.as_bytes()).map_err(|_| CertificateError::Base64)
}

/// The signed part and the signature of a certificate or request (DER), whose frame is spelled in the one way that DER has
/// for it: so every byte of what is accepted is either checked here or signed, and nothing can be said in two spellings with
/// two fingerprints.
pub(crate) fn signed_part(der: &[u8]) -> Option<(&[u8], &[u8])> {
    // AlgorithmIdentifier of Ed25519, then the beginning of a BIT STRING of 64 bytes.
    const MIDDLE: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];
    let (inner, length) = match der {
        [0x30, short @ 0..=0x7f, inner @ ..] => (inner, usize::from(*short)),
        [0x30, 0x81, byte @ 0x80..=0xff, inner @ ..] => (inner, usize::from(*byte)),
        [0x30, 0x82, high @ 1..=0xff, low, inner @ ..] => (inner, usize::from(*high) << 8 | usize::from(*low)),
        _ => return None,
    };
    if inner.len() != length {
        return None;
    }
    let (rest, signature) = inner.split_at_checked(inner.len().checked_sub(64)?)?;
    Some((rest.strip_suffix(&MIDDLE)?, signature))
}

/// What both kinds of certificates say.
struct Parts {
    key: PublicKey,
    validity: Validity,
    serial: Serial,
    uri: String,
    addresses: Vec<IpAddr>,
    dns_names: Vec<String>,
    uses: Uses,
    /// Present when it may issue certificates.
    authority: Option<()>,
}

impl Parts {
    fn of(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(CertificateError::TooLong);
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::NotX509)?;
        if !rest.is_empty() || certificate.version() != x509_parser::x509::X509Version::V3 {
            return Err(CertificateError::NotX509);
        }
        let (signed, _) = signed_part(der).ok_or(CertificateError::NotEd25519)?;
        if signed != certificate.tbs_certificate.as_ref() {
            return Err(CertificateError::NotX509);
        }
        let key = PublicKey::from_spki_der(certificate.public_key().raw).ok_or(CertificateError::NotEd25519)?;
        let names = names(
            certificate
                .extensions()
                .iter()
                .map(x509_parser::extensions::X509Extension::parsed_extension),
        )?;
        let extended = certificate
            .extended_key_usage()
            .map_err(|_| CertificateError::Extension)?;
        let usage = certificate.key_usage().map_err(|_| CertificateError::Extension)?;
        let constraints = certificate
            .basic_constraints()
            .map_err(|_| CertificateError::Extension)?;
        let issues = usage.is_some_and(|usage| usage.value.key_cert_sign());
        let authority = match constraints.is_some_and(|constraints| constraints.value.ca) {
            true if issues => Some(()),
            false if !issues => None,
            // Half an authority is neither.
            _ => return Err(CertificateError::Extension),
        };
        Ok(Self {
            key,
            validity: validity(certificate.validity())?,
            serial: certificate
                .raw_serial()
                .try_into()
                .map(Serial)
                .map_err(|_| CertificateError::Serial)?,
            uri: names.uri,
            addresses: names.addresses,
            dns_names: names.dns_names,
            uses: Uses {
                server: extended.as_ref().is_some_and(|uses| uses.value.server_auth),
                client: extended.as_ref().is_some_and(|uses| uses.value.client_auth),
            },
            authority,
        })
    }
}

fn validity(validity: &x509_parser::certificate::Validity) -> Result<Validity, CertificateError> {
    let moment = |time: &x509_parser::time::ASN1Time| {
        u64::try_from(time.timestamp())
            .map(Time::from_unix_seconds)
            .map_err(|_| CertificateError::Validity)
    };
    let span = Validity {
        from: moment(&validity.not_before)?,
        until: moment(&validity.not_after)?,
    };
    if span.from <= span.until {
        Ok(span)
    } else {
        Err(CertificateError::Validity)
    }
}

/// The alternative names of a certificate or of a request.
pub(crate) struct Names {
    pub uri: String,
    pub addresses: Vec<IpAddr>,
    pub dns_names: Vec<String>,
}

/// The one URI among the alternative names, and the rest of them.
pub(crate) fn names<'a>(extensions: impl Iterator<Item = &'a ParsedExtension<'a>>) -> Result<Names, CertificateError> {
    // Whether other extensions may be there is decided elsewhere.
    let mut lists = extensions.filter_map(|extension| {
        if let ParsedExtension::SubjectAlternativeName(list) = extension {
            Some(list)
        } else {
            None
        }
    });
    let list = lists.next().ok_or(CertificateError::NoIdentity)?;
    if lists.next().is_some() {
        return Err(CertificateError::Extension);
    }
    let (mut uris, mut addresses, mut dns_names) = (Vec::new(), Vec::new(), Vec::new());
    for name in &list.general_names {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => addresses.push(address(bytes).ok_or(CertificateError::OtherName)?),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => return Err(CertificateError::OtherName),
        }
    }
    match (uris.pop(), uris.is_empty()) {
        (Some(uri), true) => Ok(Names {
            uri,
            addresses,
            dns_names,
        }),
        _ => Err(CertificateError::NoIdentity),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    #[test]
    fn a_certificate_says_what_was_granted() {
        let held = testing::World::new().holder("node/n1");
        let certificate = Certificate::from_pem(&held.certificate.to_pem()).unwrap();
        assert_eq!(certificate, held.certificate);
        assert_eq!(certificate.key(), &held.key.public());
        assert_eq!(certificate.addresses(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(certificate.dns_names(), ["localhost"]);
        assert_eq!(
            certificate.uses(),
            Uses {
                server: true,
                client: true
            }
        );
    }

    #[test]
    fn an_authority_is_nobody_and_nobody_is_an_authority() {
        let world = testing::World::new();
        let held = world.holder("node/n1");
        assert_eq!(
            Certificate::from_der(&world.authority.certificate().der()),
            Err(CertificateError::IsAuthority)
        );
        assert!(matches!(
            AuthorityCertificate::from_der(&held.certificate.der()),
            Err(CertificateError::NotAuthority { .. })
        ));
    }

    #[test]
    fn an_authority_whose_certificate_another_key_signed_is_refused() {
        let world = testing::World::new();
        let mut der = world.authority.certificate().der().to_vec();
        *der.last_mut().unwrap() ^= 1;
        assert_eq!(
            AuthorityCertificate::from_der(&der),
            Err(CertificateError::NotAuthority {
                missing: "it is not signed by its own key"
            })
        );
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..600), text in "\\PC{0,100}") {
            let _ = Certificate::from_der(&bytes);
            let _ = AuthorityCertificate::from_der(&bytes);
            let _ = Endorsement::from_der(&bytes);
            let _ = text.parse::<Serial>();
            let _ = Certificate::from_pem(&text);
            let _ = AuthorityCertificate::try_from(text);
        }

        #[test]
        fn no_damage_to_a_certificate_breaks_the_reader(place in any::<proptest::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
            let world = testing::World::new();
            for der in [world.holder("person/anna?admin").certificate.der().to_vec(), world.authority.certificate().der().to_vec()] {
                let mut damaged = der.clone();
                let place = place.index(der.len());
                damaged[place] = to;
                if cut {
                    damaged.truncate(place);
                }
                let _ = Certificate::from_der(&damaged);
                // An authority's certificate is signed by itself, so no damaged one is read.
                prop_assert!(damaged == der || AuthorityCertificate::from_der(&damaged).is_err());
            }
        }
    }
}
