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
    /// The address that was found last, if any was.
    pub(super) const fn address(&self) -> Option<IpAddr> {
        self.last
    }

    /// Looks for it; returns why it is not found.
    pub(super) async fn find(&mut self, told: &str) -> Option<String> {
        if let Ok(address) = told.parse() {
            self.last = Some(address);
            return None;
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
        why.map(|why| format!("the public address `{told}` is not found: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_found_and_stays_while_it_is_not() {
        let mut public = Public::default();
        assert_eq!(public.address(), None);
        assert_eq!(public.find("203.0.113.7").await, None);
        assert_eq!(public.address(), "203.0.113.7".parse().ok());
        assert_eq!(public.find("localhost").await, None);
        let found = public.address();
        assert!(found.is_some_and(|found| found.is_loopback()), "{found:?}");
        // No name: no resolver is asked for it.
        let why = public.find("no name at all").await;
        assert_eq!(public.address(), found);
        assert!(why.is_some_and(|why| why.contains("`no name at all` is not found")));
    }
}
