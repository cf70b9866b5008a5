//! The threads that carry bytes: one for each leg, which drives its QUIC and copies its streams.
//!
//! Between a program's socket and the wire a byte passes three tasks: the copy, the connection and the
//! endpoint. On one thread they hand it over by a queue; on several, each hand-over wakes a thread, which
//! cost an eighth of all processor time. The urgent leg has a thread of its own, so that nobody waits for
//! bulk to be encrypted; but links that peers dial share a socket, and with it bulk's thread.

use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::Instant as StdInstant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime as Driver, TokioRuntime};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use towpath_protocol::channel::Leg;
use towpath_protocol::fault::{Code, Fault};

use crate::quic::batch::Batched;

/// Tasks that run before a busy thread looks at its sockets again: a bulk task takes up to 100 us, and
/// the library's 61 of them would keep everybody else waiting for milliseconds.
const TASKS_PER_LOOK: u32 = 8;

/// The leg whose thread drives the connections that peers dial: one socket takes both legs, and bulk is
/// most of it.
const LISTENING: Leg = Leg::Bulk;

/// The threads; they end when this is dropped, and with them what runs there.
#[derive(Debug)]
pub(crate) struct Legs {
    urgent: Worker,
    bulk: Worker,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    /// The thread ends when this is dropped.
    _stop: oneshot::Sender<()>,
}

/// How QUIC runs on the threads: its sockets, its timers and its tasks belong there.
#[derive(Debug, Clone)]
pub(crate) struct Drivers {
    urgent: Arc<dyn Driver>,
    bulk: Arc<dyn Driver>,
}

impl Legs {
    /// Starts both threads.
    ///
    /// # Errors
    ///
    /// `E_IO` if no thread can be had.
    pub(crate) fn start() -> Result<Self, Fault> {
        let start = |name: &str| {
            Worker::start(name).map_err(|error| Fault::new(Code::Io, format!("threads: {error}")))
        };
        Ok(Self {
            urgent: start("urgent")?,
            bulk: start("bulk")?,
        })
    }

    /// Where the streams of a leg are copied.
    pub(crate) const fn handle(&self, leg: Leg) -> &Handle {
        match leg {
            Leg::Urgent => &self.urgent.handle,
            Leg::Bulk => &self.bulk.handle,
        }
    }

    /// The thread that drives a connection of a leg, by whether we dialled it, and that carries what a peer
    /// begins on it: what passes from one thread to another on the way waits to be woken.
    pub(crate) const fn driving(&self, leg: Leg, is_dialled: bool) -> &Handle {
        if is_dialled {
            self.handle(leg)
        } else {
            self.handle(LISTENING)
        }
    }

    /// Where QUIC runs.
    pub(crate) fn drivers(&self) -> Drivers {
        let driver = |thread: &Worker| Arc::new(On(thread.handle.clone()));
        Drivers {
            urgent: driver(&self.urgent),
            bulk: driver(&self.bulk),
        }
    }
}

impl Worker {
    fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .event_interval(TASKS_PER_LOOK)
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // It never gets a word: it ends with its sender.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            _stop: stop,
        })
    }
}

impl Drivers {
    /// Where a connection that we dial for a leg runs.
    pub(crate) fn dialling(&self, leg: Leg) -> Arc<dyn Driver> {
        Arc::clone(match leg {
            Leg::Urgent => &self.urgent,
            Leg::Bulk => &self.bulk,
        })
    }

    /// Where connections run that peers dial.
    pub(crate) fn listening(&self) -> Arc<dyn Driver> {
        self.dialling(LISTENING)
    }
}

/// Runs QUIC on a thread, whoever asks for it.
#[derive(Debug)]
struct On(Handle);

impl Driver for On {
    fn new_timer(&self, at: StdInstant) -> Pin<Box<dyn AsyncTimer>> {
        let _inside = self.0.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(task);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _inside = self.0.enter();
        let (socket, sweep) = Batched::new(TokioRuntime.wrap_udp_socket(socket)?);
        self.0.spawn(sweep);
        Ok(Arc::new(socket))
    }
}
