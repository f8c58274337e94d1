//! The poll loop: signals, links, log pipes and time go in; processes are started, told and ended.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::child::RoleProcess;
use super::decoders::Decoders;
use super::detach::Waiting;
use super::prepare::Prepared;
use super::supervise::{Action, End, Event, Phase, Supervised, step};
use super::watchdog::Watchdog;
use super::{Args, start_log, upgrade};
use crate::config;
use crate::exit::{Exit, chain};
use crate::proto::link::{FromApi, FromWorkerToParent, ToApi, ToWorkerFromParent, build_id};
use crate::sys::link::Link;
use crate::sys::sandbox::{Role, cache_directory};
use crate::sys::signals::{Signals, release};

/// How long the api may take to answer requests.
const API_START_LIMIT: Duration = Duration::from_secs(20);
/// How long a worker may take to load its model: software devices compile for minutes when their cache is cold.
const WORKER_START_LIMIT: Duration = Duration::from_secs(600);
/// The loop looks around at least this often, whatever it waits for.
const POLL_LIMIT: Duration = Duration::from_secs(10);

/// A role's state and its process, if it has one.
struct Place {
    state: Supervised,
    process: Option<RoleProcess>,
}

/// The running parent.
pub struct Parent {
    prepared: Prepared,
    args: Args,
    config_path: Option<PathBuf>,
    program: PathBuf,
    waiting: Option<Waiting>,
    started: Instant,
    signals: Signals,
    api: Place,
    worker: Place,
    /// What was heard of the worker that runs.
    watchdog: Watchdog,
    /// True from SIGUSR2 until another program takes over, see [`upgrade`].
    upgrading: bool,
    /// Counts the workers that were started.
    generation: u32,
    /// Set once the daemon is to end, with its exit code.
    ending: Option<Exit>,
    decoders: Decoders,
    #[cfg(target_os = "freebsd")]
    jail: Option<crate::sys::sandbox::Jail>,
    #[cfg(target_os = "linux")]
    group: Option<crate::sys::sandbox::Group>,
}

/// What a message or its absence means.
enum Heard {
    Ready(String),
    /// A sign of life, with the milliseconds that the worker has been at one piece of work.
    Alive(u32),
    Closed,
    Wrong(String),
    /// The api wants a decoder that speaks on this end of a link.
    Decoder(std::os::fd::OwnedFd),
}

impl Parent {
    /// Catches the signals. Errors: what that returns.
    pub fn new(
        prepared: Prepared,
        args: Args,
        config_path: Option<PathBuf>,
        program: PathBuf,
        waiting: Option<Waiting>,
    ) -> io::Result<Parent> {
        let caught = [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGCHLD,
            // Ctrl-T on a terminal.
            #[cfg(target_os = "freebsd")]
            Signal::SIGINFO,
        ];
        let place = |limit| Place { state: Supervised::new(limit), process: None };
        let signals = Signals::install(&caught)?;
        // A program that replaced another one begins with signals held back.
        release()?;
        Ok(Parent {
            prepared,
            args,
            config_path,
            program,
            waiting,
            started: Instant::now(),
            signals,
            api: place(API_START_LIMIT),
            worker: place(WORKER_START_LIMIT),
            watchdog: Watchdog::default(),
            upgrading: false,
            generation: 0,
            ending: None,
            decoders: Decoders::default(),
            #[cfg(target_os = "freebsd")]
            jail: None,
            #[cfg(target_os = "linux")]
            group: None,
        })
    }

    /// Runs until both roles have ended and none is wanted.
    pub fn run(mut self) -> Exit {
        log::info!("gamegend {} starts as process {}", env!("CARGO_PKG_VERSION"), std::process::id());
        self.event(Role::Api, Event::Start);
        self.event(Role::Worker, Event::Start);
        loop {
            if let Some(exit) = self.ending
                && !self.api.state.is_running()
                && !self.worker.state.is_running()
            {
                log::info!("gamegend ends");
                if let Some(waiting) = self.waiting.take() {
                    waiting.tell(exit, "the daemon did not start; the system log says why");
                }
                return exit;
            }
            self.wait();
            for signal in self.signals.take() {
                self.on_signal(signal);
            }
            for role in [Role::Api, Role::Worker] {
                self.look_after(role);
            }
            self.decoders.look_after();
            self.watch();
            self.end_in_order();
            self.upgrade_in_order();
        }
    }

