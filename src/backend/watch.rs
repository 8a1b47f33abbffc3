//! Feeling that a record has changed: by reading it again and again, or by being told.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Record, StorageBackend, StorageError, TaskKey};

/// How long to wait before a record is read again, at first and at the most.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);
/// A clock that lags shows a record as live for a moment after its time.
const GRACE: Duration = Duration::from_millis(2);

/// Watches a record by reading it, less and less often while it stays as it is.
pub(crate) fn by_polling<B: StorageBackend + ?Sized>(
    backend: Arc<B>,
    key: TaskKey,
) -> BoxStream<'static, Result<(), StorageError>> {
    let polling = Polling { backend, key, seen: None, delay: Duration::ZERO, is_over: false };
    Box::pin(stream::unfold(polling, |mut polling| async {
        polling.next().await.map(|item| (item, polling))
    }))
}

struct Polling<B: ?Sized> {
    backend: Arc<B>,
    key: TaskKey,
    /// As it was when the last item was given.
    seen: Option<Record>,
    delay: Duration,
    is_over: bool,
}

impl<B: StorageBackend + ?Sized> Polling<B> {
    async fn next(&mut self) -> Option<Result<(), StorageError>> {
        if self.is_over {
            return None;
        }
        loop {
            let expires_at = self.seen.as_ref().and_then(|record| record.expires_at);
            sleep(left(&*self.backend, expires_at).map_or(self.delay, |left| left.min(self.delay))).await;
            self.delay = (self.delay * 2).clamp(SHORTEST, LONGEST);
            match self.backend.get(&self.key).await {
                Ok(record) if self.seen.as_ref() == Some(&record) => {}
                Ok(record) => {
                    (self.seen, self.delay) = (Some(record), SHORTEST);
                    return Some(Ok(()));
                }
                Err(StorageError::NotFound { .. }) => return None,
                Err(error) => {
                    self.is_over = !error.is_retryable();
                    return Some(Err(error));
                }
            }
        }
    }
}

/// How long a record still has, by the engine's clock.
fn left<B: StorageBackend + ?Sized>(backend: &B, expires_at: Option<DateTime<Utc>>) -> Option<Duration> {
    Some((expires_at? - backend.now()).to_std().unwrap_or_default() + GRACE)
}

/// What those who watch a record are told. Only the latest counts, so it must not matter what came before it.
#[derive(Clone)]
pub(crate) enum Signal {
    /// It was written, and expires then.
    Written(Option<DateTime<Utc>>),
    /// It is to be looked at: it was deleted, or something may have been missed.
    Look,
    /// Nothing can be told for now, and this is why.
    #[cfg(feature = "redis")]
    Lost(Arc<dyn Fn() -> StorageError + Send + Sync>),
}

/// Who watches which record.
pub(crate) struct Watched<K>(HashMap<K, watch::Sender<Signal>>);

impl<K> Default for Watched<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Watched<K> {
    #[cfg(any(feature = "redis", test))]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn join(&mut self, key: K) -> watch::Receiver<Signal> {
        self.0.entry(key).or_insert_with(|| watch::channel(Signal::Look).0).subscribe()
    }

    /// Forgets a record that nobody watches any more.
    pub(crate) fn leave(&mut self, key: &K) {
        if self.0.get(key).is_some_and(|signals| signals.receiver_count() == 0) {
            self.0.remove(key);
        }
    }

    pub(crate) fn tell<Q: Eq + Hash + ?Sized>(&self, key: &Q, signal: Signal)
    where
        K: std::borrow::Borrow<Q>,
    {
        if let Some(signals) = self.0.get(key) {
            signals.send_replace(signal);
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn tell_all(&self, signal: &Signal) {
        self.0.values().for_each(|signals| drop(signals.send_replace(signal.clone())));
    }
}

/// What one who watches has to do on leaving.
pub(crate) struct Seat<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Seat<F> {
    pub(crate) fn new(leave: F) -> Self {
        Self(Some(leave))
    }
}

impl<F: FnOnce()> Drop for Seat<F> {
    fn drop(&mut self) {
        if let Some(leave) = self.0.take() {
            leave();
        }
    }
}

/// Watches a record by signals. The first item comes once there is something to be told by: now if `is_live`, with
/// the first signal otherwise.
pub(crate) fn by_signals<B: StorageBackend, F: FnOnce() + Send + 'static>(
    backend: Arc<B>,
    key: TaskKey,
    signals: watch::Receiver<Signal>,
    is_live: bool,
    seat: Seat<F>,
) -> BoxStream<'static, Result<(), StorageError>> {
    let listening = Listening {
        backend,
        key,
        expires_at: None,
        look: is_live.then_some(Duration::ZERO),
        is_over: false,
        signals,
        _seat: seat,
    };
    Box::pin(stream::unfold(listening, |mut listening| async {
        listening.next().await.map(|item| (item, listening))
    }))
}

struct Listening<B, F: FnOnce()> {
    backend: Arc<B>,
    key: TaskKey,
    expires_at: Option<DateTime<Utc>>,
    /// The record is to be read, after this delay.
    look: Option<Duration>,
    is_over: bool,
    signals: watch::Receiver<Signal>,
    /// Behind the signals, so that they are gone when it is left.
    _seat: Seat<F>,
}

