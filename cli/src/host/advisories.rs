//! Versions of etcd with known faults that matter here, for `reeve doctor`: each with its public id, what it means, and the
//! releases that have it no more. A pure table. To be extended when another is published.

use super::look::numbers;

/// One known fault.
#[derive(Clone, Copy, Debug)]
pub struct Advisory {
    /// Where it is described: an id of GitHub's advisories and of the CVE list, or a page of etcd's own.
    pub id: &'static str,
    pub what: &'static str,
    /// The first release of each line that is without it.
    pub fixed: &'static [[u32; 3]],
    /// The first that has it; all older lines have it where it is None.
    pub since: Option<[u32; 3]>,
    /// Whether data may be lost by it. Else it is about rights within the store.
    pub loses_data: bool,
}

const ALL: [Advisory; 7] = [
    Advisory {
        id: "GHSA-x35m-3gp4-4fh5 (CVE-2026-44283)",
        what: "puts within transactions read what their user may not",
        fixed: &[[3, 4, 44], [3, 5, 30], [3, 6, 11]],
        since: None,
        loses_data: false,
    },
    Advisory {
        id: "GHSA-rfx7-8w68-q57q (CVE-2026-33343)",
        what: "nested transactions pass by the rights of users",
        fixed: &[[3, 4, 42], [3, 5, 28], [3, 6, 9]],
        since: None,
        loses_data: false,
    },
    Advisory {
        id: "GHSA-q8m4-xhhv-38mg (CVE-2026-33413)",
        what: "members, alarms, leases and compaction are open to users without rights",
        fixed: &[[3, 4, 42], [3, 5, 28], [3, 6, 9]],
        since: None,
        loses_data: false,
    },
    Advisory {
        id: "GHSA-3p4g-rcw5-8298 (CVE-2023-32082)",
        what: "a lease tells names of keys to users who may not read them",
        fixed: &[[3, 4, 26], [3, 5, 9]],
        since: None,
        loses_data: false,
    },
    Advisory {
        id: "GHSA-gmph-wf7j-9gcm (CVE-2021-28235)",
        what: "the debug log holds passwords of users",
        fixed: &[[3, 4, 25], [3, 5, 8]],
        since: None,
        loses_data: false,
    },
    Advisory {
        id: "etcd's postmortem of 3.5's data inconsistency",
        what: "a member that is killed may come back with other data than the rest",
        fixed: &[[3, 5, 3]],
        since: Some([3, 5, 0]),
        loses_data: true,
    },
    Advisory {
        id: "CVE-2020-15106 and CVE-2020-15112",
        what: "a damaged log of writes makes a member panic",
        fixed: &[[3, 3, 23], [3, 4, 10]],
        since: None,
        loses_data: false,
    },
];

/// What is known of a version; none for one that is not a version of etcd's.
pub fn of(version: &str) -> Vec<&'static Advisory> {
    let Some(version) = numbers(version) else {
        return Vec::new();
    };
    ALL.iter().filter(|advisory| has(advisory, version)).collect()
}

fn has(advisory: &Advisory, version: [u32; 3]) -> bool {
    if advisory.since.is_some_and(|since| version < since) {
        return false;
    }
    let line = |numbers: &[u32; 3]| [numbers[0], numbers[1]];
    match advisory.fixed.iter().find(|fixed| line(fixed) == line(&version)) {
        Some(fixed) => version < *fixed,
        // A line that ended before the fault was mended still has it; one that began after it does not.
        None => advisory.fixed.first().is_some_and(|first| version < *first),
    }
}

/// The release to go to, on the same line where there is one: the newest that any of these asks for.
pub fn remedy(version: &str, advisories: &[&Advisory]) -> Option<String> {
    let [major, minor, _] = numbers(version)?;
    let fixed = advisories.iter().flat_map(|advisory| advisory.fixed);
    let same = fixed
        .clone()
        .filter(|fixed| fixed[0] == major && fixed[1] == minor)
        .max();
    let [major, minor, patch] = same.or(fixed.max())?;
    Some(format!("{major}.{minor}.{patch}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(version: &str) -> usize {
        of(version).len()
    }

    #[test]
    fn each_line_is_held_against_its_own_releases() {
        assert_eq!(count("3.4.23"), 5);
        assert_eq!(count("3.4.25"), 4);
        assert_eq!((count("3.4.43"), count("3.4.44")), (1, 0));
        assert_eq!((count("3.5.2"), count("3.5.16"), count("3.5.30")), (6, 3, 0));
        assert_eq!((count("3.6.8"), count("3.6.11"), count("3.7.0")), (3, 0, 0));
        assert_eq!(count("3.2.1"), 6);
        assert_eq!((count("0.1.0-embedded"), count("none")), (6, 0));
        assert!(of("3.5.1").iter().any(|advisory| advisory.loses_data));
    }

    #[test]
    fn the_remedy_stays_on_the_line() {
        assert_eq!(remedy("3.4.23", &of("3.4.23")).as_deref(), Some("3.4.44"));
        assert_eq!(remedy("3.5.2", &of("3.5.2")).as_deref(), Some("3.5.30"));
        assert_eq!(remedy("3.2.1", &of("3.2.1")).as_deref(), Some("3.6.11"));
        assert_eq!(remedy("3.6.11", &of("3.6.11")), None);
    }
}
