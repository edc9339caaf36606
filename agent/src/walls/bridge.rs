//! The bridge that this node's containers hang on: an engine makes it once and never looks again, so where somebody takes it
//! away, its addresses, or what hangs on it, it is put back here, with the card that containers know. [`super::filter`] calls
//! [`mend`] before it looks at the bridge's ports. Nothing is made before an engine made it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use schemas::records::network::{address6, gateway};

use super::filter::{Plugs, Wanted, interfaces, set};
use super::tool;

/// The bridge's own addresses, each with the range that it leads to.
fn addresses(wanted: &Wanted) -> Vec<IpNet> {
    let network = &wanted.network;
    let first = gateway(&network.subnet);
    let four = IpNet::new(IpAddr::V4(first), network.subnet.prefix_len()).ok();
    let six = network.subnet6.as_ref().and_then(|subnet6| {
        let first6 = IpAddr::V6(address6(first, &network.subnet, subnet6));
        IpNet::new(first6, subnet6.prefix_len()).ok()
    });
    four.into_iter().chain(six).collect()
}

/// Puts the bridge back as it was: with this card, where it was seen before. What was done; nothing, most of the time.
///
/// # Errors
/// What the kernel does not do.
pub(super) async fn mend(wanted: &Wanted, card: Option<[u8; 6]>, known: &Plugs) -> Result<Vec<String>, String> {
    let bridge = wanted.bridge.as_str();
    let mut done = Vec::new();
    let listed = tool("ip", &["-o", "link", "show", "dev", bridge], "").await;
    let is_up = match &listed {
        Ok(line) => line.contains(",UP") || line.contains("<UP"),
        Err(why) if why.ends_with("is missing") => return Ok(done),
        Err(_) => {
            let Some(card) = card else { return Ok(done) };
            let card = card.map(|byte| format!("{byte:02x}")).join(":");
            batch(&format!("link add name {bridge} address {card} type bridge\n")).await?;
            done.push(format!("made bridge {bridge} again"));
            false
        }
    };
    let mut text = String::new();
    let own = tool("ip", &["-o", "addr", "show", "dev", bridge], "").await?;
    for address in addresses(wanted) {
        let has = own.split_whitespace().any(|word| word.parse() == Ok(address));
        if !has {
            let six = if matches!(address, IpNet::V6(_)) { " nodad" } else { "" };
            text.push_str(&format!("addr add {address} dev {bridge}{six}\n"));
            done.push(format!("gave {bridge} its address {address} again"));
        }
    }
    if !is_up {
        // Who has another card in mind hears of this one.
        set(&format!("/proc/sys/net/ipv4/conf/{bridge}/arp_notify"), "1")?;
        text.push_str(&format!("link set {bridge} up\n"));
    }
    batch(&text).await?;
    for address in addresses(wanted) {
        let to = address.trunc().to_string();
        let family = if matches!(address, IpNet::V6(_)) { "-6" } else { "-4" };
        let routes = tool("ip", &[family, "-o", "route", "show", "dev", bridge], "").await?;
        if !routes.lines().any(|line| line.split(' ').next() == Some(to.as_str())) {
            let source = match address {
                IpNet::V4(own) => format!(" scope link src {}", own.addr()),
                IpNet::V6(_) => String::new(),
            };
            let add = format!("{to} dev {bridge} proto kernel{source}");
            let words: Vec<&str> = [family, "route", "replace"].into_iter().chain(add.split(' ')).collect();
            tool("ip", &words, "").await?;
            done.push(format!("routed {to} to {bridge} again"));
        }
    }
    let mut text = String::new();
    for end in loose(wanted, known).await? {
        text.push_str(&format!("link set {end} master {bridge} up\n"));
        done.push(format!("hung {end} on {bridge} again"));
    }
    batch(&text).await?;
    Ok(done)
}

async fn batch(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    tool("ip", &["-batch", "-"], text).await.map(drop)
}

/// The ends of containers that hang on nothing now, and hung here when they were first seen. No other is touched: a host's own
/// way to the others may be such an end, too.
async fn loose(wanted: &Wanted, known: &Plugs) -> Result<Vec<String>, String> {
    if known.is_empty() {
        return Ok(Vec::new());
    }
    let listed = tool("ip", &["-o", "link", "show", "type", "veth"], "").await?;
    let hang: String = { listed.lines() }
        .filter(|line| !line.contains(" master "))
        .flat_map(|line| [line, "\n"])
        .collect();
    let processes = wanted.running.iter().filter_map(|one| one.process.as_ref());
    let indexes: BTreeSet<&str> = { processes.filter_map(|process| known.get(process)) }
        .map(|(index, _)| index.as_str())
        .collect();
    let ends = interfaces(&hang).into_iter();
    Ok(ends
        .filter(|end| indexes.contains(end.index.as_str()))
        .map(|end| end.name)
        .collect())
}
