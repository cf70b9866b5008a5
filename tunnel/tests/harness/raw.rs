//! A QUIC client that sends whatever a test wants; it obeys no rule except encryption.
//!
//! It completes a TLS handshake, so that what follows comes from an authenticated peer. It never
//! retransmits a packet, and acknowledges only those of the handshake: loopback loses none.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::udp::{Transmit, UdpSockRef, UdpSocketState};
use rustls::Side;
use rustls::quic::{ClientConnection, KeyChange, Keys, Secrets, Version};
use towpath_certs::tls;

/// The encryption levels of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Initial,
    Handshake,
    Data,
}

/// Frames that tests send.
pub mod frame {
    pub const PADDING: u8 = 0;
    pub const PING: u8 = 1;

    /// A variable-length integer (RFC 9000 16).
    pub fn integer(value: u64) -> Vec<u8> {
        match value {
            0..=63 => vec![u8::try_from(value).unwrap()],
            64..=16_383 => u16::try_from(value | 0x4000)
                .unwrap()
                .to_be_bytes()
                .to_vec(),
            16_384..=0x3fff_ffff => {
                let value = u32::try_from(value).unwrap() | 0x8000_0000;
                value.to_be_bytes().to_vec()
            }
            _ => (value | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
        }
    }

    pub fn crypto(offset: u64, data: &[u8]) -> Vec<u8> {
        [
            &[6],
            &integer(offset)[..],
            &integer(data.len() as u64),
            data,
        ]
        .concat()
    }

    /// Bytes of a stream from an offset.
    pub fn stream(id: u64, offset: u64, data: &[u8]) -> Vec<u8> {
        let head = [&[0x0e], &integer(id)[..], &integer(offset)].concat();
        [&head[..], &integer(data.len() as u64), data].concat()
    }

    pub fn new_connection_id(sequence: u64, retire_before: u64) -> Vec<u8> {
        let id = sequence.to_be_bytes();
        let numbers = [integer(sequence), integer(retire_before)].concat();
        [&[0x18], &numbers[..], &[8], &id, &[7; 16]].concat()
    }

    /// Acknowledges all packets up to `last`.
    pub fn acknowledge(last: u64) -> Vec<u8> {
        [&[2], &integer(last)[..], &[0, 0], &integer(last)].concat()
    }

    /// Closes a connection without an error.
    pub fn close() -> Vec<u8> {
        vec![0x1c, 0, 0, 0]
    }

    /// Closes a connection as an application does, which is not valid in an Initial packet.
    pub fn close_as_application() -> Vec<u8> {
        vec![0x1d, 0, 0]
    }

    /// Closes a connection with a reason.
    pub fn close_because(reason: &[u8]) -> Vec<u8> {
        let length = integer(reason.len() as u64);
        [&[0x1c, 0x0a, 0][..], &length, reason].concat()
    }

    /// Ends a handshake with a TLS alert.
    pub fn alert(number: u8) -> Vec<u8> {
        [&[0x1c], &integer(0x100 + u64::from(number))[..], &[0, 0]].concat()
    }

    pub fn path_challenge(data: u64) -> Vec<u8> {
        [&[0x1a], &data.to_be_bytes()[..]].concat()
    }
}

/// Valid transport parameters; a test replaces or adds some.
pub fn parameters(ours: &[u8], more: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let large = frame::integer(1 << 30);
    let mut all = BTreeMap::from([
        (0x04, large.clone()),
        (0x05, large.clone()),
        (0x06, large.clone()),
        (0x07, large),
        (0x08, frame::integer(100)),
        (0x0f, ours.to_vec()),
    ]);
    all.extend(more.iter().cloned());
    let encoded = all.into_iter().flat_map(|(id, value)| {
        let length = frame::integer(value.len() as u64);
        [frame::integer(id), length, value].concat()
    });
    encoded.collect()
}

/// The keys of a connection's first packets, which anyone can compute.
fn initial_keys(theirs: &[u8]) -> Keys {
    initial_keys_of(Side::Client, theirs)
}

fn initial_keys_of(side: Side, theirs: &[u8]) -> Keys {
    let suite = tls::provider().cipher_suites[0];
    let suite = suite.tls13().unwrap().quic_suite().unwrap();
    suite.keys(theirs, side, Version::V1)
}

/// A reply that anyone on the path can send to the client that sent this datagram: the end of the
/// handshake by an alert. `None` if the datagram is not the first of a connection.
pub fn forged_alert(datagram: &[u8], number: u8) -> Option<Vec<u8>> {
    if datagram.first()? & 0xf0 != 0xc0 {
        return None;
    }
    let mut reader = Reader {
        bytes: datagram,
        at: 5,
    };
    let id = |reader: &mut Reader<'_>| {
        let length = usize::from(reader.byte()?);
        let from = reader.at;
        reader.skip(length)?;
        Some(datagram[from..from + length].to_vec())
    };
    let (dialled, dialler) = (id(&mut reader)?, id(&mut reader)?);
    let keys = initial_keys_of(Side::Server, &dialled);
    let ids = (&dialler[..], &dialled[..]);
    let frames = frame::alert(number);
    Some(packet((Level::Initial, 0), &keys, ids, &[], 0, frames))
}

