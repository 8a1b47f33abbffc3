//! The commands of the agenda. Each call is one script that touches only the timers of its queues.

use std::time::Duration;

use mcp_task_store::{Agenda, Due, Next, Queue};

use super::{Monitor, open};
use crate::support::key;

const HOUR: Duration = Duration::from_secs(3600);

fn queues() -> [Queue; 2] {
    ["leases", "work/a"].map(|name| Queue::try_from(name).unwrap())
}

impl Monitor {
    /// Returns the key of the timers of a queue.
    fn due(&self, queue: &str) -> String {
        format!("{}:due:0:{queue}", self.prefix)
    }

    /// Asserts what `assert_script` asserts, and that the script touches only the timers of these queues.
    async fn assert_touches(
        &mut self,
        call: impl Future,
        commands: &str,
        queues: &[&str],
    ) -> Vec<Vec<String>> {
        let ran = self.assert_script(call, commands).await;
        let keys: Vec<String> = queues.iter().map(|queue| self.due(queue)).collect();
        let touched = ran.iter().filter(|command| command[0] != "TIME" && command[0] != self.publish);
        let touched: Vec<&String> = touched.map(|command| &command[1]).collect();
        assert!(touched.iter().all(|key| keys.contains(key)), "{touched:?}");
        ran
    }
}

#[tokio::test]
async fn only_the_earliest_timer_of_a_queue_notifies_takers_before_it_is_written() {
    let (namespace, backend, mut monitor) = open().await;
    let ([leases, _], alice, bob) = (queues(), key("alice", "t1"), key("bob", "t1"));
    let first = backend.schedule(&leases, &alice, HOUR);
    let ran = monitor.assert_touches(first, "TIME ZSCORE ZRANGE ZADD PUBLISH ZADD", &["leases"]).await;
    let channel = format!("{}:wake:0", namespace.prefix);
    let message = vec![monitor.publish.to_owned(), channel, format!("? {}", monitor.due("leases"))];
    assert!(ran.contains(&message), "{ran:?}");
    let later = backend.schedule(&leases, &bob, 2 * HOUR);
    monitor.assert_touches(later, "TIME ZSCORE ZRANGE ZADD", &["leases"]).await;
}

#[tokio::test]
async fn take_due_reads_only_the_earliest_timer_of_each_queue_if_no_timer_is_due() {
    let (_namespace, backend, mut monitor) = open().await;
    let queues = queues();
    for (owner, after) in [("alice", HOUR), ("bob", 2 * HOUR)] {
        backend.schedule(&queues[0], &key(owner, "t1"), after).await.unwrap();
    }
    monitor.sent().await;
    let take = backend.take_due(&queues, 10, HOUR);
    monitor.assert_touches(take, "TIME ZRANGE ZRANGE", &["leases", "work/a"]).await;
    backend.schedule(&queues[0], &key("alice", "t1"), Duration::ZERO).await.unwrap();
    monitor.sent().await;
    let take = backend.take_due(&queues, 10, HOUR);
    let ran = "TIME ZRANGE ZRANGE ZADD ZRANGE ZCOUNT ZRANGE";
    monitor.assert_touches(take, ran, &["leases", "work/a"]).await;
}

#[tokio::test]
async fn resolve_writes_only_with_a_valid_token_and_notifies_nobody() {
    let (_namespace, backend, mut monitor) = open().await;
    let ([leases, _], t1) = (queues(), key("alice", "t1"));
    backend.schedule(&leases, &t1, Duration::ZERO).await.unwrap();
    let taken = backend.take_due(std::slice::from_ref(&leases), 10, HOUR).await.unwrap();
    monitor.sent().await;
    let void = Due::new(leases.clone(), t1, "1");
    let resolve = backend.resolve(&void, Next::After(Duration::ZERO));
    monitor.assert_touches(resolve, "TIME ZSCORE", &["leases"]).await;
    let resolve = backend.resolve(&taken.due[0], Next::Remove);
    monitor.assert_touches(resolve, "TIME ZSCORE ZREM", &["leases"]).await;
}

#[tokio::test]
async fn a_call_of_the_agenda_that_the_backend_refuses_itself_sends_nothing() {
    let (_namespace, backend, mut monitor) = open().await;
    let [leases, _] = queues();
    backend.schedule(&leases, &key("alice", "t1"), Duration::MAX).await.unwrap_err();
    backend.take_due(&[], 10, HOUR).await.unwrap();
    assert!(monitor.sent().await.is_empty());
}
