//! The control stream of a link: acknowledgements of stream bytes, ends of streams, path reports.
//!
//! It is the stream that joined the urgent connection, and goes ahead of every class.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use quinn::{RecvStream, SendStream};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::preamble::{
    Cut, PathReport, Preamble, REPORT_COUNT_MAX, Received, Report, StreamId,
};
use towpath_protocol::rate::Rate;

use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::quic::wire;
use crate::streams::table::{Call, End, Found, Streams};

/// How long a report may wait for others.
pub(crate) const REPORT_DELAY: Duration = Duration::from_millis(50);

/// How long the peer may send nothing: for ever, since QUIC notices if the peer is gone.
const SILENCE: Duration = Duration::MAX;

/// Priority of the control stream: above every class.
const PRIORITY: i32 = 110;

/// Acknowledgements to be sent over a link.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// The newest report of each stream since the last `take`. Their number is limited by the
    /// streams that can live and end in the time that a message may wait for the peer.
    waiting: Mutex<Waiting>,
    some: Notify,
    urgent: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    newest: BTreeMap<StreamId, Received>,
    /// When the first of them was noted. Other messages do not prolong their wait.
    since: Option<Instant>,
}

impl Reports {
    /// Records what a program was given. An urgent report is sent at once, with all others.
    pub(crate) fn note(&self, stream: StreamId, received: Received, is_urgent: bool) {
        let mut waiting = self.waiting();
        let is_first = waiting.newest.is_empty();
        if is_first {
            waiting.since = Some(Instant::now());
        }
        waiting.newest.insert(stream, received);
        drop(waiting);
        if is_first {
            self.some.notify_one();
        }
        if is_urgent {
            self.urgent.notify_one();
        }
    }

    /// Waits for a report, and then up to [`REPORT_DELAY`] for more. Cancellation safe.
    async fn take(&self) -> Vec<Report> {
        let since = loop {
            if let Some(since) = self.waiting().since {
                break since;
            }
            self.some.notified().await;
        };
        // Timeout and urgent report both end the wait.
        let _ = timeout_at(since + REPORT_DELAY, self.urgent.notified()).await;
        let waiting = std::mem::take(&mut *self.waiting());
        let report = |(stream, received)| Report { stream, received };
        waiting.newest.into_iter().map(report).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }
}

/// The path report due to the peer: what we want to receive, whenever that changes, and what the
/// path from the peer carried, whenever the path was the limit.
#[derive(Debug, Default)]
pub(crate) struct News {
    told: Mutex<PendingNews>,
    some: Notify,
}

#[derive(Debug, Default)]
struct PendingNews {
    report: PathReport,
    is_due: bool,
}

impl News {
    /// Starts with the cap that the peer was told when the link was joined.
    pub(crate) fn having_told(rate: Option<Rate>) -> Self {
        let news = Self::default();
        news.told().report.receive_rate_max = rate.map(Rate::bytes_per_second);
        news
    }

    /// Sets the most that we want to receive from now on.
    pub(crate) fn wish(&self, rate: Option<Rate>) {
        let wish = rate.map(Rate::bytes_per_second);
        let mut told = self.told();
        if told.report.receive_rate_max != wish {
            told.report.receive_rate_max = wish;
            told.is_due = true;
            self.some.notify_one();
        }
    }

    /// Records the rate of the last second, in which the path was the limit.
    pub(crate) fn filled(&self, bytes_per_second: u64) {
        let mut told = self.told();
        told.report.filled_bytes_per_second = Some(bytes_per_second);
        told.is_due = true;
        self.some.notify_one();
    }

    async fn take(&self) -> PathReport {
        loop {
            if let Some(report) = self.due() {
                return report;
            }
            self.some.notified().await;
        }
    }

    fn due(&self) -> Option<PathReport> {
        let mut told = self.told();
        let is_due = std::mem::take(&mut told.is_due);
        let report = told.report;
        told.report.filled_bytes_per_second = None;
        is_due.then_some(report)
    }

