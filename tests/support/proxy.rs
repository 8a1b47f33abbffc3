//! A proxy in front of a server that loses writes, loses replies to writes, and delivers writes late.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use redis::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::eval::{EvalCommand, RecordWrite};

/// What happens to a write. Every fault except `Pass` also closes the connection of the client, so everything that the
/// client sent after the write is lost too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    Pass,
    /// The write never reaches the server.
    LoseWrite,
    /// The server applies the write, and its reply is lost.
    LoseReply,
    /// The write reaches the server over another connection, after this many further calls of the clients.
    Late {
        after: u64,
    },
}

impl Fault {
    /// The write reaches the server when the test [delivers](Proxy::deliver_late) it.
    pub const HELD_BACK: Self = Self::Late { after: u64::MAX };
}

/// A write that reached the server.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The record's key.
    pub key: String,
    /// The data of the record. Empty for a delete.
    pub data: Vec<u8>,
    /// The reply of the server.
    pub reply: Value,
    /// The version of the record after the write, if the server applied it.
    pub version: Option<u64>,
    /// Whether it arrived over another connection than the client's.
    pub is_late: bool,
}

impl Delivery {
    /// Returns whether the server applied the write.
    pub fn is_applied(&self) -> bool {
        !matches!(self.reply, Value::ServerError(_))
    }
}

/// A port in front of a server. The proxy ends when it is dropped.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

struct State {
    server_port: u16,
    faults: Mutex<Box<dyn FnMut() -> Fault + Send>>,
    /// How many reads and writes clients sent. Late writes are due by this number.
    calls: AtomicU64,
    scripts: AtomicU64,
    happened: Mutex<Vec<Fault>>,
    late: Mutex<Vec<Late>>,
    deliveries: Mutex<Vec<Delivery>>,
    cut: Mutex<Option<Cut>>,
}

/// Cuts off the reply to the next command of this name.
struct Cut {
    command: &'static str,
    after: usize,
}

struct Late {
    due: u64,
    command: Command,
}

impl Proxy {
    /// Starts a proxy. `faults` returns the fault of each write. Reads always pass.
    pub async fn start(server_port: u16, faults: impl FnMut() -> Fault + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            server_port,
            faults: Mutex::new(Box::new(faults)),
            calls: AtomicU64::new(0),
            scripts: AtomicU64::new(0),
            happened: Mutex::default(),
            late: Mutex::default(),
            deliveries: Mutex::default(),
            cut: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                serving.spawn(async move { state.serve(client).await });
                while serving.try_join_next().is_some() {}
            }
        });
        Self { port, state, accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Returns how many scripts clients sent for records, whatever their faults were.
    pub fn scripts(&self) -> u64 {
        self.state.scripts.load(SeqCst)
    }

    /// Returns the faults of the writes so far, in their order.
    pub fn faults(&self) -> Vec<Fault> {
        self.state.happened.lock().unwrap().clone()
    }

    /// Closes the connection, without a reset, after `after` bytes of the reply to the next command of this name.
    pub fn cut(&self, command: &'static str, after: usize) {
        *self.state.cut.lock().unwrap() = Some(Cut { command, after });
    }

    /// Returns whether no such command has arrived yet.
    pub fn has_cut_left(&self) -> bool {
        self.state.cut.lock().unwrap().is_some()
    }

    /// Delivers all writes that are held back. Returns them with the replies of the server.
    pub async fn deliver_late(&self) -> Vec<Delivery> {
        let late = std::mem::take(&mut *self.state.late.lock().unwrap());
        let mut delivered = Vec::new();
        for Late { command, .. } in late {
            delivered.extend(self.state.deliver_late(command).await);
        }
        delivered
    }

    /// Returns the writes that have reached the server.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.state.deliveries.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl State {
    /// Serves one connection, one command after the other, until one side or a fault closes it.
    async fn serve(&self, client: TcpStream) {
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.server_port)).await else { return };
        let (mut client, mut server) = (Side::new(client), Side::new(server));
        while let Some(bytes) = client.read().await {
            let command = Command::new(bytes);
            let cut =
                self.cut.lock().unwrap().take_if(|cut| command.is_called(cut.command) && !command.is_probe());
            if let Some(cut) = cut {
                let Some(reply) = server.ask(&command.bytes).await else { return };
                client.write(&reply[..cut.after.min(reply.len())]).await;
                return;
            }
            let Some(fault) = self.fault(&command).await else {
                match server.ask(&command.bytes).await {
                    Some(reply) if client.write(&reply).await => continue,
                    _ => return,
                }
            };
            match fault {
                Fault::LoseWrite => return,
                Fault::Late { after } => {
                    let due = self.calls.load(SeqCst).saturating_add(after);
                    self.late.lock().unwrap().push(Late { due, command });
                    return;
                }
                Fault::Pass | Fault::LoseReply => {
                    let Some(reply) = server.ask(&command.bytes).await else { return };
                    self.delivered(&command, &reply, false);
                    if fault == Fault::LoseReply || !client.write(&reply).await {
                        return;
                    }
                }
            }
        }
    }

    /// Returns the fault of a command if it is a write. Delivers the late writes that are due before it.
    async fn fault(&self, command: &Command) -> Option<Fault> {
        if !command.is_call() {
            return None;
        }
        let now = self.calls.fetch_add(1, SeqCst);
        let due: Vec<Late> = self.late.lock().unwrap().extract_if(.., |late| late.due <= now).collect();
        for Late { command, .. } in due {
            self.deliver_late(command).await;
        }
        self.scripts.fetch_add(u64::from(command.is_script()), SeqCst);
        command.is_write().then(|| {
            let fault = (self.faults.lock().unwrap())();
            self.happened.lock().unwrap().push(fault);
            fault
        })
    }

    async fn deliver_late(&self, command: Command) -> Vec<Delivery> {
        let server = TcpStream::connect(("127.0.0.1", self.server_port)).await.unwrap();
        let reply = Side::new(server).ask(&command.bytes).await.unwrap();
        self.delivered(&command, &reply, true)
    }

    fn delivered(&self, command: &Command, reply: &[u8], is_late: bool) -> Vec<Delivery> {
        let script = EvalCommand { words: &command.words };
        let writes = script.writes(redis::parse_redis_value(reply).unwrap());
        let delivered = writes.into_iter().map(|RecordWrite { key, data, reply, version }| Delivery {
            key,
            data,
            reply,
            version,
            is_late,
        });
        let delivered: Vec<Delivery> = delivered.collect();
        self.deliveries.lock().unwrap().extend(delivered.iter().cloned());
        delivered
    }
}

