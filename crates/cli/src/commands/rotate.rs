//! `mcp-tasks rotate`

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{Agenda, Encrypted, Keyring, RotatedPage, Rotation, RotationCounts};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use crate::args::RotateArgs;
use crate::failure::{Failure, with_causes};
use crate::interrupt::Interrupt;
use crate::key;
use crate::output::{json, progress, remark, text};
use crate::retry::retried;

pub fn check(keyring: Option<Keyring>) -> Result<Keyring, Failure> {
    keyring.ok_or_else(|| {
        Failure::usage(
            "there are no keys; pass --keys FILE, with the new key first and the old ones below it",
        )
    })
}

pub async fn run(
    backend: Arc<dyn Agenda>,
    keyring: Keyring,
    args: &RotateArgs,
    quiet: bool,
) -> Result<(), Failure> {
    let rate = text::with_commas(args.rate.rate.into());
    let key = keyring.current().to_owned();
    remark(
        quiet,
        format_args!("encrypts the records under the key {key}; scans, at most {rate} records per second"),
    );
    let encrypted = Encrypted::new(backend, keyring);
    let mut rotation = encrypted.rotation();
    if args.encrypt_plain {
        rotation = rotation.encrypt_plain_records();
    }
    if let Some(owner) = args.owner.clone() {
        rotation = rotation.owner(owner);
    }
    if let Some(position) = args.resume.clone() {
        rotation = rotation.resume(position);
    }
    let ended = rotate(&mut rotation, Duration::from_secs(1) / args.rate.rate, quiet).await;
    let counts = rotation.counts();
    let RotationCounts { rotated, current, failed, .. } = counts;
    if args.form.json {
        let position = ended.is_err().then(|| rotation.position().to_string());
        let line = json!({ "rotated": rotated, "current": current, "failed": failed, "position": position });
        writeln!(io::stdout(), "{}", json::line(&line))?;
    } else {
        remark(quiet, sentence(&counts));
    }
    match ended {
        Err(why) => Err(Failure::failed(format!(
            "{why}; to continue, run: {}",
            continuation(std::env::args().collect(), &rotation.position().to_string(), args.owner.is_some())
        ))),
        Ok(()) if failed > 0 => {
            let plain = "; to encrypt those that are not encrypted, add --encrypt-plain";
            let advice = if args.encrypt_plain { "" } else { plain };
            let records = text::count(failed, "record");
            Err(Failure::failed(format!("{records} could not be encrypted under the key {key}{advice}")))
        }
        Ok(()) => Ok(()),
    }
}

/// Rotates page by page. Returns why the rotation did not reach its end.
async fn rotate<B: Agenda>(
    rotation: &mut Rotation<'_, B>,
    time_per_record: Duration,
    quiet: bool,
) -> Result<(), String> {
    let (interrupt, bar) = (Interrupt::listen(), progress::spinner(quiet));
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(not_before) => {}
            () = interrupt.pressed() => return Err("interrupted".to_owned()),
        }
        let begun = Instant::now();
        let page = retried(async || rotation.step().await).await.map_err(|error| with_causes(&error))?;
        let Some(page) = page else { return Ok(()) };
        bar.set_message(sentence(&rotation.counts()));
        bar.suspend(|| report(&page));
        let RotationCounts { rotated, current, failed, .. } = page.counts;
        let records = u32::try_from((rotated + current + failed).max(1)).unwrap_or(u32::MAX);
        not_before = begun + time_per_record * records;
    }
}

fn report(page: &RotatedPage) {
    for failed in &page.failed {
        let reason = with_causes(&failed.error);
        Failure::failed(format!("{} stays as it is: {reason}", key::display(&failed.key))).report();
    }
}

fn sentence(counts: &RotationCounts) -> String {
    let RotationCounts { rotated, current, failed, .. } = *counts;
    let [current, failed] = [current, failed].map(text::with_commas);
    format!(
        "encrypted {}, {current} were under the current key before, {failed} stay as they are",
        text::count(rotated, "record")
    )
}

/// Returns the command that continues a rotation.
fn continuation(mut arguments: Vec<String>, position: &str, of_owner: bool) -> String {
    if let Some(at) = arguments.iter().position(|argument| argument == "--resume") {
        arguments.drain(at..(at + 2).min(arguments.len()));
    }
    arguments.retain(|argument| !argument.starts_with("--resume="));
    // The rotation of one owner is short, and begins again.
    if !of_owner {
        arguments.extend(["--resume".to_owned(), position.to_owned()]);
    }
    shell_words::join(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_continues_at_its_last_position_only() {
        let arguments = |text: &str| shell_words::split(text).unwrap();
        let next = |text| continuation(arguments(text), r#"{"a":1}"#, false);
        assert_eq!(next("mcp-tasks rotate"), r#"mcp-tasks rotate --resume '{"a":1}'"#);
        assert_eq!(
            next("mcp-tasks rotate --resume x --quiet"),
            r#"mcp-tasks rotate --quiet --resume '{"a":1}'"#
        );
        assert_eq!(next("mcp-tasks rotate --resume=x"), r#"mcp-tasks rotate --resume '{"a":1}'"#);
        assert_eq!(
            continuation(arguments("mcp-tasks rotate --owner a"), "x", true),
            "mcp-tasks rotate --owner a"
        );
    }
}
