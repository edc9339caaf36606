//! What this host is like, before it is installed and whenever `reeve doctor` looks: [`look`] finds it out and changes nothing,
//! [`judge`] says of each thing whether it will do and else what to do, all at once. The second is a pure function.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::engine::{ContainerRuntime as _, EngineInfo};
use membership::seeds::{Host, Seeds};
use membership::{CLIENT_PORT, PEER_PORT, SEED_PORT};
use tokio::process::Command;

use super::check::Line;
use crate::daemons::engine;

/// Less than this free where the data goes is not enough to begin with.
const LEAST_FREE_BYTES: u64 = 512 << 20;
/// Less than this is little.
const LITTLE_FREE_BYTES: u64 = 4 << 30;
const LITTLE_MEMORY_BYTES: u64 = 1 << 30;
/// No clock of today says less: 2025-01-01.
const EARLIEST: u64 = 1_735_689_600;
/// A token from so far in the future means a clock that is wrong, in seconds. Certificates allow for the same.
const SLACK_SECONDS: u64 = 300;
/// The oldest etcd that seeds run: it knows all they tell it.
const OLDEST_ETCD: [u32; 2] = [3, 4];
const ASK_PROGRAM: Duration = Duration::from_secs(10);

/// What to look at.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub docker: Option<String>,
    /// None: this host needs no engine.
    pub agent: bool,
    /// As which seed; then the store's program and its ports are needed.
    pub seed: Option<Host>,
    pub etcd_program: PathBuf,
    pub seeds: Option<Seeds>,
    pub data: PathBuf,
    /// Whether programs of ours hold the ports already.
    pub running: bool,
    /// When the token was made, in seconds since 1970.
    pub token_made: Option<u64>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub root: bool,
    /// The engine, or what it said and what to do.
    pub engine: Option<Result<EngineInfo, (String, String)>>,
    /// The version of the store's program.
    pub etcd: Option<(PathBuf, Result<String, String>)>,
    /// The version of the packet filter's program.
    pub filter: Option<Result<String, String>>,
    /// Ports that are needed, and why one cannot be had.
    pub ports: Vec<(SocketAddr, Result<(), String>)>,
    /// Names among the seeds, and why one is not known here.
    pub names: Vec<(Host, Result<Vec<IpAddr>, String>)>,
    /// Free bytes at the nearest directory that is there.
    pub disk: Option<(PathBuf, u64)>,
    pub memory_bytes: Option<u64>,
    pub now: u64,
    pub token_made: Option<u64>,
    pub binary: PathBuf,
}

/// Looks.
pub async fn look(wanted: &Wanted) -> Seen {
    let mut seen = Seen {
        root: rustix::process::geteuid().is_root(),
        now: membership::now().unix_seconds(),
        token_made: wanted.token_made,
        binary: std::env::current_exe().unwrap_or_default(),
        disk: free(&wanted.data),
        memory_bytes: memory(),
        ..Seen::default()
    };
    if wanted.agent {
        seen.engine = Some(ask_engine(wanted.docker.as_deref()).await);
        seen.filter = Some(agent::walls::filter().await);
    }
    if wanted.seed.is_some() {
        let program = wanted.etcd_program.clone();
        let version = version_of(&program).await;
        seen.etcd = Some((program, version));
    }
    for host in wanted
        .seeds
        .iter()
        .flat_map(Seeds::iter)
        .filter(|host| host.address().is_none())
    {
        let found = (host.as_str(), 0u16)
            .to_socket_addrs()
            .map(|all| all.map(|address| address.ip()).collect())
            .map_err(|error| error.to_string());
        seen.names.push((host.clone(), found));
    }
    if !wanted.running {
        let mut needed = Vec::new();
        if let Some(seed) = &wanted.seed {
            let address = seed.address().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            needed.extend([SEED_PORT, CLIENT_PORT, PEER_PORT].map(|port| SocketAddr::new(address, port)));
            needed.push(membership::etcd::member_address(seed));
            needed.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 9463)));
        }
        if wanted.agent {
            needed.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)));
            needed.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9465)));
        }
        for address in needed {
            let free = tokio::net::TcpListener::bind(address).await;
            seen.ports
                .push((address, free.map(drop).map_err(|error| error.to_string())));
        }
    }
    seen
}

