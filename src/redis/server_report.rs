//! What the reply to `INFO` says about the version, persistence, memory and replication of a server.

use std::collections::HashMap;

use crate::backend::Finding;

/// The oldest versions that the backend supports.
const REDIS: (u32, u32) = (6, 2);
const VALKEY: (u32, u32) = (7, 2);
/// How many slots a cluster has.
const SLOTS: u64 = 16_384;
/// After how many seconds without an acknowledgment a replica lags.
const LAG_SECONDS: u64 = 10;

/// The settings that `INFO` does not show.
pub(super) enum Settings {
    Known(HashMap<String, String>),
    /// Why the server does not tell them.
    Unknown(String),
}

impl Settings {
    fn get(&self, name: &str) -> Option<&str> {
        match self {
            Self::Known(settings) => settings.get(name).map(String::as_str),
            Self::Unknown(_) => None,
        }
    }
}

/// The fields of a reply to `INFO`.
pub(super) struct ServerReport<'a>(HashMap<&'a str, &'a str>);

impl<'a> ServerReport<'a> {
    pub(super) fn read(text: &'a str) -> Self {
        Self(text.lines().filter_map(|line| line.trim_end().split_once(':')).collect())
    }

    pub(super) fn findings(&self, settings: &Settings) -> Vec<Finding> {
        let mut findings = vec![self.version(), self.persistence(settings), self.memory()];
        findings.push(match settings.get("lazyfree-lazy-expire") {
            Some("yes") => Finding::green("lazyfree-lazy-expire", "yes"),
            Some(other) => Finding::yellow(
                "lazyfree-lazy-expire",
                format!("{other}: the server stops for a moment when a large index expires"),
                "set lazyfree-lazy-expire yes",
            ),
            None => Finding::yellow(
                "lazyfree-lazy-expire",
                match settings {
                    Settings::Unknown(why) => format!("cannot be checked: {why}"),
                    Settings::Known(_) => "the server does not know the setting".to_owned(),
                },
                "run doctor as a user with +config|get, or look at the settings of the server yourself",
            ),
        });
        findings.push(self.replication(settings));
        findings
    }

    fn text(&self, field: &str) -> &str {
        self.0.get(field).copied().unwrap_or_default()
    }

    fn number(&self, field: &str) -> u64 {
        self.text(field).parse().unwrap_or(0)
    }

    fn version(&self) -> Finding {
        let (name, version, oldest) = match self.text("valkey_version") {
            "" => ("Redis", self.text("redis_version"), REDIS),
            version => ("Valkey", version, VALKEY),
        };
        let mut numbers = version.split('.').map_while(|number| number.parse().ok());
        let is_supported = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= oldest;
        match is_supported {
            true => Finding::green("version", format!("{name} {version}")),
            false => Finding::red(
                "version",
                format!("{name} {version} is not supported"),
                "use Redis 6.2, Valkey 7.2 or newer",
            ),
        }
    }

    fn persistence(&self, settings: &Settings) -> Finding {
        const CHECK: &str = "persistence";
        let failed = |field: &str| self.text(field) == "err";
        if failed("aof_last_write_status") || failed("rdb_last_bgsave_status") {
            return Finding::red(
                CHECK,
                "the last write to the disk failed, so the server may refuse writes and a crash loses tasks",
                "look at the log of the server, its disk and the permissions of its folder",
            );
        }
        let has_snapshots = settings.get("save").map(|save| !save.is_empty());
        match (self.text("aof_enabled"), settings.get("appendfsync"), has_snapshots) {
            ("1", Some("no"), _) => Finding::yellow(
                CHECK,
                "appendonly yes with appendfsync no: a crash of the machine loses up to about 30 s of writes",
                "set appendfsync everysec or always",
            ),
            ("1", Some(sync), _) => Finding::green(CHECK, format!("appendonly yes, appendfsync {sync}")),
            ("1", None, _) => Finding::green(CHECK, "appendonly yes"),
            (_, _, Some(false)) => Finding::red(
                CHECK,
                "none: a crash or a restart of the server loses all tasks",
                "set appendonly yes",
            ),
            _ => Finding::yellow(
                CHECK,
                "no append-only file: a crash of the server loses what was written since the last snapshot",
                "set appendonly yes",
            ),
        }
    }

