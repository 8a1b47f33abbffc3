use std::sync::{Arc, Mutex};

use opentelemetry::trace::{SpanKind, TracerProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use super::*;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

#[derive(Clone, Debug, Default)]
struct Exporter(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// Runs this code, and returns the spans that have ended.
fn exported(run: impl FnOnce()) -> Vec<SpanData> {
    let exporter = Exporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing::subscriber::with_default(Registry::default().with(layer), run);
    let spans = exporter.0.lock().unwrap();
    spans.clone()
}

#[test]
fn a_traceparent_is_written_as_it_was_read() {
    for text in [
        "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000001-0000000000000001-00",
    ] {
        let parsed = parse(text).unwrap();
        assert!(parsed.is_remote());
        assert_eq!(format(&parsed), text);
    }
    assert_eq!(parse("00-1-2-01"), None);
}

#[cfg(feature = "redis")]
#[test]
fn only_the_address_of_one_server_is_an_attribute() {
    let server = |address| Database::redis(address, Some(0)).server;
    assert_eq!(server("10.0.0.5:6379"), Some(("10.0.0.5".to_owned(), Some(6379))));
    assert_eq!(server("::1:7"), Some(("::1".to_owned(), Some(7))));
    assert_eq!(server("/run/redis.sock"), Some(("/run/redis.sock".to_owned(), None)));
    assert_eq!(server("the cluster of a:1, b:2"), None);
    assert_eq!(server("mymaster (by the sentinels a:1, b:2)"), None);
    assert_eq!(server("the given Redis connection"), None);
}

#[cfg(feature = "rmcp")]
#[test]
fn a_call_belongs_to_the_trace_of_its_request_and_links_to_a_span_of_another_trace() {
    let spans =
        exported(|| tracing::info_span!("http").in_scope(|| drop(tool_call("render", Some(TRACEPARENT)))));
    let [call, http] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!((call.name.as_ref(), &call.span_kind), ("tools/call render", &SpanKind::Server));
    assert_eq!(call.parent_span_id, parse(TRACEPARENT).unwrap().span_id());
    assert_eq!(call.span_context.trace_id(), parse(TRACEPARENT).unwrap().trace_id());
    let linked: Vec<_> = call.links.iter().map(|link| link.span_context.span_id()).collect();
    assert_eq!(linked, [http.span_context.span_id()]);
}

#[cfg(feature = "rmcp")]
#[test]
fn a_call_is_a_child_of_a_span_of_the_same_trace() {
    let spans = exported(|| {
        let http = tracing::info_span!("http");
        set_parent(&http, parse(TRACEPARENT).unwrap());
        http.in_scope(|| drop(tool_call("render", Some(TRACEPARENT))));
    });
    let [call, http] = &spans[..] else { panic!("{spans:#?}") };
    assert_eq!(call.parent_span_id, http.span_context.span_id());
    assert!(call.links.is_empty());
}

#[test]
fn a_task_inherits_the_nearest_span_that_is_exported() {
    let other = "00-0af7651916cd43dd8448eb211c80319d-00f067aa0ba902b7-01".to_owned();
    exported(|| {
        let request = tracing::info_span!("request");
        set_parent(&request, parse(TRACEPARENT).unwrap());
        request.in_scope(|| {
            let current = traceparent(&request);
            assert_eq!(inherited(None), current);
            assert_eq!(inherited(Some(TRACEPARENT.to_owned())), current, "the same trace");
            assert_eq!(inherited(Some(other.clone())), Some(other.clone()), "another trace");
            assert_eq!(inherited(Some("invalid".to_owned())), Some("invalid".to_owned()));
        });
    });
    assert_eq!(inherited(None), None, "no span is exported");
    assert_eq!(inherited(Some(other.clone())), Some(other));
}
