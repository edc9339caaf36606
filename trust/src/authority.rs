//! The certificate authority of a cluster: made new, or derived from an install token, the same on every host that has the
//! token. It turns requests into certificates: the holder makes the key and the request, the authority grants an identity,
//! and whatever was asked beyond the grant is refused. No private key but its own is ever here.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType,
    SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls::pki_types::DnsName;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::certificate::{
    AuthorityCertificate, Certificate, CertificateError, Endorsement, Serial, Uses, names, signed_part,
};
use crate::identity::{ClusterId, Identity, IdentityError, Role};
use crate::key::{Fingerprint, Key, KeyError, PublicKey, random};
use crate::pem;
use crate::revoked::Revoked;
use crate::sign::Signature;
use crate::token::InstallToken;
use crate::validity::{Time, Validity};

/// How long an authority lives when nobody rotates it, in seconds: ten years.
pub const AUTHORITY_SECONDS: u64 = 10 * 365 * 86_400;
/// The longest life of an end certificate, in seconds: 400 days.
pub const MAX_LIFETIME_SECONDS: u64 = 400 * 86_400;
/// The longest request that is looked at, in bytes.
pub const MAX_REQUEST_BYTES: usize = 8_192;
/// How many addresses and DNS names one certificate may have.
pub const MAX_NAMES: usize = 32;
/// An authority derived from a token begins a day before the token, for clocks that are slow.
const DERIVED_EARLIER_SECONDS: u64 = 86_400;

/// What an authority grants: who the holder is, what addresses and DNS names it may serve at, for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
    pub dns_names: Vec<String>,
    /// From now, in seconds; cut to [`MAX_LIFETIME_SECONDS`] and to the authority's own end.
    pub lifetime_seconds: u64,
}

impl Grant {
    /// A grant without addresses.
    #[must_use]
    pub const fn new(identity: Identity, lifetime_seconds: u64) -> Self {
        Self {
            identity,
            addresses: Vec::new(),
            dns_names: Vec::new(),
            lifetime_seconds,
        }
    }

    /// What renews a certificate as it is.
    #[must_use]
    pub fn renewal(certificate: &Certificate, lifetime_seconds: u64) -> Self {
        Self {
            identity: certificate.identity().clone(),
            addresses: certificate.addresses().to_vec(),
            dns_names: certificate.dns_names().to_vec(),
            lifetime_seconds,
        }
    }
}