    fn place(&mut self, role: Role) -> &mut Place {
        match role {
            Role::Api => &mut self.api,
            // A decoder has no place of its own and no table: `decoders` keeps it.
            Role::Worker | Role::Decoder => &mut self.worker,
        }
    }

    /// Waits until something can be read or a deadline passes.
    fn wait(&self) {
        let now = self.started.elapsed();
        let deadlines = [&self.api, &self.worker].into_iter().filter_map(|p| p.state.deadline());
        let deadlines = deadlines.chain(self.watchdog.deadline());
        let rest = deadlines.map(|d| d.saturating_sub(now)).fold(POLL_LIMIT, Duration::min);
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        for process in [&self.api, &self.worker].into_iter().filter_map(|p| p.process.as_ref()) {
            fds.push(PollFd::new(process.log_fd(), PollFlags::POLLIN));
            if process.link_open {
                fds.push(PollFd::new(process.link.as_fd(), PollFlags::POLLIN));
            }
        }
        let rest = self.decoders.rest(Instant::now()).map_or(rest, |d| rest.min(d));
        // Rounded up, so that a deadline has passed when the wait ends. An interrupted wait is one that ended early.
        let milliseconds = rest.as_millis() as u16 + 1;
        if let Err(e) = poll(&mut fds, PollTimeout::from(milliseconds))
            && e != nix::errno::Errno::EINTR
        {
            log::error!("poll: {e}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn on_signal(&mut self, signal: Signal) {
        match signal {
            Signal::SIGTERM | Signal::SIGINT if self.ending.is_some() => {
                log::warn!("{signal} again: the roles are killed");
                for place in [&mut self.api, &mut self.worker] {
                    if let Some(process) = &mut place.process {
                        process.kill();
                    }
                }
            }
            Signal::SIGTERM | Signal::SIGINT => {
                log::info!("{signal}: the daemon finishes what is stored and ends");
                self.end(Exit::Ok);
            }
            Signal::SIGHUP => self.reload(),
            Signal::SIGUSR2 => self.upgrade(),
            Signal::SIGUSR1 => self.tell(),
            #[cfg(target_os = "freebsd")]
            Signal::SIGINFO => self.tell(),
            // A child's end is looked for in every round.
            _ => {}
        }
    }

    /// Writes to the log how things are.
    fn tell(&self) {
        let role = |place: &Place| {
            let process = place.process.as_ref().map_or(String::new(), |p| format!(" as process {}", p.pid()));
            format!("{}{process}", place.state.phase)
        };
        let seconds = self.started.elapsed().as_secs();
        let (api, worker) = (role(&self.api), role(&self.worker));
        log::info!("up for {seconds} s; api {api}; worker {worker}; {} decoders", self.decoders.count());
    }

    /// Begins the end: the api first, which needs the worker to finish what is stored.
    fn end(&mut self, exit: Exit) {
        if self.ending.is_none() {
            self.upgrading = false;
            self.ending = Some(exit);
            self.event(Role::Api, Event::Stop);
        }
    }

    /// Once the api is gone nobody needs the worker.
    fn end_in_order(&mut self) {
        let worker_wanted = !matches!(
            self.worker.state.phase,
            Phase::Down | Phase::Failed { .. } | Phase::Draining { again: false, .. }
        );
        if self.ending.is_some() && !self.api.state.is_running() && worker_wanted {
            self.event(Role::Worker, Event::Stop);
        }
    }

    /// Kills a worker that is ready and hangs.
    fn watch(&mut self) {
        let now = self.started.elapsed();
        let limit = Duration::from_secs(self.prepared.config.worker.hang_seconds);
        let verdict = self.watchdog.verdict(now, limit);
        if let (Phase::Up, Some(why)) = (self.worker.state.phase, verdict) {
            log::error!("worker hangs: {why}");
            self.watchdog = Watchdog::default();
            self.event(Role::Worker, Event::Hung);
        }
    }

    /// Lets the program that now lies at this one's path take over, if it can run.
    fn upgrade(&mut self) {
        if self.ending.is_some() || self.upgrading {
            return;
        }
        if let Err(why) = upgrade::check(&self.program, self.config_path.as_deref()) {
            return log::error!("upgrade: {why}; this program goes on");
        }
        log::info!("upgrade: sessions are written down, then {} takes over", self.program.display());
        self.upgrading = true;
        self.event(Role::Worker, Event::Stop);
    }

    /// The worker leaves its snapshots, then the api writes them down, then this process is another program.
    fn upgrade_in_order(&mut self) {
        if !self.upgrading || self.ending.is_some() || self.worker.state.is_running() {
            return;
        }
        if self.api.state.is_running() {
            if !matches!(self.api.state.phase, Phase::Draining { again: false, .. }) {
                self.event(Role::Api, Event::Stop);
            }
            return;
        }
        #[cfg(target_os = "freebsd")]
        {
            self.jail = None;
        }
        #[cfg(target_os = "linux")]
        {
            self.group = None;
        }
        let error = upgrade::exec(&self.program, &self.args, self.config_path.as_deref(), &self.prepared);
        log::error!("upgrade: {}: {error}; this program goes on", self.program.display());
        self.upgrading = false;
        self.event(Role::Api, Event::Start);
        self.event(Role::Worker, Event::Start);
    }

    /// Log lines, messages, the end of the process, deadlines.
    fn look_after(&mut self, role: Role) {
        // The real port, also where the configuration says 0.
        let address = self.prepared.http.local_addr().unwrap_or(self.prepared.config.http.listen);
        let place = self.place(role);
        let (mut events, mut beats, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(process) = &mut place.process {
            process.relay_log();
            process.keep_going();
            while process.link_open && readable(&process.link) {
                match hear(role, &process.link) {
                    Heard::Alive(busy_ms) => beats.push(busy_ms),
                    Heard::Ready(summary) => {
                        match role {
                            Role::Api => log::info!("api is ready: http://{address}/"),
                            Role::Worker | Role::Decoder => log::info!("worker is ready: {summary}"),
                        }
                        events.push(Event::Ready);
                    }
                    Heard::Decoder(link) => wanted.push(link),
                    Heard::Closed => process.link_open = false,
                    Heard::Wrong(what) => {
                        log::error!("{}: {what}; it is killed", role.name());
                        process.link_open = false;
                        process.kill();
                    }
                }
            }
            if let Some(end) = process.ended() {
                place.process = None;
                events.push(Event::Exited(end));
            }
        }
        for link in wanted {
            let (user, model) = (self.prepared.user.as_ref(), &self.prepared.config.model.path);
            self.decoders.start(&self.program, user, model, link);
        }
        events.push(Event::Tick);
        let now = self.started.elapsed();
        beats.into_iter().for_each(|busy_ms| self.watchdog.beat(now, busy_ms));
        for event in events {
            self.event(role, event);
            if event == Event::Ready {
                self.tell_launcher();
            }
        }
    }

    /// The daemon has started when both roles have.
    fn tell_launcher(&mut self) {
        if self.api.state.was_up
            && self.worker.state.was_up
            && let Some(waiting) = self.waiting.take()
        {
            waiting.tell(Exit::Ok, "");
        }
    }

    /// One step of a role's table, and what it asks for.
    fn event(&mut self, role: Role, event: Event) {
        let now = self.started.elapsed();
        let place = self.place(role);
        let (next, actions) = step(&place.state, event, now);
        place.state = next;
        for action in actions {
            match action {
                Action::Spawn => self.spawn(role),
                Action::Drain => self.drain(role),
                Action::Kill => {
                    log::warn!("{}: not in time; it is killed", role.name());
                    if let Some(process) = &mut self.place(role).process {
                        process.kill();
                    }
                }
                Action::Lost { end, retry } => self.lost(role, end, retry),
            }
        }
    }

    fn drain(&mut self, role: Role) {
        let again = matches!(self.place(role).state.phase, Phase::Draining { again: true, .. });
        if role == Role::Worker && (again || self.upgrading) {
            let what = if again { "a new configuration" } else { "a new program" };
            self.tell_worker_down(format!("it restarts with {what}"), true);
        }
        let api = if self.upgrading { ToApi::HandOver } else { ToApi::Drain };
        let Some(process) = &mut self.place(role).process else {
            return;
        };
        let told = match role {
            Role::Api => process.link.send(&api, &[]),
            Role::Worker | Role::Decoder => process.link.send(&ToWorkerFromParent::Drain, &[]),
        };
        if let Err(e) = told {
            log::warn!("{}: {e}; it is killed", role.name());
            process.kill();
        }
    }

    fn lost(&mut self, role: Role, end: End, retry: bool) {
        let then = if retry { "it starts again" } else { "it stays down" };
        log::error!("{} ended: {end}; {then}", role.name());
        if role == Role::Worker {
            self.tell_worker_down(end.to_string(), retry);
        }
        // Without an api there is no service; without a worker there is one only if it had started.
        if !retry && (role == Role::Api || !self.worker.state.was_up) {
            let exit = match end {
                End::Code(code) => Exit::from_code(code).filter(|e| e.is_permanent()).unwrap_or(Exit::Unavailable),
                End::Signal(_) => Exit::Unavailable,
            };
            self.end(exit);
        }
    }

    fn tell_worker_down(&mut self, reason: String, retry: bool) {
        let message = ToApi::WorkerDown { generation: self.generation, reason, retry };
        if let Some(api) = &self.api.process
            && let Err(e) = api.link.send(&message, &[])
        {
            log::warn!("api: {e}");
        }
    }

    /// Starts a role and wires it to the other one.
    fn spawn(&mut self, role: Role) {
        let started = match role {
            Role::Api => self.spawn_api(),
            Role::Worker | Role::Decoder => self.spawn_worker(),
        };
        if let Err(e) = started {
            log::error!("{} cannot be started: {e}", role.name());
            self.place(role).process = None;
            self.event(role, Event::Exited(End::Code(Exit::Os as i32)));
        }
    }

    fn spawn_api(&mut self) -> io::Result<()> {
        let process = RoleProcess::spawn(Role::Api, &self.program, log::max_level(), &[])?;
        log::info!("api is process {}", process.pid());
        let start = ToApi::Start {
            build: build_id(),
            config: Box::new(self.prepared.config.clone()),
            sandbox: self.sandbox_words(),
        };
        process.link.send(&start, &[self.prepared.http.as_fd(), self.prepared.local.listener.as_fd()])?;
        if let Some(worker) = &self.worker.process {
            let (ours, theirs) = Link::pair()?;
            process.link.send(&ToApi::WorkerUp { generation: self.generation, pid: worker.pid() }, &[ours.as_fd()])?;
            worker.link.send(&ToWorkerFromParent::NewApi, &[theirs.as_fd()])?;
        }
        self.api.process = Some(process);
        Ok(())
    }

    fn spawn_worker(&mut self) -> io::Result<()> {
        let cache = cache_directory(&self.prepared.config).to_string_lossy().into_owned();
        let mut extra = vec![];
        // Drivers cache compiled shaders where they are told; without this, in a home that the role's user lacks.
        if self.prepared.user.is_some() || std::env::var_os("XDG_CACHE_HOME").is_none() {
            extra.push(("XDG_CACHE_HOME", cache.as_str()));
        }
        #[cfg(target_os = "freebsd")]
        if let Some(user) = &self.prepared.user {
            use crate::sys::sandbox::{JAIL_VARIABLE, Jail};
            // The old jail goes first: its name and its mounts are those of the new one.
            self.jail = None;
            let jail = Jail::create(&self.prepared.config, user).map_err(|e| io::Error::other(chain(&e)))?;
            extra.push((JAIL_VARIABLE, jail.name()));
            let process = RoleProcess::spawn(Role::Worker, &self.program, log::max_level(), &extra)?;
            self.jail = Some(jail);
            return self.wire_worker(process);
        }
        let process = RoleProcess::spawn(Role::Worker, &self.program, log::max_level(), &extra)?;
        #[cfg(target_os = "linux")]
        if self.prepared.user.is_some() {
            // The old group goes first: its name is that of the new one.
            self.group = None;
            self.group = crate::sys::sandbox::Group::create(&self.prepared.config.limits)?;
            if let Some(group) = &self.group {
                group.add(process.pid())?;
            }
        }
        self.wire_worker(process)
    }

    fn wire_worker(&mut self, process: RoleProcess) -> io::Result<()> {
        self.generation += 1;
        self.watchdog = Watchdog::default();
        log::info!("worker {} is process {}", self.generation, process.pid());
        let (api_end, worker_end) = Link::pair()?;
        let start = ToWorkerFromParent::Start {
            build: build_id(),
            config: Box::new(self.prepared.config.clone()),
            sandbox: self.sandbox_words(),
        };
        process.link.send(&start, &[worker_end.as_fd()])?;
        let up = ToApi::WorkerUp { generation: self.generation, pid: process.pid() };
        self.worker.process = Some(process);
        // An api that is away gets its own link when it is back.
        if let Some(api) = &self.api.process
            && let Err(e) = api.link.send(&up, &[api_end.as_fd()])
        {
            log::warn!("api: {e}");
        }
        Ok(())
    }

    /// What the parent knows; a role says what is in force once it has entered its sandbox.
    fn sandbox_words(&self) -> String {
        match &self.prepared.user {
            Some(user) => format!("user {}", user.name),
            None => "none (started as an ordinary user)".to_string(),
        }
    }

    /// Takes a new configuration if it is right, and goes on with the old one if it is not.
    fn reload(&mut self) {
        if self.ending.is_some() || self.upgrading {
            return;
        }
        // Also without a change: newsyslog(8) has moved the file away and waits for this.
        start_log(&self.prepared.config, &self.args);
        let old = &self.prepared.config;
        let read = config::reload(old, self.config_path.as_deref()).and_then(|(mut new, told)| {
            new.model.path = config::resolve_model(&new, &self.program)?;
            // Compared once more, since a model's path is resolved in the old configuration and now in the new one.
            let changes = config::Changes { next_start: told.next_start, ..config::diff(old, &new) };
            Ok((new, changes))
        });
        let (new, changes) = match read {
            Ok(read) => read,
            Err(e) => return log::error!("reload: {}; the old configuration stays", chain(&e)),
        };
        for key in &changes.next_start {
            log::warn!("reload: {key} changes with the next start of the daemon");
        }
        self.prepared.config = new;
        if changes.reload_log {
            start_log(&self.prepared.config, &self.args);
        }
        let failed = matches!(self.worker.state.phase, Phase::Failed { .. });
        if changes.restart_worker || failed {
            self.event(Role::Worker, Event::Restart);
        }
        if changes.restart_api {
            self.event(Role::Api, Event::Restart);
        }
        log::info!("reload: done");
    }
}

/// True if a message or the end of the link is there.
fn readable(link: &Link) -> bool {
    let mut fds = [PollFd::new(link.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

/// Reads the one message that a role may send.
fn hear(role: Role, link: &Link) -> Heard {
    let ready = match role {
        Role::Api => match link.recv::<FromApi>() {
            Ok(Some((FromApi::Decoder, fds))) => {
                let fd = fds.into_iter().next();
                return fd.map_or_else(|| Heard::Wrong("a decoder without a link".to_string()), Heard::Decoder);
            }
            other => other.map(|m| match m {
                Some((FromApi::Ready { build }, _)) => Some((build, String::new())),
                _ => None,
            }),
        },
        Role::Worker | Role::Decoder => match link.recv::<FromWorkerToParent>() {
            Ok(Some((FromWorkerToParent::Alive { busy_ms }, _))) => return Heard::Alive(busy_ms),
            Ok(Some((FromWorkerToParent::Ready { build, summary }, _))) => Ok(Some((build, summary))),
            Ok(None) => Ok(None),
            Err(e) => Err(e),
        },
    };
    match ready {
        Ok(Some((build, summary))) if build == build_id() => Heard::Ready(summary),
        Ok(Some((build, _))) => Heard::Wrong(format!("it is build {build:?}, this is {:?}", build_id())),
        Ok(None) => Heard::Closed,
        Err(e) => Heard::Wrong(chain(&e)),
    }
}
