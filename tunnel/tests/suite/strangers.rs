//! Other users of this host: the permissions of every socket file are opened by mistake, and only
//! the kernel's report of the peer's user protects them.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::kept::Kept;
use crate::harness::{Pair, SOON, name, until};
use towpath_protocol::class::Class;
use towpath_protocol::preamble::{Open, Preamble};

/// The user `nobody`.
const NOBODY: u32 = 65_534;

/// A socket's answer to a request from this user, until it closes.
fn answer_to(user: u32, socket: &Path, words: &[u8]) -> Vec<u8> {
    let (socket, words) = (socket.to_owned(), words.to_vec());
    let asking = std::thread::spawn(move || {
        // Sets the user of this thread alone, which ends afterwards.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(user)).unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        // If the socket closes before it has read the request, either call fails.
        let _ = stream.write_all(&words);
        let mut answer = vec![0; 64];
        let count = stream.read(&mut answer).unwrap_or(0);
        answer.truncate(count);
        answer
    });
    asking.join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l01_another_user_gets_no_answer_at_either_socket() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let log = Kept::log();
    let pair = Pair::start().await;
    let open = Preamble::Open(Open {
        peer: name("region"),
        service: name("none"),
        class: Class::App,
    });
    let asked = b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let config = &pair.edge_config;
    for (socket, words) in [
        (&config.socket, open.encode()),
        (&config.admin.socket, asked.to_vec()),
    ] {
        let run_dir = socket.parent().unwrap();
        for door in [run_dir.parent().unwrap(), run_dir, socket.as_path()] {
            fs::set_permissions(door, Permissions::from_mode(0o777)).unwrap();
        }
        let asking = |user| {
            let (socket, words) = (socket.clone(), words.clone());
            tokio::task::spawn_blocking(move || answer_to(user, &socket, &words))
        };
        assert!(!asking(0).await.unwrap().is_empty(), "root is let in");
        assert!(asking(NOBODY).await.unwrap().is_empty(), "{socket:?}");
        let shown = socket.display().to_string();
        let is_said = |line: &str| {
            let words = ["audit", "local user refused", "65534", &*shown];
            words.into_iter().all(|word| line.contains(word))
        };
        until("the audit log has it", || log.text().lines().any(is_said)).await;
    }
}
