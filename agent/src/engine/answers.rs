//! What an engine answers, read with tolerance: unknown words and fields of newer engines, missing ones of older ones, and
//! a single container that makes no sense never hide the others. Called by the Docker engine only; pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::{
    Action, ContainerState, Details, EngineInfo, EngineVersion, Event, ImageId, Inspection, Limits, NetworkEnd,
    Observed, Stats, clean,
};

/// From this on a limit is none: it is how a limit is taken back, for an update cannot say "unlimited".
pub(super) const UNLIMITED_BYTES: i64 = 1 << 60;
/// The kernel's own CPU and block IO weights: setting them is taking a weight back.
pub(super) const DEFAULT_CPU_SHARES: i64 = 1_024;
pub(super) const DEFAULT_BLKIO_WEIGHT: i64 = 500;
/// The kernel's own scheduling period, in microseconds.
pub(super) const DEFAULT_CPU_PERIOD: i64 = 100_000;

/// The set of all cores, as a limit that is none.
pub(super) fn every_core(cpus: u32) -> String {
    if cpus <= 1 {
        "0".to_owned()
    } else {
        format!("0-{}", cpus - 1)
    }
}

/// Limits that the whole host satisfies are none.
pub(super) fn whole_host_is_no_limit(limits: &mut Limits, cpus: u32) {
    if limits.nano_cpus >= i64::from(cpus.max(1)) * 1_000_000_000 {
        limits.nano_cpus = 0;
    }
    if limits.cpuset_cpus == every_core(cpus) {
        limits.cpuset_cpus.clear();
    }
    if limits.memory_reservation == limits.memory {
        limits.memory_reservation = 0;
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), text(value)))
        .collect()
}

/// A name as the engine writes it: with a leading slash.
fn bare(name: &Value) -> String {
    name.as_str().unwrap_or_default().trim_start_matches('/').to_owned()
}

fn state(word: &str, code: Option<i64>) -> ContainerState {
    match word {
        "created" => ContainerState::Created,
        "running" => ContainerState::Running,
        "paused" => ContainerState::Paused,
        "restarting" => ContainerState::Restarting,
        "exited" => ContainerState::Exited { code },
        "dead" => ContainerState::Dead,
        // A word of a newer engine is a state on the way to another: nothing is done to it, as while removing.
        _ => ContainerState::Removing,
    }
}

/// The exit code in a list's status for people: `Exited (137) 3 minutes ago`.
fn listed_code(status: &str) -> Option<i64> {
    status.split_once('(')?.1.split_once(')')?.0.parse().ok()
}

fn networks(value: &Value) -> BTreeMap<String, NetworkEnd> {
    let end = |value: &Value| {
        let address = |key: &str| value[key].as_str().and_then(|text| text.parse::<IpAddr>().ok());
        NetworkEnd {
            addresses: ["IPAddress", "GlobalIPv6Address"]
                .into_iter()
                .filter_map(address)
                .collect(),
        }
    };
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), end(value)))
        .collect()
}

/// The containers of a list that have an id, sorted by it.
pub(super) fn list(answer: &Value) -> Vec<Observed> {
    let mut all: Vec<Observed> = answer.as_array().into_iter().flatten().filter_map(listed).collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all.dedup_by(|a, b| a.id == b.id);
    all
}

fn listed(value: &Value) -> Option<Observed> {
    let id = value["Id"].as_str().filter(|id| !id.is_empty())?.to_owned();
    let word = value["State"].as_str().unwrap_or_default().to_ascii_lowercase();
    Some(Observed {
        id,
        name: bare(&value["Names"][0]),
        labels: labels(&value["Labels"]),
        state: state(&word, listed_code(value["Status"].as_str().unwrap_or_default())),
        image: text(&value["Image"]),
        image_id: value["ImageID"].as_str().and_then(|id| id.parse().ok()),
        networks: networks(&value["NetworkSettings"]["Networks"]),
        details: None,
    })
}

