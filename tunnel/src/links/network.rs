//! Learns of network changes from the kernel, so that a lost link is dialled at once and a link
//! that would be lost is replaced.
//!
//! The kernel announces changes of interfaces, addresses and routes over netlink to any listener,
//! without privileges. Only the kind of an announcement is read: dialling shows whether the change
//! helps, and the kernel is asked for the source address separately. One change causes several
//! announcements, which are merged.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::time::{Instant as TokioInstant, sleep_until};
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::time::Instant;

use crate::links::backoff;

/// How long the announcements of one change are gathered: a route follows its address, and the
/// address its interface, within milliseconds.
const SETTLE: Duration = Duration::from_millis(20);

/// Minimum time between two reported changes: that between two unanswered attempts. So a host whose
/// networks come and go all day does not dial more often than one that waits for an answer.
const SPACING: Duration = backoff::BETWEEN;

/// Bytes of a datagram that are read. The kind is in the first few bytes; the rest may be cut off.
const BUFFER_BYTES: usize = 8 * 1024;

/// Groups of the kernel's announcements (rtnetlink(7), `RTMGRP_*`): links, addresses, routes.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Kinds that can change whether a peer is reached, or from which address (rtnetlink(7)):
/// `RTM_NEWLINK`, `RTM_NEWADDR`, `RTM_DELADDR`, `RTM_NEWROUTE`, `RTM_DELROUTE`.
const NEWS: [u16; 5] = [16, 20, 21, 24, 25];

/// Bytes of an announcement's header; length and kind are in the first six.
const HEADER_BYTES: usize = 16;

/// Counts changes of the network; tasks that dial subscribe to it.
#[derive(Debug)]
pub(crate) struct Network(watch::Sender<u64>);

impl Default for Network {
    fn default() -> Self {
        Self(watch::channel(0).0)
    }
}

impl Network {
    /// Notifies of changes from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    /// Number of changes reported so far.
    pub(crate) fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// Listens until the tunnel stops. If listening is not possible, links are dialled by the clock
    /// alone.
    pub(crate) async fn keep(&self, mut stop: Shutdown) {
        let ended = tokio::select! {
            () = stop.requested() => return,
            ended = self.listen() => ended,
        };
        if let Err(error) = ended {
            tracing::info!(%error, "changes of the network are not heard; links are dialled by the clock alone");
        }
        stop.requested().await;
    }

    async fn listen(&self) -> io::Result<()> {
        let socket = open()?;
        let (mut calm, began) = (Calm::default(), TokioInstant::now());
        let mut buffer = [0; BUFFER_BYTES];
        loop {
            let due = calm.due.map(|due| began + due.since(Instant::ZERO));
            tokio::select! {
                () = sleep_until(due.unwrap_or(began)), if due.is_some() => {}
                heard = socket.recv(&mut buffer) => if is_news(&buffer, heard)? {
                    calm.note(Instant::ZERO + began.elapsed());
                }
            }
            if calm.is_due(Instant::ZERO + began.elapsed()) {
                tracing::debug!("the network has changed");
                self.0.send_modify(|count| *count += 1);
            }
        }
    }
}

/// How often the kernel is asked before the source address counts as changed. Between several equal
/// routes the kernel chooses by the ports, which differ each time.
const QUESTION_COUNT_MAX: usize = 16;

/// Whether the kernel now sends to `target` from another address than `source`.
pub(crate) fn has_moved(source: IpAddr, target: SocketAddr) -> bool {
    is_elsewhere(source, || source_towards(target))
}

/// Whether every answer is an address other than `source`. No route at all does not count as
/// another address.
fn is_elsewhere(source: IpAddr, mut ask: impl FnMut() -> Option<IpAddr>) -> bool {
    (0..QUESTION_COUNT_MAX).all(|_| ask().is_some_and(|now| now != source))
}

/// The address from which the kernel would send to `target` now; `None` if there is no route.
pub(crate) fn source_towards(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing; `connect` only looks the route up.
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Opens a socket for the kernel's announcements.
fn open() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Protocol 0 is `NETLINK_ROUTE`.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    // tokio has no type for this address family. Of the datagram socket only `recv` is used.
    UnixDatagram::from_std(socket.into())
}

