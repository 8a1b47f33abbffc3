//! Mistakes in the URL of a server. `docs/operations.md` shows the line that the example prints for each.

use std::io::{Read, Write};
use std::net::TcpListener;

use redis::Value;

use super::support::page;
use super::support::redis::{Server, command, free_port};
use super::support::tls::Authority;
use super::{digest_server, folder, only_line_of_stderr};

/// The address of every server on the page.
const ADDRESS: &str = "127.0.0.1:6379";

/// Runs the example with this URL, in which `{}` stands for the address of the server. Asserts that the page shows the command
/// and the line that it prints.
fn assert_on_the_page(page: &str, url: &str, port: u16) {
    let folder = folder(0);
    let here = format!("127.0.0.1:{port}");
    let mut run = digest_server();
    run.arg(folder.path()).args(["--redis", &url.replace("{}", &here)]);
    let line = only_line_of_stderr(&run.output().unwrap()).replace(&here, ADDRESS);
    assert!(!line.contains("secret") || !url.contains("secret"), "the password is printed: {line}");
    let shown = format!("$ digest_server --redis '{}'\n{line}", url.replace("{}", ADDRESS));
    assert!(page.contains(&shown), "docs/operations.md lacks this:\n{shown}");
}

/// Starts a server that responds to every connection as a web server does. Returns its port.
fn web_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let _ = connection.read(&mut [0; 1024]);
            let _ = connection
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    port
}

#[test]
fn the_page_for_operators_shows_the_line_that_each_mistake_prints() {
    let page = page("docs/operations.md");
    let server = Server::start(&["--requirepass", "secret"]);
    let (authority, mut admin) = (Authority::new(), None);
    let (encrypted, encrypted_port) = authority.start_server(false);
    let admin = admin.insert(encrypted.connection());
    let _: Value = command(admin, "ACL SETUSER tasks on >secret ~pmcp:* nocommands".split(' '));

    assert_on_the_page(&page, "redis://{}", free_port());
    assert_on_the_page(&page, "redis://{}", server.port);
    assert_on_the_page(&page, "redis://:wrong-secret@{}", server.port);
    assert_on_the_page(&page, "redis://tasks:secret@{}", encrypted.port);
    assert_on_the_page(&page, "redis://:my/secret@{}", server.port);
    assert_on_the_page(&page, "{}", server.port);
    assert_on_the_page(&page, "redis://:secret@{}?db=2", server.port);
    assert_on_the_page(&page, "redis://:secret@{}?protcol=resp2", server.port);
    assert_on_the_page(&page, "redis://:secret@{}/99", server.port);
    assert_on_the_page(&page, "rediss://:secret@{}", server.port);
    assert_on_the_page(&page, "redis://{}/0", encrypted_port);
    assert_on_the_page(&page, "rediss://{}", encrypted_port);
    assert_on_the_page(&page, "rediss://{}#insecure", encrypted_port);
    let without = Server::start(&["--rename-command", "EVAL", ""]);
    assert_on_the_page(&page, "redis://{}/2", without.port);
    let without = Server::start(&["--rename-command", "HELLO", ""]);
    assert_on_the_page(&page, "redis://{}/3", without.port);
    assert_on_the_page(&page, "redis://{}/1", web_server());
}
