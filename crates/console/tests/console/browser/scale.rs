//! Many tasks, in the browser.

use std::time::Duration;

use super::chromium::Tab;
use super::site::Site;
use crate::scale::{LIMIT, store_with_many_tasks};
use crate::support::Engine;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_tasks_are_shown_without_lag() {
    let site = Site::of(store_with_many_tasks(Engine::Memory).await).await;
    let tab = Tab::open(&site).await;
    tab.goto("/").await;
    site.take_times();
    for path in ["/", "/tasks", "/tasks?tool=tool+7&only=open&page=90", "/tasks?id=0a", "/owners"] {
        tab.goto(path).await;
        let shown: f64 = tab.eval("performance.getEntriesByType('navigation')[0].loadEventEnd").await;
        let times = site.take_times();
        let (_, took) = times.iter().find(|(requested, _)| requested == path).unwrap();
        println!("{path}: {took:?} at the server, {shown:.0} ms until it was shown");
        assert!(*took < LIMIT, "{path}: {took:?}");
        assert!(Duration::from_secs_f64(shown / 1_000.0) < 10 * LIMIT, "{path}: {shown} ms");
    }
    tab.close().await;
}
