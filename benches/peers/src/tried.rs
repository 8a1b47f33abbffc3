//! Measures what was tried on the way to the scripts: bare scripts, one difference at a time. `peers tried` runs it.

use std::path::Path;

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use redis::{Client, Cmd, Connection};

use crate::format::short;
use crate::rounds::Samples;
use crate::server::Server;

const ROUNDS: usize = 15;
const PIPELINE: usize = 64;
/// How often a script repeats a command whose cost is small.
const REPEATS: usize = 10;

/// A script with its arguments, compared with another one.
struct Attempt {
    what: String,
    command: Cmd,
    calls: usize,
    /// The number of the attempt that does the same without what is measured, and how often this one does it.
    compared: Option<(usize, f64)>,
}

fn eval(text: &str, data: &[u8]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text).arg(2).arg("tried:task").arg("tried:idx").arg(data).arg("1780000000000000");
    command
}

/// Returns this script with a comment, so that it has `size` bytes. The server compiles it once, and hashes it at each call.
fn padded(size: usize) -> String {
    const SCRIPT: &str = "return 1 --";
    format!("{SCRIPT}{}", "x".repeat(size - SCRIPT.len()))
}

/// Returns a script that runs this line ten times.
fn repeated(line: &str) -> String {
    format!("local call, now = redis.call, tonumber(ARGV[2]) for _ = 1, {REPEATS} do {line} end return 1")
}

const DATA: [u8; 700] = [b'x'; 700];

#[derive(Default)]
struct Attempts(Vec<Attempt>);

impl Attempts {
    fn all() -> Self {
        let mut all = Self::default();
        all.envelope();
        all.commands();
        all.reply();
        all.index();
        let first = all.0.len();
        all.0.extend(reads_of_data(first));
        all
    }

    /// Adds an attempt, and returns its number. `compared` is the attempt without what is measured, and how often this one does it.
    fn add(&mut self, what: impl Into<String>, command: Cmd, compared: Option<(usize, f64)>) -> usize {
        self.0.push(Attempt { what: what.into(), command, calls: 6_400, compared });
        self.0.len() - 1
    }

    fn script(&mut self, what: impl Into<String>, text: &str, compared: Option<(usize, f64)>) -> usize {
        self.add(what, eval(text, &DATA), compared)
    }

    /// What an `EVAL` costs that does nothing.
    fn envelope(&mut self) {
        let mut echo = redis::cmd("ECHO");
        echo.arg(&DATA);
        let echo = self.add("`ECHO` of 700 bytes", echo, None);
        let what = "`EVAL` with 700 bytes of data that does nothing";
        let nothing = self.script(what, &padded(16), Some((echo, 1.0)));
        self.script("each kilobyte of its text", &padded(4_016), Some((nothing, 4.0)));
    }

    fn commands(&mut self) {
        const TIMES: f64 = REPEATS as f64;
        let none = self.script("a script that repeats nothing", &repeated(""), None);
        for (command, line) in [
            ("`TIME`", "call('TIME')"),
            ("`HMGET` of two fields", "call('HMGET', KEYS[1], 'version', 'expires_at')"),
            ("`HEXISTS`", "call('HEXISTS', KEYS[1], 'data')"),
            ("`HSET` of two fields with 700 bytes", "call('HSET', KEYS[1], 'version', '1', 'data', ARGV[1])"),
            ("`ZCARD`", "call('ZCARD', KEYS[2])"),
            ("`ZCOUNT`", "call('ZCOUNT', KEYS[2], ARGV[2], '+inf')"),
            ("`PEXPIREAT`", "call('PEXPIREAT', KEYS[1], '9000000000000')"),
            ("`SPUBLISH` without subscribers", "call('SPUBLISH', KEYS[1], 'x')"),
        ] {
            self.script(format!("{command}, ten times"), &repeated(line), Some((none, TIMES)));
        }
        let text = repeated("call('ZADD', KEYS[2], ARGV[2], 'id')");
        let text = self.script("`ZADD` with a score that is text, ten times", &text, Some((none, TIMES)));
        let number = repeated("call('ZADD', KEYS[2], now, 'id')");
        self.script("more for a score that is a Lua number, ten times", &number, Some((text, TIMES)));
    }

    fn reply(&mut self) {
        const TIME: &str = "local time = redis.call('TIME') time[3] = '1'";
        let string = format!("{TIME} return table.concat(time, ' ')");
        let string = self.script("a reply of three values as one string", &string, None);
        self.script("more for a reply as an array", &format!("{TIME} return time"), Some((string, 1.0)));
    }

