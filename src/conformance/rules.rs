//! The list of all rules. The suite checks only the rules in this list.

/// Passes the rules of the contract to another macro of this crate: `$then!($with, module { rule, … } …)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __each_conformance_rule {
    ($then:ident, $with:path) => {
        $crate::$then! {
            $with,
            records {
                get_returns_data_version_and_expiry_of_a_live_record,
                get_of_an_absent_record_is_not_found,
                any_bytes_are_read_as_they_were_written,
                put_creates_at_version_1_and_each_write_adds_1,
                put_over_an_expired_record_starts_again_at_version_1,
                put_over_a_deleted_record_starts_again_at_version_1,
                put_if_version_replaces_the_record_at_the_expected_version,
                put_if_version_at_another_version_is_a_conflict_and_writes_nothing,
                put_if_version_of_an_absent_or_expired_record_is_not_found_and_writes_nothing,
                put_if_version_with_0_creates_an_absent_or_expired_record,
                put_if_version_with_0_on_a_live_record_is_a_conflict_and_writes_nothing,
                of_many_writers_that_race_for_one_version_exactly_one_wins,
                of_many_puts_that_race_each_has_a_version_of_its_own,
                a_reader_never_sees_half_of_a_write,
                a_read_that_races_a_delete_finds_the_record_or_nothing,
                delete_returns_whether_there_was_a_live_record,
                data_over_the_maximum_is_too_large_and_nothing_is_written,
                an_arc_of_an_engine_is_an_engine,
            }
            parts {
                a_part_is_read_with_the_version_of_its_record_which_knows_its_name_and_size,
                a_write_changes_the_parts_that_it_names_and_no_others,
                a_refused_write_changes_no_part,
                a_new_record_has_no_part_of_an_expired_or_deleted_record,
                a_part_over_the_maximum_or_one_too_many_is_too_large_and_nothing_is_written,
            }
            time {
                clock_decides_what_has_expired_and_now_is_not_ahead_of_it,
                now_advances_between_calls,
                an_expired_record_is_absent_for_every_call_at_once,
                a_record_never_expires_a_fraction_of_a_millisecond_early,
                keep_leaves_the_expiry_as_it_was_and_a_new_record_never_expires,
                never_removes_the_expiry_and_after_sets_another,
                an_expiry_outside_1_ms_to_100_years_is_refused_and_nothing_is_written,
                cleanup_expired_removes_no_live_record_and_returns_how_many_it_removed,
            }
            quota {
                at_the_quota_a_new_record_is_refused_and_nothing_is_written,
                a_quota_never_blocks_an_update,
                a_quota_counts_live_records_only,
                racing_inserts_never_exceed_the_quota,
            }
            pages {
                a_page_is_newest_first_by_creation_with_everything_that_get_returns,
                an_owner_without_records_has_one_empty_page,
                a_page_limit_is_1_to_256,
                a_page_ends_before_the_record_that_would_exceed_its_bytes,
                a_walk_whose_pages_are_cut_by_their_bytes_misses_no_record,
                a_cursor_that_is_malformed_or_of_another_owner_is_refused,
                a_cursor_stays_valid_after_its_record_is_deleted,
                a_record_that_is_created_again_is_listed_as_the_newest,
                a_burst_of_inserts_is_listed_in_one_total_order,
                a_walk_returns_each_record_that_is_live_during_the_whole_walk_exactly_once,
            }
            owners {
                hostile_ids_never_collide,
                an_id_of_0_or_257_bytes_is_refused,
                an_owner_never_reaches_records_of_another_owner,
            }
            watch {
                a_watch_has_an_item_once_it_is_live_and_one_after_each_change,
                a_read_after_each_item_of_a_watch_sees_the_last_change,
                a_watch_ends_when_its_record_is_deleted,
                a_watch_ends_when_its_record_expires_and_no_earlier,
                a_watch_ends_when_a_quiet_write_makes_its_record_expire,
                a_watch_of_an_absent_or_expired_record_ends_without_an_item,
                a_notified_watch_has_no_item_for_quiet_writes_other_tasks_and_other_owners,
                a_quiet_write_notifies_no_watch,
                each_of_many_watches_has_items_until_it_is_dropped,
            }
            agenda {
                without_timers_take_due_returns_no_timer_and_no_next_due_time,
                a_timer_is_taken_once_it_is_due_and_next_in_states_when_that_is,
                a_timer_fires_no_later_than_asked_by_the_clock_of_the_engine,
                next_in_is_the_earliest_of_all_queues_and_zero_if_more_are_due,
                with_a_limit_of_0_take_due_takes_nothing_and_states_when_the_next_timer_is_due,
                a_due_timer_goes_to_one_taker,
                a_taken_timer_is_hidden_and_fires_again,
                one_call_takes_a_timer_once_even_if_hide_for_is_zero,
                one_call_takes_each_of_many_timers_once_even_if_hide_for_is_zero,
                schedule_keeps_an_earlier_timer_and_moves_a_later_one,
                a_task_has_its_own_timer_in_each_queue,
                a_timer_stays_when_its_record_is_written_deleted_or_expires,
                queues_are_taken_in_the_order_given,
                timers_of_a_queue_are_taken_by_due_time,
                with_a_limit_of_1_take_due_takes_the_timer_that_was_due_first,
                take_due_takes_no_more_than_its_limit_and_256,
                resolve_moves_or_removes_the_timer,
                schedule_voids_the_token_even_if_an_earlier_timer_stays,
                a_later_take_voids_the_token,
                a_token_is_valid_for_one_resolve,
                a_token_of_a_removed_timer_is_void_for_the_next_timer,
                a_token_that_take_due_never_returned_is_void,
                the_engine_holds_nothing_after_all_timers_are_removed,
                timers_of_different_ids_or_queues_never_collide,
                a_delay_over_100_years_is_refused_and_changes_nothing,
                a_queue_name_outside_1_to_512_bytes_is_refused,
            }
            creates {
                create_with_timer_creates_the_record_and_schedules_the_timer,
                create_with_timer_keeps_an_earlier_timer_and_moves_a_later_one,
                a_create_with_timer_that_is_refused_writes_no_record_and_changes_no_other_timer,
                an_expiry_or_a_delay_out_of_range_is_refused_by_create_with_timer_and_nothing_is_written,
                of_many_creates_with_a_timer_that_race_for_one_task_exactly_one_wins,
                each_of_many_creates_with_a_timer_has_its_record_and_its_timer,
            }
            wakeups {
                a_timer_that_becomes_the_earliest_wakes_the_subscribers,
                a_timer_of_create_with_timer_that_becomes_the_earliest_wakes_the_subscribers,
                a_timer_that_resolve_makes_the_earliest_wakes_the_subscribers,
                subscribers_receive_items_for_earlier_timers_of_their_queues_only,
                a_timer_scheduled_before_the_stream_is_polled_is_an_item_of_the_next_poll,
                a_stream_of_wakeups_of_no_queue_has_no_item,
            }
            listings {
                timers_lists_each_timer_once_with_its_due_time_and_takes_none,
                a_walk_while_timers_are_added_and_removed_lists_each_remaining_timer_once,
                a_malformed_cursor_of_timers_or_owners_is_refused,
                owners_lists_each_owner_that_has_records,
            }
            states {
                a_write_past_the_last_version_is_version_exhausted,
                a_damaged_record_is_corrupt_until_it_is_deleted_and_a_page_lists_the_other_records,
                creation_times_increase_after_the_clock_of_the_engine_steps_back,
                the_engine_holds_nothing_of_an_owner_without_live_records,
            }
        }
    };
}
