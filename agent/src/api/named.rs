//! Named commands, as an agent takes them: out of the store, itself, at the moment they are asked for. `server` asks here
//! after it knows that the caller may run any in that namespace. A caller says which command, in which instance, and what
//! its parameters are; the words are made here, by what is declared, so that who may run named commands runs nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use runtime::{KeyValue, Store};
use schemas::admit_stored;
use schemas::keys::{Key, ResourceKey, Root};
use schemas::kinds::{Document, Kind};
use schemas::names::ResourceName;
use schemas::records::ClusterId;

use super::ask::{Named, Refusal, Why};
use crate::engine::clean;
use crate::engine::near::Inside;
use crate::register::marker;

type Read = dyn Fn(ResourceKey) -> BoxFuture<'static, Result<Option<KeyValue>, Refusal>> + Send + Sync;

/// The store, for reading commands.
#[derive(Clone)]
pub(crate) struct Shelf(Arc<Read>);

impl Shelf {
    pub(crate) fn new<S: Store>(store: S, root: Root, cluster: ClusterId) -> Self {
        Self(Arc::new(move |key| {
            read(store.clone(), root.clone(), cluster.clone(), key).boxed()
        }))
    }

    #[cfg(test)]
    pub(crate) fn of(documents: BTreeMap<ResourceKey, KeyValue>) -> Self {
        Self(Arc::new(move |key| {
            let found = documents.get(&key).cloned();
            async move { Ok(found) }.boxed()
        }))
    }

    /// What stands under a command's key now, by a linearizable read.
    pub(crate) async fn command(&self, key: &ResourceKey) -> Result<Option<KeyValue>, Refusal> {
        (self.0)(key.clone()).await
    }
}

async fn read<S: Store>(
    store: S,
    root: Root,
    cluster: ClusterId,
    key: ResourceKey,
) -> Result<Option<KeyValue>, Refusal> {
    let away = |error: &runtime::StoreError| {
        let why = format!("the command cannot be read from the store: {}", runtime::chain(error));
        Refusal::new(Why::Busy, why).help("try again when this node reaches the store")
    };
    match marker(&store, &root).await {
        Ok(Some(Ok(marker))) if marker.id == cluster && marker.moved.is_none() => {}
        Ok(_) => {
            return Err(
                Refusal::new(Why::Busy, "the store of this node's agent is not that of its cluster")
                    .help("`reeve describe node` says more"),
            );
        }
        Err(error) => return Err(away(&error)),
    }
    let place = root.key(&Key::Desired(key));
    let read = store.get(place.as_bytes()).await.map_err(|error| away(&error))?;
    Ok(read.value)
}

/// What a caller wants.
pub(crate) struct Wanted<'a> {
    pub command: &'a ResourceName,
    pub revision: i64,
    pub instance: &'a Named,
    pub parameters: &'a BTreeMap<String, String>,
    pub arguments: &'a [String],
    pub input: bool,
    pub terminal: bool,
}

impl Wanted<'_> {
    /// Where the command stands: in the namespace of the instance, and in no other.
    pub(crate) fn key(&self) -> ResourceKey {
        ResourceKey {
            namespace: Some(self.instance.namespace.clone()),
            kind: Kind::Command,
            name: self.command.clone(),
        }
    }
}

/// What is to be run, and for how long somebody waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub inside: Inside,
    pub limit: Option<Duration>,
}

