//! The key of this node's links as time goes by: made anew when it is old or a person asks, and switched to when the others are
//! told of it. `ground.rs` calls [`turn`] at every look, the API asks through `seen.rs`. What is to be done is decided in
//! `planner::network::keys`; here it is done to the files. A next key is on disk before anybody hears of it, so that a
//! rotation that was begun goes on after a restart.

use std::time::SystemTime;

use network::wireguard::Keys;
use planner::network::keys::{Standing, Step, lasts, may_prepare, said, step};
use planner::network::links::Key;
use runtime::chain;
use schemas::names::NodeName;
use schemas::records::{ClusterId, LinkKind, NetworkSettings};
use tokio::sync::oneshot;

use crate::api::ask::{KeyHere, KeyNext, Refusal, Why};

/// Where a person's wish for another key is answered.
pub(crate) type Asked = oneshot::Sender<Result<KeyNext, Refusal>>;

/// What a turn goes by.
pub(crate) struct Turn<'a> {
    pub cluster: &'a ClusterId,
    pub node: &'a NodeName,
    pub settings: &'a NetworkSettings,
    /// What this node's links are.
    pub kind: Option<LinkKind>,
    /// The key by which the store tells the others of this node.
    pub published: Option<Key>,
}

impl Turn<'_> {
    fn has_keys(&self) -> bool {
        matches!(self.kind, Some(LinkKind::Wireguard | LinkKind::WireguardUser))
    }
}

/// What came of it.
pub(crate) struct Turned {
    /// The key to say in the node's facts.
    pub said: Key,
    /// How it is shown; None where links have no keys.
    pub here: Option<KeyHere>,
    pub trouble: Option<String>,
}

/// Does what is to be done now, and answers who asked.
pub(crate) fn turn(keys: &mut Keys, turn: &Turn<'_>, asked: Vec<Asked>, now: SystemTime) -> Turned {
    let age = keys.age(now).as_secs();
    let days = turn.settings.key_days();
    let lasts = days.map(|days| lasts(turn.cluster, turn.node, days));
    let old = lasts.is_some_and(|lasts| age >= lasts);
    let standing = Standing {
        present: keys.public(),
        next: keys.next(),
        published: turn.published,
        due: turn.has_keys() && (old || !asked.is_empty()),
    };
    let done = match step(&standing) {
        Step::Stay => Ok(()),
        Step::Prepare => keys.prepare().map(|_| {
            tracing::info!("a next key of this node's links is made; it counts once the other nodes are told of it");
        }),
        Step::Switch => keys.switch().map(|()| {
            tracing::info!("this node's links have another key");
        }),
    };
    let trouble = done
        .err()
        .map(|error| format!("the key of this node's links cannot be replaced: {}", chain(&error)));
    for answer in asked {
        let _ = answer.send(answer_of(keys, turn, trouble.as_deref()));
    }
    Turned {
        said: said(keys.public(), keys.next()),
        here: turn.has_keys().then(|| {
            let age = keys.age(now).as_secs();
            KeyHere {
                key: keys.public().to_string(),
                age_seconds: age,
                next: keys.next().map(|next| next.to_string()),
                replaced_in_seconds: lasts.map(|lasts| lasts.saturating_sub(age)),
            }
        }),
        trouble,
    }
}

