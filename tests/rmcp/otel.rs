//! Traces: one trace from the call of a tool through the enqueue, each attempt and each call of the engine, in any process.

mod across_processes;
mod collector;
mod in_process;
mod process;
mod recorder;

use opentelemetry_semantic_conventions::attribute as names;

/// The `traceparent` of a client, and the ids in it.
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "00f067aa0ba902b7";

/// The arguments of the calls, which no trace may show.
const SECRET: &str = "the-secret-argument";
