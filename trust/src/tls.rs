//! Connections: rustls configurations in which both sides show a certificate of ours and ask of the other's who it is, by
//! identity and not by address. A [`Door`] holds what a host shows and whom it trusts; both can be changed while connections
//! and listeners stay: a renewed certificate, a rotated authority or a longer list of the revoked counts from the next
//! handshake on. TLS 1.3 only, and never resumed: a resumed session would ask no certificate again.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerMisbehaved, ServerConfig, SignatureScheme,
};

use crate::bundle::MAX_FORMER;
use crate::certificate::{AuthorityCertificate, Certificate, CertificateError, Endorsement};
use crate::identity::{Identity, Name, Role};
use crate::key::{Fingerprint, Key};
use crate::sign::KeyMismatch;
use crate::trusted::{Distrust, Trust, Use, issued};
use crate::validity::Time;

/// Who may be at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Anybody of these roles.
    Roles(BTreeSet<Role>),
    /// This one alone.
    One(Role, Name),
}

impl Peers {
    /// Anybody of these roles.
    #[must_use]
    pub fn roles(roles: impl IntoIterator<Item = Role>) -> Self {
        Self::Roles(roles.into_iter().collect())
    }

    fn allow(&self, identity: &Identity) -> bool {
        match self {
            Self::Roles(roles) => roles.contains(&identity.who.role()),
            Self::One(role, name) => identity.who.role() == *role && identity.who.name() == name,
        }
    }
}

/// Why a handshake was refused here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    #[error("the certificate of the other side is not to be trusted")]
    Distrust(#[source] Distrust),
    #[error("the other side is {0}, which is not who is expected here")]
    OtherPeer(Box<Identity>),
    #[error(
        "the other side did not prove to belong to the authority that the token pins: is it another cluster, or in between?"
    )]
    NotPinned,
    #[error("the certificate of the authority that the token pins, or of the one that followed it, is not valid now")]
    PinnedNotNow,
}

impl Stranger {
    fn into_tls(self) -> Error {
        let other = |stranger| TlsCertificateError::Other(OtherError(Arc::new(stranger)));
        // The alerts that the other side sees say as much as TLS has words for; the whole reason is in our own error.
        Error::InvalidCertificate(other(self))
    }
}

/// The reason of ours in an error of rustls, if it has one.
#[must_use]
pub fn stranger(error: &Error) -> Option<&Stranger> {
    if let Error::InvalidCertificate(TlsCertificateError::Other(OtherError(reason))) = error {
        reason.downcast_ref()
    } else {
        None
    }
}

