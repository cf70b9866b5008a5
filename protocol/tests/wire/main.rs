//! The wire format: what a peer's bytes can and cannot do before anything is installed.
#![forbid(unsafe_code)]

mod properties;
mod samples;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::{BODY_BYTES_MAX, FLAG_CRITICAL, HEADER_BYTES, Header, write_frame};
use towpath_protocol::identity::{Epoch, Name};
use towpath_protocol::message::*;
use towpath_protocol::ownership::Root;
use towpath_protocol::space::{BLOCK_COUNT_MAX, BlockRun, Geometry, SPACE_COUNT_MAX, SpaceId};
use towpath_protocol::version::{Speaker, VersionRange};

use samples::*;

#[test]
fn every_message_and_chunk_reads_back() {
    for message in messages() {
        assert_eq!(
            read_all(&encoded(&message)),
            Ok(vec![Content::Message(message)])
        );
    }
    for bytes in chunks() {
        let (content, rest) = read_one(&bytes).expect("a good chunk");
        let Content::Chunk(header, payload) = content else {
            panic!("not a chunk")
        };
        let mut again = Vec::new();
        header.encode(&payload, &mut again);
        assert!(rest.is_empty());
        assert_eq!(again, bytes);
    }
}

#[test]
fn f01_a_length_above_the_cap_is_refused_from_the_header_alone() {
    for kind in 0..=255 {
        for length in [
            body_bytes_max(kind) + 1,
            BODY_BYTES_MAX + 1,
            1 << 31,
            u32::MAX,
        ] {
            assert_eq!(code_of(&header_announcing(kind, length)), Code::TooLarge);
        }
        // At the cap the reader waits for the body instead: the cap is exact.
        assert_eq!(
            code_of(&header_announcing(kind, body_bytes_max(kind))),
            Code::Truncated
        );
        assert!(body_bytes_max(kind) <= BODY_BYTES_MAX);
    }
}

/// Postcard's encoding of 2^63 and of 2^30: lengths that a hostile peer would announce inside a
/// body.
const ABSURD_COUNTS: [&[u8]; 2] = [
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
    &[0x80, 0x80, 0x80, 0x80, 0x04],
];

#[test]
fn f01_a_count_of_2_to_the_63_inside_a_body_allocates_next_to_nothing() {
    for kind in (0..=255).filter(|kind| *kind != KIND_CHUNK) {
        for count in ABSURD_COUNTS {
            // Puts the count at every place where a length may be.
            for before in 0..80 {
                let mut body = vec![1; before];
                body.extend_from_slice(count);
                body.resize(1000, 1);
                let mut result = Ok(Message::Complete);
                let used = allocation_counter::measure(|| result = Message::decode(kind, &body));
                assert!(used.bytes_max <= 64 * 1024, "kind {kind}: {used:?}");
                drop(result);
            }
        }
    }
}

#[test]
fn f01_no_frame_of_any_kind_makes_the_reader_allocate_more_than_its_own_size_allows() {
    for bytes in frames() {
        let used = allocation_counter::measure(|| drop(read_one(&bytes)));
        assert!(used.bytes_max <= 96 * 1024, "{used:?}");
    }
}

#[test]
fn f02_a_frame_cut_at_any_byte_is_truncated_and_never_read() {
    for bytes in frames() {
        for end in 1..bytes.len() {
            assert_eq!(code_of(&bytes[..end]), Code::Truncated, "cut at {end}");
        }
    }
}

#[test]
fn f02_a_body_cut_inside_an_honest_frame_is_refused() {
    for message in messages() {
        let bytes = encoded(&message);
        let body = &bytes[HEADER_BYTES..];
        // State is opaque here. Its length is checked against the announced total at the end.
        if matches!(message, Message::StatePart(_)) {
            continue;
        }
        for end in 0..body.len() {
            let fault = Message::decode(message.kind(), &body[..end]).expect_err("cut");
            assert_eq!(fault.code, Code::Meta, "{message:?} cut at {end}");
        }
    }
    for bytes in chunks() {
        let body = &bytes[HEADER_BYTES..];
        let (header, payload) = ChunkHeader::decode(body).expect("a good chunk");
        for end in 0..body.len() - payload.len() {
            let code = ChunkHeader::decode(&body[..end]).expect_err("cut").code;
            assert_eq!(code, Code::Truncated, "{header:?} cut at {end}");
        }
    }
}

