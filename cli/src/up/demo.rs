//! The demo shop: web, cart and db, three real targets on loopback in this process.
//!
//! They depend on each other as real ones do: cart asks db for each answer, and web asks cart, so that breaking db really
//! breaks all three. What is checked, and how, is `examples/shop.yaml`. Nothing here knows about health.

use {
    bytes::Bytes,
    healthscope_service::tasks::Tasks,
    healthscope_shared::document::Source,
    http_body_util::Full,
    hyper::{
        Method, Request, Response, StatusCode,
        body::Incoming,
        header::{HOST, HeaderName, ORIGIN},
        server::conn::http1,
        service::service_fn,
    },
    hyper_util::rt::{TokioIo, TokioTimer},
    std::{
        convert::Infallible,
        fmt, io,
        net::{Ipv4Addr, SocketAddr},
        sync::Arc,
        time::Duration,
    },
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::{Semaphore, watch},
        time::timeout,
    },
    tokio_util::sync::CancellationToken,
};

/// What is watched; its ports are replaced when they are taken on this machine.
const FILE: &str = include_str!("../../../examples/shop.yaml");
/// The ports that `FILE` names, unless another program has one of them.
const PORTS: [u16; 3] = [7580, 7581, 7582];
/// What db says to whoever connects.
const GREETING: &[u8] = b"db ready\n";
/// How long one target waits for the next: well below the shop's probes' timeout.
const PATIENCE: Duration = Duration::from_millis(300);
/// Connections served at once by each target; the next ones wait. A demo is asked by its probes and by a person.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may last, so that an idle one does not hold a place.
const MAX_CONNECTION_TIME: Duration = Duration::from_secs(5);
/// How long a change may take until it is told as failed.
const CHANGE_TIME: Duration = Duration::from_secs(1);

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Web,
    Cart,
    Db,
}

impl Target {
    const ALL: [Self; 3] = [Self::Web, Self::Cart, Self::Db];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Cart => "cart",
            Self::Db => "db",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The running shop.
#[derive(Debug)]
pub(crate) struct Shop {
    addresses: [SocketAddr; 3],
}

impl Shop {
    /// Opens the three ports and serves them until the tasks' shutdown.
    pub(crate) async fn start(tasks: &Tasks) -> io::Result<Self> {
        let listeners = match bind(PORTS).await {
            Ok(listeners) => listeners,
            Err(_taken) => bind([0; 3]).await?,
        };
        let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 3];
        for (address, listener) in addresses.iter_mut().zip(&listeners) {
            *address = listener.local_addr()?;
        }
        let [_, cart_address, db_address] = addresses;
        let [web, cart, db] = listeners;
        let (web_switch, web_state) = switch();
        let (cart_switch, cart_state) = switch();
        let (db_switch, db_state) = switch();
        let switches = Arc::new([web_switch, cart_switch, db_switch]);

        let stop = tasks.shutdown().token();
        tasks.essential("demo db", serve(tasks.clone(), stop.clone(), db, db_state, greet));
        tasks.essential(
            "demo cart",
            serve(tasks.clone(), stop.clone(), cart, cart_state, move |stream| {
                answer(stream, move |request| cart_page(request, db_address))
            }),
        );
        // Web keeps its port when it is broken: it is where the switches are.
        let web_page_state = web_state.wanted.clone();
        let always_on = State {
            wanted: watch::channel(true).1,
            actual: web_state.actual,
        };
        tasks.essential(
            "demo web",
            serve(tasks.clone(), stop, web, always_on, move |stream| {
                let switches = Arc::clone(&switches);
                let is_on = *web_page_state.borrow();
                answer(stream, move |request| {
                    web_page(request, cart_address, is_on, Arc::clone(&switches))
                })
            }),
        );
        Ok(Self { addresses })
    }

    /// What to watch: `examples/shop.yaml` with the ports that are really open.
    pub(crate) fn file(&self) -> Source {
        let mut text = FILE.to_owned();
        for (port, address) in PORTS.iter().zip(&self.addresses) {
            text = text.replace(&port.to_string(), &address.port().to_string());
        }
        Source::new("the demo shop", text)
    }

    /// The command that breaks a target, or mends it.
    pub(crate) fn command(&self, verb: &str, target: Target) -> String {
        let [web, _, _] = self.addresses;
        format!("curl -X POST http://{web}/{verb}/{target}")
    }
}

async fn bind(ports: [u16; 3]) -> io::Result<[TcpListener; 3]> {
    let [web, cart, db] = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    Ok([
        TcpListener::bind(web).await?,
        TcpListener::bind(cart).await?,
        TcpListener::bind(db).await?,
    ])
}