/// Why no certificate was issued, or no authority made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("the request is longer than {MAX_REQUEST_BYTES} bytes")]
    RequestTooLong,
    #[error("the bytes are not a certificate request (PKCS#10)")]
    NotRequest,
    #[error("the request is not signed by the Ed25519 key that it names")]
    RequestSignature,
    #[error("the request asks for {what}, which is never granted")]
    NeverGranted { what: &'static str },
    #[error("the request's names cannot be read")]
    RequestNames(#[source] CertificateError),
    #[error("the request's URI is not an identity")]
    RequestIdentity(#[source] IdentityError),
    #[error("the request asks to be `{asked}`, but `{granted}` was granted")]
    OtherIdentity {
        asked: Box<Identity>,
        granted: Box<Identity>,
    },
    #[error("the request asks for the name or address `{asked}`, which was not granted")]
    NameNotGranted { asked: String },
    #[error("`{name}` is not a DNS name")]
    NotDnsName { name: String },
    #[error("more than {MAX_NAMES} names and addresses in one certificate")]
    TooManyNames,
    #[error("the granted identity belongs to another cluster than the authority")]
    OtherCluster,
    #[error("the request's key was revoked: its holder must make a new one")]
    RevokedKey,
    #[error("the authority's own certificate is not valid now")]
    NotNow,
    #[error("a lifetime of no seconds was granted")]
    NoLifetime,
    #[error("the authority's key is not its certificate's")]
    KeyMismatch,
    #[error("the authority's key")]
    Key(#[source] KeyError),
    #[error("the authority's certificate")]
    Certificate(#[source] CertificateError),
    #[error("the certificate could not be written")]
    Writing(#[source] rcgen::Error),
}

/// A certificate authority with its private key. Only seeds hold one.
#[derive(Debug)]
pub struct Authority {
    key: Key,
    certificate: AuthorityCertificate,
}

impl Authority {
    /// A new authority for a cluster, with a new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(cluster: ClusterId, now: Time) -> Result<Self, AuthorityError> {
        let serial = random().ok_or(AuthorityError::Key(KeyError::NoRandomness))?;
        let key = Key::generate().map_err(AuthorityError::Key)?;
        Self::make(cluster, key, serial, Validity::beginning(now, AUTHORITY_SECONDS))
    }

    /// The authority of an install token: key, serial number and dates follow from the token alone, so every host that is
    /// given the token holds the same authority, byte for byte, without a word to the others. Who has seen the token has the
    /// authority's key: a cluster rotates to a new authority once its seeds are up.
    ///
    /// # Errors
    /// None that depends on the token.
    pub fn derived(token: &InstallToken) -> Result<Self, AuthorityError> {
        let seed = Zeroizing::new(token.expanded("authority key"));
        let key = Key::from_seed(&seed).map_err(AuthorityError::Key)?;
        let validity = Validity {
            from: token.created().minus(DERIVED_EARLIER_SECONDS),
            until: token.created().plus(AUTHORITY_SECONDS),
        };
        let serial: [u8; 32] = token.expanded("authority serial");
        let mut short = [0; 16];
        short.copy_from_slice(&serial[..16]);
        Self::make(token.cluster(), key, short, validity)
    }

    fn make(cluster: ClusterId, key: Key, serial: [u8; 16], validity: Validity) -> Result<Self, AuthorityError> {
        let params = authority_params(cluster, &key.public(), serial, validity)?;
        let written = params.self_signed(&Pair(&key)).map_err(AuthorityError::Writing)?;
        let certificate = AuthorityCertificate::from_der(written.der()).map_err(AuthorityError::Certificate)?;
        Ok(Self { key, certificate })
    }

    /// The authority whose two files these are.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let mut certificates = AuthorityCertificate::all_from_pem(certificate).map_err(AuthorityError::Certificate)?;
        let key = Key::from_pem(key).map_err(AuthorityError::Key)?;
        match (certificates.pop(), certificates.is_empty()) {
            (Some(certificate), true) if *certificate.key() == key.public() => Ok(Self { key, certificate }),
            _ => Err(AuthorityError::KeyMismatch),
        }
    }

    #[must_use]
    pub const fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }

    /// Its private key as PEM, for a file of mode 0600 on a seed, or for another seed over a pinned connection.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }

    /// The certificate for a request, if it asks for no more than was granted. The addresses and DNS names are those asked
    /// for. A certificate is never born revoked: where this identity was revoked, it begins after that.
    ///
    /// # Errors
    /// With the reason why the request, the grant or the moment does not allow it.
    pub fn issue(
        &self,
        request: &[u8],
        grant: &Grant,
        revoked: &Revoked,
        now: Time,
    ) -> Result<Certificate, AuthorityError> {
        if grant.identity.cluster != self.certificate.cluster() {
            return Err(AuthorityError::OtherCluster);
        }
        if !self.certificate.validity().contains(now) {
            return Err(AuthorityError::NotNow);
        }
        if grant.lifetime_seconds == 0 {
            return Err(AuthorityError::NoLifetime);
        }
        let request = Request::of(request)?;
        request.within(grant)?;
        if revoked.revokes_key(&request.key) {
            return Err(AuthorityError::RevokedKey);
        }

        let mut validity = Validity::beginning(now, grant.lifetime_seconds.min(MAX_LIFETIME_SECONDS));
        validity.from = validity.from.max(self.certificate.validity().from);
        if let Some(before) = revoked.revoked_before(&grant.identity.who.subject()) {
            validity.from = validity.from.max(before.plus(1));
        }
        validity.until = validity.until.min(self.certificate.validity().until);
        if validity.from > validity.until {
            return Err(AuthorityError::NotNow);
        }

        let serial = random().ok_or(AuthorityError::Key(KeyError::NoRandomness))?;
        let mut params = params(validity, serial, &grant.identity.common_name());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let uses = uses(grant.identity.who.role());
        if uses.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if uses.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.subject_alt_names = alternative_names(&grant.identity, &request.addresses, &request.dns_names)?;

        let issuer = self.issuer();
        let written = params
            .signed_by(&Public(&request.key), &issuer)
            .map_err(AuthorityError::Writing)?;
        Certificate::from_der(written.der()).map_err(AuthorityError::Certificate)
    }

    /// Says that a later authority of the cluster follows this one, to those who pin this one: see [`Endorsement`].
    ///
    /// # Errors
    /// When it belongs to another cluster, or this one's time is over.
    pub fn endorse(&self, later: &AuthorityCertificate, now: Time) -> Result<Endorsement, AuthorityError> {
        let own = self.certificate.validity();
        if later.cluster() != self.certificate.cluster() {
            return Err(AuthorityError::OtherCluster);
        }
        if !own.contains(now) {
            return Err(AuthorityError::NotNow);
        }
        let serial = random().ok_or(AuthorityError::Key(KeyError::NoRandomness))?;
        let validity = Validity {
            from: own.from.max(later.validity().from),
            until: own.until.min(later.validity().until),
        };
        let params = authority_params(later.cluster(), later.key(), serial, validity)?;
        let written = params
            .signed_by(&Public(later.key()), &self.issuer())
            .map_err(AuthorityError::Writing)?;
        Endorsement::from_der(written.der()).map_err(AuthorityError::Certificate)
    }

    /// The file of revoked serial numbers (an X.509 CRL, PEM) for programs that take one, such as the store with
    /// `--client-crl-file` and `--peer-crl-file`, which reads it again at every handshake and compares serial numbers alone:
    /// one file serves the certificates of all authorities. Replace it by renaming, for while it cannot be read the store
    /// refuses everybody; connections that are open stay open, and must be cut otherwise. Whoever issues keeps note of subject and [`Serial`] of each
    /// certificate until it ends, so as to name those of one who is revoked.
    ///
    /// # Errors
    /// When the file cannot be written, which depends on nothing given.
    pub fn revocation_file(
        &self,
        revoked: &[(Serial, Time)],
        number: u64,
        now: Time,
    ) -> Result<String, AuthorityError> {
        let entry = |(serial, at): &(Serial, Time)| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial.bytes()),
            revocation_time: at.to_date(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now.minus(1).to_date(),
            next_update: now.plus(MAX_LIFETIME_SECONDS).to_date(),
            crl_number: SerialNumber::from_slice(&number.to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let written = params.signed_by(&self.issuer()).map_err(AuthorityError::Writing)?;
        Ok(pem::write("X509 CRL", written.der()).to_string())
    }

    fn issuer(&self) -> Issuer<'_, Pair<'_>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&authority_name(self.certificate.key()));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Issuer::new(params, Pair(&self.key))
    }

    /// The authority's signature over a statement of its own: a bundle or a list of the revoked.
    pub(crate) fn sign(&self, word: &str, document: &[u8]) -> Signature {
        let signer: Fingerprint = self.certificate.fingerprint();
        Signature::make(&self.key, signer, self.certificate.cluster(), word, "", document)
    }
}

/// What the certificates of a role may be shown as. Servers of the store speak to each other and to themselves as clients.
const fn uses(role: Role) -> Uses {
    match role {
        Role::Node | Role::Server => Uses {
            server: true,
            client: true,
        },
        Role::Controller | Role::Person => Uses {
            server: false,
            client: true,
        },
    }
}

/// A request (PKCS#10, DER) for a certificate: made by who will hold it, signed with the key that stays with them.
///
/// # Errors
/// When a DNS name is none, or there are too many names.
pub fn request(
    key: &Key,
    identity: &Identity,
    addresses: &[IpAddr],
    dns_names: &[String],
) -> Result<Vec<u8>, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&identity.common_name());
    params.subject_alt_names = alternative_names(identity, addresses, dns_names)?;
    let request = params.serialize_request(&Pair(key)).map_err(AuthorityError::Writing)?;
    Ok(request.der().to_vec())
}

