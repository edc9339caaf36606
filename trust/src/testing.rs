//! A small world for tests: a cluster with an authority, and holders of certificates.

use crate::authority::{Authority, Grant, request};
use crate::bundle::Bundle;
use crate::certificate::Certificate;
use crate::identity::{ClusterId, Identity};
use crate::key::Key;
use crate::revoked::Revoked;
use crate::trusted::Trust;
use crate::validity::Time;

/// The moment at which tests happen: a day in 2026.
pub const NOW: Time = Time::from_unix_seconds(1_790_000_000);
pub const DAY: u64 = 86_400;

pub struct World {
    pub authority: Authority,
    pub bundle: Bundle,
    pub revoked: Revoked,
}

pub struct Holder {
    pub key: Key,
    pub certificate: Certificate,
}

pub const fn cluster(number: u8) -> ClusterId {
    ClusterId::from_bytes([number; 16])
}

/// `node/n1` in a cluster.
pub fn identity(cluster: ClusterId, rest: &str) -> Identity {
    format!("reeve://{cluster}/{rest}").parse().unwrap()
}

impl World {
    pub fn new() -> Self {
        Self::of(cluster(1))
    }

    pub fn of(cluster: ClusterId) -> Self {
        let authority = Authority::new(cluster, NOW).unwrap();
        let bundle = Bundle::of(authority.certificate().clone());
        Self {
            authority,
            bundle,
            revoked: Revoked::none(cluster),
        }
    }

    pub fn cluster(&self) -> ClusterId {
        self.bundle.cluster()
    }

    pub fn trust(&self) -> Trust {
        Trust::new(self.bundle.clone(), self.revoked.clone()).unwrap()
    }

    /// Somebody with a certificate for ninety days from now.
    pub fn holder(&self, rest: &str) -> Holder {
        self.holder_at(rest, NOW)
    }

    pub fn holder_at(&self, rest: &str, now: Time) -> Holder {
        let key = Key::generate().unwrap();
        let identity = identity(self.cluster(), rest);
        let mut grant = Grant::new(identity, 90 * DAY);
        if matches!(rest.split('/').next(), Some("node" | "server")) {
            grant.addresses = vec!["127.0.0.1".parse().unwrap()];
            grant.dns_names = vec!["localhost".into()];
        }
        let request = request(&key, &grant.identity, &grant.addresses, &grant.dns_names).unwrap();
        let certificate = self.authority.issue(&request, &grant, &self.revoked, now).unwrap();
        Holder { key, certificate }
    }
}