/// Says whether a target is to work, and sees whether it does.
#[derive(Debug)]
struct Switch {
    wanted: watch::Sender<bool>,
    actual: watch::Receiver<bool>,
}

/// The target's side of a [`Switch`].
#[derive(Debug)]
struct State {
    wanted: watch::Receiver<bool>,
    actual: watch::Sender<bool>,
}

fn switch() -> (Switch, State) {
    let (wanted_sender, wanted) = watch::channel(true);
    let (actual, actual_receiver) = watch::channel(true);
    (
        Switch {
            wanted: wanted_sender,
            actual: actual_receiver,
        },
        State { wanted, actual },
    )
}

/// Accepts while the target is to work; otherwise the port is closed, so that connections are refused.
async fn serve<F, C>(
    tasks: Tasks,
    stop: CancellationToken,
    listener: TcpListener,
    state: State,
    connection: C,
) -> io::Result<()>
where
    C: Fn(TcpStream) -> F + Send,
    F: Future<Output = ()> + Send + 'static,
{
    let State { mut wanted, actual } = state;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let address = listener.local_addr()?;
    let mut open = Some(listener);
    loop {
        let is_wanted = *wanted.borrow_and_update();
        if !is_wanted {
            open = None;
        } else if open.is_none() {
            open = TcpListener::bind(address).await.ok();
        }
        actual.send_replace(open.is_some());
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = changed(&mut wanted) => {}
            (stream, place) = accept(open.as_ref(), &places) => {
                let serving = connection(stream);
                let stop = stop.clone();
                tasks.spawn_small("demo connection", async move {
                    let _place = place;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        _too_long = timeout(MAX_CONNECTION_TIME, serving) => {}
                    }
                });
            }
        }
    }
}

/// Waits until the switch is turned; for ever, when there is none. Cancel-safe.
async fn changed(wanted: &mut watch::Receiver<bool>) {
    if wanted.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The next connection; never, when the port is closed. Cancel-safe: a place that was got is given back.
async fn accept(
    listener: Option<&TcpListener>,
    places: &Arc<Semaphore>,
) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            return (stream, place);
        }
        // Out of descriptors: the listener stays readable, so without a pause this loop would spin.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn greet(mut stream: TcpStream) {
    let _gone = stream.write_all(GREETING).await;
}

/// Whether db, asked as a client would ask, is there.
async fn ask_db(address: SocketAddr) -> Result<(), String> {
    let asked = timeout(PATIENCE, async {
        let mut stream = TcpStream::connect(address).await?;
        let mut greeting = vec![0; GREETING.len()];
        stream.read_exact(&mut greeting).await
    });
    match asked.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("db does not answer: {error}")),
        Err(_) => Err("db does not answer in time".to_owned()),
    }
}

/// Whether cart says that it is well.
async fn ask_cart(address: SocketAddr) -> Result<(), String> {
    let asked = timeout(PATIENCE + PATIENCE, async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(b"GET /healthz HTTP/1.0\r\nHost: cart\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&answer).into_owned())
    });
    match asked.await {
        Ok(Ok(answer)) if answer.split(' ').nth(1) == Some("200") => Ok(()),
        Ok(Ok(answer)) => {
            let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
            Err(format!("cart is not well: {}", body.trim()))
        }
        Ok(Err(error)) => Err(format!("cart does not answer: {error}")),
        Err(_) => Err("cart does not answer in time".to_owned()),
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer<F, P>(stream: TcpStream, page: P)
where
    P: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| {
        let page = page(request);
        async { Ok::<_, Infallible>(page.await) }
    });
    let _gone = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(MAX_CONNECTION_TIME)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut body = text.into();
    body.push('\n');
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        HeaderName::from_static("content-type"),
        "text/plain; charset=utf-8".parse().expect("a literal"),
    );
    answer
}

fn verdict(asked: Result<(), String>) -> Answer {
    match asked {
        Ok(()) => text(StatusCode::OK, "ok"),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn cart_page(request: Request<Incoming>, db: SocketAddr) -> Answer {
    match request.uri().path() {
        "/healthz" => verdict(ask_db(db).await),
        _ => text(
            StatusCode::NOT_FOUND,
            "the demo shop's cart; its health is at /healthz",
        ),
    }
}

async fn web_page(
    request: Request<Incoming>,
    cart: SocketAddr,
    is_on: bool,
    switches: Arc<[Switch; 3]>,
) -> Answer {
    let path = request.uri().path().to_owned();
    if path == "/healthz" {
        return if is_on {
            verdict(ask_cart(cart).await)
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "web is broken")
        };
    }
    let Some((turn_on, target)) = parse_switch(&path) else {
        let known = "the demo shop's web; its health is at /healthz, and POST /break/db breaks db, POST /mend/db mends it";
        return text(
            if path == "/" {
                StatusCode::OK
            } else {
                StatusCode::NOT_FOUND
            },
            known,
        );
    };
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use POST: curl -X POST");
    }
    if !is_from_here(&request) {
        return text(
            StatusCode::FORBIDDEN,
            "the switches are for this machine's command line, not for web pages",
        );
    }
    turn(&switches[target as usize], turn_on, target).await
}

