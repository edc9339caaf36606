//! Escapes: ways from a manifest, or from a request, to the host. Each is denied by the built-in policy under the rule that is
//! named, the line that the denial names opens it and nothing else, and some are opened by no line.

use super::*;

/// What a manifest can say: the container's fragment, and the rules that deny it.
fn manifests() -> Vec<(&'static str, Value, Vec<Rule>)> {
    use Rule::*;
    let bind = |path: &str| json!({ "mounts": [{ "type": "bind", "source": path, "target": "/host" }] });
    let bind_ro =
        |path: &str| json!({ "mounts": [{ "type": "bind", "source": path, "target": "/host", "readOnly": true }] });
    let cap = |name: &str| json!({ "capabilities": { "add": [name] } });
    let security = |text: &str| json!({ "securityOpt": [text] });
    let device = |path: &str| json!({ "devices": [{ "hostPath": path }] });
    let driver =
        |name: &str| json!({ "logging": { "driver": name, "options": { "x-address": "udp://192.0.2.1:514" } } });
    vec![
        ("privileged", json!({ "privileged": true }), vec![Privileged]),
        ("the engine's socket", bind("/var/run/docker.sock"), vec![HostPath]),
        (
            "the engine's socket where it is",
            bind("/run/docker.sock"),
            vec![HostPath],
        ),
        (
            "the engine's socket, to read only",
            bind_ro("/run/docker.sock"),
            vec![HostPath],
        ),
        ("what holds the engine's socket", bind("/run"), vec![HostPath]),
        ("the same by its link", bind("/var/run"), vec![HostPath]),
        (
            "containerd's socket",
            bind("/run/containerd/containerd.sock"),
            vec![HostPath],
        ),
        (
            "another engine's socket",
            bind("/run/podman/podman.sock"),
            vec![HostPath],
        ),
        ("the host", bind("/"), vec![HostPath]),
        ("the host to read only", bind_ro("/"), vec![HostPath]),
        ("the host by slashes", bind("//"), vec![HostPath]),
        ("the host's settings", bind("/etc"), vec![HostPath]),
        ("the host's passwords", bind_ro("/etc/shadow"), vec![HostPath]),
        ("the host's scheduled commands", bind("/etc/cron.d"), vec![HostPath]),
        ("scheduled commands of users", bind("/var/spool/cron"), vec![HostPath]),
        ("the node's policy", bind("/etc/reeve/policy.yaml"), vec![HostPath]),
        ("root's files", bind("/root/.ssh"), vec![HostPath]),
        ("processes of the host", bind("/proc"), vec![HostPath]),
        (
            "the host's root through a process",
            bind("/proc/1/root"),
            vec![HostPath],
        ),
        ("the kernel's switches", bind("/sys"), vec![HostPath]),
        ("control groups", bind("/sys/fs/cgroup"), vec![HostPath]),
        ("devices as files", bind("/dev"), vec![HostPath]),
        ("a disk as a file", bind("/dev/sda"), vec![HostPath]),
        ("the host's memory as a file", bind("/dev/mem"), vec![HostPath]),
        ("the kernel and what boots it", bind("/boot"), vec![HostPath]),
        ("the engine's data", bind("/var/lib/docker"), vec![HostPath]),
        (
            "another container's files",
            bind("/var/lib/docker/overlay2/x/merged"),
            vec![HostPath],
        ),
        ("what holds the engine's data", bind("/var/lib"), vec![HostPath]),
        ("everything variable", bind("/var"), vec![HostPath]),
        ("the store's data", bind("/var/lib/etcd"), vec![HostPath]),
        ("the agent's data", bind("/var/lib/reeve/agent"), vec![HostPath]),
        (
            "the init system's sockets",
            bind("/run/systemd/private"),
            vec![HostPath],
        ),
        ("the message bus", bind("/run/dbus/system_bus_socket"), vec![HostPath]),
        ("programs of the host", bind("/usr/bin"), vec![HostPath]),
        ("libraries of the host", bind("/lib"), vec![HostPath]),
        ("temporary files of the host", bind("/tmp"), vec![HostPath]),
        ("files of users", bind("/home/ann/.ssh"), vec![HostPath]),
        ("up and out of a listed path", bind("/srv/../etc"), vec![HostPath]),
        ("up and out, deeper", bind("/srv/a/b/../../../root"), vec![HostPath]),
        (
            "a path that only begins like a listed one",
            bind("/srvx"),
            vec![HostPath],
        ),
        ("no absolute path", bind("etc"), vec![HostPath]),
        ("an empty path", bind(""), vec![HostPath]),
        (
            "the second of two mounts",
            json!({ "mounts": [
            { "type": "bind", "source": "/srv/a", "target": "/a" },
            { "type": "bind", "source": "/etc", "target": "/b" }] }),
            vec![HostPath],
        ),
        (
            "a volume that is a path",
            json!({ "mounts": [{ "type": "volume", "source": "/etc", "target": "/x" }] }),
            vec![Volume],
        ),
        (
            "a volume that climbs",
            json!({ "mounts": [{ "type": "volume", "source": "../../etc", "target": "/x" }] }),
            vec![Volume],
        ),
        (
            "a mount over the process table",
            json!({ "mounts": [{ "type": "tmpfs", "target": "/proc/sys" }] }),
            vec![SystemPath],
        ),
        (
            "a volume over the process table",
            json!({ "mounts": [{ "type": "volume", "source": "v", "target": "/proc" }] }),
            vec![SystemPath],
        ),
        (
            "a mount over the kernel's switches",
            json!({ "mounts": [{ "type": "tmpfs", "target": "//sys/fs" }] }),
            vec![SystemPath],
        ),
        (
            "a mount that climbs in the container",
            json!({ "mounts": [{ "type": "tmpfs", "target": "/x/../proc" }] }),
            vec![SystemPath],
        ),
        (
            "the host's network",
            json!({ "networkMode": "host" }),
            vec![HostNamespace],
        ),
        (
            "the host's processes",
            json!({ "pidMode": "host" }),
            vec![HostNamespace],
        ),
        (
            "the host's shared memory",
            json!({ "ipcMode": "host" }),
            vec![HostNamespace],
        ),
        ("the host's users", json!({ "usernsMode": "host" }), vec![HostNamespace]),
        (
            "all namespaces",
            json!({ "networkMode": "host", "pidMode": "host", "ipcMode": "host", "usernsMode": "host" }),
            vec![HostNamespace, HostNamespace, HostNamespace, HostNamespace],
        ),
        ("the new root", cap("SYS_ADMIN"), vec![Capability]),
        ("all capabilities", cap("ALL"), vec![Capability]),
        ("tracing", cap("SYS_PTRACE"), vec![Capability]),
        ("kernel modules", cap("SYS_MODULE"), vec![Capability]),
        ("raw disks and memory", cap("SYS_RAWIO"), vec![Capability]),
        ("files by handle", cap("DAC_READ_SEARCH"), vec![Capability]),
        ("network settings", cap("NET_ADMIN"), vec![Capability]),
        ("the clock", cap("CAP_SYS_TIME"), vec![Capability]),
        ("programs in the kernel", cap("BPF"), vec![Capability]),
        ("restarting the host", cap("SYS_BOOT"), vec![Capability]),
        (
            "no system call filter",
            security("seccomp=unconfined"),
            vec![SecurityOption],
        ),
        (
            "the same with a colon",
            security("seccomp:unconfined"),
            vec![SecurityOption],
        ),
        (
            "a filter of one's own",
            security("seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"),
            vec![SecurityOption],
        ),
        ("no confinement", security("apparmor=unconfined"), vec![SecurityOption]),
        (
            "another confinement",
            security("apparmor=my-profile"),
            vec![SecurityOption],
        ),
        ("no labels", security("label=disable"), vec![SecurityOption]),
        ("another label", security("label:type:spc_t"), vec![SecurityOption]),
        (
            "bare system paths",
            security("systempaths=unconfined"),
            vec![SecurityOption],
        ),
        (
            "privileges after all",
            security("no-new-privileges=false"),
            vec![SecurityOption],
        ),
        ("a disk", device("/dev/sda"), vec![Device]),
        ("the host's memory", device("/dev/mem"), vec![Device]),
        ("all devices", device("/dev"), vec![Device]),
        ("virtual machines", device("/dev/kvm"), vec![Device]),
        ("a device that climbs", device("/dev/../dev/sda"), vec![Device]),
        (
            "what the kernel runs at a crash",
            json!({ "sysctls": { "kernel.core_pattern": "|/x" } }),
            vec![Sysctl],
        ),
        (
            "the same with a slash",
            json!({ "sysctls": { "kernel/core_pattern": "|/x" } }),
            vec![Sysctl],
        ),
        (
            "memory of the whole host",
            json!({ "sysctls": { "vm.overcommit_memory": 1 } }),
            vec![Sysctl],
        ),
        (
            "real time",
            json!({ "ulimits": { "rtprio": { "soft": 99, "hard": 99 } } }),
            vec![Ulimit],
        ),
        (
            "before all others",
            json!({ "ulimits": { "nice": { "soft": 40, "hard": 40 } } }),
            vec![Ulimit],
        ),
        ("logs elsewhere", driver("syslog"), vec![LoggingDriver]),
        ("logs elsewhere, structured", driver("gelf"), vec![LoggingDriver]),
        (
            "a program of the engine's for logs",
            driver("evil/plugin:latest"),
            vec![LoggingDriver],
        ),
        (
            "everything",
            json!({ "privileged": true, "pidMode": "host", "capabilities": { "add": ["ALL"] },
            "securityOpt": ["seccomp=unconfined"], "devices": [{ "hostPath": "/dev/sda" }],
            "mounts": [{ "type": "bind", "source": "/", "target": "/host" }] }),
            vec![Privileged, Device, Capability, SecurityOption, HostPath, HostNamespace],
        ),
    ]
}

