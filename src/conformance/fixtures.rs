//! Keys, options and steps that the rules share.

use std::slice::from_ref;
use std::time::Duration;

use bytes::Bytes;

use super::Subject;
use crate::backend::{
    Agenda, Due, Expiry, OwnerId, PartName, PartSizes, PutOptions, Queue, Taken, TaskKey, Version,
};

pub(super) const PART: PartName = PartName::from_static("input");
pub(super) const OTHER: PartName = PartName::from_static("output");

pub(super) const NOW: Duration = Duration::ZERO;
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const CENTURY: Duration = Duration::from_millis(3_155_760_000_000);
/// Much longer than any step takes. A rule exceeds it only if the step never ends.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Asserts that a call failed with an error that matches this pattern.
macro_rules! assert_refused {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            other => panic!("expected {}, got {other:?}", stringify!($pattern)),
        }
    };
}

pub(super) fn key(owner: &str, task: &str) -> TaskKey {
    TaskKey::new(owner, task).unwrap()
}

pub(super) fn owner(id: &str) -> OwnerId {
    id.try_into().unwrap()
}

pub(super) fn version(number: u64) -> Version {
    Version::from(number)
}

pub(super) fn keep() -> PutOptions {
    PutOptions::default()
}

pub(super) fn never() -> PutOptions {
    PutOptions::new(Expiry::Never)
}

pub(super) fn after_ms(millis: u64) -> PutOptions {
    PutOptions::new(Expiry::After(Duration::from_millis(millis)))
}

pub(super) fn in_an_hour() -> PutOptions {
    after_ms(3_600_000)
}

pub(super) fn sizes<const N: usize>(parts: [(PartName, usize); N]) -> PartSizes {
    parts.into()
}

pub(super) async fn part(store: &Subject, key: &TaskKey, name: &PartName) -> Option<(Bytes, Version)> {
    store.part(key, name).await.unwrap().map(|part| (part.data, part.version))
}

pub(super) fn queue(name: &str) -> Queue {
    name.try_into().unwrap()
}

pub(super) fn leases() -> Queue {
    Queue::leases()
}

/// Takes due timers and hides them for an hour.
pub(super) async fn take(agenda: &dyn Agenda, queues: &[Queue], limit: usize) -> Taken {
    agenda.take_due(queues, limit, HOUR).await.unwrap()
}

/// Returns the keys of taken timers, as text.
pub(super) fn keys(taken: &Taken) -> Vec<String> {
    taken.due.iter().map(|due| due.key.to_string()).collect()
}

/// Takes the only timer of a queue that is due.
pub(super) async fn take_only(agenda: &dyn Agenda, queue: &Queue) -> Due {
    let taken = take(agenda, from_ref(queue), 5).await;
    let [due] = taken.due.try_into().unwrap();
    due
}

/// Returns the number of timers of a queue.
pub(super) async fn total(store: &Subject, queue: &Queue) -> u64 {
    store.timers(queue, None).await.unwrap().total
}

/// Waits until this time has passed on the engine's clock.
pub(super) async fn pass(store: &Subject, time: Duration) {
    let clock = async || store.clock(&key("nobody", "t1")).await.unwrap();
    let until = clock().await + time;
    while let Ok(left) = (until - clock().await).to_std()
        && !left.is_zero()
    {
        // A sleep may take some milliseconds longer, so it does not last until the end.
        match left.checked_sub(Duration::from_millis(5)) {
            Some(most) => tokio::time::sleep(most).await,
            None => tokio::task::yield_now().await,
        }
    }
}
