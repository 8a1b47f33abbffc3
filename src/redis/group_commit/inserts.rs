//! Creates of records that expire and have no parts.

use chrono::{DateTime, Utc};

use super::{Batched, Replies, Transport};
use crate::redis::in_flight::InFlight;
use crate::redis::reply::CommandError;
use crate::scripts::{CREATE, Create, INSERT, Insert, Inserted, Inserts, Notice, UnexpectedReply};

impl Batched for Insert {
    /// When the record expires.
    type Reply = DateTime<Utc>;

    fn task(&self) -> &str {
        &self.keys.task
    }

    fn payload(&self) -> usize {
        self.data.len()
    }

    fn may_join(&self, other: &Self) -> bool {
        match (&self.timer, &other.timer) {
            (Some(timer), Some(other)) => timer.due == other.due,
            (None, None) => true,
            _ => false,
        }
    }

    async fn send(
        writes: &[Self],
        transport: &Transport,
        in_flight: &dyn InFlight,
    ) -> Result<Replies<Self>, CommandError> {
        let key = &writes[0].keys.task;
        let channel = writes[0].timer.as_ref().and_then(|timer| timer.channel.clone());
        let notice = match channel {
            Some(channel) => {
                let pubsub = transport.connection.pubsub(key).await?;
                pubsub.map(|pubsub| Notice { channel, pubsub })
            }
            None => None,
        };
        let (Inserted(each), unconfirmed) = match writes {
            [write] if write.timer.is_none() => {
                transport.run(&CREATE, &Create(write), key, in_flight).await?
            }
            _ => transport.run(&INSERT, &Inserts { records: writes, notice }, key, in_flight).await?,
        };
        if each.len() != writes.len() {
            return Err(CommandError::Unexpected(UnexpectedReply));
        }
        Ok(Replies { each: each.into_iter().map(|expires_at| expires_at.map(Ok)).collect(), unconfirmed })
    }
}
