//! What the aggregator's HTTP API says.

use {
    crate::wait::eventually,
    anyhow::{Context, Result, ensure},
    reqwest::{
        Certificate,
        header::{AUTHORIZATION, HeaderMap},
    },
    serde_json::Value,
    std::net::SocketAddr,
};

/// A reader of one aggregator.
#[derive(Clone, Debug)]
pub struct Api {
    base: String,
    client: reqwest::Client,
}

impl Api {
    /// Of the aggregator that listens there, without TLS and token.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        healthscope_service::tls::install_provider();
        Self {
            base: format!("http://{address}"),
            client: reqwest::Client::new(),
        }
    }

    /// Of an aggregator that shows this certificate (PEM) and wants this token.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub fn over_tls(address: SocketAddr, certificate: &str, token: Option<&str>) -> Result<Self> {
        healthscope_service::tls::install_provider();
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, format!("Bearer {token}").parse()?);
        }
        let client = reqwest::Client::builder()
            .tls_certs_only([Certificate::from_pem(certificate.as_bytes())?])
            .default_headers(headers)
            .build()?;
        Ok(Self {
            base: format!("https://{address}"),
            client,
        })
    }

    /// GETs a JSON document.
    ///
    /// # Errors
    /// When the answer is not success or not JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let response = self.client.get(format!("{}{path}", self.base)).send().await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "GET {path}: {status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("GET {path}: {text}"))
    }

    /// GETs text: status and body.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn text(&self, path: &str) -> Result<(u16, String)> {
        let response = self.client.get(format!("{}{path}", self.base)).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// A scope of the default namespace.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn scope(&self, name: &str) -> Result<Value> {
        self.get(&format!("/api/v1/scopes/default/{name}")).await
    }

    /// Waits until a scope of the default namespace has this health.
    ///
    /// # Errors
    /// When it never does; with what it was instead.
    pub async fn until_health(&self, scope: &str, health: &str) -> Result<Value> {
        eventually(&format!("scope {scope} to be {health}"), async || {
            let view = self.scope(scope).await?;
            ensure!(
                view["health"] == health,
                "it is {}: {}",
                view["health"],
                view["message"]
            );
            Ok(view)
        })
        .await
    }

    /// The transitions of a level (scope, component or probe) that are remembered, oldest first.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn transitions(&self, level: &str) -> Result<Vec<Value>> {
        let answer = self.get(&format!("/api/v1/transitions?level={level}")).await?;
        let list = answer.get("items").unwrap_or(&answer);
        list.as_array()
            .cloned()
            .with_context(|| format!("not a list: {answer}"))
    }
}
