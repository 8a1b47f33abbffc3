//! Rules of `wakeups`.

use std::time::{Duration, Instant};

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};

use super::Subject;
use super::fixtures::{HOUR, NOW, PATIENCE, in_an_hour, key, leases, queue, take, take_only};
use crate::backend::{Next, Queue};

type Wakeups = BoxStream<'static, ()>;

/// Subscribes to wakeups, and waits until the subscription is live.
async fn wakeups(store: &Subject, queues: &[Queue]) -> Wakeups {
    let mut wakeups = store.wakeups(queues);
    let probe = key("probe", "t1");
    let live = async {
        loop {
            let waiting = tokio::time::timeout(Duration::from_millis(20), wakeups.next());
            if waiting.await.is_ok() {
                break;
            }
            // This timer is the earliest, so a live subscription has an item for it.
            store.schedule(&queues[0], &probe, NOW).await.unwrap();
            let due = take(&**store, &queues[..1], 1).await.due;
            store.resolve(&due[0], Next::Remove).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, live).await.expect("the subscription is live");
    quiet(&mut wakeups).await;
    wakeups
}

/// Waits until all items for earlier calls have arrived.
async fn quiet(wakeups: &mut Wakeups) {
    while tokio::time::timeout(Duration::from_millis(200), wakeups.next()).await.is_ok() {}
}

async fn item(wakeups: &mut Wakeups) {
    tokio::time::timeout(PATIENCE, wakeups.next()).await.expect("an item").expect("the stream does not end");
}

pub async fn a_timer_that_becomes_the_earliest_wakes_the_subscribers(store: &Subject) {
    let mut streams = vec![wakeups(store, &[leases()]).await, wakeups(store, &[queue("a"), leases()]).await];
    quiet(&mut streams[0]).await;
    let mut took = Vec::new();
    for number in 0..20 {
        // Each timer is earlier than the previous one.
        let after = HOUR - number * Duration::from_secs(60);
        let key = key(&format!("owner-{}", number % 2), &number.to_string());
        let since = Instant::now();
        store.schedule(&leases(), &key, after).await.unwrap();
        for stream in &mut streams {
            item(stream).await;
        }
        took.push(since.elapsed());
    }
    took.sort();
    // The median, because the machine may stall once.
    let limit = Duration::from_millis(if store.notifies_wakeups() { 100 } else { 10_000 });
    assert!(took[10] < limit, "{took:?}");
}

pub async fn a_timer_of_create_with_timer_that_becomes_the_earliest_wakes_the_subscribers(store: &Subject) {
    let mut stream = wakeups(store, &[leases()]).await;
    for (number, after) in [HOUR, HOUR / 2, NOW].into_iter().enumerate() {
        let key = key(&format!("owner-{number}"), "t1");
        store.create_with_timer(&key, "data".into(), in_an_hour(), &leases(), after).await.unwrap();
        item(&mut stream).await;
    }
}

pub async fn a_timer_that_resolve_makes_the_earliest_wakes_the_subscribers(store: &Subject) {
    let mut stream = wakeups(store, &[leases()]).await;
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    item(&mut stream).await;
    let due = take_only(&**store, &leases()).await;
    quiet(&mut stream).await;
    // The next take_due of another taker returns that no timer is due for an hour.
    assert!(take(&**store, &[leases()], 1).await.next_in > Some(HOUR / 2));
    assert!(store.resolve(&due, Next::After(Duration::from_secs(1))).await.unwrap());
    item(&mut stream).await;
}

pub async fn subscribers_receive_items_for_earlier_timers_of_their_queues_only(store: &Subject) {
    if !store.has_notified_wakeups() {
        return;
    }
    let [mine, also_mine, other] = ["mine", "mine/too", "other"].map(queue);
    let mut stream = wakeups(store, &[mine.clone(), also_mine.clone()]).await;
    let alice = key("alice", "t1");
    store.schedule(&other, &alice, NOW).await.unwrap();
    let received = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(received.is_err(), "a timer of another queue");
    for queue in [&mine, &also_mine] {
        store.schedule(queue, &alice, HOUR).await.unwrap();
        item(&mut stream).await;
    }
    quiet(&mut stream).await;
    // A timer of the same owner: an engine may have an earliest timer for each shard.
    store.schedule(&mine, &key("alice", "t2"), 2 * HOUR).await.unwrap();
    store.schedule(&mine, &alice, 2 * HOUR).await.unwrap();
    let received = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(received.is_err(), "a timer that fires later");
    store.schedule(&mine, &key("alice", "t2"), HOUR / 2).await.unwrap();
    item(&mut stream).await;
}

pub async fn a_timer_scheduled_before_the_stream_is_polled_is_an_item_of_the_next_poll(store: &Subject) {
    if !store.has_notified_wakeups() {
        return;
    }
    // This stream was never polled, while another subscription is live.
    let _other = wakeups(store, &[leases()]).await;
    let mut stream = store.wakeups(&[leases()]);
    for number in 0..3 {
        store.schedule(&leases(), &key("alice", &number.to_string()), HOUR / (number + 1)).await.unwrap();
    }
    let first = tokio::time::timeout(Duration::from_millis(500), stream.next());
    first.await.expect("an item within 500 ms, without waiting for the next poll of the engine");
    quiet(&mut stream).await;
    for number in 4..7 {
        store.schedule(&leases(), &key("alice", &number.to_string()), HOUR / (number + 1)).await.unwrap();
    }
    item(&mut stream).await;
}

pub async fn a_stream_of_wakeups_of_no_queue_has_no_item(store: &Subject) {
    if !store.has_notified_wakeups() {
        return;
    }
    let mut stream = store.wakeups(&[]);
    assert!(stream.next().now_or_never().is_none());
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), stream.next()).await.is_err());
}