/// One encrypted packet.
#[allow(clippy::too_many_arguments, reason = "a packet has that many fields")]
fn packet(
    (level, phase): (Level, u8),
    keys: &Keys,
    (theirs, ours): (&[u8], &[u8]),
    token: &[u8],
    number: u32,
    mut frames: Vec<u8>,
) -> Vec<u8> {
    // Header protection samples the bytes after the packet number.
    if frames.len() < 4 {
        frames.resize(4, frame::PADDING);
    }
    let id = |id: &[u8]| [&[u8::try_from(id.len()).unwrap()], id].concat();
    let mut header = match level {
        Level::Data => [&[0x43 | phase], theirs].concat(),
        long => {
            let first = if long == Level::Initial { 0xc3 } else { 0xe3 };
            let mut header = vec![first, 0, 0, 0, 1];
            header.extend(id(theirs));
            header.extend(id(ours));
            if long == Level::Initial {
                header.extend(frame::integer(token.len() as u64));
                header.extend(token);
            }
            let length = u16::try_from(4 + frames.len() + 16).unwrap() | 0x4000;
            header.extend(length.to_be_bytes());
            header
        }
    };
    let number_at = header.len();
    header.extend(number.to_be_bytes());
    let local = &keys.local;
    let tag = local
        .packet
        .encrypt_in_place(number.into(), &header, &mut frames)
        .unwrap();
    let mut out = [&header[..], &frames, tag.as_ref()].concat();
    let sample: [u8; 16] = out[number_at + 4..number_at + 20].try_into().unwrap();
    let (first, rest) = out.split_first_mut().unwrap();
    let number = &mut rest[number_at - 1..number_at + 3];
    local
        .header
        .encrypt_in_place(&sample, first, number)
        .unwrap();
    out
}

/// A datagram of 1200 bytes with one Initial packet that carries these frames.
pub fn initial(theirs: &[u8], ours: &[u8], mut frames: Vec<u8>) -> Vec<u8> {
    let overhead = 5 + 1 + theirs.len() + 1 + ours.len() + 1 + 2 + 4 + 16;
    frames.resize((1200 - overhead).max(frames.len()), frame::PADDING);
    let keys = initial_keys(theirs);
    packet((Level::Initial, 0), &keys, (theirs, ours), &[], 0, frames)
}

/// Whether a datagram asks its receiver to prove its address (a Retry packet).
pub fn is_retry(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0xf0 == 0xf0)
}

/// The layer at which the other side closed a connection, and its error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// By QUIC itself.
    Transport(u64),
    /// By the tunnel.
    Tunnel(u64),
}

/// The kernel's receive queue of a UDP port of this host, and the datagrams it dropped.
struct PortQueue {
    waiting_bytes: u64,
    dropped: u64,
}

fn queue_of(port: u16) -> PortQueue {
    let text = std::fs::read_to_string("/proc/net/udp").unwrap();
    let wanted = format!(":{port:04X}");
    let lines = text
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let fields = lines
        .into_iter()
        .find(|fields| fields[1].ends_with(&wanted));
    let fields = fields.expect("a port that is open");
    let (_, waiting) = fields[4].split_once(':').unwrap();
    PortQueue {
        waiting_bytes: u64::from_str_radix(waiting, 16).unwrap(),
        dropped: fields.last().unwrap().parse().unwrap(),
    }
}

