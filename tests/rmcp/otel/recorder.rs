//! An exporter that keeps the spans in memory.

use std::sync::{Arc, Mutex};

use opentelemetry::trace::{SpanId, Status, TracerProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use crate::support::ask_every_subscriber;

#[derive(Clone, Debug, Default)]
struct Exporter(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// Keeps the spans of this thread, until it is dropped.
pub struct Recorder {
    exported: Exporter,
    _provider: SdkTracerProvider,
    _guard: DefaultGuard,
}

impl Recorder {
    pub fn start(level: LevelFilter) -> Self {
        ask_every_subscriber();
        let exported = Exporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exported.clone()).build();
        // The SDK has one span for each connection, which would put all calls of a connection in one trace.
        let filter = Targets::new().with_default(level).with_target("rmcp::service", LevelFilter::OFF);
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_filter(filter);
        let _guard = tracing::subscriber::set_default(Registry::default().with(layer));
        Self { exported, _provider: provider, _guard }
    }

    /// Returns the spans that have ended.
    pub fn spans(&self) -> Vec<SpanData> {
        self.exported.0.lock().unwrap().clone()
    }

    pub fn named(&self, name: &str) -> Vec<SpanData> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }

    /// Returns the only span of this name, which has ended.
    pub fn one(&self, name: &str) -> SpanData {
        let mut named = self.named(name);
        assert_eq!(named.len(), 1, "{name}: {:#?}", self.spans());
        named.remove(0)
    }
}

pub fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

/// Returns the ids of the linked spans, which belong to the same trace.
pub fn links(span: &SpanData) -> Vec<SpanId> {
    let linked = span.links.iter().map(|link| &link.span_context);
    linked
        .inspect(|linked| assert_eq!(linked.trace_id(), span.span_context.trace_id()))
        .map(|linked| linked.span_id())
        .collect()
}

/// Returns the class of the error of a failed span, and asserts that only such a span has one.
pub fn error(span: &SpanData) -> Option<String> {
    let class = span.attributes.iter().find(|attribute| attribute.key.as_str() == super::names::ERROR_TYPE);
    let class = class.map(|attribute| attribute.value.to_string());
    let expected = if class.is_some() { Status::error("") } else { Status::Unset };
    assert_eq!(span.status, expected, "{span:?}");
    class
}
