//! Tests of the checker: it accepts a history if and only if the contract allows it.

use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;
use rstest::rstest;

use super::record::Call::{Delete, Get, Put, PutIfVersion};
use super::record::Reply::{Deleted, NotFound, Read, VersionConflict, Written};
use super::record::{Call, Live, Operation, Recorded, Reply, Segment};

/// Returns an answered call between two moments.
fn call(during: Range<u64>, call: Call, reply: Reply) -> Recorded {
    Recorded { called: during.start, ended: during.end, operation: Operation::Answered(call, reply) }
}

/// Returns a write that was made at this moment, with an unknown outcome.
fn unknown(called: u64, call: Call) -> Recorded {
    Recorded { called, ended: called, operation: Operation::Unknown(call) }
}

const fn live(version: u64, data: u64) -> Live {
    Live { version, data }
}

/// Returns a segment that begins with version 1 of the record, which holds the number 10.
fn segment(operations: &[Recorded], ends: Option<Live>) -> Segment {
    Segment { begins: Some(live(1, 10)), operations: operations.to_vec(), ends }
}

#[rstest]
#[case::nothing_happened(&[], Some(live(1, 10)))]
#[case::writes_at_once_take_effect_in_the_order_that_their_versions_say(
    &[call(0..9, Put { data: 11 }, Written { version: 3 }), call(1..8, Put { data: 12 }, Written { version: 2 })],
    Some(live(3, 11))
)]
#[case::one_of_two_swaps_loses(
    &[
        call(0..9, PutIfVersion { data: 11, expected: 1 }, VersionConflict { actual: 2 }),
        call(1..8, PutIfVersion { data: 12, expected: 1 }, Written { version: 2 }),
    ],
    Some(live(2, 12))
)]
#[case::a_deleted_record_is_created_at_version_1(
    &[
        call(0..1, PutIfVersion { data: 11, expected: 0 }, VersionConflict { actual: 1 }),
        call(2..3, Delete, Deleted(true)),
        call(4..5, Delete, Deleted(false)),
        call(6..7, PutIfVersion { data: 12, expected: 1 }, NotFound),
        call(8..9, PutIfVersion { data: 13, expected: 0 }, Written { version: 1 }),
    ],
    Some(live(1, 13))
)]
#[case::an_unknown_write_was_applied(&[unknown(0, Put { data: 11 })], Some(live(2, 11)))]
#[case::an_unknown_write_was_not_applied(&[unknown(0, Put { data: 11 })], Some(live(1, 10)))]
#[case::an_unknown_write_was_applied_late(
    &[unknown(0, Put { data: 11 }), call(1..2, Get, Read(live(1, 10))), call(3..4, Get, Read(live(2, 11)))],
    Some(live(2, 11))
)]
#[case::an_unknown_write_was_applied_and_only_its_version_is_seen(
    &[unknown(0, Put { data: 11 }), call(1..2, Put { data: 12 }, Written { version: 3 })],
    Some(live(3, 12))
)]
#[case::one_of_two_unknown_writes_was_applied(
    &[unknown(0, PutIfVersion { data: 11, expected: 1 }), unknown(1, PutIfVersion { data: 12, expected: 1 })],
    Some(live(2, 12))
)]
#[case::an_unknown_delete_made_room(
    &[unknown(0, Delete), call(1..2, PutIfVersion { data: 11, expected: 0 }, Written { version: 1 })],
    Some(live(1, 11))
)]
fn a_history_that_the_contract_allows_is_linearizable(
    #[case] operations: &[Recorded],
    #[case] ends: Option<Live>,
) {
    assert!(segment(operations, ends).is_linearizable());
}

#[rstest]
#[case::an_acknowledged_write_is_gone(&[call(0..1, Put { data: 11 }, Written { version: 2 })], Some(live(1, 10)))]
#[case::the_reply_of_an_acknowledged_write_was_another(
    &[call(0..1, Put { data: 11 }, Written { version: 3 })],
    Some(live(2, 11))
)]
#[case::an_acknowledged_delete_is_undone(&[call(0..1, Delete, Deleted(true))], Some(live(1, 10)))]
#[case::a_deleted_record_comes_back(
    &[
        call(0..1, Put { data: 11 }, Written { version: 2 }),
        call(2..3, Delete, Deleted(true)),
        call(4..5, Get, Read(live(2, 11))),
        call(6..7, Delete, Deleted(true)),
    ],
    None
)]
#[case::an_update_is_lost(
    &[
        call(0..9, PutIfVersion { data: 11, expected: 1 }, Written { version: 2 }),
        call(1..8, PutIfVersion { data: 12, expected: 1 }, Written { version: 2 }),
    ],
    Some(live(2, 12))
)]
#[case::a_swap_ignores_the_version(
    &[call(0..1, PutIfVersion { data: 11, expected: 7 }, Written { version: 2 })],
    Some(live(2, 11))
)]
#[case::a_read_is_stale(
    &[call(0..1, Put { data: 11 }, Written { version: 2 }), call(2..3, Get, Read(live(1, 10)))],
    Some(live(2, 11))
)]
#[case::a_conflict_with_a_version_that_never_was(
    &[call(0..1, PutIfVersion { data: 11, expected: 3 }, VersionConflict { actual: 2 })],
    Some(live(1, 10))
)]
#[case::a_create_over_a_live_record(
    &[call(0..1, PutIfVersion { data: 11, expected: 0 }, Written { version: 1 })],
    Some(live(1, 11))
)]
#[case::a_value_that_no_call_of_the_history_wrote(&[], Some(live(2, 11)))]
#[case::an_unknown_write_is_applied_before_it_was_called(
    &[call(0..1, Get, Read(live(2, 11))), unknown(2, Put { data: 11 })],
    Some(live(2, 11))
)]
#[case::an_unknown_write_is_applied_twice(
    &[
        unknown(0, Put { data: 11 }),
        call(1..2, Get, Read(live(2, 11))),
        call(3..4, Put { data: 12 }, Written { version: 3 }),
        call(5..6, Get, Read(live(4, 11))),
    ],
    Some(live(4, 11))
)]
#[case::an_unknown_write_is_seen_and_then_not(
    &[unknown(0, Put { data: 11 }), call(1..2, Get, Read(live(2, 11))), call(3..4, Get, Read(live(1, 10)))],
    Some(live(1, 10))
)]
#[case::both_of_two_unknown_swaps_from_one_version_were_applied(
    &[
        unknown(0, PutIfVersion { data: 11, expected: 1 }),
        unknown(1, PutIfVersion { data: 12, expected: 1 }),
        call(2..3, Get, Read(live(2, 11))),
        call(4..5, Get, Read(live(3, 12))),
    ],
    Some(live(3, 12))
)]
fn a_history_that_breaks_the_contract_is_not_linearizable(
    #[case] operations: &[Recorded],
    #[case] ends: Option<Live>,
) {
    assert!(!segment(operations, ends).is_linearizable());
}

