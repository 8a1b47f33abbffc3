//! Opens connections to one master.

use std::io::{Error, ErrorKind as IoErrorKind};
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{ConnectionAddr, PushInfo, RedisResult};

use super::clock::{Clock, server_time};
use super::dialer::Dialer;
#[cfg(feature = "redis-sentinel")]
use super::election::Election;
use super::epochs::Epochs;
use super::generation::Generation;
use super::reply::value_or_error;
#[cfg(feature = "redis-sentinel")]
use super::sentinel::Sentinels;

/// Opens connections to one master, and knows which of them are void.
pub(super) struct Connector {
    locator: Locator,
    dialer: Dialer,
    /// The estimate of the server's clock. Each new connection updates it, because the connection may lead to another
    /// server.
    clock: Arc<Clock>,
    epochs: Arc<Epochs>,
}

/// How the address of the master is determined for each new connection.
enum Locator {
    Fixed(ConnectionAddr),
    #[cfg(feature = "redis-sentinel")]
    Elected(Arc<Election>),
}

/// A connection to the master that has answered once.
pub(super) struct OpenConnection {
    pub(super) connection: MultiplexedConnection,
    /// Host and port of the server.
    pub(super) address: String,
    /// The epoch of the master that the connection belongs to.
    pub(super) epoch: u64,
}

impl Connector {
    /// Creates a connector to a server at a fixed address.
    pub(super) fn to_address(
        address: ConnectionAddr,
        dialer: Dialer,
        clock: Arc<Clock>,
        generation: Arc<Generation>,
    ) -> Self {
        let epochs = Arc::new(Epochs::new(generation));
        Self { locator: Locator::Fixed(address), dialer, clock, epochs }
    }

    /// Creates a connector to the master that these sentinels elect.
    #[cfg(feature = "redis-sentinel")]
    pub(super) fn to_elected_master(
        sentinels: Sentinels,
        dialer: Dialer,
        clock: Arc<Clock>,
        generation: Arc<Generation>,
    ) -> Self {
        let epochs = Arc::new(Epochs::new(generation));
        let election = Election::new(sentinels, dialer.clone(), Arc::clone(&epochs));
        Self { locator: Locator::Elected(Arc::new(election)), dialer, clock, epochs }
    }

    /// Connects and reads the server's clock. The connect timeout limits both together.
    pub(super) async fn open(
        &self,
        response_timeout: Option<Duration>,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<OpenConnection> {
        let no_reply = |_| Error::new(IoErrorKind::TimedOut, "no reply to the first command");
        let opened = self.open_without_limit(response_timeout, on_push);
        tokio::time::timeout(self.dialer.limit, opened).await.map_err(no_reply)?
    }

    async fn open_without_limit(
        &self,
        response_timeout: Option<Duration>,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<OpenConnection> {
        let mut epoch = self.epochs.current();
        let (mut connection, address, is_another_server) = match &self.locator {
            Locator::Fixed(address) => {
                let connection = self.dialer.dial(address, response_timeout, on_push).await?;
                (connection, address.to_string(), false)
            }
            #[cfg(feature = "redis-sentinel")]
            Locator::Elected(election) => {
                election.dial_master(epoch, response_timeout, Arc::new(on_push)).await?
            }
        };
        self.observe_clock(&mut connection).await?;
        self.epochs.generation().grow();
        if is_another_server || self.epochs.has_broken(epoch) {
            // This connection replaces a broken one. The other connections of that epoch may lead to another server.
            self.epochs.end(epoch);
            epoch += 1;
        }
        Ok(OpenConnection { connection, address, epoch })
    }

    /// Reads the server's clock over this connection, which also shows that the server answers.
    pub(super) async fn observe_clock(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let sent = self.clock.moment();
        let time = connection.req_packed_command(&redis::cmd("TIME")).await?;
        if let Some(server_us) = server_time(&value_or_error(time)?) {
            self.clock.observe(server_us, sent);
        }
        Ok(())
    }

    /// Asks the sentinels at once whether they have elected another master. Call it when the current master lacks
    /// replicas.
    pub(super) fn suspect(&self) {
        #[cfg(feature = "redis-sentinel")]
        if let Locator::Elected(election) = &self.locator {
            election.suspect();
        }
    }

    pub(super) fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Returns the time limit for one connection.
    pub(super) fn limit(&self) -> Duration {
        self.dialer.limit
    }

    /// Returns the name of the master: its address, or the name that the sentinels use.
    pub(super) fn name(&self) -> String {
        match &self.locator {
            Locator::Fixed(address) => address.to_string(),
            #[cfg(feature = "redis-sentinel")]
            Locator::Elected(election) => election.master_name().to_owned(),
        }
    }
}
