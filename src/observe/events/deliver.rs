//! Writes Events to the API server: each with some patience, none with too much.
//!
//! A server that is away or overloaded is asked again; one that says no is not (4xx: no permission, a namespace that is going
//! away), which is logged when it begins. Credentials are read again whenever something fails.

use k8s_openapi::api::events::v1::Event as Wire;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, warn};

use super::correlate::{Correlator, FINISH, Write};
use super::{Clients, Delivery, Event};
use crate::observe::health::Moment;

struct Courier {
    clients: Clients,
    client: Option<Client>,
    delivery: Delivery,
    /// Whether the last Event was refused: said once.
    refused: bool,
}

/// Why an Event was not taken.
enum Failure {
    /// The server says no.
    Refused(String),
    /// It may yet work.
    Passing(String),
    /// There is no such Event any more.
    Forgotten,
}

/// Delivers what comes out of the queue until it is closed.
pub(super) async fn run(instance: String, clients: Clients, delivery: Delivery, mut queue: mpsc::Receiver<Event>) {
    let mut correlator = Correlator::new(&instance, Moment::now());
    let mut courier = Courier { clients, client: None, delivery, refused: false };
    let mut ticks = interval(FINISH / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = queue.recv() => {
                let Some(event) = event else { return };
                if let Some(write) = correlator.take(event, Moment::now()) {
                    courier.deliver(write).await;
                }
            }
            _ = ticks.tick() => {
                for write in correlator.tick(Moment::now()) {
                    courier.deliver(write).await;
                }
            }
        }
    }
}

// === impl Courier ===

impl Courier {
    async fn deliver(&mut self, mut write: Write) {
        for attempt in 1..=self.delivery.attempts {
            match self.attempt(&write).await {
                Ok(()) => return self.refused = false,
                Err(Failure::Forgotten) => {
                    // Events live for an hour, a series may last longer.
                    if let Write::Series(wire) = write {
                        write = Write::Create(wire);
                    }
                    continue;
                }
                Err(Failure::Refused(reason)) => {
                    if !std::mem::replace(&mut self.refused, true) {
                        warn!(reason, "the API server refuses an event; dropped, and so are others until it takes one");
                    }
                    self.client = None;
                    return;
                }
                Err(Failure::Passing(reason)) => {
                    debug!(reason, attempt, "an event cannot be delivered");
                    self.client = None;
                }
            }
            if attempt < self.delivery.attempts {
                sleep(self.delivery.pause).await;
            }
        }
        debug!("an event could not be delivered for too long; dropped");
    }

    async fn attempt(&mut self, write: &Write) -> Result<(), Failure> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let client = self.clients.client().map_err(|error| Failure::Passing(error.to_string()))?;
                self.client.insert(client).clone()
            }
        };
        let answer = async {
            match write {
                Write::Create(wire) => {
                    events(client, wire).create(&PostParams::default(), wire).await.map(drop).or_else(|error| {
                        // An answer that got lost: the first attempt did it.
                        if code(&error) == Some(409) { Ok(()) } else { Err(error) }
                    })
                }
                Write::Series(wire) => {
                    let patch = Patch::Merge(serde_json::json!({ "series": wire.series }));
                    let name = wire.metadata.name.as_deref().unwrap_or_default();
                    events(client, wire).patch(name, &PatchParams::default(), &patch).await.map(drop)
                }
            }
        };
        self.clients.ready().await;
        let answer = timeout(self.delivery.answer, answer).await;
        let answer = answer.map_err(|_| Failure::Passing("no answer in time".to_owned()))?;
        answer.map_err(|error| match (code(&error), write) {
            (Some(404), Write::Series(_)) => Failure::Forgotten,
            (Some(401 | 408 | 429), _) | (None, _) => Failure::Passing(error.to_string()),
            (Some(400..500), _) => Failure::Refused(error.to_string()),
            (Some(_), _) => Failure::Passing(error.to_string()),
        })
    }
}

fn events(client: Client, wire: &Wire) -> Api<Wire> {
    Api::namespaced(client, wire.metadata.namespace.as_deref().unwrap_or("default"))
}

/// The HTTP status of a refusal.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