#[test]
fn f03_bytes_after_the_end_of_a_message_are_refused() {
    for message in messages() {
        if matches!(message, Message::StatePart(_)) {
            continue;
        }
        let bytes = encoded(&message);
        for extra in [&[0][..], &[1, 2, 3]] {
            let mut body = bytes[HEADER_BYTES..].to_vec();
            body.extend_from_slice(extra);
            assert_eq!(
                code_of(&framed(message.kind(), &body)),
                Code::Framing,
                "{message:?}"
            );
        }
    }
}

#[test]
fn f03_two_frames_glued_into_one_are_refused_and_back_to_back_are_two() {
    let ping = encoded(&Message::Ping(5));
    let mut glued = ping[HEADER_BYTES..].to_vec();
    glued.extend_from_slice(&ping);
    assert_eq!(code_of(&framed(20, &glued)), Code::Framing);

    let stream: Vec<u8> = frames().concat();
    assert_eq!(
        read_all(&stream).expect("good frames").len(),
        frames().len()
    );
    let mut shifted = stream.clone();
    shifted.insert(ping.len(), 0);
    assert!(read_all(&shifted).is_err(), "one byte between frames");
}

#[test]
fn f03_a_body_longer_than_announced_is_refused() {
    let bytes = framed(20, &[5]);
    let header = Header::parse(bytes.first_chunk().expect("a header"), 1024).expect("good");
    assert_eq!(
        header.check_body(&[5, 5]).expect_err("longer").code,
        Code::Framing
    );
    assert_eq!(
        header.check_body(&[]).expect_err("shorter").code,
        Code::Truncated
    );
}

