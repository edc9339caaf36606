//! Taking away what a lab made: processes, containers, mounts, namespaces, links, control groups and its directory. A lab's
//! end calls it, and the next lab's beginning for labs whose test was killed. It finds things by the lab's own directory
//! and number only, so nothing of anybody else is touched.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::run;

/// What the directories of labs are called.
pub(crate) const PREFIX: &str = "reeve-lab-";
/// In a lab's directory: the process it is of, when that began, and the lab's number.
const OWNER: &str = "owner";
/// In the environment of all that a lab starts, and so of what that starts: the lab's directory.
const MARK: &str = "REEVE_LAB";

/// The mark of what logs into this file, where it is a lab's.
pub(crate) fn mark(log: &Path) -> Option<(&'static str, &Path)> {
    let of_lab = |dir: &&Path| {
        dir.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
    };
    log.ancestors().find(of_lab).map(|dir| (MARK, dir))
}

/// When a process began, in the kernel's ticks: a number used again is another process.
fn began(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in brackets and may have spaces.
    text.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

/// Writes down whose the directory is.
pub(crate) fn claim(dir: &Path, number: u32) {
    let pid = std::process::id();
    let text = format!("{pid} {} {number}", began(pid).unwrap_or_default());
    std::fs::write(dir.join(OWNER), text).expect("the lab's directory can be written");
}

/// What tells iptables to let hosts on a lab's bridge reach each other, or (`-D`) no longer to.
pub(crate) fn passage<'a>(act: &'a str, bridge: &'a str) -> [&'a str; 9] {
    ["-w", act, "FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT"]
}

/// Takes away labs whose process is gone.
pub(crate) fn sweep() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let dir = entry.path();
        let Ok(owner) = std::fs::read_to_string(dir.join(OWNER)) else {
            continue;
        };
        let mut words = owner.split_whitespace();
        let (Some(pid), Some(start), Some(number)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let (Ok(pid), Ok(number)) = (pid.parse::<u32>(), number.parse::<u32>()) else {
            continue;
        };
        if began(pid).as_deref() != Some(start) {
            wipe(&dir, number);
        }
    }
}

/// Takes away all that the lab of this directory and number made; says so where something stays.
pub(crate) fn wipe(dir: &Path, number: u32) {
    let ids = containers(dir);
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let mut left = processes(dir, &ids);
        left.extend(detached(number));
        if left.is_empty() {
            break;
        }
        if Instant::now() >= end {
            eprintln!("processes {left:?} of {} do not end", dir.display());
            break;
        }
        let pids: Vec<String> = left.iter().map(u32::to_string).collect();
        let _ = run(Command::new("kill").arg("-9").args(pids));
        std::thread::sleep(Duration::from_millis(50));
    }
    for mount in mounts(dir) {
        let _ = run(Command::new("umount").args(["-l", &mount]));
    }
    let namespaces = run(Command::new("ip").args(["netns", "list"]));
    let own = format!("rv{number}n");
    for line in String::from_utf8_lossy(&namespaces.stdout).lines() {
        if let Some(name) = line.split_whitespace().next().filter(|name| name.starts_with(&own)) {
            let _ = run(Command::new("ip").args(["netns", "del", name]));
        }
    }
    let links = run(Command::new("ip").args(["-brief", "link"]));
    let own = format!("rl{number}n");
    for line in String::from_utf8_lossy(&links.stdout).lines() {
        let name = line.split([' ', '@']).next().unwrap_or_default();
        if name.starts_with(&own) || name == format!("rb{number}") {
            let _ = run(Command::new("ip").args(["link", "del", name]));
        }
    }
    let _ = run(Command::new("iptables").args(passage("-D", &format!("rb{number}"))));
    for id in &ids {
        for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(controller.path().join("docker").join(id));
        }
    }
    let end = Instant::now() + Duration::from_secs(5);
    while let Err(error) = std::fs::remove_dir_all(dir) {
        if error.kind() == std::io::ErrorKind::NotFound {
            break;
        }
        if Instant::now() >= end {
            eprintln!("{} stays: {error}", dir.display());
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ids of the containers of the lab's engines.
fn containers(dir: &Path) -> BTreeSet<String> {
    let hosts = std::fs::read_dir(dir).into_iter().flatten().flatten();
    hosts
        .flat_map(|host| {
            std::fs::read_dir(host.path().join("data/containers"))
                .into_iter()
                .flatten()
        })
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.len() == 64)
        .collect()
}

/// The lab's processes: those it started, by the mark they bear, and those in its containers. The dead are not counted.
fn processes(dir: &Path, ids: &BTreeSet<String>) -> Vec<u32> {
    let mark = format!("{MARK}={}", dir.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let read = |name: &str| {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let dead = |stat: &str| {
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
        };
        let ours = read("environ").split('\0').any(|variable| variable == mark);
        let inside = || read("cgroup").split(['/', '\n']).any(|part| ids.contains(part));
        if (ours || inside()) && !dead(&read("stat")) {
            found.push(pid);
        }
    }
    found
}

/// Processes in the lab's network namespaces: what a host's agent started for good bears no mark.
fn detached(number: u32) -> Vec<u32> {
    let own = format!("rv{number}n");
    let namespaces = run(Command::new("ip").args(["netns", "list"]));
    let all = String::from_utf8_lossy(&namespaces.stdout).into_owned();
    let names = all.lines().filter_map(|line| line.split_whitespace().next());
    let pids = names.filter(|name| name.starts_with(&own)).flat_map(|name| {
        let pids = run(Command::new("ip").args(["netns", "pids", name]));
        let text = String::from_utf8_lossy(&pids.stdout).into_owned();
        text.lines()
            .filter_map(|pid| pid.trim().parse().ok())
            .collect::<Vec<u32>>()
    });
    pids.collect()
}

/// What is mounted in the directory, the innermost first.
fn mounts(dir: &Path) -> Vec<String> {
    let inside = format!("{}/", dir.display());
    let text = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let paths = text.lines().filter_map(|line| line.split(' ').nth(1));
    let mut own: Vec<String> = paths
        .filter(|path| path.starts_with(&inside))
        .map(str::to_owned)
        .collect();
    own.sort_unstable_by(|a, b| b.cmp(a));
    own
}