    fn memory(&self) -> Finding {
        const CHECK: &str = "maxmemory-policy";
        let (policy, limit) = (self.text("maxmemory_policy"), self.number("maxmemory"));
        let (used, evicted) = (self.number("used_memory"), self.number("evicted_keys"));
        let advice = "set maxmemory-policy noeviction";
        match policy {
            "noeviction" if limit > 0 && used >= limit / 10 * 9 => Finding::yellow(
                CHECK,
                format!("noeviction, and {used} of {limit} bytes are used; writes fail when none is left"),
                "raise maxmemory, or shorten the retention of tasks",
            ),
            "noeviction" if evicted > 0 => Finding::yellow(
                CHECK,
                format!("noeviction now, but the server has evicted {evicted} keys since it started"),
                "run doctor --repair, and look for tasks that are missing",
            ),
            "noeviction" => Finding::green(CHECK, policy),
            _ if limit > 0 => Finding::red(
                CHECK,
                format!(
                    "{policy}: the server evicts tasks and timers when {limit} bytes are used; so far {evicted} keys"
                ),
                advice,
            ),
            _ => Finding::yellow(
                CHECK,
                format!("{policy}: once maxmemory is set, the server evicts tasks and timers"),
                advice,
            ),
        }
    }

    fn replication(&self, settings: &Settings) -> Finding {
        const CHECK: &str = "replication";
        if self.text("role") != "master" {
            return Finding::red(
                CHECK,
                "the server is a replica and refuses writes",
                "use the URL of the master, or redis+sentinel:// or redis+cluster://",
            );
        }
        let replicas = self.number("connected_slaves");
        let lagging =
            (0..replicas).filter(|number| self.is_lagging(&format!("slave{number}"))).count() as u64;
        let wanted = settings.get("min-replicas-to-write").and_then(|count| count.parse().ok()).unwrap_or(0);
        let shown = match replicas {
            0 => "a master without replicas".to_owned(),
            1 => "a master with 1 replica".to_owned(),
            _ => format!("a master with {replicas} replicas"),
        };
        if replicas.saturating_sub(lagging) < wanted {
            return Finding::red(
                CHECK,
                format!("{shown}, of which {lagging} lag; min-replicas-to-write {wanted} refuses writes"),
                "start the replicas, and look at their logs",
            );
        }
        match lagging {
            0 => Finding::green(CHECK, shown),
            _ => Finding::yellow(
                CHECK,
                format!("{shown}, of which {lagging} lag; a failover to them loses tasks"),
                "look at the logs of the replicas and at the network",
            ),
        }
    }

    /// Returns whether a replica is not online, or has acknowledged nothing for some time.
    fn is_lagging(&self, field: &str) -> bool {
        let fields: HashMap<&str, &str> =
            self.text(field).split(',').filter_map(|field| field.split_once('=')).collect();
        let lag = fields.get("lag").and_then(|lag| lag.parse().ok()).unwrap_or(0);
        fields.get("state") != Some(&"online") || lag > LAG_SECONDS
    }
}