/// The client.
pub struct Raw {
    pub socket: UdpSocket,
    tls: ClientConnection,
    theirs: Vec<u8>,
    ours: Vec<u8>,
    /// Proves the address, if the server has asked for that.
    token: Vec<u8>,
    /// The ClientHello, which is repeated with the token.
    hello: Vec<u8>,
    keys: [Option<Keys>; 3],
    /// The next keys, and the phase bit of the current ones.
    next: Option<Secrets>,
    phase: u8,
    numbers: [u32; 3],
    sent_crypto: [u64; 3],
    heard_crypto: [Crypto; 3],
    /// For each level, the last packet that has not been acknowledged yet.
    heard: [Option<u64>; 3],
    closed: Option<Close>,
    /// The number of datagrams received, and their bytes.
    pub received: (usize, usize),
}

#[derive(Default)]
struct Crypto {
    offset: u64,
    waiting: BTreeMap<u64, Vec<u8>>,
}

impl Raw {
    /// A client that has not sent anything yet, at its own address.
    pub fn new(
        from: IpAddr,
        server: SocketAddr,
        config: rustls::ClientConfig,
        change: &[(u64, Vec<u8>)],
    ) -> Self {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.connect(server).unwrap();
        let port = socket.local_addr().unwrap().port();
        let ours = [&port.to_be_bytes()[..], &[9; 6]].concat();
        // Sockets at two addresses may have the same port.
        let host = match from {
            IpAddr::V4(address) => u64::from(u32::from(address)),
            IpAddr::V6(_) => 0,
        };
        let theirs = super::pattern(host << 24 | u64::from(port) << 8, 8);
        let name = "towpath.invalid".try_into().unwrap();
        let parameters = parameters(&ours, change);
        let config = Arc::new(config);
        let tls = ClientConnection::new(config, Version::V1, name, parameters).unwrap();
        Self {
            socket,
            tls,
            keys: [Some(initial_keys(&theirs)), None, None],
            theirs,
            ours,
            token: Vec::new(),
            hello: Vec::new(),
            next: None,
            phase: 0,
            numbers: [0; 3],
            sent_crypto: [0; 3],
            heard_crypto: Default::default(),
            heard: [None; 3],
            closed: None,
            received: (0, 0),
        }
    }

    /// Sends one packet with these frames; outside the data level it is padded to 1200 bytes.
    pub fn send(&mut self, level: Level, frames: Vec<u8>) {
        let out = self.seal(level, frames);
        // If the server has gone, that is noticed by the missing answer.
        let _ = self.socket.send(&out);
    }

    /// Sends a packet for each of these frames in one system call; the other side also receives
    /// them in one.
    pub fn send_at_once(&mut self, all: Vec<Vec<u8>>) {
        let most = all.iter().map(Vec::len).max().unwrap();
        let (mut contents, mut packet_bytes) = (Vec::new(), 0);
        for mut frames in all {
            frames.resize(most, frame::PADDING);
            let sealed = self.seal(Level::Data, frames);
            packet_bytes = sealed.len();
            contents.extend(sealed);
        }
        let socket = UdpSockRef::from(&self.socket);
        let state = UdpSocketState::new(socket).unwrap();
        self.socket.set_nonblocking(false).unwrap();
        let transmit = Transmit {
            destination: self.socket.peer_addr().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: Some(packet_bytes),
            src_ip: None,
        };
        state.send((&self.socket).into(), &transmit).unwrap();
    }

    /// One packet with these frames, padded to 1200 bytes during the handshake.
    fn seal(&mut self, level: Level, mut frames: Vec<u8>) -> Vec<u8> {
        if level != Level::Data {
            frames.resize(frames.len().max(1160), frame::PADDING);
        }
        let at = level as usize;
        let keys = self.keys[at].as_ref().expect("the handshake is not so far");
        let number = self.numbers[at];
        self.numbers[at] += 1;
        let ids = (&self.theirs[..], &self.ours[..]);
        packet((level, self.phase), keys, ids, &self.token, number, frames)
    }

    /// Sends packets of data, no more at a time than the other side's socket buffer holds, until
    /// the connection is closed. Returns the number of packets that arrived. Nothing is
    /// acknowledged.
    pub fn pour(&mut self, packets: impl IntoIterator<Item = Vec<u8>>) -> u64 {
        const AT_ONCE: usize = 32;
        let port = self.socket.peer_addr().unwrap().port();
        let (mut packets, mut sent) = (packets.into_iter(), 0);
        let dropped_before = queue_of(port).dropped;
        loop {
            let before = sent;
            for frames in packets.by_ref().take(AT_ONCE) {
                self.send(Level::Data, frames);
                sent += 1;
            }
            let until = Instant::now() + Duration::from_secs(10);
            while queue_of(port).waiting_bytes > 0 {
                assert!(Instant::now() < until, "port {port} takes nothing in");
                std::thread::yield_now();
            }
            while self.hear(Duration::from_millis(1)) {}
            if sent == before || self.closed.is_some() {
                return sent - (queue_of(port).dropped - dropped_before);
            }
        }
    }

