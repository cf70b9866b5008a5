//! An attacker on the path answers when a peer is dialled, and proves nothing.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::raw::forged_alert;
use crate::harness::trust::{all_flow, end_all, loaded_pair};
use crate::harness::until;
use towpath_bench::relay::{Direction, Door, Options, Relay, Side};

/// The TLS alert for a revoked certificate.
const CERTIFICATE_REVOKED: u8 = 44;

/// Ends every handshake to an address by a forged alert until it is dropped.
struct Forger {
    said: Arc<AtomicUsize>,
    /// Dropped with the forger, which ends its thread.
    alive: Option<Arc<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Forger {
    fn at(address: SocketAddr) -> Self {
        let socket = UdpSocket::bind(address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let (said, alive) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (counted, watched) = (Arc::clone(&said), Arc::downgrade(&alive));
        let thread = std::thread::spawn(move || {
            let mut datagram = [0; 2048];
            while watched.strong_count() > 0 {
                let Ok((count, from)) = socket.recv_from(&mut datagram) else {
                    continue;
                };
                if let Some(forged) = forged_alert(&datagram[..count], CERTIFICATE_REVOKED) {
                    socket.send_to(&forged, from).unwrap();
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self {
            said,
            alive: Some(alive),
            thread: Some(thread),
        }
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_forged_word_of_our_being_revoked_costs_no_stream() {
    let (mut pair, loads, echo) = loaded_pair(Some(Direction::default())).await;
    let door = Door {
        from: Side::A,
        listen: pair.relay.as_ref().unwrap().doors()[0],
        to: pair.region_config.listen.unwrap(),
    };
    drop(pair.relay.take());
    let forger = Forger::at(door.listen);
    let (count, link) = (loads.len() as u64, || pair.edge.status().links.remove(0));
    // The reason is shown, because no other is known, but it has no further effect.
    let whose = "this host's certificate is revoked";
    until(whose, || link().reason.starts_with(whose)).await;
    let before = forger.said.load(Ordering::Relaxed);
    until("more dials are answered so", || {
        forger.said.load(Ordering::Relaxed) > before + 8
    })
    .await;
    assert_eq!((link().streams, link().streams_paused), (count, count));
    drop(forger);
    let options = Options {
        doors: vec![door],
        from_a: Direction::default(),
        from_b: Direction::default(),
        seed: 1,
    };
    pair.relay = Some(Relay::start(&options).unwrap());
    pair.linked().await;
    all_flow(&loads).await;
    assert_eq!(link().streams_lost, 0);
    end_all(loads).await;
    echo.abort();
}
