//! Open pages follow the store, and actions change it.

use std::time::Duration;

use mcp_task_store::TaskStatus;
use serde_json::json;

use super::chromium::Tab;
use super::site::{Site, asking};
use crate::support::{Engine, path};

/// A change is on the screen within a second on an idle machine. A test may run on a busy one.
const LIMIT: Duration = Duration::from_secs(10);
const IS_LIVE: &str = "document.querySelector('#live').dataset.state === 'live'";

/// Waits until an expression is true, which the store has just caused.
async fn assert_soon(tab: &Tab, what: &str, expression: &str) {
    let took = tab.until(expression).await;
    println!("{what}: on the screen after {took:?}");
    assert!(took < LIMIT, "{what}: {took:?}");
}

/// Opens a page, and waits until it is live. A mark shows whether it is loaded again.
async fn open_live(tab: &Tab, path: &str) {
    tab.goto(path).await;
    tab.until(IS_LIVE).await;
    tab.eval::<bool>("window.isSamePage = true").await;
}

async fn assert_same_page(tab: &Tab) {
    assert!(tab.eval::<bool>("window.isSamePage === true").await, "the page was loaded again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_page_shows_each_change_within_a_second() {
    let store = Engine::Memory.open().await;
    let task = store.running("acme", "digest_folder").await.key;
    let site = Site::of(store).await;
    let tab = Tab::open(&site).await;
    open_live(&tab, &path(&task)).await;
    site.store.tasks.set_status_message(&task, "hashed 812 of 1204 files").await.unwrap();
    assert_soon(&tab, "a message", "document.querySelector('main').innerText.includes('812 of 1204')").await;
    site.store.tasks.complete(&task, json!({ "content": [] })).await.unwrap();
    assert_soon(&tab, "the end", "document.querySelector('.status').textContent === 'completed'").await;
    assert_same_page(&tab).await;

    open_live(&tab, "/tasks").await;
    site.store.running("globex", "convert").await;
    // A new task reaches the list with the next pass over the store, and its changes reach the row at once.
    tab.until("document.querySelectorAll('tbody tr').length === 2").await;
    assert_same_page(&tab).await;
    tab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_filled_form_survives_a_live_update() {
    let store = Engine::Memory.open().await;
    let first = store.running("acme", "digest_folder").await.key;
    let site = Site::of(store).await;
    let tab = Tab::open(&site).await;
    open_live(&tab, "/tasks").await;
    tab.type_into("#tool", "dig").await;
    site.store.tasks.set_status_message(&first, "hashed 812 of 1204 files").await.unwrap();
    tab.until("document.querySelector('.tasks').innerText.includes('812 of 1204')").await;
    tab.insert("est").await;
    assert_eq!(tab.eval::<String>("document.querySelector('#tool').value").await, "digest");
    assert_same_page(&tab).await;
    tab.close().await;
}

/// Opens the page of a task as a visitor with or without scripts.
async fn open(site: &Site, scripts: bool, path: &str) -> Tab {
    let tab = Tab::open(site).await;
    if !scripts {
        tab.disable_scripts().await;
    }
    tab.goto(path).await;
    tab
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_after_a_confirmation() {
    for scripts in [true, false] {
        let store = Engine::Memory.open().await;
        let task = store.running("acme", "digest_folder").await.key;
        let site = Site::of(store).await;
        let tab = open(&site, scripts, &path(&task)).await;
        tab.click("#action-cancel").await;
        tab.until("document.querySelector('h1').textContent.includes('Cancel this task?')").await;
        tab.click("#how-now").await;
        assert_eq!(site.store.tasks.get(&task).await.unwrap().task.status, TaskStatus::Working);
        tab.click("#submit").await;
        tab.until("document.querySelector('h1').textContent === 'Cancelled'").await;
        assert_eq!(site.store.tasks.get(&task).await.unwrap().task.status, TaskStatus::Cancelled);
        tab.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_with_its_form() {
    for scripts in [true, false] {
        let store = Engine::Memory.open().await;
        let task = asking(&store).await;
        let site = Site::of(store).await;
        let tab = open(&site, scripts, &path(&task)).await;
        tab.click("a.answer").await;
        tab.until("document.querySelector('#answer') !== null && document.readyState === 'complete'").await;
        tab.type_into("[name=field-1]", "seen at night").await;
        // The keyboard opens a list of choices in a window of its own. The letter chooses without it.
        tab.eval::<bool>("(document.querySelector('[name=field-0]').focus(), true)").await;
        tab.press("s", 83, Some("s")).await;
        tab.click("#submit").await;
        tab.until("document.querySelector('#answer') === null && document.readyState === 'complete'").await;
        let answered = site.store.tasks.get(&task).await.unwrap().task;
        let expected =
            json!({ "action": "accept", "content": { "choice": "skip", "note": "seen at night" } });
        assert_eq!(answered.input_responses["unreadable"], expected);
        tab.close().await;
    }
}
