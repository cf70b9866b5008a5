//! Properties of every message and chunk, valid and damaged.

use proptest::prelude::*;
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, MigrationId};
use towpath_protocol::image::Manifest;
use towpath_protocol::message::*;
use towpath_protocol::ownership::Root;
use towpath_protocol::space::{BLOCK_COUNT_MAX, SPACE_COUNT_MAX, SpaceId};
use towpath_protocol::version::VersionRange;

use crate::samples::{Content, encoded, framed, read_all, read_one, run};

fn any_id() -> impl Strategy<Value = u128> {
    any::<u128>()
}

fn any_received() -> impl Strategy<Value = Received> {
    (any::<u64>(), any::<[u8; 32]>()).prop_map(|(through_sequence, chain)| Received {
        through_sequence,
        chain,
    })
}

fn any_reason() -> impl Strategy<Value = Reason> {
    ("[A-Z_]{0,64}", "\\PC{0,128}").prop_map(|(code, detail)| Reason { code, detail })
}

fn any_hello() -> impl Strategy<Value = Message> {
    let lane = prop::sample::select(&Lane::ALL[..]);
    (any::<(u16, u16, u64)>(), any_id(), any_id(), any_id(), lane).prop_map(
        |((min, max, link), migration, attempt, guest, lane)| {
            Message::Hello(Hello {
                versions: VersionRange { min, max },
                migration: MigrationId(migration),
                attempt: AttemptId(attempt),
                guest: GuestId(guest),
                lane,
                link,
            })
        },
    )
}

fn any_prepare() -> impl Strategy<Value = Message> {
    let spaces = prop::collection::vec(any::<(u32, u64)>(), 1..=SPACE_COUNT_MAX);
    let config = prop::collection::vec(any::<u8>(), 0..200);
    ("[a-z0-9][a-z0-9._-]{0,62}", any::<u64>(), spaces, config).prop_map(
        |(name, epoch, spaces, config)| {
            let spaces = (0..)
                .zip(spaces)
                .map(|(id, (block_bytes, block_count))| SpaceInfo {
                    id: SpaceId(id),
                    block_bytes,
                    block_count,
                });
            Message::Prepare(Prepare {
                name: name.parse().expect("the pattern of a name"),
                epoch: Epoch(epoch),
                spaces: spaces.collect(),
                config,
            })
        },
    )
}

fn any_missing() -> impl Strategy<Value = Message> {
    let words = prop::collection::vec(any::<u64>(), 1..300);
    (any::<u16>(), 0..BLOCK_COUNT_MAX / 64 - 300, words).prop_map(|(space, first_word, words)| {
        Message::MissingPart(MissingPart {
            space: SpaceId(space),
            first_word,
            words,
        })
    })
}

fn any_end() -> impl Strategy<Value = Message> {
    let state_bytes = 0..=u32::try_from(STATE_BYTES_MAX).expect("a small cap");
    (
        any::<u64>(),
        state_bytes,
        0..=BLOCK_COUNT_MAX,
        any::<[u8; 32]>(),
    )
        .prop_map(|(through_sequence, state_bytes, missing_count, root)| {
            let root = Root(root);
            Message::FinalEnd(FinalEnd {
                through_sequence,
                state_bytes,
                missing_count,
                root,
            })
        })
}

