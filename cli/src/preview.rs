//! What a change comes to, before it is made: the planner's own answer on the store as it is, with the documents laid over
//! it. `plan` prints it; `apply`, `scale` and `delete` print it and ask where something is removed. Nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use planner::cluster::{
    self, Action, Change, DeclaredVirtualIp, DesiredBody, DesiredEntry, Holder, Reason, Snapshot, Status,
};
use runtime::{Prefix, Store};
use schemas::keys::{Key, ResourceKey, Root};
use schemas::kinds::{Document, Kind};
use schemas::names::{NodeName, Slot};
use schemas::records::{Digest, Record, Refusal, Sealed};

use crate::connect::Connection;
use crate::edit::{Beside, Edit, Effect, Then};
use crate::failure::{Exit, Failure};
use crate::output::{self, Tone, count};
use crate::view::title;
use crate::wait::refusal_line;

/// The most lines a plan takes on the screen.
const MAX_LINES: usize = 16;

/// The instances of one resource that a change removes.
#[derive(Clone, Debug)]
pub struct Removal {
    pub key: ResourceKey,
    pub instances: usize,
    /// What an acknowledgement of exactly this removal names.
    pub digest: Digest,
}

/// What a change comes to.
#[derive(Debug, Default)]
pub struct Preview {
    /// Of the edited resources all, `Keep` too; of others those that this change causes.
    pub changes: Vec<Change>,
    pub removals: Vec<Removal>,
    /// Services that get another spec by what the edits change, and the generation in force before: those that mount a file
    /// or a secret of them.
    pub renewed: BTreeMap<ResourceKey, Option<u64>>,
    /// Why instances find no node, by resource.
    refusals: BTreeMap<ResourceKey, Vec<Refusal>>,
    /// Who is to hold the virtual addresses that are edited.
    pub holders: Vec<Holder>,
}

/// Asks the planner what the leader would do.
pub async fn preview(connection: &Connection, edits: &[Edit]) -> Result<Preview, Failure> {
    let listing = connection.store.list(&Prefix::new(connection.root.as_str())?).await?;
    let observed = controller::snapshot_from_listing(&connection.root, &listing).map_err(|hold| {
        let failure = Failure::new(Exit::Failed, format!("cannot plan ({})", hold.reason())).because(&hold);
        match hold.remedy() {
            Some(remedy) => failure.help(remedy),
            None => failure,
        }
    })?;
    let mut before = observed.snapshot;
    if before.epoch == 0 {
        // Nobody leads now; whoever leads next does so in an epoch after all that is written.
        before.epoch = before.revision + 1;
    }
    let before = before;
    let mut after = before.clone();
    lay_over(&mut after, &connection.root, edits);
    let plan = cluster::plan(&after);
    let edited: BTreeSet<&ResourceKey> = edits.iter().map(|edit| &edit.key).collect();
    let others = plan
        .changes
        .iter()
        .any(|change| !edited.contains(&change.resource) && change.action != Action::Keep);
    // What happens anyway is not this change's doing.
    let anyway = if others {
        cluster::plan(&before).changes
    } else {
        Vec::new()
    };
    let anyway: BTreeMap<_, _> = anyway
        .iter()
        .map(|change| ((&change.resource, &change.instance), change))
        .collect();
    let removals = edits.iter().filter_map(|edit| {
        let digest = cluster::removal_digest(&plan, &edit.key)?;
        let own = plan
            .removals
            .iter()
            .filter(|removal| removal.own && removal.key == edit.key);
        Some(Removal {
            key: edit.key.clone(),
            instances: own.count(),
            digest,
        })
    });
    let removals = removals.collect();
    let refusals = plan.statuses.iter().filter_map(|(key, status)| match status {
        Status::Service(status) if !status.refusals.is_empty() => Some((key.clone(), status.refusals.clone())),
        Status::Service(_) | Status::Node(_) | Status::ConfigFile(_) | Status::VirtualIp(_) => None,
    });
    let refusals = refusals.collect();
    let caused = |change: &Change| {
        edited.contains(&change.resource)
            || (change.action != Action::Keep && anyway.get(&(&change.resource, &change.instance)) != Some(&change))
    };
    let changes: Vec<Change> = plan.changes.iter().filter(|change| caused(change)).cloned().collect();
    let generation = |key: &ResourceKey| {
        let status = before.service_statuses.get(key)?.value.as_ref().ok()?;
        status.generation
    };
    let renews = |change: &&Change| match &change.action {
        Action::Replace { fields: _ } | Action::Update { fields: _ } => true,
        // It had nothing in force while a file or a secret was missing.
        Action::Create => generation(&change.resource).is_none(),
        Action::Move { from: _ } | Action::Keep | Action::Remove | Action::Unschedulable => false,
    };
    let mounted = |edit: &Edit| matches!(edit.key.kind, Kind::ConfigFile | Kind::Secret);
    let others = changes.iter().filter(|change| !edited.contains(&change.resource));
    let renewed = others
        .filter(|_| edits.iter().any(mounted))
        .filter(renews)
        .map(|change| (change.resource.clone(), generation(&change.resource)))
        .collect();
    let holders = plan
        .holders
        .into_iter()
        .filter(|one| edited.contains(&one.resource))
        .collect();
    Ok(Preview {
        changes,
        removals,
        renewed,
        refusals,
        holders,
    })
}

