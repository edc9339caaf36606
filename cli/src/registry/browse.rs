//! `reeve registries tags` and `search`: what a registry has, asked from here. Bounded in time, in pages and in size; what
//! it answers is cleaned before anybody sees it.

use schemas::image::ImageRef;
use schemas::registry::{DOCKER_IO, registry_of};
use serde_json::{Value, json};

use super::ask::{AskError, Page, Reader, Way, encoded};
use super::{find, from_stdin, machine, named, password};
use crate::Verdict;
use crate::args::Common;
use crate::args::registry::{LookArgs, SearchArgs, TagsArgs};
use crate::connect::connect;
use crate::failure::{Exit, Failure, printable};
use crate::output::{Cell, Table, Tone, complain, cut, limit, print};

/// Pages that are read, and names that are shown. A registry gives some 100 names on a page.
const PAGES: usize = 50;
const MOST: usize = 5_000;
/// What Docker's own registry is searched at.
const DOCKER_INDEX: &str = "index.docker.io";

/// Somebody's questions to one registry.
struct Visit {
    registry: String,
    reader: Reader,
}

impl Visit {
    /// Greets the registry, in a user's name where one is given. A Registry that is declared says whether it has TLS.
    async fn new(common: &Common, registry: &str, host: &str, look: &LookArgs) -> Result<Self, Failure> {
        let LookArgs {
            user,
            password_stdin,
            registry_ca,
            insecure,
        } = look;
        let insecure = *insecure || {
            let connection = connect(common).await?;
            connection.marker().await?;
            find(&connection, registry).await?.spec.insecure
        };
        let secret = match user {
            Some(_) if *password_stdin => Some(from_stdin()?),
            Some(user) => Some(password(&format!("Password of {user} at {registry}: "))?),
            None => None,
        };
        let own = user.as_deref().zip(secret.as_ref().map(|secret| secret.as_str()));
        let way = Way {
            registry: host,
            insecure,
            ca: registry_ca.as_deref(),
        };
        let reader = Reader::new(&way, own).await.map_err(|error| failed(&error, registry))?;
        Ok(Self {
            registry: registry.to_owned(),
            reader,
        })
    }

    async fn page(&mut self, path: &str, scope: &str) -> Result<Page, Failure> {
        let page = self.reader.page(path, scope).await;
        let page = page.map_err(|error| failed(&error, &self.registry))?;
        if matches!(page.status.as_u16(), 401 | 403) {
            let refused = format!("{} does not show that to us", self.registry);
            return Err(Failure::new(Exit::Failed, refused)
                .help("name an account that may read it with --user; its password is asked for"));
        }
        Ok(page)
    }

    /// The names in the list `field`, page after page, and whether there are more. None when the registry has no such list.
    async fn names(&mut self, first: &str, scope: &str, field: &str) -> Result<Option<(Vec<String>, bool)>, Failure> {
        let mut names = Vec::new();
        let mut next = Some(first.to_owned());
        for _ in 0..PAGES {
            let Some(path) = next.take().filter(|_| names.len() < MOST) else {
                break;
            };
            let page = self.page(&path, scope).await?;
            if !page.status.is_success() {
                return Ok(None);
            }
            let list = page.body[field].as_array().into_iter().flatten();
            names.extend(list.filter_map(Value::as_str).map(|name| clean(name, 300)));
            next = page.next;
        }
        names.sort();
        names.dedup();
        let more = next.is_some() || names.len() > MOST;
        names.truncate(MOST);
        Ok(Some((names, more)))
    }
}

fn failed(error: &AskError, registry: &str) -> Failure {
    Failure::new(Exit::Failed, format!("cannot {error}"))
        .because(error)
        .help(error.remedy(registry))
}

fn clean(text: &str, most: usize) -> String {
    cut(&printable(text), most)
}

fn column(head: &'static str, names: &[String], more: bool) {
    let mut table = Table::new(&[head]);
    for name in names {
        table.row(vec![Cell::new(name, Tone::Plain)]);
    }
    print(&table.render(limit()));
    if more {
        complain("there are more\n");
    }
}