/// Reads the reply to `CLUSTER INFO`.
pub(super) fn slots(text: &str) -> Finding {
    const CHECK: &str = "cluster";
    let report = ServerReport::read(text);
    let (assigned, ok) = (report.number("cluster_slots_assigned"), report.number("cluster_slots_ok"));
    let (nodes, masters) = (report.number("cluster_known_nodes"), report.number("cluster_size"));
    if report.text("cluster_state") == "ok" && assigned == SLOTS && ok == SLOTS {
        return Finding::green(CHECK, format!("all slots are served by {masters} masters of {nodes} nodes"));
    }
    Finding::red(
        CHECK,
        format!("of {SLOTS} slots, {assigned} are assigned and {ok} are served"),
        "run redis-cli --cluster check, and start the nodes that are down",
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::backend::Health;

    const GOOD: &str = "# Server\r\nredis_version:7.0.15\r\naof_enabled:1\r\naof_last_write_status:ok\r\n\
        rdb_last_bgsave_status:ok\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\nevicted_keys:0\r\nused_memory:1000\r\n\
        role:master\r\nconnected_slaves:1\r\nslave0:ip=::1,port=7001,state=online,offset=1,lag=0\r\n";

    fn settings(changes: &[(&str, &str)]) -> Settings {
        let mut settings = HashMap::new();
        let good = [("save", ""), ("appendfsync", "everysec"), ("lazyfree-lazy-expire", "yes")];
        for (name, value) in good.iter().chain(changes) {
            settings.insert((*name).to_owned(), (*value).to_owned());
        }
        Settings::Known(settings)
    }

    fn only_bad(text: &str, settings: &Settings) -> Vec<(String, Health)> {
        let findings = ServerReport::read(text).findings(settings).into_iter();
        findings
            .filter(|found| found.health > Health::Green)
            .map(|found| (found.check, found.health))
            .collect()
    }

    #[rstest]
    #[case::good("", "", &[], None)]
    #[case::old("7.0.15", "6.0.9", &[], Some(("version", Health::Red)))]
    #[case::old_valkey("# Server", "valkey_version:7.1.0", &[], Some(("version", Health::Red)))]
    #[case::valkey("# Server", "valkey_version:9.1.2", &[], None)]
    #[case::nothing_on_disk("aof_enabled:1", "aof_enabled:0", &[], Some(("persistence", Health::Red)))]
    #[case::snapshots_only("aof_enabled:1", "aof_enabled:0", &[("save", "60 1")], Some(("persistence", Health::Yellow)))]
    #[case::no_sync("", "", &[("appendfsync", "no")], Some(("persistence", Health::Yellow)))]
    #[case::disk_fails("aof_last_write_status:ok", "aof_last_write_status:err", &[], Some(("persistence", Health::Red)))]
    #[case::evicts("maxmemory:0\r\nmaxmemory_policy:noeviction", "maxmemory:9\r\nmaxmemory_policy:allkeys-lru", &[], Some(("maxmemory-policy", Health::Red)))]
    #[case::may_evict("noeviction", "volatile-ttl", &[], Some(("maxmemory-policy", Health::Yellow)))]
    #[case::has_evicted("evicted_keys:0", "evicted_keys:7", &[], Some(("maxmemory-policy", Health::Yellow)))]
    #[case::nearly_full("maxmemory:0", "maxmemory:1100", &[], Some(("maxmemory-policy", Health::Yellow)))]
    #[case::not_lazy("", "", &[("lazyfree-lazy-expire", "no")], Some(("lazyfree-lazy-expire", Health::Yellow)))]
    #[case::replica("role:master", "role:slave", &[], Some(("replication", Health::Red)))]
    #[case::too_few("", "", &[("min-replicas-to-write", "2")], Some(("replication", Health::Red)))]
    #[case::lags("lag=0", "lag=60", &[], Some(("replication", Health::Yellow)))]
    #[case::offline("state=online", "state=wait_bgsave", &[], Some(("replication", Health::Yellow)))]
    fn each_fault_of_a_server_is_one_finding(
        #[case] good: &str,
        #[case] bad: &str,
        #[case] changes: &[(&str, &str)],
        #[case] found: Option<(&str, Health)>,
    ) {
        let text = if good.is_empty() { GOOD.to_owned() } else { GOOD.replace(good, bad) };
        let found: Vec<_> = found.into_iter().map(|(check, health)| (check.to_owned(), health)).collect();
        assert_eq!(only_bad(&text, &settings(changes)), found);
    }

    #[test]
    fn settings_that_the_user_may_not_read_are_yellow() {
        let found = only_bad(GOOD, &Settings::Unknown("no".to_owned()));
        assert_eq!(found, [("lazyfree-lazy-expire".to_owned(), Health::Yellow)]);
    }

    #[test]
    fn a_cluster_is_green_only_if_every_slot_is_served() {
        let text = "cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\ncluster_known_nodes:6\r\n";
        assert_eq!(slots(text).health, Health::Green);
        for (good, bad) in
            [("state:ok", "state:fail"), ("assigned:16384", "assigned:16383"), ("ok:16384", "ok:10000")]
        {
            assert_eq!(slots(&text.replace(good, bad)).health, Health::Red, "{bad}");
        }
    }
}
