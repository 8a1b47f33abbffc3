//! The bus between the nodes of a cluster, with a relay in front of each node. So a test can cut a node off from the others
//! while clients still reach it.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::cluster::{NODE, start_node};
use super::redis::{Server, command};

/// The position of the sender's id in a message on the bus.
const SENDER: std::ops::Range<usize> = 40..80;

/// The relays, in a runtime of their own.
pub struct Buses {
    runtime: Option<Runtime>,
    /// The ids of the nodes that are cut off.
    cut: Arc<watch::Sender<HashSet<String>>>,
}

impl Buses {
    /// Starts nodes, each behind a relay. They do not know each other yet.
    pub fn start(nodes: usize, settings: &[&str]) -> (Self, Vec<Server>) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cut = Arc::new(watch::Sender::new(HashSet::new()));
        let mut started = Vec::new();
        for _ in 0..nodes {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let port = listener.local_addr().unwrap().port().to_string();
            let announced = ["--cluster-announce-bus-port", &port];
            let node = start_node(&[&NODE[..], settings, &announced].concat());
            let id: String = command(&mut node.connection(), ["CLUSTER", "MYID"]);
            let (bus, cut) = (node.port + 10_000, Arc::clone(&cut));
            runtime.spawn(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((peer, _)) = listener.accept().await {
                    tokio::spawn(pass(peer, bus, id.clone(), cut.subscribe()));
                }
            });
            started.push(node);
        }
        (Self { runtime: Some(runtime), cut }, started)
    }

    /// Cuts this node off from all others.
    pub fn cut(&self, id: &str) {
        self.cut.send_if_modified(|cut| cut.insert(id.to_owned()));
    }

    /// Reconnects all nodes.
    pub fn join(&self) {
        self.cut.send_modify(HashSet::clear);
    }
}

impl Drop for Buses {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Passes on the messages of two nodes until one of them is cut off.
async fn pass(mut peer: TcpStream, bus: u16, id: String, mut cut: watch::Receiver<HashSet<String>>) {
    let mut first = vec![0; SENDER.end];
    if peer.read_exact(&mut first).await.is_err() {
        return;
    }
    let sender = String::from_utf8_lossy(&first[SENDER]).into_owned();
    let Ok(mut node) = TcpStream::connect(("127.0.0.1", bus)).await else { return };
    let pass = async {
        if node.write_all(&first).await.is_ok() {
            // An error means that one side has closed the connection.
            let _ = copy_bidirectional(&mut peer, &mut node).await;
        }
    };
    tokio::select! {
        biased;
        _ = cut.wait_for(|cut| cut.contains(&id) || cut.contains(&sender)) => {}
        () = pass => {}
    }
}
