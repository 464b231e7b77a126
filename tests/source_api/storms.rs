//! Trouble that lasts, and trouble that comes again and again: what was learnt stays, requests are few, and in the end all is known.

use std::time::Duration;

use api_double::{GoneStyle, StreamingLists};
use pointsman::source::api::{ApiConfig, Timing};
use serde_json::json;
use tokio::time::Instant;

use super::support::*;

/// Long enough for waits to have doubled up to the longest, several times.
const STORM: Duration = Duration::from_millis(1500);

/// As the watch cache says that a version is too old.
fn expired() -> String {
    json!({"type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
        "message": "too old resource version: 1 (2)",
    }})
    .to_string()
}

/// Every watch is told that its version is too old, as soon as it is open.
async fn storm_of_410(dialect: StreamingLists) {
    let double = shop();
    double.streaming_lists(dialect);
    let mut run = start(&double);
    run.synced().await;
    double.clear_requests();
    let (begin, line) = (Instant::now(), expired());
    let mut changed = 0;
    while begin.elapsed() < STORM {
        for path in [SERVICES, SLICES, NODES] {
            double.inject_line(path, &line);
        }
        changed += 1;
        double.apply(web("web", 1000 + changed));
        run.settle(Duration::from_millis(2)).await;
    }
    // Waits are between 80 and 160 ms once they have doubled, with two pages or one and a watch each: 19 times three, and some in front;
    // without them it is hundreds.
    let lists = requests(&double, SERVICES).len();
    assert!((4..80).contains(&lists), "{dialect:?}: {lists} requests in {:?}", begin.elapsed());
    assert!(run.deletions().is_empty(), "{dialect:?}: nothing was lost sight of");
    double.apply(web("late", 80));
    run.until("what came last", |run| {
        run.has("default/late") && run.port("default/web") == Some(1000 + i64::from(changed))
    })
    .await;
    run.until("the end of the trouble", |run| run.logged(&["WARN", "trouble"]) == run.logged(&["the trouble is over"]))
        .await;
}

#[tokio::test]
async fn watches_that_expire_at_once_are_listed_again_ever_more_slowly() {
    storm_of_410(StreamingLists::Supported).await;
    storm_of_410(StreamingLists::Refused).await;
}

/// etcd is compacted while a listing is under way: its next page is refused, and everything is asked for again.
#[tokio::test]
async fn compaction_between_pages_is_sat_out() {
    for style in [GoneStyle::Status, GoneStyle::Event] {
        let double = shop();
        double.streaming_lists(StreamingLists::Refused);
        double.gone_style(style);
        for number in 0..30 {
            double.apply(web(&format!("s{number}"), 80));
        }
        let timing = Timing { page_size: 3, ..short() };
        let mut run = start_with(ApiConfig { master: Some(double.url()), timing, ..ApiConfig::default() });
        let begin = Instant::now();
        while begin.elapsed() < STORM / 3 {
            double.compact();
            run.settle(Duration::from_micros(200)).await;
        }
        let requests = requests(&double, SERVICES).len();
        assert!(requests < 120, "{style:?}: {requests} requests");
        assert!(run.deletions().is_empty(), "{style:?}: half a listing deletes nothing");
        run.synced().await;
        assert_eq!(run.names().len(), 33, "{style:?}: {:?}", run.names());
    }
}

/// The watch cache is made anew, again and again: versions that were handed out are unknown, watches end.
#[tokio::test]
async fn a_watch_cache_that_is_reset_again_and_again_costs_few_requests() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    double.apply(web("gone", 80));
    run.until("the Service", |run| run.has("default/gone")).await;
    double.clear_requests();
    let begin = Instant::now();
    let mut changed = 0;
    while begin.elapsed() < STORM {
        double.compact();
        double.drop_watches();
        changed += 1;
        double.apply(web("web", 1000 + changed));
        run.settle(Duration::from_millis(3)).await;
    }
    double.delete(SERVICES, "default", "gone");
    let requests = requests(&double, SERVICES).len();
    assert!((4..90).contains(&requests), "{requests} requests in {:?}", begin.elapsed());
    run.until("convergence", |run| {
        !run.has("default/gone") && run.port("default/web") == Some(1000 + i64::from(changed))
    })
    .await;
    assert_eq!(run.deletions().len(), 1, "nothing else was ever taken for gone");
}

/// The same event twice, and events that were overtaken by newer ones.
#[tokio::test]
async fn duplicate_and_reordered_events_do_no_harm() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    run.until("the watches", |_| double.open_watches() == 4).await;
    let event = |kind: &str, name: &str, port: u16, version: u64| {
        let mut object = web(name, port);
        object["metadata"]["resourceVersion"] = version.to_string().into();
        json!({"type": kind, "object": object}).to_string()
    };
    let first = double.apply(web("api", 90));
    let second = double.apply(web("api", 91));
    run.until("the newest", |run| run.port("default/api") == Some(91)).await;
    let lines = [
        event("MODIFIED", "api", 91, second),
        event("ADDED", "api", 91, second),
        event("ADDED", "api", 90, first),
        event("DELETED", "api", 90, first),
        event("DELETED", "never", 80, first),
    ];
    for line in &lines {
        double.inject_line(SERVICES, line);
    }
    // What comes after them has been heard after them.
    double.apply(web("after", 80));
    run.until("what came after", |run| run.has("default/after")).await;
    assert_eq!(run.port("default/api"), Some(91), "the newest stays");
    assert!(run.deletions().is_empty());
    // A deletion that is told twice, and once more by the server's own word.
    let third = double.version() + 1;
    double.inject_line(SERVICES, &event("DELETED", "api", 91, third));
    double.inject_line(SERVICES, &event("DELETED", "api", 91, third));
    double.delete(SERVICES, "default", "api");
    double.apply(web("last", 80));
    run.until("what came last", |run| run.has("default/last")).await;
    assert_eq!(run.deletions().len(), 1, "told once");
    assert!(!run.has("default/api"));
    assert_eq!(run.logged(&["WARN"]), 0, "{}", run.log());
}
