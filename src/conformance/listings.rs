//! Rules of `timers` and `owners`.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Subject;
use super::fixtures::{HOUR, NOW, in_an_hour, key, leases, never, queue, take};
use crate::backend::{Cursor, Next, Queue, StorageError, TaskKey, Timer};

/// Lists all timers of a queue, page by page. Runs `between` before every page except the first.
async fn walk(store: &Subject, queue: &Queue, mut between: impl AsyncFnMut(usize)) -> Vec<Timer> {
    let (mut timers, mut after, mut pages) = (Vec::new(), None::<Cursor>, 0);
    loop {
        let page = store.timers(queue, after.as_ref()).await.unwrap();
        assert!(page.timers.len() <= 256);
        assert!(page.next.is_none() || page.next != after, "the walk does not advance: {after:?}");
        timers.extend(page.timers);
        // Clients send the text of a cursor back, so the walk does the same.
        after = page.next.map(|next| Cursor::from(next.as_str()));
        if after.is_none() {
            return timers;
        }
        pages += 1;
        between(pages).await;
    }
}

async fn every_owner(store: &Subject) -> Vec<String> {
    let (mut owners, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let page = store.owners(after.as_ref()).await.unwrap();
        owners.extend(page.owners.iter().map(ToString::to_string));
        assert!(page.next.is_none() || page.next != after, "the walk does not advance: {after:?}");
        after = page.next.map(|next| Cursor::from(next.as_str()));
        if after.is_none() {
            owners.sort();
            return owners;
        }
    }
}

pub async fn timers_lists_each_timer_once_with_its_due_time_and_takes_none(store: &Subject) {
    const TIMERS: usize = 600;
    let key_of = |number: usize| key(&format!("owner-{}", number % 30), &format!("t:{number}"));
    let delay_of = |number: usize| Duration::from_secs((number % 5) as u64);
    let begun = Instant::now();
    for number in 0..TIMERS {
        store.schedule(&leases(), &key_of(number), delay_of(number)).await.unwrap();
    }
    let took = begun.elapsed();
    let page = store.timers(&leases(), None).await.unwrap();
    assert_eq!((page.timers.len(), page.total), (256, TIMERS as u64));
    let now = store.clock(&key("nobody", "t1")).await.unwrap();
    let listed = walk(store, &leases(), async |_| ()).await;
    let distinct: HashSet<&TaskKey> = listed.iter().map(|timer| &timer.key).collect();
    assert_eq!((listed.len(), distinct.len()), (TIMERS, TIMERS));
    assert!(listed.is_sorted_by_key(|timer| timer.due_at));
    let last = listed.last().unwrap().due_at;
    assert!(
        last > now - chrono::TimeDelta::minutes(5) && last < now + chrono::TimeDelta::seconds(5),
        "{last}"
    );
    // When each timer was scheduled, by its due time. The engine may count whole milliseconds.
    let scheduled_at = listed.iter().map(|timer| {
        let number = timer.key.task.as_str().trim_start_matches("t:").parse().unwrap();
        timer.due_at - delay_of(number)
    });
    let (first, last) = (scheduled_at.clone().min().unwrap(), scheduled_at.max().unwrap());
    assert!(last <= first + took + Duration::from_millis(2), "{first} {last} {took:?}");
    assert_eq!(store.timers(&queue("other"), None).await.unwrap().total, 0);
}

pub async fn a_walk_while_timers_are_added_and_removed_lists_each_remaining_timer_once(store: &Subject) {
    const TIMERS: usize = 600;
    let key_of = |kind: &str, number: usize| key(&format!("{kind}-{}", number % 30), &number.to_string());
    for number in 0..TIMERS {
        let kind = if number % 3 == 0 { "goes" } else { "stays" };
        let after = if kind == "goes" { NOW } else { Duration::from_secs(3600 + (number % 7) as u64) };
        store.schedule(&leases(), &key_of(kind, number), after).await.unwrap();
    }
    let listed = walk(store, &leases(), async |page| {
        for due in take(&**store, &[leases()], 256).await.due {
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

pub async fn a_malformed_cursor_of_timers_or_owners_is_refused(store: &Subject) {
    for text in ["", "x", "ff.00", "-1", "NaN", "1.2.3", "\0", "🦀", "1:zz", "1 alice:t1"] {
        let refused = store.timers(&leases(), Some(&text.into())).await;
        assert_refused!(refused, StorageError::InvalidPage { .. });
        if store.lists_owners() {
            assert_refused!(store.owners(Some(&text.into())).await, StorageError::InvalidPage { .. });
        }
    }
}

pub async fn owners_lists_each_owner_that_has_records(store: &Subject) {
    if !store.has_owner_listing() {
        return;
    }
    let mut wanted: Vec<String> = (0..300).map(|number| format!("owner-{number}")).collect();
    wanted.extend(["a:b", "{a}", "a\0b", "🦀", "50%", "*", "}{"].map(str::to_owned));
    for name in &wanted {
        for task in ["t1", "t:2"] {
            store.put(&key(name, task), "data".into(), in_an_hour()).await.unwrap();
        }
    }
    // An owner that has only timers, or whose records were deleted or have expired, is not listed.
    store.schedule(&leases(), &key("only timers", "t1"), HOUR).await.unwrap();
    store.put(&key("gone", "t1"), "data".into(), never()).await.unwrap();
    store.delete(&key("gone", "t1")).await.unwrap();
    store.put_expired(&key("expired", "t1")).await;
    wanted.sort();
    assert_eq!(every_owner(store).await, wanted);
}
