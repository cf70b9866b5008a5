//! Tests of lanes: whole frames come out whatever the sizes of reads and writes, and nothing else
//! does.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that fails there has found something"
)]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use towpath_migrator::lane::{FRAME_BUFFER_BYTES, Incoming, LaneReader, LaneWriter};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::{FLAG_CRITICAL, write_frame};
use towpath_protocol::message::{ChunkHeader, Codec, KIND_CHUNK, Message, STATE_PART_BYTES_MAX};
use towpath_protocol::space::BlockRun;

/// Returns bytes in pieces of these sizes, cyclically.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: Vec<usize>,
    next: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let size = self.sizes[self.next % self.sizes.len()];
        self.next += 1;
        if self.next.is_multiple_of(5) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = size.min(out.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(count);
        out[..count].copy_from_slice(now);
        self.bytes = later;
        Ok(count)
    }
}

/// The kinds and bodies of the frames in a stream.
type Frames = Vec<(u8, Vec<u8>)>;

/// Reads all frames of a stream. The result is the number of skipped frames, or the fault at its
/// end.
fn read_all(input: impl Read) -> (Frames, Result<u64, Code>) {
    let mut reader = LaneReader::new(input);
    let mut frames = Vec::new();
    loop {
        match reader.next_frame() {
            Ok(Incoming::Frame(frame)) => frames.push((frame.kind, frame.body.to_vec())),
            Ok(Incoming::Idle) => panic!("this stream is never idle"),
            Ok(Incoming::End) => return (frames, Ok(reader.skipped_count())),
            Err(fault) => return (frames, Err(fault.code)),
        }
    }
}

fn chunk_frame(payload_bytes: usize) -> Vec<u8> {
    let header = ChunkHeader {
        codec: Codec::Raw,
        runs: vec![BlockRun { start: 0, count: 1 }],
        ..ChunkHeader::default()
    };
    let mut frame = Vec::new();
    header.encode(&vec![0x7e; payload_bytes], &mut frame);
    frame
}

#[test]
fn frames_come_out_whole_whatever_the_sizes_of_reads() {
    let mut stream = Vec::new();
    for number in 0..40 {
        Message::Ping(number).encode(&mut stream);
        stream.extend_from_slice(&chunk_frame(65536));
        Message::StatePart(vec![1; STATE_PART_BYTES_MAX]).encode(&mut stream);
    }
    for sizes in [
        vec![1 << 20],
        vec![4096],
        vec![1, 65536, 3],
        vec![100_000, 17],
    ] {
        let (frames, end) = read_all(Pieces {
            bytes: &stream,
            sizes,
            next: 0,
        });
        assert_eq!(end, Ok(0));
        assert_eq!(frames.len(), 120);
        assert!(
            frames
                .iter()
                .skip(1)
                .step_by(3)
                .all(|(kind, _)| *kind == KIND_CHUNK)
        );
    }
}

#[test]
fn bodies_are_given_away_whole_in_the_buffers_they_were_read_to() {
    let bodies: Vec<usize> = (0..60).map(|number| 1 + number * 1109 % 65536).collect();
    let mut stream = Vec::new();
    for body in &bodies {
        stream.extend_from_slice(&chunk_frame(*body));
    }
    // The reader may have read ahead before its buffers were asked for.
    for (is_ahead, sizes) in [
        (false, vec![1 << 20]),
        (true, vec![1 << 20]),
        (true, vec![4096, 100_000]),
        (false, vec![1, 65536, 3]),
    ] {
        let mut reader = LaneReader::new(Pieces {
            bytes: &stream,
            sizes,
            next: 0,
        });
        let mut spare = vec![0; FRAME_BUFFER_BYTES].into_boxed_slice();
        for (number, bytes) in bodies.iter().enumerate() {
            if number >= 2 || !is_ahead {
                reader.read_framewise();
            }
            let Ok(Incoming::Frame(frame)) = reader.next_frame() else {
                panic!("frame {number}")
            };
            let expected = frame.body.to_vec();
            let (buffer, body) = reader.take_body(spare);
            assert!(buffer[body.clone()] == expected[..], "frame {number}");
            assert!(body.end - bytes > body.start, "behind the chunk's header");
            // The reader must not depend on what happens to a buffer it gave away.
            spare = buffer;
            spare.fill(0xee);
        }
        assert_eq!(reader.next_frame(), Ok(Incoming::End));
    }
}