    /// Acknowledges everything of the handshake so far, so that the rest is sent without delay.
    fn acknowledge(&mut self) {
        for level in [Level::Initial, Level::Handshake] {
            if let Some(last) = self.heard[level as usize].take() {
                self.send(level, frame::acknowledge(last));
            }
        }
    }

    /// Sends what TLS wants to send.
    pub fn speak(&mut self) {
        self.acknowledge();
        let mut level = match &self.keys {
            [_, _, Some(_)] => Level::Data,
            [_, Some(_), _] => Level::Handshake,
            _ => Level::Initial,
        };
        loop {
            let mut said = Vec::new();
            let change = self.tls.write_hs(&mut said);
            if level == Level::Initial {
                self.hello.extend(&said);
            }
            for part in said.chunks(1000) {
                let at = level as usize;
                let frames = frame::crypto(self.sent_crypto[at], part);
                self.sent_crypto[at] += part.len() as u64;
                self.send(level, frames);
            }
            match change {
                Some(KeyChange::Handshake { keys }) => {
                    self.keys[1] = Some(keys);
                    level = Level::Handshake;
                }
                Some(KeyChange::OneRtt { keys, next }) => {
                    self.keys[2] = Some(keys);
                    self.next = Some(next);
                    level = Level::Data;
                }
                None if said.is_empty() => return,
                None => {}
            }
        }
    }

    /// Performs the handshake; returns whether it completed in time.
    pub fn shake(&mut self, wait: Duration) -> bool {
        self.speak();
        let until = Instant::now() + wait;
        while Instant::now() < until && self.closed.is_none() {
            self.hear(Duration::from_millis(20));
            self.speak();
            if self.keys[2].is_some() && !self.tls.is_handshaking() {
                return true;
            }
        }
        false
    }

    /// The code with which the server closed the connection, if it did so in time.
    pub fn closed(&mut self, wait: Duration) -> Option<Close> {
        let until = Instant::now() + wait;
        while Instant::now() < until && self.closed.is_none() {
            self.hear(Duration::from_millis(50));
        }
        self.closed
    }

    /// Handles one datagram, if one arrives.
    pub fn hear(&mut self, wait: Duration) -> bool {
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut datagram = [0; 2048];
        let Ok(count) = self.socket.recv(&mut datagram) else {
            return false;
        };
        self.received = (self.received.0 + 1, self.received.1 + count);
        if is_retry(&datagram[..count]) && self.token.is_empty() {
            self.prove(&datagram[..count]);
            return true;
        }
        let mut rest = &mut datagram[..count];
        while !rest.is_empty() {
            let Some(length) = self.take_packet(rest) else {
                return true;
            };
            rest = &mut rest[length..];
        }
        true
    }

    /// Repeats the ClientHello with the token of a Retry packet.
    fn prove(&mut self, retry: &[u8]) -> Option<()> {
        let mut reader = Reader {
            bytes: retry,
            at: 5,
        };
        let length = reader.byte()?;
        reader.skip(length.into())?;
        let length = reader.byte()?;
        let from = reader.at;
        reader.skip(length.into())?;
        self.theirs = retry[from..reader.at].to_vec();
        // It ends with an integrity tag (RFC 9001 5.8).
        self.token = retry.get(reader.at..retry.len() - 16)?.to_vec();
        self.keys[0] = Some(initial_keys(&self.theirs));
        let mut offset = 0;
        for part in self.hello.clone().chunks(900) {
            self.send(Level::Initial, frame::crypto(offset, part));
            offset += part.len() as u64;
        }
        Some(())
    }

