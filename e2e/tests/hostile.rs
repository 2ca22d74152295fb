//! A target that attacks whoever reads what it says: megabytes, escape sequences and markup, from a command and from an HTTP
//! server, through the real programs to the terminal, the page and the API.

use {
    anyhow::{Context, Result, ensure},
    healthscope_e2e::{
        api::Api,
        program::{Program, free_address, run},
        wait::eventually,
    },
    serde_json::Value,
    std::{fs, net::SocketAddr},
    tempfile::TempDir,
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    },
};

/// What a terminal, a page or a log would obey: clear the screen, set the title, markup, reordered text, a false line.
const ATTACK: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}<script>alert(1)</script><img src=x onerror=alert(2)>\u{202e}txt.exe\u{9b}31m\r\n\
     shop  Healthy";
/// What nobody may see of it, in whatever is printed or served.
const FORBIDDEN: [char; 5] = ['\u{1b}', '\u{7}', '\u{202e}', '\u{9b}', '\r'];
/// Bytes that the command prints in each run.
const FLOOD: usize = 30_000_000;
/// The agent's memory at its highest: what an ordinary one has, and far from what is printed.
const MEMORY_KIB: u64 = 48 * 1024;
/// Longest answer of the API about the scope: two failing checks.
const LONGEST_ANSWER: usize = 64 * 1024;

struct Attacked {
    _folder: TempDir,
    address: SocketAddr,
    agent: Program,
    _aggregator: Program,
}

impl Attacked {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("attack"), ATTACK)?;
        let web = hostile_server().await?;
        let address = free_address()?;
        let config = format!(
            "apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: db}}\nspec: {{probes: [{{name: \
             rows, period: 500ms, timeout: 20s, failureThreshold: 1, exec: {{command: [sh, -c, 'cat attack; yes \"$(cat \
             attack)\" | head -c {FLOOD}; cat attack >&2; exit 3']}}}}]}}\n---\n\
             apiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\nmetadata: {{name: web}}\nspec: {{probes: [{{name: \
             page, period: 500ms, failureThreshold: 1, httpGet: {{port: {}}}}}]}}\n---\n\
             apiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {{name: shop}}\n\
             spec: {{workloadRefs: [{{kind: Component, name: db}}, {{kind: Component, name: web}}]}}\n",
            web.port()
        );
        let path = folder.path().join("config.yaml");
        fs::write(&path, config)?;
        let path = path.display().to_string();
        let aggregator = Program::start(
            "healthscope-aggregator",
            &["--config", &path, "--listen", &address.to_string()],
            folder.path(),
        )?;
        let socket = folder.path().join("agent.sock").display().to_string();
        let url = format!("ws://{address}");
        let agent = Program::start(
            "healthscope-agent",
            &["--config", &path, "--aggregator", &url, "--socket", &socket],
            folder.path(),
        )?;
        Ok(Self {
            _folder: folder,
            address,
            agent,
            _aggregator: aggregator,
        })
    }

    /// Waits until both checks have failed; the scope.
    async fn until_both_failed(&self) -> Result<Value> {
        let api = Api::new(self.address);
        eventually("both to be unhealthy", async || {
            let scope = api.scope("shop").await?;
            let components = scope["components"].as_array().context("no components")?;
            let failed = components
                .iter()
                .filter(|component| component["health"] == "Unhealthy");
            ensure!(failed.count() == 2, "{scope:#}");
            Ok(scope)
        })
        .await
    }
}

/// Answers with an error in hostile words, and a body without end.
async fn hostile_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 2048];
                let _asked = stream.read(&mut request).await;
                let reason = ATTACK.replace("\r\n", " ");
                let head = format!("HTTP/1.1 503 {reason}\r\nX-Attack: {reason}\r\n\r\n");
                let mut answered = stream.write_all(head.as_bytes()).await;
                while answered.is_ok() {
                    answered = stream.write_all(&ATTACK.as_bytes().repeat(100)).await;
                }
            });
        }
    });
    Ok(address)
}

fn check_inert(what: &str, text: &str) -> Result<()> {
    let found: Vec<char> = FORBIDDEN
        .into_iter()
        .filter(|&forbidden| text.contains(forbidden))
        .collect();
    ensure!(found.is_empty(), "{what} has {found:?}:\n{text:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_hostile_target_says_is_short_and_obeyed_by_nobody() -> Result<()> {
    let attacked = Attacked::start().await?;
    let scope = attacked.until_both_failed().await?;
    let answer = scope.to_string();
    ensure!(answer.len() < LONGEST_ANSWER, "{} bytes", answer.len());
    ensure!(answer.contains("<script>"), "it is shown, as text: {answer}");
    check_inert("the API", &answer)?;
    for component in scope["components"].as_array().into_iter().flatten() {
        let message = component["message"].as_str().context("no message")?;
        ensure!(!message.contains('\n'), "one line: {message:?}");
    }

    let server = format!("http://{}", attacked.address);
    for (line, words_shown) in [
        ("get scopes", "shop"),
        ("get components", "db"),
        ("get probes -o wide", "exit code 3"),
        ("get agents", "connected"),
        ("get probes -o json", "exit code 3"),
        ("why shop", "exit code 3"),
    ] {
        let mut words: Vec<&str> = line.split(' ').collect();
        words.extend(["-s", &server]);
        let (_, out, err) = run("healthscope", &words).await?;
        ensure!(out.contains(words_shown), "healthscope {line}: {out}{err}");
        check_inert(&format!("healthscope {line}"), &out)?;
        check_inert(&format!("healthscope {line}"), &err)?;
        ensure!(
            !out.lines()
                .any(|line| line.trim_start().starts_with("shop  Healthy")),
            "a line of the target's passes for one of ours: {out}"
        );
    }
    let api = Api::new(attacked.address);
    for page in [
        "/",
        "/ui/scopes/default/shop",
        "/ui/components/default/Component/db",
        "/ui/components/default/Component/web",
    ] {
        let (code, text) = api.text(page).await?;
        ensure!(code == 200, "{page}: {code}");
        check_inert(page, &text)?;
        for markup in ["<script>alert", "<img src=x"] {
            ensure!(!text.contains(markup), "{page} has {markup}");
        }
    }

    // Its logs are read in terminals too.
    check_inert("the agent's log", &attacked.agent.log())?;
    let status = fs::read_to_string(format!("/proc/{}/status", attacked.agent.id()?))?;
    let highest = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .context("no VmHWM")?;
    println!("the agent's memory was at most {highest} KiB");
    ensure!(highest < MEMORY_KIB, "{highest} KiB");
    Ok(())
}
