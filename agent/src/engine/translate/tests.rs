//! What a spec becomes, as far as no engine is needed to see it; every option against a real one is in `tests/engine.rs`.

use std::collections::BTreeMap;

use super::*;

fn instance() -> InstanceName {
    InstanceName {
        namespace: "shop".parse().expect("a namespace"),
        workload: "web".parse().expect("a name"),
        slot: "2".parse().expect("a slot"),
    }
}

fn addresses() -> schemas::records::Addresses {
    schemas::records::Addresses {
        host: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        public: Some("198.51.100.7".to_owned()),
        ..Default::default()
    }
}

fn body_at(
    api: (u32, u32),
    spec: Value,
    ports: &[AssignedPort],
) -> Result<(Value, Vec<InstanceCondition>), TranslateError> {
    let mut whole = json!({ "image": "a:1" });
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    let spec = serde_json::from_value(whole).expect("a spec");
    let labels = BTreeMap::from([
        ("reeve.cluster".to_owned(), "c".to_owned()),
        ("team".to_owned(), "ours".to_owned()),
    ]);
    let request = CreateRequest {
        seat: None,
        name: "shop.web.2.1",
        instance: &instance(),
        spec: &spec,
        labels: &labels,
        ports,
        files: &[],
        secrets: &[],
        addresses: &addresses(),
        depends_on: &[],
        gate: &crate::policy::Gate::open(),
    };
    create_body(&request, api)
}

fn body(spec: Value) -> Value {
    body_at((1, 41), spec, &[]).expect("a body").0
}

#[test]
fn a_bare_container_has_the_defaults_that_are_promised() {
    let body = body(json!({}));
    let host = &body["HostConfig"];
    assert_eq!(host["RestartPolicy"], json!({ "Name": "no" }));
    assert_eq!(
        host["LogConfig"],
        json!({ "Type": "json-file", "Config": { "max-size": "10m", "max-file": "3" } })
    );
    assert_eq!(host["NetworkMode"], "reeve-c-shop");
    assert_eq!((&host["Init"], &host["Privileged"]), (&json!(false), &json!(false)));
    assert_eq!(body["Hostname"], "web-2");
    assert_eq!(body["StopTimeout"], 10);
    assert_eq!(body["Healthcheck"], json!({ "Test": ["NONE"] }));
    assert_eq!(
        body["NetworkingConfig"]["EndpointsConfig"]["reeve-c-shop"]["Aliases"],
        json!(["web", "web.shop", "web-2", "2.web"])
    );
    for absent in ["Entrypoint", "Cmd", "User", "WorkingDir", "StopSignal"] {
        assert_eq!(body.get(absent), None, "{absent} is the image's own");
    }
}

#[test]
fn a_container_is_told_who_it_is_and_a_persons_variables_stand_over_ours() {
    let spec = json!({
        "env": { "NAMESPACE": "mine", "OTHER": 1 },
        "ports": [
            { "name": "http-alt", "containerPort": 80, "hostPort": "auto" },
            { "containerPort": 81 },
            { "containerPort": 53, "hostPort": 5353, "protocol": "UDP" },
        ],
    });
    let port = |container_port, protocol, host_port| AssignedPort {
        container_port,
        protocol,
        host_ip: None,
        host_port,
    };
    let ports = [port(80, Protocol::Tcp, 30_001), port(53, Protocol::Udp, 5353)];
    let body = body_at((1, 41), spec.clone(), &ports).expect("a body").0;
    let told = [
        "CLUSTER_ID=c",
        "CONTAINER_NAME=shop.web.2.1",
        "NAMESPACE=mine",
        "NODE_ADDRESS=192.0.2.7",
        "OTHER=1",
        "PORT_53_UDP=5353",
        "PORT_HTTP_ALT=30001",
        "PUBLIC_HOST_IP=198.51.100.7",
        "SERVICE_NAME=web",
        "SLOT=2",
    ];
    assert_eq!(body["Env"], json!(told));
    let mut host = spec;
    host["networkMode"] = json!("host");
    let body = body_at((1, 41), host, &ports).expect("a body").0;
    assert!(!body["Env"].to_string().contains("PORT_"), "{}", body["Env"]);
}

#[test]
fn our_labels_stand_over_a_persons() {
    let body = body(json!({ "labels": { "team": "theirs", "other": 1 } }));
    assert_eq!(
        body["Labels"],
        json!({ "reeve.cluster": "c", "team": "ours", "other": "1" })
    );
}

