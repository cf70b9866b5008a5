//! What a stream keeps to outlive its connection: offsets, the tail, and both ends. Pure.
//!
//! Offsets count from the first byte of each direction. The sending side keeps the bytes that the
//! other side has not reported, the *tail*, in the same buffers that QUIC holds. The receiving side
//! counts what it has taken and what it has handed on. After a cut each side says what it has, and
//! the other sends from there.
//!
//! ```text
//!   0          acknowledged                       sent
//!   ├───────────────┼───────────── tail ────────────┤
//!   ├───────────────────┼───────────────┤
//!   0                handed           taken          (the other side)
//! ```
//!
//! `acknowledged <= handed <= taken <= sent` over one connection, and the tail holds every byte
//! from `acknowledged` to `sent`. A resume raises `acknowledged` to `taken`: the other side's
//! tunnel has those bytes, and they are not sent again. Its program may not have them yet, so a
//! stream that is to be cut off behind its last byte waits for a report of `handed`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::preamble::Received;

/// Unreported bytes at which a report is sent at once: half of the usual tail, which grows to three
/// times what a faster path holds, so that a sender never waits for a report. Each report wakes
/// four threads.
pub(crate) const REPORT_BYTES: u64 = 512 * 1024;

/// Pieces smaller than this are gathered: a tail of single bytes would cost fifty times its size.
const GATHERED_BELOW_BYTES: usize = 4096;

/// Size of a gathered piece.
const GATHERED_BYTES: usize = 16 * 1024;

/// The direction we send.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    acknowledged: u64,
    /// Bytes that the other side's program has, according to the reports.
    handed: u64,
    tail: VecDeque<Bytes>,
    /// Small pieces after the end of `tail`.
    gathered: BytesMut,
    held: Held,
    is_ended: bool,
    is_end_acknowledged: bool,
    /// Whether the other side's program has the end, according to the reports.
    is_end_handed: bool,
}

impl Outgoing {
    /// A direction in which nothing was sent yet; the bytes it holds also count in
    /// `all_held_bytes`.
    pub(crate) fn beside(all_held_bytes: &Arc<AtomicU64>) -> Self {
        Self {
            held: Held {
                all_bytes: Arc::clone(all_held_bytes),
                ..Held::default()
            },
            ..Self::default()
        }
    }

    /// Records bytes that were read and will be sent; they count in what all streams hold.
    pub(crate) fn hold(&mut self, bytes: u64) {
        self.held.expect(bytes);
    }

    /// Records that a piece is sent.
    pub(crate) fn push(&mut self, piece: &Bytes) {
        debug_assert!(!self.is_ended, "nothing follows the end");
        self.held.add(piece.len() as u64);
        if piece.len() < GATHERED_BELOW_BYTES {
            self.gathered.extend_from_slice(piece);
            if self.gathered.len() >= GATHERED_BYTES {
                self.close_gathered();
            }
            return;
        }
        self.close_gathered();
        self.tail.push_back(piece.clone());
    }

    fn close_gathered(&mut self) {
        if !self.gathered.is_empty() {
            self.tail.push_back(self.gathered.split().freeze());
        }
    }

    /// Records that nothing follows.
    pub(crate) const fn end(&mut self) {
        self.is_ended = true;
    }

    /// Whether the local end was reached, reported or not.
    pub(crate) const fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Whether the other side has everything and the end; after a resume this may be its tunnel
    /// only.
    pub(crate) const fn is_done(&self) -> bool {
        self.is_end_acknowledged
    }

    /// Whether the other side's program has everything that was sent, and the end if there was one.
    pub(crate) const fn is_handed(&self) -> bool {
        if self.is_ended {
            self.is_end_handed
        } else {
            self.handed == self.sent()
        }
    }

    /// Bytes that the other side has not reported.
    pub(crate) const fn held_bytes(&self) -> u64 {
        self.held.bytes
    }

