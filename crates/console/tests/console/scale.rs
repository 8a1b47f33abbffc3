//! Many tasks.

use std::time::{Duration, Instant};

use mcp_task_store::{NewTask, StoreConfig, TaskStore};
use rstest_reuse::apply;

use crate::support::{Engine, Store, on_every_engine, owner};

const TASKS: usize = 100_000;
/// A page takes less than 200 ms in a release build on an idle machine. A test may run on a busy one.
pub const LIMIT: Duration = Duration::from_secs(2);

/// Opens a store with 100,000 open tasks of 100 owners and 20 tools.
pub async fn store_with_many_tasks(engine: Engine) -> Store {
    let store = engine.open().await;
    let config = StoreConfig::new().observer(true).max_tasks_per_owner(None);
    let writer = TaskStore::with_config(store.backend(), config);
    let create = |number: usize| {
        let writer = &writer;
        async move {
            let new = NewTask::new("tools/call").operation(format!("tool {}", number % 20));
            writer.create(&owner(&format!("owner {}", number % 100)), new).await.unwrap()
        }
    };
    for begin in (0..TASKS).step_by(500) {
        futures_util::future::join_all((begin..begin + 500).map(create)).await;
    }
    store
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_hundred_thousand_tasks_is_quick(#[case] engine: Engine) {
    let browser = store_with_many_tasks(engine).await.browse().await;
    let mut slowest = Duration::ZERO;
    for path in ["/", "/tasks", "/tasks?tool=tool+7&only=open&page=90", "/tasks?id=0a", "/owners"] {
        let begun = Instant::now();
        let page = browser.page(path).await;
        let took = begun.elapsed();
        assert!(took < LIMIT, "{path}: {took:?}");
        assert!(path != "/" || page.contains("100,000"), "{page}");
        println!("{path}: {took:?}");
        slowest = slowest.max(took);
    }
    println!("slowest: {slowest:?}");
}