fn any_manifest() -> impl Strategy<Value = Message> {
    let digest = any::<[u8; 32]>;
    let digests = (digest(), digest(), digest(), digest());
    (any::<[u64; 3]>(), digest(), digests).prop_map(|(counts, chain, digests)| {
        Message::Manifest(Manifest {
            position: Received {
                through_sequence: counts[0],
                chain,
            },
            missing_count: counts[1],
            missing_digest: digests.0,
            state_bytes: counts[2],
            state_digest: digests.1,
            config_digest: digests.2,
            spaces_digest: digests.3,
        })
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any_hello(),
        any::<u16>().prop_map(|version| Message::Welcome(Welcome { version })),
        any_prepare(),
        any_received().prop_map(Message::Prepared),
        any_reason().prop_map(Message::Refused),
        any_received().prop_map(Message::Received),
        prop::collection::vec(any::<u8>(), 1..2000).prop_map(Message::StatePart),
        any_missing(),
        any_received().prop_map(Message::MissingEnd),
        any_manifest(),
        any_end(),
        any::<[u8; 32]>().prop_map(|root| Message::Ready(Root(root))),
        any::<(u64, [u8; 32])>().prop_map(|(e, root)| Message::Commit(Epoch(e), Root(root))),
        any::<u64>().prop_map(Message::Ack),
        any_reason().prop_map(Message::Nack),
        any_reason().prop_map(Message::Abort),
        Just(Message::Complete),
        Just(Message::FinalBegin),
        Just(Message::Released),
        any::<(u16, u64)>().prop_map(|(space, block)| Message::Demand(SpaceId(space), block)),
        any::<u64>().prop_map(Message::Ping),
        any::<u64>().prop_map(Message::Pong),
        any::<u64>().prop_map(|mark| Message::Mark(Epoch(mark))),
    ]
}

fn any_chunk() -> impl Strategy<Value = (ChunkHeader, Vec<u8>)> {
    let codec = prop::sample::select(&[Codec::Zero, Codec::Raw, Codec::Lz4, Codec::Zstd][..]);
    let gaps = prop::collection::vec(0_u64..1000, 1..=CHUNK_RUN_COUNT_MAX);
    let payload = prop::collection::vec(any::<u8>(), 1..5000);
    (codec, gaps, payload, any::<(u64, u32, u16, [u8; 16])>()).prop_map(
        |(codec, gaps, payload, (sequence, generation, space, digest))| {
            let is_zero = codec == Codec::Zero;
            let mut next = 0;
            let runs = gaps.iter().map(|gap| {
                let run = run(next + gap, 1);
                next = run.end();
                run
            });
            let header = ChunkHeader {
                sequence,
                generation,
                space: SpaceId(space),
                codec,
                runs: runs.collect(),
                digest: if is_zero { ZERO_CHUNK_DIGEST } else { digest },
            };
            (header, if is_zero { vec![] } else { payload })
        },
    )
}

proptest! {
    #[test]
    fn any_message_reads_back_as_itself(message in any_message()) {
        prop_assert_eq!(read_all(&encoded(&message)), Ok(vec![Content::Message(message)]));
    }

    #[test]
    fn any_chunk_reads_back_as_itself((header, payload) in any_chunk()) {
        let mut bytes = Vec::new();
        header.encode(&payload, &mut bytes);
        prop_assert_eq!(read_all(&bytes), Ok(vec![Content::Chunk(header, payload)]));
    }

    #[test]
    fn a_chunk_packed_in_place_is_the_same_bytes((header, payload) in any_chunk()) {
        let mut expected = Vec::new();
        header.encode(&payload, &mut expected);
        let head_bytes = ChunkHeader::head_bytes(header.runs.len());
        prop_assert!(head_bytes <= CHUNK_HEAD_BYTES_MAX);
        let mut frame = vec![0xee; head_bytes];
        frame.extend_from_slice(&payload);
        let mut unnumbered = header.clone();
        unnumbered.sequence = 0;
        unnumbered.write_head(&mut frame);
        seal_chunk(header.sequence, &mut frame);
        prop_assert_eq!(frame, expected);
    }

    #[test]
    fn f04_any_two_bits_flipped_are_refused(
        message in any_message(), first in any::<prop::sample::Index>(), second in any::<prop::sample::Index>()
    ) {
        let mut bytes = encoded(&message);
        let bits = bytes.len() * 8;
        let (first, second) = (first.index(bits), second.index(bits));
        prop_assume!(first != second);
        for bit in [first, second] {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        prop_assert!(read_one(&bytes).is_err());
    }

    #[test]
    fn any_bytes_in_an_honest_envelope_never_panic(
        kind in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..600)
    ) {
        drop(read_one(&framed(kind, &body)));
        drop(ChunkHeader::decode(&body));
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        drop(read_all(&bytes));
    }
}
