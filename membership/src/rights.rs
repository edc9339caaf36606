//! etcd's own users and roles: a filter against what a node's certificate has no business with, and no more than that, for etcd
//! 3.4 does not ask them within nested transactions. The user is a certificate's common name. Seeds, their controllers and
//! administrators are root; a node reads everything under the prefix, and writes its own keys; other people read and write what
//! their rights say. Each seed sees to it when it starts, and before a newcomer gets its certificate.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use etcd_client::{AuthClient, Client, Permission, PermissionType, UserAddOptions};
use runtime::{EtcdStore, Prefix, Store as _, StoreError, chain};
use schemas::keys::{Key, Root};
use schemas::names::NodeName;
use schemas::records::Digest;
use tokio::time::{sleep, timeout};
use trust::identity::{Identity, Name, Rights, Runs, SERVER_COMMON_NAME, Who};

use crate::front::allow::May;
use crate::now;
use crate::persons;
use crate::port::Seat;
use crate::seeds::Host;

/// etcd's own name for the role, and for the user without whom it asks nobody. No certificate has that name.
const ROOT: &str = "root";
/// After the store did not answer.
const AGAIN: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(10);

/// Why users and roles are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    #[error("set the store's users and roles")]
    Etcd(#[from] etcd_client::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("set the store's users and roles: no answer in time")]
    Slow,
}

/// What a role may do: a key, whether all under it, and whether to write.
type Grant = (String, bool, bool);

/// What somebody may do beside reading; None for who may do everything.
fn grants(root: &Root, who: &Who) -> Option<Vec<Grant>> {
    let all = (root.as_str().to_owned(), true, false);
    let reads = |class: &str| (root.prefix(class), true, false);
    let writes = |class: &str| (root.prefix(class), true, true);
    // What each person writes of what was done: nobody writes in another's name.
    let own_record = || {
        (
            format!("{}{}/", root.prefix("audit"), persons::record_of(&who.subject())),
            true,
            true,
        )
    };
    match who {
        Who::Server(_) | Who::Controller(_) | Who::Person(_, Rights::Admin) => None,
        Who::Node(name) => {
            let own = name.as_str().parse::<NodeName>().ok();
            let keys = own
                .into_iter()
                .flat_map(|node| [Key::Node, Key::Report, Key::Session].map(|key| root.key(&key(node.clone()))));
            let events = (root.prefix("events"), true, true);
            Some(
                [all, events]
                    .into_iter()
                    .chain(keys.map(|key| (key, false, true)))
                    .collect(),
            )
        }
        Who::Person(_, Rights::Operator(_)) => {
            let written = ["desired", "sealed", "blobs", "cordons", "acks", "kv"].map(writes);
            Some([all, own_record()].into_iter().chain(written).collect())
        }
        Who::Person(_, Rights::Viewer(runs)) => {
            let single = [Key::Cluster, Key::Breaker].map(|key| (root.key(&key), false, false));
            // Who runs commands leaves a record of it, and writes nothing else: what may be run, others declare.
            let record = (*runs != Runs::Nowhere).then(own_record);
            Some(single.into_iter().chain(SHOWN.map(reads)).chain(record).collect())
        }
        Who::Person(_, Rights::Namespaces { names, exec: _ }) => {
            let own = names.iter().flat_map(|namespace| {
                ["desired", "sealed", "kv"].map(|class| (format!("{}{namespace}/", root.prefix(class)), true, true))
            });
            // Content is named by its digest, and a yes by that of what it allows: neither has a namespace.
            let shared = [writes("blobs"), writes("acks"), own_record()];
            Some(std::iter::once(all).chain(shared).chain(own).collect())
        }
    }
}

/// What the store's front lets this caller do; None for who may do everything.
#[must_use]
pub fn may(root: &Root, who: &Who) -> Option<May> {
    let grants = grants(root, who)?;
    let all = grants.iter().map(|(key, under, write)| (key.as_str(), *under, *write));
    // The same on every seed, whatever its version: a lease outlives the seed that granted it.
    let digest = Digest::of(who.subject().to_string().as_bytes()).to_string();
    let hex: String = digest.chars().filter(char::is_ascii_hexdigit).rev().take(16).collect();
    Some(May::new(all, u64::from_str_radix(&hex, 16).unwrap_or_default()))
}

/// The classes that who only looks may read: neither sealed values nor tokens are among them.
const SHOWN: [&str; 21] = [
    "desired",
    "status",
    "accepted",
    "assignments",
    "verdicts",
    "cordons",
    "acks",
    "nodes",
    "reports",
    "sessions",
    "election",
    "controllers",
    "events",
    "trust",
    "issued",
    "blobs",
    "audit",
    "kv",
    "peers",
    "endpoints",
    "policies",
];

