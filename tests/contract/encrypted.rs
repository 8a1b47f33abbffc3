//! Encryption at rest: the contract on encrypted engines, and what is stored.

mod refused;
mod rotation;
mod sizes;
mod stored;

use mcp_task_store::conformance::Subject;
use mcp_task_store::{ENVELOPE_BYTES, conformance_tests};

use crate::capabilities;
use crate::support::encryption::encrypting;
use crate::support::{Engine, MAX_PART_BYTES};

/// The contract on each engine, with encrypted records.
macro_rules! contract_on {
    ($engine:ident, $subject:expr) => {
        mod $engine {
            use super::*;

            async fn open() -> Subject {
                let subject: Subject = $subject.await;
                subject.capabilities(capabilities().max_part_bytes(MAX_PART_BYTES - ENVELOPE_BYTES))
            }

            conformance_tests!(open);
        }
    };
}

contract_on!(memory, async { Subject::new(encrypting(Engine::Memory.open().await).backend) });
contract_on!(sqlite, async { crate::sqlite::subject(encrypting(Engine::Sqlite.open().await)) });
contract_on!(redis, async {
    crate::redis::subject(encrypting(Engine::Redis.open().await), crate::redis::Owner::Plain)
});
contract_on!(hash_tagged, async {
    crate::redis::subject(encrypting(Engine::Sharded.open().await), crate::redis::Owner::HashTagged)
});
