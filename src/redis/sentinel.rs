//! The sentinels that know where the master is.

use redis::sentinel::SentinelClient;
use redis::{Client, RedisResult};
use tokio::sync::Mutex;

/// See <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.
pub(super) struct Sentinels(Mutex<SentinelClient>);

impl Sentinels {
    pub(super) fn new(client: SentinelClient) -> Self {
        Self(Mutex::new(client))
    }

    /// Asks the sentinels, until one names a master that says of itself that it is one.
    pub(super) async fn master(&self) -> RedisResult<Client> {
        self.0.lock().await.async_get_client().await
    }

    /// The same; `None` while they are being asked already.
    pub(super) async fn master_unless_asked(&self) -> Option<RedisResult<Client>> {
        Some(self.0.try_lock().ok()?.async_get_client().await)
    }
}
