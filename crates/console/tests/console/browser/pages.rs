//! Pages are loaded, filtered and opened, in each way that people use a browser.

use mcp_task_console::Access;

use super::chromium::Tab;
use super::site::Site;
use crate::support::Engine;

#[tokio::test(flavor = "multi_thread")]
async fn every_page_loads_without_an_error_and_without_another_host() {
    let (site, paths) = Site::with_tasks().await;
    let tab = Tab::open(&site).await;
    for path in &paths {
        tab.goto(path).await;
        let styled: String = tab.eval("getComputedStyle(document.querySelector('header')).display").await;
        assert_eq!(styled, "flex", "{path}: the style sheet applies");
    }
    tab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_entry_an_exception_and_a_foreign_request_are_noticed() {
    let (site, _) = Site::with_tasks().await;
    for script in [
        "console.log('x')",
        "setTimeout(() => { throw new Error('x') }); new Promise(done => setTimeout(() => done(true), 1))",
        "fetch('http://192.0.2.1/').catch(() => true)",
    ] {
        let tab = Tab::open(&site).await;
        tab.goto("/").await;
        tab.page.evaluate_expression(script).await.unwrap();
        let closed = tokio::spawn(tab.close()).await;
        assert!(closed.is_err_and(|error| error.is_panic()), "{script}");
    }
}

async fn follow_the_navigation(tab: &Tab) {
    let links = "[...document.querySelectorAll('nav[aria-label=Console] a')].map(a => [a.textContent, a.getAttribute('href')])";
    for (name, path) in tab.eval::<Vec<(String, String)>>(links).await {
        tab.click(&format!("nav[aria-label=Console] a[href='{path}']")).await;
        tab.until(&format!("document.querySelector('h1').textContent === '{name}'")).await;
        tab.until("document.querySelector('nav a[aria-current=page]') !== null").await;
    }
}

async fn filter_and_open_a_task(tab: &Tab) {
    tab.goto("/tasks").await;
    tab.type_into("#tool", "convert").await;
    tab.press_enter().await;
    tab.until(
        "location.search.includes('tool=convert') && document.querySelectorAll('tbody tr').length === 1",
    )
    .await;
    let row: String = tab.eval("document.querySelector('tbody tr').innerText").await;
    assert!(row.contains("failed") && row.contains("dead") && row.contains("acme"), "{row}");
    tab.click("tbody tr a.id").await;
    tab.until("document.querySelector('.timeline') !== null").await;
    let page: String = tab.eval("document.querySelector('main').innerText").await;
    for text in ["convert", "the printer is down", "gave up after 1 attempt", "copies"] {
        assert!(page.contains(text), "{text}: {page}");
    }
    tab.click("main dl a").await;
    tab.until("location.pathname === '/tasks' && location.search === '?owner=acme'").await;
    assert_eq!(tab.eval::<u32>("document.querySelectorAll('tbody tr').length").await, 2);
    tab.click(".reset").await;
    tab.until("location.search === '' && document.querySelectorAll('tbody tr').length === 5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_filtered_and_opened_with_a_mouse() {
    let (site, _) = Site::with_tasks().await;
    let tab = Tab::open(&site).await;
    filter_and_open_a_task(&tab).await;
    follow_the_navigation(&tab).await;
    tab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_without_scripts() {
    let (site, paths) = Site::with_tasks().await;
    let tab = Tab::open(&site).await;
    tab.disable_scripts().await;
    for path in &paths {
        tab.goto(path).await;
    }
    filter_and_open_a_task(&tab).await;
    follow_the_navigation(&tab).await;
    tab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_signs_in_and_out_without_scripts() {
    let token = "0123456789abcdef-token";
    let site = Site::guarded(Engine::Memory.open().await, Access::token(token).unwrap()).await;
    let mut tab = Tab::open(&site).await;
    tab.disable_scripts().await;
    tab.goto("/owners").await;
    tab.type_into("input[name=secret]", token).await;
    tab.press_enter().await;
    tab.until("document.querySelector('h1').textContent === 'Owners'").await;
    tab.click("header form button").await;
    tab.until("document.querySelector('input[name=secret]') !== null").await;
    // Chromium logs the status 401 of the login page.
    tab.forget_log().await;
    tab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_screen_scrolls_only_down() {
    let (site, paths) = Site::with_tasks().await;
    let tab = Tab::open(&site).await;
    tab.set_size(360, 740).await;
    for path in &paths {
        tab.goto(path).await;
        // Folded text is as wide as unfolded text may be.
        tab.eval::<bool>("document.querySelectorAll('details').forEach(one => one.open = true) ?? true")
            .await;
        let width: u32 = tab.eval("document.documentElement.scrollWidth").await;
        assert!(width <= 360, "{path}: {width}");
    }
    tab.close().await;
}

/// Names the element that has the focus.
const FOCUSED: &str = "(e => e.id || e.ariaLabel || e.textContent)(document.activeElement)";
const FOCUS_IS_VISIBLE: &str = "(style => style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2)\
                                (getComputedStyle(document.activeElement))";

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_reaches_everything_in_order_and_the_focus_is_visible() {
    let (site, _) = Site::with_tasks().await;
    let tab = Tab::open(&site).await;
    tab.goto("/tasks").await;
    let mut reached = Vec::new();
    let first_task: String = tab.eval("document.querySelector('tbody a.id').textContent").await;
    while reached.len() < 40 {
        tab.press_tab().await;
        let focused: String = tab.eval(FOCUSED).await;
        assert!(tab.eval::<bool>(FOCUS_IS_VISIBLE).await, "{focused}");
        reached.push(focused);
        if reached.last() == Some(&first_task) {
            break;
        }
    }
    let at = |wanted: &str| {
        let found = reached.iter().position(|name| name == wanted);
        found.unwrap_or_else(|| panic!("{wanted}: {reached:#?}"))
    };
    let order =
        ["Skip to the content", "Overview", "Owners", "f-owner", "status", "Filter", &first_task].map(at);
    assert!(order.is_sorted() && order[0] == 0, "{reached:#?}");
    tab.press_enter().await;
    tab.until("document.querySelector('.timeline') !== null").await;
    tab.press_tab().await;
    tab.press_enter().await;
    tab.until("location.hash === '#main'").await;
    tab.close().await;
}