    /// The same, over all streams counted together with this one.
    pub(crate) fn all_held_bytes(&self) -> u64 {
        self.held.all_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the other side has reported.
    pub(crate) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Bytes sent since the start.
    pub(crate) const fn sent(&self) -> u64 {
        self.acknowledged + self.held.bytes
    }

    /// Records a report of what the other side's program has; returns whether that was news.
    ///
    /// # Errors
    ///
    /// `E_RANGE` if it claims bytes that were never sent.
    pub(crate) fn acknowledge(&mut self, received: Received) -> Result<bool, Fault> {
        let is_taken_news = self.note_taken(received)?;
        // A report may be older than one that came over another connection.
        let is_more = received.bytes > self.handed;
        let is_handed_news = is_more || (received.is_ended && !self.is_end_handed);
        self.handed = self.handed.max(received.bytes);
        self.is_end_handed |= received.is_ended;
        Ok(is_taken_news || is_handed_news)
    }

    /// Records what the other side's tunnel has; returns whether that was news.
    fn note_taken(&mut self, received: Received) -> Result<bool, Fault> {
        let sent = self.sent();
        let is_whole = received.bytes == sent && self.is_ended;
        if received.bytes > sent || (received.is_ended && !is_whole) {
            let (bytes, end) = (
                received.bytes,
                if received.is_ended {
                    " and the end"
                } else {
                    ""
                },
            );
            let detail = format!("the peer has {bytes} bytes{end} of a stream of {sent}");
            return Err(Fault::new(Code::Range, detail));
        }
        let mut is_news = received.is_ended && !self.is_end_acknowledged;
        self.is_end_acknowledged |= received.is_ended;
        if received.bytes > self.acknowledged {
            self.release(received.bytes - self.acknowledged);
            is_news = true;
        }
        Ok(is_news)
    }

    fn release(&mut self, bytes: u64) {
        self.acknowledged += bytes;
        self.held.take(bytes);
        let mut left = bytes;
        while left > 0 {
            if self.tail.is_empty() {
                self.close_gathered();
            }
            let first = self.tail.front_mut().expect("held bytes are in the tail");
            let length = first.len() as u64;
            if length > left {
                // Fits: it is less than the length of the piece.
                let _ = first.split_to(usize::try_from(left).unwrap_or(first.len()));
                return;
            }
            left -= length;
            self.tail.pop_front();
        }
    }

    /// What must be sent again to a side that has `received`, in the same buffers.
    ///
    /// # Errors
    ///
    /// `E_RANGE` if it claims bytes that were never sent, or no longer has what it had.
    pub(crate) fn rewind(&mut self, received: Received) -> Result<VecDeque<Bytes>, Fault> {
        if received.bytes < self.acknowledged {
            let (bytes, known) = (received.bytes, self.acknowledged);
            let detail = format!("the peer has {bytes} bytes and had {known}");
            return Err(Fault::new(Code::Range, detail));
        }
        self.note_taken(received)?;
        self.close_gathered();
        Ok(self.tail.clone())
    }
}

/// Bytes held by one stream, also counted in a total of many.
#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    /// Read and counted in the total, but not sent yet.
    expected_bytes: u64,
    all_bytes: Arc<AtomicU64>,
}

