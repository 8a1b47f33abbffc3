//! The cost of many timers. These tests print figures, and the long ones take minutes, so they are not rules of the
//! suite.

use std::slice::from_ref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Engine, Store, key, never, on_every_agenda};
use mcp_task_store::{Agenda, Queue, Taken};
use rstest_reuse::apply;
use tokio::task::JoinSet;

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);

fn queue(name: &str) -> Queue {
    name.try_into().unwrap()
}

fn leases() -> Queue {
    Queue::leases()
}

async fn take(agenda: &dyn Agenda, queues: &[Queue], limit: usize) -> Taken {
    agenda.take_due(queues, limit, HOUR).await.unwrap()
}

/// Schedules timers of many owners. Each is due after `after`.
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

/// Returns the median time of a call.
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

async fn check_cost_of_timers_that_are_not_due(engine: Engine, many: usize) {
    let store = engine.open().await;
    let (few_queue, many_queue) = (queue("few"), queue("many"));
    schedule_many(&store, &few_queue, 1000, HOUR).await;
    schedule_many(&store, &many_queue, many, HOUR).await;
    let (mut few_took, mut many_took) = (Duration::MAX, Duration::MAX);
    // The measurements alternate, and the best of the medians counts, because the machine also runs other programs.
    for _ in 0..7 {
        few_took =
            few_took.min(median(150, async || drop(take(&*store, from_ref(&few_queue), 64).await)).await);
        many_took =
            many_took.min(median(150, async || drop(take(&*store, from_ref(&many_queue), 64).await)).await);
    }
    let ratio = many_took.as_secs_f64() / few_took.as_secs_f64();
    println!("figure | {engine:?}: take_due with {many} timers, none due, beside 1000 | {ratio:.2} x");
    // A call that walks the timers would take 50 times as long.
    assert!(ratio < 10.0, "{many_took:?} {few_took:?}");
}

async fn check_draining_of_overdue_timers(engine: Engine, many: usize) {
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
    // The reads are measured before and after, because other programs begin and end.
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
async fn the_cost_of_take_due_does_not_depend_on_timers_that_are_not_due(#[case] engine: Engine) {
    check_cost_of_timers_that_are_not_due(engine, 50_000).await;
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
async fn overdue_timers_are_drained_in_bounded_steps_while_reads_go_on(#[case] engine: Engine) {
    check_draining_of_overdue_timers(engine, 20_000).await;
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn long_take_due_costs_the_same_with_a_million_timers(#[case] engine: Engine) {
    check_cost_of_timers_that_are_not_due(engine, 1_000_000).await;
}

#[apply(on_every_agenda)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn long_a_million_overdue_timers_are_drained_while_reads_go_on(#[case] engine: Engine) {
    check_draining_of_overdue_timers(engine, 1_000_000).await;
}