/// What a request asks for, once its signature holds.
struct Request {
    key: PublicKey,
    identity: Identity,
    addresses: Vec<IpAddr>,
    dns_names: Vec<String>,
}

impl Request {
    fn of(der: &[u8]) -> Result<Self, AuthorityError> {
        if der.len() > MAX_REQUEST_BYTES {
            return Err(AuthorityError::RequestTooLong);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| AuthorityError::NotRequest)?;
        if !rest.is_empty() {
            return Err(AuthorityError::NotRequest);
        }
        let info = &request.certification_request_info;
        let key = PublicKey::from_spki_der(info.subject_pki.raw).ok_or(AuthorityError::RequestSignature)?;
        let (signed, signature) = signed_part(der).ok_or(AuthorityError::RequestSignature)?;
        if signed != info.raw || !key.verifies(signed, signature) {
            return Err(AuthorityError::RequestSignature);
        }
        if info.attributes().len() > 1 {
            return Err(AuthorityError::NeverGranted {
                what: "more than its names",
            });
        }
        let extensions: Vec<&ParsedExtension<'_>> = request.requested_extensions().into_iter().flatten().collect();
        let other =
            |extension: &&&ParsedExtension<'_>| !matches!(extension, ParsedExtension::SubjectAlternativeName(_));
        if let Some(extension) = extensions.iter().find(other) {
            let what = if matches!(extension, ParsedExtension::BasicConstraints(_)) {
                "to be an authority"
            } else if matches!(
                extension,
                ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_)
            ) {
                "usages of its own choice"
            } else {
                "an extension of its own choice"
            };
            return Err(AuthorityError::NeverGranted { what });
        }
        let names = names(extensions.into_iter()).map_err(AuthorityError::RequestNames)?;
        Ok(Self {
            key,
            identity: names.uri.parse().map_err(AuthorityError::RequestIdentity)?,
            addresses: names.addresses,
            dns_names: names.dns_names,
        })
    }

    fn within(&self, grant: &Grant) -> Result<(), AuthorityError> {
        if self.identity != grant.identity {
            return Err(AuthorityError::OtherIdentity {
                asked: Box::new(self.identity.clone()),
                granted: Box::new(grant.identity.clone()),
            });
        }
        let address = self.addresses.iter().find(|asked| !grant.addresses.contains(asked));
        let name = self.dns_names.iter().find(|asked| !grant.dns_names.contains(asked));
        match (address, name) {
            (Some(address), _) => Err(AuthorityError::NameNotGranted {
                asked: address.to_string(),
            }),
            (_, Some(name)) => Err(AuthorityError::NameNotGranted {
                asked: name.chars().take(80).collect(),
            }),
            (None, None) => Ok(()),
        }
    }
}

