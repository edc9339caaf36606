//! The control loop under tokio's paused clock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::time::{Instant, sleep};

use super::*;

type Log = Arc<Mutex<Vec<(&'static str, u64)>>>;

fn log_of(log: &Log) -> Vec<(&'static str, u64)> {
    log.lock().expect("no panic holds it").clone()
}

/// Runs a loop whose reconcile notes the item and the second, then does as told.
fn start<R>(
    parallel: usize,
    act: impl Fn(&'static str) -> R + Send + Sync + 'static,
) -> (Queue<&'static str>, Log, Shutdown, tokio::task::JoinHandle<()>)
where
    R: Future<Output = Result<Next, String>> + Send + 'static,
{
    let (queue, log, shutdown) = (Queue::new(), Log::default(), Shutdown::new());
    let options = ControlOptions {
        parallel,
        ..ControlOptions::default()
    };
    let begin = Instant::now();
    let noted = Arc::clone(&log);
    let work = move |item: &'static str| {
        noted
            .lock()
            .expect("no panic holds it")
            .push((item, begin.elapsed().as_secs()));
        act(item)
    };
    let running = tokio::spawn(run_boxed(queue.clone(), options, shutdown.clone(), work));
    (queue, log, shutdown, running)
}

async fn run_boxed<R>(
    queue: Queue<&'static str>,
    options: ControlOptions,
    shutdown: Shutdown,
    work: impl Fn(&'static str) -> R,
) where
    R: Future<Output = Result<Next, String>> + Send + 'static,
{
    run(queue, options, shutdown, work).await;
}

#[tokio::test(start_paused = true)]
async fn an_item_is_never_run_twice_at_once_and_again_when_added_meanwhile() {
    let running = Arc::new(AtomicUsize::new(0));
    let (queue, log, shutdown, ended) = start(8, move |_| {
        let running = Arc::clone(&running);
        async move {
            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "twice at once");
            sleep(Duration::from_secs(10)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(Next::Done)
        }
    });
    queue.add("a");
    sleep(Duration::from_secs(1)).await;
    queue.add("a");
    queue.add("a");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(log_of(&log), [("a", 0), ("a", 10)]);
    shutdown.drain();
    ended.await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_once_than_allowed() {
    let (queue, log, _shutdown, _ended) = start(2, |_| async {
        sleep(Duration::from_secs(10)).await;
        Ok(Next::Done)
    });
    for item in ["a", "b", "c", "d", "e"] {
        queue.add(item);
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(log_of(&log), [("a", 0), ("b", 0), ("c", 10), ("d", 10), ("e", 20)]);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_asks_for_it_comes_back() {
    let (queue, log, _shutdown, _ended) = start(1, |_| async { Ok(Next::After(Duration::from_secs(30))) });
    queue.add("a");
    sleep(Duration::from_secs(65)).await;
    assert_eq!(log_of(&log), [("a", 0), ("a", 30), ("a", 60)]);
}

#[tokio::test(start_paused = true)]
async fn a_failing_or_panicking_item_is_tried_again_without_holding_the_others() {
    let (queue, log, _shutdown, _ended) = start(1, |item| async move {
        match item {
            "bad" => Err("no".to_owned()),
            "worse" => panic!("on purpose"),
            _ => Ok(Next::Done),
        }
    });
    queue.add("bad");
    queue.add("worse");
    sleep(Duration::from_secs(1)).await;
    queue.add("good");
    sleep(Duration::from_secs(600)).await;
    let log = log_of(&log);
    let count = |item| log.iter().filter(|(i, _)| *i == item).count();
    assert_eq!(count("good"), 1);
    // Drawn evenly below a bound of 10 s: some 5 s apart once the bound is reached.
    assert!((60..400).contains(&count("bad")), "{}", count("bad"));
    assert!((60..400).contains(&count("worse")), "{}", count("worse"));
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_what_runs_and_begins_nothing() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let (queue, log, shutdown, ended) = start(1, move |_| {
        let done = Arc::clone(&counted);
        async move {
            sleep(Duration::from_secs(10)).await;
            done.fetch_add(1, Ordering::SeqCst);
            Ok(Next::Done)
        }
    });
    queue.add("runs");
    queue.add("waits");
    sleep(Duration::from_secs(1)).await;
    shutdown.drain();
    ended.await.expect("it ends");
    assert_eq!((log_of(&log).len(), done.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn aborting_lets_go_of_what_runs() {
    let (queue, _log, shutdown, ended) = start(1, |_| async {
        sleep(Duration::from_secs(3600)).await;
        Ok(Next::Done)
    });
    let begin = Instant::now();
    queue.add("hangs");
    sleep(Duration::from_secs(1)).await;
    shutdown.drain();
    sleep(Duration::from_secs(1)).await;
    assert!(!ended.is_finished());
    shutdown.abort();
    ended.await.expect("it ends");
    assert!(begin.elapsed() < Duration::from_secs(5));
}
