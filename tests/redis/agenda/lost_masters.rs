//! Shards of timers on the masters of a cluster, of which some are lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mcp_task_store::{
    Agenda, NewTask, Next, OwnerId, PageRequest, RedisBackend, StorageBackend, StorageError, TaskError,
    TaskStore,
};
use redis::Commands;

use super::{
    HOUR, NOW, PATIENCE, RESPONSE_TIMEOUT, connect, item, keys, leases, queue, quiet, take, wakeups,
};
use crate::support::cluster::Cluster;
use crate::support::redis::command;
use crate::support::{key, owner};

/// One owner for each shard, by the shard of its timer.
async fn owners_by_shard(backend: &RedisBackend, cluster: &Cluster) -> BTreeMap<u64, String> {
    let mut owners = BTreeMap::new();
    for number in 0..2000 {
        let name = format!("owner-{number}");
        let queue = queue("probe");
        backend.schedule(&queue, &key(&name, "t1"), NOW).await.unwrap();
        let holds = |shard: &u64| {
            let due = format!("pmcp:due:{{{shard}}}:probe");
            let mut master = cluster.nodes[cluster.master_for(&due)].connection();
            master.exists::<_, bool>(&due).unwrap()
        };
        let shard = (0..16).find(holds).expect("one of 16 shards");
        owners.entry(shard).or_insert(name);
        for due in backend.take_due(&[queue], 256, HOUR).await.unwrap().due {
            assert!(backend.resolve(&due, Next::Remove).await.unwrap());
        }
        if owners.len() == 16 {
            return owners;
        }
    }
    panic!("no owner for each shard: {owners:?}");
}

/// A cluster of three masters whose shards of timers have an owner each.
struct Sharded {
    cluster: Cluster,
    backend: RedisBackend,
    owners: BTreeMap<u64, String>,
    /// The master of each shard.
    masters: BTreeMap<u64, usize>,
    /// The master that a test loses.
    lost: usize,
}

impl Sharded {
    async fn start() -> Self {
        let cluster = Cluster::start(3, 0);
        for node in &cluster.nodes {
            let partly = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
            let _: () = command(&mut node.connection(), partly);
        }
        let backend = connect(&cluster).await;
        let owners = owners_by_shard(&backend, &cluster).await;
        let masters: BTreeMap<u64, usize> =
            (0..16).map(|shard| (shard, cluster.master_for(&format!("{{{shard}}}")))).collect();
        let by_master = (0..3).map(|node| masters.values().filter(|master| **master == node).count());
        let by_master: Vec<usize> = by_master.collect();
        println!("figure | shards of timers on each of three masters | {by_master:?}");
        assert!(by_master.iter().all(|count| *count > 0), "{by_master:?}");
        let lost = masters[&0];
        Self { cluster, backend, owners, masters, lost }
    }

    fn is_lost(&self, shard: u64) -> bool {
        self.masters[&shard] == self.lost
    }

    /// The owners whose timers are on the other masters.
    fn healthy(&self) -> BTreeSet<&String> {
        let healthy = self.owners.iter().filter(|(shard, _)| !self.is_lost(**shard));
        healthy.map(|(_, owner)| owner).collect()
    }

    /// An owner whose timers are on the lost master and whose records are not.
    fn owner_with_records_elsewhere(&self) -> OwnerId {
        let of_lost_shards = self.owners.iter().filter(|(shard, _)| self.is_lost(**shard));
        let mut owners = of_lost_shards.map(|(_, owner)| owner);
        let found = owners.find(|owner| self.cluster.master_for(&format!("{{{owner}}}")) != self.lost);
        owner(found.expect("an owner with records elsewhere"))
    }

    async fn schedule_all(&self) {
        for owner in self.owners.values() {
            self.backend.schedule(&leases(), &key(owner, "t1"), NOW).await.unwrap();
        }
    }

    fn signal(&self, name: &str) {
        self.cluster.nodes[self.lost].signal(name);
    }

