//! What the tests on real parts share: a [`Lab`] of hosts on one machine (network, mounts, ids and a Docker engine each),
//! real etcd members, `reeve` processes, and waiting on conditions. Everything a lab made goes when it is dropped, also
//! when the test fails; what it did not make is never touched. Needs root and the packages `scripts/setup.sh test` installs.

mod clean;
mod explain;
mod lab;
mod load;
mod process;
pub mod seats;
mod wait;

pub use lab::{Etcd, Host, Lab};
pub use load::{Load, Served, now};
pub use process::{Place, Process, reeve, run, succeed};
pub use wait::{eventually, holds_for};
