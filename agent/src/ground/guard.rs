//! The filter and the relay of this node, kept together: the ground (`ground.rs`) calls both whenever it has looked. The filter
//! leads past the relay where the relay has the port, so it is told again when that is news.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use planner::network::links;
use planner::node::bridge;
use runtime::Store;
use schemas::records::network::gateway;
use schemas::records::{AssignedNetwork, Backend, LinkKind, NodeCondition};

use super::{Keeper, Local};
use crate::relays::{self, Planned, Relays};
use crate::walls::filter::Wanted;

impl<S: Store> Keeper<S> {
    /// Holds what runs here to what policies say, and leads to it who comes from outside.
    pub(super) async fn guard(&mut self, network: &AssignedNetwork, local: &Local, planned: &Planned) {
        let names = links::names(&self.ground.cluster, &self.ground.node);
        let kind = self.here.as_ref().and_then(|here| here.link.kind);
        // Where others' packets come by the host's own interfaces, they come by any.
        let link = match (kind, network.settings.backend) {
            (Some(LinkKind::Wireguard | LinkKind::WireguardUser), _)
            | (None, Backend::Wireguard | Backend::WireguardUser) => Some(names.wireguard),
            (Some(LinkKind::Vxlan), _) | (None, Backend::Vxlan) => Some(names.vxlan),
            (Some(LinkKind::HostGw | LinkKind::None), _) | (None, Backend::HostGw | Backend::None) => None,
        };
        let wanted = Wanted {
            network: network.clone(),
            bridge: bridge(&self.ground.cluster, &self.ground.node),
            links: link.into_iter().collect(),
            running: local.running.clone(),
            endpoints: Arc::clone(&self.endpoints),
            policies: Arc::clone(&self.policies),
            leads: self.relays.leads(planned).await,
        };
        if self.wanted.as_ref() == Some(&wanted) {
            self.filter.look().await;
        } else {
            self.filter.apply(wanted.clone()).await;
            self.wanted = Some(wanted);
        }
    }

    /// Opens what leads to services, and says what is wrong with that and with the filter.
    pub(super) async fn relay(
        &mut self,
        network: &AssignedNetwork,
        local: &Local,
        planned: Planned,
        conditions: &mut Vec<NodeCondition>,
    ) {
        let own = IpAddr::V4(gateway(&network.subnet));
        let troubles = self.relays.keep(planned.clone(), own).await;
        let led = self.relays.leads(&planned).await;
        if self.wanted.as_ref().is_some_and(|wanted| wanted.leads != led) {
            self.guard(network, local, &planned).await;
        }
        conditions.extend(self.filter.trouble().map(|message| NodeCondition {
            reason: "PolicyDown".to_owned(),
            message,
        }));
        conditions.extend(troubles);
    }

    /// What the relay is to have.
    pub(super) fn planned(&self, network: &AssignedNetwork, local: &Local) -> Planned {
        let host = self.here.as_ref().map(|here| &here.host.addresses);
        Relays::plan(&relays::Wanted {
            node: &self.ground.node,
            settings: &network.settings,
            addresses: host.into_iter().flatten().map(IpNet::addr).collect(),
            reach: &local.reach,
            endpoints: &self.endpoints,
            policies: &self.policies,
        })
    }
}
