//! The kind `Registry`: where images come from, and which accounts may be used for which of them. It holds no password:
//! those are sealed beside it, under `sealed/`. The rule that chooses an account is here, so that agents, the leader and
//! the verbs choose alike.

use std::cmp::Reverse;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::ImageRef;
use crate::meta::is_default;
use crate::names::{Namespace, ResourceName};

/// Docker's own registry: what images without a registry in their name come from.
pub const DOCKER_IO: &str = "docker.io";
/// The most accounts of one registry.
pub const MAX_ACCOUNTS: usize = 32;
/// The longest password, in bytes; access tokens of clouds have up to 12 KiB.
pub const MAX_PASSWORD_BYTES: usize = 16 << 10;

/// A registry and its accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistrySpec {
    /// `host` or `host:port` as images name it; `docker.io` for images that name none.
    #[schemars(extend("minLength" = 1, "maxLength" = 260))]
    pub registry: String,
    /// Whether `reeve login` may speak plain HTTP to it. False when absent; a registry on the loopback address may always
    /// be asked so. Every engine needs the same in its own settings (`insecure-registries`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub insecure: bool,
    /// Who Reeve is at this registry. `reeve login` adds one, and keeps its password sealed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub accounts: Vec<Account>,
}

/// One account of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Account {
    /// The user's name at the registry.
    #[schemars(extend("minLength" = 1, "maxLength" = 256))]
    pub user: String,
    /// The namespaces whose instances use it; all when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub namespaces: Vec<Namespace>,
    /// Which images it is for, as beginnings of their paths without the registry: `team` means `team` and all of
    /// `team/...`; all when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub images: Vec<String>,
}

impl Account {
    /// An account for everything.
    #[must_use]
    pub fn new(user: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            namespaces: Vec::new(),
            images: Vec::new(),
        }
    }

    /// How well it fits an image that an instance of this namespace runs: the length of the longest of its `images` that
    /// does; None when it is not for it.
    #[must_use]
    pub fn fits(&self, registry: &str, namespace: &Namespace, image: &ImageRef) -> Option<usize> {
        let Self {
            user: _,
            namespaces,
            images,
        } = self;
        if !same_registry(registry, image) || !(namespaces.is_empty() || namespaces.contains(namespace)) {
            return None;
        }
        if images.is_empty() {
            return Some(0);
        }
        let repository = image.repository();
        let begins = |prefix: &&str| {
            repository
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let trimmed = images.iter().map(|prefix| prefix.trim_end_matches('/'));
        trimmed.filter(begins).map(str::len).max()
    }
}

/// As what an account's password is sealed: for this registry and no other, wherever the resource points later.
#[must_use]
pub fn sealed_as(registry: &str, user: &str) -> String {
    format!("{registry}/{user}")
}

/// A registry's name as images have it: Docker's own has several.
#[must_use]
pub fn registry_of(image: &ImageRef) -> &str {
    match image.registry() {
        None | Some("index.docker.io" | "registry-1.docker.io") => DOCKER_IO,
        Some(registry) => registry,
    }
}

fn same_registry(registry: &str, image: &ImageRef) -> bool {
    registry.eq_ignore_ascii_case(registry_of(image))
}

/// The account for an image, of several: the one with the longest fitting prefix, then the first by user and by resource.
pub fn choose<'a, T>(
    accounts: impl IntoIterator<Item = (&'a ResourceName, &'a str, &'a Account, T)>,
    namespace: &Namespace,
    image: &ImageRef,
) -> Option<T> {
    let fitting = accounts.into_iter().filter_map(|(name, registry, account, it)| {
        let length = account.fits(registry, namespace, image)?;
        Some(((Reverse(length), account.user.as_str(), name), it))
    });
    fitting.min_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, it)| it)
}

/// Whether a text is a registry as an image can name it.
#[must_use]
pub fn is_registry(text: &str) -> bool {
    text == DOCKER_IO
        || format!("{text}/image")
            .parse::<ImageRef>()
            .is_ok_and(|image| image.registry() == Some(text))
}

/// The name of the resource that `reeve login` makes for a registry, where there is none yet.
#[must_use]
pub fn resource_name(registry: &str) -> Option<ResourceName> {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let text: String = registry.chars().map(plain).take(63).collect();
    text.trim_matches('-').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> ImageRef {
        text.parse().unwrap()
    }

    fn account(user: &str, namespaces: &[&str], images: &[&str]) -> Account {
        Account {
            user: user.to_owned(),
            namespaces: namespaces.iter().map(|name| name.parse().unwrap()).collect(),
            images: images.iter().map(|&prefix| prefix.to_owned()).collect(),
        }
    }

    #[test]
    fn the_longest_prefix_wins_then_the_first_user() {
        let name: ResourceName = "r".parse().unwrap();
        let accounts = [
            account("z", &[], &[]),
            account("b", &[], &["team"]),
            account("a", &[], &["team/"]),
            account("deep", &[], &["team/app"]),
            account("shop", &["shop"], &["team/app/x"]),
        ];
        let user = |namespace: &str, text: &str| {
            let of = accounts
                .iter()
                .map(|account| (&name, "r.example:5000", account, account.user.as_str()));
            choose(of, &namespace.parse().unwrap(), &image(text))
        };
        assert_eq!(user("default", "r.example:5000/other:1"), Some("z"));
        assert_eq!(user("default", "r.example:5000/team/x"), Some("a"));
        assert_eq!(user("default", "r.example:5000/teams/x"), Some("z"));
        assert_eq!(user("default", "r.example:5000/team/app:1"), Some("deep"));
        assert_eq!(user("default", "r.example:5000/team/app/x"), Some("deep"));
        assert_eq!(user("shop", "r.example:5000/team/app/x"), Some("shop"));
        assert_eq!(user("default", "r.example/team"), None);
        assert_eq!(user("default", "team/app"), None);
    }

    #[test]
    fn images_without_a_registry_are_dockers() {
        let all = Account::new("me");
        let namespace = Namespace::default();
        for text in ["nginx", "team/app:1", "docker.io/nginx", "index.docker.io/a/b"] {
            assert_eq!(all.fits(DOCKER_IO, &namespace, &image(text)), Some(0), "{text}");
        }
        assert_eq!(all.fits(DOCKER_IO, &namespace, &image("r.example/nginx")), None);
    }

    #[test]
    fn a_registry_is_what_an_image_can_name() {
        for good in ["r.example", "r.example:5000", "localhost", "10.0.0.1:5000", "docker.io"] {
            assert!(is_registry(good), "{good}");
            assert!(resource_name(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "registry",
            "https://r.example",
            "r.example/x",
            "r.example:0",
            "a b.c",
            "[::1]:5000/",
        ] {
            assert!(!is_registry(bad), "{bad}");
        }
        assert_eq!(resource_name("r.example:5000").unwrap().as_str(), "r-example-5000");
    }
}