/// An inspection; None when it has no id.
pub(super) fn inspection(answer: Value) -> Option<Inspection> {
    let id = answer["Id"].as_str().filter(|id| !id.is_empty())?.to_owned();
    let (config, host, now) = (&answer["Config"], &answer["HostConfig"], &answer["State"]);
    let code = now["ExitCode"].as_i64();
    let state = state(&now["Status"].as_str().unwrap_or_default().to_ascii_lowercase(), code);
    let ended = match state {
        ContainerState::Exited { code } => code,
        ContainerState::Dead => code,
        ContainerState::Created
        | ContainerState::Running
        | ContainerState::Paused
        | ContainerState::Restarting
        | ContainerState::Removing => None,
    };
    // The year 1 is the engine's "never".
    let started_at = now["StartedAt"]
        .as_str()
        .filter(|at| !at.is_empty() && !at.starts_with("0001-"))
        .map(str::to_owned);
    let policy = host["RestartPolicy"]["Name"]
        .as_str()
        .filter(|name| !name.is_empty())
        .unwrap_or("no");
    let details = Details {
        started_at,
        exit_code: ended,
        oom_killed: now["OOMKilled"].as_bool().unwrap_or(false),
        restart_policy: policy.to_owned(),
        limits: limits(host),
    };
    let observed = Observed {
        id,
        name: bare(&answer["Name"]),
        labels: labels(&config["Labels"]),
        state,
        image: text(&config["Image"]),
        image_id: answer["Image"].as_str().and_then(|id| id.parse().ok()),
        networks: networks(&answer["NetworkSettings"]["Networks"]),
        details: Some(details),
    };
    let pid = now["Pid"]
        .as_u64()
        .and_then(|pid| u32::try_from(pid).ok())
        .filter(|pid| *pid > 0);
    let error = clean(now["Error"].as_str().unwrap_or_default(), 400);
    let image_id = ImageId(text(&answer["Image"]));
    Some(Inspection {
        observed,
        image_id,
        pid,
        error,
        raw: Arc::new(answer),
    })
}

/// The limits in force. Values that mean "none" are 0, so that a limit taken back equals one never set.
pub(super) fn limits(host: &Value) -> Limits {
    let number = |key: &str| host[key].as_i64().unwrap_or(0);
    let bytes = |key: &str| Some(number(key)).filter(|bytes| *bytes < UNLIMITED_BYTES).unwrap_or(0);
    let unless = |key: &str, default: i64| Some(number(key)).filter(|value| *value != default).unwrap_or(0);
    Limits {
        nano_cpus: number("NanoCpus"),
        cpu_shares: unless("CpuShares", DEFAULT_CPU_SHARES),
        cpu_quota: number("CpuQuota").max(0),
        cpu_period: unless("CpuPeriod", DEFAULT_CPU_PERIOD),
        cpuset_cpus: text(&host["CpusetCpus"]),
        cpuset_mems: text(&host["CpusetMems"]),
        memory: bytes("Memory"),
        // Unlimited beside a memory limit, none beside none.
        memory_swap: match number("MemorySwap") {
            swap if swap < UNLIMITED_BYTES => swap,
            _ if bytes("Memory") == 0 => 0,
            _ => -1,
        },
        memory_reservation: bytes("MemoryReservation"),
        blkio_weight: unless("BlkioWeight", DEFAULT_BLKIO_WEIGHT),
        pids_limit: number("PidsLimit").max(0),
    }
}

fn api_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The version; None when the answer has no API version, as from something that is no engine.
pub(super) fn version(answer: &Value) -> Option<EngineVersion> {
    Some(EngineVersion {
        version: clean(answer["Version"].as_str().unwrap_or_default(), 64),
        api: api_version(answer["ApiVersion"].as_str()?)?,
        os: clean(answer["Os"].as_str().unwrap_or_default(), 64),
        arch: clean(answer["Arch"].as_str().unwrap_or_default(), 64),
        kernel: clean(answer["KernelVersion"].as_str().unwrap_or_default(), 128),
    })
}

