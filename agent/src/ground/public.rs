//! The address under which the outside reaches this node, where an administrator gave a name for it: found anew from time to time,
//! for it may lead elsewhere by then. While it cannot be found the last one stays.

use std::net::IpAddr;
use std::time::Duration;

/// Time for the host's resolver: links are kept by who waits here.
const LIMIT: Duration = Duration::from_secs(2);

/// What `--public-address` leads to.
#[derive(Debug, Default)]
pub(super) struct Public {
    last: Option<IpAddr>,
}

impl Public {
    /// The address, if any was ever found; and why none is found now.
    pub(super) async fn find(&mut self, told: Option<&str>) -> (Option<IpAddr>, Option<String>) {
        let Some(told) = told else { return (None, None) };
        if let Ok(address) = told.parse() {
            return (Some(address), None);
        }
        let why = match tokio::time::timeout(LIMIT, tokio::net::lookup_host((told, 0))).await {
            Ok(Ok(found)) => {
                let all: Vec<IpAddr> = found.map(|at| at.ip()).collect();
                // Of several the same one each time, whatever their order.
                match all.iter().min() {
                    Some(first) => {
                        self.last = Some(*first);
                        None
                    }
                    None => Some("it has no address".to_owned()),
                }
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", LIMIT.as_secs())),
        };
        let why = why.map(|why| format!("the public address `{told}` is not found: {why}"));
        (self.last, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_found_and_stays_while_it_is_not() {
        let mut public = Public::default();
        assert_eq!(public.find(None).await, (None, None));
        let given = "203.0.113.7".parse().ok();
        assert_eq!(public.find(Some("203.0.113.7")).await, (given, None));
        let (found, why) = public.find(Some("localhost")).await;
        assert!(
            found.is_some_and(|found| found.is_loopback()) && why.is_none(),
            "{found:?} {why:?}"
        );
        // No name: no resolver is asked for it.
        let (kept, why) = public.find(Some("no name at all")).await;
        assert_eq!(kept, found);
        assert!(why.is_some_and(|why| why.contains("`no name at all` is not found")));
    }
}