async fn ask_engine(told: Option<&str>) -> Result<EngineInfo, (String, String)> {
    let engine = engine(told).map_err(|failure| (failure.message, "see --docker".to_owned()))?;
    let info = engine.info().await;
    info.map_err(|error| {
        let remedy = error.remedy().to_owned();
        (error.said, remedy)
    })
}

/// What `etcd --version` says.
async fn version_of(program: &Path) -> Result<String, String> {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .kill_on_drop(true)
        .stdin(std::process::Stdio::null());
    let output = tokio::time::timeout(ASK_PROGRAM, command.output())
        .await
        .map_err(|_| "it does not tell its version".to_owned())?
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("etcd Version:"));
    let version = version.map(|text| text.trim().chars().take(40).collect());
    version.ok_or_else(|| "it does not tell its version as etcd does".to_owned())
}

/// The nearest directory that is there, and what is free on its disk.
fn free(path: &Path) -> Option<(PathBuf, u64)> {
    let dir = path.ancestors().find(|dir| dir.is_dir())?;
    let disk = rustix::fs::statvfs(dir).ok()?;
    Some((dir.to_owned(), disk.f_bavail.saturating_mul(disk.f_frsize)))
}

fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1_024)
}

/// `3.4.23` as numbers; what follows them is not looked at.
pub fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.trim_start_matches('v').splitn(3, '.');
    let mut next = || -> Option<u32> {
        let part = parts.next()?;
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Some([next()?, next()?, next()?])
}

fn size(bytes: u64) -> String {
    let gib = bytes >> 30;
    if gib > 0 {
        format!("{gib} GiB")
    } else {
        format!("{} MiB", bytes >> 20)
    }
}

/// What will do and what will not.
pub fn judge(seen: &Seen) -> Vec<Line> {
    let Seen {
        root,
        engine,
        etcd,
        filter,
        ports,
        names,
        disk,
        memory_bytes,
        now,
        token_made,
        binary,
    } = seen;
    let mut lines = Vec::new();
    lines.push(if *root {
        Line::ok("user", "root")
    } else {
        Line::bad("user", "not root", "run it as root: `sudo reeve ...`")
    });
    match engine {
        Some(Ok(info)) => lines.extend(judge_engine(info)),
        Some(Err((said, remedy))) => lines.push(Line::bad("docker", said, remedy)),
        None => {}
    }
    if let Some((program, version)) = etcd {
        lines.push(judge_etcd(program, version));
    }
    match filter {
        Some(Ok(version)) => lines.push(Line::ok("filter", version)),
        Some(Err(why)) => lines.push(Line::warn(
            "filter",
            why,
            "`apt install nftables`; until then containers reach the cluster's ports, which certificates alone guard",
        )),
        None => {}
    }
    for (address, free) in ports {
        let check = format!("port {}", address.port());
        lines.push(match free {
            Ok(()) => Line::ok(check, "free"),
            Err(why) => Line::bad(
                check,
                format!("cannot listen on {address}: {why}"),
                format!(
                    "end what has it (`ss -ltnp 'sport = :{}'` tells), or see that the address is this host's",
                    address.port()
                ),
            ),
        });
    }
    for (host, found) in names {
        let check = format!("name {host}");
        lines.push(match found {
            Ok(addresses) if !addresses.is_empty() => {
                let all: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                Line::ok(check, all.join(", "))
            }
            Ok(_) => unknown(&check, "it has no address"),
            Err(why) => unknown(&check, why),
        });
    }
    match disk {
        Some((dir, free)) if *free < LEAST_FREE_BYTES => lines.push(Line::bad(
            "disk",
            format!("{} free at {}", size(*free), dir.display()),
            "free some, or choose another disk with --data-dir; 4 GiB are a good beginning",
        )),
        Some((dir, free)) if *free < LITTLE_FREE_BYTES => lines.push(Line::warn(
            "disk",
            format!("{} free at {}", size(*free), dir.display()),
            "free some soon: with a full disk nothing new is started, and a seed's store stops",
        )),
        Some((dir, free)) => lines.push(Line::ok("disk", format!("{} free at {}", size(*free), dir.display()))),
        None => lines.push(Line::bad(
            "disk",
            "cannot be looked at",
            "see that the directory above --data-dir is there",
        )),
    }
    if let Some(bytes) = memory_bytes {
        lines.push(if *bytes < LITTLE_MEMORY_BYTES {
            Line::warn(
                "memory",
                size(*bytes),
                "a seed wants 1 GiB, and containers what they need",
            )
        } else {
            Line::ok("memory", size(*bytes))
        });
    }
    lines.push(judge_clock(*now, *token_made));
    if binary.starts_with("/tmp") || binary.starts_with("/var/tmp") {
        lines.push(Line::warn(
            "binary",
            format!("{} may be cleaned away", binary.display()),
            "put it to /usr/local/bin first",
        ));
    }
    lines
}