/// What a request says it is for, so that a server can decide on a grant: the key and identity asked, and the names.
/// Its own signature has been verified; nothing else has.
///
/// # Errors
/// As [`Authority::issue`] for a request that nobody could be granted.
pub fn asked(request: &[u8]) -> Result<(PublicKey, Grant), AuthorityError> {
    let Request {
        key,
        identity,
        addresses,
        dns_names,
    } = Request::of(request)?;
    let asked = Grant {
        identity,
        addresses,
        dns_names,
        lifetime_seconds: 0,
    };
    Ok((key, asked))
}

fn params(validity: Validity, mut serial: [u8; 16], subject: &str) -> CertificateParams {
    // A positive number of 16 bytes, whatever was drawn.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = validity.from.to_date();
    params.not_after = validity.until.to_date();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = common_name(subject);
    params
}

/// What the certificate of an authority's key says, whoever signs it.
fn authority_params(
    cluster: ClusterId,
    key: &PublicKey,
    serial: [u8; 16],
    validity: Validity,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = params(validity, serial, &authority_name(key));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![uri(&format!("reeve://{cluster}/authority"))?];
    Ok(params)
}

/// The common name of an authority: each has its own, so that verifiers need not try them all.
fn authority_name(key: &PublicKey) -> String {
    format!("reeve authority {}", &key.fingerprint().to_string()[..16])
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(text.try_into().map_err(AuthorityError::Writing)?))
}

fn alternative_names(
    identity: &Identity,
    addresses: &[IpAddr],
    dns_names: &[String],
) -> Result<Vec<SanType>, AuthorityError> {
    if addresses.len() + dns_names.len() > MAX_NAMES {
        return Err(AuthorityError::TooManyNames);
    }
    let mut list = vec![uri(&identity.to_string())?];
    list.extend(addresses.iter().copied().map(SanType::IpAddress));
    for name in dns_names {
        let not = || AuthorityError::NotDnsName {
            name: name.chars().take(80).collect(),
        };
        DnsName::try_from(name.as_str()).map_err(|_| not())?;
        list.push(SanType::DnsName(name.as_str().try_into().map_err(|_| not())?));
    }
    Ok(list)
}

/// Our keys as the library that writes certificates wants them.
struct Pair<'a>(&'a Key);
struct Public<'a>(&'a PublicKey);

impl PublicKeyData for Pair<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_ref().bytes()
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}
impl SigningKey for Pair<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message).to_vec())
    }
}
impl PublicKeyData for Public<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.bytes()
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

#[cfg(test)]
mod tests;
