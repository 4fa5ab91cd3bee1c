//! Where the parts are joined: the only place that knows all of them.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    num::NonZero,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use actix_web::{App as WebApp, HttpServer, dev::ServerHandle, middleware::from_fn, web::Data};
use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    runtime::{Handle, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
};
use tracing::{info, warn};
use unanimous_protocol::id::ParticipantName;

pub use self::opening::open_existing_log;
use crate::{
    actors::{
        Address, Engine, host_here,
        recovery::Recovered,
        registry::{
            Bounds, Condition, Drain, Given, Recover, Registry, participants::register_stored,
        },
    },
    config::Settings,
    courier::{Couriers, Endpoint, Http, Limits, Transport},
    http,
    log::DecisionLog,
    metrics::Metrics,
};

mod opening;

/// Longer than the couriers of other coordinators and most clients keep an idle connection (30 to 60 s): the server that
/// closes first makes rare, unexplained failures.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// A client that has not sent its request's head by then is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A coordinator with ports, ready to run.
pub struct App {
    listen: SocketAddr,
    admin_listen: SocketAddr,
    grace: Duration,
    registry: Address<Registry>,
    condition: watch::Receiver<Condition>,
    servers: Vec<actix_web::dev::Server>,
    signals: Signals,
    // Live as long as the app.
    _engine: Option<Engine>,
    _calls: Calls,
}

/// The runtime that calls to participants are made on, where they have one of their own. It is ended from within another
/// one, where waiting for its threads would be a panic: what is under way is dropped, as in any other end of the process.
struct Calls(Option<Runtime>);

impl Calls {
    fn start(threads: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("calls")
            .enable_all()
            .build();
        Ok(Self(Some(
            runtime.context("no threads for calls to participants")?,
        )))
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A life that has been begun in the log, before anything is there that lives it.
struct Beginning {
    recovered: Recovered,
    log: Arc<dyn DecisionLog>,
    endpoints: BTreeMap<ParticipantName, Endpoint>,
    given: Given,
    http: Arc<Http>,
    metrics: Arc<Metrics>,
    tell_condition: watch::Sender<Condition>,
}

impl Beginning {
    /// The registry, which makes its calls on this runtime, and what is its first message.
    fn registry(self, calls: Handle) -> (Registry, Recover) {
        let couriers = Couriers::new(
            Limits::default(),
            Arc::clone(&self.http) as Arc<dyn Transport>,
            calls,
            rand::random(),
            self.metrics.calls.clone(),
        );
        let Recovered {
            life,
            unfinished,
            participants,
        } = self.recovered;
        register_stored(&couriers, &self.given.configured, participants);
        for (participant, endpoint) in self.endpoints {
            couriers.register(&participant, endpoint);
        }
        let registry = Registry::new(
            life,
            self.log,
            couriers,
            self.http,
            self.given,
            self.tell_condition,
            self.metrics,
        );
        (registry, Recover(unfinished))
    }
}

/// Where the actors live: each HTTP worker asks for their address when it starts.
type Home = Arc<dyn Fn() -> Address<Registry> + Send + Sync>;

/// With the only HTTP worker, which makes the calls as well.
fn at_home_with_the_worker(beginning: Beginning) -> Home {
    let (beginning, home) = (Mutex::new(Some(beginning)), OnceLock::new());
    Arc::new(move || {
        let settle = || {
            let beginning = beginning
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let beginning = beginning.expect("one settles once");
            let (registry, recover) = beginning.registry(Handle::current());
            let registry = host_here(registry);
            // Before any request: it is the first message.
            registry.do_send(recover);
            registry
        };
        home.get_or_init(settle).clone()
    })
}

/// How a coordinator ended.
pub enum Ending {
    /// It was asked to stop.
    Stopped,
    /// Another one has taken its place, for this reason.
    Fenced(String),
}

impl App {
    /// Listens, opens the log, begins a new life in it, and recovers what is unfinished. A log that does not answer is
    /// waited for; `None` when the process was asked to stop meanwhile.
    ///
    /// # Errors
    /// When an address is taken, or the log can not be opened or is held by another process.
    pub async fn build(settings: &Settings) -> anyhow::Result<Option<Self>> {
        let mut signals = Signals::listen()?;
        // Addresses first: a start that fails should not have fenced anybody.
        let (listener, listen) = bind(settings.listen)?;
        let (admin_listener, admin_listen) = bind(settings.admin_listen)?;
        let (tell_why, why) = watch::channel(String::new());
        let opening = opening::open_and_begin(&settings.log, settings.node, &tell_why);
        let opening = opening::serve_meanwhile(&listener, &admin_listener, why, opening);
        let (log, recovered) = tokio::select! {
            opened = opening => opened??,
            signal = signals.next() => {
                info!("{signal}: the start ends, nothing was begun");
                return Ok(None);
            }
        };
        if !settings.adoption.nodes.is_empty() && log.is_exclusive() {
            warn!(
                adopt = ?settings.adoption.nodes,
                "--adopt-node is not needed on this log: a start takes over every node in it"
            );
        }
        let metrics = Arc::new(Metrics::new(http::OPERATIONS)?);
        let (tell_condition, condition) = watch::channel(Condition::Ready);
        let beginning = Beginning {
            recovered,
            log,
            endpoints: settings.participants.clone(),
            given: Given {
                bounds: Bounds::default(),
                retention: settings.retention,
                configured: settings.participants.keys().cloned().collect(),
                adoption: settings.adoption.clone(),
            },
            http: Arc::new(Http::new(&Limits::default())?),
            metrics: Arc::clone(&metrics),
            tell_condition,
        };
        let (engine, calls, home) = match share_of_cores() {
            1 => (None, Calls(None), at_home_with_the_worker(beginning)),
            threads => {
                let (engine, calls) = (Engine::start(), Calls::start(threads)?);
                let runtime = calls
                    .0
                    .as_ref()
                    .map_or_else(Handle::current, |own| own.handle().clone());
                let (registry, recover) = beginning.registry(runtime);
                let registry = engine.host(registry);
                registry.do_send(recover);
                let home: Home = Arc::new(move || registry.clone());
                (Some(engine), calls, home)
            }
        };
        let api = serve_api(listener, Arc::clone(&home), &metrics)?;
        // Its workers have started.
        let registry = home();
        let admin = serve_admin(admin_listener, &registry, &condition, &metrics)?;
        Ok(Some(Self {
            listen,
            admin_listen,
            grace: settings.grace,
            registry,
            condition,
            servers: vec![api, admin],
            signals,
            _engine: engine,
            _calls: calls,
        }))
    }

    /// The API's address.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The admin listener's address.
    #[must_use]
    pub fn admin_listen(&self) -> SocketAddr {
        self.admin_listen
    }

    /// Serves until SIGTERM, SIGINT, or until it is fenced.
    pub async fn run_until_stopped(mut self) -> Ending {
        let handles: Vec<ServerHandle> =
            self.servers.iter().map(|server| server.handle()).collect();
        for server in self.servers.drain(..) {
            actix_web::rt::spawn(server);
        }
        let fenced = fenced(self.condition.clone());
        tokio::pin!(fenced);
        tokio::select! {
            // At once: a fenced coordinator says nothing more, not even to those who wait.
            why = &mut fenced => return Ending::Fenced(why),
            signal = self.signals.next() => {
                info!("{signal}: nothing new is begun, running transactions may finish");
            }
        }
        let (drained, is_drained) = oneshot::channel();
        self.registry.do_send(Drain(drained));
        tokio::select! {
            why = &mut fenced => return Ending::Fenced(why),
            _ = is_drained => info!("every transaction is decided"),
            signal = self.signals.next() => {
                warn!("{signal} again: what is undecided is left to the next life");
            }
            () = tokio::time::sleep(self.grace) => warn!(
                "the grace time is over: what is undecided is left to the next life"
            ),
        }
        for handle in handles {
            // Graceful: whoever waits for an outcome that is decided gets it.
            tokio::time::timeout(Duration::from_secs(2), handle.stop(true))
                .await
                .ok();
        }
        Ending::Stopped
    }
}

/// What ends the process in good order. Listened for from the beginning, so that none is missed.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("no handler for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("no handler for SIGINT")?,
        })
    }

    /// The next one's name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn fenced(mut condition: watch::Receiver<Condition>) -> String {
    let is_fenced = |condition: &Condition| matches!(condition, Condition::Fenced(_));
    match condition.wait_for(is_fenced).await.as_deref() {
        Ok(Condition::Fenced(why)) => why.clone(),
        // The registry lives as long as the app.
        Ok(_) | Err(_) => std::future::pending().await,
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let taken = || format!("can not listen on {address}: is another program using it?");
    let listener = TcpListener::bind(address).with_context(taken)?;
    let bound = listener.local_addr().with_context(taken)?;
    Ok((listener, bound))
}