/// The edits as if they were written.
fn lay_over(snapshot: &mut Snapshot, root: &Root, edits: &[Edit]) {
    snapshot.revision += 1;
    lay_values_over(snapshot, root, edits);
    for edit in edits.iter().filter(|edit| edit.effect != Effect::Unchanged) {
        if edit.key.kind == Kind::VirtualIP {
            lay_virtual_ip_over(snapshot, edit);
            continue;
        }
        let Some(document) = &edit.document else {
            snapshot.desired.remove(&edit.key);
            continue;
        };
        let created = snapshot
            .desired
            .get(&edit.key)
            .map_or(snapshot.revision, |entry| entry.create_revision);
        let body = match document {
            Document::Service(service) => DesiredBody::Service(Arc::new(service.spec.clone())),
            Document::Node(node) => DesiredBody::Node(Arc::new(node.spec.clone())),
            Document::ConfigFile(file) => DesiredBody::ConfigFile(Arc::new(file.spec.clone())),
            // Nothing runs by it.
            Document::Registry(_)
            | Document::Secret(_)
            | Document::Command(_)
            | Document::NetworkPolicy(_)
            | Document::VirtualIP(_) => continue,
        };
        let metadata = document.metadata();
        let entry = DesiredEntry {
            create_revision: created,
            mod_revision: snapshot.revision,
            labels: metadata.labels.clone(),
            annotations: metadata.annotations.clone(),
            body,
        };
        snapshot.desired.insert(edit.key.clone(), entry);
    }
}

fn lay_virtual_ip_over(snapshot: &mut Snapshot, edit: &Edit) {
    let Some(Document::VirtualIP(document)) = &edit.document else {
        snapshot.virtual_ips.remove(&edit.key);
        return;
    };
    let known = snapshot.virtual_ips.get(&edit.key);
    let declared = DeclaredVirtualIp {
        create_revision: known.map_or(snapshot.revision, |known| known.create_revision),
        mod_revision: snapshot.revision,
        spec: Ok(Arc::new(document.spec.clone())),
    };
    snapshot.virtual_ips.insert(edit.key.clone(), declared);
}

/// The editions of secrets that edits put in force, or take away.
fn lay_values_over(snapshot: &mut Snapshot, root: &Root, edits: &[Edit]) {
    for Beside { key, guard: _, then } in edits.iter().flat_map(|edit| &edit.beside) {
        let Some(Key::Sealed(key)) = root.parse(key) else {
            continue;
        };
        let sealed = match then {
            Then::Put(value) => Sealed::decode(value).ok(),
            Then::Delete => None,
            Then::Nothing => continue,
        };
        match sealed
            .filter(|_| key.kind == Kind::Secret)
            .and_then(|sealed| Some(sealed.in_force()?.0))
        {
            Some(edition) => snapshot.secrets.insert(key, edition),
            None => snapshot.secrets.remove(&key),
        };
    }
}

