//! Streams that peers open: checked, handed to the local service, copied.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota};
use quinn::{Connection, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use towpath_certs::view;
use towpath_daemon::stream::make_room;
use towpath_protocol::channel::{Accepted, Leg, Open, Preamble};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;

use crate::core::{Core, Service};
use crate::link::Link;
use crate::{pump, wire};

/// New streams per second a peer may open; a move opens four, an application a few per request.
const STREAMS_PER_SECOND: NonZeroU32 = NonZeroU32::new(200).expect("not zero");

/// Streams without whole first words after which a peer loses its link (T16).
const STRIKE_COUNT_MAX: u32 = 3;

/// How long a local service may take to accept: it is on this host.
const SERVICE_WAIT: Duration = Duration::from_secs(2);

/// Who a connection's other end has proved to be.
///
/// # Errors
///
/// `E_CERTIFICATE` if the certificate names no host, which the verifier would not have let pass.
pub(crate) fn identity_of(connection: &Connection) -> Result<HostIdentity, Fault> {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_deref().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Fault::new(Code::Certificate, "the peer shows none"))?;
    view::identity_of(leaf)
}

/// Accepts a link's streams until it is over.
pub(crate) fn accept(core: &Arc<Core>, link: &Arc<Link>) {
    let strikes = Arc::new(AtomicU32::new(0));
    let rate = Arc::new(DefaultDirectRateLimiter::direct(Quota::per_second(
        STREAMS_PER_SECOND,
    )));
    for leg in [Leg::Urgent, Leg::Bulk] {
        let (core, link) = (Arc::clone(core), Arc::clone(link));
        let (strikes, rate) = (Arc::clone(&strikes), Arc::clone(&rate));
        tokio::spawn(async move {
            while let Ok((send, recv)) = link.connection(leg).accept_bi().await {
                // Waiting here holds the peer's next streams back, at its own expense.
                rate.until_ready().await;
                let (core, link) = (Arc::clone(&core), Arc::clone(&link));
                let strikes = Arc::clone(&strikes);
                let copiers = core.copiers.handle().clone();
                copiers.spawn(async move {
                    serve(&core, &link, leg, (send, recv), &strikes).await;
                });
            }
        });
    }
}

async fn serve(
    core: &Core,
    link: &Link,
    leg: Leg,
    (mut send, mut recv): (SendStream, RecvStream),
    strikes: &AtomicU32,
) {
    let open = match read_open(core, leg, &mut recv).await {
        Ok(open) => open,
        Err(fault) => {
            let code = wire::code(fault.code);
            // Fails only on a stream that is already over.
            let _ = send.reset(code);
            let _ = recv.stop(code);
            let count = strikes.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::warn!(target: "audit", peer = %link.peer, %fault, count, "stream refused");
            if count >= STRIKE_COUNT_MAX {
                link.close(fault.code, "too many streams without whole first words");
            }
            return;
        }
    };
    let mut local = match reach(core, link, &open).await {
        Ok(local) => local,
        Err(fault) => {
            refuse(&mut send, fault).await;
            return;
        }
    };
    let opened = Preamble::Opened(core.trust.host().clone());
    if wire::write(&mut send, &opened).await.is_err() {
        return;
    }
    let class = open.class;
    // Fails only on a stream that is already over.
    let _ = send.set_priority(class.priority());
    let _open = link.open_stream();
    let limits = (&core.pool, core.stall());
    if let Err(fault) = pump::run(&mut local, send, recv, link, class, limits).await {
        let service = &open.service;
        tracing::debug!(peer = %link.peer, %service, %class, %fault, "stream cut off");
    }
}

async fn read_open(core: &Core, leg: Leg, recv: &mut RecvStream) -> Result<Open, Fault> {
    match wire::read(recv, core.preamble_wait()).await? {
        Preamble::Open(open) if open.class.leg() == leg => Ok(open),
        other => {
            let detail = format!("{} on a {} stream", other.name(), leg.as_str());
            Err(Fault::new(Code::Unexpected, detail))
        }
    }
}

/// Connects to the service a peer asks for, if it may (T15).
async fn reach(core: &Core, link: &Link, open: &Open) -> Result<UnixStream, Fault> {
    let (peer, service, site) = (&link.peer, &open.service, &open.peer);
    let denied = |why: &str| {
        tracing::warn!(target: "audit", %peer, %service, why, "service denied");
        // The peer is not told whether the service exists.
        Fault::new(
            Code::Denied,
            format!("{peer} may not use {service} at {site}"),
        )
    };
    if *site != core.site {
        return Err(denied("asked for another site"));
    }
    let Some(Service { socket, allow }) = core.services.get(service) else {
        return Err(denied("no such service"));
    };
    if !allow.contains(&peer.site) {
        return Err(denied("its site is not allowed"));
    }
    let accepted = Preamble::Accepted(Accepted {
        peer: peer.clone(),
        service: service.clone(),
        class: open.class,
    });
    let connecting = async {
        let mut local = UnixStream::connect(socket).await?;
        make_room(&local, open.class);
        local.write_all(&accepted.encode()).await?;
        Ok::<_, std::io::Error>(local)
    };
    let failed = |why: String| {
        tracing::warn!(%service, socket = %socket.display(), why, "service not reached");
        Fault::new(
            Code::Unreachable,
            format!("service {service} at {site}: {why}"),
        )
    };
    timeout(SERVICE_WAIT, connecting)
        .await
        .map_err(|_| failed("does not accept".to_owned()))?
        .map_err(|error| failed(error.to_string()))
}

async fn refuse(send: &mut SendStream, fault: Fault) {
    // The peer may have gone, and then nobody wants the answer.
    let _ = wire::write(send, &Preamble::Refused(fault)).await;
    let _ = send.finish();
}