/// Makes the run that is wanted of what stands in the store, or says why not.
pub(crate) fn ready(found: Option<&KeyValue>, wanted: &Wanted<'_>) -> Result<Ready, Refusal> {
    let name = wanted.command;
    let refuse = |why: String, help: &str| Err(Refusal::new(Why::Denied, why).help(help));
    let Some(kv) = found else {
        let why = format!(
            "there is no command `{name}` in namespace {}",
            wanted.instance.namespace
        );
        return Err(Refusal::new(Why::NotHere, why).help("`reeve run` lists what there is"));
    };
    if kv.mod_revision != wanted.revision {
        let why = format!("the command `{name}` has just been changed");
        return Err(Refusal::new(Why::Busy, why).help("look at it with `reeve describe command`, and run it again"));
    }
    let admitted = admit_stored(&wanted.key(), &kv.value);
    let document = admitted
        .ok()
        .filter(|_| kv.lease == 0)
        .map(|admitted| admitted.document);
    let Some(Document::Command(resource)) = document else {
        return refuse(
            format!("the command `{name}` is not valid"),
            "`reeve describe command` says what is wrong with it",
        );
    };
    let spec = resource.spec;
    let Some(service) = &spec.service else {
        return refuse(
            format!("the command `{name}` runs on nodes, and not in containers"),
            "run it with `reeve run`",
        );
    };
    if *service != wanted.instance.workload {
        return refuse(
            format!("the command `{name}` runs in instances of {service} only"),
            "name one of those with --on",
        );
    }
    if let Some(slot) = spec.slot()
        && slot != wanted.instance.slot
    {
        return refuse(
            format!("the command `{name}` runs in {service}.{slot} only"),
            "leave --on out",
        );
    }
    if (wanted.input && !spec.stdin && !spec.tty) || (wanted.terminal && !spec.tty) {
        return refuse(
            format!("the command `{name}` takes no input, or has no terminal"),
            "`stdin: true` or `tty: true` in its document allows that",
        );
    }
    let rendered = match spec.render(wanted.parameters, wanted.arguments) {
        Ok(rendered) => rendered,
        Err(error) => {
            let why = clean(&format!("cannot run `{name}`: {error}"), 600);
            return Err(
                Refusal::new(Why::NotUnderstood, why).help("`reeve describe command` says which parameters it takes")
            );
        }
    };
    Ok(Ready {
        inside: Inside {
            words: rendered.command,
            env: rendered.env,
            working_dir: spec.working_dir,
            user: spec.user.map(|user| user.0),
            input: wanted.input,
            tty: wanted.terminal,
        },
        limit: spec.timeout.map(|timeout| Duration::from_millis(timeout.millis)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(text: &str) -> KeyValue {
        KeyValue {
            key: Vec::new(),
            value: text.to_owned().into(),
            create_revision: 5,
            mod_revision: 7,
            version: 1,
            lease: 0,
        }
    }

    fn document(spec: &str) -> KeyValue {
        stored(&format!(
            "apiVersion: reeve/v1\nkind: Command\nmetadata: {{name: flush, namespace: shop}}\nspec: {spec}\n"
        ))
    }

    /// What becomes of a run of `flush` in an instance of shop, by its words or the refusal.
    fn run(
        kv: &KeyValue,
        instance: &str,
        pairs: &[(&str, &str)],
        change: impl Fn(&mut Wanted<'_>),
    ) -> Result<Ready, String> {
        let (workload, slot) = instance.split_once('.').unwrap();
        let instance = Named {
            namespace: "shop".parse().unwrap(),
            workload: workload.parse().unwrap(),
            slot: slot.parse().unwrap(),
        };
        let parameters = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let command = "flush".parse().unwrap();
        let mut wanted = Wanted {
            command: &command,
            revision: 7,
            instance: &instance,
            parameters: &parameters,
            arguments: &[],
            input: false,
            terminal: false,
        };
        change(&mut wanted);
        ready(Some(kv), &wanted).map_err(|refusal| refusal.message)
    }

    #[test]
    fn a_run_is_what_the_store_says_and_nothing_that_its_caller_says() {
        let kv = document(
            "{service: cache, command: [cli, \"${mode}\"], user: 7, workingDir: /data, env: {A: b}, timeout: 2s, \
             parameters: [{name: mode, values: [soft, hard]}]}",
        );
        let ready = run(&kv, "cache.1", &[("mode", "hard")], |_| {}).unwrap();
        assert_eq!(ready.inside.words, ["cli", "hard"]);
        assert_eq!(ready.inside.user.as_deref(), Some("7"));
        assert_eq!(ready.inside.working_dir.as_deref(), Some("/data"));
        assert_eq!(ready.inside.env["A"], "b");
        assert!(!ready.inside.input && !ready.inside.tty);
        assert_eq!(ready.limit, Some(Duration::from_secs(2)));
        let refused = |instance: &str, pairs: &[(&str, &str)], change: fn(&mut Wanted<'_>)| {
            run(&kv, instance, pairs, change).expect_err("it is not that")
        };
        let mode = [("mode", "hard")];
        assert!(refused("db.1", &mode, |_| {}).contains("instances of cache only"));
        assert!(refused("cache.1", &[("mode", "sh")], |_| {}).contains("one of `soft`, `hard`"));
        assert!(refused("cache.1", &[], |_| {}).contains("missing"));
        assert!(refused("cache.1", &[("mode", "hard"), ("x", "y")], |_| {}).contains("no parameter"));
        assert!(refused("cache.1", &mode, |wanted| wanted.revision = 6).contains("changed"));
        assert!(refused("cache.1", &mode, |wanted| wanted.input = true).contains("no input"));
        assert!(refused("cache.1", &mode, |wanted| wanted.terminal = true).contains("no terminal"));
        let more = ["sh".to_owned()];
        let command = "flush".parse().unwrap();
        let instance = Named {
            namespace: "shop".parse().unwrap(),
            workload: "cache".parse().unwrap(),
            slot: "1".parse().unwrap(),
        };
        let wanted = Wanted {
            command: &command,
            revision: 7,
            instance: &instance,
            parameters: &[("mode".to_owned(), "hard".to_owned())].into(),
            arguments: &more,
            input: false,
            terminal: false,
        };
        assert!(ready_message(&kv, &wanted).contains("no further arguments"));
    }

    fn ready_message(kv: &KeyValue, wanted: &Wanted<'_>) -> String {
        ready(Some(kv), wanted).expect_err("it is not that").message
    }

    #[test]
    fn a_document_that_does_not_count_runs_nothing() {
        let good = document("{service: cache, command: [cli]}");
        assert!(run(&good, "cache.1", &[], |_| {}).is_ok());
        let leased = KeyValue { lease: 9, ..good };
        let others = [
            leased,
            document("{service: cache, command: []}"),
            document("{service: cache, nodes: {all: true}, command: [cli]}"),
            stored("junk"),
            stored("\u{0}"),
            // Another namespace's, and another kind's, under this key.
            stored(
                "apiVersion: reeve/v1\nkind: Command\nmetadata: {name: flush, namespace: x}\nspec: {service: cache, command: [cli]}\n",
            ),
            stored("apiVersion: reeve/v1\nkind: Secret\nmetadata: {name: flush, namespace: shop}\nspec: {}\n"),
        ];
        for kv in &others {
            let why = run(kv, "cache.1", &[], |_| {}).expect_err("it does not count");
            assert!(why.contains("not valid"), "{why}");
        }
        let on_nodes = document("{nodes: {all: true}, command: [cli]}");
        assert!(run(&on_nodes, "cache.1", &[], |_| {}).is_err());
    }

    #[test]
    fn a_slot_that_is_named_is_the_only_one() {
        let kv = document("{service: cache, slot: 2, command: [cli]}");
        assert!(run(&kv, "cache.2", &[], |_| {}).is_ok());
        assert_eq!(
            run(&kv, "cache.1", &[], |_| {}),
            Err("the command `flush` runs in cache.2 only".to_owned())
        );
    }
}
