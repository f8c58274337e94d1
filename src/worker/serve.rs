//! The loop of the thread that owns the engine, and the threads that read links for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::WorkerError;
use super::beat::Beat;
use super::engine::{Engine, chain};
use super::schedule::{Next, POLL};
use super::sessions::{Outbox, Sessions};
use crate::proto::link::{AboutWorker, FromWorker, SessionNumber, ToWorker, ToWorkerFromParent, build_id};
use crate::sys::link::{Link, LinkError};

/// Messages that wait for the engine's thread; a peer that sends more waits itself.
const EVENTS_MAX: usize = 256;

/// What reader threads tell.
enum Event {
    Parent(Received<ToWorkerFromParent>),
    /// With the number of the api's link, so that words of an api that is gone are not mistaken for its successor's.
    Api(u32, Received<ToWorker>),
}

enum Received<T> {
    Message(T, Vec<OwnedFd>),
    Closed,
    Broken(LinkError),
}

/// The link to the api of the moment.
struct Api {
    link: Option<Link>,
    /// Raised with every new link.
    number: u32,
    greeted: bool,
}

impl Outbox for Api {
    fn send(&mut self, message: FromWorker, fd: Option<BorrowedFd<'_>>) {
        let Some(link) = &self.link else { return };
        if let Err(e) = link.send(&message, fd.as_slice()) {
            log::warn!("the api does not listen: {e}");
            self.link = None;
        }
    }
}

/// A worker that is ready.
pub(super) struct Server<E: Engine> {
    sessions: Sessions<E>,
    api: Api,
    about: AboutWorker,
    clock: Instant,
    events: Receiver<Event>,
    /// Kept for the readers of later links.
    sender: SyncSender<Event>,
    /// Sessions of an api that is gone, for the next one.
    kept: Vec<(SessionNumber, OwnedFd)>,
    beat: Beat,
    #[cfg(debug_assertions)]
    faults: super::fault::Faults,
}

/// Forwards every message of `link` until it ends or nobody listens.
fn spawn_reader<T: DeserializeOwned + Send + 'static>(
    name: &str,
    link: Link,
    sender: SyncSender<Event>,
    event: impl Fn(Received<T>) -> Event + Send + 'static,
) -> Result<(), WorkerError> {
    let read = move || {
        loop {
            let (received, last) = match link.recv() {
                Ok(Some((message, fds))) => (Received::Message(message, fds), false),
                Ok(None) => (Received::Closed, true),
                Err(e) => (Received::Broken(e), true),
            };
            if sender.send(event(received)).is_err() || last {
                return;
            }
        }
    };
    std::thread::Builder::new().name(name.to_string()).spawn(read).map(drop).map_err(WorkerError::Thread)
}

impl<E: Engine> Server<E> {
    /// Greets the api and starts to listen to both links. `cache`: the folder that it may write. Errors: no thread
    /// can be started.
    pub(super) fn new(
        sessions: Sessions<E>,
        (parent, api): (Link, Link),
        about: AboutWorker,
        clock: Instant,
        cache: PathBuf,
    ) -> Result<Server<E>, WorkerError> {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let beat = Beat::start(parent.clone()).map_err(WorkerError::Thread)?;
        spawn_reader("parent link", parent, sender.clone(), Event::Parent)?;
        let none = Api { link: None, number: 0, greeted: false };
        #[cfg(debug_assertions)]
        let faults = super::fault::Faults::new(cache);
        #[cfg(not(debug_assertions))]
        drop(cache);
        let kept = Vec::new();
        let mut server = Server {
            sessions,
            api: none,
            about,
            clock,
            events,
            sender,
            kept,
            beat,
            #[cfg(debug_assertions)]
            faults,
        };
        server.attach(api)?;
        Ok(server)
    }

    /// Talks to a new api from now on.
    fn attach(&mut self, link: Link) -> Result<(), WorkerError> {
        let number = self.api.number + 1;
        let reader = link.try_clone().map_err(WorkerError::Thread)?;
        spawn_reader("api link", reader, self.sender.clone(), move |received| Event::Api(number, received))?;
        self.api = Api { link: Some(link), number, greeted: false };
        let kept = std::mem::take(&mut self.kept);
        let about = AboutWorker { kept: kept.len() as u32, ..self.about.clone() };
        self.api.send(FromWorker::Hello { build: build_id(), about: Box::new(about) }, None);
        for (session, ring) in kept {
            self.api.send(FromWorker::Kept { session }, Some(ring.as_fd()));
        }
        Ok(())
    }

