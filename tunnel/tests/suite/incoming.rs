//! The queue of incoming connections that the dialled side has not accepted yet, and their data.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::harness::World;
use crate::harness::raw::{self, frame};
use quinn_proto::{ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, Incoming};
use towpath_certs::{Identity, tls};
use towpath_tunnel::config::Limits;
use towpath_tunnel::transport;

/// Most connections that may wait, and most bytes of each and of all: a flood takes no more memory.
const WAITING_MAX: u16 = 256;
const BYTES_EACH_MAX: u64 = 32 * 1024;
const BYTES_MAX: u64 = 4 << 20;

/// Bytes of each datagram.
const DATAGRAM_BYTES: u64 = 1200;

/// The dialled side of the library, with the tunnel's settings and a clock that stands still.
struct Dialled {
    endpoint: Endpoint,
    now: Instant,
}

impl Dialled {
    fn new() -> Self {
        let world = World::new();
        let files = world.issue("region");
        let identity = Identity::load(&files.paths()).unwrap();
        let tls = tls::server_config(&identity, &Arc::default()).unwrap();
        let server = Arc::new(transport::server(tls, &Limits::default()).unwrap());
        let config = Arc::new(EndpointConfig::default());
        Self {
            endpoint: Endpoint::new(config, Some(server), true, None),
            now: Instant::now(),
        }
    }

    /// Handles the first datagram of a host with this number; returns the resulting event.
    fn hear(&mut self, number: u16) -> Option<DatagramEvent> {
        let [high, low] = number.to_be_bytes();
        let id = [9, 9, 9, 9, 9, 9, high, low];
        // The first half of a ClientHello; the second half does not come.
        let mut hello = vec![0; 300];
        hello[..4].copy_from_slice(&[1, 0, 2, 0]);
        let datagram = raw::initial(&id, &[7; 8], frame::crypto(0, &hello));
        assert_eq!(datagram.len() as u64, DATAGRAM_BYTES);
        let from = SocketAddr::from(([127, 7, high, low], 7000));
        let mut answer = Vec::new();
        let datagram = datagram[..].into();
        self.endpoint
            .handle(self.now, from, None, None, datagram, &mut answer)
    }

    fn waits(&mut self, number: u16) -> Option<Incoming> {
        match self.hear(number) {
            Some(DatagramEvent::NewConnection(incoming)) => Some(incoming),
            _ => None,
        }
    }

    /// Accepts a connection; returns how many bytes had waited after its first datagram, which the
    /// library does not count.
    fn let_in(&mut self, incoming: Incoming) -> u64 {
        let mut answer = Vec::new();
        let accepted = self.endpoint.accept(incoming, self.now, &mut answer, None);
        let (_, connection): (ConnectionHandle, _) = accepted.map_err(|error| error.cause).unwrap();
        connection.stats().udp_rx.bytes
    }
}

#[test]
fn t03_what_waits_to_be_looked_at_is_bounded_in_number_and_in_bytes() {
    let mut dialled = Dialled::new();
    let waiting: Vec<Incoming> = (0..WAITING_MAX + 50)
        .filter_map(|number| dialled.waits(number))
        .collect();
    assert_eq!(waiting.len(), usize::from(WAITING_MAX));
    // More data for each of them than may be kept.
    for number in 0..WAITING_MAX {
        for _ in 0..2 * BYTES_EACH_MAX / DATAGRAM_BYTES {
            assert!(dialled.hear(number).is_none(), "it is the same connection");
        }
    }
    let behind = waiting.into_iter().map(|incoming| dialled.let_in(incoming));
    let behind: Vec<u64> = behind.collect();
    let each = BYTES_EACH_MAX - DATAGRAM_BYTES..=BYTES_EACH_MAX;
    assert!(each.contains(&behind[0]), "{behind:?}");
    assert!(
        behind.iter().all(|bytes| *bytes <= BYTES_EACH_MAX),
        "{behind:?}"
    );
    let all: u64 = behind.iter().sum();
    assert!(
        (BYTES_MAX - DATAGRAM_BYTES..=BYTES_MAX).contains(&all),
        "{all} bytes wait"
    );
}