#[test]
fn a_frame_that_is_not_here_is_not_waited_for_and_comes_later() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut reader = LaneReader::for_socket(ours, Duration::from_secs(20)).unwrap();
    reader.read_framewise();
    assert_eq!(reader.next_frame_here(), Ok(Incoming::Idle));
    let mut stream = chunk_frame(3000);
    Message::Ping(9).encode(&mut stream);
    let (first, rest) = stream.split_at(2000);
    theirs.write_all(first).unwrap();
    assert_eq!(reader.next_frame_here(), Ok(Incoming::Idle));
    theirs.write_all(rest).unwrap();
    let kinds = [(); 2].map(|()| match reader.next_frame_here() {
        Ok(Incoming::Frame(frame)) => frame.kind,
        other => panic!("{other:?}"),
    });
    assert_eq!(kinds[0], KIND_CHUNK);
    assert_eq!(reader.next_frame_here(), Ok(Incoming::Idle));
    theirs.write_all(&stream[..7]).unwrap();
    assert_eq!(reader.next_frame_here(), Ok(Incoming::Idle));
    drop(theirs);
    let fault = reader.next_frame_here().expect_err("inside a frame");
    assert_eq!(fault.code, Code::Truncated);
}

#[test]
fn f02_a_stream_cut_inside_a_frame_is_truncated_and_between_frames_ends() {
    let mut stream = Vec::new();
    Message::Ping(1).encode(&mut stream);
    let first = stream.len();
    Message::Ping(2).encode(&mut stream);
    for end in 0..=stream.len() {
        let (frames, result) = read_all(&stream[..end]);
        assert_eq!(frames.len(), end / first, "cut at {end}");
        let expected = if end % first == 0 {
            Ok(0)
        } else {
            Err(Code::Truncated)
        };
        assert_eq!(result, expected, "cut at {end}");
    }
}

#[test]
fn f04_no_frame_behind_a_flipped_bit_comes_out() {
    let mut stream = Vec::new();
    Message::Ping(1).encode(&mut stream);
    // The frame's checksum covers this chunk completely. Bytes beyond that are protected by the
    // decoder (see `f04` there).
    stream.extend_from_slice(&chunk_frame(128));
    let frames_before = |bit: usize| usize::from(bit / 8 >= 17);
    for bit in 0..stream.len() * 8 {
        stream[bit / 8] ^= 1 << (bit % 8);
        let (frames, result) = read_all(&stream[..]);
        assert!(result.is_err(), "bit {bit}");
        assert_eq!(frames.len(), frames_before(bit), "bit {bit}");
        stream[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn f05_unknown_frames_are_skipped_and_counted_unless_critical() {
    let mut stream = Vec::new();
    for kind in [200, 0, 77] {
        write_frame(kind, 0, b"from a later version", &mut stream);
        Message::Ping(u64::from(kind)).encode(&mut stream);
    }
    let (frames, end) = read_all(&stream[..]);
    assert_eq!((frames.len(), end), (3, Ok(3)));
    write_frame(200, FLAG_CRITICAL, b"", &mut stream);
    let mut reader = LaneReader::new(&stream[..]);
    let last = (0..4).map(|_| match reader.next_frame() {
        Ok(Incoming::Frame(frame)) => frame.message(),
        other => panic!("{other:?}"),
    });
    assert_eq!(last.last().unwrap().unwrap_err().code, Code::UnknownKind);
}

#[test]
fn f01_a_reader_takes_no_more_memory_whatever_comes() {
    let mut stream = Vec::new();
    for _ in 0..100 {
        stream.extend_from_slice(&chunk_frame(65536));
    }
    let used = allocation_counter::measure(|| {
        let mut reader = LaneReader::new(&stream[..]);
        while matches!(reader.next_frame(), Ok(Incoming::Frame(_))) {}
    });
    assert!(
        used.bytes_max <= 256 * 1024 && used.count_total == 1,
        "{used:?}"
    );
}

#[test]
fn what_came_with_a_greeting_is_there_once_the_reader_is_wide() {
    let mut stream = Vec::new();
    Message::Ping(1).encode(&mut stream);
    stream.extend_from_slice(&chunk_frame(65536));
    let used = allocation_counter::measure(|| {
        let mut reader = LaneReader::for_greeting(&stream[..]);
        assert!(matches!(reader.next_frame(), Ok(Incoming::Frame(frame)) if !frame.is_chunk()));
        let fault = reader.next_frame().unwrap_err();
        assert_eq!(fault.code, Code::TooLarge);
    });
    assert!(used.bytes_max <= 8 * 1024, "{used:?}");
    let mut reader = LaneReader::for_greeting(&stream[..]);
    assert!(matches!(reader.next_frame(), Ok(Incoming::Frame(_))));
    reader.widen();
    let Ok(Incoming::Frame(frame)) = reader.next_frame() else {
        panic!("the chunk behind the greeting is lost");
    };
    assert!(frame.is_chunk());
    let bytes = frame.wire_bytes();
    assert_eq!(bytes, chunk_frame(65536).len() as u64);
    assert_eq!(reader.next_frame(), Ok(Incoming::End));
}

#[test]
fn an_idle_lane_is_idle_and_a_closed_one_ends() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut reader = LaneReader::for_socket(ours, Duration::from_millis(5)).unwrap();
    assert_eq!(reader.next_frame(), Ok(Incoming::Idle));
    let mut writer = LaneWriter::for_socket(theirs, Duration::from_secs(5)).unwrap();
    writer.write_message(&Message::Ping(3)).unwrap();
    assert_eq!(reader.next_frame(), Ok(Incoming::Idle), "not flushed yet");
    writer.flush().unwrap();
    let Ok(Incoming::Frame(frame)) = reader.next_frame() else {
        panic!("a ping")
    };
    assert_eq!(
        (frame.message(), frame.wire_bytes()),
        (Ok(Message::Ping(3)), 17)
    );
    assert_eq!(writer.written_bytes(), 17);
    assert_eq!(reader.next_frame(), Ok(Incoming::Idle));
    drop(writer);
    assert_eq!(reader.next_frame(), Ok(Incoming::End));
}

#[test]
fn half_a_frame_is_waited_for_over_many_read_timeouts() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut reader = LaneReader::for_socket(ours, Duration::from_millis(1)).unwrap();
    let mut frame = Vec::new();
    Message::Ping(9).encode(&mut frame);
    theirs.write_all(&frame[..7]).unwrap();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            reader.next_frame().map(|incoming| match incoming {
                Incoming::Frame(frame) => frame.message(),
                other => panic!("{other:?}"),
            })
        });
        // After this long the reader has run into its timeout.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        assert!(!reading.is_finished());
        theirs.write_all(&frame[7..]).unwrap();
        assert_eq!(reading.join().unwrap(), Ok(Ok(Message::Ping(9))));
    });
}