/// What no manifest can say today, and a request could: the place in it, and what stands there.
fn smuggled() -> Vec<(&'static str, &'static str, Value, Rule)> {
    use Rule::*;
    vec![
        (
            "binds of the old form",
            "/HostConfig/Binds",
            json!(["/:/host"]),
            UnknownOption,
        ),
        (
            "another container's volumes",
            "/HostConfig/VolumesFrom",
            json!(["x"]),
            UnknownOption,
        ),
        (
            "another control group",
            "/HostConfig/CgroupParent",
            json!("/"),
            UnknownOption,
        ),
        ("another runtime", "/HostConfig/Runtime", json!("evil"), UnknownOption),
        (
            "device rules",
            "/HostConfig/DeviceCgroupRules",
            json!(["a *:* rwm"]),
            UnknownOption,
        ),
        (
            "device requests",
            "/HostConfig/DeviceRequests",
            json!([{ "Count": -1 }]),
            UnknownOption,
        ),
        ("no masked paths", "/HostConfig/MaskedPaths", json!([]), UnknownOption),
        (
            "no read-only paths",
            "/HostConfig/ReadonlyPaths",
            json!([]),
            UnknownOption,
        ),
        ("the host's name", "/HostConfig/UTSMode", json!("host"), UnknownOption),
        (
            "the host's control groups",
            "/HostConfig/CgroupnsMode",
            json!("host"),
            UnknownOption,
        ),
        (
            "never the one that is killed",
            "/HostConfig/OomScoreAdj",
            json!(-1000),
            UnknownOption,
        ),
        ("links", "/HostConfig/Links", json!(["x:y"]), UnknownOption),
        (
            "a volume driver",
            "/HostConfig/VolumeDriver",
            json!("evil"),
            UnknownOption,
        ),
        (
            "an option of a newer engine",
            "/HostConfig/Tomorrow",
            json!(1),
            UnknownOption,
        ),
        (
            "volumes of the old form",
            "/Volumes",
            json!({ "/x": {} }),
            UnknownOption,
        ),
        ("an option of the request", "/Tomorrow", json!(1), UnknownOption),
        (
            "another container's network",
            "/HostConfig/NetworkMode",
            json!("container:x"),
            OtherNamespace,
        ),
        (
            "another namespace's network",
            "/HostConfig/NetworkMode",
            json!("reeve-01234567-other"),
            OtherNamespace,
        ),
        (
            "the engine's own network",
            "/HostConfig/NetworkMode",
            json!("bridge"),
            OtherNamespace,
        ),
        (
            "another container's processes",
            "/HostConfig/PidMode",
            json!("container:x"),
            OtherNamespace,
        ),
        (
            "another container's memory",
            "/HostConfig/IpcMode",
            json!("container:x"),
            OtherNamespace,
        ),
        (
            "a second network",
            "/NetworkingConfig/EndpointsConfig/reeve-01234567-other",
            json!({}),
            OtherNamespace,
        ),
        (
            "an address in the network",
            "/NetworkingConfig/EndpointsConfig/reeve-01234567-shop/IPAMConfig",
            json!({}),
            UnknownOption,
        ),
        (
            "a bind as a volume",
            "/HostConfig/Mounts/0/VolumeOptions/DriverConfig",
            json!({ "Name": "local", "Options": { "type": "none", "o": "bind", "device": "/" } }),
            UnknownOption,
        ),
        (
            "a part of a volume",
            "/HostConfig/Mounts/0/VolumeOptions/Subpath",
            json!("../.."),
            UnknownOption,
        ),
        (
            "another namespace's volume",
            "/HostConfig/Mounts/0/Source",
            json!("other.data"),
            Volume,
        ),
        ("an anonymous volume", "/HostConfig/Mounts/0/Source", json!(""), Volume),
        (
            "mounts that come back",
            "/HostConfig/Mounts/1/BindOptions",
            json!({ "Propagation": "rshared" }),
            UnknownOption,
        ),
        (
            "options of a tmpfs",
            "/HostConfig/Mounts/2/TmpfsOptions/Options",
            json!([["exec"]]),
            UnknownOption,
        ),
        (
            "a mount of another kind",
            "/HostConfig/Mounts/2/Type",
            json!("npipe"),
            UnknownOption,
        ),
        (
            "mounts that are no list",
            "/HostConfig/Mounts",
            json!({ "Type": "bind" }),
            UnknownOption,
        ),
        (
            "a truth that is no truth",
            "/HostConfig/Privileged",
            json!("true"),
            Privileged,
        ),
        ("settings that are none", "/HostConfig", json!([]), UnknownOption),
        (
            "an option of logging",
            "/HostConfig/LogConfig/Other",
            json!(1),
            UnknownOption,
        ),
    ]
}