/// The length of the histories that are checked in every order.
const OPERATIONS: usize = 5;

/// Returns whether the operations lead to the last read in some order, with each unknown write applied or not. No operation comes
/// before one that had ended when it was called. Tries every order.
fn some_order_leads(record: Option<Live>, left: &[Recorded], ends: Option<Live>) -> bool {
    if left.is_empty() {
        return record == ends;
    }
    let ended = |recorded: &Recorded| match recorded.operation {
        Operation::Unknown(_) => u64::MAX,
        _ => recorded.ended,
    };
    let first_end = left.iter().map(ended).min().unwrap();
    let can_be_next = (0..left.len()).filter(|&next| left[next].called <= first_end);
    can_be_next.into_iter().any(|next| {
        let others = [&left[..next], &left[next + 1..]].concat();
        match left[next].operation {
            Operation::Begins(_) => unreachable!(),
            Operation::Answered(call, reply) => {
                let (given, after) = call.perform(record);
                given == reply && some_order_leads(after, &others, ends)
            }
            Operation::Unknown(call) => {
                some_order_leads(record, &others, ends)
                    || some_order_leads(call.perform(record).1, &others, ends)
            }
        }
    })
}

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![
        Just(Get),
        (11_u64..14).prop_map(|data| Put { data }),
        (11_u64..14, 0_u64..4).prop_map(|(data, expected)| PutIfVersion { data, expected }),
        Just(Delete),
    ]
}

/// The outcome of a call: it is answered, or it is unknown whether it was applied.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    Applied,
    NotApplied,
}

/// Generates real histories, in which each call takes effect at a moment between its call and its reply.
fn histories() -> impl Strategy<Value = Segment> {
    let fate = prop_oneof![3 => Just(Fate::Answered), 1 => Just(Fate::Applied), 1 => Just(Fate::NotApplied)];
    let moments: Vec<u64> = (0..3 * OPERATIONS as u64).collect();
    (vec((calls(), fate), OPERATIONS), Just(moments).prop_shuffle()).prop_map(|(calls, moments)| {
        let moments = moments.chunks(3).map(|three| {
            let mut three = three.to_vec();
            three.sort_unstable();
            three
        });
        let mut calls: Vec<_> = calls.into_iter().zip(moments).collect();
        calls.sort_by_key(|(_, moments)| moments[1]);
        let begins = Some(live(1, 10));
        let (mut record, mut operations) = (begins, Vec::new());
        for ((call, fate), moments) in calls {
            let (reply, after) = call.perform(record);
            if !matches!(fate, Fate::NotApplied) {
                record = after;
            }
            let operation = match fate {
                Fate::Answered => Operation::Answered(call, reply),
                _ => Operation::Unknown(call),
            };
            operations.push(Recorded { called: moments[0], ended: moments[2], operation });
        }
        Segment { begins, operations, ends: record }
    })
}

/// Replaces a reply by another one, which may or may not be explained.
fn falsified(mut history: Segment, at: usize, version: u64) -> Segment {
    if let Some(recorded) = history.operations.get_mut(at)
        && let Operation::Answered(_, reply) = &mut recorded.operation
    {
        *reply = match *reply {
            Read(live) => Read(Live { version, ..live }),
            Written { .. } => Written { version },
            Deleted(removed) => Deleted(!removed),
            VersionConflict { .. } => VersionConflict { actual: version },
            NotFound => NotFound,
        };
    } else {
        history.ends = history.ends.map(|live| Live { version, ..live });
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_history_as_it_happened_is_linearizable(history in histories()) {
        prop_assert!(history.is_linearizable());
    }

    #[test]
    fn the_checker_agrees_with_a_search_of_every_order(
        history in histories(),
        at in 0..=OPERATIONS,
        version in 1_u64..5,
    ) {
        let history = falsified(history, at, version);
        let expected = some_order_leads(history.begins, &history.operations, history.ends);
        prop_assert_eq!(history.is_linearizable(), expected);
    }
}
