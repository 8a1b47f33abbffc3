//! The console as a browser sees it: each page, who is admitted, hostile content, and many tasks, on memory and on SQLite.

mod actions;
mod admission;
mod answers;
#[cfg(feature = "browser-tests")]
mod browser;
mod freshness;
mod hostile;
mod live;
mod monitoring;
mod pages;
mod scale;
mod tenants;
mod workers;

mod support;
