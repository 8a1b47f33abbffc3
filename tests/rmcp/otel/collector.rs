//! A collector: receives spans as OTLP over HTTP with JSON, as a backend for traces does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;

/// A span as it was exported.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The `service.name` of the process that exported it.
    pub service: String,
    pub span: Value,
}

impl Exported {
    pub fn id(&self) -> &str {
        self.text("spanId")
    }

    pub fn text(&self, field: &str) -> &str {
        self.span[field].as_str().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.text("name")
    }

    pub fn kind(&self) -> &'static str {
        match self.span["kind"].as_u64() {
            Some(1) => "internal",
            Some(2) => "server",
            Some(3) => "client",
            Some(4) => "producer",
            Some(5) => "consumer",
            other => panic!("{other:?}: {}", self.span),
        }
    }

    pub fn attribute(&self, name: &str) -> Option<String> {
        attribute(&self.span["attributes"], name)
    }

    /// Returns the ids of the linked spans, which belong to the same trace.
    pub fn links(&self) -> Vec<&str> {
        let links = self.span["links"].as_array().map(Vec::as_slice).unwrap_or_default();
        let id = |link: &'_ Value| {
            assert_eq!(link["traceId"], self.span["traceId"], "{}", self.span);
        };
        links.iter().for_each(id);
        links.iter().map(|link| link["spanId"].as_str().unwrap()).collect()
    }
}

fn attribute(attributes: &Value, name: &str) -> Option<String> {
    let found = attributes.as_array()?.iter().find(|attribute| attribute["key"] == name)?;
    let value = found["value"].as_object()?.values().next()?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

type Received = Arc<Mutex<Vec<Exported>>>;

pub struct Collector {
    pub endpoint: String,
    received: Received,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let received = Received::default();
        let router = Router::new().route("/v1/traces", post(receive)).with_state(Arc::clone(&received));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { endpoint, received }
    }

    pub fn spans(&self) -> Vec<Exported> {
        self.received.lock().unwrap().clone()
    }

    /// Waits for a span, and returns it.
    pub async fn find(&self, what: &str, is_wanted: impl Fn(&Exported) -> bool) -> Exported {
        let finding = async {
            loop {
                if let Some(found) = self.spans().into_iter().find(&is_wanted) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(60), finding).await;
        found.unwrap_or_else(|_| panic!("no process exported {what}: {:#?}", self.spans()))
    }
}

async fn receive(State(received): State<Received>, body: Bytes) -> &'static str {
    let request: Value = serde_json::from_slice(&body).expect("the exporter sends JSON");
    for resource in request["resourceSpans"].as_array().unwrap() {
        let service = attribute(&resource["resource"]["attributes"], "service.name").unwrap();
        let scopes = resource["scopeSpans"].as_array().unwrap();
        let spans = scopes.iter().flat_map(|scope| scope["spans"].as_array().unwrap());
        let spans = spans.map(|span| Exported { service: service.clone(), span: span.clone() });
        received.lock().unwrap().extend(spans);
    }
    "{}"
}
