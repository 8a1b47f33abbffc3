//! Rules of `schedule`, `take_due` and `resolve`.

use std::collections::{BTreeSet, HashSet};
use std::slice::from_ref;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Subject;
use super::fixtures::{
    CENTURY, HOUR, NOW, PATIENCE, key, keys, leases, never, pass, queue, take, take_only, total,
};
use crate::backend::{Due, Next, Queue, StorageError, Taken, TaskKey};

/// Asserts that these queues have no timers, and that the engine holds nothing.
async fn assert_nothing_left(store: &Subject, queues: &[Queue]) {
    for queue in queues {
        assert_eq!(total(store, queue).await, 0);
    }
    if let Some(left) = store.left_behind().await {
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Asserts that a token has no effect, and that the timer stays as it is.
async fn assert_void(store: &Subject, due: &Due) {
    let before = store.timers(&due.queue, None).await.unwrap();
    for next in [Next::Remove, Next::After(NOW), Next::After(5 * HOUR)] {
        assert!(!store.resolve(due, next).await.unwrap(), "{due:?} {next:?}");
    }
    assert_eq!(store.timers(&due.queue, None).await.unwrap(), before);
}

pub async fn without_timers_take_due_returns_no_timer_and_no_next_due_time(store: &Subject) {
    assert_eq!(take(&**store, &[leases(), queue("work/a")], 10).await, Taken::default());
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    assert_eq!(take(&**store, &[], 10).await, Taken::default());
}

pub async fn a_timer_is_taken_once_it_is_due_and_next_in_states_when_that_is(store: &Subject) {
    let wait = Duration::from_millis(60);
    let clock = async || store.clock(&key("alice", "t1")).await.unwrap();
    let scheduled_at = clock().await;
    store.schedule(&leases(), &key("alice", "t1"), wait).await.unwrap();
    let begun = Instant::now();
    loop {
        let taken = take(&**store, &[leases()], 10).await;
        if !taken.due.is_empty() {
            // An engine that counts whole milliseconds may be early by a fraction of one.
            assert!(clock().await > scheduled_at + wait - Duration::from_millis(2), "taken before it is due");
            assert_eq!(keys(&taken), ["alice:t1"]);
            assert_eq!(taken.due[0].queue, leases());
            break;
        }
        let next_in = taken.next_in.expect("the timer is scheduled");
        assert!(next_in <= wait, "{next_in:?}");
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(next_in).await;
    }
}

pub async fn a_timer_fires_no_later_than_asked_by_the_clock_of_the_engine(store: &Subject) {
    for round in 0..20 {
        let key = key("alice", &round.to_string());
        // A fraction of a millisecond shows whether the engine rounds up.
        let after = Duration::from_micros(3_001);
        store.schedule(&leases(), &key, after).await.unwrap();
        // The timer is due as soon as the engine's clock has advanced by this much.
        pass(store, after).await;
        assert_eq!(take_only(&**store, &leases()).await.key, key);
    }
}

pub async fn next_in_is_the_earliest_of_all_queues_and_zero_if_more_are_due(store: &Subject) {
    let queues = ["a", "b", "c"].map(queue);
    for (queue, minutes) in queues.iter().zip([50, 20, 40]) {
        let after = Duration::from_secs(minutes * 60);
        store.schedule(queue, &key("alice", "t1"), after).await.unwrap();
        store.schedule(queue, &key("bob", "t1"), after * 2).await.unwrap();
    }
    let minutes = |taken: &Taken| taken.next_in.unwrap().as_secs_f64() / 60.0;
    let taken = take(&**store, &queues, 10).await;
    assert!(taken.due.is_empty() && (19.5..=20.0).contains(&minutes(&taken)), "{taken:?}");
    let taken = take(&**store, &queues[2..], 10).await;
    assert!((39.5..=40.0).contains(&minutes(&taken)), "{taken:?}");
    for task in ["t2", "t3"] {
        store.schedule(&queues[0], &key("alice", task), NOW).await.unwrap();
    }
    assert_eq!(take(&**store, &queues, 1).await.next_in, Some(NOW));
    assert!(take(&**store, &queues, 1).await.next_in > Some(NOW));
}

pub async fn with_a_limit_of_0_take_due_takes_nothing_and_states_when_the_next_timer_is_due(store: &Subject) {
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    for _ in 0..2 {
        assert_eq!(take(&**store, &[leases()], 0).await, Taken::new(vec![], Some(NOW)));
    }
    take_only(&**store, &leases()).await;
    assert!(take(&**store, &[leases()], 0).await.next_in > Some(HOUR / 2));
}

pub async fn a_due_timer_goes_to_one_taker(store: &Subject) {
    const TIMERS: usize = 300;
    for number in 0..TIMERS {
        let key = key(&format!("owner-{}", number % 40), &number.to_string());
        store.schedule(&leases(), &key, NOW).await.unwrap();
    }
    let mut takers = JoinSet::new();
    for taker in 0..12 {
        let agenda = store.engine();
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

pub async fn a_taken_timer_is_hidden_and_fires_again(store: &Subject) {
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let hide_for = Duration::from_millis(40);
    let first = store.take_due(&[leases()], 10, hide_for).await.unwrap();
    assert_eq!(keys(&first), ["alice:t1"]);
    assert!(first.next_in.unwrap() <= hide_for);
    pass(store, Duration::from_millis(40)).await;
    let second = take_only(&**store, &leases()).await;
    assert_eq!(second.key, first.due[0].key);
    assert_ne!(second.token, first.due[0].token);
    // The second take hid the timer for an hour.
    assert!(take(&**store, &[leases()], 10).await.due.is_empty());
}

pub async fn one_call_takes_a_timer_once_even_if_hide_for_is_zero(store: &Subject) {
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

pub async fn one_call_takes_each_of_many_timers_once_even_if_hide_for_is_zero(store: &Subject) {
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
        assert!(store.resolve(due, Next::Remove).await.unwrap(), "the token is valid");
    }
}

pub async fn schedule_keeps_an_earlier_timer_and_moves_a_later_one(store: &Subject) {
    let (stays, moved) = (key("alice", "stays"), key("alice", "moved"));
    store.schedule(&leases(), &stays, NOW).await.unwrap();
    store.schedule(&leases(), &stays, HOUR).await.unwrap();
    store.schedule(&leases(), &moved, HOUR).await.unwrap();
    store.schedule(&leases(), &moved, 2 * HOUR).await.unwrap();
    let taken = take(&**store, &[leases()], 10).await;
    assert_eq!(keys(&taken), ["alice:stays"]);
    assert!(taken.next_in.unwrap() <= HOUR);
    store.schedule(&leases(), &moved, NOW).await.unwrap();
    assert_eq!(keys(&take(&**store, &[leases()], 10).await), ["alice:moved"]);
    assert_eq!(total(store, &leases()).await, 2);
}

pub async fn a_task_has_its_own_timer_in_each_queue(store: &Subject) {
    let (t1, queues) = (key("alice", "t1"), ["leases", "work/a"].map(queue));
    for queue in &queues {
        store.schedule(queue, &t1, NOW).await.unwrap();
    }
    let due = take_only(&**store, &queues[1]).await;
    assert!(store.resolve(&due, Next::Remove).await.unwrap());
    assert_eq!(take_only(&**store, &queues[0]).await.queue, queues[0]);
}

pub async fn a_timer_stays_when_its_record_is_written_deleted_or_expires(store: &Subject) {
    let [deleted, expired] = ["deleted", "expired"].map(|task| key("alice", task));
    for key in [&deleted, &expired] {
        store.schedule(&leases(), key, NOW).await.unwrap();
        store.put(key, "one".into(), never()).await.unwrap();
        store.put(key, "two".into(), never()).await.unwrap();
    }
    assert!(store.delete(&deleted).await.unwrap());
    store.put_expired(&expired).await;
    store.cleanup_expired().await.unwrap();
    let mut taken = keys(&take(&**store, &[leases()], 10).await);
    taken.sort();
    assert_eq!(taken, ["alice:deleted", "alice:expired"]);
}

pub async fn queues_are_taken_in_the_order_given(store: &Subject) {
    let [a, b, c] = ["a", "b", "c"].map(queue);
    for queue in [&a, &b, &c] {
        for number in 0..6 {
            store.schedule(queue, &key(&format!("owner-{number}"), "t1"), NOW).await.unwrap();
        }
    }
    let taken = take(&**store, &[c.clone(), a.clone(), b.clone()], 8).await;
    let order: String = taken.due.iter().map(|due| due.queue.as_str()).collect();
    assert_eq!(order, "ccccccaa");
    let taken = take(&**store, &[a, b, c], 100).await;
    let order: String = taken.due.iter().map(|due| due.queue.as_str()).collect();
    assert_eq!(order, "aaaabbbbbb");
}

pub async fn timers_of_a_queue_are_taken_by_due_time(store: &Subject) {
    let places = [7, 2, 9, 0, 5, 1, 8, 3, 6, 4];
    for place in places {
        let after = Duration::from_millis(place * 10);
        let key = key(&format!("owner-{}", place % 3), &place.to_string());
        store.schedule(&leases(), &key, after).await.unwrap();
    }
    let listed = store.timers(&leases(), None).await.unwrap().timers;
    let wanted: Vec<String> = listed.iter().map(|timer| timer.key.to_string()).collect();
    pass(store, Duration::from_millis(100)).await;
    assert_eq!(keys(&take(&**store, &[leases()], 100).await), wanted);
    assert!(listed.is_sorted_by_key(|timer| timer.due_at));
}

pub async fn with_a_limit_of_1_take_due_takes_the_timer_that_was_due_first(store: &Subject) {
    for (number, after) in [(1, 20), (2, 0), (3, 40)] {
        let key = key(&format!("owner-{number}"), "t1");
        store.schedule(&leases(), &key, Duration::from_millis(after)).await.unwrap();
    }
    let listed = store.timers(&leases(), None).await.unwrap().timers;
    pass(store, Duration::from_millis(60)).await;
    for timer in listed {
        assert_eq!(take(&**store, &[leases()], 1).await.due[0].key, timer.key);
    }
}

pub async fn take_due_takes_no_more_than_its_limit_and_256(store: &Subject) {
    for number in 0..300 {
        store.schedule(&leases(), &key(&format!("owner-{number}"), "t1"), NOW).await.unwrap();
    }
    for (limit, count) in [(1, 1), (3, 3), (17, 17), (usize::MAX, 256), (1000, 23), (5, 0)] {
        assert_eq!(take(&**store, &[leases()], limit).await.due.len(), count, "{limit}");
    }
}

pub async fn resolve_moves_or_removes_the_timer(store: &Subject) {
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let due = take_only(&**store, &leases()).await;
    assert!(store.resolve(&due, Next::After(2 * HOUR)).await.unwrap());
    let next_in = take(&**store, &[leases()], 1).await.next_in.unwrap();
    assert!(next_in > HOUR && next_in <= 2 * HOUR, "{next_in:?}");
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let due = take_only(&**store, &leases()).await;
    assert!(store.resolve(&due, Next::After(NOW)).await.unwrap());
    let due = take_only(&**store, &leases()).await;
    assert!(store.resolve(&due, Next::Remove).await.unwrap());
    assert_nothing_left(store, &[leases()]).await;
}

pub async fn schedule_voids_the_token_even_if_an_earlier_timer_stays(store: &Subject) {
    for after in [NOW, HOUR / 2, HOUR, 2 * HOUR, CENTURY] {
        store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
        let due = take_only(&**store, &leases()).await;
        store.schedule(&leases(), &key("alice", "t1"), after).await.unwrap();
        assert_void(store, &due).await;
    }
}

pub async fn a_later_take_voids_the_token(store: &Subject) {
    store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    let first = store.take_due(&[leases()], 1, NOW).await.unwrap().due.remove(0);
    let second = take_only(&**store, &leases()).await;
    assert_void(store, &first).await;
    assert!(store.resolve(&second, Next::Remove).await.unwrap());
}

pub async fn a_token_is_valid_for_one_resolve(store: &Subject) {
    for next in [Next::After(HOUR), Next::After(NOW), Next::Remove] {
        store.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
        let due = take_only(&**store, &leases()).await;
        assert!(store.resolve(&due, next).await.unwrap());
        assert_void(store, &due).await;
    }
}

pub async fn a_token_of_a_removed_timer_is_void_for_the_next_timer(store: &Subject) {
    let t1 = key("alice", "t1");
    let mut tokens = HashSet::new();
    for _ in 0..50 {
        store.schedule(&leases(), &t1, NOW).await.unwrap();
        let due = take_only(&**store, &leases()).await;
        assert!(store.resolve(&due, Next::Remove).await.unwrap());
        assert_void(store, &due).await;
        // This timer fires at the time to which the take moved the removed one.
        store.schedule(&leases(), &t1, HOUR).await.unwrap();
        assert_void(store, &due).await;
        assert!(tokens.insert(due.token), "each token is new");
    }
}

pub async fn a_token_that_take_due_never_returned_is_void(store: &Subject) {
    let t1 = key("alice", "t1");
    store.schedule(&leases(), &t1, HOUR).await.unwrap();
    for token in [
        "",
        "x",
        "nan",
        "-1",
        "1e999",
        "0x10",
        "18446744073709551615",
        "18446744073709551616",
        "1795000000000",
        "1795000000000.5",
        "\0",
    ] {
        assert_void(store, &Due::new(leases(), t1.clone(), token)).await;
        assert_void(store, &Due::new(queue("other"), t1.clone(), token)).await;
        assert_void(store, &Due::new(leases(), key("bob", "t1"), token)).await;
    }
}

pub async fn the_engine_holds_nothing_after_all_timers_are_removed(store: &Subject) {
    let queues = ["leases", "work/a", "work/b"].map(queue);
    for number in 0..30 {
        for queue in &queues {
            store.schedule(queue, &key(&format!("owner-{number}"), "t1"), NOW).await.unwrap();
        }
    }
    let taken = take(&**store, &queues, 256).await;
    assert_eq!(taken.due.len(), 90);
    for due in &taken.due {
        assert!(store.resolve(due, Next::Remove).await.unwrap());
    }
    assert_nothing_left(store, &queues).await;
}

pub async fn timers_of_different_ids_or_queues_never_collide(store: &Subject) {
    let longest = "x".repeat(256);
    let ids = [
        "a:b",
        "a",
        "A",
        "a ",
        "1",
        "01",
        "{a}",
        "}{",
        "a\0b",
        "🦀 crab",
        "50%",
        "%3A",
        "\u{85}",
        " ",
        "*",
        "[a-z]",
        &longest,
    ];
    let queues =
        ["work/a:b", "work/A:b", "work/a:b ", "work/{a}", "{", "q\0", "🦀", " ", "%7B", &longest].map(queue);
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
        for due in take(&**store, from_ref(queue), 256).await.due {
            assert!(store.resolve(&due, Next::Remove).await.unwrap());
            assert!(found.insert((due.queue, due.key)));
        }
    }
    assert_eq!(found, wanted);
    assert_nothing_left(store, &queues).await;
}

pub async fn a_delay_over_100_years_is_refused_and_changes_nothing(store: &Subject) {
    let t1 = key("alice", "t1");
    let two_million_years = Duration::from_secs(2_000_000 * 31_557_600);
    for too_long in [CENTURY + Duration::from_millis(1), two_million_years, Duration::MAX] {
        let refused = store.schedule(&leases(), &t1, too_long).await;
        assert_refused!(refused, StorageError::InvalidExpiry { .. });
        assert_nothing_left(store, &[leases()]).await;
    }
    store.schedule(&leases(), &t1, NOW).await.unwrap();
    let refused = store.take_due(&[leases()], 1, two_million_years).await;
    assert_refused!(refused, StorageError::InvalidExpiry { .. });
    let due = take_only(&**store, &leases()).await;
    let refused = store.resolve(&due, Next::After(Duration::MAX)).await;
    assert_refused!(refused, StorageError::InvalidExpiry { .. });
    // The longest legal delay.
    assert!(store.resolve(&due, Next::After(CENTURY)).await.unwrap());
    let next_in = take(&**store, &[leases()], 1).await.next_in.unwrap();
    assert!(next_in > CENTURY - HOUR && next_in <= CENTURY, "{next_in:?}");
    store.schedule(&leases(), &t1, NOW).await.unwrap();
    let due = store.take_due(&[leases()], 1, CENTURY).await.unwrap().due.remove(0);
    store.schedule(&leases(), &t1, CENTURY).await.unwrap();
    assert_void(store, &due).await;
}

pub async fn a_queue_name_outside_1_to_512_bytes_is_refused(_: &Subject) {
    for illegal in ["", &"x".repeat(513)] {
        assert_refused!(Queue::try_from(illegal), StorageError::InvalidKey { .. });
    }
}