fn unknown(check: &str, why: &str) -> Line {
    Line::bad(
        check,
        format!("is not known here: {why}"),
        "add it to the DNS or to /etc/hosts, or write addresses in --seeds",
    )
}

fn judge_clock(now: u64, token_made: Option<u64>) -> Line {
    let fix = "set the clock, and keep it so (Debian: `apt install systemd-timesyncd`): certificates have dates";
    let made = token_made.unwrap_or(0);
    if now < EARLIEST {
        Line::bad("clock", "it says a year long past", fix)
    } else if now.saturating_add(SLACK_SECONDS) < made {
        let behind = crate::output::short(made - now);
        Line::bad("clock", format!("it is {behind} behind the making of the token"), fix)
    } else {
        Line::ok("clock", "plausible")
    }
}

fn judge_etcd(program: &Path, version: &Result<String, String>) -> Line {
    let place = program.display();
    let install = "install it (Debian: `apt install etcd-server`), or name another with --etcd-program";
    match version {
        Ok(version) => match numbers(version) {
            Some([major, minor, _]) if [major, minor] >= OLDEST_ETCD => Line::ok("etcd", format!("{version}, {place}")),
            Some(_) | None => Line::bad(
                "etcd",
                format!("{version} ({place}) is too old"),
                "install 3.4 or later",
            ),
        },
        Err(why) => Line::bad("etcd", format!("{place}: {why}"), install),
    }
}

