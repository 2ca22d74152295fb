//! `readiness`: from a fault to the pod's condition by the kubelet's own readiness probe, as a watcher sees it: what there
//! is without HealthScope, to set beside `status`.
//!
//! A real node; a pod whose readiness probe asks a target of this program, in the node's own network, which is well or
//! not from one moment to the next. The kubelet's shortest period, one second, and a threshold of one.

use {
    crate::{
        kubernetes::{DEADLINE, client},
        report::{Table, quantile, say},
    },
    anyhow::{Context, Result},
    clap::Args,
    futures_util::TryStreamExt,
    healthscope_e2e_cluster::{Cluster, Image, Options},
    k8s_openapi::api::core::v1::Pod,
    kube::{
        Api, Client,
        api::{WatchEvent, WatchParams},
    },
    std::{
        io::{BufRead, BufReader, Read, Write},
        net::{SocketAddr, TcpListener},
        process::{Child, ChildStdin, Command, Stdio},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
        time::{Duration, Instant},
    },
    tokio::{sync::mpsc, time},
};

/// How many faults.
#[derive(Debug, Args)]
pub(crate) struct ReadinessArgs {
    /// Faults to measure.
    #[arg(long, default_value_t = 40)]
    faults: u32,
}

/// Not a bench: what the kubelet asks.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// Where.
    listen: SocketAddr,
}

/// In the node's network, where nobody else is.
const TARGET: &str = "127.0.0.1:9801";
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: local/busybox:1
    imagePullPolicy: Never
    readinessProbe:
      httpGet: {host: 127.0.0.1, port: 9801, path: /}
      periodSeconds: 1
      failureThreshold: 1
";

/// Runs the measurement.
pub(crate) async fn readiness(args: ReadinessArgs) -> Result<()> {
    let cluster = Cluster::start(&Options::node())?;
    cluster.import(&Image::busybox())?;
    let mut target = Target::start(&cluster)?;
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    cluster.wait_for("the ServiceAccount", DEADLINE, || cluster.get(account).map(Some))?;
    cluster.apply(POD)?;
    let (told, mut seen) = mpsc::unbounded_channel();
    let client = client(&cluster.kubeconfig()).await?;
    let following = tokio::spawn(follow(client, told));
    until(&mut seen, true).await?;

    let mut times = Vec::new();
    for fault in 0..args.faults {
        // Another part of the period each time.
        time::sleep(Duration::from_millis(1_200 + u64::from(fault * 370 % 1_000))).await;
        let begun = Instant::now();
        target.be(false)?;
        times.push(until(&mut seen, false).await? - begun);
        target.be(true)?;
        until(&mut seen, true).await?;
    }
    following.abort();

    times.sort_unstable();
    say(&format!(
        "{} faults; readiness probe with a period of 1 s and a threshold of 1",
        args.faults
    ));
    let mut table = Table::new(["", "p50", "p90", "p99", "max"]);
    let at = |share| {
        let found = quantile(&times, share).unwrap_or_default();
        format!("{:.0} ms", found.as_secs_f64() * 1e3)
    };
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(at);
    table.row(["fault → pod not Ready seen".to_owned(), p50, p90, p99, max]);
    table.print();
    Ok(())
}

/// When the pod was first seen to be ready or not.
async fn until(seen: &mut mpsc::UnboundedReceiver<(Instant, bool)>, is_ready: bool) -> Result<Instant> {
    let wait = async {
        loop {
            let (at, found) = seen.recv().await.context("the watch ended")?;
            if found == is_ready {
                return anyhow::Ok(at);
            }
        }
    };
    time::timeout(DEADLINE, wait)
        .await
        .context("the pod's condition does not change")?
}

async fn follow(client: Client, told: mpsc::UnboundedSender<(Instant, bool)>) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client, "default");
    let mut version = "0".to_owned();
    loop {
        let events = api.watch(&WatchParams::default().timeout(280), &version).await?;
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.try_next().await? {
            let at = Instant::now();
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event {
                let conditions = pod
                    .status
                    .and_then(|status| status.conditions)
                    .unwrap_or_default();
                let is_ready = conditions
                    .iter()
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True");
                version = pod.metadata.resource_version.unwrap_or_default();
                told.send((at, is_ready))?;
            }
        }
    }
}

/// What the kubelet asks: a process in the node's network.
struct Target {
    child: Child,
    input: ChildStdin,
}

impl Drop for Target {
    fn drop(&mut self) {
        // It ends by itself when its input does; this is for one that hangs.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Target {
    fn start(cluster: &Cluster) -> Result<Self> {
        let mut command: Command = cluster.command(std::env::current_exe()?);
        command
            .args(["readiness-target", TARGET])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the target")?;
        let input = child.stdin.take().context("the target's input is piped")?;
        let output = child.stdout.take().context("the target's output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        anyhow::ensure!(line == "listening\n", "the target does not listen on {TARGET}");
        Ok(Self { child, input })
    }

    fn be(&mut self, well: bool) -> Result<()> {
        self.input.write_all(if well { b"1" } else { b"0" })?;
        self.input.flush()?;
        Ok(())
    }
}

/// Answers 200 or 503, as the last byte of the input says, until that ends.
pub(crate) fn serve_target(args: &TargetArgs) -> Result<()> {
    let listener = TcpListener::bind(args.listen)?;
    let is_well = Arc::new(AtomicBool::new(true));
    let answer = Arc::clone(&is_well);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 1024];
            let status = if answer.load(Ordering::SeqCst) {
                "200 OK"
            } else {
                "503 Service Unavailable"
            };
            // A kubelet that has gone away asks again.
            let _answered = stream.read(&mut request).and_then(|_| {
                write!(
                    stream,
                    "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
            });
        }
    });
    let mut output = std::io::stdout();
    output.write_all(b"listening\n")?;
    output.flush()?;
    for byte in BufReader::new(std::io::stdin()).bytes() {
        is_well.store(byte? == b'1', Ordering::SeqCst);
    }
    Ok(())
}
