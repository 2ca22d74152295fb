//! Staying beside an aggregator: the stream of changes as a wake-up, with the connection kept by itself.
//!
//! A wake-up carries no data: whoever is woken asks for the newest state. The one place where the command line retries.

use {
    crate::{
        client::{Client, ClientError, Events, Interest},
        failure::Failure,
        sse,
    },
    futures_util::FutureExt,
    std::time::Duration,
};

/// Pauses between attempts to connect, the last one for ever: quick while somebody restarts an aggregator.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// A stream of changes that comes back.
#[derive(Debug)]
pub(crate) struct Follow<'a> {
    client: &'a Client,
    interest: Interest,
    events: Option<Events>,
    /// To resume after.
    last: Option<String>,
    attempts: usize,
}

/// What happened on the stream.
#[derive(Debug)]
pub(crate) enum Step {
    /// An event.
    Event(sse::Event),
    /// The connection ended; the next step connects again.
    Lost(ClientError),
    /// The connection is back.
    Back,
}

impl<'a> Follow<'a> {
    /// Connects; an aggregator that cannot be reached is an error here.
    pub(crate) async fn start(client: &'a Client, interest: Interest) -> Result<Self, ClientError> {
        let events = client.events(&interest, None).await?;
        Ok(Self {
            client,
            interest,
            events: Some(events),
            last: None,
            attempts: 0,
        })
    }

    /// Connects when it is possible.
    pub(crate) fn lazily(client: &'a Client, interest: Interest) -> Self {
        Self {
            client,
            interest,
            events: None,
            last: None,
            attempts: 0,
        }
    }

    /// Waits for the next thing to happen. Cancel-safe: an event that was taken is returned.
    ///
    /// # Errors
    /// What waiting does not help against, such as a wrong token.
    pub(crate) async fn step(&mut self) -> Result<Step, ClientError> {
        if let Some(events) = &mut self.events {
            return match events.next().await {
                Ok(event) => {
                    self.attempts = 0;
                    self.last = event.id.clone().or_else(|| self.last.take());
                    Ok(Step::Event(event))
                }
                Err(error) => {
                    self.events = None;
                    // An aggregator that greets everybody and hangs up is not asked without a pause.
                    self.attempts = 1;
                    Ok(Step::Lost(error))
                }
            };
        }
        loop {
            if let Some(failed) = self.attempts.checked_sub(1) {
                tokio::time::sleep(PAUSES[failed.min(PAUSES.len() - 1)]).await;
            }
            self.attempts += 1;
            match self.client.events(&self.interest, self.last.as_deref()).await {
                Ok(events) => {
                    self.events = Some(events);
                    return Ok(Step::Back);
                }
                Err(error) if error.is_passing() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until something may have changed; any number of events that are there already count as one.
    pub(crate) async fn changed(&mut self) -> Result<(), Failure> {
        loop {
            match self.step().await? {
                // It says that nothing happened.
                Step::Event(event) if event.kind == "heartbeat" => {}
                Step::Event(_) | Step::Back => break,
                Step::Lost(_) => {}
            }
        }
        while let Some(events) = &mut self.events {
            match events.next().now_or_never() {
                None => break,
                Some(Ok(event)) => self.last = event.id.or_else(|| self.last.take()),
                Some(Err(_)) => self.events = None,
            }
        }
        Ok(())
    }
}
