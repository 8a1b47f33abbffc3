//! The contract of [`StorageBackend`](crate::StorageBackend) and [`Agenda`](crate::Agenda) as a test suite, for any
//! engine.
//!
//! One line runs the suite. Each rule becomes a test of its own, and the name of the test is the rule:
//!
//! ```
//! use mcp_task_store::MemoryBackend;
//!
//! /// Opens a fresh engine for each test.
//! async fn open() -> MemoryBackend {
//!     MemoryBackend::new()
//! }
//!
//! mcp_task_store::conformance_tests!(open);
//! # fn main() {}
//! ```
//!
//! `open` returns anything that converts into a [`Subject`]:
//!
//! * an engine with an agenda: the engine itself;
//! * an engine without one: `Subject::without_agenda(engine)`;
//! * an engine that cannot do everything: a `Subject` with [`Capabilities`]. The suite skips the rules that the
//!   engine cannot keep. It writes each skipped rule and the reason to standard error, even without `--nocapture`;
//! * an engine whose state a test can reach: a `Subject` with [`Hooks`]. They are for the rules of damaged records,
//!   last versions, clock steps, and of what the engine holds after the last record was removed.
//!
//! To test several engines, or one in several configurations, expand the macro once in a module for each.
//!
//! The page of [`StorageBackend`](crate::StorageBackend) lists the rules.

// The rules are tests: they fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// The name of a rule is its documentation.
#![allow(missing_docs)]

use std::time::Duration;

#[macro_use]
mod fixtures;
#[macro_use]
mod rules;
mod subject;

#[doc(hidden)]
pub mod agenda;
#[doc(hidden)]
pub mod creates;
#[doc(hidden)]
pub mod listings;
#[doc(hidden)]
pub mod owners;
#[doc(hidden)]
pub mod pages;
#[doc(hidden)]
pub mod parts;
#[doc(hidden)]
pub mod quota;
#[doc(hidden)]
pub mod records;
#[doc(hidden)]
pub mod states;
#[doc(hidden)]
pub mod time;
#[doc(hidden)]
pub mod wakeups;
#[doc(hidden)]
pub mod watch;

pub use subject::{Capabilities, Hooks, Subject};

/// Expands to one test for each rule of the contract.
///
/// `$open` is the path of an `async fn` without arguments that opens a fresh engine: it returns anything that converts into
/// a [`Subject`](crate::conformance::Subject). Each test has a Tokio runtime of its own, with several threads.
///
/// See [the module](crate::conformance) for an example.
#[macro_export]
macro_rules! conformance_tests {
    ($open:path) => {
        $crate::__each_conformance_rule!(__conformance_tests, $open);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($open:path, $($module:ident { $($rule:ident,)* })*) => {
        $($(
            #[test]
            fn $rule() {
                $crate::conformance::check(
                    ::core::stringify!($rule),
                    $open,
                    $crate::conformance::$module::$rule,
                );
            }
        )*)*
    };
}

/// Much longer than any rule takes. It turns a call, a stream or a clock that never advances into a failure.
const LIMIT: Duration = Duration::from_secs(300);

/// Checks one rule.
#[doc(hidden)]
pub fn check<S: Into<Subject>>(
    rule: &'static str,
    open: impl AsyncFnOnce() -> S,
    holds: impl AsyncFnOnce(&Subject),
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime for the test");
    runtime.block_on(async {
        let subject: Subject = open().await.into();
        let held = tokio::time::timeout(LIMIT, holds(&subject.named(rule))).await;
        assert!(
            held.is_ok(),
            "the rule has not ended within {LIMIT:?}: a call, a stream or the clock does not advance"
        );
    });
}

/// The names of all rules, by module.
type Rules = &'static [(&'static str, &'static [&'static str])];

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_names {
    ($check:path, $($module:ident { $($rule:ident,)* })*) => {
        &[$((::core::stringify!($module), &[$(::core::stringify!($rule)),*])),*]
    };
}

/// Returns the names of all rules, by module.
#[doc(hidden)]
pub fn rules() -> Rules {
    crate::__each_conformance_rule!(__conformance_names, check)
}

#[cfg(test)]
mod tests {
    use super::rules;

    /// The documentation of the traits, in which a rule is a list item.
    const DOCUMENTED: &str =
        concat!(include_str!("../backend/storage.rs"), include_str!("../backend/agenda.rs"));

    #[test]
    fn the_pages_of_the_traits_list_every_rule() {
        let words = |text: &str| text.replace(['`', ','], "").replace('_', " ").to_lowercase();
        let documented: Vec<String> = DOCUMENTED.lines().map(words).collect();
        let rules = rules().iter().flat_map(|(_, rules)| *rules);
        let missing: Vec<&&str> =
            rules.filter(|rule| !documented.contains(&format!("/// * {}.", words(rule)))).collect();
        assert!(missing.is_empty(), "{missing:#?}");
    }
}
