//! The command line of what is seen of the cluster's network.

use clap::{Args, ValueEnum};
use planner::network::lookup::Type;
use schemas::names::{Namespace, NodeName};

#[derive(Debug, Args)]
pub struct LookupArgs {
    /// As a program would write it: `db`, `db.shop`, `1.db`, `_sql._tcp.db`, or an address
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Which records [default: PTR of an address, SRV of `_port._tcp.name`, else A]
    #[arg(value_name = "TYPE", value_enum, ignore_case = true)]
    pub kind: Option<TypeWord>,
    /// Ask this node's server; repeatable
    #[arg(long, value_name = "NODE", conflicts_with = "all_nodes")]
    pub node: Vec<NodeName>,
    /// Ask every node's server, and mark those that differ
    #[arg(long)]
    pub all_nodes: bool,
    /// As an instance of this namespace [default: that of --namespace]
    #[arg(long, value_name = "NAMESPACE")]
    pub from: Option<Namespace>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TypeWord {
    A,
    Aaaa,
    Srv,
    Ptr,
}

impl TypeWord {
    pub const fn kind(self) -> Type {
        match self {
            Self::A => Type::A,
            Self::Aaaa => Type::Aaaa,
            Self::Srv => Type::Srv,
            Self::Ptr => Type::Ptr,
        }
    }
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Who connects: `web.1`, `shop/web.1`, `node:n1` or an address
    #[arg(value_name = "FROM")]
    pub from: String,
    /// To whom, and at which port: `db.1:5432`, `db.1:53/udp`; the first of its ports where none is said
    #[arg(value_name = "TO[:PORT[/udp]]")]
    pub to: String,
}

#[derive(Debug, Args)]
pub struct ExposeArgs {
    /// On this node; repeatable [default: this host's]
    #[arg(long, value_name = "NODE", conflicts_with = "all_nodes")]
    pub node: Vec<NodeName>,
    /// On all nodes there are
    #[arg(long)]
    pub all_nodes: bool,
}
