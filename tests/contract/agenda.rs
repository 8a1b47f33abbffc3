//! The contract of `Agenda`, rule by rule, on every engine.

use std::collections::{BTreeSet, HashSet};
use std::slice::from_ref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Engine, Store, in_an_hour, key, never, on_every_agenda, on_every_engine, owner};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use mcp_task_store::{
    Agenda, Cursor, Due, MemoryBackend, Next, Queue, StorageBackend, StorageError, Taken, TaskKey, Timer,
};
use rstest::rstest;
use rstest_reuse::apply;
use tokio::task::JoinSet;

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);
const CENTURY: Duration = Duration::from_millis(3_155_760_000_000);
/// Far above all that is waited for, so that only what never comes fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn queue(name: &str) -> Queue {
    name.try_into().unwrap()
}

fn leases() -> Queue {
    queue("leases")
}

async fn take(agenda: &dyn Agenda, queues: &[Queue], limit: usize) -> Taken {
    agenda.take_due(queues, limit, HOUR).await.unwrap()
}

/// The keys of what was taken, as text.
fn keys(taken: &Taken) -> Vec<String> {
    taken.due.iter().map(|due| due.key.to_string()).collect()
}

/// The one timer that is due.
async fn the_one(agenda: &dyn Agenda, queue: &Queue) -> Due {
    let taken = take(agenda, from_ref(queue), 5).await;
    let [due] = taken.due.try_into().unwrap();
    due
}

