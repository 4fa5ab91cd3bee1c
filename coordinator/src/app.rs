//! Where the parts are joined: the only place that knows all of them.

use std::{
    net::{SocketAddr, TcpListener},
    num::NonZero,
    sync::Arc,
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

pub use self::opening::open_existing_log;
use crate::{
    actors::{
        Address, Engine,
        recovery::Recovered,
        registry::{
            Bounds, Condition, Drain, Given, Recover, Registry, participants::register_stored,
        },
    },
    config::Settings,
    courier::{Couriers, Http, Limits, Transport},
    http,
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
    // The engine's thread and the calls' runtime live as long as the app.
    _engine: Engine,
    _calls: Calls,
}

/// The runtime that calls to participants are made on: one of its own, or on a small machine the actors'. It is ended from
/// within another one, where waiting for its threads would be a panic: what is under way is dropped, as in any other end
/// of the process.
enum Calls {
    Own(Option<Runtime>),
    Shared(Handle),
}

impl Calls {
    async fn start(engine: &Engine) -> anyhow::Result<Self> {
        let threads = share_of_cores();
        if threads > 1 {
            let own = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads)
                .thread_name("calls")
                .enable_all()
                .build()
                .context("no threads for calls to participants")?;
            return Ok(Self::Own(Some(own)));
        }
        let shared = engine.runtime().await.context("the actors' thread ended")?;
        Ok(Self::Shared(shared))
    }

    fn handle(&self) -> Handle {
        match self {
            Self::Own(Some(runtime)) => runtime.handle().clone(),
            // It is there until it is dropped.
            Self::Own(None) => Handle::current(),
            Self::Shared(handle) => handle.clone(),
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        if let Self::Own(runtime) = self
            && let Some(runtime) = runtime.take()
        {
            runtime.shutdown_background();
        }
    }
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
        let Recovered {
            life,
            unfinished,
            participants,
        } = recovered;

        let metrics = Arc::new(Metrics::new(http::OPERATIONS)?);
        let engine = Engine::start();
        let calls = Calls::start(&engine).await?;
        let http = Arc::new(Http::new(&Limits::default())?);
        let couriers = Couriers::new(
            Limits::default(),
            Arc::clone(&http) as Arc<dyn Transport>,
            calls.handle(),
            rand::random(),
            metrics.calls.clone(),
        );
        let configured = settings.participants.keys().cloned().collect();
        register_stored(&couriers, &configured, participants);
        for (participant, endpoint) in &settings.participants {
            couriers.register(participant, endpoint.clone());
        }
        let (tell_condition, condition) = watch::channel(Condition::Ready);
        let given = Given {
            bounds: Bounds::default(),
            retention: settings.retention,
            configured,
            adoption: settings.adoption.clone(),
        };
        let registry = Registry::new(
            life,
            log,
            couriers,
            http,
            given,
            tell_condition,
            Arc::clone(&metrics),
        );
        let registry = engine.host(registry);
        registry
            .send(Recover(unfinished))
            .await
            .context("the registry ended at start")?;

        let servers = serve(listener, admin_listener, &registry, &condition, &metrics)?;
        let (grace, _engine, _calls) = (settings.grace, engine, calls);
        Ok(Some(Self {
            listen,
            admin_listen,
            grace,
            registry,
            condition,
            servers,
            signals,
            _engine,
            _calls,
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

fn serve(
    listener: TcpListener,
    admin_listener: TcpListener,
    registry: &Address<Registry>,
    condition: &watch::Receiver<Condition>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Vec<actix_web::dev::Server>> {
    let workers = share_of_cores();
    let connections = connections_max();
    let (registry, for_admin) = (registry.clone(), registry.clone());
    let (metrics, counted_by_admin) = (Data::from(Arc::clone(metrics)), Arc::clone(metrics));
    let api = HttpServer::new(move || {
        WebApp::new()
            .wrap(from_fn(http::metrics::count))
            .app_data(metrics.clone())
            .app_data(Data::new(registry.clone()))
            .configure(http::api)
    })
    .workers(workers)
    .max_connections(connections / workers)
    .keep_alive(KEEP_ALIVE)
    .tcp_nodelay(true)
    .client_request_timeout(HEAD_TIMEOUT)
    .disable_signals()
    .listen(listener)?;
    let (registry, condition) = (for_admin, condition.clone());
    let metrics = Data::from(counted_by_admin);
    let admin = HttpServer::new(move || {
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
    .listen(admin_listener)?;
    Ok(vec![api.run(), admin.run()])
}
