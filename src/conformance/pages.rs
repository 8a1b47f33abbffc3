//! Rules of `list`.

use std::collections::HashSet;

use tokio::task::JoinSet;

use super::Subject;
use super::fixtures::{PART, after_ms, in_an_hour, keep, key, never, owner};
use crate::backend::{Cursor, MAX_PAGE_LIMIT, PageRequest, StorageError};

pub async fn a_page_is_newest_first_by_creation_with_everything_that_get_returns(store: &Subject) {
    for task in ["first", "second", "third"] {
        store.put(&key("alice", task), task.into(), in_an_hour()).await.unwrap();
    }
    // An update does not move a record in the listing, whatever it does to the expiry.
    store.put(&key("alice", "first"), "first again".into(), keep()).await.unwrap();
    store.put(&key("alice", "second"), "second again".into(), never()).await.unwrap();
    let page = store.list(&owner("alice"), PageRequest::new(10)).await.unwrap();
    assert_eq!(page.next, None);
    assert!(page.corrupt.is_empty());
    let listed: Vec<_> = page.records.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(listed, ["third", "second", "first"]);
    assert!(page.records.is_sorted_by(|newer, older| newer.created_at > older.created_at));
    for listed in page.records {
        let record = store.get(&(owner("alice"), listed.task).into()).await.unwrap();
        assert_eq!((listed.data, listed.version), (record.data, record.version));
        assert_eq!(listed.expires_at, record.expires_at);
        assert!(listed.created_at <= store.now());
    }
}

pub async fn an_owner_without_records_has_one_empty_page(store: &Subject) {
    let page = store.list(&owner("nobody"), PageRequest::new(1)).await.unwrap();
    assert!(page.records.is_empty() && page.corrupt.is_empty() && page.next.is_none());
}

pub async fn a_page_limit_is_1_to_256(store: &Subject) {
    for task in 0..300 {
        store.put(&key("alice", &task.to_string()), "data".into(), keep()).await.unwrap();
    }
    for limit in [1, 2, MAX_PAGE_LIMIT] {
        let page = store.list(&owner("alice"), PageRequest::new(limit)).await.unwrap();
        assert_eq!(page.records.len(), limit);
        assert!(page.next.is_some());
    }
    for limit in [0, MAX_PAGE_LIMIT + 1, usize::MAX] {
        let page = store.list(&owner("alice"), PageRequest::new(limit)).await;
        assert_refused!(page, StorageError::InvalidPage { .. });
    }
}

pub async fn a_page_ends_before_the_record_that_would_exceed_its_bytes(store: &Subject) {
    let alice = owner("alice");
    let sizes = [1000, 4000, 10, 10, 4000, 4000, 10];
    for (task, size) in sizes.into_iter().enumerate() {
        let key = key("alice", &task.to_string());
        let options = in_an_hour().set_part(PART, vec![b'x'; store.max_part_bytes().min(16 * 1024)]);
        store.put(&key, vec![b'x'; size].into(), options).await.unwrap();
    }
    let (mut pages, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let mut request = PageRequest::new(256).max_bytes(4020);
        request = after.into_iter().fold(request, PageRequest::after);
        let page = store.list(&alice, request).await.unwrap();
        pages.push(page.records.iter().map(|record| record.data.len()).collect::<Vec<_>>());
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [vec![10, 4000], vec![4000, 10, 10], vec![4000], vec![1000]]);
    // A page of at most 0 bytes still holds one record.
    let page = store.list(&alice, PageRequest::new(256).max_bytes(0)).await.unwrap();
    assert_eq!(page.records.len(), 1);
}

