//! Images with tags: told before they run, run as settled, and never replaced for being settled.

use schemas::image::{ImageDigest, ImagePin};
use schemas::records::{AssignedImage, ImageSource};

use super::*;

fn pin(byte: u8) -> ImagePin {
    ImagePin {
        digest: ImageDigest::from([byte; 32]),
        id: ImageDigest::from([byte + 100; 32]),
    }
}

fn image_of(bed: &Bed, container: &str) -> String {
    bed.engine.containers()[container].observed.image.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_is_told_before_anything_is_made_of_it_and_what_it_is_settled_to_be_is_run() {
    let mut bed = Bed::new();
    bed.engine.publish("team/app:1", pin(1));
    bed.engine.publish("team/app:old", pin(2));
    bed.start();
    let mut web = bed.accept("web", 1, 1, spec("team/app:1"));
    web.image = Some(AssignedImage::Settling);
    bed.assign(&[web.clone()]);
    bed.until("it tells", |report| {
        one(report).is_some_and(|line| line.image == Some(pin(1)))
    })
    .await;
    bed.two_sweeps().await;
    let line = one(&bed.report().unwrap()).cloned().unwrap();
    assert_eq!((line.phase, line.image), (Phase::Pending, Some(pin(1))));
    assert!(bed.engine.containers().is_empty(), "nothing runs that is not settled");
    // Another node was first.
    web.image = Some(AssignedImage::Settled(pin(2)));
    bed.assign(&[web.clone()]);
    let report = bed.until("ready", ready).await;
    assert_eq!(one(&report).unwrap().image, None, "what is settled is not told again");
    let pinned = format!("team/app@{}", pin(2).digest);
    assert_eq!(image_of(&bed, "default.web.1.1"), pinned);
    // Its next number finds its own image, beside what runs.
    let mut next = bed.accept("web", 1, 2, spec("team/app:2"));
    next.image = Some(AssignedImage::Settling);
    bed.engine.publish("team/app:2", pin(3));
    bed.assign(&[next.clone()]);
    bed.until("the next one is told", |report| {
        let next = one(report).and_then(|line| line.next.clone());
        next.is_some_and(|next| (next.n, next.image) == (2, Some(pin(3))))
    })
    .await;
    assert_eq!(bed.starts(), 1);
    // Meanwhile the old one is lost, and is made again of what it was made of.
    bed.engine.remove_by_hand("default.web.1.1");
    bed.engine_until("it is there again", |engine| {
        engine.running().contains("default.web.1.1")
    })
    .await;
    assert_eq!(image_of(&bed, "default.web.1.1"), pinned);
    next.image = Some(AssignedImage::Settled(pin(3)));
    bed.assign(&[next]);
    bed.until("the next one is ready", |report| {
        one(report).is_some_and(|line| line.n == 2 && line.ready)
    })
    .await;
    assert_eq!(image_of(&bed, "default.web.1.2"), format!("team/app@{}", pin(3).digest));
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_no_registry_knows_is_run_at_once() {
    let mut bed = Bed::new();
    bed.start();
    let mut web = bed.accept("web", 1, 1, spec("app:1"));
    web.image = Some(AssignedImage::Settling);
    bed.assign(&[web]);
    let report = bed.until("ready", ready).await;
    assert_eq!(one(&report).unwrap().image, None);
    assert_eq!(image_of(&bed, "default.web.1.1"), "app:1");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_already_is_told_and_not_replaced_by_being_settled() {
    let mut bed = Bed::new();
    bed.engine.publish("team/app:1", pin(1));
    bed.start();
    // As an earlier release assigned it.
    let mut web = bed.accept("web", 1, 1, spec("team/app:1"));
    bed.assign(&[web.clone()]);
    bed.until("it runs and is told", |report| {
        one(report).is_some_and(|line| line.ready && line.image == Some(pin(1)))
    })
    .await;
    assert_eq!(image_of(&bed, "default.web.1.1"), "team/app:1");
    for settled in [1, 9] {
        // Even to be another: nothing that runs is touched.
        web.image = Some(AssignedImage::Settled(pin(settled)));
        bed.assign(&[web.clone()]);
        let generation = bed.generation;
        bed.until("the assignment is applied", |report| {
            report.applied.generation == generation && one(report).is_some_and(|line| line.image.is_none())
        })
        .await;
        bed.two_sweeps().await;
        assert_eq!((bed.starts(), bed.engine.running().len()), (1, 1));
    }
    let before = bed.store.revision();
    bed.two_sweeps().await;
    assert_eq!(bed.store.revision(), before, "a quiet agent writes nothing");
    // An agent that starts again knows it.
    bed.stop().await;
    bed.start();
    bed.two_sweeps().await;
    assert_eq!(bed.starts(), 1);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_away_is_no_failure_before_the_other_nodes_were_asked() {
    let mut bed = Bed::new();
    let pinned = format!("team/app@{}", pin(1).digest);
    bed.engine.fail_pull(&pinned, ErrorKind::Registry);
    bed.start();
    let mut web = bed.accept("web", 1, 1, spec("team/app:1"));
    web.image = Some(AssignedImage::Settled(pin(1)));
    web.from = vec![ImageSource {
        node: "n2".parse().unwrap(),
        api: "127.0.0.1:1".to_owned(),
    }];
    bed.assign(&[web]);
    let report = bed.until("it fails", |report| {
        one(report).is_some_and(|line| line.failing.is_some())
    });
    let line = one(&report.await).cloned().unwrap();
    let failing = line.failing.unwrap();
    assert_eq!(failing.reason, FailingReason::ImagePullFailed);
    // Both are said, the registry first: no report said the one alone.
    let (registry, others) = failing.message.split_once("as the test asked; ").unwrap();
    assert!(registry.contains("pull image"), "{}", failing.message);
    assert!(others.starts_with("other nodes have it"), "{}", failing.message);
    // Tried again by itself.
    bed.until("ready", ready).await;
    bed.stop().await;
}