    fn index(&mut self) {
        const ENDS: &str = "local call, ends = redis.call, '9000000000000'";
        let one = "call('ZADD', KEYS[2], ARGV[2], 'id', ends, '\\255id') call('PEXPIREAT', KEYS[2], ends)";
        let one = self.script("one index, one `ZADD` of both members", &format!("{ENDS} {one}"), None);
        let calls = "call('ZADD', KEYS[2], ARGV[2], 'id') call('ZADD', KEYS[2], ends, '\\255id') call('PEXPIREAT', KEYS[2], ends)";
        self.script("more for two calls of `ZADD`", &format!("{ENDS} {calls}"), Some((one, 1.0)));
        let keys = "local exp = KEYS[2] .. '2' call('ZADD', KEYS[2], ARGV[2], 'id') call('ZADD', exp, ends, 'id') \
                    call('PEXPIREAT', KEYS[2], ends) call('PEXPIREAT', exp, ends)";
        self.script("more for two index keys", &format!("{ENDS} {keys}"), Some((one, 1.0)));
    }
}

/// `HEXISTS` compared with a read of the data, which large records make expensive. `first` is the number of the first attempt.
fn reads_of_data(first: usize) -> Vec<Attempt> {
    const EXISTS: &str = "redis.call('HMGET', KEYS[1], 'version', 'expires_at') return redis.call('HEXISTS', KEYS[1], ARGV[1])";
    const READS: &str = "local found = redis.call('HMGET', KEYS[1], 'version', 'expires_at', ARGV[1]) return found[3] and 1 or 0";
    let mut all = Vec::new();
    for (size, field, calls) in [("700 bytes", "small", 6_400), ("1 MiB", "large", 192)] {
        let number = first + all.len();
        let attempt = |what: String, text, compared| Attempt {
            what,
            command: eval(text, field.as_bytes()),
            calls,
            compared,
        };
        all.push(attempt(format!("`HMGET` and `HEXISTS`, data of {size}"), EXISTS, None));
        all.push(attempt(
            format!("more for `HMGET` that also reads data of {size}"),
            READS,
            Some((number, 1.0)),
        ));
    }
    all
}

/// Writes the figures to the page, and prints them.
pub fn run(page: &Path) -> Result<()> {
    let server = Server::start()?;
    let mut connection = Client::open(server.url())?.get_connection()?;
    for (field, size) in [("small", 700), ("large", 1 << 20)] {
        redis::cmd("HSET").arg("tried:task").arg(field).arg(vec![b'x'; size]).exec(&mut connection)?;
    }
    let attempts = Attempts::all().0;
    let mut samples = vec![Samples::default(); attempts.len()];
    for round in 0..ROUNDS {
        eprintln!("[{}/{ROUNDS}] measuring {} scripts", round + 1, attempts.len());
        for turn in 0..attempts.len() {
            let number = (round + turn) % attempts.len();
            samples[number].0.push(cost(&server, &mut connection, &attempts[number])?);
        }
    }
    let text = format!(
        "Redis {} on loopback, pipelines of {PIPELINE} calls, processor time of the server (`INFO cpu`), medians of {ROUNDS} rounds; \
         the quartiles are in parentheses.\n\n{}",
        server.info_text("server", "redis_version")?,
        table(&attempts, &samples)
    );
    println!("{text}");
    crate::page::show_in(page, "make bench-tried", &text)
}

/// Returns the processor microseconds of the server per call.
fn cost(server: &Server, connection: &mut Connection, attempt: &Attempt) -> Result<f64> {
    let before = server.processor_micros()?;
    for _ in 0..attempt.calls / PIPELINE {
        let mut pipeline = redis::Pipeline::with_capacity(PIPELINE);
        for _ in 0..PIPELINE {
            pipeline.add_command(attempt.command.clone()).ignore();
        }
        pipeline.exec(connection)?;
    }
    Ok((server.processor_micros()? - before) / attempt.calls as f64)
}

fn table(attempts: &[Attempt], samples: &[Samples]) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(["tried", "a call", "the difference"]);
    for (attempt, own) in attempts.iter().zip(samples) {
        let difference = attempt.compared.map(|(other, times)| {
            let pairs = own.0.iter().zip(&samples[other].0);
            figure(&Samples(pairs.map(|(own, other)| (own - other) / times).collect()))
        });
        table.add_row([attempt.what.clone(), figure(own), difference.unwrap_or_default()]);
    }
    table
}

fn figure(samples: &Samples) -> String {
    let [lower, upper] = samples.quartiles();
    format!("{} µs ({} to {})", short(samples.median()), short(lower), short(upper))
}