impl<B: StorageBackend, F: FnOnce()> Listening<B, F> {
    async fn next(&mut self) -> Option<Result<(), StorageError>> {
        if self.is_over {
            return None;
        }
        loop {
            if let Some(delay) = self.look {
                sleep(delay).await;
                // What is read now is at least as new as what was told before.
                self.signals.mark_unchanged();
                match self.backend.get(&self.key).await {
                    Ok(record) => {
                        (self.expires_at, self.look) = (record.expires_at, None);
                        return Some(Ok(()));
                    }
                    Err(StorageError::NotFound { .. }) => return None,
                    Err(error) => {
                        self.is_over = !error.is_retryable();
                        self.look = Some((delay * 2).clamp(SHORTEST, LONGEST));
                        return Some(Err(error));
                    }
                }
            }
            let Some(told) = self.told().await else {
                self.look = Some(Duration::ZERO);
                continue;
            };
            match told {
                Signal::Written(expires_at) => {
                    self.expires_at = expires_at;
                    return Some(Ok(()));
                }
                Signal::Look => self.look = Some(Duration::ZERO),
                #[cfg(feature = "redis")]
                Signal::Lost(error) => {
                    let error = error();
                    self.is_over = !error.is_retryable();
                    return Some(Err(error));
                }
            }
        }
    }

    /// Waits for a signal, `None` if the record's time comes first.
    async fn told(&mut self) -> Option<Signal> {
        let changed = self.signals.changed();
        let changed = match left(&*self.backend, self.expires_at) {
            Some(left) => timeout_at(Instant::now() + left, changed).await.ok()?,
            None => changed.await,
        };
        if changed.is_err() {
            // Whoever told has gone.
            sleep(LONGEST).await;
            return None;
        }
        Some(self.signals.borrow_and_update().clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::backend::{
        OwnerId, Page, PageRequest, Part, PartName, PartSizes, PutOptions, Version, Written,
    };

    type Read = Result<Record, StorageError>;

    /// An engine that is only read, and then does what a test says.
    struct Scripted<F>(Mutex<F>);

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
    }

    /// A watch that is live, of a record that is read so.
    fn watch_by(
        signals: watch::Receiver<Signal>,
        read: impl FnMut() -> Read + Send + 'static,
    ) -> BoxStream<'static, Result<(), StorageError>> {
        let key = TaskKey::new("alice", "t1").unwrap();
        by_signals(Arc::new(Scripted(Mutex::new(read))), key, signals, true, Seat::new(|| {}))
    }

    fn record() -> Record {
        Record { data: Bytes::new(), version: Version::FIRST, expires_at: None, parts: PartSizes::new() }
    }

    #[test]
    fn who_stays_is_told_after_another_has_left_and_nothing_is_held_after_the_last() {
        let mut watched = Watched::default();
        let (mut stays, leaves) = (watched.join("t1"), watched.join("t1"));
        drop(leaves);
        watched.leave(&"t1");
        watched.tell("t1", Signal::Written(None));
        assert!(stays.changed().now_or_never().unwrap().is_ok());
        drop(stays);
        watched.leave(&"t1");
        assert!(watched.is_empty());
    }

    #[tokio::test]
    async fn what_is_told_while_the_record_is_read_leads_to_another_item() {
        let (tell, signals) = watch::channel(Signal::Look);
        let mut watch = watch_by(signals, move || {
            tell.send_replace(Signal::Written(None));
            Ok(record())
        });
        watch.next().await.unwrap().unwrap();
        assert!(matches!(watch.next().now_or_never(), Some(Some(Ok(())))));
    }

    #[tokio::test]
    async fn a_read_that_fails_for_now_is_an_item_and_is_tried_again() {
        let (_tell, signals) = watch::channel(Signal::Look);
        let mut reads = 0;
        let mut watch = watch_by(signals, move || {
            reads += 1;
            if reads > 2 {
                return Ok(record());
            }
            Err(StorageError::Unavailable {
                address: "a server".to_owned(),
                reason: "it is away".to_owned(),
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
        tokio::time::timeout(Duration::from_secs(60), in_time).await.expect("it is read again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_after_an_error_that_does_not_pass() {
        let denied = || {
            let (address, reason) = ("a server".to_owned(), "no right to read".to_owned());
            Err(StorageError::Denied { address, reason, source: None })
        };
        let (_tell, signals) = watch::channel(Signal::Look);
        let key = TaskKey::new("alice", "t1").unwrap();
        for mut watch in [by_polling(Arc::new(Scripted(Mutex::new(denied))), key), watch_by(signals, denied)]
        {
            assert!(!watch.next().await.unwrap().unwrap_err().is_retryable());
            assert!(watch.next().await.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn polling_begins_at_20_ms_and_slows_down_to_a_second_while_nothing_changes() {
        let reads = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&reads);
        let backend = Scripted(Mutex::new(move || {
            told.lock().unwrap().push(Instant::now());
            Ok(record())
        }));
        let mut watch = by_polling(Arc::new(backend), TaskKey::new("alice", "t1").unwrap());
        watch.next().await.unwrap().unwrap();
        assert!(timeout_at(Instant::now() + Duration::from_secs(5), watch.next()).await.is_err());
        let reads = reads.lock().unwrap();
        let pauses: Vec<_> = reads.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
    }
}