impl Held {
    fn expect(&mut self, bytes: u64) {
        self.expected_bytes += bytes;
        self.all_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn add(&mut self, bytes: u64) {
        let expected = bytes.min(self.expected_bytes);
        self.expected_bytes -= expected;
        self.bytes += bytes;
        self.all_bytes
            .fetch_add(bytes - expected, Ordering::Relaxed);
    }

    fn take(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.all_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = self.bytes + self.expected_bytes;
        self.all_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The direction we receive.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    taken: u64,
    handed: u64,
    reported: u64,
    is_ended: bool,
}

impl Incoming {
    /// Records bytes taken from the connection; from now on they are ours to hand on.
    pub(crate) const fn take(&mut self, bytes: u64) {
        self.taken += bytes;
    }

    /// Records that the end was received.
    pub(crate) const fn end(&mut self) {
        self.is_ended = true;
    }

    /// Whether the end was received.
    pub(crate) const fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Records bytes handed to the local program.
    pub(crate) fn hand(&mut self, bytes: u64) {
        self.handed += bytes;
        debug_assert!(self.handed <= self.taken, "what was handed on was taken");
    }

    /// What to tell the peer on a resume: everything that need not be sent again.
    pub(crate) const fn received(&self) -> Received {
        Received {
            bytes: self.taken,
            is_ended: self.is_ended,
        }
    }

    /// What the local program has.
    pub(crate) const fn handed(&self) -> Received {
        Received {
            bytes: self.handed,
            is_ended: self.is_ended && self.handed == self.taken,
        }
    }

    /// What to report now, which is what the local program has, and whether to do so at once.
    pub(crate) const fn report(&mut self) -> (Received, bool) {
        let handed = self.handed();
        let is_due = handed.is_ended || self.handed - self.reported >= REPORT_BYTES;
        if is_due {
            self.reported = self.handed;
        }
        (handed, is_due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn had(bytes: u64) -> Received {
        Received {
            bytes,
            is_ended: false,
        }
    }

    fn whole(bytes: u64) -> Received {
        Received {
            bytes,
            is_ended: true,
        }
    }

    fn joined(pieces: &VecDeque<Bytes>) -> Vec<u8> {
        pieces.iter().flatten().copied().collect()
    }

    #[test]
    fn the_tail_is_what_was_not_reported() {
        let mut out = Outgoing::default();
        let big = Bytes::from(vec![1; 10_000]);
        out.push(&Bytes::from_static(b"abc"));
        out.push(&big);
        out.push(&Bytes::from_static(b"de"));
        assert_eq!((out.sent(), out.held_bytes()), (10_005, 10_005));
        assert_eq!(out.acknowledge(had(2)), Ok(true));
        assert_eq!(out.acknowledge(had(2)), Ok(false));
        assert_eq!(out.acknowledge(had(1)), Ok(false), "an older report");
        let again = out.rewind(had(9_003)).unwrap();
        assert_eq!(joined(&again), [&[1; 1000][..], b"de"].concat());
        assert_eq!(
            again[0].as_ptr(),
            big[9_000..].as_ptr(),
            "large pieces are not copied"
        );
        assert_eq!(out.rewind(had(9_002)).unwrap_err().code, Code::Range);
    }

    #[test]
    fn only_a_report_says_that_the_program_has_it() {
        let mut out = Outgoing::default();
        assert!(out.is_handed(), "nothing was sent");
        out.push(&Bytes::from_static(b"abcd"));
        out.rewind(had(4)).unwrap();
        assert_eq!((out.held_bytes(), out.is_handed()), (0, false));
        assert_eq!(out.acknowledge(had(3)), Ok(true), "its program has three");
        assert_eq!(out.acknowledge(had(2)), Ok(false), "an older report");
        assert!(!out.is_handed());
        assert_eq!(out.acknowledge(had(4)), Ok(true));
        assert!(out.is_handed());
        out.end();
        out.rewind(whole(4)).unwrap();
        assert_eq!((out.is_done(), out.is_handed()), (true, false));
        assert_eq!(out.acknowledge(whole(4)), Ok(true));
        assert!(out.is_handed());
    }

    #[test]
    fn what_all_streams_hold_is_counted_until_it_is_reported_or_they_end() {
        let all = Arc::default();
        let mut streams = [(); 2].map(|()| Outgoing::beside(&all));
        for out in &mut streams {
            out.hold(10_001);
            assert!(out.all_held_bytes() >= 10_001, "what was read counts");
            out.push(&Bytes::from(vec![1; 10_000]));
            out.push(&Bytes::from_static(b"abc"));
        }
        assert_eq!(streams[0].all_held_bytes(), 20_006);
        streams[0].acknowledge(had(10_001)).unwrap();
        assert_eq!(streams[1].all_held_bytes(), 10_005);
        streams[0].rewind(had(10_002)).unwrap();
        let [first, second] = streams;
        drop(second);
        assert_eq!(first.all_held_bytes(), first.held_bytes());
        assert_eq!(first.held_bytes(), 1);
        let mut third = Outgoing::beside(&all);
        third.hold(7);
        drop((first, third));
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn small_pieces_cost_no_more_than_large_ones() {
        let mut out = Outgoing::default();
        for _ in 0..1 << 20 {
            out.push(&Bytes::from_static(b"x"));
        }
        assert_eq!(out.held_bytes(), 1 << 20);
        assert!(out.tail.len() <= (1 << 20) / GATHERED_BYTES);
    }

    #[test]
    fn what_was_never_sent_cannot_be_acknowledged() {
        let mut out = Outgoing::default();
        out.push(&Bytes::from_static(b"abc"));
        for claim in [had(4), had(u64::MAX), whole(3), whole(0)] {
            assert_eq!(out.acknowledge(claim).unwrap_err().code, Code::Range);
            assert_eq!(out.rewind(claim).unwrap_err().code, Code::Range);
        }
        out.end();
        assert_eq!(out.acknowledge(whole(2)).unwrap_err().code, Code::Range);
        assert!(!out.is_done());
        assert_eq!(out.acknowledge(whole(3)), Ok(true));
        assert!(out.is_done());
        assert_eq!(out.held_bytes(), 0);
    }

    #[test]
    fn reports_are_due_by_bytes_and_at_the_end() {
        let mut inn = Incoming::default();
        inn.take(REPORT_BYTES + 5);
        inn.hand(REPORT_BYTES - 1);
        assert_eq!(inn.report(), (had(REPORT_BYTES - 1), false));
        inn.hand(1);
        assert_eq!(inn.report(), (had(REPORT_BYTES), true));
        assert_eq!(inn.report(), (had(REPORT_BYTES), false));
        inn.end();
        assert_eq!(inn.report(), (had(REPORT_BYTES), false), "five are left");
        assert_eq!(inn.received(), whole(REPORT_BYTES + 5));
        inn.hand(5);
        assert_eq!(inn.report(), (whole(REPORT_BYTES + 5), true));
    }

    /// One direction between two sides, over connections that break.
    #[derive(Default)]
    struct Way {
        program: VecDeque<u8>,
        out: Outgoing,
        replay: VecDeque<Bytes>,
        is_end_sent: bool,
        wire: VecDeque<Bytes>,
        inn: Incoming,
        taken: VecDeque<Bytes>,
        delivered: Vec<u8>,
        reports: VecDeque<Received>,
        resent: u64,
    }

    /// One step of a run.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Send(usize),
        Take,
        Hand(usize),
        Report,
        HearReport,
        /// Cuts the connection; so many pieces on the wire still arrive.
        Cut(usize),
    }

    impl Way {
        fn send(&mut self, bytes: usize) {
            if let Some(piece) = self.replay.pop_front() {
                self.resent += piece.len() as u64;
                self.wire.push_back(piece);
                return;
            }
            if self.program.is_empty() {
                if !self.out.is_ended() {
                    self.out.end();
                }
                self.is_end_sent = true;
                return;
            }
            let count = bytes.clamp(1, self.program.len());
            let piece: Bytes = self.program.drain(..count).collect::<Vec<_>>().into();
            self.out.push(&piece);
            self.wire.push_back(piece);
        }

        fn take(&mut self) {
            if let Some(piece) = self.wire.pop_front() {
                self.inn.take(piece.len() as u64);
                self.taken.push_back(piece);
            } else if self.is_end_sent {
                self.inn.end();
            }
        }

        fn hand(&mut self, bytes: usize) {
            let Some(first) = self.taken.front_mut() else {
                return;
            };
            let part = first.split_to(bytes.clamp(1, first.len()));
            if first.is_empty() {
                self.taken.pop_front();
            }
            self.delivered.extend_from_slice(&part);
            self.inn.hand(part.len() as u64);
        }

        fn cut(&mut self, arriving: usize) {
            for _ in 0..arriving {
                if !self.wire.is_empty() {
                    self.take();
                }
            }
            self.wire.clear();
            self.is_end_sent = false;
            self.reports.clear();
            let held = self.out.held_bytes();
            self.replay = self.out.rewind(self.inn.received()).unwrap();
            assert!(joined(&self.replay).len() as u64 <= held);
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::Send(bytes) => self.send(bytes),
                Step::Take => self.take(),
                Step::Hand(bytes) => self.hand(bytes),
                Step::Report => self.reports.push_back(self.inn.report().0),
                Step::HearReport => {
                    if let Some(report) = self.reports.pop_front() {
                        self.out.acknowledge(report).unwrap();
                    }
                }
                Step::Cut(arriving) => self.cut(arriving),
            }
        }
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (1..9000_usize).prop_map(Step::Send),
            5 => Just(Step::Take),
            5 => (1..9000_usize).prop_map(Step::Hand),
            2 => Just(Step::Report),
            2 => Just(Step::HearReport),
            1 => (0..4_usize).prop_map(Step::Cut),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn whatever_is_cut_and_wherever_the_bytes_sent_are_the_bytes_delivered(
            seed in any::<u64>(),
            length in 0..200_000_usize,
            steps in steps(),
        ) {
            let mut state = seed | 1;
            let sent: Vec<u8> = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .take(length)
            .collect();
            let mut way = Way { program: sent.iter().copied().collect(), ..Way::default() };
            for step in steps {
                way.step(step);
                prop_assert!(sent.starts_with(&way.delivered));
            }
            // From here on the link stays up.
            for _ in 0..1000 {
                for step in [Step::Send(4096), Step::Take, Step::Hand(9000), Step::Report, Step::HearReport] {
                    way.step(step);
                }
                if way.out.is_done() && way.taken.is_empty() {
                    break;
                }
            }
            prop_assert!(way.out.is_done());
            prop_assert!(way.delivered == sent);
            prop_assert_eq!(way.out.held_bytes(), 0);
        }

        #[test]
        fn no_claim_of_a_peer_breaks_the_tail(
            pieces in prop::collection::vec(0..6000_usize, 0..20),
            claims in prop::collection::vec((any::<u16>(), any::<bool>(), any::<bool>()), 0..20),
            is_ended in any::<bool>(),
        ) {
            let mut out = Outgoing::default();
            for length in &pieces {
                out.push(&Bytes::from(vec![7; *length]));
            }
            if is_ended {
                out.end();
            }
            for (bytes, is_end, is_resume) in claims {
                let claim = Received { bytes: bytes.into(), is_ended: is_end };
                if is_resume {
                    let _ = out.rewind(claim);
                } else {
                    let _ = out.acknowledge(claim);
                }
                prop_assert_eq!(out.sent(), pieces.iter().sum::<usize>() as u64);
            }
        }
    }
}
