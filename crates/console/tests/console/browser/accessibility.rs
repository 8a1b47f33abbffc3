//! What a screen reader finds, and what is legible.

use std::collections::BTreeSet;

use chromiumoxide::cdp::browser_protocol::accessibility::{AxNode, AxValue, GetFullAxTreeParams};

use super::chromium::Tab;
use super::site::Site;

/// Unfolds everything. Returns the texts whose contrast to what is behind them is less than 4.5 to 1, the minimum of WCAG 2 level AA.
const FAINT_TEXTS: &str = r#"(() => {
    document.querySelectorAll('details').forEach(one => one.open = true);
    const color = text => text.match(/[\d.]+/g).map(Number);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const found = color(getComputedStyle(element).backgroundColor);
            if (found.length < 4 || found[3] > 0) return found;
        }
        return [255, 255, 255];
    };
    const linear = value => value <= 10.31475 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
    const luminance = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
    const contrast = element => {
        const [a, b] = [color(getComputedStyle(element).color), behind(element)].map(luminance);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    const elements = new Set(document.querySelectorAll('input, select, textarea, button'));
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (texts.currentNode.data.trim() && element.tagName !== 'OPTION' && element.checkVisibility()) elements.add(element);
    }
    const faint = [...elements].filter(element => contrast(element) < 4.5);
    if (elements.size < 15) return ['only ' + elements.size + ' texts found'];
    return faint.map(element => `${contrast(element).toFixed(2)} ${element.outerHTML.slice(0, 120)}`);
})()"#;

const COLORS: &str = "[document.body, document.querySelector('section, .scroll'), document.querySelector('main a'), document.querySelector('footer')]\
                      .filter(element => element).map(element => getComputedStyle(element)).map(style => style.color + style.backgroundColor)";

#[tokio::test(flavor = "multi_thread")]
async fn dark_mode_has_other_colors_and_every_text_is_legible_in_both() {
    let (site, paths) = Site::with_tasks().await;
    let tab = Tab::open(&site).await;
    for path in &paths {
        let mut colors = Vec::<Vec<String>>::new();
        for scheme in ["light", "dark"] {
            tab.set_color_scheme(scheme).await;
            tab.goto(path).await;
            let faint: Vec<String> = tab.eval(FAINT_TEXTS).await;
            assert!(faint.is_empty(), "{scheme} {path}: {faint:#?}");
            colors.push(tab.eval(COLORS).await);
        }
        for (light, dark) in colors[0].iter().zip(&colors[1]) {
            assert_ne!(light, dark, "{path}");
        }
    }
    tab.close().await;
}

/// The role and the name of a node.
fn described(node: &AxNode) -> (String, String) {
    let text = |value: &Option<AxValue>| {
        let value = value.as_ref().and_then(|value| value.value.as_ref()).and_then(|value| value.as_str());
        value.unwrap_or_default().to_owned()
    };
    (text(&node.role), text(&node.name))
}

async fn nodes(tab: &Tab) -> Vec<(String, String)> {
    let tree = tab.page.execute(GetFullAxTreeParams::default()).await.unwrap();
    tree.result.nodes.iter().filter(|node| !node.ignored).map(described).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screen_reader_finds_landmarks_and_everything_has_a_name() {
    let (site, paths) = Site::with_tasks().await;
    let tab = Tab::open(&site).await;
    for path in &paths {
        tab.goto(path).await;
        let nodes = nodes(&tab).await;
        let names = |role: &str| {
            let of_role = nodes.iter().filter(|(node, _)| node == role);
            of_role.map(|(_, name)| name.as_str()).collect::<Vec<_>>()
        };
        for landmark in ["banner", "main", "contentinfo"] {
            assert_eq!(names(landmark).len(), 1, "{path} {landmark}: {nodes:#?}");
        }
        assert_eq!(names("heading").len(), names("heading").iter().filter(|name| !name.is_empty()).count());
        assert!(names("navigation").contains(&"Console"), "{path}: {nodes:#?}");
        // A reader that lists the landmarks must be able to tell them apart.
        let navigation = names("navigation");
        assert_eq!(BTreeSet::from_iter(&navigation).len(), navigation.len(), "{path}: {navigation:?}");
        for role in [
            "navigation",
            "search",
            "form",
            "region",
            "table",
            "textbox",
            "searchbox",
            "combobox",
            "button",
            "link",
            "image",
        ] {
            assert!(
                names(role).iter().all(|name| !name.trim().is_empty()),
                "{path} {role}: {:?}",
                names(role)
            );
        }
    }
    tab.goto("/tasks").await;
    let nodes = nodes(&tab).await;
    let has = |role: &str, name: &str| nodes.iter().any(|node| *node == (role.to_owned(), name.to_owned()));
    for (role, name) in [
        ("heading", "Tasks"),
        ("search", "Filters"),
        ("searchbox", "Id contains"),
        ("textbox", "Tool"),
        ("combobox", "Status"),
        ("button", "Filter"),
        ("table", "Tasks"),
        ("columnheader", "Message"),
    ] {
        assert!(has(role, name), "{role} {name}: {nodes:#?}");
    }
    tab.close().await;
}
