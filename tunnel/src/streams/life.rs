//! The life of a stream: it is copied over one carrier after another, and kept while it has none.
//!
//! ```text
//!                  link lost                    no carrier for too long
//!   Carried ─────────────────────► Apart ───────────────────────────────► Cut
//!    │ ▲  │                          │                                      ▲
//!    │ │  └─ a newer link ─► Resume ◄┘ next link: the side that began it    │
//!    │ └──── Resumed ──────────┘                                            │
//!    └──────────── a program or the peer ends it, or has forgotten it ──────┘
//! ```

mod vain;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::preamble::{LinkId, Preamble, Received, Resume};

use crate::core::Core;
use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::quic::wire;
use crate::streams::carrier::{Carrier, MOVED};
use crate::streams::local::Begun;
use crate::streams::pump::{self, Break, CopyState, Settings};
use crate::streams::seats::SeatUse;
use crate::streams::table::{Call, End, Entry, Stream};
use vain::Vain;

/// How long a peer may take to answer a `Resume`: a few round trips, with losses.
const RESUME_WAIT: Duration = Duration::from_secs(10);

/// Pause before resuming is tried again on a link that gave no answer.
const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// Carries a stream until it ends, and tells the peer how it ended.
///
/// # Errors
///
/// Why the stream was cut off.
pub(crate) fn live(
    core: &Core,
    begun: Begun,
    mut local: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
) -> impl Future<Output = Result<(), Fault>> {
    let Begun {
        peer,
        mut entry,
        mut carrier,
    } = begun;
    let stream = Arc::clone(&entry.stream);
    let settings = Settings {
        pool: Arc::clone(&core.pool),
        stall: core.stall(),
        is_patient: stream.seat_use == SeatUse::Application,
        tail_bytes: core.limits.resume_tail.bytes(),
    };
    let outage = core.limits.outage_wait.duration();
    // Not an `async fn`: its future would store the arguments twice, as passed and as bound.
    async move {
        let life = Life {
            peer: &peer,
            stream: &stream,
            settings: &settings,
            outage,
        };
        let mut flow = CopyState::default();
        let ended = life
            .to_the_end(&mut entry, &mut flow, &mut carrier, &mut local)
            .await;
        if let Err(fault) = &ended {
            carrier.cut(wire::code(fault.code));
        }
        entry.end(match &ended {
            Ok(heard_over) => End::Whole(flow.received(), *heard_over),
            Err(fault) => End::Cut(fault.clone()),
        });
        ended.map(drop)
    }
}

/// A new carrier, and how much the peer had received when it began.
type Next = (Carrier, Received);

/// Why copying over a carrier stopped.
enum Step {
    Ended(Result<(), Fault>),
    /// The peer resumes over another carrier.
    Called(Next),
    Apart,
}

/// Why a stream without a carrier ends.
enum Unfound {
    /// Lost to an outage.
    Lost(Fault),
    /// Ended by a program or with its host, as it could have been over a link.
    Ended(Fault),
}

impl Unfound {
    /// Classifies the peer's refusal of a `Resume`.
    fn told(fault: Fault) -> Self {
        match fault.code {
            Code::NotFound => Self::Lost(fault),
            _ => Self::Ended(fault),
        }
    }
}

struct Life<'a> {
    peer: &'a Peer,
    stream: &'a Stream,
    settings: &'a Settings,
    /// How long the stream may be without a carrier.
    outage: Duration,
}

