//! Rules of `create_with_timer`.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Subject;
use super::fixtures::{
    CENTURY, HOUR, NOW, PART, after_ms, in_an_hour, keep, key, keys, leases, never, owner, part, queue,
    sizes, take, take_only, total, version,
};
use crate::backend::{Expiry, Next, StorageError, TaskKey, Version};

pub async fn create_with_timer_creates_the_record_and_schedules_the_timer(store: &Subject) {
    let (t1, t2) = (key("alice", "t1"), key("alice", "t2"));
    let options = in_an_hour().set_part(PART, "a part");
    let created = store.create_with_timer(&t1, "data".into(), options, &leases(), HOUR).await.unwrap();
    assert_eq!(created.version, Version::FIRST);
    let record = store.get(&t1).await.unwrap();
    assert_eq!((record.data.as_ref(), record.version), (&b"data"[..], Version::FIRST));
    assert_eq!((record.expires_at, record.parts), (created.expires_at, sizes([(PART, 6)])));
    assert_eq!(part(store, &t1, &PART).await, Some(("a part".into(), Version::FIRST)));
    let [timer] = store.timers(&leases(), None).await.unwrap().timers.try_into().unwrap();
    assert_eq!(timer.key, t1);
    // The expiry is an hour after the same call.
    let expires_at = created.expires_at.unwrap();
    assert!(timer.due_at <= expires_at && timer.due_at > expires_at - HOUR / 2, "{timer:?} {expires_at}");
    assert!(take(&**store, &[leases()], 10).await.due.is_empty());
    // A record that has expired is absent.
    store.put_expired(&t2).await;
    let created = store.create_with_timer(&t2, "again".into(), keep(), &leases(), NOW).await.unwrap();
    assert_eq!((created.version, created.expires_at), (Version::FIRST, None));
    let due = take_only(&**store, &leases()).await;
    assert_eq!(due.key, t2);
    assert!(store.resolve(&due, Next::Remove).await.unwrap());
    assert_eq!(store.ids("alice").await, ["t2", "t1"]);
    let updated = store.put_if_version(&t2, "next".into(), keep(), Version::FIRST).await.unwrap();
    assert_eq!(updated.version, version(2));
}

pub async fn create_with_timer_keeps_an_earlier_timer_and_moves_a_later_one(store: &Subject) {
    let (stays, moved) = (key("alice", "stays"), key("alice", "moved"));
    store.schedule(&leases(), &stays, NOW).await.unwrap();
    let due = take_only(&**store, &leases()).await;
    store.schedule(&leases(), &stays, NOW).await.unwrap();
    store.create_with_timer(&stays, "data".into(), never(), &leases(), 2 * HOUR).await.unwrap();
    store.schedule(&leases(), &moved, 2 * HOUR).await.unwrap();
    assert!(!store.resolve(&due, Next::Remove).await.unwrap(), "the token is void");
    assert_eq!(keys(&take(&**store, &[leases()], 10).await), ["alice:stays"]);
    store.create_with_timer(&moved, "data".into(), never(), &leases(), NOW).await.unwrap();
    assert_eq!(keys(&take(&**store, &[leases()], 10).await), ["alice:moved"]);
    assert_eq!(total(store, &leases()).await, 2);
}

pub async fn a_create_with_timer_that_is_refused_writes_no_record_and_changes_no_other_timer(
    store: &Subject,
) {
    let (t1, t2, queues) = (key("alice", "t1"), key("alice", "t2"), [leases(), queue("work/a")]);
    store.put(&t1, "one".into(), in_an_hour().set_part(PART, "a part")).await.unwrap();
    store.put_if_version(&t1, "two".into(), keep(), Version::FIRST).await.unwrap();
    let before = store.get(&t1).await.unwrap();
    store.schedule(&queues[1], &t1, NOW).await.unwrap();
    store.schedule(&queues[0], &key("alice", "other"), NOW).await.unwrap();
    store.schedule(&queues[0], &key("bob", "t1"), NOW).await.unwrap();
    let held = take(&**store, &queues, 10).await.due;
    let timers = store.timers(&queues[1], None).await.unwrap();
    let refused =
        store.create_with_timer(&t1, "lost".into(), never().clear_part(PART), &queues[0], HOUR).await;
    assert_refused!(refused, StorageError::VersionConflict { key, expected, actual }
        if key == t1 && (expected, actual) == (Version::ABSENT, version(2)));
    let refused = store.create_with_timer(&t2, "lost".into(), never().quota(1), &queues[0], HOUR).await;
    assert_refused!(refused, StorageError::CapacityExceeded { quota: Some(1), .. });
    let large = vec![b'x'; store.max_value_bytes() + 1];
    let refused = store.create_with_timer(&t2, large.into(), never(), &queues[0], HOUR).await;
    assert_refused!(refused, StorageError::TooLarge { .. });
    assert_eq!(store.get(&t1).await.unwrap(), before);
    assert_eq!(part(store, &t1, &PART).await, Some(("a part".into(), version(2))));
    assert_refused!(store.get(&t2).await, StorageError::NotFound { .. });
    assert_eq!(store.ids("alice").await, ["t1"]);
    assert_eq!(store.timers(&queues[1], None).await.unwrap(), timers);
    assert_eq!(held.len(), 3);
    for due in held {
        assert!(store.resolve(&due, Next::Remove).await.unwrap(), "the token of {due:?} is valid");
    }
}

