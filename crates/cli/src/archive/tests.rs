use std::fs::File;
use std::io::{Seek, Write};

use mcp_task_store::{ListedRecord, PartSizes, Record, Version};
use serde_json::json;

use super::*;
use crate::failure::Failure;

fn at(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_800_000_000_000_000 + micros).unwrap()
}

fn listed(task: &str, data: &[u8], micros: i64) -> ListedRecord {
    let record = Record::new(data.to_vec(), Version::FIRST, Some(at(5_000_000)), PartSizes::new());
    ListedRecord::new(task.try_into().unwrap(), record, at(micros))
}

fn owner(owner: &str) -> OwnerId {
    owner.try_into().unwrap()
}

/// Returns a file with these records of each owner, newest first, as an export writes it.
fn written(owners: &[(&str, usize)], bytes: usize) -> Vec<u8> {
    let header = Header::new(at(0), "sqlite", json!({}));
    let mut writer = ArchiveWriter::new(Vec::new(), &header).unwrap();
    for (name, records) in owners {
        for number in (0..*records).rev() {
            let data = json!({ "n": number, "pad": "x".repeat(bytes) }).to_string();
            let parts = [(PartName::from_static("output"), vec![0, 255, number as u8])].into();
            writer
                .record(&owner(name), &listed(&format!("{number}"), data.as_bytes(), number as i64), &parts)
                .unwrap();
        }
    }
    writer.finish().unwrap()
}

fn check(bytes: &[u8]) -> Result<Archive, Failure> {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    Archive::check(file, "tasks.jsonl")
}

fn refused(bytes: &[u8]) -> String {
    match check(bytes) {
        Err(Failure::Failed(reason)) => reason,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("{}", String::from_utf8_lossy(bytes)),
    }
}

#[test]
fn an_import_reads_the_oldest_record_of_each_owner_first_whatever_the_length_of_the_lines() {
    for (bytes, alice, chunks) in [(0, 300, 2), (70_000, 4, 1), (300_000, 2, 1)] {
        let owners = [("alice", alice), ("bob", 1), ("carol", 3)];
        let archive = check(&written(&owners, bytes)).unwrap();
        assert_eq!((archive.records, archive.encrypted, archive.chunks.len()), (alice as u64 + 4, 0, chunks));
        let mut found: Vec<(String, usize)> = Vec::new();
        for chunk in &archive.chunks {
            for record in archive.records_of(chunk) {
                let record = record.unwrap();
                let number: usize = record.key.task.as_str().parse().unwrap();
                assert_eq!(
                    record.data,
                    json!({ "n": number, "pad": "x".repeat(bytes) }).to_string().into_bytes()
                );
                assert_eq!(record.parts[&PartName::from_static("output")], [0, 255, number as u8]);
                assert_eq!(record.expires_at, Some(at(5_000_000)));
                found.push((record.key.owner.as_str().to_owned(), number));
            }
        }
        for (owner, records) in owners {
            let of_owner: Vec<usize> =
                found.iter().filter(|(found, _)| found == owner).map(|(_, number)| *number).collect();
            assert_eq!(of_owner, (0..records).collect::<Vec<_>>());
        }
    }
}

#[test]
fn every_record_is_read_back_byte_by_byte() {
    let datas: [&[u8]; 10] = [
        br#"{"big":123456789012345678901234567890,"a": 1.50, "a":2}"#,
        b"{\"a\":\n1}",
        b" {} ",
        b"null",
        b"\xff\0",
        b"",
        b"\x01{}",
        b"{",
        "\"\u{202e}\u{2028}\"".as_bytes(),
        b"[1,2]",
    ];
    let mut writer = ArchiveWriter::new(Vec::new(), &Header::new(at(0), "redis", json!({}))).unwrap();
    for (number, data) in datas.iter().enumerate() {
        writer.record(&owner("a\nb"), &listed(&format!("{number}"), data, 0), &BTreeMap::new()).unwrap();
    }
    let archive = check(&writer.finish().unwrap()).unwrap();
    assert_eq!(archive.encrypted, 1);
    let read: Vec<ArchivedRecord> = archive.records_of(&archive.chunks[0]).map(Result::unwrap).collect();
    let read: Vec<&[u8]> = read.iter().rev().map(|record| record.data.as_slice()).collect();
    assert_eq!(read, datas);
}

#[test]
fn a_file_that_was_cut_off_is_refused_wherever_it_ends() {
    let whole = written(&[("alice", 3)], 10);
    for length in 0..whole.len() - 1 {
        let reason = refused(&whole[..length]);
        let expected = if length == 0 { "is empty" } else { "line" };
        assert!(reason.contains(expected), "{length}: {reason}");
    }
    assert!(
        refused(&whole[..whole.len() - 3]).contains("ends after line 5"),
        "{}",
        refused(&whole[..whole.len() - 3])
    );
    check(&whole[..whole.len() - 1]).unwrap_or_else(|error| panic!("only the last line break: {error:?}"));
}

#[test]
fn a_file_of_which_a_byte_was_altered_is_refused() {
    let whole = written(&[("alice", 2)], 4);
    for position in 0..whole.len() - 1 {
        let mut altered = whole.clone();
        altered[position] ^= 1;
        refused(&altered);
    }
}

#[test]
fn a_file_of_a_later_version_or_another_program_is_refused_with_its_line() {
    let whole = String::from_utf8(written(&[("alice", 2)], 4)).unwrap();
    let later = refused(whole.replace(r#""version":1"#, r#""version":2"#).as_bytes());
    assert!(later.contains("version 2") && later.contains("line 1"), "{later}");
    assert!(refused(b"{\"a\":1}\n").contains("line 1 is not its header"));
    let reserved = refused(whole.replace("alice", r"\u0000mcp/x").as_bytes());
    assert!(reserved.contains("line 2") && reserved.contains("reserved"), "{reserved}");
    let unknown = refused(whole.replace(r#""createdAt""#, r#""madeAt""#).as_bytes());
    assert!(unknown.contains("line 2") && unknown.contains("madeAt"), "{unknown}");
    let doubled = refused((whole.clone() + &whole).as_bytes());
    assert!(doubled.contains("line 5") && doubled.contains("follows"), "{doubled}");
    let removed: String =
        whole.lines().enumerate().filter(|(at, _)| *at != 1).map(|(_, line)| format!("{line}\n")).collect();
    assert!(refused(removed.as_bytes()).contains("altered"));
}
