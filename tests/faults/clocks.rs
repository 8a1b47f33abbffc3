//! Only the server's clock counts. A process whose wall clock is wrong, or jumps, gets the same results as the others. After a
//! failover, the backend follows the clock of the new server.
//!
//! Debian's `faketime` falsifies the clocks.

mod alike;
mod failover;
mod leases;
mod other;
mod process;
mod set_back;
mod stepped;
mod unique;

use chrono::{DateTime, TimeDelta, Utc};
use process::moment;

use crate::support::redis::{Server, command};

const HOUR_MS: u64 = 3_600_000;
/// Long enough that a busy machine reads the record before it expires.
const SOON_MS: u64 = 700;
/// How far `now()` may lag behind the server: ten times the promised second.
const MOST_LAG: TimeDelta = TimeDelta::seconds(10);

fn figure(what: &str, value: TimeDelta) {
    println!("figure | {what} | {:.3} ms", value.as_seconds_f64() * 1000.0);
}

fn time_of(server: &Server) -> DateTime<Utc> {
    let (seconds, micros) = command(&mut server.connection(), ["TIME"]);
    moment(seconds, micros)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is the other process of the tests in this module"]
async fn the_other_process() {
    other::serve().await;
}
