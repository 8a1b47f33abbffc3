//! The sentinels that know where the master is.

use redis::sentinel::SentinelClient;
use redis::{ConnectionAddr, RedisResult};
use tokio::sync::Mutex;

/// See <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.
pub(super) struct Sentinels {
    client: Mutex<SentinelClient>,
    master_name: String,
}

impl Sentinels {
    pub(super) fn new(client: SentinelClient, master_name: String) -> Self {
        Self { client: Mutex::new(client), master_name }
    }

    /// What the sentinels call the master.
    pub(super) fn master_name(&self) -> &str {
        &self.master_name
    }

    /// Asks the sentinels, until one names a master that says of itself that it is one.
    pub(super) async fn master(&self) -> RedisResult<ConnectionAddr> {
        let client = self.client.lock().await.async_get_client().await?;
        Ok(client.get_connection_info().addr().clone())
    }
}
