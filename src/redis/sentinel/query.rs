//! Asks one sentinel for the master.

use std::collections::HashMap;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{ErrorKind, Pipeline, RedisError, RedisResult, Value};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::candidate::Candidate;
use crate::redis::dialer::Dialer;

/// How long a sentinel may take to answer over an existing connection before the backend reconnects.
const ANSWER_LIMIT: Duration = Duration::from_millis(250);

/// One sentinel, with the connection that carried the last answer.
pub(super) struct Sentinel {
    dialer: Dialer,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Sentinel {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self { dialer, connection: Mutex::default() }
    }

    /// Returns the server that the sentinel reports as the master of this name.
    pub(super) async fn ask(&self, master: &str) -> RedisResult<Candidate> {
        let mut questions = Pipeline::with_capacity(2);
        questions.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        // This command only returns the number of the failover. The user may lack the permission for it.
        questions.cmd("SENTINEL").arg("MASTER").arg(master);
        let mut idle = self.connection.lock().await;
        // The connection is kept only if its replies arrive in time and the caller still waits for them.
        if let Some(mut connection) = idle.take() {
            let replies = connection.req_packed_commands(&questions, 0, questions.len());
            if let Ok(Ok(replies)) = timeout(ANSWER_LIMIT, replies).await {
                let candidate = read(replies, master)?;
                *idle = Some(connection);
                return Ok(candidate);
            }
        }
        let address = self.dialer.settings.addr();
        let mut connection = self.dialer.dial(address, Some(self.dialer.limit), |_| ()).await?;
        let replies = connection.req_packed_commands(&questions, 0, questions.len()).await?;
        let candidate = read(replies, master)?;
        *idle = Some(connection);
        Ok(candidate)
    }
}

fn read(replies: Vec<Value>, master: &str) -> RedisResult<Candidate> {
    let [address, state] = <[Value; 2]>::try_from(replies).map_err(|_| {
        RedisError::from((ErrorKind::UnexpectedReturnType, "a reply of the sentinel is missing"))
    })?;
    let address: Option<(String, u16)> = redis::from_redis_value(address.extract_error()?)?;
    let Some((host, port)) = address else {
        let unknown = "no sentinel knows the master";
        return Err((ErrorKind::MasterNameNotFoundBySentinel, unknown, master.to_owned()).into());
    };
    let state = state.extract_error().and_then(|state| Ok(redis::from_redis_value(state)?));
    let state: HashMap<String, String> = state.unwrap_or_default();
    let config_epoch = state.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Ok(Candidate { host, port, config_epoch, votes: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(config_epoch: u64) -> Candidate {
        Candidate { host: "10.0.0.1".to_owned(), port: 6379, config_epoch, votes: 1 }
    }

    #[test]
    fn the_answer_of_a_sentinel_is_read_with_and_without_the_permission_to_read_the_number_of_the_failover() {
        let text = |text: &str| Value::BulkString(text.into());
        let address = Value::Array(vec![text("10.0.0.1"), text("6379")]);
        let state = Value::Array(["name", "mymaster", "config-epoch", "7"].map(text).to_vec());
        let refused = redis::parse_redis_value(b"-NOPERM no\r\n").unwrap();
        assert_eq!(read(vec![address.clone(), state], "mymaster").unwrap(), candidate(7));
        assert_eq!(read(vec![address, refused.clone()], "mymaster").unwrap(), candidate(0));
        let unknown = read(vec![Value::Nil, refused.clone()], "mymaster").unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::MasterNameNotFoundBySentinel);
        let denied = read(vec![refused.clone(), refused], "mymaster").unwrap_err();
        assert_eq!(denied.code(), Some("NOPERM"));
    }
}