/// What a host shows at its connections, and whom it trusts. Shared by all its listeners and clients.
pub struct Door {
    trust: RwLock<Arc<Trust>>,
    shown: RwLock<Option<Arc<CertifiedKey>>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

/// Why a host cannot show a certificate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ShowError {
    #[error("the certificate cannot be shown")]
    Key(#[source] KeyMismatch),
    #[error("rustls does not take the key")]
    Tls(#[source] Error),
}

impl Door {
    /// A door that shows nothing yet.
    #[must_use]
    pub fn new(trust: Trust) -> Arc<Self> {
        Arc::new(Self {
            trust: RwLock::new(Arc::new(trust)),
            shown: RwLock::new(None),
        })
    }

    /// Whom it trusts now.
    #[must_use]
    pub fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes this trust into force, from the next handshake on. Open connections are the caller's: see [`Trust::recheck`].
    pub fn set_trust(&self, trust: Trust) {
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trust);
    }

    /// Shows this certificate from the next handshake on, with its authority's behind it, for those who know only a pin.
    ///
    /// # Errors
    /// When the key is not the certificate's.
    pub fn show(
        &self,
        certificate: &Certificate,
        key: &Key,
        authority: &AuthorityCertificate,
    ) -> Result<(), ShowError> {
        self.show_endorsed(certificate, key, authority, &[])
    }

    /// As [`Door::show`], on a server: with the endorsements that lead from earlier authorities to this one, the latest first,
    /// each with the certificate of the authority that signed it, for newcomers whose token pins an earlier one. At most
    /// [`MAX_FORMER`] are shown.
    ///
    /// # Errors
    /// When the key is not the certificate's.
    pub fn show_endorsed(
        &self,
        certificate: &Certificate,
        key: &Key,
        authority: &AuthorityCertificate,
        earlier: &[(AuthorityCertificate, Endorsement)],
    ) -> Result<(), ShowError> {
        if key.public() != *certificate.key() {
            return Err(ShowError::Key(KeyMismatch));
        }
        let signer = aws_lc_rs::sign::any_eddsa_type(&key.pkcs8_der()).map_err(ShowError::Tls)?;
        let mut chain = vec![certificate.der().into_owned(), authority.der().into_owned()];
        for (earlier, endorsement) in earlier.iter().take(MAX_FORMER) {
            chain.extend([endorsement.der().into_owned(), earlier.der().into_owned()]);
        }
        let shown = Arc::new(CertifiedKey::new(chain, signer));
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        Ok(())
    }

    fn shown(&self) -> Option<Arc<CertifiedKey>> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How to connect to these. The server name given to rustls is not asked: the identity is.
    ///
    /// # Errors
    /// When rustls refuses the configuration, which depends on nothing given.
    pub fn client(self: &Arc<Self>, peers: Peers, clock: Arc<dyn TimeProvider>) -> Result<ClientConfig, Error> {
        let verifier = Arc::new(Verifier::new(Arc::clone(self), peers));
        let resolver = Arc::new(Shown(Arc::clone(self)));
        let builder =
            ClientConfig::builder_with_details(provider(), clock).with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = builder.with_client_cert_resolver(resolver);
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }

    /// How to listen for these; who shows no certificate is refused.
    ///
    /// # Errors
    /// When rustls refuses the configuration, which depends on nothing given.
    pub fn server(self: &Arc<Self>, peers: Peers, clock: Arc<dyn TimeProvider>) -> Result<ServerConfig, Error> {
        self.listening(Arc::new(Verifier::new(Arc::clone(self), peers)), clock)
    }

    /// How to listen for newcomers too: who shows a certificate must be one of these, who shows none has yet to say a token.
    ///
    /// # Errors
    /// When rustls refuses the configuration, which depends on nothing given.
    pub fn server_for_newcomers(
        self: &Arc<Self>,
        peers: Peers,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<ServerConfig, Error> {
        let mut verifier = Verifier::new(Arc::clone(self), peers);
        verifier.mandatory = false;
        self.listening(Arc::new(verifier), clock)
    }

    fn listening(
        self: &Arc<Self>,
        verifier: Arc<Verifier>,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<ServerConfig, Error> {
        let resolver = Arc::new(Shown(Arc::clone(self)));
        let builder =
            ServerConfig::builder_with_details(provider(), clock).with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(resolver);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// How a newcomer, who has nothing but a token, connects to a server of its cluster: one that shows a certificate of the
/// pinned authority.
///
/// # Errors
/// When rustls refuses the configuration, which depends on nothing given.
pub fn newcomer(pin: Fingerprint, clock: Arc<dyn TimeProvider>) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = Arc::new(Pinned {
        pin,
        algorithms: provider.signature_verification_algorithms,
    });
    let builder =
        ClientConfig::builder_with_details(provider, clock).with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// Who is at the other end of a connection whose handshake is done: its first certificate.
///
/// # Errors
/// When it showed none, or (never, after our verification) one that is not ours.
pub fn peer(shown: Option<&[CertificateDer<'_>]>) -> Result<Certificate, CertificateError> {
    let first = shown.and_then(<[_]>::first).ok_or(CertificateError::NoIdentity)?;
    Certificate::from_der(first)
}

/// The authority whose certificate a server showed behind its own, once a newcomer's handshake with it is done: the one that
/// issued the server's. What the newcomer trusts from then on: see [`crate::bundle::Bundle::adopt`].
///
/// # Errors
/// When it showed none.
pub fn shown_authority(shown: Option<&[CertificateDer<'_>]>) -> Result<AuthorityCertificate, CertificateError> {
    let second = shown.and_then(|shown| shown.get(1)).ok_or(CertificateError::NotX509)?;
    AuthorityCertificate::from_der(second)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Shows what the door shows now.
#[derive(Debug)]
struct Shown(Arc<Door>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.shown()
    }
}
impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.shown().filter(|_| schemes.contains(&SignatureScheme::ED25519))
    }
    fn has_certs(&self) -> bool {
        self.0.shown().is_some()
    }
}

/// Asks of either side what the door asks.
#[derive(Debug)]
struct Verifier {
    door: Arc<Door>,
    peers: Peers,
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(door: Arc<Door>, peers: Peers) -> Self {
        Self {
            door,
            peers,
            mandatory: true,
            algorithms: aws_lc_rs::default_provider().signature_verification_algorithms,
        }
    }

    fn verify(&self, der: &CertificateDer<'_>, wanted: Use, now: UnixTime) -> Result<(), Stranger> {
        let trust = self.door.trust();
        let certificate = trust.verify(der, wanted, Time::from(now)).map_err(Stranger::Distrust)?;
        if self.peers.allow(certificate.identity()) {
            Ok(())
        } else {
            Err(Stranger::OtherPeer(Box::new(certificate.identity().clone())))
        }
    }
}

/// What both traits ask in the same words: TLS 1.3 signatures by Ed25519 keys, and nothing else.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(certificate, Use::Serving, now)
            .map_err(Stranger::into_tls)?;
        Ok(ServerCertVerified::assertion())
    }
    signatures!();
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(certificate, Use::Asking, now).map_err(Stranger::into_tls)?;
        Ok(ClientCertVerified::assertion())
    }
    signatures!();
}

/// Asks of a server what a newcomer can ask.
#[derive(Debug)]
struct Pinned {
    pin: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    /// Whether this authority is the pinned one, or followed it, as the endorsements behind it prove step by step.
    fn leads_to(
        &self,
        authority: &AuthorityCertificate,
        behind: &[CertificateDer<'_>],
        now: Time,
    ) -> Result<(), Stranger> {
        let mut later = authority.clone();
        let mut steps = behind.chunks_exact(2).take(MAX_FORMER);
        while later.fingerprint() != self.pin {
            let [endorsement, earlier] = steps.next().ok_or(Stranger::NotPinned)? else {
                return Err(Stranger::NotPinned);
            };
            let endorsement = Endorsement::from_der(endorsement).map_err(|_| Stranger::NotPinned)?;
            let earlier = AuthorityCertificate::from_der(earlier).map_err(|_| Stranger::NotPinned)?;
            if !endorsement.proves(&earlier, &later, now) {
                return Err(Stranger::NotPinned);
            }
            later = earlier;
        }
        for authority in [authority, &later] {
            if !authority.validity().contains(now) {
                return Err(Stranger::PinnedNotNow);
            }
        }
        Ok(())
    }

    fn verify(&self, der: &CertificateDer<'_>, behind: &[CertificateDer<'_>], now: Time) -> Result<(), Stranger> {
        let authority = behind.first().and_then(|der| AuthorityCertificate::from_der(der).ok());
        let authority = authority.ok_or(Stranger::NotPinned)?;
        self.leads_to(&authority, &behind[1..], now)?;
        let distrust = |reason| Stranger::Distrust(reason);
        let certificate = Certificate::from_der(der).map_err(|error| distrust(Distrust::NotOurs(error)))?;
        let identity = certificate.identity();
        if identity.cluster != authority.cluster() {
            return Err(distrust(Distrust::OtherCluster {
                found: identity.cluster,
            }));
        }
        if !issued(&authority, &certificate) {
            return Err(distrust(Distrust::OtherAuthority));
        }
        let validity = certificate.validity();
        if now < validity.from {
            return Err(distrust(Distrust::NotYetValid { from: validity.from }));
        }
        if now > validity.until {
            return Err(distrust(Distrust::Expired { until: validity.until }));
        }
        if identity.who.role() != Role::Server {
            return Err(Stranger::OtherPeer(Box::new(identity.clone())));
        }
        Ok(())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        behind: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(certificate, behind, Time::from(now))
            .map_err(Stranger::into_tls)?;
        Ok(ServerCertVerified::assertion())
    }
    signatures!();
}

#[cfg(test)]
mod tests;