/// Whether a received datagram may announce a relevant change.
fn is_news(buffer: &[u8], heard: io::Result<usize>) -> io::Result<bool> {
    match heard {
        Ok(count) => Ok(kinds(&buffer[..count]).any(|kind| NEWS.contains(&kind))),
        // Some announcements were lost because there were too many; they may have been relevant.
        Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The kinds of the announcements in a datagram. Stops at an incomplete header.
pub(crate) fn kinds(mut datagram: &[u8]) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER_BYTES)?;
        let bytes = u32::from_ne_bytes(header[..4].try_into().expect("four bytes"));
        let kind = u16::from_ne_bytes(header[4..6].try_into().expect("two bytes"));
        // Announcements are aligned to four bytes. A length below the header's is raised to it,
        // since the loop would not end otherwise.
        let next = usize::try_from(bytes).ok()?.max(HEADER_BYTES);
        datagram = datagram.get(next.next_multiple_of(4)..).unwrap_or_default();
        Some(kind)
    })
}

/// Merges announcements into changes, and decides when a change is reported.
#[derive(Debug, Default)]
struct Calm {
    due: Option<Instant>,
    told: Option<Instant>,
}

impl Calm {
    fn note(&mut self, now: Instant) {
        let after_last = self.told.map_or(Instant::ZERO, |told| told + SPACING);
        self.due = self.due.or_else(|| Some(after_last.max(now + SETTLE)));
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            self.due = None;
            self.told = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn message(kind: u16, body: usize) -> Vec<u8> {
        let bytes = u32::try_from(HEADER_BYTES + body).unwrap();
        let mut message = bytes.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.resize((HEADER_BYTES + body).next_multiple_of(4), 7);
        message
    }

    #[test]
    fn every_announcement_of_a_datagram_is_seen() {
        let datagram = [message(17, 3), message(20, 40), message(24, 0)].concat();
        assert_eq!(kinds(&datagram).collect::<Vec<_>>(), [17, 20, 24]);
        assert_eq!(kinds(&datagram[..20]).collect::<Vec<_>>(), [17]);
        assert_eq!(kinds(&datagram[..15]).count(), 0);
        let mut endless = message(16, 0);
        endless[..4].fill(0);
        assert_eq!(kinds(&endless).collect::<Vec<_>>(), [16]);
    }

    #[test]
    fn many_announcements_are_one_change_and_changes_have_their_distance() {
        let mut calm = Calm::default();
        assert!(!calm.is_due(at(0)), "nothing was announced");
        let told = |calm: &mut Calm, millis| calm.is_due(at(millis));
        for millis in 0..10 {
            calm.note(at(millis));
            assert!(!told(&mut calm, millis));
        }
        assert!(told(&mut calm, 20));
        calm.note(at(30));
        assert!(!told(&mut calm, 269));
        assert!(told(&mut calm, 270));
        calm.note(at(5000));
        assert!(told(&mut calm, 5020));
        assert!(!told(&mut calm, 9000));
    }

    #[test]
    fn a_host_with_several_equal_ways_has_not_moved_while_one_of_them_is_the_same() {
        let addresses: [IpAddr; 3] = [1, 2, 3].map(|host| Ipv4Addr::new(10, 9, 0, host).into());
        let asked = |ways: &[IpAddr]| {
            let mut answers = ways.iter().copied().cycle();
            is_elsewhere(addresses[0], || answers.next())
        };
        assert!(!asked(&addresses[..1]));
        assert!(asked(&addresses[1..]));
        // The original address comes third.
        assert!(!asked(&[addresses[1], addresses[2], addresses[0]]));
        assert!(!asked(&[]), "no way at all");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(kinds(&bytes).count() <= bytes.len() / HEADER_BYTES + 1);
        }
    }

    /// Every group can be joined without privileges, and the kernel announces nothing by itself.
    #[tokio::test]
    async fn the_kernel_lets_anybody_listen() {
        let opened = match open() {
            Ok(opened) => opened,
            Err(error) => {
                println!("skipped: no announcements of the kernel here: {error}");
                return;
            }
        };
        let heard = opened.try_recv(&mut [0; BUFFER_BYTES]);
        let is_waiting = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let is_fine = heard.as_ref().err().is_none_or(is_waiting);
        assert!(is_fine, "{heard:?}");
    }
}
