//! Something to watch: an HTTP server whose answer the test chooses.

use {
    anyhow::Result,
    std::{
        net::SocketAddr,
        sync::{
            Arc,
            atomic::{AtomicU16, AtomicU64, Ordering},
        },
    },
    tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::AbortHandle,
    },
};

/// An HTTP server on loopback; gone when this value goes.
#[derive(Debug)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Target {
    /// A server that answers 200.
    ///
    /// # Errors
    /// When loopback has no free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let status = Arc::new(AtomicU16::new(200));
        let asked = Arc::new(AtomicU64::new(0));
        let (answer, count) = (status.clone(), asked.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, count) = (answer.clone(), count.clone());
                tokio::spawn(async move {
                    let mut request = [0; 2048];
                    if stream.read(&mut request).await.is_ok() {
                        let status = answer.load(Ordering::SeqCst);
                        let text = format!(
                            "HTTP/1.1 {status} Test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                        );
                        // Whoever asked may have gone; that is its own affair.
                        drop(stream.write_all(text.as_bytes()).await);
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        })
        .abort_handle();
        Ok(Self {
            address,
            status,
            asked,
            task,
        })
    }

    /// Answers with this status from now on.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// How often it was asked so far.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}
