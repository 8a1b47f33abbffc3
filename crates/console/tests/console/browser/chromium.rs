//! A headless Chromium of a test's own, with one tab.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use chromiumoxide::cdp::browser_protocol::emulation::{
    MediaFeature, SetDeviceMetricsOverrideParams, SetScriptExecutionDisabledParams,
};
use chromiumoxide::cdp::browser_protocol::input::{
    DispatchKeyEventParams, DispatchKeyEventType, InsertTextParams,
};
use chromiumoxide::cdp::browser_protocol::log::EventEntryAdded;
use chromiumoxide::cdp::browser_protocol::network::EventRequestWillBeSent;
use chromiumoxide::cdp::js_protocol::runtime::{EvaluateParams, EventConsoleApiCalled, EventExceptionThrown};
use chromiumoxide::error::CdpError;
use chromiumoxide::js::EvaluationResult;
use chromiumoxide::layout::Point;
use chromiumoxide::listeners::EventStream;
use chromiumoxide::page::ScreenshotParams;
use chromiumoxide::{Browser, BrowserConfig, Page};
use futures_util::{FutureExt, StreamExt};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use super::site::Site;

/// How long a test waits for Chromium, or for a page to change.
const PATIENCE: Duration = Duration::from_secs(60);
/// One Chromium keeps a core busy while it starts.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// A tab that shows a site, and what it has logged and requested.
pub struct Tab {
    pub page: Page,
    origin: String,
    logged: EventStream<EventEntryAdded>,
    called: EventStream<EventConsoleApiCalled>,
    thrown: EventStream<EventExceptionThrown>,
    requested: EventStream<EventRequestWillBeSent>,
    browser: Browser,
    handler: JoinHandle<()>,
    _profile: TempDir,
    _turn: SemaphorePermit<'static>,
}

