//! The link to the worker: one thread reads it, one writes it, so that nobody who holds a lock ever waits for a peer.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};

use super::hub::Hub;
use super::refusal::chain;
use crate::frame::RingReader;
use crate::proto::api::WorkerStats;
use crate::proto::link::{AboutWorker, FromWorker, SessionNumber, ToWorker, build_id};
use crate::sys::link::Link;

/// A message to a worker with the descriptors that go along.
pub struct Order {
    pub message: ToWorker,
    pub fds: Vec<OwnedFd>,
}

impl From<ToWorker> for Order {
    fn from(message: ToWorker) -> Order {
        Order { message, fds: Vec::new() }
    }
}

/// A worker that said hello.
pub struct Worker {
    /// The parent's count of workers.
    pub generation: u32,
    /// Its process, as the parent sees it.
    pub pid: u32,
    pub about: AboutWorker,
    pub stats: WorkerStats,
    orders: mpsc::Sender<Order>,
}

impl Worker {
    /// Queues a message. If the worker is gone, its end of the link says so to the thread that reads.
    pub fn order(&self, order: impl Into<Order>) {
        let _ = self.orders.send(order.into());
    }
}

/// Starts to talk with worker `generation`, which is process `pid`, over `link`.
pub fn attach(hub: Arc<Hub>, generation: u32, pid: u32, link: Link) -> std::io::Result<()> {
    let writer = link.try_clone()?;
    let (orders, queue) = mpsc::channel::<Order>();
    let hello = Order::from(ToWorker::Hello { build: build_id() });
    orders.send(hello).map_err(|_| std::io::Error::other("the queue was just made"))?;
    std::thread::Builder::new().name(format!("to worker {generation}")).spawn(move || write(&writer, &queue))?;
    std::thread::Builder::new().name(format!("worker {generation}")).spawn(move || {
        let reason = read(&hub, (generation, pid), &link, orders);
        hub.worker_down(generation, &reason, true);
    })?;
    Ok(())
}

fn write(link: &Link, queue: &mpsc::Receiver<Order>) {
    while let Ok(order) = queue.recv() {
        let fds: Vec<_> = order.fds.iter().map(AsFd::as_fd).collect();
        if let Err(e) = link.send(&order.message, &fds) {
            log::debug!("the worker does not listen: {e}");
            return;
        }
    }
}

/// Reads until the link ends. Answers why it ended.
fn read(hub: &Hub, (generation, pid): (u32, u32), link: &Link, orders: mpsc::Sender<Order>) -> String {
    let mut orders = Some(orders);
    loop {
        let (message, mut fds) = match link.recv::<FromWorker>() {
            Ok(Some(received)) => received,
            Ok(None) => return "the worker stopped".to_string(),
            Err(e) => return chain(&e),
        };
        match (message, orders.take()) {
            (FromWorker::Hello { build, about }, Some(orders)) if build == build_id() => {
                if let Err(why) = take_kept(hub, link, about.kept) {
                    return why;
                }
                hub.worker_up(Worker { generation, pid, about: *about, stats: WorkerStats::default(), orders });
            }
            (FromWorker::Hello { build, .. }, Some(_)) => {
                return format!("the worker is of another build ({build}, this is {})", build_id());
            }
            (_, Some(_)) => return "the worker did not say hello".to_string(),
            (FromWorker::Hello { .. }, None) => return "the worker said hello twice".to_string(),
            (FromWorker::Kept { .. }, None) => return "the worker kept more sessions than it said".to_string(),
            (message, None) => hub.worker_says(generation, message, fds.pop()),
        }
    }
}

/// Takes the sessions that a worker kept for this api before any of them is opened. Errors: why the link is no good.
fn take_kept(hub: &Hub, link: &Link, count: u32) -> Result<(), String> {
    for _ in 0..count {
        match link.recv::<FromWorker>() {
            Ok(Some((FromWorker::Kept { session }, mut fds))) => kept(hub, session, fds.pop()),
            Ok(Some(_)) => return Err("the worker kept fewer sessions than it said".to_string()),
            Ok(None) => return Err("the worker stopped".to_string()),
            Err(e) => return Err(chain(&e)),
        }
    }
    Ok(())
}

fn kept(hub: &Hub, number: SessionNumber, fd: Option<OwnedFd>) {
    let ring = fd.and_then(|fd| Some((RingReader::open(fd.try_clone().ok()?).ok()?, fd)));
    match (hub.by_number(number), ring) {
        (Some(session), Some((ring, fd)))
            if (ring.width(), ring.height()) == (session.spec.width, session.spec.height) =>
        {
            session.opened(Arc::new(fd));
        }
        (Some(session), _) => log::warn!("session {}: what the worker kept is not its ring", session.spec.id),
        (None, _) => log::debug!("the worker kept session {number}, which nobody wrote down"),
    }
}
