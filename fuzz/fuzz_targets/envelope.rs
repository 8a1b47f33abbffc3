#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mcp_task_store::fuzzing::envelope(input));