fn answer_of(keys: &Keys, turn: &Turn<'_>, trouble: Option<&str>) -> Result<KeyNext, Refusal> {
    let node = turn.node;
    if !turn.has_keys() {
        return Err(Refusal::new(
            Why::NotHere,
            format!("the links of node {node} have no keys: there is nothing to rotate"),
        ));
    }
    if let Some(next) = keys.next() {
        return Ok(KeyNext {
            key: keys.public().to_string(),
            next: next.to_string(),
        });
    }
    if let Some(why) = trouble {
        return Err(Refusal::new(Why::Engine, why));
    }
    if may_prepare(&keys.public(), turn.published) {
        return Err(Refusal::new(Why::Busy, "the next key was not made").help("try again"));
    }
    Err(Refusal::new(
        Why::Busy,
        format!("the other nodes are not told of the present key of node {node} yet"),
    )
    .help("try again in a moment; `reeve status` shows whether a controller runs"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use schemas::records::Backend;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn settings(key_days: Option<u16>) -> NetworkSettings {
        NetworkSettings {
            cidr: "10.210.0.0/16".parse().expect("a range"),
            cidr6: None,
            node_prefix: 24,
            backend: Backend::Wireguard,
            domain: "reeve.internal".to_owned(),
            port: 51_820,
            mtu: None,
            key_days,
        }
    }

    struct Case {
        dir: tempfile::TempDir,
        settings: NetworkSettings,
        kind: LinkKind,
        published: Option<Key>,
        now: SystemTime,
    }

    impl Case {
        fn new(key_days: Option<u16>) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let published = Some(Keys::open(dir.path()).expect("keys").public());
            Self {
                dir,
                settings: settings(key_days),
                kind: LinkKind::WireguardUser,
                published,
                now: SystemTime::now(),
            }
        }

        /// As an agent that has just started.
        fn turn(&self, asked: Vec<Asked>) -> (Turned, Keys) {
            let cluster = "0123456789abcdef0123456789abcdef".parse().expect("an id");
            let node = "n1".parse().expect("a name");
            let mut keys = Keys::open(self.dir.path()).expect("keys");
            let by = Turn {
                cluster: &cluster,
                node: &node,
                settings: &self.settings,
                kind: Some(self.kind),
                published: self.published,
            };
            let turned = turn(&mut keys, &by, asked, self.now);
            (turned, keys)
        }

        fn ask(&self) -> Result<KeyNext, Refusal> {
            let (asked, mut answer) = oneshot::channel();
            drop(self.turn(vec![asked]));
            answer.try_recv().expect("an answer")
        }
    }

    #[test]
    fn an_old_key_is_replaced_when_the_others_are_told_whoever_restarts() {
        let mut case = Case::new(None);
        let first = case.published.expect("a key");
        let (turned, _) = case.turn(Vec::new());
        assert_eq!(turned.said, first, "it is young");
        let here = turned.here.expect("it has keys");
        assert!(
            here.next.is_none() && here.replaced_in_seconds > Some(22 * 86_400),
            "{here:?}"
        );
        case.now += 30 * DAY;
        let (turned, keys) = case.turn(Vec::new());
        assert_ne!(turned.said, first, "the next one is said");
        assert_eq!(keys.public(), first, "the present one goes on");
        let (again, keys) = case.turn(Vec::new());
        assert_eq!((again.said, keys.public()), (turned.said, first));
        assert!(again.here.is_some_and(|here| here.age_seconds >= 30 * 86_400 - 60));
        case.published = Some(turned.said);
        case.now = SystemTime::now();
        let (switched, keys) = case.turn(Vec::new());
        assert_eq!(
            (switched.said, keys.public(), keys.next()),
            (turned.said, turned.said, None)
        );
        assert!(switched.here.is_some_and(|here| here.age_seconds < 86_400));
    }

    #[test]
    fn with_nought_days_a_key_is_replaced_only_when_a_person_asks() {
        let mut case = Case::new(Some(0));
        let first = case.published.expect("a key");
        case.now += 5_000 * DAY;
        let (turned, _) = case.turn(Vec::new());
        assert_eq!(turned.said, first);
        assert!(turned.here.is_some_and(|here| here.replaced_in_seconds.is_none()));
        let answer = case.ask().expect("it is made");
        assert_eq!(answer.key, first.to_string());
        // Asked again, it is the same.
        assert_eq!(case.ask().expect("it is there"), answer);
        assert_eq!(case.turn(Vec::new()).0.said.to_string(), answer.next);
    }

    #[test]
    fn who_has_nothing_to_rotate_or_is_not_known_yet_says_so() {
        let mut case = Case::new(None);
        case.published = None;
        let refused = case.ask().expect_err("nobody knows it");
        assert_eq!(refused.why, Why::Busy);
        assert!(refused.message.contains("not told"), "{refused}");
        case.kind = LinkKind::Vxlan;
        let refused = case.ask().expect_err("no keys");
        assert!(refused.message.contains("nothing to rotate"), "{refused}");
        case.now += 5_000 * DAY;
        assert!(case.turn(Vec::new()).0.here.is_none());
        assert_eq!(Keys::open(case.dir.path()).expect("keys").next(), None);
    }
}