#[test]
fn t17_a_peer_that_reads_nothing_stalls_the_writer_for_good() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut writer = LaneWriter::for_socket(ours, Duration::from_millis(20)).unwrap();
    let frame = chunk_frame(65536);
    let fault = (0..10_000)
        .find_map(|_| writer.write_chunk_frame(&frame).err())
        .expect("a socket's buffer has an end");
    assert_eq!(fault.code, Code::Stalled);
    // Part of a frame has been sent, so nothing may follow even if the peer reads again.
    drop(theirs);
    assert_eq!(writer.write_message(&Message::Ping(1)), Ok(()));
    assert_eq!(writer.flush().expect_err("broken").code, Code::Unreachable);
}

#[test]
fn a_lane_the_peer_closed_is_unreachable() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let mut writer = LaneWriter::for_socket(ours, Duration::from_secs(1)).unwrap();
    let fault = writer
        .write_chunk_frame(&chunk_frame(65536))
        .expect_err("closed");
    assert_eq!(fault.code, Code::Unreachable);
}

/// Accepts bytes in pieces of one size.
struct Sink {
    bytes: Vec<u8>,
    piece: usize,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.piece);
        self.bytes.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stream_that_takes_nothing_is_a_fault() {
    let mut writer = LaneWriter::new(Sink {
        bytes: Vec::new(),
        piece: 0,
    });
    writer.write_message(&Message::Complete).unwrap();
    assert_eq!(
        writer.flush().expect_err("takes nothing").code,
        Code::Unreachable
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read_in_order(
        parts in prop::collection::vec(
            prop_oneof![1 => Just(None), 1 => (1_usize..65536).prop_map(Some)], 1..60
        ),
        piece in 1_usize..100_000,
        sizes in prop::collection::vec(1_usize..70_000, 1..8),
    ) {
        let mut sent = Sink { bytes: Vec::new(), piece };
        let mut writer = LaneWriter::new(&mut sent);
        let mut expected = Vec::new();
        for (number, part) in (0_u64..).zip(&parts) {
            match part {
                None => {
                    let message = Message::Ping(number);
                    writer.write_message(&message).unwrap();
                    message.encode(&mut expected);
                }
                Some(payload_bytes) => {
                    let frame = chunk_frame(*payload_bytes);
                    writer.write_chunk_frame(&frame).unwrap();
                    expected.extend_from_slice(&frame);
                }
            }
        }
        writer.flush().unwrap();
        prop_assert_eq!(writer.written_bytes(), expected.len() as u64);
        prop_assert!(sent.bytes == expected);
        let (frames, end) = read_all(Pieces { bytes: &expected, sizes, next: 0 });
        prop_assert_eq!((frames.len(), end), (parts.len(), Ok(0)));
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let (_, end) = read_all(&bytes[..]);
        prop_assert!(end.is_err() || bytes.is_empty());
    }
}

#[test]
fn a_frame_that_never_ends_is_stalled() {
    /// Returns one byte of a frame, then only timeouts.
    struct Dribble(bool);
    impl Read for Dribble {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.0 = true;
            out[0] = b'T';
            Ok(1)
        }
    }
    let mut reader = LaneReader::with_frame_wait(Dribble(false), Duration::from_millis(10));
    let fault: Fault = reader.next_frame().expect_err("never whole");
    assert_eq!(fault.code, Code::Stalled);
}