#[test]
fn f03_a_wrong_magic_is_refused() {
    for magic in [*b"TQ", *b"GE", [0, 0], [0x16, 0x03]] {
        let mut bytes = encoded(&Message::Ping(5));
        bytes[..2].copy_from_slice(&magic);
        let crc = crc32c::crc32c(&bytes[..12]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(code_of(&bytes), Code::Framing);
    }
    assert_eq!(code_of(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Code::Framing);
}

#[test]
fn f03_unknown_flags_are_refused() {
    for flags in [4, 7, 0x80] {
        let mut bytes = Vec::new();
        write_frame(20, flags, &[5], &mut bytes);
        assert_eq!(code_of(&bytes), Code::Framing);
    }
}

#[test]
fn f04_every_single_bit_flip_of_every_frame_is_refused() {
    let mut flips = 0;
    for bytes in frames() {
        let mut damaged = bytes.clone();
        for bit in 0..bytes.len() * 8 {
            damaged[bit / 8] ^= 1 << (bit % 8);
            let is_found = match read_one(&damaged) {
                Err(_) => true,
                // After its head a chunk is protected only by its digest, which is checked when it
                // is unpacked.
                Ok((Content::Chunk(header, payload), _)) => digest_of(&payload) != header.digest,
                Ok(_) => false,
            };
            assert!(is_found, "bit {bit} of {:02x?}", &bytes[..16]);
            damaged[bit / 8] ^= 1 << (bit % 8);
            flips += 1;
        }
        assert_eq!(damaged, bytes);
    }
    assert!(flips > 100_000, "{flips} flips");
}

#[test]
fn f05_an_unknown_critical_kind_ends_the_connection_and_another_is_skipped() {
    for kind in (0..=255).filter(|kind| *kind == 0 || *kind > KIND_MAX) {
        assert_eq!(
            code_of(&framed(kind, b"??")),
            Code::UnknownKind,
            "kind {kind}"
        );
        let mut bytes = Vec::new();
        write_frame(kind, 0, b"??", &mut bytes);
        Message::Ping(5).encode(&mut bytes);
        let expected = vec![Content::Skipped(kind), Content::Message(Message::Ping(5))];
        assert_eq!(read_all(&bytes), Ok(expected));
    }
}

#[test]
fn f27_a_side_that_does_not_know_a_manifest_or_a_mark_skips_it() {
    let unknown = KIND_MAX + 1;
    for message in messages() {
        let mut bytes = encoded(&message);
        let header = Header::parse(bytes.first_chunk().unwrap(), BODY_BYTES_MAX).unwrap();
        let is_critical = header.flags & FLAG_CRITICAL != 0;
        let may_be_skipped = matches!(message, Message::Manifest(_) | Message::Mark(_));
        assert_eq!(is_critical, !may_be_skipped);
        if !is_critical {
            // Seen by a side that does not know the kind, the cap is that of all unknown kinds.
            let body = bytes.split_off(HEADER_BYTES);
            let mut unknown_frame = Vec::new();
            write_frame(unknown, header.flags, &body, &mut unknown_frame);
            let read = read_all(&unknown_frame);
            assert_eq!(read, Ok(vec![Content::Skipped(unknown)]));
        }
    }
}

#[test]
fn f05_a_known_kind_is_never_skipped() {
    for message in messages() {
        let bytes = encoded(&message);
        let mut plain = Vec::new();
        write_frame(message.kind(), 0, &bytes[HEADER_BYTES..], &mut plain);
        assert_eq!(read_all(&plain), Ok(vec![Content::Message(message)]));
    }
}

#[test]
fn f08_a_chunk_outside_every_space_or_wrapping_is_refused() {
    for (codec, payload) in [(Codec::Zero, &[][..]), (Codec::Raw, &[1; 4096])] {
        for bad in [
            run(BLOCK_COUNT_MAX, 1),
            run(BLOCK_COUNT_MAX - 1, 2),
            run(u64::MAX, 1),
            run(u64::MAX - 1, 16),
            run(1 << 63, 1),
        ] {
            assert_eq!(
                code_of(&chunk(codec, &[bad], payload)),
                Code::Range,
                "{bad}"
            );
            assert_eq!(
                code_of(&chunk(codec, &[run(0, 1), bad], payload)),
                Code::Range,
                "{bad}"
            );
        }
        assert!(read_one(&chunk(codec, &[run(BLOCK_COUNT_MAX - 1, 1)], payload)).is_ok());
    }
    // Inside the largest space but outside this one: the receiver's own check finds it.
    let geometry = Geometry::new(4096, 100).expect("a geometry");
    assert_eq!(
        geometry.check(run(99, 2)).expect_err("outside").code,
        Code::Range
    );
}

#[test]
fn f08_a_missing_set_outside_every_space_is_refused() {
    let part = |first_word, words: usize| {
        let words = vec![1; words];
        Message::MissingPart(MissingPart {
            space: SpaceId(0),
            first_word,
            words,
        })
    };
    let word_count = BLOCK_COUNT_MAX / 64;
    for bad in [
        part(word_count, 1),
        part(word_count - 1, 2),
        part(u64::MAX, 1),
        part(0, 0),
        part(0, MISSING_PART_WORDS_MAX + 1),
    ] {
        assert_eq!(code_of(&encoded(&bad)), Code::Range);
    }
    assert!(read_one(&encoded(&part(word_count - 1, 1))).is_ok());
    assert!(read_one(&encoded(&part(0, MISSING_PART_WORDS_MAX))).is_ok());
}

#[test]
fn f09_empty_unsorted_and_overlapping_runs_are_refused() {
    for (codec, payload) in [(Codec::Zero, &[][..]), (Codec::Raw, &[1; 4096])] {
        for bad in [
            &[run(5, 0)][..],
            &[run(5, 1), run(5, 1)],
            &[run(5, 2), run(6, 1)],
            &[run(6, 1), run(5, 1)],
            &[run(1, 1), run(9, 0)],
            &[run(0, 4), run(2, 1), run(8, 1)],
            &[],
        ] {
            assert_eq!(code_of(&chunk(codec, bad, payload)), Code::Range, "{bad:?}");
        }
    }
    assert!(
        read_one(&chunk(Codec::Zero, &[run(5, 2), run(7, 1)], &[])).is_ok(),
        "touching"
    );
}

#[test]
fn f09_more_blocks_or_runs_than_a_chunk_can_hold_are_refused() {
    let many: Vec<BlockRun> = (0..16).map(|i| run(i * 100, 2)).collect();
    for bad in [&[run(0, 17)][..], &[run(0, 16), run(16, 1)], &many] {
        assert_eq!(
            code_of(&chunk(Codec::Raw, bad, &[1; 4096])),
            Code::Range,
            "{bad:?}"
        );
    }
    let zeros = [run(0, ZERO_RUN_BLOCKS_MAX + 1)];
    assert_eq!(code_of(&chunk(Codec::Zero, &zeros, &[])), Code::Range);
    // Our encoder refuses to make seventeen runs, so the count is patched in.
    let mut body = chunk(Codec::Zero, &many, &[])[HEADER_BYTES..].to_vec();
    body[15] = 17;
    body.extend_from_slice(&[1; 12]);
    assert_eq!(code_of(&framed(KIND_CHUNK, &body)), Code::Range);
}

#[test]
fn f12_a_payload_that_cannot_be_the_announced_bytes_is_refused() {
    let most = CHUNK_RAW_BYTES_MAX as usize;
    for (codec, payload) in [
        (Codec::Zero, vec![0; 1]),
        (Codec::Zero, vec![0; 4096]),
        (Codec::Raw, vec![]),
        (Codec::Lz4, vec![]),
        (Codec::Zstd, vec![]),
        (Codec::Lz4, vec![1; most + 1]),
        (Codec::Zstd, vec![1; most + 1]),
    ] {
        let bytes = chunk(codec, &[run(0, 1)], &payload);
        assert_eq!(code_of(&bytes), Code::Codec, "{codec:?}");
    }
    assert!(read_one(&chunk(Codec::Zstd, &[run(0, 16)], &vec![1; most])).is_ok());
}

#[test]
fn f12_unknown_codecs_and_zeros_with_a_digest_are_refused() {
    let good = chunk(Codec::Raw, &[run(0, 1)], &[1; 4096]);
    for codec in [0, 5, 128, 255] {
        let mut body = good[HEADER_BYTES..].to_vec();
        body[14] = codec;
        assert_eq!(code_of(&framed(KIND_CHUNK, &body)), Code::Codec);
    }
    let mut body = chunk(Codec::Zero, &[run(0, 1)], &[])[HEADER_BYTES..].to_vec();
    body[20] = 1;
    assert_eq!(code_of(&framed(KIND_CHUNK, &body)), Code::Codec);
}

#[test]
fn f28_metadata_above_its_caps_is_refused() {
    let spaces = |count: u16| -> Vec<SpaceInfo> {
        (0..count)
            .map(|id| SpaceInfo {
                id: SpaceId(id),
                block_bytes: 4096,
                block_count: 1,
            })
            .collect()
    };
    let prepare = |spaces: Vec<SpaceInfo>, config: usize| {
        let name: Name = "a".parse().expect("a name");
        let config = vec![0; config];
        Message::Prepare(Prepare {
            name,
            epoch: Epoch(1),
            spaces,
            config,
        })
    };
    let reason = |code: usize, detail: usize| {
        let (code, detail) = ("x".repeat(code), "y".repeat(detail));
        Message::Nack(Reason { code, detail })
    };
    let end = |state_bytes, missing_count| {
        let root = Root([0; 32]);
        Message::FinalEnd(FinalEnd {
            through_sequence: 0,
            state_bytes,
            missing_count,
            root,
        })
    };
    let state_bytes_max = u32::try_from(STATE_BYTES_MAX).expect("a small cap");
    let mut duplicated = spaces(2);
    duplicated[1].id = SpaceId(0);
    for bad in [
        prepare(vec![], 0),
        prepare(spaces(17), 0),
        prepare(duplicated, 0),
        prepare(spaces(1), CONFIG_BYTES_MAX + 1),
        reason(65, 0),
        reason(0, DETAIL_BYTES_MAX + 1),
        Message::StatePart(vec![]),
        Message::StatePart(vec![0; STATE_PART_BYTES_MAX + 1]),
        end(state_bytes_max + 1, 0),
        end(0, u64::MAX),
    ] {
        assert_eq!(code_of(&encoded(&bad)), Code::Meta);
    }
    for good in [
        prepare(
            spaces(u16::try_from(SPACE_COUNT_MAX).expect("few")),
            CONFIG_BYTES_MAX,
        ),
        reason(64, DETAIL_BYTES_MAX),
        Message::StatePart(vec![0; STATE_PART_BYTES_MAX]),
        end(state_bytes_max, BLOCK_COUNT_MAX),
    ] {
        assert!(read_one(&encoded(&good)).is_ok(), "{good:?}");
    }
}

#[test]
fn f28_names_and_enums_are_parsed_as_what_they_are() {
    let good = encoded(&messages()[2]);
    let body = &good[HEADER_BYTES..];
    assert_eq!(&body[1..7], b"till-7");
    for bad in [*b"../etc", *b"till\x007", *b"TILL-7", [0xff; 6]] {
        let mut body = body.to_vec();
        body[1..7].copy_from_slice(&bad);
        assert_eq!(code_of(&framed(3, &body)), Code::Meta);
    }
    let hello = encoded(&messages()[0]);
    let mut body = hello[HEADER_BYTES..].to_vec();
    // The byte of the lane, before the one byte of the link number.
    let lane = body.len() - 2;
    body[lane] = 4;
    assert_eq!(code_of(&framed(1, &body)), Code::Meta);
}

#[test]
fn f29_versions_without_overlap_name_both_ranges() {
    let speaker = |name, (min, max)| Speaker {
        name,
        versions: VersionRange { min, max },
    };
    let ours = speaker("edge", (3, 4));
    for theirs in [(1, 2), (5, 9)].map(|range| speaker("region", range)) {
        let fault = ours.negotiate(&theirs).expect_err("none in common");
        assert_eq!(fault.code, Code::Version);
        for range in [ours.versions, theirs.versions] {
            assert!(fault.detail.contains(&range.to_string()), "{fault}");
        }
    }
    // An offer that was lowered on the way is a damaged frame, or a version that we speak anyway.
    let mut hello = encoded(&messages()[0]);
    hello[HEADER_BYTES + 1] = 1;
    assert_eq!(code_of(&hello), Code::Framing);
}

#[test]
fn reasons_are_cut_to_what_the_wire_takes() {
    for detail in ["e".repeat(2000), "\u{e9}".repeat(400), String::new()] {
        let fault = Fault::new(Code::ImageLost, detail);
        let message = Message::Nack(Reason::from(&fault));
        let Ok((Content::Message(Message::Nack(reason)), _)) = read_one(&encoded(&message)) else {
            panic!("a reason of ours does not read back");
        };
        assert_eq!(reason.to_fault(Code::Refused).code, Code::ImageLost);
        assert!(fault.detail.starts_with(&reason.detail));
    }
    let odd = Reason {
        code: "E_FUTURE".to_owned(),
        detail: String::new(),
    };
    assert_eq!(odd.to_fault(Code::Refused).code, Code::Refused);
}

#[test]
fn the_chain_depends_on_every_field_that_says_what_goes_where() {
    let header = ChunkHeader {
        runs: vec![run(1, 2)],
        sequence: 1,
        ..ChunkHeader::default()
    };
    let chain = chain_after(&[0; 32], &header);
    let mut changed = vec![header.clone(); 6];
    changed[0].sequence = 2;
    changed[1].generation = 1;
    changed[2].space = SpaceId(1);
    changed[3].digest[15] = 1;
    changed[4].runs[0].start = 2;
    changed[5].runs[0].count = 3;
    for other in &changed {
        assert_ne!(chain_after(&[0; 32], other), chain, "{other:?}");
    }
    assert_ne!(chain_after(&[1; 32], &header), chain);
}

#[test]
fn the_header_is_as_documented() {
    let mut bytes = Vec::new();
    write_frame(20, FLAG_CRITICAL, &[7], &mut bytes);
    assert_eq!(bytes[..8], [b'T', b'P', 20, 1, 1, 0, 0, 0]);
    assert_eq!(bytes[8..12], crc32c::crc32c(&[7]).to_le_bytes());
    assert_eq!(bytes[12..16], crc32c::crc32c(&bytes[..12]).to_le_bytes());
}