/// Threads that serve clients, and as many that call participants: half of the cores each, for the engine, the log and
/// whoever else is on the machine want theirs. Where threads outnumber cores, each message pays for handing it on.
fn share_of_cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(2, NonZero::get);
    (cores / 2).max(1)
}

/// How many connections clients may have, all workers together. Each is a file descriptor, and clients that hold theirs
/// open must not keep the coordinator from its participants, its log and its admin listener.
fn connections_max() -> usize {
    const MOST: u64 = 50_000;
    const RESERVED: u64 = 512;
    // As many as the system lets this process have; a limit that can not be read or raised is left as it is.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let wanted = hard.min(MOST + RESERVED).max(soft);
    let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok();
    let descriptors = if raised { wanted } else { soft };
    let connections = descriptors
        .saturating_sub(RESERVED)
        .clamp(descriptors / 2, MOST);
    usize::try_from(connections).unwrap_or(usize::MAX)
}

fn serve_api(
    listener: TcpListener,
    home: Home,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<actix_web::dev::Server> {
    let workers = share_of_cores();
    let metrics = Data::from(Arc::clone(metrics));
    let server = HttpServer::new(move || {
        WebApp::new()
            .wrap(from_fn(http::metrics::count))
            .app_data(metrics.clone())
            .app_data(Data::new(home()))
            .configure(http::api)
    })
    .workers(workers)
    .max_connections(connections_max() / workers)
    .keep_alive(KEEP_ALIVE)
    .tcp_nodelay(true)
    .client_request_timeout(HEAD_TIMEOUT)
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}

fn serve_admin(
    listener: TcpListener,
    registry: &Address<Registry>,
    condition: &watch::Receiver<Condition>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<actix_web::dev::Server> {
    let (registry, condition) = (registry.clone(), condition.clone());
    let metrics = Data::from(Arc::clone(metrics));
    let server = HttpServer::new(move || {
        WebApp::new()
            .wrap(from_fn(http::metrics::count))
            .app_data(metrics.clone())
            .app_data(Data::new(registry.clone()))
            .app_data(Data::new(condition.clone()))
            .configure(http::admin)
    })
    .workers(1)
    .keep_alive(KEEP_ALIVE)
    .tcp_nodelay(true)
    .client_request_timeout(HEAD_TIMEOUT)
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}
