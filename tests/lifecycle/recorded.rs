//! Recorded dumps: the records and timers that an earlier state of the crate has written, which the present one must read, run and end.
//!
//! `make record-dumps` writes the dumps of the present version, in every state that a task can be in. Run it before a release, under
//! the number of the version, and add the new dumps to `on_every_dump`. Never change a dump of a released version.

mod redis;
mod sqlite;
mod states;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use mcp_task_store::Agenda;
use rstest_reuse::apply;

use crate::support::redis::Namespace;
use crate::support::sqlite::Folder;
use states::Form;

#[rstest_reuse::template]
#[rstest::rstest]
fn on_every_dump(
    #[values(Kind::Sqlite, Kind::Redis)] kind: Kind,
    // `before-0.1.0` has records without `delayMs` and `priority`.
    #[values(("before-0.1.0", Form::WithoutPriorities), ("0.1.0", Form::Complete))] dump: (&str, Form),
) {
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Sqlite,
    Redis,
}

impl Kind {
    fn file(self, name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lifecycle/recorded/dumps");
        folder.join(match self {
            Self::Sqlite => format!("{name}.sql"),
            Self::Redis => format!("{name}.redis.json"),
        })
    }
}

/// An engine, and what removes its records afterwards.
enum Place {
    Sqlite(Folder),
    Redis(Namespace),
}

impl Place {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Sqlite => Self::Sqlite(Folder::roomy()),
            Kind::Redis => Self::Redis(Namespace::roomy()),
        }
    }

    async fn engine(&self) -> Arc<dyn Agenda> {
        match self {
            Self::Sqlite(folder) => Arc::new(folder.backend().await),
            Self::Redis(namespace) => Arc::new(namespace.backend().await),
        }
    }

    fn dump(&self, at: DateTime<Utc>) -> String {
        match self {
            Self::Sqlite(folder) => sqlite::dump(&folder.connection(), at),
            Self::Redis(namespace) => redis::dump(namespace, at),
        }
    }

    fn load(&self, dump: &str) {
        match self {
            Self::Sqlite(folder) => sqlite::load(&folder.connection(), dump),
            Self::Redis(namespace) => redis::load(namespace, dump),
        }
    }
}

/// Moves each time in the JSON of a record. The times of records are in UTC, with milliseconds.
fn moved(json: &str, by: TimeDelta) -> String {
    const LENGTH: usize = "2026-01-31T12:00:00.000Z".len();
    let (mut moved, mut rest) = (String::new(), json);
    while let Some(next) = rest.chars().next() {
        let time = rest.get(..LENGTH).and_then(|text| DateTime::parse_from_rfc3339(text).ok());
        match time {
            Some(time) => {
                moved += &(time.to_utc() + by).to_rfc3339_opts(SecondsFormat::Millis, true);
                rest = &rest[LENGTH..];
            }
            None => {
                moved.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    moved
}

#[apply(on_every_dump)]
#[tokio::test]
async fn the_present_version_reads_runs_and_ends_every_task_of_a_recorded_dump(
    kind: Kind,
    dump: (&str, Form),
) {
    let (name, form) = dump;
    let place = Place::new(kind);
    place.load(&std::fs::read_to_string(kind.file(name)).unwrap());
    states::check(&place.engine().await, form).await;
}

/// The dumps that `make record-dumps` writes can be loaded, whatever the version.
#[rstest::rstest]
#[case(Kind::Sqlite)]
#[case(Kind::Redis)]
#[tokio::test]
async fn a_dump_of_the_present_version_can_be_recorded_and_loaded(#[case] kind: Kind) {
    let dump = record(kind, Form::Complete).await;
    let place = Place::new(kind);
    place.load(&dump);
    states::check(&place.engine().await, Form::Complete).await;
}

async fn record(kind: Kind, form: Form) -> String {
    let place = Place::new(kind);
    let engine = place.engine().await;
    states::create(&engine, form).await;
    place.dump(engine.now())
}

#[tokio::test]
#[ignore = "writes the dumps of this version: make record-dumps"]
async fn record_dumps() {
    for kind in [Kind::Sqlite, Kind::Redis] {
        let file = kind.file(env!("CARGO_PKG_VERSION"));
        std::fs::write(&file, record(kind, Form::Complete).await).unwrap();
        println!("recorded {}", file.display());
    }
}