/// `/break/db`, `/mend/web`.
fn parse_switch(path: &str) -> Option<(bool, Target)> {
    let (verb, name) = path.strip_prefix('/')?.split_once('/')?;
    let turn_on = match verb {
        "break" => false,
        "mend" => true,
        _ => return None,
    };
    Target::ALL
        .into_iter()
        .find(|target| target.as_str() == name)
        .map(|target| (turn_on, target))
}

/// Pages of other sites send an Origin, or come under another name than this machine's (DNS rebinding).
fn is_from_here(request: &Request<Incoming>) -> bool {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    !request.headers().contains_key(ORIGIN) && matches!(name, "127.0.0.1" | "localhost")
}

async fn turn(switch: &Switch, turn_on: bool, target: Target) -> Answer {
    switch.wanted.send_replace(turn_on);
    let mut actual = switch.actual.clone();
    let done = match target {
        Target::Web => true,
        Target::Cart | Target::Db => timeout(CHANGE_TIME, actual.wait_for(|actual| *actual == turn_on))
            .await
            .is_ok_and(|seen| seen.is_ok()),
    };
    match (done, turn_on) {
        (true, true) => text(StatusCode::OK, format!("{target} is mended")),
        (true, false) => text(StatusCode::OK, format!("{target} is broken")),
        (false, _) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{target} cannot be changed: another program has taken its port; start the demo again"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use {super::*, healthscope_service::shutdown::Shutdown, healthscope_shared::config};

    async fn ask(address: SocketAddr, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("{request}\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = answer
            .split("\r\n\r\n")
            .nth(1)
            .unwrap_or_default()
            .trim()
            .to_owned();
        (status, body)
    }

    async fn health(address: SocketAddr) -> (String, String) {
        ask(address, "GET /healthz HTTP/1.1\r\nHost: localhost").await
    }

    async fn post(address: SocketAddr, path: &str) -> (String, String) {
        ask(
            address,
            &format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1:1\r\nContent-Length: 0"),
        )
        .await
    }

    #[tokio::test]
    async fn breaking_db_breaks_what_depends_on_it_and_mending_mends_it() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        let shop = Shop::start(&tasks).await.unwrap();
        let [web, cart, db] = shop.addresses;
        assert_eq!(health(web).await, ("200".into(), "ok".into()));

        assert_eq!(
            post(web, "/break/db").await,
            ("200".into(), "db is broken".into())
        );
        assert_eq!(
            TcpStream::connect(db).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        assert_eq!(health(cart).await.0, "503");
        let (status, body) = health(web).await;
        assert_eq!(status, "503");
        assert!(
            body.starts_with("cart is not well: db does not answer: "),
            "{body}"
        );

        assert_eq!(post(web, "/mend/db").await, ("200".into(), "db is mended".into()));
        assert_eq!(health(web).await.0, "200");

        assert_eq!(post(web, "/break/web").await.0, "200");
        assert_eq!(health(web).await, ("503".into(), "web is broken".into()));
        shutdown.trigger();
        tasks.join(Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn web_pages_of_others_cannot_break_anything() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        let [web, ..] = Shop::start(&tasks).await.unwrap().addresses;
        for request in [
            "POST /break/db HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example",
            "POST /break/db HTTP/1.1\r\nHost: evil.example:7580",
        ] {
            assert_eq!(
                ask(web, &format!("{request}\r\nContent-Length: 0")).await.0,
                "403",
                "{request}"
            );
        }
        assert_eq!(
            ask(web, "GET /break/db HTTP/1.1\r\nHost: 127.0.0.1").await.0,
            "405"
        );
        assert_eq!(post(web, "/break/everything").await.0, "404");
        shutdown.trigger();
    }

    #[tokio::test]
    async fn the_file_names_the_ports_that_are_open() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        let first = Shop::start(&tasks).await.unwrap();
        let second = Shop::start(&tasks).await.unwrap();
        assert!(
            first
                .addresses
                .iter()
                .all(|address| !second.addresses.contains(address))
        );
        let documents = config::read(&[second.file()]).unwrap();
        let file = second.file().text;
        for (address, (component, _)) in second.addresses.iter().zip(&documents.components) {
            assert!(
                file.contains(&address.port().to_string()),
                "{component:?} is not at {address}"
            );
        }
        shutdown.trigger();
    }
}