/// Waits until this time has passed by the engine's clock.
async fn pass(store: &Store, millis: i64) {
    let clock = async || store.clock(&key("nobody", "t1")).await.unwrap();
    let until = clock().await + chrono::TimeDelta::milliseconds(millis);
    while clock().await < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// How many timers a queue has.
async fn total(store: &Store, queue: &Queue) -> u64 {
    store.timers(queue, None).await.unwrap().total
}

/// Nothing of the store is left.
async fn assert_nothing_left(store: &Store, queues: &[Queue]) {
    for queue in queues {
        assert_eq!(total(store, queue).await, 0);
    }
    #[cfg(feature = "redis-tests")]
    if let Some(redis) = &store.redis {
        assert!(redis.keys().is_empty(), "{:?}", redis.keys());
    }
}

// schedule and take_due

#[apply(on_every_agenda)]
#[tokio::test]
async fn without_timers_nothing_is_taken_and_nothing_is_next(#[case] engine: Engine) {
    let store = engine.open().await;
    assert_eq!(take(&*store, &[leases(), queue("work/a")], 10).await, Taken::default());
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    assert_eq!(take(&*store, &[], 10).await, Taken::default());
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_timer_is_taken_once_it_is_due_and_next_in_says_when_that_is(#[case] engine: Engine) {
    let store = engine.open().await;
    let wait = Duration::from_millis(60);
    store.schedule(&leases(), &key("alice", "t1"), wait).await.unwrap();
    let begun = Instant::now();
    loop {
        let taken = take(&*store, &[leases()], 10).await;
        if !taken.due.is_empty() {
            assert_eq!(keys(&taken), ["alice:t1"]);
            assert_eq!(taken.due[0].queue, leases());
            break;
        }
        let next_in = taken.next_in.expect("it is there");
        assert!(next_in <= wait, "{next_in:?}");
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(next_in).await;
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_timer_is_due_when_the_clock_of_the_engine_has_moved_by_what_was_asked(#[case] engine: Engine) {
    let store = engine.open().await;
    for round in 0..20 {
        let key = key("alice", &round.to_string());
        store.schedule(&leases(), &key, Duration::from_millis(3)).await.unwrap();
        // To the microsecond on the engine's own clock, and never later.
        pass(&store, 3).await;
        assert_eq!(the_one(&*store, &leases()).await.key, key);
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn next_in_is_the_earliest_of_all_queues_and_zero_if_more_is_due(#[case] engine: Engine) {
    let store = engine.open().await;
    let queues = ["a", "b", "c"].map(queue);
    for (queue, minutes) in queues.iter().zip([50, 20, 40]) {
        let after = Duration::from_secs(minutes * 60);
        store.schedule(queue, &key("alice", "t1"), after).await.unwrap();
        store.schedule(queue, &key("bob", "t1"), after * 2).await.unwrap();
    }
    let minutes = |taken: &Taken| taken.next_in.unwrap().as_secs_f64() / 60.0;
    let taken = take(&*store, &queues, 10).await;
    assert!(taken.due.is_empty() && (19.0..=20.0).contains(&minutes(&taken)), "{taken:?}");
    let taken = take(&*store, &queues[2..], 10).await;
    assert!((39.0..=40.0).contains(&minutes(&taken)), "{taken:?}");
    for task in ["t2", "t3"] {
        store.schedule(&queues[0], &key("alice", task), NOW).await.unwrap();
    }
    assert_eq!(take(&*store, &queues, 1).await.next_in, Some(NOW));
    assert!(take(&*store, &queues, 1).await.next_in > Some(NOW));
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn with_a_limit_of_zero_nothing_is_taken_and_it_is_told_when_the_next_one_is_due(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    for _ in 0..2 {
        assert_eq!(take(&*store, &[leases()], 0).await, Taken::new(vec![], Some(NOW)));
    }
    the_one(&*store, &leases()).await;
    assert!(take(&*store, &[leases()], 0).await.next_in > Some(HOUR / 2));
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn a_due_timer_goes_to_one_taker(#[case] engine: Engine) {
    let store = engine.open().await;
    const TIMERS: usize = 300;
    for number in 0..TIMERS {
        let key = key(&format!("owner-{}", number % 40), &number.to_string());
        store.schedule(&leases(), &key, NOW).await.unwrap();
    }
    let mut takers = JoinSet::new();
    for taker in 0..12 {
        let agenda = Arc::clone(&store.backend);
        takers.spawn(async move {
            let mut taken = Vec::new();
            loop {
                let more = take(&*agenda, &[leases()], 1 + taker).await;
                assert!(more.due.len() <= 1 + taker);
                taken.extend(keys(&more));
                if more.next_in > Some(NOW) || taken.len() > TIMERS {
                    return taken;
                }
            }
        });
    }
    let taken: Vec<String> = takers.join_all().await.concat();
    let distinct: HashSet<&String> = taken.iter().collect();
    assert_eq!((taken.len(), distinct.len()), (TIMERS, TIMERS));
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_timer_that_was_taken_is_hidden_and_comes_back(#[case] engine: Engine) {
    let store = engine.open().await;
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let hide_for = Duration::from_millis(40);
    let first = store.take_due(&[leases()], 10, hide_for).await.unwrap();
    assert_eq!(keys(&first), ["alice:t1"]);
    assert!(first.next_in.unwrap() <= hide_for);
    pass(&store, 40).await;
    let second = the_one(&*store, &leases()).await;
    assert_eq!(second.key, first.due[0].key);
    assert_ne!(second.token, first.due[0].token);
    // That taking hid it for an hour.
    assert!(take(&*store, &[leases()], 10).await.due.is_empty());
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_timer_that_is_hidden_for_no_time_is_taken_once_by_each_call(#[case] engine: Engine) {
    let store = engine.open().await;
    let names = ["t1", "t2"];
    for task in names {
        store.schedule(&leases(), &key("alice", task), NOW).await.unwrap();
    }
    store.schedule(&leases(), &key("alice", "later"), HOUR).await.unwrap();
    for _ in 0..3 {
        let taken = store.take_due(&[leases()], 10, NOW).await.unwrap();
        let tasks: BTreeSet<&str> = taken.due.iter().map(|due| due.key.task.as_str()).collect();
        assert_eq!((taken.due.len(), tasks), (2, BTreeSet::from(names)));
        assert_eq!(taken.next_in, Some(NOW));
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn an_earlier_timer_stays_and_a_later_one_is_moved(#[case] engine: Engine) {
    let store = engine.open().await;
    let (stays, moved) = (key("alice", "stays"), key("alice", "moved"));
    store.schedule(&leases(), &stays, NOW).await.unwrap();
    store.schedule(&leases(), &stays, HOUR).await.unwrap();
    store.schedule(&leases(), &moved, HOUR).await.unwrap();
    store.schedule(&leases(), &moved, 2 * HOUR).await.unwrap();
    let taken = take(&*store, &[leases()], 10).await;
    assert_eq!(keys(&taken), ["alice:stays"]);
    assert!(taken.next_in.unwrap() <= HOUR);
    store.schedule(&leases(), &moved, NOW).await.unwrap();
    assert_eq!(keys(&take(&*store, &[leases()], 10).await), ["alice:moved"]);
    assert_eq!(total(&store, &leases()).await, 2);
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_task_has_a_timer_of_its_own_in_each_queue(#[case] engine: Engine) {
    let store = engine.open().await;
    let (t1, queues) = (key("alice", "t1"), ["leases", "work/a"].map(queue));
    for queue in &queues {
        store.schedule(queue, &t1, NOW).await.unwrap();
    }
    let due = the_one(&*store, &queues[1]).await;
    assert!(store.resolve(&due, Next::Remove).await.unwrap());
    assert_eq!(the_one(&*store, &queues[0]).await.queue, queues[0]);
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn queues_are_taken_in_the_order_given(#[case] engine: Engine) {
    let store = engine.open().await;
    let [a, b, c] = ["a", "b", "c"].map(queue);
    for queue in [&a, &b, &c] {
        for number in 0..6 {
            store.schedule(queue, &key(&format!("owner-{number}"), "t1"), NOW).await.unwrap();
        }
    }
    let taken = take(&*store, &[c.clone(), a.clone(), b.clone()], 8).await;
    let order: String = taken.due.iter().map(|due| due.queue.as_str()).collect();
    assert_eq!(order, "ccccccaa");
    let taken = take(&*store, &[a, b, c], 100).await;
    let order: String = taken.due.iter().map(|due| due.queue.as_str()).collect();
    assert_eq!(order, "aaaabbbbbb");
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn timers_of_a_queue_are_taken_in_the_order_in_which_they_were_due(#[case] engine: Engine) {
    let store = engine.open().await;
    let places = [7, 2, 9, 0, 5, 1, 8, 3, 6, 4];
    for place in places {
        let after = Duration::from_millis(place * 10);
        let key = key(&format!("owner-{}", place % 3), &place.to_string());
        store.schedule(&leases(), &key, after).await.unwrap();
        // In time whatever the scheduling took: the order is by the due time.
    }
    let listed = store.timers(&leases(), None).await.unwrap().timers;
    let wanted: Vec<String> = listed.iter().map(|timer| timer.key.to_string()).collect();
    pass(&store, 100).await;
    assert_eq!(keys(&take(&*store, &[leases()], 100).await), wanted);
    assert!(listed.is_sorted_by_key(|timer| timer.due_at));
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_single_timer_at_a_time_is_the_one_that_was_due_first(#[case] engine: Engine) {
    let store = engine.open().await;
    for (number, after) in [(1, 20), (2, 0), (3, 40)] {
        let key = key(&format!("owner-{number}"), "t1");
        store.schedule(&leases(), &key, Duration::from_millis(after)).await.unwrap();
    }
    let listed = store.timers(&leases(), None).await.unwrap().timers;
    pass(&store, 60).await;
    for timer in listed {
        assert_eq!(take(&*store, &[leases()], 1).await.due[0].key, timer.key);
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_call_takes_no_more_than_its_limit_and_256(#[case] engine: Engine) {
    let store = engine.open().await;
    for number in 0..300 {
        store.schedule(&leases(), &key(&format!("owner-{number}"), "t1"), NOW).await.unwrap();
    }
    for (limit, count) in [(1, 1), (3, 3), (17, 17), (usize::MAX, 256), (1000, 23), (5, 0)] {
        assert_eq!(take(&*store, &[leases()], limit).await.due.len(), count, "{limit}");
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn many_timers_that_are_hidden_for_no_time_are_taken_once_by_each_call(#[case] engine: Engine) {
    let store = engine.open().await;
    for number in 0..150 {
        store
            .schedule(&leases(), &key(&format!("owner-{}", number % 5), &number.to_string()), NOW)
            .await
            .unwrap();
    }
    let taken = store.take_due(&[leases()], 256, NOW).await.unwrap();
    let distinct: HashSet<&TaskKey> = taken.due.iter().map(|due| &due.key).collect();
    assert!(distinct.len() == taken.due.len() && distinct.len() > 100, "{}", taken.due.len());
    for due in &taken.due {
        assert!(store.resolve(due, Next::Remove).await.unwrap(), "each has the token that is valid");
    }
}

// resolve

#[apply(on_every_agenda)]
#[tokio::test]
async fn resolve_moves_or_removes_the_timer(#[case] engine: Engine) {
    let store = engine.open().await;
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let due = the_one(&*store, &leases()).await;
    assert!(store.resolve(&due, Next::After(2 * HOUR)).await.unwrap());
    let next_in = take(&*store, &[leases()], 1).await.next_in.unwrap();
    assert!(next_in > HOUR && next_in <= 2 * HOUR, "{next_in:?}");
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let due = the_one(&*store, &leases()).await;
    assert!(store.resolve(&due, Next::After(NOW)).await.unwrap());
    let due = the_one(&*store, &leases()).await;
    assert!(store.resolve(&due, Next::Remove).await.unwrap());
    assert_nothing_left(&store, &[leases()]).await;
}

/// The token has no effect, and the timer stays as it is.
async fn assert_void(store: &Store, due: &Due) {
    let before = store.timers(&due.queue, None).await.unwrap();
    for next in [Next::Remove, Next::After(NOW), Next::After(5 * HOUR)] {
        assert!(!store.resolve(due, next).await.unwrap(), "{due:?} {next:?}");
    }
    assert_eq!(store.timers(&due.queue, None).await.unwrap(), before);
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_token_is_void_once_the_timer_was_scheduled_even_if_an_earlier_one_stayed(#[case] engine: Engine) {
    let store = engine.open().await;
    for after in [NOW, HOUR / 2, HOUR, 2 * HOUR, CENTURY] {
        store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
        let due = the_one(&*store, &leases()).await;
        store.schedule(&leases(), &key("alice", "t1"), after).await.unwrap();
        assert_void(&store, &due).await;
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_token_is_void_once_the_timer_was_taken_again(#[case] engine: Engine) {
    let store = engine.open().await;
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let first = store.take_due(&[leases()], 1, NOW).await.unwrap().due.remove(0);
    let second = the_one(&*store, &leases()).await;
    assert_void(&store, &first).await;
    assert!(store.resolve(&second, Next::Remove).await.unwrap());
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_token_is_void_once_it_had_an_effect(#[case] engine: Engine) {
    let store = engine.open().await;
    for next in [Next::After(HOUR), Next::After(NOW), Next::Remove] {
        store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
        let due = the_one(&*store, &leases()).await;
        assert!(store.resolve(&due, next).await.unwrap());
        assert_void(&store, &due).await;
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_token_of_a_timer_that_was_removed_is_void_for_the_next_one(#[case] engine: Engine) {
    let store = engine.open().await;
    let t1 = key("alice", "t1");
    let mut tokens = HashSet::new();
    for _ in 0..50 {
        store.schedule(&leases(), &t1, NOW).await.unwrap();
        let due = the_one(&*store, &leases()).await;
        assert!(store.resolve(&due, Next::Remove).await.unwrap());
        assert_void(&store, &due).await;
        // As late as the taking hid the one before.
        store.schedule(&leases(), &t1, HOUR).await.unwrap();
        assert_void(&store, &due).await;
        assert!(tokens.insert(due.token), "no token is given twice");
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_token_that_was_never_given_is_void(#[case] engine: Engine) {
    let store = engine.open().await;
    let t1 = key("alice", "t1");
    store.schedule(&leases(), &t1, HOUR).await.unwrap();
    for token in ["", "x", "nan", "-1", "1e999", "0x10", "18446744073709551616", "1795000000000.5", "\0"] {
        assert_void(&store, &Due::new(leases(), t1.clone(), token)).await;
        assert_void(&store, &Due::new(queue("other"), t1.clone(), token)).await;
        assert_void(&store, &Due::new(leases(), key("bob", "t1"), token)).await;
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn nothing_is_left_when_all_timers_are_resolved(#[case] engine: Engine) {
    let store = engine.open().await;
    let queues = ["leases", "work/a", "work/b"].map(queue);
    for number in 0..30 {
        for queue in &queues {
            store.schedule(queue, &key(&format!("owner-{number}"), "t1"), NOW).await.unwrap();
        }
    }
    let taken = take(&*store, &queues, 256).await;
    assert_eq!(taken.due.len(), 90);
    for due in &taken.due {
        assert!(store.resolve(due, Next::Remove).await.unwrap());
    }
    assert_nothing_left(&store, &queues).await;
}

// names and durations

#[apply(on_every_agenda)]
#[tokio::test]
async fn any_ids_and_any_names_of_queues_are_told_apart(#[case] engine: Engine) {
    let store = engine.open().await;
    let longest = "x".repeat(256);
    let ids =
        ["a:b", "a", "{a}", "}{", "a\0b", "🦀 crab", "50%", "%3A", "\u{85}", " ", "*", "[a-z]", &longest];
    let queues = ["work/a:b", "work/{a}", "{", "q\0", "🦀", " ", "%7B", &longest].map(queue);
    let mut wanted = HashSet::new();
    for (number, owner) in ids.iter().enumerate() {
        let key = key(owner, ids[(number + 1) % ids.len()]);
        for queue in &queues {
            store.schedule(queue, &key, NOW).await.unwrap();
            wanted.insert((queue.clone(), key.clone()));
        }
    }
    let mut found = HashSet::new();
    for queue in &queues {
        let listed = store.timers(queue, None).await.unwrap();
        assert_eq!((listed.total, listed.timers.len()), (ids.len() as u64, ids.len()));
        for due in take(&*store, from_ref(queue), 256).await.due {
            assert!(store.resolve(&due, Next::Remove).await.unwrap());
            assert!(found.insert((due.queue, due.key)));
        }
    }
    assert_eq!(found, wanted);
    assert_nothing_left(&store, &queues).await;
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_duration_over_100_years_is_refused_and_changes_nothing(#[case] engine: Engine) {
    let store = engine.open().await;
    let t1 = key("alice", "t1");
    let two_million_years = Duration::from_secs(2_000_000 * 31_557_600);
    for too_long in [CENTURY + Duration::from_millis(1), two_million_years, Duration::MAX] {
        let refused = store.schedule(&leases(), &t1, too_long).await;
        assert_refused!(refused, StorageError::InvalidExpiry { .. });
        assert_nothing_left(&store, &[leases()]).await;
    }
    store.schedule(&leases(), &t1, NOW).await.unwrap();
    let refused = store.take_due(&[leases()], 1, two_million_years).await;
    assert_refused!(refused, StorageError::InvalidExpiry { .. });
    let due = the_one(&*store, &leases()).await;
    let refused = store.resolve(&due, Next::After(Duration::MAX)).await;
    assert_refused!(refused, StorageError::InvalidExpiry { .. });
    // The longest that there is.
    assert!(store.resolve(&due, Next::After(CENTURY)).await.unwrap());
    let next_in = take(&*store, &[leases()], 1).await.next_in.unwrap();
    assert!(next_in > CENTURY - HOUR && next_in <= CENTURY, "{next_in:?}");
    store.schedule(&leases(), &t1, NOW).await.unwrap();
    let due = store.take_due(&[leases()], 1, CENTURY).await.unwrap().due.remove(0);
    store.schedule(&leases(), &t1, CENTURY).await.unwrap();
    assert_void(&store, &due).await;
}

#[rstest]
#[case::empty("")]
#[case::too_long(&"x".repeat(513))]
fn a_queue_name_outside_1_to_512_bytes_is_refused(#[case] name: &str) {
    assert_refused!(Queue::try_from(name), StorageError::InvalidKey { .. });
}

// wakeups

type Wakeups = BoxStream<'static, ()>;

/// A subscription that is live: what comes from now on is heard.
async fn wakeups(store: &Store, queues: &[Queue]) -> Wakeups {
    let mut wakeups = store.backend.wakeups(queues);
    let probe = key("probe", "t1");
    let live = async {
        loop {
            let waiting = tokio::time::timeout(Duration::from_millis(20), wakeups.next());
            if waiting.await.is_ok() {
                break;
            }
            // It is the earliest, and so there is an item once the subscription is live.
            store.schedule(&queues[0], &probe, NOW).await.unwrap();
            let due = take(&**store, &queues[..1], 1).await.due;
            store.resolve(&due[0], Next::Remove).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, live).await.expect("it is live");
    quiet(&mut wakeups).await;
    wakeups
}

/// Waits until no more items come of what was before.
async fn quiet(wakeups: &mut Wakeups) {
    while tokio::time::timeout(Duration::from_millis(200), wakeups.next()).await.is_ok() {}
}

async fn item(wakeups: &mut Wakeups) {
    tokio::time::timeout(PATIENCE, wakeups.next()).await.expect("an item").expect("it does not end");
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn a_timer_that_becomes_the_earliest_wakes_the_subscribers_within_100_ms(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut streams =
        vec![wakeups(&store, &[leases()]).await, wakeups(&store, &[queue("a"), leases()]).await];
    quiet(&mut streams[0]).await;
    let mut took = Vec::new();
    for number in 0..20 {
        // Each is earlier than the one before.
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
    println!("figure | {engine:?}: from schedule to the wakeup, median of 20 | {:?}", took[10]);
    // The median, as the machine may stand still once.
    assert!(took[10] < Duration::from_millis(100), "{took:?}");
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn a_timer_that_is_resolved_to_be_the_earliest_wakes_the_subscribers(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut stream = wakeups(&store, &[leases()]).await;
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    item(&mut stream).await;
    let due = the_one(&*store, &leases()).await;
    quiet(&mut stream).await;
    // Another taker that asks now believes that nothing is due for an hour.
    assert!(take(&*store, &[leases()], 1).await.next_in > Some(HOUR / 2));
    assert!(store.resolve(&due, Next::After(Duration::from_secs(1))).await.unwrap());
    item(&mut stream).await;
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_hear_of_their_queues_and_of_earlier_timers_alone(#[case] engine: Engine) {
    let store = engine.open().await;
    let [mine, also_mine, other] = ["mine", "mine/too", "other"].map(queue);
    let mut stream = wakeups(&store, &[mine.clone(), also_mine.clone()]).await;
    let alice = key("alice", "t1");
    store.schedule(&other, &alice, NOW).await.unwrap();
    let heard = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(heard.is_err(), "a timer of another queue");
    for queue in [&mine, &also_mine] {
        store.schedule(queue, &alice, HOUR).await.unwrap();
        item(&mut stream).await;
    }
    quiet(&mut stream).await;
    // Of the same owner, as each shard has an earliest one.
    store.schedule(&mine, &key("alice", "t2"), 2 * HOUR).await.unwrap();
    store.schedule(&mine, &alice, 2 * HOUR).await.unwrap();
    let heard = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(heard.is_err(), "a timer that fires later");
    store.schedule(&mine, &key("alice", "t2"), HOUR / 2).await.unwrap();
    item(&mut stream).await;
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_scheduled_while_nobody_polls_the_stream_is_an_item_of_the_next_poll(#[case] engine: Engine) {
    let store = engine.open().await;
    // Never polled so far, while another one is live.
    let _other = wakeups(&store, &[leases()]).await;
    let mut stream = store.backend.wakeups(&[leases()]);
    for number in 0..3 {
        store.schedule(&leases(), &key("alice", &number.to_string()), HOUR / (number + 1)).await.unwrap();
    }
    let first = tokio::time::timeout(Duration::from_millis(500), stream.next());
    first.await.expect("an item, and not only when it is polled after a second");
    quiet(&mut stream).await;
    for number in 4..7 {
        store.schedule(&leases(), &key("alice", &number.to_string()), HOUR / (number + 1)).await.unwrap();
    }
    item(&mut stream).await;
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_stream_of_wakeups_of_no_queue_is_silent(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut stream = store.backend.wakeups(&[]);
    assert!(stream.next().now_or_never().is_none());
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), stream.next()).await.is_err());
}

// timers and owners

/// All timers of a queue, page by page; before each page but the first, `between` runs.
async fn walk(store: &Store, queue: &Queue, mut between: impl AsyncFnMut(usize)) -> Vec<Timer> {
    let (mut timers, mut after, mut pages) = (Vec::new(), None::<Cursor>, 0);
    loop {
        let page = store.timers(queue, after.as_ref()).await.unwrap();
        assert!(page.timers.len() <= 256);
        timers.extend(page.timers);
        // The text is what a client would send back.
        after = page.next.map(|next| Cursor::from(next.as_str()));
        if after.is_none() {
            return timers;
        }
        pages += 1;
        between(pages).await;
    }
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn timers_lists_each_timer_once_with_its_due_time_and_takes_none(#[case] engine: Engine) {
    let store = engine.open().await;
    const TIMERS: usize = 600;
    let key_of = |number: usize| key(&format!("owner-{}", number % 30), &format!("t:{number}"));
    for number in 0..TIMERS {
        store.schedule(&leases(), &key_of(number), Duration::from_secs((number % 5) as u64)).await.unwrap();
    }
    let page = store.timers(&leases(), None).await.unwrap();
    assert_eq!((page.timers.len(), page.total), (256, TIMERS as u64));
    let now = store.clock(&key("nobody", "t1")).await.unwrap();
    let listed = walk(&store, &leases(), async |_| ()).await;
    let distinct: HashSet<&TaskKey> = listed.iter().map(|timer| &timer.key).collect();
    assert_eq!((listed.len(), distinct.len()), (TIMERS, TIMERS));
    assert!(listed.is_sorted_by_key(|timer| timer.due_at));
    let last = listed.last().unwrap().due_at;
    assert!(
        last > now - chrono::TimeDelta::minutes(5) && last < now + chrono::TimeDelta::seconds(5),
        "{last}"
    );
    assert_eq!(store.timers(&queue("other"), None).await.unwrap().total, 0);
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_walk_over_timers_that_come_and_go_lists_each_that_stays_once(#[case] engine: Engine) {
    let store = engine.open().await;
    const TIMERS: usize = 600;
    let key_of = |kind: &str, number: usize| key(&format!("{kind}-{}", number % 30), &number.to_string());
    for number in 0..TIMERS {
        let kind = if number % 3 == 0 { "goes" } else { "stays" };
        let after = if kind == "goes" { NOW } else { Duration::from_secs(3600 + (number % 7) as u64) };
        store.schedule(&leases(), &key_of(kind, number), after).await.unwrap();
    }
    let listed = walk(&store, &leases(), async |page| {
        for due in take(&*store, &[leases()], 256).await.due {
            store.resolve(&due, Next::Remove).await.unwrap();
        }
        for number in 0..20 {
            let comes = key_of("comes", 20 * page + number);
            store.schedule(&leases(), &comes, Duration::from_secs(3601 + page as u64)).await.unwrap();
        }
    })
    .await;
    let stays: Vec<&TaskKey> =
        listed.iter().map(|timer| &timer.key).filter(|key| key.owner.as_str().starts_with("stays")).collect();
    let distinct: HashSet<&&TaskKey> = stays.iter().collect();
    assert_eq!((stays.len(), distinct.len()), (TIMERS * 2 / 3, TIMERS * 2 / 3));
}

#[apply(on_every_agenda)]
#[tokio::test]
async fn a_malformed_cursor_is_refused(#[case] engine: Engine) {
    let store = engine.open().await;
    for text in ["", "x", "ff.00", "-1", "NaN", "1.2.3", "\0", "🦀", "1:zz", "1 alice:t1"] {
        let refused = store.timers(&leases(), Some(&text.into())).await;
        assert_refused!(refused, StorageError::InvalidPage { .. });
        if !matches!(engine, Engine::Polled) {
            assert_refused!(store.owners(Some(&text.into())).await, StorageError::InvalidPage { .. });
        }
    }
}

async fn every_owner(store: &Store) -> Vec<String> {
    let (mut owners, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let page = store.owners(after.as_ref()).await.unwrap();
        owners.extend(page.owners.iter().map(ToString::to_string));
        after = page.next.map(|next| Cursor::from(next.as_str()));
        if after.is_none() {
            owners.sort();
            return owners;
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn owners_lists_those_that_have_records(#[case] engine: Engine) {
    let store = engine.open().await;
    let mut wanted: Vec<String> = (0..300).map(|number| format!("owner-{number}")).collect();
    wanted.extend(["a:b", "{a}", "a\0b", "🦀", "50%", "*", "}{"].map(str::to_owned));
    for name in &wanted {
        for task in ["t1", "t:2"] {
            store.put(&key(name, task), "data".into(), in_an_hour()).await.unwrap();
        }
    }
    // An owner of timers alone has no records, nor has one whose records are gone.
    store.schedule(&leases(), &key("only timers", "t1"), HOUR).await.unwrap();
    store.put(&key("gone", "t1"), "data".into(), never()).await.unwrap();
    store.delete(&key("gone", "t1")).await.unwrap();
    wanted.sort();
    assert_eq!(every_owner(&store).await, wanted);
}

#[cfg(feature = "redis-tests")]
#[tokio::test]
async fn owners_lists_those_of_hash_tagged_keys() {
    let store = Engine::Sharded.open().await;
    for name in ["alice", "a:b", "{a}", "🦀"] {
        store.put(&key(name, "t1"), "data".into(), in_an_hour()).await.unwrap();
    }
    assert_eq!(every_owner(&store).await, ["a:b", "alice", "{a}", "🦀"]);
}

#[tokio::test]
async fn the_agenda_of_an_engine_without_one_cannot_list_owners() {
    let store = Engine::Polled.open().await;
    assert_refused!(store.owners(None).await, StorageError::Backend { .. });
}

// the trait

#[tokio::test]
async fn a_shared_agenda_and_a_boxed_one_are_agendas_too() {
    async fn works<A: Agenda>(agenda: A) {
        let t1 = key("alice", "t1");
        let agenda = Arc::new(agenda);
        let mut stream = agenda.wakeups(&[leases()]);
        agenda.schedule(&leases(), &t1, NOW).await.unwrap();
        item(&mut stream).await;
        let due = agenda.take_due(&[leases()], 1, HOUR).await.unwrap().due.remove(0);
        assert_eq!(agenda.timers(&leases(), None).await.unwrap().total, 1);
        assert!(agenda.resolve(&due, Next::Remove).await.unwrap());
        agenda.put(&t1, "data".into(), never()).await.unwrap();
        assert_eq!(agenda.owners(None).await.unwrap().owners, [owner("alice")]);
        agenda.delete(&t1).await.unwrap();
    }
    works(MemoryBackend::new()).await;
    works(Arc::new(MemoryBackend::new())).await;
    works(Arc::new(MemoryBackend::new()) as Arc<dyn Agenda>).await;
    works(Arc::new(Arc::new(MemoryBackend::new()) as Arc<dyn Agenda>)).await;
}

// many timers

/// Schedules timers of many owners, this long from now on.
async fn schedule_many(store: &Store, queue: &Queue, count: usize, after: Duration) {
    let mut tasks = JoinSet::new();
    for worker in 0..16 {
        let (agenda, queue) = (Arc::clone(&store.backend), queue.clone());
        tasks.spawn(async move {
            for number in (worker..count).step_by(16) {
                let key = key(&format!("owner-{}", number % 1000), &number.to_string());
                agenda.schedule(&queue, &key, after).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
}

/// The median time of a call.
async fn median(rounds: usize, mut call: impl AsyncFnMut()) -> Duration {
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let since = Instant::now();
        call().await;
        took.push(since.elapsed());
    }
    took.sort();
    took[rounds / 2]
}

async fn timers_that_are_not_due_cost_nothing(engine: Engine, many: usize) {
    let store = engine.open().await;
    let (few_queue, many_queue) = (queue("few"), queue("many"));
    schedule_many(&store, &few_queue, 1000, HOUR).await;
    schedule_many(&store, &many_queue, many, HOUR).await;
    let (mut few_took, mut many_took) = (Duration::MAX, Duration::MAX);
    // In turns, and the best of the medians, as the machine does other things too.
    for _ in 0..7 {
        few_took =
            few_took.min(median(150, async || drop(take(&*store, from_ref(&few_queue), 64).await)).await);
        many_took =
            many_took.min(median(150, async || drop(take(&*store, from_ref(&many_queue), 64).await)).await);
    }
    let ratio = many_took.as_secs_f64() / few_took.as_secs_f64();
    println!("figure | {engine:?}: take_due with {many} timers, none due, beside 1000 | {ratio:.2} x");
    assert!(ratio < 1.5, "{many_took:?} {few_took:?}");
}

async fn overdue_timers_are_drained_while_reads_go_on(engine: Engine, many: usize) {
    let store = engine.open().await;
    let t1 = key("alice", "t1");
    store.put(&t1, "data".into(), never()).await.unwrap();
    schedule_many(&store, &leases(), many, NOW).await;
    let alone_before = median(500, async || drop(store.get(&t1).await.unwrap())).await;
    let agenda = Arc::clone(&store.backend);
    let draining = tokio::spawn(async move {
        let (mut drained, mut steps) = (0, 0);
        loop {
            let taken = take(&*agenda, &[leases()], 256).await;
            assert!(taken.due.len() <= 256);
            drained += taken.due.len();
            steps += 1;
            if taken.next_in > Some(NOW) {
                return (drained, steps);
            }
        }
    });
    let mut took = Vec::new();
    while !draining.is_finished() {
        let since = Instant::now();
        store.get(&t1).await.unwrap();
        took.push(since.elapsed());
    }
    let (drained, steps) = draining.await.unwrap();
    assert_eq!(drained, many);
    took.sort();
    // On both sides, as other programs begin and end.
    let alone = median(500, async || drop(store.get(&t1).await.unwrap())).await.max(alone_before);
    let (half, most) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!(
        "figure | {engine:?}: get while {many} overdue timers are drained in {steps} steps: median, 99 %, alone | \
         {half:.0?}, {most:.0?}, {alone:.0?}"
    );
    assert!(half < 10 * alone, "{half:?} {alone:?}");
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn take_due_costs_the_same_however_many_timers_are_not_due(#[case] engine: Engine) {
    timers_that_are_not_due_cost_nothing(engine, 50_000).await;
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn overdue_timers_are_drained_in_bounded_steps_while_reads_go_on(#[case] engine: Engine) {
    overdue_timers_are_drained_while_reads_go_on(engine, 50_000).await;
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn long_take_due_costs_the_same_with_a_million_timers(#[case] engine: Engine) {
    timers_that_are_not_due_cost_nothing(engine, 1_000_000).await;
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn long_a_million_overdue_timers_are_drained_while_reads_go_on(#[case] engine: Engine) {
    overdue_timers_are_drained_while_reads_go_on(engine, 1_000_000).await;
}