/// A command as a client sent it.
struct Command {
    bytes: Vec<u8>,
    words: Vec<Vec<u8>>,
}

impl Command {
    fn new(bytes: Vec<u8>) -> Self {
        let words = redis::from_redis_value(redis::parse_redis_value(&bytes).unwrap()).unwrap();
        Self { bytes, words }
    }

    fn is_called(&self, name: &str) -> bool {
        self.words[0].eq_ignore_ascii_case(name.as_bytes())
    }

    fn is_script(&self) -> bool {
        self.is_called("EVAL")
    }

    /// Returns whether the backend sent it for a record: neither to set up a connection, nor for timers.
    fn is_call(&self) -> bool {
        self.is_script() && !self.is_probe() && !self.key().contains(":due:")
            || self.words[0].eq_ignore_ascii_case(b"HMGET")
    }

    /// Returns whether the backend sent it as a probe before its first call.
    fn is_probe(&self) -> bool {
        self.is_script() && (self.keys() == 0 || self.key().ends_with(":probe"))
    }

    /// Returns whether the text of the script has a command that changes a record.
    fn is_write(&self) -> bool {
        let contains = |word: &str| String::from_utf8_lossy(&self.words[1]).contains(word);
        self.is_script() && (contains("'HSET'") || contains("'DEL'"))
    }

    fn keys(&self) -> usize {
        String::from_utf8_lossy(&self.words[2]).parse().unwrap()
    }

    /// Returns the last key of the script.
    fn key(&self) -> String {
        String::from_utf8_lossy(&self.words[2 + self.keys()]).into_owned()
    }
}

/// One side of a connection.
struct Side {
    stream: TcpStream,
    pending: Vec<u8>,
}

impl Side {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, pending: Vec::new() }
    }

    /// Reads the next whole command or reply. Returns `None` when the other side has closed the connection.
    async fn read(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = end(&self.pending, 0) {
                return Some(self.pending.drain(..end).collect());
            }
            if self.stream.read_buf(&mut self.pending).await.ok()? == 0 {
                return None;
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    async fn ask(&mut self, command: &[u8]) -> Option<Vec<u8>> {
        if !self.write(command).await {
            return None;
        }
        let mut replies = Vec::new();
        loop {
            let reply = self.read().await?;
            // A published message precedes the reply to the command that published it.
            let is_message = reply.starts_with(b">") && reply.windows(9).any(|word| word == b"message\r\n");
            replies.extend(reply);
            if !is_message {
                return Some(replies);
            }
        }
    }
}

/// Returns where the value that begins at `at` ends, in the framing of RESP2 and RESP3, or `None` if it is incomplete.
pub fn end(bytes: &[u8], at: usize) -> Option<usize> {
    let line = bytes.get(at..)?;
    let length = line.windows(2).position(|two| two == b"\r\n")?;
    let next = at + length + 2;
    let number = || std::str::from_utf8(&line[1..length]).unwrap().parse::<i64>().unwrap();
    let items = |count: i64| (0..count).try_fold(next, |at, _| end(bytes, at));
    match line[0] {
        b'$' | b'=' | b'!' => {
            let end = usize::try_from(number()).map_or(next, |size| next + size + 2);
            (end <= bytes.len()).then_some(end)
        }
        b'*' | b'~' | b'>' => items(number()),
        b'%' => items(2 * number()),
        _ => Some(next),
    }
}
