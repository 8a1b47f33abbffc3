//! A proxy that adds a round trip between client and server, in order and without a limit on the throughput.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::Result;

/// A proxy that accepts connections until this is dropped. It uses threads, because the timers of Tokio have a resolution of one
/// millisecond.
pub struct Proxy {
    address: SocketAddr,
    has_ended: Arc<AtomicBool>,
}

impl Proxy {
    /// Delays each direction by half of `round_trip`.
    pub fn start(server: (&'static str, u16), round_trip: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&has_ended);
        spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(error) = client.and_then(|client| connect(client, server, round_trip / 2)) {
                    eprintln!("error: the proxy cannot connect a client with {server:?}: {error}");
                }
            }
        });
        Ok(Self { address, has_ended })
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts connections. If that fails, the thread ends with the process.
        let _ = TcpStream::connect(self.address);
    }
}

fn connect(client: TcpStream, server: (&str, u16), delay: Duration) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    forward(client.try_clone()?, server.try_clone()?, delay);
    forward(server, client, delay);
    Ok(())
}

/// Forwards what arrives, each chunk after the delay. One thread reads and one writes, so no chunk waits for another's delay.
fn forward(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (chunks, queue) = mpsc::channel::<(Instant, Vec<u8>)>();
    spawn(move || {
        for (due, bytes) in queue {
            sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        // The other side may have closed the connection already.
        let _ = to.shutdown(Shutdown::Both);
    });
    spawn(move || {
        let mut buffer = [0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if chunks.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                break;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the port of a server that sends back what it receives.
    fn echo() -> Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        spawn(move || -> std::io::Result<()> {
            let (mut client, _) = listener.accept()?;
            let mut reader = client.try_clone()?;
            std::io::copy(&mut reader, &mut client).map(drop)
        });
        Ok(port)
    }

    #[test]
    fn bytes_arrive_in_order_and_after_the_delay_and_do_not_wait_for_each_other() -> Result<()> {
        const DELAY: Duration = Duration::from_millis(50);
        const BYTES: usize = 200;
        let proxy = Proxy::start(("127.0.0.1", echo()?), DELAY)?;
        let mut client = TcpStream::connect(proxy.address)?;
        let begun = Instant::now();
        for byte in 0..BYTES {
            client.write_all(&[byte as u8])?;
        }
        let mut received = [0; BYTES];
        client.read_exact(&mut received)?;
        assert!(begun.elapsed() >= DELAY);
        // One after the other they would take 200 delays.
        assert!(begun.elapsed() < DELAY * BYTES as u32 / 2);
        assert!(received.iter().enumerate().all(|(at, byte)| at as u8 == *byte));
        Ok(())
    }
}