/// What equal changes have in common: their rank on the screen, the verb, and why.
type Alike = (u8, String, String);
/// The slots they are about, and on which nodes.
type Members<'a> = (Vec<&'a Slot>, BTreeSet<String>, Vec<std::net::Ipv4Addr>);

/// How many instances are how affected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    create: usize,
    replace: usize,
    update: usize,
    moved: usize,
    remove: usize,
    keep: usize,
    unschedulable: usize,
}

impl Preview {
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for change in &self.changes {
            *match &change.action {
                Action::Create => &mut totals.create,
                Action::Replace { fields: _ } => &mut totals.replace,
                Action::Update { fields: _ } => &mut totals.update,
                Action::Move { from: _ } => &mut totals.moved,
                Action::Keep => &mut totals.keep,
                Action::Remove => &mut totals.remove,
                Action::Unschedulable => &mut totals.unschedulable,
            } += 1;
        }
        totals
    }

    /// How many instances are removed.
    pub fn removed(&self) -> usize {
        self.removals.iter().map(|removal| removal.instances).sum()
    }

    /// For people: one line per resource, under it one per group of equal changes.
    pub fn render(&self, edits: &[Edit]) -> String {
        let mut lines: Vec<String> = Vec::new();
        let mut told = BTreeSet::new();
        for edit in edits {
            let (word, tone) = match edit.effect {
                Effect::Create => ("new", Tone::Good),
                Effect::Change => ("changed", Tone::Busy),
                Effect::Unchanged => ("unchanged", Tone::Plain),
                Effect::Delete => ("deleted", Tone::Bad),
            };
            let style = tone.style();
            lines.push(format!("{}: {style}{word}{style:#}", title(&edit.key)));
            lines.extend(self.groups(&edit.key));
            lines.extend(self.holder(&edit.key));
            told.insert(&edit.key);
        }
        let others: BTreeSet<&ResourceKey> = self.changes.iter().map(|change| &change.resource).collect();
        for other in others.difference(&told) {
            let groups = self.groups(other);
            if !groups.is_empty() {
                lines.push(format!("{}: affected", title(other)));
                lines.extend(groups);
            }
        }
        if lines.len() > MAX_LINES {
            let more = lines.len() - (MAX_LINES - 1);
            lines.truncate(MAX_LINES - 1);
            lines.push(format!("  ... and {} (all with -o json)", count(more, "more line")));
        }
        lines.into_iter().fold(String::new(), |text, line| text + &line + "\n")
    }

    /// Who is to hold a virtual address.
    fn holder(&self, key: &ResourceKey) -> Option<String> {
        let one = self.holders.iter().find(|one| one.resource == *key)?;
        let name = |node: &Option<NodeName>| node.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        let who = if one.from == one.to {
            name(&one.to)
        } else {
            format!("{} -> {}", name(&one.from), name(&one.to))
        };
        let text = format!("  held by {who}: {}", one.why);
        Some(output::cut(&text, output::width()))
    }

    fn groups(&self, key: &ResourceKey) -> Vec<String> {
        let mut groups: BTreeMap<Alike, Members<'_>> = BTreeMap::new();
        for change in self.changes.iter().filter(|change| change.resource == *key) {
            let (rank, verb) = match &change.action {
                Action::Keep => continue,
                Action::Create => (0, "create".to_owned()),
                Action::Replace { fields: _ } => (1, "replace".to_owned()),
                Action::Update { fields: _ } => (2, "update".to_owned()),
                Action::Move { from: _ } => (3, "move".to_owned()),
                Action::Remove => (4, "remove".to_owned()),
                Action::Unschedulable => (5, "cannot place".to_owned()),
            };
            let (slots, nodes, addresses) = groups.entry((rank, verb, why(change))).or_default();
            slots.push(&change.instance.slot);
            // What is there keeps its own.
            if let (Action::Create | Action::Move { from: _ }, Some(address)) = (&change.action, change.address) {
                addresses.push(address);
            }
            let node = match &change.action {
                Action::Move { from } => {
                    format!("{from} -> {}", change.node.as_ref().map_or("?", |node| node.as_str()))
                }
                Action::Create
                | Action::Replace { fields: _ }
                | Action::Update { fields: _ }
                | Action::Keep
                | Action::Remove
                | Action::Unschedulable => change.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            };
            if !node.is_empty() {
                nodes.insert(node);
            }
        }
        let width = output::width();
        let line = |((rank, verb, why), (slots, nodes, addresses)): (Alike, Members<'_>)| {
            let style = match rank {
                0 => Tone::Good,
                4 | 5 => Tone::Bad,
                _ => Tone::Busy,
            }
            .style();
            let mut text = format!("{}.{}", key.name, slots_text(&slots));
            if !nodes.is_empty() {
                let shown: Vec<&str> = nodes.iter().take(3).map(String::as_str).collect();
                let more = if nodes.len() > 3 {
                    format!(" and {} more", nodes.len() - 3)
                } else {
                    String::new()
                };
                let _ = write!(text, " on {}{more}", shown.join(", "));
            }
            if !addresses.is_empty() {
                let shown: Vec<String> = addresses.iter().take(3).map(ToString::to_string).collect();
                let more = if addresses.len() > 3 { ", ..." } else { "" };
                let _ = write!(text, " at {}{more}", shown.join(", "));
            }
            let _ = write!(text, ": {why}");
            let text = output::cut(&text, width.saturating_sub(verb.len() + 3));
            format!("  {style}{verb}{style:#} {text}")
        };
        let mut lines: Vec<String> = groups.into_iter().map(line).collect();
        if self
            .changes
            .iter()
            .any(|change| change.resource == *key && change.action == Action::Unschedulable)
        {
            let refusals = self.refusals.get(key).map(Vec::as_slice).unwrap_or_default();
            lines.extend(
                refusals
                    .iter()
                    .take(5)
                    .map(|refusal| format!("    {}", refusal_line(refusal))),
            );
        }
        lines
    }

    /// One line that counts.
    pub fn summary(&self) -> String {
        let Totals {
            create,
            replace,
            update,
            moved,
            remove,
            keep,
            unschedulable,
        } = self.totals();
        let parts = [
            (create, "to create"),
            (replace, "to replace"),
            (update, "to update in place"),
            (moved, "to move"),
            (remove, "to remove"),
            (unschedulable, "without a node"),
            (keep, "to keep"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect();
        if parts.is_empty() {
            "no instances".to_owned()
        } else {
            parts.join(", ")
        }
    }
}

/// `1-3,5`, or node names.
fn slots_text(slots: &[&Slot]) -> String {
    let mut numbers: Vec<u32> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for slot in slots {
        match slot {
            Slot::Index(index) => numbers.push(*index),
            Slot::Node(node) => names.push(node.to_string()),
        }
    }
    numbers.sort_unstable();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => runs.push((number, number)),
        }
    }
    let runs = runs.into_iter().map(|(from, to)| {
        if from == to {
            from.to_string()
        } else {
            format!("{from}-{to}")
        }
    });
    runs.chain(names).collect::<Vec<_>>().join(",")
}

