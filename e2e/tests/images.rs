//! The images of a real engine as `reeve images` tells them: what anything uses stays, whoever made it; what nobody uses goes.

use e2e::{Host, Lab, eventually};

fn names(host: &Host) -> Vec<String> {
    let text = host.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    let mut names: Vec<String> = text.lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn what_is_in_use_stays_and_the_rest_goes_when_a_person_says_so() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let _up = host.up(&[]);
    let data = host.dir.join("up").display().to_string();
    let images = |code: i32, more: &[&str]| host.reeve_exits(code, &[&["images", "--data-dir", &data], more].concat());
    eventually("the node is there", 30, || {
        let output = host.reeve(&["get", "nodes", "-o", "name"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("n1") { Ok(()) } else { Err(text) }
    });
    // A container of ours, an ended one of somebody else's, and two images that nobody uses, one of them under two names.
    let file = lab.file("hello.yaml", include_str!("../../manifests/examples/hello.yaml"));
    host.reeve_exits(0, &["apply", "-f", &file]);
    for (base, label, name) in [
        ("reeve/hello:1", "a", "foreign:1"),
        ("reeve/hello:1", "b", "spare:1"),
        ("reeve/hello:1", "c", "other:1"),
    ] {
        host.docker(&["create", "--name", "maker", base, "sh"]);
        host.docker(&["commit", "--change", &format!("LABEL made={label}"), "maker", name]);
        host.docker(&["rm", "maker"]);
    }
    host.docker(&["tag", "other:1", "other:2"]);
    host.docker(&["create", "--name", "somebodys", "foreign:1", "true"]);
    let all = names(host);

    let text = images(0, &["-o", "wide"]);
    for word in [
        "reeve/hello:1",
        "default.hello.1.1",
        "foreign:1",
        "somebodys",
        "spare:1",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let text = images(0, &["prune", "--dry-run"]);
    assert!(
        text.contains("spare:1") && text.contains("other:1 (and 1 more)"),
        "{text}"
    );
    assert!(!text.contains("foreign") && !text.contains("reeve/hello"), "{text}");
    assert_eq!(names(host), all, "looking removes nothing");
    images(2, &["prune"]);
    assert_eq!(names(host), all, "nothing goes without a yes");

    // By name, of several names one.
    let text = images(0, &["rm", "other:1"]);
    assert!(text.contains("other:1 is removed"), "{text}");
    assert!(!names(host).contains(&"other:1".to_owned()) && names(host).contains(&"other:2".to_owned()));
    for (name, user) in [("reeve/hello:1", "default.hello.1.1"), ("foreign:1", "somebodys")] {
        let text = images(6, &["rm", name]);
        assert!(
            text.contains(&format!("{name} stays: container {user} uses it")),
            "{text}"
        );
    }
    let text = images(6, &["rm", "no-such:1"]);
    assert!(text.contains("no node that was asked has image"), "{text}");

    images(0, &["prune", "--yes"]);
    assert_eq!(names(host), ["foreign:1", "reeve/hello:1"]);
    assert_eq!(host.running(), ["default.hello.1.1"]);
    // A service whose container ended and is about to be made again keeps its image.
    host.docker(&["rm", "-f", "default.hello.1.1"]);
    let text = images(6, &["rm", "reeve/hello:1"]);
    assert!(text.contains("reeve/hello:1 stays"), "{text}");
}