    /// Serves until it is drained or the parent is gone. Errors: what only another process can mend.
    pub(super) fn serve(mut self) -> Result<(), WorkerError> {
        let clock = self.clock;
        let now = || clock.elapsed();
        loop {
            // Whatever has arrived acts before the next frame.
            while let Ok(event) = self.events.try_recv() {
                self.act(event)?;
            }
            match self.sessions.next(now()) {
                Next::Done => return Ok(()),
                Next::Tick(session) => {
                    let _busy = self.beat.busy();
                    #[cfg(debug_assertions)]
                    self.faults.strike()?;
                    self.sessions.tick(session, &now, &mut self.api)?;
                }
                // Messages wait as long as shared memory does at the most.
                Next::Wait(time) if self.sessions.in_flight() => {
                    let _busy = self.beat.busy();
                    self.sessions.land(time.min(POLL), &now, &mut self.api)?;
                }
                Next::Wait(time) => self.wait(time)?,
                Next::Idle => self.wait(Duration::MAX)?,
            }
            self.sessions.report(now(), &mut self.api);
        }
    }

    /// Waits for a message, for `time`, or until statistics are due.
    fn wait(&mut self, time: Duration) -> Result<(), WorkerError> {
        let time = time.min(self.sessions.report_in(self.clock.elapsed()));
        match self.events.recv_timeout(time) {
            Ok(event) => self.act(event),
            // `sender` lives as long as this, so the channel cannot be closed.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(()),
        }
    }

    fn act(&mut self, event: Event) -> Result<(), WorkerError> {
        match event {
            Event::Parent(Received::Message(message, fds)) => self.parent_said(message, fds),
            Event::Parent(Received::Closed) => {
                log::info!("the parent is gone");
                self.drain()
            }
            Event::Parent(Received::Broken(source)) => Err(WorkerError::Link { peer: "parent", source }),
            Event::Api(number, _) if number != self.api.number => Ok(()),
            Event::Api(_, Received::Message(message, fds)) => self.api_said(message, fds),
            Event::Api(_, Received::Closed) => self.lose_api("it closed its link"),
            Event::Api(_, Received::Broken(e)) => self.lose_api(&chain(&e)),
        }
    }

    fn drain(&mut self) -> Result<(), WorkerError> {
        let clock = self.clock;
        Ok(self.sessions.drain(&|| clock.elapsed(), &mut self.api)?)
    }

    /// Without their api sessions have no viewer: they stop, and what is needed to go on is kept for the next one.
    fn lose_api(&mut self, why: &str) -> Result<(), WorkerError> {
        if !self.sessions.is_empty() {
            log::warn!("{} sessions wait for the next api: this one is gone: {why}", self.sessions.len());
        }
        if let Some(link) = self.api.link.take() {
            link.close();
        }
        let clock = self.clock;
        let kept = self.sessions.keep_all(&|| clock.elapsed(), &mut self.api)?;
        self.kept.extend(kept);
        Ok(())
    }

    fn parent_said(&mut self, message: ToWorkerFromParent, fds: Vec<OwnedFd>) -> Result<(), WorkerError> {
        match message {
            ToWorkerFromParent::NewApi => {
                let found = fds.len();
                let Some(fd) = fds.into_iter().next().filter(|_| found == 1) else {
                    let found = format!("{found} descriptors");
                    return Err(WorkerError::Protocol { peer: "parent", found, expected: "one link" });
                };
                self.lose_api("the parent started another one")?;
                self.attach(Link::from_fd(fd))
            }
            ToWorkerFromParent::Drain => {
                log::info!("draining: {} sessions leave a snapshot", self.sessions.len());
                self.drain()
            }
            ToWorkerFromParent::Start { .. } => {
                let found = "a second Start".to_string();
                Err(WorkerError::Protocol { peer: "parent", found, expected: "NewApi or Drain" })
            }
        }
    }

    fn api_said(&mut self, message: ToWorker, fds: Vec<OwnedFd>) -> Result<(), WorkerError> {
        match &message {
            ToWorker::Hello { build } if *build == build_id() => self.api.greeted = true,
            ToWorker::Hello { build } => {
                return Err(WorkerError::Build { peer: "api", found: build.clone(), ours: build_id() });
            }
            _ if !self.api.greeted => {
                let found = "something else first".to_string();
                return Err(WorkerError::Protocol { peer: "api", found, expected: "Hello" });
            }
            _ => {}
        }
        let clock = self.clock;
        let _busy = self.beat.busy();
        Ok(self.sessions.handle(message, fds, &|| clock.elapsed(), &mut self.api)?)
    }
}
