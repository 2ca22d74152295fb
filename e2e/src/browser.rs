//! Headless Chromium, spoken to over its DevTools protocol: enough to open a page, look, type and take pictures.

use {
    crate::wait::{PATIENCE, eventually},
    anyhow::{Context, Result, bail, ensure},
    base64::{Engine, prelude::BASE64_STANDARD},
    futures_util::{SinkExt, StreamExt},
    serde_json::{Value, json},
    std::{path::Path, process::Stdio, time::Instant},
    tempfile::TempDir,
    tokio::{
        net::TcpStream,
        process::{Child, Command},
        time::timeout,
    },
    tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message},
};

/// One browser with one page.
#[derive(Debug)]
pub struct Browser {
    socket: WebSocketStream<TcpStream>,
    last_id: u64,
    /// Errors on the console, exceptions and refusals of the content security policy, as they came.
    complaints: Vec<String>,
    /// Addresses that the page has asked for.
    requests: Vec<String>,
    _child: Child,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser of this size, on an empty page.
    ///
    /// # Errors
    /// When Chromium is not installed, or does not come up.
    pub async fn start(width: u32, height: u32) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let child = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--window-size={width},{height}"))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start chromium (Debian's package chromium)")?;
        let file = profile.path().join("DevToolsActivePort");
        let port: u16 = eventually("chromium to listen", async || {
            let text = std::fs::read_to_string(&file)?;
            Ok(text.lines().next().context("no port yet")?.parse()?)
        })
        .await?;
        let list = format!("http://127.0.0.1:{port}/json/list");
        let url = eventually("chromium's page", async || {
            let pages: Value = serde_json::from_str(&reqwest::get(&list).await?.text().await?)?;
            let page = pages
                .as_array()
                .and_then(|pages| pages.iter().find(|page| page["type"] == "page"));
            Ok(page.context("no page yet")?["webSocketDebuggerUrl"]
                .as_str()
                .context("no address")?
                .to_owned())
        })
        .await?;
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let (socket, _) = client_async(url, stream).await?;
        let mut browser = Self {
            socket,
            last_id: 0,
            complaints: Vec::new(),
            requests: Vec::new(),
            _child: child,
            _profile: profile,
        };
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility", "DOM"] {
            browser.call(&format!("{domain}.enable"), json!({})).await?;
        }
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        browser.call("Emulation.setDeviceMetricsOverride", size).await?;
        Ok(browser)
    }

    /// Calls a method of the DevTools protocol.
    ///
    /// # Errors
    /// When the browser refuses or does not answer.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let request = json!({"id": id, "method": method, "params": params}).to_string();
        self.socket.send(Message::text(request)).await?;
        let answer = timeout(PATIENCE, async {
            while let Some(message) = self.socket.next().await {
                let Message::Text(text) = message? else { continue };
                let value: Value = serde_json::from_str(&text)?;
                if value["id"] == id {
                    ensure!(value.get("error").is_none(), "{method}: {}", value["error"]);
                    return Ok(value["result"].clone());
                }
                self.note(&value);
            }
            bail!("the browser closed the connection")
        });
        answer.await.with_context(|| format!("{method}: no answer"))?
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => self.complaints.push(params["exceptionDetails"].to_string()),
            "Runtime.consoleAPICalled" if params["type"] == "error" => {
                self.complaints.push(params["args"].to_string());
            }
            "Log.entryAdded" if params["entry"]["level"] == "error" => {
                self.complaints.push(params["entry"].to_string());
            }
            "Network.requestWillBeSent" => {
                self.requests
                    .push(params["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
            _ => {}
        }
    }

    /// Opens an address and waits until the page is loaded.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn open(&mut self, url: &str) -> Result<()> {
        let result = self.call("Page.navigate", json!({"url": url})).await?;
        ensure!(
            result.get("errorText").is_none(),
            "cannot open {url}: {}",
            result["errorText"]
        );
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")
            .await
    }

    /// Evaluates an expression in the page.
    ///
    /// # Errors
    /// When it throws.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", params).await?;
        ensure!(
            result.get("exceptionDetails").is_none(),
            "{expression}: {}",
            result["exceptionDetails"]
        );
        Ok(result["result"]["value"].clone())
    }

    /// The text that a person sees.
    ///
    /// # Errors
    /// When the page is gone.
    pub async fn text(&mut self) -> Result<String> {
        Ok(self
            .evaluate("document.body.innerText")
            .await?
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// When it never is; with the page's text.
    pub async fn until(&mut self, expression: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self
                .evaluate(&format!("Boolean({expression})"))
                .await
                .unwrap_or_default()
                == true
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "{expression} never became true; the page says:\n{}",
                    self.text().await?
                );
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Presses a key: `Tab`, `Enter`, `ArrowDown`...
    ///
    /// # Errors
    /// When the page is gone.
    pub async fn press(&mut self, key: &str) -> Result<()> {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            " " => 32,
            "ArrowDown" => 40,
            other => bail!("{other:?} is not a key that these tests press"),
        };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let params =
                json!({"type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", params).await?;
        }
        Ok(())
    }

    /// Shows the page as to a person who prefers this: `("prefers-color-scheme", "dark")`.
    ///
    /// # Errors
    /// When the browser does not know it.
    pub async fn prefer(&mut self, feature: &str, value: &str) -> Result<()> {
        let params = json!({"features": [{"name": feature, "value": value}]});
        self.call("Emulation.setEmulatedMedia", params).await.map(drop)
    }

    /// Everything that assistive technology is told about: roles with names, in order.
    ///
    /// # Errors
    /// When the page is gone.
    pub async fn accessibility_tree(&mut self) -> Result<Vec<(String, String)>> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await?;
        let nodes = tree["nodes"].as_array().context("no tree")?;
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        Ok(nodes
            .iter()
            .filter(|node| node["ignored"] != true)
            .map(|node| (text(&node["role"]), text(&node["name"])))
            .collect())
    }

    /// Writes a picture of the page.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn screenshot(&mut self, path: &Path) -> Result<()> {
        let result = self
            .call("Page.captureScreenshot", json!({"format": "png"}))
            .await?;
        let data = result["data"].as_str().context("no picture")?;
        Ok(std::fs::write(path, BASE64_STANDARD.decode(data)?)?)
    }

    /// What the console, exceptions and the content security policy complained about.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Addresses that were asked for so far.
    #[must_use]
    pub fn requests(&self) -> &[String] {
        &self.requests
    }
}
