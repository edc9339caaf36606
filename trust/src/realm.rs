//! For tests outside this crate: a cluster's authority, those it vouches for, and what they sign.

use crate::authority::{Authority, Grant, request};
use crate::bundle::Bundle;
use crate::identity::{ClusterId, Identity};
use crate::key::Key;
use crate::revoked::Revoked;
use crate::sign::{Domain, Pen, Signing, weave};
use crate::trusted::Trust;
use crate::validity::Time;

/// The life of its certificates, in seconds: a hundred days.
pub const LIFE: u64 = 100 * 86_400;

/// A cluster with an authority of its own.
#[derive(Debug)]
pub struct Realm {
    cluster: ClusterId,
    authority: Authority,
    pub now: Time,
}

impl Realm {
    /// # Panics
    /// Without randomness.
    #[must_use]
    pub fn new(cluster: [u8; 16], now: Time) -> Self {
        let cluster = ClusterId::from_bytes(cluster);
        Self {
            cluster,
            authority: Authority::new(cluster, now.minus(10 * LIFE)).expect("there is randomness"),
            now,
        }
    }

    /// # Panics
    /// Never: both parts are of this cluster.
    #[must_use]
    pub fn trust(&self) -> Trust {
        let bundle = Bundle::of(self.authority.certificate().clone());
        Trust::new(bundle, Revoked::none(self.cluster)).expect("both are of one cluster")
    }

    /// The certificate and key of `controller/c1`, `node/n1`, ..., from now on.
    #[must_use]
    pub fn pen(&self, who: &str) -> Pen {
        self.pen_at(who, self.now)
    }

    /// As [`Realm::pen`], issued at another time.
    ///
    /// # Panics
    /// When it is nobody.
    #[must_use]
    pub fn pen_at(&self, who: &str, issued: Time) -> Pen {
        let identity = format!("reeve://{}/{who}", self.cluster);
        let identity: Identity = identity.parse().expect("somebody");
        let grant = Grant::new(identity, LIFE);
        let key = Key::generate().expect("there is randomness");
        let asked = request(&key, &grant.identity, &[], &[]).expect("a request");
        let none = Revoked::none(self.cluster);
        let certificate = self.authority.issue(&asked, &grant, &none, issued);
        Pen::new(certificate.expect("a certificate"), key).expect("its key")
    }

    /// What a controller of this name signs with.
    #[must_use]
    pub fn signing(&self, pen: Pen) -> Signing {
        Signing {
            pen,
            trust: self.trust(),
        }
    }

    /// An assignment of a node as it is stored.
    #[must_use]
    pub fn sign(pen: &Pen, node: &str, document: Vec<u8>) -> Vec<u8> {
        let signature = pen.sign(Domain::assignment(node), &document);
        weave(document, &signature)
    }
}
