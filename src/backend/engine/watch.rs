//! Streams of a record's changes: by polling the record, or by notifications.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::stream::{self, BoxStream};
use tokio::time::{Instant, sleep, timeout_at};

use super::watchers::{Change, Subscription};
use crate::backend::error::StorageError;
use crate::backend::key::TaskKey;
use crate::backend::record::Record;
use crate::backend::storage::StorageBackend;

/// The first delay between two reads of a record, and the longest.
const FIRST_DELAY: Duration = Duration::from_millis(20);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// How long after the expiry a stream reads the record. The estimate of the engine's clock may differ from the clock
/// a little.
const GRACE: Duration = Duration::from_millis(2);

/// Watches a record by polling it: every 20 ms at first, and less often while the record does not change, down to
/// once a second.
///
/// An engine without notifications implements [`watch`](StorageBackend::watch) with one call:
/// `watch_by_polling(self.clone(), key.clone())`.
///
/// The stream must be polled within a Tokio runtime.
pub fn watch_by_polling<B: StorageBackend>(
    engine: B,
    key: TaskKey,
) -> BoxStream<'static, Result<(), StorageError>> {
    let polling = Polling { engine, key, seen: None, delay: Duration::ZERO, has_ended: false };
    Box::pin(stream::unfold(polling, |mut polling| async {
        polling.next().await.map(|item| (item, polling))
    }))
}

struct Polling<B> {
    engine: B,
    key: TaskKey,
    /// The record at the last item.
    seen: Option<Record>,
    delay: Duration,
    has_ended: bool,
}

impl<B: StorageBackend> Polling<B> {
    async fn next(&mut self) -> Option<Result<(), StorageError>> {
        if self.has_ended {
            return None;
        }
        loop {
            let expires_at = self.seen.as_ref().and_then(|record| record.expires_at);
            let left = time_left(&self.engine, expires_at);
            sleep(left.map_or(self.delay, |left| left.min(self.delay))).await;
            self.delay = longer(self.delay);
            match self.engine.get(&self.key).await {
                Ok(record) if self.seen.as_ref() == Some(&record) => {}
                Ok(record) => {
                    (self.seen, self.delay) = (Some(record), FIRST_DELAY);
                    return Some(Ok(()));
                }
                Err(StorageError::NotFound { .. }) => return None,
                Err(error) => {
                    self.has_ended = !error.is_retryable();
                    return Some(Err(error));
                }
            }
        }
    }
}

fn longer(delay: Duration) -> Duration {
    (delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY)
}

/// Returns the time until a record expires, by the engine's clock.
fn time_left(engine: &impl StorageBackend, expires_at: Option<DateTime<Utc>>) -> Option<Duration> {
    Some((expires_at? - engine.now()).to_std().unwrap_or_default() + GRACE)
}

/// Watches a record by the notifications of a [`Subscription`].
///
/// Pass `true` for `is_live` if the subscription already receives changes. Then the first item comes at once. Pass `false` if the
/// engine must still connect to a server first, and send [`Change::Unknown`] once the engine receives changes. Then the first
/// item comes with the first notification.
///
/// The stream reads the record for the first item, after [`Change::Unknown`], and when the record should have expired. It
/// must be polled within a Tokio runtime.
pub fn watch_by_notifications<B: StorageBackend>(
    engine: B,
    key: TaskKey,
    subscription: Subscription,
    is_live: bool,
) -> BoxStream<'static, Result<(), StorageError>> {
    let read_after = is_live.then_some(Duration::ZERO);
    let notified = Notified { engine, key, subscription, expires_at: None, read_after, has_ended: false };
    Box::pin(stream::unfold(notified, |mut notified| async {
        notified.next().await.map(|item| (item, notified))
    }))
}

struct Notified<B> {
    engine: B,
    key: TaskKey,
    subscription: Subscription,
    expires_at: Option<DateTime<Utc>>,
    /// The delay before the next read of the record; `None` if no read is necessary.
    read_after: Option<Duration>,
    has_ended: bool,
}

impl<B: StorageBackend> Notified<B> {
    async fn next(&mut self) -> Option<Result<(), StorageError>> {
        if self.has_ended {
            return None;
        }
        loop {
            if let Some(delay) = self.read_after {
                return self.read(delay).await;
            }
            match self.change().await {
                Change::Written(expires_at) => {
                    self.expires_at = expires_at;
                    return Some(Ok(()));
                }
                Change::Unknown => self.read_after = Some(Duration::ZERO),
                Change::Failed(error) => return Some(Err(self.failed(error()))),
            }
        }
    }

    async fn read(&mut self, delay: Duration) -> Option<Result<(), StorageError>> {
        sleep(delay).await;
        // The read sees the effect of every earlier change, so their notifications are not needed.
        self.subscription.skip();
        match self.engine.get(&self.key).await {
            Ok(record) => {
                (self.expires_at, self.read_after) = (record.expires_at, None);
                Some(Ok(()))
            }
            Err(StorageError::NotFound { .. }) => None,
            Err(error) => {
                self.read_after = Some(longer(delay));
                Some(Err(self.failed(error)))
            }
        }
    }

    fn failed(&mut self, error: StorageError) -> StorageError {
        self.has_ended = !error.is_retryable();
        error
    }

