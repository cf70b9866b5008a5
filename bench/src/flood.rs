//! A flood of QUIC Initials: the most that a stranger can send to a tunnel's port.
//!
//! Each Initial opens a connection of its own: it has a random connection ID, is encrypted with the
//! keys derived from that, and is a full 1200 bytes with the first half of a ClientHello. So the
//! receiving side cannot drop it at a glance, and if it accepts the connection it waits for the
//! rest.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustls::Side;
use rustls::quic::{Keys, Version};
use towpath_certs::tls;
use towpath_protocol::amounts::millis;

/// Bytes of every datagram: the minimum for an Initial.
const DATAGRAM_BYTES: usize = 1200;

/// Bytes of a connection ID.
const ID_BYTES: usize = 8;

/// Bytes of the AEAD tag at the end of a packet.
const TAG_BYTES: usize = 16;

/// Datagrams are sent in one batch for each tick.
const TICK: Duration = Duration::from_millis(1);

/// The result of a flood.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Flooded {
    /// Datagrams sent.
    pub count: u64,
    /// Datagrams that the system refused to send, not counted above.
    pub refused: u64,
    /// Duration.
    pub milliseconds: u64,
}

/// Sends `per_second` Initials a second for `lasting`, from `ports` ports, each on a loopback
/// address of its own.
///
/// # Errors
///
/// If the sockets cannot be opened or an Initial cannot be built.
pub fn flood(
    target: SocketAddr,
    per_second: u64,
    lasting: Duration,
    ports: u8,
) -> io::Result<Flooded> {
    let sockets = (1..=ports)
        .map(|number| {
            let from = IpAddr::from([127, 7, number, 1]);
            let socket = UdpSocket::bind((from, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let (began, mut done) = (
        Instant::now(),
        Flooded {
            count: 0,
            refused: 0,
            milliseconds: 0,
        },
    );
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = sockets.iter().cycle();
    while began.elapsed() < lasting {
        let due = u128::from(per_second) * began.elapsed().as_micros() / 1_000_000;
        while u128::from(done.count + done.refused) < due && began.elapsed() < lasting {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let datagram = initial(random.to_be_bytes())?;
            let socket = next.next().ok_or_else(|| io::Error::other("no ports"))?;
            // A full buffer drops the datagram, as a network would.
            match socket.send_to(&datagram, target) {
                Ok(_) => done.count += 1,
                Err(_) => done.refused += 1,
            }
        }
        std::thread::sleep(TICK);
    }
    done.milliseconds = millis(began.elapsed());
    Ok(done)
}

/// An Initial packet for a connection with this ID (RFC 9000 17.2.2, RFC 9001 5).
fn initial(id: [u8; ID_BYTES]) -> io::Result<Vec<u8>> {
    let failed = |_| io::Error::other("an Initial cannot be encrypted");
    let keys = keys(&id)?;
    let mut datagram = vec![0xc3, 0, 0, 0, 1];
    for each in [id, id.map(|byte| !byte)] {
        datagram.push(u8::try_from(ID_BYTES).expect("eight fits"));
        datagram.extend(each);
    }
    // No token; then the length of the rest, packet number included.
    datagram.push(0);
    let number_at = datagram.len() + 2;
    let rest = DATAGRAM_BYTES - number_at;
    let length = u16::try_from(rest).map_err(io::Error::other)? | 0x4000;
    datagram.extend(length.to_be_bytes());
    datagram.extend([0; 4]);
    let mut frames = vec![0; rest - 4 - TAG_BYTES];
    // A CRYPTO frame at offset 0 with 300 bytes of a 512-byte ClientHello; the rest is padding.
    frames[..8].copy_from_slice(&[6, 0, 0x41, 0x2c, 1, 0, 2, 0]);
    let tag = keys
        .local
        .packet
        .encrypt_in_place(0, &datagram, &mut frames);
    let tag = tag.map_err(failed)?;
    datagram.extend(frames);
    datagram.extend(tag.as_ref());
    let mut sample = [0; 16];
    sample.copy_from_slice(&datagram[number_at + 4..number_at + 20]);
    let (first, behind) = datagram
        .split_first_mut()
        .expect("a packet has a first byte");
    let number = &mut behind[number_at - 1..number_at + 3];
    let masked = keys.local.header.encrypt_in_place(&sample, first, number);
    masked.map_err(failed)?;
    Ok(datagram)
}

fn keys(id: &[u8]) -> io::Result<Keys> {
    let suites = &tls::provider().cipher_suites;
    let suite = suites.first().and_then(|suite| suite.tls13()?.quic_suite());
    let suite = suite.ok_or_else(|| io::Error::other("the suite knows no QUIC"))?;
    Ok(suite.keys(id, Side::Client, Version::V1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initial_is_whole_and_no_two_are_alike() {
        let one = initial([1; 8]).unwrap();
        assert_eq!(one.len(), DATAGRAM_BYTES);
        assert_eq!(&one[1..7], &[0, 0, 0, 1, 8, 1], "version and identifier");
        assert_ne!(one, initial([2; 8]).unwrap());
    }

    #[test]
    fn a_flood_keeps_to_its_rate() {
        let target = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = target.local_addr().unwrap();
        let done = flood(address, 200, Duration::from_millis(300), 4).unwrap();
        assert!((1..=60).contains(&done.count), "{done:?}");
    }
}