pub async fn an_expiry_or_a_delay_out_of_range_is_refused_by_create_with_timer_and_nothing_is_written(
    store: &Subject,
) {
    let t1 = key("alice", "t1");
    let too_long = CENTURY + Duration::from_millis(1);
    for (expiry, after) in [
        (Expiry::After(Duration::ZERO), NOW),
        (Expiry::After(Duration::from_micros(999)), NOW),
        (Expiry::After(too_long), NOW),
        (Expiry::After(HOUR), too_long),
        (Expiry::Never, Duration::MAX),
    ] {
        let refused = store.create_with_timer(&t1, "lost".into(), expiry.into(), &leases(), after).await;
        assert_refused!(refused, StorageError::InvalidExpiry { .. });
        assert_refused!(store.get(&t1).await, StorageError::NotFound { .. });
        assert_eq!(total(store, &leases()).await, 0);
    }
    if let Some(left) = store.left_behind().await {
        assert!(left.is_empty(), "{left:?}");
    }
    let longest = Expiry::After(CENTURY).into();
    store.create_with_timer(&t1, "data".into(), longest, &leases(), CENTURY).await.unwrap();
    let next_in = take(&**store, &[leases()], 1).await.next_in.unwrap();
    assert!(next_in > CENTURY - HOUR && next_in <= CENTURY, "{next_in:?}");
}

pub async fn of_many_creates_with_a_timer_that_race_for_one_task_exactly_one_wins(store: &Subject) {
    let t1 = key("alice", "t1");
    let mut racing = JoinSet::new();
    for number in 0..64_u64 {
        let (agenda, t1) = (store.engine(), t1.clone());
        racing.spawn(async move {
            let after = HOUR * (1 + number as u32);
            agenda.create_with_timer(&t1, number.to_string().into(), in_an_hour(), &leases(), after).await
        });
    }
    let outcomes = racing.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for refused in outcomes.into_iter().filter(Result::is_err) {
        assert_refused!(refused, StorageError::VersionConflict { actual: Version::FIRST, .. });
    }
    assert_eq!(store.get(&t1).await.unwrap().version, Version::FIRST);
    assert_eq!((store.ids("alice").await, total(store, &leases()).await), (vec!["t1".to_owned()], 1));
}

pub async fn each_of_many_creates_with_a_timer_has_its_record_and_its_timer(store: &Subject) {
    const TASKS: usize = 200;
    let queues = [leases(), queue("work/a")];
    let mut creating = JoinSet::new();
    for number in 0..TASKS {
        let (agenda, queue) = (store.engine(), queues[number % 2].clone());
        creating.spawn(async move {
            let key = key(&format!("owner-{}", number % 7), &number.to_string());
            let data = number.to_string().into();
            let options = if number % 3 == 0 { never() } else { after_ms(3_600_000).quota(TASKS as u64) };
            let created = agenda.create_with_timer(&key, data, options, &queue, NOW).await.unwrap();
            assert_eq!(created.version, Version::FIRST);
            key
        });
    }
    let created: BTreeSet<TaskKey> = creating.join_all().await.into_iter().collect();
    for key in &created {
        assert_eq!(store.get(key).await.unwrap().data, key.task.to_string());
    }
    let taken: BTreeSet<TaskKey> =
        take(&**store, &queues, 256).await.due.into_iter().map(|due| due.key).collect();
    assert_eq!((created.len(), &taken), (TASKS, &created));
    for number in 0..7 {
        let owner = owner(&format!("owner-{number}"));
        let listed = store.walk(&owner, 20).await;
        assert_eq!(listed.len(), created.iter().filter(|key| key.owner == owner).count());
    }
}
