//! The console as a browser sees it: each page, who is admitted, hostile content, and many tasks, on memory and on SQLite.

mod admission;
mod freshness;
mod hostile;
mod monitoring;
mod pages;
mod scale;
mod workers;

mod support;