impl Life<'_> {
    /// Carries the stream over one carrier after another. Returns the link that has carried the end
    /// of the stream to the peer, if that link is still well.
    async fn to_the_end(
        &self,
        entry: &mut Entry,
        flow: &mut CopyState,
        carrier: &mut Carrier,
        local: &mut (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    ) -> Result<Option<LinkId>, Fault> {
        let mut vain = Vain::new(Instant::now());
        loop {
            vain.begin(Instant::now(), self.carried_bytes(flow));
            let step = self.carried(entry, flow, carrier, local).await;
            let is_link_well = !carrier.link.is_retired() && !carrier.link.is_ill();
            vain.end(Instant::now(), self.carried_bytes(flow), is_link_well);
            let answered = match step {
                Step::Ended(ended) => {
                    return ended.map(|()| is_link_well.then_some(carrier.link.id));
                }
                Step::Called(next) => {
                    let answered = Box::pin(self.answered(flow, &vain, next)).await;
                    if answered.is_none() {
                        // Nobody reads from this carrier any more; cutting it makes the peer ask
                        // again.
                        carrier.cut(MOVED);
                    }
                    answered
                }
                Step::Apart => None,
            };
            let next = match answered {
                Some(next) => next,
                None => {
                    // Boxed: this future is rare and large, and would make every stream's task as
                    // large.
                    let apart = Box::pin(self.apart(entry, flow, (carrier, &vain), local));
                    let Some(next) = apart.await? else {
                        return Ok(None);
                    };
                    next
                }
            };
            *carrier = self.go_on(flow, next)?;
        }
    }

    /// Bytes the peer has acknowledged plus bytes received.
    fn carried_bytes(&self, flow: &CopyState) -> u64 {
        self.stream.out().acknowledged() + flow.received().bytes
    }

    /// Accepts the carrier that the peer offers; `None` if it is gone before our answer.
    async fn answered(
        &self,
        flow: &CopyState,
        vain: &Vain,
        (mut next, theirs): Next,
    ) -> Option<Next> {
        if let Some(pause) = vain.pause() {
            sleep(pause).await;
        }
        let answered = answer(&mut next, flow.received()).await;
        answered.ok().map(|()| (next, theirs))
    }

    /// Copies over a carrier until the stream ends, is called, or loses the carrier.
    async fn carried(
        &self,
        entry: &mut Entry,
        flow: &mut CopyState,
        carrier: &mut Carrier,
        (read, write): &mut (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    ) -> Step {
        let link = Arc::clone(&carrier.link);
        let call = {
            let copying = pump::run((read, write), flow, carrier, self.stream, self.settings);
            tokio::pin!(copying);
            loop {
                let call = tokio::select! {
                    ended = &mut copying => return match ended {
                        Ok(()) => Step::Ended(Ok(())),
                        Err(Break::Cut(fault)) => Step::Ended(Err(fault)),
                        Err(Break::Lost) => Step::Apart,
                    },
                    Some(call) = entry.calls.recv() => call,
                    () = self.peer.replaced(&link), if self.stream.is_ours => return Step::Apart,
                };
                if !call.is_late_beside(&link) {
                    break call;
                }
            }
        };
        match *call {
            Call::Cut(fault) => Step::Ended(Err(fault)),
            Call::Resume(next, theirs) => Step::Called((*next, theirs)),
        }
    }

    /// Waits for another carrier. Returns `None` if everything had been carried already.
    async fn apart(
        &self,
        entry: &mut Entry,
        flow: &mut CopyState,
        (carrier, vain): (&mut Carrier, &Vain),
        (read, write): &mut (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    ) -> Result<Option<Next>, Fault> {
        let received = flow.received();
        let streams = &self.peer.streams;
        let lost = &Arc::clone(&carrier.link);
        let around = (self.stream, &**streams, &**lost);
        let copying = pump::run_apart((read, write), flow, around, self.settings);
        let finding = async {
            if let Some(pause) = vain.pause() {
                sleep(pause).await;
            }
            self.find(entry, lost, received).await
        };
        let silence = lost.silence().unwrap_or_default();
        let waited = vain.lasts(Instant::now()).max(silence);
        let left = self.outage.saturating_sub(waited);
        let found = tokio::select! {
            ended = copying => return ended.map(|()| None),
            found = timeout(left, finding) => found,
            never = emptied_at_end(carrier) => match never {},
        };
        let found = found.unwrap_or_else(|_| {
            let (site, outage) = (&self.peer.site, self.outage);
            let detail = match vain.pause() {
                Some(_) => format!("{site} has carried nothing of the stream for {outage:?}"),
                None => format!("no link to {site} for {outage:?}"),
            };
            Err(Unfound::Lost(Fault::new(Code::Unreachable, detail)))
        });
        match found {
            Ok(next) => Ok(Some(next)),
            Err(Unfound::Ended(fault)) => Err(fault),
            Err(Unfound::Lost(fault)) => {
                streams.tally.lost.fetch_add(1, Ordering::Relaxed);
                Err(fault)
            }
        }
    }

    async fn find(
        &self,
        entry: &mut Entry,
        lost: &Arc<Link>,
        received: Received,
    ) -> Result<Next, Unfound> {
        tokio::select! {
            // A call that has arrived tells more about the end than the loss of the link.
            biased;
            next = self.called(entry, received) => next.map_err(Unfound::Ended),
            () = lost.farewell() => {
                let detail = format!("the tunnel of {} stopped", lost.peer);
                Err(Unfound::Lost(Fault::new(Code::Gone, detail)))
            }
            next = self.resumed(lost, received) => next,
        }
    }

    /// Waits for the peer to resume the stream; answers it.
    async fn called(&self, entry: &mut Entry, received: Received) -> Result<Next, Fault> {
        while let Some(call) = entry.calls.recv().await {
            match *call {
                Call::Cut(fault) => return Err(fault),
                Call::Resume(mut next, theirs) => {
                    if answer(&mut next, received).await.is_ok() {
                        return Ok((*next, theirs));
                    }
                }
            }
        }
        Err(Fault::new(Code::State, "nobody knows this stream any more"))
    }

    /// Resumes on the next link, if this side began the stream. Also notices a peer that has
    /// restarted and so has forgotten the stream.
    async fn resumed(&self, lost: &Arc<Link>, received: Received) -> Result<Next, Unfound> {
        // The link not worth asking: the last one tried. Only that one, since an older link may
        // become current again at any time. A lost link that is still well may be asked: only the
        // stream was given up there.
        let mut tried = lost.is_ill().then(|| Arc::clone(lost));
        loop {
            let link = self.peer.link_beside(tried.as_ref()).await;
            if link.party() != self.stream.party {
                let (host, site) = (&link.peer, &self.peer.site);
                let detail =
                    format!("{host} is the tunnel of {site} now, and knows no such stream");
                return Err(Unfound::Lost(Fault::new(Code::Gone, detail)));
            }
            if !self.stream.is_ours {
                tried = Some(link);
                continue;
            }
            let asked = timeout(RESUME_WAIT, self.ask(&link, received));
            let asked = tokio::select! {
                asked = asked => asked,
                () = self.peer.replaced(&link) => {
                    tried = Some(link);
                    continue;
                }
            };
            match asked {
                Ok(Ok(next)) => return Ok(next),
                Ok(Err(Break::Cut(fault))) => return Err(Unfound::told(fault)),
                Ok(Err(Break::Lost)) if link.is_over() => tried = Some(link),
                // The link is up but carried no answer: ask again on whatever link is current then.
                Ok(Err(Break::Lost)) | Err(_) => {
                    sleep(RESUME_PAUSE).await;
                    tried = None;
                }
            }
        }
    }

    /// Asks the peer to resume over a link.
    async fn ask(&self, link: &Arc<Link>, received: Received) -> Result<Next, Break> {
        let class = self.stream.class;
        let opening = link.connection(class.leg()).open_bi();
        let mut carrier = Carrier::new(link, class.leg(), opening.await.map_err(|_| Break::Lost)?);
        // Fails only if the QUIC stream is gone, and then the write below fails as well.
        let _ = carrier.send.set_priority(class.priority());
        let resume = Preamble::Resume(Resume {
            stream: self.stream.id,
            received,
        });
        let lost = |_| Break::Lost;
        wire::write(&mut carrier.send, &resume)
            .await
            .map_err(lost)?;
        let answer = wire::read(&mut carrier.recv, RESUME_WAIT).await;
        match answer.map_err(lost)? {
            Preamble::Resumed(theirs) => Ok((carrier, theirs)),
            // The peer refused because the link is not joined yet, so it does not know us by it.
            Preamble::Refused(_) if !link.is_joined() => Err(Break::Lost),
            Preamble::Refused(fault) => Err(Break::Cut(fault)),
            other => {
                let detail = format!("{} in answer to Resume", other.name());
                Err(Break::Cut(Fault::new(Code::Unexpected, detail)))
            }
        }
    }

    /// Switches to another carrier and rewinds to what the peer has received.
    fn go_on(&self, flow: &mut CopyState, (carrier, theirs): Next) -> Result<Carrier, Fault> {
        let again_bytes = flow.rewind(self.stream, theirs)?;
        let tally = &self.peer.streams.tally;
        tally.resumed.fetch_add(1, Ordering::Relaxed);
        tally.resent_bytes.fetch_add(again_bytes, Ordering::Relaxed);
        let (stream, service) = (self.stream.id, &self.stream.service);
        tracing::debug!(%stream, %service, again_bytes, "stream goes on");
        Ok(carrier)
    }
}

/// Discards a carrier that nobody reads any more as soon as its link is over; never returns. Quinn
/// keeps the bytes received for a stream while a handle of the connection lives, and a stream may
/// be without a carrier for a whole outage. A peer that ends one link after another would otherwise
/// make us keep a full window of each (T06).
async fn emptied_at_end(carrier: &mut Carrier) -> Infallible {
    carrier.link.over().await;
    carrier.cut(MOVED);
    std::future::pending().await
}

/// Answers a peer that resumes a stream.
async fn answer(carrier: &mut Carrier, received: Received) -> Result<(), Fault> {
    wire::write(&mut carrier.send, &Preamble::Resumed(received)).await
}
