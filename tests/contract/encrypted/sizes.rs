//! Sizes are those of the plain bytes.

use mcp_task_store::{
    ENVELOPE_BYTES, MAX_PARTS, PageRequest, PartName, PutOptions, StorageBackend, StorageError, Version,
};
use rstest_reuse::apply;

use crate::support::encryption::encrypted;
use crate::support::{
    Engine, MAX_PART_BYTES, MAX_VALUE_BYTES, in_an_hour, keep, key, on_every_engine, owner,
};

const OUTPUT: PartName = PartName::from_static("output");

#[apply(on_every_engine)]
#[tokio::test]
async fn limits_and_sizes_are_those_of_the_plain_bytes(#[case] engine: Engine) {
    let store = engine.open().await;
    let encrypted = encrypted(&store, &["a key id of 16".replace(' ', "-").as_str()]);
    let t1 = key("alice", "t1");
    let (max_data, max_part) = (MAX_VALUE_BYTES - 57, MAX_PART_BYTES - 57);
    assert_eq!((encrypted.max_value_bytes(), ENVELOPE_BYTES), (max_data, 57));

    let largest = keep().set_part(OUTPUT, vec![b'x'; max_part]);
    encrypted.put(&t1, vec![b'x'; max_data].into(), largest).await.unwrap();
    let record = encrypted.get(&t1).await.unwrap();
    assert_eq!((record.data.len(), record.parts[&OUTPUT]), (max_data, max_part));
    let page = encrypted.list(&owner("alice"), PageRequest::new(1)).await.unwrap();
    assert_eq!((page.records[0].data.len(), page.records[0].parts[&OUTPUT]), (max_data, max_part));
    assert_eq!(store.get(&t1).await.unwrap().parts[&OUTPUT], MAX_PART_BYTES);

    let data = encrypted.put(&t1, vec![b'x'; max_data + 1].into(), keep()).await;
    assert_refused!(data, StorageError::TooLarge { what, size, max }
        if what == "bytes of data" && (size, max) == (max_data + 1, max_data));
    let over = keep().set_part(OUTPUT, vec![b'x'; max_part + 1]);
    let part = encrypted.put_if_version(&t1, "data".into(), over, Version::FIRST).await;
    assert_refused!(part, StorageError::TooLarge { what, size, max }
        if what == "bytes of the part output" && (size, max) == (max_part + 1, max_part));
    let many = |count: usize| {
        let name = |number| PartName::try_from(format!("p{number}")).unwrap();
        (0..count).fold(keep(), |options: PutOptions, number| options.set_part(name(number), "x"))
    };
    for count in [MAX_PARTS, MAX_PARTS + 1, 60] {
        let parts = encrypted.put(&t1, "data".into(), many(count)).await;
        assert_refused!(parts, StorageError::TooLarge { what, max: MAX_PARTS, .. } if what == "parts of a record");
    }
    assert_eq!(encrypted.get(&t1).await.unwrap(), record);
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_walk_with_any_page_size_in_bytes_returns_each_record_once(#[case] engine: Engine) {
    let store = engine.open().await;
    let encrypted = encrypted(&store, &["k1"]);
    for task in 0..40_usize {
        let data = vec![b'x'; task * 37 % 400];
        encrypted.put(&key("alice", &task.to_string()), data.into(), in_an_hour()).await.unwrap();
    }
    for max_bytes in [0, 1, 57, 400, 1000, 100_000, usize::MAX] {
        for limit in [1, 7, 256] {
            let (mut tasks, mut request) = (Vec::new(), PageRequest::new(limit).max_bytes(max_bytes));
            loop {
                let page = encrypted.list(&owner("alice"), request).await.unwrap();
                let bytes: usize = page.records.iter().map(|record| record.data.len()).sum();
                assert!(bytes <= max_bytes || page.records.len() == 1);
                tasks.extend(page.records.into_iter().map(|record| record.task.to_string()));
                let Some(next) = page.next else { break };
                request = PageRequest::new(limit).max_bytes(max_bytes).after(next);
            }
            let expected: Vec<String> = (0..40).rev().map(|task| task.to_string()).collect();
            assert_eq!(tasks, expected, "{max_bytes} bytes, {limit} records");
        }
    }
}
