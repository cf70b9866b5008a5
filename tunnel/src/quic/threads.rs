//! The two threads that carry bytes: one per leg, each driving its leg's QUIC and copying its
//! streams.
//!
//! Between a program's socket and the wire, a byte passes three tasks: the copy, the connection and
//! the endpoint. On one thread they pass it on through a queue; across threads, each hand-over
//! wakes another thread, which cost an eighth of all processor time. The urgent leg has its own
//! thread, so that nothing urgent waits while bulk is encrypted. Links that peers dial are the
//! exception: both legs share one socket, and with it the bulk thread.

use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime as Driver, TokioRuntime};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use towpath_protocol::class::{Leg, PerLeg};
use towpath_protocol::fault::{Code, Fault};

use crate::quic::batch::Batched;

/// Tasks that a busy thread runs before it polls its sockets again. A bulk task takes up to 100 us,
/// so tokio's default of 61 would delay everything else by milliseconds.
const TASKS_PER_LOOK: u32 = 8;

/// The leg whose thread drives connections dialled by peers: both legs arrive at one socket, and
/// most of their traffic is bulk.
const LISTENING: Leg = Leg::Bulk;

/// The two threads; dropping this ends them and everything that runs there.
#[derive(Debug)]
pub(crate) struct Legs {
    workers: PerLeg<Worker>,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    /// The thread ends when this is dropped.
    _stop: oneshot::Sender<()>,
}

/// Runs QUIC's sockets, timers and tasks on the threads.
#[derive(Debug, Clone)]
pub(crate) struct Drivers(PerLeg<Arc<dyn Driver>>);

impl Legs {
    /// Starts both threads.
    ///
    /// # Errors
    ///
    /// `E_IO` if a thread cannot be started.
    pub(crate) fn start() -> Result<Self, Fault> {
        let start = |leg: Leg| {
            Worker::start(leg.as_str())
                .map_err(|error| Fault::new(Code::Io, format!("threads: {error}")))
        };
        let workers = PerLeg {
            urgent: start(Leg::Urgent)?,
            bulk: start(Leg::Bulk)?,
        };
        Ok(Self { workers })
    }

    /// The thread that copies a leg's streams.
    pub(crate) fn handle(&self, leg: Leg) -> &Handle {
        &self.workers[leg].handle
    }

    /// The thread that drives a connection of a leg, by whether we dialled it. Streams that a peer
    /// begins on it are carried there too, since every hand-over to another thread waits for a
    /// wake-up.
    pub(crate) fn driving(&self, leg: Leg, is_dialled: bool) -> &Handle {
        if is_dialled {
            self.handle(leg)
        } else {
            self.handle(LISTENING)
        }
    }

    /// Returns the drivers that run QUIC on these threads.
    pub(crate) fn drivers(&self) -> Drivers {
        let workers = self.workers.each_ref();
        Drivers(workers.map(|worker| Arc::new(On(worker.handle.clone())) as Arc<dyn Driver>))
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
                // Nothing is ever sent: this returns when the sender is dropped.
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
    /// The driver of a connection that we dial for a leg.
    pub(crate) fn dialling(&self, leg: Leg) -> Arc<dyn Driver> {
        Arc::clone(&self.0[leg])
    }

    /// The driver of connections that peers dial.
    pub(crate) fn listening(&self) -> Arc<dyn Driver> {
        self.dialling(LISTENING)
    }
}

/// Runs QUIC on one thread, whichever thread calls.
#[derive(Debug)]
struct On(Handle);

impl Driver for On {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
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
