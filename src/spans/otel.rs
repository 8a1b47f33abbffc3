//! The functions of a build with the feature `otel`.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry::{Context, Value};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::Message;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
use crate::backend::StorageError;
use crate::task::traceparent;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
use crate::telemetry::Outcome;

/// The value of `messaging.system`.
const SYSTEM: &str = "mcp_task_store";

/// A database as the spans of its calls describe it.
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
#[derive(Clone)]
pub(crate) struct Database {
    system: &'static str,
    namespace: Option<String>,
    /// `None` if a call can go to one of several servers.
    server: Option<(String, Option<u16>)>,
    /// What the name of a span says after the operation.
    target: Option<String>,
}

#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
impl Database {
    /// Describes a database of Redis. `address`: the host and the port, or the path of a socket. Any other text names no one server.
    #[cfg(feature = "redis")]
    pub(crate) fn redis(address: &str, index: Option<i64>) -> Self {
        let server = match address.rsplit_once(':') {
            _ if address.contains(' ') => None,
            None => Some((address.to_owned(), None)),
            Some((host, port)) => port.parse().ok().map(|port| (host.to_owned(), Some(port))),
        };
        let target = server.is_some().then(|| address.to_owned());
        Self { system: "redis", namespace: index.map(|index| index.to_string()), server, target }
    }

    /// Describes a database of PostgreSQL. `servers`: each host with its port.
    #[cfg(feature = "postgres")]
    pub(crate) fn postgres(servers: &[(String, u16)], database: Option<&str>) -> Self {
        let server = match servers {
            [(host, port)] => Some((host.clone(), Some(*port))),
            _ => None,
        };
        let namespace = database.map(str::to_owned);
        Self { system: "postgresql", target: namespace.clone(), namespace, server }
    }

    /// Describes a file of SQLite by its name. The path may say more about the machine than a trace should.
    #[cfg(feature = "sqlite")]
    pub(crate) fn sqlite(path: &std::path::Path) -> Self {
        let namespace = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Self { system: "sqlite", target: namespace.clone(), namespace, server: None }
    }
}

/// Describes the span of a call of an engine, before it is entered.
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) fn engine_call(span: &Span, database: &Database) {
    let Some(call) = enabled(span) else { return };
    let Database { system, namespace, server, target } = database;
    set_kind_and_name(span, "client", call, target.as_deref());
    span.set_attribute("db.system.name", *system);
    span.set_attribute("db.operation.name", call);
    set(span, "db.namespace", namespace.clone());
    if let Some((host, port)) = server {
        span.set_attribute("server.address", host.clone());
        set(span, "server.port", port.map(i64::from));
    }
}

/// Marks the span of a call that has failed. A record that does not exist and a conflict are answers.
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) fn engine_answered<T>(span: &Span, answer: &Result<T, StorageError>) {
    match Outcome::of(answer) {
        Outcome::Ok | Outcome::NotFound | Outcome::Conflict => {}
        outcome => failed(span, &outcome.as_str()),
    }
}

/// Returns the `traceparent` that a new task keeps: that of the current span, unless the caller gives one of another trace.
pub(crate) fn inherited(given: Option<String>) -> Option<String> {
    let current = current();
    let is_nearer = match given.as_deref() {
        None => current.is_valid(),
        Some(given) => parse(given).is_some_and(|given| given.trace_id() == current.trace_id()),
    };
    if is_nearer { Some(format(&current)) } else { given }
}

/// Returns the `traceparent` of a span. Starts the span, so its parent must be set before.
pub(crate) fn traceparent(span: &Span) -> Option<String> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| format(&context))
}

/// Describes the span of an enqueue, before it is entered.
pub(crate) fn enqueue(span: &Span, message: &Message<'_>) {
    set_message(span, message, "producer", "enqueue", "send");
}

/// Describes the span of an attempt, before it is entered. `previous` is the `traceparent` of the span of the attempt before.
#[cfg(feature = "rmcp")]
pub(crate) fn attempt(span: &Span, message: &Message<'_>, number: u32, previous: Option<&str>) {
    set_message(span, message, "consumer", "process", "process");
    if number > 1 {
        let linked = [previous, message.traceparent].into_iter().flatten().filter_map(parse);
        linked.for_each(|linked| span.add_link(linked));
    }
}