    /// Handles the first packet in `bytes`; returns its length.
    fn take_packet(&mut self, bytes: &mut [u8]) -> Option<usize> {
        let is_long = bytes[0] & 0x80 != 0;
        let (level, number_at, end) = if is_long {
            let level = match bytes[0] >> 4 & 3 {
                0 => Level::Initial,
                2 => Level::Handshake,
                _ => return None,
            };
            let mut reader = Reader { bytes, at: 5 };
            let length = reader.byte()?;
            reader.skip(length.into())?;
            let source = reader.byte()?;
            let from = reader.at;
            reader.skip(source.into())?;
            let theirs = bytes[from..from + usize::from(source)].to_vec();
            let mut reader = Reader {
                bytes,
                at: from + theirs.len(),
            };
            if level == Level::Initial {
                let token = reader.integer()?;
                reader.skip(usize::try_from(token).ok()?)?;
            }
            let length = usize::try_from(reader.integer()?).ok()?;
            let number_at = reader.at;
            self.theirs = theirs;
            (level, number_at, number_at + length)
        } else {
            (Level::Data, 1 + self.ours.len(), bytes.len())
        };
        let keys = self.keys[level as usize].as_mut()?;
        let packet = bytes.get_mut(..end)?;
        let sample: [u8; 16] = packet.get(number_at + 4..number_at + 20)?.try_into().ok()?;
        let (first, rest) = packet.split_first_mut()?;
        let number = &mut rest[number_at - 1..number_at + 3];
        keys.remote
            .header
            .decrypt_in_place(&sample, first, number)
            .ok()?;
        if level == Level::Data && *first & 4 != self.phase {
            // The server updates its keys now and then, and the client follows (RFC 9001 6).
            let new = self.next.as_mut()?.next_packet_keys();
            (keys.local.packet, keys.remote.packet) = (new.local, new.remote);
            self.phase ^= 4;
        }
        let width = usize::from(*first & 3) + 1;
        let number = number[..width]
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte));
        let (header, payload) = packet.split_at_mut(number_at + width);
        let opened = keys.remote.packet.decrypt_in_place(number, header, payload);
        let frames = opened.ok()?.to_vec();
        self.heard[level as usize] = Some(number);
        self.take_frames(level, &frames);
        Some(end)
    }

    fn take_frames(&mut self, level: Level, frames: &[u8]) -> Option<()> {
        let mut reader = Reader {
            bytes: frames,
            at: 0,
        };
        while reader.at < frames.len() {
            let kind = reader.integer()?;
            // The number of integers in frames whose content does not matter here.
            let integers = match kind {
                0x00 | 0x01 | 0x1e => 0,
                0x02 | 0x03 => {
                    let (_largest, _delay) = (reader.integer()?, reader.integer()?);
                    let ranges = reader.integer()?;
                    2 * ranges + 1 + if kind == 3 { 3 } else { 0 }
                }
                0x06 => {
                    let offset = reader.integer()?;
                    let data = reader.bytes_of_length()?;
                    self.take_crypto(level, offset, data);
                    0
                }
                0x07 => {
                    reader.bytes_of_length()?;
                    0
                }
                0x10 | 0x12..=0x14 | 0x16 | 0x17 | 0x19 => 1,
                0x05 | 0x11 | 0x15 => 2,
                0x04 => 3,
                0x18 => {
                    let (_sequence, _retire) = (reader.integer()?, reader.integer()?);
                    let length = reader.byte()?;
                    reader.skip(usize::from(length) + 16)?;
                    0
                }
                0x1a | 0x1b => {
                    reader.skip(8)?;
                    0
                }
                0x1c | 0x1d => {
                    let code = reader.integer()?;
                    let close = if kind == 0x1c {
                        Close::Transport(code)
                    } else {
                        Close::Tunnel(code)
                    };
                    self.closed = Some(close);
                    return None;
                }
                _ => return None,
            };
            for _ in 0..integers {
                reader.integer()?;
            }
        }
        Some(())
    }

    fn take_crypto(&mut self, level: Level, offset: u64, data: &[u8]) {
        let crypto = &mut self.heard_crypto[level as usize];
        crypto.waiting.insert(offset, data.to_vec());
        while let Some((at, data)) = crypto.waiting.pop_first() {
            if at > crypto.offset {
                crypto.waiting.insert(at, data);
                return;
            }
            let known = usize::try_from(crypto.offset - at).unwrap();
            let Some(new) = data.get(known..).filter(|new| !new.is_empty()) else {
                continue;
            };
            crypto.offset += new.len() as u64;
            // A refusal by TLS shows as a handshake that does not complete.
            let _ = self.tls.read_hs(new);
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at += count;
        (self.at <= self.bytes.len()).then_some(())
    }

    fn integer(&mut self) -> Option<u64> {
        let first = self.byte()?;
        let mut value = u64::from(first & 0x3f);
        for _ in 1..1 << (first >> 6) {
            value = value << 8 | u64::from(self.byte()?);
        }
        Some(value)
    }

    fn bytes_of_length(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.integer()?).ok()?;
        let from = self.at;
        self.skip(length)?;
        self.bytes.get(from..from + length)
    }
}
