//! Writes over a network: with group commit, and the same calls sent singly.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;
use mcp_task_store::RedisBackend;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, IntoConnectionInfo};

use crate::bench::Bench;
use crate::contender::{Contender, HOUR, Ours};
use crate::format::{micros, short};
use crate::proxy::Proxy;
use crate::record::{Records, TYPICAL, records};
use crate::report::Report;
use crate::rounds::{Numbers, Samples, alternate_all, time_each};
use crate::row::{Row, Target};

const OWNERS: usize = 64;
const ROUND_TRIPS: [u64; 2] = [1, 10];
const IN_FLIGHT: [usize; 2] = [64, 256];
const CALLS_IN_A_ROW: usize = 12;

pub async fn rows(bench: &Bench, report: &mut Report) -> Result<()> {
    for millis in ROUND_TRIPS {
        let proxy = Proxy::start(bench.server.address(), Duration::from_millis(millis))?;
        for in_flight in IN_FLIGHT {
            bench.step(&format!("{in_flight} in flight over a network with a round trip of {millis} ms"));
            let writers = [Writers::grouped(&proxy).await?, Writers::single(&proxy, in_flight).await?];
            let records =
                records::<Ours>(bench.form.count(CALLS_IN_A_ROW * in_flight), OWNERS, TYPICAL, HOUR);
            let [creates, swaps] = alternate_all(bench.form.rounds, async |turn| {
                bench.server.clear()?;
                let create = writers[turn].write(&records, in_flight, None).await?;
                Ok([create, writers[turn].write(&records, in_flight, Some(1)).await?])
            })
            .await?;
            let place = format!("{in_flight} in flight, {millis} ms of added round trip");
            report.add(row(format!("create, {place}"), &creates));
            report.add(row(format!("`put_if_version` with `Keep`, {place}"), &swaps));
        }
    }
    Ok(())
}

fn row(work: String, [grouped, single]: &[Samples; 2]) -> Row {
    let row = Row::new(work).ours(micros(grouped));
    let what = format!(
        "the throughput of the same calls sent singly ({} µs): one backend for each call in flight, all over one connection",
        short(single.median())
    );
    row.ratio(&what, &single.over(grouped), Target::AtLeast(1.0)).reason(
        "the reply to a batch arrives when the server has written its last record, some hundred microseconds after the first",
    )
}

/// One or more backends over one connection. A backend sends a write singly if none of its other writes is in progress.
struct Writers(Arc<Vec<Ours>>);

impl Writers {
    /// One backend, whose writes meet.
    async fn grouped(proxy: &Proxy) -> Result<Self> {
        Self::single(proxy, 1).await
    }

    /// A backend for each call in flight.
    async fn single(proxy: &Proxy, in_flight: usize) -> Result<Self> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
        // Like the connections that a backend makes itself. With Nagle's algorithm, the end of a burst of writes waits for
        // the replies to its beginning.
        let tcp = TcpSettings::default().set_nodelay(true);
        let client = redis::Client::open(proxy.url().into_connection_info()?.set_tcp_settings(tcp))?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let backends = (0..in_flight).map(|_| RedisBackend::builder().over(connection.clone()));
        Ok(Self(Arc::new(try_join_all(backends).await?.into_iter().map(Ours).collect())))
    }

    /// Returns the microseconds per create, or per compare-and-swap at this version.
    async fn write(&self, records: &Records<Ours>, in_flight: usize, over: Option<u64>) -> Result<f64> {
        let worker = |slot: usize, numbers: Numbers| {
            let (backend, records) = (self.0[slot % self.0.len()].clone(), Arc::clone(records));
            async move {
                for number in numbers {
                    let (key, data) = &records[number];
                    match over {
                        None => backend.create(key, data.clone(), HOUR).await?,
                        Some(version) => backend.swap(key, data.clone(), version).await?,
                    }
                }
                Ok(())
            }
        };
        time_each(records.len(), in_flight, worker).await
    }
}
