//! `mcp-tasks doctor`

use std::io::{self, Write};
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use mcp_task_store::{Diagnose, Finding, Health, Keyring};
use serde_json::json;

use crate::args::{ConnectArgs, DoctorArgs};
use crate::engine::{self, Opening};
use crate::failure::Failure;
use crate::index_health::{Inspection, Inspector};
use crate::output::{json, remark, text};

/// The widths of the first two columns.
const HEALTH_WIDTH: usize = 7;
const CHECK_WIDTH: usize = 22;

pub async fn run(connect: &ConnectArgs, args: &DoctorArgs, quiet: bool) -> Result<(), Failure> {
    examine(connect, Opening::Existing, args, quiet).await
}

/// Opens the store, checks it, and prints what the checks find.
pub async fn examine(
    connect: &ConnectArgs,
    opening: Opening,
    args: &DoctorArgs,
    quiet: bool,
) -> Result<(), Failure> {
    let keyring = engine::keyring(connect)?;
    let mut report = Report { json: args.form.json, worst: Health::Green };
    match engine::open_engine(connect, opening).await {
        Ok(engine) => {
            if let Err(failure) = check(engine, keyring, args, quiet, &mut report).await {
                report.stopped(failure)?;
            }
        }
        Err(failure) => report.stopped(failure)?,
    }
    match report.worst {
        Health::Green => Ok(()),
        Health::Yellow => Err(Failure::Reported),
        _ => Err(Failure::ReportedRed),
    }
}

async fn check(
    engine: Arc<dyn Diagnose>,
    keyring: Option<Keyring>,
    args: &DoctorArgs,
    quiet: bool,
    report: &mut Report,
) -> Result<(), Failure> {
    report.print(&Finding::green("connection", "the store was opened").into())?;
    if args.repair {
        let removed = engine.cleanup_expired().await?;
        if removed > 0 {
            remark(quiet, format_args!("removed {}", text::count(removed, "expired record")));
        }
    }
    for finding in engine.diagnose(!args.quick).await? {
        report.print(&finding.into())?;
    }
    if args.quick {
        return Ok(());
    }
    let rate = text::with_commas(args.rate.rate.into());
    remark(quiet, format_args!("scans the tasks of all owners, at most {rate} records per second"));
    let store = engine::observer(Arc::clone(&engine) as _, keyring);
    for inspection in Inspector::new(engine, store, args, quiet).run().await? {
        report.print(&inspection)?;
    }
    Ok(())
}

struct Report {
    json: bool,
    worst: Health,
}

impl Report {
    /// Reports why the checks cannot go on. A wrong command line stays a failure.
    fn stopped(&mut self, failure: Failure) -> Result<(), Failure> {
        let Failure::Failed(reason) = failure else { return Err(failure) };
        let advice = "correct what this line names, then run the command again";
        Ok(self.print(&Finding::red("connection", reason, advice).into())?)
    }

    fn print(&mut self, inspection: &Inspection) -> io::Result<()> {
        let Inspection { finding, .. } = inspection;
        self.worst = self.worst.max(finding.health);
        let mut out = anstream::stdout().lock();
        match self.json {
            true => writeln!(out, "{}", json::line(&in_json(inspection)))?,
            false => {
                let (style, health) = (style(finding.health), name(finding.health));
                let (check, what) = (text::plain(&finding.check), text::plain(&finding.what));
                writeln!(out, "{style}{health:HEALTH_WIDTH$}{style:#}{check:CHECK_WIDTH$}{what}")?;
                if let Some(advice) = &finding.advice {
                    let indent = HEALTH_WIDTH + CHECK_WIDTH;
                    writeln!(out, "{:indent$}-> {}", "", text::plain(advice))?;
                }
            }
        }
        out.flush()
    }
}

fn in_json(inspection: &Inspection) -> serde_json::Value {
    let Inspection { finding, found, repaired } = inspection;
    json!({
        "check": finding.check,
        "health": name(finding.health),
        "what": finding.what,
        "advice": finding.advice,
        "found": found,
        "repaired": repaired,
    })
}

fn name(health: Health) -> &'static str {
    match health {
        Health::Green => "green",
        Health::Yellow => "yellow",
        _ => "red",
    }
}

fn style(health: Health) -> Style {
    let color = match health {
        Health::Green => AnsiColor::Green,
        Health::Yellow => AnsiColor::Yellow,
        _ => AnsiColor::Red,
    };
    color.on_default().bold()
}