fn permission((key, under, write): &Grant) -> Permission {
    let permission = if *write {
        Permission::read_write(key.as_str())
    } else {
        Permission::read(key.as_str())
    };
    if *under { permission.with_prefix() } else { permission }
}

/// Makes a person's role say these grants and nothing else, whatever an earlier certificate had. Whether it had to.
async fn grant_person(auth: &mut AuthClient, role: &str, grants: &[Grant]) -> Result<bool, etcd_client::Error> {
    let wanted: BTreeSet<(Vec<u8>, bool, bool)> = grants
        .iter()
        .map(|(key, under, write)| (key.clone().into_bytes(), *under, *write))
        .collect();
    if let Ok(found) = auth.role_get(role).await {
        let writes = PermissionType::Readwrite as i32;
        let found: BTreeSet<(Vec<u8>, bool, bool)> = found
            .permissions()
            .iter()
            .map(|one| {
                (
                    one.key().to_vec(),
                    !one.range_end().is_empty(),
                    one.get_type() == writes,
                )
            })
            .collect();
        if found == wanted {
            return Ok(false);
        }
        auth.role_delete(role).await?;
    }
    there(auth.role_add(role).await)?;
    for grant in grants {
        auth.role_grant_permission(role, permission(grant)).await?;
    }
    Ok(true)
}