#[test]
fn what_an_engine_cannot_do_is_a_condition_and_not_sent() {
    let spec = json!({ "kernelMemory": "32Mi" });
    let (old, none) = body_at((1, 41), spec.clone(), &[]).expect("a body");
    assert_eq!((&old["HostConfig"]["KernelMemory"], none.len()), (&json!(32 << 20), 0));
    let (new, said) = body_at((1, 42), spec, &[]).expect("a body");
    assert_eq!(new["HostConfig"].get("KernelMemory"), None);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].reason, "OptionUnsupported");
    assert!(
        said[0].message.starts_with("container.kernelMemory"),
        "{}",
        said[0].message
    );
    let host = json!({ "networkMode": "host", "ports": [{ "containerPort": 80, "hostPort": 8080 }, { "containerPort": 81, "hostPort": 81 }] });
    let (body, said) = body_at((1, 41), host, &[]).expect("a body");
    assert_eq!((body["HostConfig"].get("PortBindings"), said.len()), (None, 1));
}

#[test]
fn a_published_port_without_an_assigned_one_is_refused() {
    let spec = json!({ "ports": [{ "containerPort": 80, "hostPort": "auto" }, { "containerPort": 81 }] });
    let port = |container_port| AssignedPort {
        container_port,
        protocol: Protocol::Tcp,
        host_ip: None,
        host_port: 30_001,
    };
    let (body, _) = body_at((1, 41), spec.clone(), &[port(80)]).expect("a body");
    assert_eq!(
        body["HostConfig"]["PortBindings"],
        json!({ "80/tcp": [{ "HostIp": "", "HostPort": "30001" }] })
    );
    assert_eq!(body["ExposedPorts"], json!({ "80/tcp": {}, "81/tcp": {} }));
    for wrong in [vec![], vec![port(81)]] {
        let refused = body_at((1, 41), spec.clone(), &wrong);
        assert_eq!(refused, Err(TranslateError::PortUnassigned { container_port: 80 }));
    }
}

#[test]
fn zero_and_unlimited_are_kept_apart_from_absent() {
    assert_eq!(body(json!({}))["HostConfig"].get("MemorySwappiness"), None);
    assert_eq!(
        body(json!({ "memorySwappiness": 0 }))["HostConfig"]["MemorySwappiness"],
        0
    );
    let swap = json!({ "resources": { "limits": { "memory": "64Mi" } }, "memorySwap": "unlimited" });
    assert_eq!(body(swap)["HostConfig"]["MemorySwap"], -1);
    assert_eq!(body(json!({ "stopGracePeriod": "0s" }))["StopTimeout"], 0);
    assert_eq!(body(json!({ "stopGracePeriod": "1ms" }))["StopTimeout"], 1);
}

#[test]
fn a_long_host_name_is_cut_to_what_kernel_and_dns_take() {
    let name = InstanceName {
        workload: "w".repeat(63).parse().expect("a name"),
        ..instance()
    };
    let hostname = default_hostname(&name);
    assert_eq!((hostname.len(), hostname.ends_with('-')), (63, false));
}

#[test]
fn an_option_that_was_silently_dropped_is_a_discrepancy() {
    let request = json!({ "HostConfig": { "BlkioWeight": 300, "Sysctls": { "a": "1" }, "FutureOption": [1] } });
    let inspection = json!({ "HostConfig": { "BlkioWeight": 0, "Sysctls": null } });
    let found = discrepancies(&request, &inspection);
    let fields: Vec<_> = found.iter().map(|one| one.field).collect();
    assert_eq!(fields, ["container", "container.blkioWeight", "container.sysctls"]);
    assert_eq!(found[1].condition().reason, "OptionDiscarded");
    assert_eq!(
        found[1].condition().message,
        "container.blkioWeight: asked for 300, the engine has 0"
    );
}

#[test]
fn references_are_exact() {
    let digest = format!("sha256:{}", "a".repeat(64));
    for (text, expected) in [
        ("a".to_owned(), "a:latest".to_owned()),
        ("r.x:5000/b/a:1".to_owned(), "r.x:5000/b/a:1".to_owned()),
        (format!("a:1@{digest}"), format!("a@{digest}")),
    ] {
        assert_eq!(engine_reference(&text.parse().expect("an image")), expected);
    }
}