/// `reeve registries tags`.
pub async fn tags(common: &Common, args: &TagsArgs) -> Verdict {
    let wrong = |error: schemas::image::ImageError| Failure::usage(error.to_string());
    let image: ImageRef = args.image.parse().map_err(wrong)?;
    let registry = registry_of(&image);
    let path = match image.repository() {
        name if registry == DOCKER_IO && !name.contains('/') => format!("library/{name}"),
        name => name.to_owned(),
    };
    let mut visit = Visit::new(common, registry, registry, &args.look).await?;
    let scope = format!("repository:{path}:pull");
    if let Some(tag) = image.tag() {
        let page = visit.page(&format!("/v2/{path}/manifests/{tag}"), &scope).await?;
        let digest = page.digest.filter(|_| page.status.is_success());
        let digest = digest.map(|digest| clean(&digest, 200)).ok_or_else(|| {
            Failure::new(Exit::Failed, format!("{registry} has no tag `{tag}` of `{path}`"))
                .help(format!("list its tags with `reeve registries tags {}`", image.name()))
        })?;
        let pinned = format!("{}:{tag}@{digest}", image.name());
        let value = json!({ "registry": registry, "repository": path, "tag": tag, "digest": digest });
        print(&if common.output.is_for_machines() {
            machine(common.output, &value, &pinned)
        } else {
            format!("{pinned}\n")
        });
        return Ok(Exit::Done);
    }
    let first = format!("/v2/{path}/tags/list?n=100");
    let (tags, more) = visit.names(&first, &scope, "tags").await?.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("{registry} has no image `{path}`"))
            .help(format!("see what it has with `reeve registries search {registry}`"))
    })?;
    if common.output.is_for_machines() {
        let value = json!({ "registry": registry, "repository": path, "tags": tags, "more": more });
        print(&machine(common.output, &value, &tags.join("\n")));
    } else {
        column("TAG", &tags, more);
    }
    Ok(Exit::Done)
}

/// `reeve registries search`.
pub async fn search(common: &Common, args: &SearchArgs) -> Verdict {
    let registry = named(&args.registry)?;
    if registry == DOCKER_IO {
        return docker(common, args).await;
    }
    let mut visit = Visit::new(common, &registry, &registry, &args.look).await?;
    let scope = "registry:catalog:*";
    let listed = visit.names("/v2/_catalog?n=100", scope, "repositories").await?;
    let (all, more) = listed.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("{registry} tells nobody what it has"))
            .help("ask for the tags of an image by its name: `reeve registries tags REGISTRY/IMAGE`")
    })?;
    let word = args.word.as_deref().unwrap_or_default();
    let found: Vec<String> = all.into_iter().filter(|name| name.contains(word)).collect();
    if common.output.is_for_machines() {
        let value = json!({ "registry": registry, "images": found, "more": more });
        print(&machine(common.output, &value, &found.join("\n")));
    } else {
        let found: Vec<String> = found.iter().map(|name| format!("{registry}/{name}")).collect();
        column("IMAGE", &found, more);
    }
    Ok(Exit::Done)
}

/// Docker's own registry has no list, and a search of its own.
async fn docker(common: &Common, args: &SearchArgs) -> Verdict {
    let Some(word) = args.word.as_deref().filter(|word| !word.is_empty()) else {
        return Err(
            Failure::usage(format!("{DOCKER_IO} has too much to list")).help(format!(
                "say what you look for: `reeve registries search {DOCKER_IO} redis`"
            )),
        );
    };
    let mut visit = Visit::new(common, DOCKER_IO, DOCKER_INDEX, &args.look).await?;
    let page = visit.page(&format!("/v1/search?n=50&q={}", encoded(word)), "").await?;
    if !page.status.is_success() {
        let answered = format!("{DOCKER_IO} does not search for us: it answers {}", page.status);
        return Err(Failure::new(Exit::Failed, answered).help("try again later"));
    }
    let results = page.body["results"].as_array().into_iter().flatten().take(MOST);
    let found: Vec<(String, u64, String)> = results
        .map(|one| {
            let text = |field: &str, most| clean(one[field].as_str().unwrap_or_default(), most);
            let stars = one["star_count"].as_u64().unwrap_or_default();
            (text("name", 300), stars, text("description", 200))
        })
        .filter(|(name, _, _)| !name.is_empty())
        .collect();
    if common.output.is_for_machines() {
        let images: Vec<Value> = found
            .iter()
            .map(|(name, stars, about)| json!({ "name": name, "stars": stars, "description": about }))
            .collect();
        let names: Vec<&str> = found.iter().map(|(name, _, _)| name.as_str()).collect();
        let value = json!({ "registry": DOCKER_IO, "images": images });
        print(&machine(common.output, &value, &names.join("\n")));
        return Ok(Exit::Done);
    }
    let mut table = Table::of_sentences(&["IMAGE", "STARS", "DESCRIPTION"]);
    for (name, stars, about) in &found {
        table.row(vec![
            Cell::new(name, Tone::Plain),
            Cell::new(stars, Tone::Plain),
            Cell::new(about, Tone::Plain),
        ]);
    }
    print(&table.render(limit()));
    Ok(Exit::Done)
}