pub(super) fn info(answer: &Value, version: EngineVersion) -> EngineInfo {
    let short = |key: &str| clean(answer[key].as_str().unwrap_or_default(), 256);
    EngineInfo {
        version,
        engine_id: short("ID"),
        hostname: short("Name"),
        cpus: answer["NCPU"]
            .as_u64()
            .and_then(|cpus| u32::try_from(cpus).ok())
            .unwrap_or(0),
        memory_bytes: answer["MemTotal"].as_u64().unwrap_or(0),
        storage_driver: short("Driver"),
        cgroup_version: answer["CgroupVersion"]
            .as_str()
            .map_or_else(|| "1".to_owned(), |text| clean(text, 8)),
        root: text(&answer["DockerRootDir"]),
        disk_free_bytes: None,
        warnings: answer["Warnings"]
            .as_array()
            .into_iter()
            .flatten()
            .take(32)
            .filter_map(|w| w.as_str().map(|w| clean(w, 240)))
            .collect(),
        cgroup_driver: short("CgroupDriver"),
        logging_driver: short("LoggingDriver"),
        live_restore: answer["LiveRestoreEnabled"].as_bool().unwrap_or(false),
        user_namespaces: answer["SecurityOptions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|option| option.as_str().is_some_and(|option| option.starts_with("name=userns"))),
    }
}

/// An event of a container of `cluster`, of one that joined or left one of our networks, or of an image that went.
pub(super) fn event(value: &Value, cluster: &str) -> Option<Event> {
    let attributes = &value["Actor"]["Attributes"];
    let word = value["Action"].as_str()?;
    let (id, action) = match value["Type"].as_str()? {
        "container" => {
            if attributes[super::CLUSTER_LABEL].as_str() != Some(cluster) {
                return None;
            }
            (value["Actor"]["ID"].as_str()?, container_action(word, attributes)?)
        }
        "network" => {
            if !attributes["name"].as_str()?.starts_with("reeve-") {
                return None;
            }
            let action = match word {
                "connect" => Action::NetworkConnected,
                "disconnect" => Action::NetworkDisconnected,
                _ => return None,
            };
            (attributes["container"].as_str()?, action)
        }
        "image" => return matches!(word, "delete" | "untag").then_some(Event::ImageGone),
        _ => return None,
    };
    Some(Event::Container {
        id: id.to_owned(),
        action,
    })
}

fn container_action(word: &str, attributes: &Value) -> Option<Action> {
    Some(match word {
        "create" => Action::Created,
        "start" => Action::Started,
        "die" => Action::Died {
            code: attributes["exitCode"].as_str().and_then(|code| code.parse().ok()),
        },
        "stop" => Action::Stopped,
        "kill" => Action::Killed,
        "oom" => Action::OutOfMemory,
        "pause" => Action::Paused,
        "unpause" => Action::Unpaused,
        "rename" => Action::Renamed,
        "update" => Action::Updated,
        "destroy" => Action::Removed,
        _ => return None,
    })
}

/// One sample of a container's use. Memory is what `docker stats` shows: without the page cache that can be given back.
pub(super) fn stats(answer: &Value) -> Stats {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let memory = &answer["memory_stats"];
    let cache = ["total_inactive_file", "inactive_file"]
        .into_iter()
        .map(|key| number(&memory["stats"][key]))
        .find(|bytes| *bytes > 0);
    let networks = || {
        answer["networks"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(_, value)| value)
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "nanoseconds of CPU time as seconds for a metric"
    )]
    let cpu_seconds = number(&answer["cpu_stats"]["cpu_usage"]["total_usage"]) as f64 / 1e9;
    Stats {
        cpu_seconds,
        memory_bytes: number(&memory["usage"]).saturating_sub(cache.unwrap_or(0)),
        memory_limit_bytes: number(&memory["limit"]),
        receive_bytes: networks().map(|one| number(&one["rx_bytes"])).sum(),
        transmit_bytes: networks().map(|one| number(&one["tx_bytes"])).sum(),
        pids: number(&answer["pids_stats"]["current"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::translate;

    const LIST: &str = include_str!("../../tests/fixtures/list-1.52.json");
    const INSPECT: &str = include_str!("../../tests/fixtures/inspect-1.47.json");
    const VERSION: &str = include_str!("../../tests/fixtures/version-1.52.json");

    fn json(text: &str) -> Value {
        serde_json::from_str(text).expect("a fixture is JSON")
    }

    #[test]
    fn a_list_of_a_newer_engine_is_read_whole_though_it_holds_unknown_words() {
        let all = list(&json(LIST));
        let states: Vec<_> = all.iter().map(|one| (one.name.as_str(), one.state)).collect();
        assert_eq!(
            states,
            [
                ("default.web.1.4", ContainerState::Running),
                ("default.web.2.4", ContainerState::Exited { code: Some(137) }),
                ("default.web.3.4", ContainerState::Removing),
                ("", ContainerState::Removing),
            ]
        );
        assert_eq!(
            all[0].networks["reeve-default"].addresses,
            ["172.18.0.2".parse::<IpAddr>().expect("an address")]
        );
        assert_eq!(all[0].labels["reeve.n"], "4");
    }

    #[test]
    fn an_inspection_of_a_newer_engine_is_read() {
        let inspection = inspection(json(INSPECT)).expect("it has an id");
        let details = inspection.observed.details.expect("an inspection has details");
        assert_eq!(inspection.observed.state, ContainerState::Running);
        assert_eq!(
            (details.limits.memory, details.limits.nano_cpus),
            (64 << 20, 500_000_000)
        );
        assert_eq!(details.restart_policy, "no");
        assert_eq!(inspection.pid, Some(4_242));
    }

    #[test]
    fn capabilities_and_names_of_newer_engines_agree_with_the_request() {
        let request = serde_json::json!({
            "NetworkingConfig": { "EndpointsConfig": { "reeve-default": { "Aliases": ["web", "web-1"] } } },
            "HostConfig": { "CapAdd": ["NET_ADMIN"], "NetworkMode": "reeve-default", "Memory": 64 << 20 },
        });
        assert_eq!(translate::discrepancies(&request, &json(INSPECT)), []);
    }

    #[test]
    fn a_version_is_two_numbers_and_not_a_decimal() {
        let version = version(&json(VERSION)).expect("a version");
        assert_eq!(version.api, (1, 52));
        assert!(version.api > (1, 9));
        assert_eq!(super::version(&serde_json::json!({ "Version": "x" })), None);
    }

    #[test]
    fn hostile_answers_are_read_as_nothing() {
        for text in [
            "null",
            "[]",
            "{}",
            "[null, 1, {}, {\"Id\": 5}]",
            "{\"Id\": \"\"}",
            "\"x\"",
        ] {
            assert_eq!(list(&json(text)), [], "{text}");
            assert_eq!(inspection(json(text)), None, "{text}");
            assert_eq!(version(&json(text)), None, "{text}");
            assert_eq!(event(&json(text), "c"), None, "{text}");
            assert_eq!(stats(&json(text)), Stats::default(), "{text}");
        }
    }

    #[test]
    fn events_of_other_clusters_are_not_told() {
        let event_of = |cluster: &str| serde_json::json!({ "Type": "container", "Action": "die", "Actor": { "ID": "a", "Attributes": { "exitCode": "3", "reeve.cluster": cluster } } });
        assert_eq!(
            event(&event_of("c"), "c"),
            Some(Event::Container {
                id: "a".into(),
                action: Action::Died { code: Some(3) }
            })
        );
        assert_eq!(event(&event_of("d"), "c"), None);
    }
}
