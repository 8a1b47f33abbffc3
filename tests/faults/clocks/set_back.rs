//! A server whose clock is set back.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use mcp_task_store::{Agenda, Next, PageRequest, Queue, RedisBackend, StorageBackend};

use super::stepped::Stepped;
use super::{HOUR_MS, time_of};
use crate::support::{after_ms, key, owner};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_only_reads_finds_live_records_after_the_servers_clock_was_set_back() {
    let stepped = Stepped::start("+1h");
    let reader = RedisBackend::connect(&stepped.server.url()).await.unwrap();
    assert!(time_of(&stepped.server) - Utc::now() > TimeDelta::minutes(50));
    stepped.step("+0");
    let writer = RedisBackend::connect(&stepped.server.url()).await.unwrap();
    let written = writer.put(&key("alice", "t1"), "live".into(), after_ms(HOUR_MS / 6)).await.unwrap();
    // The reader's estimate of the clock says that the record has expired.
    assert!(written.expires_at.unwrap() < reader.now());
    assert_eq!(reader.get(&key("alice", "t1")).await.unwrap().data, "live");
    assert_eq!(reader.list(&owner("alice"), PageRequest::new(5)).await.unwrap().records.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_servers_clock_was_set_back_by_a_day_timers_are_late_by_at_most_a_day() {
    let (day, hour) = (TimeDelta::days(1), Duration::from_secs(3600));
    let stepped = Stepped::start("+1d");
    let agenda = stepped.agenda().await;
    let queues = [Queue::try_from("leases").unwrap()];
    let [before, after] = ["before", "after"].map(|task| key("alice", task));
    agenda.schedule(&queues[0], &before, hour).await.unwrap();
    stepped.step("+0");

    let next_in = agenda.take_due(&queues, 5, hour).await.unwrap().next_in.unwrap();
    let late_by = TimeDelta::from_std(next_in - hour).unwrap();
    assert!(late_by <= day && late_by > day - TimeDelta::minutes(10), "{late_by}");
    // A timer that is scheduled later is in time, and scheduling a late timer again brings it forward.
    for key in [&after, &before] {
        agenda.schedule(&queues[0], key, Duration::ZERO).await.unwrap();
        let taken = agenda.take_due(&queues, 5, hour).await.unwrap();
        assert_eq!(taken.due.iter().map(|due| &due.key).collect::<Vec<_>>(), [key]);
        assert!(agenda.resolve(&taken.due[0], Next::Remove).await.unwrap());
    }
}
