//! Checks the servers: their version and settings, the permissions of the user, and the speed of small calls.

use std::collections::HashMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use chrono::Utc;
use redis::{Cmd, Value};

use super::RedisBackend;
use super::clock::server_time;
use super::connection::MasterOfSlots;
use super::error::{ProbeError, probe_error};
use super::reply::CommandError;
use super::server_report::{ServerReport, Settings};
use crate::backend::engine::from_micros;
use crate::backend::{Finding, StorageError};
use crate::printable::Chain;
use crate::spans::engine_span;

/// How many small calls measure the latency.
const CALLS: usize = 300;
/// From which 99th percentile on the latency is yellow.
const SLOW: Duration = Duration::from_millis(100);
/// From which difference on the clock of a server is yellow.
const CLOCK_OFFSET: Duration = Duration::from_secs(1);

impl RedisBackend {
    /// Checks all masters.
    pub(super) async fn findings(&self) -> Result<Vec<Finding>, StorageError> {
        let context = self.reads("");
        let asked = pin!(async {
            let masters = self.0.connection.masters().await;
            masters.map_err(|failure| context.storage_error(failure))
        });
        let masters = self.limited(engine_span!("diagnose"), &context, asked).await?;
        let mut findings = vec![self.permissions().await];
        for master in &masters {
            let before = findings.len();
            self.check_master(master, &mut findings).await?;
            if masters.len() > 1 {
                for finding in &mut findings[before..] {
                    finding.what = format!("{}:{}: {}", master.host, master.port, finding.what);
                }
            }
        }
        findings.push(self.latency().await?);
        if self.0.schema.has_hash_tags() {
            findings.extend(self.slots(masters.first()).await?);
        }
        Ok(findings)
    }

    /// Tries each command that a server of tasks runs.
    async fn permissions(&self) -> Finding {
        const CHECK: &str = "permissions";
        let context = self.reads("");
        let probe = pin!(self.probe());
        match self.limited(engine_span!("probe"), &context, probe).await {
            Ok(()) => Finding::green(CHECK, "the user may run every command that a server of tasks runs"),
            Err(error) => Finding::red(
                CHECK,
                Chain(&error).to_string(),
                "grant the ACL rule that docs/operations.md lists",
            ),
        }
    }

    async fn check_master(
        &self,
        master: &MasterOfSlots,
        findings: &mut Vec<Finding>,
    ) -> Result<(), StorageError> {
        match self.info(master).await? {
            Ok(text) => {
                let settings = self.settings(master).await?;
                findings.extend(ServerReport::read(&text).findings(&settings));
            }
            Err(why) => findings.push(Finding::yellow(
                "server",
                format!("version, persistence, memory and replication cannot be checked: {why}"),
                "run doctor as a user with +info and +config|get",
            )),
        }
        findings.push(self.clock_offset(master).await?);
        Ok(())
    }

    /// Returns the reply to `INFO`, or why the server gives none.
    async fn info(&self, master: &MasterOfSlots) -> Result<Result<String, String>, StorageError> {
        let reply = self.ask(master, &redis::cmd("INFO")).await?;
        Ok(reply.and_then(|reply| redis::from_redis_value(reply).map_err(|error| error.to_string())))
    }

    /// Returns the settings that `INFO` does not show.
    async fn settings(&self, master: &MasterOfSlots) -> Result<Settings, StorageError> {
        let mut settings = HashMap::new();
        // One name a call: 6.2 takes no more.
        for name in ["save", "appendfsync", "lazyfree-lazy-expire", "min-replicas-to-write"] {
            let mut get = redis::cmd("CONFIG");
            get.arg("GET").arg(name);
            let reply = self.ask(master, &get).await?;
            let read = reply.and_then(|reply| {
                redis::from_redis_value::<HashMap<String, String>>(reply).map_err(|error| error.to_string())
            });
            match read {
                Ok(values) => settings.extend(values),
                Err(why) => return Ok(Settings::Unknown(why)),
            }
        }
        Ok(Settings::Known(settings))
    }

    /// Sends a command to a master. Returns its reply, or why the server refuses the command.
    async fn ask(
        &self,
        master: &MasterOfSlots,
        command: &Cmd,
    ) -> Result<Result<Value, String>, StorageError> {
        let context = self.reads("");
        let call = pin!(async {
            match self.0.connection.send_to_master(master, command).await {
                Ok(reply) => Ok(Ok(reply)),
                Err(CommandError::ErrorReply(error)) => Ok(Err(match probe_error(&error) {
                    ProbeError::Denied => "the user may not run the command".to_owned(),
                    ProbeError::UnknownCommand => "the server does not have the command".to_owned(),
                    _ => Chain(&error).to_string(),
                })),
                Err(failure) => Err(context.storage_error(failure)),
            }
        });
        self.limited(engine_span!("ask"), &context, call).await
    }

    async fn clock_offset(&self, master: &MasterOfSlots) -> Result<Finding, StorageError> {
        const CHECK: &str = "clock";
        let (sent, began) = (Utc::now(), Instant::now());
        let reply = self.ask(master, &redis::cmd("TIME")).await?;
        let half = began.elapsed() / 2;
        let Some(server_us) = reply.ok().as_ref().and_then(server_time) else {
            return Ok(Finding::yellow(
                CHECK,
                "the server does not tell its clock",
                "permit the command TIME",
            ));
        };
        let offset = (from_micros(server_us) - sent).num_milliseconds() - half.as_millis() as i64;
        let shown = format!("the clock of the server differs from this machine's by {offset} ms");
        // The error of this measurement is at most half of the round trip.
        Ok(match Duration::from_millis(offset.unsigned_abs()) >= CLOCK_OFFSET + half {
            false => Finding::green(CHECK, shown),
            true => Finding::yellow(
                CHECK,
                shown,
                "synchronize both clocks; the clock of the server alone decides what has expired",
            ),
        })
    }

    async fn latency(&self) -> Result<Finding, StorageError> {
        const CHECK: &str = "latency";
        let key = self.0.schema.probe();
        let context = self.reads(&key);
        let mut exists = redis::cmd("EXISTS");
        exists.arg(&key);
        let mut times = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let began = Instant::now();
            let call = pin!(self.send(&exists, &context));
            self.limited(engine_span!("latency"), &context, call).await?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        let percentile = |hundredths: usize| times[(times.len() - 1) * hundredths / 100];
        let (median, slowest) = (percentile(50), percentile(99));
        let shown =
            format!("of {CALLS} small calls, half took up to {median:.1?}, and 99 % up to {slowest:.1?}");
        let advice = "run doctor on the machine of a server; if it is slow there too, look at the network and at SLOWLOG";
        Ok(match slowest {
            _ if slowest >= self.0.limit / 4 => Finding::red(CHECK, shown, advice),
            _ if slowest >= SLOW => Finding::yellow(CHECK, shown, advice),
            _ => Finding::green(CHECK, shown),
        })
    }

    /// Checks the slots of a cluster; `None` if the server is not part of one.
    async fn slots(&self, master: Option<&MasterOfSlots>) -> Result<Option<Finding>, StorageError> {
        let Some(master) = master else { return Ok(None) };
        let mut info = redis::cmd("CLUSTER");
        info.arg("INFO");
        let reply = self.ask(master, &info).await?;
        let Some(text) = reply.ok().and_then(|reply| redis::from_redis_value::<String>(reply).ok()) else {
            return Ok(None);
        };
        Ok(Some(super::server_report::slots(&text)))
    }
}
