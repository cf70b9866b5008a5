//! One frame of every kind and codec, and a reader that treats bytes as a lane does.

use std::collections::BTreeSet;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::{FLAG_CRITICAL, HEADER_BYTES, Header, MAGIC, write_frame};
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, MigrationId};
use towpath_protocol::image::Manifest;
use towpath_protocol::message::*;
use towpath_protocol::ownership::Root;
use towpath_protocol::space::{BLOCK_COUNT_MAX, BlockRun, SpaceId};
use towpath_protocol::version::VersionRange;

/// The content of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Message(Message),
    Chunk(ChunkHeader, Vec<u8>),
    Skipped(u8),
}

/// Reads one frame as a lane does: header, cap of the kind, checksum, then the checks of the body.
pub(crate) fn read_one(bytes: &[u8]) -> Result<(Content, &[u8]), Fault> {
    let incomplete = || Fault::new(Code::Truncated, "the stream ends inside a frame");
    let (head, rest) = bytes.split_first_chunk().ok_or_else(incomplete)?;
    let header = Header::parse(head, body_bytes_max(head[2]))?;
    let (body, rest) = rest
        .split_at_checked(header.body_bytes as usize)
        .ok_or_else(incomplete)?;
    header.check_body(body)?;
    let content = if is_skippable(&header) {
        Content::Skipped(header.kind)
    } else if header.kind == KIND_CHUNK {
        let (chunk, payload) = ChunkHeader::decode(body)?;
        Content::Chunk(chunk, payload.to_vec())
    } else {
        Content::Message(Message::decode(header.kind, body)?)
    };
    Ok((content, rest))
}

pub(crate) fn read_all(mut bytes: &[u8]) -> Result<Vec<Content>, Fault> {
    let mut contents = Vec::new();
    while !bytes.is_empty() {
        let (content, rest) = read_one(bytes)?;
        contents.push(content);
        bytes = rest;
    }
    Ok(contents)
}

pub(crate) fn code_of(bytes: &[u8]) -> Code {
    read_one(bytes).expect_err("these bytes are wrong").code
}

pub(crate) fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

pub(crate) fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(kind, FLAG_CRITICAL, body, &mut bytes);
    bytes
}

pub(crate) fn run(start: u64, count: u32) -> BlockRun {
    BlockRun { start, count }
}

pub(crate) fn chunk(codec: Codec, runs: &[BlockRun], payload: &[u8]) -> Vec<u8> {
    let header = ChunkHeader {
        sequence: 7,
        generation: 3,
        space: SpaceId(0),
        codec,
        runs: runs.to_vec(),
        digest: if codec == Codec::Zero {
            ZERO_CHUNK_DIGEST
        } else {
            digest_of(payload)
        },
    };
    let mut bytes = Vec::new();
    header.encode(payload, &mut bytes);
    bytes
}

/// One chunk of each codec. The content of the payload does not matter to the wire format, and the
/// digests are of the packed bytes.
pub(crate) fn chunks() -> Vec<Vec<u8>> {
    let payload: Vec<u8> = (0..9000_u32).map(|i| (i * 7 % 251) as u8).collect();
    vec![
        chunk(Codec::Zero, &[run(0, 1 << 20), run(1 << 20, 3)], &[]),
        chunk(Codec::Raw, &[run(5, 1), run(9, 1)], &payload[..8192]),
        chunk(Codec::Lz4, &[run(1, 16)], &payload),
        chunk(Codec::Zstd, &[run(BLOCK_COUNT_MAX - 2, 2)], &payload[..700]),
    ]
}

/// One message of each kind.
pub(crate) fn messages() -> Vec<Message> {
    let received = Received {
        through_sequence: 1 << 40,
        chain: [9; 32],
    };
    let reason = Reason {
        code: "E_REFUSED".to_owned(),
        detail: "no room for 4096 MiB".to_owned(),
    };
    let messages = vec![
        Message::Hello(Hello {
            versions: VersionRange { min: 1, max: 2 },
            migration: MigrationId(1),
            attempt: AttemptId(2),
            guest: GuestId(3),
            lane: Lane::Switch,
            link: 8,
        }),
        Message::Welcome(Welcome { version: 1 }),
        Message::Prepare(Prepare {
            name: "till-7".parse().expect("a name"),
            epoch: Epoch(4),
            spaces: vec![
                SpaceInfo {
                    id: SpaceId(0),
                    block_bytes: 4096,
                    block_count: 1 << 18,
                },
                SpaceInfo {
                    id: SpaceId(1),
                    block_bytes: 65536,
                    block_count: 12,
                },
            ],
            config: vec![1, 2, 3],
        }),
        Message::Prepared(received),
        Message::Refused(reason.clone()),
        Message::Received(received),
        Message::StatePart(vec![0xaa; 300]),
        Message::MissingPart(MissingPart {
            space: SpaceId(1),
            first_word: 64,
            words: vec![u64::MAX, 0, 1],
        }),
        Message::MissingEnd(received),
        Message::Manifest(Manifest {
            position: received,
            missing_count: 65,
            missing_digest: [5; 32],
            state_bytes: 40,
            state_digest: [6; 32],
            config_digest: [7; 32],
            spaces_digest: [8; 32],
        }),
        Message::FinalEnd(FinalEnd {
            through_sequence: 77,
            state_bytes: 9000,
            missing_count: 123_456,
            root: Root([7; 32]),
        }),
        Message::Ready(Root([1; 32])),
        Message::Commit(Epoch(5), Root([2; 32])),
        Message::Ack(812),
        Message::Nack(reason.clone()),
        Message::Abort(reason),
        Message::Complete,
        Message::FinalBegin,
        Message::Released,
        Message::Demand(SpaceId(0), 4711),
        Message::Ping(1),
        Message::Pong(u64::MAX),
        Message::Mark(Epoch(u64::MAX)),
    ];
    let kinds: BTreeSet<u8> = messages.iter().map(Message::kind).collect();
    let known: BTreeSet<u8> = (1..=KIND_MAX).filter(|k| *k != KIND_CHUNK).collect();
    assert_eq!(kinds, known, "one message of each kind");
    messages
}

/// A whole frame of every kind and codec.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    messages().iter().map(encoded).chain(chunks()).collect()
}

/// A header with a valid checksum that announces any length.
pub(crate) fn header_announcing(kind: u8, body_bytes: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..2].copy_from_slice(&MAGIC);
    header[2] = kind;
    header[3] = FLAG_CRITICAL;
    header[4..8].copy_from_slice(&body_bytes.to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}