    fn told(&self) -> MutexGuard<'_, PendingNews> {
        self.told.lock()
    }
}

/// Sends and receives control messages until the link is over. Both tasks run on the thread that
/// drives the urgent connection: handing a message to another thread costs more than the message,
/// and a fast link has a thousand a second.
pub(crate) fn attend(
    thread: &Handle,
    peer: &Arc<Peer>,
    link: &Arc<Link>,
    (send, recv): (SendStream, RecvStream),
    stall: Duration,
) {
    let (talker, listener) = (Arc::clone(link), Arc::clone(link));
    let (told, heard) = (Arc::clone(peer), Arc::clone(peer));
    thread.spawn(async move {
        if let Err(fault) = talk(&told.streams, &talker, send, stall).await {
            end(&told, &talker, fault);
        }
    });
    thread.spawn(async move {
        let fault = listen(&heard.streams, &listener, recv).await;
        end(&heard, &listener, fault);
    });
}

/// Ends a link whose control stream has ended in one direction. The other direction is of no use
/// alone: messages would be kept for ever, or never arrive. The link's streams go on over the next
/// link.
fn end(peer: &Peer, link: &Link, fault: Fault) {
    // A link that is over reports its own end.
    if link.is_over() {
        return;
    }
    let fault = match fault.code {
        Code::Unreachable | Code::Truncated => {
            let detail = format!("the peer has ended the link's own words: {}", fault.detail);
            Fault::new(Code::State, detail)
        }
        _ => fault,
    };
    if let Some(untold) = peer.told.wrong.admit() {
        tracing::warn!(target: "audit", peer = %link.peer, %fault, untold, "link ended");
    }
    link.close(fault.code, &fault.detail);
}

async fn talk(
    streams: &Streams,
    link: &Link,
    mut send: SendStream,
    stall: Duration,
) -> Result<(), Fault> {
    // Fails only on a closed stream; then the calls below fail too.
    let _ = send.set_priority(PRIORITY);
    // Notices a peer that stops the stream even if there is nothing to send.
    let mut stopped = pin!(send.stopped());
    let party = link.party();
    let mut unheard = streams.unheard();
    let mut told = 0;
    loop {
        unheard.mark_unchanged();
        let (ended, newest) = streams.ended_after(told, &party);
        told = newest;
        for ended in ended.into_iter().filter(|one| one.is_news_over(link.id)) {
            let stream = ended.id;
            let word = match ended.end {
                End::Whole(received, _) => Preamble::Reports(vec![Report { stream, received }]),
                End::Cut(fault) => Preamble::Cut(Cut { stream, fault }),
            };
            say(link, &mut send, &word, stall).await?;
        }
        tokio::select! {
            reports = link.reports.take() => {
                for some in reports.chunks(REPORT_COUNT_MAX) {
                    let word = Preamble::Reports(some.to_vec());
                    say(link, &mut send, &word, stall).await?;
                }
            }
            report = link.news.take() => {
                say(link, &mut send, &Preamble::Path(report), stall).await?;
            }
            _ = unheard.changed() => {}
            _ = &mut stopped => {
                return Err(Fault::new(Code::Unreachable, "the peer takes none of them"));
            }
            () = link.over() => return Ok(()),
        }
    }
}

/// Sends a message. Fails if the peer answers but takes no message for `stall`: messages for it
/// would pile up.
async fn say(
    link: &Link,
    send: &mut SendStream,
    word: &Preamble,
    stall: Duration,
) -> Result<(), Fault> {
    let mut saying = pin!(wire::write(send, word));
    loop {
        match timeout(stall, &mut saying).await {
            Ok(said) => return said,
            Err(_) if link.is_ill() => {}
            Err(_) => {
                let detail = format!("the peer takes none of the link's own words for {stall:?}");
                return Err(Fault::new(Code::Stalled, detail));
            }
        }
    }
}