impl Tab {
    /// Starts Chromium, with a blank tab.
    pub async fn open(site: &Site) -> Self {
        let turn = AT_ONCE.acquire().await.unwrap();
        let profile = TempDir::new().unwrap();
        let config = BrowserConfig::builder()
            .user_data_dir(profile.path())
            // A container has no namespaces for the sandbox, and its users are often root.
            .no_sandbox()
            // Chromium does not start with a wall clock that stands still.
            .env("LD_PRELOAD", "")
            .viewport(None)
            .window_size(1280, 900)
            .launch_timeout(PATIENCE)
            .request_timeout(PATIENCE)
            // Nothing leaves this machine.
            .arg("host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
            .arg("disable-component-update")
            .build()
            .unwrap_or_else(|error| panic!("{error}; install it with `make chromium`"));
        let (browser, mut handler) = Browser::launch(config).await.unwrap();
        // It also yields the messages of protocol versions that the crate does not know. The calls do not depend on them.
        let handler = tokio::spawn(async move { while handler.next().await.is_some() {} });
        let page = browser.new_page("about:blank").await.unwrap();
        page.enable_log().await.unwrap();
        let tab = Self {
            logged: page.event_listener().await.unwrap(),
            called: page.event_listener().await.unwrap(),
            thrown: page.event_listener().await.unwrap(),
            requested: page.event_listener().await.unwrap(),
            origin: site.origin.clone(),
            page,
            browser,
            handler,
            _profile: profile,
            _turn: turn,
        };
        tab.set_size(1280, 900).await;
        tab
    }

    /// Opens a path of the site, and waits until it is loaded.
    pub async fn goto(&self, path: &str) {
        self.page.goto(format!("{}{path}", self.origin)).await.unwrap();
        self.until("document.readyState === 'complete'").await;
    }

    /// Returns the value of an expression.
    pub async fn eval<T: DeserializeOwned>(&self, expression: &str) -> T {
        let value = self.try_eval(expression).await.unwrap_or_else(|error| panic!("{expression}: {error}"));
        value.into_value().unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    async fn try_eval(&self, expression: &str) -> Result<EvaluationResult, CdpError> {
        // A promise would never be fulfilled while scripts are disabled.
        let expression = EvaluateParams::builder().expression(expression).await_promise(false);
        self.page.evaluate_expression(expression.build().unwrap()).await
    }

    /// Waits until an expression is true, also on the next page. Returns how long it took.
    pub async fn until(&self, expression: &str) -> Duration {
        let begun = Instant::now();
        loop {
            // While a page is being replaced, there is nothing to evaluate the expression in.
            let value = self.try_eval(expression).await;
            if value.is_ok_and(|value| value.into_value().unwrap_or(false)) {
                return begun.elapsed();
            }
            if begun.elapsed() > PATIENCE {
                panic!("{expression}: {}", self.page.content().await.unwrap());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the page is on the screen. Chromium drops the input to a page that is not.
    async fn until_painted(&self) {
        self.until("document.readyState === 'complete' && performance.getEntriesByType('paint').length > 0")
            .await;
    }

    /// Clicks the first element that matches.
    pub async fn click(&self, selector: &str) {
        self.until_painted().await;
        let position = format!(
            "(element => {{ element.scrollIntoView({{ block: 'center' }}); const box = element.getClientRects()[0]; \
             return [box.x + box.width / 2, box.y + box.height / 2]; }})(document.querySelector({selector:?}))"
        );
        let (x, y): (f64, f64) = self.eval(&position).await;
        self.page.click(Point::new(x, y)).await.unwrap();
    }

    /// Clicks a field, and types into it.
    pub async fn type_into(&self, selector: &str, text: &str) {
        self.click(selector).await;
        self.insert(text).await;
    }

    /// Types into the field that has the focus.
    pub async fn insert(&self, text: &str) {
        self.page.execute(InsertTextParams::new(text)).await.unwrap();
    }

    /// Presses a key that has the same name and code, such as `Tab`.
    pub async fn press(&self, key: &str, virtual_key_code: i64, text: Option<&str>) {
        self.until_painted().await;
        for kind in [DispatchKeyEventType::KeyDown, DispatchKeyEventType::KeyUp] {
            let mut event = DispatchKeyEventParams::builder()
                .key(key)
                .code(key)
                .windows_virtual_key_code(virtual_key_code)
                .r#type(kind.clone());
            if let Some(text) = text.filter(|_| kind == DispatchKeyEventType::KeyDown) {
                event = event.text(text);
            }
            self.page.execute(event.build().unwrap()).await.unwrap();
        }
    }

    pub async fn press_tab(&self) {
        self.press("Tab", 9, None).await;
    }

    pub async fn press_enter(&self) {
        self.press("Enter", 13, Some("\r")).await;
    }

    /// Sets the color scheme that the reader prefers: `light` or `dark`.
    pub async fn set_color_scheme(&self, scheme: &str) {
        let feature = MediaFeature::new("prefers-color-scheme", scheme);
        self.page.emulate_media_features(vec![feature]).await.unwrap();
    }

    pub async fn set_size(&self, width: i64, height: i64) {
        let size = SetDeviceMetricsOverrideParams::new(width, height, 1.0, false);
        self.page.execute(size).await.unwrap();
    }

    /// Returns what is on the screen, as a PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        self.page.screenshot(ScreenshotParams::builder().build()).await.unwrap()
    }

    pub async fn disable_scripts(&self) {
        self.set_scripts_disabled(true).await;
    }

    pub async fn set_scripts_disabled(&self, disabled: bool) {
        self.page.execute(SetScriptExecutionDisabledParams::new(disabled)).await.unwrap();
    }

    /// Forgets what the page has logged until now.
    pub async fn forget_log(&mut self) {
        self.log().await;
    }

    /// Ends Chromium. Fails if a page has logged something, thrown an exception, or sent a request to another host.
    pub async fn close(mut self) {
        let log = self.log().await;
        assert!(log.is_empty(), "{log:#?}");
        let requests: Vec<_> =
            drain(&mut self.requested).iter().map(|event| event.request.url.clone()).collect();
        assert!(!requests.is_empty());
        let inside = |url: &String| url.strip_prefix(&self.origin).is_some_and(|path| path.starts_with('/'));
        assert!(requests.iter().all(inside), "{requests:#?}");
        self.browser.close().await.unwrap();
        self.browser.wait().await.unwrap();
        self.handler.abort();
    }

    async fn log(&mut self) -> Vec<String> {
        // Events arrive before the answer to a later command.
        self.eval::<bool>("true").await;
        let mut log: Vec<String> = drain(&mut self.logged).iter().map(|event| text(&event.entry)).collect();
        log.extend(drain(&mut self.called).iter().map(|event| text(&event.args)));
        log.extend(drain(&mut self.thrown).iter().map(|event| text(&event.exception_details)));
        log
    }
}

fn text(event: &impl Debug) -> String {
    format!("{event:?}")
}

fn drain<T: chromiumoxide::cdp::IntoEventKind + Unpin>(
    events: &mut EventStream<T>,
) -> Vec<std::sync::Arc<T>> {
    let mut drained = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        drained.push(event);
    }
    drained
}
