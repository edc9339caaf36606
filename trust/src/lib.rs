//! Whom a Reeve cluster trusts, and for what: identities, certificates, tokens, signatures, sealed values and the list of
//! the revoked. Bytes in, bytes out: no IO, no clock (time is an argument), randomness from aws-lc-rs alone. Every reader
//! takes bytes from anywhere: they are sized before they are parsed, and nothing in them makes it panic.
//!
//! # Who is who
//!
//! A certificate of ours has one URI, `reeve://<cluster id>/<role>/<name>` ([`identity`]), and is issued by an authority of
//! the cluster directly ([`authority`]). The first authority derives from the install token ([`token`]), so that every seed
//! has it without a word to the others; later ones are random, and are rotated in without a restart ([`bundle`]). All keys
//! are Ed25519 and stay where they were made. [`trusted::Trust`] is the one place where a certificate is believed, and
//! [`tls`] the one where connections are made from that.
//!
//! # The store is not the root of trust
//!
//! Assignments are signed by a controller ([`sign`]; `controller` signs, `agent` verifies), statements about trust itself by the
//! authority ([`bundle`], [`revoked`], the records of [`token`]; `membership`), and registries' passwords are sealed for their
//! readers ([`seal`], [`publish`]). Desired state is not signed. So:
//!
//! **Who can write the store, and has no key of ours**
//! - cannot make a node obey: an assignment of its making, or one for another node or cluster, or a document of another kind,
//!   does not verify; nor make a certificate, a token's record, a bundle or a list of the revoked;
//! - cannot read a secret, nor have one sealed for itself: whose sealing key is whose is stated under a certificate's
//!   signature, and an envelope opens only as the cluster, namespace, kind, name and edition that it was sealed as;
//! - cannot take back a revocation or a step of a rotation that a host has seen: numbers only rise, and are kept on its disk;
//! - **can** withhold and delete anything, so that a host does not hear of a revocation or a new assignment: certificates
//!   end, and what runs goes on;
//! - **can** show older documents that were once genuine: readers must compare the order inside them (an assignment's epoch
//!   and generation, a value's edition) with what they applied, which this crate does not do for them;
//! - **can** replace a sealed value by another that it sealed itself, for sealing vouches for nothing: readers must demand
//!   the [`seal::Envelope::digest`] that a signed document names;
//! - **can** write what people would write, the desired state, where nothing asks who wrote it: a node's own policy limits
//!   what any assignment may ask of it.
//!
//! **Who has one node's keys**
//! - can be that node: connect as it, and read the secrets that are sealed for it, until it is revoked (`Subject`, at once
//!   where the list has arrived) or its certificate ends;
//! - cannot be another node, a server, a controller or a person: the role is in the certificate, the authority refuses a
//!   request for any other identity, and a node's signature counts for no document;
//! - cannot speak to the store's peers, provided that these run with `--peer-cert-allowed-cn server`: etcd accepts any
//!   certificate of the authority there otherwise;
//! - cannot stay at the store: [`authority::Authority::revocation_file`] has etcd refuse its next handshake (its open
//!   connections must be cut by other means; etcd does not look at them again);
//! - cannot come back under its name after it was revoked: certificates that began before are void, and a join token admits
//!   a name once, with one key.
//!
//! **Who has a controller's keys** commands every node within its policy, until revoked. **Who has the authority's key, or
//! the install token while its authority is trusted**, is the cluster: keys are on seeds alone, and a cluster rotates away
//! from the token's authority when its seeds are up. A former authority has no more say in statements, but what it issued
//! counts until it is forgotten; forget it quickly when its key is lost. A token that pins a former authority is led to the
//! present one by endorsements, and so believes whomever that former authority's key endorses: such tokens should be short.
//!
//! Private keys are wiped when dropped, kept as PKCS#8 in files of mode 0600 by the caller, and never printed.

pub mod authority;
pub mod bundle;
pub mod certificate;
pub mod identity;
pub mod key;
mod pem;
pub mod publish;
#[cfg(feature = "testing")]
pub mod realm;
pub mod revoked;
pub mod seal;
pub mod sign;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod token;
pub mod trusted;
pub mod validity;

pub use pem::PemError;