/// Receives until the link is over or the peer sends a message that does not belong here.
async fn listen(streams: &Streams, link: &Link, mut recv: RecvStream) -> Fault {
    let party = link.party();
    loop {
        let preamble = match wire::read(&mut recv, SILENCE).await {
            Ok(preamble) => preamble,
            Err(fault) => return fault,
        };
        let heard = match preamble {
            Preamble::Reports(reports) => reports.iter().try_for_each(|report| {
                match streams.find(report.stream, &party) {
                    Some(Found::Live(stream)) => stream.acknowledge(report.received),
                    // The stream ended while the report was under way.
                    _ => Ok(()),
                }
            }),
            Preamble::Cut(Cut { stream, fault }) => {
                if let Some(Found::Live(stream)) = streams.find(stream, &party) {
                    // A stream that is busy with other calls learns of it when it resumes.
                    let _ = stream.call(Call::Cut(fault));
                }
                Ok(())
            }
            Preamble::Path(report) => {
                link.hear_of_path(&report);
                Ok(())
            }
            other => {
                let detail = format!("{} among a link's own words", other.name());
                Err(Fault::new(Code::Unexpected, detail))
            }
        };
        if let Err(fault) = heard {
            return fault;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn had(bytes: u64) -> Received {
        Received {
            bytes,
            is_ended: false,
        }
    }

    #[tokio::test]
    async fn a_wish_is_told_when_it_changes_and_what_was_filled_once() {
        let news = News::default();
        news.wish(None);
        assert_eq!(news.due(), None, "nothing is wished to begin with");
        news.wish(Some(Rate::clamped(50_000)));
        news.wish(Some(Rate::clamped(50_000)));
        news.filled(700);
        let told = |filled_bytes_per_second| PathReport {
            receive_rate_max: Some(50_000),
            filled_bytes_per_second,
        };
        assert_eq!(news.take().await, told(Some(700)));
        assert_eq!(news.due(), None);
        news.filled(800);
        assert_eq!(news.due(), Some(told(Some(800))));
        news.wish(None);
        assert_eq!(news.take().await, PathReport::default());
    }

    #[test]
    fn a_cap_that_is_lifted_after_the_link_was_joined_is_told() {
        let news = News::having_told(Some(Rate::clamped(50_000)));
        news.wish(Some(Rate::clamped(50_000)));
        assert_eq!(news.due(), None, "it is known");
        news.wish(None);
        assert_eq!(news.due(), Some(PathReport::default()));
    }

    #[tokio::test]
    async fn reports_wait_no_longer_however_often_something_else_is_said() {
        let reports = Reports::default();
        let began = Instant::now();
        reports.note(StreamId(1), had(1), false);
        let taken = loop {
            let between = timeout(REPORT_DELAY / 5, reports.take());
            if let Ok(taken) = between.await {
                break taken;
            }
            assert!(began.elapsed() < 20 * REPORT_DELAY, "never");
        };
        assert_eq!(taken.len(), 1);
        assert!(began.elapsed() >= REPORT_DELAY);
    }

    #[tokio::test]
    async fn reports_are_gathered_and_an_urgent_one_takes_them_along() {
        let reports = Reports::default();
        reports.note(StreamId(1), had(1), false);
        reports.note(StreamId(2), had(5), false);
        reports.note(StreamId(1), had(3), false);
        let began = Instant::now();
        let taken = reports.take().await;
        assert!(began.elapsed() >= REPORT_DELAY);
        let of = |stream, bytes| Report {
            stream: StreamId(stream),
            received: had(bytes),
        };
        assert_eq!(taken, [of(1, 3), of(2, 5)], "only the newest of each");
        reports.note(StreamId(1), had(4), false);
        reports.note(StreamId(2), had(9), true);
        assert_eq!(reports.take().await, [of(1, 4), of(2, 9)]);
    }
}