    /// Waits for a change. The expiry of the record counts as a change.
    async fn change(&mut self) -> Change {
        let left = time_left(&self.engine, self.expires_at);
        let changed = self.subscription.changed();
        let change = match left {
            Some(left) => match timeout_at(Instant::now() + left, changed).await {
                Ok(change) => change,
                Err(_) => return Change::Unknown,
            },
            None => changed.await,
        };
        if let Some(change) = change {
            return change;
        }
        // The engine sends no more notifications, so this stream reads the record once a second.
        sleep(LONGEST_DELAY).await;
        Change::Unknown
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::backend::engine::Watchers;
    use crate::backend::{
        OwnerId, Page, PageRequest, Part, PartName, PartSizes, PutOptions, Version, Written,
    };

    type Read = Result<Record, StorageError>;

    /// An engine that supports only `get`. Each `get` runs the closure of a test.
    struct Scripted<F>(Arc<Mutex<F>>);

    impl<F> Scripted<F> {
        fn new(read: F) -> Self {
            Self(Arc::new(Mutex::new(read)))
        }
    }

    impl<F> Clone for Scripted<F> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    #[async_trait]
    impl<F: FnMut() -> Read + Send + 'static> StorageBackend for Scripted<F> {
        async fn get(&self, _: &TaskKey) -> Read {
            self.0.lock().unwrap()()
        }

        async fn put(&self, _: &TaskKey, _: Bytes, _: PutOptions) -> Result<Written, StorageError> {
            unreachable!()
        }

        async fn put_if_version(
            &self,
            _: &TaskKey,
            _: Bytes,
            _: PutOptions,
            _: Version,
        ) -> Result<Written, StorageError> {
            unreachable!()
        }

        async fn part(&self, _: &TaskKey, _: &PartName) -> Result<Option<Part>, StorageError> {
            unreachable!()
        }

        async fn clock(&self, _: &TaskKey) -> Result<DateTime<Utc>, StorageError> {
            unreachable!()
        }

        async fn delete(&self, _: &TaskKey) -> Result<bool, StorageError> {
            unreachable!()
        }

        async fn list(&self, _: &OwnerId, _: PageRequest) -> Result<Page, StorageError> {
            unreachable!()
        }

        async fn cleanup_expired(&self) -> Result<u64, StorageError> {
            unreachable!()
        }

        fn now(&self) -> DateTime<Utc> {
            DateTime::UNIX_EPOCH
        }

        fn watch(&self, key: &TaskKey) -> BoxStream<'static, Result<(), StorageError>> {
            watch_by_polling(self.clone(), key.clone())
        }
    }

    fn key() -> TaskKey {
        TaskKey::new("alice", "t1").unwrap()
    }

    /// Creates a live watch of a record that `read` reads.
    fn watch(
        watchers: &Watchers<&'static str>,
        read: impl FnMut() -> Read + Send + 'static,
    ) -> BoxStream<'static, Result<(), StorageError>> {
        watch_by_notifications(Scripted::new(read), key(), watchers.subscribe("t1"), true)
    }

    fn record() -> Record {
        Record { data: Bytes::new(), version: Version::FIRST, expires_at: None, parts: PartSizes::new() }
    }

    #[tokio::test]
    async fn a_change_during_the_read_leads_to_another_item() {
        let watchers = Arc::new(Watchers::default());
        let notifying = Arc::clone(&watchers);
        let mut watch = watch(&watchers, move || {
            notifying.notify("t1", Change::Written(None));
            Ok(record())
        });
        watch.next().await.unwrap().unwrap();
        assert!(matches!(watch.next().now_or_never(), Some(Some(Ok(())))));
    }

    #[tokio::test]
    async fn a_retryable_error_of_a_read_is_an_item_and_the_watch_reads_again() {
        let (watchers, mut reads) = (Watchers::default(), 0);
        let mut watch = watch(&watchers, move || {
            reads += 1;
            if reads > 2 {
                return Ok(record());
            }
            Err(StorageError::Unavailable {
                address: "a server".to_owned(),
                reason: "the server is down".to_owned(),
                outcome_unknown: false,
                source: None,
            })
        });
        let in_time = async {
            for _ in 0..2 {
                assert!(watch.next().await.unwrap().unwrap_err().is_retryable());
            }
            watch.next().await.unwrap().unwrap();
        };
        tokio::time::timeout(Duration::from_secs(60), in_time)
            .await
            .expect("the watch reads the record again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_after_an_error_that_is_not_retryable() {
        let denied = || {
            let (address, reason) = ("a server".to_owned(), "no permission to read".to_owned());
            Err(StorageError::Denied { address, reason, source: None })
        };
        let watchers = Watchers::default();
        for mut watch in [watch_by_polling(Scripted::new(denied), key()), watch(&watchers, denied)] {
            assert!(!watch.next().await.unwrap().unwrap_err().is_retryable());
            assert!(watch.next().await.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn polling_begins_at_20_ms_and_slows_down_to_a_second_while_nothing_changes() {
        let reads = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&reads);
        let engine = Scripted::new(move || {
            log.lock().unwrap().push(Instant::now());
            Ok(record())
        });
        let mut watch = watch_by_polling(engine, key());
        watch.next().await.unwrap().unwrap();
        assert!(timeout_at(Instant::now() + Duration::from_secs(5), watch.next()).await.is_err());
        let reads = reads.lock().unwrap();
        let pauses: Vec<_> = reads.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
    }
}
