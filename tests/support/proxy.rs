//! A way to a server on which writes, and the replies to them, get lost or come late.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use redis::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// What befalls a write on its way. In every case but the first the client finds its connection closed, which
/// befalls all that it had sent behind the write too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    Pass,
    /// It never reaches the server.
    LoseWrite,
    /// The server has replied to it when the connection is closed, and the reply is lost.
    LoseReply,
    /// It reaches the server over another connection, when the clients have made this many further calls.
    Late {
        after: u64,
    },
}

impl Fault {
    /// It reaches the server when the test says so.
    pub const HELD_BACK: Self = Self::Late { after: u64::MAX };
}

/// A write that reached the server.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The record's key.
    pub key: String,
    /// What was to be stored; empty for a delete.
    pub data: Vec<u8>,
    /// What the server said to it.
    pub reply: Value,
    /// The version that it gave to the record, if it was applied.
    pub version: Option<u64>,
    /// Whether it came over another connection than the client's.
    pub is_late: bool,
}

impl Delivery {
    /// Whether the server did as it was told.
    pub fn is_applied(&self) -> bool {
        !matches!(self.reply, Value::ServerError(_))
    }
}

/// A port of its own in front of a server's. It ends when it is dropped.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

struct State {
    server_port: u16,
    faults: Mutex<Box<dyn FnMut() -> Fault + Send>>,
    /// Reads and writes that clients sent, to say when a late write is due.
    calls: AtomicU64,
    scripts: AtomicU64,
    befallen: Mutex<Vec<Fault>>,
    late: Mutex<Vec<Late>>,
    deliveries: Mutex<Vec<Delivery>>,
    cut: Mutex<Option<Cut>>,
}

/// The reply to the next command of this name is cut off.
struct Cut {
    command: &'static str,
    after: usize,
}

struct Late {
    due: u64,
    command: Command,
}

impl Proxy {
    /// Lets `faults` say what befalls each write. Reads always pass.
    pub async fn start(server_port: u16, faults: impl FnMut() -> Fault + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            server_port,
            faults: Mutex::new(Box::new(faults)),
            calls: AtomicU64::new(0),
            scripts: AtomicU64::new(0),
            befallen: Mutex::default(),
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

    /// How many scripts clients sent for records, whatever befell them.
    pub fn scripts(&self) -> u64 {
        self.state.scripts.load(SeqCst)
    }

    /// What befell the writes so far, in turn.
    pub fn befallen(&self) -> Vec<Fault> {
        self.state.befallen.lock().unwrap().clone()
    }

    /// Closes the connection in good order once so many bytes of the reply to the next command of this name were sent.
    pub fn cut(&self, command: &'static str, after: usize) {
        *self.state.cut.lock().unwrap() = Some(Cut { command, after });
    }

    /// Whether no such command has come yet.
    pub fn is_to_cut(&self) -> bool {
        self.state.cut.lock().unwrap().is_some()
    }

    /// Delivers all writes that are held back, and gives what the server said to each.
    pub async fn deliver_late(&self) -> Vec<Delivery> {
        let late = std::mem::take(&mut *self.state.late.lock().unwrap());
        let mut delivered = Vec::new();
        for Late { command, .. } in late {
            delivered.push(self.state.deliver_late(command).await);
        }
        delivered
    }

    /// All writes that reached the server so far.
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
        let (mut client, mut server) = (Wire::new(client), Wire::new(server));
        while let Some(bytes) = client.read().await {
            let command = Command::new(bytes);
            let cut =
                self.cut.lock().unwrap().take_if(|cut| command.is_called(cut.command) && !command.is_trial());
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

    /// What befalls this command, if it is a write. The late ones whose time has come go before it.
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
            self.befallen.lock().unwrap().push(fault);
            fault
        })
    }

    async fn deliver_late(&self, command: Command) -> Delivery {
        let server = TcpStream::connect(("127.0.0.1", self.server_port)).await.unwrap();
        let reply = Wire::new(server).ask(&command.bytes).await.unwrap();
        self.delivered(&command, &reply, true)
    }

    fn delivered(&self, command: &Command, reply: &[u8], is_late: bool) -> Delivery {
        let reply = redis::parse_redis_value(reply).unwrap();
        let (key, data) = (command.key(), command.data());
        let version = command.version(&reply);
        let delivery = Delivery { key, data, reply, version, is_late };
        self.deliveries.lock().unwrap().push(delivery.clone());
        delivery
    }
}

/// A command as it came over the wire.
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

    /// Whether a caller of the backend made it for a record: not the connection for itself, nor a store for its timers.
    fn is_call(&self) -> bool {
        self.is_script() && !self.is_trial() && !self.key().contains(":due:")
            || self.words[0].eq_ignore_ascii_case(b"HMGET")
    }

    /// What a backend tries out before its first call.
    fn is_trial(&self) -> bool {
        self.is_script() && (self.keys() == 0 || self.key().ends_with(":probe"))
    }

    /// Every script that changes a record says so; the one that lists does not.
    fn is_write(&self) -> bool {
        let says = |word: &str| String::from_utf8_lossy(&self.words[1]).contains(word);
        self.is_script() && (says("'HSET'") || says("'DEL'"))
    }

    fn keys(&self) -> usize {
        String::from_utf8_lossy(&self.words[2]).parse().unwrap()
    }

    /// The last of a write's keys is the record's.
    fn key(&self) -> String {
        String::from_utf8_lossy(&self.words[2 + self.keys()]).into_owned()
    }

    /// The version that it gave to the record: an argument of `cas_put`, before its channel; for `put` in the reply, after the
    /// time.
    fn version(&self, reply: &Value) -> Option<u64> {
        let Value::BulkString(reply) = reply else { return None };
        let reply = String::from_utf8_lossy(reply);
        let told = String::from_utf8_lossy(self.words.iter().nth_back(2)?);
        let version = if self.keys() == 1 { &told } else { reply.split(' ').nth(2)? };
        Some(version.parse().unwrap())
    }

    fn data(&self) -> Vec<u8> {
        let arguments = &self.words[3 + self.keys()..];
        // `cas_put` has the data first, `put` the task id, and `delete` nothing but that, the channel and how to publish.
        let at = if self.keys() == 1 { 0 } else { 1 };
        if arguments.len() > 3 { arguments[at].clone() } else { Vec::new() }
    }
}

/// One side of a connection.
struct Wire {
    stream: TcpStream,
    pending: Vec<u8>,
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, pending: Vec::new() }
    }

    /// The next command or reply, as a whole. `None` when the other side has closed.
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
            // A message that was published comes before the reply to what published it.
            let is_message = reply.starts_with(b">") && reply.windows(9).any(|word| word == b"message\r\n");
            replies.extend(reply);
            if !is_message {
                return Some(replies);
            }
        }
    }
}

/// Where what begins at `at` ends, by the framing of RESP2 and RESP3, if it is there as a whole.
pub fn end(bytes: &[u8], at: usize) -> Option<usize> {
    let line = bytes.get(at..)?;
    let length = line.windows(2).position(|two| two == b"\r\n")?;
    let behind = at + length + 2;
    let number = || std::str::from_utf8(&line[1..length]).unwrap().parse::<i64>().unwrap();
    let items = |count: i64| (0..count).try_fold(behind, |at, _| end(bytes, at));
    match line[0] {
        b'$' | b'=' | b'!' => {
            let end = usize::try_from(number()).map_or(behind, |size| behind + size + 2);
            (end <= bytes.len()).then_some(end)
        }
        b'*' | b'~' | b'>' => items(number()),
        b'%' => items(2 * number()),
        _ => Some(behind),
    }
}