/// Why, with the fields that force it.
fn why(change: &Change) -> String {
    let fields = match &change.action {
        Action::Replace { fields } | Action::Update { fields } => Some(fields.join(", ")),
        Action::Create | Action::Move { from: _ } | Action::Keep | Action::Remove | Action::Unschedulable => None,
    };
    let mut text = match (&change.reason, fields) {
        (Reason::SpecChanged { from: _, to: _ }, Some(fields)) if !fields.is_empty() => format!("{fields} changed"),
        (reason, _) => reason_text(reason),
    };
    // That its turn comes after another's is how every change goes: not news.
    match &change.waits {
        None | Some(Reason::WaitsFor { instance: _ }) => {}
        Some(waits) => {
            let _ = write!(text, "; {}", reason_text(waits));
        }
    }
    text
}

/// A reason in words.
pub fn reason_text(reason: &Reason) -> String {
    match reason {
        Reason::NotAssigned => "on no node yet".to_owned(),
        Reason::SpecChanged { from, to } => format!("generation {from} became {to}"),
        Reason::FileChanged { file, from, to } => format!("edition {from} of file {file} became {to}"),
        Reason::SecretChanged { secret, from, to } => format!("edition {from} of secret {secret} became {to}"),
        Reason::ScaledDown { to } => format!("scaled down to {to}"),
        Reason::ResourceDeleted => "deleted".to_owned(),
        Reason::NodeNoLongerFits { rule } => format!("its node no longer fits: {rule}"),
        Reason::NodeDrained => "its node is drained".to_owned(),
        Reason::NodeRetired => "its node is retired".to_owned(),
        Reason::NodeLost => "its node is lost".to_owned(),
        Reason::Duplicate { kept_on } => format!("a duplicate of the one on {kept_on}"),
        Reason::UpToDate => "up to date".to_owned(),
        Reason::WaitsForSeeds { service } => {
            format!("until the first addresses of {service}, which it is told, are all known")
        }
        Reason::WaitsFor { instance } => format!("after {instance} is ready"),
        Reason::ChangeFailed { instance, cause } => format!("the change has stopped at {instance}: {cause:?}"),
        Reason::NodeUnreachable { node } => format!("waits for node {node} to come back"),
        Reason::MayRunOn { node, until: None } => {
            format!("may run on {node}: until that says that it is gone, or you with `reeve node confirm-lost {node}`")
        }
        Reason::MayRunOn {
            node,
            until: Some(until),
        } => {
            format!("may run on {node}: until that has been away for {until}, and has stopped it")
        }
        Reason::NoNodeFits => "no node fits".to_owned(),
        Reason::HeldByBreaker { digest } => format!("held until `reeve admin ack {}`", &digest.as_str()[..8]),
        Reason::NodeHeld { why } => format!("its node is held: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use schemas::names::InstanceName;

    use super::*;

    fn change(slot: u32, action: Action, reason: Reason) -> Change {
        let namespace = schemas::names::Namespace::default();
        let name: schemas::names::ResourceName = "web".parse().expect("a name");
        let resource = ResourceKey {
            namespace: Some(namespace.clone()),
            kind: Kind::Service,
            name: name.clone(),
        };
        let instance = InstanceName {
            namespace,
            workload: name,
            slot: Slot::Index(slot),
        };
        let node = Some("n1".parse().expect("a name"));
        Change {
            address: None,
            resource,
            instance,
            node,
            action,
            reason,
            waits: None,
        }
    }

    #[test]
    fn equal_changes_are_one_line_and_kept_ones_are_only_counted() {
        let replace = Action::Replace {
            fields: vec!["container.image".to_owned()],
        };
        let spec = Reason::SpecChanged { from: 1, to: 2 };
        let changes = vec![
            change(1, replace.clone(), spec.clone()),
            change(2, replace.clone(), spec.clone()),
            change(3, replace, spec),
            change(5, Action::Create, Reason::NotAssigned),
            change(4, Action::Keep, Reason::UpToDate),
        ];
        let preview = Preview {
            changes,
            ..Preview::default()
        };
        let text = anstream::adapter::strip_str(&preview.render(&[])).to_string();
        let lines = [
            "service/web: affected",
            "  create web.5 on n1: on no node yet",
            "  replace web.1-3 on n1: container.image changed",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
        assert_eq!(preview.summary(), "1 to create, 3 to replace, 1 to keep");
    }

    #[test]
    fn slots_are_written_as_runs() {
        let slots = [3, 1, 2, 7].map(Slot::Index);
        assert_eq!(slots_text(&slots.iter().collect::<Vec<_>>()), "1-3,7");
    }
}