/// What is there already is as good.
fn there<T>(done: Result<T, etcd_client::Error>) -> Result<(), etcd_client::Error> {
    match done {
        Err(etcd_client::Error::GRpcStatus(status)) if status.message().contains("already exists") => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

async fn add(auth: &mut AuthClient, name: &str, role: &str) -> Result<(), etcd_client::Error> {
    there(auth.user_add(name, "", Some(UserAddOptions::new().with_no_pwd())).await)?;
    there(auth.user_grant_role(name, role).await)
}

/// Makes somebody's user and role, unless they are there.
///
/// # Errors
/// When the store does not take it.
pub async fn admit(client: &Client, root: &Root, identity: &Identity) -> Result<(), RightsError> {
    let name = identity.common_name();
    let grants = grants(root, &identity.who);
    let role = grants.as_ref().map_or(ROOT, |_| name.as_str());
    let mut auth = client.auth_client();
    let work = async {
        // Every change makes the store refuse what others write at this moment, once: so only what is missing is made.
        if let Who::Person(..) = identity.who {
            let changed = match &grants {
                Some(grants) => grant_person(&mut auth, role, grants).await?,
                None => false,
            };
            let roles = auth.user_get(name.as_str()).await.map(|found| found.roles().to_vec());
            let roles = roles.unwrap_or_default();
            if changed || !roles.iter().any(|found| found == role) {
                add(&mut auth, &name, role).await?;
            }
            // What it had by an earlier certificate.
            for other in roles.iter().filter(|found| *found != role) {
                auth.user_revoke_role(name.as_str(), other.as_str()).await?;
            }
            return Ok(());
        }
        if let Ok(found) = auth.user_get(name.as_str()).await
            && found.roles().iter().any(|found| found == role)
        {
            return Ok(());
        }
        if let Some(grants) = &grants {
            there(auth.role_add(role).await)?;
            for grant in grants {
                auth.role_grant_permission(role, permission(grant)).await?;
            }
        }
        add(&mut auth, &name, role).await?;
        Ok(())
    };
    timeout(CALL, work).await.map_err(|_| RightsError::Slow)?
}

/// Makes everybody's who belongs to the cluster, and has etcd ask them from then on.
async fn begin(client: &Client, store: &EtcdStore, seat: &Seat) -> Result<(), RightsError> {
    let (root, seeds) = (&seat.root, &seat.seeds);
    let label = |host: &Host| host.label().parse::<Name>().ok();
    let mut all: Vec<Who> = seeds.iter().filter_map(label).map(Who::Controller).collect();
    let names = [SERVER_COMMON_NAME, ROOT].map(|name| name.parse::<Name>());
    if let [Ok(server), Ok(person)] = names {
        all.extend([Who::Server(server), Who::Person(person, Rights::Admin)]);
    }
    all.extend(nodes(store, root).await?.into_iter().map(Who::Node));
    let people = persons::list(store, root, seat.believed().revoked()).await?;
    let counting = people.into_iter().filter(|person| person.counts(now()));
    all.extend(counting.filter_map(|person| Some(Who::Person(person.name, person.rights?))));
    for who in all {
        admit(client, root, &Identity::new(seat.cluster, who)).await?;
    }
    let mut auth = client.auth_client();
    let work = async {
        let known = auth.user_get(ROOT).await;
        if !known.is_ok_and(|found| found.roles().iter().any(|role| role == ROOT)) {
            add(&mut auth, ROOT, ROOT).await?;
        }
        auth.auth_enable().await.map(drop)
    };
    timeout(CALL, work).await.map_err(|_| RightsError::Slow)??;
    Ok(())
}

/// Nodes that have joined, by what seeds and agents have written of them.
async fn nodes(store: &EtcdStore, root: &Root) -> Result<BTreeSet<Name>, StoreError> {
    let mut names = BTreeSet::new();
    for prefix in [format!("{}node/", root.prefix("issued")), root.prefix("nodes")] {
        let listing = store.list(&Prefix::new(prefix.clone())?).await?;
        let first = |key: &[u8]| {
            let rest = std::str::from_utf8(key.strip_prefix(prefix.as_bytes())?).ok()?;
            rest.split('/').next()?.parse::<Name>().ok()
        };
        names.extend(listing.kvs.iter().filter_map(|kv| first(&kv.key)));
    }
    Ok(names)
}

/// Sets up users and roles; tried until the store takes it.
pub async fn set_up(seat: Arc<Seat>) {
    let mut told = None;
    loop {
        let asks = seat.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((store, client)) = asks {
            match begin(&client, &store, &seat).await {
                Ok(()) => {
                    tracing::info!("the store asks its users' rights");
                    return;
                }
                Err(error) => {
                    let why = chain(&error);
                    if told.as_ref() != Some(&why) {
                        tracing::warn!("{why}; it is tried again");
                        told = Some(why);
                    }
                }
            }
        }
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_node_writes_its_own_keys_and_nobody_elses() {
        let who = Who::Node("n1".parse().unwrap());
        let written: Vec<String> = grants(&Root::default(), &who)
            .unwrap()
            .into_iter()
            .filter_map(|(key, under, write)| write.then(|| if under { format!("{key}*") } else { key }))
            .collect();
        assert_eq!(
            written,
            [
                "/reeve/events/*",
                "/reeve/nodes/n1",
                "/reeve/reports/n1",
                "/reeve/sessions/n1"
            ]
        );
    }

    #[test]
    fn a_person_writes_what_its_rights_say_and_a_viewer_sees_nothing_sealed() {
        let granted = |rights: &str| {
            let who = Who::Person("anna".parse().unwrap(), rights.parse().unwrap());
            grants(&Root::default(), &who).unwrap()
        };
        let written = |rights: &str| -> Vec<String> {
            let all = granted(rights).into_iter();
            all.filter_map(|(key, _, write)| write.then_some(key)).collect()
        };
        for class in ["desired", "sealed", "acks", "cordons", "blobs"] {
            assert!(written("operator").contains(&format!("/reeve/{class}/")), "{class}");
        }
        for rights in [
            "operator",
            "operator+exec+host",
            "viewer",
            "viewer+run",
            "namespaces=shop+exec",
        ] {
            for class in [
                "trust",
                "joins",
                "assignments",
                "cluster",
                "issued",
                "accepted",
                "handed",
            ] {
                let open = written(rights)
                    .iter()
                    .any(|key| format!("/reeve/{class}/").starts_with(key.as_str()));
                assert!(!open, "{rights} writes {class}");
            }
        }
        assert_eq!(written("viewer"), Vec::<String>::new());
        // Who runs what others declare can declare nothing himself.
        assert_eq!(written("viewer+run=shop"), ["/reeve/audit/person.anna/"]);
        assert!(granted("viewer").iter().all(|(key, ..)| {
            !["/reeve/sealed/", "/reeve/handed/", "/reeve/joins/"]
                .iter()
                .any(|class| class.starts_with(key.as_str()))
        }));
        let own = written("namespaces=shop,web");
        assert!(own.contains(&"/reeve/desired/shop/".to_owned()) && !own.contains(&"/reeve/desired/".to_owned()));
        assert!(own.contains(&"/reeve/audit/person.anna/".to_owned()), "{own:?}");
        assert!(grants(&Root::default(), &Who::Person("anna".parse().unwrap(), Rights::Admin)).is_none());
    }

    #[test]
    fn nobody_is_etcds_own_root() {
        let cluster = trust::identity::ClusterId::from_bytes([1; 16]);
        for text in ["node/root", "server/root", "controller/root", "person/root?admin"] {
            let identity: Identity = format!("reeve://{cluster}/{text}").parse().unwrap();
            assert_ne!(identity.common_name(), ROOT);
        }
    }
}