pub async fn a_walk_whose_pages_are_cut_by_their_bytes_misses_no_record(store: &Subject) {
    let alice = owner("alice");
    for task in 0..150 {
        store.put(&key("alice", &task.to_string()), vec![b'x'; 100].into(), in_an_hour()).await.unwrap();
    }
    let page = store.list(&alice, PageRequest::new(256)).await.unwrap();
    assert_eq!((page.records.len(), page.next), (150, None));
    for (max_bytes, most) in [(1_000, 10), (3_200, 32), (5_000, 50), (14_999, 149), (15_000, 150)] {
        let (mut listed, mut after) = (HashSet::new(), None::<Cursor>);
        loop {
            let request = PageRequest::new(150).max_bytes(max_bytes);
            let page = store.list(&alice, after.into_iter().fold(request, PageRequest::after)).await.unwrap();
            assert!(page.records.len() <= most);
            assert!(page.next.is_none() || page.records.len() == most, "{}", page.records.len());
            listed.extend(page.records.into_iter().map(|record| record.task));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(listed.len(), 150);
    }
}

pub async fn a_cursor_that_is_malformed_or_of_another_owner_is_refused(store: &Subject) {
    for task in ["t1", "t2"] {
        store.put(&key("alice", task), "data".into(), keep()).await.unwrap();
        store.put(&key("bob", task), "data".into(), keep()).await.unwrap();
    }
    let page = store.list(&owner("alice"), PageRequest::new(1)).await.unwrap();
    let cursor = page.next.unwrap();
    let rest = store.list(&owner("alice"), PageRequest::new(1).after(cursor.clone())).await.unwrap();
    assert_eq!(rest.records[0].task.as_str(), "t1");
    for (lister, cursor) in [("bob", cursor.as_str()), ("alice", ""), ("alice", "1.2"), ("alice", "+inf")] {
        let page = store.list(&owner(lister), PageRequest::new(1).after(cursor)).await;
        assert_refused!(page, StorageError::InvalidPage { .. });
    }
}

pub async fn a_cursor_stays_valid_after_its_record_is_deleted(store: &Subject) {
    for task in ["t1", "t2", "t3"] {
        store.put(&key("alice", task), "data".into(), keep()).await.unwrap();
    }
    let cursor: Cursor = store.list(&owner("alice"), PageRequest::new(2)).await.unwrap().next.unwrap();
    store.delete(&key("alice", "t2")).await.unwrap();
    let rest = store.list(&owner("alice"), PageRequest::new(2).after(cursor)).await.unwrap();
    let rest: Vec<_> = rest.records.iter().map(|record| record.task.as_str()).collect();
    assert_eq!(rest, ["t1"]);
}

pub async fn a_record_that_is_created_again_is_listed_as_the_newest(store: &Subject) {
    let [deleted, expired, stays] = ["deleted", "expired", "stays"].map(|task| key("alice", task));
    for key in [&deleted, &expired, &stays] {
        store.put(key, "old".into(), never()).await.unwrap();
    }
    store.put_expired(&expired).await;
    store.put(&expired, "new".into(), keep()).await.unwrap();
    assert_eq!(store.ids("alice").await, ["expired", "stays", "deleted"]);
    store.delete(&deleted).await.unwrap();
    store.put(&deleted, "new".into(), keep()).await.unwrap();
    assert_eq!(store.ids("alice").await, ["deleted", "expired", "stays"]);
}

/// How many writers insert at the same time.
const WRITERS: u32 = 50;

pub async fn a_burst_of_inserts_is_listed_in_one_total_order(store: &Subject) {
    let per_writer = store.burst() / WRITERS;
    let mut inserting = JoinSet::new();
    for writer in 0..WRITERS {
        let backend = store.engine();
        inserting.spawn(async move {
            for task in 0..per_writer {
                backend
                    .put(&key("alice", &format!("{writer}-{task}")), "x".into(), in_an_hour())
                    .await
                    .unwrap();
            }
        });
    }
    inserting.join_all().await;
    let records = store.walk(&owner("alice"), MAX_PAGE_LIMIT).await;
    let inserted = (WRITERS * per_writer) as usize;
    assert_eq!(records.len(), inserted);
    assert!(records.is_sorted_by(|newer, older| newer.created_at > older.created_at));
    assert_eq!(records.iter().map(|record| &record.task).collect::<HashSet<_>>().len(), inserted);
    for writer in 0..WRITERS {
        let writer = format!("{writer}-");
        let tasks = records.iter().filter_map(|record| record.task.as_str().strip_prefix(&writer));
        assert!(tasks.map(|task| task.parse::<u32>().unwrap()).eq((0..per_writer).rev()));
    }
}

pub async fn a_walk_returns_each_record_that_is_live_during_the_whole_walk_exactly_once(store: &Subject) {
    let alice = owner("alice");
    let options = |task: u32| if task % 5 == 1 { after_ms(100) } else { in_an_hour() };
    for task in 0..200 {
        store.put(&key("alice", &format!("{task}")), "data".into(), options(task)).await.unwrap();
    }
    // During the walk, a fifth of the records expires, another fifth is deleted, a third one is deleted and created
    // again, a fourth one is rewritten, and new records are created.
    let (mut seen, mut request, mut step) = (Vec::new(), PageRequest::new(7), 0_u32);
    loop {
        let page = store.list(&alice, request).await.unwrap();
        seen.extend(page.records.into_iter().map(|record| record.task.to_string()));
        for task in (step * 5..step * 5 + 5).filter(|task| *task < 200) {
            let touched = key("alice", &format!("{task}"));
            match task % 5 {
                1 | 4 => {}
                2 => drop(store.delete(&touched).await.unwrap()),
                3 => {
                    store.delete(&touched).await.unwrap();
                    store.put(&touched, "again".into(), in_an_hour()).await.unwrap();
                }
                _ => drop(store.put(&touched, "rewritten".into(), never()).await.unwrap()),
            }
        }
        store.put(&key("alice", &format!("new-{step}")), "data".into(), keep()).await.unwrap();
        step += 1;
        let Some(next) = page.next else { break };
        request = PageRequest::new(7).after(next);
    }
    let throughout: HashSet<String> =
        (0..200).filter(|task| [0, 4].contains(&(task % 5))).map(|task| task.to_string()).collect();
    let mut counted = seen.clone();
    counted.retain(|task| throughout.contains(task));
    assert_eq!(counted.len(), throughout.len());
    assert_eq!(counted.into_iter().collect::<HashSet<_>>(), throughout);
    assert!(step > 10, "the walk took {step} pages");
}