    async fn all_shards_answer_again(&self) {
        let all = async {
            while take(&self.backend).await.next_in.is_none_or(|next| next <= Duration::from_secs(1)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("all shards answer again");
    }

    async fn assert_all_other_timers_are_taken(&self, signal: &str) {
        let (since, healthy) = (Instant::now(), self.healthy());
        let (mut found, mut rounds) = (BTreeSet::new(), 0);
        while found.len() < healthy.len() {
            let taken = take(&self.backend).await;
            found.extend(taken.due.iter().map(|due| due.key.owner.to_string()));
            assert!(taken.next_in.is_some_and(|next| next <= Duration::from_secs(1)), "{taken:?}");
            rounds += 1;
        }
        println!(
            "figure | a master of timers gets SIG{signal}: until those of the others are taken | {:.0?}, {rounds} calls",
            since.elapsed()
        );
        assert_eq!(found.iter().collect::<BTreeSet<_>>(), healthy);
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    }

    async fn assert_the_lost_master_delays_no_call(&self) {
        let (since, healthy) = (Instant::now(), self.healthy());
        for owner in healthy.iter().cycle().take(10) {
            self.backend.schedule(&leases(), &key(owner, "t2"), NOW).await.unwrap();
            assert_eq!(keys(&take(&self.backend).await), [format!("{owner}:t2")]);
        }
        println!("figure | the same, a schedule and a take_due from then on | {:.0?}", since.elapsed() / 10);
        assert!(since.elapsed() / 10 < RESPONSE_TIMEOUT / 2, "{:?}", since.elapsed() / 10);
    }

    async fn assert_timers_of_the_lost_master_are_unavailable(&self) {
        let error = self.backend.schedule(&leases(), &key(&self.owners[&0], "t9"), NOW).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
        let refused = self.backend.timers(&leases(), None).await;
        assert!(matches!(refused, Err(StorageError::Unavailable { .. })), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_each_shard_yields_a_wakeup_and_one_call_takes_from_all_shards() {
    let sharded = Sharded::start().await;
    let backend = &sharded.backend;
    let mut stream = wakeups(backend);
    item(&mut stream).await;
    quiet(&mut stream).await;
    for owner in sharded.owners.values() {
        backend.schedule(&leases(), &key(owner, "t1"), NOW).await.unwrap();
        item(&mut stream).await;
    }
    let taken = take(backend).await;
    assert_eq!(taken.due.len(), 16);
    for due in &taken.due {
        assert!(backend.resolve(due, Next::After(NOW)).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_a_lost_master_delays_only_its_own_timers() {
    let sharded = Sharded::start().await;
    // The stream of wakeups remains open.
    let mut stream = wakeups(&sharded.backend);
    item(&mut stream).await;
    for signal in ["STOP", "KILL"] {
        sharded.schedule_all().await;
        sharded.signal(signal);
        sharded.assert_all_other_timers_are_taken(signal).await;
        sharded.assert_the_lost_master_delays_no_call().await;
        sharded.assert_timers_of_the_lost_master_are_unavailable().await;
        if signal == "STOP" {
            sharded.signal("CONT");
            sharded.all_shards_answer_again().await;
        }
    }
}

/// The records of the owner are on a master that replies.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_a_task_whose_timer_cannot_be_set_is_not_created() {
    let sharded = Sharded::start().await;
    let (backend, owner) = (&sharded.backend, sharded.owner_with_records_elsewhere());
    sharded.signal("KILL");
    sharded.assert_timers_of_the_lost_master_are_unavailable().await;
    let tasks = TaskStore::new(backend.clone());
    let started = tasks.start(&owner, NewTask::new("tools/call")).await;
    assert!(matches!(started, Err(TaskError::Storage(StorageError::Unavailable { .. }))), "{started:?}");
    assert!(backend.list(&owner, PageRequest::new(9)).await.unwrap().records.is_empty());
    tasks.create(&owner, NewTask::new("tools/call")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_that_has_lost_all_masters_take_due_is_unavailable() {
    let cluster = Cluster::start(2, 0);
    let backend = connect(&cluster).await;
    backend.schedule(&leases(), &key("alice", "t1"), NOW).await.unwrap();
    cluster.nodes.iter().for_each(|node| node.signal("KILL"));
    let error = backend.take_due(&[leases()], 5, HOUR).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
}
