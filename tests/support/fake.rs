//! A fake Redis server with scripted replies, which records the commands that it receives. It passes every probe of a
//! backend that connects, and delivers no messages.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the fake server does when it receives a command.
#[derive(Clone)]
pub enum Answer {
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Sends these bytes, and resets the connection.
    BytesAndReset(Vec<u8>),
    /// Sends nothing, and keeps the connection open.
    Nothing,
    /// Closes the connection without a reply.
    Close,
}

/// The fake server. It ends when it is dropped.
pub struct Fake {
    pub port: u16,
    received: Arc<Mutex<Vec<Vec<String>>>>,
    serving: JoinHandle<()>,
}

impl Fake {
    /// Starts a server that replies to each command with the result of `answer`, which receives the port and the words.
    pub async fn start(answer: impl Fn(u16, &[String]) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&received), Arc::new(answer));
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                tokio::spawn(async move { serve(client, port, &log, &*answer).await });
            }
        });
        Self { port, received, serving }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Returns all commands of this name so far.
    pub fn received(&self, name: &str) -> Vec<Vec<String>> {
        let received = self.received.lock().unwrap();
        received.iter().filter(|words| words[0].eq_ignore_ascii_case(name)).cloned().collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(
    mut client: TcpStream,
    port: u16,
    log: &Mutex<Vec<Vec<String>>>,
    answer: &(impl Fn(u16, &[String]) -> Answer + Send + Sync),
) {
    let mut pending = Vec::new();
    loop {
        while let Some((words, length)) = command(&pending) {
            pending.drain(..length);
            if let Some(reply) = reply_to_probe(&words) {
                if client.write_all(reply).await.is_err() {
                    return;
                }
                continue;
            }
            log.lock().unwrap().push(words.clone());
            match answer(port, &words) {
                Answer::Bytes(bytes) => {
                    if client.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Answer::BytesAndReset(bytes) => {
                    let _ = client.write_all(&bytes).await;
                    let _ = client.set_zero_linger();
                    return;
                }
                Answer::Nothing => {}
                Answer::Close => return,
            }
        }
        match client.read_buf(&mut pending).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Returns the reply to a probe that a backend sends before its first call.
fn reply_to_probe(words: &[String]) -> Option<&'static [u8]> {
    if !words.iter().any(|word| word.ends_with(":probe") || word.ends_with(":probe}")) {
        return None;
    }
    Some(match words[0].as_str() {
        "EVAL" if words[2] == "1" => b"*2\r\n$3\r\n0 0\r\n*0\r\n",
        "EVAL" | "SSUBSCRIBE" | "SUBSCRIBE" => b"-ERR unknown command\r\n",
        _ => b":0\r\n",
    })
}

/// Returns the words and the length of the first command in these bytes, or `None` if it is incomplete.
fn command(bytes: &[u8]) -> Option<(Vec<String>, usize)> {
    let mut at = 0;
    let count = number(bytes, &mut at, b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(bytes, &mut at, b'$')?;
        words.push(String::from_utf8_lossy(bytes.get(at..at + length)?).into_owned());
        at += length + 2;
    }
    (at <= bytes.len()).then_some((words, at))
}

fn number(bytes: &[u8], at: &mut usize, kind: u8) -> Option<usize> {
    let line = bytes.get(*at..)?;
    assert!(line.first().is_none_or(|first| *first == kind), "not a command: {line:?}");
    let end = line.windows(2).position(|two| two == b"\r\n")?;
    *at += end + 2;
    std::str::from_utf8(&line[1..end]).unwrap().parse().ok()
}

/// Returns the reply to a command that a client sends before its first call.
pub fn greeting(words: &[String]) -> Answer {
    match words[0].to_ascii_uppercase().as_str() {
        "TIME" => Answer::Bytes(b"*2\r\n$10\r\n1795000000\r\n$1\r\n0\r\n".to_vec()),
        "PING" => Answer::Bytes(b"+PONG\r\n".to_vec()),
        "HELLO" => Answer::Bytes(b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n".to_vec()),
        _ => Answer::Bytes(b"+OK\r\n".to_vec()),
    }
}

/// Returns the same reply as [`greeting`], from the only node of a cluster. The node is the master of all slots.
pub fn greeting_of_a_node(port: u16, words: &[String]) -> Answer {
    if !words[0].eq_ignore_ascii_case("CLUSTER") {
        return greeting(words);
    }
    if words[1] == "INFO" {
        let info = "cluster_state:ok\r\ncluster_current_epoch:1\r\n";
        return Answer::Bytes(format!("${}\r\n{info}\r\n", info.len()).into_bytes());
    }
    let node = format!("*3\r\n$9\r\n127.0.0.1\r\n:{port}\r\n$4\r\nfake\r\n");
    Answer::Bytes(format!("*1\r\n*3\r\n:0\r\n:16383\r\n{node}").into_bytes())
}
