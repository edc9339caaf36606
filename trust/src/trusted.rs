//! Whom this host believes: the authorities of its cluster and the list of the revoked, and one question to both: is this
//! certificate genuine, of this cluster, for this use, valid now, and not revoked? The signature is verified by rustls's own
//! verifier (webpki); end certificates are issued by an authority directly, so there are no chains to walk.

use rustls::pki_types::UnixTime;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::bundle::Bundle;
use crate::certificate::{AuthorityCertificate, Certificate, CertificateError};
use crate::identity::{ClusterId, Role};
use crate::revoked::{Revocation, Revoked};
use crate::sign::SIGNING_ROLE;
use crate::validity::{Time, Validity};

/// What a certificate is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// By a TLS server.
    Serving,
    /// By a TLS client.
    Asking,
    /// By the signer of documents: only a controller's may.
    Signing,
    /// By whoever says which sealing key is its own: any role.
    Stating,
}

/// Why a certificate is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    #[error("it is not a certificate of ours")]
    NotOurs(#[source] CertificateError),
    #[error("it belongs to the cluster {found}, not to this one")]
    OtherCluster { found: ClusterId },
    #[error("no authority that is trusted here issued it")]
    OtherAuthority,
    #[error("it begins to be valid only at {from}: is this host's clock slow?")]
    NotYetValid { from: Time },
    #[error("it was valid until {until}")]
    Expired { until: Time },
    #[error("it may not be used for this ({wanted:?})")]
    OtherUse { wanted: Use },
    #[error("it is a {found}'s, which may not do this")]
    OtherRole { found: Role },
    #[error("it was revoked: {}", .0.reason)]
    Revoked(Revocation),
}

/// The authorities and the list of the revoked that are in force on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    bundle: Bundle,
    revoked: Revoked,
}

/// The authorities and the list are of two clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the list of the revoked belongs to another cluster than the authorities")]
pub struct ClusterMismatch;

impl Trust {
    /// Trust in these authorities, less the revoked.
    ///
    /// # Errors
    /// When they are of two clusters.
    pub fn new(bundle: Bundle, revoked: Revoked) -> Result<Self, ClusterMismatch> {
        if bundle.cluster() == revoked.cluster() {
            Ok(Self { bundle, revoked })
        } else {
            Err(ClusterMismatch)
        }
    }

    #[must_use]
    pub const fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    #[must_use]
    pub const fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.bundle.cluster()
    }

    /// Whether a certificate from anywhere may be used for this now.
    ///
    /// # Errors
    /// With the first reason why not.
    pub fn verify(&self, der: &[u8], wanted: Use, now: Time) -> Result<Certificate, Distrust> {
        let certificate = Certificate::from_der(der).map_err(Distrust::NotOurs)?;
        let found = certificate.identity().cluster;
        if found != self.cluster() {
            return Err(Distrust::OtherCluster { found });
        }
        let mut authorities = self
            .bundle
            .authorities()
            .filter(|authority| authority.validity().contains(now));
        if !authorities.any(|authority| issued(authority, &certificate)) {
            return Err(Distrust::OtherAuthority);
        }
        self.recheck(&certificate, now)?;
        let fits = match wanted {
            Use::Serving => certificate.uses().server,
            Use::Asking => certificate.uses().client,
            Use::Signing | Use::Stating => true,
        };
        if !fits {
            return Err(Distrust::OtherUse { wanted });
        }
        let role = certificate.identity().who.role();
        if wanted == Use::Signing && role != SIGNING_ROLE {
            return Err(Distrust::OtherRole { found: role });
        }
        Ok(certificate)
    }

    /// Whether the authority that issued it issues no more.
    pub(crate) fn is_of_former(&self, certificate: &Certificate) -> bool {
        let bundle = &self.bundle;
        let mut issuing = std::iter::once(bundle.present()).chain(bundle.next());
        !issuing.any(|authority| issued(authority, certificate))
    }

    /// Whether a certificate that was verified once, such as that of an open connection, is still neither ended nor revoked.
    ///
    /// # Errors
    /// With the reason why the connection must be cut.
    pub fn recheck(&self, certificate: &Certificate, now: Time) -> Result<(), Distrust> {
        let Validity { from, until } = certificate.validity();
        if now < from {
            return Err(Distrust::NotYetValid { from });
        }
        if now > until {
            return Err(Distrust::Expired { until });
        }
        self.revoked.check(certificate).map_err(Distrust::Revoked)
    }
}

/// Whether this authority's key signed this certificate, in its name, by the rules of X.509.
pub(crate) fn issued(authority: &AuthorityCertificate, certificate: &Certificate) -> bool {
    let (root, der) = (authority.der(), certificate.der());
    let (Ok(anchor), Ok(end)) = (anchor_from_trusted_cert(&root), EndEntityCert::try_from(&der)) else {
        return false;
    };
    // The moment is the certificate's own: what the clock says is asked apart, to be told apart. Every certificate of ours
    // may be shown by a client, so this usage always fits; which others do is asked apart too.
    let moment: UnixTime = certificate.validity().from.into();
    let algorithms: [&dyn rustls::pki_types::SignatureVerificationAlgorithm; 1] = [webpki::aws_lc_rs::ED25519];
    end.verify_for_usage(&algorithms, &[anchor], &[], moment, KeyUsage::client_auth(), None, None)
        .is_ok()
}

#[cfg(test)]
mod tests;
