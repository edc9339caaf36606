//! The images of this node's engine, for people: which there are, who uses them, and the removal of those that nobody does.
//! Called by `server`. An image is in use while any container of the engine was made of it, running or not, ours or not, and
//! while a spec that this node holds names it. Such a one is never removed, and the engine is asked without force.

use std::collections::BTreeMap;

use schemas::image::ImageRef;
use serde_json::Value;

use super::ask::{ImageGone, ImageHere};
use crate::engine::near::Near;
use crate::engine::{Result, clean};

/// Images that are listed; no host has more.
const MOST: usize = 20_000;
/// Users of one image that are named.
const NAMED: usize = 20;

/// All images, by name. `wanted` are those that specs of this node name.
pub async fn list(near: &Near, wanted: &[ImageRef]) -> Result<Vec<ImageHere>> {
    let (images, containers) = (near.images().await?, near.users_of_images().await?);
    Ok(joined(&images, &containers, wanted))
}

fn joined(images: &Value, containers: &Value, wanted: &[ImageRef]) -> Vec<ImageHere> {
    let mut users: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for container in containers.as_array().into_iter().flatten() {
        let name = container["Names"][0]
            .as_str()
            .unwrap_or("a container")
            .trim_start_matches('/');
        if let Some(image) = container["ImageID"].as_str() {
            users.entry(image).or_default().push(clean(name, 200));
        }
    }
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        all.filter(|text| !text.contains("<none>"))
            .map(|text| clean(text, 600))
            .collect()
    };
    let mut found: Vec<ImageHere> = images
        .as_array()
        .into_iter()
        .flatten()
        .take(MOST)
        .filter_map(|image| {
            let id = image["Id"].as_str()?;
            let (references, digests) = (texts(&image["RepoTags"]), texts(&image["RepoDigests"]));
            let mut used_by = users.remove(id).unwrap_or_default();
            used_by.sort();
            used_by.truncate(NAMED);
            let wanted = wanted.iter().any(|wanted| names(wanted, &references, &digests));
            Some(ImageHere {
                id: clean(id, 100),
                references,
                digests,
                size_bytes: image["Size"].as_u64().unwrap_or(0),
                used_by,
                wanted,
            })
        })
        .collect();
    found.sort_by(|one, other| (&one.references, &one.id).cmp(&(&other.references, &other.id)));
    found
}

/// As engines print it: without Docker's own registry, and without `library/`.
fn short(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("index.docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

/// Whether a reference means an image with these names.
fn names(wanted: &ImageRef, references: &[String], digests: &[String]) -> bool {
    let name = wanted.name();
    match wanted.digest() {
        Some(digest) => {
            let whole = format!("{}@{digest}", short(&name));
            digests.iter().any(|known| short(known) == whole)
        }
        None => {
            let whole = format!("{}:{}", short(&name), wanted.tag().unwrap_or("latest"));
            references.iter().any(|known| short(known) == whole)
        }
    }
}

/// Removes images, each by its id or one of its names, where nobody uses them.
pub async fn remove(near: &Near, wanted: &[ImageRef], asked: &[String]) -> Result<Vec<ImageGone>> {
    let mut done = Vec::new();
    for name in asked {
        // Anew for each: what nobody used a moment ago may be in use now.
        let here = list(near, wanted).await?;
        done.push(remove_one(near, &here, name).await);
    }
    Ok(done)
}

/// The image that is meant, and whether by one of several names.
fn meant<'a>(here: &'a [ImageHere], name: &str) -> Option<&'a ImageHere> {
    let reference: Option<ImageRef> = name.parse().ok();
    here.iter().find(|image| {
        let by_id = name.len() >= 12
            && image
                .id
                .trim_start_matches("sha256:")
                .starts_with(name.trim_start_matches("sha256:"));
        let by_name = reference
            .as_ref()
            .is_some_and(|reference| names(reference, &image.references, &image.digests));
        by_id || by_name
    })
}

async fn remove_one(near: &Near, here: &[ImageHere], name: &str) -> ImageGone {
    let gone = |freed_bytes, refused: Option<String>| ImageGone {
        image: clean(name, 600),
        freed_bytes,
        refused,
    };
    let Some(image) = meant(here, name) else {
        return gone(0, Some("this node does not have it".to_owned()));
    };
    if let Some(why) = image.in_use() {
        return gone(0, Some(why));
    }
    let by_id = image
        .id
        .trim_start_matches("sha256:")
        .starts_with(name.trim_start_matches("sha256:"));
    let names: Vec<String> = match (by_id, image.references.as_slice()) {
        (true, []) | (false, []) => vec![image.id.clone()],
        (true, all) => all.to_vec(),
        // One of several names: the image stays under the others.
        (false, all) => {
            let reference: Option<ImageRef> = name.parse().ok();
            let is = |known: &&String| {
                let known = std::slice::from_ref(*known);
                reference
                    .as_ref()
                    .is_some_and(|reference| self::names(reference, known, &[]))
            };
            let named: Vec<String> = all.iter().filter(is).cloned().collect();
            if named.is_empty() {
                vec![image.id.clone()]
            } else {
                named
            }
        }
    };
    let last = names.len() >= image.references.len();
    for name in &names {
        if let Err(error) = near.remove_image(name).await {
            return gone(0, Some(error.said));
        }
    }
    gone(if last { image.size_bytes } else { 0 }, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn image(text: &str) -> ImageRef {
        text.parse().unwrap()
    }

    fn here() -> Vec<ImageHere> {
        let images = json!([
            { "Id": "sha256:aaaaaaaaaaaaaaaa", "RepoTags": ["r.example:5000/team/app:1"], "RepoDigests": [], "Size": 10 },
            { "Id": "sha256:bbbbbbbbbbbbbbbb", "RepoTags": ["nginx:1", "web:1"], "RepoDigests": ["nginx@sha256:0123"], "Size": 20 },
            { "Id": "sha256:cccccccccccccccc", "RepoTags": ["<none>:<none>"], "RepoDigests": null, "Size": -1 },
            { "Id": 7 }, "nonsense",
        ]);
        let containers = json!([{ "Names": ["/default.web.1.1"], "ImageID": "sha256:aaaaaaaaaaaaaaaa" }, {}, 3]);
        joined(&images, &containers, &[image("docker.io/library/nginx:1")])
    }

    #[test]
    fn an_image_is_in_use_by_containers_of_any_kind_and_by_specs() {
        let here = here();
        assert_eq!(here.len(), 3);
        let of = |name: &str| meant(&here, name).unwrap().in_use();
        assert!(of("r.example:5000/team/app:1").unwrap().contains("default.web.1.1"));
        assert!(of("nginx:1").unwrap().contains("this node"));
        // The same image by another name.
        assert!(of("web:1").is_some());
        assert_eq!(of("cccccccccccc"), None);
        assert!(meant(&here, "nginx:2").is_none() && meant(&here, "").is_none() && meant(&here, "sha256:").is_none());
    }
}