/// The engine and its settings.
pub fn judge_engine(info: &EngineInfo) -> Vec<Line> {
    let EngineInfo {
        version,
        engine_id: _,
        hostname: _,
        cpus: _,
        memory_bytes: _,
        storage_driver,
        cgroup_version,
        root: data,
        disk_free_bytes,
        warnings,
        cgroup_driver,
        logging_driver,
        live_restore,
        user_namespaces,
    } = info;
    let mut lines = vec![Line::ok(
        "docker",
        format!("{}, API {}.{}", version.version, version.api.0, version.api.1),
    )];
    lines.push(match storage_driver.as_str() {
        "vfs" => Line::warn(
            "storage",
            "vfs copies each image whole for each container",
            "have the engine use overlay2 (`storage-driver` in /etc/docker/daemon.json)",
        ),
        other => Line::ok("storage", other),
    });
    // One manager of control groups for a host: two of them undo each other's limits.
    let systemd = super::service::systemd_runs();
    lines.push(if systemd && cgroup_version == "2" && cgroup_driver == "cgroupfs" {
        Line::warn(
            "cgroups",
            "version 2, by cgroupfs beside systemd",
            "set \"exec-opts\": [\"native.cgroupdriver=systemd\"] in /etc/docker/daemon.json",
        )
    } else {
        Line::ok("cgroups", format!("version {cgroup_version}, by {cgroup_driver}"))
    });
    lines.push(match logging_driver.as_str() {
        "none" | "syslog" | "gelf" | "fluentd" | "awslogs" | "splunk" | "gcplogs" | "etwlogs" | "logentries" => {
            Line::warn(
                "log driver",
                format!("`reeve logs` cannot read {logging_driver}"),
                "set \"log-driver\": \"local\" in /etc/docker/daemon.json; services may choose another",
            )
        }
        "json-file" => Line::ok(
            "log driver",
            "json-file; without `max-size` its files grow: `local` turns them over",
        ),
        other => Line::ok("log driver", other),
    });
    lines.push(Line::ok(
        "live restore",
        if *live_restore {
            "on: containers outlive a restart of the engine"
        } else {
            "off: a restart of the engine restarts its containers"
        },
    ));
    lines.push(Line::ok(
        "user namespaces",
        if *user_namespaces {
            "on"
        } else {
            "off: root in a container is root"
        },
    ));
    if let Some(free) = disk_free_bytes.filter(|free| *free < LITTLE_FREE_BYTES) {
        let found = format!("{} free at {data}", size(free));
        let fix = "free some: `docker system df` shows what uses it";
        lines.push(if free < LEAST_FREE_BYTES {
            Line::bad("images' disk", found, fix)
        } else {
            Line::warn("images' disk", found, fix)
        });
    }
    let limits = warnings.iter().filter(|text| text.contains("limit support"));
    let limits: Vec<&str> = limits.map(String::as_str).collect();
    if !limits.is_empty() {
        lines.push(Line::warn(
            "limits",
            limits.join("; "),
            "services that ask for these limits do not get them; `cgroup_enable=memory swapaccount=1` for the kernel brings them",
        ));
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::check::{Level, count};
    use super::*;

    fn good() -> Seen {
        Seen {
            root: true,
            engine: Some(Ok(EngineInfo {
                storage_driver: "overlay2".to_owned(),
                cgroup_version: "2".to_owned(),
                cgroup_driver: "systemd".to_owned(),
                logging_driver: "local".to_owned(),
                ..EngineInfo::default()
            })),
            etcd: Some(("/usr/bin/etcd".into(), Ok("3.4.23".to_owned()))),
            filter: Some(Ok("nftables v1.0.6".to_owned())),
            ports: vec![("10.0.0.1:2380".parse().unwrap(), Ok(()))],
            names: vec![("h1".parse().unwrap(), Ok(vec!["10.0.0.1".parse().unwrap()]))],
            disk: Some(("/var".into(), 64 << 30)),
            memory_bytes: Some(8 << 30),
            now: EARLIEST + 1_000,
            token_made: Some(EARLIEST + 1_000 + SLACK_SECONDS),
            binary: "/usr/local/bin/reeve".into(),
        }
    }

    #[test]
    fn a_host_that_will_do_has_only_good_lines() {
        let lines = judge(&good());
        assert!(lines.iter().all(|line| line.level == Level::Ok), "{lines:?}");
        assert!(lines.len() >= 10);
    }

    #[test]
    fn every_fault_is_named_at_once_and_each_names_its_fix() {
        let said = |text: &str| text.to_owned();
        let seen = Seen {
            root: false,
            engine: Some(Err((said("nobody answers"), said("start it")))),
            etcd: Some(("/usr/bin/etcd".into(), Err(said("no such file")))),
            filter: Some(Err(said("the program `nft` is missing"))),
            ports: vec![
                ("10.0.0.1:2379".parse().unwrap(), Err(said("in use"))),
                ("10.0.0.1:2380".parse().unwrap(), Err(said("in use"))),
            ],
            names: vec![("h2".parse().unwrap(), Err(said("no such name")))],
            disk: Some(("/var".into(), 1 << 20)),
            memory_bytes: Some(1 << 28),
            now: EARLIEST,
            token_made: Some(EARLIEST + 2 * SLACK_SECONDS),
            binary: "/tmp/reeve".into(),
        };
        let lines = judge(&seen);
        assert_eq!(
            (count(&lines, Level::Bad), count(&lines, Level::Warn)),
            (8, 3),
            "{lines:?}"
        );
        assert!(lines.iter().all(|line| line.fix.is_some()), "{lines:?}");
    }

    #[test]
    fn settings_that_will_hurt_later_are_warned_of() {
        let info = EngineInfo {
            storage_driver: "vfs".to_owned(),
            logging_driver: "syslog".to_owned(),
            warnings: vec!["WARNING: No swap limit support".to_owned()],
            disk_free_bytes: Some(1 << 30),
            ..EngineInfo::default()
        };
        let lines = judge_engine(&info);
        assert_eq!(count(&lines, Level::Warn), 4, "{lines:?}");
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(numbers("3.4.23"), Some([3, 4, 23]));
        assert_eq!(numbers("v3.10.0-rc.1"), Some([3, 10, 0]));
        assert_eq!(numbers("3.4"), None);
        assert_eq!(numbers("none"), None);
        assert_eq!(judge_etcd(Path::new("etcd"), &Ok("3.10.0".to_owned())).level, Level::Ok);
        assert_eq!(
            judge_etcd(Path::new("etcd"), &Ok("3.3.27".to_owned())).level,
            Level::Bad
        );
    }
}
