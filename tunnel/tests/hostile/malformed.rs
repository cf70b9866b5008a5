//! Malformed packets and parameters from strangers (T05).

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_transport_parameters_that_cannot_be_close_the_connection() {
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    let short = |bytes: &[u8]| bytes.to_vec();
    for (number, (id, value)) in [
        // An ACK delay exponent above 20, and a maximum ACK delay of 2^14.
        (0x0a, frame::integer(21)),
        (0x0b, frame::integer(1 << 14)),
        // A maximum payload below 1200, a connection ID limit below 2, more than 2^60 streams.
        (0x03, frame::integer(1199)),
        (0x0e, frame::integer(1)),
        (0x08, frame::integer((1 << 60) + 1)),
        // A connection ID that differs from the packet's, and a truncated number.
        (0x0f, short(&[1; 8])),
        (0x04, short(&[0xc0])),
        // Parameters that only a server may send.
        (0x00, short(&[1; 8])),
        (0x02, short(&[1; 16])),
    ]
    .into_iter()
    .enumerate()
    {
        let from = address(700 + u16::try_from(number).unwrap());
        let mut raw = door.raw(from, &[(id, value)]);
        let closed = blocking(move || {
            raw.shake(CLOSED_WAIT);
            raw.closed(CLOSED_WAIT)
        })
        .await;
        assert_eq!(closed, Some(TRANSPORT_PARAMETER_ERROR), "parameter {id:#x}");
    }
    door.lets_in().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_the_reason_of_a_strangers_goodbye_is_one_line_of_the_log() {
    let _beside_others = MEMORY.read().await;
    let log = Kept::log();
    let door = Door::open().await;
    let mut raw = door.raw(address(560), &[]);
    blocking(move || {
        let reason = b"well\n2026-01-01 WARN audit: \x1b[2Jall is forged";
        raw.send(Level::Initial, frame::close_because(reason));
    })
    .await;
    let is_logged = || log.text().contains("all is forged");
    until("the goodbye is logged", is_logged).await;
    let text = log.text();
    let line = text.lines().find(|line| line.contains("all is forged"));
    assert!(line.unwrap().contains("handshake refused"), "{text:?}");
    assert!(!text.contains("\x1b[2J"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_frames_that_do_not_exist_or_do_not_parse_close_the_connection() {
    let _beside_others = MEMORY.read().await;
    let door = Door::open().await;
    for (frames, code) in [
        (frame::integer(0x3fff), FRAME_ENCODING_ERROR),
        // An acknowledgement of packets below zero, and a truncated stream frame.
        (vec![0x02, 5, 0, 0, 9], FRAME_ENCODING_ERROR),
        (vec![0x0a, 0, 60, 1, 2], FRAME_ENCODING_ERROR),
        // A frame that only a server may send.
        (vec![0x1e], PROTOCOL_VIOLATION),
    ] {
        let mut raw = door.shaken().await;
        let shown = format!("{frames:x?}");
        let closed = blocking(move || {
            raw.send(Level::Data, frames);
            raw.closed(CLOSED_WAIT)
        })
        .await;
        assert_eq!(closed, Some(code), "{shown}");
    }
    door.lets_in().await;
}
