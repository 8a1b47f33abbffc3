//! Compare-and-swaps that keep expiry and parts.

use redis::RedisError;
use smallvec::smallvec;

use super::{Batched, Replies, Transport};
use crate::redis::in_flight::InFlight;
use crate::redis::reply::{CommandError, without_arguments};
use crate::scripts::{CAS_PUT, CAS_PUT_BATCH, CasPut, CasPuts, Kept, UnexpectedReply};

impl Batched for CasPut {
    type Reply = Kept;

    fn task(&self) -> &str {
        &self.task
    }

    fn payload(&self) -> usize {
        self.data.len()
    }

    fn may_join(&self, _: &Self) -> bool {
        true
    }

    async fn send(
        writes: &[Self],
        transport: &Transport,
        in_flight: &dyn InFlight,
    ) -> Result<Replies<Self>, CommandError> {
        let key = &writes[0].task;
        let pubsub = match writes.iter().any(|write| write.channel.is_some()) {
            true => transport.connection.pubsub(key).await?,
            false => None,
        };
        let arguments = CasPuts { records: writes, pubsub };
        if writes.len() == 1 {
            let (kept, unconfirmed) = transport.run(&CAS_PUT, &arguments, key, in_flight).await?;
            return Ok(Replies { each: smallvec![Some(Ok(kept))], unconfirmed });
        }
        let (each, unconfirmed) = transport.run(&CAS_PUT_BATCH, &arguments, key, in_flight).await?;
        if each.len() != writes.len() {
            return Err(CommandError::Unexpected(UnexpectedReply));
        }
        let refused = |error: RedisError| CommandError::ErrorReply(without_arguments(error));
        Ok(Replies { each: each.into_iter().map(|kept| Some(kept.map_err(refused))).collect(), unconfirmed })
    }
}
