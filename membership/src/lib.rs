//! Who belongs to a cluster on hosts of one's own: the seeds that keep its store, the newcomers that join it, and what each
//! host keeps on its disk of that. `reeve server` runs [`seed`], `reeve agent --seeds` begins with [`join`]; both keep their
//! keys and certificates with [`keep`] and trust by the crate `trust`. What a seed does next is one pure function,
//! [`bootstrap::next`].
//!
//! ```text
//! install token --derives--> cluster id, authority, join token      (the same on every seed, without a word)
//! seeds ask each other (port 2378) --> all are there --> etcd (2380), its front (2379) --> marker --> controller
//! a newcomer --token, request--> a seed's port --> certificate, endpoints --> the store's front (2379) --> etcd (loopback)
//! ```

pub mod believed;
pub mod bootstrap;
pub mod call;
pub mod etcd;
pub mod front;
pub mod issued;
pub mod join;
pub mod keep;
pub mod leave;
pub mod look;
pub mod members;
pub mod persons;
pub mod port;
mod record;
pub mod renew;
pub mod revoke;
pub mod rights;
pub mod rotate;
pub mod rotation;
pub mod rotator;
pub mod seat;
pub mod seed;
pub mod seeds;
pub mod signing;
pub mod tokens;
pub mod upkeep;
pub mod voice;

use std::time::{SystemTime, UNIX_EPOCH};

use trust::validity::Time;

/// Where seeds answer newcomers and each other.
pub const SEED_PORT: u16 = 2378;
/// Where the store's fronts answer clients: etcd's own.
pub const CLIENT_PORT: u16 = 2379;
/// Where the store's members answer each other: etcd's own.
pub const PEER_PORT: u16 = 2380;
/// Where a member answers its seed's front, on loopback.
pub const MEMBER_PORT: u16 = 2381;

/// What this host's clock says, for the dates of certificates and tokens alone: nothing else is decided by it.
#[must_use]
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Time::from_unix_seconds(since.map_or(0, |since| since.as_secs()))
}
