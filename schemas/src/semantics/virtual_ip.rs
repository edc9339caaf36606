//! The rules of virtual addresses: what a host can have, and that nothing is said twice.

use super::Rules;
use crate::problem::{Code, quote};
use crate::virtual_ip::{VirtualIpPlacement, VirtualIpSpec, address, is_interface};
use crate::yaml::Step;

impl Rules<'_> {
    pub(super) fn virtual_ip(&mut self, spec: &VirtualIpSpec) {
        let VirtualIpSpec {
            description: _,
            address: text,
            interface,
            placement,
            service: _,
            prefer,
        } = spec;
        if let Err(why) = address(text) {
            self.say(
                path!["spec", "address"],
                Code::VirtualAddress,
                format!("{} {why}", quote(text)),
                "write such as `192.0.2.10/24` or `2001:db8::10/64`",
            );
        }
        if let Some(name) = interface.as_deref().filter(|name| !is_interface(name)) {
            self.say(
                path!["spec", "interface"],
                Code::VirtualAddress,
                format!("{} is no name of a device", quote(name)),
                "write such as `eth0`: at most 15 characters, no spaces, `/` or `:`",
            );
        }
        let VirtualIpPlacement {
            node_names,
            roles,
            required,
            preferred,
        } = placement;
        self.distinct(path!["spec", "placement", "nodeNames"], node_names);
        self.distinct(path!["spec", "placement", "roles"], roles);
        for (index, expression) in required.iter().enumerate() {
            self.expression(path!["spec", "placement", "required", index], expression);
        }
        for (index, preference) in preferred.iter().enumerate() {
            let place = path!["spec", "placement", "preferred", index, "expression"];
            self.expression(place, &preference.expression);
        }
        self.distinct(path!["spec", "prefer"], prefer);
    }
}