/// Renames the span of an attempt that has not begun, because another process has written the task meanwhile.
#[cfg(feature = "rmcp")]
pub(crate) fn unused_attempt(span: &Span) {
    // The span has started, so its field `otel.name` has no effect any more.
    span.context().span().update_name("claim");
    span.set_attribute("messaging.operation.name", "claim");
}

fn set_message(
    span: &Span,
    message: &Message<'_>,
    kind: &str,
    operation: &'static str,
    of_type: &'static str,
) {
    if enabled(span).is_none() {
        return;
    }
    if let Some(parent) = message.traceparent.and_then(parse) {
        set_parent(span, parent);
    }
    set_kind_and_name(span, kind, operation, message.operation);
    span.set_attribute("messaging.system", SYSTEM);
    span.set_attribute("messaging.operation.name", operation);
    span.set_attribute("messaging.operation.type", of_type);
    set(span, "messaging.destination.name", message.operation.map(str::to_owned));
    set(span, "messaging.message.id", message.task.map(|task| task.as_str().to_owned()));
}

/// Creates the span of a call of a tool. `parent` is the `traceparent` of the request. If the current span belongs to another trace,
/// the span of the call links to it.
#[cfg(feature = "rmcp")]
pub(crate) fn tool_call(tool: &str, parent: Option<&str>) -> Span {
    use tracing::field::Empty;

    let current = current();
    let span = tracing::info_span!("call", tool, otel.kind = Empty, otel.name = Empty);
    if enabled(&span).is_none() {
        return span;
    }
    if let Some(parent) = parent.and_then(parse)
        && parent.trace_id() != current.trace_id()
    {
        set_parent(&span, parent);
        span.add_link(current);
    }
    set_kind_and_name(&span, "server", "tools/call", Some(tool));
    span.set_attribute("mcp.method.name", "tools/call");
    span.set_attribute("gen_ai.operation.name", "execute_tool");
    span.set_attribute("gen_ai.tool.name", tool.to_owned());
    span
}

/// Marks a span as failed. `class` has few values.
#[cfg(any(feature = "postgres", feature = "redis", feature = "rmcp", feature = "sqlite"))]
pub(crate) fn failed(span: &Span, class: &dyn std::fmt::Display) {
    if enabled(span).is_some() {
        span.set_attribute("error.type", class.to_string());
        span.set_status(opentelemetry::trace::Status::error(""));
    }
}

/// Returns the name of a span that a subscriber listens to.
fn enabled(span: &Span) -> Option<&'static str> {
    span.metadata().filter(|_| !span.is_disabled()).map(|metadata| metadata.name())
}

fn set_kind_and_name(span: &Span, kind: &str, operation: &str, target: Option<&str>) {
    span.record("otel.kind", kind);
    match target {
        Some(target) => span.record("otel.name", format!("{operation} {target}")),
        None => span.record("otel.name", operation),
    };
}

fn set<V: Into<Value>>(span: &Span, name: &'static str, value: Option<V>) {
    if let Some(value) = value {
        span.set_attribute(name, value);
    }
}

fn set_parent(span: &Span, parent: SpanContext) {
    // Fails only if no layer exports the span.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent));
}

/// Returns the innermost span that is exported. A filter can hide the current one from the exporter.
fn current() -> SpanContext {
    if !tracing::dispatcher::has_been_set() {
        return SpanContext::NONE;
    }
    let context = Span::current().context();
    let of_span = context.span().span_context().clone();
    if of_span.is_valid() { of_span } else { Context::current().span().span_context().clone() }
}

fn parse(text: &str) -> Option<SpanContext> {
    if !traceparent::is_valid(text) {
        return None;
    }
    let mut fields = text.split('-').skip(1);
    let trace = TraceId::from_hex(fields.next()?).ok()?;
    let span = SpanId::from_hex(fields.next()?).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(fields.next()?, 16).ok()?);
    Some(SpanContext::new(trace, span, flags, true, TraceState::default()))
}

fn format(context: &SpanContext) -> String {
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), flags)
}

#[cfg(test)]
mod tests;
