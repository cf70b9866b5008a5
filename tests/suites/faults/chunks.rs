//! Frames of blocks that are truncated or corrupted.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame;
use towpath_protocol::identity::GuestId;
use towpath_protocol::message::{ChunkHeader, Codec, Lane, Message, Reason, digest_of};
use towpath_protocol::space::{BlockRun, MEMORY, MEMORY_BLOCK_BYTES};
use towpath_tests::scene::{LINK, Scene, TARGET};
use towpath_tests::verdict::wait_until;

use crate::peers::{SHOWN_WAIT, code, described, has_nothing, offer, open};

/// The content of the block that [`chunk`] sends.
const BLOCK: [u8; MEMORY_BLOCK_BYTES as usize] = [7; MEMORY_BLOCK_BYTES as usize];

/// A frame with one block.
pub(crate) fn chunk(sequence: u64, block: u64) -> Vec<u8> {
    chunk_of(sequence, block, Codec::Raw, &BLOCK)
}

/// The same with this payload, packed or not, whether or not it matches the header.
fn chunk_of(sequence: u64, block: u64, codec: Codec, payload: &[u8]) -> Vec<u8> {
    let header = ChunkHeader {
        space: MEMORY,
        sequence,
        generation: 1,
        codec,
        runs: vec![BlockRun {
            start: block,
            count: 1,
        }],
        digest: digest_of(&BLOCK),
    };
    let mut frame = Vec::new();
    header.encode(payload, &mut frame);
    frame
}

#[test]
fn f02_what_a_stream_that_is_cut_off_left_behind_goes_with_its_attempt() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let abort = Message::Abort(Reason::from(&Fault::new(Code::Cancelled, "it stays")));
    let whole = chunk(1, 3);
    for (id, length) in (1000..).zip([1, 20, whole.len() / 2, whole.len() - 1]) {
        let config = described(GuestId(id), &format!("till-{id}"), 16);
        let mut source = open(site, "box-7", config.id, id);
        source.say(Lane::Control, &offer(&config, 2)).unwrap();
        assert!(matches!(source.hear(), Some(Message::Prepared(_))));
        source.put(Lane::Bulk, &whole[..length]).unwrap();
        drop(source);
        let mut source = open(site, "box-7", config.id, id);
        source.say(Lane::Control, &offer(&config, 2)).unwrap();
        assert!(matches!(source.hear(), Some(Message::Prepared(_))));
        source.say(Lane::Control, &abort).unwrap();
        assert!(source.hear().is_none(), "the lanes end");
    }
    let gone = wait_until(SHOWN_WAIT, || has_nothing(site).then_some(()));
    gone.expect("nothing is left of them");
}

#[test]
fn f12_fault_29_spoilt_chunks_are_had_again_three_times_and_no_more() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let flipped_at = |index: usize| {
        let mut frame = chunk(1, 3);
        frame[index] ^= 1;
        frame
    };
    let last = chunk(1, 3).len() - 1;
    // Whole frames: one whose content does not match its digest, and one that unpacks to fewer
    // bytes than its header says.
    let altered = chunk_of(1, 3, Codec::Raw, &[8; MEMORY_BLOCK_BYTES as usize]);
    let short = chunk_of(1, 3, Codec::Lz4, &[0x10, 7]);
    let cases = [
        (flipped_at(frame::HEADER_BYTES), Code::Framing),
        (flipped_at(last), Code::Codec),
        (altered, Code::Codec),
        (short, Code::Codec),
    ];
    for (id, (spoilt, expected)) in (80..).zip(cases) {
        let config = described(GuestId(id), &format!("till-{id}"), 16);
        let mut tries = 0;
        let reason = loop {
            let mut source = open(site, "box-7", config.id, config.id.0);
            source.say(Lane::Control, &offer(&config, 2)).unwrap();
            match source.hear() {
                Some(Message::Prepared(_)) => {}
                Some(Message::Nack(reason)) => break reason,
                other => panic!("{expected:?} after {tries} tries: {other:?}"),
            }
            tries += 1;
            assert!(tries <= 3, "{expected:?} is tried without end");
            source.put(Lane::Bulk, &spoilt).unwrap();
            // The lanes end, with or without a final message.
            if let Some(Message::Nack(reason)) = source.hear() {
                break reason;
            }
        };
        assert_eq!((tries, code(&reason)), (3, expected.as_str()));
    }
}
