//! Who is admitted, and what the headers of a page forbid.

use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, Version};
use axum::http::StatusCode;
use mcp_task_console::{Access, AccessError};
use rstest_reuse::apply;

use crate::support::{Browser, Engine, on_every_engine};

const TOKEN: &str = "0123456789abcdef-token";
const PAGES: [&str; 6] = ["/", "/tasks", "/owners", "/task?owner=alice&id=t1", "/nothing", "/logout"];

/// Returns a users file. The hash is quick to verify.
fn users() -> String {
    let quick = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
    let hash = quick.hash_password_with_salt(b"open sesame", b"a salt of a test").unwrap();
    format!("# operators\n\nada:{hash}\n")
}

async fn login(browser: &Browser, form: &str) -> crate::support::Answer {
    browser.post("/login", &[("sec-fetch-site", "same-origin")], form).await
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_the_headers_that_protect_it(#[case] engine: Engine) {
    let browser = engine.open().await.browser(Access::token(TOKEN).unwrap());
    for path in PAGES.iter().chain(&["/style.css", "/icon.svg", "/live.js"]) {
        let answer = browser.get(path).await;
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'; ") && !policy.contains("unsafe"),
            "{path}: {policy}"
        );
        assert!(
            policy.contains("frame-ancestors 'none'") && policy.contains("form-action 'self'"),
            "{policy}"
        );
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin", "{path}");
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_every_page_asks_for_them(#[case] engine: Engine) {
    let store = engine.open().await;
    store.running("alice", "s3cret-tool").await;
    for access in [Access::token(TOKEN).unwrap(), Access::users(&users()).unwrap()] {
        let browser = store.browser(access);
        for path in PAGES {
            for headers in [
                &[] as &[(&str, &str)],
                &[("cookie", "mcp-tasks-console=forged")],
                &[("authorization", "Bearer wrong")],
            ] {
                let refused = browser.get_with(path, headers).await;
                assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{path} {headers:?}");
                assert!(
                    refused.body.contains("Sign in") && !refused.body.contains("s3cret-tool"),
                    "{refused:?}"
                );
            }
        }
        assert_eq!(browser.get("/style.css").await.status, StatusCode::OK);
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_token_admits_a_script_and_a_session(#[case] engine: Engine) {
    let browser = engine.open().await.browser(Access::token(TOKEN).unwrap());
    assert_eq!(browser.get("/login").await.header("location"), "/");
    browser.get_with("/", &[("authorization", &format!("Bearer {TOKEN}"))]).await.page();
    let wrong = login(&browser, "secret=0123456789abcdef-tokeN").await;
    assert_eq!((wrong.status, wrong.header("set-cookie")), (StatusCode::UNAUTHORIZED, ""));
    let right = login(&browser, &format!("secret={TOKEN}&to=%2Ftasks%3Fonly%3Ddead")).await;
    assert_eq!((right.status, right.header("location")), (StatusCode::SEE_OTHER, "/tasks?only=dead"));
    let set = right.header("set-cookie");
    assert!(set.contains("; HttpOnly") && set.contains("; SameSite=Strict") && !set.contains(TOKEN), "{set}");
    let cookie = right.cookie();
    let page = browser.get_with("/", &[("cookie", &cookie)]).await.page();
    assert!(page.contains("Sign out"), "{page}");
    for sender in [("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:3000")] {
        let foreign = browser.post("/logout", &[("cookie", &cookie), sender], "").await;
        assert_eq!((foreign.status, foreign.header("set-cookie")), (StatusCode::FORBIDDEN, ""), "{sender:?}");
    }
    browser.get_with("/", &[("cookie", &cookie)]).await.page();
    browser.post("/logout", &[("cookie", &cookie)], "").await;
    assert_eq!(browser.get_with("/", &[("cookie", &cookie)]).await.status, StatusCode::UNAUTHORIZED);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_password_admits_its_user_only(#[case] engine: Engine) {
    let browser = engine.open().await.browser(Access::users(&users()).unwrap());
    for form in
        ["user=ada&secret=wrong", "user=eve&secret=open+sesame", "user=&secret=", "secret=open+sesame", ""]
    {
        let wrong = login(&browser, form).await;
        assert_eq!((wrong.status, wrong.header("set-cookie")), (StatusCode::UNAUTHORIZED, ""), "{form}");
    }
    let right = login(&browser, "user=ada&secret=open+sesame").await;
    assert_eq!((right.status, right.header("location")), (StatusCode::SEE_OTHER, "/"));
    let page = browser.get_with("/", &[("cookie", &right.cookie())]).await.page();
    assert!(page.contains("ada"), "{page}");
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_login_leads_to_no_other_site_and_comes_from_none(#[case] engine: Engine) {
    let browser = engine.open().await.browser(Access::token(TOKEN).unwrap());
    for to in ["https%3A%2F%2Fexample.com", "%2F%2Fexample.com", "%2F%5Cexample.com"] {
        let right = login(&browser, &format!("secret={TOKEN}&to={to}")).await;
        assert_eq!(right.header("location"), "/", "{to}");
    }
    for sender in [("sec-fetch-site", "cross-site"), ("origin", "https://example.com"), ("origin", "null")] {
        let foreign = browser.post("/login", &[sender], &format!("secret={TOKEN}")).await;
        assert_eq!((foreign.status, foreign.header("set-cookie")), (StatusCode::FORBIDDEN, ""), "{sender:?}");
    }
    let own =
        browser.post("/login", &[("origin", "http://127.0.0.1:8181")], &format!("secret={TOKEN}")).await;
    assert_eq!(own.status, StatusCode::SEE_OTHER);
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_loopback_console_answers_only_to_names_of_this_machine(#[case] engine: Engine) {
    let browser = engine.open().await.browser(Access::loopback());
    for host in ["127.0.0.1:8181", "localhost", "[::1]:8181"] {
        browser.get_with("/", &[("host", host)]).await.page();
    }
    for host in ["rebound.example.com", "rebound.example.com:8181", "192.168.1.7"] {
        assert_eq!(browser.get_with("/", &[("host", host)]).await.status, StatusCode::FORBIDDEN, "{host}");
    }
}

#[apply(on_every_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_header_admits_and_names_the_user(#[case] engine: Engine) {
    let browser = engine.open().await.browser(Access::trusted_header("X-Forwarded-User").unwrap());
    for headers in [&[] as &[(&str, &str)], &[("x-forwarded-user", " ")], &[("x-user", "ada")]] {
        assert_eq!(browser.get_with("/", headers).await.status, StatusCode::FORBIDDEN, "{headers:?}");
    }
    let page =
        browser.get_with("/", &[("host", "ops.example.com"), ("x-forwarded-user", "ada")]).await.page();
    assert!(page.contains("ada") && !page.contains("Sign out"), "{page}");
}

#[test]
fn an_access_that_protects_nothing_is_refused() {
    assert_eq!(Access::token("short").unwrap_err(), AccessError::ShortToken);
    assert_eq!(Access::users("# nobody\n").unwrap_err(), AccessError::NoUser);
    for line in [
        "ada",
        "ada:",
        ":x",
        "ada:plain",
        "ada:$2b$12$abcdefghijklmnopqrstuv",
        "ada:$argon2id$v=19$m=8,t=1,p=1",
    ] {
        let error = Access::users(&format!("\n{line}\n")).unwrap_err();
        assert_eq!(error, AccessError::InvalidUser { line: 2 }, "{line}");
    }
    assert!(matches!(Access::trusted_header("a b"), Err(AccessError::InvalidHeader { .. })));
    assert_eq!(format!("{:?}", Access::token(TOKEN).unwrap()), "Access(token)");
}
