//! What one configuration says: who is called, and what goes where. Another one may take its place
//! while calls are in flight.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::attempt::client::Client;
use super::limits::auto::reader::Reader;
use super::limits::concurrency::Limits;
use super::limits::rate::Spec;
use super::numbers::{Names, Numbers};
use super::route::{Lane, Prices, Routing};
use super::settings::{BuildError, Settings, UpstreamSettings};
use super::target::Targets;
use super::target::backend::Backends;

/// The configuration that lines go by now.
#[derive(Debug)]
pub(super) struct Current {
    setup: RwLock<Arc<Setup>>,
    numbers: Numbers,
}

/// A configuration in use.
#[derive(Debug)]
pub(super) struct Setup {
    /// In the order of the configuration.
    pub(super) upstreams: Vec<Server>,
    pub(super) routing: Routing,
}

/// A model server that is configured.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) number: usize,
    pub(super) client: Arc<Client>,
    /// Asks the upstream's engine for its metrics.
    pub(super) reader: Option<Arc<Reader>>,
    settings: Arc<UpstreamSettings>,
    /// As they stood in their file when the client was made.
    certificates: Option<Arc<[u8]>>,
}

/// By what an upstream is called, and its engine asked; and the certificates that are trusted
/// there.
type Called = (Arc<Client>, Option<Arc<Reader>>, Option<Arc<[u8]>>);

impl Current {
    /// Without any upstream.
    pub(super) fn new(backends: Arc<Backends>) -> Self {
        let numbers = Numbers::default();
        let in_use = numbers.of(&Names::default()).in_use;
        let nobody = (BTreeMap::new(), BTreeMap::new());
        let setup = Setup {
            upstreams: Vec::new(),
            routing: Routing::new(
                (Vec::new(), true),
                nobody,
                in_use,
                backends,
                Prices::default(),
            ),
        };
        Self {
            setup: RwLock::new(Arc::new(setup)),
            numbers,
        }
    }

    pub(super) fn get(&self) -> Arc<Setup> {
        let setup = self.setup.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&setup)
    }

    /// Puts settings in the place of those before. What is the same keeps its connections and its
    /// state. Returns what was there before, and what is there now. Not by two callers at once.
    pub(super) fn replace(
        &self,
        settings: &Settings,
        targets: &Targets,
    ) -> Result<[Arc<Setup>; 2], BuildError> {
        // A client may read files, so nobody waits for that.
        let before = self.get();
        let called = settings.upstreams.iter().map(|one| before.called(one));
        let called = called.collect::<Result<Vec<_>, _>>()?;
        let mut setup = self.setup.write().unwrap_or_else(PoisonError::into_inner);
        let next = setup.replaced(settings, &called, &self.numbers, targets)?;
        *setup = Arc::new(next);
        Ok([before, Arc::clone(&setup)])
    }
}

impl Setup {
    fn replaced(
        &self,
        settings: &Settings,
        called: &[Called],
        numbers: &Numbers,
        targets: &Targets,
    ) -> Result<Self, BuildError> {
        let specs = Spec::all(settings);
        let (mut lanes, windows, numbered) = Lane::all(settings, &specs, numbers)?;
        let upstreams = numbered.upstreams.iter().zip(&settings.upstreams);
        let upstreams = upstreams.zip(called);
        let upstreams =
            upstreams.map(
                |((number, settings), (client, reader, certificates))| Server {
                    number: number.at,
                    client: Arc::clone(client),
                    reader: reader.clone(),
                    settings: Arc::new(settings.clone()),
                    certificates: certificates.clone(),
                },
            );
        let upstreams: Vec<Server> = upstreams.collect();
        let by_number = upstreams
            .iter()
            .map(|one| (one.number, Arc::clone(&one.client)));
        let by_number: BTreeMap<usize, Arc<Client>> = by_number.collect();
        let mut reported = self.routing.reported();
        reported.retain(|number, _| by_number.get(number).is_some_and(|one| self.has(one)));

        let named = upstreams.iter().map(|one| (one.number, &*one.settings));
        targets.backends.configure(named);
        let rates = numbered.rates.iter().copied().zip(specs).collect();
        let places = targets.rates.configure(rates, &settings.tenants);
        for lane in &mut lanes {
            lane.place_rate_limits(&places);
        }
        let limited = upstreams.iter().map(|one| (one.number, &*one.settings));
        let limited: Vec<(usize, &UpstreamSettings)> = limited.collect();
        let limits = Limits::new(&limited, &lanes, &windows, Some(&targets.limits()));
        let called = numbered.upstreams.iter().zip(called);
        let called = called.zip(&settings.upstreams);
        let called = called.map(|((number, (client, ..)), one)| (*number, client, one));
        let bounds = (Arc::new(limits), windows);
        targets.configure(called, &lanes, bounds, settings.retry);
        let priced = upstreams
            .iter()
            .map(|one| (one.number, Arc::clone(&one.settings)));
        let prices = Prices {
            currency: settings.currency.clone(),
            upstreams: priced.collect(),
        };
        let routing = Routing::new(
            (lanes, !settings.models.is_empty()),
            (by_number, reported),
            numbered.in_use,
            Arc::clone(&targets.backends),
            prices,
        );
        Ok(Self { upstreams, routing })
    }

    /// Whether calls are made by this client.
    pub(super) fn has(&self, client: &Arc<Client>) -> bool {
        let mut upstreams = self.upstreams.iter();
        upstreams.any(|one| Arc::ptr_eq(&one.client, client))
    }

    /// Whether there is an upstream of this name.
    pub(super) fn has_named(&self, name: &str) -> bool {
        let mut upstreams = self.upstreams.iter();
        upstreams.any(|one| *one.client.name == *name)
    }

    /// By what an upstream is called: what there is, if it calls as the settings say.
    fn called(&self, settings: &UpstreamSettings) -> Result<Called, BuildError> {
        let mut upstreams = self.upstreams.iter();
        let certificates = settings.ca_file.as_ref();
        let certificates = certificates.and_then(|file| std::fs::read(file).ok());
        let certificates = certificates.map(Arc::from);
        let is_known =
            |one: &&Server| one.settings.is_called_as(settings) && one.certificates == certificates;
        if let Some(known) = upstreams.find(is_known) {
            return Ok((
                Arc::clone(&known.client),
                known.reader.clone(),
                certificates,
            ));
        }
        let client = Arc::new(Client::new(settings)?);
        let reader = Reader::of(settings, client.headers())?;
        Ok((client, reader.map(Arc::new), certificates))
    }
}