#[test]
fn every_escape_of_a_manifest_is_denied_by_its_rule() {
    let dir = host();
    let all = manifests();
    assert!(all.len() >= 60, "{}", all.len());
    let mut lines = 0;
    for (name, container, rules) in all {
        let request = body(&container);
        let denials = judge(&gate(dir.path(), Policy::of_a_node()), &request);
        let mut found: Vec<Rule> = denials.iter().map(|denial| denial.rule).collect();
        let mut wanted = rules;
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{name}: {denials:#?}");
        for denial in denials {
            assert!(denial.option.starts_with("container."), "{name}: {denial}");
            let Some(line) = &denial.line else { continue };
            // The line that is named is one of a policy, and opens what it is named for.
            let policy =
                parse(line, &Policy::of_a_node()).unwrap_or_else(|problems| panic!("{name}: {line}: {problems:?}"));
            let left = judge(&gate(dir.path(), policy), &request);
            assert!(!left.contains(&denial), "{name}: {line} does not open {denial}");
            lines += 1;
        }
    }
    assert!(lines > 50, "{lines}");
}

#[test]
fn an_option_that_no_manifest_can_say_is_denied_however_it_came_there() {
    let dir = host();
    let plain = json!({ "mounts": [
        { "type": "volume", "source": "data", "target": "/a" },
        { "type": "bind", "source": "/srv/a", "target": "/b" },
        { "type": "tmpfs", "target": "/c", "size": "1Mi" },
    ] });
    for (name, place, value, rule) in smuggled() {
        let mut request = body(&plain);
        assert_eq!(judge(&gate(dir.path(), Policy::of_a_node()), &request), []);
        let (parent, key) = place.rsplit_once('/').expect("a place");
        let parent = request.pointer_mut(parent).expect("its parent");
        parent[key] = value;
        let denials = judge(&gate(dir.path(), Policy::of_a_node()), &request);
        assert!(denials.iter().any(|denial| denial.rule == rule), "{name}: {denials:#?}");
        // No policy opens what the check does not know.
        let wide = Policy {
            privileged: rule != Rule::Privileged,
            host_paths: places(&["/"]),
            ..Policy::of_a_node()
        };
        assert!(!judge(&gate(dir.path(), wide), &request).is_empty(), "{name}");
    }
}
