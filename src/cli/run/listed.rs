//! What the upstreams list, where the configuration names no models: a dry run asks them.

use super::args::RunArgs;
use super::words::Words;
use crate::config::nearest;
use crate::intake::ModelReport;
use crate::upstream::{ModelInfo, Pool, is_listed};

/// The models that the upstreams list.
pub(super) struct Listed {
    models: Vec<ModelInfo>,
    /// Every upstream has listed its models.
    is_whole: bool,
}

impl Listed {
    /// Asks each upstream once, and says which of them did not answer. From then on the pool
    /// routes by what they list.
    pub(super) async fn ask(pool: &Pool, args: &RunArgs, words: &Words) -> Listed {
        let mut listed = Listed {
            models: Vec::new(),
            is_whole: true,
        };
        for tried in pool.try_upstreams().await {
            let upstream = tried.subject();
            match tried.models {
                Ok(models) => listed.models.extend(models),
                Err(cause) => {
                    listed.is_whole = false;
                    args.say(&format!(
                        "The upstream {upstream} could not be asked for its models, so that they \
                         are not judged: {}",
                        words.in_flags(&cause)
                    ));
                }
            }
        }
        listed
    }

    /// Warns of each model that nobody lists. That is no mistake: some servers take models that
    /// they do not list.
    pub(super) fn warn_of_others(&self, models: &[ModelReport]) {
        if !self.is_whole || self.models.is_empty() {
            return;
        }
        let names = models.iter().map(|model| model.name.as_str());
        for name in names.filter(|name| !name.is_empty() && !is_listed(&self.models, name)) {
            let known = self.models.iter().map(|model| model.id.as_str());
            let nearest = nearest(name, known).map(|nearest| format!("; the nearest is {nearest}"));
            let nearest = nearest.unwrap_or_default();
            tell!("warning: no upstream lists the model {name}{nearest}");
        }
    }
}
